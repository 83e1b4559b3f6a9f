//! From `.cu` text to a shared library, through the system C++ compiler; cached by content.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rayon::prelude::*;

use crate::{
    core::{
        activity::{self, Foreign},
        cache::Entry,
        files,
    },
    engine::device::{
        DeviceError, KernelSource,
        host::{
            Compiler, assembly,
            recipe::{self, FLAGS, LINK_FLAGS, RENAME_SHARED, RUNTIME, UNWATCHED_FLAGS},
        },
    },
};

/// In a checked build the compiler calls a function of ours before each access, and where behaviour
/// is undefined. With little optimisation: what is optimised away is not checked.
const CHECKED_FLAGS: [&str; 6] = [
    "-O1",
    "-gdwarf-4", // the assembly is assembled on its own, which misreads version 5
    "-DCUDA_HOST_CHECKED",
    "-fsanitize=thread,undefined",
    "-fno-sanitize=vptr",
    "-fno-sanitize-recover=all",
];

/// The compiler's own runtimes look at each access, and end the process at the first bad one.
const SANITIZED_FLAGS: [&str; 5] = [
    "-O1",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize=vptr",
    "-fno-sanitize-recover=all",
];

/// What sees wrong accesses, if anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    Nothing,
    /// Functions of ours, called before each access.
    Hooks,
    /// AddressSanitizer and UndefinedBehaviorSanitizer.
    Sanitizers,
}

/// Locals that are not initialised hold a value that shows, where the compiler can do that.
const SHOWING_LOCALS: &str = "-ftrivial-auto-var-init=pattern";

/// How kernels and the runtime are built.
struct Recipe {
    watch: Watch,
    kernel_flags: Vec<&'static str>,
    /// The runtime itself is never checked.
    runtime_flags: Vec<&'static str>,
}

impl Recipe {
    fn new(compiler: &Compiler, watch: Watch) -> Recipe {
        let (kernel, runtime): (&[&str], &[&str]) = match watch {
            Watch::Nothing => (&UNWATCHED_FLAGS, &UNWATCHED_FLAGS),
            Watch::Hooks => (&CHECKED_FLAGS, &["-O2", "-DCUDA_HOST_CHECKED"]),
            Watch::Sanitizers => (&SANITIZED_FLAGS, &["-O2", "-DCUDA_HOST_SANITIZED"]),
        };
        let target = recipe::target_flags(cfg!(target_feature = "f16c"));
        let mut kernel_flags = [&FLAGS, target, kernel].concat();
        if watch != Watch::Nothing && compiler.takes(SHOWING_LOCALS) {
            kernel_flags.push(SHOWING_LOCALS);
        }
        Recipe { watch, kernel_flags, runtime_flags: [&FLAGS, target, runtime].concat() }
    }
}

/// Lines of a compiler's message that are worth showing.
const MESSAGE_LINES: usize = 12;

/// A compiled set of kernel files.
#[derive(Clone, Debug)]
pub struct Library {
    pub path: PathBuf,
    /// Whether the file itself is loaded, and not a copy: the sanitizers read its lines.
    pub in_place: bool,
    /// Per source file: its name, and the symbol of its table of entries.
    pub tables: Vec<(String, String)>,
}

/// Compiles the files, in parallel and only those that are not in the cache, and links them.
pub fn build(
    compiler: &Compiler,
    watch: Watch,
    sources: &[KernelSource],
) -> Result<Library, DeviceError> {
    let recipe = &Recipe::new(compiler, watch);
    let wrappers: Vec<Wrapper> =
        sources.iter().map(|source| Wrapper::new(compiler, recipe, source)).collect();
    let runtime_key = key(compiler, &recipe.runtime_flags, RUNTIME);
    let units: Vec<Unit<'_>> = wrappers
        .iter()
        .map(|wrapper| {
            let (text, flags) = (wrapper.text.as_str(), &wrapper.flags[..]);
            Unit { key: &wrapper.key, text, flags, kernel: Some(&wrapper.file), recipe }
        })
        .chain([Unit {
            key: &runtime_key,
            text: RUNTIME,
            flags: &recipe.runtime_flags,
            kernel: None,
            recipe,
        }])
        .collect();
    let all_keys: String = units.iter().map(|unit| unit.key).collect();
    let library = entry(&format!("{}.so", key(compiler, &[], &all_keys)))?;
    if library.file().is_none() {
        let objects: Vec<Entry> =
            units.par_iter().map(|unit| unit.object(compiler)).collect::<Result<_, _>>()?;
        link(compiler, watch, &objects, &library)?;
    }
    let (path, in_place) = (library.path().to_path_buf(), watch == Watch::Sanitizers);
    let tables = wrappers.into_iter().map(|wrapper| (wrapper.file, wrapper.table)).collect();
    Ok(Library { path, in_place, tables })
}

