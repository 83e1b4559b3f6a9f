//! `firstdiff run --lengths`: the same prompt at many lengths, and the rule of those that diverge.

use std::{collections::BTreeSet, path::Path, str::FromStr};

use comfy_table::{Table, presets};
use firstdiff::{
    compare::SiteFilter,
    core::{
        activity::{self, Death},
        exit::Exit,
        task::Task,
    },
    diagnosis::album::Album,
    engine::{EngineSpec, kernels::KernelSet},
    report::Report,
    run::{Kept, Run, lengths},
};
use serde::{Deserialize, Serialize};

use super::{
    args::RunArgs,
    error::Error,
    inputs::{self, Inputs},
    output,
    page::{self, Beside},
};

/// Raised when a field of the JSON changes.
const TABLE_VERSION: u32 = 1;

/// Which lengths are run: `auto`, or a list such as `1,31-33,64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lengths {
    Auto,
    Listed(Vec<usize>),
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Lengths, String> {
        if text == "auto" {
            return Ok(Lengths::Auto);
        }
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let pair: Option<(usize, usize)> =
                first.trim().parse().ok().zip(last.trim().parse().ok());
            let pair = pair.filter(|(first, last)| 0 < *first && first <= last && *last <= 1 << 20);
            pair.ok_or_else(|| format!("`{part}` is not a length; write auto, or 1,31-33,64"))
        };
        let ranges = text.split(',').map(range).collect::<Result<Vec<_>, _>>()?;
        let all: BTreeSet<usize> = ranges.into_iter().flat_map(|(a, b)| a..=b).collect();
        Ok(Lengths::Listed(all.into_iter().collect()))
    }
}

#[derive(Serialize)]
struct LengthTable {
    table_version: u32,
    /// Which lengths diverge, in words.
    rule: String,
    rows: Vec<Row>,
}

/// A prompt of some length.
#[derive(Serialize, Deserialize)]
struct Row {
    tokens: usize,
    exit: Exit,
    /// The first line of its report.
    text: String,
    /// Positions in the cache at the first step that diverges.
    first_wrong: Option<usize>,
}

