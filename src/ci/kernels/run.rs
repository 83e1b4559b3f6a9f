//! Runs the subjects and brings their findings together.

use std::fmt;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    ci::kernels::{
        KernelCheckError,
        cases::{Bench, Output},
        contract::check_contract,
        subjects::{Case, Subject},
    },
    core::activity::{self, Death, Journal},
    engine::{
        contract::Contract,
        device::{
            Device, DeviceError,
            host::{HostDevice, HostOptions, ThreadOrder},
        },
        kernels::KernelSet,
    },
};

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    Race,
    Bounds,
    Uninitialised,
    ReadOnly,
    Undefined,
    /// Threads that do not all come to a barrier or a warp intrinsic.
    Divergence,
    /// Numbers other than the f64 reference's.
    Numbers,
    /// Numbers that change with the order of the threads.
    Order,
    /// The end of the process that ran it, or a launch that does not come back.
    Crash,
    /// Anything else that a launch can fail with.
    Launch,
}

impl Kind {
    pub const ALL: [Kind; 10] = [
        Kind::Race,
        Kind::Bounds,
        Kind::Uninitialised,
        Kind::ReadOnly,
        Kind::Undefined,
        Kind::Divergence,
        Kind::Numbers,
        Kind::Order,
        Kind::Crash,
        Kind::Launch,
    ];

    /// The kind of a failed launch, by the first words of its report.
    fn of(message: &str) -> Kind {
        let kinds = [
            ("race: ", Kind::Race),
            ("out of bounds: ", Kind::Bounds),
            ("uninitialised: ", Kind::Uninitialised),
            ("read-only: ", Kind::ReadOnly),
            ("undefined behaviour: ", Kind::Undefined),
            ("divergence: ", Kind::Divergence),
            ("shuffle reads lane", Kind::Divergence),
            ("warp intrinsic", Kind::Divergence),
        ];
        let found = kinds.into_iter().find(|(words, _)| message.contains(words));
        found.map_or(Kind::Launch, |(_, kind)| kind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Race => "race",
            Kind::Bounds => "bounds",
            Kind::Uninitialised => "uninitialised",
            Kind::ReadOnly => "read-only",
            Kind::Undefined => "undefined behaviour",
            Kind::Divergence => "divergence",
            Kind::Numbers => "numbers",
            Kind::Order => "thread order",
            Kind::Crash => "crash",
            Kind::Launch => "launch",
        })
    }
}

/// The first thing that is wrong with a kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    pub kind: Kind,
    /// The report: file, entry, block, thread, lines.
    pub text: String,
    /// The launch, such as `f16, 3 rows of 31`.
    pub shape: String,
    pub order: ThreadOrder,
}

/// What became of one subject.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub name: String,
    /// Launches that were run and checked, all orders together.
    pub launches: usize,
    pub finding: Option<Finding>,
}

/// Forward, reverse, and so many random orders.
pub fn thread_orders(random: u64) -> Vec<ThreadOrder> {
    let random = (1..=random).map(ThreadOrder::Random);
    [ThreadOrder::Forward, ThreadOrder::Reverse].into_iter().chain(random).collect()
}

/// A kernel that is checked.
pub enum Target {
    Own(Subject),
    Contract(Box<Contract>),
}

impl Target {
    /// `attention.cu, scale=pre,...`, or the contract's file.
    pub fn name(&self) -> String {
        match self {
            Target::Own(subject) => subject.name(),
            Target::Contract(contract) => {
                contract.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
            }
        }
    }
}

/// How targets are run.
pub struct Pass<'a> {
    pub orders: &'a [ThreadOrder],
    /// Under AddressSanitizer and UBSan, which end the process, instead of our own checks.
    pub sanitized: bool,
    /// Called before each launch, with its shape and the order of the threads.
    pub announce: &'a (dyn Fn(&str, ThreadOrder) + Sync),
}

impl Pass<'_> {
    /// The device of an order.
    pub(super) fn options(&self, order: ThreadOrder) -> HostOptions {
        let sanitized = self.sanitized;
        HostOptions { order, checked: !sanitized, sanitized, ..HostOptions::default() }
    }
}

/// Runs all cases of the targets in each order; a target ends with its first finding. `done` is
/// called after each target. An error is one of this machine, or a kernel that does not compile.
pub fn check(
    kernels: &KernelSet,
    targets: &[Target],
    orders: &[ThreadOrder],
    done: &(dyn Fn() + Sync),
) -> Result<Vec<Outcome>, KernelCheckError> {
    let pass = Pass { orders, sanitized: false, announce: &|_, _| {} };
    let one = |target: &Target| {
        let name = target.name();
        let outcome = match (activity::done(&name), activity::died(&name)) {
            (Some(outcome), _) => outcome,
            (None, Some(death)) => Outcome::died(name, death),
            (None, None) => {
                let _unit = activity::unit(&name);
                let outcome = check_target(kernels, target, &pass)?;
                activity::keep(&name, &outcome);
                outcome
            }
        };
        done();
        Ok(outcome)
    };
    if activity::journal().is_some_and(Journal::is_unclear) {
        return targets.iter().map(one).collect();
    }
    targets.par_iter().map(one).collect()
}

