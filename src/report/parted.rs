//! Ids of the engine's own choice: where they are no longer the reference's, and why.

use std::fmt;

use super::Parted;
use crate::{
    compare::verdict::{Outcome, SiteReport},
    core::sink::Choice,
    graph::site::{Site, Stage},
    run::Pairing,
    trace::{Parting, TraceError},
};

impl Parted {
    /// Reads the reason off the logits that the ids were chosen from.
    pub(super) fn of(
        pairing: &Pairing<'_>,
        reports: &[SiteReport],
        parting: Parting,
    ) -> Result<Parted, TraceError> {
        let Parting { position, step, a: engine, b: reference } = parting;
        let (is_near_tie, why) = why(pairing, reports, parting)?;
        Ok(Parted { position, step, engine, reference, why, is_near_tie })
    }
}

impl fmt::Display for Parted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parted { position, step, engine, reference, why, .. } = self;
        write!(
            f,
            "the ids differ from step {step} (position {position}) on: {engine} in the engine, {reference} \
             in the reference ({why})"
        )
    }
}

/// Whether the two ids were as good, and the reason in words.
fn why(
    pairing: &Pairing<'_>,
    reports: &[SiteReport],
    parting: Parting,
) -> Result<(bool, String), TraceError> {
    let steps = &pairing.reference.manifest().steps;
    let before = steps.iter().position(|step| step.positions() >= parting.position);
    let before = before.unwrap_or(0);
    let site = Site::global(before as u32, Stage::Logits);
    let last = parting.position - 1 - steps[before].first_position;
    let unknown = "their logits were not recorded: record them to know why";
    let report = reports.iter().find(|report| report.site == site);
    let outcome = report.map(|report| &report.outcome);
    let row = match pairing.rows(site) {
        None => Some(last),
        Some(rows) => rows.iter().position(|&row| row == last),
    };
    let both = (pairing.engine(site)?, pairing.reference(site)?);
    let (Some(row), (Some(own), Some(right))) = (row, both) else {
        return Ok((false, unknown.into()));
    };
    if own.shape != right.shape || row >= own.shape[0] {
        return Ok((false, unknown.into()));
    }
    let width = own.data.len() / own.shape[0];
    let own = &own.data[row * width..(row + 1) * width];
    let right = &right.data[row * width..(row + 1) * width];
    let largest = |row: &[f32]| Choice::of(row).map(|choice| choice.token);
    let (engine, reference) = (parting.a as usize, parting.b as usize);
    Ok(match (largest(own), largest(right), outcome) {
        (Some(best), _, _) if best != parting.a => (
            false,
            format!(
                "the engine's id is not its own argmax, which is {best}: it was sampled, or chosen \
                             wrongly"
            ),
        ),
        (_, _, Some(Outcome::Diverged)) => (false, "their logits diverge".into()),
        (_, Some(best), _) if best != parting.b => {
            (false, "the reference was forced to ids that are not its own choice".into())
        }
        (Some(_), Some(_), Some(Outcome::Equal)) => {
            let lead = right[reference] - right[engine];
            (
                true,
                format!(
                    "a near tie: the reference's id leads by {lead:.3}, and the logits are equal within \
                            the floor"
                ),
            )
        }
        _ => (false, unknown.into()),
    })
}
