//! A side's run through its graph again, node by node in f64, each from what the side itself recorded.
//!
//! Memory is as ggml has it: a tensor of its own is a root, and what a window shows lies in its root. What
//! was recorded takes the place of what was computed; what was not is computed, with the standard deviation
//! of its error, until the next recording judges both.

mod again;
mod ahead;
mod cleared;
mod errors;
mod partly;
mod parts;
mod places;
mod prefix;
mod probe;
mod reads;
mod removed;
mod roundings;
mod sites;
mod wanted;
mod windows;
mod writes;

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    rc::Rc,
    sync::Arc,
};

pub use again::{AsItIs, Edit, again_in_all, again_in_last, writes_into};
use ahead::Ahead;
pub use cleared::Cleared;
use errors::{errors_of, uncertain};
pub use parts::parts;
use places::Places;
pub use probe::Probe;
pub use reads::Found;
use reads::Reads;
use sites::site_order;

use super::{
    Matrix, RandomSums, Recording,
    expected::{Expected, Spread},
    recording::{Piece, ReplayError, go_on},
    rules::{self, Argument, Call, Steps, Values},
};
use crate::{
    core::tensor::DType,
    graph::{Extent, Graph, Kind, ModelGraph, NodeId, Op, SequenceInputs, Sizes},
    model::{Model, ModelFile},
};

/// What a graph is replayed with.
#[derive(Clone, Copy)]
pub struct GraphRun<'a> {
    pub file: &'a ModelFile,
    pub model: &'a ModelGraph,
    pub inputs: &'a SequenceInputs,
    pub recording: Recording<'a>,
    /// Whether GELU and its kin come from ggml's tables of f16 values.
    pub has_tables: bool,
    /// What clears products without computing them; `None` where each element is computed.
    pub sums: Option<&'a RandomSums>,
    /// The sites that are judged, by their places; `None` means all that were recorded.
    pub only: Option<&'a BTreeSet<usize>>,
    /// Whether the replay ends with the layer of the first operation that is wrong.
    pub until_first: bool,
    /// Parts of the graph that are judged at the same time: as many are in memory.
    pub at_once: usize,
}

impl<'a> GraphRun<'a> {
    /// A run of which every recorded site is judged, and each element computed.
    pub fn new(
        file: &'a ModelFile,
        model: &'a ModelGraph,
        inputs: &'a SequenceInputs,
        recording: Recording<'a>,
    ) -> GraphRun<'a> {
        let (has_tables, sums, only, until_first) = (false, None, None, false);
        let at_once = rayon::current_num_threads();
        GraphRun { file, model, inputs, recording, has_tables, sums, only, until_first, at_once }
    }

    /// A run of a model that our engine runs too, with the model's inputs for its tokens.
    pub fn of(
        model: &'a Model,
        inputs: &'a SequenceInputs,
        recording: Recording<'a>,
    ) -> GraphRun<'a> {
        GraphRun::new(model.file(), &model.graph, inputs, recording)
    }
}

/// The values of a root.
#[derive(Clone, Default)]
pub struct Root {
    /// In ggml's order.
    pub value: Vec<f64>,
    /// The standard deviation of each element's error; `None` where all are known.
    pub spread: Option<Vec<f64>>,
    /// The part of that which single roundings have, as their bounds; empty where it is not told apart.
    pub single: Vec<f64>,
    /// Sites, by their places, that were computed on the way because they were not recorded.
    pub through: BTreeSet<usize>,
    /// Whether it is what the side recorded, though it may be known to some roundings only.
    pub is_recorded: bool,
}

/// The values of every root, by its place in the graph; `None` where they are not known.
pub type Memory = Vec<Option<Rc<Root>>>;

