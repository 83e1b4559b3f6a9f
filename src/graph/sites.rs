//! The sites of a graph: which tensors are compared, under which name, and what their axes count.
//!
//! # Names
//!
//! A tensor with a role has the role's name. Any other has llama.cpp's own name without the layer; one
//! that llama.cpp leaves without a name has that of its operation in lower case. Where several tensors of
//! a layer would share a name, the second in the graph's order is `name.2`, the third `name.3`; the name of
//! a role belongs to the tensor that plays it, so the first of all others begins with `.2`.
//!
//! What only arranges values is no site. Neither is a norm before its factor, nor a product before its
//! bias: they are the same operation.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{
    Extent, Graph, Kind, NodeId, Op, Size, order,
    roles::{Flow, Role, roles},
    site::{Axis, Name, Site, Stage},
};

/// One axis of a site's tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteAxis {
    pub axis: Axis,
    /// In a step of T tokens; per cell means per position in the cache.
    pub size: Size,
    /// The axis of the node, in ggml's order, that it runs along.
    pub along: usize,
    /// Elements of that axis from one of its own to the next.
    pub step: usize,
}

/// A tensor that is compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteSpec {
    pub layer: Option<u32>,
    pub stage: Stage,
    pub node: NodeId,
    /// The node whose computation finds the values in place.
    pub reader: NodeId,
    /// What the node's values are multiplied by.
    pub factor: f32,
    /// The operation that makes it: of a norm with its factor, or a product with its bias, the first.
    pub op: Op,
    /// The weight that its operation multiplies by, looks up or convolves with.
    pub weight: Option<String>,
    /// The sites, inputs and states that it is computed from, as tensors are named.
    pub inputs: Vec<String>,
    /// Slowest first.
    pub axes: Vec<SiteAxis>,
}

/// Every site of a model's steps, in the order of the graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<SiteSpec>", into = "Vec<SiteSpec>")]
pub struct Sites {
    specs: Vec<SiteSpec>,
    places: HashMap<(Option<u32>, Stage), usize>,
}

impl From<Vec<SiteSpec>> for Sites {
    fn from(specs: Vec<SiteSpec>) -> Sites {
        let place = |(place, spec): (usize, &SiteSpec)| ((spec.layer, spec.stage), place);
        let places = specs.iter().enumerate().map(place).collect();
        Sites { specs, places }
    }
}

impl From<Sites> for Vec<SiteSpec> {
    fn from(sites: Sites) -> Vec<SiteSpec> {
        sites.specs
    }
}

impl SiteSpec {
    /// Its site in a step.
    pub fn site(&self, step: u32) -> Site {
        Site { step, layer: self.layer, stage: self.stage }
    }

    /// The shape of its tensor in a step of `tokens` tokens with `positions` in the cache.
    pub fn shape(&self, tokens: usize, positions: usize) -> Vec<usize> {
        let extent = Extent { tokens, cells: positions, is_first: positions == tokens };
        self.axes.iter().map(|axis| axis.size.at(extent).max(0) as usize).collect()
    }

    /// Calls `of` with the index in ggml's order of every element, row-major.
    pub fn each_index(&self, shape: &[usize], mut of: impl FnMut([usize; 4])) {
        let mut index = vec![0; shape.len()];
        for _ in 0..shape.iter().product() {
            let mut at = [0; 4];
            for (axis, &i) in self.axes.iter().zip(&index) {
                at[axis.along] += i * axis.step;
            }
            of(at);
            for (i, &n) in index.iter_mut().zip(shape).rev() {
                *i += 1;
                if *i < n {
                    break;
                }
                *i = 0;
            }
        }
    }
}

