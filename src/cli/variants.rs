//! `firstdiff variants`: the eight attention kernels, each against llama.cpp.

use comfy_table::{Cell, CellAlignment, Table, presets};
use firstdiff::{
    compare::{
        SiteFilter,
        verdict::{Coverage, Outcome, Rule, SiteReport},
    },
    core::{
        activity::{self, Death},
        exit::Exit,
    },
    engine::{AttentionVariant, EngineSpec, fault::Faults},
    graph::site::{Site, Stage},
    run::Run,
};
use serde::{Deserialize, Serialize};

use super::{
    args::VariantsArgs,
    error::Error,
    inputs::{self, Inputs},
    output,
};

/// Raised when a field of the JSON changes.
const TABLE_VERSION: u32 = 2;

#[derive(Serialize)]
struct VariantTable {
    table_version: u32,
    factor: f64,
    rows: Vec<Row>,
}

/// One variant: how far its attention is from llama.cpp's, in floors and relative L2.
#[derive(Serialize, Deserialize)]
struct Row {
    variant: String,
    exit: Exit,
    coverage: Coverage,
    /// Of attn_out, the largest over layers and steps.
    relative_l2: f64,
    floor_l2: f64,
    /// Worst over all sites.
    times_floor: f64,
    worst_site: String,
    first_divergence: Option<String>,
    /// What ended the process that ran it.
    died: Option<String>,
}

impl Row {
    /// A variant that ended the process which ran it.
    fn died(variant: String, death: Death) -> Row {
        Row {
            variant,
            exit: death.exit,
            coverage: Coverage::default(),
            relative_l2: 0.0,
            floor_l2: 0.0,
            times_floor: 0.0,
            worst_site: String::new(),
            first_divergence: None,
            died: Some(death.text),
        }
    }
}

/// Runs all eight and prints the table.
pub fn variants(args: &VariantsArgs) -> Result<Exit, Error> {
    inputs::check_factor(args.factor)?;
    output::check_json(args.json.as_deref())?;
    let inputs = Inputs::load(&args.model)?;
    let filter = SiteFilter::default();
    let bar = output::progress(Some(8), "variants");
    let mut rows = Vec::new();
    for attention in AttentionVariant::all() {
        let engine = EngineSpec {
            device: inputs::device(args.device),
            storage: args.dtype.into(),
            attention,
            faults: Faults::default(),
            kernels: inputs::kernels(args.kernels.as_deref())?,
            roundings: Vec::new(),
        };
        let rule = Rule { factor: args.factor, until_first: false };
        let run = Run {
            model: &inputs.model,
            reference: &inputs.reference,
            task: inputs.task(),
            engine: &engine,
            filter: &filter,
            rule,
            replay: None,
        };
        let name = attention.to_string();
        let new = match (activity::done(&name), activity::died(&name)) {
            (Some(row), _) => row,
            (None, Some(death)) => Row::died(name, death),
            (None, None) => {
                let _unit = activity::unit(&name);
                let finished = run.run(&mut |_| {})?;
                let row = row(attention, &finished.sites, finished.coverage);
                activity::keep(&name, &row);
                row
            }
        };
        rows.push(new);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let worst = rows.iter().map(|row| row.exit).max_by_key(|exit| *exit as u8);
    let table = VariantTable { table_version: TABLE_VERSION, factor: args.factor, rows };
    if let Some(path) = &args.json {
        output::write_json(&table, path)?;
    }
    if !args.json.as_deref().is_some_and(output::is_stdout) {
        output::print(&text(&table, &inputs))?;
    }
    Ok(worst.unwrap_or(Exit::NotMeasured))
}

fn row(attention: AttentionVariant, sites: &[SiteReport], coverage: Coverage) -> Row {
    let name = |site: Site| format!("step {} {}", site.step, site.tensor_name());
    let times = |report: &SiteReport| report.difference.as_ref().map_or(0.0, |d| d.times_floor());
    let worst = sites.iter().max_by(|a, b| times(a).total_cmp(&times(b)));
    let attention_out = sites.iter().filter(|report| report.site.stage == Stage::AttnOut);
    let l2 = |report: &&SiteReport| report.difference.as_ref().map_or(0.0, |d| d.relative_l2);
    let furthest = attention_out.max_by(|a, b| l2(a).total_cmp(&l2(b)));
    let diverged = sites.iter().find(|report| report.outcome == Outcome::Diverged);
    Row {
        variant: attention.to_string(),
        exit: coverage.exit(),
        coverage,
        relative_l2: furthest.as_ref().map_or(0.0, l2),
        floor_l2: furthest.and_then(|report| report.floor).map_or(0.0, |floor| floor.relative_l2),
        times_floor: worst.map_or(0.0, times),
        worst_site: worst.map_or(String::new(), |report| name(report.site)),
        first_divergence: diverged.map(|report| name(report.site)),
        died: None,
    }
}

fn text(table: &VariantTable, inputs: &Inputs) -> String {
    let agree = table.rows.iter().filter(|row| row.exit == Exit::Equal).count();
    let (prompt, decode) = (inputs.ids.len(), inputs.decode);
    let mut grid = Table::new();
    grid.load_preset(presets::NOTHING);
    grid.set_header([
        "attention variant",
        "verdict",
        "attn_out relative L2",
        "its floor",
        "worst site",
        "x floor",
    ]);
    for row in &table.rows {
        let verdict = match &row.first_divergence {
            Some(site) => format!("diverges at {site}"),
            None if row.died.is_some() => "does not run".to_string(),
            None if row.exit == Exit::Equal => "equal".to_string(),
            None => "not measured".to_string(),
        };
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        grid.add_row([
            Cell::new(&row.variant),
            Cell::new(verdict),
            right(format!("{:.2e}", row.relative_l2)),
            right(format!("{:.2e}", row.floor_l2)),
            Cell::new(&row.worst_site),
            right(format!("{:.2}", row.times_floor)),
        ]);
    }
    let died = table
        .rows
        .iter()
        .filter_map(|row| Some(format!("{}: {}\n", row.variant, row.died.as_ref()?)));
    let died: String = died.collect();
    format!(
        "{agree} of {} attention variants agree with llama.cpp within {} x floor ({prompt} prompt \
         tokens, {decode} decode steps)\n{}\n{died}",
        table.rows.len(),
        table.factor,
        grid.trim_fmt()
    )
}
