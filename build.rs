//! Compiles the kernels of `kernels/` for the host device, by the recipe that it has for edited ones, and
//! puts them into the program: running them then needs no compiler.

#[allow(dead_code, reason = "the crate uses the rest")]
#[path = "src/engine/kernels/embedded.rs"]
mod embedded;
#[allow(dead_code, reason = "the crate uses the rest")]
#[path = "src/engine/device/host/recipe.rs"]
mod recipe;
#[allow(dead_code, unused_imports, reason = "the crate uses the rest")]
#[path = "src/engine/device/source/mod.rs"]
mod source;
#[allow(dead_code, reason = "the crate uses the rest")]
#[path = "src/engine/variant.rs"]
mod variant;

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use variant::AttentionVariant;

/// Compiled for the size of a model's heads: there is no one way to build them.
const OF_A_MODEL: [&str; 2] = ["attention_tiled.cu", "attention_split.cu"];

fn main() {
    let modules = ["kernels/embedded", "device/host/recipe", "variant"];
    let modules = modules.map(|module| format!("src/engine/{module}.rs"));
    let folders = ["build.rs", "kernels", "src/engine/device/source"];
    for path in folders.into_iter().chain(modules.iter().map(String::as_str)) {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rerun-if-env-changed=CXX");
    let set = |name: &str| env::var(name).unwrap_or_default();
    if env::var_os("CARGO_FEATURE_FULL").is_none() {
        return;
    }
    let out = PathBuf::from(set("OUT_DIR"));
    // Elsewhere the host device compiles them itself.
    let is_for_this_system = set("CARGO_CFG_TARGET_OS") == "linux" && set("HOST") == set("TARGET");
    let built = if is_for_this_system {
        let has_f16c = set("CARGO_CFG_TARGET_FEATURE").split(',').any(|feature| feature == "f16c");
        Built::new(&out, has_f16c).unwrap_or_else(|error| panic!("the kernels: {error}"))
    } else {
        Built::default()
    };
    fs::write(out.join("prebuilt.rs"), built.as_rust()).expect("OUT_DIR can be written");
}

/// What the program carries.
#[derive(Default)]
struct Built {
    compiler: String,
    library: Option<PathBuf>,
    /// Kernel files, and where each is with its includes in place.
    texts: Vec<(&'static str, PathBuf)>,
    units: Vec<Unit>,
}

/// One kernel file with definitions.
struct Unit {
    file: &'static str,
    defines: Vec<String>,
    table: String,
}

impl Built {
    fn new(out: &Path, has_f16c: bool) -> Result<Built, String> {
        let compiler = Compiler::new(out, has_f16c)?;
        let (mut texts, mut units, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        for file in embedded::engine_files().filter(|file| !OF_A_MODEL.contains(file)) {
            let text = whole(file)?;
            for defines in definitions(file, &text) {
                let table = format!("cuda_host_table_{}", units.len());
                let body = recipe::body(file, &text, &defines);
                sources.push(Source {
                    table: Some(table.clone()),
                    text: body + &recipe::table(&table, &text),
                });
                units.push(Unit { file, defines, table });
            }
            let path = out.join(file);
            write(&path, &text)?;
            texts.push((file, path));
        }
        for (name, text) in recipe::headers() {
            let path = out.join(name);
            let folder = path.parent().expect("it is in the folder");
            fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            write(&path, &text)?;
        }
        sources.push(Source { table: None, text: recipe::RUNTIME.to_string() });
        let objects = compiler.objects(&sources)?;
        let library = compiler.link(&objects)?;
        Ok(Built { compiler: compiler.version, library: Some(library), texts, units })
    }

    /// The constants that `prebuilt.rs` of the host device includes.
    fn as_rust(&self) -> String {
        let library = self.library.as_ref();
        let library = library.map_or("&[]".to_string(), |path| format!("include_bytes!({path:?})"));
        let texts =
            self.texts.iter().map(|(file, path)| format!("({file:?}, include_str!({path:?})),"));
        let units = self.units.iter().map(|Unit { file, defines, table }| {
            format!("Unit {{ file: {file:?}, defines: &{defines:?}, table: {table:?} }},")
        });
        format!(
            "const COMPILER: &str = {:?};\nconst LIBRARY: &[u8] = {library};\n\
             const TEXTS: &[(&str, &str)] = &[{}];\nconst UNITS: &[Unit] = &[{}];\n",
            self.compiler,
            texts.collect::<String>(),
            units.collect::<Vec<_>>().join("\n")
        )
    }
}

/// One C++ file.
struct Source {
    /// The symbol of its table of entries; `None` of the runtime.
    table: Option<String>,
    text: String,
}

/// A kernel file with its includes in place, as the engine takes it.
fn whole(file: &str) -> Result<String, String> {
    let read = |file: &str| Ok::<_, String>(embedded::embedded(file).map(str::to_string));
    let text = embedded::embedded(file).expect("the file is one of them");
    embedded::with_includes(file, text, &read).map_err(|error| format!("{error:?}"))
}

/// The definitions that a run compiles a file with: the attention kernel's variants, each planted fault.
fn definitions(file: &str, text: &str) -> Vec<Vec<String>> {
    let of_right: Vec<Vec<String>> = match file {
        "attention.cu" => AttentionVariant::all().map(AttentionVariant::defines).collect(),
        _ => vec![Vec::new()],
    };
    let names = text.split("#ifdef FAULT_").skip(1).filter_map(|rest| rest.lines().next());
    let faults: BTreeSet<&str> = names.map(str::trim).collect();
    let of_faults =
        faults.iter().map(|name| [vec![format!("FAULT_{name}")], of_right[0].clone()].concat());
    let of_faults: Vec<_> = of_faults.collect();
    [of_right, of_faults].concat()
}

/// The C++ compiler, in the folder that it works in.
struct Compiler {
    words: Vec<String>,
    version: String,
    folder: PathBuf,
    flags: Vec<String>,
}

impl Compiler {
    /// The one that the host device would take: `$CXX`, else c++, g++ or clang++.
    fn new(folder: &Path, has_f16c: bool) -> Result<Compiler, String> {
        let names = match env::var("CXX") {
            Ok(chosen) if !chosen.trim().is_empty() => vec![chosen],
            _ => ["c++", "g++", "clang++"].map(String::from).to_vec(),
        };
        let target = recipe::target_flags(has_f16c);
        // The build's folder does not belong into the program.
        let prefix = format!("-ffile-prefix-map={}=.", folder.display());
        let flags = [&recipe::FLAGS[..], target, &recipe::UNWATCHED_FLAGS].concat();
        let flags: Vec<String> = flags.into_iter().map(String::from).chain([prefix]).collect();
        for name in &names {
            let words: Vec<String> = name.split_whitespace().map(String::from).collect();
            let output = Command::new(&words[0]).args(&words[1..]).arg("--version").output();
            let Ok(output) = output else { continue };
            let text = String::from_utf8_lossy(&output.stdout);
            if let (true, Some(version)) = (output.status.success(), text.lines().next()) {
                let version = version.to_string();
                return Ok(Compiler { words, version, folder: folder.to_path_buf(), flags });
            }
        }
        Err(format!("no C++ compiler found (tried {}); run scripts/setup.sh", names.join(", ")))
    }

    /// The objects of sources, compiled in parallel.
    fn objects(&self, sources: &[Source]) -> Result<Vec<String>, String> {
        let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), String> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(source) = sources.get(index) else { return Ok(()) };
                self.object(index, source)?;
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
        })?;
        Ok((0..sources.len()).map(|index| format!("{index}.o")).collect())
    }

    fn object(&self, index: usize, source: &Source) -> Result<(), String> {
        let (file, object) = (format!("{index}.cpp"), format!("{index}.o"));
        write(&self.folder.join(&file), &source.text)?;
        let flags = self.flags.iter().map(String::as_str);
        self.run(&[&["-I.", "-c", &file, "-o", &object][..], &flags.collect::<Vec<_>>()].concat())?;
        let Some(table) = &source.table else { return Ok(()) };
        let mut command = Command::new("objcopy");
        // Several objects have entries of the same names: each is reached through its own table.
        command.args(recipe::RENAME_SHARED).args(["--keep-global-symbol", table]).arg(&object);
        run(command.current_dir(&self.folder))
    }

    fn link(&self, objects: &[String]) -> Result<PathBuf, String> {
        let output = ["-o", "kernels.so"];
        let objects: Vec<&str> = objects.iter().map(String::as_str).collect();
        self.run(&[&recipe::LINK_FLAGS[..], &output, &objects, &["-lm"]].concat())?;
        Ok(self.folder.join("kernels.so"))
    }

    fn run(&self, arguments: &[&str]) -> Result<(), String> {
        let mut command = Command::new(&self.words[0]);
        run(command.args(&self.words[1..]).args(arguments).current_dir(&self.folder))
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let message = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {message}")) }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