impl Sites {
    /// The sites of a graph.
    pub fn of(graph: &Graph) -> Sites {
        let flow = Flow::new(graph);
        let layers = layers(&flow);
        let roles = roles(&flow, &layers);
        let sizes = Lengths::of(graph, &roles);
        let mut names = Names::default();
        let mut specs = Vec::new();
        for id in graph.ids() {
            let role = roles.get(&id).copied();
            if role.is_none() && !is_site(&flow, id) {
                continue;
            }
            let layer = role.map_or(layers[id.index()], |role| role.layer);
            let stage = match role {
                Some(role) => role.stage,
                None => names.of(layer, &own_name(graph, id)),
            };
            let factor = role.and_then(|role| role.scaled_by).map_or(1.0, |softmax| {
                let scale = graph.node(softmax).params.first().copied().unwrap_or_default();
                f32::from_bits(scale.fixed as i32 as u32)
            });
            let reader = role.and_then(|role| role.reader).unwrap_or(id);
            let axes = axes(graph, id, (stage, layer), &sizes);
            let main = flow.main(id);
            // A cache as it is read is what was appended to it.
            let is_state = graph.node(graph.root(id)).kind == Kind::State;
            let op = if is_state { Op::SetRows } else { graph.node(graph.root(main)).op };
            let weight = graph.weight_of(main).or(graph.weight_of(id)).map(str::to_string);
            let inputs = Vec::new();
            specs.push(SiteSpec {
                layer,
                stage,
                node: id,
                reader,
                factor,
                op,
                weight,
                inputs,
                axes,
            });
        }
        Sites::from(order::ordered(&flow, specs))
    }

    /// Every site, in order.
    pub fn specs(&self) -> &[SiteSpec] {
        &self.specs
    }

    /// The site of a tensor.
    pub fn get(&self, site: Site) -> Option<&SiteSpec> {
        self.place(site).map(|place| &self.specs[place])
    }

    /// The place of a site in the order of the graph.
    pub fn place(&self, site: Site) -> Option<usize> {
        self.places.get(&(site.layer, site.stage)).copied()
    }

    /// Layers that have sites.
    pub fn layers(&self) -> usize {
        self.specs.iter().filter_map(|spec| spec.layer).max().map_or(0, |last| last as usize + 1)
    }

    /// Every site of a run with that many steps (prefill included), in order.
    pub fn of_run(&self, steps: u32) -> Vec<Site> {
        (0..steps).flat_map(|step| self.specs.iter().map(move |spec| spec.site(step))).collect()
    }
}

/// Names without a role that were given.
#[derive(Default)]
struct Names(HashMap<(Option<u32>, String), usize>);

impl Names {
    fn of(&mut self, layer: Option<u32>, name: &str) -> Stage {
        let is_role = !matches!(Stage::from_name(name), Some(Stage::Other(_)));
        let count = self.0.entry((layer, name.to_string())).or_insert(usize::from(is_role));
        *count += 1;
        let name = if *count == 1 { name.to_string() } else { format!("{name}.{count}") };
        Stage::Other(Name::new(&name).expect("made of the bytes that a name may have"))
    }
}

/// llama.cpp's name without the layer, or the operation's, made of the bytes that a name may have.
fn own_name(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    let (base, _) = parts(&node.name);
    let is_named = !(base.is_empty()
        || base.starts_with("node_")
        || base.starts_with("leaf_")
        || base.contains([' ', '(']));
    let base = if is_named { base.to_string() } else { unnamed(graph, id) };
    let allowed = |byte: char| byte.is_ascii_alphanumeric() || byte == '_' || byte == '-';
    let name: String = base.chars().map(|c| if allowed(c) { c } else { '_' }).take(96).collect();
    if name.is_empty() { "node".to_string() } else { name }
}

