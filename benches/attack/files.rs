//! Damaged files of every kind, a damaged and a foreign cache, outputs that cannot be written.

use std::{
    fs::{self, File, Permissions},
    io::Result,
    os::unix::fs::{PermissionsExt, chown, symlink},
    panic::catch_unwind,
    path::Path,
    process::Command,
    time::Instant,
};

use firstdiff::trace::Plan;

use crate::{
    damaged::{Random, damage},
    document::Row,
    program, table,
    trials::firstdiff,
    whole,
};

/// A kind of file, how long its begin is that readers trust, what reads it, and what a refusal names.
struct Kind {
    what: &'static str,
    file: &'static str,
    header: usize,
    command: &'static str,
    named: &'static str,
}

const fn kind(
    what: &'static str,
    file: &'static str,
    header: usize,
    command: &'static str,
    named: &'static str,
) -> Kind {
    Kind { what, file, header, command, named }
}

const ALL: usize = usize::MAX;
const KINDS: [Kind; 10] = [
    kind("config of `check`", "firstdiff.toml", ALL, "check", ""),
    kind(
        "mapping files",
        "map.toml",
        ALL,
        "import npy --map map.toml --reference reference -o out",
        "",
    ),
    kind(
        "arrays of numpy",
        "npy/a.npy",
        200,
        "align npy --reference reference -o out.toml",
        "a.npy",
    ),
    kind(
        "archives of arrays",
        "npz/x.npz",
        4_000,
        "align npz --reference reference -o out.toml",
        "x.npz",
    ),
    kind(
        "safetensors dumps",
        "safetensors/x.safetensors",
        100,
        "align safetensors --reference reference -o out.toml",
        "x.safetensors",
    ),
    kind(
        "contracts of kernels",
        "rms_norm.toml",
        ALL,
        "run --kernel rms_norm=rms_norm.toml -p Once -n 0 --timeout 5",
        "rms_norm",
    ),
    kind("baselines of `check`", "lock.json", ALL, "check --baseline lock.json", "lock.json"),
    kind("snapshots of `bless`", "snapshot.json", ALL, "check --reference snapshot.json", ""),
    kind("results of `check`", "results.json", ALL, "merge results.json", ""),
    kind("reports of `run`", "report.json", ALL, "progress report.json report.json", ""),
];

/// Runs `n` damaged files of each kind.
pub fn kinds(n: usize) -> Result<Vec<Row>> {
    let folder = tempfile::tempdir()?;
    whole::put(folder.path())?;
    KINDS.iter().map(|kind| kind.damaged(n, folder.path())).collect()
}

impl Kind {
    fn damaged(&self, n: usize, folder: &Path) -> Result<Row> {
        let mut row = Row::of(&format!("{}, damaged or cut", self.what));
        let path = folder.join(self.file);
        let whole = fs::read(&path)?;
        for seed in 0..n as u64 {
            let (mut bytes, mut random) = (whole.clone(), Random(seed));
            let how = damage(&mut bytes, self.header, &mut random);
            fs::write(&path, bytes)?;
            let _ = fs::remove_dir_all(folder.join("out"));
            let arguments: Vec<&str> = self.command.split(' ').collect();
            let outcome = program::run(firstdiff(&arguments), folder);
            let is_told = !outcome.out.is_empty() || outcome.is_told(self.named);
            let wrong = if !is_told {
                Some("does not name the file and a next step".to_string())
            } else {
                outcome.spoils_terminals().then(|| "prints control characters".to_string())
            };
            row.add(&format!("seed {seed}, {how}"), &outcome, wrong);
        }
        fs::write(path, whole)?;
        Ok(row)
    }
}

