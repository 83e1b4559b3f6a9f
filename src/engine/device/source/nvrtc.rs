//! A CUDA file as NVRTC takes it: kernels alone, whose symbols are their names.

use std::collections::BTreeSet;

use super::{
    Edit, applied,
    scan::{Scan, kernels},
    tokens::{Token, tokens},
};

/// The text with `extern "C"` before each kernel that lacks it, and without the functions that launch kernels
/// or call the runtime: those run on the CPU, and NVRTC has nothing that they call. Lines stay.
pub fn for_nvrtc(text: &str) -> String {
    let tokens = tokens(text);
    let scan = Scan::of(&tokens);
    let named = kernels(text);
    let mut edits = Vec::new();
    for kernel in &scan.kernels {
        if kernel.has_c_linkage || !named.iter().any(|known| known.name == kernel.name) {
            continue;
        }
        let start = kernel.start;
        edits.push(Edit { start, end: start, text: "extern \"C\" ".to_string() });
        let word = kernel.static_at.map(|at| Edit { start: at, end: at + 6, text: String::new() });
        edits.extend(word);
    }
    let macros = host_macros(&tokens);
    for &(start, end) in &scan.functions {
        let mut inside = tokens.iter().filter(|token| token.start >= start && token.end() <= end);
        if inside.any(|token| is_of_host(token) || macros.contains(token.text)) {
            edits.push(Edit { start, end, text: String::new() });
        }
    }
    edits.extend((1..tokens.len()).filter_map(|at| annotation(&tokens, at)));
    applied(text, edits)
}

/// The `__device__` of a lambda, which NVRTC has on the device anyway and takes no word for.
fn annotation(tokens: &[Token<'_>], at: usize) -> Option<Edit> {
    let is_annotation = |token: &Token<'_>| ["__device__", "__host__"].contains(&token.text);
    let before = tokens[..at].iter().rev().find(|token| !is_annotation(token))?;
    let (start, end) = (tokens[at].start, tokens[at].end());
    let is_of_lambda = is_annotation(&tokens[at]) && before.text == "]";
    is_of_lambda.then(|| Edit { start, end, text: String::new() })
}

/// Whether only code of the CPU has such a token: a launch, a call of the runtime, what it reports errors by.
fn is_of_host(token: &Token<'_>) -> bool {
    let words = [
        "<<<",
        "main",
        "fprintf",
        "stderr",
        "exit",
        "cout",
        "cerr",
        "vector",
        "string",
        "runtime_error",
        "unique_ptr",
        "chrono",
    ];
    let call = token.text.strip_prefix("cuda").and_then(|rest| rest.chars().next());
    words.contains(&token.text) || call.is_some_and(|first| first.is_ascii_uppercase())
}

/// The macros that stand for such code.
fn host_macros<'a>(tokens: &[Token<'a>]) -> BTreeSet<&'a str> {
    let mut macros = BTreeSet::new();
    let mut name = "";
    // After the token of the directive come those of `define NAME ...`.
    for (at, token) in tokens.iter().enumerate().filter(|(_, token)| token.in_macro) {
        if tokens[at - 1].text == "define" && tokens[at - 2].is_directive() {
            name = token.text;
        } else if is_of_host(token) || macros.contains(token.text) {
            macros.insert(name);
        }
    }
    macros
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_is_the_kernels_name_where_the_text_says_so() {
        let text =
            "/* a */ static __global__ void k(int n) {}\nextern \"C\" __global__ void c() {}\n";
        let wanted = "/* a */ extern \"C\"  __global__ void k(int n) {}\nextern \"C\" __global__ void c() {}\n";
        assert_eq!(for_nvrtc(text), wanted);
    }

    #[test]
    fn a_lambda_has_no_annotation() {
        let text = "f([=] __host__ __device__(int x) {}); __device__ int g();";
        assert_eq!(for_nvrtc(text), "f([=]  (int x) {}); __device__ int g();");
    }

    #[test]
    fn functions_of_the_host_go_and_lines_stay() {
        let text = "#define CHECK(x) check(x, stderr)\n#define TWICE(x) CHECK(x)\n\
                    void launch(int n) {\n  k<<<n, 1>>>(n);\n}\nint twice(int n) { return 2 * n; }\n\
                    static void a() { TWICE(1); }\n__host__ __device__ int f() { exit(1); }\n";
        let wanted = "#define CHECK(x) check(x, stderr)\n#define TWICE(x) CHECK(x)\n\
                      \n\n\nint twice(int n) { return 2 * n; }\n\
                      \n__host__ __device__ int f() { exit(1); }\n";
        assert_eq!(for_nvrtc(text), wanted);
    }
}
