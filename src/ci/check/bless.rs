//! What a new baseline would change in the old one, case by case.

use std::fmt;

use crate::{
    ci::check::{
        CheckError, Config, Lock, Opened,
        cases::{each, planned},
        lock::LockedCase,
        ratchet::{self, Changes, accuracies_of, inputs},
    },
    core::exit::Exit,
    report::ci::CaseResult,
};

/// What became of a case since its baseline.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// It has no baseline.
    New,
    /// Its baseline is of another model, of other tokens or of another engine.
    Other,
    /// Operations changed by more than chance explains.
    Changed(Changes),
    /// The matrix has it no more.
    Gone,
}

/// A change of the baseline that may be accepted.
#[derive(Clone, Debug)]
pub struct Proposal {
    pub id: String,
    pub kind: Kind,
    /// `None` takes the case out.
    locked: Option<LockedCase>,
}

impl Proposal {
    /// Whether it makes nothing worse.
    pub fn is_improvement(&self) -> bool {
        match &self.kind {
            Kind::New => true,
            Kind::Changed(changes) => changes.regressed.is_empty(),
            Kind::Other | Kind::Gone => false,
        }
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = &self.id;
        match &self.kind {
            Kind::New => write!(f, "new        {id}"),
            Kind::Other => write!(f, "other      {id}: a different model, tokens or engine"),
            Kind::Gone => write!(f, "gone       {id}: not in the matrix"),
            Kind::Changed(changes) => {
                let Changes { regressed, improved, unmatched } = changes;
                let word = if regressed.is_empty() { "improved" } else { "regressed" };
                write!(f, "{word:<10} {id}: ")?;
                let first = regressed.iter().chain(improved).next();
                first.map_or(Ok(()), |change| write!(f, "{change}"))?;
                let counts = [(regressed.len(), "regressed"), (improved.len(), "improved"), {
                    (unmatched.len(), "on one side alone")
                }];
                let counts = counts.iter().filter(|(n, _)| *n > 0);
                let counts: Vec<String> = counts.map(|(n, what)| format!("{n} {what}")).collect();
                write!(f, " ({})", counts.join(", "))
            }
        }
    }
}

/// What a run of the whole matrix says against a baseline.
#[derive(Clone, Debug, Default)]
pub struct Review {
    pub proposals: Vec<Proposal>,
    /// Cases that are as the baseline says, as far as chance lets them.
    pub same: usize,
    /// Cases that are not equal: a baseline is of right results only, and theirs stays.
    pub failed: Vec<CaseResult>,
}

impl Review {
    /// Runs the matrix. `done` hears each case, and how many there are.
    pub fn of(
        config: &Config,
        opened: &Opened,
        old: &Lock,
        done: &mut dyn FnMut(&CaseResult, usize),
    ) -> Result<Review, CheckError> {
        let (plan, cases) = planned(config, None);
        let mut review = Review::default();
        each(config, opened, &cases, None, &mut |case, result, ran| {
            done(&result, cases.len());
            let Some(ran) = ran.filter(|_| result.exit == Exit::Equal) else {
                review.failed.push(result);
                return Ok(());
            };
            let now = accuracies_of(ran.model, ran.engine, ran.steps, ran.recorded)?;
            let kind = match old.cases.get(&case.id) {
                None => Kind::New,
                Some(was) if was.model != ran.model.hash() => Kind::Other,
                Some(was) if was.inputs != inputs(ran.engine, ran.steps) => Kind::Other,
                Some(was) => match Changes::of(was, &now) {
                    changes if changes == Changes::default() => {
                        review.same += 1;
                        return Ok(());
                    }
                    changes => Kind::Changed(changes),
                },
            };
            let locked = Some(ratchet::locked(ran.model, ran.engine, ran.steps, &now)?);
            review.proposals.push(Proposal { id: case.id.clone(), kind, locked });
            Ok(())
        })?;
        let gone = old.cases.keys().filter(|id| !plan.contains(id));
        let gone = gone.map(|id| Proposal { id: id.clone(), kind: Kind::Gone, locked: None });
        review.proposals.extend(gone);
        Ok(review)
    }
}

impl Lock {
    /// Takes a proposal over.
    pub fn accept(&mut self, proposal: &Proposal) {
        match &proposal.locked {
            Some(locked) => self.cases.insert(proposal.id.clone(), locked.clone()),
            None => self.cases.remove(&proposal.id),
        };
    }
}
