//! Joins the parts of a check that several machines ran.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use crate::{
    core::{exit::Exit, files},
    report::ci::{CHECK_VERSION, CaseResult, Results},
};

/// Larger files are no results of a check.
const MAX_BYTES: u64 = 256 << 20;

/// Why parts are not joined.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("cannot read {path}: {source}; check the path")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a result of `firstdiff check --json`: {detail}; write it again")]
    Foreign { path: PathBuf, detail: String },
    #[error("{path} was written by firstdiff {found}, {first} by {wanted}; check with one version")]
    Version { path: PathBuf, first: PathBuf, found: String, wanted: String },
    #[error(
        "{path} and {first} are from different checks: {what} differ; merge parts of one check"
    )]
    Different { path: PathBuf, first: PathBuf, what: &'static str },
    #[error("{id} is in {first} and in {second}; give each part once")]
    Overlap { id: String, first: PathBuf, second: PathBuf },
    #[error("{id} is in no part{more}; give the missing parts")]
    Gap { id: String, more: String },
    #[error("{path}: {id} is not in its own plan; write it again with `firstdiff check --json`")]
    Unplanned { path: PathBuf, id: String },
    #[error("{path}: {id} {what}; write it again with `firstdiff check --json`")]
    Contradiction { path: PathBuf, id: String, what: &'static str },
}

impl MergeError {
    /// The exit code: files of results that must not be joined are refused, others are bad input.
    pub fn exit(&self) -> Exit {
        match self {
            MergeError::Read { .. } | MergeError::Foreign { .. } => Exit::BadInput,
            _ => Exit::Refused,
        }
    }
}

/// Reads what `firstdiff check --json` wrote.
pub fn read(path: &Path) -> Result<Results, MergeError> {
    let read = |source| MergeError::Read { path: path.to_path_buf(), source };
    let foreign = |detail: String| MergeError::Foreign { path: path.to_path_buf(), detail };
    let json = files::read(path, MAX_BYTES).map_err(read)?;
    let results: Results =
        serde_json::from_slice(&json).map_err(|error| foreign(error.to_string()))?;
    match results.check_version {
        CHECK_VERSION => Ok(results),
        other => Err(foreign(format!("version {other}, and this reads {CHECK_VERSION}"))),
    }
}

/// What a check never writes of a case.
fn contradiction(case: &CaseResult, models: &BTreeMap<String, String>) -> Option<&'static str> {
    let found = !case.guilty.is_empty() || !case.regressed.is_empty();
    match (case.exit, &case.coverage) {
        _ if !models.contains_key(&case.model) => Some("is of a model that was not run"),
        (Exit::Equal, _) if found || case.first_divergence.is_some() => {
            Some("is equal, but lists an error")
        }
        (Exit::Equal, None) => Some("is equal, but nothing was compared"),
        (Exit::Equal, Some(compared)) if compared.diverged + compared.refused > 0 => {
            Some("is equal, but has sites that are not")
        }
        (Exit::Equal, Some(compared)) if compared.equal == 0 => {
            Some("is equal, but nothing was compared")
        }
        _ => None,
    }
}

/// The whole check. Every planned case must be in exactly one part.
pub fn merge(parts: Vec<(PathBuf, Results)>) -> Result<Results, MergeError> {
    let Some((first_path, first)) = parts.first() else {
        return Err(MergeError::Gap { id: "every case".to_string(), more: String::new() });
    };
    let (first_path, plan) = (first_path.clone(), first.plan.clone());
    let (config, version) = (first.config.clone(), first.firstdiff.clone());
    let reference = first.reference.clone();
    let mut models: BTreeMap<String, String> = BTreeMap::new();
    let mut found: HashMap<String, (PathBuf, CaseResult)> = HashMap::new();
    for (path, part) in parts {
        if part.firstdiff != version {
            let (found, wanted) = (part.firstdiff, version);
            return Err(MergeError::Version { path, first: first_path, found, wanted });
        }
        let same_models = part.models.iter().all(|(k, v)| models.get(k).is_none_or(|m| m == v));
        for (same, what) in [
            (part.plan == plan, "their cases"),
            (part.config == config, "the configuration, prompts or kernels"),
            (part.reference == reference, "the references"),
            (same_models, "the models"),
        ] {
            if !same {
                return Err(MergeError::Different { path, first: first_path, what });
            }
        }
        models.extend(part.models);
        for case in part.cases {
            let id = case.id.clone();
            if !plan.contains(&id) {
                return Err(MergeError::Unplanned { path, id });
            }
            if let Some(what) = contradiction(&case, &models) {
                return Err(MergeError::Contradiction { path, id, what });
            }
            if let Some((first, _)) = found.insert(id.clone(), (path.clone(), case)) {
                return Err(MergeError::Overlap { id, first, second: path });
            }
        }
    }
    let missing: Vec<&String> = plan.iter().filter(|id| !found.contains_key(*id)).collect();
    if let [id, rest @ ..] = &missing[..] {
        let more = match rest.len() {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        return Err(MergeError::Gap { id: id.to_string(), more });
    }
    let cases = plan.iter().filter_map(|id| found.remove(id)).map(|(_, case)| case).collect();
    Ok(Results::of(config, reference, None, models, plan, cases))
}
