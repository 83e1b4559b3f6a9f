//! llama.cpp's process-wide state: started once, its log kept instead of printed.

use std::{
    ffi::{CStr, c_char, c_void},
    io::Write,
    path::Path,
    sync::{Mutex, OnceLock},
};

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_sys_2 as sys;

use crate::core::exit::Exit;

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
        // SAFETY: the callback is a static function and needs no user data.
        unsafe { sys::llama_log_set(Some(keep_errors), std::ptr::null_mut()) };
        LlamaBackend::init().expect("only this OnceLock starts the backend")
    })
}

/// The model that llama.cpp was last given.
static AT_WORK: Mutex<String> = Mutex::new(String::new());

/// Ends the process in ggml's place, with one line in place of its stack trace; a C callback, so it must
/// not panic.
unsafe extern "C" fn say_abort(message: *const c_char) {
    unsafe extern "C" {
        fn _exit(code: i32) -> !;
    }
    let why = if message.is_null() {
        String::new()
    } else {
        // SAFETY: ggml passes a NUL-terminated string that lives for the call.
        unsafe { CStr::from_ptr(message) }.to_string_lossy().replace('\n', " ")
    };
    // Whoever holds the name is not waited for.
    let name = AT_WORK.try_lock().map_or(String::new(), |name| name.clone());
    let line =
        format!("firstdiff: llama.cpp cannot go on with {name}: {why}; check the file's keys\n");
    // Without a reader there is no one to tell.
    let _ = std::io::stderr().write_all(line.as_bytes());
    // SAFETY: ends the process at once: other threads of llama.cpp may be anywhere.
    unsafe { _exit(Exit::BadInput as i32) }
}

/// From now on an assertion of llama.cpp that fails ends the process with one line that names this model.
pub fn answer_aborts(model: &Path) {
    if let Ok(mut name) = AT_WORK.lock() {
        *name = model.display().to_string();
    }
    // SAFETY: the callback is a static function.
    unsafe { sys::ggml_set_abort_callback(Some(say_abort)) };
}

/// What llama.cpp has complained about since the last call, as one line; empty if nothing.
pub fn take_errors() -> String {
    let text = ERRORS.lock().map(|mut errors| std::mem::take(&mut *errors)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}
