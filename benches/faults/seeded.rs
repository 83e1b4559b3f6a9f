//! Each fault alone on each model.

use firstdiff::{
    ci::check::PinnedPrompt,
    compare::{
        SiteFilter,
        verdict::{Outcome, SiteReport},
    },
    core::{exit::Exit, floor::DEFAULT_FACTOR, tensor::DType},
    diagnosis::{Certainty, Finding, Verdict, replay::Operation},
    engine::fault::{FAULTS, Fault, Parameter, Plant, Wiring},
    graph::site::{Site, Stage},
    model::Model,
    run::{Finished, baseline::Baseline},
};

use crate::{
    Progress, Result,
    bench::{Bench, described, engine, faulty, findings, findings_on, operation_of},
    table::Results,
    weaker,
};

/// What became of a fault on a model.
pub struct Row {
    pub fault: &'static Fault,
    pub model: &'static str,
    pub detected: bool,
    pub site: bool,
    /// `None` where the table of faults does not say it for this model.
    pub pattern: Option<bool>,
    pub guilty: bool,
    pub cause: bool,
    /// Whether the cause accounts for every element.
    pub proven: bool,
    pub weaker: [bool; weaker::CHECKS.len()],
    /// What a committed snapshot of the reference says of the same run: whether it is not equal, and
    /// whether the first site is the same.
    pub pinned: [bool; 2],
    pub seconds: f64,
    /// What was found instead.
    pub shortfalls: Vec<String>,
}

/// Plants every fault that has an effect on the model.
pub fn run(bench: &Bench, progress: &mut Progress, results: &mut Results) -> Result<()> {
    let (arithmetic, every) = (engine(DType::F32).arithmetic(), SiteFilter::default());
    let baseline = Baseline::of(&bench.reference, &bench.model, bench.task(), &arithmetic, &every)?;
    let reference = weaker::reference_side(bench, &baseline)?;
    let dtypes = [DType::F32];
    let pinned = PinnedPrompt::of(&bench.model, &bench.reference, bench.task(), "", &dtypes)?;
    for fault in &FAULTS {
        if !progress.wants(&format!("{} on {}", fault.name, bench.name)) {
            continue;
        }
        if let Some(why) = bench.without_effect(fault) {
            results.refused.push((fault.name, bench.name, why));
            continue;
        }
        let engine = faulty(&[fault]);
        let finished = bench.run(&engine)?;
        let weaker = weaker::caught(bench, &engine, &finished, &reference)?;
        let pinned = by_snapshot(&bench.model, &pinned, DType::F32, &finished)?;
        results.seeded.push(row(bench, fault, &finished, weaker, pinned));
    }
    Ok(())
}

/// The first site that differs from a snapshot of the reference.
pub fn by_snapshot(
    model: &Model,
    pinned: &PinnedPrompt,
    dtype: DType,
    finished: &Finished,
) -> Result<Option<Site>> {
    let spool = finished.recorded.as_ref().ok_or("the run was not recorded")?;
    let reports = pinned.compare(model, dtype, spool, DEFAULT_FACTOR)?;
    Ok(reports.iter().find(|report| report.outcome != Outcome::Equal).map(|report| report.site))
}

fn row(
    bench: &Bench,
    fault: &'static Fault,
    finished: &Finished,
    weaker: [bool; weaker::CHECKS.len()],
    pinned: Option<Site>,
) -> Row {
    let mut shortfalls = Vec::new();
    let mut check = |holds: bool, what: &dyn Fn() -> String| {
        if !holds {
            shortfalls.push(what());
        }
        holds
    };
    let exit = finished.coverage.exit();
    let detected = check(exit != Exit::Equal, &|| "not detected".to_string());
    let diverged = |report: &&SiteReport| report.outcome == Outcome::Diverged;
    let first = finished.sites.iter().find(diverged);
    let place = first.map(|report| report.site);
    let site = check(place == Some(fault.site()), &|| {
        let found = place.map_or("nowhere".to_string(), |site| site.to_string());
        format!("first site: {found} instead of {}", fault.site())
    });
    let pattern = bench.is_fixture.then(|| {
        let found = first.and_then(|report| report.difference.as_ref()?.pattern.as_ref());
        let found = found.map_or("", |pattern| pattern.text.as_str());
        let wanted = fixture_pattern(fault);
        check(found == wanted, &|| format!("pattern: {found} instead of {wanted}"))
    });

    let operation = operation_of(fault);
    let first_finding = findings(finished).first();
    let is_first = first_finding.is_some_and(|finding| finding.operations.contains(&operation));
    let is_first = check(is_first, &|| {
        let found = first_finding.map_or("nothing".to_string(), described);
        format!("blamed first: {found} instead of {}", operation.result())
    });
    let stages = broken_stages(fault);
    let extra: Vec<String> = findings(finished)
        .iter()
        .filter(|finding| !is_of(finding, fault, &stages))
        .map(described)
        .collect();
    let no_extra = check(extra.is_empty(), &|| format!("blamed too: {}", extra.join("; ")));
    let named = |finding: &Finding| finding.cause.key == fault.cause;
    let cause = findings_on(finished, operation).any(named);
    let is_proof = |finding: &Finding| finding.cause.certainty == Certainty::Proven;
    let proven = findings_on(finished, operation).any(|f| named(f) && is_proof(f));
    check(cause, &|| {
        let found: Vec<String> = findings_on(finished, operation)
            .map(|finding| {
                let also = finding.cause.also.iter().map(|also| format!("; or {also}"));
                described(finding) + &also.collect::<String>()
            })
            .collect();
        format!("cause: {} instead of {}", found.join("; "), fault.cause)
    });
    Row {
        fault,
        model: bench.name,
        detected,
        site,
        pattern,
        guilty: is_first && no_extra,
        cause,
        proven,
        weaker,
        pinned: [pinned.is_some(), pinned.is_some() && pinned == place],
        seconds: finished.seconds,
        shortfalls,
    }
}

