//! Which tensors a step of the recorded model can have, and of which shape.

use std::path::Path;

use super::{
    error::{Limit, TraceError},
    manifest::{ModelId, within},
};
use crate::{
    graph::site::Site,
    model::{Config, RopePairs},
};

/// The sites and shapes of a model known from its manifest only.
#[derive(Clone, Debug)]
pub(super) struct Layout(Config);

impl Layout {
    /// The layout of a model, whose fields are checked.
    pub fn new(path: &Path, model: &ModelId) -> Result<Layout, TraceError> {
        model.check(path)?;
        let shapes = model.shapes;
        Ok(Layout(Config {
            architecture: model.architecture.clone(),
            n_layer: shapes.n_layer,
            n_embd: shapes.n_embd,
            n_head: shapes.n_head,
            n_head_kv: shapes.n_head_kv,
            head_dim: shapes.head_dim,
            n_ff: shapes.n_ff,
            n_vocab: shapes.n_vocab,
            // A trace does not state these and no shape depends on them.
            qk_norm: model.architecture == "qwen3",
            rope_theta: f32::NAN,
            rope_pairs: RopePairs::Norm,
            rms_eps: f32::NAN,
            attention_scale: f32::NAN,
        }))
    }

    /// The model's shapes; what no shape depends on is not a number or 0.
    #[cfg(feature = "full")]
    pub fn config(&self) -> &Config {
        &self.0
    }

    /// Every site of a step, in canonical order.
    pub fn sites(&self) -> Vec<Site> {
        self.0.sites(1)
    }

    /// Whether the model's forward pass has the site.
    pub fn has(&self, site: Site) -> bool {
        let layer_exists = site.layer.is_none_or(|layer| (layer as usize) < self.0.n_layer);
        layer_exists && self.0.stages().contains(&site.stage)
    }

    /// The shape of an existing site in a step of `tokens` tokens with `positions` in the cache.
    pub fn shape(
        &self,
        path: &Path,
        site: Site,
        tokens: usize,
        positions: usize,
    ) -> Result<Vec<usize>, TraceError> {
        let shape = self.0.shape(site.stage, tokens, positions);
        let elements = shape.iter().fold(1u64, |product, &n| product.saturating_mul(n as u64));
        within(path, Limit::Elements, elements)?;
        Ok(shape)
    }
}
