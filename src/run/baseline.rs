//! What is known of the reference before an engine is compared with it: the tokens that every side
//! is forced to, the reference's choices, and the floor. Measured once and cached.

use std::{sync::Arc, sync::mpsc, thread};

use serde::{Deserialize, Serialize};

use crate::{
    compare::{Aligner, RowTokens, SiteFilter, channel},
    core::{
        activity,
        arithmetic::Arithmetic,
        cache::Entry,
        floor::{Floor, SiteFloor},
        progress,
        sink::{Choice, Sink, Stopped},
        task::{Task, first_position},
        tensor::DType,
    },
    graph::{
        Extent, ModelGraph, SiteList,
        site::{Site, Stage},
    },
    model::{ModelFile, gguf::TensorInfo},
    reference::{
        Amplitude, Changes, Noise, Place, Precision, Reference, ReferenceError, ReferenceOptions,
        Routing, RoutingSink, Session, is_choice,
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

/// The reference's side of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// The token ids of each step: the prompt, then the reference's choices one by one.
    pub steps: Vec<Vec<i32>>,
    /// The reference's choice after each step.
    pub choices: Vec<Option<Choice>>,
    pub floor: Floor,
}

/// What a reference is held to, in the place of what it would choose itself.
#[derive(Clone, Copy, Default)]
pub struct Held<'a> {
    /// The tokens after the prompt, as far as they go.
    pub tokens: &'a [i32],
    /// The experts of each token.
    pub routing: Option<&'a Routing>,
}