/// A site's result beside what was recorded of it.
pub struct Observed<'a> {
    /// Its place among the sites.
    pub place: usize,
    pub step: u32,
    pub shape: Vec<usize>,
    pub piece: Piece<'a>,
    /// Whether only some of its rows were recorded: nothing is expected of the others.
    pub is_partly: bool,
    /// Sites that it is judged together with.
    pub spanned: BTreeSet<usize>,
    /// Where the result is a choice: how far it is from a right one, in units of what the errors of what it
    /// chooses among allow. Above 0 another choice was as good.
    pub choice: Option<f64>,
}

/// What is given every recorded site, with the memory as its node found it.
pub type Observe<'o, 'a> = &'o mut dyn FnMut(&Machine<'a>, Observed<'a>) -> Result<(), ReplayError>;

/// The replay of one side, step after step.
#[derive(Clone)]
pub struct Machine<'a> {
    pub run: GraphRun<'a>,
    pub memory: Memory,
    pub extent: Extent,
    pub step: u32,
    pub first_position: usize,
    /// The inputs that are token ids.
    token_ids: Rc<BTreeSet<NodeId>>,
    /// Nodes that no rule is known for, by their places.
    pub without_rule: BTreeSet<NodeId>,
    /// The site at each tensor.
    site_at: Rc<Vec<Option<usize>>>,
    /// The site whose operation each node belongs to.
    site_of: Rc<Vec<Option<usize>>>,
    /// The sites whose nodes are computed where others are only read; all, where it is `None`.
    wanted: Option<Rc<BTreeSet<usize>>>,
    /// Of each step the nodes that are computed, where not all sites are judged.
    planned: Option<Rc<Vec<Rc<BTreeSet<NodeId>>>>>,
    /// Caches as tokens find them, by their sites' places, where that is known.
    found: Arc<HashMap<usize, Found>>,
    /// Caches that the tokens of this step do not all read alike, by their roots.
    reads: HashMap<NodeId, Rc<Reads>>,
    /// Caches that were filled before the recording began, and are first seen in this step.
    filled: BTreeSet<NodeId>,
    /// Whether no declared rounding is made.
    is_exact: bool,
    /// Products of later steps.
    ahead: Ahead<'a>,
    /// The part of a product that is computed.
    probe: Option<Probe>,
    /// Results that random sums cleared since they were last asked for.
    cleared: Vec<Cleared>,
}

impl<'a> Machine<'a> {
    pub fn new(run: GraphRun<'a>) -> Machine<'a> {
        let n = run.model.graph.nodes.len();
        let mut site_at = vec![None; n];
        for (place, spec) in run.model.sites.specs().iter().enumerate() {
            site_at[spec.node.index()] = Some(place);
        }
        let site_of = run.model.operations();
        let machine = Machine {
            run,
            memory: vec![None; n],
            extent: Extent { tokens: 0, cells: 0, is_first: true },
            step: 0,
            first_position: 0,
            token_ids: Rc::new(run.model.graph.token_ids()),
            without_rule: BTreeSet::new(),
            site_at: Rc::new(site_at),
            site_of: Rc::new(site_of),
            wanted: None,
            planned: None,
            found: Arc::default(),
            reads: HashMap::new(),
            filled: BTreeSet::new(),
            is_exact: false,
            ahead: Ahead::of(&run.model.graph),
            probe: None,
            cleared: Vec::new(),
        };
        let planned = run.only.map(|places| Rc::new(machine.planned(places)));
        Machine { planned, ..machine }
    }

    /// The same replay, in which the tokens find these caches.
    pub fn with_found(self, found: &Arc<HashMap<usize, Found>>) -> Machine<'a> {
        Machine { found: Arc::clone(found), ..self }
    }

    /// The same replay, in which only what these sites are made from is computed, every element of it.
    pub fn of_sites(run: GraphRun<'a>, places: &BTreeSet<usize>) -> Machine<'a> {
        let machine = Machine::new(GraphRun { sums: None, ..run });
        let planned = run.only.map(|_| Rc::new(machine.planned(places)));
        Machine { wanted: Some(Rc::new(places.clone())), planned, ..machine }
    }

    pub fn graph(&self) -> &'a Graph {
        &self.run.model.graph
    }

