//! A model file, and one that our engine can run.

use std::{
    ops::Deref,
    path::{Path, PathBuf},
    sync::Arc,
};

use llama_cpp_sys_2 as sys;

use crate::{
    core::{activity, cache::Entry, progress},
    graph::{ModelGraph, SequenceInputs},
    model::{
        Config, WeightNames,
        gguf::{Gguf, GgufError, TensorInfo},
    },
};

/// llama.cpp's own limit (LLAMA_MAX_LAYERS), above which it aborts the process.
pub const MAX_LAYERS: usize = 512;

/// Bytes that are hashed at a time.
const HASHED: usize = 64 << 20;

/// Why a file cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("{path} lacks the key {key}; convert the model again")]
    MissingKey { path: PathBuf, key: String },
    #[error("{path}: {key} {why}; convert the model again")]
    Key { path: PathBuf, key: String, why: String },
    #[error("{path} lacks the tensor {tensor}, which its graph reads; convert it again")]
    MissingTensor { path: PathBuf, tensor: String },
}

/// A GGUF file with a model of any architecture.
pub struct ModelFile {
    pub path: PathBuf,
    /// `general.architecture`.
    pub architecture: String,
    gguf: Arc<Gguf>,
}

/// A model that our engine can run too.
pub struct Model {
    file: ModelFile,
    pub config: Config,
    pub names: WeightNames,
    /// llama.cpp's graph of it.
    pub graph: ModelGraph,
    /// The values of the graph's inputs over as many tokens as any run has.
    inputs: SequenceInputs,
}

impl Deref for Model {
    type Target = ModelFile;

    fn deref(&self) -> &ModelFile {
        &self.file
    }
}

impl ModelFile {
    /// Opens a GGUF file.
    pub fn open(path: &Path) -> Result<ModelFile, ModelError> {
        let gguf = Arc::new(Gguf::open(path)?);
        let key = "general.architecture";
        let architecture = gguf.string(key).ok_or_else(|| ModelError::MissingKey {
            path: path.to_path_buf(),
            key: key.to_string(),
        })?;
        let file = ModelFile { path: path.to_path_buf(), architecture, gguf };
        activity::loaded(file.gguf.bytes().len() as u64);
        file.check_layers()?;
        Ok(file)
    }

    /// Refuses more layers than llama.cpp runs: it would abort the process.
    fn check_layers(&self) -> Result<(), ModelError> {
        let key = format!("{}.block_count", self.architecture);
        match self.gguf.number(&key) {
            Some(layers) if layers > MAX_LAYERS as f64 => {
                let why = format!("is {layers}; llama.cpp runs at most {MAX_LAYERS}");
                Err(ModelError::Key { path: self.path.clone(), key, why })
            }
            _ => Ok(()),
        }
    }

    /// Positions that the model was trained for, if the file says so.
    pub fn trained_positions(&self) -> Option<usize> {
        let positions = self.gguf.number(&format!("{}.context_length", self.architecture))?;
        (positions >= 1.0).then_some(positions as usize)
    }

    /// The file itself.
    pub fn gguf(&self) -> &Arc<Gguf> {
        &self.gguf
    }

    /// blake3 of the whole file, in hex; remembered in the cache by path, size and time.
    pub fn hash(&self) -> String {
        let metadata = std::fs::metadata(&self.path).ok();
        let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        let identity = format!("{path:?} {} {modified:?}", self.gguf.bytes().len());
        let name = blake3::hash(identity.as_bytes()).to_hex();
        let entry = Entry::new("hashes", name.as_str()).ok().filter(|_| modified.is_some());
        let known =
            entry.as_ref().and_then(Entry::read).and_then(|text| String::from_utf8(text).ok());
        known.unwrap_or_else(|| {
            let (mut hasher, parts) = (blake3::Hasher::new(), self.gguf.bytes().chunks(HASHED));
            progress::begin("hashing the model, parts of 64 MiB", parts.len());
            for part in parts {
                hasher.update_rayon(part);
                progress::advance_by(1);
            }
            let hash = hasher.finalize();
            let hash = hash.to_hex().to_string();
            self.gguf.forget_all();
            entry.inspect(|entry| entry.write(hash.as_bytes()));
            hash
        })
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

    /// Whether most weights are of a coarser type than f32.
    pub fn is_narrow(&self) -> bool {
        let wide = self.gguf.tensors().iter().filter(|info| info.ggml_type == sys::GGML_TYPE_F32);
        let wide: u64 = wide.map(|info| info.dims.iter().product::<u64>()).sum();
        2 * wide < self.parameters()
    }

    /// A tensor that must be there.
    pub fn info(&self, tensor: &str) -> Result<&TensorInfo, ModelError> {
        self.gguf.tensor(tensor).ok_or_else(|| ModelError::MissingTensor {
            path: self.path.clone(),
            tensor: tensor.to_string(),
        })
    }
}

impl Model {
    /// A file with what its graph makes of it: the hyperparameters, and the names of its weights.
    pub fn new(
        file: ModelFile,
        config: Config,
        names: WeightNames,
        graph: ModelGraph,
        inputs: SequenceInputs,
    ) -> Result<Model, ModelError> {
        for name in names.all() {
            file.info(name)?;
        }
        Ok(Model { file, config, names, graph, inputs })
    }

    /// The file alone.
    pub fn file(&self) -> &ModelFile {
        &self.file
    }

    /// Positions that its inputs are known for: a longer run is not replayed.
    pub fn planned_positions(&self) -> usize {
        self.inputs.tokens
    }

    /// The values of the graph's inputs over all planned positions; the token ids are those of each run.
    pub fn inputs(&self) -> &SequenceInputs {
        &self.inputs
    }
}
