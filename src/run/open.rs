//! A model that our engine can run, planned from llama.cpp's graph of it.

use std::{borrow::Cow, path::Path};

use crate::{
    engine::Plan,
    graph::{ModelGraph, SequenceInputs},
    model::{Model, ModelFile},
    reference::{Reference, ReferenceOptions},
    run::RunError,
};

/// Positions over which masks are read, where no more will be run.
pub const PLANNED_POSITIONS: usize = 300;

/// Opens a model to be run, without keeping llama.cpp's copy.
pub fn open(path: &Path) -> Result<Model, RunError> {
    open_for(path, 0)
}

/// The same for runs of that many positions, or of [`PLANNED_POSITIONS`].
pub fn open_for(path: &Path, positions: usize) -> Result<Model, RunError> {
    let file = ModelFile::open(path)?;
    let reference = Reference::load(&file, ReferenceOptions::default())?;
    planned(file, &reference, positions)
}

/// What a replay is told of a run's model: its graph, and the values of the graph's inputs.
pub struct Replayable<'m> {
    pub graph: Cow<'m, ModelGraph>,
    pub inputs: Cow<'m, SequenceInputs>,
}

/// The graph and inputs of a run: as they were planned, or read anew where the run is longer.
pub fn replayable<'m>(
    model: &'m Model,
    reference: &Reference,
    steps: &[Vec<i32>],
) -> Result<Replayable<'m>, RunError> {
    let tokens: Vec<i32> = steps.iter().flatten().copied().collect();
    if tokens.len() <= model.planned_positions() {
        let (graph, inputs) = (Cow::Borrowed(&model.graph), Cow::Borrowed(model.inputs()));
        return Ok(Replayable { graph, inputs });
    }
    let (graph, inputs) = reference.import(&tokens)?;
    let graph = Cow::Owned(ModelGraph::clone(&graph));
    Ok(Replayable { graph, inputs: Cow::Owned(inputs) })
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
