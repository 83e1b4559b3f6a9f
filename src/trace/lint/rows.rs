//! The recorded embedding against the model's own rows: were these ids run, and this file?

use super::{beside::distance, error::LintError};
use crate::{
    graph::site::{Site, Stage},
    model::{ModelError, ModelFile},
    trace::TraceReader,
};

const EMBEDDING: &str = "token_embd.weight";
/// Rows of the vocabulary widened at a time.
const CHUNK: usize = 4096;
/// A row this far (relative L2) from its own is another one; 2-bit quantisation is nearer.
const OTHER: f64 = 0.5;

/// Says if the embedding of a step is that of other ids, or of the same weights more coarsely kept.
/// `text` names a token.
///
/// # Errors
/// The trace or the model cannot be read.
pub fn embedding(
    trace: &TraceReader,
    model: &ModelFile,
    text: &dyn Fn(i32) -> String,
) -> Result<Option<String>, LintError> {
    let info = model.info(EMBEDDING)?;
    let mut row = vec![0.0; info.row_length()];
    let stated = &trace.manifest().arithmetic;
    let arithmetic = stated.of(Stage::Embd);
    let mut worst = 0.0f64;
    for (index, step) in trace.manifest().steps.iter().enumerate() {
        let site = Site::global(index as u32, Stage::Embd);
        let Some(tensor) = trace.tensor(site)? else { continue };
        let all: Vec<usize> = (0..step.tokens.len()).collect();
        let offsets = trace.rows(site).unwrap_or(&all);
        for (&offset, found) in offsets.iter().zip(tensor.data.chunks(row.len())) {
            let token = step.tokens[offset];
            let id = token as usize;
            model.gguf().widen_rows(info, id..id + 1, &mut row).map_err(ModelError::from)?;
            let off = distance(found, &row);
            if off < OTHER {
                worst = worst.max(off);
                continue;
            }
            let Some(other) = nearest(model, found)? else { return Ok(None) };
            let position = step.first_position + offset;
            return Ok(Some(format!(
                "embd at position {position} is the row of token {other} {:?}, the trace states \
                 {token} {:?}: the engine ran other ids, or reads the wrong rows",
                text(other),
                text(token)
            )));
        }
    }
    let rounding = arithmetic.storage.unit_roundoff().max(stated.weights.unit_roundoff());
    Ok((worst > 8.0 * rounding).then(|| {
        format!(
            "embd differs from the model's by {:.2} % of its norm, more than rounding to {} explains: the engine \
             opened another quantisation of the file, or keeps its weights more coarsely than declared",
            100.0 * worst,
            arithmetic.storage
        )
    }))
}

/// The id whose row that is, if it is one.
fn nearest(model: &ModelFile, found: &[f32]) -> Result<Option<i32>, LintError> {
    let info = model.info(EMBEDDING)?;
    let (width, all) = (info.row_length(), info.rows());
    for start in (0..all).step_by(CHUNK) {
        let rows = start..(start + CHUNK).min(all);
        let mut chunk = vec![0.0; rows.len() * width];
        model.gguf().widen_rows(info, rows, &mut chunk).map_err(ModelError::from)?;
        let same = chunk.chunks(width).position(|row| distance(found, row) < 0.05);
        if let Some(index) = same {
            return Ok(Some((start + index) as i32));
        }
    }
    Ok(None)
}