/// A plan is read by writers, in their own process: a panic or a long time would be theirs.
pub fn plans(n: usize) -> Result<Row> {
    let mut row = Row::of("plans, read by a writer in Rust");
    let folder = tempfile::tempdir()?;
    whole::put(folder.path())?;
    let path = folder.path().join("plan.txt");
    let whole = fs::read(&path)?;
    for seed in 0..n as u64 {
        let (mut bytes, mut random) = (whole.clone(), Random(seed));
        let how = damage(&mut bytes, usize::MAX, &mut random);
        fs::write(&path, bytes)?;
        let start = Instant::now();
        let said = catch_unwind(|| Plan::open(&path).map_err(|error| error.to_string()));
        row.slowest = row.slowest.max(start.elapsed());
        let fault = match &said {
            Err(_) => Some("panics"),
            Ok(Err(text)) if !text.contains("plan.txt") || !text.contains("; ") => {
                Some("is not told")
            }
            _ => None,
        };
        row.faults.extend(fault.map(|fault| format!("seed {seed}, {how}: {fault}")));
        *row.exits.entry(if matches!(said, Ok(Ok(_))) { 0 } else { 2 }).or_default() += 1;
        row.runs += 1;
    }
    Ok(row)
}

/// Traces with a damaged file: as a disk damages it, and as of a writer that is wrong, whose hashes fit.
pub fn traces(n: usize) -> Result<Row> {
    let mut row = Row::of("traces, a file damaged or cut; in half of them the hashes fit it");
    let folder = tempfile::tempdir()?;
    whole::put(folder.path())?;
    let commands = ["validate damaged", "explain damaged", "diff damaged reference"];
    for seed in 0..n as u64 {
        let mut random = Random(seed);
        let trace = folder.path().join(["engine", "reference"][random.below(2)]);
        let files = whole::files(&trace)?;
        let file = &files[random.below(files.len())];
        let mut bytes = fs::read(file)?;
        let what = damage(&mut bytes, 4_000, &mut random);
        let damaged = folder.path().join("damaged");
        let _ = fs::remove_dir_all(&damaged);
        fs::create_dir(&damaged)?;
        let name = |path: &Path| path.file_name().expect("a file of a folder").to_os_string();
        for other in &files {
            fs::copy(other, damaged.join(name(other)))?;
        }
        fs::write(damaged.join(name(file)), bytes)?;
        if random.below(2) == 0 {
            whole::reseal(&damaged, &name(file).to_string_lossy())?;
        }
        let command: Vec<&str> = commands[random.below(commands.len())].split(' ').collect();
        let outcome = program::run(firstdiff(&command), folder.path());
        let is_told = !outcome.out.is_empty() || outcome.is_told("");
        let name = format!("seed {seed}, {}, {what}, {command:?}", name(file).display());
        row.add(&name, &outcome, (!is_told).then(|| "is not told".to_string()));
    }
    Ok(row)
}

/// The hostile files of the repository.
pub fn table() -> Row {
    let mut row = Row::of("the files of fixtures/attacks");
    for table::Trial { name, outcome, wrong } in table::trials(0, 1) {
        // What no run may do is in both.
        let wrong = (!wrong.is_empty()).then(|| wrong.join("; "));
        row.add(&name, &outcome, wrong);
    }
    row
}

/// What is put in the place of a file of the cache.
const PUT: [&str; 8] =
    ["a bit", "cut", "empty", "pipe", "folder", "link to itself", "/dev/zero", "a terabyte"];