    /// Computes the next step; `observe` is given every recorded site.
    pub fn step(&mut self, step: u32, observe: Observe<'_, 'a>) -> Result<(), ReplayError> {
        self.begin(step);
        self.forget();
        for (id, _) in self.graph().iter().filter(|(_, node)| node.kind == Kind::Input) {
            let value = if self.token_ids.contains(&id) {
                let ids = &self.run.recording.steps[step as usize];
                Some(ids.iter().map(|&id| f64::from(id)).collect())
            } else {
                self.run.inputs.at(self.graph(), id, self.extent, self.first_position)
            };
            self.memory[id.index()] = value.map(|value| Rc::new(Root { value, ..Root::default() }));
        }
        self.remove_positions()?;
        self.fill_caches()?;
        let (wanted, done_after) = (self.wanted_nodes(), self.done_after());
        let read = self.sources_of(wanted.iter().flat_map(|wanted| wanted.iter()));
        let touched = self.touched(wanted.as_deref(), &read);
        let is_touched = |id: NodeId| touched.as_ref().is_none_or(|touched| touched.contains(&id));
        for id in self.graph().ids() {
            go_on()?;
            let node = self.graph().node(id);
            for &place in self.run.model.read_at(id) {
                let spec = &self.run.model.sites.specs()[place];
                if spec.node != id && is_touched(self.graph().root(spec.node)) {
                    self.see_window(place, observe)?;
                }
            }
            match node.kind {
                Kind::State if !is_touched(id) => {}
                Kind::State if self.memory[id.index()].is_none() && !self.has_prefix() => {
                    let value = vec![0.0; node.sizes(self.extent).elements()];
                    self.memory[id.index()] = Some(Rc::new(Root { value, ..Root::default() }));
                }
                Kind::Computed if node.op.is_window() => {
                    let own = self.site_at[id.index()];
                    let is_own = |&place: &usize| self.run.model.sites.specs()[place].reader == id;
                    if let Some(place) = own.filter(is_own)
                        && is_touched(self.graph().root(id))
                    {
                        self.see_window(place, observe)?;
                    }
                }
                Kind::Computed if wanted.as_ref().is_none_or(|wanted| wanted.contains(&id)) => {
                    self.node(id, observe)?;
                }
                Kind::Computed if read.contains(&id) => self.read(id)?,
                Kind::Computed => {}
                Kind::Weight | Kind::Input | Kind::Skipped | Kind::State => {}
            }
            for root in &done_after[id.index()] {
                self.memory[root.index()] = None;
            }
        }
        Ok(())
    }

    /// Goes to a step.
    fn begin(&mut self, step: u32) {
        self.step = step;
        self.first_position = self.run.recording.positions(step).start;
        self.extent = self.extent_of(step);
    }

    fn extent_of(&self, step: u32) -> Extent {
        let positions = self.run.recording.positions(step);
        Extent { tokens: positions.len(), cells: positions.end, is_first: positions.start == 0 }
    }

    /// Takes what was recorded of a node, which is not computed.
    fn read(&mut self, id: NodeId) -> Result<(), ReplayError> {
        let Some(place) = self.site_at[id.index()] else { return Ok(()) };
        if self.graph().node(id).window.is_some() {
            return Ok(());
        }
        let recorded = self.recorded(place)?;
        let root = recorded.map(|recorded| self.known(place, &recorded)).transpose()?;
        self.store(id, root);
        Ok(())
    }

    /// Forgets all but the states.
    fn forget(&mut self) {
        for (root, node) in self.memory.iter_mut().zip(&self.run.model.graph.nodes) {
            if node.kind != Kind::State {
                *root = None;
            }
        }
    }

