//! Every fault, with where it must be blamed and for what.

use crate::{
    core::cause_key::CauseKey,
    engine::fault::{Load, Need, Parameter, Plant, Shift, Wiring},
    graph::site::{Site, Stage},
};

/// A bug that can be planted in the engine.
#[derive(Debug, PartialEq)]
pub struct Fault {
    /// The name that `--fault` takes.
    pub name: &'static str,
    /// What is wrong, in one line.
    pub what: &'static str,
    /// The key of the diagnosis that must be named.
    pub cause: CauseKey,
    /// The stage that differs first, in this step and layer.
    pub blamed: Stage,
    pub step: u32,
    pub layer: u32,
    /// Which elements of it differ.
    pub pattern: &'static str,
    pub plant: Plant,
    /// Without these it changes nothing.
    pub needs: &'static [Need],
}

const ALL: &str = "all elements";
const AFTER_0: &str = "positions >= 1";
const QK: &[Stage] = &[Stage::QRope, Stage::KRope];

const fn fault(name: &'static str, what: &'static str) -> Fault {
    let plant = Plant::Load { tensors: &[], load: Load::Zeros };
    let (cause, pattern, blamed) = (CauseKey::Unknown, ALL, Stage::Embd);
    Fault { name, what, cause, blamed, step: 0, layer: 0, pattern, plant, needs: &[] }
}

const fn define(file: &'static str, define: &'static str) -> Plant {
    Plant::Define { file, define }
}

const fn load(tensors: &'static [&'static str], load: Load) -> Plant {
    Plant::Load { tensors, load }
}

const fn positions(users: &'static [Stage], first_step: u32, shift: Shift) -> Plant {
    Plant::Positions { users, first_step, shift }
}

impl Fault {
    const fn blamed(mut self, stage: Stage, pattern: &'static str, cause: CauseKey) -> Fault {
        (self.blamed, self.pattern, self.cause) = (stage, pattern, cause);
        self
    }

    const fn in_step(mut self, step: u32) -> Fault {
        self.step = step;
        self
    }

    const fn in_layer(mut self, layer: u32) -> Fault {
        self.layer = layer;
        self
    }

    const fn planted(mut self, plant: Plant) -> Fault {
        self.plant = plant;
        self
    }

    const fn needs(mut self, needs: &'static [Need]) -> Fault {
        self.needs = needs;
        self
    }

    /// The site that differs first.
    pub fn site(&self) -> Site {
        if self.blamed.in_layer() {
            Site::in_layer(self.step, self.layer, self.blamed)
        } else {
            Site::global(self.step, self.blamed)
        }
    }
}

/// The fault of that name.
pub fn find(name: &str) -> Option<&'static Fault> {
    FAULTS.iter().find(|fault| fault.name == name)
}

