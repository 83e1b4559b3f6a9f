//! How a kernel file becomes a C++ file, and the flags that it is compiled with.
//!
//! `build.rs` includes this file too, so that the kernels it builds into the program are those that the host
//! device would compile: it uses nothing but std.

use super::source::{self, Kernel};

/// The headers of the host device, by name.
pub const HEADERS: [(&str, &str); 16] = [
    ("cuda_host.h", include_str!("../../../../kernels/host/cuda_host.h")),
    ("cuda_host_vectors.h", include_str!("../../../../kernels/host/cuda_host_vectors.h")),
    ("cuda_host_atomics.h", include_str!("../../../../kernels/host/cuda_host_atomics.h")),
    ("cuda_host_math.h", include_str!("../../../../kernels/host/cuda_host_math.h")),
    ("cuda_host_float16.h", include_str!("../../../../kernels/host/cuda_host_float16.h")),
    ("cuda_host_check.h", include_str!("../../../../kernels/host/cuda_host_check.h")),
    ("cuda_host_hooks.h", include_str!("../../../../kernels/host/cuda_host_hooks.h")),
    ("cuda_host_switch.h", include_str!("../../../../kernels/host/cuda_host_switch.h")),
    ("assert.h", include_str!("../../../../kernels/host/assert.h")),
    ("cooperative_groups.h", include_str!("../../../../kernels/host/cooperative_groups.h")),
    ("cuda_bf16.h", include_str!("../../../../kernels/host/cuda_bf16.h")),
    ("cuda_fp16.h", include_str!("../../../../kernels/host/cuda_fp16.h")),
    ("cuda_pipeline.h", include_str!("../../../../kernels/host/cuda_pipeline.h")),
    ("cuda_runtime.h", include_str!("../../../../kernels/host/cuda_runtime.h")),
    ("math_constants.h", include_str!("../../../../kernels/host/math_constants.h")),
    ("mma.h", include_str!("../../../../kernels/host/mma.h")),
];

/// Further names of headers, each of which includes another one.
pub const ALIASES: [(&str, &str); 15] = [
    ("builtin_types.h", "cuda_runtime.h"),
    ("cassert", "assert.h"),
    ("cooperative_groups/memcpy_async.h", "cooperative_groups.h"),
    ("cooperative_groups/reduce.h", "cooperative_groups.h"),
    ("cooperative_groups/scan.h", "cooperative_groups.h"),
    ("cuda.h", "cuda_runtime.h"),
    ("cuda_device_runtime_api.h", "cuda_runtime.h"),
    ("cuda_fp16.hpp", "cuda_fp16.h"),
    ("cuda_pipeline_primitives.h", "cuda_pipeline.h"),
    ("cuda_runtime_api.h", "cuda_runtime.h"),
    ("device_launch_parameters.h", "cuda_runtime.h"),
    ("driver_types.h", "cuda_runtime.h"),
    ("sm_61_intrinsics.h", "cuda_runtime.h"),
    ("vector_functions.h", "cuda_runtime.h"),
    ("vector_types.h", "cuda_runtime.h"),
];

/// All headers: their names, which may have a folder, and their texts.
pub fn headers() -> impl Iterator<Item = (&'static str, String)> {
    let own = HEADERS.into_iter().map(|(name, text)| (name, text.to_string()));
    let alias = |(name, of)| (name, format!("#include \"{of}\"\n"));
    own.chain(ALIASES.into_iter().map(alias))
}

/// The headers of C that kernels include by their names in quotes too.
const OF_C: [&str; 8] =
    ["float.h", "limits.h", "math.h", "stddef.h", "stdint.h", "stdio.h", "stdlib.h", "string.h"];

/// Whether an include of that name needs no file beside the kernel's.
pub fn has_header(name: &str) -> bool {
    OF_C.contains(&name) || HEADERS.iter().chain(&ALIASES).any(|(header, _)| *header == name)
}

/// The scheduler, which each library has once.
pub const RUNTIME: &str = include_str!("../../../../kernels/host/cuda_host_runtime.cpp");

/// No contraction: a product and a sum round twice, on every CPU alike.
pub const FLAGS: [&str; 8] = [
    "-std=c++17",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-ffp-contract=off",
    "-w",
];

/// Of a build whose accesses nothing watches.
pub const UNWATCHED_FLAGS: [&str; 1] = ["-O2"];

/// How objects become a library.
pub const LINK_FLAGS: [&str; 3] = ["-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs"];

/// F16C, where the whole program needs it anyway: half conversion in one instruction.
pub fn target_flags(program_has_f16c: bool) -> &'static [&'static str] {
    if program_has_f16c { &["-mf16c"] } else { &[] }
}

/// What objcopy does to the object of a kernel file, which has no zero-initialised statics but its shared
/// memory. (A section attribute on `__shared__` would be simpler, but g++ drops it inside templates.)
pub const RENAME_SHARED: [&str; 2] = ["--rename-section", ".bss=cudashm"];

/// What a file that throws or catches is compiled with, after [`FLAGS`].
pub const EXCEPTIONS: &str = "-fexceptions";

/// The flags of one file's own.
pub fn flags_of(text: &str) -> &'static [&'static str] {
    if source::has_exceptions(text) { &[EXCEPTIONS] } else { &[] }
}

/// A kernel file as a C++ file: `defines` first, everything in a namespace of its own.
pub fn body(file: &str, text: &str, defines: &[String]) -> String {
    let define = |define: &String| {
        let (name, value) = define.split_once('=').unwrap_or((define, "1"));
        format!("#define {name} {value}\n")
    };
    let defines: String = defines.iter().map(define).collect();
    let text = source::as_cpp(file, text);
    // The anonymous namespace keeps the statics of two libraries, or two copies of one, apart.
    format!(
        "#include \"cuda_host.h\"\n{defines}namespace {{\nCUDA_HOST_OVERLOADS\n#line 1 \"{file}\"\n{text}\n}}\n"
    )
}

/// What comes after the [`body`]: the table of the file's entries, a symbol of that name.
pub fn table(name: &str, text: &str) -> String {
    let entry = |kernel: &Kernel| kernel.guarded(&format!("CUDA_HOST_ENTRY({}),", kernel.name));
    let entries: String = source::kernels(text).iter().map(entry).collect();
    format!("CUDA_HOST_TABLE_BEGIN({name})\n{entries}\nCUDA_HOST_TABLE_END\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alias_includes_a_header() {
        for (alias, of) in ALIASES {
            assert!(HEADERS.iter().any(|(name, _)| *name == of), "{alias}");
            assert!(has_header(alias) && !HEADERS.iter().any(|(name, _)| *name == alias));
        }
        assert!(!has_header("mine.h"));
    }

    #[test]
    fn a_table_has_the_kernels_that_the_preprocessor_leaves() {
        let text = "__global__ void a() {}\n#ifdef B\n__global__ void b() {}\n#endif\n";
        let wanted = "CUDA_HOST_TABLE_BEGIN(t)\nCUDA_HOST_ENTRY(a),\n#ifdef CUDA_HOST_HAS_b\n\
                      CUDA_HOST_ENTRY(b),\n#endif\n\nCUDA_HOST_TABLE_END\n";
        assert_eq!(table("t", text), wanted);
    }
}