/// A name for a tensor that llama.cpp gives none: that of its weight or of the state that it reads, or else
/// of its operation.
fn unnamed(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    let source = node.source(0).map(|source| graph.node(graph.root(source)));
    if let Some(packed) = source.filter(|_| is_part_of_packed(graph, id)) {
        let has_tokens = node.ne.iter().any(|size| size.has_tokens());
        return if has_tokens { packed.op.name().to_lowercase() } else { "state".to_string() };
    }
    if let Some(state) = source.filter(|source| source.kind == Kind::State) {
        return state
            .name
            .trim_end_matches(|c: char| c.is_ascii_digit())
            .trim_end_matches("_l")
            .into();
    }
    let weight = graph.weight_of(id).map(|weight| {
        let part = weight.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let part = part.map_or(weight, |(_, part)| part);
        part.rsplit_once('.').map_or(part, |(part, _)| part).to_string()
    });
    weight.unwrap_or_else(|| node.op.name().to_lowercase())
}

/// A name of llama.cpp's and its layer: `Qcur-3` is `Qcur` of layer 3.
fn parts(name: &str) -> (&str, Option<u32>) {
    match name.rsplit_once('-') {
        Some((base, layer)) if !layer.is_empty() => match layer.parse() {
            Ok(layer) => (base, Some(layer)),
            Err(_) => (name, None),
        },
        _ => (name, None),
    }
}

/// The layer of a weight: that of `blk.3.attn_q.weight` is 3.
fn layer_of_weight(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// The layer of each tensor: by its name, by its weight, or that of what reads it.
fn layers(flow: &Flow<'_>) -> Vec<Option<u32>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Told {
        Layer(u32),
        NoLayer,
        Nothing,
    }
    let graph = flow.graph;
    let told = |id: NodeId| {
        let node = graph.node(id);
        if let Some(layer) = graph.weight_of(id).and_then(layer_of_weight) {
            return Told::Layer(layer);
        }
        let is_auto = node.name.is_empty()
            || node.name.starts_with("node_")
            || node.name.contains([' ', '(']);
        match parts(&node.name) {
            (_, Some(layer)) => Told::Layer(layer),
            _ if is_auto || node.op.is_layout() => Told::Nothing,
            _ => Told::NoLayer,
        }
    };
    let mut layers: Vec<Told> = graph.ids().map(told).collect();
    for id in graph.ids().collect::<Vec<_>>().into_iter().rev() {
        if layers[id.index()] == Told::Nothing {
            let readers = flow.readers[id.index()].iter();
            let known = readers.map(|reader| layers[reader.index()]);
            layers[id.index()] = known.into_iter().next().unwrap_or(Told::Nothing);
        }
    }
    layers
        .into_iter()
        .map(|told| if let Told::Layer(layer) = told { Some(layer) } else { None })
        .collect()
}

/// Whether a tensor without a role is compared.
fn is_site(flow: &Flow<'_>, id: NodeId) -> bool {
    let node = flow.graph.node(id);
    let arranges = node.op.is_layout() || node.op == Op::SetRows || flow.picks_rows(id);
    if is_part_of_packed(flow.graph, id) {
        return true;
    }
    let is_empty = node.ne.contains(&Size::fixed(0));
    if node.kind != Kind::Computed || arranges || is_empty || is_state_write(flow.graph, id) {
        return false;
    }
    // What is read of a packed result are its parts.
    let readers = flow.readers[id.index()].iter();
    if node.op.is_packed() && readers.into_iter().any(|&id| is_part_of_packed(flow.graph, id)) {
        return false;
    }
    !flow.is_before_factor(id)
}

/// Whether a tensor is a part of a result that has several: outputs, and the state after them.
fn is_part_of_packed(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let packed = node.source(0).filter(|_| node.op == Op::View);
    packed.is_some_and(|source| graph.node(source).op.is_packed())
}

/// Whether a node changes a state in place.
fn is_state_write(graph: &Graph, id: NodeId) -> bool {
    graph.node(id).window.is_some_and(|window| graph.node(window.root).kind == Kind::State)
}

/// Lengths that tell what an axis counts.
struct Lengths {
    hidden: Option<Size>,
    vocab: Option<Size>,
    experts: Vec<Size>,
    /// D of each layer's keys, and of its values.
    keys: HashMap<Option<u32>, usize>,
    values: HashMap<Option<u32>, usize>,
}

