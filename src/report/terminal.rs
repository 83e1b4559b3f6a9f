//! The report as text. The first line is the answer.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};

use crate::{
    compare::{
        Difference, Element, NonFinite,
        verdict::{Coverage, Outcome},
    },
    graph::site::{Axis, Site, Stage},
    model::Config,
    report::{
        Compared, ModelSummary, Next, Report, SiteRow, StepRow, blame::blame, weights::weights,
    },
    trace::rows_in_words,
};

/// A choice repeated this often in a row is worth a warning.
const REPEATS: usize = 3;
/// At most this many tensors are named in a line about weights.
const MAX_NAMED: usize = 4;

pub(crate) const GOOD: Style = AnsiColor::Green.on_default().bold();
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(crate) const DIM: Style = Style::new().dimmed();

/// The first line: where the sides part, or that they do not. `extent` says in words how far the
/// run went.
pub fn headline(
    sites: &[SiteRow],
    coverage: &Coverage,
    extent: &str,
    first_position: &dyn Fn(u32) -> usize,
) -> String {
    let diverged = sites.iter().find(|row| row.outcome == Outcome::Diverged);
    if let Some((row, difference)) = diverged.and_then(|row| Some((row, row.difference.as_ref()?)))
    {
        let place = first_position(row.place.step);
        return match (&difference.first, &difference.worst) {
            (Some(first), _) => {
                format!("first divergence: {} {}", row.place, element(row, first, place))
            }
            (None, Some(worst)) => format!(
                "first divergence: {} as a whole: relative L2 {:.2e}, {} x floor; worst element {}",
                row.place,
                difference.relative_l2,
                number(difference.l2_times_floor),
                element(row, worst, place)
            ),
            (None, None) => format!("first divergence: {}", row.place),
        };
    }
    if let Some(row) = sites.iter().find(|row| matches!(row.outcome, Outcome::Refused(_))) {
        let Outcome::Refused(why) = &row.outcome else { unreachable!("just matched") };
        return format!("incomparable: {}: {why}", row.place);
    }
    if coverage.equal == 0 {
        return match not_comparable(sites) {
            Some((row, why)) => format!("nothing was measured: {}: {why}", row.place),
            None => "nothing was measured: no site is provided by both sides".to_string(),
        };
    }
    let recomputed = match coverage.recomputed {
        0 => String::new(),
        n => format!(", {n} of them recomputed"),
    };
    let counts = format!("{} of {} sites{recomputed} ({extent})", coverage.equal, coverage.total);
    if coverage.unmeasured > 0 {
        let why = match not_comparable(sites) {
            Some((row, why)) => format!("were not measured, first {}: {why}", row.place),
            None => "were not provided".to_string(),
        };
        let n = coverage.unmeasured;
        return format!("not enough measured: {counts} are equal within the floor, {n} {why}");
    }
    let worst = sites.iter().max_by(|a, b| a.times_floor().total_cmp(&b.times_floor()));
    let worst = worst.map_or(String::new(), |row| {
        format!("; worst {} x floor at {}", number(row.times_floor()), row.place)
    });
    format!("equal within the floor: {counts}{worst}")
}

/// The first site that both sides have and that is not measured, with the reason.
fn not_comparable(sites: &[SiteRow]) -> Option<(&SiteRow, &str)> {
    sites.iter().find_map(|row| match &row.outcome {
        Outcome::Unmeasured(why) if row.difference.is_some() => Some((row, &**why)),
        _ => None,
    })
}

/// `[position 1, head 0, dim 3] engine 0.118 reference -5.201, 3.1e5 x floor`
fn element(row: &SiteRow, element: &Element, first_position: usize) -> String {
    format!(
        "[{}] engine {} reference {}, {} x floor",
        of_row(row, &element.index, first_position),
        element.engine,
        element.reference,
        number(element.times_floor)
    )
}

/// The coordinates of an element of a row, by what its pattern says of the axes.
pub(super) fn of_row(row: &SiteRow, index: &[usize], first_position: usize) -> String {
    let pattern = row.difference.as_ref().and_then(|difference| difference.pattern.as_ref());
    let Some(pattern) = pattern else { return coordinates(row.place, index, first_position) };
    let named = pattern.axes.iter().zip(index);
    let named = named.map(|(axis, index)| format!("{} {}", axis.axis, axis.first + index));
    named.collect::<Vec<_>>().join(", ")
}

