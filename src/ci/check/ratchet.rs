//! Whether a change made an operation less accurate, though it is still within its bound.
//!
//! The error of an operation is measured in units of its rounding bound, from its own inputs. Where
//! roundings fall otherwise (another libm, another order of a sum, another machine) it is another draw
//! of the same errors. How far such draws scatter is measured: the engine runs on other tokens, where
//! every rounding falls otherwise. `docs/ci.md` says how often chance passes the limit made of them.

use std::collections::BTreeMap;

use crate::{
    ci::check::{
        CheckError,
        lock::{Level, Locked, LockedCase},
    },
    core::task::Task,
    diagnosis::{
        loaded::LoadedSummary,
        replay::{Accuracy, GraphRun, Operation, Recording, accuracies},
    },
    engine::EngineSpec,
    model::Model,
    report::ci::Change,
    run::{own_weights, run_engine},
    trace::recording::Spool,
};

/// Draws beside the case's own tokens.
const DRAWS: i32 = 8;
/// Any odd number that is no likely factor of a vocabulary: the distance of one draw's ids from the
/// last one's.
const SHIFT: i32 = 7919;
/// What the limits have room for beyond the draws that were measured. Of 338,000 tries, chance passed
/// limits without it once in 670 (rms) and once in 560 (peak), with it never and twice.
const RMS_MARGIN: f64 = 1.25;
const PEAK_MARGIN: f64 = 1.5;
/// An error that is this much of the bound is not told from none.
const LEAST: f64 = 1e-6;

/// The changes of a case against its baseline, the largest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    pub regressed: Vec<Change>,
    pub improved: Vec<Change>,
    /// Operations that only the baseline or only the run has.
    pub unmatched: Vec<String>,
}

impl Changes {
    /// Compares a run with what is locked.
    pub fn of(locked: &LockedCase, now: &[Accuracy]) -> Changes {
        let mut changes = Changes::default();
        let mut rest: BTreeMap<&str, &Locked> =
            locked.operations.iter().map(|(name, locked)| (name.as_str(), locked)).collect();
        for accuracy in now {
            let name = accuracy.operation.result();
            let Some(locked) = rest.remove(name.as_str()) else {
                changes.unmatched.push(name);
                continue;
            };
            let (rms, peak) = (accuracy.rms, accuracy.peak);
            let measures = [("rms", locked.rms, rms), ("peak", locked.peak, peak)];
            changes.compare(accuracy.operation, measures);
        }
        changes.unmatched.extend(rest.into_keys().map(str::to_string));
        changes.regressed.sort_by(|a, b| b.times().total_cmp(&a.times()));
        changes.improved.sort_by(|a, b| a.times().total_cmp(&b.times()));
        changes
    }

    /// At most one change an operation: of the whole, else of its worst element.
    fn compare(&mut self, operation: Operation, measures: [(&str, Level, f64); 2]) {
        let change = |(measure, level, now): (&str, Level, f64)| Change {
            operation,
            measure: measure.to_string(),
            was: level.value,
            now,
            most: level.most,
        };
        let worse = |(_, level, now): &(&str, Level, f64)| *now > level.most.max(LEAST);
        // As far below as the limit is above.
        let better = |(_, level, now): &(&str, Level, f64)| {
            level.value > LEAST && *now * level.most < level.value * level.value
        };
        if let Some(measure) = measures.into_iter().find(worse) {
            self.regressed.push(change(measure));
        } else if let Some(measure) = measures.into_iter().find(better) {
            self.improved.push(change(measure));
        }
    }
}

/// Tells the inputs of a case from others: its tokens and its engine.
pub fn inputs(engine: &EngineSpec, steps: &[Vec<i32>]) -> String {
    let EngineSpec { device, storage, attention, .. } = engine;
    let key = format!("{steps:?} {device:?} {storage} {attention}");
    blake3::hash(key.as_bytes()).to_hex()[..24].to_string()
}

/// What a case is locked with: the accuracies of its run, and their scatter over other tokens.
pub fn locked(
    model: &Model,
    engine: &EngineSpec,
    steps: &[Vec<i32>],
    own: &[Accuracy],
) -> Result<LockedCase, CheckError> {
    let mut draws: Vec<Vec<Accuracy>> = Vec::new();
    for draw in 1..=DRAWS {
        let n_vocab = model.config.n_vocab as i64;
        let shifted = |id: &i32| ((i64::from(*id) + i64::from(draw * SHIFT)) % n_vocab) as i32;
        let steps: Vec<Vec<i32>> =
            steps.iter().map(|ids| ids.iter().map(shifted).collect()).collect();
        draws.push(accuracies_of(model, engine, &steps, &record(model, engine, &steps)?.0)?);
    }
    let operations = own.iter().map(|own| {
        let of = |value: fn(&Accuracy) -> f64, margin| {
            let same = |all: &Vec<Accuracy>| {
                all.iter().find(|other| other.operation == own.operation).map(value)
            };
            level(value(own), draws.iter().filter_map(same), margin)
        };
        let locked = Locked { rms: of(|a| a.rms, RMS_MARGIN), peak: of(|a| a.peak, PEAK_MARGIN) };
        (own.operation.result(), locked)
    });
    let (model, inputs) = (model.hash(), inputs(engine, steps));
    Ok(LockedCase { model, inputs, operations: operations.collect() })
}

