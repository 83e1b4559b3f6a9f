//! `firstdiff validate`: what is in a trace, and what it can be asked.

use std::{collections::BTreeSet, fmt::Write};

use firstdiff::{
    core::{arithmetic::Arithmetic, exit::Exit},
    graph::{
        ListedSite, SiteList,
        site::{Site, Stage},
    },
    trace::{
        Inspection, MANIFEST_FILE, Manifest, Shard, Side, Split, Step, TraceError, TraceReader,
        UNFINISHED_FILE, caches_in_words, lint, rows_in_words,
    },
};

use super::{args::ValidateArgs, error::Error, output};

/// Says what is there, what is missing, what is wrong, and which verdicts the rest allows.
pub fn validate(args: &ValidateArgs) -> Result<Exit, Error> {
    let bar = output::progress(None, "reading the trace");
    let found = Inspection::of(&args.trace)?;
    let suspicious = if found.finished && found.errors.is_empty() {
        suspicious(&TraceReader::open(&args.trace)?)?
    } else {
        Vec::new()
    };
    bar.finish_and_clear();
    let mut text = headline(&found);
    for error in &found.errors {
        let _ = writeln!(text, "  wrong      {error}");
    }
    if !found.finished {
        text.push_str(&unfinished(&found));
    }
    text.push_str(&contents(&found));
    if found.weights > 0 {
        let _ = writeln!(text, "  weights    {} recorded; `explain` compares them", found.weights);
    }
    if let Some(rows) = rows_in_words(found.partly.iter().copied()) {
        let _ = writeln!(text, "  rows       {rows}");
    }
    if let Some(kept) = caches_in_words(&found.manifest) {
        let _ = writeln!(text, "  caches     {kept}");
    }
    text.push_str(&sequences(&found.manifest));
    if let Some(shard) = found.shard() {
        text.push_str(&ranks(shard, &found));
    }
    text.push_str(&verdicts(&found));
    for note in suspicious {
        let _ = writeln!(text, "  suspicious {note}");
    }
    output::print(&text)?;
    Ok(if found.errors.is_empty() && found.finished { Exit::Equal } else { Exit::Refused })
}

fn suspicious(trace: &TraceReader) -> Result<Vec<String>, TraceError> {
    let ranks = lint::ranks(trace, &|_| true)?.map(|found| format!("ranks disagree: {found}"));
    let mut notes: Vec<String> = ranks.into_iter().collect();
    let sequences = trace.sequences();
    if sequences.is_empty() {
        notes.extend(lint::alone(trace, &|_| true)?);
    }
    // What is no sequence's means nothing.
    for number in sequences {
        let own = lint::alone(&trace.clone().sequence(Some(number))?, &|_| true)?;
        notes.extend(own.into_iter().map(|note| format!("sequence {number}: {note}")));
    }
    Ok(notes)
}

fn headline(found: &Inspection) -> String {
    let (there, all) = (found.sites.len(), found.model_sites().len());
    let state = match (found.errors.len(), found.finished) {
        (0, true) => "valid".to_string(),
        (0, false) => "unfinished".to_string(),
        (1, _) => "refused: 1 file is wrong".to_string(),
        (wrong, _) => format!("refused: {wrong} files are wrong"),
    };
    let manifest = &found.manifest;
    let start = manifest.positions().start;
    let end = manifest.prompt_end();
    let is_of_prompt = |step: &&Step| step.first_position < end;
    let of_prompt: Vec<&Step> = manifest.steps.iter().take_while(is_of_prompt).collect();
    let prompt: usize = of_prompt.iter().map(|step| step.tokens.len()).sum();
    let decode = manifest.steps.len() - of_prompt.len();
    let after = if start > 0 { format!(" after {start} in the cache") } else { String::new() };
    let sequences = manifest.sequences().len();
    let ran = if sequences == 0 {
        format!("{prompt} prompt tokens{after}, {decode} decode steps")
    } else {
        format!("{sequences} sequences, {} steps", manifest.steps.len())
    };
    format!(
        "{state}: {there} of {all} sites ({} layers, {ran}), recorded by {} {} from {}\n",
        found.list().layers(),
        manifest.producer.name,
        manifest.producer.version,
        manifest.model.name,
    )
}

