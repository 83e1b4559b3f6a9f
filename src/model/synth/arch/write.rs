//! The planned model, written and tried out.

use std::path::Path;

use llama_cpp_sys_2 as sys;

use super::{
    child,
    plan::{Asked, Layout},
    request::ArchSpec,
    tensors,
};
use crate::{
    core::files,
    model::{
        gguf::Header,
        llama,
        synth::{SynthError, values::Values, write::write_tensor},
    },
};

/// A model that llama.cpp has planned.
pub struct ArchModel {
    spec: ArchSpec,
    layout: Layout,
}

impl ArchModel {
    /// Asks llama.cpp, in a child process of `program`, for the keys and tensors of a model. The
    /// program is firstdiff, or another that has the command
    /// [`CHILD_COMMAND`](super::CHILD_COMMAND).
    ///
    /// # Errors
    /// An unknown architecture, or keys that llama.cpp makes no model with.
    pub fn plan(spec: &ArchSpec, program: &Path) -> Result<ArchModel, SynthError> {
        // What can be said without llama.cpp is said without it.
        spec.keys()?;
        let entry = spec.architecture()?.entry;
        let Layout { keys, tensors } = child::layout(spec, program)?;
        let layout = Layout { keys, tensors: tensors::refined(tensors, entry) };
        Ok(ArchModel { spec: spec.clone(), layout })
    }

    /// The keys and tensors of the file.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Bytes of the weights that [`write`](ArchModel::write) makes, for a progress bar.
    pub fn data_bytes(&self) -> u64 {
        let bytes = self.layout.tensors.iter().map(|tensor| {
            let rows: u64 = tensor.dims[1..].iter().product();
            let ggml_type = tensors::stored(tensor, self.spec.weight_type);
            // SAFETY: a pure function of a type that ggml knows; the row is whole blocks.
            rows * unsafe { sys::ggml_row_size(ggml_type, tensor.dims[0] as i64) } as u64
        });
        bytes.sum()
    }

    /// Writes the model, whole or not at all, once llama.cpp has loaded it and decoded with it.
    /// `progress` hears how many more bytes of weights are written.
    ///
    /// # Errors
    /// A file that cannot be written or that llama.cpp does not run; then a file that stood there
    /// before is untouched.
    pub fn write(
        &self,
        path: &Path,
        program: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), SynthError> {
        let header = self.header()?;
        let failed = |source| header.write_error(path, source);
        let folder = files::temporary_folder_beside(path).map_err(failed)?;
        let unfinished = folder.path().join("model.gguf");
        let is_tied = !self.layout.tensors.iter().any(|tensor| tensor.name == "output.weight");
        let mut tensors = self.layout.tensors.iter();
        header
            .write(&unfinished, |info, out| {
                let tensor: &Asked = tensors.next().expect("the header lists the same tensors");
                let draw = tensors::draw(tensor, is_tied);
                let values = Values::new(self.spec.seed, &tensor.name, draw);
                write_tensor(info, values, out, progress)
            })
            .map_err(|error| failed(error.source))?;
        child::try_out(&self.spec, &unfinished, program)?;
        std::fs::rename(&unfinished, path).map_err(failed)?;
        Ok(())
    }

    fn header(&self) -> Result<Header, SynthError> {
        llama::backend();
        let mut header = Header::default();
        header.set_string("general.name", &self.title());
        header.set_u32("general.file_type", self.spec.weight_type.file_type());
        self.spec.set_keys(&self.layout.keys, &mut header)?;
        for tensor in &self.layout.tensors {
            let ggml_type = tensors::stored(tensor, self.spec.weight_type);
            header.add_tensor(&tensor.name, &tensor.dims, ggml_type);
        }
        Ok(header)
    }

    /// The type and the seed in words. Not the architecture: llama.cpp takes some names of models
    /// for their tokenizer's.
    fn title(&self) -> String {
        let ArchSpec { weight_type, seed, .. } = &self.spec;
        format!("firstdiff synth: {}, seed {seed}", weight_type.name())
    }
}
