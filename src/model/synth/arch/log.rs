//! llama.cpp's log in the child process: kept, and passed on to standard error for the parent,
//! which reads it where llama.cpp has ended the process.

use std::{
    ffi::{CStr, c_char, c_void},
    io::Write,
    sync::Mutex,
};

use llama_cpp_sys_2 as sys;

use crate::model::llama;

static LOG: Mutex<String> = Mutex::new(String::new());

/// A C callback, so it must not panic.
unsafe extern "C" fn keep(_: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for the call.
    let text = unsafe { CStr::from_ptr(text) };
    // Without a reader there is no one to tell.
    let _ = std::io::stderr().write_all(text.to_bytes());
    if let Ok(mut log) = LOG.lock() {
        log.push_str(&text.to_string_lossy());
    }
}

/// Starts llama.cpp and takes over its log.
pub(super) fn start() {
    llama::backend();
    // SAFETY: the callback is a static function and needs no user data.
    unsafe { sys::llama_log_set(Some(keep), std::ptr::null_mut()) };
}

/// Passed on between two attempts, so that the parent speaks of the last alone.
const ATTEMPT: &str = "\nfirstdiff: another attempt\n";

/// What llama.cpp has logged since the last call.
pub(super) fn take() -> String {
    let _ = std::io::stderr().write_all(ATTEMPT.as_bytes());
    LOG.lock().map(|mut log| std::mem::take(&mut *log)).unwrap_or_default()
}

/// The line of a log that says what went wrong in the last attempt, without the paths of the
/// machine that built llama.cpp.
pub(super) fn complaint(log: &str) -> String {
    let log = log.rsplit_once(ATTEMPT).map_or(log, |(_, last)| last);
    let lines = log.lines().map(str::trim).filter(|line| line.chars().any(char::is_alphanumeric));
    let lines: Vec<&str> = lines.collect();
    let last = |words: &str| lines.iter().rfind(|line| line.contains(words));
    let line = ["GGML_ASSERT", "error", "failed", ""].into_iter().find_map(last);
    let line = line.copied().unwrap_or("nothing");
    let line = line.rsplit_once("/llama.cpp/").map_or(line, |(_, rest)| rest);
    let line = line.rsplit_once("error loading model: ").map_or(line, |(_, rest)| rest);
    line.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::complaint;

    #[test]
    fn a_complaint_is_the_line_of_the_error_without_paths() {
        let assert = "load: x\n/a/b/llama.cpp/src/x.cpp:3: GGML_ASSERT(n > 0) failed\n";
        assert_eq!(complaint(assert), "src/x.cpp:3: GGML_ASSERT(n > 0) failed");
        let thrown = "llama_model_load: error loading model: key not found in model: a.b\n\
                      llama_model_load_from_file_impl: failed to load model\n";
        assert_eq!(complaint(thrown), "key not found in model: a.b");
        assert_eq!(complaint("first\nlast\n....\n"), "last");
        assert_eq!(complaint(""), "nothing");
        assert_eq!(complaint(&format!("an error{}then", super::ATTEMPT)), "then");
    }
}
