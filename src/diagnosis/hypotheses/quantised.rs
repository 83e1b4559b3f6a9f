//! Mistakes in the blocks of a quantised cache: scales, signs, and how integers are made.

use super::{Visit, cache};
use crate::{
    core::{
        arithmetic::Value,
        cause_key::CauseKey,
        format::{Format, StoredBlock},
        rounded::{BlockSteps, Quantising, Rounded},
    },
    diagnosis::{
        Evidence, StepEvidence,
        cause::Rank,
        replay::{Declared, Expected, Spread},
    },
};

/// How the blocks of a token's rows are made: by each its scale for the integers, and the one that is stored.
type Steps<'f> = &'f dyn Fn(&Row<'_>, usize) -> [BlockSteps; 2];

/// Another block of a token's, by a block and how many there are.
type Neighbour = fn(usize, usize) -> usize;

/// The rows of a token.
struct Row<'r> {
    format: Format,
    values: &'r [f64],
    /// Elements of a block, and of a head.
    block: usize,
    dim: usize,
}

impl Row<'_> {
    fn blocks(&self) -> usize {
        self.values.len() / self.block
    }

    fn of(&self, block: usize) -> &[f64] {
        &self.values[block * self.block..(block + 1) * self.block]
    }

    fn steps(&self, block: usize) -> BlockSteps {
        self.format.steps(self.of(block))
    }

    /// Those of so many elements, of which a block is a part.
    fn steps_of(&self, block: usize, elements: usize) -> BlockSteps {
        let first = block * self.block / elements * elements;
        self.format.steps(&self.values[first..(first + elements).min(self.values.len())])
    }
}

/// Caches that are declared to be kept in blocks, or in numbers of 8 bits.
pub fn caches(evidence: &Evidence<'_>, visit: Visit<'_>) {
    let Some((format, block)) = declared(evidence).filter(|_| cache::is_cache(evidence)) else {
        return;
    };
    let cut = Quantising { cuts: true, ..Quantising::default() };
    let unsigned = Quantising { loses_signs: true, ..Quantising::default() };
    let own: Steps<'_> = &|row, block| [row.steps(block); 2];
    let what = if block.elements > 1 { "integers" } else { "numbers" };
    let mut offer = |text: String, steps: Steps<'_>, how: Quantising| {
        let trial = Trial { format, block: block.elements, steps, how };
        visit(evidence.predicted(CauseKey::CacheQuantised, text, Rank::Mistake, |step| {
            predicted(evidence, step, &trial)
        }));
    };
    offer(format!("{what} of {format} are truncated, not rounded"), own, cut);
    offer(format!("{what} of {format} have lost their signs"), own, unsigned);
    if block.elements == 1 {
        return;
    }
    let nearest = Quantising::default();
    let neighbours: [(&str, Neighbour); 4] = [
        ("before, in its token's rows", |block, all| (block + all - 1) % all),
        ("before, but the first", |block, _| block.saturating_sub(1)),
        ("after, in its token's rows", |block, all| (block + 1) % all),
        ("after, but the last", |block, all| (block + 1).min(all - 1)),
    ];
    for (which, other) in neighbours {
        let text = format!("each block of {format} has the scale of the one {which}");
        let of_other = |row: &Row<'_>, block: usize| {
            let own = row.steps(block);
            [own, own.with_scale(row.steps(other(block, row.blocks())).scale)]
        };
        offer(text, &of_other, nearest);
    }
    for (divisor, factor) in other_divisors(format) {
        let text = format!("scales of {format} are the largest number divided by {divisor}");
        let scaled = |row: &Row<'_>, block: usize| {
            let own = row.steps(block);
            own.with_scale(factor * own.scale)
        };
        offer(text.clone(), &|row, block| [scaled(row, block); 2], nearest);
        if format == Format::Q8_0 {
            let text = format!("{text}, and integers end at -127");
            offer(text, &|row, block| [scaled(row, block).symmetric(); 2], nearest);
        }
    }
    offer(
        format!("one scale of {format} for a head"),
        &|row, block| [row.steps_of(block, row.dim); 2],
        nearest,
    );
    offer(
        format!("one scale of {format} for two heads"),
        &|row, block| [of_two_heads(row, block); 2],
        nearest,
    );
    offer(
        format!("one scale of {format} for all heads of a token"),
        &|row, block| [row.steps_of(block, row.values.len()); 2],
        nearest,
    );
}

