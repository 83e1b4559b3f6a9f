//! The report as data. Every serialised type is here; `docs/report.md` describes them.

use serde::{Deserialize, Serialize};

use crate::{
    compare::{
        Difference,
        verdict::{Coverage, Outcome, SiteReport},
    },
    core::{
        arithmetic::Arithmetic, exit::Exit, floor::SiteFloor, sink::Choice, task::first_position,
    },
    diagnosis::{CachedPrefix, Diagnosis, loaded::LoadedSummary, replay::Operation},
    graph::site::Site,
    model::{Config, Ledger},
    report::{AskedSites, Partial, Summary},
};

/// Raised when a field is added, removed or changes its meaning.
pub const REPORT_VERSION: u32 = 9;

/// A whole report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub report_version: u32,
    pub firstdiff: String,
    /// The answer in at most 4 kB, for a program; absent until what to do next is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    pub headline: Headline,
    /// Where the run ended before its last site; absent where it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partial: Option<Partial>,
    /// The sites that were asked for; absent where that is all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<AskedSites>,
    /// Which sequence of a batch this is of; absent where the trace is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u32>,
    /// The answer of each sequence, where all were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sequences: Vec<SequenceRow>,
    pub model: Option<ModelSummary>,
    pub engine: SideSummary,
    /// Absent where one trace was explained by itself.
    pub reference: Option<SideSummary>,
    /// Absent where there was nothing to compare with.
    pub compared: Option<Compared>,
    /// The engine's weights as it holds them, beside the file's; absent where none were recorded.
    pub weights: Option<LoadedSummary>,
    /// Every operation replayed in f64 from its side's own inputs; absent if that was not asked for.
    pub diagnosis: Option<Diagnosis>,
    /// The same engine on a second device; absent where one was asked for.
    pub devices: Option<DevicesSummary>,
    pub steps: Vec<StepRow>,
    /// The position of the first token of each step of the engine, where they are not those of `steps`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub engine_positions: Vec<usize>,
    /// What went unsaid elsewhere and a reader should know.
    pub notes: Vec<String>,
    pub sites: Vec<SiteRow>,
    pub seconds: f64,
}

impl Report {
    /// A report of this version with nothing in it but an engine and an answer.
    pub(super) fn of_engine(headline: Headline, engine: SideSummary) -> Report {
        Report {
            report_version: REPORT_VERSION,
            firstdiff: env!("CARGO_PKG_VERSION").to_string(),
            summary: None,
            headline,
            partial: None,
            asked: None,
            sequence: None,
            sequences: Vec::new(),
            model: None,
            engine,
            reference: None,
            compared: None,
            weights: None,
            diagnosis: None,
            devices: None,
            steps: Vec::new(),
            engine_positions: Vec::new(),
            notes: Vec::new(),
            sites: Vec::new(),
            seconds: 0.0,
        }
    }

    /// Adds what a second device gave. An engine that two devices run differently is not equal.
    pub fn with_devices(&mut self, devices: DevicesSummary) {
        let headline = &mut self.headline;
        if !devices.agree && matches!(headline.exit, Exit::Equal | Exit::NotMeasured) {
            headline.exit = Exit::Diverged;
            headline.exit_code = Exit::Diverged as u8;
            headline.text = format!("devices differ: {}; {}", devices.text, headline.text);
        }
        self.devices = Some(devices);
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Headline {
    pub exit: Exit,
    pub exit_code: u8,
    /// The first line of the text report.
    pub text: String,
    /// The first site that diverged, such as `0/blk.0.q`.
    pub first_divergence: Option<String>,
}

impl Headline {
    /// An answer that no comparison of sites gave.
    pub fn of(exit: Exit, text: String) -> Headline {
        Headline { exit, exit_code: exit as u8, text, first_divergence: None }
    }

    /// The same after what the ranks of a trace disagree on, if there is such a thing.
    pub fn after(self, ranks: Option<String>) -> Headline {
        self.preceded(ranks.map(|found| format!("ranks disagree: {found}")))
    }

    /// The same after the weights that are wrong: what follows from them is not equal.
    pub fn after_weights(self, weights: &LoadedSummary) -> Headline {
        self.preceded(weights.headline())
    }

    /// The same after a cached prefix that is another prompt's.
    pub fn after_prefix(self, prefix: &CachedPrefix) -> Headline {
        self.preceded(prefix.headline())
    }

    /// The same after something that is wrong, if there is such a thing.
    fn preceded(self, found: Option<String>) -> Headline {
        let Some(found) = found else { return self };
        let exit = match self.exit {
            Exit::Equal | Exit::NotMeasured => Exit::Diverged,
            exit => exit,
        };
        let rest = if self.text.is_empty() { "" } else { "; " };
        let text = format!("{found}{rest}{}", self.text);
        Headline { exit, exit_code: exit as u8, text, ..self }
    }
}

/// The answer of one sequence of a batch.
#[derive(Clone, Debug, Serialize)]
pub struct SequenceRow {
    pub sequence: u32,
    pub headline: Headline,
    /// What was replayed of it; absent if nothing was.
    pub diagnosis: Option<Diagnosis>,
}

/// The model that both sides ran.
#[derive(Clone, Debug, Serialize)]
pub struct ModelSummary {
    pub path: String,
    pub blake3: String,
    pub config: Config,
    pub parameters: u64,
    pub ledger: Ledger,
}

/// One side of the comparison.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SideSummary {
    /// What ran: `llama.cpp`, or the device.
    pub name: String,
    /// Settings that change its numbers.
    pub settings: Vec<(String, String)>,
    pub arithmetic: Option<Arithmetic>,
}

/// How the comparison was made, and how much it covers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Compared {
    pub factor: f64,
    /// The tolerance in words.
    pub formula: String,
    pub coverage: Coverage,
    pub layers: usize,
    pub prompt_tokens: usize,
    pub decode_steps: usize,
    /// The position of the first token of each step; absent where the prompt is one step, and each decoded
    /// token another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first_positions: Vec<usize>,
    /// Where the engine goes on with other ids than the reference's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parted: Option<Parted>,
    /// The prompt's tokens whose scores and probs were compared; absent where that is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Vec<usize>>,
    /// Whether the logits are bit-equal with and without hooks, if that was checked: in all steps, or on the CPU in the
    /// last one of a larger model.
    pub hooks_leave_logits: Option<bool>,
    /// Whether the engine gives the same logits bit by bit when it is run again, if checked.
    pub runs_repeat: Option<bool>,
}

