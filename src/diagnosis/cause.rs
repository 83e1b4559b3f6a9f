//! The cause of a guilty operation: the explanations that give its wrong result.

use std::{
    collections::{BTreeSet, HashMap},
    rc::Rc,
};

use serde::{Deserialize, Serialize};

use crate::{
    core::{arithmetic::Convention, cause_key::CauseKey, format::Format},
    diagnosis::{
        evidence::Evidence, explain::Explained, hypotheses, invariant::signs, replay::ReplayError,
    },
};

/// How sure a cause is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    /// Every element is what the cause gives, within the rounding bound.
    Proven,
    /// Every element is as near to the right one as the cause takes it, which no other computation shows:
    /// sums in a coarser format cannot be simulated.
    Consistent,
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
    /// Roundings that give the result, and that the side may declare: a convention, no mistake.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub declare: Vec<Convention>,
}

impl Cause {
    /// Whether the result is right in an arithmetic that was not declared.
    pub fn is_convention(&self) -> bool {
        matches!(self.certainty, Certainty::Proven | Certainty::Consistent)
            && !self.declare.is_empty()
    }
}

/// Below this share a hypothesis is not named: what it gives may be luck, and it is not what went wrong.
const LEAST_SHARE: f64 = 0.5;
/// Wrong elements that a likeness must give to be proven.
const LEAST_ALIKE: u64 = 8;
/// A gap through more layers has a whole one in it. Where an engine adds and norms at once, the end of a layer and
/// the beginning of the next are one.
const MOST_LAYERS: usize = 2;
/// At most this many causes are listed beside the first.
const MAX_ALSO: usize = 3;

pub struct Tried {
    pub key: CauseKey,
    pub text: String,
    pub rank: Rank,
    pub mistakes: u8,
    pub explained: Explained,
    /// What to declare where it is a convention.
    pub declare: Vec<Convention>,
    /// The family of hypotheses that it is of, by its place among them.
    pub family: usize,
}

impl Tried {
    /// What comes before what: a convention that explains everything before a likeness.
    fn standing(&self) -> u8 {
        let is_convention = !self.declare.is_empty() && self.explained.region.is_none();
        match self.rank {
            Rank::Mistake => 0,
            Rank::Arithmetic if is_convention => 1,
            Rank::Likeness => 2,
            Rank::Arithmetic => 3,
            Rank::Consistent => 4,
        }
    }
}

/// How much a cause says. A proven one hides those of lower rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// A mistake that someone made.
    Mistake,
    /// What the result looks like, whatever made it so.
    Likeness,
    /// A coarser result than declared.
    Arithmetic,
    /// Coarser sums than declared. They explain any small error, so they prove nothing.
    Consistent,
}

/// A hypothesis that was proven of a whole site, and may be of others.
pub struct Known {
    pub cause: Cause,
    pub family: usize,
}

/// Tries every hypothesis on a guilty site.
pub fn diagnose(evidence: &Evidence<'_>) -> Result<Cause, ReplayError> {
    diagnose_as(evidence, &mut Vec::new())
}

/// The same, and keeps a cause that is proven.
fn diagnose_as(evidence: &Evidence<'_>, known: &mut Vec<Rc<Known>>) -> Result<Cause, ReplayError> {
    let layers = evidence.layers();
    if layers > MOST_LAYERS {
        return Ok(too_far(layers, evidence.count_wrong() as u64));
    }
    evidence.tries_smallest.set(true);
    let (mut cause, mut families) = best(evidence)?;
    if cause.certainty != Certainty::Proven && evidence.has_other_first() {
        evidence.tries_smallest.set(false);
        (cause, families) = best(evidence)?;
    }
    cause.signs = signs(evidence);
    if let (Certainty::Unknown, Some(seen)) =
        (cause.certainty, hypotheses::read_off_unknown(evidence))
    {
        cause.text = format!("unknown: {seen}");
    }
    if let (Certainty::Proven, Some(&family)) = (cause.certainty, families.get(&cause.text)) {
        known.push(Rc::new(Known { cause: cause.clone(), family }));
    }
    Ok(cause)
}

