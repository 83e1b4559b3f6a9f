//! The files of `kernels/` as the program carries them, and how includes are put in place.
//!
//! `build.rs` includes this file too, to build them: it uses nothing but std.

/// The files of `kernels/`: those of the engine in the order of a forward pass, then those of a device.
pub const EMBEDDED: [(&str, &str); 12] = [
    ("embedding.cu", include_str!("../../../kernels/embedding.cu")),
    ("rms_norm.cu", include_str!("../../../kernels/rms_norm.cu")),
    ("rope.cu", include_str!("../../../kernels/rope.cu")),
    ("kv_append.cu", include_str!("../../../kernels/kv_append.cu")),
    ("attention.cu", include_str!("../../../kernels/attention.cu")),
    ("attention_tiled.cu", include_str!("../../../kernels/attention_tiled.cu")),
    ("attention_split.cu", include_str!("../../../kernels/attention_split.cu")),
    ("swiglu.cu", include_str!("../../../kernels/swiglu.cu")),
    ("residual_add.cu", include_str!("../../../kernels/residual_add.cu")),
    ("common.cuh", include_str!("../../../kernels/common.cuh")),
    ("cuda/gemv.cu", include_str!("../../../kernels/cuda/gemv.cu")),
    ("cuda/widen.cu", include_str!("../../../kernels/cuda/widen.cu")),
];

/// Includes nested deeper than this are taken for a cycle.
pub const MAX_INCLUDE_DEPTH: usize = 8;

/// The embedded text of a file.
pub fn embedded(file: &str) -> Option<&'static str> {
    EMBEDDED.iter().find(|(name, _)| *name == file).map(|(_, text)| *text)
}

/// The names of the engine's `.cu` files, in the order of a forward pass.
pub fn engine_files() -> impl Iterator<Item = &'static str> {
    let files = EMBEDDED.iter().map(|(file, _)| *file);
    files.filter(|file| file.ends_with(".cu") && !file.contains('/'))
}

/// Why includes cannot be put in place.
#[derive(Debug)]
pub enum IncludeError<E> {
    /// A file cannot be read.
    Read(E),
    /// There is no file of that name.
    Missing { file: String, line: usize, include: String },
    /// They nest too deep.
    Depth { file: String },
}

/// The text of a file with the text of each `#include "x"` in its place, and `#line` around it, so that
/// compiler messages stay true. `read` gives the text of a file, `None` if there is none.
pub fn with_includes<E>(
    file: &str,
    text: &str,
    read: &impl Fn(&str) -> Result<Option<String>, E>,
) -> Result<String, IncludeError<E>> {
    in_place(file, text, read, 0)
}

fn in_place<E>(
    file: &str,
    text: &str,
    read: &impl Fn(&str) -> Result<Option<String>, E>,
    depth: usize,
) -> Result<String, IncludeError<E>> {
    if depth > MAX_INCLUDE_DEPTH {
        return Err(IncludeError::Depth { file: file.to_string() });
    }
    let mut whole = String::with_capacity(text.len());
    for (index, line) in text.lines().enumerate() {
        let Some(include) = included(line) else {
            whole += line;
            whole.push('\n');
            continue;
        };
        let Some(inner) = read(include).map_err(IncludeError::Read)? else {
            let (file, include) = (file.to_string(), include.to_string());
            return Err(IncludeError::Missing { file, line: index + 1, include });
        };
        let inner = in_place(include, &inner.replace("#pragma once", ""), read, depth + 1)?;
        whole += &format!("#line 1 \"{include}\"\n{inner}#line {} \"{file}\"\n", index + 2);
    }
    Ok(whole)
}

/// The file that a line includes by its name in quotes.
pub fn included(line: &str) -> Option<&str> {
    let include = line.trim().strip_prefix('#')?.trim_start().strip_prefix("include")?;
    let (file, after) = include.trim_start().strip_prefix('"')?.split_once('"')?;
    let after = after.trim();
    (after.is_empty() || after.starts_with("//") || after.starts_with("/*")).then_some(file)
}
