//! A model of an architecture to be made up, and the keys that this gives.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    defaults,
    names::Architecture,
    value::{Given, Shape, Value},
};
use crate::model::synth::{MAX_SIZE, MIN_VOCAB, SynthError, WeightType, tokenizer};

/// Keys of a file by their whole names.
pub(super) type Keys = BTreeMap<String, Value>;

/// The vocabulary where an architecture dictates none.
const VOCAB: usize = 320;

/// How keys begin that carry no architecture.
const GLOBAL: [&str; 3] = ["general.", "tokenizer.", "xielu."];

/// Sizes that replace the architecture's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    pub layers: Option<u32>,
    pub embd: Option<u32>,
    pub heads: Option<u32>,
    pub kv_heads: Option<u32>,
    pub head_dim: Option<u32>,
    pub ffn: Option<u32>,
}

impl Sizes {
    fn of(&self, key: &str) -> Option<u32> {
        match key {
            "block_count" => self.layers,
            "embedding_length" => self.embd,
            "attention.head_count" => self.heads,
            "attention.head_count_kv" => self.kv_heads,
            "feed_forward_length" => self.ffn,
            _ => None,
        }
    }
}

/// A key that is set, or removed where there is no value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// With or without the architecture's name before it.
    pub key: String,
    pub value: Option<Value>,
}

impl Setting {
    /// Reads `key=value`; the value `none` removes the key.
    pub fn parse(text: &str) -> Option<Setting> {
        let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty())?;
        let value = (value != "none").then(|| Value::parse(value));
        Some(Setting { key: key.to_string(), value })
    }
}

/// A model of an architecture to be made up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArchSpec {
    /// As [`architectures`](super::architectures) names it.
    pub name: String,
    pub sizes: Sizes,
    /// At least [`MIN_VOCAB`]; by default small.
    pub vocab: Option<usize>,
    /// Come last, in this order.
    pub settings: Vec<Setting>,
    pub weight_type: WeightType,
    pub seed: u64,
}

impl ArchSpec {
    /// An architecture as the table has it, in f32.
    pub fn new(name: &str) -> ArchSpec {
        let (name, sizes, settings) = (name.to_string(), Sizes::default(), Vec::new());
        ArchSpec { name, sizes, vocab: None, settings, weight_type: WeightType::F32, seed: 1 }
    }

    pub(super) fn architecture(&self) -> Result<Architecture, SynthError> {
        Architecture::from_name(&self.name)
    }

    /// Tokens of the vocabulary.
    pub(super) fn n_vocab(&self) -> Result<usize, SynthError> {
        let (what, entry) = ("vocabulary size", self.architecture()?.entry);
        let min = entry.min_vocab.max(MIN_VOCAB);
        let value = self.vocab.unwrap_or(min.max(VOCAB));
        if !(min..=MAX_SIZE).contains(&value) {
            return Err(SynthError::Size { what, value, min, max: MAX_SIZE });
        }
        Ok(value)
    }

    /// The keys before llama.cpp has asked for more, without the tokenizer's.
    pub(super) fn keys(&self) -> Result<Keys, SynthError> {
        let architecture = self.architecture()?;
        let variant = architecture.variant.map_or(&[][..], |variant| variant.keys);
        let own = architecture.entry.keys.iter().copied().flatten();
        let given: BTreeMap<&str, Given> =
            defaults::BASE.iter().chain(own).chain(variant).copied().collect();
        let shape = self.shape(&given)?;
        let mut keys = Keys::new();
        for (key, given) in given {
            let value = given.resolve(&shape, self.sizes.of(key));
            keys.insert(self.whole(key)?, value);
        }
        if self.sizes.head_dim.is_some() {
            for key in ["attention.key_length", "attention.value_length"] {
                let value = Value::U32(shape.head_dim);
                keys.entry(self.whole(key)?).or_insert(value);
            }
        }
        keys.insert(self.whole("vocab_size")?, Value::U32(self.n_vocab()? as u32));
        for setting in &self.settings {
            let key = self.whole(&setting.key)?;
            match &setting.value {
                Some(value) => keys.insert(key, value.clone()),
                None => keys.remove(&key),
            };
        }
        self.check_heads(&keys)?;
        Ok(keys)
    }