impl Lengths {
    fn of(graph: &Graph, roles: &HashMap<NodeId, Role>) -> Lengths {
        let first = |stage: Stage| {
            let id = roles.iter().find(|(_, role)| role.stage == stage)?.0;
            Some(graph.node(*id).ne[0])
        };
        let of_experts = |node: &super::Node| {
            let weights = node.source(0).filter(|_| node.op == Op::MulMatId)?;
            Some(graph.node(weights).ne[2])
        };
        let length = |size: Size| {
            let length = usize::try_from(size.fixed).ok().filter(|&length| length > 0);
            length.filter(|_| size.is_fixed())
        };
        let of = |stage: Stage| roles.iter().filter(move |(_, role)| role.stage == stage);
        let keys = of(Stage::Scores).filter_map(|(&id, role)| {
            let node = graph.node(product_below(graph, id)?);
            let dim = graph.node(node.source(0)?).ne[0];
            length(dim).map(|dim| (role.layer, dim))
        });
        let values = of(Stage::AttnOut).filter_map(|(&id, role)| {
            let dim = graph.node(id).ne[0];
            length(dim).map(|dim| (role.layer, dim))
        });
        Lengths {
            hidden: first(Stage::Embd),
            vocab: first(Stage::Logits),
            experts: graph.nodes.iter().filter_map(of_experts).collect(),
            keys: keys.collect(),
            values: values.collect(),
        }
    }
}

/// The product that scores come from, through what scales and caps them.
fn product_below(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let mut at = id;
    while graph.node(at).op != Op::MulMat {
        at = graph.node(at).source(0)?;
    }
    Some(at)
}

const ONE: Size = Size::fixed(1);
const TOKENS: Size = Size { per_token: 1, ..Size::fixed(0) };
const CELLS: Size = Size { per_cell: 1, ..Size::fixed(0) };

/// The axes of a site, slowest first: tokens before all others, or positions where there are no tokens.
fn axes(graph: &Graph, id: NodeId, role: (Stage, Option<u32>), lengths: &Lengths) -> Vec<SiteAxis> {
    let (stage, _) = role;
    let node = graph.node(id);
    let has_tokens = node.ne.contains(&TOKENS);
    let rank = |size: Size| match size {
        TOKENS => 0,
        CELLS if !has_tokens => 0,
        _ => 1,
    };
    // A role has all of its axes, also where there is one head.
    let roles_own = if matches!(stage, Stage::Other(_)) { 0 } else { stage.axes().len() };
    let is_flat = matches!(stage, Stage::Q | Stage::K | Stage::V) && node.ne[1] == TOKENS;
    let own = if is_flat { 2 } else { roles_own };
    let mut along: Vec<usize> =
        (0..4).rev().filter(|&axis| axis < own || node.ne[axis] != ONE).collect();
    along.sort_by_key(|&axis| rank(node.ne[axis]));
    let wide = along.len();
    let mut axes = Vec::new();
    for along in along {
        let size = node.ne[along];
        let axis = counts(graph, id, (along, wide), stage, lengths);
        let heads = head_length(node, along, role, lengths);
        if let Some(dim) = heads {
            let n = size.fixed as usize / dim;
            let (heads, dims) = (Size::fixed(n as i64), Size::fixed(dim as i64));
            axes.push(SiteAxis { axis: Axis::Head, size: heads, along, step: dim });
            axes.push(SiteAxis { axis: Axis::Dim, size: dims, along, step: 1 });
        } else {
            axes.push(SiteAxis { axis, size, along, step: 1 });
        }
    }
    if axes.is_empty() {
        axes.push(SiteAxis { axis: Axis::Element, size: ONE, along: 0, step: 1 });
    }
    axes
}

