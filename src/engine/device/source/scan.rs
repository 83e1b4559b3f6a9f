//! A walk through a CUDA file: its kernels, and what else is declared outside functions.

use super::tokens::{Token, after_group, before_group, tokens};

/// A kernel of a file that is no template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub name: String,
    /// `extern "C"`, by its own words or a block around it.
    pub has_c_linkage: bool,
    /// Whether an `#if` is around it.
    pub is_conditional: bool,
    /// Its parameters' text, without white space.
    parameters: String,
    /// Where its first word starts, and `static` if it has that.
    pub start: usize,
    pub static_at: Option<usize>,
}

/// The name of the macro that is defined where the preprocessor leaves a conditional kernel in.
pub fn presence(name: &str) -> String {
    format!("CUDA_HOST_HAS_{name}")
}

/// The kernels of a file: those that C++ can name without their parameters.
pub fn kernels(text: &str) -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::new();
    let all = Scan::of(&tokens(text)).kernels;
    for kernel in &all {
        let is_overload = |other: &Kernel| {
            other.name == kernel.name
                && other.parameters != kernel.parameters
                && !other.is_conditional
        };
        let is_known = kernels.iter().any(|known| known.name == kernel.name);
        if !is_known && (kernel.has_c_linkage || !all.iter().any(is_overload)) {
            // Where one of several is there for certain, nothing has to say so.
            let same = || all.iter().filter(|other| other.name == kernel.name);
            let is_conditional = same().all(|other| other.is_conditional);
            kernels.push(Kernel { is_conditional, ..kernel.clone() });
        }
    }
    kernels
}

impl Kernel {
    /// What surrounds the mention of the kernel, so that it stands only where the kernel does.
    pub fn guarded(&self, mention: &str) -> String {
        if self.is_conditional {
            format!("\n#ifdef {}\n{mention}\n#endif\n", presence(&self.name))
        } else {
            mention.to_string()
        }
    }
}

/// What a brace is around.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// A namespace, and whether it has a name.
    Namespace(bool),
    /// `extern "C"`.
    Linkage,
    Other,
}

/// A walk through the declarations outside functions.
#[derive(Clone, Default)]
struct State<'a> {
    scopes: Vec<Scope>,
    /// The declaration so far.
    statement: Vec<Token<'a>>,
    /// Where a function of the CPU starts whose body this is.
    function: Option<usize>,
}

/// What is declared outside functions, by the places of its tokens.
#[derive(Default)]
pub struct Scan<'a> {
    pub kernels: Vec<Kernel>,
    /// The includes outside everything.
    pub includes: Vec<Token<'a>>,
    /// The `__device__` of each variable.
    pub variables: Vec<Token<'a>>,
    /// Functions of the CPU: where they start and end.
    pub functions: Vec<(usize, usize)>,
}

impl<'a> Scan<'a> {
    pub fn of(tokens: &[Token<'a>]) -> Scan<'a> {
        let mut scan = Scan::default();
        let mut state = State::default();
        // The states before the `#if`s around the place.
        let mut before: Vec<State<'_>> = Vec::new();
        for token in tokens.iter().filter(|token| !token.in_macro) {
            if token.is_directive() {
                let name = token.text[1..].trim_start();
                if name.starts_with("if") {
                    before.push(state.clone());
                } else if name.starts_with("el") {
                    // The branches stand for one another.
                    state = before.last().cloned().unwrap_or_default();
                } else if name.starts_with("endif") {
                    before.pop();
                } else if name.starts_with("include") && state.is_outermost() {
                    scan.includes.push(*token);
                }
                continue;
            }
            scan.token(&mut state, *token, !before.is_empty());
        }
        scan
    }

    fn token(&mut self, state: &mut State<'a>, token: Token<'a>, is_conditional: bool) {
        let is_declared = state.is_outside_functions();
        match token.text {
            "{" => {
                let scope = if is_declared { state.opened() } else { Scope::Other };
                if is_declared && scope == Scope::Other {
                    self.declaration(state, true, is_conditional);
                    state.function = state.host_function();
                }
                state.scopes.push(scope);
                state.statement.clear();
            }
            "}" => {
                state.scopes.pop();
                state.statement.clear();
                if state.is_outside_functions() {
                    let start = state.function.take();
                    self.functions.extend(start.map(|start| (start, token.end())));
                }
            }
            ";" if is_declared => {
                self.declaration(state, false, is_conditional);
                state.statement.clear();
            }
            _ if is_declared => state.statement.push(token),
            _ => {}
        }
    }

    /// A declaration that ends, or begins its braces.
    fn declaration(&mut self, state: &State<'a>, has_body: bool, is_conditional: bool) {
        let words = &state.statement;
        let has = |word: &str| words.iter().any(|token| token.text == word);
        if has("template") {
            return;
        }
        if has("__global__") {
            self.kernels.extend(state.kernel(is_conditional));
            return;
        }
        let device = words.iter().find(|token| ["__device__", "__managed__"].contains(&token.text));
        let Some(device) = device else { return };
        let words = without_attributes(words);
        let initialiser = words.iter().position(|token| ["=", "["].contains(&token.text));
        let head = &words[..initialiser.unwrap_or(words.len())];
        let is = |word: &str| head.iter().any(|token| token.text == word);
        let is_const = is("constexpr") || is("const") && !is("*");
        let others =
            ["(", "struct", "class", "union", "enum", "extern", "__constant__", "__shared__"];
        let is_plain = initialiser.is_some() || !has_body;
        if is_plain && !is_const && !others.into_iter().any(is) {
            self.variables.push(*device);
        }
    }
}

/// The words of a declaration but for those that say how it is aligned.
fn without_attributes<'a>(words: &[Token<'a>]) -> Vec<Token<'a>> {
    let mut rest = Vec::with_capacity(words.len());
    let mut at = 0;
    while at < words.len() {
        let is_attribute = ["__align__", "alignas", "__attribute__"].contains(&words[at].text);
        match after_group(words, at + 1).filter(|_| is_attribute) {
            Some(after) => at = after,
            None => {
                rest.push(words[at]);
                at += 1;
            }
        }
    }
    rest
}

