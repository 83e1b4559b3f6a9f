//! Guilty or cleared: every recorded result of a run against its bound.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    iter,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    expected::LAMBDA,
    machine::{Cleared, Found, GraphRun, Machine, Observed, parts},
    operation::Operation,
    recording::{Piece, ReplayError},
};
use crate::{
    compare::Pattern,
    core::{progress, spans, tensor::Tensor},
    graph::{NodeId, Op, site::Axis},
};

/// What the replay says of one operation, over all recorded steps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Judged {
    pub operation: Operation,
    /// Elements that were checked. Those whose inputs are no numbers cannot be.
    pub elements: u64,
    /// Elements further from their value than rounding can take them.
    pub beyond: u64,
    /// The element that is furthest.
    pub worst: Option<Worst>,
    /// The part of the result that lies along the right one, against what independent roundings
    /// may add up to: above 1, many small errors share a direction. 0 where that tells no more
    /// than single elements do.
    pub drift: f64,
    /// Which elements are beyond, in the first step that has any.
    pub pattern: Option<String>,
    /// The furthest random sum of products that were cleared without computing them, in units of its bound.
    #[serde(default)]
    pub by_sums: Option<f64>,
    /// Operations between the recorded inputs and this one whose own results were not recorded:
    /// the verdict is on all of them together.
    pub spanned: Vec<Operation>,
}

/// One element of an operation's result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Worst {
    pub step: u32,
    /// Index on each axis of the stage.
    pub index: Vec<usize>,
    #[serde(deserialize_with = "crate::core::tensor::nan_from_null")]
    pub recorded: f32,
    #[serde(deserialize_with = "crate::core::tensor::nan_from_null")]
    pub expected: f64,
    /// |recorded - expected| in units of the bound.
    #[serde(deserialize_with = "crate::core::tensor::nan_from_null")]
    pub times_bound: f64,
}

impl Judged {
    /// Whether no rounding explains the result.
    pub fn is_guilty(&self) -> bool {
        self.beyond > 0 || self.drift > 1.0
    }

    /// How far beyond its bound the result is at worst; below 1 where it is within.
    pub fn times_bound(&self) -> f64 {
        let of_elements = self.worst.as_ref().map_or(0.0, |worst| worst.times_bound);
        of_elements.max(self.drift).max(self.by_sums.unwrap_or(0.0))
    }
}

/// Sums over the elements of a piece.
#[derive(Clone, Copy, Default)]
struct Tally {
    elements: u64,
    beyond: u64,
    worst: Option<(usize, f64)>,
    /// sum of error * value. This and the sums below are only formed where a drift tells more.
    along: f64,
    /// sum of (u |y| * y)^2, and of all other bounds times |y|.
    independent: f64,
    common: f64,
}

impl Tally {
    fn drift(&self) -> f64 {
        let bound = LAMBDA * self.independent.sqrt() + self.common;
        if bound > 0.0 { self.along.abs() / bound } else { 0.0 }
    }

    /// Adds an element of a piece, if it counts.
    fn count(&mut self, piece: &Piece<'_>, index: usize, drifts: bool) {
        let Some(times_bound) = piece.times_bound(index) else { return };
        self.elements += 1;
        self.beyond += u64::from(times_bound > 1.0);
        if self.worst.is_none_or(|(_, worst)| times_bound > worst) {
            self.worst = Some((index, times_bound));
        }
        if !drifts {
            return;
        }
        let (expected, actual) = (&piece.expected, piece.captured[index]);
        let (value, rounding) = (expected.value[index], expected.rounding);
        let own = rounding.storage * value.abs();
        if actual.is_finite() {
            self.along += (f64::from(actual) - value) * value;
        }
        // A bias is added to a product that is stored, and rounded, too.
        self.independent += (own * value).powi(2) + (expected.single_of(index) * value).powi(2);
        self.common += (LAMBDA * expected.most_spread(index) + rounding.smallest) * value.abs();
    }

    fn add(mut self, next: Tally) -> Tally {
        self.elements += next.elements;
        self.beyond += next.beyond;
        self.worst = match (self.worst, next.worst) {
            (Some(a), Some(b)) => Some(if b.1 > a.1 { b } else { a }),
            (a, b) => a.or(b),
        };
        self.along += next.along;
        self.independent += next.independent;
        self.common += next.common;
        self
    }
}

