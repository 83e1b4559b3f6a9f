//! The graph callback: llama.cpp calls it for every node, it hands wanted tensors to the sink.

use std::{
    collections::BTreeMap,
    ffi::c_void,
    panic::{AssertUnwindSafe, catch_unwind},
};

use llama_cpp_sys_2 as sys;

use super::{
    Forced, Noise, StepShape, Tamper,
    context::Hooks,
    node::{Elements, Node},
    noise::Place,
    skip::Skipped,
    widen::Widening,
};
use crate::{
    core::{
        activity,
        sink::{Sink, Stopped},
    },
    graph::{Extent, ModelGraph, NodeId, SiteSpec, site::Site},
};

/// Why a step's capture ended early.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    Stopped,
    /// A node of a wanted site is not what it should be.
    Node {
        site: Site,
        detail: String,
    },
    /// llama.cpp computes another node than its graph said.
    Graph(String),
    /// What a weight gives in f32 could not be computed.
    Widen(String),
    /// Our own code panicked; the payload's text.
    Panic(String),
}

/// What a step's capture may change of what llama.cpp computes.
#[derive(Clone, Copy, Default)]
pub struct Changes<'a> {
    pub noise: Option<&'a Noise>,
    /// The choices that are forced.
    pub forced: Option<&'a dyn Forced>,
    /// The fault that is planted.
    pub tamper: Option<&'a dyn Tamper>,
    /// The nodes that are computed, by their places in the graph; `None` where all are.
    pub needed: Option<&'a [bool]>,
}

/// One step being captured. Lives while llama.cpp decodes the step.
pub struct Capture<'a> {
    model: &'a ModelGraph,
    sink: &'a mut dyn Sink,
    changes: Changes<'a>,
    /// Where the weights are f32, whatever the file's format.
    widening: Option<&'a mut Widening>,
    /// Nodes that nobody needs.
    pub skipped: Skipped,
    shape: StepShape,
    /// Nodes that were asked of.
    asked: usize,
    current: Option<NodeId>,
    pub seen: BTreeMap<Site, u32>,
    pub failure: Option<Failure>,
}

