//! A dump as a trace, read as its mapping says.

use std::path::Path;

use super::{Dump, DumpError, Mapping, rows::Sources};
use crate::{
    core::{arithmetic::Arithmetic, tensor::DType},
    trace::{Manifest, Producer, Side, TraceReader, TraceWriter},
};

/// What became of a dump.
#[derive(Debug)]
pub struct Imported {
    pub sites: usize,
    /// Arrays that no line of the mapping names.
    pub unmapped: Vec<String>,
}

/// Writes the arrays that the mapping names as the trace of an engine that ran what `reference` ran.
///
/// # Errors
/// A line fits no site of that run, or an array not its line; two arrays are one site; nothing can
/// be written at `to`.
pub fn import(
    dump: &Dump,
    mapping: &Mapping,
    reference: &TraceReader,
    storage: DType,
    to: &Path,
) -> Result<Imported, DumpError> {
    mapping.check(&dump.arrays)?;
    let (mut sources, mut unmapped) = (Sources::new(reference), Vec::new());
    for array in &dump.arrays {
        let readings = mapping.readings(array, reference.list())?;
        if readings.is_empty() {
            unmapped.push(array.name.clone());
        }
        for reading in readings {
            sources.add(array, reading)?;
        }
    }
    let found = sources.whole()?;
    if found.is_empty() {
        return Err(DumpError::Nothing);
    }
    let mut writer = TraceWriter::create(to, manifest(reference.manifest(), storage), false)?;
    for (index, step) in reference.manifest().steps.iter().enumerate() {
        writer.begin_step(&step.tokens, step.first_position)?;
        for (site, source) in found.iter().filter(|(site, _)| site.step as usize == index) {
            writer
                .put(*site, &source.read(reference.list().axes(*site), reference.shape(*site)?)?)?;
        }
        writer.end_step()?;
    }
    writer.finish()?;
    Ok(Imported { sites: found.len(), unmapped })
}

fn manifest(reference: &Manifest, storage: DType) -> Manifest {
    let arithmetic = Arithmetic::engine(storage);
    let producer = Producer {
        name: "firstdiff import".to_string(),
        version: env!("CARGO_PKG_VERSION").to_string(),
    };
    let model = reference.model.clone();
    Manifest { producer, ..Manifest::new(Side::Engine, model, arithmetic, "a dump".into()) }
}