/// Every fault, in the order of the stages they break.
pub static FAULTS: [Fault; 68] = [
    // Embedding.
    fault("embd-previous-row", "the embedding uses the row before each id's row")
        .blamed(Stage::Embd, ALL, CauseKey::EmbeddingRow)
        .planted(define("embedding.cu", "FAULT_EMBD_PREVIOUS_ROW")),
    fault("embd-scaled", "the embedding is multiplied by sqrt(E)")
        .blamed(Stage::Embd, ALL, CauseKey::Scaled)
        .planted(define("embedding.cu", "FAULT_EMBD_SCALED")),
    // Norms.
    fault("attn-norm-weight-missing", "the attention norm is not multiplied by its weight")
        .blamed(Stage::AttnNorm, ALL, CauseKey::NormWeightMissing)
        .planted(load(&["attn_norm.weight"], Load::Ones)),
    fault("attn-norm-weight-plus-one", "the attention norm is multiplied by 1 + weight")
        .blamed(Stage::AttnNorm, ALL, CauseKey::NormWeightPlusOne)
        .planted(load(&["attn_norm.weight"], Load::PlusOne)),
    fault("attn-norm-weight-of-next-layer", "the attention norm has the weight of the layer after")
        .blamed(Stage::AttnNorm, ALL, CauseKey::NormWeightOfOther)
        .planted(load(&["attn_norm.weight"], Load::OfNextLayer))
        .needs(&[Need::Layers]),
    fault("norm-eps-1e-2", "every norm has an epsilon of 0.01 instead of the model's")
        .blamed(Stage::AttnNorm, ALL, CauseKey::Eps)
        .planted(Plant::Parameter(Parameter::RmsEps(1e-2)))
        .needs(&[Need::F32]),
    fault("norm-mean-subtracted", "every norm subtracts the mean first, as LayerNorm does")
        .blamed(Stage::AttnNorm, ALL, CauseKey::MeanSubtracted)
        .planted(define("rms_norm.cu", "FAULT_NORM_MEAN_SUBTRACTED")),
    fault("norm-sum-one-warp", "every norm sums only the squares of the block's first warp")
        .blamed(Stage::AttnNorm, ALL, CauseKey::PartialSum)
        .planted(define("rms_norm.cu", "FAULT_NORM_SUM_ONE_WARP"))
        .needs(&[Need::WideHidden]),
    fault("ffn-norm-weight-of-attn-norm", "the ffn norm has the weight of the attention norm")
        .blamed(Stage::FfnNorm, ALL, CauseKey::NormWeightOfOther)
        .planted(load(&["ffn_norm.weight"], Load::Of("attn_norm.weight"))),
    fault(
        "final-norm-missing",
        "the output projection takes the hidden vector without the final norm",
    )
    .blamed(Stage::FinalNorm, ALL, CauseKey::NormMissing)
    .planted(Plant::Wiring(Wiring::FinalNormMissing)),
    fault(
        "final-norm-weight-of-attn-norm",
        "the final norm has the weight of layer 0's attention norm",
    )
    .blamed(Stage::FinalNorm, ALL, CauseKey::NormWeightOfOther)
    .planted(load(&["output_norm.weight"], Load::Of("blk.0.attn_norm.weight"))),
    // Projections.
    fault("qkv-bias-zero", "the biases of the q, k and v projections are loaded as zeros")
        .blamed(Stage::Q, ALL, CauseKey::BiasMissing)
        .planted(load(&["attn_q.bias", "attn_k.bias", "attn_v.bias"], Load::Zeros))
        .needs(&[Need::QkvBias]),
    fault("q-bias-broadcast", "every query head gets the bias of the first")
        .blamed(Stage::Q, "heads >= 1", CauseKey::BiasBroadcast)
        .planted(load(&["attn_q.bias"], Load::FirstHeadOnly))
        .needs(&[Need::Heads, Need::Tensor("blk.0.attn_q.bias")]),
    fault("wq-transposed", "the weight of the q projection is read as its transpose")
        .blamed(Stage::Q, ALL, CauseKey::WeightTransposed)
        .planted(load(&["attn_q.weight"], Load::Transposed)),
    fault("k-bias-of-v", "the k projection gets the bias of v")
        .blamed(Stage::K, ALL, CauseKey::BiasOfOther)
        .planted(load(&["attn_k.bias"], Load::Of("attn_v.bias")))
        .needs(&[Need::Tensor("blk.0.attn_k.bias"), Need::Tensor("blk.0.attn_v.bias")]),
    fault("k-scaled-1.001", "weight and bias of the k projection are 0.1 % too large")
        .blamed(Stage::K, ALL, CauseKey::Scaled)
        .planted(load(&["attn_k.weight", "attn_k.bias"], Load::Scaled(1.001)))
        .needs(&[Need::F32]),
    fault("wk-of-next-layer", "the k projection has the weight of the layer after")
        .blamed(Stage::K, ALL, CauseKey::WeightOfOtherLayer)
        .planted(load(&["attn_k.weight"], Load::OfNextLayer))
        .needs(&[Need::Layers]),
    fault("wv-inner-half", "the v projection sums only the first half of its inputs")
        .blamed(Stage::V, ALL, CauseKey::InnerTruncated)
        .planted(load(&["attn_v.weight"], Load::InnerHalf)),
    fault(
        "wv-rows-rotated-by-a-head",
        "each head of the v projection has the weight of the head before",
    )
    .blamed(Stage::V, ALL, CauseKey::RowsPermuted)
    .planted(load(&["attn_v.weight"], Load::HeadsRotated))
    .needs(&[Need::KvHeads]),
    fault("wo-transposed", "the weight of the output projection is read as its transpose")
        .blamed(Stage::OProj, ALL, CauseKey::WeightTransposed)
        .planted(load(&["attn_output.weight"], Load::Transposed)),
    fault(
        "wo-leading-dimension",
        "the rows of the output projection are read at a stride of inputs - 1",
    )
    .blamed(Stage::OProj, ALL, CauseKey::WeightLeadingDimension)
    .planted(load(&["attn_output.weight"], Load::StrideOneShort)),
    fault("ffn-gate-weight-of-up", "the gate projection has the weight of up")
        .blamed(Stage::FfnGate, ALL, CauseKey::WeightOfOther)
        .planted(load(&["ffn_gate.weight"], Load::Of("ffn_up.weight"))),
    fault("ffn-up-outputs-truncated", "the last 16 outputs of the up projection are zero")
        .blamed(Stage::FfnUp, "the last 16 neurons", CauseKey::OutputsTruncated)
        .planted(load(&["ffn_up.weight"], Load::LastRowsZero(16))),
    fault("ffn-down-zero", "the weight of the down projection is loaded as zeros")
        .blamed(Stage::FfnDown, ALL, CauseKey::WeightZero)
        .planted(load(&["ffn_down.weight"], Load::Zeros)),
    fault("logits-tied-mistaken", "the output projection is treated as tied to the embedding")
        .blamed(Stage::Logits, ALL, CauseKey::TiedOutput)
        .planted(load(&["output.weight"], Load::Of("token_embd.weight")))
        .needs(&[Need::Tensor("output.weight")]),
    // Rope.
    fault(
        "rope-pairs-interleaved",
        "rope rotates the other pairs: (2i, 2i+1) instead of (i, i + D/2), or the reverse",
    )
    .blamed(Stage::QRope, AFTER_0, CauseKey::RopePairs)
    .planted(Plant::Parameter(Parameter::OtherRopePairs))
    .needs(&[Need::Pairs, Need::Positions(2)]),
    fault("rope-base-1e4", "rope uses the default base 10000 instead of the model's")
        .blamed(Stage::QRope, "positions >= 1, dims except 0 and D/2", CauseKey::RopeTheta)
        .planted(Plant::Parameter(Parameter::RopeTheta(1e4)))
        .needs(&[Need::Pairs, Need::Positions(2)]),
    fault("rope-position-ignored", "rope rotates every token as if it were at position 0")
        .blamed(Stage::QRope, AFTER_0, CauseKey::RopeMissing)
        .planted(positions(QK, 0, Shift::Zero))
        .needs(&[Need::Positions(2)]),
    fault("rope-position-plus-one", "rope rotates every token as if it were one position later")
        .blamed(Stage::QRope, "the pairs that rotate fast enough", CauseKey::RopePosition)
        .planted(positions(QK, 0, Shift::By(1))),
    fault(
        "rope-q-position-plus-one",
        "rope rotates q, and not k, as if it were one position later",
    )
    .blamed(Stage::QRope, "the pairs that rotate fast enough", CauseKey::RopePosition)
    .planted(positions(&[Stage::QRope], 0, Shift::By(1))),
    fault("rope-decode-from-zero", "in a decode step rope counts positions from 0")
        .blamed(Stage::QRope, ALL, CauseKey::RopePosition)
        .in_step(1)
        .planted(positions(QK, 1, Shift::Zero))
        .needs(&[Need::Decode]),
    fault("rope-k-missing", "k is not rotated")
        .blamed(Stage::KRope, AFTER_0, CauseKey::RopeMissing)
        .planted(positions(&[Stage::KRope], 0, Shift::Zero))
        .needs(&[Need::Positions(2)]),
    fault("rope-partial-half", "rope rotates only the first half of the pairs")
        .blamed(Stage::QRope, "positions >= 1, the second half of the pairs", CauseKey::RopePartial)
        .planted(define("rope.cu", "FAULT_ROPE_PARTIAL_HALF"))
        .needs(&[Need::Positions(2)]),
    fault("rope-backwards", "rope rotates in the opposite direction")
        .blamed(Stage::QRope, AFTER_0, CauseKey::RopeDirection)
        .planted(define("rope.cu", "FAULT_ROPE_BACKWARDS"))
        .needs(&[Need::Positions(2)]),
    fault("rope-head-0-only", "rope rotates only head 0")
        .blamed(Stage::QRope, "positions >= 1, heads >= 1", CauseKey::RopeMissing)
        .planted(define("rope.cu", "FAULT_ROPE_HEAD_0_ONLY"))
        .needs(&[Need::Heads, Need::Positions(2)]),
    // KV cache.
    fault("k-stored-before-rope", "the KV cache gets the keys before their rotation")
        .blamed(Stage::KCache, AFTER_0, CauseKey::CacheBeforeRope)
        .planted(Plant::Wiring(Wiring::KStoredBeforeRope))
        .needs(&[Need::Positions(2)]),
    fault("kv-head-1-unwritten", "the append skips KV head 1, whose cache stays zero")
        .blamed(Stage::KCache, "head 1", CauseKey::CacheUnwritten)
        .planted(define("kv_append.cu", "FAULT_KV_HEAD_1_UNWRITTEN"))
        .needs(&[Need::KvHeads]),
    fault(
        "cache-stride-length",
        "the append strides KV heads by the cache's length instead of its capacity",
    )
    .blamed(Stage::KCache, "heads >= 1", CauseKey::CacheStride)
    .planted(define("kv_append.cu", "FAULT_CACHE_STRIDE_LENGTH"))
    .needs(&[Need::KvHeads]),
    fault("v-cache-slot-plus-one", "the append writes values one position too late")
        .blamed(Stage::VCache, ALL, CauseKey::CacheSlot)
        .planted(define("kv_append.cu", "FAULT_V_CACHE_SLOT_PLUS_ONE")),
    fault("v-cache-heads-swapped", "the append writes the values of KV head h to head Hk - 1 - h")
        .blamed(Stage::VCache, ALL, CauseKey::CacheHead)
        .planted(define("kv_append.cu", "FAULT_V_CACHE_HEADS_SWAPPED"))
        .needs(&[Need::KvHeads]),
    fault("decode-never-appended", "a decode step appends nothing to the cache")
        .blamed(Stage::KCache, "the step's position", CauseKey::CacheUnwritten)
        .in_step(1)
        .planted(Plant::Wiring(Wiring::DecodeNeverAppended))
        .needs(&[Need::Decode]),
    fault("decode-overwrites-last", "a decode step writes to the slot of the position before")
        .blamed(Stage::KCache, "the step's position and the one before", CauseKey::CacheSlot)
        .in_step(1)
        .planted(positions(&[Stage::KCache], 1, Shift::By(-1)))
        .needs(&[Need::Decode]),
    fault("cache-of-layer-0", "every layer attends over the cache of layer 0")
        .blamed(Stage::Scores, ALL, CauseKey::CacheLayer)
        .in_layer(1)
        .planted(Plant::Wiring(Wiring::CacheOfLayer0))
        .needs(&[Need::Layers]),
    // Attention.
    fault("kv-head-modulo", "query head h reads KV head h % Hk instead of h / (Hq / Hk)")
        .blamed(Stage::Scores, "the query heads for which the two maps differ", CauseKey::HeadMap)
        .planted(define("attention.cu", "FAULT_KV_HEAD_MODULO"))
        .needs(&[Need::HeadGroups]),
    fault("kv-head-zero", "every query head reads KV head 0")
        .blamed(Stage::Scores, "the query heads of the other KV heads", CauseKey::HeadMap)
        .planted(define("attention.cu", "FAULT_KV_HEAD_ZERO"))
        .needs(&[Need::KvHeads]),
    fault("scale-missing", "the scores are not scaled by 1/sqrt(D)")
        .blamed(Stage::Scores, ALL, CauseKey::ScoreScale)
        .planted(Plant::Parameter(Parameter::NoScale)),
    fault("scale-squared", "the scores are scaled twice")
        .blamed(Stage::Scores, ALL, CauseKey::ScoreScale)
        .planted(Plant::Parameter(Parameter::ScaleSquared)),
    fault("scale-of-hidden", "the scores are scaled by 1/sqrt(E)")
        .blamed(Stage::Scores, ALL, CauseKey::ScoreScale)
        .planted(Plant::Parameter(Parameter::ScaleOfHidden)),
    fault("keys-half-dim", "the scores sum only the first half of the dims")
        .blamed(Stage::Scores, ALL, CauseKey::InnerTruncated)
        .planted(define("attention.cu", "FAULT_KEYS_HALF_DIM")),
    fault("scores-f16-accumulate", "the sum of a score is rounded to f16 after each addition")
        .blamed(Stage::Scores, "nearly all elements", CauseKey::F16Accumulation)
        .planted(define("attention.cu", "FAULT_SCORES_F16_ACCUMULATE"))
        .needs(&[Need::F32]),
    fault("mask-missing", "a query sees all keys of the prompt, including later ones")
        .blamed(Stage::Probs, "positions before the prompt's last", CauseKey::MaskMissing)
        .planted(define("attention.cu", "FAULT_MASK_MISSING"))
        .needs(&[Need::Prompt(2)]),
    fault("mask-off-by-one", "a query does not see its own key")
        .blamed(Stage::Probs, AFTER_0, CauseKey::MaskOffByOne)
        .planted(define("attention.cu", "FAULT_MASK_OFF_BY_ONE"))
        .needs(&[Need::Positions(2)]),
    fault("window-16", "a query sees only the last 16 keys")
        .blamed(Stage::Probs, "positions >= 16", CauseKey::Window)
        .planted(define("attention.cu", "FAULT_WINDOW_16"))
        .needs(&[Need::Positions(17)]),
    fault("softmax-one-warp", "the softmax divides by the sum of only the block's first warp")
        .blamed(Stage::Probs, "positions >= 32", CauseKey::SoftmaxPartialSum)
        .planted(define("attention.cu", "FAULT_SOFTMAX_ONE_WARP"))
        .needs(&[Need::Positions(33)]),
    fault("softmax-over-padding", "the softmax sums scores of zero up to a multiple of 32 keys")
        .blamed(
            Stage::Probs,
            "positions except 31, 63, ..., where the scores are low",
            CauseKey::SoftmaxPadding,
        )
        .planted(define("attention.cu", "FAULT_SOFTMAX_OVER_PADDING")),
    fault("softmax-unnormalised", "the softmax is not divided by its sum")
        .blamed(Stage::Probs, AFTER_0, CauseKey::SoftmaxUnnormalised)
        .planted(define("attention.cu", "FAULT_SOFTMAX_UNNORMALISED"))
        .needs(&[Need::Positions(2)]),
    fault("softmax-temperature", "the softmax uses half of each score")
        .blamed(Stage::Probs, AFTER_0, CauseKey::SoftmaxTemperature)
        .planted(define("attention.cu", "FAULT_SOFTMAX_TEMPERATURE"))
        .needs(&[Need::Positions(2)]),
    fault("values-from-keys", "the keys are summed in place of the values")
        .blamed(Stage::AttnOut, ALL, CauseKey::ValuesSource)
        .planted(define("attention.cu", "FAULT_VALUES_FROM_KEYS")),
    fault("values-first-32-keys", "only the values of the first 32 keys are summed")
        .blamed(Stage::AttnOut, "positions >= 32", CauseKey::ValuesTruncated)
        .planted(define("attention.cu", "FAULT_VALUES_FIRST_32_KEYS"))
        .needs(&[Need::Positions(33)]),
    fault("values-head-zero", "every query head sums the values of KV head 0")
        .blamed(Stage::AttnOut, "the query heads of the other KV heads", CauseKey::HeadMap)
        .planted(define("attention.cu", "FAULT_VALUES_HEAD_ZERO"))
        .needs(&[Need::KvHeads]),
    fault("out-heads-reversed", "the heads of the attention's output are written in reverse order")
        .blamed(Stage::AttnOut, ALL, CauseKey::HeadsPermuted)
        .planted(define("attention.cu", "FAULT_OUT_HEADS_REVERSED"))
        .needs(&[Need::Heads]),
    // Residuals and the feed-forward network.
    fault("attn-residual-missing", "the attention's output replaces the hidden vector")
        .blamed(Stage::AttnResidual, ALL, CauseKey::ResidualMissing)
        .planted(Plant::Wiring(Wiring::AttnResidualMissing)),
    fault("attn-residual-of-normed", "the attention's output is added to the normed hidden vector")
        .blamed(Stage::AttnResidual, ALL, CauseKey::ResidualSource)
        .planted(Plant::Wiring(Wiring::AttnResidualOfNormed)),
    fault("gate-up-swapped", "silu is applied to up instead of gate")
        .blamed(Stage::FfnAct, ALL, CauseKey::GateUpSwapped)
        .planted(define("swiglu.cu", "FAULT_GATE_UP_SWAPPED")),
    fault("gelu-for-silu", "the gate goes through gelu (by tanh) instead of silu")
        .blamed(Stage::FfnAct, ALL, CauseKey::Activation)
        .planted(define("swiglu.cu", "FAULT_GELU_FOR_SILU")),
    fault("relu-for-silu", "the gate goes through relu instead of silu")
        .blamed(Stage::FfnAct, ALL, CauseKey::Activation)
        .planted(define("swiglu.cu", "FAULT_RELU_FOR_SILU")),
    fault("act-without-up", "silu(gate) is not multiplied by up")
        .blamed(Stage::FfnAct, ALL, CauseKey::UpMissing)
        .planted(define("swiglu.cu", "FAULT_ACT_WITHOUT_UP")),
    fault("ffn-residual-missing", "the feed-forward network's output replaces the hidden vector")
        .blamed(Stage::LayerOut, ALL, CauseKey::ResidualMissing)
        .planted(Plant::Wiring(Wiring::FfnResidualMissing)),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::engine::kernels::KernelSet;

    #[test]
    fn every_fault_is_complete_and_has_its_own_name() {
        let names: BTreeSet<&str> = FAULTS.iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), FAULTS.len());
        for fault in &FAULTS {
            assert_ne!(fault.cause, CauseKey::Unknown, "{}", fault.name);
            let unplanted = matches!(fault.plant, Plant::Load { tensors: [], .. });
            assert!(!unplanted, "{}", fault.name);
        }
    }

    #[test]
    fn the_definitions_of_the_table_are_those_of_the_kernels_of_three_lines_each() {
        let mut in_kernels = BTreeSet::new();
        for file in KernelSet::files() {
            let text = KernelSet::embedded().source(file, vec![]).unwrap().text;
            for part in text.split("#ifdef FAULT_").skip(1) {
                let lines: Vec<&str> = part.lines().take(3).collect();
                assert_eq!(lines.last(), Some(&"#endif"), "{file}: {lines:?}");
                in_kernels.insert((file, format!("FAULT_{}", lines[0])));
            }
        }
        let defined = FAULTS.iter().filter_map(|fault| match fault.plant {
            Plant::Define { file, define } => Some((file, define.to_string())),
            _ => None,
        });
        assert_eq!(defined.collect::<BTreeSet<_>>(), in_kernels);
    }
}
