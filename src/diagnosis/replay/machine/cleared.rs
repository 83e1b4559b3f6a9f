//! Results of products that random sums clear, so that none of their elements is computed.

use super::{AsItIs, Machine, Root};
use crate::{
    core::tensor::DType,
    diagnosis::replay::{recording::ReplayError, rules},
    graph::NodeId,
};

/// A step's result of a product that lies within the bounds of its random sums.
#[derive(Clone, Copy, Debug)]
pub struct Cleared {
    /// The site's place among the sites.
    pub place: usize,
    pub elements: usize,
    /// The furthest random sum, in units of its bound.
    pub times_bound: f64,
}

impl Machine<'_> {
    /// What was recorded of a product with a weight, if random sums clear it: of known inputs, in an arithmetic as
    /// sharp as its storage, as only there single elements tell no less than what they have in common.
    pub(super) fn cleared(
        &mut self,
        id: NodeId,
        place: usize,
        recorded: &[f32],
    ) -> Result<Option<Root>, ReplayError> {
        let (graph, node) = (self.graph(), self.graph().node(id));
        let weight = graph.multiplied_weight(node);
        let (Some(sums), Some(weight)) = (self.run.sums, weight) else { return Ok(None) };
        let (arithmetic, rounding) = (self.run.recording.arithmetic, self.rounding(id));
        let is_plain = arithmetic.roundings.is_empty() && arithmetic.weights == DType::F32;
        if !is_plain || rounding.tells_more() || !self.through(id).is_empty() {
            return Ok(None);
        }
        let tensor = &graph.node(weight).name;
        if !sums.has(tensor) {
            return Ok(None);
        }
        let root = self.known(place, recorded)?;
        let Some(call) = self.call(id, &AsItIs)?.filter(|_| root.spread.is_none()) else {
            return Ok(None);
        };
        if !rules::is_with_weight(&call) || !rules::has_all_experts(&call)? {
            return Ok(None);
        }
        let product = rules::product_of(&call)?;
        let times_bound = sums.times_bound(tensor, &product, &root.value, rounding);
        let Some(times_bound) = times_bound.filter(|times| *times <= 1.0) else { return Ok(None) };
        drop(call);
        self.cleared.push(Cleared { place, elements: recorded.len(), times_bound });
        Ok(Some(root))
    }

    /// The results that were cleared since this was last asked.
    pub fn take_cleared(&mut self) -> Vec<Cleared> {
        std::mem::take(&mut self.cleared)
    }
}
