//! Caches that the tokens of a step do not all read alike: what one of them finds there, the end of the step
//! need not show.

use std::{borrow::Cow, rc::Rc};

use super::{Edit, Machine, Places};
use crate::{
    core::attending::{Calls, Current},
    diagnosis::replay::{
        expected::{Expected, Spread},
        recording::ReplayError,
        rules::{self, Argument, Call, Steps, Values},
    },
    graph::{NodeId, Op},
};

/// A cache (P, Hk, D) as the query of a position finds it, given how many positions it holds after the step.
pub type Found = Box<dyn Fn(usize, usize) -> Vec<f64> + Send + Sync>;

/// What the tokens of a step read of a cache, in the order of its site.
pub(super) struct Reads {
    place: usize,
    /// What was recorded at the end of the step.
    whole: Vec<f64>,
    /// The step's own rows, which come as arguments: a wrong append is none of the reader's faults.
    own: Vec<f64>,
}

impl<'a> Machine<'a> {
    /// Notes how a cache is read in this step, given what it must hold and what was recorded.
    pub(super) fn note_reads(&mut self, place: usize, expected: &[f64], recorded: &[f32]) {
        let root = self.graph().root(self.run.model.sites.specs()[place].node);
        self.reads.remove(&root);
        let whole: Vec<f64> = recorded.iter().map(|&x| f64::from(x)).collect();
        let width = whole.len() / self.extent.cells.max(1);
        let own = expected.get(self.first_position * width..).unwrap_or(&[]).to_vec();
        let is_argument = self.run.recording.attention.current == Current::Argument;
        let differs = whole.get(self.first_position * width..) != Some(&own[..]);
        if self.found.contains_key(&place) || is_argument && differs {
            self.reads.insert(root, Rc::new(Reads { place, whole, own }));
        }
    }

    /// What the token of a step reads of a cache.
    fn read_by(&self, reads: &Reads, token: usize) -> Vec<f64> {
        if let Some(found) = self.found.get(&reads.place) {
            return found(self.first_position + token, self.extent.cells);
        }
        let width = reads.whole.len() / self.extent.cells.max(1);
        let rows = match self.run.recording.attention.calls {
            Calls::Step => 0..self.extent.tokens,
            Calls::Token => token..token + 1,
        };
        let mut value = reads.whole.clone();
        let at = (self.first_position + rows.start) * width;
        let own = &reads.own[rows.start * width..rows.end * width];
        value[at..at + own.len()].copy_from_slice(own);
        value
    }

    /// Whether a node is computed token by token: its tokens read a cache each in its own way.
    pub(super) fn is_by_token(&self, id: NodeId, edit: &dyn Edit) -> bool {
        let node = self.graph().node(id);
        let read = node.source(0).map(|source| self.graph().root(source));
        let reads = read.is_some_and(|root| self.reads.contains_key(&root));
        node.op == Op::MulMat && (reads || edit.is_by_token(id))
    }

    /// A product with a cache, token by token.
    pub(super) fn compute_by_token(
        &self,
        id: NodeId,
        edit: &dyn Edit,
    ) -> Result<Option<Expected<'a>>, ReplayError> {
        let node = self.graph().node(id);
        let (Some(cache), Some(x)) = (node.source(0), node.source(1)) else { return Ok(None) };
        let Some(x) = self.argument(x)? else { return Ok(None) };
        let ne = node.sizes(self.extent).ne;
        let tokens = ne[1];
        let mut results = Vec::with_capacity(tokens);
        let declared = self.declared(id);
        let Some(whole) = self.argument(cache)?.map(Argument::into_owned) else { return Ok(None) };
        let reads = self.reads.get(&self.graph().root(cache));
        let places = reads.map(|reads| self.places_in_site(reads, cache)).transpose()?;
        for token in 0..tokens {
            let cache = match (reads, &places) {
                (Some(reads), Some(places)) => {
                    let values = self.read_by(reads, token);
                    let value = places.iter().map(|&at| values[at]).collect::<Vec<f64>>();
                    Argument {
                        ne: whole.ne,
                        values: Values::Dense { value: value.into(), spread: None },
                    }
                }
                _ => whole.clone(),
            };
            let mut call = Call {
                op: node.op,
                params: node.params(self.extent),
                ne: [ne[0], 1, ne[2], ne[3]],
                arguments: vec![Some(cache), Some(row(&x, token)?)],
                rounding: self.rounding(id),
                has_tables: self.run.has_tables,
                position: Some(self.first_position + token),
                steps: Steps::default(),
                only: None,
            };
            edit.change(self, id, &mut call)?;
            declared.change(self, id, &mut call)?;
            let Some(result) = rules::compute(&call)? else { return Ok(None) };
            results.push(result);
        }
        let mut result = merged(&results, ne);
        edit.result(self, id, &mut result);
        Ok(Some(result))
    }

    /// The place in a cache's site of each element of a window on the cache.
    fn places_in_site(&self, reads: &Reads, window: NodeId) -> Result<Vec<usize>, ReplayError> {
        let spec = &self.run.model.sites.specs()[reads.place];
        let node = self.graph().node(spec.node);
        let mut branch = self.clone();
        let root_id = self.graph().root(window);
        if let (Some(places), Some(root)) = (
            Places::of(node.format.size(), &node.sizes(self.extent)),
            &mut branch.memory[root_id.index()],
        ) {
            let numbers: Vec<f64> = (0..reads.whole.len()).map(|at| at as f64).collect();
            let numbers = self.in_node_order(reads.place, numbers);
            let root = Rc::make_mut(root);
            let mut flat = 0;
            places.each(|at| {
                root.value[at] = numbers[flat];
                flat += 1;
            });
        }
        let Some(argument) = branch.argument(window)? else { return Ok(Vec::new()) };
        let last = reads.whole.len().saturating_sub(1);
        Ok(argument.value()?.iter().map(|&at| (at as usize).min(last)).collect())
    }
}

/// The row of a token: (k, tokens, heads, batches) becomes (k, 1, heads, batches).
fn row<'a>(x: &Argument<'_, 'a>, token: usize) -> Result<Argument<'static, 'a>, ReplayError> {
    let [k, tokens, heads, batches] = x.ne;
    let taken = |values: &[f64]| -> Vec<f64> {
        let of = |at: usize| values[(at * tokens + token) * k..][..k].iter().copied();
        (0..heads * batches).flat_map(of).collect()
    };
    let value = Cow::Owned(taken(&x.value()?));
    let spread = x.spread().map(|spread| Cow::Owned(taken(spread)));
    Ok(Argument { ne: [k, 1, heads, batches], values: Values::Dense { value, spread } })
}

/// Results of single tokens as one.
fn merged<'a>(results: &[Expected<'a>], ne: [usize; 4]) -> Expected<'a> {
    let [m, tokens, heads, batches] = ne;
    let (mut value, mut spread, mut single) = (Vec::new(), Vec::new(), Vec::new());
    for block in 0..heads * batches {
        for result in &results[..tokens] {
            for i in block * m..(block + 1) * m {
                value.push(result.value[i]);
                spread.push(result.most_spread(i));
                single.push(result.single_of(i));
            }
        }
    }
    let rounding = results[0].rounding;
    Expected { value, spread: Spread::Each(spread), single, rounding }
}