fn unfinished(found: &Inspection) -> String {
    let whole = found.manifest.steps.len();
    let cut = if found.cut_step { "the next step's file is truncated; " } else { "" };
    match whole {
        0 => format!("  ended      before its first step was complete; {cut}record it again\n"),
        _ => format!(
            "  ended      after step {}; {cut}to use the complete steps, rename {UNFINISHED_FILE} to \
             {MANIFEST_FILE}\n",
            whole - 1
        ),
    }
}

/// The recorded stages, and those that lack sites.
fn contents(found: &Inspection) -> String {
    let (mut recorded, mut in_part, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    let all = found.model_sites();
    for stage in found.list().stages() {
        let of_stage = |site: &&Site| site.stage == stage;
        let total = all.iter().filter(of_stage).count();
        let there = found.sites.iter().filter(of_stage).count();
        let name = stage.name();
        match there {
            _ if there == total => recorded.push(name.to_string()),
            0 => missing.push(name.to_string()),
            _ => in_part.push(format!("{name} ({there} of {total})")),
        }
    }
    let mut text = String::new();
    for (label, names) in [("recorded", recorded), ("in part", in_part), ("missing", missing)] {
        if !names.is_empty() {
            let _ = writeln!(text, "  {label:<10} {}", names.join(", "));
        }
    }
    text
}

/// The positions of each sequence of a batch.
fn sequences(manifest: &Manifest) -> String {
    let batches = || manifest.steps.iter().filter_map(|step| step.batch.as_ref());
    let positions = |number: &u32| {
        let parts = batches().flat_map(|batch| &batch.sequences);
        let own: Vec<_> = parts.filter(|part| part.sequence == *number).collect();
        let (first, last) = (own.first()?, own.last()?);
        Some(format!("{number}: positions {} to {}", first.first_position, last.positions() - 1))
    };
    let all: Vec<String> = manifest.sequences().iter().filter_map(positions).collect();
    if all.is_empty() { String::new() } else { format!("  sequences  {}\n", all.join("; ")) }
}

/// How the recorded stages were put together.
fn ranks(shard: &Shard, found: &Inspection) -> String {
    let mut by_split: Vec<(Split, Vec<&str>)> = Vec::new();
    for stage in found.list().stages() {
        if !found.sites.iter().any(|site| site.stage == stage) {
            continue;
        }
        let split = shard.of(stage);
        match by_split.iter_mut().find(|(known, _)| *known == split) {
            Some((_, names)) => names.push(stage.name()),
            None => by_split.push((split, vec![stage.name()])),
        }
    }
    let text = |(split, names): &(Split, Vec<&str>)| {
        let how = match split {
            Split::Replicated => "identical on every rank".to_string(),
            Split::Partial => "summed".to_string(),
            axis => format!("split by {axis}"),
        };
        format!("{how}: {}", names.join(", "))
    };
    let texts: Vec<String> = by_split.iter().map(text).collect();
    format!("  ranks      {}, {}\n", shard.world, texts.join("; "))
}

/// What `diff` and `explain` can say from the sites that are there.
fn verdicts(found: &Inspection) -> String {
    let there = Recorded { sites: &found.sites, steps: found.manifest.steps.len() as u32 };
    let list = found.list();
    let mut text = String::new();
    let diff = refusal(&found.manifest).unwrap_or_else(|| divergence(&there, list));
    let _ = writeln!(text, "  diff       {diff}");
    let operations = list.sites();
    let judged: Vec<&ListedSite> = operations.iter().filter(|site| there.some(site)).collect();
    let alone = |site: &&&ListedSite| inputs(list, site).into_iter().all(|input| there.all(input));
    let alone = judged.iter().filter(alone).count();
    let _ = write!(text, "  explain    {alone} of {} operations judged alone", operations.len());
    if judged.len() > alone {
        let spanning = judged.len() - alone;
        let _ = write!(text, ", {spanning} together with unrecorded operations before them");
    }
    let logits = list.get(Site::global(0, Stage::Logits));
    if !logits.is_some_and(|logits| there.all(logits)) {
        text.push_str("; cannot pass, because the logits are missing");
    }
    text.push('\n');
    text
}

/// The sites whose tensors a site is computed from, as far as the list says it: by the roles, and for a
/// tensor without one, that before it.
fn inputs<'a>(list: &'a SiteList, site: &ListedSite) -> Vec<&'a ListedSite> {
    use Stage::*;
    let own = |stages: &[Stage]| {
        let at = |stage: &Stage| list.get(Site { stage: *stage, ..site.site(0) });
        stages.iter().find_map(at)
    };
    let hidden = || {
        let layers = (0..site.layer.unwrap_or(u32::MAX).min(list.layers() as u32)).rev();
        let mut outputs = layers.filter_map(|layer| list.get(Site::in_layer(0, layer, LayerOut)));
        outputs.next().or_else(|| list.get(Site::global(0, Embd)))
    };
    let found: &[Option<&ListedSite>] = match site.stage {
        Embd => &[],
        AttnNorm | FinalNorm => &[hidden()],
        Q | K | V => &[own(&[AttnNorm])],
        QNorm => &[own(&[Q])],
        KNorm => &[own(&[K])],
        QRope => &[own(&[QNorm, Q])],
        KRope => &[own(&[KNorm, K])],
        KCache => &[own(&[KRope, KNorm, K])],
        VCache => &[own(&[V])],
        Scores => &[own(&[QRope, QNorm, Q]), own(&[KCache])],
        Probs => &[own(&[Scores])],
        AttnOut => &[own(&[Probs]), own(&[VCache])],
        OProj => &[own(&[AttnOut])],
        AttnResidual => &[own(&[OProj]), hidden()],
        FfnNorm => &[own(&[AttnResidual])],
        FfnGate | FfnUp => &[own(&[FfnNorm])],
        FfnAct => &[own(&[FfnGate]), own(&[FfnUp])],
        FfnDown => &[own(&[FfnAct])],
        LayerOut => &[own(&[FfnDown]), own(&[AttnResidual])],
        Logits => &[own(&[FinalNorm])],
        Other(_) => {
            let place = list.place(site.site(0)).and_then(|place| place.checked_sub(1));
            &[place.map(|place| &list.sites()[place])]
        }
    };
    found.iter().flatten().copied().collect()
}

