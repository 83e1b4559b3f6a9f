//! The diagnosis as text: what is wrong, what merely inherits it, what is cleared.

use std::{collections::BTreeSet, fmt::Write};

use crate::{
    compare::verdict::Outcome,
    core::{arithmetic::Convention, exit::Exit},
    diagnosis::{
        Certainty, Diagnosis, Finding, SideReplay, Verdict,
        replay::{Operation, RANDOM_SUM},
    },
    graph::site::Stage,
    report::{
        Compared, Headline, Report, SiteRow,
        terminal::{BAD, DIM, GOOD, View, coordinates, first_position, headline, line, number},
    },
};

/// At most this many causes that give the same numbers, invariants or results are named.
pub(super) const MAX_NAMED: usize = 4;

/// At most this many entries are shown on one screen.
const MAX_SHOWN: usize = 3;

/// The headline of compared sites. An engine whose every site is within the floor is not equal while
/// one of its operations is wrong.
pub fn answer(sites: &[SiteRow], compared: &Compared, diagnosis: Option<&Diagnosis>) -> Headline {
    let first = |step| compared.first_position(step);
    let diverged = sites.iter().find(|row| row.outcome == Outcome::Diverged);
    let mut text = headline(sites, &compared.coverage, &compared.extent(), &first);
    let mut exit = compared.coverage.exit();
    if let Some(finding) = diagnosis.and_then(only_undeclared)
        && exit != Exit::Refused
    {
        exit = Exit::Diverged;
        text = format!("{}; {text}", conventions(finding.0, finding.1));
    } else if let Some(finding) = diagnosis.and_then(Diagnosis::first_of_engine)
        && matches!(exit, Exit::Equal | Exit::NotMeasured)
    {
        exit = Exit::Diverged;
        text = format!("wrong within the floor: {}: {}; {text}", finding.what, finding.cause.text);
    }
    if exit == Exit::NotMeasured
        && let Some(parted) = &compared.parted
        && let Some(diagnosis) = diagnosis.filter(|found| is_judged_to_parting(sites, found))
    {
        let replayed = diagnosis.engine.replayed;
        text = format!(
            "equal within the floor up to the first id that differs: {} of {} sites, and {replayed} operations of \
             all steps are within their rounding bounds",
            compared.coverage.equal, compared.coverage.asked
        );
        if parted.is_near_tie {
            exit = Exit::Equal;
        }
    } else if exit == Exit::NotMeasured
        && let Some(diagnosis) = diagnosis.filter(|found| is_judged_through(sites, compared, found))
    {
        exit = Exit::Equal;
        let through = diagnosis.engine.unmeasured.len();
        let (equal, asked) = (compared.coverage.equal, compared.coverage.asked);
        text = format!("equal within the floor: {equal} of {asked} sites");
        let wide = sites.iter().filter(|row| row.lets_zeros_pass(compared.factor)).count();
        if wide > 0 {
            text += &format!("; {wide} more have a floor as large as their values");
        }
        text += &match through {
            0 => "; every recorded operation is within its bound".to_string(),
            _ => format!(
                "; {through} unrecorded operations are judged together with the next recorded one"
            ),
        };
    }
    if let Some(parted) = &compared.parted {
        text = format!("{text}; {parted}");
    }
    Headline {
        exit,
        exit_code: exit as u8,
        text,
        first_divergence: diverged.map(|row| row.site.clone()),
    }
}

/// Whether every site up to the ids that differ is equal, and every operation of all steps was judged and is
/// right.
fn is_judged_to_parting(sites: &[SiteRow], diagnosis: &Diagnosis) -> bool {
    let is_parted = |row: &SiteRow| matches!(row.outcome, Outcome::Unmeasured(_));
    sites.iter().all(|row| row.outcome == Outcome::Equal || is_parted(row))
        && sites.iter().any(|row| row.outcome == Outcome::Equal)
        && diagnosis.findings.is_empty()
        && diagnosis.engine.replayed > 0
        && diagnosis.engine.unmeasured.is_empty()
}

