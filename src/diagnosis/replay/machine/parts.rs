//! Parts of a graph that are replayed at the same time: some layers each, made from what was recorded around them.

use std::{collections::BTreeSet, rc::Rc};

use super::{GraphRun, Machine};

/// Divides the sites that are judged, by their places, into so many parts at most: layers that follow one another.
pub fn parts(run: GraphRun<'_>, most: usize) -> Vec<BTreeSet<usize>> {
    let specs = run.model.sites.specs();
    let is_judged = |place: &usize| run.only.is_none_or(|only| only.contains(place));
    let mut layers: Vec<Vec<usize>> = Vec::new();
    let mut layer_before = None;
    for place in (0..specs.len()).filter(is_judged) {
        let layer = Some(specs[place].layer);
        if layer_before != layer {
            layers.push(Vec::new());
            layer_before = layer;
        }
        layers.last_mut().expect("the first place begins one").push(place);
    }
    let length = layers.len().div_ceil(most.max(1)).max(1);
    layers.chunks(length).map(|layers| layers.iter().flatten().copied().collect()).collect()
}

impl<'a> Machine<'a> {
    /// The replay of a part.
    pub fn of_part(run: GraphRun<'a>, part: &BTreeSet<usize>) -> Machine<'a> {
        let machine = Machine::new(GraphRun { only: None, ..run });
        let planned = Some(Rc::new(machine.planned(part)));
        Machine { run, planned, ..machine }
    }
}
