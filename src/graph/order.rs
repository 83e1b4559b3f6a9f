//! The order of a graph's sites: each after what it is computed from, and else as people tell a layer.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{Kind, NodeId, roles::Flow, site::Stage, sites::SiteSpec};

/// When a site is told: its block (a layer, or what is before or after all), its place there, its place in
/// the graph.
type Key = (u64, usize, usize);

/// The sites in order, with what each is computed from.
pub fn ordered(flow: &Flow<'_>, mut specs: Vec<SiteSpec>) -> Vec<SiteSpec> {
    specs.sort_by_key(|spec| (spec.reader.max(spec.node), spec.node));
    let sources: Vec<Sources> = Origins::of(flow, &specs);
    let keys = keys(&specs);
    let mut missing: Vec<usize> = sources.iter().map(|sources| sources.sites.len()).collect();
    let mut readers = vec![Vec::new(); specs.len()];
    for (place, sources) in sources.iter().enumerate() {
        sources.sites.iter().for_each(|&source| readers[source].push(place));
    }
    let ready = (0..specs.len()).filter(|&place| missing[place] == 0);
    let mut ready: BinaryHeap<Reverse<(Key, usize)>> =
        ready.map(|place| Reverse((keys[place], place))).collect();
    let mut order = Vec::with_capacity(specs.len());
    while let Some(Reverse((_, place))) = ready.pop() {
        order.push(place);
        for &reader in &readers[place] {
            missing[reader] -= 1;
            if missing[reader] == 0 {
                ready.push(Reverse((keys[reader], reader)));
            }
        }
    }
    let name = |place: &usize| specs[*place].site(0).tensor_name();
    let names = |sources: &Sources| {
        let sites = sources.sites.iter().map(name);
        let leaves = sources.leaves.iter().map(|&leaf| flow.graph.node(leaf).name.clone());
        sites.chain(leaves).collect::<Vec<String>>()
    };
    order
        .iter()
        .map(|&place| SiteSpec { inputs: names(&sources[place]), ..specs[place].clone() })
        .collect()
}

fn keys(specs: &[SiteSpec]) -> Vec<Key> {
    let (mut rank, mut layered) = (0, false);
    let mut keys = Vec::with_capacity(specs.len());
    for (place, spec) in specs.iter().enumerate() {
        layered |= spec.layer.is_some();
        let block = match spec.layer {
            Some(layer) => u64::from(layer) + 1,
            None if layered => u64::MAX,
            None => 0,
        };
        // A tensor without a role is told after the role before it.
        if !matches!(spec.stage, Stage::Other(_)) {
            rank = spec.stage.index();
        }
        keys.push((block, rank, place));
    }
    keys
}

/// What a site is computed from.
#[derive(Clone, Default)]
struct Sources {
    /// By their places.
    sites: Vec<usize>,
    leaves: Vec<NodeId>,
}

/// The nearest sites and leaves before each tensor.
struct Origins<'f, 'g> {
    flow: &'f Flow<'g>,
    /// The sites at each tensor.
    sites: Vec<Option<usize>>,
    /// What each tensor that is no site is made of.
    known: Vec<Option<Sources>>,
}

impl Origins<'_, '_> {
    fn of(flow: &Flow<'_>, specs: &[SiteSpec]) -> Vec<Sources> {
        let n = flow.graph.nodes.len();
        let mut sites = vec![None; n];
        for (place, spec) in specs.iter().enumerate() {
            sites[spec.node.index()] = Some(place);
        }
        let mut origins = Origins { flow, sites, known: vec![None; n] };
        for id in flow.graph.ids() {
            let sources = origins.sources(id);
            origins.known[id.index()] = Some(sources);
        }
        let of = |spec: &SiteSpec| origins.known[spec.node.index()].clone().unwrap_or_default();
        specs.iter().map(of).collect()
    }

    /// What a tensor is made of; those before it are known.
    fn sources(&self, id: NodeId) -> Sources {
        let graph = self.flow.graph;
        let node = graph.node(id);
        let mut all = Sources::default();
        let root = graph.root(id);
        // A window on a state shows what was written there, and what was there before.
        let is_state = graph.node(root).kind == Kind::State;
        let written = self.flow.writers(root).filter(|&writer| is_state && writer < id);
        let sources = node.sources.iter().flatten().copied();
        for source in sources.chain(written.flat_map(|writer| graph.node(writer).source(0))) {
            match (self.sites[source.index()], graph.node(source).kind) {
                (Some(place), _) => push(&mut all.sites, place),
                (None, Kind::Weight | Kind::Skipped) => {}
                (None, Kind::Input | Kind::State) => push(&mut all.leaves, source),
                (None, Kind::Computed) => {
                    let known = self.known[source.index()].iter();
                    for sources in known {
                        sources.sites.iter().for_each(|&site| push(&mut all.sites, site));
                        sources.leaves.iter().for_each(|&leaf| push(&mut all.leaves, leaf));
                    }
                }
            }
        }
        all
    }
}

fn push<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}