/// Whether a drift tells more of any of them than single elements do.
fn tells_more(pieces: &[Piece<'_>]) -> bool {
    pieces.iter().any(|piece| piece.expected.rounding.tells_more())
}

/// The drift of a whole result, as in [`Judged::drift`].
pub fn drift(pieces: &[Piece<'_>]) -> f64 {
    if !tells_more(pieces) {
        return 0.0;
    }
    let tallies = pieces.iter().map(|piece| tally(piece, true));
    tallies.fold(Tally::default(), Tally::add).drift()
}

/// The verdict on a whole run.
pub struct RunVerdict {
    /// In the order of the graph.
    pub judged: Vec<Judged>,
    /// Nodes that no rule is known for, with how many there are of each operation.
    pub without_rule: BTreeMap<String, usize>,
    /// Choices in which another would have been as good, within the rounding of what they choose among.
    pub near_ties: BTreeSet<Operation>,
    /// Where the replay ended before its last site.
    pub ended: Option<ReplayEnd>,
    /// Whether it was told to end.
    pub is_interrupted: bool,
}

/// The last result that a replay judged which ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayEnd {
    pub step: u32,
    pub after: Operation,
}

/// Judges every site that a side recorded.
pub fn judge(run: GraphRun<'_>) -> Result<RunVerdict, ReplayError> {
    Ok(judge_found(run, &Arc::default(), vec![(); part_count(run)], &|_, _, _| Ok(()))?.0)
}

/// Parts that a graph is best divided into: so many that no thread waits long for the last one.
pub fn part_count(run: GraphRun<'_>) -> usize {
    4 * run.at_once
}

/// Takes a result with the memory as its node found it, for a part of the graph.
pub type Look<'l, 'a, T> =
    &'l (dyn Fn(&mut T, &Machine<'a>, &Observed<'a>) -> Result<(), ReplayError> + Sync);

/// The same where some caches are found as these by the tokens; `look` is given every result. The graph is divided into
/// as many parts as there are of what is `kept`, one each, of which some are judged at the same time.
pub fn judge_found<'a, T: Send>(
    run: GraphRun<'a>,
    found: &Arc<HashMap<usize, Found>>,
    kept: Vec<T>,
    look: Look<'_, 'a, T>,
) -> Result<(RunVerdict, Vec<T>), ReplayError> {
    let last = run.recording.steps.len().saturating_sub(1) as u32;
    let (known, needed) = (run.inputs.tokens, run.recording.positions(last).end);
    if known < needed {
        return Err(ReplayError::Short { known, needed });
    }
    let judged = Bench::new(run, None);
    let of_step = |step: u32| {
        let specs = run.model.sites.specs().iter().enumerate();
        let asked = specs.filter(|(place, _)| judged.is_judged(*place));
        asked.filter(|(_, spec)| run.recording.tensors.has(spec.site(step))).count()
    };
    progress::begin("replaying", (0..=last).map(of_step).sum());
    // One that ends with the first wrong layer goes through them in order.
    let parts = match kept.len() {
        most if most > 1 && !run.until_first => parts(run, most).into_iter().map(Some).collect(),
        _ => vec![None],
    };
    let judge = |(part, mut kept): (Option<BTreeSet<usize>>, T)| {
        let machine = match &part {
            None => Machine::new(run),
            Some(part) => Machine::of_part(run, part),
        };
        let mut bench = Bench::new(run, part);
        bench.judge(machine.with_found(found), &mut |machine, observed| {
            look(&mut kept, machine, observed)
        })?;
        Ok::<_, ReplayError>((bench, kept))
    };
    let waiting = Mutex::new(parts.into_iter().zip(kept).enumerate());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    // A thread that waits within a part takes no other one, whose memory would come on top.
    let in_turn = |_| iter::from_fn(next).map(|(at, part)| (at, judge(part))).collect::<Vec<_>>();
    let mut judged: Vec<_> =
        (0..run.at_once.max(1)).into_par_iter().flat_map_iter(in_turn).collect();
    judged.sort_by_key(|(at, _)| *at);
    let (mut whole, mut all_kept) = (Bench::new(run, None), Vec::new());
    for (_, part) in judged {
        let (part, kept) = part?;
        whole.add(part);
        all_kept.push(kept);
    }
    Ok((whole.verdict(), all_kept))
}

/// The verdicts on a part of a graph, as its steps come in.
struct Bench<'a> {
    run: GraphRun<'a>,
    /// The sites that are judged, by their places; all that are asked for, where it is `None`.
    part: Option<BTreeSet<usize>>,
    trials: BTreeMap<usize, Trial>,
    spanned: BTreeMap<usize, BTreeSet<usize>>,
    without_rule: BTreeSet<NodeId>,
    near_ties: BTreeSet<Operation>,
    ended: Option<ReplayEnd>,
    is_interrupted: bool,
}