/// Runs every length and prints a line for each.
pub fn lengths(
    args: &RunArgs,
    inputs: &Inputs,
    engine: &EngineSpec,
    wanted: &Lengths,
) -> Result<Exit, Error> {
    let list = listed(inputs, engine, wanted)?;
    let bar = output::progress(Some(list.len() as u64), "lengths");
    let mut rows = Vec::new();
    for tokens in list {
        let name = format!("{tokens} tokens");
        let new = match (activity::done(&name), activity::died(&name)) {
            (Some(row), _) => row,
            (None, Some(Death { text, exit, .. })) => {
                Row { tokens, exit, text, first_wrong: Some(tokens) }
            }
            (None, None) => {
                let _unit = activity::unit(&name);
                let row = row(args, inputs, engine, tokens)?;
                activity::keep(&name, &row);
                row
            }
        };
        rows.push(new);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let worst = rows.iter().map(|row| row.exit).max_by_key(|exit| *exit as u8);
    let rule = rule(&rows, inputs.decode);
    let table = LengthTable { table_version: TABLE_VERSION, rule, rows };
    if let Some(path) = &args.compare.report.json {
        output::write_json(&table, path)?;
    }
    if let Some(path) = &args.compare.report.html {
        write_page(path, args, inputs, engine, &table)?;
    }
    if !args.compare.report.json.as_deref().is_some_and(output::is_stdout) {
        output::print(&text(&table))?;
    }
    Ok(worst.unwrap_or(Exit::NotMeasured))
}

fn listed(inputs: &Inputs, engine: &EngineSpec, wanted: &Lengths) -> Result<Vec<usize>, Error> {
    let trained = inputs.model.file().trained_positions().unwrap_or(usize::MAX);
    let most = trained.saturating_sub(inputs.decode as usize);
    match wanted {
        Lengths::Auto => {
            let read = |file| Ok(engine.kernels.read(file)?.unwrap_or_default());
            let sources = KernelSet::files().map(read).collect::<Result<Vec<String>, Error>>()?;
            Ok(lengths::edges(sources.iter().map(String::as_str), most))
        }
        Lengths::Listed(list) => match list.iter().find(|&&length| length > most) {
            Some(length) => Err(Error::Usage(format!(
                "--lengths: {length} tokens and -n {} are more than {} was trained for; leave it out",
                inputs.decode,
                inputs.model.file().path.display()
            ))),
            None => Ok(list.clone()),
        },
    }
}

/// Writes the page of the first length that diverges, or else of the last; none where no length ran to its end.
fn write_page(
    path: &Path,
    args: &RunArgs,
    inputs: &Inputs,
    engine: &EngineSpec,
    table: &LengthTable,
) -> Result<(), Error> {
    let Some(tokens) = on_page(&table.rows) else {
        output::say(&format!("no page in {}: no length ran to its end", path.display()));
        return Ok(());
    };
    let mut album = Album::default();
    let mut report = report(args, inputs, engine, tokens, Some(&mut album))?;
    report
        .notes
        .push(format!("this page shows the run with {tokens} prompt tokens; {}", answer(table)));
    let places = page::places(&report, inputs, engine);
    page::write(path, &report, &Beside { album: Some(&album), places })
}

/// The length that a page shows.
fn on_page(rows: &[Row]) -> Option<usize> {
    let ended = |row: &&Row| matches!(row.exit, Exit::Equal | Exit::Diverged | Exit::NotMeasured);
    let first = rows.iter().find(|row| row.exit == Exit::Diverged);
    first.or(rows.iter().rfind(ended)).map(|row| row.tokens)
}

/// The report of a prompt of that length.
fn report(
    args: &RunArgs,
    inputs: &Inputs,
    engine: &EngineSpec,
    tokens: usize,
    album: Option<&mut Album>,
) -> Result<Report, Error> {
    // A prompt that is too short is said again.
    let prompt: Vec<i32> = inputs.ids.iter().copied().cycle().take(tokens).collect();
    let filter = inputs::filter(&args.compare.only)?.of_model(&inputs.model.graph)?;
    let filter: &SiteFilter = &filter;
    let run = Run {
        model: &inputs.model,
        reference: &inputs.reference,
        task: Task { prompt: &prompt, decode: inputs.decode },
        engine,
        filter,
        rule: inputs::rule(&args.compare),
        replay: (!args.no_replay).then(|| args.replay.into()),
    };
    Ok(Report::of_run(&run, run.run_again(&mut Kept::default(), album, &mut |_| {})?)?)
}

fn row(args: &RunArgs, inputs: &Inputs, engine: &EngineSpec, tokens: usize) -> Result<Row, Error> {
    let report = report(args, inputs, engine, tokens, None)?;
    let guilty = report.diagnosis.iter().flat_map(|diagnosis| &diagnosis.findings);
    let step = guilty.filter_map(|finding| finding.worst.as_ref().map(|worst| worst.step)).min();
    let diverged = report.headline.first_divergence.as_deref();
    let first = diverged.and_then(|site| site.split('/').next()?.parse::<u32>().ok());
    let exit = report.headline.exit;
    let at = first.into_iter().chain(step).min().filter(|_| exit != Exit::Equal);
    let first_wrong = at.map(|step| tokens + step as usize);
    Ok(Row { tokens, exit, text: report.headline.text, first_wrong })
}

/// Prompts whose prefill diverges follow their own length; else the steps' positions are what counts.
fn rule(rows: &[Row], decode: u32) -> String {
    let of_prompts = rows.iter().any(|row| row.first_wrong == Some(row.tokens));
    let (mut wrong, mut right) = (BTreeSet::new(), BTreeSet::new());
    for row in rows {
        match row.first_wrong {
            Some(at) if of_prompts && at == row.tokens => wrong.extend([row.tokens]),
            _ if of_prompts => right.extend([row.tokens]),
            Some(at) => {
                right.extend(row.tokens + 1..at);
                wrong.extend([at]);
            }
            None => right.extend(row.tokens + 1..=row.tokens + decode as usize),
        }
    }
    right.retain(|length| !wrong.contains(length));
    let rule = lengths::rule(&wrong, &right);
    if of_prompts || wrong.is_empty() { rule } else { format!("in decode steps {rule}") }
}

/// How many lengths diverge, and which.
fn answer(table: &LengthTable) -> String {
    match table.rows.iter().filter(|row| row.exit != Exit::Equal).count() {
        0 => format!("equal at all {} lengths", table.rows.len()),
        wrong => format!("diverges at {wrong} of {} lengths: {}", table.rows.len(), table.rule),
    }
}

fn text(table: &LengthTable) -> String {
    let mut grid = Table::new();
    grid.load_preset(presets::NOTHING);
    grid.set_header(["tokens", "verdict"]);
    for row in &table.rows {
        grid.add_row([row.tokens.to_string(), row.text.clone()]);
    }
    format!("{}\n{}\n", answer(table), grid.trim_fmt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tokens: usize, first_wrong: Option<usize>) -> Row {
        let exit = if first_wrong.is_some() { Exit::Diverged } else { Exit::Equal };
        Row { tokens, exit, text: String::new(), first_wrong }
    }

    #[test]
    fn lengths_are_read_as_they_are_written() {
        assert_eq!("auto".parse(), Ok(Lengths::Auto));
        assert_eq!("3,1-2".parse(), Ok(Lengths::Listed(vec![1, 2, 3])));
        for bad in ["", "0", "5-2", "x", "1-99999999"] {
            assert!(bad.parse::<Lengths>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_page_is_of_the_first_length_that_diverges_or_else_of_the_last_that_ran() {
        let died = |tokens| Row { exit: Exit::Device, ..row(tokens, Some(tokens)) };
        let [right, wrong] = [|n| row(n, None), |n| row(n, Some(n))];
        assert_eq!(on_page(&[right(1), died(2), wrong(3), wrong(4), right(5)]), Some(3));
        assert_eq!(on_page(&[right(1), right(2), died(3)]), Some(2));
        assert_eq!(on_page(&[died(3)]), None);
    }

    #[test]
    fn what_breaks_in_decode_steps_follows_their_positions() {
        let at = |tokens: usize| row(tokens, (tokens + 1..=tokens + 4).find(|n| n % 16 == 0));
        let rows: Vec<Row> = (1..70).map(at).collect();
        assert_eq!(rule(&rows, 4), "in decode steps where the length mod 16 = 0");
        let at = |tokens: usize| row(tokens, (tokens % 32 == 1).then_some(tokens));
        let rows: Vec<Row> = (2..70).map(at).collect();
        assert_eq!(rule(&rows, 4), "where the length mod 32 = 1");
    }
}