/// Whether all that a finding blames is what the fault breaks.
fn is_of(finding: &Finding, fault: &Fault, stages: &[Stage]) -> bool {
    let broken = |operation: &Operation| {
        let is_late = operation.layer.is_none_or(|layer| layer >= fault.layer);
        stages.contains(&operation.stage) && is_late
    };
    finding.verdict == Verdict::EngineWrong && finding.operations.iter().all(broken)
}

/// The stages whose operations a fault makes wrong, in whatever layer.
fn broken_stages(fault: &Fault) -> Vec<Stage> {
    use Stage::{AttnNorm, FfnNorm, FinalNorm, KNorm, QNorm};
    let norms = || vec![AttnNorm, QNorm, KNorm, FfnNorm, FinalNorm];
    match fault.plant {
        // One kernel computes both; k before v, and q before k.
        Plant::Define { file: "kv_append.cu", .. } => vec![Stage::KCache, Stage::VCache],
        Plant::Define { file: "rope.cu", .. } => vec![Stage::QRope, Stage::KRope],
        Plant::Define { file: "rms_norm.cu", .. } => norms(),
        // Another KV head's keys, and its values.
        Plant::Define { define: "FAULT_KV_HEAD_MODULO" | "FAULT_KV_HEAD_ZERO", .. }
        | Plant::Wiring(Wiring::CacheOfLayer0) => vec![Stage::Scores, Stage::AttnOut],
        Plant::Wiring(Wiring::DecodeNeverAppended) => vec![Stage::KCache, Stage::VCache],
        Plant::Load { tensors: ["attn_q.bias", "attn_k.bias", "attn_v.bias"], .. } => {
            vec![Stage::Q, Stage::K, Stage::V]
        }
        Plant::Parameter(Parameter::OtherRopePairs | Parameter::RopeTheta(_)) => {
            vec![Stage::QRope, Stage::KRope]
        }
        Plant::Parameter(Parameter::RmsEps(_)) => norms(),
        Plant::Positions { users: [Stage::KCache], .. } => vec![Stage::KCache, Stage::VCache],
        Plant::Positions { users, .. } => users.to_vec(),
        _ => vec![fault.blamed],
    }
}

/// The pattern on the fixture, with its prompt of 86 tokens, where the table speaks of any model.
/// Shares of elements, and the pairs and rows that are too small to differ, are as recorded.
fn fixture_pattern(fault: &Fault) -> &'static str {
    match fault.name {
        "q-bias-broadcast" => "heads 1-13",
        "ffn-up-outputs-truncated" => "neurons 464-479",
        "rope-base-1e4" => "positions >= 1, dims except 0 and 8",
        "rope-position-plus-one" | "rope-q-position-plus-one" => {
            "dims except 7 and 15 (83 % of these)"
        }
        "rope-partial-half" => "positions >= 1, dims 4-7, 12-15",
        "rope-head-0-only" => "positions >= 1, heads 1-13",
        "cache-stride-length" => "head 1", // the fixture has two KV heads
        "decode-never-appended" => "positions >= 86",
        "decode-overwrites-last" => "positions >= 85",
        "kv-head-modulo" => "heads 1, 3, 5, 8, 10, 12",
        "kv-head-zero" | "values-head-zero" => "heads 7-13",
        "scores-f16-accumulate" => "88 % of all elements",
        "mask-missing" => "positions 0-84, keys 0-84 (79 % of these)",
        "mask-off-by-one" => "positions >= 1 (59 % of these)",
        "window-16" => "positions >= 16 (81 % of these)",
        "softmax-over-padding" => "positions 0-28, 32-60, 62, 64-85 (6 % of these)",
        "softmax-unnormalised" => "positions >= 1 (86 % of these)",
        _ => fault.pattern,
    }
}
