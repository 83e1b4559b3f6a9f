//! What the diagnosis says of a planted fault.

use std::{collections::BTreeSet, time::Instant};

use firstdiff::{
    diagnosis::{Certainty, Diagnosis, Finding, replay::Operation},
    model::ModelFile,
    reference::{Changes, Reference, ReferenceOptions},
    trace::recording::{Recorded, Spool},
};
use serde::{Deserialize, Serialize};

use super::{
    Fault, Result, Subject,
    difference::{Difference, Fed, sites_of},
    fault::Plant,
    file::Edit,
    tamper::{Change, Changed},
};

/// What was said of a fault.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub fault: String,
    pub mechanism: String,
    pub detected: bool,
    pub guilty: bool,
    pub cause: bool,
    pub proven: bool,
    /// The operations that are wrong, and what was said instead.
    pub expected: String,
    pub said: String,
    pub seconds: f64,
}

/// What a fault made of a run.
struct Planted {
    spool: Spool,
    /// Sites, by their places, that may be blamed.
    expected: BTreeSet<usize>,
}

impl Outcome {
    /// It in one line.
    pub fn line(&self) -> String {
        let Outcome { fault, mechanism, expected, said, seconds, .. } = self;
        let proven = if self.proven { "proven" } else { "not proven" };
        format!("{fault} ({mechanism}, {seconds:.1} s): expected {expected}; said {said}; {proven}")
    }

    /// Plants a fault and diagnoses it; `None` where it changes nothing.
    pub fn of(subject: &Subject, fault: &Fault) -> Result<Option<Outcome>> {
        let start = Instant::now();
        let planted = match &fault.plant {
            Plant::File(edit) => edited(subject, edit)?,
            Plant::Results { nodes, change } => overwritten(subject, nodes, change)?,
        };
        let Some(planted) = planted else { return Ok(None) };
        let diagnosis = subject.diagnosed(&planted.spool)?;
        let specs = subject.model.sites.specs();
        let operation = |&place: &usize| {
            let spec = &specs[place];
            Operation { layer: spec.layer, stage: spec.stage }
        };
        let expected: BTreeSet<Operation> = planted.expected.iter().map(operation).collect();
        let names = planted.expected.iter().map(|place| operation(place).result());
        let blamed =
            |finding: &Finding| finding.operations.iter().all(|one| expected.contains(one));
        // A rounding that was not declared is told as such, and no operation is wrong.
        let first = diagnosis.findings.iter().find(|finding| finding.verdict.is_of_engine());
        let is_named = |finding: &&Finding| fault.causes.contains(&finding.cause.key.name());
        Ok(Some(Outcome {
            fault: fault.name.clone(),
            mechanism: fault.mechanism().to_string(),
            detected: first.is_some(),
            guilty: first.is_some() && diagnosis.findings.iter().all(blamed),
            cause: first.is_some_and(|first| is_named(&first)),
            proven: first.is_some_and(|first| first.cause.certainty == Certainty::Proven),
            expected: shortened(names),
            said: said(&diagnosis),
            seconds: start.elapsed().as_secs_f64(),
        }))
    }
}

/// llama.cpp runs an edited file.
fn edited(subject: &Subject, edit: &Edit) -> Result<Option<Planted>> {
    let path = subject.edited_path();
    edit.write(&subject.file, &path)?;
    let file = ModelFile::open(&path)?;
    let reference = Reference::load(&file, ReferenceOptions::default())?;
    let (model, inputs) = reference.import(&subject.tokens())?;
    let right = Fed { model: &subject.model, inputs: &subject.inputs };
    let difference = Difference::of(edit, right, Fed { model: &model, inputs: &inputs });
    let specs = subject.model.sites.specs();
    let recorded: BTreeSet<_> = difference.names.values().copied().collect();
    let is_recorded = |place: usize| recorded.contains(&(specs[place].layer, specs[place].stage));
    let mut expected = sites_of(&subject.model, &difference.nodes, &is_recorded);
    expected.extend(&difference.factors);
    if expected.is_empty() {
        return Ok(None);
    }
    let spool = subject.record(&reference, Some(&difference.names), Changes::default())?;
    Ok(differs(subject, &spool, &expected)?.then_some(Planted { spool, expected }))
}

/// Whether a recording differs at any of the sites from the right one by more than rounding.
fn differs(subject: &Subject, spool: &Spool, places: &BTreeSet<usize>) -> Result<bool> {
    const ROUNDING: f32 = 1e-6;
    for step in 0..subject.steps.len() as u32 {
        for &place in places {
            let site = subject.model.sites.specs()[place].site(step);
            let (Some(a), Some(b)) = (spool.tensor(site)?, subject.clean.tensor(site)?) else {
                continue;
            };
            let most = b.data.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
            let mut pairs = a.data.iter().zip(&b.data);
            let is_near = |a: f32, b: f32| (a - b).abs() <= ROUNDING * most;
            if pairs.any(|(&a, &b)| !is_near(a, b) && a.to_bits() != b.to_bits()) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Results are overwritten while llama.cpp runs the right file.
fn overwritten(
    subject: &Subject,
    nodes: &BTreeSet<firstdiff::graph::NodeId>,
    change: &Change,
) -> Result<Option<Planted>> {
    // The session's own graph, whose nodes are the same.
    let changed = Changed::new(&subject.model, nodes.clone(), change);
    let changes = Changes { tamper: Some(&changed), ..Changes::default() };
    let spool = subject.record(&subject.reference, None, changes)?;
    let expected = sites_of(&subject.model, &changed.changed(), &|_| true);
    Ok((!expected.is_empty()).then_some(Planted { spool, expected }))
}

/// What llama.cpp's own run of the right file is blamed for, on either side.
pub fn clean(subject: &Subject) -> Result<Option<String>> {
    let run = || subject.run(&subject.clean);
    let diagnosis = Diagnosis::of(run(), Some(run()))?;
    Ok((!diagnosis.findings.is_empty()).then(|| said(&diagnosis)))
}

/// Findings in a line.
fn said(diagnosis: &Diagnosis) -> String {
    let one = |finding: &Finding| {
        let key = match finding.cause.certainty {
            Certainty::Proven => finding.cause.key.to_string(),
            Certainty::Consistent => format!("{}, consistent", finding.cause.key),
            Certainty::Partly => format!("{}, partly", finding.cause.key),
            Certainty::Unknown => "unknown".to_string(),
        };
        let side = if finding.verdict.is_of_engine() { "" } else { " of the reference" };
        format!("{}{side}: {} [{key}]", finding.what, finding.cause.text)
    };
    if diagnosis.findings.is_empty() {
        return "nothing".to_string();
    }
    shortened(diagnosis.findings.iter().map(one))
}

/// The first of several texts, and how many more there are.
fn shortened(texts: impl Iterator<Item = String>) -> String {
    const SHOWN: usize = 3;
    let texts: Vec<String> = texts.collect();
    let more = texts.len().saturating_sub(SHOWN);
    let shown = texts.into_iter().take(SHOWN).collect::<Vec<_>>().join("; ");
    if more == 0 { shown } else { format!("{shown}; and {more} more") }
}
