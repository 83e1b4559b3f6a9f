//! In the child process: a file loaded by llama.cpp, and decoded with.

use std::{ffi::CString, os::unix::ffi::OsStrExt, path::Path};

use llama_cpp_sys_2 as sys;

use super::{log, request::ArchSpec};
use crate::model::synth::SynthError;

/// Loads a file and decodes a few tokens with it.
pub(super) fn trial(spec: &ArchSpec, path: &Path) -> Result<(), SynthError> {
    log::start();
    log::take();
    let failed = || spec.refused(log::complaint(&log::take()));
    let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|_| failed())?;
    // A prompt and a token after it.
    let steps = [vec![0, 1, 2, 3], vec![4]];
    // SAFETY: the model outlives the context, and both are freed once. The batch points at
    // `tokens`, and llama.cpp owns n_vocab logits until the next decode.
    unsafe {
        let mut params = sys::llama_model_default_params();
        params.n_gpu_layers = 0;
        params.use_extra_bufts = false;
        let model = Model(sys::llama_model_load_from_file(c_path.as_ptr(), params));
        if model.0.is_null() {
            return Err(failed());
        }
        let context = Context(sys::llama_init_from_model(model.0, context_params()));
        if context.0.is_null() {
            return Err(failed());
        }
        for mut tokens in steps {
            let batch = sys::llama_batch_get_one(tokens.as_mut_ptr(), tokens.len() as i32);
            if sys::llama_decode(context.0, batch) != 0 {
                return Err(failed());
            }
            let n_vocab = sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(model.0)) as usize;
            let logits = sys::llama_get_logits_ith(context.0, -1);
            if logits.is_null() {
                return Err(failed());
            }
            let logits = std::slice::from_raw_parts(logits, n_vocab);
            if !logits.iter().all(|logit| logit.is_finite()) {
                return Err(spec.refused("its logits are not finite".to_string()));
            }
        }
    }
    Ok(())
}

fn context_params() -> sys::llama_context_params {
    // SAFETY: returns plain data.
    let mut params = unsafe { sys::llama_context_default_params() };
    params.n_ctx = 256;
    params.n_threads = 1;
    params.n_threads_batch = 1;
    params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = sys::GGML_TYPE_F32;
    params.type_v = sys::GGML_TYPE_F32;
    params.swa_full = true;
    params
}

struct Model(*mut sys::llama_model);

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: ours, and freed once; the context is gone before it.
        unsafe { sys::llama_model_free(self.0) }
    }
}

struct Context(*mut sys::llama_context);

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: ours, and freed once.
        unsafe { sys::llama_free(self.0) }
    }
}
