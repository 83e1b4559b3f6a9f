//! The texts of token ids, without the weights.

use llama_cpp_2::{
    model::{LlamaModel, params::LlamaModelParams},
    token::LlamaToken,
};

use super::session::ReferenceError;
use crate::model::{ModelFile, llama};

/// A model's vocabulary.
pub struct Vocabulary(LlamaModel);

impl Vocabulary {
    /// Loads it from the model's file.
    pub fn load(model: &ModelFile) -> Result<Vocabulary, ReferenceError> {
        let backend = llama::backend();
        llama::take_errors();
        let params = LlamaModelParams::default().with_n_gpu_layers(0).with_vocab_only(true);
        let loaded = LlamaModel::load_from_file(backend, &model.path, &params);
        loaded.map(Vocabulary).map_err(|error| {
            let errors = llama::take_errors();
            let detail = if errors.is_empty() { error.to_string() } else { errors };
            ReferenceError::Load { path: model.path.clone(), detail }
        })
    }

    /// The text of a token id; bytes that are no UTF-8 are shown as the replacement character.
    pub fn text(&self, token: i32) -> String {
        let bytes = self.0.vocab().token_to_piece(LlamaToken(token), true, None);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
