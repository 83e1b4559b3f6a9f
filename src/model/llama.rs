//! llama.cpp's process-wide state: started once, its log kept instead of printed.

use std::{
    ffi::{CStr, c_char, c_void},
    sync::{Mutex, OnceLock},
};

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_sys_2 as sys;

use crate::core::activity;

static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
static ERRORS: Mutex<String> = Mutex::new(String::new());

static PLACED: Mutex<Vec<(usize, String)>> = Mutex::new(Vec::new());

/// More than this of llama.cpp's errors is of no use in a message.
const MAX_ERRORS: usize = 400;

/// Keeps error lines, and where layers are placed; a C callback, so it must not panic.
unsafe extern "C" fn keep_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    let is_error = level == sys::GGML_LOG_LEVEL_ERROR;
    if text.is_null() || !is_error && level != sys::GGML_LOG_LEVEL_DEBUG {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for the call.
    let line = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    if !is_error {
        if let (Some(placed), Ok(mut all)) = (placed(&line), PLACED.lock()) {
            all.push(placed);
        }
    } else if let Ok(mut errors) = ERRORS.lock()
        && errors.len() < MAX_ERRORS
    {
        errors.push_str(&line);
    }
}

/// The layer and the device of a line such as `load_tensors: layer   3 assigned to device RPC0, is_swa = 0`, where
/// that is not the CPU.
fn placed(line: &str) -> Option<(usize, String)> {
    let rest = line.strip_prefix("load_tensors: layer")?;
    let (layer, rest) = rest.split_once(" assigned to device ")?;
    let (device, _) = rest.split_once(',')?;
    let layer = layer.trim().parse().ok()?;
    (device != "CPU").then(|| (layer, device.to_string()))
}

/// Which layer llama.cpp has placed on which device since the last call.
pub fn take_placed() -> Vec<(usize, String)> {
    PLACED.lock().map(|mut placed| std::mem::take(&mut *placed)).unwrap_or_default()
}

/// Starts llama.cpp, the first time it is called.
pub fn backend() -> &'static LlamaBackend {
    BACKEND.get_or_init(|| {
        // SAFETY: the callbacks are static functions and need no user data.
        unsafe {
            sys::llama_log_set(Some(keep_log), std::ptr::null_mut());
            sys::ggml_set_abort_callback(Some(note_abort));
        }
        LlamaBackend::init().expect("only this OnceLock starts the backend")
    })
}

/// Notes why ggml ends the process, in place of its stack trace; a C callback, so it must not panic.
unsafe extern "C" fn note_abort(message: *const c_char) {
    if !message.is_null() {
        // SAFETY: ggml passes a NUL-terminated string that lives for the call.
        let text = unsafe { CStr::from_ptr(message) }.to_string_lossy();
        activity::abort_message(&text.replace('\n', " "));
    }
}

/// What llama.cpp has complained about since the last call, as one line; empty if nothing.
pub fn take_errors() -> String {
    let text = ERRORS.lock().map(|mut errors| std::mem::take(&mut *errors)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}
