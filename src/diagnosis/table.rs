//! Every hypothesis: which operations it may explain, and the function that tries it.

use crate::{
    core::cause_key::CauseKey,
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
    pub keys: &'static [CauseKey],
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
        keys: &[CauseKey::EmbeddingRow],
        applies: |stage| stage == Stage::Embd,
        candidates: elementwise::embeddings,
    },
    Hypothesis {
        keys: &[
            CauseKey::NormMissing,
            CauseKey::NormWeightMissing,
            CauseKey::NormWeightPlusOne,
            CauseKey::NormWeightZero,
            CauseKey::NormWeightOfOther,
            CauseKey::Eps,
            CauseKey::MeanSubtracted,
            CauseKey::NotAveraged,
            CauseKey::RootMissing,
            CauseKey::NotSquared,
            CauseKey::PartialSum,
        ],
        applies: is_norm,
        candidates: norm::norms,
    },
    Hypothesis { keys: &[CauseKey::InputOfOther], applies: is_norm, candidates: norm::other_input },
    Hypothesis {
        keys: &[
            CauseKey::BiasMissing,
            CauseKey::BiasBroadcast,
            CauseKey::BiasTwice,
            CauseKey::BiasNegated,
            CauseKey::BiasOfOther,
            CauseKey::BiasOfOtherLayer,
            CauseKey::WeightZero,
            CauseKey::WeightTransposed,
            CauseKey::WeightLeadingDimension,
            CauseKey::WeightOfOther,
            CauseKey::WeightOfOtherLayer,
            CauseKey::TiedOutput,
            CauseKey::InnerTruncated,
            CauseKey::RowsPermuted,
        ],
        applies: is_projection,
        candidates: projection::weights_and_biases,
    },
    Hypothesis {
        keys: &[CauseKey::OutputsTruncated],
        applies: is_projection,
        candidates: projection::fewer_outputs,
    },
    Hypothesis {
        keys: &[CauseKey::InputOfOther],
        applies: is_projection,
        candidates: projection::other_input,
    },
    Hypothesis {
        keys: &[CauseKey::RankSplit],
        applies: split::has_split_outputs,
        candidates: split::outputs,
    },
    Hypothesis {
        keys: &[CauseKey::RankSplit],
        applies: split::has_split_inputs,
        candidates: split::inputs,
    },
    Hypothesis {
        keys: &[CauseKey::RankSplit],
        applies: |stage| matches!(stage, Stage::Q | Stage::K | Stage::V),
        candidates: split::fused_qkv,
    },
    Hypothesis {
        keys: &[
            CauseKey::RopeMissing,
            CauseKey::RopePairs,
            CauseKey::RopeTheta,
            CauseKey::RopePosition,
            CauseKey::RopeDirection,
            CauseKey::RopePartial,
            CauseKey::RopeFactors,
        ],
        applies: |stage| matches!(stage, Stage::QRope | Stage::KRope),
        candidates: rope::rotations,
    },
    Hypothesis {
        keys: &[
            CauseKey::CacheUnwritten,
            CauseKey::CacheLate,
            CauseKey::CacheStale,
            CauseKey::CacheSlot,
            CauseKey::CacheHead,
            CauseKey::CacheStride,
            CauseKey::CacheLayer,
            CauseKey::CacheSource,
            CauseKey::CacheBeforeRope,
        ],
        applies: is_cache,
        candidates: cache::appends,
    },
    Hypothesis {
        keys: &[CauseKey::CacheLayer],
        applies: is_cache,
        candidates: cache::other_layers_cache,
    },
    Hypothesis {
        keys: &[
            CauseKey::ScoreScale,
            CauseKey::HeadMap,
            CauseKey::InnerTruncated,
            CauseKey::QuerySource,
            CauseKey::ValuesSource,
            CauseKey::CacheLayer,
            CauseKey::CacheUnwritten,
            CauseKey::CacheSlot,
            CauseKey::CacheTransposed,
            CauseKey::DimsReversed,
        ],
        applies: |stage| stage == Stage::Scores,
        candidates: attention::scores,
    },
    Hypothesis {
        keys: &[
            CauseKey::MaskMissing,
            CauseKey::MaskOffByOne,
            CauseKey::Window,
            CauseKey::SoftmaxPartialSum,
            CauseKey::SoftmaxPadding,
            CauseKey::SoftmaxUnnormalised,
            CauseKey::SoftmaxTemperature,
            CauseKey::SoftmaxAxis,
            CauseKey::SoftmaxOverflow,
        ],
        applies: |stage| stage == Stage::Probs,
        candidates: softmax::softmaxes,
    },
    Hypothesis {
        keys: &[
            CauseKey::HeadMap,
            CauseKey::ValuesTruncated,
            CauseKey::ValuesSource,
            CauseKey::CacheLayer,
            CauseKey::CacheUnwritten,
            CauseKey::CacheSlot,
            CauseKey::CacheTransposed,
            CauseKey::DimsReversed,
        ],
        applies: |stage| stage == Stage::AttnOut,
        candidates: attention::weighted_sums,
    },
    Hypothesis {
        keys: &[
            CauseKey::ScoreScale,
            CauseKey::HeadMap,
            CauseKey::InnerTruncated,
            CauseKey::QueryInRegisters,
            CauseKey::QuerySource,
            CauseKey::KeyTwice,
            CauseKey::MaskMissing,
            CauseKey::MaskOffByOne,
            CauseKey::Window,
            CauseKey::SoftmaxPartialSum,
            CauseKey::SoftmaxPadding,
            CauseKey::SoftmaxUnnormalised,
            CauseKey::SoftmaxTemperature,
            CauseKey::ValuesSource,
            CauseKey::CacheLayer,
            CauseKey::CacheUnwritten,
            CauseKey::CacheSlot,
            CauseKey::CacheStride,
            CauseKey::CacheTransposed,
            CauseKey::DimsReversed,
        ],
        applies: |stage| stage == Stage::AttnOut,
        candidates: fused::attentions,
    },
    Hypothesis {
        keys: &[
            CauseKey::ResidualMissing,
            CauseKey::ResidualTwice,
            CauseKey::ResidualSign,
            CauseKey::ResidualSource,
        ],
        applies: |stage| matches!(stage, Stage::AttnResidual | Stage::LayerOut),
        candidates: elementwise::residuals,
    },
    Hypothesis {
        keys: &[
            CauseKey::GateUpSwapped,
            CauseKey::Activation,
            CauseKey::UpMissing,
            CauseKey::GateMissing,
            CauseKey::GateTwice,
        ],
        applies: |stage| stage == Stage::FfnAct,
        candidates: elementwise::swiglu,
    },
    Hypothesis { keys: &[CauseKey::Overflow], applies: |_| true, candidates: likeness::overflows },
    Hypothesis {
        keys: &[CauseKey::HeadsPermuted, CauseKey::RowsPermuted],
        applies: |_| true,
        candidates: likeness::permutations,
    },
    Hypothesis {
        keys: &[CauseKey::Zero, CauseKey::Constant],
        applies: |_| true,
        candidates: likeness::constants,
    },
    Hypothesis { keys: &[CauseKey::Scaled], applies: |_| true, candidates: likeness::multiples },
    Hypothesis {
        keys: &[
            CauseKey::OtherTensor,
            CauseKey::TokenBefore,
            CauseKey::TokenAfter,
            CauseKey::RowsEqual,
            CauseKey::PreviousStep,
        ],
        applies: |_| true,
        candidates: likeness::other_tensors,
    },
    Hypothesis { keys: &[CauseKey::Offset], applies: |_| true, candidates: likeness::offsets },
    Hypothesis {
        keys: &[CauseKey::StoredCoarser, CauseKey::F16Accumulation],
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
