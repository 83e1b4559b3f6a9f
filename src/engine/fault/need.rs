//! What a fault needs of a run to change anything.

use crate::{
    core::tensor::DType,
    engine::fault::{Fault, Plant},
    model::Model,
};

/// What a fault is planted in.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub model: &'a Model,
    /// Storage of the engine.
    pub storage: DType,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens decoded after it.
    pub decode: u32,
}

/// One thing that a fault needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Need {
    /// A bias of q, k or v.
    QkvBias,
    /// A tensor that not every model has.
    Tensor(&'static str),
    /// Two layers.
    Layers,
    /// Two query heads.
    Heads,
    /// Two KV heads.
    KvHeads,
    /// Fewer KV heads than query heads, and more than one.
    HeadGroups,
    /// Two pairs in a head.
    Pairs,
    /// More elements in a hidden vector than a warp has threads.
    WideHidden,
    /// Tokens in the prompt.
    Prompt(usize),
    /// Positions in the cache at the end.
    Positions(usize),
    /// A decode step.
    Decode,
    /// Storage in f32.
    F32,
}

impl Need {
    /// What is missing, where the need is not met.
    fn unmet(self, subject: &Subject<'_>) -> Option<String> {
        let (model, config) = (subject.model, &subject.model.config);
        let (hq, hk) = (config.n_head, config.n_head_kv);
        let positions = subject.prompt + subject.decode as usize;
        let (met, missing) = match self {
            Need::QkvBias => (model.has_qkv_bias(), "the model has no q, k or v bias"),
            Need::Tensor("output.weight") => {
                (model.has("output.weight"), "the output is tied to the embedding")
            }
            Need::Tensor(name) => {
                return (!model.has(name)).then(|| format!("the model has no {name}"));
            }
            Need::Layers => (config.n_layer > 1, "the model has one layer"),
            Need::Heads => (hq > 1, "the model has one query head"),
            Need::KvHeads => (hk > 1, "the model has one KV head"),
            Need::HeadGroups => {
                (hk > 1 && hk < hq, "both maps are the same for this number of heads")
            }
            Need::Pairs => (config.head_dim > 2, "a head has one pair"),
            Need::WideHidden => (config.n_embd > 32, "one warp sums the whole hidden vector"),
            Need::Prompt(least) => {
                let why = || format!("the prompt has fewer than {least} tokens");
                return (subject.prompt < least).then(why);
            }
            Need::Positions(least) => {
                let why = || format!("prompt and -n have fewer than {least} positions");
                return (positions < least).then(why);
            }
            Need::Decode => (subject.decode > 0, "no token is decoded"),
            Need::F32 => (subject.storage == DType::F32, "f16 storage rounds as coarsely"),
        };
        (!met).then(|| missing.to_string())
    }
}

impl Fault {
    /// Why the fault changes nothing, or nothing beyond rounding, if so.
    pub fn without_effect(&self, subject: &Subject<'_>) -> Option<String> {
        let config = &subject.model.config;
        if let Plant::Parameter(parameter) = self.plant {
            let mut wrong = config.clone();
            parameter.apply(&mut wrong);
            if wrong == *config {
                return Some("the model's own value is the same".to_string());
            }
        }
        self.needs.iter().find_map(|need| need.unmet(subject))
    }
}
