//! Mistakes in a gap between recorded sites that caches lie in: what one step writes wrongly the next ones find, and
//! one mistake is often in several operations of it.

use std::collections::BTreeSet;

use super::{
    cause::{Rank, Tried},
    evidence::Evidence,
    group::joined_names,
    replay::{Edit, ReplayError, writes_into},
};
use crate::{
    core::cause_key::CauseKey,
    graph::{Kind, NodeId, site::Stage},
};

impl<'a> Evidence<'a> {
    /// Whether the site is made through caches that were not recorded.
    pub fn is_through_caches(&self) -> bool {
        let graph = self.graph();
        self.cone().iter().any(|&id| writes_into(graph, id).is_some())
    }

    /// What a result looks like when a node of the gap computes otherwise, or all that are like it.
    pub(super) fn edited_in_gap(
        &self,
        key: CauseKey,
        text: &str,
        rank: Rank,
        edit: &dyn Edit,
    ) -> Result<Option<Tried>, ReplayError> {
        let alone = self.tried_in_gap(key, text, rank, edit)?;
        let is_whole = |tried: &Tried| tried.explained.is_whole();
        if alone.as_ref().is_some_and(is_whole) {
            return Ok(alone);
        }
        let alike = |id: NodeId| self.alike(id);
        let Some(everywhere) = edit.in_alike(&alike) else { return Ok(alone) };
        let everywhere = self.tried_in_gap(key, text, rank, &*everywhere)?;
        let share =
            |tried: &Option<Tried>| tried.as_ref().map_or(-1.0, |one| one.explained.share());
        Ok(if share(&everywhere) > share(&alone) { everywhere } else { alone })
    }

    fn tried_in_gap(
        &self,
        key: CauseKey,
        text: &str,
        rank: Rank,
        edit: &dyn Edit,
    ) -> Result<Option<Tried>, ReplayError> {
        let text = self.in_operations(text, &edit.nodes());
        if self.is_left_out(&text) {
            return Ok(None);
        }
        let first = if self.tries_smallest.get() { self.first_tried() } else { self.first_wrong() };
        let Some(begun) = self.again_in(first, edit)? else { return Ok(None) };
        if !self.explains_some(first, &begun, key) {
            return Ok(Some(self.refuted(key, text, rank)));
        }
        let predicted = self.again(0..self.steps.len(), edit)?;
        Ok(predicted.map(|predicted| self.tried(key, text, rank, predicted)))
    }

    /// The first step that has wrong elements.
    fn first_wrong(&self) -> usize {
        let is_wrong = |at: &usize| self.wrong[*at].contains(&true);
        (0..self.steps.len()).find(is_wrong).unwrap_or(0)
    }

    /// Whether hypotheses that the smallest step refutes may be tried on the first one: a mistake of the prompt alone
    /// is in the caches that all steps find.
    pub(super) fn has_other_first(&self) -> bool {
        self.is_through_caches() && self.first_wrong() != self.first_tried()
    }

    /// The nodes of the gap that do the same to weights or tensors of the same kind.
    fn alike(&self, id: NodeId) -> Vec<NodeId> {
        let graph = self.graph();
        let kinds = |id: NodeId| -> Vec<Option<bool>> {
            let sources = graph.node(id).sources.iter();
            let is_weight = |source: NodeId| graph.node(graph.root(source)).kind == Kind::Weight;
            sources.map(|source| source.map(is_weight)).collect()
        };
        let own = (graph.node(id).op, kinds(id));
        let others = self.cone().iter().copied().filter(|&other| other != id);
        others.filter(|&other| (graph.node(other).op, kinds(other)) == own).collect()
    }

    /// A mistake with the operations that make it, where they are not the site's own.
    fn in_operations(&self, text: &str, nodes: &[NodeId]) -> String {
        let (machine, specs) = (&self.steps[0].machine, self.run.model.sites.specs());
        let stage = |id: &NodeId| machine.operation_of(*id).map(|place| specs[place].stage);
        let stages: BTreeSet<Stage> = nodes.iter().filter_map(stage).collect();
        let stages: Vec<Stage> = stages.into_iter().collect();
        if stages.is_empty() || stages == [self.spec().stage] {
            return text.to_string();
        }
        format!("{}: {text}", joined_names(&stages))
    }
}
