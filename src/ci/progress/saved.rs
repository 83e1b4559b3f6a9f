//! A report read back from its JSON.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    compare::{NonFinite, verdict::Outcome},
    core::{exit::Exit, files},
    diagnosis::Diagnosis,
    report::{Compared, Headline, Partial, REPORT_VERSION, SideSummary, StepRow},
};

/// A longer file is no report.
const MAX_BYTES: u64 = 1 << 30;

/// Why a report cannot be read, or not be compared with another.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    #[error("cannot read {path}: {source}; check the path")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not a report: {source}; name a file written by `firstdiff run --json`")]
    Syntax { path: PathBuf, source: serde_json::Error },
    #[error(
        "{path} has report version {found}, this firstdiff reads {REPORT_VERSION}; \
         make both reports with the same version"
    )]
    Version { path: PathBuf, found: u64 },
    #[error("{old} and {new} are of different models; make both from the same file")]
    OtherModel { old: PathBuf, new: PathBuf },
    #[error(
        "{old} and {new} ran different prompts; make both from the same prompt, in the same steps"
    )]
    OtherPrompts { old: PathBuf, new: PathBuf },
    #[error(
        "{old} has {in_old} steps, {new} has {in_new}; use the same -n, and record an engine with the plan.txt of \
         `capture reference`, whose ids are fixed"
    )]
    OtherSteps { old: PathBuf, new: PathBuf, in_old: usize, in_new: usize },
}

impl SavedError {
    /// The exit code: reports that are there but cannot be compared are refused, others are bad input.
    pub fn exit(&self) -> Exit {
        use SavedError::*;
        match self {
            Read { .. } | Syntax { .. } => Exit::BadInput,
            _ => Exit::Refused,
        }
    }
}

/// The parts of a [`crate::report::Report`] that show progress.
#[derive(Clone, Debug, Deserialize)]
pub struct Saved {
    #[serde(skip)]
    pub path: PathBuf,
    pub headline: Headline,
    #[serde(default)]
    pub partial: Option<Partial>,
    pub model: Option<SavedModel>,
    pub engine: SideSummary,
    pub reference: Option<SideSummary>,
    pub compared: Option<Compared>,
    pub diagnosis: Option<Diagnosis>,
    pub steps: Vec<StepRow>,
    pub sites: Vec<SavedSite>,
}

/// The model of a report.
#[derive(Clone, Debug, Deserialize)]
pub struct SavedModel {
    pub blake3: String,
}

/// A site of a report.
#[derive(Clone, Debug, Deserialize)]
pub struct SavedSite {
    /// `step/tensor name`
    pub site: String,
    pub outcome: Outcome,
    pub difference: Option<SavedDifference>,
}

/// How the tensors of a site differ.
#[derive(Clone, Debug, Deserialize)]
pub struct SavedDifference {
    pub non_finite: NonFinite,
}

impl Saved {
    /// Reads a report.
    pub fn open(path: &Path) -> Result<Saved, SavedError> {
        #[derive(Deserialize)]
        struct Version {
            report_version: u64,
        }
        let read = |source| SavedError::Read { path: path.into(), source };
        let syntax = |source| SavedError::Syntax { path: path.into(), source };
        let json = files::read(path, MAX_BYTES).map_err(read)?;
        // The version first: another version may have other fields.
        let Version { report_version: found } = serde_json::from_slice(&json).map_err(syntax)?;
        if found != u64::from(REPORT_VERSION) {
            return Err(SavedError::Version { path: path.into(), found });
        }
        let saved: Saved = serde_json::from_slice(&json).map_err(syntax)?;
        Ok(Saved { path: path.into(), ..saved })
    }

    /// Refuses two reports of different models, prompts or numbers of steps.
    pub fn check_comparable(&self, new: &Saved) -> Result<(), SavedError> {
        let paths = || (self.path.clone(), new.path.clone());
        if let (Some(a), Some(b)) = (&self.model, &new.model)
            && a.blake3 != b.blake3
        {
            let (old, new) = paths();
            return Err(SavedError::OtherModel { old, new });
        }
        if self.first_other_step(new) == Some(0) {
            let (old, new) = paths();
            return Err(SavedError::OtherPrompts { old, new });
        }
        let (in_old, in_new) = (self.steps.len(), new.steps.len());
        if in_old != in_new {
            let (old, new) = paths();
            return Err(SavedError::OtherSteps { old, new, in_old, in_new });
        }
        Ok(())
    }

    /// The first step of other tokens: an engine that chooses its own goes on with others after a change.
    pub fn first_other_step(&self, new: &Saved) -> Option<usize> {
        let mut pairs = self.steps.iter().zip(&new.steps);
        pairs.position(|(a, b)| a.tokens != b.tokens)
    }

    /// The sites that were compared, less those in which the engine has NaN or infinities of its
    /// own: an operation whose inputs are no numbers is cleared without a look.
    pub fn measured(&self) -> impl Iterator<Item = &str> {
        let counts = |site: &&SavedSite| {
            let own = |d: &SavedDifference| d.non_finite.engine > d.non_finite.reference;
            matches!(site.outcome, Outcome::Equal | Outcome::Diverged)
                && !site.difference.as_ref().is_some_and(own)
        };
        self.sites.iter().filter(counts).map(|site| site.site.as_str())
    }
}
