//! A site computed again, with nodes changed.

use std::{collections::BTreeSet, rc::Rc};

use super::{Machine, Root, site_order, uncertain};
use crate::{
    diagnosis::replay::{
        expected::{Expected, Rounding, Spread},
        recording::ReplayError,
        rules::{Argument, Call, Values},
    },
    graph::{Kind, NodeId, SiteSpec},
};

/// A change of what nodes compute, for a hypothesis.
pub trait Edit {
    /// Changes a node before it is computed.
    fn change<'a>(
        &self,
        machine: &Machine<'a>,
        id: NodeId,
        call: &mut Call<'_, 'a>,
    ) -> Result<(), ReplayError>;

    /// Whether a product with a cache is changed for each token in its own way.
    fn is_by_token(&self, _id: NodeId) -> bool {
        false
    }

    /// Changes a node's result.
    fn result(&self, _machine: &Machine<'_>, _id: NodeId, _result: &mut Expected<'_>) {}
}

/// No change.
pub struct AsItIs;

impl Edit for AsItIs {
    fn change<'a>(
        &self,
        _: &Machine<'a>,
        _: NodeId,
        _: &mut Call<'_, 'a>,
    ) -> Result<(), ReplayError> {
        Ok(())
    }
}

impl<'a> Machine<'a> {
    /// The nodes that make a site from what is known: in order, the site's own last.
    pub fn cone(&self, place: usize) -> Vec<NodeId> {
        let graph = self.graph();
        let own = graph.root(self.run.model.sites.specs()[place].node);
        let mut found = BTreeSet::new();
        let mut waiting = vec![own];
        while let Some(id) = waiting.pop() {
            let node = graph.node(id);
            if node.kind != Kind::Computed || !found.insert(id) {
                continue;
            }
            for source in node.sources.iter().flatten() {
                let root = graph.root(*source);
                let known = self.memory[root.index()].as_ref();
                // What was recorded is certain.
                if root != own
                    && known.is_none_or(|root| !root.is_recorded && root.spread.is_some())
                {
                    waiting.push(root);
                }
            }
        }
        found.into_iter().collect()
    }

    /// Computes a cone again, changed; what its site must then give, in the site's order.
    pub fn again(
        &self,
        place: usize,
        cone: &[NodeId],
        edit: &dyn Edit,
    ) -> Result<Option<Expected<'a>>, ReplayError> {
        let spec = &self.run.model.sites.specs()[place];
        let mut branch = self.clone();
        for &id in cone {
            let Some(expected) = branch.compute(id, edit)? else { return Ok(None) };
            if id == spec.node {
                return Ok(Some(branch.in_site_order(spec, expected)));
            }
            let root = uncertain(expected);
            branch.store(id, Some(root));
        }
        // The site is a window on the last of them.
        let Some(Argument { values: Values::Dense { value, spread }, .. }) =
            branch.argument(spec.node)?
        else {
            return Ok(None);
        };
        let rounding = Rounding::of(self.run.recording.arithmetic, spec);
        let spread = spread.map_or(Spread::None, |spread| Spread::Each(spread.into_owned()));
        let value = value.into_owned();
        let expected = Expected { value, spread, single: Vec::new(), rounding };
        Ok(Some(branch.in_site_order(spec, expected)))
    }

    /// A result in the order of its site.
    pub(super) fn in_site_order(&self, spec: &SiteSpec, expected: Expected<'a>) -> Expected<'a> {
        let ne = self.graph().node(spec.node).sizes(self.extent).ne;
        let order = site_order(spec, &self.shape(spec), ne);
        expected.rearranged(order, f64::from(spec.factor))
    }

    /// A node's values in the order of its site.
    pub fn ordered(&self, place: usize, value: Vec<f64>) -> Option<Vec<f64>> {
        let spec = &self.run.model.sites.specs()[place];
        let ne = self.graph().node(spec.node).sizes(self.extent).ne;
        let order = site_order(spec, &self.shape(spec), ne);
        order.into_iter().map(|at| value.get(at).map(|x| x * f64::from(spec.factor))).collect()
    }

    /// The same machine with only what a cone is computed from.
    pub fn for_cone(&self, place: usize, cone: &[NodeId]) -> Machine<'a> {
        let graph = self.graph();
        let own = graph.root(self.run.model.sites.specs()[place].node);
        let mut kept = BTreeSet::from([own]);
        for &id in cone {
            kept.extend(graph.node(id).sources.iter().flatten().map(|&source| graph.root(source)));
        }
        let keep =
            |(id, root): (NodeId, &Option<Rc<Root>>)| root.clone().filter(|_| kept.contains(&id));
        let memory = graph.ids().zip(&self.memory).map(keep).collect();
        Machine { memory, ..self.clone() }
    }
}
