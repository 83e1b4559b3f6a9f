//! A prompt that is run in several steps, and the floors of those.

use crate::{
    core::floor::{Floor, SiteFloor},
    graph::{Sites, site::Site},
};

/// The same tokens in two divisions.
pub struct Division {
    /// As the floors were measured: the prompt, then each decoded token.
    pub whole: Vec<Vec<i32>>,
    /// As they are run.
    pub steps: Vec<Vec<i32>>,
}

impl Division {
    /// The prompt in steps of so many tokens, the last of fewer.
    pub fn of(whole: &[Vec<i32>], chunk: usize) -> Division {
        let (prompt, decoded) =
            whole.split_first().map_or((&[][..], &[][..]), |(p, d)| (&p[..], d));
        let chunks = prompt.chunks(chunk.max(1)).map(<[i32]>::to_vec);
        Division { whole: whole.to_vec(), steps: chunks.chain(decoded.iter().cloned()).collect() }
    }

    /// The floors of the steps that are run: the largest of those that their tokens were measured in. A
    /// relative L2 was measured over more rows, or fewer; of any rows it is at most the root of a row's length
    /// times the floor of an element, as a row's norm is at least its largest element.
    pub fn floor(&self, measured: &Floor, sites: &Sites) -> Floor {
        let mut floor = Floor::default();
        let mut start = 0;
        for (step, tokens) in self.steps.iter().enumerate() {
            let end = start + tokens.len();
            let is_same = self.whole.get(self.at(start)).is_some_and(|whole| whole == tokens);
            for spec in sites.specs() {
                let of = |at: usize| measured.0.get(&spec.site(at as u32)).copied();
                let all = (self.at(start)..=self.at(end - 1)).map(of);
                let Some(all) = all.collect::<Option<Vec<SiteFloor>>>() else { continue };
                let mut largest = all.into_iter().reduce(SiteFloor::max).unwrap_or_default();
                if !is_same {
                    let width: usize = spec.shape(tokens.len(), end).iter().skip(1).product();
                    let any = largest.elementwise * (width as f64).sqrt();
                    largest.relative_l2 = largest.relative_l2.max(any);
                }
                let site: Site = spec.site(step as u32);
                floor.0.insert(site, largest.capped());
            }
            start = end;
        }
        floor
    }

    /// The step in which a position was measured.
    fn at(&self, position: usize) -> usize {
        let mut end = 0;
        let is_after = |tokens: &Vec<i32>| {
            end += tokens.len();
            end > position
        };
        self.whole.iter().position(is_after).unwrap_or(self.whole.len().saturating_sub(1))
    }
}