/// Whether every site that the engine has is equal and its operation right, up to the logits of every step: then
/// what it did not record is judged together with what follows. So is what no floor can judge.
fn is_judged_through(sites: &[SiteRow], compared: &Compared, diagnosis: &Diagnosis) -> bool {
    let is_equal =
        |row: &SiteRow| row.outcome == Outcome::Equal || row.lets_zeros_pass(compared.factor);
    let is_missing = |row: &SiteRow| row.outcome == Outcome::missing_in_engine();
    let operation = |row: &SiteRow| Operation { layer: row.place.layer, stage: row.place.stage };
    let equal: BTreeSet<Operation> =
        sites.iter().filter(|row| is_equal(row)).map(operation).collect();
    let logits = sites.iter().filter(|row| row.place.stage == Stage::Logits);
    let to_the_end = logits.clone().count() > 0 && logits.into_iter().all(is_equal);
    let is_unseen = |one: &Operation| !equal.contains(one);
    to_the_end
        && diagnosis.findings.is_empty()
        && diagnosis.engine.replayed > 0
        && sites.iter().all(|row| is_equal(row) || is_missing(row))
        && diagnosis.engine.unmeasured.iter().all(is_unseen)
}

/// The guilty operations with their causes.
pub fn blame(text: &mut String, report: &Report, diagnosis: &Diagnosis, view: View<'_>) {
    text.push('\n');
    let is_undeclared = |finding: &&Finding| finding.verdict == Verdict::Undeclared;
    let undeclared = diagnosis.findings.iter().filter(is_undeclared).count();
    let count = diagnosis.findings.len() - undeclared;
    let colour = if count > 0 { BAD } else { GOOD };
    let _ = writeln!(text, "  {colour}guilty operations: {count}{colour:#}");
    let shown = if view.verbose { diagnosis.findings.len() } else { MAX_SHOWN };
    for (index, finding) in diagnosis.findings.iter().enumerate().take(shown) {
        if index == count {
            let _ = writeln!(text, "  {BAD}undeclared arithmetic: {undeclared}{BAD:#}");
        }
        self::finding(text, index + 1, finding, report, view.verbose);
        if let Some(Some(place)) = view.places.get(index) {
            detail(text, &format!("kernel: {place}"));
        }
    }
    let more = diagnosis.findings.len().saturating_sub(shown);
    if more > 0 {
        let named = diagnosis.findings.iter().skip(shown).map(|finding| finding.what.as_str());
        let named = named.take(MAX_NAMED).collect::<Vec<_>>().join("; ");
        detail(text, &format!("and {more} more, which --verbose shows: {named}"));
    }
    if undeclared > 0 {
        line(text, "declare", &declaration(&diagnosis.undeclared()));
    }
    inherits(text, report, diagnosis);
    side(text, "engine", &diagnosis.engine, view.verbose);
    match (&diagnosis.reference, &report.reference) {
        (Some(reference), _) => side(text, "reference", reference, view.verbose),
        (None, Some(_)) => {
            line(text, "reference", "not replayed: its arithmetic is only known in f32");
        }
        (None, None) => {}
    }
}

/// The first line where there is no reference: what is guilty, or how much is known not to be.
/// `to_the_end` says whether the logits of every step were recorded: then a recorded result lies
/// behind each operation, and none can be wrong unseen.
pub fn guilt(diagnosis: &Diagnosis, to_the_end: bool) -> (Exit, String) {
    let SideReplay { replayed, cleared, unmeasured, .. } = &diagnosis.engine;
    let missing = unmeasured.len();
    match diagnosis.findings.as_slice() {
        [first, more @ ..] if first.verdict == Verdict::Undeclared => {
            (Exit::Diverged, conventions(first, more.len()))
        }
        [first, more @ ..] => {
            let sure = match first.cause.certainty {
                Certainty::Proven => " (proven)",
                Certainty::Consistent => " (consistent, not proven)",
                Certainty::Partly => " (partly)",
                Certainty::Unknown => "",
            };
            let more =
                if more.is_empty() { String::new() } else { format!("; {} more", more.len()) };
            let text = format!("guilty: {}: {}{sure}{more}", first.what, first.cause.text);
            (Exit::Diverged, text)
        }
        [] if *replayed == 0 => {
            (Exit::NotMeasured, "nothing was replayed: no operation's result was recorded".into())
        }
        [] if missing == 0 => {
            let counts = format!("{cleared} of {replayed} operations within their rounding bounds");
            (Exit::Equal, format!("nothing guilty: {counts}"))
        }
        [] => {
            let counts = format!("{cleared} of {replayed} recorded operations");
            let text = format!("{counts} within their rounding bounds, {missing} not recorded");
            if to_the_end {
                (Exit::Equal, format!("nothing guilty: {text}"))
            } else {
                (Exit::NotMeasured, format!("not enough recorded: {text}"))
            }
        }
    }
}

