//! The other rows of a batch's steps: those of other sequences, each a recording of its own, and those of none.

use super::{
    TraceError, TraceReader,
    recording::{Recorded, Without},
    sequence::Selection,
};
use crate::graph::site::{Site, Stage};

/// Another sequence of a batch.
pub struct OtherSequence {
    pub number: u32,
    trace: TraceReader,
    hidden: Vec<Stage>,
}

/// A row of a step that is of no sequence.
#[derive(Clone, Debug)]
pub struct PaddingRow {
    /// Its place among the rows of the step.
    pub row: usize,
    pub values: Vec<f32>,
}

impl OtherSequence {
    /// What was recorded of it.
    pub fn recorded(&self) -> Box<dyn Recorded + '_> {
        Box::new(Without { recorded: &self.trace, stages: self.hidden.clone() })
    }

    /// Token ids of each of its steps.
    pub fn steps(&self) -> Vec<Vec<i32>> {
        self.trace.manifest().steps.iter().map(|step| step.tokens.clone()).collect()
    }

    /// Without what was recorded of some stages.
    pub(super) fn without(mut self, stages: &[Stage]) -> OtherSequence {
        self.hidden.extend_from_slice(stages);
        self
    }
}

impl Selection {
    /// The other sequences of the batch.
    pub fn others(&self) -> Result<Vec<OtherSequence>, TraceError> {
        let Some(own) = self.sequence() else { return Ok(Vec::new()) };
        let numbers = self.whole.sequences().into_iter().filter(|&number| number != own);
        let other = |number| {
            let trace = self.whole.clone().sequence(Some(number))?;
            Ok(OtherSequence { number, trace, hidden: Vec::new() })
        };
        numbers.map(other).collect()
    }

    /// The rows of a site with a row for each token that are of no sequence, of the same step.
    pub fn padding_rows(&self, site: Site) -> Result<Vec<PaddingRow>, TraceError> {
        let of_whole = self.of_whole(site);
        let step = &self.whole.manifest().steps[of_whole.step as usize];
        let (Some(batch), Some(tensor)) = (&step.batch, self.whole.tensor(of_whole)?) else {
            return Ok(Vec::new());
        };
        let all: Vec<usize> = (0..step.tokens.len()).collect();
        let recorded = self.whole.rows(of_whole).unwrap_or(&all);
        let width = tensor.data.len() / recorded.len().max(1);
        let is_owned = |row: usize| batch.sequences.iter().any(|own| own.rows.contains(&row));
        let rows = recorded.iter().zip(tensor.data.chunks_exact(width.max(1)));
        let padding = rows.filter(|(row, _)| !is_owned(**row));
        Ok(padding.map(|(&row, values)| PaddingRow { row, values: values.to_vec() }).collect())
    }
}
