//! What goes wrong in the embedding, the residuals and SwiGLU.

use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        hypotheses::projection::candidates_of_width,
        replay::{Operand, Operation, ReplayError, ops},
        scene::{Candidate, Scene, Visit},
    },
    graph::site::Stage,
};

/// A term missing, taken twice, subtracted, or from another tensor.
pub fn residuals<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let (input, branch) = match scene.stage() {
        Stage::AttnResidual => {
            (scene.operation.hidden(scene.config()), scene.operation.at(Stage::OProj))
        }
        _ => (scene.operation.at(Stage::AttnResidual), scene.operation.at(Stage::FfnDown)),
    };
    let at = |operation| scene.replay.operand(operation, &scene.steps);
    let (x, y) = (at(input)?, at(branch)?);
    let mut with = |key, text: String, a: &Operand, b: &Operand| {
        let parts = scene.whole(ops::add(a, b, scene.rounding()));
        visit(Candidate::mistake(key, text, parts))
    };
    let scaled = |operand: &Operand, factor: f64| Operand {
        width: operand.width,
        value: operand.value.iter().map(|x| x * factor).collect(),
        spread: operand.spread.clone(),
    };
    let missing = |operation: Operation| format!("{} is not added", scene.named(operation));
    with(CauseKey::ResidualMissing, missing(input), &scaled(&x, 0.0), &y)?;
    with(CauseKey::ResidualMissing, missing(branch), &x, &scaled(&y, 0.0))?;
    with(
        CauseKey::ResidualTwice,
        format!("{} is added twice", scene.named(input)),
        &scaled(&x, 2.0),
        &y,
    )?;
    with(
        CauseKey::ResidualTwice,
        format!("{} is added twice", scene.named(branch)),
        &x,
        &scaled(&y, 2.0),
    )?;
    with(
        CauseKey::ResidualSign,
        format!("{} is subtracted", scene.named(branch)),
        &x,
        &scaled(&y, -1.0),
    )?;
    for (other, z) in candidates_of_width(scene, scene.width())? {
        if other == input || other == branch {
            continue;
        }
        let instead = |of: Operation| {
            format!("{} is added instead of {}", scene.named(other), scene.named(of))
        };
        with(CauseKey::ResidualSource, instead(input), &z, &y)?;
        with(CauseKey::ResidualSource, instead(branch), &x, &z)?;
    }
    Ok(())
}

/// Gate and up exchanged, another activation, none, a factor missing.
pub fn swiglu<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let (gate, up) = (scene.operand(Stage::FfnGate)?, scene.operand(Stage::FfnUp)?);
    let mut with =
        |key, text: &str, gate: &Operand, up: &Operand, activation: &dyn Fn(f64) -> f64| {
            let parts = scene.whole(ops::gated(gate, up, (activation, true), scene.rounding()));
            visit(Candidate::mistake(key, text, parts))
        };
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let tanh_gelu = |x: f64| {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
    };
    with(
        CauseKey::GateUpSwapped,
        "gate and up exchanged: silu(up) * gate",
        &up,
        &gate,
        &ops::silu,
    )?;
    with(CauseKey::Activation, "GELU (tanh) instead of SiLU", &gate, &up, &tanh_gelu)?;
    with(CauseKey::Activation, "GELU (erf) instead of SiLU", &gate, &up, &|x| x * normal_cdf(x))?;
    with(CauseKey::Activation, "quick GELU instead of SiLU", &gate, &up, &|x| {
        x * sigmoid(1.702 * x)
    })?;
    with(CauseKey::Activation, "ReLU instead of SiLU", &gate, &up, &|x: f64| x.max(0.0))?;
    with(CauseKey::Activation, "squared ReLU instead of SiLU", &gate, &up, &|x: f64| {
        x.max(0.0).powi(2)
    })?;
    with(CauseKey::Activation, "no activation: gate * up", &gate, &up, &|x| x)?;
    with(
        CauseKey::Activation,
        "sigmoid(gate) * up: SiLU without its factor",
        &gate,
        &up,
        &sigmoid,
    )?;
    with(CauseKey::Activation, "tanh instead of SiLU", &gate, &up, &f64::tanh)?;
    let ones = Operand { width: gate.width, value: vec![1.0; gate.value.len()], spread: None };
    with(CauseKey::UpMissing, "up is left out: silu(gate)", &gate, &ones, &ops::silu)?;
    with(CauseKey::GateMissing, "gate is left out: silu(up)", &up, &ones, &ops::silu)?;
    with(CauseKey::GateTwice, "silu(gate) * gate", &gate, &gate, &ops::silu)?;
    with(CauseKey::GateTwice, "silu(up) * up", &up, &up, &ops::silu)?;
    let activated: Vec<f64> = gate.value.iter().map(|&x| ops::silu(x)).collect();
    let activated = Operand { width: gate.width, value: activated, spread: gate.spread.clone() };
    let parts = scene.whole(ops::add(&activated, &up, scene.rounding()));
    let text = "silu(gate) + up instead of silu(gate) * up".to_string();
    visit(Candidate::mistake(CauseKey::Activation, text, parts))
}

/// The standard normal distribution, to 1e-16: the integral of its density by Gauss-Legendre would
/// do; this is the continued series of erf, and its continued fraction in the tails.
fn normal_cdf(x: f64) -> f64 {
    let z = x / std::f64::consts::SQRT_2;
    if z.abs() < 3.0 {
        let (mut term, mut sum) = (z, z);
        for n in 1..200 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 0.5 + sum / std::f64::consts::PI.sqrt();
    }
    let mut fraction = 0.0;
    for n in (1..=60).rev() {
        fraction = f64::from(n) / 2.0 / (z.abs() + fraction);
    }
    let tail = (-z * z).exp() / (std::f64::consts::PI.sqrt() * 2.0 * (z.abs() + fraction));
    if z > 0.0 { 1.0 - tail } else { tail }
}

/// The rows of other ids.
pub fn embeddings<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let table = scene.replay.matrix("token_embd.weight")?;
    let ids: Vec<usize> = scene
        .steps
        .iter()
        .flat_map(|&step| &scene.replay.recording.steps[step as usize])
        .map(|&id| id as usize)
        .collect();
    let positions = scene.positions();
    let vocab = table.outputs;
    type Other<'f> = (&'static str, Box<dyn Fn(usize) -> usize + 'f>);
    let others: [Other<'_>; 6] = [
        ("the row of id + 1", Box::new(|t| (ids[t] + 1) % vocab)),
        ("the row of id - 1", Box::new(|t| (ids[t] + vocab - 1) % vocab)),
        ("the row of the token's position", Box::new(|t| positions[t] % vocab)),
        ("the row of the token before", Box::new(|t| ids[t.saturating_sub(1)])),
        ("the row of the token after", Box::new(|t| ids[(t + 1).min(ids.len() - 1)])),
        ("row 0 for every token", Box::new(|_| 0)),
    ];
    let mut with = |text: &str, values: Vec<f32>| {
        let parts =
            scene.whole(ops::copy(&Operand::captured(table.inputs, &values), scene.rounding()));
        visit(Candidate::mistake(CauseKey::EmbeddingRow, text, parts))
    };
    for (text, other) in &others {
        let mut values = Vec::new();
        for token in 0..ids.len() {
            values.extend(table.row(other(token))?);
        }
        with(text, values)?;
    }
    if scene.replay.model.has("output.weight") {
        let output = scene.replay.matrix("output.weight")?;
        let mut values = Vec::new();
        for &id in &ids {
            values.extend(output.row(id)?);
        }
        with("rows of output.weight instead of token_embd.weight", values)?;
    }
    Ok(())
}
