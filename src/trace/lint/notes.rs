//! The same observation at many sites is one note.

use crate::graph::site::Site;

/// Observations in the order of their first sites.
#[derive(Default)]
pub(super) struct Notes(Vec<(String, Vec<Site>)>);

impl Notes {
    /// Adds a site at which an observation was made.
    pub fn add(&mut self, what: String, site: Site) {
        match self.0.iter_mut().find(|(known, _)| *known == what) {
            Some((_, sites)) => sites.push(site),
            None => self.0.push((what, vec![site])),
        }
    }

    /// One line each: the first site, the observation, and at how many sites it holds.
    pub fn lines(self) -> Vec<String> {
        let line = |(what, sites): (String, Vec<Site>)| {
            let more = match sites.len() - 1 {
                0 => String::new(),
                1 => "; the same at 1 more site".to_string(),
                more => format!("; the same at {more} more sites"),
            };
            format!("{} {what}{more}", sites[0])
        };
        self.0.into_iter().map(line).collect()
    }
}
