//! Weights as an engine holds them, beside the tensors of the model's file.
//!
//! A right engine may hold a weight rounded, transposed, in another order of rows, fused, in part or requantised:
//! that is said, and accuses nobody. Zeros, another tensor, another layer's, one that is decoded wrongly or unknown
//! values are wrong.

mod beside;
mod elements;
mod held;
mod near;
mod order;
mod right;
mod summary;
mod target;
mod wrong;

use serde::{Deserialize, Serialize};

pub use summary::{Beside, LoadedSummary, WeightGroup};

use self::{
    held::Held,
    right::{Proof, Search},
    target::Target,
};
use crate::{
    core::loaded::LoadedWeight,
    model::{ModelFile, gguf::GgufError},
};

/// How a weight stands to the file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The file's, or rounded to a type.
    Right,
    /// The file's in another form, which may be right.
    Otherwise,
    Wrong,
    /// The file has no tensor of that name.
    Absent,
}

/// Which forms of a weight are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The file's own.
    AsFile,
    /// Any that an engine may have made of it.
    Any,
}

/// What is said of a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightVerdict {
    pub weight: LoadedName,
    pub standing: Standing,
    /// What it is, such as `all zero, but not in the file`; empty where it is the file's.
    pub text: String,
}

/// A weight without its values.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedName {
    pub name: String,
    pub of: Vec<String>,
    pub rank: Option<usize>,
}

/// What a weight was found to be.
#[derive(Clone, Debug, PartialEq)]
struct Found {
    standing: Standing,
    text: String,
}

impl Found {
    fn right(text: String) -> Found {
        Found { standing: Standing::Right, text }
    }

    fn otherwise(text: String) -> Found {
        Found { standing: Standing::Otherwise, text }
    }

    fn wrong(text: String) -> Found {
        Found { standing: Standing::Wrong, text }
    }
}

/// Compares a weight with the file's; `rank` is that of the process that held it.
pub fn compare(
    file: &ModelFile,
    weight: &LoadedWeight,
    rank: Option<usize>,
    form: Form,
) -> Result<WeightVerdict, GgufError> {
    let name = LoadedName { name: weight.name.clone(), of: weight.of.clone(), rank };
    let found = match Target::of(file, &weight.of) {
        Ok(target) => found(file, weight, &target)?,
        Err(text) => Found { standing: Standing::Absent, text },
    };
    let standing = match (found.standing, form) {
        (Standing::Otherwise, Form::AsFile) => Standing::Wrong,
        (standing, _) => standing,
    };
    Ok(WeightVerdict { weight: name, standing, text: found.text })
}

/// What a weight is, what is right before what is wrong.
fn found(file: &ModelFile, weight: &LoadedWeight, target: &Target<'_>) -> Result<Found, GgufError> {
    let held = Held::of(weight, (target.rows, target.cols));
    let as_in_file = right::as_in_file(&held, target)?;
    let as_in_file = as_in_file.map(|fit| fit.with_sums(&held, target)).transpose()?;
    if let Some(found) = as_in_file.clone().filter(|found| found.standing != Standing::Wrong) {
        return Ok(found);
    }
    let search = Search::of(&held, target)?;
    if let Some(found) = as_in_file {
        // The recorded rows may be the file's in another form or format too.
        let fit = search.right_of(Proof::Sums);
        return fit.map_or(Ok(found), |fit| search.with_sums(fit));
    }
    if let Some(fit) = search.right() {
        return search.with_sums(fit);
    }
    if let Some(text) = wrong::by_itself(&search).or_else(|| wrong::arranged(&search)) {
        return Ok(Found::wrong(text));
    }
    if let Some(found) = order::matched(&search) {
        return Ok(found);
    }
    if let Some(text) = wrong::elsewhere(file, target, &search)? {
        return Ok(Found::wrong(text));
    }
    Ok(near::near(&search).unwrap_or_else(|| Found::wrong(wrong::unknown(&search))))
}
