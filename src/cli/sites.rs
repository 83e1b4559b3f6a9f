//! `firstdiff sites`: every tensor of a model that is compared, by its name.

use clap::Args;
use comfy_table::{Table, presets};
use firstdiff::{
    core::exit::Exit,
    graph::{ModelGraph, SiteSpec, site::Axis},
    model::ModelFile,
    reference::{Reference, ReferenceOptions},
};
use serde::Serialize;

use super::{error::Error, inputs, output};

#[derive(Args)]
pub struct SitesArgs {
    /// GGUF model of any architecture that llama.cpp runs [default: the embedded fixture]
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<std::path::PathBuf>,
    /// Print the list as JSON
    #[arg(long)]
    pub json: bool,
}

/// A site as JSON has it.
#[derive(Serialize)]
struct Row {
    name: String,
    op: String,
    axes: Vec<Axis>,
    /// T tokens of the step, P positions in the cache after it.
    shape: Vec<String>,
    weight: Option<String>,
    inputs: Vec<String>,
    /// llama.cpp's own name of the node.
    node: String,
}

/// Prints the sites of a model.
pub fn sites(args: &SitesArgs) -> Result<Exit, Error> {
    let path = match &args.model {
        Some(path) => path.clone(),
        None => inputs::fixture()?,
    };
    let bar = output::progress(None, "reading llama.cpp's graph");
    let file = ModelFile::open(&path)?;
    let reference = Reference::load(&file, ReferenceOptions::default())?;
    bar.finish_and_clear();
    let model = reference.graph();
    let rows: Vec<Row> = model.sites.specs().iter().map(|spec| row(model, spec)).collect();
    if args.json {
        let json = serde_json::to_string_pretty(&rows).expect("plain data has no reason to fail");
        output::print(&format!("{json}\n"))?;
    } else {
        let n = rows.len();
        let name = &file.architecture;
        output::print(&format!("{n} sites a step, architecture {name}; T tokens, P positions\n"))?;
        output::print(&format!("{}\n", table(&rows)))?;
    }
    Ok(Exit::Equal)
}

fn row(model: &ModelGraph, spec: &SiteSpec) -> Row {
    Row {
        name: spec.site(0).tensor_name(),
        op: spec.op.to_string(),
        axes: spec.axes.iter().map(|axis| axis.axis).collect(),
        shape: spec.axes.iter().map(|axis| axis.size.to_string()).collect(),
        weight: spec.weight.clone(),
        inputs: spec.inputs.clone(),
        node: model.graph.node(spec.node).name.clone(),
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["site", "op", "axes", "shape", "weight", "from"]);
    for row in rows {
        let axes: Vec<&str> = row.axes.iter().map(|axis| axis.name()).collect();
        table.add_row([
            row.name.clone(),
            row.op.clone(),
            axes.join(" "),
            row.shape.join(" x "),
            row.weight.clone().unwrap_or_default(),
            row.inputs.join(" "),
        ]);
    }
    table
}
