//! A few outputs of a site's product, which refute most hypotheses at a small part of its cost.

use std::sync::Arc;

use super::{Machine, site_order};
use crate::graph::{NodeId, Op};

/// Outputs that are computed.
const OUTPUTS: usize = 64;
/// A product of fewer is computed whole.
const LEAST: usize = 4 * OUTPUTS;

/// Outputs of a product that alone are computed.
#[derive(Clone)]
pub struct Probe {
    pub(super) product: NodeId,
    outputs: Arc<[usize]>,
}

impl Probe {
    pub(super) fn outputs(&self) -> Arc<[usize]> {
        Arc::clone(&self.outputs)
    }
}

impl<'a> Machine<'a> {
    /// Some outputs of the last product of a cone, among those of the wrong elements of its site; `None` where
    /// that is small.
    pub fn probe(&self, place: usize, cone: &[NodeId], wrong: &[bool]) -> Option<Probe> {
        let graph = self.graph();
        let is_product = |id: &&NodeId| matches!(graph.node(**id).op, Op::MulMat | Op::MulMatId);
        let product = *cone.iter().rev().find(is_product)?;
        let width = graph.node(product).sizes(self.extent).ne[0];
        if width < LEAST {
            return None;
        }
        let spec = &self.run.model.sites.specs()[place];
        let ne = graph.node(spec.node).sizes(self.extent).ne;
        let order = site_order(spec, &self.shape(spec), ne);
        let mut is_of_wrong = vec![false; width];
        for (at, _) in wrong.iter().enumerate().filter(|(_, wrong)| **wrong) {
            is_of_wrong[order.as_ref().map_or(at, |order| order[at]) % width] = true;
        }
        let all: Vec<usize> = (0..width).filter(|&output| is_of_wrong[output]).collect();
        if all.is_empty() {
            return None;
        }
        // One of each part of them, scattered, so that no order of heads or neighbours is favoured.
        let parts = OUTPUTS.min(all.len());
        let one = |part: usize| {
            let (from, to) = (part * all.len() / parts, (part + 1) * all.len() / parts);
            all[from + part.wrapping_mul(0x9e37_79b9) / 7 % (to - from)]
        };
        Some(Probe { product, outputs: (0..parts).map(one).collect() })
    }

    /// The same machine, which computes that alone.
    pub fn probing(&self, probe: &Probe) -> Machine<'a> {
        Machine { probe: Some(probe.clone()), ..self.clone() }
    }
}
