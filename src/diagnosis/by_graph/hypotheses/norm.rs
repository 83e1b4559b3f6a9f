//! Mistakes in a norm.

use super::Visit;
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        by_graph::{Change, Edits, Evidence},
        replay::ReplayError,
    },
    graph::{Node, NodeId, Op},
};

/// Epsilons in use.
const EPSILONS: [f32; 7] = [0.0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-3, 1e-2];

/// Norms with another epsilon, weight or centre.
pub fn norms(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    for norm in evidence.nodes(|node| node.op.is_norm()) {
        let node = graph.node(norm);
        let own = f32::from_bits(node.params.first().map_or(0, |eps| eps.fixed as i32 as u32));
        for eps in EPSILONS.into_iter().filter(|&eps| eps != own) {
            let edit = Change::Params(Box::new(move |params| params.set_float(0, eps)));
            let text = format!("eps {eps:e} instead of {own:e}");
            visit(evidence.mistake(CauseKey::Eps, text, &Edits::one(norm, edit))?);
        }
        let (key, op) = match node.op {
            Op::RmsNorm => (CauseKey::MeanSubtracted, Op::Norm),
            _ => continue,
        };
        let text = "the mean is subtracted, as LayerNorm does";
        visit(evidence.mistake(key, text, &Edits::one(norm, Change::Op(op)))?);
    }
    for factor in evidence.nodes(|node: &Node| node.op == Op::Mul) {
        weights(evidence, factor, visit)?;
    }
    Ok(())
}

/// The weight of a norm missing, or with one more or less.
fn weights(evidence: &Evidence<'_>, factor: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    if evidence.graph().weight_of(factor).is_none() {
        return Ok(());
    }
    let left_out = Edits::one(factor, Change::LeftOut(0));
    visit(evidence.mistake(CauseKey::NormWeightMissing, "the weight is missing", &left_out)?);
    let moved = |by: f64| {
        let change = move |value: &[f64]| value.iter().map(|x| x + by).collect();
        Change::Values(1, Box::new(move |_, value, _| Some(change(value))))
    };
    let plus = Edits::one(factor, moved(1.0));
    visit(evidence.mistake(CauseKey::NormWeightPlusOne, "the weight plus one", &plus)?);
    Ok(())
}
