//! The page of a report.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use serde::Serialize;

use super::{
    cells::{self, Layout, Map},
    page::{MOST_BYTES, frame_bytes, json, page},
    pictures::{Shown, Wanted, pictures},
};
use crate::{
    compare::verdict::Outcome,
    diagnosis::{
        Certainty, Finding, Verdict,
        album::Album,
        reading::{self, Reading},
        replay::Operation,
    },
    graph::site::Site,
    report::{
        Report, SideSummary, StepRow,
        blame::{MAX_NAMED, certainty, declaration, inherited, replayed, signs, worst},
        terminal::covered,
        whose,
    },
};

/// What a page tells beside its report.
#[derive(Default)]
pub struct Extras<'a> {
    /// What was computed; without it there are neither pictures nor a graph.
    pub album: Option<&'a Album>,
    /// Where the kernel of each finding stands, such as `kernels/rope.cu:12 rope_neox_f32`.
    pub places: Vec<Option<String>>,
    /// The command that made the report, and more that go on from it, each with what it is for.
    pub commands: Vec<(String, String)>,
}

#[derive(Serialize)]
struct RunData<'a> {
    kind: &'static str,
    firstdiff: &'a str,
    exit: u8,
    headline: &'a str,
    first_divergence: Option<usize>,
    first_step: u32,
    findings: Vec<Entry>,
    undeclared: Option<String>,
    inherits: Option<String>,
    weights: Vec<String>,
    layout: &'a Layout,
    added: Option<Map>,
    inherited: Option<Map>,
    same_steps: bool,
    graph: Vec<Node>,
    pictures: Vec<Shown>,
    readings: Vec<ReadOff>,
    left_out: usize,
    most_bytes: usize,
    steps: Vec<Said>,
    decoded: Option<[String; 2]>,
    sequences: Vec<(u32, u8, &'a str)>,
    facts: Vec<(String, String)>,
    notes: &'a [String],
    commands: &'a [(String, String)],
}

/// One mistake.
#[derive(Serialize)]
struct Entry {
    what: String,
    cause: String,
    /// `proven`, `consistent`, `partly` or `unknown`.
    certainty: &'static str,
    proof: String,
    is_undeclared: bool,
    place: Option<String>,
    weights: Vec<String>,
    also: Vec<String>,
    worst: Option<String>,
    signs: Vec<String>,
    cells: Vec<usize>,
    /// The step and the cell that it is shown by.
    step: u32,
    cell: Option<usize>,
}

/// What was read off a result.
#[derive(Serialize)]
struct ReadOff {
    cell: usize,
    step: u32,
    title: &'static str,
    /// What each position was taken for.
    #[serde(skip_serializing_if = "Option::is_none")]
    positions: Option<Vec<(usize, f64)>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cells: Option<Kinds>,
}