/// `position 1, head 0, dim 3`
pub(super) fn coordinates(site: Site, index: &[usize], first_position: usize) -> String {
    let named = site.stage.axes().iter().zip(index).map(|(axis, &index)| match axis {
        Axis::Token => format!("position {}", first_position + index),
        axis => format!("{} {index}", axis.name()),
    });
    named.collect::<Vec<_>>().join(", ")
}

/// Three significant digits; an exponent where that is shorter.
pub(super) fn number(x: f64) -> String {
    match x {
        x if x.is_infinite() => "infinitely many".to_string(),
        x if x >= 1e4 => format!("{x:.1e}"),
        x if x >= 100.0 => format!("{x:.0}"),
        x if x >= 10.0 => format!("{x:.1}"),
        x => format!("{x:.2}"),
    }
}

/// How a report is shown.
#[derive(Clone, Copy, Default)]
pub struct View<'a> {
    /// All of it, not only what a screen holds.
    pub verbose: bool,
    /// Where the kernel of each finding stands, if that is known.
    pub places: &'a [Option<String>],
    pub next: &'a [Next],
}

/// The report with terminal colours: the answer, the guilty operations, and what to do next.
pub fn render(report: &Report, view: View<'_>) -> String {
    let mut text = String::new();
    let colour = if report.headline.exit_code == 0 { GOOD } else { BAD };
    let _ = writeln!(text, "{colour}{}{colour:#}", report.headline.text);
    if let Some(found) = &report.weights {
        weights(&mut text, found);
    }
    let diverged = report.sites.iter().find(|row| row.outcome == Outcome::Diverged);
    let has_findings = report.diagnosis.as_ref().is_some_and(|found| !found.findings.is_empty());
    if let Some((row, difference)) = diverged.and_then(|row| Some((row, row.difference.as_ref()?)))
        && (view.verbose || !has_findings)
    {
        divergence(&mut text, report, (row, difference), view.verbose);
    }
    if let Some(diagnosis) = &report.diagnosis {
        blame(&mut text, report, diagnosis, view);
    }
    if let Some(compared) = &report.compared {
        if report.diagnosis.is_some() {
            text.push('\n');
        }
        coverage(&mut text, report, compared, view.verbose);
        if view.verbose {
            stages(&mut text, report);
            steps(&mut text, report);
        }
        decoded(&mut text, report);
    }
    if view.verbose {
        sides(&mut text, report);
    }
    if let Some(devices) = &report.devices {
        line(&mut text, "devices", &format!("{} (second: {})", devices.text, devices.second));
    }
    ledger(&mut text, report, view.verbose);
    for note in &report.notes {
        line(&mut text, "note", note);
    }
    if !view.next.is_empty() {
        text.push('\n');
    }
    for (at, Next { command, purpose }) in view.next.iter().enumerate() {
        let label = if at == 0 { "next" } else { "" };
        line(&mut text, label, &format!("{command}  {DIM}# {purpose}{DIM:#}"));
    }
    text
}

pub(crate) fn line(text: &mut String, label: &str, content: &str) {
    let _ = writeln!(text, "  {DIM}{label:<10}{DIM:#} {content}");
}

fn divergence(
    text: &mut String,
    report: &Report,
    (row, difference): (&SiteRow, &Difference),
    verbose: bool,
) {
    let first_position = first_position(report, row.place.step);
    let share = 100.0 * difference.beyond as f64 / difference.elements.max(1) as f64;
    let pattern = difference.pattern.as_ref().map_or("no single element", |p| p.text.as_str());
    let counts = format!("{} of {} elements, {share:.1} %", difference.beyond, difference.elements);
    line(text, "which", &format!("{pattern} ({counts})"));
    if let Some(worst) = &difference.worst {
        line(text, "worst", &element(row, worst, first_position));
    }
    if verbose {
        line(
            text,
            "distance",
            &format!(
                "max abs {:.3e}, relative L2 {:.3e}, cosine {:.6}, norm ratio {:.6}, {} ulp",
                difference.max_abs,
                difference.relative_l2,
                difference.cosine,
                difference.norm_ratio,
                difference.max_ulp
            ),
        );
    }
    if difference.non_finite != NonFinite::default() {
        let NonFinite { engine, reference, mismatched, .. } = difference.non_finite;
        let counts = format!("{engine} in the engine, {reference} in the reference");
        line(text, "non-finite", &format!("{counts}, {mismatched} on one side only"));
    }
    if let Some(floor) = row.floor.filter(|_| verbose) {
        let floors =
            format!("{:.2e} an element, {:.2e} relative L2", floor.elementwise, floor.relative_l2);
        line(text, "floor", &floors);
    }
    let before = report.sites.iter().take_while(|other| other.place < row.place);
    // Those that were not measured are not called equal.
    let before = before.filter(|other| other.outcome == Outcome::Equal).count();
    let Some(Compared { coverage, .. }) = &report.compared else { return };
    let after = coverage.compared().saturating_sub(before + 1);
    let also = coverage.diverged.saturating_sub(1);
    line(
        text,
        "around it",
        &format!("{before} sites before it are equal; {also} of {after} after it differ too"),
    );
}