impl Outcome {
    /// A target that ended the process which ran it.
    fn died(name: String, death: Death) -> Outcome {
        let (shape, order) = (String::new(), ThreadOrder::default());
        let finding = Finding { kind: Kind::Crash, text: death.text, shape, order };
        Outcome { name, launches: 0, finding: Some(finding) }
    }
}

/// Runs all cases of a target in each order.
pub fn check_target(
    kernels: &KernelSet,
    target: &Target,
    pass: &Pass<'_>,
) -> Result<Outcome, KernelCheckError> {
    match target {
        Target::Own(subject) => check_subject(kernels, subject, pass),
        Target::Contract(contract) => check_contract(contract, pass),
    }
}

/// The kind and text of a failed launch.
pub(super) fn failed(file: &str, message: &str) -> (Kind, String) {
    (Kind::of(message), format!("{file}: {message}"))
}

fn check_subject(
    kernels: &KernelSet,
    subject: &Subject,
    pass: &Pass<'_>,
) -> Result<Outcome, KernelCheckError> {
    let source = kernels.source(subject.file, subject.defines.clone())?;
    let mut outcome = Outcome { name: subject.name(), launches: 0, finding: None };
    // The outputs of each case in the first order.
    let mut first: Vec<Vec<Output>> = Vec::new();
    for &order in pass.orders {
        let mut device = HostDevice::new(pass.options(order))?;
        device.load(&source)?;
        for (i, case) in subject.cases.iter().enumerate() {
            let (bench, shape) = (Bench { device: &device, dtype: case.dtype }, case.shape.clone());
            outcome.launches += 1;
            (pass.announce)(&shape, order);
            match (case.run)(bench) {
                Err(DeviceError::Kernel { file, message }) => {
                    let (kind, text) = failed(&file, &message);
                    outcome.finding = Some(Finding { kind, text, shape, order });
                    return Ok(outcome);
                }
                Err(error) => return Err(error.into()),
                Ok(outputs) => {
                    let wrong = wrong(subject, case, &outputs, first.get(i));
                    // Another shape may show the access behind wrong numbers.
                    if outcome.finding.is_none() {
                        outcome.finding =
                            wrong.map(|(kind, text)| Finding { kind, text, shape, order });
                    }
                    if first.len() == i {
                        first.push(outputs);
                    }
                }
            }
        }
        if outcome.finding.is_some() {
            break;
        }
    }
    Ok(outcome)
}

/// What is wrong with the numbers of a launch.
fn wrong(
    subject: &Subject,
    case: &Case,
    outputs: &[Output],
    first: Option<&Vec<Output>>,
) -> Option<(Kind, String)> {
    let file = subject.file;
    for output in outputs {
        if let Some(i) = farthest(output) {
            let (name, found, wanted) = (output.name, output.values[i], output.reference[i]);
            let wanted = if wanted.is_nan() {
                "must not be written".to_string()
            } else {
                format!("{wanted:.8} by its formula in f64")
            };
            let text = format!("{file}: {}: {name}[{i}] is {found:.8}, and {wanted}", case.dtype);
            return Some((Kind::Numbers, text));
        }
    }
    for (output, first) in outputs.iter().zip(first?) {
        let differs = |(a, b): (&f64, &f64)| a.to_bits() != b.to_bits();
        if let Some(i) = output.values.iter().zip(&first.values).position(differs) {
            let (name, now, before) = (output.name, output.values[i], first.values[i]);
            let text = format!(
                "{file}: {}: {name}[{i}] is {now:e}, but {before:e} in another thread order",
                case.dtype
            );
            return Some((Kind::Order, text));
        }
    }
    None
}

/// The element that is farthest from its reference, if that is beyond the tolerance.
fn farthest(output: &Output) -> Option<usize> {
    let size =
        output.reference.iter().filter(|x| x.is_finite()).fold(0.0, |max: f64, x| max.max(x.abs()));
    let error = |i: usize| match (output.values[i].is_nan(), output.reference[i].is_nan()) {
        (true, true) => 0.0,
        (false, false) => (output.values[i] - output.reference[i]).abs(),
        _ => f64::INFINITY,
    };
    let worst = (0..output.values.len()).max_by(|&a, &b| error(a).total_cmp(&error(b)))?;
    (error(worst) > output.tolerance * size).then_some(worst)
}
