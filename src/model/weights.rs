//! A model file, and one that our engine can run.

use std::{
    ops::Deref,
    path::{Path, PathBuf},
};

use crate::{
    core::cache,
    model::{
        Arch, Config,
        gguf::{Gguf, GgufError, TensorInfo},
    },
};

/// Why a file cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(
        "{path} has architecture \"{architecture}\"; firstdiff runs llama, qwen2 and qwen3 models"
    )]
    Architecture { path: PathBuf, architecture: String },
    #[error("{path} lacks the key {key}; convert the model again")]
    MissingKey { path: PathBuf, key: String },
    #[error("{path}: {key} {why}, which the engine cannot run; use a model without it")]
    Unsupported { path: PathBuf, key: String, why: String },
    #[error("{path} lacks the tensor {tensor}, which a {arch} model needs; convert it again")]
    MissingTensor { path: PathBuf, tensor: String, arch: String },
    #[error(
        "{path}: tensor {tensor} has dims {found:?}, but the keys say {expected:?}; convert it again"
    )]
    WrongDims { path: PathBuf, tensor: String, found: Vec<u64>, expected: Vec<u64> },
}

/// A GGUF file with a model of any architecture.
pub struct ModelFile {
    pub path: PathBuf,
    /// `general.architecture`.
    pub architecture: String,
    gguf: Gguf,
}

/// A model that our engine can run too.
pub struct Model {
    file: ModelFile,
    pub config: Config,
}

impl Deref for Model {
    type Target = ModelFile;

    fn deref(&self) -> &ModelFile {
        &self.file
    }
}

/// A tensor that the engine reads, and its dims in ggml's order.
pub(super) struct Expected {
    pub name: String,
    pub dims: Vec<u64>,
    pub required: bool,
}

impl ModelFile {
    /// Opens a GGUF file.
    pub fn open(path: &Path) -> Result<ModelFile, ModelError> {
        let gguf = Gguf::open(path)?;
        let key = "general.architecture";
        let architecture = gguf.string(key).ok_or_else(|| ModelError::MissingKey {
            path: path.to_path_buf(),
            key: key.to_string(),
        })?;
        Ok(ModelFile { path: path.to_path_buf(), architecture, gguf })
    }

    /// The file itself.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// blake3 of the whole file, in hex; remembered in the cache by path, size and time.
    pub fn hash(&self) -> String {
        let metadata = std::fs::metadata(&self.path).ok();
        let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        let identity = format!("{path:?} {} {modified:?}", self.gguf.bytes().len());
        let name = blake3::hash(identity.as_bytes()).to_hex();
        let remembered = cache::folder("hashes").ok().map(|folder| folder.join(name.as_str()));
        let known = remembered.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        if let Some(known) = known.filter(|known| known.len() == 64 && modified.is_some()) {
            return known;
        }
        let hash = blake3::hash(self.gguf.bytes()).to_hex().to_string();
        self.gguf.forget_all();
        if let Some(path) = remembered {
            // A hash that cannot be remembered is computed again the next time.
            let _ = cache::write_atomic(&path, hash.as_bytes());
        }
        hash
    }

    /// Whether the file has a tensor of that name, such as `blk.0.attn_q.bias`.
    pub fn has(&self, tensor: &str) -> bool {
        self.gguf.tensor(tensor).is_some()
    }

    /// Whether q, k or v have biases.
    pub fn has_qkv_bias(&self) -> bool {
        ["q", "k", "v"].iter().any(|part| self.has(&format!("blk.0.attn_{part}.bias")))
    }

    /// A tensor's elements widened to f32, first ggml axis fastest.
    pub fn weights(&self, tensor: &str) -> Result<Vec<f32>, ModelError> {
        Ok(self.gguf.widen(self.info(tensor)?)?)
    }

    /// Number of weights in the file.
    pub fn parameters(&self) -> u64 {
        let elements = |info: &TensorInfo| info.dims.iter().product::<u64>();
        self.gguf.tensors().iter().map(elements).sum()
    }

    /// A tensor that must be there.
    pub fn info(&self, tensor: &str) -> Result<&TensorInfo, ModelError> {
        self.gguf.tensor(tensor).ok_or_else(|| ModelError::MissingTensor {
            path: self.path.clone(),
            tensor: tensor.to_string(),
            arch: self.architecture.clone(),
        })
    }
}

impl Model {
    /// Opens a GGUF file and checks that every key and tensor the engine needs is there and fits.
    pub fn open(path: &Path) -> Result<Model, ModelError> {
        Model::of(ModelFile::open(path)?)
    }

    /// The model of a file, if the engine can run it.
    pub fn of(file: ModelFile) -> Result<Model, ModelError> {
        let config = Config::read(file.gguf())?;
        let model = Model { file, config };
        model.check_tensors()?;
        Ok(model)
    }

    fn check_tensors(&self) -> Result<(), ModelError> {
        for expected in self.expected() {
            match self.gguf.tensor(&expected.name) {
                Some(info) if info.dims == expected.dims => {}
                Some(info) => {
                    return Err(ModelError::WrongDims {
                        path: self.path.clone(),
                        tensor: expected.name,
                        found: info.dims.clone(),
                        expected: expected.dims,
                    });
                }
                None if expected.required => {
                    self.info(&expected.name)?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Every tensor that the engine reads if it is there.
    pub(super) fn expected(&self) -> Vec<Expected> {
        let c = &self.config;
        let (e, f, v) = (c.n_embd as u64, c.n_ff as u64, c.n_vocab as u64);
        let (d, hq, hk) = (c.head_dim as u64, c.n_head as u64, c.n_head_kv as u64);
        let mut list = Vec::new();
        let mut add = |name: String, dims: &[u64], required| {
            list.push(Expected { name, dims: dims.to_vec(), required });
        };
        add("token_embd.weight".into(), &[e, v], true);
        add("output_norm.weight".into(), &[e], true);
        add("output.weight".into(), &[e, v], false);
        add("output.bias".into(), &[v], false);
        add("rope_freqs.weight".into(), &[d / 2], false);
        for layer in 0..c.n_layer {
            let mut add = |part: &str, dims: &[u64], required| {
                add(format!("blk.{layer}.{part}"), dims, required);
            };
            add("attn_norm.weight", &[e], true);
            for (part, outputs) in [("q", hq * d), ("k", hk * d), ("v", hk * d)] {
                add(&format!("attn_{part}.weight"), &[e, outputs], true);
                add(&format!("attn_{part}.bias"), &[outputs], false);
            }
            if c.arch == Arch::Qwen3 {
                add("attn_q_norm.weight", &[d], true);
                add("attn_k_norm.weight", &[d], true);
            }
            add("attn_output.weight", &[hq * d, e], true);
            add("attn_output.bias", &[e], false);
            add("ffn_norm.weight", &[e], true);
            for (part, inputs, outputs) in [("gate", e, f), ("up", e, f), ("down", f, e)] {
                add(&format!("ffn_{part}.weight"), &[inputs, outputs], true);
                add(&format!("ffn_{part}.bias"), &[outputs], false);
            }
        }
        list
    }
}
