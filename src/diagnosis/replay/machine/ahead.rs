//! Products of later steps with a weight, computed with those of this one: the weight is read once for all.
//!
//! What a later step multiplies must have been recorded. Its sums are taken where the step then does multiply
//! that, and are computed there else.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use super::{AsItIs, Machine};
use crate::{
    diagnosis::replay::{
        expected::Expected,
        products::{Multiplied, Product},
        recording::ReplayError,
        rules,
    },
    graph::{Extent, Graph, NodeId},
};

/// At most so many sums wait for their steps, of all products together: 128 MiB.
const MOST_SUMS: usize = 1 << 24;
/// At most so many rows of one product.
const MOST_ROWS: usize = 256;

/// The sums of later steps.
#[derive(Default)]
pub(super) struct Ahead<'a> {
    sums: HashMap<NodeId, VecDeque<Multiplied<'a>>>,
    /// Tokens of later steps that a product is computed for.
    tokens: usize,
}

impl Ahead<'_> {
    pub fn of(graph: &Graph) -> Self {
        let one = Extent { tokens: 1, cells: 1, is_first: false };
        let products = graph.iter().filter(|(_, node)| graph.multiplied_weight(node).is_some());
        let sums: usize = products.map(|(_, node)| node.sizes(one).elements()).sum();
        let tokens = (MOST_SUMS / sums.max(1)).min(MOST_ROWS);
        Ahead { tokens, ..Ahead::default() }
    }
}

/// A machine is cloned for a few nodes of one step.
impl Clone for Ahead<'_> {
    fn clone(&self) -> Self {
        Ahead::default()
    }
}

impl<'a> Machine<'a> {
    /// What a node must give in this step, as [`Machine::compute`] has it.
    pub(super) fn compute_in_turn(
        &mut self,
        id: NodeId,
    ) -> Result<Option<Expected<'a>>, ReplayError> {
        if self.graph().multiplied_weight(self.graph().node(id)).is_none() {
            return self.compute(id, &AsItIs);
        }
        let mut waiting = self.ahead.sums.remove(&id).unwrap_or_default();
        let result = self.multiplied(id, &mut waiting)?;
        self.ahead.sums.insert(id, waiting);
        Ok(result)
    }

    /// A product's result, of the sums that wait for their steps where those of this one are there.
    fn multiplied(
        &self,
        id: NodeId,
        waiting: &mut VecDeque<Multiplied<'a>>,
    ) -> Result<Option<Expected<'a>>, ReplayError> {
        let Some(call) = self.call(id, &AsItIs)? else { return Ok(None) };
        let own = rules::product_of(&call)?;
        let sums = match waiting.pop_front().filter(|sums| sums.are_of(&own)) {
            Some(sums) => sums,
            None => {
                let mut products = vec![own];
                products.extend(self.of_later_steps(id)?);
                *waiting = Product::together(products)?.into();
                waiting.pop_front().expect("as many as were given")
            }
        };
        let result = rules::finished_product(&call, sums)?;
        Ok(Some(self.passed_on(id, &AsItIs, result)))
    }

    /// What a node multiplies in the steps after this one, as far as that was recorded.
    fn of_later_steps(&self, id: NodeId) -> Result<Vec<Product<'a>>, ReplayError> {
        let (mut products, mut tokens) = (Vec::new(), 0);
        for step in self.step + 1..self.run.recording.steps.len() as u32 {
            tokens += self.run.recording.steps[step as usize].len();
            if tokens > self.ahead.tokens {
                break;
            }
            let Some(later) = self.with_sources(id, step)? else { break };
            let Some(call) = later.call(id, &AsItIs)? else { break };
            products.push(rules::product_of(&call)?);
        }
        Ok(products)
    }

    /// This machine in a later step, with nothing but what was recorded of a node's sources; `None` where not
    /// all of them were.
    fn with_sources(&self, id: NodeId, step: u32) -> Result<Option<Machine<'a>>, ReplayError> {
        let graph = self.graph();
        let memory = vec![None; graph.nodes.len()];
        let mut later = Machine { memory, ..self.clone() };
        later.begin(step);
        for &source in graph.node(id).sources.iter().flatten().skip(1) {
            let root = graph.root(source);
            let Some(place) = self.site_at[root.index()] else { return Ok(None) };
            let Some(recorded) = later.recorded(place)? else { return Ok(None) };
            later.memory[root.index()] = Some(Rc::new(later.known(place, &recorded)?));
        }
        Ok(Some(later))
    }
}
