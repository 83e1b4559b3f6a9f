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

/// Prompts: one token, one more than a warp, and more than a block of 256. The last is run in one order
/// only: our own checks find a race in whichever order.
const PROMPTS: [usize; 3] = [1, 33, 260];
const DECODE: usize = 2;

/// A run of the engine: storage, prompt, and what it is called.
struct Case {
    storage: DType,
    steps: Vec<Vec<i32>>,
    shape: String,
}

impl Case {
    fn is_long(&self) -> bool {
        self.steps[0].len() == PROMPTS[2]
    }
}

/// Runs a contract's kernel in each order; it ends with the first finding. A launch here is a step of
/// the engine.
pub fn check_contract(contract: &Contract, pass: &Pass<'_>) -> Result<Outcome, KernelCheckError> {
    let model = model(contract)?;
    let file = contract.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut outcome = Outcome { name: file.clone(), launches: 0, finding: None };
    let cases = cases(contract, &model);
    let mut first: Vec<Spool> = Vec::new();
    for &order in pass.orders {
        let is_first = order == pass.orders[0];
        let all = cases.iter().enumerate();
        for (index, case) in all.filter(|(_, case)| is_first || !case.is_long()) {
            (pass.announce)(&case.shape, order);
            outcome.launches += case.steps.len();
            let found = |kind, text| Finding { kind, text, shape: case.shape.clone(), order };
            let spool = match record(&model, contract, case, pass, order) {
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
                None => judged(&model, contract, case, &spool)?.map(|text| (Kind::Numbers, text)),
                Some(first) => moved(&model, first, &spool)?.map(|text| (Kind::Order, text)),
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

/// A model of one layer whose pairs are the contract's, with heads of more elements than a warp.
fn model(contract: &Contract) -> Result<Model, KernelCheckError> {
    let name = match contract.pairs {
        Some(RopePairs::Norm) => "tiny-llama",
        _ => "tiny-qwen2",
    };
    let (n_head, head_dim) = (4, 40);
    let spec =
        Spec { n_layer: 1, n_embd: n_head * head_dim, n_head, head_dim, ..Spec::preset(name)? };
    let write = |source| KernelCheckError::Write { path: std::env::temp_dir(), source };
    let folder = tempfile::tempdir().map_err(write)?;
    let path = folder.path().join("model.gguf");
    synth::write(&spec, &path, &mut |_| {})?;
    // It is mapped: its file may go.
    Ok(run::open(&path)?)
}

fn cases(contract: &Contract, model: &Model) -> Vec<Case> {
    let n_vocab = model.config.n_vocab;
    let id = |position: usize| (position * 37 % n_vocab) as i32;
    let mut cases = Vec::new();
    for prompt in PROMPTS {
        for storage in contract.entries.iter().map(|(storage, _)| *storage) {
            let decoded = (prompt..prompt + DECODE).map(|position| vec![id(position)]);
            let steps = std::iter::once((0..prompt).map(id).collect()).chain(decoded).collect();
            let shape = format!("{storage}, prompt of {prompt} and {DECODE} tokens");
            cases.push(Case { storage, steps, shape });
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
    model: &Model,
    contract: &Contract,
    case: &Case,
    pass: &Pass<'_>,
    order: ThreadOrder,
) -> Result<Spool, KernelCheckError> {
    let options = EngineOptions {
        storage: case.storage,
        attention: AttentionVariant::default(),
        faults: Faults::default(),
        positions: case.steps.iter().map(Vec::len).sum(),
        tokens: case.steps[0].len(),
    };
    let device = Box::new(HostDevice::new(pass.options(order))?);
    let kernels = KernelSet::embedded().with_contract(contract.clone());
    let mut engine = Engine::new(device, model, &kernels, options)?;
    let mut kept = Kept { spool: Spool::new()?, recomputed: contract.recomputed() };
    run_engine(&mut engine, &case.steps, &mut kept)?;
    Ok(kept.spool.finished()?)
}

/// The first operation that is wrong by its own inputs.
fn judged(
    model: &Model,
    contract: &Contract,
    case: &Case,
    spool: &Spool,
) -> Result<Option<String>, KernelCheckError> {
    let arithmetic = Arithmetic::engine(case.storage);
    let (steps, attention) = (&case.steps[..], contract.attending());
    let recording = Recording { tensors: spool, steps, arithmetic: &arithmetic, attention };
    let inputs = model.inputs(steps);
    let verdict = judge(GraphRun::of(model, &inputs, recording))?;
    Ok(verdict.judged.iter().find(|judged| judged.is_guilty()).map(wrong))
}

fn wrong(judged: &Judged) -> String {
    let name = judged.operation.result();
    match &judged.worst {
        Some(worst) => format!(
            "step {} {name}{:?} is {:.8}, and {:.8} by its formula in f64",
            worst.step, worst.index, worst.recorded, worst.expected
        ),
        None => format!("{name} is not its formula's in f64"),
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
                "{site} {index:?} is {:e}, but {:e} in another order of the threads",
                now.data[flat], before.data[flat]
            )));
        }
    }
    Ok(None)
}
