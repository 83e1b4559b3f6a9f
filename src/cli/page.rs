//! `--html`: the report as a page.

use std::path::Path;

use firstdiff::{
    ci::check::Chosen,
    diagnosis::{Finding, album::Album},
    engine::EngineSpec,
    report::{
        Report,
        html::{Extras, run_page},
    },
    run::{ComparedSite, show_traces},
    trace::TraceReader,
};

use super::{error::Error, inputs::Inputs, output};

/// A page that is wanted, and what it shows beside a report.
pub struct Page<'a> {
    pub path: &'a Path,
    pub album: Option<&'a Album>,
    /// Where the kernel of each finding stands.
    pub places: Vec<Option<String>>,
}

impl<'a> Page<'a> {
    /// The page of recorded sides, whose kernels are not known.
    pub fn of_traces(path: &'a Path, album: Option<&'a Album>) -> Page<'a> {
        Page { path, album, places: Vec::new() }
    }

    /// Writes it, whole or not at all.
    pub fn write(self, report: &Report) -> Result<(), Error> {
        let findings = report.diagnosis.as_ref().map_or(0, |diagnosis| diagnosis.findings.len());
        let extras =
            Extras { album: self.album, places: self.places, commands: commands(findings > 0) };
        output::write_file(self.path, &run_page(report, &extras))
    }
}

/// How this page was made, and where something is wrong how to see what a fix of it does.
pub fn commands(has_findings: bool) -> Vec<(String, String)> {
    let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let words: Vec<String> = words.collect();
    let line = |words: &[String]| {
        let words: Vec<String> = words.iter().map(|word| shell_word(word)).collect();
        format!("firstdiff {}", words.join(" "))
    };
    let mut commands = vec![("This page", line(&words))];
    if has_findings {
        let plain = line(&without_outputs(&words));
        let fix = format!(
            "{plain} --json before.json\n{plain} --json after.json\nfirstdiff progress before.json after.json"
        );
        commands.push(("Before a fix, after it, and what it fixed", fix));
    }
    commands.into_iter().map(|(what, command)| (what.to_string(), command)).collect()
}

/// The words of a command without the files that it writes a report to.
fn without_outputs(words: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        if word == "--html" || word == "--json" {
            rest.next();
        } else if !word.starts_with("--html=") && !word.starts_with("--json=") {
            kept.push(word.clone());
        }
    }
    kept
}

/// A word as a shell reads it back.
fn shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_string();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Where the kernel of each finding of a run stands: `kernels/rope.cu:12 rope_neox_f32`.
pub fn places(report: &Report, inputs: &Inputs, engine: &EngineSpec) -> Vec<Option<String>> {
    let rope_pairs = inputs.model.config.rope_pairs;
    let chosen = Chosen { dtype: engine.storage, variant: engine.attention, rope_pairs };
    let place = |finding: &Finding| {
        let stage = finding.operations.first()?.stage;
        let own = engine.kernels.contracts().iter().find(|own| own.op.stages().contains(&stage));
        if let Some(contract) = own {
            return Some(contract.source.display().to_string());
        }
        let step = finding.worst.as_ref().map_or(0, |worst| worst.step as usize);
        let tokens = report.steps.get(step).map_or(1, |step| step.tokens.len());
        chosen.place(&engine.kernels, stage, tokens).map(|place| place.to_string())
    };
    let findings = report.diagnosis.iter().flat_map(|diagnosis| &diagnosis.findings);
    findings.map(|finding| place(finding).filter(|_| finding.verdict.is_of_engine())).collect()
}

/// The album of recorded sides with the reference in it; none where no page is wanted.
pub fn beside(
    is_wanted: bool,
    album: Option<Album>,
    report: &Report,
    [engine, reference]: [&TraceReader; 2],
) -> Result<Option<Album>, Error> {
    let Some(compared) = report.compared.as_ref().filter(|_| is_wanted) else { return Ok(album) };
    let of =
        |row: &firstdiff::report::SiteRow| ComparedSite::of(row.place, row.floor, &row.outcome);
    let sites: Vec<ComparedSite> = report.sites.iter().filter_map(of).collect();
    let mut album = album.unwrap_or_default();
    show_traces(&mut album, engine, reference, &sites, compared.factor)?;
    Ok(Some(album))
}

#[cfg(test)]
mod tests {
    use super::{shell_word, without_outputs};

    #[test]
    fn a_command_without_its_outputs_keeps_all_else() {
        let words = |text: &str| text.split(' ').map(str::to_string).collect::<Vec<String>>();
        let found = without_outputs(&words("run --html a.html -n 2 --json=b.json --fault x"));
        assert_eq!(found, words("run -n 2 --fault x"));
    }

    #[test]
    fn a_shell_reads_a_word_back() {
        assert_eq!(shell_word("--json=a.json"), "--json=a.json");
        assert_eq!(shell_word("it's <b>"), r"'it'\''s <b>'");
        assert_eq!(shell_word(""), "''");
    }
}
