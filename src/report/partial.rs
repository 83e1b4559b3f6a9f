//! A report of less than all: what was asked for, and where a run ended before its last site.

use serde::{Deserialize, Serialize};

use super::{Headline, Report};
use crate::{
    compare::{Layers, SiteFilter},
    core::{activity, exit::Exit},
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
    fn flags(&self) -> String {
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
    #[serde(rename = "SIGINT")]
    Interrupt,
    #[serde(rename = "SIGTERM")]
    Terminate,
}

/// What a run was at when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum During {
    Comparison,
    /// The comparison was complete.
    Replay,
}

/// Where a run ended before its last site.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Partial {
    pub ended_by: EndedBy,
    pub during: During,
    /// The last site that was compared, or replayed, such as `0/blk.3.layer_out`.
    pub after: Option<String>,
    /// Sites that were asked for and not compared.
    pub not_compared: usize,
}

impl EndedBy {
    /// The signal by which the run was told to end.
    fn signal() -> Option<EndedBy> {
        let of = |signal| match Exit::of_signal(signal) {
            Exit::Interrupted => EndedBy::Interrupt,
            _ => EndedBy::Terminate,
        };
        activity::interrupted().map(of)
    }
}

impl Report {
    /// Notes where the comparison ended, if that was before its last site.
    pub(super) fn note_end(&mut self) {
        let Some(compared) = &self.compared else { return };
        let not_compared = compared.coverage.asked.saturating_sub(self.sites.len());
        if not_compared > 0 {
            let ended_by = EndedBy::signal().unwrap_or(EndedBy::UntilFirst);
            let after = self.sites.last().map(|row| row.site.clone());
            let during = During::Comparison;
            self.partial = Some(Partial { ended_by, during, after, not_compared });
        }
    }

    /// Notes where the replay ended, if that was before its last site and the comparison had not ended before.
    /// `None` where nothing was replayed, though that was asked for.
    pub fn note_replay_end(&mut self, diagnosis: Option<&Diagnosis>) {
        let is_interrupted = diagnosis.is_none_or(Diagnosis::is_interrupted);
        let signal = EndedBy::signal().filter(|_| is_interrupted);
        let ended = diagnosis.and_then(|found| found.engine.ended);
        let is_first = self.compared.is_none() && ended.is_some();
        let ended_by = signal.or(is_first.then_some(EndedBy::UntilFirst));
        if let (None, Some(ended_by)) = (&self.partial, ended_by) {
            let name = |ReplayEnd { step, after }| format!("{step}/{}", after.result());
            let (after, during) = (ended.map(name), During::Replay);
            self.partial = Some(Partial { ended_by, during, after, not_compared: 0 });
        }
    }

    /// Says in the answer, once that is known, where the run ended, if that was before its last site.
    pub fn say_end(&mut self) {
        let Some(Partial { ended_by, during, after, not_compared }) = &self.partial else { return };
        let place =
            after.as_ref().map_or("at its beginning".into(), |after| format!("after {after}"));
        let asked = self.compared.as_ref().map_or(0, |compared| compared.coverage.asked);
        let (signal, exit) = match ended_by {
            EndedBy::UntilFirst => {
                self.headline.text += &match during {
                    During::Comparison => format!(
                        "; {not_compared} of {asked} sites were not compared (--until first)"
                    ),
                    During::Replay => format!("; nothing {place} was replayed (--until first)"),
                };
                return;
            }
            EndedBy::Interrupt => ("Ctrl-C", Exit::Interrupted),
            EndedBy::Terminate => ("SIGTERM", Exit::Terminated),
        };
        let at = match during {
            During::Comparison => {
                format!("{place}, {not_compared} of {asked} sites not compared, nothing replayed")
            }
            During::Replay if after.is_none() && self.diagnosis.is_none() => {
                "before the replay".to_string()
            }
            During::Replay => format!("in the replay {place}"),
        };
        self.end_early(&format!("{signal} {at}"), exit);
    }

    /// Makes the answer that of what a signal left.
    pub fn end_early(&mut self, by: &str, exit: Exit) {
        let text = format!("partial, ended by {by}; so far: {}", self.headline.text);
        let first_divergence = self.headline.first_divergence.take();
        self.headline = Headline { first_divergence, ..Headline::of(exit, text) };
    }

    /// The answer of an explained trace of which not all was asked for.
    pub fn with_asked(&mut self, filter: &SiteFilter) {
        self.asked = AskedSites::of(filter);
        if let (Some(asked), None) = (&self.asked, &self.compared) {
            self.headline.text += &format!(" ({})", asked.flags());
        }
    }
}