    /// Computes a node, judges it by what was recorded, and stores either.
    fn node(&mut self, id: NodeId, observe: Observe<'_, 'a>) -> Result<(), ReplayError> {
        let node = self.graph().node(id);
        if node.op == Op::SetRows {
            self.set_rows(id);
            return Ok(());
        }
        let own = self.site_at[id.index()];
        if let Some(place) = own.filter(|&place| self.is_partly(place)) {
            return self.see_rows(id, place, observe);
        }
        let recorded = match own {
            Some(place) => self.recorded(place)?,
            None => None,
        };
        if let (Some(place), Some(recorded)) = (own, &recorded)
            && let Some(root) = self.cleared(id, place, recorded)?
        {
            self.store(id, Some(root));
            return Ok(());
        }
        let computed = self.compute_in_turn(id)?;
        if computed.is_none() {
            self.without_rule_if_fed(id);
        }
        let mut through = self.through(id);
        let root = match (computed, recorded, own) {
            (Some(expected), Some(recorded), Some(place)) => {
                let mut root = self.known(place, &recorded)?;
                let spec = &self.run.model.sites.specs()[place];
                let (mut expected, choice) = self.held_to_choice(id, expected, &root)?;
                self.leave_out_unseen(id, &mut expected, &mut root);
                let shape = self.shape(spec);
                let mut piece = self.piece(spec, expected, recorded)?;
                if let Some(exact) = self.more_exact(place, &piece.captured)? {
                    piece.expected = exact;
                }
                if piece.has_no_number() && self.has_no_number(id) {
                    piece.leave_out_no_numbers();
                }
                let spanned = through;
                let step = self.step;
                let is_partly = false;
                observe(self, Observed { place, step, shape, piece, is_partly, spanned, choice })?;
                Some(root)
            }
            (None, Some(recorded), Some(place)) => Some(self.known(place, &recorded)?),
            (Some(expected), _, _) => {
                through.extend(own);
                let is_copy = node.op.is_layout() && !expected.rounding.tells_more();
                Some(match expected.spread {
                    // Numbers that are copied as they are known.
                    Spread::None if is_copy && expected.single.is_empty() => {
                        Root { value: expected.value, through, ..Root::default() }
                    }
                    _ => Root { through, ..uncertain(expected) },
                })
            }
            (None, _, _) => None,
        };
        self.store(id, root);
        Ok(())
    }

    /// A node that is not computed though all of its sources are there has no rule.
    pub(super) fn without_rule_if_fed(&mut self, id: NodeId) {
        let sources = self.graph().node(id).sources.iter().flatten();
        let known = |&source: &NodeId| {
            let root = self.graph().root(source);
            self.graph().node(root).kind == Kind::Weight || self.memory[root.index()].is_some()
        };
        if sources.into_iter().all(known) {
            self.without_rule.insert(id);
        }
    }

    /// Whether a source that was computed holds what is no number.
    fn has_no_number(&self, id: NodeId) -> bool {
        let sources = self.graph().node(id).sources.iter().flatten();
        let mut roots = sources.map(|&source| self.graph().root(source));
        roots.any(|root| {
            let is_data = matches!(self.graph().node(root).kind, Kind::Computed | Kind::State);
            let known = self.memory[root.index()].as_ref().filter(|_| is_data);
            known.is_some_and(|root| root.value.iter().any(|x| !x.is_finite()))
        })
    }

    /// The sites that were computed on the way to a node's sources.
    pub(super) fn through(&self, id: NodeId) -> BTreeSet<usize> {
        let sources = self.graph().node(id).sources.iter().flatten();
        let roots = sources.filter_map(|&s| self.memory[self.graph().root(s).index()].as_ref());
        roots.flat_map(|root| root.through.iter().copied()).collect()
    }

