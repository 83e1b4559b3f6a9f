//! Where a tensor belongs: a [`Site`] is (step, layer, [`Stage`]), ordered as a forward pass computes it.

use std::{collections::BTreeSet, fmt, sync::Mutex};

use serde::{Deserialize, Serialize};

/// One kind of tensor in the forward pass, in canonical order.
///
/// Shapes use T tokens of the step, E hidden, Hq/Hk query/KV heads, D head_dim, F ffn,
/// P positions in the cache after the step, V vocab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Stage {
    /// Token embedding rows: (T, E).
    Embd,
    /// RMSNorm times weight: (T, E).
    AttnNorm,
    /// Query projection plus bias, before any norm or rope: (T, Hq, D).
    Q,
    /// Key projection plus bias: (T, Hk, D).
    K,
    /// Value projection plus bias: (T, Hk, D).
    V,
    /// Per-head query norm, of some models: (T, Hq, D).
    QNorm,
    /// Per-head key norm, of some models: (T, Hk, D).
    KNorm,
    /// Query after rotation: (T, Hq, D).
    QRope,
    /// Key after rotation: (T, Hk, D).
    KRope,
    /// The keys that the attention of this step reads: (P, Hk, D).
    KCache,
    /// The values that the attention of this step reads: (P, Hk, D).
    VCache,
    /// scale * q.k before the mask: (T, Hq, P); a key after the query's position does not count.
    Scores,
    /// Masked softmax of the scores: (T, Hq, P).
    Probs,
    /// probs . v, heads concatenated: (T, Hq, D).
    AttnOut,
    /// Output projection: (T, E).
    OProj,
    /// Residual after attention: (T, E).
    AttnResidual,
    /// RMSNorm times weight: (T, E).
    FfnNorm,
    /// Gate projection: (T, F).
    FfnGate,
    /// Up projection: (T, F).
    FfnUp,
    /// silu(gate) * up: (T, F).
    FfnAct,
    /// Down projection: (T, E).
    FfnDown,
    /// Residual after the feed-forward network: (T, E).
    LayerOut,
    /// RMSNorm of the last layer's output: (T, E).
    FinalNorm,
    /// Output projection: (T, V).
    Logits,
    /// A tensor that plays none of these roles, by llama.cpp's name for it.
    Other(Name),
}

/// A name that lives as long as the process, so that a site can be copied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(&'static str);

impl Name {
    /// The longest name of a site.
    const MAX_BYTES: usize = 128;

    /// The name, if a site may be called so: letters, digits, `_`, `-` and dots within.
    pub fn new(name: &str) -> Option<Name> {
        static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        let is_name = (1..=Name::MAX_BYTES).contains(&name.len())
            && name.bytes().all(allowed)
            && !name.starts_with('.')
            && !name.ends_with('.');
        if !is_name {
            return None;
        }
        let mut names = NAMES.lock().expect("no thread panics while it holds the names");
        if let Some(&known) = names.get(name) {
            return Some(Name(known));
        }
        let kept: &'static str = String::leak(name.to_string());
        names.insert(kept);
        Some(Name(kept))
    }

    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl From<Stage> for String {
    fn from(stage: Stage) -> String {
        stage.name().to_string()
    }
}

impl TryFrom<String> for Stage {
    type Error = String;

    fn try_from(name: String) -> Result<Stage, String> {
        Stage::from_name(&name).ok_or_else(|| format!("{name:?} is not a site name"))
    }
}

/// What one axis of a stage's tensor counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Tokens of the step; token t sits at position `first position of the step + t`.
    Token,
    /// Positions in the KV cache.
    Position,
    /// Query or KV heads.
    Head,
    /// Elements within a head.
    Dim,
    /// Key positions that a query sees.
    Key,
    /// Elements of the hidden vector.
    Channel,
    /// Elements of the feed-forward vector.
    Neuron,
    /// Entries of the vocabulary.
    Vocab,
    /// Experts of a mixture.
    Expert,
    /// The experts that a token is sent to, by rank.
    Slot,
    /// Anything else.
    Element,
}