impl<'a> Bench<'a> {
    fn new(run: GraphRun<'a>, part: Option<BTreeSet<usize>>) -> Bench<'a> {
        Bench {
            run,
            part,
            trials: BTreeMap::new(),
            spanned: BTreeMap::new(),
            without_rule: BTreeSet::new(),
            near_ties: BTreeSet::new(),
            ended: None,
            is_interrupted: false,
        }
    }

    fn operation(&self, place: usize) -> Operation {
        let spec = &self.run.model.sites.specs()[place];
        Operation { layer: spec.layer, stage: spec.stage }
    }

    fn is_judged(&self, place: usize) -> bool {
        let all = self.part.as_ref().or(self.run.only);
        all.is_none_or(|all| all.contains(&place))
    }

    /// Replays every step, or ends with the first wrong layer where that is asked for.
    fn judge(
        &mut self,
        mut machine: Machine<'a>,
        look: &mut dyn FnMut(&Machine<'a>, &Observed<'a>) -> Result<(), ReplayError>,
    ) -> Result<(), ReplayError> {
        let specs = self.run.model.sites.specs();
        let (mut first, mut last) = (None, None);
        for step in 0..self.run.recording.steps.len() as u32 {
            let _span = spans::span("replay", || format!("step {step}"));
            let mut before = Instant::now();
            let end = machine.step(step, &mut |machine, observed| {
                let place = observed.place;
                if !self.is_judged(place) {
                    return Ok(());
                }
                let (operation, layer) = (self.operation(place), specs[place].layer);
                if first.is_some_and(|first| first != (step, layer)) {
                    return Err(ReplayError::Ended);
                }
                spans::since(before, "replay", || operation.result());
                last = Some(ReplayEnd { step, after: operation });
                progress::advance(specs[place].site(step));
                look(machine, &observed)?;
                let trial = self.trials.entry(place).or_insert_with(|| Trial::new(operation));
                let axes: Vec<Axis> = specs[place].axes.iter().map(|axis| axis.axis).collect();
                trial.add(machine, &observed, &axes);
                self.spanned.entry(place).or_default().extend(&observed.spanned);
                if observed.choice.is_some_and(|times| times > 0.0) {
                    self.near_ties.insert(operation);
                }
                if self.run.until_first && trial.total.beyond > 0 {
                    first = first.or(Some((step, layer)));
                }
                before = Instant::now();
                Ok(())
            });
            match end {
                Err(ReplayError::Ended) => self.ended = last,
                Err(ReplayError::Interrupted) => {
                    self.ended = last;
                    self.is_interrupted = true;
                }
                end => end?,
            }
            for Cleared { place, elements, times_bound } in machine.take_cleared() {
                if self.is_judged(place) {
                    progress::advance(specs[place].site(step));
                    let trial = Trial::new(self.operation(place));
                    self.trials.entry(place).or_insert(trial).clear(elements, times_bound);
                }
            }
            if self.ended.is_some() || self.is_interrupted {
                break;
            }
        }
        self.without_rule = machine.without_rule;
        Ok(())
    }

    /// Adds what another part of the graph says.
    fn add(&mut self, part: Bench<'a>) {
        self.trials.extend(part.trials);
        self.spanned.extend(part.spanned);
        self.without_rule.extend(part.without_rule);
        self.near_ties.extend(part.near_ties);
        // Parts that were told to end did so at the same time: the last step that any has reached is said.
        let later = part.ended.filter(|end| self.ended.is_none_or(|own| own.step < end.step));
        self.ended = later.or(self.ended);
        self.is_interrupted |= part.is_interrupted;
    }

    fn verdict(mut self) -> RunVerdict {
        let trials = std::mem::take(&mut self.trials);
        let verdict = |(place, trial): (usize, Trial)| {
            let through = self.spanned.get(&place).into_iter().flatten();
            let spanned = through.map(|&place| self.operation(place)).collect();
            Judged { spanned, ..trial.verdict() }
        };
        let judged = trials.into_iter().map(verdict).collect();
        let without_rule = counted(self.run, &self.without_rule);
        let (near_ties, ended) = (self.near_ties, self.ended);
        RunVerdict { judged, without_rule, near_ties, ended, is_interrupted: self.is_interrupted }
    }
}

fn counted(run: GraphRun<'_>, nodes: &BTreeSet<NodeId>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for &id in nodes {
        let op: &Op = &run.model.graph.node(id).op;
        *counts.entry(op.name().to_string()).or_default() += 1;
    }
    counts
}