    fn check_heads(&self, keys: &Keys) -> Result<(), SynthError> {
        let count = |key: &str| match keys.get(&self.whole(key).ok()?) {
            Some(Value::U32(count)) if *count > 0 => Some(*count as usize),
            _ => None,
        };
        match (count("attention.head_count"), count("attention.head_count_kv")) {
            (Some(n_head), Some(n_head_kv)) if !n_head.is_multiple_of(n_head_kv) => {
                Err(SynthError::HeadRatio { n_head, n_head_kv })
            }
            _ => Ok(()),
        }
    }

    /// llama.cpp did not make or run the model, for that reason.
    pub(super) fn refused(&self, detail: String) -> SynthError {
        let next_step = self.next_step();
        SynthError::Refused { name: self.name.clone(), detail, next_step }
    }

    /// What to change when llama.cpp cannot run the model.
    pub(super) fn next_step(&self) -> &'static str {
        if self.sizes.head_dim.is_some() {
            "leave out --head-dim: in many architectures it is hidden size / query heads"
        } else if self.sizes != Sizes::default() {
            "change a size, or a key with --set"
        } else {
            "change a key with --set"
        }
    }

    /// The value of a key that llama.cpp asks for, unless it was removed or has no default.
    pub(super) fn on_demand(&self, key: &str) -> Result<Option<Value>, SynthError> {
        for setting in self.settings.iter().filter(|setting| setting.value.is_none()) {
            if self.whole(&setting.key)? == key {
                return Ok(None);
            }
        }
        let prefix = format!("{}.", self.architecture()?.arch());
        let part = key.strip_prefix(&prefix).unwrap_or(key);
        let given: BTreeMap<&str, Given> = defaults::BASE.iter().copied().collect();
        let shape = self.shape(&given)?;
        Ok(defaults::on_demand(part).map(|given| given.resolve(&shape, self.sizes.of(part))))
    }

    /// Sets the keys and the tokenizer of a file.
    pub(super) fn set_keys(
        &self,
        keys: &Keys,
        header: &mut crate::model::gguf::Header,
    ) -> Result<(), SynthError> {
        let arch = self.architecture()?.arch();
        header.set_string("general.architecture", arch);
        tokenizer::set_keys(tokenizer::pre(arch), self.n_vocab()?, header);
        for (key, value) in keys {
            value.set(key, header);
        }
        Ok(())
    }

    fn whole(&self, key: &str) -> Result<String, SynthError> {
        let arch = self.architecture()?.arch();
        let is_whole = GLOBAL.iter().any(|start| key.starts_with(start))
            || key.strip_prefix(arch).is_some_and(|rest| rest.starts_with('.'));
        Ok(if is_whole { key.to_string() } else { format!("{arch}.{key}") })
    }

    /// The sizes that other values depend on, from the command line or the table.
    fn shape(&self, given: &BTreeMap<&str, Given>) -> Result<Shape, SynthError> {
        let size = |key: &str| -> Result<u32, SynthError> {
            for setting in self.settings.iter().rev() {
                if let (Some(Value::U32(value)), true) =
                    (&setting.value, self.whole(&setting.key)? == self.whole(key)?)
                {
                    return Ok(*value);
                }
            }
            let own = match given.get(key) {
                Some(Given::U(value)) => *value,
                _ => 1,
            };
            Ok(self.sizes.of(key).unwrap_or(own))
        };
        let (layers, embd) = (size("block_count")? as usize, size("embedding_length")?);
        let heads = size("attention.head_count")?.max(1);
        let head_dim = self.sizes.head_dim.unwrap_or(embd / heads);
        Ok(Shape { layers, embd, heads, head_dim })
    }
}
