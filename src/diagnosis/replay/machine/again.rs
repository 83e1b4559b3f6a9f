//! A site computed again, with nodes changed.

use std::{
    collections::{BTreeSet, HashMap},
    rc::Rc,
};

use super::{Machine, Root, uncertain};
use crate::{
    diagnosis::replay::{
        expected::{Expected, Rounding, Spread},
        products::Product,
        recording::{ReplayError, go_on},
        rules::{self, Argument, Call, Values},
    },
    graph::{Graph, Kind, NodeId, Op},
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

    /// The nodes that are changed, where they are told.
    fn nodes(&self) -> Vec<NodeId> {
        Vec::new()
    }

    /// The same change in other nodes too, `alike` to each; `None` where it is of one node alone.
    fn in_alike(&self, _alike: &dyn Fn(NodeId) -> Vec<NodeId>) -> Option<Box<dyn Edit + '_>> {
        None
    }
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
    /// The nodes that make a site from what is known: in order, the site's own last. Those that write what is not
    /// known of a cache are among them.
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
                let is_certain =
                    known.is_some_and(|root| root.is_recorded || root.spread.is_none());
                if root == own || is_certain {
                    continue;
                }
                if graph.node(root).kind == Kind::State {
                    waiting.extend(
                        graph
                            .ids()
                            .take_while(|&id| id < own)
                            .filter(|&id| writes_into(graph, id) == Some(root)),
                    );
                } else {
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
        let all = again_in_all(&[(self, cone)], place, edit)?;
        Ok(all.and_then(|mut all| all.pop()))
    }

    /// What a site shows of the memory that it is a window on.
    fn shown(&self, place: usize) -> Result<Option<Expected<'a>>, ReplayError> {
        let spec = &self.run.model.sites.specs()[place];
        let Some(Argument { values: Values::Dense { value, spread }, .. }) =
            self.argument(spec.node)?
        else {
            return Ok(None);
        };
        let rounding = Rounding::of(self.run.recording.arithmetic, spec);
        let spread = spread.map_or(Spread::None, |spread| Spread::Each(spread.into_owned()));
        let value = value.into_owned();
        let expected = Expected { value, spread, single: Vec::new(), rounding };
        Ok(Some(self.in_site_order(spec, expected)))
    }

    /// The same machine with only what a cone is computed from.
    pub fn for_cone(&self, place: usize, cone: &[NodeId]) -> Machine<'a> {
        let graph = self.graph();
        let own = graph.root(self.run.model.sites.specs()[place].node);
        let mut kept = BTreeSet::from([own]);
        for &id in cone {
            kept.extend(graph.node(id).sources.iter().flatten().map(|&source| graph.root(source)));
            kept.extend(writes_into(graph, id));
        }
        let keep =
            |(id, root): (NodeId, &Option<Rc<Root>>)| root.clone().filter(|_| kept.contains(&id));
        let memory = graph.ids().zip(&self.memory).map(keep).collect();
        Machine { memory, ..self.clone() }
    }
}

/// The cache that a node writes rows into.
pub fn writes_into(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let node = graph.node(id);
    let root = node.window.filter(|_| node.op == Op::SetRows)?.root;
    (graph.node(root).kind == Kind::State).then_some(root)
}

/// The nodes of a cone that its caches are written from, and those that write them.
fn written(graph: &Graph, cone: &[NodeId]) -> Vec<NodeId> {
    let mut needed = BTreeSet::new();
    for &id in cone.iter().rev() {
        if needed.contains(&id) || writes_into(graph, id).is_some() {
            needed.insert(id);
            let sources = graph.node(id).sources.iter().flatten();
            needed.extend(sources.map(|&source| graph.root(source)));
        }
    }
    cone.iter().copied().filter(|id| needed.contains(id)).collect()
}

