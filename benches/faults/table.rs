//! The results as Markdown, and whether they are good enough.

use std::{fmt::Write, time::Duration};

use firstdiff::engine::fault::FAULTS;

use crate::{combined::Set, innocent::Innocent, seeded::Row, weaker};

const INTRODUCTION: &str = "\
# Planted faults: found, blamed, named

`make faults` plants each fault of `firstdiff faults` in the engine, one at a time, and scores
each run on these questions:

- **detected**: is it not equal?
- **site**: is the first differing site exactly the faulty one?
- **pattern**: are the differing elements those that the fault touches? Asked on the fixture
  only; if rounding hides some of them, their share must be as recorded.
- **guilty**: does the replay blame the faulty operation first, and no operation that the fault
  does not touch?
- **cause**: is the kind of mistake named on that operation, before any other?

The models are the trained fixture with its prompt of 86 tokens, and a random llama and a random
qwen3 of three layers with prompts of 64; in f32, with 3 decode steps, on the host device. A cell
counts the models that pass, out of those where the fault has an effect. The table also scores the
usual checks, on all sites and steps of the same runs. They show that something is wrong, but
neither which operation nor why:

";

const SNAPSHOT: &str = "
A *snapshot* is the file that `firstdiff bless --reference` writes: six elements of each llama.cpp tensor and eight
sums. It is judged on the same runs, and on the clean ones, without the replay, which needs no reference.
";

/// Percentages below these fail.
const LEAST_GUILTY: f64 = 98.0;
const LEAST_CAUSE: f64 = 95.0;
const LEAST_MEMBERS: f64 = 95.0;

/// All that was measured.
#[derive(Default)]
pub struct Results {
    pub seeded: Vec<Row>,
    /// Fault, model, and why the fault changes nothing there.
    pub refused: Vec<(&'static str, &'static str, String)>,
    pub combined: Vec<Set>,
    pub benign: Vec<Innocent>,
    pub clean: Vec<Innocent>,
    pub time: Duration,
}

/// So many of so many.
#[derive(Clone, Copy)]
struct Share {
    hits: usize,
    of: usize,
}

impl Share {
    fn of(hits: impl IntoIterator<Item = bool>) -> Share {
        let mut share = Share { hits: 0, of: 0 };
        for hit in hits {
            share.hits += usize::from(hit);
            share.of += 1;
        }
        share
    }

    fn percent(self) -> f64 {
        if self.of == 0 { 100.0 } else { 100.0 * self.hits as f64 / self.of as f64 }
    }

    fn in_full(self) -> String {
        format!("{:.1} % ({} of {})", self.percent(), self.hits, self.of)
    }

    fn cell(self) -> String {
        if self.of == 0 { "-".to_string() } else { format!("{}/{}", self.hits, self.of) }
    }
}

