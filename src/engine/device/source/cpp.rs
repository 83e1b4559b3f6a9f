//! A CUDA file as C++.

use super::{
    Edit, applied,
    scan::{Scan, presence},
    tokens::{Token, after_group, before_group, tokens},
};

/// The text as C++, line by line as it was. The includes in angle brackets are outside the namespace that
/// is around the text.
pub fn as_cpp(file: &str, text: &str) -> String {
    let tokens = tokens(text);
    let mut edits = Vec::new();
    for at in 0..tokens.len() {
        edits.extend(launch(text, &tokens, at));
        edits.extend(ptx(text, &tokens, at));
        edits.extend(dynamic_shared(&tokens, at));
        edits.extend(word(&tokens, at));
    }
    let found = Scan::of(&tokens);
    for include in found.includes {
        let (line, file) = place(file, text, &tokens, include.start);
        let after = line + include.text.matches('\n').count() + 1;
        let text = format!(
            "}}\n#line {line} \"{file}\"\n{}\nnamespace {{\n#line {after} \"{file}\"",
            include.text
        );
        edits.push(Edit { start: include.start, end: include.end(), text });
    }
    for variable in found.variables {
        let (start, end) = (variable.start, variable.end());
        edits.push(Edit { start, end, text: "CUDA_HOST_DEVICE_VARIABLE".to_string() });
    }
    for kernel in found.kernels.iter().filter(|kernel| kernel.is_conditional) {
        let (line, file) = place(file, text, &tokens, kernel.start);
        let defined = presence(&kernel.name);
        let text = format!("\n#define {defined}\n#line {line} \"{file}\"\n");
        edits.push(Edit { start: kernel.start, end: kernel.start, text });
    }
    applied(text, edits)
}

/// Whether the text throws or catches exceptions.
pub fn has_exceptions(text: &str) -> bool {
    tokens(text).iter().any(|token| ["throw", "try", "catch"].contains(&token.text))
}

/// The file and line that a place has for the compiler, by the last `#line N "file"` before it.
fn place<'a>(file: &'a str, text: &'a str, tokens: &[Token<'a>], at: usize) -> (usize, &'a str) {
    let lines = |start: usize| text[start..at].matches('\n').count();
    let set = |token: &Token<'a>| {
        let (line, file) = token.text.strip_prefix("#line ")?.split_once(' ')?;
        let line = line.parse::<usize>().ok()?;
        Some((line + lines(token.end()) - 1, file.trim().trim_matches('"')))
    };
    let before = tokens.iter().take_while(|token| token.start < at);
    before.filter_map(set).last().unwrap_or((lines(0) + 1, file))
}

