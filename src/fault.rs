//! Seeded faults: bugs planted on purpose, each with the place where a comparison must blame it.

use crate::{
    model::{Arch, Config},
    site::Stage,
};

/// A bug that can be planted in the engine.
#[derive(Debug, PartialEq)]
pub struct Fault {
    /// The name that `--fault` takes.
    pub name: &'static str,
    /// What is wrong, in one line.
    pub what: &'static str,
    /// The stage of step 0, layer 0 that differs first.
    pub blamed: Stage,
    /// Which elements of it differ.
    pub pattern: &'static str,
    pub plant: Plant,
}

/// How a fault gets into the engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Plant {
    /// A definition that changes a kernel file.
    Define { file: &'static str, define: &'static str },
    /// A mistake in the host code around the kernels.
    Wiring(Wiring),
}

/// Mistakes in the host code around the kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wiring {
    QkvBiasZero,
    RopePairsInterleaved,
    RopeBase1e4,
    KStoredBeforeRope,
    WqTransposed,
    FfnDownZero,
}

const fn define(file: &'static str, define: &'static str) -> Plant {
    Plant::Define { file, define }
}

/// Every fault, in the order of the stages they break.
pub const FAULTS: [Fault; 12] = [
    Fault {
        name: "qkv-bias-zero",
        what: "the biases of the q, k and v projections are loaded as zeros",
        blamed: Stage::Q,
        pattern: "all elements",
        plant: Plant::Wiring(Wiring::QkvBiasZero),
    },
    Fault {
        name: "wq-transposed",
        what: "the weight of the q projection is read as its transpose",
        blamed: Stage::Q,
        pattern: "all elements",
        plant: Plant::Wiring(Wiring::WqTransposed),
    },
    Fault {
        name: "rope-pairs-interleaved",
        what: "rope rotates the pairs (2i, 2i+1) instead of (i, i + D/2)",
        blamed: Stage::QRope,
        pattern: "positions >= 1",
        plant: Plant::Wiring(Wiring::RopePairsInterleaved),
    },
    Fault {
        name: "rope-position-ignored",
        what: "rope rotates every token as if it stood at position 0",
        blamed: Stage::QRope,
        pattern: "positions >= 1",
        plant: define("rope.cu", "FAULT_ROPE_POSITION_IGNORED"),
    },
    Fault {
        name: "rope-base-1e4",
        what: "rope uses the default base 10000 instead of the model's",
        blamed: Stage::QRope,
        pattern: "positions >= 1, dims except 0 and D/2",
        plant: Plant::Wiring(Wiring::RopeBase1e4),
    },
    Fault {
        name: "k-stored-before-rope",
        what: "the KV cache gets the keys before their rotation",
        blamed: Stage::KCache,
        pattern: "positions >= 1",
        plant: Plant::Wiring(Wiring::KStoredBeforeRope),
    },
    Fault {
        name: "kv-head-1-unwritten",
        what: "the append skips KV head 1, whose cache stays zero",
        blamed: Stage::KCache,
        pattern: "head 1",
        plant: define("kv_append.cu", "FAULT_KV_HEAD_1_UNWRITTEN"),
    },
    Fault {
        name: "cache-stride-length",
        what: "the append strides KV heads by the cache's length instead of its capacity",
        blamed: Stage::KCache,
        pattern: "heads >= 1",
        plant: define("kv_append.cu", "FAULT_CACHE_STRIDE_LENGTH"),
    },
    Fault {
        name: "kv-head-modulo",
        what: "query head h reads KV head h % Hk instead of h / (Hq / Hk)",
        blamed: Stage::Scores,
        pattern: "the query heads for which the two maps differ",
        plant: define("attention.cu", "FAULT_KV_HEAD_MODULO"),
    },
    Fault {
        name: "scale-missing",
        what: "the scores are not scaled by 1/sqrt(D)",
        blamed: Stage::Scores,
        pattern: "all elements",
        plant: define("attention.cu", "FAULT_SCALE_MISSING"),
    },
    Fault {
        name: "softmax-one-warp",
        what: "the softmax divides by the sum of the block's first warp only (seen past 32 positions)",
        blamed: Stage::Probs,
        pattern: "positions >= 32",
        plant: define("attention.cu", "FAULT_SOFTMAX_ONE_WARP"),
    },
    Fault {
        name: "ffn-down-zero",
        what: "the weight of the down projection is loaded as zeros",
        blamed: Stage::FfnDown,
        pattern: "all elements",
        plant: Plant::Wiring(Wiring::FfnDownZero),
    },
];

/// The fault of that name.
pub fn find(name: &str) -> Option<&'static Fault> {
    FAULTS.iter().find(|fault| fault.name == name)
}

impl Fault {
    /// Why the fault changes nothing on a model of this shape, if so.
    pub fn without_effect(&self, config: &Config, has_qkv_bias: bool) -> Option<&'static str> {
        let (hq, hk) = (config.n_head, config.n_head_kv);
        match (self.plant, self.name) {
            (Plant::Wiring(Wiring::QkvBiasZero), _) if !has_qkv_bias => {
                Some("the model has no q, k or v bias")
            }
            (Plant::Wiring(Wiring::RopePairsInterleaved), _) if config.arch == Arch::Llama => {
                Some("a llama model rotates the pairs (2i, 2i+1) as it should")
            }
            (Plant::Wiring(Wiring::RopeBase1e4), _) if config.rope_theta == 1e4 => {
                Some("the model's rope base is 10000")
            }
            (_, "kv-head-1-unwritten" | "cache-stride-length") if hk < 2 => {
                Some("the model has one KV head")
            }
            (_, "kv-head-modulo") if hk == 1 || hk == hq => {
                Some("both maps are the same for this number of heads")
            }
            _ => None,
        }
    }
}

/// The faults of a run.
#[derive(Clone, Debug, Default)]
pub struct Faults(pub Vec<&'static Fault>);

impl Faults {
    /// Whether a mistake in the host code is planted.
    pub fn has(&self, wiring: Wiring) -> bool {
        self.0.iter().any(|fault| fault.plant == Plant::Wiring(wiring))
    }

    /// The definitions for a kernel file.
    pub fn defines(&self, kernel_file: &str) -> Vec<String> {
        let of_file = |fault: &&'static Fault| match fault.plant {
            Plant::Define { file, define } if file == kernel_file => Some(define.to_string()),
            _ => None,
        };
        self.0.iter().filter_map(of_file).collect()
    }
}
