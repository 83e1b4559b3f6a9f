//! A guilty site with its inputs and its wrong results, in every step where it was recorded.

use std::{
    cell::{Cell, OnceCell},
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    rc::Rc,
    sync::Arc,
};

use crate::{
    core::{
        arithmetic::{Convention, Value},
        cause_key::CauseKey,
        format::Format,
        tensor::Tensor,
    },
    diagnosis::{
        cause::{Known, Rank, Tried},
        explain::{Explained, Place, Trial},
        replay::{
            Edit, Expected, Found, GraphRun, Machine, Observed, Piece, Probe, ReplayError,
            Rounding, Spread, again_in_all, again_in_last, wrong_elements,
        },
    },
    graph::{Graph, NodeId, SiteSpec, site::Axis},
};

/// One step of a guilty site.
pub struct StepEvidence<'a> {
    /// The memory as the site's node found it.
    pub machine: Machine<'a>,
    /// What the site must give, beside what it gave.
    pub observed: Observed<'a>,
    /// The nodes that make it from what was recorded; its own last.
    pub cone: Vec<NodeId>,
}

/// A guilty site.
pub struct Evidence<'a> {
    pub run: GraphRun<'a>,
    /// Its place among the sites.
    pub place: usize,
    pub steps: Vec<StepEvidence<'a>>,
    /// Which elements of each step are beyond their bounds.
    pub wrong: Vec<Vec<bool>>,
    /// The only hypothesis that is tried; all, where it is `None`.
    pub only: Option<Rc<Known>>,
    /// Whether a mistake in a gap is tried on the smallest step first, not on the first wrong one.
    pub(super) tries_smallest: Cell<bool>,
    /// A part of the step that hypotheses are tried on first.
    probe: Option<Probe>,
    relative_error: OnceCell<f64>,
}

/// Terms of sums that are looked at for sharper bounds of the right result of a step.
const MOST_TERMS: usize = 1 << 26;

/// Elements of a step, by their places, in place of others.
pub struct Moved {
    pub step: usize,
    pub order: Vec<usize>,
}

/// Gathers the evidence on sites: what they are made from is computed once more.
pub fn gather<'a>(
    run: GraphRun<'a>,
    places: &BTreeSet<usize>,
) -> Result<Vec<Evidence<'a>>, ReplayError> {
    gather_found(run, places, &Arc::default())
}

/// The same where some caches are found as these by the tokens.
pub(super) fn gather_found<'a>(
    run: GraphRun<'a>,
    places: &BTreeSet<usize>,
    found: &Arc<HashMap<usize, Found>>,
) -> Result<Vec<Evidence<'a>>, ReplayError> {
    let mut gathered: BTreeMap<usize, Vec<StepEvidence<'a>>> = BTreeMap::new();
    let mut machine = Machine::of_sites(run, places).with_found(found);
    for step in 0..run.recording.steps.len() as u32 {
        machine.step(step, &mut |machine, observed| {
            let place = observed.place;
            if places.contains(&place) {
                let Piece { expected, captured } = observed.piece;
                let piece = Piece { expected: expected.sharpened(MOST_TERMS), captured };
                let observed = Observed { piece, ..observed };
                let cone = machine.cone(place);
                let machine = machine.for_cone(place, &cone);
                gathered.entry(place).or_default().push(StepEvidence { machine, observed, cone });
            }
            Ok(())
        })?;
    }
    let evidence = |(place, steps): (usize, Vec<StepEvidence<'a>>)| {
        let wrong = steps.iter().map(|step| wrong_elements(&step.observed.piece)).collect();
        let mut evidence = Evidence {
            run,
            place,
            steps,
            wrong,
            only: None,
            tries_smallest: Cell::new(true),
            probe: None,
            relative_error: OnceCell::new(),
        };
        let first = evidence.first_tried();
        let StepEvidence { machine, cone, .. } = &evidence.steps[first];
        if !evidence.is_through_caches() {
            evidence.probe = machine.probe(place, cone, &evidence.wrong[first]);
        }
        evidence
    };
    Ok(gathered.into_iter().map(evidence).collect())
}

