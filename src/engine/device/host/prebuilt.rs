//! The program's own kernels as `build.rs` compiled them, so that running them needs no compiler.

use crate::{
    core::cache::Entry,
    engine::device::{DeviceError, KernelSource, host::compile::Library},
};

/// One kernel file with definitions, as it was compiled.
struct Unit {
    file: &'static str,
    defines: &'static [&'static str],
    /// The symbol of its table of entries.
    table: &'static str,
}

// COMPILER, the first line of its `--version`, empty where nothing was built; LIBRARY, the bytes of a shared
// library; TEXTS, the kernel files with their includes in place; UNITS.
include!(concat!(env!("OUT_DIR"), "/prebuilt.rs"));

/// Whether the program carries any: `build.rs` says where it does not.
pub const HAS_PREBUILT: bool = !UNITS.is_empty();

/// The first line of the `--version` of the compiler that built them.
pub const BUILT_BY: &str = COMPILER;

/// The library, if it has all of these sources, word for word and with these definitions.
pub fn library(sources: &[KernelSource]) -> Result<Option<Library>, DeviceError> {
    let tables: Option<Vec<_>> = sources.iter().map(table).collect();
    let Some(tables) = tables.filter(|_| HAS_PREBUILT) else { return Ok(None) };
    let error = |detail: String| DeviceError::Cache { detail };
    let name = format!("{}.so", &blake3::hash(LIBRARY).to_hex()[..32]);
    let entry = Entry::new("host", name).map_err(|failure| error(failure.to_string()))?;
    if entry.file().is_none() {
        entry.write(LIBRARY);
    }
    let path = entry.file().ok_or_else(|| error("the built kernels cannot be kept".to_string()))?;
    Ok(Some(Library { path: path.to_path_buf(), in_place: false, tables }))
}

/// Whether the program carries this source built.
pub fn has(source: &KernelSource) -> bool {
    table(source).is_some()
}

/// A source's file and the symbol of its table.
fn table(source: &KernelSource) -> Option<(String, String)> {
    let is_source = |unit: &&Unit| unit.file == source.file && unit.defines == source.defines;
    let unit = UNITS.iter().find(is_source)?;
    let is_as_built = |(file, text): &&(&str, &str)| *file == unit.file && *text == source.text;
    TEXTS.iter().find(is_as_built)?;
    Some((unit.file.to_string(), unit.table.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{
        AttentionVariant,
        fault::{FAULTS, Plant},
        kernels::KernelSet,
    };

    fn source(file: &str, defines: Vec<String>) -> KernelSource {
        KernelSet::embedded().source(file, defines).unwrap()
    }

    #[test]
    fn every_variant_and_every_fault_of_a_kernel_is_built() {
        for variant in AttentionVariant::all() {
            assert!(has(&source("attention.cu", variant.defines())), "{variant}");
        }
        let fast = ["attention_tiled.cu", "attention_split.cu"];
        for fault in &FAULTS {
            let Plant::Define { file, define } = fault.plant else { continue };
            assert!(!fast.contains(&file), "{file} is compiled for the size of the model's heads");
            let mut defines = vec![define.to_string()];
            if file == "attention.cu" {
                defines.extend(AttentionVariant::default().defines());
            }
            assert!(has(&source(file, defines)), "{}", fault.name);
        }
    }

    #[test]
    fn an_edited_kernel_and_unknown_definitions_are_not_built() {
        let rope = source("rope.cu", vec![]);
        assert!(library(&[rope.clone(), source("swiglu.cu", vec![])]).unwrap().is_some());
        let edited = KernelSource { text: rope.text.replacen('+', "-", 1), ..rope.clone() };
        assert!(library(&[edited, source("swiglu.cu", vec![])]).unwrap().is_none());
        assert!(library(&[source("rope.cu", vec!["MINE".to_string()])]).unwrap().is_none());
        assert!(
            library(&[KernelSource { file: "mine.cu".to_string(), ..rope }]).unwrap().is_none()
        );
    }
}
