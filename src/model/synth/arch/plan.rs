//! In the child process: which tensors llama.cpp wants, and which keys.

use std::ffi::{CStr, c_void};

use llama_cpp_sys_2 as sys;
use serde::{Deserialize, Serialize};

use super::{
    log,
    request::{ArchSpec, Keys},
};
use crate::model::{gguf::Header, synth::SynthError};

/// A tensor that llama.cpp asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    pub name: String,
    /// In ggml's order, the row length first, without the ones at the end.
    pub dims: Vec<u64>,
}

/// What a file must hold for llama.cpp to load it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layout {
    pub keys: Keys,
    pub tensors: Vec<Asked>,
}

/// llama.cpp's message about a key that is needed and not there.
const MISSING: &str = "key not found in model: ";

/// Its message about a key of the wrong type.
const WRONG_TYPE: &str = " has wrong type ";

/// Asks llama.cpp for the tensors of a model, giving it the keys that it misses.
pub(super) fn plan(spec: &ArchSpec) -> Result<Layout, SynthError> {
    log::start();
    let mut keys = spec.keys()?;
    loop {
        log::take();
        if let Some(tensors) = tensors(spec, &keys)? {
            return Ok(Layout { keys, tensors });
        }
        let log = log::take();
        let mended = mended(spec, &keys, &log)?;
        let Some((key, value)) = mended else {
            return Err(spec.refused(log::complaint(&log)));
        };
        keys.insert(key, value);
    }
}

/// The key that llama.cpp has complained about, as it wants it.
fn mended(
    spec: &ArchSpec,
    keys: &Keys,
    log: &str,
) -> Result<Option<(String, super::Value)>, SynthError> {
    if let Some((_, rest)) = log.split_once(MISSING) {
        let key = rest.split_whitespace().next().unwrap_or_default().to_string();
        let value = spec.on_demand(&key)?.filter(|_| !keys.contains_key(&key));
        return match value {
            Some(value) => Ok(Some((key, value))),
            None => Err(SynthError::MissingKey { name: spec.name.clone(), key }),
        };
    }
    if let Some((before, after)) = log.split_once(WRONG_TYPE) {
        let key = before.rsplit(' ').next().unwrap_or_default();
        let wanted = after.split_once("expected type ").map_or("", |(_, rest)| rest);
        let wanted = wanted.split_whitespace().next().unwrap_or_default();
        let value = keys.get(key).and_then(|value| value.in_type(wanted));
        return Ok(value.map(|value| (key.to_string(), value)));
    }
    Ok(None)
}

/// Every tensor once, in the order in which llama.cpp asks; `None` if it makes no model.
fn tensors(spec: &ArchSpec, keys: &Keys) -> Result<Option<Vec<Asked>>, SynthError> {
    let mut header = Header::default();
    spec.set_keys(keys, &mut header)?;
    let mut asked: Vec<Asked> = Vec::new();
    // SAFETY: the header outlives the model, and `asked` the call that fills it. Nothing reads the
    // model's weights, so their pages are never touched.
    let is_made = unsafe {
        let mut params = sys::llama_model_default_params();
        params.n_gpu_layers = 0;
        params.use_extra_bufts = false;
        let user_data = (&raw mut asked).cast();
        let model = sys::llama_model_init_from_user(header.raw(), Some(note), user_data, params);
        if !model.is_null() {
            sys::llama_model_free(model);
        }
        !model.is_null()
    };
    Ok(is_made.then_some(asked))
}

/// Notes a tensor; a C callback, so it must not panic.
unsafe extern "C" fn note(tensor: *mut sys::ggml_tensor, asked: *mut c_void) {
    // SAFETY: llama.cpp passes a live tensor with a NUL-terminated name, and what `tensors` passed.
    let (tensor, asked) = unsafe { (&*tensor, &mut *asked.cast::<Vec<Asked>>()) };
    // SAFETY: as above.
    let name = unsafe { CStr::from_ptr(tensor.name.as_ptr()) }.to_string_lossy().into_owned();
    // One that several layers share, or the embedding that is the output too, is asked for again.
    if asked.iter().any(|other| other.name == name) {
        return;
    }
    let axes = tensor.ne.iter().rposition(|&size| size != 1).map_or(1, |last| last + 1);
    let dims = tensor.ne.iter().take(axes).map(|&size| size.max(0) as u64).collect();
    asked.push(Asked { name, dims });
}
