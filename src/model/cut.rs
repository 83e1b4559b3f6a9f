//! The first layers of a model with its embedding and head: a model of its own, for a quick look at a large one.

use std::path::Path;

use crate::model::{
    ModelFile,
    gguf::{Header, TensorInfo, WriteError},
};

/// Why a model could not be cut.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    #[error("{path} does not say how many layers it has ({key}); it cannot be cut")]
    NoLayers { path: String, key: String },
    #[error("{path} has {has} layers; give 1 to {} of them", has - 1)]
    Layers { path: String, has: usize },
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What a cut leaves.
pub struct Cut<'m> {
    model: &'m ModelFile,
    header: Header,
    tensors: Vec<&'m TensorInfo>,
    /// Layers of the whole.
    pub of: usize,
}

impl<'m> Cut<'m> {
    /// Plans the first `layers` of a model.
    ///
    /// # Errors
    /// The model has not more layers than that.
    pub fn plan(model: &'m ModelFile, layers: usize) -> Result<Cut<'m>, CutError> {
        let (gguf, arch) = (model.gguf(), &model.architecture);
        let (path, key) = (model.path.display().to_string(), format!("{arch}.block_count"));
        let Some(has) = gguf.number(&key).map(|n| n as usize) else {
            return Err(CutError::NoLayers { path, key });
        };
        if layers == 0 || layers >= has {
            return Err(CutError::Layers { path, has });
        }
        let mut header = Header::default();
        header.copy_keys(gguf);
        header.shorten_arrays(&format!("{arch}."), has, layers);
        header.set_u32(&key, layers as u32);
        // Layers that predict further tokens come last.
        let predicting = format!("{arch}.nextn_predict_layers");
        if gguf.has_key(&predicting) {
            header.set_u32(&predicting, 0);
        }
        let is_kept = |info: &&TensorInfo| layer_of(&info.name).is_none_or(|layer| layer < layers);
        let tensors: Vec<&TensorInfo> = gguf.tensors().iter().filter(is_kept).collect();
        for info in &tensors {
            header.add_tensor(&info.name, &info.dims, info.ggml_type);
        }
        Ok(Cut { model, header, tensors, of: has })
    }

    /// Bytes of its tensors.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.iter().map(|info| info.bytes as u64).sum()
    }

    /// Writes it, whole or not at all; `progress` is told of each tensor's bytes.
    pub fn write(&self, to: &Path, progress: &mut dyn FnMut(u64)) -> Result<(), CutError> {
        let gguf = self.model.gguf();
        self.header.write(to, |info, out| {
            let own = gguf.tensor(&info.name).expect("the header lists the file's own tensors");
            out.write_all(gguf.data(own))?;
            gguf.forget(own);
            progress(own.bytes as u64);
            Ok(())
        })?;
        Ok(())
    }
}

/// The layer of a tensor, by its name: `blk.3.attn_q.weight`.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}
