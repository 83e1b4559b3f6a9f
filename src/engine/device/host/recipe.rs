//! How a kernel file becomes a C++ file, and the flags that it is compiled with.
//!
//! `build.rs` includes this file too, so that the kernels it builds into the program are those that the host
//! device would compile: it uses nothing but std.

/// The headers that a kernel file includes, by name.
pub const HEADERS: [(&str, &str); 4] = [
    ("cuda_host.h", include_str!("../../../../kernels/host/cuda_host.h")),
    ("cuda_fp16.h", include_str!("../../../../kernels/host/cuda_fp16.h")),
    ("cuda_host_check.h", include_str!("../../../../kernels/host/cuda_host_check.h")),
    ("cuda_host_hooks.h", include_str!("../../../../kernels/host/cuda_host_hooks.h")),
];

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

/// A kernel file as a C++ file: `defines` first, everything in a namespace of its own.
pub fn body(file: &str, text: &str, defines: &[String]) -> String {
    let define = |define: &String| {
        let (name, value) = define.split_once('=').unwrap_or((define, "1"));
        format!("#define {name} {value}\n")
    };
    let defines: String = defines.iter().map(define).collect();
    let text = with_dynamic_shared(text);
    // The anonymous namespace keeps the statics of two libraries, or two copies of one, apart.
    format!("#include \"cuda_host.h\"\n{defines}namespace {{\n#line 1 \"{file}\"\n{text}\n}}\n")
}

/// What comes after the [`body`]: the table of the file's entries, a symbol of that name.
pub fn table(name: &str, text: &str) -> String {
    let entries: Vec<String> =
        entries(text).iter().map(|entry| format!("CUDA_HOST_ENTRY({entry})")).collect();
    let entries = if entries.is_empty() {
        "{nullptr, nullptr, nullptr}".to_string()
    } else {
        entries.join(", ")
    };
    format!("CUDA_HOST_TABLE({name}, {entries})\n")
}

/// The names of `extern "C" __global__ void [__launch_bounds__(..)] NAME(` in a kernel file.
pub fn entries(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for rest in text.split("extern \"C\" __global__").skip(1) {
        let mut rest = rest.trim_start();
        loop {
            rest = rest.strip_prefix("void").unwrap_or(rest).trim_start();
            let Some(bounds) = rest.strip_prefix("__launch_bounds__") else { break };
            rest = bounds.split_once(')').map_or("", |(_, after)| after).trim_start();
        }
        let name = rest.split('(').next().unwrap_or("").trim();
        if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            names.push(name.to_string());
        }
    }
    names
}

/// Rewrites `extern __shared__ [__align__(n)] T name[];` to `DYN_SHARED(T, name);`.
fn with_dynamic_shared(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        out += &rewritten(line).unwrap_or_else(|| line.to_string());
        out.push('\n');
    }
    out
}

fn rewritten(line: &str) -> Option<String> {
    let (before, rest) = line.split_once("extern __shared__ ")?;
    let (declaration, after) = rest.split_once("[]")?;
    let declaration = declaration.trim();
    let declaration = match declaration.strip_prefix("__align__") {
        Some(aligned) => aligned.split_once(')')?.1.trim(),
        None => declaration,
    };
    let (element, name) = declaration.rsplit_once(' ')?;
    Some(format!("{before}DYN_SHARED({element}, {name}){after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_dynamic_shared_memory_are_found_in_a_source() {
        let text = "extern \"C\" __global__ void a(int n) {}\n\
                    extern \"C\" __global__ void __launch_bounds__(128, 2)\n  b_2(float* x) {}\n\
                    extern \"C\" __global__ __launch_bounds__(64) void c() {}";
        assert_eq!(entries(text), ["a", "b_2", "c"]);
        assert_eq!(
            with_dynamic_shared("  extern __shared__ float x[]; // note"),
            "  DYN_SHARED(float, x); // note\n"
        );
        assert_eq!(
            with_dynamic_shared("extern __shared__ __align__(16) unsigned char x[];"),
            "DYN_SHARED(unsigned char, x);\n"
        );
    }
}