/// Computes a cone again in the last of several steps, changed, and of those before it only what they leave in the
/// caches; what its site must then give.
pub fn again_in_last<'a>(
    steps: &[(&Machine<'a>, &[NodeId])],
    place: usize,
    edit: &dyn Edit,
) -> Result<Option<Expected<'a>>, ReplayError> {
    go_on()?;
    let Some((&last, before)) = steps.split_last() else { return Ok(None) };
    let parts = before.iter().map(|(machine, cone)| (*machine, written(machine.graph(), cone)));
    let parts: Vec<(&Machine<'a>, Vec<NodeId>)> = parts.collect();
    let steps = parts.iter().map(|(machine, cone)| (*machine, &cone[..])).chain([last]);
    Ok(through_caches(&steps.collect::<Vec<_>>(), place, edit)?.and_then(|mut all| all.pop()))
}

/// The same in every step, where caches are written on the way, which the next steps then find.
fn again_through<'a>(
    steps: &[(&Machine<'a>, &[NodeId])],
    place: usize,
    edit: &dyn Edit,
) -> Result<Option<Vec<Expected<'a>>>, ReplayError> {
    let all = through_caches(steps, place, edit)?;
    Ok(all.filter(|all| all.len() == steps.len()))
}

/// The results of the steps whose cones end with the site's node.
fn through_caches<'a>(
    steps: &[(&Machine<'a>, &[NodeId])],
    place: usize,
    edit: &dyn Edit,
) -> Result<Option<Vec<Expected<'a>>>, ReplayError> {
    let mut states: HashMap<NodeId, Option<Rc<Root>>> = HashMap::new();
    let mut all = Vec::with_capacity(steps.len());
    for &(machine, cone) in steps {
        let spec = &machine.run.model.sites.specs()[place];
        let graph = machine.graph();
        let mut branch = machine.clone();
        for (root, state) in &states {
            branch.memory[root.index()].clone_from(state);
        }
        for &id in cone {
            if writes_into(graph, id).is_some() {
                branch.set_rows(id);
                continue;
            }
            let Some(expected) = branch.compute(id, edit)? else { return Ok(None) };
            if id == spec.node {
                all.push(branch.in_site_order(spec, expected));
                break;
            }
            branch.store(id, Some(uncertain(expected)));
        }
        for root in cone.iter().filter_map(|&id| writes_into(graph, id)) {
            states.insert(root, branch.memory[root.index()].clone());
        }
    }
    Ok(Some(all))
}

/// Computes a cone again in several steps, changed; what its site must then give in each.
pub fn again_in_all<'a>(
    steps: &[(&Machine<'a>, &[NodeId])],
    place: usize,
    edit: &dyn Edit,
) -> Result<Option<Vec<Expected<'a>>>, ReplayError> {
    go_on()?;
    let Some(&(machine, cone)) = steps.first() else { return Ok(Some(Vec::new())) };
    let writes = |id: &NodeId| writes_into(machine.graph(), *id).is_some();
    if steps.iter().any(|(_, cone)| cone.iter().any(writes)) {
        return again_through(steps, place, edit);
    }
    if steps.iter().any(|(_, other)| *other != cone) {
        let all = steps.iter().map(|&step| again_in_all(&[step], place, edit));
        let all = all.collect::<Result<Option<Vec<_>>, _>>()?;
        return Ok(all.map(|all| all.into_iter().flatten().collect()));
    }
    let spec = &machine.run.model.sites.specs()[place];
    let mut branches: Vec<Machine<'a>> =
        steps.iter().map(|(machine, _)| (*machine).clone()).collect();
    for &id in cone {
        let Some(results) = compute_in_all(&branches, id, edit)? else { return Ok(None) };
        let all = branches.iter_mut().zip(results);
        if id == spec.node {
            let in_order =
                |(branch, expected): (&mut Machine<'a>, _)| branch.in_site_order(spec, expected);
            return Ok(Some(all.map(in_order).collect()));
        }
        all.for_each(|(branch, expected)| branch.store(id, Some(uncertain(expected))));
    }
    // The site is a window on the last of them.
    branches.iter().map(|branch| branch.shown(place)).collect()
}

/// A node in several steps. A weight that it multiplies is read once: an edit changes it alike in each.
fn compute_in_all<'a>(
    steps: &[Machine<'a>],
    id: NodeId,
    edit: &dyn Edit,
) -> Result<Option<Vec<Expected<'a>>>, ReplayError> {
    let graph = steps[0].graph();
    if steps.len() == 1 || graph.multiplied_weight(graph.node(id)).is_none() {
        return steps.iter().map(|step| step.compute(id, edit)).collect();
    }
    let calls =
        steps.iter().map(|step| step.call(id, edit)).collect::<Result<Option<Vec<_>>, _>>()?;
    let Some(calls) = calls else { return Ok(None) };
    if calls.iter().any(|call| !rules::is_with_weight(call)) {
        return steps.iter().map(|step| step.compute(id, edit)).collect();
    }
    let products = calls.iter().map(rules::product_of).collect::<Result<Vec<_>, _>>()?;
    let sums = Product::together(products)?;
    let finished = |((step, call), sums): ((&Machine<'a>, _), _)| {
        Ok(step.passed_on(id, edit, rules::finished_product(call, sums)?))
    };
    steps
        .iter()
        .zip(&calls)
        .zip(sums)
        .map(finished)
        .collect::<Result<Vec<_>, ReplayError>>()
        .map(Some)
}
