//! The project's folder, compilers and programs.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::LazyLock,
};

/// The folder of the project, or of a bundle of it.
pub fn project() -> &'static Path {
    static PROJECT: LazyLock<PathBuf> = LazyLock::new(|| {
        let project = std::env::var_os("CARGO_MANIFEST_DIR");
        project.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
    });
    &PROJECT
}

/// Compiles a C file with every warning an error.
#[track_caller]
pub fn compile(compiler: &[&str], source: &Path, program: &Path) {
    let mut command = Command::new(compiler[0]);
    command.args(&compiler[1..]).args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"]);
    command.arg(project().join("include")).arg(source).arg("-o").arg(program).arg("-lm");
    let output = command.output().unwrap_or_else(|error| {
        panic!("{compiler:?}: {error}; install it (scripts/setup.sh --tests does)")
    });
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a program with arguments.
pub fn run(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}