impl Axis {
    pub const ALL: [Axis; 11] = [
        Axis::Token,
        Axis::Position,
        Axis::Head,
        Axis::Dim,
        Axis::Key,
        Axis::Channel,
        Axis::Neuron,
        Axis::Vocab,
        Axis::Expert,
        Axis::Slot,
        Axis::Element,
    ];

    /// The one word used in files.
    pub fn word(self) -> &'static str {
        let name = self.name();
        name.split_once(' ').map_or(name, |(word, _)| word)
    }

    /// The axis of a word.
    pub fn from_word(word: &str) -> Option<Axis> {
        Axis::ALL.into_iter().find(|axis| axis.word() == word)
    }

    /// The word used in coordinates and patterns, in the singular.
    pub fn name(self) -> &'static str {
        match self {
            Axis::Token => "token",
            Axis::Position => "position",
            Axis::Head => "head",
            Axis::Dim => "dim",
            Axis::Key => "key",
            Axis::Channel => "channel",
            Axis::Neuron => "neuron",
            Axis::Vocab => "vocab id",
            Axis::Expert => "expert",
            Axis::Slot => "slot",
            Axis::Element => "element",
        }
    }
}

impl Stage {
    /// Every stage in canonical order.
    pub const ALL: [Stage; 24] = [
        Stage::Embd,
        Stage::AttnNorm,
        Stage::Q,
        Stage::K,
        Stage::V,
        Stage::QNorm,
        Stage::KNorm,
        Stage::QRope,
        Stage::KRope,
        Stage::KCache,
        Stage::VCache,
        Stage::Scores,
        Stage::Probs,
        Stage::AttnOut,
        Stage::OProj,
        Stage::AttnResidual,
        Stage::FfnNorm,
        Stage::FfnGate,
        Stage::FfnUp,
        Stage::FfnAct,
        Stage::FfnDown,
        Stage::LayerOut,
        Stage::FinalNorm,
        Stage::Logits,
    ];

    /// The name used in traces, globs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Embd => "embd",
            Stage::AttnNorm => "attn_norm",
            Stage::Q => "q",
            Stage::K => "k",
            Stage::V => "v",
            Stage::QNorm => "q_norm",
            Stage::KNorm => "k_norm",
            Stage::QRope => "q_rope",
            Stage::KRope => "k_rope",
            Stage::KCache => "k_cache",
            Stage::VCache => "v_cache",
            Stage::Scores => "scores",
            Stage::Probs => "probs",
            Stage::AttnOut => "attn_out",
            Stage::OProj => "o_proj",
            Stage::AttnResidual => "attn_residual",
            Stage::FfnNorm => "ffn_norm",
            Stage::FfnGate => "ffn_gate",
            Stage::FfnUp => "ffn_up",
            Stage::FfnAct => "ffn_act",
            Stage::FfnDown => "ffn_down",
            Stage::LayerOut => "layer_out",
            Stage::FinalNorm => "final_norm",
            Stage::Logits => "logits",
            Stage::Other(name) => name.as_str(),
        }
    }

    /// The stage of that name: one of the roles, or else a tensor that is only known by its name.
    pub fn from_name(name: &str) -> Option<Stage> {
        let role = Stage::ALL.into_iter().find(|stage| stage.name() == name);
        role.or_else(|| Name::new(name).map(Stage::Other))
    }

    /// Its place among the roles; one past them for a tensor without one.
    pub fn index(self) -> usize {
        Stage::ALL.iter().position(|&stage| stage == self).unwrap_or(Stage::ALL.len())
    }

    /// Whether the role exists once a layer (and not once a step). A tensor without a role may exist
    /// either way.
    pub fn in_layer(self) -> bool {
        !matches!(self, Stage::Embd | Stage::FinalNorm | Stage::Logits)
    }

    /// What the axes of its tensor count, slowest first.
    pub fn axes(self) -> &'static [Axis] {
        use Axis::*;
        match self {
            Stage::Q | Stage::K | Stage::V | Stage::QNorm | Stage::KNorm => &[Token, Head, Dim],
            Stage::QRope | Stage::KRope | Stage::AttnOut => &[Token, Head, Dim],
            Stage::KCache | Stage::VCache => &[Position, Head, Dim],
            Stage::Scores | Stage::Probs => &[Token, Head, Key],
            Stage::FfnGate | Stage::FfnUp | Stage::FfnAct => &[Token, Neuron],
            Stage::Logits => &[Token, Vocab],
            _ => &[Token, Channel],
        }
    }
}

