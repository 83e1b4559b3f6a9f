//! CUDA's own syntax: the kernels of a file are found, and what a compiler does not take of the file is put in
//! other words.
//!
//! `build.rs` includes these files too: they use nothing but std.

mod cpp;
mod nvrtc;
mod scan;
mod tokens;

pub use cpp::{as_cpp, has_exceptions};
pub use nvrtc::for_nvrtc;
pub use scan::{Kernel, kernels};

/// A change of a text.
struct Edit {
    start: usize,
    end: usize,
    text: String,
}

/// The text with its changes. A change keeps the lines of what it replaces.
fn applied(text: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| (edit.start, edit.end));
    let mut out = String::with_capacity(text.len() + 256);
    let mut done = 0;
    for Edit { start, end, text: new } in edits {
        if start < done {
            continue; // inside what is replaced already
        }
        out += &text[done..start];
        out += &new;
        for line in text[start..end].split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            out += if line.trim_end().ends_with('\\') { "\\\n" } else { "\n" };
        }
        done = end;
    }
    out + &text[done..]
}
