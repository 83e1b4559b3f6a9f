//! What is known of the reference before an engine is compared with it: the tokens that every side
//! is forced to, the reference's choices, and the floor. Measured once and cached.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::noisy::{Side, decode_in, measure_beside};
use crate::{
    compare::{RowTokens, SiteFilter},
    core::{
        arithmetic::Arithmetic,
        cache::Entry,
        floor::{Floor, SiteFloor},
        progress,
        sink::{Choice, Sink},
        task::{Task, first_position},
        tensor::DType,
    },
    graph::{
        ModelGraph,
        site::{Site, Stage},
    },
    model::{ModelFile, gguf::TensorInfo},
    reference::{
        Changes, Forced, Noise, Precision, Reference, ReferenceError, ReferenceOptions, Routing,
        listed,
    },
};

/// Raised when a change here or in the noise makes cached floors wrong.
const FORMAT_VERSION: u32 = 6;

/// The seed of the first noisy run: any fixed number.
const NOISE_SEED: u64 = 20_261_123;

/// Noisy runs together have at least this many query heads. One token with one head has scores and
/// probs of a few elements, whose noise may be near zero by luck; the largest of several runs is
/// not. A model of 32 heads needs one run, one of a single head gets [`MAX_NOISY_RUNS`].
const NOISY_HEADS: usize = 32;
const MAX_NOISY_RUNS: usize = 8;

/// Noisy runs beside a clean one have together at most this many logits in the prompt's step, 256 MB of them, but are
/// always a few. The rest run beside another clean one.
const MOST_LOGITS: usize = 1 << 26;
const LEAST_BESIDE: usize = 3;

/// The reference's side of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// The token ids of each step: the prompt, then the reference's choices one by one.
    pub steps: Vec<Vec<i32>>,
    /// The reference's choice after each step.
    pub choices: Vec<Option<Choice>>,
    pub floor: Floor,
}

/// What a reference is held to, in place of what it would choose itself.
#[derive(Clone, Copy, Default)]
pub struct Held<'a> {
    /// The tokens after the prompt, as far as they go.
    pub tokens: &'a [i32],
    /// The experts of each token.
    pub routing: Option<&'a Routing>,
}

impl Held<'_> {
    /// Whether the token after a step of a task is the model's own choice.
    pub fn chooses(&self, task: Task<'_>, step: u32) -> bool {
        step < task.decode && self.tokens.len() <= step as usize
    }

    /// The token after a step.
    pub fn token(&self, step: usize, choice: Option<Choice>) -> Option<i32> {
        self.tokens.get(step).copied().or_else(|| Some(choice?.token))
    }
}

/// Runs one reference over the steps: teacher-forced where `forced` has the token, else greedy.
pub fn decode(
    reference: &Reference,
    task: Task<'_>,
    sink: &mut dyn Sink,
    changes: Changes<'_>,
    next: impl FnMut(Option<Choice>) -> Option<i32>,
) -> Result<Vec<Option<Choice>>, ReferenceError> {
    let session = reference.session(task.positions(), task.prompt.len())?;
    decode_in(session, task, sink, changes, &|_| false, next)
}

impl Baseline {
    /// The baseline of a task for an engine of the declared arithmetic, from the cache if it is
    /// there. It has at least the sites that the filter wants, with their rows.
    pub fn of(
        reference: &Reference,
        model: &ModelFile,
        task: Task<'_>,
        arithmetic: &Arithmetic,
        filter: &SiteFilter,
    ) -> Result<Baseline, ReferenceError> {
        Baseline::held(reference, model, task, arithmetic, filter, Held::default())
    }

    /// The same where the reference is held to an engine's own tokens and experts.
    pub fn held(
        reference: &Reference,
        model: &ModelFile,
        task: Task<'_>,
        arithmetic: &Arithmetic,
        filter: &SiteFilter,
        held: Held<'_>,
    ) -> Result<Baseline, ReferenceError> {
        let one = std::slice::from_ref(arithmetic);
        let mut baselines = Baselines { reference, model, task, held, filter }.of(one, None)?;
        Ok(baselines.pop().expect("one was asked for"))
    }

    /// The tokens that are forced after the prompt.
    pub fn forced(&self) -> Vec<i32> {
        self.steps[1..].iter().flatten().copied().collect()
    }
}

