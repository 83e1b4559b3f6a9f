//! Which tensors a step of the recorded model can have, and of which shape.

use std::path::Path;

use super::{
    error::{Limit, TraceError},
    manifest::{ModelId, within},
};
use crate::{
    model::{Arch, Config, RopePairs},
    site::{Axis, Site, Stage},
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
            arch: Arch::from_name(&model.architecture).expect("checked above"),
            n_layer: shapes.n_layer,
            n_embd: shapes.n_embd,
            n_head: shapes.n_head,
            n_head_kv: shapes.n_head_kv,
            head_dim: shapes.head_dim,
            n_ff: shapes.n_ff,
            n_vocab: shapes.n_vocab,
            // A trace does not state these and no shape depends on them.
            n_ctx_train: 0,
            rope_theta: f32::NAN,
            rope_pairs: RopePairs::Norm,
            rms_eps: f32::NAN,
            attention_scale: f32::NAN,
        }))
    }

    /// The model's shapes; what no shape depends on is not a number or 0.
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

/// The layout in which a wrong shape would fit, in words that follow the two shapes; empty if none.
pub(super) fn fits(site: Site, found: &[usize], expected: &[usize], config: &Config) -> String {
    let axes: Vec<&str> = site.stage.axes().iter().map(|axis| axis.name()).collect();
    let own = axes.join(", ");
    let elements = |shape: &[usize]| shape.iter().fold(1usize, |all, &n| all.saturating_mul(n));
    if let Some(order) = permutation(found, expected) {
        let order: Vec<&str> = order.into_iter().map(|axis| axes[axis]).collect();
        return format!(" which fits as ({}): write it as ({own})", order.join(", "));
    }
    if elements(found) == elements(expected) {
        return format!(" which has as many elements: give it as ({own})");
    }
    let (rows, rest) =
        (found.first().copied().unwrap_or(0), elements(found.get(1..).unwrap_or(&[])));
    let same_row = rest == elements(&expected[1..]);
    let logits = site.stage == Stage::Logits;
    if logits && (same_row && rows == 1 || *found == expected[1..]) {
        return " which is one token's: record all rows of the prompt".into();
    }
    let fused = (config.n_head + 2 * config.n_head_kv) * config.head_dim;
    if matches!(site.stage, Stage::Q | Stage::K | Stage::V) && rest == fused {
        return " which fits a fused qkv: write q, k and v of it".into();
    }
    let axis = axes[0];
    match (same_row, rows) {
        (true, rows) if rows + 1 == expected[0] => {
            let early = match site.stage.axes()[0] {
                Axis::Position => ": it was recorded before this step's were added",
                _ => "",
            };
            format!(" which is one {axis} too few{early}")
        }
        (true, rows) if rows == expected[0] + 1 => format!(" which is one {axis} too many"),
        (true, rows) if rows > expected[0] => {
            format!(" which has room for more {axis}s: write the first {}", expected[0])
        }
        _ => String::new(),
    }
}

/// Which axis of the expected shape each of the found one is, where they are the same in another
/// order.
fn permutation(found: &[usize], expected: &[usize]) -> Option<Vec<usize>> {
    let mut left: Vec<usize> = (0..expected.len()).collect();
    let mut order = Vec::new();
    for &n in found {
        let at = left.iter().position(|&axis| expected[axis] == n)?;
        order.push(left.remove(at));
    }
    left.is_empty().then_some(order)
}