impl<'a> Capture<'a> {
    pub fn new(
        model: &'a ModelGraph,
        sink: &'a mut dyn Sink,
        changes: Changes<'a>,
        widening: Option<&'a mut Widening>,
        shape: StepShape,
    ) -> Capture<'a> {
        Capture {
            model,
            sink,
            changes,
            widening,
            skipped: Skipped::default(),
            shape,
            asked: 0,
            current: None,
            seen: BTreeMap::new(),
            failure: None,
        }
    }

    /// Every wanted site that was not seen once.
    pub fn missing(&self) -> Option<(Site, u32)> {
        let specs = self.model.sites.specs().iter().filter(|spec| self.is_needed(spec.reader));
        let mut sites = specs.map(|spec| spec.site(self.shape.step));
        sites.find_map(|site| {
            let found = self.seen.get(&site).copied().unwrap_or(0);
            (found != 1 && self.sink.wants(site)).then_some((site, found))
        })
    }

    fn is_needed(&self, id: NodeId) -> bool {
        self.changes.needed.is_none_or(|needed| needed[id.index()])
    }

    fn wants(&self, spec: &SiteSpec) -> bool {
        let site = spec.site(self.shape.step);
        self.changes.noise.is_some()
            || self.changes.forced.is_some_and(|forced| forced.ids(site).is_some())
            || self.sink.wants(site)
    }

    /// Whether the node is needed: it reads a weight that is widened, or a site whose values are then in place is
    /// wanted. With noise every site is, for all of them are changed.
    fn needs(&mut self, node: Node) -> Result<bool, Failure> {
        let place = self.asked;
        self.asked += 1;
        self.current = None;
        let Some(&asked) = self.model.asked.get(place) else {
            return Err(Failure::Graph(format!("{} is one node too many", node.name())));
        };
        let Some(id) = asked else { return Ok(false) };
        let expected = self.model.graph.node(id);
        if !node.is(&expected.op) {
            let (op, name) = (&expected.op, &expected.name);
            return Err(Failure::Graph(format!("{} instead of {op} {name}", node.name())));
        }
        if !self.is_needed(id) {
            self.skipped.add(node);
            return Ok(false);
        }
        self.current = Some(id);
        if let Some(widening) = &mut self.widening
            && widening.prepare(node, &expected.op).map_err(Failure::Widen)?
        {
            return Ok(true);
        }
        let mut specs = self.model.read_at(id).iter().map(|&at| &self.model.sites.specs()[at]);
        let is_tampered = self.changes.tamper.is_some_and(|tamper| tamper.wants(id));
        Ok(is_tampered || specs.any(|spec| self.wants(spec)))
    }

    fn handle(&mut self, node: Node) -> Result<(), Failure> {
        let Some(id) = self.current else { return Ok(()) };
        let model = self.model;
        if let Some(widening) = &mut self.widening {
            widening.compute(node, &model.graph.node(id).op).map_err(Failure::Widen)?;
        }
        if let Some(tamper) = self.changes.tamper.filter(|tamper| tamper.wants(id)) {
            let whole = node.whole(id);
            let elements = Elements { site: &whole, shape: whole.shape(0, 0), tokens: None };
            let mut result = node.read(&elements);
            if tamper.change(id, self.shape, &mut result) {
                node.write(&elements, &result.data);
            }
        }
        for &at in model.read_at(id) {
            let spec = &model.sites.specs()[at];
            if self.wants(spec) {
                self.site(spec, node)?;
            }
        }
        Ok(())
    }

    /// The tensor of a site, when the node that finds it in place is computed.
    fn site(&mut self, spec: &SiteSpec, node: Node) -> Result<(), Failure> {
        let site = spec.site(self.shape.step);
        let own = if spec.node == spec.reader {
            Some(node)
        } else {
            let sources = &self.model.graph.node(spec.reader).sources;
            let place = sources.iter().position(|&source| source == Some(spec.node));
            place.and_then(|place| node.source(place))
        };
        let own = own.ok_or_else(|| {
            let detail = format!("node {} does not read it", node.name());
            Failure::Node { site, detail }
        })?;
        let shape = spec.shape(self.shape.tokens, self.shape.positions);
        let tokens = self.sink.queries(site);
        let all = Elements { site: spec, shape, tokens: None };
        if !own.has(&all) {
            let detail = format!("node {} has shape {:?}", own.name(), own.ne());
            return Err(Failure::Node { site, detail });
        }
        self.change(site, &all, own);
        if !self.sink.wants(site) {
            return Ok(());
        }
        let tensor = own.read(&Elements { tokens, ..all });
        *self.seen.entry(site).or_default() += 1;
        self.sink.put(site, tensor).map_err(|Stopped| Failure::Stopped)
    }

    /// Adds this run's noise, or forces a choice.
    fn change(&self, site: Site, elements: &Elements<'_>, node: Node) {
        let forced = self.changes.forced.and_then(|forced| forced.ids(site));
        if let Some(forced) = forced.filter(|forced| forced.shape == elements.shape) {
            node.write(elements, &forced.data);
        }
        let Some(noise) = self.changes.noise.filter(|_| !node.is_integer()) else { return };
        let StepShape { tokens, positions, .. } = self.shape;
        let is_first = tokens == positions;
        let extent = Extent { tokens, cells: positions, is_first };
        let place = Place { graph: &self.model.graph, spec: elements.site, extent };
        let mut tensor = node.read(elements);
        if noise.change(site, place, &mut tensor) {
            node.write(elements, &tensor.data);
        }
    }
}

/// llama.cpp's `cb_eval`. `user_data` points to a pointer to the [`Capture`] of the step.
unsafe extern "C" fn on_node(
    tensor: *mut sys::ggml_tensor,
    ask: bool,
    user_data: *mut c_void,
) -> bool {
    // SAFETY: the session sets the slot to a live capture for the time of a decode, else to null.
    let capture = unsafe { (*user_data.cast::<*mut Capture<'_>>()).as_mut() };
    let Some(capture) = capture.filter(|capture| capture.failure.is_none()) else { return false };
    let node = Node(tensor);
    let handled = activity::our_turn(node.name(), || {
        catch_unwind(AssertUnwindSafe(|| {
            if ask { capture.needs(node) } else { capture.handle(node).map(|()| true) }
        }))
    });
    let failure = match handled {
        Ok(Ok(answer)) => return answer,
        Ok(Err(failure)) => failure,
        Err(payload) => {
            let text = payload.downcast_ref::<String>().cloned();
            let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| text.to_string()));
            Failure::Panic(text.unwrap_or_default())
        }
    };
    capture.failure = Some(failure);
    false
}

/// llama.cpp's `abort_callback`: ends the decode once a capture has failed or was stopped, or the run is to end.
unsafe extern "C" fn is_over(user_data: *mut c_void) -> bool {
    // SAFETY: as in `on_node`.
    let capture = unsafe { (*user_data.cast::<*mut Capture<'_>>()).as_ref() };
    capture.is_some_and(|capture| capture.failure.is_some() || activity::interrupted().is_some())
}

pub const HOOKS: Hooks = Hooks { on_node, is_over };