/// What was compared, and what was not.
pub(super) fn covered(report: &Report, compared: &Compared) -> String {
    let Coverage { total, asked, unmeasured, refused, .. } = compared.coverage;
    let mut parts = vec![format!("{} of {total} sites compared", compared.coverage.compared())];
    if asked < total {
        parts.push(format!("{} not asked for", total - asked));
    }
    let recomputed = compared.coverage.recomputed;
    for (count, what) in [
        (recomputed, "recomputed from a kernel's inputs"),
        (unmeasured, "unmeasured"),
        (refused, "refused"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    let missed = asked.saturating_sub(report.sites.len());
    if missed > 0 {
        parts.push(format!("{missed} not reached"));
    }
    format!("{}: {}", parts.join(", "), compared.extent())
}

fn coverage(text: &mut String, report: &Report, compared: &Compared, verbose: bool) {
    line(text, "coverage", &covered(report, compared));
    let rows = report.sites.iter().filter_map(|row| Some((row.place, row.rows?)));
    if let Some(some) = rows_in_words(rows) {
        line(text, "rows", &some);
    }
    if verbose {
        line(text, "tolerance", &compared.formula);
    }
    for row in report
        .sites
        .iter()
        .filter(|row| matches!(row.outcome, Outcome::Unmeasured(_) | Outcome::Refused(_)))
        .filter(|row| row.rows.is_none_or(|[some, _]| some > 0))
        .take(MAX_NAMED)
    {
        if let Outcome::Unmeasured(why) | Outcome::Refused(why) = &row.outcome {
            line(text, "unmeasured", &format!("{}: {why}", row.place));
        }
    }
    match compared.hooks_leave_logits {
        Some(true) if verbose => {
            line(text, "hooks", "logits are bit-equal with and without them");
        }
        Some(false) => line(text, "hooks", "CHANGE the logits: the engine differs without them"),
        _ => {}
    }
    if compared.runs_repeat == Some(false) {
        line(
            text,
            "repeat",
            "the engine's logits DIFFER from run to run: a race, or uninitialised memory",
        );
    }
}

/// One line a stage: how far it is off at worst, and where it first diverges.
fn stages(text: &mut String, report: &Report) {
    let _ =
        writeln!(text, "\n  {DIM}stage          sites  diverged   worst x floor  first at{DIM:#}");
    for stage in Stage::ALL {
        let rows: Vec<&SiteRow> =
            report.sites.iter().filter(|row| row.place.stage == stage).collect();
        let Some(worst) = rows.iter().map(|row| row.times_floor()).max_by(f64::total_cmp) else {
            continue;
        };
        let is_diverged = |row: &&&SiteRow| row.outcome == Outcome::Diverged;
        let diverged = rows.iter().filter(is_diverged).count();
        let first = rows.iter().find(is_diverged).map_or(String::new(), |row| {
            let layer = row.place.layer.map_or(String::new(), |layer| format!(" layer {layer}"));
            format!("step {}{layer}", row.place.step)
        });
        let colour = if diverged > 0 { BAD } else { Style::new() };
        let _ = writeln!(
            text,
            "  {colour}{:<13} {:>6} {diverged:>9} {:>15}  {first}{colour:#}",
            stage.name(),
            rows.len(),
            number(worst)
        );
    }
}

fn steps(text: &mut String, report: &Report) {
    let _ = writeln!(text, "\n  {DIM}step  reference says (gap)      engine says (gap){DIM:#}");
    for (index, step) in report.steps.iter().enumerate() {
        let say = |choice: Option<f32>, word: &Option<String>| match (choice, word) {
            (Some(gap), Some(word)) => format!("{word:?} ({gap:.2})"),
            _ => "-".to_string(),
        };
        let reference = say(step.reference.map(|choice| choice.gap()), &step.reference_text);
        let engine = say(step.engine.map(|choice| choice.gap()), &step.engine_text);
        let differs = match (step.reference, step.engine) {
            (Some(a), Some(b)) if a.token != b.token => "  differs",
            _ => "",
        };
        let _ = writeln!(text, "  {index:>4}  {reference:<24}  {engine}{differs}");
    }
}

/// Says that both sides ran the same tokens, where the engine did not choose its own.
pub(crate) fn forced(compared: &Option<Compared>) -> &'static str {
    let is_parted = compared.as_ref().is_some_and(|compared| compared.parted.is_some());
    if is_parted { "" } else { " (same tokens forced)" }
}

/// What the sides say, as text.
fn decoded(text: &mut String, report: &Report) {
    let [reference, engine] = StepRow::said(&report.steps);
    if !reference.is_empty() && !engine.is_empty() {
        line(
            text,
            "decoded",
            &format!("reference {reference:?}, engine {engine:?}{}", forced(&report.compared)),
        );
    }
    let tokens: Vec<Option<i32>> =
        report.steps.iter().map(|step| step.engine.map(|choice| choice.token)).collect();
    if let Some(token) = repeated(&tokens) {
        line(
            text,
            "repeats",
            &format!("the engine says token {token} {REPEATS} times or more in a row"),
        );
    }
}

/// A token that occurs [`REPEATS`] times in a row.
fn repeated(tokens: &[Option<i32>]) -> Option<i32> {
    let same =
        |window: &&[Option<i32>]| window[0].is_some() && window.iter().all(|t| *t == window[0]);
    tokens.windows(REPEATS).find(same).and_then(|window| window[0])
}

fn sides(text: &mut String, report: &Report) {
    text.push('\n');
    let sides = [("engine", Some(&report.engine)), ("reference", report.reference.as_ref())];
    for (label, side) in sides.into_iter().filter_map(|(label, side)| Some((label, side?))) {
        let settings: Vec<String> =
            side.settings.iter().map(|(key, value)| format!("{key} {value}")).collect();
        line(text, label, &format!("{}: {}", side.name, settings.join(", ")));
    }
    if let Some(model) = &report.model {
        line(text, "model", &format!("{} ({})", model.path, shape(&model.config)));
    }
}

/// A model's sizes in words.
fn shape(c: &Config) -> String {
    format!(
        "{}, {} layers, hidden {}, {}/{} heads of {}, ffn {}, vocab {}",
        c.architecture, c.n_layer, c.n_embd, c.n_head, c.n_head_kv, c.head_dim, c.n_ff, c.n_vocab
    )
}

/// What the file's own weights are.
fn ledger(text: &mut String, report: &Report, verbose: bool) {
    let Some(ModelSummary { ledger, .. }) = &report.model else { return };
    if ledger.is_clean() && verbose {
        let seen = match ledger.looked_through {
            None => format!("{} tensors, all used, finite, none all zero", ledger.tensors),
            Some(some) => {
                let all = ledger.tensors;
                format!("{some} of {all} tensors looked through: finite, none all zero")
            }
        };
        line(text, "weights", &seen);
    }
    for (what, names) in
        [("unused", &ledger.unused), ("absent", &ledger.absent), ("all zero", &ledger.all_zero)]
    {
        if !names.is_empty() {
            let more = names.len().saturating_sub(MAX_NAMED);
            let shown = names[..names.len().min(MAX_NAMED)].join(", ");
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            line(text, "weights", &format!("{what}: {shown}{more}"));
        }
    }
    for bad in ledger.non_finite.iter().take(MAX_NAMED) {
        let what = format!(
            "{} has {} NaN or infinite elements, first at {}",
            bad.tensor, bad.count, bad.first
        );
        line(text, "weights", &what);
    }
}

pub(super) fn first_position(report: &Report, step: u32) -> usize {
    if let Some(compared) = &report.compared {
        return compared.first_position(step);
    }
    report.steps.iter().take(step as usize).map(|step| step.tokens.len()).sum()
}