impl State<'_> {
    fn is_outside_functions(&self) -> bool {
        !self.scopes.contains(&Scope::Other)
    }

    /// Where an include can be moved out of the namespace around the file.
    fn is_outermost(&self) -> bool {
        self.scopes.is_empty() && self.statement.is_empty()
    }

    /// What a brace after the statement opens.
    fn opened(&self) -> Scope {
        let texts: Vec<&str> = self.statement.iter().map(|token| token.text).collect();
        match texts[..] {
            ["extern", "\"C\""] => Scope::Linkage,
            ["namespace"] => Scope::Namespace(false),
            ["namespace", ..] | ["inline", "namespace", ..] => Scope::Namespace(true),
            _ => Scope::Other,
        }
    }

    /// The kernel that the statement declares: its parameters are the last group of parentheses.
    fn kernel(&self, is_conditional: bool) -> Option<Kernel> {
        let words = &self.statement;
        let close = words.iter().rposition(|token| token.text == ")")?;
        let open = before_group(words, close)?;
        let name = words[..open].last().filter(|token| token.is_word())?;
        let own = words.windows(2).any(|pair| pair[0].text == "extern" && pair[1].text == "\"C\"");
        let has_c_linkage = own || self.scopes.contains(&Scope::Linkage);
        let static_at = words[..open].iter().find(|token| token.text == "static");
        let kernel = Kernel {
            name: name.text.to_string(),
            has_c_linkage,
            is_conditional,
            parameters: words[open..].iter().map(|token| token.text).collect(),
            start: words[0].start,
            static_at: static_at.map(|token| token.start),
        };
        (has_c_linkage || !self.scopes.contains(&Scope::Namespace(true))).then_some(kernel)
    }

    /// Where the statement starts, if it is the head of a function that no GPU runs.
    fn host_function(&self) -> Option<usize> {
        let of_gpu = ["__device__", "__global__", "=", "struct", "class", "union"];
        let is_function = self.statement.iter().any(|token| token.text == "(");
        let has = |word: &&str| self.statement.iter().any(|token| token.text == *word);
        let start = self.statement.first()?.start;
        (is_function && !of_gpu.iter().any(has)).then_some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        kernels(text).into_iter().map(|kernel| kernel.name).collect()
    }

    #[test]
    fn kernels_are_found_however_they_are_declared() {
        let text = "extern \"C\" __global__ void a(int n) {}\n\
                    extern \"C\" __global__ void __launch_bounds__(128, 2)\n  b_2(float* x) {}\n\
                    extern \"C\" __global__ __launch_bounds__(64) void c() {}\n\
                    static __global__ void d(void (*f)(int)) { if (1) { } }\n\
                    extern \"C\" { __global__ void e(float*); __global__ void e(float* x) {} }\n\
                    namespace { __global__ void f() {} }\n\
                    namespace ours { __global__ void hidden() {} }\n\
                    template <class T> __global__ void g(T* x) {}\n\
                    __global__ void two(int) {} __global__ void two(float) {}\n\
                    // __global__ void h() {}\n";
        assert_eq!(names(text), ["a", "b_2", "c", "d", "e", "f"]);
    }

    #[test]
    fn a_kernel_inside_an_if_is_there_if_the_preprocessor_leaves_it() {
        let text = "#if A\n__global__ void k(int* x) {\n#else\n__global__ void k(int* y) {\n#endif\n}\n\
                    #ifdef B\n__global__ void b() {}\n#endif\n";
        assert_eq!(names(text), ["k", "b"]);
        let guarded = kernels(text)[1].guarded("X(b),");
        assert_eq!(guarded, "\n#ifdef CUDA_HOST_HAS_b\nX(b),\n#endif\n");
    }
}