/// The first id that the sides did not both run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Parted {
    pub position: usize,
    /// The reference's step that runs it.
    pub step: usize,
    pub engine: i32,
    pub reference: i32,
    /// Why, in words.
    pub why: String,
    /// Whether the two were as good, within the floor.
    pub is_near_tie: bool,
}

/// The tolerance in words.
pub(super) fn formula(factor: f64) -> String {
    format!(
        "|engine - reference| <= {factor} x floor x max|reference| of the token's row, and relative \
         L2 <= {factor} x its floor; floors measured with rounding-sized noise"
    )
}

impl Compared {
    /// The position of a step's first token.
    pub fn first_position(&self, step: u32) -> usize {
        let listed = self.first_positions.get(step as usize);
        listed.copied().unwrap_or_else(|| first_position(self.prompt_tokens, step))
    }

    /// How far the run went, in words.
    pub fn extent(&self) -> String {
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let mut parts = vec![
            count(self.layers, "layer"),
            count(self.prompt_tokens, "prompt token"),
            count(self.decode_steps, "decode step"),
        ];
        if let Some(rows) = &self.rows {
            parts.push(format!("prompt's scores and probs of {} only", count(rows.len(), "token")));
        }
        parts.join(", ")
    }
}

/// What the same kernels gave on two devices.
#[derive(Clone, Debug, Serialize)]
pub struct DevicesSummary {
    /// The first device, which is the engine of the rest of the report.
    pub first: String,
    pub second: String,
    pub agree: bool,
    /// The answer in words.
    pub text: String,
    pub coverage: Coverage,
    /// Results of operations that are wrong on one device and within their bounds on the other.
    pub guilty_on_first_only: Vec<Operation>,
    pub guilty_on_second_only: Vec<Operation>,
    /// The sites of the second device that differ from the first one's.
    pub differing: Vec<SiteRow>,
}

/// One step: its tokens, and what each side would say next.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepRow {
    pub tokens: Vec<i32>,
    pub reference: Option<Choice>,
    pub engine: Option<Choice>,
    /// The texts of the two choices.
    pub reference_text: Option<String>,
    pub engine_text: Option<String>,
}

impl StepRow {
    /// What the reference and the engine say in all steps; empty where that is not known.
    pub fn said(steps: &[StepRow]) -> [String; 2] {
        let all = |of: fn(&StepRow) -> Option<&str>| steps.iter().filter_map(of).collect();
        [all(|step| step.reference_text.as_deref()), all(|step| step.engine_text.as_deref())]
    }
}

/// One site.
#[derive(Clone, Debug, Serialize)]
pub struct SiteRow {
    /// `step/tensor name`, such as `0/blk.3.q_rope`.
    pub site: String,
    pub outcome: Outcome,
    pub floor: Option<SiteFloor>,
    pub difference: Option<Difference>,
    /// Of a site that was compared in some of its rows: how many, of how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<[usize; 2]>,
    #[serde(skip)]
    pub place: Site,
}

impl From<SiteReport> for SiteRow {
    fn from(report: SiteReport) -> SiteRow {
        let SiteReport { site, outcome, difference, floor, rows } = report;
        let name = format!("{}/{}", site.step, site.tensor_name());
        SiteRow { site: name, outcome, floor, difference, rows, place: site }
    }
}

impl SiteRow {
    /// Whether nothing differs in it but within a tolerance that is as large as its values.
    pub fn lets_zeros_pass(&self, factor: f64) -> bool {
        let is_within = |found: &Difference| !found.diverged(factor) && !found.lacks_numbers();
        matches!(self.outcome, Outcome::Unmeasured(_))
            && self.difference.as_ref().is_some_and(is_within)
            && self.floor.is_some_and(|floor| floor.passes_zeros(factor))
    }

    /// How many floors the site is off.
    pub fn times_floor(&self) -> f64 {
        self.difference.as_ref().map_or(0.0, Difference::times_floor)
    }
}
