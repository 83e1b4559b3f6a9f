//! The verdict on each site, and the loop that compares two sides.

use serde::{Deserialize, Serialize};

use crate::{
    compare::{Aligner, Difference, RowTokens, Side, compare},
    core::{
        activity,
        exit::Exit,
        floor::{Floor, SiteFloor},
        pool, progress, spans,
    },
    graph::site::{Site, Stage},
};

/// What is known of one site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every element and the relative L2 are within tolerance.
    Equal,
    Diverged,
    /// A side did not provide the tensor.
    Unmeasured(String),
    /// The tensors cannot be compared.
    Refused(String),
}

impl Outcome {
    /// The engine did not record it.
    pub fn missing_in_engine() -> Outcome {
        Outcome::Unmeasured("the engine does not have it".into())
    }

    /// The sides ran other ids from a position on.
    pub fn parted(position: usize) -> Outcome {
        Outcome::Unmeasured(format!("the sides ran different ids from position {position} on"))
    }

    /// What a difference means where that many floors are allowed.
    pub fn of(difference: &Difference, floor: SiteFloor, factor: f64) -> Outcome {
        if difference.diverged(factor) {
            Outcome::Diverged
        } else if difference.lacks_numbers() {
            let (some, all) = (difference.non_finite.in_both, difference.elements);
            Outcome::Unmeasured(format!(
                "{some} of {all} elements are NaN or infinite on both sides"
            ))
        } else if floor.passes_zeros(factor) {
            let part = factor * floor.elementwise.min(floor.relative_l2);
            Outcome::Unmeasured(format!(
                "its tolerance is {part:.1} x its values, {factor} floors: zeros would pass"
            ))
        } else {
            Outcome::Equal
        }
    }
}

/// One site of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteReport {
    pub site: Site,
    pub outcome: Outcome,
    /// Present for `Equal` and `Diverged`.
    pub difference: Option<Difference>,
    pub floor: Option<SiteFloor>,
    /// Of a site that was compared in some of its rows: how many, of how many.
    pub rows: Option<[usize; 2]>,
}

impl SiteReport {
    /// Whether the engine made rows of the site for other tokens only.
    pub fn is_without_rows(&self) -> bool {
        self.rows.is_some_and(|[some, _]| some == 0)
    }
}

/// How a comparison is made.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Tolerance in units of the floor.
    pub factor: f64,
    /// Whether it ends with the layer of the first site that diverges.
    pub until_first: bool,
}

/// Compares two sides over `sites` (in canonical order) as they produce them. `tokens` says
/// which the rows of a site are.
pub fn judge<'a>(
    sites: &[Site],
    (engine, reference): (Side, Side),
    floor: &Floor,
    rule: Rule,
    tokens: &dyn Fn(Site) -> RowTokens<'a>,
    on_site: &mut dyn FnMut(&SiteReport),
) -> Vec<SiteReport> {
    let (mut engine, mut reference) = (Aligner::new(engine), Aligner::new(reference));
    let mut reports = Vec::with_capacity(sites.len());
    progress::begin("comparing", sites.len());
    // The step and the layer of what diverged first.
    let mut first = None;
    for &site in sites {
        if rule.until_first && first.is_some_and(|first| first != (site.step, site.layer)) {
            break;
        }
        let waits = spans::span("wait", || site.tensor_name());
        let pair = (engine.next(site), reference.next(site));
        drop(waits);
        // What did not come may only not have come yet.
        if activity::interrupted().is_some() {
            break;
        }
        progress::advance(site);
        let floor = floor.0.get(&site).copied();
        let (outcome, difference) = match (pair, floor) {
            ((None, None), _) => (Outcome::Unmeasured("neither side has it".into()), None),
            ((None, _), _) => (Outcome::missing_in_engine(), None),
            ((_, None), _) => (Outcome::Unmeasured("the reference does not have it".into()), None),
            ((Some(e), Some(r)), _) if e.shape != r.shape => {
                let why = format!("engine shape {:?}, reference shape {:?}", e.shape, r.shape);
                (Outcome::Refused(why), None)
            }
            (_, None) => (Outcome::Unmeasured("its floor was not measured".into()), None),
            ((Some(e), Some(r)), Some(floor)) => {
                let tokens = tokens(site);
                let _span = spans::span("compare", || site.tensor_name());
                let difference = compare(site, &e, &r, tokens, floor, rule.factor);
                let outcome = Outcome::of(&difference, floor, rule.factor);
                [e, r].into_iter().for_each(pool::done);
                (outcome, Some(difference))
            }
        };
        let report = SiteReport { site, outcome, difference, floor, rows: None };
        on_site(&report);
        if report.outcome == Outcome::Diverged {
            first = first.or(Some((site.step, site.layer)));
        }
        reports.push(report);
    }
    reports
}

/// How much was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// Sites of the model in these steps.
    pub total: usize,
    /// Sites that were asked for.
    pub asked: usize,
    pub equal: usize,
    pub diverged: usize,
    pub unmeasured: usize,
    pub refused: usize,
    /// Sites of which the engine made no row, as it says: its logits are of other tokens of a step of its own.
    #[serde(default)]
    pub without_rows: usize,
    /// Compared sites that are no kernel's own, but recomputed from the inputs of one that keeps them to
    /// itself.
    #[serde(default)]
    pub recomputed: usize,
}

impl Coverage {
    /// Counts the outcomes; `total` sites exist in the model.
    pub fn of(reports: &[SiteReport], total: usize, asked: usize) -> Coverage {
        let mut coverage = Coverage { total, asked, ..Coverage::default() };
        for report in reports {
            match report.outcome {
                Outcome::Unmeasured(_) if report.is_without_rows() => coverage.without_rows += 1,
                Outcome::Equal => coverage.equal += 1,
                Outcome::Diverged => coverage.diverged += 1,
                Outcome::Unmeasured(_) => coverage.unmeasured += 1,
                Outcome::Refused(_) => coverage.refused += 1,
            }
        }
        coverage
    }

    /// Counts the compared sites of stages that were recomputed.
    pub fn with_recomputed(self, reports: &[SiteReport], stages: &[Stage]) -> Coverage {
        let is = |report: &&SiteReport| {
            stages.contains(&report.site.stage)
                && matches!(report.outcome, Outcome::Equal | Outcome::Diverged)
        };
        Coverage { recomputed: reports.iter().filter(is).count(), ..self }
    }

    /// Sites with an outcome of equal or diverged.
    pub fn compared(&self) -> usize {
        self.equal + self.diverged
    }

    /// The exit code: green only where everything that was asked for was compared.
    pub fn exit(&self) -> Exit {
        match self {
            coverage if coverage.diverged > 0 => Exit::Diverged,
            coverage if coverage.refused > 0 => Exit::Refused,
            coverage if coverage.equal == 0 || coverage.unmeasured > 0 => Exit::NotMeasured,
            _ => Exit::Equal,
        }
    }
}
