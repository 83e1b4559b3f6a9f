//! Which kernel files of a user's folder are launched. One that never runs would make every verdict on it false.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{
    KernelError, KernelSet,
    embedded::EMBEDDED,
    source::{MAX_BYTES, includes},
};
use crate::core::files;
use crate::engine::{
    AttentionVariant,
    contract::Op,
    variant::{Decode, Prefill},
};

/// Files of a folder that are looked at.
const MOST_FILES: usize = 1000;
/// Folders within the folder that are looked at.
const MOST_DEPTH: usize = 3;

/// What decides which kernels an engine launches.
#[derive(Clone, Copy)]
pub struct Launches {
    pub attention: AttentionVariant,
    /// Whether it decodes tokens one by one.
    pub decodes: bool,
    /// Whether the device is a GPU, which has products of its own.
    pub on_gpu: bool,
}

impl Launches {
    /// Why a file of ours is not launched; `None` where it is.
    fn without(self, file: &str, kernels: &KernelSet) -> Option<String> {
        let Launches { attention, decodes, on_gpu } = self;
        let stem = file.trim_end_matches(".cu");
        let op = if stem.starts_with("attention") { Some(Op::Attention) } else { Op::of(stem) };
        if let Some(contract) = op.and_then(|op| kernels.contract(op)) {
            return Some(format!("{} replaces it", contract.path.display()));
        }
        let (tiled, split) =
            (attention.prefill == Prefill::Tiled, attention.decode == Decode::Split);
        match file {
            "attention_tiled.cu" if !tiled => Some("--attention prefill=tiled does".to_string()),
            "attention_split.cu" if !split => Some("--attention decode=split does".to_string()),
            "attention_split.cu" if !decodes => Some("no token is decoded".to_string()),
            "attention.cu" if tiled && (split || !decodes) => {
                Some(format!("--attention {attention} uses others"))
            }
            file if file.contains('/') && !on_gpu => Some("--device cuda does".to_string()),
            _ => None,
        }
    }
}

impl KernelSet {
    /// Refuses a folder with a `.cu` file that no engine would ever launch: of a name that no kernel has, that no
    /// contract calls and no other file includes.
    pub fn check_names(&self) -> Result<(), KernelError> {
        let Some(folder) = self.folder() else { return Ok(()) };
        let mut files = Vec::new();
        list(folder, Path::new(""), MOST_DEPTH, &mut files)?;
        let called: BTreeSet<PathBuf> = self
            .contracts()
            .iter()
            .filter_map(|contract| contract.source.canonicalize().ok())
            .collect();
        let mut included = BTreeSet::new();
        for file in &files {
            if let Ok(text) = files::read_text(&folder.join(file), MAX_BYTES) {
                included.extend(includes(&text).map(str::to_string));
            }
        }
        for file in files.iter().filter(|file| is_kernel(file)) {
            let path = folder.join(file);
            let name = file.to_string_lossy();
            let is_known = EMBEDDED.iter().any(|(known, _)| *known == name);
            let is_called = || path.canonicalize().is_ok_and(|path| called.contains(&path));
            if !is_known && !included.contains(&*name) && !is_called() {
                return Err(KernelError::NotAKernel { help: help(file), path });
            }
        }
        Ok(())
    }

    /// Refuses changed kernel files that none of these engines launches.
    pub fn check_launched(&self, engines: &[Launches]) -> Result<(), KernelError> {
        for file in self.changed()? {
            let why: Vec<Option<String>> =
                engines.iter().map(|engine| engine.without(file, self)).collect();
            if let (Some(Some(why)), true) = (why.first(), why.iter().all(Option::is_some)) {
                let (file, why) = (file.to_string(), why.clone());
                return Err(KernelError::NotLaunched { file, why });
            }
        }
        Ok(())
    }

    /// The kernel files in which the folder's text is not the embedded one.
    pub fn changed(&self) -> Result<Vec<&'static str>, KernelError> {
        let mut changed = Vec::new();
        for (file, own) in EMBEDDED.iter().filter(|(file, _)| file.ends_with(".cu")) {
            if self.read(file)?.is_some_and(|text| text != *own) {
                changed.push(*file);
            }
        }
        Ok(changed)
    }
}