/// A tensor's place in a run.
///
/// Step 0 is the prefill of the prompt, step n the n-th decoded token. `layer` is `Some` exactly for
/// the stages inside a layer. The order is the canonical one: step, then layer, then stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    pub step: u32,
    pub layer: Option<u32>,
    pub stage: Stage,
}

impl Site {
    /// The site of a stage that exists once a step.
    pub fn global(step: u32, stage: Stage) -> Site {
        debug_assert!(!stage.in_layer());
        Site { step, layer: None, stage }
    }

    /// The site of a stage inside a layer.
    pub fn in_layer(step: u32, layer: u32, stage: Stage) -> Site {
        debug_assert!(stage.in_layer());
        Site { step, layer: Some(layer), stage }
    }

    /// The tensor's name within its step, as in a trace: `embd`, `blk.3.q_rope`, `logits`.
    pub fn tensor_name(self) -> String {
        match self.layer {
            Some(layer) => format!("blk.{layer}.{}", self.stage.name()),
            None => self.stage.name().to_string(),
        }
    }

    /// The site that a tensor name of a step means, or `None`.
    pub fn from_tensor_name(step: u32, name: &str) -> Option<Site> {
        let Some(rest) = name.strip_prefix("blk.") else {
            let stage = Stage::from_name(name)?;
            let fits = !stage.in_layer() || matches!(stage, Stage::Other(_));
            return fits.then_some(Site { step, layer: None, stage });
        };
        let (layer, stage) = rest.split_once('.')?;
        let stage = Stage::from_name(stage)?;
        let canonical = layer == "0" || !layer.starts_with(['0', '+']);
        (stage.in_layer() && canonical).then_some(())?;
        Some(Site::in_layer(step, layer.parse().ok()?, stage))
    }

    fn order(self) -> (u32, u64, Stage) {
        let block = match self.layer {
            Some(layer) => u64::from(layer) + 1,
            None if self.stage == Stage::Embd => 0,
            None if matches!(self.stage, Stage::Other(_)) => 0,
            None => u64::MAX,
        };
        (self.step, block, self.stage)
    }
}

impl Ord for Site {
    fn cmp(&self, other: &Site) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

impl PartialOrd for Site {
    fn partial_cmp(&self, other: &Site) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "step {} layer {layer} {}", self.step, self.stage.name()),
            None => write!(f, "step {} {}", self.step, self.stage.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_name_gives_back_its_site() {
        for stage in Stage::ALL {
            let site = if stage.in_layer() {
                Site::in_layer(3, 11, stage)
            } else {
                Site::global(3, stage)
            };
            assert_eq!(Site::from_tensor_name(3, &site.tensor_name()), Some(site));
        }
        for foreign in ["", "blk.", "blk.0", "blk.0.embd", "q", "blk.x.q", "blk.-1.q", "blk.01.q"] {
            assert_eq!(Site::from_tensor_name(0, foreign), None, "{foreign}");
        }
    }

    #[test]
    fn sites_sort_as_a_forward_pass_computes_them() {
        let pass = [
            Site::global(0, Stage::Embd),
            Site::in_layer(0, 0, Stage::Q),
            Site::in_layer(0, 0, Stage::LayerOut),
            Site::in_layer(0, 1, Stage::AttnNorm),
            Site::global(0, Stage::FinalNorm),
            Site::global(0, Stage::Logits),
            Site::global(1, Stage::Embd),
        ];
        assert!(pass.is_sorted());
    }
}