/// The best explanation of all hypotheses, and the family of each.
fn best(evidence: &Evidence<'_>) -> Result<(Cause, HashMap<String, usize>), ReplayError> {
    let mut tried = Vec::new();
    hypotheses::all(evidence, &mut |hypothesis| tried.extend(hypothesis))?;
    let families = tried.iter().map(|tried| (tried.text.clone(), tried.family)).collect();
    Ok((choose(tried), families))
}

/// What is said where whole layers lie between what was recorded: too many mistakes would look alike, and each
/// would be computed through all of them.
fn too_far(layers: usize, wrong: u64) -> Cause {
    let text = format!(
        "unknown: nothing between was recorded in {layers} layers; record layer_out of each to know the cause"
    );
    Cause { text, wrong, ..unknown(None, 0) }
}

/// The same where one of the causes of other sites may be it again, which is tried first: one mistake is in
/// many layers.
pub fn diagnose_again(
    evidence: &mut Evidence<'_>,
    known: &mut Vec<Rc<Known>>,
) -> Result<Cause, ReplayError> {
    const MOST: usize = 4;
    let mut seen = BTreeSet::new();
    let newest = known.iter().rev().filter(|known| seen.insert(&known.cause.text));
    let newest: Vec<Rc<Known>> = newest.take(MOST).cloned().collect();
    for one in newest {
        evidence.only = Some(Rc::clone(&one));
        let found = diagnose(evidence)?;
        if found.certainty == Certainty::Proven && found.text == one.cause.text {
            let (also, refuted) = (one.cause.also.clone(), one.cause.refuted);
            known.push(one);
            return Ok(Cause { also, refuted, ..found });
        }
    }
    evidence.only = None;
    diagnose_as(evidence, known)
}