/// D, where an axis has the heads and their dims in one.
fn head_length(
    node: &super::Node,
    along: usize,
    role: (Stage, Option<u32>),
    lengths: &Lengths,
) -> Option<usize> {
    let (stage, layer) = role;
    let of_layer = match stage {
        Stage::Q | Stage::K => lengths.keys.get(&layer),
        Stage::V => lengths.values.get(&layer),
        _ => None,
    };
    let is_flat = along == 0 && node.ne[1] == TOKENS && node.ne[2] == ONE;
    let dim = of_layer.copied().filter(|_| is_flat)?;
    let divides = node.ne[0].is_fixed() && (node.ne[0].fixed as usize).is_multiple_of(dim);
    divides.then_some(dim)
}

/// What an axis of a node counts.
fn counts(
    graph: &Graph,
    id: NodeId,
    place: (usize, usize),
    stage: Stage,
    lengths: &Lengths,
) -> Axis {
    let (along, wide) = place;
    let node = graph.node(id);
    let size = node.ne[along];
    let has_tokens = node.ne.contains(&TOKENS);
    match size {
        TOKENS => return Axis::Token,
        CELLS if has_tokens => return Axis::Key,
        CELLS => return Axis::Position,
        _ => {}
    }
    if matches!(stage, Stage::KCache | Stage::VCache) {
        return if along == 2 { Axis::Head } else { Axis::Dim };
    }
    if matches!(stage, Stage::Scores | Stage::Probs) {
        return Axis::Head;
    }
    let is_of_weights = wide == 2 && slots_in(graph, id) == Some(size);
    if node.op == Op::MulMatId && along == 1 || is_slots(graph, id, along) || is_of_weights {
        return Axis::Slot;
    }
    let is_hidden = along == 0 && lengths.hidden == Some(size);
    let by_expert = node.op == Op::MulMatId || along == 0 && is_slots(graph, id, 1);
    if by_expert && along == 0 {
        return if is_hidden { Axis::Channel } else { Axis::Neuron };
    }
    if matches!(stage, Stage::FfnGate | Stage::FfnUp | Stage::FfnAct) || node.op.is_gated() {
        return if along == 0 { Axis::Neuron } else { Axis::Slot };
    }
    if stage == Stage::Logits || along == 0 && lengths.vocab == Some(size) && wide == 2 {
        return Axis::Vocab;
    }
    if is_hidden && (wide <= 2 || !matches!(stage, Stage::Other(_))) {
        return Axis::Channel;
    }
    if lengths.experts.contains(&size) && along == 0 && wide == 2 {
        return Axis::Expert;
    }
    let by_token = has_tokens && wide == 3;
    match along {
        0 if by_token => Axis::Dim,
        _ if by_token => Axis::Head,
        _ => Axis::Element,
    }
}

/// Whether an axis counts the experts of a token: that of an array of ids, or of what is multiplied by
/// them.
fn is_slots(graph: &Graph, id: NodeId, along: usize) -> bool {
    let node = graph.node(id);
    let from_experts = |source: &Option<NodeId>| {
        source.is_some_and(|source| {
            let node = graph.node(source);
            node.op == Op::MulMatId || node.op == Op::AddId
        })
    };
    along == 1 && node.sources.iter().any(from_experts) || along == 0 && matches!(node.op, Op::TopK)
}

/// How many experts a token goes to, of what is picked by their ids for each, or made of that.
fn slots_in(graph: &Graph, id: NodeId) -> Option<Size> {
    let node = graph.node(id);
    let by_ids = node.source(1).filter(|_| node.op == Op::GetRows);
    if let Some(ids) = by_ids {
        let is_choice = graph.node(graph.root(ids)).op.is_choice();
        return is_choice.then(|| graph.node(ids).ne[0]);
    }
    let passes =
        node.op.is_layout() || matches!(node.op, Op::Div | Op::Mul | Op::Scale | Op::SoftMax);
    slots_in(graph, node.source(0).filter(|_| passes)?)
}
