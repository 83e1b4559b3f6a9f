//! Sites that are windows on another tensor's memory, choices, and what nobody sees.

use std::{collections::BTreeSet, rc::Rc};

use super::{Machine, Observe, Observed, Root, places::Places};
use crate::{
    diagnosis::replay::{
        expected::{Expected, Rounding, Spread},
        recording::ReplayError,
        rules::{self, Argument, Logits, Values},
    },
    graph::{NodeId, Op, Params},
};

impl<'a> Machine<'a> {
    /// Scores of keys that a query does not see are nobody's result: they are not judged, and the softmax
    /// takes them as computed.
    pub(super) fn leave_out_unseen(
        &self,
        id: NodeId,
        expected: &mut Expected<'a>,
        root: &mut Root,
    ) {
        let graph = self.graph();
        let softmax = graph.iter().skip(id.index()).find(|(_, node)| {
            node.op == Op::SoftMax && node.source(0).map(|source| graph.root(source)) == Some(id)
        });
        let mask = softmax.and_then(|(_, node)| node.source(1));
        let Some(Ok(Some(Argument { ne, values: Values::Dense { value: mask, .. } }))) =
            mask.map(|mask| self.argument(mask))
        else {
            return;
        };
        let [keys, tokens, _, _] = graph.node(id).sizes(self.extent).ne;
        if ne[0] != keys {
            return;
        }
        for flat in 0..expected.value.len() {
            let (key, token) = (flat % keys, flat / keys % tokens);
            if mask[token * keys + key] == f64::NEG_INFINITY {
                root.value[flat] = expected.value[flat];
                expected.value[flat] = f64::NAN;
            }
        }
    }

    /// A choice is right where its own order of the values is; then it is what is expected.
    pub(super) fn held_to_choice(
        &self,
        id: NodeId,
        expected: Expected<'a>,
        recorded: &Root,
    ) -> Result<(Expected<'a>, Option<f64>), ReplayError> {
        let node = self.graph().node(id);
        if !node.op.is_choice() {
            return Ok((expected, None));
        }
        let Some(source) = node.source(0) else { return Ok((expected, None)) };
        let Some(from) = self.argument(source)? else { return Ok((expected, None)) };
        let params = node.params(self.extent);
        let (values, spread) = (from.value()?, from.spread());
        let logits = Logits { width: from.ne[0], values: &values, spread };
        let choice = rules::is_choice_of(&node.op, params, logits, &recorded.value);
        let is_right = choice.is_some_and(|times| times <= 1.0);
        let value = if is_right { recorded.value.clone() } else { expected.value };
        Ok((Expected { value, ..expected }, choice))
    }

    /// Judges a site that is a window by what was recorded, which takes its place.
    pub(super) fn see_window(
        &mut self,
        place: usize,
        observe: Observe<'_, 'a>,
    ) -> Result<(), ReplayError> {
        let spec = &self.run.model.sites.specs()[place];
        let Some(recorded) = self.recorded(place)? else {
            self.pass(place);
            return Ok(());
        };
        let root_id = self.graph().root(spec.node);
        let sizes = self.graph().node(spec.node).sizes(self.extent);
        let known = self.known(place, &recorded)?;
        if let Some(Argument { values: Values::Dense { value, spread }, .. }) =
            self.argument(spec.node)?
        {
            let rounding = Rounding::of(self.run.recording.arithmetic, spec);
            let spread = spread.map_or(Spread::None, |spread| Spread::Each(spread.into_owned()));
            let value = value.into_owned();
            let expected = Expected { value, spread, single: Vec::new(), rounding };
            let (expected, choice) = self.window_choice(spec.node, expected, &known)?;
            let shape = self.shape(spec);
            if let Some(value) = self.ordered(place, expected.value.clone()) {
                self.note_reads(place, &value, &recorded);
            }
            let mut piece = self.piece(spec, expected, recorded)?;
            self.leave_out_prefix(root_id, &mut piece);
            let spanned = match &self.memory[root_id.index()] {
                Some(root) => root.through.clone(),
                None => BTreeSet::new(),
            };
            let step = self.step;
            let is_partly = false;
            observe(self, Observed { place, step, shape, piece, is_partly, spanned, choice })?;
        }
        let places = Places::of(self.graph().node(spec.node).format.size(), &sizes);
        if let (Some(root), Some(places)) = (&mut self.memory[root_id.index()], places) {
            let root = Rc::make_mut(root);
            let mut flat = 0;
            places.each(|at| {
                root.value[at] = known.value[flat];
                if let Some(spread) = &mut root.spread {
                    spread[at] = 0.0;
                }
                flat += 1;
            });
            if root.spread.as_ref().is_some_and(|spread| spread.iter().all(|&s| s == 0.0)) {
                root.spread = None;
                root.through.clear();
            }
        }
        Ok(())
    }

    /// The ids that a window shows of a choice.
    pub(super) fn window_choice(
        &self,
        id: NodeId,
        expected: Expected<'a>,
        recorded: &Root,
    ) -> Result<(Expected<'a>, Option<f64>), ReplayError> {
        let root = self.graph().node(self.graph().root(id));
        let Some(source) = root.source(0).filter(|_| root.op.is_choice()) else {
            return Ok((expected, None));
        };
        let Some(from) = self.argument(source)? else { return Ok((expected, None)) };
        let (values, spread) = (from.value()?, from.spread());
        let logits = Logits { width: from.ne[0], values: &values, spread };
        let choice = rules::is_choice_of(&Op::TopK, Params::default(), logits, &recorded.value);
        let is_right = choice.is_some_and(|times| times <= 1.0);
        let value = if is_right { recorded.value.clone() } else { expected.value };
        Ok((Expected { value, ..expected }, choice))
    }

    /// A site that is a window and was not recorded.
    pub(super) fn pass(&mut self, place: usize) {
        let root = self.graph().root(self.run.model.sites.specs()[place].node);
        if let Some(root) = &mut self.memory[root.index()]
            && root.spread.is_some()
        {
            Rc::make_mut(root).through.insert(place);
        }
    }
}