/// The first finding where the engine is right in an arithmetic that it did not declare, and how many more
/// there are.
fn only_undeclared(diagnosis: &Diagnosis) -> Option<(&Finding, usize)> {
    let first = diagnosis.findings.first();
    let first = first.filter(|finding| finding.verdict == Verdict::Undeclared)?;
    Some((first, diagnosis.findings.len() - 1))
}

/// What is not declared, where nothing is wrong.
fn conventions(first: &Finding, more: usize) -> String {
    let more = if more == 0 { String::new() } else { format!("; {more} more") };
    format!(
        "undeclared arithmetic (no operation is wrong): {}: {}{more}",
        first.what, first.cause.text
    )
}

/// How to declare roundings.
pub(super) fn declaration(roundings: &[Convention]) -> String {
    let list: Vec<String> = roundings.iter().map(ToString::to_string).collect();
    let list = list.join(",");
    format!("--arithmetic {list}, or the manifest's roundings: the engine is then held to it")
}

fn finding(text: &mut String, number_of: usize, finding: &Finding, report: &Report, verbose: bool) {
    let cause = &finding.cause;
    let sure = certainty(finding);
    let _ = writeln!(
        text,
        "  {number_of:>2}. {}{}: {BAD}{}{BAD:#} ({sure})",
        whose(finding),
        finding.what,
        cause.text
    );
    match &finding.weights[..] {
        [first, more @ ..] if !verbose && !more.is_empty() => {
            detail(text, &format!("{first}; and {} more", more.len()));
        }
        all => all.iter().take(MAX_NAMED).for_each(|weight| detail(text, weight)),
    }
    for also in cause.also.iter().take(MAX_NAMED) {
        detail(text, &format!("or, giving the same numbers: {also}"));
    }
    if let Some(worst) = worst(finding, report) {
        detail(text, &worst);
    }
    detail(text, &signs(finding).join("; "));
}

/// How much is beyond the bound, and the element that is furthest.
pub(super) fn worst(finding: &Finding, report: &Report) -> Option<String> {
    let worst = finding.worst.as_ref()?;
    let place = finding.operations.first().map_or(String::new(), |operation| {
        let first = of_engine_step(report, worst.step);
        let named = coordinates(operation.site(worst.step), &worst.index, first);
        format!("[{named}]")
    });
    let share = format!("{} of {} elements", grouped(finding.beyond), grouped(finding.elements));
    Some(format!(
        "{share} beyond the bound; worst {} x bound: step {} {place} recorded {}, exact {}",
        number(worst.times_bound),
        worst.step,
        worst.recorded,
        digits(worst.expected)
    ))
}

/// What else is known of what a finding is on.
pub(super) fn signs(finding: &Finding) -> Vec<String> {
    let cause = &finding.cause;
    let mut parts = Vec::new();
    if let Some(pattern) = &finding.pattern {
        parts.push(format!("which: {pattern}"));
    }
    parts.extend(cause.signs.iter().cloned());
    if cause.refuted > 0 {
        parts.push(format!("{} other causes refuted", cause.refuted));
    }
    let unseen = finding.unseen();
    if !unseen.is_empty() {
        let named = named(&unseen);
        parts.push(format!("or an earlier operation, because {named} were not recorded"));
    }
    parts
}

/// The position of the first token of one of the engine's steps.
fn of_engine_step(report: &Report, step: u32) -> usize {
    let own = report.engine_positions.get(step as usize);
    own.copied().unwrap_or_else(|| first_position(report, step))
}

