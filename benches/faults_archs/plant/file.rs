//! A model's file with keys and tensors changed.

use std::path::Path;

use firstdiff::model::{ModelFile, gguf::Header};
use llama_cpp_sys_2 as sys;

use super::Result;

/// The new value of a key.
#[derive(Clone, Debug)]
pub enum Number {
    Whole(u32),
    Float(f32),
    Flag(bool),
    Text(&'static str),
}

/// What is changed of a file.
#[derive(Clone, Debug, Default)]
pub struct Edit {
    /// By their whole names.
    pub keys: Vec<(String, Number)>,
    /// Every element of a tensor, in ggml's order.
    pub tensors: Vec<(String, Vec<f32>)>,
}

impl Edit {
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.tensors.is_empty()
    }

    /// Writes the file, all of whose tensors are f32.
    pub fn write(&self, right: &ModelFile, path: &Path) -> Result<()> {
        let gguf = right.gguf();
        let mut header = Header::default();
        header.copy_keys(gguf);
        for (key, number) in &self.keys {
            match number {
                Number::Whole(value) => header.set_u32(key, *value),
                Number::Float(value) => header.set_f32(key, *value),
                Number::Flag(value) => header.set_bool(key, *value),
                Number::Text(text) => header.set_string(key, text),
            }
        }
        for info in gguf.tensors() {
            header.add_tensor(&info.name, &info.dims, sys::GGML_TYPE_F32);
        }
        header.write(path, |info, out| {
            let changed = self.tensors.iter().find(|(name, _)| *name == info.name);
            match changed {
                Some((_, values)) => out.write_all(bytemuck::cast_slice(values)),
                None => {
                    let values = right.weights(&info.name).map_err(std::io::Error::other)?;
                    out.write_all(bytemuck::cast_slice(&values))
                }
            }
        })?;
        Ok(())
    }
}
