//! Manifests of versions 2 and 3, which state seven sizes of one of three architectures and no sites.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{
    error::{Limit, TraceError},
    groups::grouped,
    manifest::{FORMAT_VERSION, field, within},
};
use crate::graph::{
    ListedSite, SiteList, Size,
    site::{Axis, Stage},
};

/// The version of a whole trace.
pub(super) const WHOLE: u64 = 2;
/// The version of a rank's trace.
pub(super) const RANK: u64 = 3;

/// The hyperparameters that fixed every tensor's shape.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shapes {
    n_layer: usize,
    n_embd: usize,
    n_head: usize,
    n_head_kv: usize,
    head_dim: usize,
    n_ff: usize,
    n_vocab: usize,
}

/// The same manifest in the version that is written now.
///
/// # Errors
/// It states no model, another architecture, or sizes that no model has.
pub(super) fn upgraded(path: &Path, mut json: Value, version: u64) -> Result<Value, TraceError> {
    let refuse = |name: &str, reason: &str| Err(field(path, name.into(), reason.into()));
    let has_shard = json.get("shard").is_some_and(|shard| !shard.is_null());
    if has_shard != (version == RANK) {
        return refuse("shard", "is for version 3, which is one rank's");
    }
    let Some(model) = json.get_mut("model").and_then(Value::as_object_mut) else {
        return refuse("model", "is missing");
    };
    let syntax = |source| TraceError::Manifest { path: path.into(), source };
    let shapes = model.remove("shapes").unwrap_or(Value::Null);
    let shapes: Shapes = serde_json::from_value(shapes).map_err(syntax)?;
    shapes.check(path)?;
    let has_head_norms = match model.get("architecture").and_then(Value::as_str) {
        Some("qwen3") => true,
        Some("llama" | "qwen2") => false,
        other => {
            let found = other.unwrap_or_default();
            let reason = format!("is {found:?}, not llama, qwen2 or qwen3");
            return refuse("model.architecture", &reason);
        }
    };
    let groups = grouped(&shapes.sites(has_head_norms));
    model.insert("n_vocab".into(), shapes.n_vocab.into());
    model.insert("sites".into(), serde_json::to_value(groups).map_err(syntax)?);
    json["format_version"] = FORMAT_VERSION.into();
    Ok(json)
}

impl Shapes {
    fn check(&self, path: &Path) -> Result<(), TraceError> {
        let named = [
            ("n_layer", self.n_layer),
            ("n_embd", self.n_embd),
            ("n_head", self.n_head),
            ("n_head_kv", self.n_head_kv),
            ("head_dim", self.head_dim),
            ("n_ff", self.n_ff),
            ("n_vocab", self.n_vocab),
        ];
        for (name, value) in named {
            let limit = if name == "n_layer" { Limit::Layers } else { Limit::Dimension };
            within(path, limit, value as u64)?;
            if value == 0 {
                return Err(field(path, format!("model.shapes.{name}"), "is 0".into()));
            }
        }
        let (heads, of_kv) = (self.n_head, self.n_head_kv);
        if !heads.is_multiple_of(of_kv) {
            let reason = format!("is {of_kv}, which does not divide {heads}");
            return Err(field(path, "model.shapes.n_head_kv".into(), reason));
        }
        Ok(())
    }

    /// Every site of a step.
    fn sites(&self, has_head_norms: bool) -> SiteList {
        let stages: Vec<Stage> = (Stage::ALL.into_iter())
            .filter(|stage| has_head_norms || !matches!(stage, Stage::QNorm | Stage::KNorm))
            .collect();
        let inner: Vec<Stage> = stages.into_iter().filter(|stage| stage.in_layer()).collect();
        let mut sites = vec![self.site(None, Stage::Embd)];
        for layer in 0..self.n_layer as u32 {
            sites.extend(inner.iter().map(|&stage| self.site(Some(layer), stage)));
        }
        sites.extend([Stage::FinalNorm, Stage::Logits].map(|stage| self.site(None, stage)));
        SiteList::new(sites)
    }

    fn site(&self, layer: Option<u32>, stage: Stage) -> ListedSite {
        use Stage::*;
        let of_kv = matches!(stage, K | V | KNorm | KRope | KCache | VCache);
        let fixed = |n: usize| Size::fixed(n as i64);
        let size = |axis: &Axis| match axis {
            Axis::Token => Size { per_token: 1, ..Size::default() },
            Axis::Position | Axis::Key => Size { per_cell: 1, ..Size::default() },
            Axis::Head => fixed(if of_kv { self.n_head_kv } else { self.n_head }),
            Axis::Dim => fixed(self.head_dim),
            Axis::Neuron => fixed(self.n_ff),
            Axis::Vocab => fixed(self.n_vocab),
            _ => fixed(self.n_embd),
        };
        let axes = stage.axes().to_vec();
        let sizes = axes.iter().map(size).collect();
        ListedSite { layer, stage, axes, sizes }
    }
}
