//! The cause of a guilty operation: the explanations that give its wrong result.

use serde::{Deserialize, Serialize};

use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        explain::{Explained, explain},
        invariant::signs,
        replay::ReplayError,
        scene::{Candidate, Rank, Scene},
        table::HYPOTHESES,
    },
};

/// How sure a cause is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    /// Every element is what the cause gives, within the rounding bound.
    Proven,
    /// A part of the elements is.
    Partly,
    /// No hypothesis gives more than a few.
    Unknown,
}

/// What made an operation's result wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    /// The kind, as in `docs/diagnosis.md`; empty where unknown.
    pub key: CauseKey,
    pub text: String,
    pub certainty: Certainty,
    /// Elements that the cause gives among those in question.
    pub explained: u64,
    pub wrong: u64,
    /// Other causes that give the same numbers.
    pub also: Vec<String>,
    /// Hypotheses that were tried and do not explain the result.
    pub refuted: usize,
    /// What holds of the errors, whatever made them: `the same for every token`.
    pub signs: Vec<String>,
}

/// Below this share a hypothesis explains nothing: that many elements agree by luck.
const LEAST_SHARE: f64 = 0.1;
/// At most this many causes are listed beside the first.
const MAX_ALSO: usize = 3;

pub struct Tried {
    pub key: CauseKey,
    pub text: String,
    pub rank: Rank,
    pub mistakes: u8,
    pub explained: Explained,
}

/// Tries every hypothesis on a guilty operation.
pub fn diagnose(scene: &Scene<'_, '_>) -> Result<Cause, ReplayError> {
    let mut tried: Vec<Tried> = Vec::new();
    let nothing = Explained::nothing(scene);
    for hypothesis in HYPOTHESES.iter().filter(|h| (h.applies)(scene.stage())) {
        (hypothesis.candidates)(scene, &mut |candidate| {
            let Candidate { key, text, rank, mistakes, parts } = candidate;
            let explained = match parts {
                Some(parts) => explain(scene, parts)?,
                None => nothing.clone(),
            };
            tried.push(Tried { key, text, rank, mistakes, explained });
            Ok(())
        })?;
    }
    Ok(Cause { signs: signs(scene), ..choose(tried) })
}

/// The best explanation: a proof before a part, a mistake before a likeness, everywhere before
/// somewhere, one mistake before two, and then the closest.
pub fn choose(tried: Vec<Tried>) -> Cause {
    let count = tried.len();
    let mut proofs: Vec<&Tried> = tried.iter().filter(|t| t.explained.is_proof()).collect();
    let simplicity = |t: &Tried| (t.rank, t.explained.region.is_some(), t.mistakes);
    proofs.sort_by(|a, b| {
        let closeness = a.explained.residual.total_cmp(&b.explained.residual);
        simplicity(a).cmp(&simplicity(b)).then(closeness)
    });
    if let Some(&first) = proofs.first() {
        let same = |t: &&&Tried| {
            simplicity(t) == simplicity(first)
                && t.explained.residual <= 2.0 * first.explained.residual + 0.05
        };
        let mut also: Vec<String> =
            proofs.iter().skip(1).filter(same).map(|t| described(t)).collect();
        also.retain(|text| *text != described(first));
        also.dedup();
        also.truncate(MAX_ALSO);
        let refuted = count - proofs.len();
        return cause(first, Certainty::Proven, also, refuted);
    }
    let share = |t: &Tried| t.explained.share();
    let best = tried
        .iter()
        .filter(|t| t.rank != Rank::Arithmetic)
        .max_by(|a, b| share(a).total_cmp(&share(b)).then(simplicity(b).cmp(&simplicity(a))));
    match best {
        Some(best) if share(best) >= LEAST_SHARE => {
            cause(best, Certainty::Partly, Vec::new(), count - 1)
        }
        _ => Cause {
            key: CauseKey::Unknown,
            text: match best {
                Some(best) if best.explained.explained > 0 => {
                    format!("unknown; nearest: {}", best.text)
                }
                _ => "unknown".to_string(),
            },
            certainty: Certainty::Unknown,
            explained: best.map_or(0, |best| best.explained.explained),
            wrong: best.map_or(0, |best| best.explained.wrong),
            also: Vec::new(),
            refuted: count,
            signs: Vec::new(),
        },
    }
}

fn described(tried: &Tried) -> String {
    match &tried.explained.region {
        Some(region) if !region.is_empty() => format!("{}, {region}", tried.text),
        _ => tried.text.clone(),
    }
}

fn cause(tried: &Tried, certainty: Certainty, also: Vec<String>, refuted: usize) -> Cause {
    Cause {
        key: tried.key,
        text: described(tried),
        certainty,
        explained: tried.explained.explained,
        wrong: tried.explained.wrong,
        also,
        refuted,
        signs: Vec::new(),
    }
}
