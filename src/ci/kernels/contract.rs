//! A kernel with a contract: in an engine of a random model, so that it is fed and called as in any run,
//! its operation judged in f64 from its own inputs.

use crate::{
    ci::kernels::{
        KernelCheckError,
        run::{Finding, Kind, Outcome, Pass, failed},
    },
    core::{
        arithmetic::Arithmetic,
        sink::{Sink, Stopped},
        tensor::{DType, Tensor},
    },
    diagnosis::replay::{GraphRun, Judged, Recording, judge},
    engine::{
        AttentionVariant, Engine, EngineError, EngineOptions,
        contract::Contract,
        device::{
            DeviceError,
            host::{HostDevice, ThreadOrder},
        },
        fault::Faults,
        kernels::KernelSet,
    },
    graph::site::{Site, Stage},
    model::{
        Model, RopePairs,
        synth::{self, Spec},
    },
    run::{self, run_engine},
    trace::recording::{Recorded, Spool},
};

/// Prompts: one token, one more than a warp, and more than a block of 256; and such that a decoded token is the
/// last of a warp, a tile or a page of 32, and of 256.
const PROMPTS: [usize; 5] = [1, 31, 33, 255, 260];
/// Longer ones are run in one order only: our own checks find a race in whichever order.
const SHORT: usize = 64;
const DECODE: usize = 2;
/// The mean of the biases that make every score far below 0, where no exponential has a value without the
/// maximum.
const SCORE_BIAS: f32 = 6.0;

/// A run of the engine: model, storage, prompt, and what it is called.
struct Case<'m> {
    model: &'m Model,
    storage: DType,
    steps: Vec<Vec<i32>>,
    shape: String,
}

impl Case<'_> {
    fn is_long(&self) -> bool {
        self.steps[0].len() > SHORT
    }
}

/// Runs a contract's kernel in each order; it ends with the first finding. A launch here is a step of
/// the engine.
pub fn check_contract(contract: &Contract, pass: &Pass<'_>) -> Result<Outcome, KernelCheckError> {
    let [model, low] = [0.0, SCORE_BIAS].map(|score_bias| model(contract, score_bias));
    let (model, low) = (model?, low?);
    let file = contract.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut outcome = Outcome { name: file.clone(), launches: 0, finding: None };
    let mut cases = cases(contract, (&model, ""), &PROMPTS);
    cases.extend(self::cases(contract, (&low, ", all scores far below 0"), &[33]));
    let mut first: Vec<Spool> = Vec::new();
    for &order in pass.orders {
        let is_first = order == pass.orders[0];
        let all = cases.iter().enumerate();
        for (index, case) in all.filter(|(_, case)| is_first || !case.is_long()) {
            (pass.announce)(&case.shape, order);
            outcome.launches += case.steps.len();
            let found = |kind, text| Finding { kind, text, shape: case.shape.clone(), order };
            let spool = match record(contract, case, pass, order) {
                Err(KernelCheckError::Engine(EngineError::Device(DeviceError::Kernel {
                    file,
                    message,
                }))) => {
                    let (kind, text) = failed(&file, &message);
                    outcome.finding = Some(found(kind, text));
                    return Ok(outcome);
                }
                spool => spool?,
            };
            let wrong = match first.get(index) {
                None => judged(contract, case, &spool)?.map(|text| (Kind::Numbers, text)),
                Some(first) => moved(case.model, first, &spool)?.map(|text| (Kind::Order, text)),
            };
            // Another prompt may show the access behind wrong numbers.
            if let (Some((kind, text)), None) = (wrong, &outcome.finding) {
                outcome.finding = Some(found(kind, format!("{file}: {}: {text}", case.storage)));
            }
            if first.len() == index {
                first.push(spool);
            }
        }
        if outcome.finding.is_some() {
            break;
        }
    }
    Ok(outcome)
}