/// A kernel file with what makes it a C++ file of its own.
struct Wrapper {
    file: String,
    key: String,
    text: String,
    flags: Vec<&'static str>,
    table: String,
}

impl Wrapper {
    fn new(compiler: &Compiler, recipe: &Recipe, source: &KernelSource) -> Wrapper {
        let body = recipe::body(&source.file, &source.text, &source.defines);
        let flags = [&recipe.kernel_flags, recipe::flags_of(&source.text)].concat();
        let key = key(compiler, &flags, &body);
        let table = format!("cuda_host_table_{}", &key[..16]);
        let text = body + &recipe::table(&table, &source.text);
        Wrapper { file: source.file.clone(), key, text, flags, table }
    }
}

/// One translation unit.
struct Unit<'a> {
    key: &'a str,
    text: &'a str,
    flags: &'a [&'static str],
    /// The kernel file, where it is one and not the runtime.
    kernel: Option<&'a str>,
    recipe: &'a Recipe,
}

impl Unit<'_> {
    /// The object file, from the cache or the compiler.
    fn object(&self, compiler: &Compiler) -> Result<Entry, DeviceError> {
        let object = entry(&format!("{}.o", self.key))?;
        if object.file().is_some() {
            return Ok(object);
        }
        let scratch = scratch(&object)?;
        let unit = ("unit.cpp", self.text.to_string());
        for (name, text) in recipe::headers().chain([unit]) {
            let path = scratch.path().join(name);
            let folder = path.parent().expect("it is in the folder");
            std::fs::create_dir_all(folder).map_err(cache_error)?;
            std::fs::write(path, text).map_err(cache_error)?;
        }
        match (self.kernel, self.recipe.watch) {
            (Some(_), Watch::Hooks) => self.compile_with_gaps(compiler, scratch.path())?,
            _ => self.compile(compiler, scratch.path(), self.flags)?,
        }
        if self.kernel.is_some() {
            rename_bss(scratch.path())?;
        }
        moved(&scratch.path().join("unit.o"), &object)?;
        Ok(object)
    }

    /// Compiles by way of assembly, where the shared arrays are moved apart.
    fn compile_with_gaps(&self, compiler: &Compiler, folder: &Path) -> Result<(), DeviceError> {
        let flags = [self.flags, &["-S"]].concat();
        self.compile(compiler, folder, &flags)?;
        let assembly = std::fs::read(folder.join("unit.o")).map_err(cache_error)?;
        // clang's comments show bytes as they are.
        let assembly = assembly::with_gaps(&String::from_utf8_lossy(&assembly));
        std::fs::write(folder.join("unit.s"), assembly).map_err(cache_error)?;
        self.checked(compiler.run(folder, &["-c", "unit.s", "-o", "unit.o"])?)
    }

    fn compile(
        &self,
        compiler: &Compiler,
        folder: &Path,
        flags: &[&str],
    ) -> Result<(), DeviceError> {
        let file = self.kernel.unwrap_or("the host device's runtime");
        let _running = activity::running(Foreign::Compiler, file, "compiles");
        let output = ["-I.", "-c", "unit.cpp", "-o", "unit.o"];
        self.checked(compiler.run(folder, &[&output, flags].concat())?)
    }

    fn checked(&self, output: Output) -> Result<(), DeviceError> {
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr);
        let file = self.kernel.unwrap_or("cuda_host_runtime.cpp").to_string();
        Err(no_header(&message)
            .unwrap_or_else(|| DeviceError::Compile { file, message: shortened(&message) }))
    }
}