fn is_kernel(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("cu"))
}

/// The sources in a folder and in those within it, by their paths from it.
fn list(
    folder: &Path,
    within: &Path,
    depth: usize,
    files: &mut Vec<PathBuf>,
) -> Result<(), KernelError> {
    let at = folder.join(within);
    let unreadable = |source| KernelError::Read { path: at.clone(), source };
    for entry in std::fs::read_dir(&at).map_err(unreadable)?.flatten() {
        if files.len() >= MOST_FILES {
            return Err(KernelError::TooManyFiles { folder: folder.to_path_buf() });
        }
        let path = within.join(entry.file_name());
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 0 => list(folder, &path, depth - 1, files)?,
            Ok(kind) if kind.is_dir() => {}
            _ if is_kernel(&path) || path.extension().is_some_and(|end| end == "cuh") => {
                files.push(path);
            }
            _ => {}
        }
    }
    Ok(())
}

/// What to do with a file of that name.
fn help(file: &Path) -> String {
    let plain = |name: &str| {
        let name = name.rsplit('/').next().unwrap_or(name).to_lowercase();
        name.replace(['_', '-', ' '], "")
    };
    let own = plain(&file.to_string_lossy());
    match EMBEDDED.iter().find(|(known, _)| plain(known) == own) {
        Some((known, _)) => {
            format!("name it {known} and put it in the folder itself to replace that kernel")
        }
        None => {
            let known: Vec<&str> = KernelSet::files().collect();
            format!(
                "name it as one of {}, or call it through a contract (--kernel OP=FILE.toml)",
                known.join(", ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, KernelSet) {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let kernels = KernelSet::beside(folder.path());
        (folder, kernels)
    }

    #[test]
    fn a_file_that_nothing_would_run_is_refused_with_the_name_that_it_should_have() {
        for (file, near) in
            [("rmsnorm.cu", "rms_norm.cu"), ("Rope.cu", "rope.cu"), ("sub/swiglu.cu", "swiglu.cu")]
        {
            let (_folder, kernels) = folder(&[("rope.cu", ""), (file, "")]);
            let error = kernels.check_names().unwrap_err().to_string();
            assert!(error.contains(&format!("name it {near}")), "{error}");
        }
        let (_folder, kernels) = folder(&[("flash.CU", "")]);
        let error = kernels.check_names().unwrap_err().to_string();
        assert!(error.contains("--kernel"), "{error}");
        let own = [("rope.cu", "#include \"mine.cu\"\n"), ("mine.cu", ""), ("other.cuh", "")];
        let (_folder, kernels) = folder(&own);
        kernels.check_names().unwrap();
        KernelSet::embedded().check_names().unwrap();
    }

    #[test]
    fn a_changed_kernel_must_be_one_that_is_launched() {
        let fast = AttentionVariant::fast();
        let launches = |attention| Launches { attention, decodes: true, on_gpu: false };
        let [slow, fast] = [AttentionVariant::default(), fast].map(launches);
        let refused = |file: &str, engines: &[Launches]| {
            let (_folder, kernels) = folder(&[(file, "// mine")]);
            assert_eq!(kernels.changed().unwrap(), [file]);
            kernels.check_launched(engines).is_err()
        };
        for (file, in_slow, in_fast) in [
            ("attention.cu", false, true),
            ("attention_tiled.cu", true, false),
            ("attention_split.cu", true, false),
            ("rope.cu", false, false),
            ("cuda/gemv.cu", true, true),
        ] {
            assert_eq!(refused(file, &[slow]), in_slow, "{file}");
            assert_eq!(refused(file, &[fast]), in_fast, "{file}");
            assert_eq!(refused(file, &[slow, fast]), in_slow && in_fast, "{file}");
        }
        assert!(refused("attention_split.cu", &[Launches { decodes: false, ..fast }]));
        assert!(!refused("cuda/gemv.cu", &[Launches { on_gpu: true, ..slow }]));
        let own = EMBEDDED.iter().find(|(file, _)| *file == "attention_split.cu").unwrap().1;
        let (_folder, kernels) = folder(&[("attention_split.cu", own)]);
        kernels.check_launched(&[slow]).unwrap();
    }
}
