//! The programs: those the host device runs, and those that only building firstdiff needs.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{guard, probes::Finding};
use crate::{
    core::{cache, places},
    engine::device::host::{CompilerCall, compiler_names},
};

const SETUP: &str = "run scripts/setup.sh";

/// A compiler that makes a library this process can load: `$CXX` if set, else the first of c++,
/// g++ and clang++ that there is.
pub(super) fn cxx_compiler() -> Finding {
    let names = compiler_names();
    let mut failures = Vec::new();
    for call in names.iter().filter_map(|name| CompilerCall::named(name)) {
        // The host device takes the first that answers, too.
        match guard::output(call.command().arg("--version")) {
            Ok(answer) => return builds(&call, &version_in(&answer)),
            Err(failure) => failures.push(failure),
        }
    }
    match &names[..] {
        _ if !failures.is_empty() => Finding::failed(failures.join("; ")).next(SETUP),
        [chosen] => Finding::missing(format!("CXX is {chosen}, which does not exist"))
            .next("unset it or set it to a C++ compiler"),
        _ => Finding::missing("no c++, g++ or clang++ on PATH")
            .next("run scripts/setup.sh, or install g++"),
    }
}

/// Whether it makes a library.
fn builds(call: &CompilerCall, version: &str) -> Finding {
    let CompilerCall { name, program, .. } = call;
    match compile(call.command()) {
        Ok(()) => Finding::ok(format!("{name} {version} ({})", program.display())),
        Err(failure) => {
            Finding::failed(format!("{name} cannot build a library: {failure}")).next(SETUP)
        }
    }
}

/// Compiles and loads a library where the host device keeps its own: headers may be missing, the
/// folder may not be writable, or it may be mounted noexec.
fn compile(mut command: Command) -> Result<(), String> {
    let io = |error: std::io::Error| error.to_string();
    let folder = tempfile::tempdir_in(cache::folder("").map_err(io)?).map_err(io)?;
    let (source, library) = (folder.path().join("probe.cpp"), folder.path().join("probe.so"));
    let text = "#include <cmath>\n#include <cstdint>\n\
        extern \"C\" std::int32_t probe() { return std::lround(6.5) * 6; }\n";
    std::fs::write(&source, text).map_err(io)?;
    guard::output(command.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source))?;
    let load = |error: libloading::Error| format!("the library it built does not load: {error}");
    // SAFETY: the library was built just now from the text above, which runs nothing on loading.
    let library = unsafe { libloading::Library::new(&library) }.map_err(load)?;
    // SAFETY: `probe` has this type in the text above.
    let entry = unsafe { library.get::<extern "C" fn() -> i32>(b"probe") }.map_err(load)?;
    match entry() {
        42 => Ok(()),
        other => Err(format!("the library it built computes 7 * 6 = {other}")),
    }
}

/// The host device uses objcopy to tell shared memory from other variables.
pub(super) fn objcopy() -> Finding {
    program("objcopy", "binutils")
}

pub(super) fn cmake() -> Finding {
    program("cmake", "cmake")
}

fn program(name: &str, package: &str) -> Finding {
    let Some(path) = places::program(name) else {
        return Finding::missing("not on PATH")
            .next(format!("run scripts/setup.sh, or install {package}"));
    };
    match guard::output(Command::new(&path).arg("--version")) {
        Ok(text) => Finding::ok(format!("{name} {} ({})", version_in(&text), path.display())),
        Err(failure) => Finding::failed(failure).next(SETUP),
    }
}

/// The library that bindgen loads, in the places where clang-sys looks.
pub(super) fn libclang() -> Finding {
    let chosen = places::variable("LIBCLANG_PATH");
    let system = [
        "/usr/lib/llvm*/lib",
        "/usr/local/llvm*/lib",
        "/usr/lib/*-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/local/lib64",
        "/usr/local/lib",
        "/usr/local/opt/llvm*/lib",
        "/opt/homebrew/opt/llvm*/lib",
        "/Library/Developer/CommandLineTools/usr/lib",
    ];
    let folders = chosen.into_iter().chain(system.map(PathBuf::from));
    let found = folders.flat_map(|folder| places::expand(&folder)).find_map(|path| {
        let in_folder =
            || places::expand(&path.join("libclang*")).into_iter().find(|file| is_libclang(file));
        if is_libclang(&path) { Some(path) } else { in_folder() }
    });
    match found {
        Some(path) => Finding::ok(format!("{}; needed only to build", path.display())),
        None => Finding::missing("not found; needed only to build")
            .next("run scripts/setup.sh, or install libclang-dev or set LIBCLANG_PATH"),
    }
}

/// `libclang.so`, `libclang-14.so.1` or `libclang.dylib`, but not `libclang-cpp.so`.
fn is_libclang(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(rest) = name.strip_prefix("libclang") else { return false };
    let versioned = rest.strip_prefix('-').is_none_or(|rest| rest.starts_with(char::is_numeric));
    path.is_file() && versioned && (rest.contains(".so") || rest.ends_with(".dylib"))
}

/// The version in what a program prints for `--version`: the first word of the first line that
/// looks like one, distributions' remarks in parentheses left out.
fn version_in(text: &str) -> String {
    let mut depth = 0_usize;
    let outside = |letter: &char| {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => return depth == 0,
        }
        false
    };
    let line: String = text.lines().next().unwrap_or_default().chars().filter(outside).collect();
    let is_version = |word: &&str| word.starts_with(char::is_numeric) && word.contains('.');
    let version = line.split_whitespace().find(is_version);
    version.unwrap_or("of unknown version").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn versions_are_found_in_what_compilers_print() {
        for (line, version) in [
            ("g++ (Debian 12.2.0-14+deb12u1) 12.2.0\nCopyright", "12.2.0"),
            ("g++ (GCC) 13.2.1 20231205 (Red Hat 13.2.1-6)", "13.2.1"),
            ("Ubuntu clang version 14.0.0-1ubuntu1.1", "14.0.0-1ubuntu1.1"),
            ("Apple clang version 15.0.0 (clang-1500.3.9.4)", "15.0.0"),
            ("GNU objcopy (GNU Binutils for Debian) 2.40", "2.40"),
            ("", "of unknown version"),
        ] {
            assert_eq!(version_in(line), version, "{line}");
        }
    }

    #[test]
    fn libclang_is_not_its_cpp_library() {
        let folder = tempfile::tempdir().unwrap();
        for (name, expected) in [
            ("libclang.so", true),
            ("libclang-14.so.13", true),
            ("libclang.dylib", true),
            ("libclang-cpp.so.14", false),
            ("libclangAST.a", false),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            assert_eq!(is_libclang(&path), expected, "{name}");
        }
    }

    #[test]
    fn a_compiler_that_builds_nothing_is_no_compiler() {
        // `true` accepts every argument, prints no version and writes no library.
        let finding = builds(&CompilerCall::named("true").unwrap(), "1.0");
        assert_eq!(finding.status, Status::Failed);
        assert!(finding.detail.contains("does not load"), "{}", finding.detail);
    }
}
