//! The reports of the sequences of one trace as one.

use super::{Report, SequenceRow};
use crate::core::exit::Exit;

impl Report {
    /// Of several sequences the first of the highest standing is the one that is reported.
    pub fn standing(&self) -> (u8, bool) {
        match self.headline.exit {
            Exit::Equal => (0, self.compared.is_some()),
            Exit::Diverged => (2, false),
            _ => (1, false),
        }
    }

    /// The report of the first sequence that is worst, which says what the others are; where all are right, of the
    /// first that was compared.
    pub fn of_sequences(mut reports: Vec<(u32, Report)>) -> Report {
        let mut worst = 0;
        for (at, (_, report)) in reports.iter().enumerate() {
            if report.standing() > reports[worst].1.standing() {
                worst = at;
            }
        }
        let lines: Vec<String> = (reports.iter())
            .map(|(number, report)| format!("sequence {number}: {}", report.headline.text))
            .collect();
        let row = |(sequence, report): &(u32, Report)| SequenceRow {
            sequence: *sequence,
            headline: report.headline.clone(),
            diagnosis: report.diagnosis.clone(),
        };
        let sequences = reports.iter().map(row).collect();
        let alone = reports.iter().filter(|(_, report)| report.compared.is_none()).count();
        let (number, mut report) = reports.swap_remove(worst);
        report.sequences = sequences;
        let (count, text) = (lines.len(), &report.headline.text);
        report.headline.text = match report.headline.exit {
            Exit::Equal if alone == 0 || report.compared.is_none() => {
                format!("each of {count} sequences: {text}")
            }
            Exit::Equal => format!(
                "{}; nothing guilty in {alone} of {count} sequences, which the reference does not run",
                lines[worst]
            ),
            _ => lines[worst].clone(),
        };
        report
            .notes
            .push(format!("this report covers sequence {number}; --sequence N selects another"));
        let others = lines.into_iter().enumerate().filter(|(at, _)| *at != worst);
        report.notes.extend(others.map(|(_, line)| line));
        report
    }
}