/// A model of one layer whose pairs are the contract's, with heads of more elements than a warp, and three query
/// heads for each KV head.
fn model(contract: &Contract, score_bias: f32) -> Result<Model, KernelCheckError> {
    let name = match contract.pairs {
        Some(RopePairs::Norm) => "tiny-llama",
        _ => "tiny-qwen2",
    };
    let preset = Spec::preset(name)?;
    let (n_head, n_head_kv, head_dim) = (6, 2, 40);
    let spec = Spec {
        n_layer: 1,
        n_embd: n_head * head_dim,
        n_head,
        n_head_kv,
        head_dim,
        qkv_bias: preset.qkv_bias || score_bias != 0.0,
        score_bias,
        // Slow pairs keep the angle between such a query and key.
        rope_theta: if score_bias == 0.0 { preset.rope_theta } else { 1e8 },
        ..preset
    };
    let write = |source| KernelCheckError::Write { path: std::env::temp_dir(), source };
    let folder = tempfile::tempdir().map_err(write)?;
    let path = folder.path().join("model.gguf");
    synth::write(&spec, &path, &mut |_| {})?;
    // It is mapped: its file may go.
    Ok(run::open(&path)?)
}

fn cases<'m>(
    contract: &Contract,
    (model, what): (&'m Model, &str),
    prompts: &[usize],
) -> Vec<Case<'m>> {
    let n_vocab = model.config.n_vocab;
    let id = |position: usize| (position * 37 % n_vocab) as i32;
    let mut cases = Vec::new();
    for &prompt in prompts {
        for storage in contract.entries.iter().map(|(storage, _)| *storage) {
            let decoded = (prompt..prompt + DECODE).map(|position| vec![id(position)]);
            let steps = std::iter::once((0..prompt).map(id).collect()).chain(decoded).collect();
            let shape = format!("{storage}, prompt of {prompt} and {DECODE} tokens{what}");
            cases.push(Case { model, storage, steps, shape });
        }
    }
    cases
}

/// What the engine computes, without what is recomputed for the report.
struct Kept {
    spool: Spool,
    recomputed: Vec<Stage>,
}

impl Sink for Kept {
    fn wants(&self, site: Site) -> bool {
        !self.recomputed.contains(&site.stage)
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        self.spool.put(site, tensor)
    }
}

fn record(
    contract: &Contract,
    case: &Case<'_>,
    pass: &Pass<'_>,
    order: ThreadOrder,
) -> Result<Spool, KernelCheckError> {
    let options = EngineOptions {
        storage: case.storage,
        attention: AttentionVariant::default(),
        faults: Faults::default(),
        positions: case.steps.iter().map(Vec::len).sum(),
        tokens: case.steps[0].len(),
        depth: None,
    };
    let device = Box::new(HostDevice::new(pass.options(order))?);
    let kernels = KernelSet::embedded().with_contract(contract.clone());
    let mut engine = Engine::new(device, case.model, &kernels, options)?;
    let mut kept = Kept { spool: Spool::new()?, recomputed: contract.recomputed() };
    run_engine(&mut engine, &case.steps, &mut kept)?;
    Ok(kept.spool.finished()?)
}

/// The first operation that is wrong by its own inputs.
fn judged(
    contract: &Contract,
    case: &Case<'_>,
    spool: &Spool,
) -> Result<Option<String>, KernelCheckError> {
    let arithmetic = Arithmetic::engine(case.storage);
    let (steps, attention) = (&case.steps[..], contract.attending());
    let recording = Recording { tensors: spool, steps, arithmetic: &arithmetic, attention };
    let verdict = judge(GraphRun::of(case.model, case.model.inputs(), recording))?;
    Ok(verdict.judged.iter().find(|judged| judged.is_guilty()).map(wrong))
}

fn wrong(judged: &Judged) -> String {
    let name = judged.operation.result();
    match &judged.worst {
        Some(worst) => format!(
            "step {} {name}{:?} is {:.8}, and {:.8} by its formula in f64",
            worst.step, worst.index, worst.recorded, worst.expected
        ),
        None => format!("{name} differs from its formula in f64"),
    }
}

/// The first element that another order of the threads changes.
fn moved(model: &Model, first: &Spool, now: &Spool) -> Result<Option<String>, KernelCheckError> {
    for site in model.config.sites(1 + DECODE as u32) {
        let (Some(before), Some(now)) = (first.tensor(site)?, now.tensor(site)?) else { continue };
        let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
        if let Some(flat) = before.data.iter().zip(&now.data).position(differs) {
            let index = Tensor::unravel(flat, &now.shape);
            return Ok(Some(format!(
                "{site} {index:?} is {:e}, but {:e} in another thread order",
                now.data[flat], before.data[flat]
            )));
        }
    }
    Ok(None)
}
