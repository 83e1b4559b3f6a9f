//! What all layers of a model must have in common: one set of sizes and numbers serves them all.

use super::{Unplanned, unplanned};
use crate::{
    graph::{ModelGraph, NodeId},
    model::RopePairs,
};

/// The sizes and numbers of one layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LayerShape {
    /// By which the layer is named.
    pub softmax: NodeId,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    pub n_ff: usize,
    pub qk_norm: bool,
    pub theta: f32,
    pub pairs: RopePairs,
    /// The weight that divides angles.
    pub factors: Option<String>,
    pub scale: f32,
    /// Of each norm.
    pub eps: Vec<f32>,
}

impl LayerShape {
    /// Each number with its name, in an order to compare by.
    fn named(&self) -> [(&'static str, String); 9] {
        [
            ("query heads", self.n_head.to_string()),
            ("KV heads", self.n_head_kv.to_string()),
            ("dims of a head", self.head_dim.to_string()),
            ("feed-forward size", self.n_ff.to_string()),
            ("norms of q and k", self.qk_norm.to_string()),
            ("ROPE base", self.theta.to_string()),
            ("ROPE pairs", format!("{:?}", self.pairs)),
            ("ROPE factors", self.factors.clone().unwrap_or("none".to_string())),
            ("scale of the scores", self.scale.to_string()),
        ]
    }
}

/// The shape of all layers; `None` where there are none. `eps` is the last norm's.
pub(super) fn agreed(
    model: &ModelGraph,
    layers: &[LayerShape],
    eps: f32,
) -> Result<Option<LayerShape>, Unplanned> {
    let Some(first) = layers.first() else { return Ok(None) };
    for layer in layers {
        for ((name, a), (_, b)) in first.named().into_iter().zip(layer.named()) {
            if a != b {
                let what = format!("layers that differ: {name} {a}, then {b}");
                return Err(unplanned(model, layer.softmax, what));
            }
        }
        if let Some(other) = layer.eps.iter().find(|&&of| of != eps) {
            let what = format!("RMS_NORM with different epsilons: {other} and {eps}");
            return Err(unplanned(model, layer.softmax, what));
        }
    }
    Ok(Some(first.clone()))
}
