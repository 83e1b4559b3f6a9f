//! What lies near a guilty site: other weights of the same size, other recorded tensors, names.

use crate::{
    core::cause_key::CauseKey,
    diagnosis::{Change, Edits, Evidence, hypotheses::Visit, replay::ReplayError},
    graph::{
        Extent, Kind, Node, NodeId, SiteSpec,
        site::{Site, Stage},
    },
};

/// At most this many weights of other parts, and of other layers, are tried.
const MAX_WEIGHTS: usize = 24;
/// The same of recorded tensors.
const MAX_SITES: usize = 24;
/// Layers on either side.
const NEAR_LAYERS: u32 = 2;

/// A weight that may have been taken in place of another.
pub struct OtherWeight {
    pub name: String,
    /// Whether it is the same part of another layer.
    pub is_other_layer: bool,
}

/// A source of a node that is a weight of the file, whole.
pub struct WeightSource {
    pub source: usize,
    pub name: String,
}

/// A layer's number and the part of a weight's name after it.
fn layer_and_part(name: &str) -> (Option<u32>, &str) {
    let parts = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let layer = parts.and_then(|(layer, part)| Some((layer.parse().ok()?, part)));
    layer.map_or((None, name), |(layer, part)| (Some(layer), part))
}

impl Evidence<'_> {
    /// The weight among a node's sources.
    pub fn weight_source(&self, id: NodeId) -> Option<WeightSource> {
        let graph = self.graph();
        let sources = graph.node(id).sources.iter().enumerate();
        let mut weights = sources.filter_map(|(source, of)| {
            let root = graph.node(graph.root((*of)?));
            let name = root.name.clone();
            (root.kind == Kind::Weight).then_some(WeightSource { source, name })
        });
        weights.next()
    }

    /// Other weights of the same dims: the same part of other layers, then other parts of the layer, then any.
    pub fn other_weights(&self, name: &str) -> Vec<OtherWeight> {
        let gguf = self.run.file.gguf();
        let Some(own) = gguf.tensor(name) else { return Vec::new() };
        let (layer, part) = layer_and_part(name);
        // What follows the layers is nearest to the last one, and may have taken the first one's.
        let after = self.run.model.sites.layers() as u32;
        let distance = |other: Option<u32>| match (layer, other) {
            (None, Some(0)) => 1,
            (a, b) => a.unwrap_or(after).abs_diff(b.unwrap_or(after)),
        };
        let ends = |part: &str| part.rsplit_once('.').map_or("", |(_, end)| end).to_string();
        let is_vector = own.dims.iter().skip(1).all(|&n| n == 1);
        let mut found: Vec<(usize, u32, OtherWeight)> = Vec::new();
        for tensor in gguf.tensors().iter().filter(|tensor| tensor.name != name) {
            let (of, other) = layer_and_part(&tensor.name);
            // A vector may be a bias or a weight: neither is taken for the other.
            let same_kind = !is_vector || ends(other) == ends(part);
            if tensor.dims != own.dims || !same_kind {
                continue;
            }
            let is_other_layer = other == part;
            let rank = match (is_other_layer, of == layer) {
                (true, _) => 0,
                (false, true) => 1,
                (false, false) => 2,
            };
            let name = tensor.name.clone();
            found.push((rank, distance(of), OtherWeight { name, is_other_layer }));
        }
        found.sort_by_key(|(rank, distance, _)| (*rank, *distance));
        let near = |(rank, distance, _): &(usize, u32, OtherWeight)| *rank != 2 || *distance <= 1;
        found.retain(near);
        found.truncate(MAX_WEIGHTS);
        found.into_iter().map(|(_, _, other)| other).collect()
    }

    /// Another layer in words that hold in every layer alike.
    pub fn layer_name(&self, layer: u32) -> String {
        match self.spec().layer.map(|own| i64::from(layer) - i64::from(own)) {
            Some(1) => "the next layer".to_string(),
            Some(-1) if layer > 0 => "the previous layer".to_string(),
            _ => format!("layer {layer}"),
        }
    }

    /// A weight in words that hold in every layer alike: without the layer, where it is the site's own.
    pub fn weight_name(&self, name: &str) -> String {
        match layer_and_part(name) {
            (None, part) => part.to_string(),
            (layer, part) if layer == self.spec().layer => part.to_string(),
            (Some(layer), part) => format!("{part} of {}", self.layer_name(layer)),
        }
    }

    /// A site in words that hold in every layer alike.
    pub fn site_name(&self, place: usize) -> String {
        let spec = &self.run.model.sites.specs()[place];
        let own = self.spec().layer;
        let before = match own {
            Some(layer) => layer.checked_sub(1),
            None => (self.run.model.sites.layers() as u32).checked_sub(1),
        };
        let hidden = if before.is_some() { Stage::LayerOut } else { Stage::Embd };
        match spec.layer {
            layer if (layer, spec.stage) == (before, hidden) => "the hidden vector".to_string(),
            Some(layer) if Some(layer) != own => {
                format!("{} of {}", spec.stage.name(), self.layer_name(layer))
            }
            _ => spec.stage.name().to_string(),
        }
    }

    /// What a tensor is called: its site's name, or llama.cpp's.
    pub fn name_of(&self, id: NodeId) -> String {
        let graph = self.graph();
        let specs = self.run.model.sites.specs();
        let root = graph.root(id);
        let own = specs.iter().position(|spec| spec.node == id || spec.node == root);
        match own {
            Some(place) => self.site_name(place),
            None => self.weight_name(&graph.node(root).name),
        }
    }

    /// The site that a source shows.
    pub fn site_of(&self, id: NodeId) -> Option<usize> {
        let specs = self.run.model.sites.specs();
        let root = self.graph().root(id);
        let exact = specs.iter().position(|spec| spec.node == id);
        exact.or_else(|| specs.iter().position(|spec| spec.node == root))
    }

    /// Other sites with as many elements as a tensor, whatever the step: those of the layer first, the
    /// nearest before others, then what leaves other layers and the same stage there.
    pub fn other_sites(&self, id: NodeId) -> Vec<usize> {
        let specs = self.run.model.sites.specs();
        let own = self.site_of(id);
        let own_spec = self.spec();
        let stage = own.map(|own| specs[own].stage);
        let node = self.graph().node(id);
        let near_layer = |spec: &SiteSpec| match (spec.layer, own_spec.layer) {
            (Some(a), Some(b)) => a.abs_diff(b) <= NEAR_LAYERS,
            _ => true,
        };
        let is_candidate = |&(place, spec): &(usize, &SiteSpec)| {
            let same_layer = spec.layer == own_spec.layer || spec.layer.is_none();
            let elsewhere =
                near_layer(spec) && (Some(spec.stage) == stage || spec.stage == Stage::LayerOut);
            place != self.place
                && Some(place) != own
                && (same_layer || elsewhere)
                && same_elements(node, spec)
        };
        let mut places: Vec<usize> =
            specs.iter().enumerate().filter(is_candidate).map(|(place, _)| place).collect();
        let far = |place: usize| usize::from(specs[place].layer != own_spec.layer);
        places.sort_by_key(|&place| (far(place), place.abs_diff(self.place)));
        places.truncate(MAX_SITES);
        places
    }

    /// The head length and number of heads of the site, where it has these axes.
    pub fn heads(&self) -> Option<Heads> {
        use crate::graph::site::Axis;
        let axes = &self.spec().axes;
        let size = |axis: Axis| {
            let own = axes.iter().find(|own| own.axis == axis)?;
            own.size.is_fixed().then_some(own.size.fixed as usize)
        };
        Some(Heads { count: size(Axis::Head)?, dim: size(Axis::Dim)? })
    }

    /// Elements of a token's row of a stage, in the site's layer or outside of all, where that is fixed.
    pub fn width_of(&self, stage: Stage) -> Option<usize> {
        let layer = if stage.in_layer() { self.spec().layer } else { None };
        let spec = self.run.model.sites.get(Site { step: 0, layer, stage })?;
        let rest = spec.axes.iter().skip(1).map(|axis| axis.size);
        rest.map(|size| size.is_fixed().then_some(size.fixed as usize)).product()
    }

    /// Lengths of heads that occur in the model.
    pub fn head_dims(&self) -> Vec<usize> {
        use crate::graph::site::Axis;
        let axes = self.run.model.sites.specs().iter().flat_map(|spec| &spec.axes);
        let dims = axes.filter(|axis| axis.axis == Axis::Dim && axis.size.is_fixed());
        let mut dims: Vec<usize> = dims.map(|axis| axis.size.fixed as usize).collect();
        dims.sort_unstable();
        dims.dedup();
        dims
    }

    /// A node with another recorded tensor in place of a source.
    pub fn other_inputs(
        &self,
        id: NodeId,
        source: usize,
        key: &dyn Fn(&SiteSpec) -> CauseKey,
        visit: Visit<'_>,
    ) -> Result<(), ReplayError> {
        let Some(own) = self.graph().node(id).source(source) else { return Ok(()) };
        let specs = self.run.model.sites.specs();
        for place in self.other_sites(own) {
            let names = (self.site_name(place), self.name_of(own));
            let text = format!("its input is {} instead of {}", names.0, names.1);
            let edit = Edits::one(id, Change::Recorded(source, place));
            visit(self.mistake(key(&specs[place]), text, &edit)?);
        }
        Ok(())
    }

    /// A node with other weights of the file in place of its own.
    pub fn of_other_weights(
        &self,
        id: NodeId,
        keys: [CauseKey; 2],
        visit: Visit<'_>,
    ) -> Result<(), ReplayError> {
        let Some(WeightSource { source, name }) = self.weight_source(id) else { return Ok(()) };
        let [of_layer, of_other] = keys;
        for other in self.other_weights(&name) {
            let key = if other.is_other_layer { of_layer } else { of_other };
            let text = self.instead(&other, &name);
            let edit = Edits::one(id, Change::Weight(source, other.name));
            visit(self.mistake(key, text, &edit)?);
        }
        Ok(())
    }

    /// Another weight in place of one, in words that hold in every layer alike.
    pub fn instead(&self, other: &OtherWeight, name: &str) -> String {
        let (layer, _) = layer_and_part(&other.name);
        let what = if name.ends_with(".bias") { "bias" } else { "weight" };
        match layer.filter(|_| other.is_other_layer) {
            Some(layer) => format!("the {what} of {}", self.layer_name(layer)),
            None => format!("{} in place of its own {what}", self.weight_name(&other.name)),
        }
    }

    /// Whether all of a node's sources are computed.
    pub fn is_of_computed(&self, id: NodeId) -> bool {
        let graph = self.graph();
        let kind = |id: NodeId| graph.node(graph.root(id)).kind;
        graph.node(id).sources.iter().flatten().all(|&source| kind(source) != Kind::Weight)
    }
}

/// Heads of a site.
#[derive(Clone, Copy)]
pub struct Heads {
    pub count: usize,
    pub dim: usize,
}

/// Whether a site has as many elements as a tensor in every step.
fn same_elements(node: &Node, spec: &SiteSpec) -> bool {
    [(7, 64), (1, 65)].into_iter().all(|(tokens, cells)| {
        let extent = Extent { tokens, cells, is_first: false };
        let shape = spec.shape(tokens, cells);
        node.sizes(extent).elements() == shape.iter().product::<usize>()
    })
}

/// A number in few digits.
pub fn short(x: f64) -> String {
    let text = format!("{x:.6}");
    if x != 0.0 && !(1e-3..1e6).contains(&x.abs()) {
        return format!("{x:.4e}");
    }
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}