impl Held<'_> {
    /// Whether the token after a step of a task is the model's own choice.
    fn chooses(&self, task: Task<'_>, step: u32) -> bool {
        step < task.decode && self.tokens.len() <= step as usize
    }

    /// The token after a step.
    fn token(&self, step: usize, choice: Option<Choice>) -> Option<i32> {
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

/// The same, in which some steps are computed to their logits whatever else is needed.
fn decode_in(
    mut session: Session<'_>,
    task: Task<'_>,
    sink: &mut dyn Sink,
    changes: Changes<'_>,
    chooses: &dyn Fn(u32) -> bool,
    mut next: impl FnMut(Option<Choice>) -> Option<i32>,
) -> Result<Vec<Option<Choice>>, ReferenceError> {
    let mut tokens = task.prompt.to_vec();
    let mut choices = Vec::new();
    for step in 0..=task.decode {
        let needed = changes.needed.filter(|_| !chooses(step));
        let choice = session.step_with(step, &tokens, sink, Changes { needed, ..changes })?;
        choices.push(choice);
        match next(choice) {
            Some(token) => tokens = vec![token],
            None => break,
        }
    }
    Ok(choices)
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
        let rounded = weights_are_rounded(model, arithmetic.weights);
        let entry = |sites: Option<_>| {
            let key = (
                (FORMAT_VERSION, NOISE_SEED, env!("CARGO_PKG_VERSION"), model.hash()),
                (task.prompt, task.decode, arithmetic, rounded),
                (held.tokens, held.routing.map(Routing::hash)),
                filter.prompt_queries(),
                (reference.options().precision, reference.threads()),
            );
            let key = match sites {
                None => serde_json::to_vec(&key),
                sites => serde_json::to_vec(&(key, sites)),
            };
            let key = key.expect("plain data has no reason to fail");
            Entry::new("floors", format!("{}.json", blake3::hash(&key).to_hex())).ok()
        };
        let known = |entry: Option<&Entry>| serde_json::from_slice(&entry?.read()?).ok();
        let (whole, own) = (entry(None), entry(filter.key()));
        let cached = known(whole.as_ref());
        let cached = cached.or_else(|| known(own.as_ref().filter(|_| !filter.wants_all())));
        if let Some(baseline) = cached {
            return Ok(baseline);
        }
        let baseline = Baseline::measure(reference, model, task, arithmetic, filter, held)?;
        if let (Some(entry), Ok(json)) = (own, serde_json::to_vec(&baseline)) {
            entry.write(&json);
        }
        Ok(baseline)
    }

    /// Measures the baseline: a clean run and noisy ones, side by side. A native reference also
    /// gets its distance from the same model in f32 added to its floor.
    pub fn measure(
        reference: &Reference,
        model: &ModelFile,
        task: Task<'_>,
        arithmetic: &Arithmetic,
        filter: &SiteFilter,
        held: Held<'_>,
    ) -> Result<Baseline, ReferenceError> {
        let noise = Noise {
            seed: NOISE_SEED,
            arithmetic: arithmetic.clone(),
            weights_are_rounded: weights_are_rounded(model, arithmetic.weights),
        };
        let heads = query_heads(reference.graph());
        let runs = NOISY_HEADS.div_ceil(heads).min(MAX_NOISY_RUNS) as u64;
        let seeds = (0..runs).map(|run| NOISE_SEED + run);
        let noises: Vec<Noise> = seeds.map(|seed| Noise { seed, ..noise.clone() }).collect();
        let noisy: Vec<_> = noises.iter().map(|noise| (reference, Some(noise))).collect();
        let graph = Arc::clone(reference.graph());
        let amplitude = |site: Site, tokens: usize, positions: usize| {
            let spec = graph.sites.get(site).expect("a site of this graph");
            let extent = Extent { tokens, cells: positions, is_first: tokens == positions };
            noise.amplitude(Place { graph: &graph.graph, spec, extent })
        };
        let mut baseline = distance(reference, &noisy, (task, held), filter, &amplitude)?;
        if reference.options().precision == Precision::Native {
            let no_noise = |_, _, _| Amplitude { relative: 0.0, additive: 0.0 };
            let options = ReferenceOptions { precision: Precision::F32, ..reference.options() };
            let wide = Reference::load(model, options)?;
            let own = distance(reference, &[(&wide, None)], (task, held), filter, &no_noise)?;
            for (site, floor) in &mut baseline.floor.0 {
                *floor = floor.plus(own.floor.0[site]);
            }
        }
        Ok(baseline)
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

/// Runs `clean` and other references side by side over the same tokens, the greedy ones of
/// `clean`, and measures the largest distance site by site.
fn distance(
    clean: &Reference,
    others: &[(&Reference, Option<&Noise>)],
    (task, held): (Task<'_>, Held<'_>),
    filter: &SiteFilter,
    amplitude: &dyn Fn(Site, usize, usize) -> Amplitude,
) -> Result<Baseline, ReferenceError> {
    let needed = needed_nodes(clean, filter);
    let needed = needed.as_deref();
    let own = if held.routing.is_some() { None } else { routing(clean, task, held, needed)? };
    let routing = held.routing.or(own.as_ref());
    let wanted = Arc::new(filter.clone());
    let (mut clean_sink, clean_side) = channel(Arc::clone(&wanted), 0);
    let (sessions, positions, batch) = (others.len() + 1, task.positions(), task.prompt.len());
    thread::scope(|scope| {
        let mut other_runs = Vec::new();
        let mut other_sides = Vec::new();
        let mut token_senders = Vec::new();
        for &(other, noise) in others {
            let (mut sink, side) = channel(Arc::clone(&wanted), 0);
            let (token_sender, tokens) = mpsc::channel();
            other_sides.push(Aligner::patient(side));
            token_senders.push(token_sender);
            other_runs.push(scope.spawn(move || {
                let session = other.session_of(sessions, positions, batch)?;
                let needed = needed_nodes(other, filter);
                let needed = needed.as_deref();
                let changes = Changes { noise, routing, needed, ..Changes::default() };
                decode_in(session, task, &mut sink, changes, &|_| false, |_| tokens.recv().ok())
            }));
        }
        let clean_run = scope.spawn(move || {
            let session = clean.session_of(sessions, positions, batch)?;
            let changes = Changes { routing: held.routing, needed, ..Changes::default() };
            let chooses = |step| held.chooses(task, step);
            let mut step = 0;
            decode_in(session, task, &mut clean_sink, changes, &chooses, |choice| {
                let token = held.token(step, choice)?;
                step += 1;
                let sent = token_senders.iter().all(|sender| sender.send(token).is_ok());
                sent.then_some(token)
            })
        });
        let mut clean_side = Aligner::patient(clean_side);
        let mut floor = Floor::default();
        let list = SiteList::from(&clean.graph().sites);
        let sites = clean.graph().sites.of_run(task.decode + 1);
        let sites: Vec<Site> = sites.into_iter().filter(|&site| filter.wants(site)).collect();
        progress::begin("measuring the floor", sites.len());
        for site in sites {
            progress::advance(site);
            let clean = clean_side.next(site);
            if activity::interrupted().is_some() {
                return Err(Stopped.into());
            }
            let Some(clean) = clean else { break };
            let tokens = row_tokens(filter, task.prompt.len(), site);
            let tokens = RowTokens { axes: Some(list.axes(site)), ..tokens };
            let step_tokens = if site.step == 0 { task.prompt.len() } else { 1 };
            let amplitude = amplitude(site, step_tokens, task.prompt.len() + site.step as usize);
            let measured = other_sides.iter_mut().map(|side| {
                let other = side.next(site)?;
                Some(SiteFloor::measure(site, &other, &clean, tokens, amplitude))
            });
            let measured = measured.collect::<Option<Vec<_>>>();
            if activity::interrupted().is_some() {
                return Err(Stopped.into());
            }
            let Some(measured) = measured else { break };
            let largest = measured.into_iter().reduce(SiteFloor::max).unwrap_or_default();
            floor.0.insert(site, largest);
        }
        drop((clean_side, other_sides));
        let joined = |run: thread::ScopedJoinHandle<'_, Result<_, ReferenceError>>| {
            run.join().unwrap_or_else(|_| Err(ReferenceError::Panic("a reference run".into())))
        };
        let choices = joined(clean_run)?;
        other_runs.into_iter().try_for_each(|run| joined(run).map(drop))?;
        let steps = steps_of(task, held, &choices);
        Ok(Baseline { steps, choices, floor })
    })
}

/// The choices of a clean run, where the model makes any: a noisy run is forced to them, as an expert less
/// is no rounding.
fn routing(
    clean: &Reference,
    task: Task<'_>,
    held: Held<'_>,
    needed: Option<&[bool]>,
) -> Result<Option<Routing>, ReferenceError> {
    let graph = clean.graph();
    if !graph.sites.of_run(1).into_iter().any(|site| is_choice(graph, site)) {
        return Ok(None);
    }
    let mut sink = RoutingSink { model: graph, routing: Routing::default() };
    let session = clean.session(task.positions(), task.prompt.len())?;
    let (changes, chooses) =
        (Changes { needed, ..Changes::default() }, |step| held.chooses(task, step));
    let mut step = 0;
    decode_in(session, task, &mut sink, changes, &chooses, |choice| {
        step += 1;
        held.token(step - 1, choice)
    })?;
    Ok(Some(sink.routing))
}

/// The nodes of llama.cpp's graph, by their places, that the sites of a filter are made from; `None` where it wants
/// all.
pub fn needed_nodes(reference: &Reference, filter: &SiteFilter) -> Option<Arc<[bool]>> {
    let model = reference.graph();
    filter.wanted_places(model).map(|places| model.needed_for(&places).into())
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