/// Whose fault it is, before what is wrong.
pub fn whose(finding: &Finding) -> &'static str {
    match finding.verdict {
        Verdict::EngineWrong => "",
        Verdict::ReferenceWrong => "the reference is wrong: ",
        Verdict::ModelsDiffer => "models differ: the reference's ",
        Verdict::Undeclared => "",
    }
}

/// The first few operations by their results, and how many more there are.
pub fn named(operations: &[Operation]) -> String {
    let first = operations.iter().take(MAX_NAMED).map(|operation| operation.result());
    let first: Vec<String> = first.collect();
    match operations.len().saturating_sub(MAX_NAMED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// A number with at least six decimals and seven digits that count.
fn digits(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_string(),
        0.1.. => format!("{x:.6}"),
        1e-5..0.1 => format!("{x:.*}", (6.0 - x.abs().log10().floor()) as usize),
        _ => format!("{x:.6e}"),
    }
}

fn detail(text: &mut String, content: &str) {
    if !content.is_empty() {
        let _ = writeln!(text, "      {DIM}{content}{DIM:#}");
    }
}

pub(super) fn certainty(finding: &Finding) -> String {
    let cause = &finding.cause;
    let share = 100.0 * cause.explained as f64 / cause.wrong.max(1) as f64;
    match cause.certainty {
        Certainty::Proven => {
            format!("proven: 100 % of {} elements within the bound", grouped(cause.wrong))
        }
        Certainty::Consistent => format!(
            "consistent with all {} elements; it cannot be recomputed exactly, so nothing is proven",
            grouped(cause.wrong)
        ),
        Certainty::Partly => format!("partly: {share:.0} % of {} elements", grouped(cause.wrong)),
        Certainty::Unknown => {
            format!("no known mistake gives these {} elements", grouped(cause.wrong))
        }
    }
}

/// The sites that differ though their operations are right.
fn inherits(text: &mut String, report: &Report, diagnosis: &Diagnosis) {
    if let Some(inherited) = inherited(report, diagnosis) {
        line(text, "inherits", &inherited);
    }
}

/// How many sites differ though their operations are right, and why.
pub(super) fn inherited(report: &Report, diagnosis: &Diagnosis) -> Option<String> {
    let is_diverged = |row: &&SiteRow| row.outcome == Outcome::Diverged;
    let diverged = report.sites.iter().filter(is_diverged);
    let cleared = diverged.filter(|row| {
        !diagnosis.is_guilty(Operation { layer: row.place.layer, stage: row.place.stage })
    });
    let count = cleared.count();
    if count == 0 {
        return None;
    }
    Some(if diagnosis.findings.is_empty() {
        let why = "every operation is within its bound: the sides drift apart through accumulated \
                   rounding, or run different models";
        format!("{count} sites differ, but {why}")
    } else {
        let sites = if count == 1 { "site differs" } else { "sites differ" };
        format!("{count} {sites} only because of these")
    })
}

fn side(text: &mut String, name: &str, side: &SideReplay, verbose: bool) {
    line(text, name, &replayed(side));
    if !verbose {
        return;
    }
    for broken in side.broken.iter().take(MAX_NAMED) {
        line(text, "invariant", &format!("violated: {} ({})", broken.property, broken.broken_at));
    }
    let more = side.broken.len().saturating_sub(MAX_NAMED);
    if more > 0 {
        line(text, "invariant", &format!("violated in {more} more places"));
    }
}

/// What the replay of a side says, in words.
pub(super) fn replayed(side: &SideReplay) -> String {
    let mut content = if side.replayed == 0 {
        "no operation's result was recorded".to_string()
    } else {
        format!(
            "{} of {} operations within their rounding bounds, worst {} x",
            side.cleared,
            side.replayed,
            number(side.worst_cleared)
        )
    };
    if side.by_sums > 0 {
        let _ = write!(
            content,
            "; {} by random sums of {RANDOM_SUM} outputs (each element: --replay full)",
            side.by_sums
        );
    }
    if !side.unmeasured.is_empty() {
        let _ = write!(content, "; not recorded: {}", named(&side.unmeasured));
    }
    if !side.left_out.is_empty() {
        let _ = write!(content, "; {} not asked for or not reached", side.left_out.len());
    }
    content
}

/// 43,008
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