/// `kernel<<<grid, block>>>(arguments)`, at its `<<<`: a call that compiles.
fn launch(text: &str, tokens: &[Token<'_>], at: usize) -> Option<Edit> {
    if tokens[at].text != "<<<" {
        return None;
    }
    let mut first = at.checked_sub(1)?;
    while [">", ">>>", ")", "]"].contains(&tokens[first].text) {
        first = before_group(tokens, first)?;
        if tokens.get(first.wrapping_sub(1)).is_some_and(Token::is_word) {
            first -= 1;
        }
    }
    while first > 0 && tokens[first - 1].text == "::" {
        first -= 1;
        if tokens.get(first.wrapping_sub(1)).is_some_and(Token::is_word) {
            first -= 1;
        }
    }
    let mut end = at + 1;
    while tokens.get(end)?.text != ">>>" {
        end = if tokens[end].text == "(" { after_group(tokens, end)? } else { end + 1 };
    }
    if tokens.get(end + 1)?.text != "(" {
        return None;
    }
    let last = after_group(tokens, end + 1)? - 1;
    let kernel: String = text[tokens[first].start..tokens[at].start].split_whitespace().collect();
    let kernel = kernel.replace(['"', '\\'], "");
    let edit = format!("CUDA_HOST_LAUNCH(\"{kernel}\")");
    Some(Edit { start: tokens[first].start, end: tokens[last].end(), text: edit })
}

/// `asm volatile("..." : ...)`: what fails where it is run. An empty one holds the compiler back alone.
fn ptx(text: &str, tokens: &[Token<'_>], at: usize) -> Option<Edit> {
    if !["asm", "__asm__", "__asm"].contains(&tokens[at].text) {
        return None;
    }
    let mut open = at + 1;
    while tokens.get(open)?.is_word() {
        open += 1;
    }
    let code = tokens.get(open + 1)?;
    if tokens[open].text != "(" || code.text == "\"\"" {
        return None;
    }
    let last = after_group(tokens, open)? - 1;
    let of_name = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_';
    let written = text[code.start..code.end()].trim_start_matches(['R', '"', '(']);
    let name = written.trim_start_matches(|c: char| c.is_whitespace() || c == '{' || c == '\\');
    let name = &name[..name.find(|c| !of_name(c)).unwrap_or(name.len())];
    let edit = format!("CUDA_HOST_PTX(\"{name}\")");
    Some(Edit { start: tokens[at].start, end: tokens[last].end(), text: edit })
}

/// `extern __shared__ T name[];`, at its first word: `DYN_SHARED(name, T);`.
fn dynamic_shared(tokens: &[Token<'_>], at: usize) -> Option<Edit> {
    if !["extern", "__shared__"].contains(&tokens[at].text) {
        return None;
    }
    let (mut words, mut next) = (Vec::new(), at);
    let (mut is_extern, mut is_shared) = (false, false);
    while tokens.get(next)?.text != "[" {
        match tokens[next].text {
            "extern" => is_extern = true,
            "__shared__" => is_shared = true,
            "__align__" | "alignas" | "__attribute__" => next = after_group(tokens, next + 1)? - 1,
            ";" | "(" | ")" | "{" | "}" | "=" => return None,
            word => words.push(word),
        }
        next += 1;
    }
    let is_open = tokens.get(next + 1)?.text == "]" && tokens.get(next + 2)?.text == ";";
    let name = words.pop().filter(|_| is_extern && is_shared && is_open)?;
    let edit = format!("DYN_SHARED({name}, {})", words.join(" "));
    Some(Edit { start: tokens[at].start, end: tokens[next + 1].end(), text: edit })
}

/// A word that a macro cannot stand for: the headers of C++ use it, or another stands beside it.
fn word(tokens: &[Token<'_>], at: usize) -> Option<Edit> {
    let token = tokens[at];
    let is = |place: Option<usize>, text: &str| {
        place.and_then(|place| tokens.get(place)).is_some_and(|token| token.text == text)
    };
    let edit = match token.text {
        "__noinline__" if !is(at.checked_sub(1), "(") => "CUDA_HOST_NOINLINE",
        // Shared memory is `static` itself.
        "static" if is(Some(at + 1), "__shared__") || is(at.checked_sub(1), "__shared__") => "",
        // `static alignas(16)` is no C++.
        "alignas" if is(at.checked_sub(1), "__shared__") => "__align__",
        _ => return None,
    };
    Some(Edit { start: token.start, end: token.end(), text: edit.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_shared_memory_is_found_wherever_it_is_declared() {
        for (written, wanted) in [
            ("  extern __shared__ float x[]; // note", "  DYN_SHARED(x, float); // note"),
            ("extern __shared__ __align__(16) unsigned char x[];", "DYN_SHARED(x, unsigned char);"),
            ("__shared__ extern alignas(16) a::b x[ ] ;", "DYN_SHARED(x, a :: b) ;"),
            ("extern __shared__\nfloat x[];", "DYN_SHARED(x, float)\n;"),
            ("static __shared__ float x[4];", " __shared__ float x[4];"),
            ("__shared__ alignas(16) float x[4];", "__shared__ __align__(16) float x[4];"),
            ("extern __shared__ float* f(int x[]);", "extern __shared__ float* f(int x[]);"),
        ] {
            assert_eq!(as_cpp("t.cu", written), wanted);
        }
    }

    #[test]
    fn a_launch_keeps_its_lines() {
        for (written, wanted) in [
            ("k<<<g, b>>>(x);", "CUDA_HOST_LAUNCH(\"k\");"),
            (
                "if (n) a::k<T, 2><<<dim3(g, 1), b, 0,\n  s>>>(f(x),\n y);",
                "if (n) CUDA_HOST_LAUNCH(\"a::k<T,2>\")\n\n;",
            ),
            ("(*k[i])<<<1, 2>>>();", "CUDA_HOST_LAUNCH(\"(*k[i])\");"),
            (
                "#define L(x) \\\n  k<<<x, \\\n 1>>>()",
                "#define L(x) \\\n  CUDA_HOST_LAUNCH(\"k\")\\\n",
            ),
            ("a<b<c<d>>> x; 1 << 2;", "a<b<c<d>>> x; 1 << 2;"),
        ] {
            assert_eq!(as_cpp("t.cu", written), wanted);
        }
    }

    #[test]
    fn assembly_names_its_first_instruction() {
        for (written, wanted) in [
            (
                "asm volatile(\"cp.async.cg [%0], 16;\\n\" :: \"r\"(a)\n);",
                "CUDA_HOST_PTX(\"cp.async.cg\")\n;",
            ),
            ("asm(\"{ .reg .pred p;}\");", "CUDA_HOST_PTX(\".reg\");"),
            ("asm volatile(\"\" ::: \"memory\");", "asm volatile(\"\" ::: \"memory\");"),
        ] {
            assert_eq!(as_cpp("t.cu", written), wanted);
        }
    }

    #[test]
    fn an_include_leaves_the_namespace_and_the_lines_stay() {
        let text =
            "// a\n#include <cstdio>\nint a;\n#line 1 \"b.cuh\"\nint b;\n# include <mma.h> // c\n";
        let wanted = "// a\n}\n#line 2 \"t.cu\"\n#include <cstdio>\nnamespace {\n#line 3 \"t.cu\"\nint a;\n\
                      #line 1 \"b.cuh\"\nint b;\n}\n#line 2 \"b.cuh\"\n# include <mma.h> // c\nnamespace {\n\
                      #line 3 \"b.cuh\"\n";
        assert_eq!(as_cpp("t.cu", text), wanted);
        let inside = "namespace x {\n#include <cstdio>\n}\n";
        assert_eq!(as_cpp("t.cu", inside), inside);
    }

    #[test]
    fn variables_of_the_device_are_told_from_functions_and_constants() {
        for (written, is_variable) in [
            ("__device__ int n = 0;", true),
            ("static __device__ float* a[4];", true),
            ("__device__ __align__(16) float a[4] = {1, 2};", true),
            ("__device__ const float* p;", true),
            ("__device__ const float one = 1.0f;", false),
            ("__device__ float f(float x = 1) { return x; }", false),
            ("__device__ float f(float);", false),
            ("__device__ __constant__ float c[4];", false),
            ("struct S { __device__ int f() { return 1; } int x; };", false),
        ] {
            let found = as_cpp("t.cu", written).contains("CUDA_HOST_DEVICE_VARIABLE");
            assert_eq!(found, is_variable, "{written}");
        }
    }

    #[test]
    fn a_kernel_inside_an_if_says_that_it_is_there() {
        let text = "int a;\n#ifdef B\n__global__ void b() {}\n#endif\n";
        let wanted = "int a;\n#ifdef B\n\n#define CUDA_HOST_HAS_b\n#line 3 \"t.cu\"\n\
                      __global__ void b() {}\n#endif\n";
        assert_eq!(as_cpp("t.cu", text), wanted);
    }
}