fn rename_bss(folder: &Path) -> Result<(), DeviceError> {
    let mut command = Command::new("objcopy");
    command.args(RENAME_SHARED).arg("unit.o").current_dir(folder);
    let output = run(&mut command)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(DeviceError::Tool {
            tool: "objcopy".to_string(),
            detail: shortened(&String::from_utf8_lossy(&output.stderr)),
        })
    }
}

fn link(
    compiler: &Compiler,
    watch: Watch,
    objects: &[Entry],
    to: &Entry,
) -> Result<(), DeviceError> {
    let scratch = scratch(to)?;
    let mut command = compiler.command();
    command.args(LINK_FLAGS).args(["-o", "unit.so"]);
    if watch == Watch::Sanitizers {
        command.arg("-fsanitize=address,undefined");
    }
    command.args(objects.iter().map(Entry::path)).arg("-lm").current_dir(scratch.path());
    let output = run(&mut command)?;
    if !output.status.success() {
        return Err(DeviceError::Tool {
            tool: "the linker".to_string(),
            detail: shortened(&String::from_utf8_lossy(&output.stderr)),
        });
    }
    moved(&scratch.path().join("unit.so"), to)
}

pub(super) fn run(command: &mut Command) -> Result<Output, DeviceError> {
    // Where AddressSanitizer watches this process, the compiler is none of its business.
    if std::env::var_os("LD_PRELOAD").is_some_and(|set| set.to_string_lossy().contains("libasan")) {
        command.env_remove("LD_PRELOAD");
    }
    command.output().map_err(|error| DeviceError::Tool {
        tool: command.get_program().to_string_lossy().into_owned(),
        detail: error.to_string(),
    })
}

fn entry(name: &str) -> Result<Entry, DeviceError> {
    Entry::new("host", name).map_err(cache_error)
}

/// A folder beside an entry that is to be made.
fn scratch(entry: &Entry) -> Result<tempfile::TempDir, DeviceError> {
    files::temporary_folder_beside(entry.path()).map_err(cache_error)
}

fn moved(made: &Path, to: &Entry) -> Result<(), DeviceError> {
    std::fs::rename(made, to.path()).and_then(|()| to.seal()).map_err(cache_error)
}

fn cache_error(error: std::io::Error) -> DeviceError {
    DeviceError::Cache { detail: error.to_string() }
}

fn key(compiler: &Compiler, flags: &[&str], text: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    let headers: Vec<String> = recipe::headers().map(|(_, text)| text).collect();
    let headers = headers.iter().map(String::as_str);
    let identity = compiler.identity();
    for part in [text, &identity].into_iter().chain(headers).chain(flags.iter().copied()) {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_string()
}

/// The include that a compiler did not find, by its message: `x.cu:3:10: fatal error: a.h: No such file`, or
/// `'a.h' file not found`.
fn no_header(message: &str) -> Option<DeviceError> {
    let line = message.lines().find(|line| line.contains("fatal error: "))?;
    let (place, rest) = line.split_once(": fatal error: ")?;
    let header = rest
        .strip_suffix(": No such file or directory")
        .or_else(|| rest.strip_suffix(" file not found"))?;
    let mut place = place.rsplitn(3, ':').skip(1);
    let line = place.next()?.parse().ok()?;
    let header = header.trim_matches('\'').to_string();
    Some(DeviceError::NoHeader { file: place.next()?.to_string(), line, header })
}

/// The first lines of a compiler's message.
fn shortened(message: &str) -> String {
    let lines: Vec<&str> = message.trim().lines().collect();
    let shown = lines[..lines.len().min(MESSAGE_LINES)].join("\n");
    match lines.len().saturating_sub(MESSAGE_LINES) {
        0 => shown,
        more => format!("{shown}\n({more} more lines)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_header_is_told_in_one_line() {
        for message in [
            "In file included from unit.cpp:3:\na.cu:7:10: fatal error: cub/cub.cuh: No such file or directory\n",
            "a.cu:7:10: fatal error: 'cub/cub.cuh' file not found\n",
        ] {
            let error = no_header(message).unwrap().to_string();
            assert!(error.starts_with("a.cu:7: the host device has no <cub/cub.cuh>; "), "{error}");
            assert_eq!(error.lines().count(), 1);
        }
        assert!(no_header("a.cu:7:10: error: a.h: No such file or directory\n").is_none());
    }
}
