//! The hyperparameters of a model, read from its GGUF keys as llama.cpp reads them.

use crate::model::{Arch, Config, ModelError, RopePairs, gguf::Gguf};

/// llama.cpp's own limit (LLAMA_MAX_LAYERS), above which it aborts the process.
pub const MAX_LAYERS: usize = 512;

/// Features that llama.cpp would run and the engine does not: a key and the value that switches
/// the feature off.
const UNSUPPORTED: [(&str, f64); 7] = [
    ("expert_count", 0.0),
    ("attention.sliding_window", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("logit_scale", 0.0),
];

impl Config {
    /// Reads the keys of a file.
    pub fn read(gguf: &Gguf) -> Result<Config, ModelError> {
        let keys = Keys::new(gguf)?;
        keys.refuse_unsupported()?;
        let n_embd = keys.count("embedding_length")?;
        let n_head = keys.count("attention.head_count")?;
        let n_head_kv = match keys.optional("attention.head_count_kv")? {
            Some(_) => keys.count("attention.head_count_kv")?,
            None => n_head,
        };
        let head_dim = match keys.optional("attention.key_length")? {
            Some(_) => keys.count("attention.key_length")?,
            None => n_embd / n_head,
        };
        for (key, meaning) in [
            ("attention.value_length", "the head size of K"),
            ("rope.dimension_count", "the whole head"),
        ] {
            if let Some(value) = keys.optional(key)?
                && value != head_dim as f64
            {
                let why = format!("is {value}, not {meaning} ({head_dim})");
                return Err(keys.unsupported(key, why));
            }
        }
        if !n_head.is_multiple_of(n_head_kv) || !head_dim.is_multiple_of(2) {
            let why =
                format!("heads do not divide: {n_head} query, {n_head_kv} KV, {head_dim} wide");
            return Err(keys.unsupported("attention.head_count_kv", why));
        }
        let (n_layer, tensors) = (keys.count("block_count")?, gguf.tensors().len());
        if n_layer > MAX_LAYERS {
            let why = format!("is {n_layer}; llama.cpp runs at most {MAX_LAYERS}");
            return Err(keys.unsupported("block_count", why));
        }
        if n_layer > tensors {
            let why = format!("is {n_layer}, but the file has {tensors} tensors in all");
            return Err(keys.unsupported("block_count", why));
        }
        let arch = keys.arch;
        let scale = keys.optional("attention.scale")?.filter(|&scale| scale != 0.0);
        let token_rows = gguf.tensor("token_embd.weight").map(|info| info.rows());
        Ok(Config {
            arch,
            n_layer,
            n_embd,
            n_head,
            n_head_kv,
            head_dim,
            n_ff: keys.count("feed_forward_length")?,
            n_vocab: token_rows.ok_or_else(|| keys.missing_tensor("token_embd.weight"))?,
            n_ctx_train: keys.count("context_length")?,
            rope_theta: keys.optional("rope.freq_base")?.unwrap_or(10000.0) as f32,
            rope_pairs: if arch == Arch::Llama { RopePairs::Norm } else { RopePairs::Neox },
            rms_eps: keys.required("attention.layer_norm_rms_epsilon")? as f32,
            attention_scale: match (arch, scale) {
                (Arch::Llama, Some(scale)) => scale as f32,
                _ => 1.0 / (head_dim as f32).sqrt(),
            },
        })
    }
}

/// Reads keys by their part after the architecture's name.
struct Keys<'a> {
    gguf: &'a Gguf,
    arch: Arch,
}

impl<'a> Keys<'a> {
    fn new(gguf: &'a Gguf) -> Result<Keys<'a>, ModelError> {
        let path = || gguf.path().to_path_buf();
        let key = "general.architecture";
        let name = gguf
            .string(key)
            .ok_or_else(|| ModelError::MissingKey { path: path(), key: key.to_string() })?;
        let arch = Arch::from_name(&name)
            .ok_or_else(|| ModelError::Architecture { path: path(), architecture: name })?;
        Ok(Keys { gguf, arch })
    }

    fn key(&self, part: &str) -> String {
        format!("{}.{part}", self.arch.name())
    }

    /// A number, if the key is there; a key that is not one number is refused.
    fn optional(&self, part: &str) -> Result<Option<f64>, ModelError> {
        let key = self.key(part);
        match self.gguf.number(&key) {
            Some(number) => Ok(Some(number)),
            None if self.gguf.has_key(&key) => {
                Err(self.unsupported(part, "is not a single number".to_string()))
            }
            None => Ok(None),
        }
    }

    fn required(&self, part: &str) -> Result<f64, ModelError> {
        let (path, key) = (self.gguf.path().to_path_buf(), self.key(part));
        self.optional(part)?.ok_or(ModelError::MissingKey { path, key })
    }

    /// A required positive whole number below 2^31.
    fn count(&self, part: &str) -> Result<usize, ModelError> {
        let value = self.required(part)?;
        let fits = value.fract() == 0.0 && (1.0..2147483648.0).contains(&value);
        if fits {
            Ok(value as usize)
        } else {
            Err(self.unsupported(part, format!("is {value}, no size")))
        }
    }

    fn refuse_unsupported(&self) -> Result<(), ModelError> {
        for (part, off) in UNSUPPORTED {
            if let Some(value) = self.optional(part)?
                && value != off
            {
                return Err(self.unsupported(part, format!("is {value}")));
            }
        }
        let scaling = self.gguf.string(&self.key("rope.scaling.type"));
        if let Some(scaling) = scaling.filter(|scaling| scaling != "none") {
            return Err(self.unsupported("rope.scaling.type", format!("is {scaling}")));
        }
        let factor = self.optional("rope.scale_linear")?.filter(|&factor| factor != 1.0);
        match factor {
            Some(factor) => Err(self.unsupported("rope.scale_linear", format!("is {factor}"))),
            None => Ok(()),
        }
    }

    fn unsupported(&self, part: &str, why: String) -> ModelError {
        let (path, key) = (self.gguf.path().to_path_buf(), self.key(part));
        ModelError::Unsupported { path, key, why }
    }

    fn missing_tensor(&self, name: &str) -> ModelError {
        let (path, tensor) = (self.gguf.path().to_path_buf(), name.to_string());
        ModelError::MissingTensor { path, tensor, arch: self.arch.name().to_string() }
    }
}
