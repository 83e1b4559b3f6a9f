//! The reports of the sequences of one trace as one.

use super::{Report, SequenceRow};
use crate::core::exit::Exit;

impl Report {
    /// The report of the first sequence that is worst, which says what the others are.
    pub fn of_sequences(mut reports: Vec<(u32, Report)>) -> Report {
        let rank = |exit: Exit| match exit {
            Exit::Equal => 0,
            Exit::Diverged => 2,
            _ => 1,
        };
        let mut worst = 0;
        for (at, (_, report)) in reports.iter().enumerate() {
            if rank(report.headline.exit) > rank(reports[worst].1.headline.exit) {
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
        let (number, mut report) = reports.swap_remove(worst);
        report.sequences = sequences;
        report.headline.text = if report.headline.exit == Exit::Equal {
            let count = lines.len();
            format!("each of {count} sequences: {}", report.headline.text)
        } else {
            lines[worst].clone()
        };
        report.notes.push(format!(
            "this is the report of sequence {number}; --sequence N gives that of another"
        ));
        let others = lines.into_iter().enumerate().filter(|(at, _)| *at != worst);
        report.notes.extend(others.map(|(_, line)| line));
        report
    }
}