/// Damages one file of a cache after the other, and the cache as a whole; what is right stays right.
pub fn cache() -> Result<Row> {
    let mut row = Row::of("a damaged or foreign cache");
    let folder = tempfile::tempdir()?;
    whole::put(folder.path())?;
    let config = whole::CONFIG.replace("fixture = true", "synth = \"tiny-llama\"");
    fs::write(folder.path().join("synth.toml"), config)?;
    let cache = folder.path().join("cache");
    let run = |command: &str| {
        let mut run = firstdiff(&command.split(' ').collect::<Vec<_>>());
        run.env("FIRSTDIFF_CACHE", &cache);
        program::run(run, folder.path())
    };
    for command in [
        "run -p Once -n 0",
        "explain engine",
        "check -c synth.toml",
        "run -p Once -n 0 --dtype f16 --kernel rms_norm=rms_norm.toml",
    ] {
        let _ = fs::remove_dir_all(&cache);
        let whole = run(command);
        assert_eq!(whole.code, Some(0), "{command}: {whole:?}");
        let mut entries = Vec::new();
        for subfolder in fs::read_dir(&cache)?.flatten() {
            for file in fs::read_dir(subfolder.path())?.flatten() {
                entries.push((file.path(), fs::read(file.path())?));
            }
        }
        entries.sort();
        for ((entry, whole_entry), put) in
            entries.iter().flat_map(|entry| PUT.map(|put| (entry, put)))
        {
            damage_entry(entry, whole_entry, put)?;
            let outcome = run(command);
            let is_same = outcome.code == Some(0) && answer(&outcome.out) == answer(&whole.out);
            let name = format!("{put} for {}, {command}", entry.display());
            row.add(&name, &outcome, (!is_same).then(|| "another answer".to_string()));
        }
    }
    let mut foreign = |what: &str, code: i32, said: &str| {
        let outcome = run("run -p Once -n 0");
        let is_right = outcome.code == Some(code) && outcome.err.contains(said);
        row.add(what, &outcome, (!is_right).then(|| format!("exit {code} and {said:?} expected")));
    };
    fs::set_permissions(&cache, Permissions::from_mode(0o777))?;
    foreign("others can write to it", 2, "others can write to it");
    fs::set_permissions(&cache, Permissions::from_mode(0o700))?;
    if chown(&cache, Some(12_345), None).is_ok() {
        foreign("another user's", 2, "it belongs to another user");
        chown(&cache, Some(0), None)?;
    }
    fs::remove_dir_all(&cache)?;
    fs::write(&cache, "")?;
    foreign("a file in its place", 0, "cannot use the cache in ");
    fs::remove_file(&cache)?;
    Command::new("mkfifo").arg(&cache).status()?;
    foreign("a pipe in its place", 0, "cannot use the cache in ");
    Ok(row)
}

fn damage_entry(entry: &Path, whole: &[u8], put: &str) -> Result<()> {
    // It may be gone: it is made again when it is needed.
    let _ = fs::remove_file(entry).or_else(|_| fs::remove_dir_all(entry));
    match put {
        "a bit" if !whole.is_empty() => {
            let (mut bytes, at) = (whole.to_vec(), whole.len() / 2);
            bytes[at] ^= 1;
            fs::write(entry, bytes)
        }
        "cut" => fs::write(entry, &whole[..whole.len() / 2]),
        "pipe" => Command::new("mkfifo").arg(entry).status().map(drop),
        "folder" => fs::create_dir(entry),
        "link to itself" => symlink(entry, entry),
        "/dev/zero" => symlink("/dev/zero", entry),
        "a terabyte" => File::create(entry)?.set_len(1 << 40),
        _ => fs::write(entry, ""),
    }
}

/// The first line, which is the verdict.
fn answer(out: &str) -> String {
    out.lines().next().unwrap_or_default().to_string()
}

/// Outputs that cannot be written, or are no files.
pub fn outputs() -> Result<Row> {
    let mut row = Row::of("outputs to devices, pipes, folders and what is read-only");
    let folder = tempfile::tempdir()?;
    whole::put(folder.path())?;
    fs::create_dir(folder.path().join("folder"))?;
    Command::new("mkfifo").arg(folder.path().join("pipe")).status()?;
    let places = [
        "/dev/full",
        "/dev/null",
        "folder",
        "no/such/folder/x",
        "/proc/x",
        "/proc/self/mem",
        "pipe",
    ];
    let commands = [
        "run -p Once -n 0 --json @",
        "run -p Once -n 0 --html @",
        "run -p Once -n 0 --trace-events @",
        "check --junit @",
        "check --json @",
        "check --html @",
        "plan -p Once -o @",
        "capture engine -p Once -n 0 -o @/trace",
        "cut model.gguf --layers 1 -o @",
        "synth -o @",
        "align npy --reference reference -o @",
        "import npy --map map.toml --reference reference -o @/trace",
        "bless --baseline @ --all",
        "bless --reference @ --all",
    ];
    for (command, place) in commands.iter().flat_map(|command| places.map(|place| (command, place)))
    {
        let _ = fs::remove_dir_all(folder.path().join("folder/trace"));
        let arguments = command.replace('@', place);
        let run = firstdiff(&arguments.split(' ').collect::<Vec<_>>());
        let outcome = program::run(run, folder.path());
        let is_told = !outcome.out.is_empty() || outcome.code == Some(0) || outcome.is_told("");
        row.add(&arguments, &outcome, (!is_told).then(|| "is not told".to_string()));
    }
    Ok(row)
}