/// The best explanation: a proof before a part, a mistake before a likeness, everywhere before
/// somewhere, one mistake before two, and then the closest.
pub fn choose(tried: Vec<Tried>) -> Cause {
    let count = tried.len();
    let (consistent, tried): (Vec<Tried>, Vec<Tried>) = tried
        .into_iter()
        .partition(|t| t.rank == Rank::Consistent || t.explained.is_wide && is_ggml(t));
    // Two mistakes and a region are too much freedom, and a few elements look like anything.
    let is_simple = |t: &Tried| t.mistakes == 1 || t.rank == Rank::Arithmetic;
    let is_told = |t: &Tried| {
        t.rank != Rank::Likeness || t.key.gives_none() || t.explained.wrong >= LEAST_ALIKE
    };
    let proves = |t: &&Tried| {
        t.explained.is_proof() && is_told(t) && (is_simple(t) || t.explained.region.is_none())
    };
    let mut proofs: Vec<&Tried> = tried.iter().filter(proves).collect();
    // What a result looks like in a region is simpler than what takes a number for each row.
    let simplicity = |t: &Tried| {
        let region = t.explained.region.is_some();
        let freedom = if t.rank == Rank::Likeness { t.mistakes + u8::from(region) } else { 0 };
        (t.standing(), freedom, region, t.mistakes)
    };
    proofs.sort_by(|a, b| {
        let closeness = a.explained.residual.total_cmp(&b.explained.residual);
        simplicity(a).cmp(&simplicity(b)).then(closeness)
    });
    if let Some(&first) = proofs.first() {
        let same = |t: &&&Tried| {
            let is_alike = match first.rank {
                Rank::Arithmetic => (t.rank, t.declare.len()) == (first.rank, first.declare.len()),
                _ => simplicity(t) == simplicity(first),
            };
            is_alike && t.explained.residual <= 2.0 * first.explained.residual + 0.05
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
    let holds = |t: &&Tried| t.explained.is_whole();
    let order = |t: &&Tried| (t.rank == Rank::Consistent, t.mistakes);
    let consistent = consistent.iter().filter(holds).min_by_key(order);
    match (best, consistent) {
        (best, Some(coarse)) if best.is_none_or(|best| share(best) < LEAST_SHARE) => {
            cause(coarse, Certainty::Consistent, Vec::new(), count - 1)
        }
        (Some(best), _) if share(best) >= LEAST_SHARE => {
            cause(best, Certainty::Partly, Vec::new(), count - 1)
        }
        (best, _) => unknown(best, count),
    }
}

impl Cause {
    /// Of a guilty operation whose cause was not sought, or not to the end, as the run was told to end.
    pub fn not_sought() -> Cause {
        Cause { text: "not sought, as the run was ended".to_string(), ..unknown(None, 0) }
    }
}

fn unknown(best: Option<&Tried>, refuted: usize) -> Cause {
    Cause {
        key: CauseKey::Unknown,
        text: "unknown".to_string(),
        certainty: Certainty::Unknown,
        explained: best.map_or(0, |best| best.explained.explained),
        wrong: best.map_or(0, |best| best.explained.wrong),
        also: Vec::new(),
        refuted,
        signs: Vec::new(),
        declare: Vec::new(),
    }
}

/// Whether it is what ggml's own kernels round. The sums that they store beside some blocks are only known to a part.
fn is_ggml(tried: &Tried) -> bool {
    matches!(tried.declare[..], [Convention { format: Format::Ggml, .. }])
}

fn described(tried: &Tried) -> String {
    match &tried.explained.region {
        Some(region) if !region.is_empty() => format!("{}, {region}", tried.text),
        _ => tried.text.clone(),
    }
}

fn cause(tried: &Tried, certainty: Certainty, also: Vec<String>, refuted: usize) -> Cause {
    // Coarse angles grow with the position, and no format is declared for a part of the results.
    let may_declare = tried.rank == Rank::Arithmetic && tried.explained.region.is_none();
    Cause {
        key: tried.key,
        text: described(tried),
        certainty,
        explained: tried.explained.explained,
        wrong: tried.explained.wrong,
        also,
        refuted,
        signs: Vec::new(),
        declare: if may_declare { tried.declare.clone() } else { Vec::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(text: &str, rank: Rank, [wrong, explained, contradicted]: [u64; 3]) -> Tried {
        let (region, residual) = (None, 0.1);
        let explained =
            Explained { wrong, explained, contradicted, region, residual, is_wide: false };
        Tried {
            key: CauseKey::Eps,
            text: text.into(),
            rank,
            mistakes: 1,
            explained,
            declare: Vec::new(),
            family: 0,
        }
    }

    #[test]
    fn coarse_sums_are_never_proven_and_give_way_to_what_explains_half() {
        let coarse = || tried("coarse", Rank::Consistent, [100, 100, 0]);
        let with =
            |explained| choose(vec![coarse(), tried("other", Rank::Mistake, [100, explained, 0])]);
        assert_eq!((with(49).certainty, &*with(49).text), (Certainty::Consistent, "coarse"));
        assert_eq!((with(50).certainty, &*with(50).text), (Certainty::Partly, "other"));
        assert_eq!((with(100).certainty, &*with(100).text), (Certainty::Proven, "other"));
        let cause = choose(vec![tried("other", Rank::Mistake, [100, 49, 0])]);
        assert_eq!((cause.certainty, &*cause.text), (Certainty::Unknown, "unknown"));
    }

    #[test]
    fn a_mistake_comes_before_a_likeness_and_a_likeness_of_fewer_numbers_before_one_of_more() {
        let all = [100, 100, 0];
        let many = Tried { mistakes: 2, ..tried("many", Rank::Likeness, all) };
        let list =
            vec![many, tried("one", Rank::Likeness, all), tried("mistake", Rank::Mistake, all)];
        assert_eq!(choose(list).text, "mistake");
        let many = Tried { mistakes: 2, ..tried("many", Rank::Likeness, all) };
        assert_eq!(choose(vec![many, tried("one", Rank::Likeness, all)]).text, "one");
    }

    #[test]
    fn a_few_elements_in_a_region_prove_nothing() {
        let of = |wrong| {
            let region = Some("dim 3 only".to_string());
            Explained {
                wrong,
                explained: wrong,
                contradicted: 900,
                region,
                residual: 0.1,
                is_wide: false,
            }
        };
        assert!(!of(7).is_proof() && of(8).is_proof());
    }
}
