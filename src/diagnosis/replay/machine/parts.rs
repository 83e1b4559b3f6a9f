//! Parts of a graph that are replayed at the same time: some layers each, made from what was recorded around them.

use std::{collections::BTreeSet, rc::Rc};

use super::{GraphRun, Machine};
use crate::graph::{Kind, NodeId};

/// The sites of some layers, and the states that their operations read in any step.
#[derive(Clone, Debug)]
pub struct Part {
    pub places: BTreeSet<usize>,
    states: BTreeSet<NodeId>,
}

impl Part {
    /// Divides a run's graph into so many parts at most, in the order of its sites.
    pub fn of(run: GraphRun<'_>, most: usize) -> Vec<Part> {
        let specs = run.model.sites.specs();
        let mut layers: Vec<Vec<usize>> = Vec::new();
        for (place, spec) in specs.iter().enumerate() {
            if place == 0 || specs[place - 1].layer != spec.layer {
                layers.push(Vec::new());
            }
            layers.last_mut().expect("the first place begins one").push(place);
        }
        let length = layers.len().div_ceil(most.max(1)).max(1);
        let machine = Machine::new(run);
        let always = machine.always_recorded();
        let part = |layers: &[Vec<usize>]| {
            let places: BTreeSet<usize> = layers.iter().flatten().copied().collect();
            let states = machine.states_read_for(&places, &always);
            Part { places, states }
        };
        layers.chunks(length).map(part).collect()
    }
}

impl<'a> Machine<'a> {
    /// The replay of a part.
    pub fn of_part(run: GraphRun<'a>, part: &Part) -> Machine<'a> {
        let (wanted, states) = (Rc::new(part.places.clone()), Rc::new(part.states.clone()));
        Machine { wanted: Some(wanted), states: Some(states), ..Machine::new(run) }
    }

    /// Whether the values of a state are needed.
    pub(super) fn keeps(&self, state: NodeId) -> bool {
        self.states.as_ref().is_none_or(|states| states.contains(&state))
    }

    /// Tensors that were recorded whole in every step.
    fn always_recorded(&self) -> BTreeSet<NodeId> {
        let steps = 0..self.run.recording.steps.len() as u32;
        let is_always = |id: &NodeId| steps.clone().all(|step| self.is_recorded_in(step, *id));
        self.graph().ids().filter(is_always).collect()
    }

    /// The states that sites are made from, as far as something between was not recorded in every step.
    fn states_read_for(
        &self,
        places: &BTreeSet<usize>,
        always: &BTreeSet<NodeId>,
    ) -> BTreeSet<NodeId> {
        let (graph, specs) = (self.graph(), self.run.model.sites.specs());
        let own = || places.iter().map(|&place| graph.root(specs[place].node));
        let is_state = |id: &NodeId| graph.node(*id).kind == Kind::State;
        let mut states: BTreeSet<NodeId> = own().filter(is_state).collect();
        loop {
            let writes =
                graph.ids().filter(|&id| self.writes_to(id, |root| states.contains(&root)));
            let nodes = self.made_from(own().chain(writes), |id| always.contains(&id));
            let read = self.sources_of(nodes.iter()).into_iter().filter(is_state);
            let known = states.len();
            states.extend(read);
            if states.len() == known {
                return states;
            }
        }
    }
}
