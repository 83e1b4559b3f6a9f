//! A report of less than all: what was asked for, and where a run ended before its last site.

use serde::{Deserialize, Serialize};

use super::{Headline, Report};
use crate::{
    compare::{Layers, SiteFilter},
    diagnosis::{Diagnosis, replay::ReplayEnd},
};

/// The sites that were asked for, where not all were.
#[derive(Clone, Debug, Serialize)]
pub struct AskedSites {
    /// Globs, as they were given.
    pub sites: Vec<String>,
    pub layers: Option<Layers>,
}

impl AskedSites {
    /// What a filter asks for; `None` where that is all.
    pub fn of(filter: &SiteFilter) -> Option<AskedSites> {
        let (sites, layers) = (filter.globs().to_vec(), filter.layers());
        (!filter.wants_all()).then_some(AskedSites { sites, layers })
    }

    /// In words: `--layers 0..4`.
    pub fn flags(&self) -> String {
        let sites = (!self.sites.is_empty()).then(|| format!("--sites {}", self.sites.join(",")));
        let layers = self.layers.map(|layers| format!("--layers {layers}"));
        sites.into_iter().chain(layers).collect::<Vec<_>>().join(" ")
    }
}

/// Why a run ended before its last site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndedBy {
    #[serde(rename = "until_first")]
    UntilFirst,
}

/// Where a run ended before its last site.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Partial {
    pub ended_by: EndedBy,
    /// The last site that was compared, such as `0/blk.3.layer_out`.
    pub after: Option<String>,
    /// Sites that were asked for and not compared.
    pub not_compared: usize,
}

impl Report {
    /// Notes where the comparison ended, if that was before its last site.
    pub(super) fn note_end(&mut self, until_first: bool) {
        let Some(compared) = &self.compared else { return };
        let not_compared = compared.coverage.asked.saturating_sub(self.sites.len());
        if not_compared == 0 || !until_first {
            return;
        }
        let after = self.sites.last().map(|row| row.site.clone());
        self.partial = Some(Partial { ended_by: EndedBy::UntilFirst, after, not_compared });
        self.say_end();
    }

    /// Says in the answer where the run ended, if that was before its last site.
    pub fn say_end(&mut self) {
        let Some(Partial { after, not_compared, .. }) = &self.partial else { return };
        let after = after.as_deref().unwrap_or("nothing");
        let rest = match &self.compared {
            Some(compared) => {
                let asked = compared.coverage.asked;
                format!("{not_compared} of {asked} sites were not compared")
            }
            None => format!("nothing after {after} was replayed"),
        };
        self.headline.text += &format!("; {rest} (--until first)");
    }

    /// Notes that a replay without a comparison ended before the last operation.
    pub fn note_replay_end(&mut self, diagnosis: &Diagnosis) {
        let ended = diagnosis.engine.ended.filter(|_| self.compared.is_none());
        if let Some(ReplayEnd { step, after }) = ended {
            let after = Some(format!("{step}/{}", after.result()));
            self.partial = Some(Partial { ended_by: EndedBy::UntilFirst, after, not_compared: 0 });
        }
        self.say_end();
    }

    /// The answer of an explained trace of which not all was asked for.
    pub fn with_asked(&mut self, filter: &SiteFilter) {
        self.asked = AskedSites::of(filter);
        if let (Some(asked), None) = (&self.asked, &self.compared) {
            let text = format!("{} ({})", self.headline.text, asked.flags());
            self.headline = Headline { text, ..self.headline.clone() };
        }
    }
}
