//! Every hypothesis: which operations it may explain, and the function that tries it.

use crate::{
    diagnosis::{
        hypotheses::{
            attention, cache, elementwise, fused, likeness, norm, projection, rope, softmax, split,
        },
        replay::{self, ReplayError},
        scene::{Scene, Visit},
    },
    graph::site::Stage,
};

/// A family of explanations. A new one is a function here.
pub struct Hypothesis {
    /// The kinds of cause that it may name.
    pub keys: &'static [&'static str],
    pub applies: fn(Stage) -> bool,
    pub candidates: for<'s, 'a> fn(&Scene<'s, 'a>, Visit<'_, 'a>) -> Result<(), ReplayError>,
}

fn is_projection(stage: Stage) -> bool {
    replay::projection(stage).is_some()
}

fn is_norm(stage: Stage) -> bool {
    replay::norm_weight(stage).is_some()
}

fn is_cache(stage: Stage) -> bool {
    matches!(stage, Stage::KCache | Stage::VCache)
}

/// In the order of a forward pass; what applies to any operation comes last.
pub const HYPOTHESES: [Hypothesis; 25] = [
    Hypothesis {
        keys: &["embedding-row"],
        applies: |stage| stage == Stage::Embd,
        candidates: elementwise::embeddings,
    },
    Hypothesis {
        keys: &[
            "norm-missing",
            "norm-weight-missing",
            "norm-weight-plus-one",
            "norm-weight-zero",
            "norm-weight-of-other",
            "eps",
            "mean-subtracted",
            "not-averaged",
            "root-missing",
            "not-squared",
            "partial-sum",
        ],
        applies: is_norm,
        candidates: norm::norms,
    },
    Hypothesis { keys: &["input-of-other"], applies: is_norm, candidates: norm::other_input },
    Hypothesis {
        keys: &[
            "bias-missing",
            "bias-broadcast",
            "bias-twice",
            "bias-negated",
            "bias-of-other",
            "bias-of-other-layer",
            "weight-zero",
            "weight-transposed",
            "weight-leading-dimension",
            "weight-of-other",
            "weight-of-other-layer",
            "tied-output",
            "inner-truncated",
            "rows-permuted",
        ],
        applies: is_projection,
        candidates: projection::weights_and_biases,
    },
    Hypothesis {
        keys: &["outputs-truncated"],
        applies: is_projection,
        candidates: projection::fewer_outputs,
    },
    Hypothesis {
        keys: &["input-of-other"],
        applies: is_projection,
        candidates: projection::other_input,
    },
    Hypothesis {
        keys: &["rank-split"],
        applies: split::has_split_outputs,
        candidates: split::outputs,
    },
    Hypothesis {
        keys: &["rank-split"],
        applies: split::has_split_inputs,
        candidates: split::inputs,
    },
    Hypothesis {
        keys: &["rank-split"],
        applies: |stage| matches!(stage, Stage::Q | Stage::K | Stage::V),
        candidates: split::fused_qkv,
    },
    Hypothesis {
        keys: &[
            "rope-missing",
            "rope-pairs",
            "rope-theta",
            "rope-position",
            "rope-direction",
            "rope-partial",
            "rope-factors",
        ],
        applies: |stage| matches!(stage, Stage::QRope | Stage::KRope),
        candidates: rope::rotations,
    },
    Hypothesis {
        keys: &[
            "cache-unwritten",
            "cache-late",
            "cache-stale",
            "cache-slot",
            "cache-head",
            "cache-stride",
            "cache-layer",
            "cache-source",
            "cache-before-rope",
        ],
        applies: is_cache,
        candidates: cache::appends,
    },
    Hypothesis { keys: &["cache-layer"], applies: is_cache, candidates: cache::other_layers_cache },
    Hypothesis {
        keys: &[
            "score-scale",
            "head-map",
            "inner-truncated",
            "query-source",
            "values-source",
            "cache-layer",
            "cache-unwritten",
            "cache-slot",
            "cache-transposed",
            "dims-reversed",
        ],
        applies: |stage| stage == Stage::Scores,
        candidates: attention::scores,
    },
    Hypothesis {
        keys: &[
            "mask-missing",
            "mask-off-by-one",
            "window",
            "softmax-partial-sum",
            "softmax-padding",
            "softmax-unnormalised",
            "softmax-temperature",
            "softmax-axis",
            "softmax-overflow",
        ],
        applies: |stage| stage == Stage::Probs,
        candidates: softmax::softmaxes,
    },
    Hypothesis {
        keys: &[
            "head-map",
            "values-truncated",
            "values-source",
            "cache-layer",
            "cache-unwritten",
            "cache-slot",
            "cache-transposed",
            "dims-reversed",
        ],
        applies: |stage| stage == Stage::AttnOut,
        candidates: attention::weighted_sums,
    },
    Hypothesis {
        keys: &[
            "score-scale",
            "head-map",
            "inner-truncated",
            "query-in-registers",
            "query-source",
            "key-twice",
            "mask-missing",
            "mask-off-by-one",
            "window",
            "softmax-partial-sum",
            "softmax-padding",
            "softmax-unnormalised",
            "softmax-temperature",
            "values-source",
            "cache-layer",
            "cache-unwritten",
            "cache-slot",
            "cache-stride",
            "cache-transposed",
            "dims-reversed",
        ],
        applies: |stage| stage == Stage::AttnOut,
        candidates: fused::attentions,
    },
    Hypothesis {
        keys: &["residual-missing", "residual-twice", "residual-sign", "residual-source"],
        applies: |stage| matches!(stage, Stage::AttnResidual | Stage::LayerOut),
        candidates: elementwise::residuals,
    },
    Hypothesis {
        keys: &["gate-up-swapped", "activation", "up-missing", "gate-missing", "gate-twice"],
        applies: |stage| stage == Stage::FfnAct,
        candidates: elementwise::swiglu,
    },
    Hypothesis { keys: &["overflow"], applies: |_| true, candidates: likeness::overflows },
    Hypothesis {
        keys: &["heads-permuted", "rows-permuted"],
        applies: |_| true,
        candidates: likeness::permutations,
    },
    Hypothesis { keys: &["zero", "constant"], applies: |_| true, candidates: likeness::constants },
    Hypothesis { keys: &["scaled"], applies: |_| true, candidates: likeness::multiples },
    Hypothesis {
        keys: &["other-tensor", "token-before", "token-after", "rows-equal", "previous-step"],
        applies: |_| true,
        candidates: likeness::other_tensors,
    },
    Hypothesis { keys: &["offset"], applies: |_| true, candidates: likeness::offsets },
    Hypothesis {
        keys: &["stored-coarser", "f16-accumulation"],
        applies: |_| true,
        candidates: likeness::arithmetic,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fault::FAULTS;

    #[test]
    fn every_key_is_documented_and_every_fault_is_planted_for_one() {
        let document = include_str!("../../docs/diagnosis.md");
        let keys = || HYPOTHESES.iter().flat_map(|hypothesis| hypothesis.keys);
        for key in keys() {
            assert!(document.contains(&format!("`{key}`")), "{key}");
        }
        for fault in &FAULTS {
            assert!(keys().any(|key| *key == fault.cause), "{}", fault.name);
        }
    }
}