type Column = (&'static str, fn(&Row) -> Option<bool>);

const COLUMNS: [Column; 5] = [
    ("detected", |row| Some(row.detected)),
    ("site", |row| Some(row.site)),
    ("pattern", |row| row.pattern),
    ("guilty", |row| Some(row.guilty)),
    ("cause", |row| Some(row.cause)),
];

impl Results {
    /// Whether enough was found, and nothing where nothing is.
    pub fn are_good(&self) -> bool {
        let [detected, _, _, guilty, cause] = COLUMNS.map(|(_, of)| self.share(of).percent());
        detected >= 100.0
            && guilty >= LEAST_GUILTY
            && cause >= LEAST_CAUSE
            && self.members().percent() >= LEAST_MEMBERS
            && self.alarms().next().is_none()
    }

    fn share(&self, of: impl Fn(&Row) -> Option<bool>) -> Share {
        Share::of(self.seeded.iter().filter_map(of))
    }

    fn members(&self) -> Share {
        Share::of(self.combined.iter().flat_map(|set| &set.members).map(|&(_, named)| named))
    }

    fn innocent(&self) -> impl Iterator<Item = &Innocent> {
        self.benign.iter().chain(&self.clean)
    }

    fn alarms(&self) -> impl Iterator<Item = (&str, &str)> {
        self.innocent().filter_map(|run| Some((run.name.as_str(), run.alarm.as_deref()?)))
    }

    /// The whole document.
    pub fn markdown(&self) -> String {
        let mut text = INTRODUCTION.to_string();
        for (title, meaning) in weaker::CHECKS {
            let _ = writeln!(text, "- **{title}**: {meaning}");
        }
        text.push_str(SNAPSHOT);
        self.summary(&mut text);
        self.shortfalls(&mut text);
        self.faults(&mut text);
        self.together(&mut text);
        self.innocents(&mut text);
        text
    }

    fn summary(&self, text: &mut String) {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let _ = write!(
            text,
            "\nMeasured on {} with {cores} cores. `make faults` repeats it and rewrites this file. \
             It fails if\nless than 100 % is detected, {LEAST_GUILTY} % blamed exactly, \
             {LEAST_CAUSE} % of the causes or {LEAST_MEMBERS} % of the members\nof pairs and \
             triples named, or if there is any false alarm.\n\n## Summary\n\n| | |\n\
             |---|---|\n",
            std::env::consts::ARCH,
        );
        let titles = [
            "detected",
            "first site exact",
            "pattern exact, on the fixture",
            "guilty operation exact",
            "cause ranked first",
        ];
        let mut line = |title: &str, value: &str| {
            let _ = writeln!(text, "| {title} | {value} |");
        };
        for (title, (_, of)) in titles.into_iter().zip(COLUMNS) {
            line(title, &self.share(of).in_full());
        }
        line("cause proven: it gives every element", &self.share(|row| Some(row.proven)).in_full());
        line("members of pairs and triples named", &self.members().in_full());
        let of = self.innocent().count();
        let benign = self.benign.len();
        let alarms = self.alarms().count();
        line(
            "false alarms",
            &format!("{alarms} of {of}: {benign} benign changes, {} clean runs", self.clean.len()),
        );
        for (check, (title, _)) in weaker::CHECKS.into_iter().enumerate() {
            let share = self.share(|row| Some(row.weaker[check]));
            line(&format!("detected by {title} alone"), &share.in_full());
        }
        for (title, which) in [("detected by a snapshot alone", 0), ("and first site exact", 1)] {
            line(title, &self.share(|row| Some(row.pinned[which])).in_full());
        }
        line("seconds", &format!("{:.0}", self.time.as_secs_f64()));
    }

    fn shortfalls(&self, text: &mut String) {
        text.push_str("\n## Shortfalls\n\n");
        let mut lines = Vec::new();
        for row in &self.seeded {
            let of = |what| format!("- `{}` on {}: {what}", row.fault.name, row.model);
            lines.extend(row.shortfalls.iter().map(of));
        }
        for set in &self.combined {
            for (name, _) in set.members.iter().filter(|(_, named)| !named) {
                let found = set.found.join("; ");
                lines.push(format!("- `{name}` in {}: not named; found {found}", set.names));
            }
        }
        lines.extend(self.alarms().map(|(name, alarm)| format!("- {name}: {alarm}")));
        if lines.is_empty() {
            lines.push("None.".to_string());
        }
        let _ = writeln!(text, "{}", lines.join("\n"));
    }

    fn faults(&self, text: &mut String) {
        text.push_str("\n## Every fault\n\n| fault |");
        for title in
            COLUMNS.iter().map(|(title, _)| title).chain(weaker::CHECKS.iter().map(|c| &c.0))
        {
            let _ = write!(text, " {title} |");
        }
        text.push_str(" seconds |\n|---|");
        text.push_str(&"---:|".repeat(COLUMNS.len() + weaker::CHECKS.len() + 1));
        text.push('\n');
        for fault in &FAULTS {
            let rows: Vec<&Row> =
                self.seeded.iter().filter(|row| row.fault.name == fault.name).collect();
            if rows.is_empty() {
                continue;
            }
            let cell = |of: &dyn Fn(&Row) -> Option<bool>| {
                Share::of(rows.iter().filter_map(|&row| of(row))).cell()
            };
            let _ = write!(text, "| `{}` |", fault.name);
            for (_, of) in COLUMNS {
                let _ = write!(text, " {} |", cell(&of));
            }
            for check in 0..weaker::CHECKS.len() {
                let _ = write!(text, " {} |", cell(&|row| Some(row.weaker[check])));
            }
            let seconds: f64 = rows.iter().map(|row| row.seconds).sum();
            let _ = writeln!(text, " {:.1} |", seconds / rows.len() as f64);
        }
        text.push_str("\nSeconds are the mean of a run. Without effect, and not counted:\n\n");
        for (fault, model, why) in &self.refused {
            let _ = writeln!(text, "- `{fault}` on {model}: {why}");
        }
    }

    fn together(&self, text: &mut String) {
        text.push_str("\n## Several at once, on the fixture\n\n| faults | named |\n|---|---:|\n");
        for set in &self.combined {
            let named = Share::of(set.members.iter().map(|&(_, named)| named));
            let _ = writeln!(text, "| {} | {} |", set.names, named.cell());
        }
    }

    fn innocents(&self, text: &mut String) {
        text.push_str(
            "\n## Changes that are no faults\n\n| change | alarm | seconds |\n\
             |---|---|---:|\n",
        );
        for run in &self.benign {
            let alarm = if run.alarm.is_some() { "yes" } else { "no" };
            let _ = writeln!(text, "| {} | {alarm} | {:.1} |", run.name, run.seconds);
        }
        let share = Share::of(self.clean.iter().map(|run| run.alarm.is_some()));
        let _ = write!(
            text,
            "\nOf {} clean runs over random models, shapes and prompts, in f32 and f16, {} raised \
             an alarm.\n",
            share.of, share.hits
        );
    }
}
