//! The search for the first commit that is worse than the good one.

use std::{cmp::Ordering, collections::BTreeMap};

use crate::graph::site::Site;

/// The first site that diverges, or none. Later is better, and none is best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Score(pub Option<Site>);

impl Score {
    /// Whether something diverges here before it does there.
    pub fn is_worse_than(self, other: Score) -> bool {
        match (self.0, other.0) {
            (Some(own), Some(other)) => own.cmp(&other) == Ordering::Less,
            (own, None) => own.is_some(),
            (None, Some(_)) => false,
        }
    }
}

impl std::fmt::Display for Score {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(site) => write!(f, "{site}"),
            None => f.write_str("none"),
        }
    }
}

/// What a commit was found to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Probe {
    Scored(Score),
    /// Its kernels do not run, for this reason.
    Skipped(String),
}

/// What is known at the end.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Every commit that was tried.
    pub probes: BTreeMap<usize, Probe>,
    /// The last that is as good as the first one.
    pub good: usize,
    /// The first that is worse, of those that could be tried; the ones between do not run.
    pub bad: usize,
}

/// Why there is nothing to find.
pub type Nothing = BTreeMap<usize, Probe>;

/// Searches `count` commits, of which the first is good and the last is bad. `Ok(Err(...))` where the
/// ends are not so.
pub fn search<E>(
    count: usize,
    probe: &mut dyn FnMut(usize) -> Result<Probe, E>,
) -> Result<Result<Found, Nothing>, E> {
    let mut probes = BTreeMap::new();
    for end in [0, count - 1] {
        probes.insert(end, probe(end)?);
    }
    let (Probe::Scored(first), Probe::Scored(last)) = (&probes[&0], &probes[&(count - 1)]) else {
        return Ok(Err(probes));
    };
    let first = *first;
    if !last.is_worse_than(first) {
        return Ok(Err(probes));
    }
    let (mut good, mut bad) = (0, count - 1);
    // The nearest to the middle that is not known not to run.
    while let Some(next) = (good + 1..bad)
        .filter(|index| !probes.contains_key(index))
        .min_by_key(|index| index.abs_diff((good + bad) / 2))
    {
        let result = probe(next)?;
        match &result {
            Probe::Scored(score) if score.is_worse_than(first) => bad = next,
            Probe::Scored(_) => good = next,
            Probe::Skipped(_) => {}
        }
        probes.insert(next, result);
    }
    Ok(Ok(Found { probes, good, bad }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::site::Stage;

    const GOOD: Probe = Probe::Scored(Score(None));

    fn diverges(step: u32) -> Probe {
        Probe::Scored(Score(Some(Site::global(step, Stage::Logits))))
    }

    fn found(probes: &[Probe]) -> Option<(usize, usize, usize)> {
        let mut probe = |index: usize| Ok::<Probe, ()>(probes[index].clone());
        let found = search(probes.len(), &mut probe).ok()?.ok()?;
        Some((found.good, found.bad, found.probes.len()))
    }

    #[test]
    fn the_first_worse_commit_is_found_in_a_logarithm_of_tries_wherever_it_is() {
        for count in 2..40 {
            for bad in 1..count {
                let probes: Vec<Probe> =
                    (0..count).map(|i| if i < bad { GOOD } else { diverges(1) }).collect();
                let (good, found, tries) = found(&probes).unwrap_or_default();
                assert_eq!((good, found), (bad - 1, bad));
                assert!(tries <= 2 + count.ilog2() as usize + 1, "{tries} of {count}");
            }
        }
    }

    #[test]
    fn commits_that_do_not_run_are_passed_over_and_stay_in_doubt() {
        let skip = Probe::Skipped("no".to_string());
        let bad = || diverges(1);
        assert_eq!(found(&[GOOD, skip.clone(), skip.clone(), bad()]), Some((0, 3, 4)));
        let probes = [GOOD, GOOD, skip.clone(), GOOD, bad(), skip, bad()];
        assert_eq!(found(&probes).map(|(good, bad, _)| (good, bad)), Some((3, 4)));
    }

    #[test]
    fn an_earlier_site_is_worse_and_a_later_one_is_not() {
        let (early, late) = (diverges(0), diverges(3));
        assert_eq!(found(&[late.clone(), late.clone(), early.clone()]), Some((1, 2, 3)));
        assert_eq!(found(&[early.clone(), late]), None);
        assert_eq!(found(&[GOOD, GOOD]), None);
        assert_eq!(found(&[early.clone(), early]), None);
    }
}