/// The largest draw, times the ratio of the largest to the least, times a margin; at most the bound, as
/// what is beyond it is wrong whatever the baseline says.
fn level(own: f64, draws: impl Iterator<Item = f64>, margin: f64) -> Level {
    let draws: Vec<f64> = draws.chain([own]).filter(|&draw| draw > 0.0).collect();
    let most = draws.iter().copied().fold(0.0, f64::max);
    let least = draws.iter().copied().fold(most, f64::min);
    let most = if least > 0.0 { (most * (most / least) * margin).min(1.0) } else { 0.0 };
    Level { value: rounded(own), most: rounded(most) }
}

/// Up to three digits, so that a line of the file is short.
fn rounded(value: f64) -> f64 {
    if value == 0.0 {
        return 0.0;
    }
    let unit = 10f64.powi(value.abs().log10().floor() as i32 - 2);
    let rounded = (value / unit).ceil() * unit;
    format!("{rounded:.2e}").parse().unwrap_or(rounded)
}

/// Runs an engine over the steps, without a reference; also what its weights are.
pub fn record(
    model: &Model,
    engine: &EngineSpec,
    steps: &[Vec<i32>],
) -> Result<(Spool, LoadedSummary), CheckError> {
    let task = Task { prompt: &steps[0], decode: steps.len() as u32 - 1 };
    let mut spool = Spool::new()?;
    let mut engine = engine.build(model, task)?;
    let weights = own_weights(model, &engine, None)?;
    run_engine(&mut engine, steps, &mut spool)?;
    Ok((spool.finished()?, weights))
}

/// The accuracies of a recorded engine.
pub fn accuracies_of(
    model: &Model,
    engine: &EngineSpec,
    steps: &[Vec<i32>],
    spool: &Spool,
) -> Result<Vec<Accuracy>, CheckError> {
    let (arithmetic, attention) = (engine.arithmetic(), engine.attending());
    let recording = Recording { tensors: spool, steps, arithmetic: &arithmetic, attention };
    Ok(accuracies(GraphRun::of(model, model.inputs(), recording))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{diagnosis::replay::Operation, graph::site::Stage};

    fn now(rms: f64, peak: f64) -> Accuracy {
        Accuracy { operation: Operation { layer: None, stage: Stage::Embd }, rms, peak }
    }

    fn case(operations: BTreeMap<String, Locked>) -> LockedCase {
        LockedCase { model: String::new(), inputs: String::new(), operations }
    }

    fn changes(rms: f64, peak: f64) -> (usize, usize) {
        let locked = Locked { rms: (0.01, 0.015).into(), peak: (0.1, 0.3).into() };
        let operations = BTreeMap::from([("embd".to_string(), locked)]);
        let changes = Changes::of(&case(operations), &[now(rms, peak)]);
        assert!(changes.unmatched.is_empty());
        (changes.regressed.len(), changes.improved.len())
    }

    #[test]
    fn what_chance_explains_is_no_change_and_more_is() {
        assert_eq!(changes(0.015, 0.3), (0, 0));
        assert_eq!(changes(0.0151, 0.3), (1, 0));
        assert_eq!(changes(0.01, 0.31), (1, 0));
        assert_eq!(changes(0.0067, 0.04), (0, 0));
        assert_eq!(changes(0.0066, 0.04), (0, 1));
        assert_eq!(changes(0.0066, 0.4), (1, 0));
    }

    #[test]
    fn the_limit_is_above_the_largest_draw_by_as_much_as_the_draws_span() {
        let close = |level: Level, value: f64, most: f64| {
            assert!((level.value / value - 1.0).abs() < 1e-2, "{level:?}");
            assert!((level.most / most - 1.0).abs() < 1e-2, "{level:?}");
        };
        close(level(0.2, [0.1, 0.2].into_iter(), 1.5), 0.2, 0.6);
        close(level(0.2, [0.1, 0.3].into_iter(), 1.5), 0.2, 1.0);
        close(level(0.123_41, [0.123_41].into_iter(), 1.0), 0.124, 0.124);
        assert_eq!(level(0.0, [0.0].into_iter(), 1.5), Level { value: 0.0, most: 0.0 });
    }

    #[test]
    fn an_operation_that_one_side_lacks_is_not_passed_over() {
        assert_eq!(Changes::of(&case(BTreeMap::new()), &[now(0.0, 0.0)]).unmatched, ["embd"]);
        let locked = Locked { rms: (0.0, 0.0).into(), peak: (0.0, 0.0).into() };
        let operations = BTreeMap::from([("logits".to_string(), locked)]);
        assert_eq!(Changes::of(&case(operations), &[now(0.0, 0.0)]).unmatched, ["embd", "logits"]);
    }
}
