//! `firstdiff run --watch`: a verdict at each save of a kernel.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use firstdiff::{
    core::{activity, exit::Exit},
    run::Kept,
};

use super::{
    args::RunArgs,
    error::Error,
    inputs::{self, Inputs},
    output, run,
};

/// How often the files are looked at.
const EVERY: Duration = Duration::from_millis(100);
/// A save is over when nothing has changed for so long.
const SETTLED: Duration = Duration::from_millis(30);

/// What a kernel is made of.
const EXTENSIONS: [&str; 4] = ["cu", "cuh", "h", "toml"];

/// When each file was written, and how long it is.
type Stamps = BTreeMap<PathBuf, (SystemTime, u64)>;

/// Gives verdicts until Ctrl-C ends the program. An error of the kernels is printed, and waits for the
/// next save; one of the model or the prompt ends the watch.
pub fn watch(args: &RunArgs) -> Result<Exit, Error> {
    let folders = folders(args);
    if folders.is_empty() {
        let text = "--watch needs kernels to watch; give --kernel OP=FILE or --kernels DIR";
        return Err(Error::Usage(text.into()));
    }
    if args.engine.device.len() > 1 {
        return Err(Error::Usage("--watch runs on one device; give one".into()));
    }
    let bar = output::progress(None, "loading the model and the reference");
    let inputs = Inputs::load(&args.model)?;
    bar.finish_and_clear();
    let mut kept = Kept::for_more();
    let mut seen = stamps(&folders);
    let mut changed = String::new();
    loop {
        let start = Instant::now();
        // Another process goes on behind one that a save has ended.
        let save = format!("{seen:?}");
        let save = blake3::hash(save.as_bytes()).to_hex();
        let verdict = match activity::died(&save) {
            Some(death) => Err(Error::Refused(death.text)),
            None => {
                let _unit = activity::unit(&save);
                inputs::engines(&args.engine)
                    .and_then(|(engine, _)| run::verdict(args, &inputs, (&engine, None), &mut kept))
            }
        };
        let answer = match verdict {
            Ok(Exit::Equal) => "equal",
            Ok(Exit::Diverged) => "diverged",
            Ok(_) => "not measured",
            Err(error) => {
                output::fail(&error);
                "failed"
            }
        };
        let seconds = start.elapsed().as_secs_f64();
        output::say(&format!("{changed}{answer}, {seconds:.2} s; waiting for a save, Ctrl-C ends"));
        let now = wait(&folders, &seen);
        changed = format!("{} saved: ", names(&seen, &now));
        seen = now;
    }
}

/// The folders of all files that the kernels may be made of.
fn folders(args: &RunArgs) -> Vec<PathBuf> {
    let engine = &args.engine;
    let folder_of = |file: &Path| match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let mut folders: Vec<PathBuf> = engine.kernels.iter().cloned().collect();
    for given in &engine.kernel {
        folders.extend(given.split_once('=').map(|(_, file)| folder_of(Path::new(file))));
    }
    if let Ok(kernels) = inputs::engine_kernels(engine) {
        folders.extend(kernels.contracts().iter().map(|contract| folder_of(&contract.source)));
    }
    folders.sort();
    folders.dedup();
    folders
}

fn stamps(folders: &[PathBuf]) -> Stamps {
    let mut stamps = Stamps::new();
    for entry in folders.iter().flat_map(std::fs::read_dir).flatten().flatten() {
        let path = entry.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if !extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
            continue;
        }
        // What is gone in this moment is on its way to be written anew.
        if let Ok(metadata) = std::fs::metadata(&path)
            && let Ok(written) = metadata.modified()
        {
            stamps.insert(path, (written, metadata.len()));
        }
    }
    stamps
}

/// Waits until a file is other than it was, and all have stayed as they are for a moment.
fn wait(folders: &[PathBuf], seen: &Stamps) -> Stamps {
    loop {
        thread::sleep(EVERY);
        let mut now = stamps(folders);
        if now == *seen {
            continue;
        }
        loop {
            thread::sleep(SETTLED);
            let later = stamps(folders);
            if later == now {
                return now;
            }
            now = later;
        }
    }
}

/// The files that differ, by name.
fn names(before: &Stamps, now: &Stamps) -> String {
    let changed = |path: &&PathBuf| before.get(*path) != now.get(*path);
    let mut paths: Vec<&PathBuf> = before.keys().chain(now.keys()).filter(changed).collect();
    paths.sort();
    paths.dedup();
    let names = paths.iter().filter_map(|path| path.file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect::<Vec<_>>().join(", ")
}