    /// What a node must give; `None` where it has no rule, or a source is not known.
    pub fn compute(
        &self,
        id: NodeId,
        edit: &dyn Edit,
    ) -> Result<Option<Expected<'a>>, ReplayError> {
        if self.is_by_token(id, edit) {
            return self.compute_by_token(id, edit);
        }
        let Some(call) = self.call(id, edit)? else { return Ok(None) };
        let result = rules::compute(&call)?;
        Ok(result.map(|result| self.passed_on(id, edit, result)))
    }

    /// A node as it is about to be computed; `None` where a source is not known.
    fn call(&self, id: NodeId, edit: &dyn Edit) -> Result<Option<Call<'_, 'a>>, ReplayError> {
        let node = self.graph().node(id);
        let mut arguments = Vec::with_capacity(node.sources.len());
        for source in &node.sources {
            match source {
                None => arguments.push(None),
                Some(source) => match self.argument(*source)? {
                    Some(argument) => arguments.push(Some(argument)),
                    None => return Ok(None),
                },
            }
        }
        let mut call = Call {
            op: node.op,
            params: node.params(self.extent),
            ne: node.sizes(self.extent).ne,
            arguments,
            rounding: self.rounding(id),
            has_tables: self.run.has_tables,
            position: None,
            steps: Steps::default(),
            only: self.probe.as_ref().filter(|probe| probe.product == id).map(Probe::outputs),
        };
        edit.change(self, id, &mut call)?;
        self.declared(id).change(self, id, &mut call)?;
        Ok(Some(call))
    }

    /// A result as its node passes it on.
    fn passed_on(&self, id: NodeId, edit: &dyn Edit, mut result: Expected<'a>) -> Expected<'a> {
        self.tell_apart(id, &mut result);
        self.declared(id).result(self, id, &mut result);
        edit.result(self, id, &mut result);
        result
    }

    /// A source's values, dense.
    pub fn argument(&self, id: NodeId) -> Result<Option<Argument<'_, 'a>>, ReplayError> {
        let (graph, node) = (self.graph(), self.graph().node(id));
        let sizes = node.sizes(self.extent);
        let root_id = graph.root(id);
        if graph.node(root_id).kind == Kind::Weight {
            return self.weight(root_id, id, sizes).map(Some);
        }
        let Some(root) = &self.memory[root_id.index()] else { return Ok(None) };
        if node.window.is_none() {
            let value = Cow::Borrowed(&root.value[..]);
            let spread = root.spread.as_deref().map(Cow::Borrowed);
            return Ok(Some(Argument { ne: sizes.ne, values: Values::Dense { value, spread } }));
        }
        let Some(places) = Places::of(node.format.size(), &sizes) else { return Ok(None) };
        let value = Cow::Owned(places.gathered(&root.value));
        let spread = root.spread.as_ref().map(|spread| Cow::Owned(places.gathered(spread)));
        Ok(Some(Argument { ne: sizes.ne, values: Values::Dense { value, spread } }))
    }

    fn weight(
        &self,
        root: NodeId,
        id: NodeId,
        sizes: Sizes,
    ) -> Result<Argument<'_, 'a>, ReplayError> {
        let graph = self.graph();
        let arithmetic = self.run.recording.arithmetic;
        let root_node = graph.node(root);
        let is_vector = root_node.ne[1..].iter().all(|size| size.fixed == 1);
        let own = arithmetic.vectors.unwrap_or(DType::F32);
        let dtype = if is_vector { own } else { arithmetic.weights };
        let matrix = Matrix::of_file(self.run.file, &root_node.name, dtype)?;
        let node = graph.node(id);
        let same = node.window.is_none_or(|_| sizes.ne == root_node.sizes(self.extent).ne);
        if same {
            return Ok(Argument { ne: sizes.ne, values: Values::Weight(matrix) });
        }
        let all: Vec<f64> = matrix.flat()?.into_iter().map(f64::from).collect();
        let places = Places::of(node.format.size().or(Some(4)), &sizes);
        let value = places.map_or_else(Vec::new, |places| places.gathered(&all));
        let value = Cow::Owned(value);
        Ok(Argument { ne: sizes.ne, values: Values::Dense { value, spread: None } })
    }
}
