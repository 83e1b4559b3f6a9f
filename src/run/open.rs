//! A model that our engine can run, planned from llama.cpp's graph of it.

use std::path::Path;

use crate::{
    engine::Plan,
    model::{Model, ModelFile},
    reference::{Precision, Reference, ReferenceOptions},
    run::RunError,
};

/// Positions over which masks are read, where no more will be run.
pub const PLANNED_POSITIONS: usize = 300;

/// Opens a model to be run, without keeping llama.cpp's copy.
pub fn open(path: &Path) -> Result<Model, RunError> {
    let file = ModelFile::open(path)?;
    let options = ReferenceOptions { precision: Precision::Native, ..ReferenceOptions::default() };
    let reference = Reference::load(&file, options)?;
    planned(file, &reference, 0)
}

/// The model of a file that is loaded, for runs of that many positions.
pub fn planned(
    file: ModelFile,
    reference: &Reference,
    positions: usize,
) -> Result<Model, RunError> {
    let (graph, inputs) = reference.import(&vec![0; positions.max(PLANNED_POSITIONS)])?;
    Ok(Plan::model(file, &graph, &inputs)?)
}