/// The larger scale of a block's head and the same block of the head beside it.
fn of_two_heads(row: &Row<'_>, block: usize) -> BlockSteps {
    let per_head = (row.dim / row.block).max(1);
    let other = ((block / per_head) ^ 1) * per_head + block % per_head;
    let own = row.steps(block);
    if other >= row.blocks() {
        return own;
    }
    let beside = row.steps(other);
    if beside.scale.abs() > own.scale.abs() { beside } else { own }
}

/// Numbers that the largest one of a block may be divided by by mistake, and what that makes of the scale.
fn other_divisors(format: Format) -> Vec<(f64, f64)> {
    let (own, others): (f64, &[f64]) = match format {
        Format::Q8_0 => (127.0, &[128.0, 254.0, 255.0, 256.0, 63.0, 64.0]),
        Format::Q4_0 => (8.0, &[7.0, 7.5, 15.0, 16.0]),
        Format::Q5_0 => (16.0, &[15.0, 15.5, 31.0, 32.0]),
        _ => return Vec::new(),
    };
    others.iter().map(|&other| (other, own / other)).collect()
}

/// What a cache is declared to be kept in.
fn declared(evidence: &Evidence<'_>) -> Option<(Format, StoredBlock)> {
    let conventions = &evidence.run.recording.arithmetic.roundings[..];
    let stage = Some(evidence.spec().stage);
    let tokens = evidence.steps.first()?.machine.extent.tokens;
    let format = Declared { conventions, stage }.format(Value::Caches, tokens)?;
    Some((format, format.stored_block()?))
}

/// A way to make blocks.
struct Trial<'t> {
    format: Format,
    block: usize,
    steps: Steps<'t>,
    how: Quantising,
}

/// What a step's cache holds if its own rows were made so; earlier ones are as they were recorded.
fn predicted<'e>(
    evidence: &Evidence<'e>,
    step: &StepEvidence<'e>,
    trial: &Trial<'_>,
) -> Option<Expected<'e>> {
    let right = &step.observed.piece.expected;
    let source = evidence.site_of(cache::written(evidence)?)?;
    let rows = evidence.recorded(step, source)?;
    let width = rows.len() / step.machine.extent.tokens.max(1);
    let dim = evidence.spec().axes.last()?.size.fixed as usize;
    let from = right.value.len().checked_sub(rows.len())?;
    if width == 0 || !dim.is_multiple_of(trial.block) || !width.is_multiple_of(dim) {
        return None;
    }
    let made: Vec<Rounded> =
        rows.chunks(width).flat_map(|values| of_token(values, dim, trial)).collect();
    let mut value = right.value.clone();
    let mut slack = vec![0.0; value.len()];
    for (at, rounded) in made.iter().enumerate() {
        (value[from + at], slack[from + at]) = (rounded.value, rounded.slack);
    }
    let (single, rounding) = (vec![0.0; value.len()], right.rounding);
    Some(Expected { value, spread: Spread::Each(slack), single, rounding })
}

fn of_token(values: &[f64], dim: usize, trial: &Trial<'_>) -> Vec<Rounded> {
    let Trial { format, block, steps, how } = *trial;
    let row = Row { format, values, block, dim };
    if block == 1 {
        return values.iter().map(|&x| format.number_by(x, how)).collect();
    }
    let made = |at: usize| {
        let [integers, stored] = steps(&row, at);
        format.on_steps(row.of(at), &|_| 0.0, [&integers, &stored], how)
    };
    (0..row.blocks()).flat_map(made).collect()
}