impl<'a> Evidence<'a> {
    pub fn spec(&self) -> &'a SiteSpec {
        &self.run.model.sites.specs()[self.place]
    }

    pub fn graph(&self) -> &'a Graph {
        &self.run.model.graph
    }

    /// The nodes that make the site, its own last.
    pub fn cone(&self) -> &[NodeId] {
        &self.steps[0].cone
    }

    /// How many layers the cone goes through.
    pub fn layers(&self) -> usize {
        let (machine, specs) = (&self.steps[0].machine, self.run.model.sites.specs());
        let places = self.cone().iter().filter_map(|&id| machine.operation_of(id));
        places.filter_map(|place| specs[place].layer).collect::<BTreeSet<u32>>().len()
    }

    /// The nodes of the cone that are wanted.
    pub fn nodes(&self, wanted: impl Fn(&crate::graph::Node) -> bool) -> Vec<NodeId> {
        let graph = self.graph();
        self.cone().iter().copied().filter(|&id| wanted(graph.node(id))).collect()
    }

    /// A mistake in what nodes compute.
    pub fn mistake(
        &self,
        key: CauseKey,
        text: impl Into<String>,
        edit: &dyn Edit,
    ) -> Result<Option<Tried>, ReplayError> {
        self.edited(key, text.into(), Rank::Mistake, edit)
    }

    /// What a result looks like when nodes compute otherwise.
    pub fn edited(
        &self,
        key: CauseKey,
        text: String,
        rank: Rank,
        edit: &dyn Edit,
    ) -> Result<Option<Tried>, ReplayError> {
        if self.is_through_caches() {
            return self.edited_in_gap(key, &text, rank, edit);
        }
        if self.is_left_out(&text) {
            return Ok(None);
        }
        let first = self.first_tried();
        if let Some(probe) = &self.probe {
            let StepEvidence { machine, cone, .. } = &self.steps[first];
            let part = machine.probing(probe).again(self.place, cone, edit)?;
            let Some(part) = part.and_then(|part| self.fitted(first, part)) else {
                return Ok(None);
            };
            if self.is_refuted_by(first, &part) {
                return Ok(Some(self.refuted(key, text, rank)));
            }
            let Some(predicted) = self.again(0..self.steps.len(), edit)? else { return Ok(None) };
            return Ok(Some(self.tried(key, text, rank, predicted)));
        }
        let Some(own) = self.again(first..first + 1, edit)? else { return Ok(None) };
        if !self.explains_some(first, &own[0], key) {
            return Ok(Some(self.refuted(key, text, rank)));
        }
        let Some(mut predicted) = self.again(0..first, edit)? else { return Ok(None) };
        let Some(after) = self.again(first + 1..self.steps.len(), edit)? else { return Ok(None) };
        predicted.extend(own.into_iter().chain(after));
        Ok(Some(self.tried(key, text, rank, predicted)))
    }

    /// Steps computed again, changed.
    pub(super) fn again(
        &self,
        steps: Range<usize>,
        edit: &dyn Edit,
    ) -> Result<Option<Vec<Expected<'a>>>, ReplayError> {
        let own = self.steps[steps.clone()].iter().map(|step| (&step.machine, &step.cone[..]));
        let own: Vec<(&Machine<'a>, &[NodeId])> = own.collect();
        let Some(results) = again_in_all(&own, self.place, edit)? else { return Ok(None) };
        Ok(steps.zip(results).map(|(at, expected)| self.fitted(at, expected)).collect())
    }

    /// A step computed again, changed, with what the steps before it then leave in the caches.
    pub(super) fn again_in(
        &self,
        at: usize,
        edit: &dyn Edit,
    ) -> Result<Option<Expected<'a>>, ReplayError> {
        let own = self.steps[..=at].iter().map(|step| (&step.machine, &step.cone[..]));
        let result = again_in_last(&own.collect::<Vec<_>>(), self.place, edit)?;
        Ok(result.and_then(|expected| self.fitted(at, expected)))
    }

    /// A result of as many elements as the right one; where nothing is expected of that, nothing is of a wrong
    /// one.
    fn fitted(&self, at: usize, mut expected: Expected<'a>) -> Option<Expected<'a>> {
        let right = &self.steps[at].observed.piece.expected.value;
        if expected.value.len() != right.len() {
            return None;
        }
        let values = expected.value.iter_mut().zip(right);
        values.filter(|(_, right)| right.is_nan()).for_each(|(value, _)| *value = f64::NAN);
        Some(expected)
    }

    /// Whether a part of a step's result gives too few of the wrong elements that are in it. Half of the share
    /// that refutes a whole result: a part is not exactly like the whole.
    fn is_refuted_by(&self, at: usize, part: &Expected<'_>) -> bool {
        const LEAST: usize = 32;
        let captured = &self.steps[at].observed.piece.captured;
        let is_told = |&i: &usize| self.wrong[at][i] && part.value[i].is_finite();
        let told: Vec<usize> = (0..captured.len()).filter(is_told).collect();
        let gives = |&&i: &&usize| part.times_bound(i, captured[i]).is_some_and(|x| x <= 1.0);
        told.len() >= LEAST && told.iter().filter(gives).count() * 20 < told.len()
    }

    /// The step that hypotheses are tried on first: the smallest that has enough wrong elements.
    pub(super) fn first_tried(&self) -> usize {
        const ENOUGH: usize = 16;
        let wrong = |at: usize| self.wrong[at].iter().filter(|&&wrong| wrong).count();
        let enough = (0..self.steps.len()).filter(|&at| wrong(at) >= ENOUGH);
        let smallest = enough.min_by_key(|&at| self.wrong[at].len());
        let most = || (0..self.steps.len()).max_by_key(|&at| (wrong(at), Reverse(at)));
        smallest.or_else(most).unwrap_or(0)
    }

    /// Whether a result gives at least a tenth of a step's wrong elements.
    pub(super) fn explains_some(&self, at: usize, expected: &Expected<'_>, key: CauseKey) -> bool {
        let captured = &self.steps[at].observed.piece.captured;
        let gives_none = |i: usize| {
            key.gives_none() && !(expected.value[i].is_finite() || captured[i].is_finite())
        };
        let gives = |&i: &usize| {
            expected.times_bound(i, captured[i]).is_some_and(|times| times <= 1.0) || gives_none(i)
        };
        let wrong: Vec<usize> = (0..captured.len()).filter(|&i| self.wrong[at][i]).collect();
        wrong.is_empty() || wrong.iter().filter(|i| gives(i)).count() * 10 >= wrong.len()
    }

    /// A hypothesis that a few elements refute.
    pub fn refuted(&self, key: CauseKey, text: String, rank: Rank) -> Tried {
        let explained = Explained {
            wrong: self.count_wrong() as u64,
            explained: 0,
            contradicted: 0,
            region: None,
            residual: 0.0,
            is_wide: false,
        };
        Tried { key, text, rank, mistakes: 1, explained, declare: Vec::new(), family: 0 }
    }

    /// A step's place among the steps.
    pub fn index_of(&self, step: &StepEvidence<'_>) -> usize {
        let is_it = |own: &StepEvidence<'_>| own.observed.step == step.observed.step;
        self.steps.iter().position(is_it).expect("a step of this evidence")
    }

    /// How many elements are beyond their bounds.
    pub fn count_wrong(&self) -> usize {
        self.wrong.iter().flatten().filter(|&&wrong| wrong).count()
    }

    /// Whether enough elements are wrong for a number to be fitted to them.
    pub fn may_fit(&self) -> bool {
        const LEAST: usize = 16;
        self.count_wrong() >= LEAST
    }

    /// What a changed result must be multiplied by to be nearest to the recorded one, in the step that is
    /// tried first.
    pub fn ratio(&self, edit: &dyn Edit) -> Result<Option<f64>, ReplayError> {
        let step = &self.steps[self.first_tried()];
        let Some(expected) = step.machine.again(self.place, &step.cone, edit)? else {
            return Ok(None);
        };
        let captured = step.observed.piece.captured.iter();
        let pairs =
            expected.value.iter().zip(captured).filter(|(x, y)| x.is_finite() && y.is_finite());
        let (mut along, mut squares) = (0.0, 0.0);
        for (x, &y) in pairs {
            along += x * f64::from(y);
            squares += x * x;
        }
        let ratio = along / squares;
        Ok(ratio.is_finite().then_some(ratio))
    }

    /// Other values in place of the right ones, step by step: copies of what is known.
    pub fn copied(
        &self,
        key: CauseKey,
        text: impl Into<String>,
        rank: Rank,
        of: impl Fn(&StepEvidence<'a>) -> Option<Vec<f64>>,
    ) -> Option<Tried> {
        self.predicted(key, text, rank, |step| {
            let right = &step.observed.piece.expected;
            of(step).filter(|value| fits(value, right)).map(|value| right.copied(value))
        })
    }

    /// The right values times factors, step by step.
    pub fn multiplied(
        &self,
        key: CauseKey,
        text: impl Into<String>,
        rank: Rank,
        of: impl Fn(&StepEvidence<'a>) -> Option<Vec<f64>>,
    ) -> Option<Tried> {
        self.predicted(key, text, rank, |step| {
            let right = &step.observed.piece.expected;
            of(step).filter(|value| fits(value, right)).map(|factors| right.times(&factors))
        })
    }

    /// What a hypothesis predicts of each step.
    pub fn predicted(
        &self,
        key: CauseKey,
        text: impl Into<String>,
        rank: Rank,
        of: impl Fn(&StepEvidence<'a>) -> Option<Expected<'a>>,
    ) -> Option<Tried> {
        let text = text.into();
        if self.is_left_out(&text) {
            return None;
        }
        let first = self.first_tried();
        let mut own = Some(of(&self.steps[first])?);
        if own.as_ref().is_some_and(|own| !self.explains_some(first, own, key)) {
            return Some(self.refuted(key, text, rank));
        }
        let again = |(at, step)| {
            if at == first { own.take() } else { of(step) }
        };
        let predicted = self.steps.iter().enumerate().map(again).collect::<Option<Vec<_>>>()?;
        Some(self.tried(key, text, rank, predicted))
    }

    /// Other right values in place of the right ones, step by step, with their own bounds: each element
    /// is the one that `from` names, of a step that it names.
    pub fn moved(
        &self,
        key: CauseKey,
        text: impl Into<String>,
        rank: Rank,
        from: impl Fn(usize) -> Option<Moved>,
    ) -> Option<Tried> {
        self.predicted(key, text, rank, |step| {
            let Moved { step: other, order } = from(self.index_of(step))?;
            let right = &self.steps.get(other)?.observed.piece.expected;
            let is_whole = order.len() == step.observed.piece.captured.len();
            if !is_whole || order.iter().any(|&from| from >= right.value.len()) {
                return None;
            }
            let value = order.iter().map(|&from| right.value[from]).collect();
            let spread = order.iter().map(|&from| right.most_spread(from)).collect();
            let single = order.iter().map(|&from| right.single_of(from)).collect();
            let (spread, rounding) = (Spread::Each(spread), right.rounding);
            Some(Expected { value, spread, single, rounding })
        })
    }

    pub(super) fn is_left_out(&self, text: &str) -> bool {
        self.only.as_ref().is_some_and(|only| only.cause.text != text)
    }

    /// The right values stored more coarsely than declared.
    pub fn stored_coarser(&self, text: String, rounding: Rounding, format: Format) -> Tried {
        let coarse = |step: &StepEvidence<'a>| {
            let right = &step.observed.piece.expected;
            let n = right.value.len();
            let spread = Spread::Each((0..n).map(|i| right.most_spread(i)).collect());
            let (value, single) = (right.value.clone(), right.single.clone());
            Expected { value, spread, single, rounding }
        };
        let predicted = self.steps.iter().map(coarse).collect();
        let declare = Convention::everywhere(Value::Results, format);
        let tried = self.tried(CauseKey::StoredCoarser, text, Rank::Arithmetic, predicted);
        Tried { declare: vec![declare], ..tried }
    }

    /// The root mean square of the errors, relative to that of the right values.
    pub fn relative_error(&self) -> f64 {
        *self.relative_error.get_or_init(|| {
            let (mut errors, mut values) = (0.0, 0.0);
            for (right, recorded) in self.pairs() {
                errors += (recorded - right).powi(2);
                values += right * right;
            }
            (errors / values).sqrt()
        })
    }

    /// What a part of the computation is multiplied by, as the recorded values tell, given the change that
    /// doubles it: the result follows the part linearly, or the hypothesis fails.
    pub fn factor_of(&self, doubled: &dyn Edit) -> Result<Option<f64>, ReplayError> {
        let step = &self.steps[self.first_tried()];
        let Some(other) = step.machine.again(self.place, &step.cone, doubled)? else {
            return Ok(None);
        };
        let piece = &step.observed.piece;
        let (mut along, mut squares) = (0.0, 0.0);
        let pairs = piece.expected.value.iter().zip(&other.value).zip(&piece.captured);
        for ((&right, &doubled), &recorded) in pairs {
            let (slope, error) = (doubled - right, f64::from(recorded) - right);
            if slope.is_finite() && error.is_finite() {
                along += slope * error;
                squares += slope * slope;
            }
        }
        let factor = 1.0 + along / squares;
        Ok((factor.is_finite() && (factor - 1.0).abs() > 1e-7).then_some(factor))
    }

    /// What a predicted result explains.
    pub(super) fn tried(
        &self,
        key: CauseKey,
        text: String,
        rank: Rank,
        predicted: Vec<Expected<'a>>,
    ) -> Tried {
        let piece = |(step, mut expected): (&StepEvidence<'a>, Expected<'a>)| {
            let own = &step.observed.piece;
            // A row that was not recorded contradicts nothing.
            if step.observed.is_partly {
                let values = expected.value.iter_mut().zip(&own.expected.value);
                values.filter(|(_, right)| right.is_nan()).for_each(|(value, _)| *value = f64::NAN);
            }
            Piece { expected, captured: own.captured.clone() }
        };
        let predicted: Vec<Piece<'_>> = self.steps.iter().zip(predicted).map(piece).collect();
        let axes: Vec<Axis> = self.spec().axes.iter().map(|axis| axis.axis).collect();
        let place = |at: usize, flat: usize| {
            let step = &self.steps[at];
            let index = Tensor::unravel(flat, &step.observed.shape);
            let first_position = step.machine.first_position;
            Place { step: step.observed.step, first_position, index }
        };
        let trial = Trial { axes: &axes, wrong: &self.wrong, place: &place };
        let explained = trial.explained(&predicted, key.gives_none());
        // Coarse results are recognised by what they store, and coarse sums prove nothing.
        let is_coarse = matches!(key, CauseKey::StoredCoarser | CauseKey::F16Accumulation);
        let is_wide = !is_coarse && self.is_wider(&predicted);
        let explained = Explained { is_wide, ..explained };
        Tried { key, text, rank, mistakes: 1, explained, declare: Vec::new(), family: 0 }
    }

    /// Whether most of the predicted results have bounds far wider, for their size, than the right ones: no proof
    /// is made of room.
    fn is_wider(&self, predicted: &[Piece<'_>]) -> bool {
        const MOST: f64 = 64.0;
        let (mut wide, mut all) = (0, 0);
        for ((step, piece), wrong) in self.steps.iter().zip(predicted).zip(&self.wrong) {
            let (own, other) = (&step.observed.piece.expected, &piece.expected);
            for (i, _) in wrong.iter().enumerate().filter(|(_, wrong)| **wrong) {
                let growth = (other.value[i] / own.value[i]).abs();
                let growth = if growth.is_finite() { growth.max(1.0) } else { 1.0 };
                wide += usize::from(other.most_bound(i) > MOST * growth * own.most_bound(i));
                all += 1;
            }
        }
        2 * wide > all
    }

    /// The right value beside the recorded one of every element that counts.
    pub fn pairs(&self) -> Vec<(f64, f64)> {
        let of = |step: &StepEvidence<'a>| {
            let piece = &step.observed.piece;
            let pairs = piece.expected.value.iter().zip(&piece.captured);
            let pairs = pairs.map(|(&right, &x)| (right, f64::from(x)));
            pairs.filter(|(right, x)| right.is_finite() && x.is_finite()).collect::<Vec<_>>()
        };
        self.steps.iter().flat_map(of).collect()
    }

    /// What was recorded of another site in each step, or of the same site in another layer.
    pub fn recorded(&self, step: &StepEvidence<'a>, place: usize) -> Option<Vec<f64>> {
        let spec = self.run.model.sites.specs().get(place)?;
        let (tensors, site) = (self.run.recording.tensors, spec.site(step.observed.step));
        let tensor = tensors.tensor(site).ok().flatten()?;
        if tensors.rows(site).is_some() {
            return None;
        }
        Some(tensor.data.iter().map(|&x| f64::from(x)).collect())
    }
}

/// Whether there is a value for each element, where one is expected.
fn fits(value: &[f64], right: &Expected<'_>) -> bool {
    value.len() == right.value.len()
}