/// Which elements of a piece are beyond their bounds.
pub fn wrong_elements(piece: &Piece<'_>) -> Vec<bool> {
    let is_wrong = |index: usize| {
        let times_bound = || piece.expected.times_bound(index, piece.captured[index]);
        times_bound().is_some_and(|times| times > 1.0)
    };
    (0..piece.captured.len()).into_par_iter().map(is_wrong).collect()
}

/// The verdict on an operation as its steps come in.
struct Trial {
    operation: Operation,
    total: Tally,
    worst: Option<Worst>,
    pattern: Option<String>,
    drifts: bool,
    by_sums: Option<f64>,
}

impl Trial {
    fn new(operation: Operation) -> Trial {
        let (total, worst, pattern) = (Tally::default(), None, None);
        Trial { operation, total, worst, pattern, drifts: false, by_sums: None }
    }

    /// Counts a step's result that random sums cleared.
    fn clear(&mut self, elements: usize, times_bound: f64) {
        self.total.elements += elements as u64;
        self.by_sums = Some(self.by_sums.map_or(times_bound, |known| known.max(times_bound)));
    }

    /// Judges the result of one step.
    fn add(&mut self, machine: &Machine<'_>, observed: &Observed<'_>, axes: &[Axis]) {
        let piece = &observed.piece;
        self.drifts |= tells_more(std::slice::from_ref(piece));
        let tally = tally(piece, self.drifts);
        if let Some((flat, _)) = tally.worst {
            let found = located(observed, flat);
            let is_worse = |worst: &Worst| found.times_bound > worst.times_bound;
            if self.worst.as_ref().is_none_or(is_worse) {
                self.worst = Some(found);
            }
        }
        if tally.beyond > 0 && self.pattern.is_none() {
            self.pattern = Some(pattern(machine, observed, axes));
        }
        self.total = self.total.add(tally);
    }

    /// The verdict on all steps.
    fn verdict(self) -> Judged {
        let Trial { operation, total, worst, pattern, drifts, by_sums } = self;
        let drift = if drifts { total.drift() } else { 0.0 };
        let (elements, beyond) = (total.elements, total.beyond);
        Judged { operation, elements, beyond, worst, drift, pattern, by_sums, spanned: Vec::new() }
    }
}

fn tally(piece: &Piece<'_>, drifts: bool) -> Tally {
    /// Elements of one task; sums are added in the order of the tasks.
    const CHUNK: usize = 1 << 14;
    let starts: Vec<usize> = (0..piece.captured.len()).step_by(CHUNK).collect();
    let of_chunk = |&start: &usize| {
        let end = (start + CHUNK).min(piece.captured.len());
        let mut tally = Tally::default();
        (start..end).for_each(|index| tally.count(piece, index, drifts));
        tally
    };
    let tallies: Vec<Tally> = starts.par_iter().map(of_chunk).collect();
    tallies.into_iter().fold(Tally::default(), Tally::add)
}

impl Piece<'_> {
    /// Whether something that was recorded is no number.
    pub(super) fn has_no_number(&self) -> bool {
        self.captured.iter().any(|x| !x.is_finite())
    }

    /// Expects nothing where what was recorded is no number: an input is none, and it came from there.
    pub(super) fn leave_out_no_numbers(&mut self) {
        let values = self.expected.value.iter_mut().zip(&self.captured);
        values.filter(|(_, x)| !x.is_finite()).for_each(|(value, _)| *value = f64::NAN);
    }

    /// What was recorded of an element, in units of its bound; `None` where nothing is expected.
    fn times_bound(&self, index: usize) -> Option<f64> {
        self.expected.times_bound(index, self.captured[index])
    }
}

fn located(observed: &Observed<'_>, flat: usize) -> Worst {
    let Observed { piece, step, shape, .. } = observed;
    let recorded = piece.captured[flat];
    let times_bound = if recorded.is_finite() {
        piece.expected.exact_times_bound(flat, recorded)
    } else {
        f64::INFINITY
    };
    let (step, index) = (*step, Tensor::unravel(flat, shape));
    Worst { step, index, recorded, expected: piece.expected.value[flat], times_bound }
}

/// Which elements of a step are beyond their bound.
fn pattern(machine: &Machine<'_>, observed: &Observed<'_>, axes: &[Axis]) -> String {
    let Observed { piece, shape, .. } = observed;
    let beyond: Vec<usize> = (0..piece.captured.len())
        .into_par_iter()
        .filter(|&index| piece.times_bound(index).is_some_and(|times| times > 1.0))
        .collect();
    let pattern = Pattern::of(axes, shape, machine.first_position, |mark| {
        beyond.iter().for_each(|&flat| mark(&Tensor::unravel(flat, shape)));
    });
    pattern.text
}
