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

/// More than this of llama.cpp's errors is of no use in a message.
const MAX_ERRORS: usize = 400;

/// Keeps error and warning lines; a C callback, so it must not panic.
unsafe extern "C" fn keep_errors(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() || level != sys::GGML_LOG_LEVEL_ERROR {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for the call.
    let line = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    if let Ok(mut errors) = ERRORS.lock()
        && errors.len() < MAX_ERRORS
    {
        errors.push_str(&line);
    }
}

/// Starts llama.cpp, the first time it is called.
pub fn backend() -> &'static LlamaBackend {
    BACKEND.get_or_init(|| {
        // SAFETY: the callbacks are static functions and need no user data.
        unsafe {
            sys::llama_log_set(Some(keep_errors), std::ptr::null_mut());
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