/// Why `diff` will not compare the trace, if it will not.
fn refusal(manifest: &Manifest) -> Option<String> {
    let arithmetic = &manifest.arithmetic;
    let measured = manifest.side == Side::Reference || Arithmetic::engines().contains(arithmetic);
    let storage = arithmetic.default.storage;
    (!measured).then(|| {
        format!(
            "nothing: no reference trace has a floor for this arithmetic ({storage} storage); use \
             `firstdiff explain --reference`, which measures it"
        )
    })
}

fn divergence(there: &Recorded<'_>, list: &SiteList) -> String {
    if list.sites().iter().all(|site| there.all(site)) {
        return "the first tensor that differs".to_string();
    }
    let outputs = list.sites().iter().filter(|site| site.stage == Stage::LayerOut);
    let without = outputs.filter(|site| !there.all(site)).count();
    match without {
        _ if there.sites.is_empty() => "nothing".to_string(),
        0 => "the first layer that differs, and the first recorded tensor in it".to_string(),
        _ => format!("the first recorded tensor that differs; {without} layers lack layer_out"),
    }
}

/// Which results are there.
struct Recorded<'a> {
    sites: &'a BTreeSet<Site>,
    steps: u32,
}

impl Recorded<'_> {
    fn all(&self, site: &ListedSite) -> bool {
        self.steps > 0 && (0..self.steps).all(|step| self.sites.contains(&site.site(step)))
    }

    fn some(&self, site: &ListedSite) -> bool {
        (0..self.steps).any(|step| self.sites.contains(&site.site(step)))
    }
}
