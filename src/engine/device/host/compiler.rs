//! The system's C++ compiler: which one it is, and how it is called.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::{
    core::places,
    engine::device::{DeviceError, host::compile::run},
};

/// The compiler that `$CXX` names.
pub(super) fn chosen() -> Option<String> {
    let chosen = std::env::var_os("CXX").map(|name| name.to_string_lossy().into_owned());
    chosen.filter(|name| !name.trim().is_empty())
}

/// The names to look for, in this order: `$CXX` alone if it is set, else c++, g++ and clang++.
pub fn compiler_names() -> Vec<String> {
    match chosen() {
        Some(name) => vec![name],
        None => ["c++", "g++", "clang++"].map(String::from).to_vec(),
    }
}

/// How a compiler is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompilerCall {
    /// As it was named, such as `ccache g++`.
    pub name: String,
    pub program: PathBuf,
    /// What comes before all other arguments: `g++`.
    arguments: Vec<String>,
}

impl CompilerCall {
    /// The call of a name that is a program, or a program with arguments after it.
    pub fn named(name: &str) -> Option<CompilerCall> {
        let mut words = name.split_whitespace().map(String::from);
        let (program, arguments) = match places::program(name.trim()) {
            Some(program) => (program, Vec::new()),
            None => (places::program(&words.next()?)?, words.collect()),
        };
        Some(CompilerCall { name: name.trim().to_string(), program, arguments })
    }

    /// The command, to be given what it is to do.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        command
    }
}

/// A C++ compiler that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    call: CompilerCall,
    /// The first line of `--version`.
    pub version: String,
}

/// The C++ compiler that kernels are built with: the first of [`compiler_names`] that answers.
pub fn compiler() -> Result<Compiler, DeviceError> {
    let names = compiler_names();
    let calls = names.iter().filter_map(|name| CompilerCall::named(name));
    let found = calls.into_iter().find_map(Compiler::answering);
    found.ok_or_else(|| DeviceError::NoCompiler { tried: names.join(", ") })
}

impl Compiler {
    fn answering(call: CompilerCall) -> Option<Compiler> {
        let output = call.command().arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.lines().next()?.to_string();
        output.status.success().then_some(Compiler { call, version })
    }

    /// What the objects that it makes depend on.
    pub(super) fn identity(&self) -> String {
        let parts = std::iter::once(&self.version).chain(&self.call.arguments);
        parts.map(String::as_str).collect::<Vec<_>>().join(" ")
    }

    /// The library of AddressSanitizer, which a process must have from its start.
    pub fn address_sanitizer(&self) -> Result<PathBuf, DeviceError> {
        let name = "libasan.so";
        let output = run(self.command().arg(format!("-print-file-name={name}")))?;
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        // A compiler without it repeats the name.
        if path.is_absolute() && path.exists() {
            return Ok(path);
        }
        Err(DeviceError::Tool {
            tool: format!("{} -print-file-name={name}", self.call.name),
            detail: "it has no AddressSanitizer of its own; install g++ and set CXX=g++"
                .to_string(),
        })
    }

    pub(super) fn command(&self) -> Command {
        self.call.command()
    }

    pub(super) fn takes(&self, flag: &str) -> bool {
        let mut command = self.command();
        command.args([flag, "-E", "-x", "c++", "/dev/null"]);
        command.output().is_ok_and(|output| output.status.success())
    }

    pub(super) fn run(&self, folder: &Path, arguments: &[&str]) -> Result<Output, DeviceError> {
        run(self.command().args(arguments).current_dir(folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_may_have_a_launcher_and_arguments() {
        let call = CompilerCall::named(" env  CCACHE=none true ").unwrap();
        assert_eq!(call.arguments, ["CCACHE=none", "true"]);
        assert!(call.program.is_absolute() && call.program.ends_with("env"), "{call:?}");
        assert!(call.command().arg("--version").output().unwrap().status.success());
        assert_eq!(CompilerCall::named("true").unwrap().arguments, [""; 0]);
        assert_eq!(CompilerCall::named("no-such-compiler g++"), None);
        assert_eq!(CompilerCall::named(" "), None);
    }

    #[test]
    fn a_program_may_have_a_space_in_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("my tools");
        std::fs::copy(places::program("true").unwrap(), &path).unwrap();
        let call = CompilerCall::named(path.to_str().unwrap()).unwrap();
        assert_eq!((call.program, call.arguments), (path, vec![]));
    }
}