/// The steps' tokens from the choices of a greedy run.
pub fn steps_of(task: Task<'_>, held: Held<'_>, choices: &[Option<Choice>]) -> Vec<Vec<i32>> {
    let choices = choices.iter().enumerate().take(task.decode as usize);
    let forced = choices.map_while(|(step, choice)| held.token(step, *choice));
    let decoded = forced.map(|token| vec![token]);
    std::iter::once(task.prompt.to_vec()).chain(decoded).collect()
}

/// The baselines of a task, for engines of several arithmetics.
#[derive(Clone, Copy)]
pub struct Baselines<'a> {
    pub reference: &'a Reference,
    pub model: &'a ModelFile,
    pub task: Task<'a>,
    pub held: Held<'a>,
    /// The sites and rows that are wanted; each baseline has at least these.
    pub filter: &'a SiteFilter,
}

impl Baselines<'_> {
    /// The baseline for each arithmetic, from the cache if it is there. What is recorded is the clean run.
    pub fn of(
        &self,
        arithmetics: &[Arithmetic],
        record: Option<&mut dyn Sink>,
    ) -> Result<Vec<Baseline>, ReferenceError> {
        let known = |entry: Option<Entry>| -> Option<Baseline> {
            serde_json::from_slice(&entry?.read()?).ok()
        };
        let cached = |arithmetic: &Arithmetic| {
            let whole = known(self.entry(arithmetic, false));
            whole.or_else(|| known(self.entry(arithmetic, true)))
        };
        let mut found: Vec<Option<Baseline>> = arithmetics.iter().map(cached).collect();
        let is_missing = |at: &usize| found[*at].is_none();
        let missing: Vec<usize> = (0..arithmetics.len()).filter(is_missing).collect();
        if !missing.is_empty() {
            let wanted: Vec<_> = missing.iter().map(|&at| arithmetics[at].clone()).collect();
            for (at, baseline) in missing.into_iter().zip(self.measure(&wanted, record)?) {
                let entry = self.entry(&arithmetics[at], true);
                if let (Some(entry), Ok(json)) = (entry, serde_json::to_vec(&baseline)) {
                    entry.write(&json);
                }
                found[at] = Some(baseline);
            }
        } else if let (Some(record), Some(Some(known))) = (record, found.first()) {
            progress::begin(
                "recording",
                wanted_sites(self.reference.graph(), self.filter, self.task),
            );
            let needed = needed_nodes(self.reference, self.filter);
            let forced = self.held.routing.map(|routing| routing as &dyn Forced);
            let changes = Changes { forced, needed: needed.as_deref(), ..Changes::default() };
            let mut tokens = known.forced().into_iter();
            decode(self.reference, self.task, record, changes, |_| tokens.next())?;
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// Where the baseline for an arithmetic is cached: of every site, or of those that are wanted.
    fn entry(&self, arithmetic: &Arithmetic, is_own: bool) -> Option<Entry> {
        let Baselines { reference, model, task, held, filter } = self;
        let rounded = weights_are_rounded(model, arithmetic.weights);
        let key = (
            (FORMAT_VERSION, NOISE_SEED, env!("CARGO_PKG_VERSION"), model.hash()),
            (task.prompt, task.decode, arithmetic, rounded),
            (held.tokens, held.routing.map(Routing::hash)),
            filter.prompt_queries(),
            (reference.options().precision, reference.threads(), listed(reference.servers())),
        );
        let key = match filter.key().filter(|_| is_own) {
            None => serde_json::to_vec(&key),
            Some(sites) => serde_json::to_vec(&(key, sites)),
        };
        let key = key.expect("plain data has no reason to fail");
        Entry::new("floors", format!("{}.json", blake3::hash(&key).to_hex())).ok()
    }

    /// Measures the baselines: a clean run, and noisy ones of each arithmetic beside it. A native reference also gets
    /// its distance from the same model in f32 added to its floors.
    pub fn measure(
        &self,
        arithmetics: &[Arithmetic],
        mut record: Option<&mut dyn Sink>,
    ) -> Result<Vec<Baseline>, ReferenceError> {
        let &Baselines { reference, model, task, held, filter } = self;
        let needed = needed_nodes(reference, filter);
        let heads = query_heads(reference.graph());
        let runs = NOISY_HEADS.div_ceil(heads).min(MAX_NOISY_RUNS);
        let noises = |arithmetic: &Arithmetic| {
            let weights_are_rounded = weights_are_rounded(model, arithmetic.weights);
            let arithmetic = arithmetic.clone();
            let noise = Noise { seed: NOISE_SEED, arithmetic, weights_are_rounded };
            (0..runs as u64).map(move |run| Noise { seed: NOISE_SEED + run, ..noise.clone() })
        };
        let noises: Vec<Noise> = arithmetics.iter().flat_map(noises).collect();
        let (graph, positions, batch) = (reference.graph(), task.positions(), task.prompt.len());
        let (mut choices, mut floors) = (Vec::new(), Vec::new());
        let most = MOST_LOGITS / (batch * reference.n_vocab()).max(1);
        for noises in noises.chunks(most.max(LEAST_BESIDE)) {
            let mut sessions = reference.sessions(noises.len() + 1, positions, batch)?.into_iter();
            let clean = sessions.next().expect("one more than there is noise");
            let with_noise =
                |(session, noise)| Side { session, noise: Some(noise), needed: needed.clone() };
            let clean = Side { session: clean, noise: None, needed: needed.clone() };
            let others = sessions.zip(noises).map(with_noise).collect();
            let (task, record) = ((task, held), record.take());
            let (own, measured) = measure_beside(graph, clean, others, task, filter, record)?;
            choices = own;
            floors.extend(measured);
        }
        let own = match reference.options().precision {
            Precision::F32 => None,
            Precision::Native => Some(self.distance_from_f32()?),
        };
        let baseline = |floors: &[Floor]| {
            let mut floor = Floor::default();
            for (&site, &one) in floors.iter().flat_map(|floor| &floor.0) {
                let largest = floor.0.entry(site).or_default();
                *largest = largest.max(one);
            }
            for (site, floor) in &mut floor.0 {
                *floor = floor.plus(own.as_ref().map_or(SiteFloor::default(), |own| own.0[site]));
            }
            Baseline { steps: steps_of(task, held, &choices), choices: choices.clone(), floor }
        };
        Ok(floors.chunks(runs).map(baseline).collect())
    }

    /// How far a native reference is from the same model in f32.
    fn distance_from_f32(&self) -> Result<Floor, ReferenceError> {
        let &Baselines { reference, model, task, held, filter } = self;
        let options = ReferenceOptions { precision: Precision::F32, ..reference.options() };
        let wide = Reference::load(model, options)?;
        let [clean, other] = [reference, &wide].map(|reference| {
            let session = reference.session_beside(1, task.positions(), task.prompt.len())?;
            let needed = needed_nodes(reference, filter);
            Ok::<_, ReferenceError>(Side { session, noise: None, needed })
        });
        let (graph, held_task) = (reference.graph(), (task, held));
        let (_, mut floors) = measure_beside(graph, clean?, vec![other?], held_task, filter, None)?;
        Ok(floors.pop().expect("one run beside the clean one"))
    }
}

/// The nodes of llama.cpp's graph, by their places, that the sites of a filter are made from; `None` where it wants
/// all.
pub fn needed_nodes(reference: &Reference, filter: &SiteFilter) -> Option<Arc<[bool]>> {
    let model = reference.graph();
    filter.wanted_places(model).map(|places| model.needed_for(&places).into())
}

/// How many sites of a task's run a filter wants.
pub fn wanted_sites(model: &ModelGraph, filter: &SiteFilter, task: Task<'_>) -> usize {
    let sites = model.sites.of_run(task.decode + 1);
    sites.into_iter().filter(|&site| filter.wants(site)).count()
}

/// Query heads of the model's attention; 1 where it has none.
fn query_heads(model: &ModelGraph) -> usize {
    let mut specs = model.sites.specs().iter();
    let probs = specs.find(|spec| spec.stage == Stage::Probs);
    probs.map_or(1, |spec| spec.shape(1, 1).get(1).copied().unwrap_or(1).max(1))
}

/// The tokens of a site's rows after a prompt of that length.
pub fn row_tokens(filter: &SiteFilter, prompt: usize, site: Site) -> RowTokens<'_> {
    let chosen = filter.queries(site);
    RowTokens { chosen, ..first_position(prompt, site.step).into() }
}

/// Whether rounding the model's matrices to a type changes any of them.
fn weights_are_rounded(model: &ModelFile, weights: DType) -> bool {
    use llama_cpp_sys_2::GGML_TYPE_F16;
    let is_matrix = |info: &&TensorInfo| info.dims.len() > 1;
    let mut matrices = model.gguf().tensors().iter().filter(is_matrix);
    match weights {
        DType::F64 | DType::F32 => false,
        DType::F16 => matrices.any(|info| info.ggml_type != GGML_TYPE_F16),
        DType::Tf32 | DType::Bf16 => true,
    }
}
