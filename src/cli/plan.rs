//! `firstdiff plan`: what an engine is to run and may record, without a run of the model.

use firstdiff::{
    core::{exit::Exit, files},
    run::Division,
    trace::Plan,
};

use super::{args::PlanArgs, capture::model_id, error::Error, inputs::Inputs, output};

/// Writes the plan of a prompt; the ids after it are the engine's own, or those that are given.
pub fn plan(args: &PlanArgs) -> Result<Exit, Error> {
    let bar = output::progress(None, "reading llama.cpp's graph");
    let inputs = Inputs::load_ids(&args.model, &args.ids)?;
    bar.finish_and_clear();
    let decoded = args.ids.decoded.iter().map(|&id| vec![id]);
    let whole: Vec<Vec<i32>> = std::iter::once(inputs.ids.clone()).chain(decoded).collect();
    let steps = match args.ids.chunks {
        Some(chunk) => Division::of(&whole, chunk as usize).steps,
        None => whole,
    };
    let decode = if args.ids.decoded.is_empty() { inputs.decode as usize } else { 0 };
    let plan = Plan { model: model_id(&inputs.reference, &inputs.model), steps, decode };
    let Some(path) = &args.output else {
        output::print(&plan.to_string())?;
        return Ok(Exit::Equal);
    };
    let write = |source| Error::Write { path: path.clone(), source };
    files::write_atomic(path, plan.to_string().as_bytes()).map_err(write)?;
    let sites = inputs.reference.graph().sites.specs().len();
    let mut text =
        format!("{}: {sites} sites a step, {}\n", path.display(), plan.model.architecture);
    text.push_str(&steps_text(&plan));
    output::print(&text)?;
    Ok(Exit::Equal)
}

/// The positions of each step, a line for each; those of the engine's own choice in one.
fn steps_text(plan: &Plan) -> String {
    let count = |n: usize| if n == 1 { "1 token".to_string() } else { format!("{n} tokens") };
    let (mut text, mut first) = (String::new(), 0);
    for (step, tokens) in plan.steps.iter().enumerate() {
        let end = first + tokens.len();
        let positions = match tokens.len() {
            1 => format!("position {first}"),
            _ => format!("positions {first} to {}", end - 1),
        };
        text.push_str(&format!("  step {step:<4} {}, {positions}\n", count(tokens.len())));
        first = end;
    }
    if plan.decode > 0 {
        let (step, last) = (plan.steps.len(), first + plan.decode - 1);
        text.push_str(&format!(
            "  step {step:<4} and {} more: 1 token each, chosen by the engine, positions {first} to \
             {last}\n",
            plan.decode - 1
        ));
    }
    text
}