/// Kinds of things by two axes, a byte each.
#[derive(Serialize)]
struct Kinds {
    names: [&'static str; 2],
    first: usize,
    columns: usize,
    kinds: Vec<String>,
    of: String,
}

/// A site of the graph, and the cells that it is computed from.
#[derive(Serialize)]
struct Node {
    cell: usize,
    op: String,
    weight: Option<String>,
    /// Cells, or names of what is no site.
    inputs: Vec<Input>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Input {
    Cell(usize),
    Name(String),
}

/// What each side says after a step.
#[derive(Serialize)]
struct Said {
    tokens: usize,
    reference: Option<(String, f32)>,
    engine: Option<(String, f32)>,
    differs: bool,
}

/// The page of a report, of at most [`MOST_BYTES`] where its cells leave room for it.
pub fn run_page(report: &Report, extras: &Extras<'_>) -> String {
    let layout = Layout::of(report, extras.album);
    let findings = report.diagnosis.iter().flat_map(|diagnosis| &diagnosis.findings);
    let findings: Vec<&Finding> = findings.collect();
    let places = extras.places.iter().cloned().chain(std::iter::repeat(None));
    let entries: Vec<Entry> = findings
        .iter()
        .zip(places)
        .map(|(one, place)| entry(one, place, report, &layout))
        .collect();
    let diverged = report.sites.iter().find(|row| row.outcome == Outcome::Diverged);
    let same_steps = cells::has_same_steps(report);
    let mut data = RunData {
        kind: "run",
        firstdiff: &report.firstdiff,
        exit: report.headline.exit_code,
        headline: &report.headline.text,
        first_divergence: diverged.and_then(|row| layout.cell(row.place.layer, row.place.stage)),
        first_step: diverged.map_or(0, |row| row.place.step),
        findings: entries,
        undeclared: report.diagnosis.as_ref().and_then(|diagnosis| {
            let own = diagnosis.undeclared();
            (!own.is_empty()).then(|| declaration(&own))
        }),
        inherits: report.diagnosis.as_ref().and_then(|found| inherited(report, found)),
        weights: report
            .weights
            .iter()
            .flat_map(|found| &found.wrong)
            .map(ToString::to_string)
            .collect(),
        added: extras.album.and_then(|album| cells::added(report, album, &layout)),
        inherited: cells::inherited(report, &layout),
        same_steps,
        graph: extras.album.map_or(Vec::new(), |album| graph(album, &layout)),
        layout: &layout,
        pictures: Vec::new(),
        readings: extras.album.map_or(Vec::new(), |album| readings(album, &layout)),
        left_out: 0,
        most_bytes: MOST_BYTES,
        steps: said(report),
        decoded: decoded(report),
        sequences: report
            .sequences
            .iter()
            .map(|row| (row.sequence, row.headline.exit_code, row.headline.text.as_str()))
            .collect(),
        facts: facts(report),
        notes: &report.notes,
        commands: &extras.commands,
    };
    if let Some(album) = extras.album {
        if frame_bytes() + json(&data).len() > MOST_BYTES / 4 * 3 {
            // Of a very deep model the numbers matter more.
            data.graph.clear();
        }
        let room = MOST_BYTES.saturating_sub(frame_bytes() + json(&data).len() + 4096);
        let wanted = wanted(report, &findings, same_steps);
        (data.pictures, data.left_out) = pictures(album, &layout, &wanted, room);
    }
    page(&format!("firstdiff: {}", report.headline.text), &report.headline.text, &data)
}

/// What is to be seen first.
fn wanted(report: &Report, findings: &[&Finding], same_steps: bool) -> Wanted {
    let is_diverged = |row: &&crate::report::SiteRow| row.outcome == Outcome::Diverged;
    let diverged: BTreeSet<Site> =
        report.sites.iter().filter(is_diverged).map(|row| row.place).collect();
    let mut first: Vec<Site> = findings.iter().filter_map(|one| shown_by(one)).collect();
    first.extend(diverged.first());
    let steps = report.steps.len().max(report.engine_positions.len()) as u32;
    let operations = findings.iter().flat_map(|finding| &finding.operations);
    let guilty = operations.flat_map(|one| (0..steps).map(|step| one.site(step))).collect();
    // The steps of the two are not the same numbers.
    let diverged = if same_steps { diverged } else { BTreeSet::new() };
    Wanted { first, guilty, diverged }
}

/// The result that a finding is shown by: of its first operation, in the step that is furthest off.
fn shown_by(finding: &Finding) -> Option<Site> {
    let step = finding.worst.as_ref().map_or(0, |worst| worst.step);
    Some(finding.operations.first()?.site(step))
}

fn entry(finding: &Finding, place: Option<String>, report: &Report, layout: &Layout) -> Entry {
    let site = shown_by(finding);
    Entry {
        what: format!("{}{}", whose(finding), finding.what),
        cause: finding.cause.text.clone(),
        certainty: match finding.cause.certainty {
            Certainty::Proven => "proven",
            Certainty::Consistent => "consistent",
            Certainty::Partly => "partly",
            Certainty::Unknown => "unknown",
        },
        proof: certainty(finding),
        is_undeclared: finding.verdict == Verdict::Undeclared,
        place,
        weights: finding.weights.iter().take(MAX_NAMED).cloned().collect(),
        also: finding.cause.also.clone(),
        worst: worst(finding, report),
        signs: signs(finding),
        cells: finding.operations.iter().filter_map(|&one| layout.cell_of(one)).collect(),
        step: site.map_or(0, |site| site.step),
        cell: site.and_then(|site| layout.cell(site.layer, site.stage)),
    }
}

fn graph(album: &Album, layout: &Layout) -> Vec<Node> {
    let cell_of = |name: &String| {
        let site = Site::from_tensor_name(0, name)?;
        layout.cell(site.layer, site.stage)
    };
    let node = |site: &crate::diagnosis::album::AlbumSite| {
        let input =
            |name: &String| cell_of(name).map_or_else(|| Input::Name(name.clone()), Input::Cell);
        Some(Node {
            cell: layout.cell(site.layer, site.stage)?,
            op: site.op.clone(),
            weight: site.weight.clone(),
            inputs: site.inputs.iter().map(input).collect(),
        })
    };
    album.sites.iter().filter_map(node).collect()
}

fn readings(album: &Album, layout: &Layout) -> Vec<ReadOff> {
    let one = |(operation, reading): &(Operation, Reading)| {
        let (positions, cells) = match &reading.shown {
            reading::Shown::Positions(points) => (Some(points.clone()), None),
            reading::Shown::Cells(own) => (None, Some(own)),
        };
        let kinds = |own: &reading::Cells| Kinds {
            names: own.names,
            first: own.first,
            columns: own.columns,
            kinds: own.kinds.clone(),
            of: STANDARD_NO_PAD.encode(&own.of),
        };
        Some(ReadOff {
            cell: layout.cell_of(*operation)?,
            step: reading.step,
            title: reading.title,
            positions,
            cells: cells.map(kinds),
        })
    };
    album.readings.iter().filter_map(one).collect()
}

fn said(report: &Report) -> Vec<Said> {
    let row = |step: &crate::report::StepRow| Said {
        tokens: step.tokens.len(),
        reference: step.reference_text.clone().zip(step.reference.map(|choice| choice.gap())),
        engine: step.engine_text.clone().zip(step.engine.map(|choice| choice.gap())),
        differs: matches!((step.reference, step.engine), (Some(a), Some(b)) if a.token != b.token),
    };
    report.steps.iter().map(row).collect()
}

/// What each side would say, the reference's first.
fn decoded(report: &Report) -> Option<[String; 2]> {
    Some(StepRow::said(&report.steps)).filter(|said| said.iter().all(|text| !text.is_empty()))
}

fn facts(report: &Report) -> Vec<(String, String)> {
    let mut facts: Vec<(&str, String)> = Vec::new();
    if let Some(compared) = &report.compared {
        facts.push(("Coverage", covered(report, compared)));
        facts.push(("Tolerance", compared.formula.clone()));
    }
    if let Some(diagnosis) = &report.diagnosis {
        facts.push(("Engine's replay", replayed(&diagnosis.engine)));
        facts.extend(diagnosis.reference.iter().map(|side| ("Reference's replay", replayed(side))));
    }
    facts.push(("Engine", side(&report.engine)));
    facts.extend(report.reference.iter().map(|own| ("Reference", side(own))));
    if let Some(model) = &report.model {
        let c = &model.config;
        let shape = format!(
            "{}, {} layers, hidden {}, {}/{} heads of {}, ffn {}, vocab {}",
            c.architecture,
            c.n_layer,
            c.n_embd,
            c.n_head,
            c.n_head_kv,
            c.head_dim,
            c.n_ff,
            c.n_vocab
        );
        facts.push(("Model", format!("{} ({shape})", model.path)));
        facts.push(("Model's blake3", model.blake3.clone()));
    }
    if let Some(found) = &report.weights {
        let (right, recorded) = (found.right, found.recorded);
        facts.push(("Weights", format!("{right} of {recorded} match the file")));
    }
    match report.compared.as_ref().and_then(|compared| compared.hooks_leave_logits) {
        Some(true) => facts.push(("Hooks", "logits are bit-equal with and without them".into())),
        Some(false) => {
            facts.push(("Hooks", "CHANGE the logits: the engine differs without them".into()))
        }
        None => {}
    }
    if let Some(devices) = &report.devices {
        facts.push(("Devices", format!("{} (second: {})", devices.text, devices.second)));
    }
    facts.push(("Time", format!("{:.1} s", report.seconds)));
    facts.into_iter().map(|(name, text)| (name.to_string(), text)).collect()
}

fn side(side: &SideSummary) -> String {
    let settings: Vec<String> =
        side.settings.iter().map(|(key, value)| format!("{key} {value}")).collect();
    if settings.is_empty() {
        return side.name.clone();
    }
    format!("{}: {}", side.name, settings.join(", "))
}
