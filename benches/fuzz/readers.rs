//! Every reader of files and of texts, each with a whole input.

use std::{
    fs,
    io::Result,
    path::{Path, PathBuf},
};

use firstdiff::{
    ci::{
        check::{Config, Lock, Pinned},
        progress::Saved,
    },
    compare::{Queries, SiteFilter},
    core::arithmetic::Convention,
    engine::contract::{Contract, Expression, Op},
    graph::Size,
    model::gguf::Gguf,
    trace::{
        Plan, TraceReader, comparable,
        import::{Dump, Mapping},
        lint,
    },
};

use crate::{
    damaged::{Random, absurd_number, damage},
    whole,
};

/// A reader: whether it takes a file.
type Read = fn(&Path) -> bool;

/// A reader of texts: whether it takes one.
type ReadText = fn(&str) -> bool;

/// What is read, how long its begin is that readers trust, and the reader.
const FILES: [(&str, usize, Read); 12] = [
    ("model.gguf", 80_000, gguf),
    ("npy/a.npy", 200, dump),
    ("npz/x.npz", 4_000, dump),
    ("safetensors/x.safetensors", 100, dump),
    ("map.toml", usize::MAX, |path| Mapping::open(path).is_ok()),
    ("plan.txt", usize::MAX, |path| Plan::open(path).is_ok()),
    ("rms_norm.toml", usize::MAX, |path| Contract::read(Op::RmsNorm, path).is_ok()),
    ("firstdiff.toml", usize::MAX, |path| Config::read(path, None).is_ok()),
    ("lock.json", usize::MAX, |path| Lock::read(path).is_ok()),
    ("snapshot.json", usize::MAX, |path| Pinned::read(path).is_ok()),
    ("results.json", usize::MAX, |path| firstdiff::ci::check::read(path).is_ok()),
    ("report.json", usize::MAX, |path| Saved::open(path).is_ok()),
];

fn gguf(path: &Path) -> bool {
    let Ok(file) = Gguf::open(path) else { return false };
    file.tensors().iter().all(|info| file.data(info).len() == info.bytes)
}

fn dump(path: &Path) -> bool {
    let folder = path.parent().expect("it is in a folder");
    let Ok(dump) = Dump::open(folder) else { return false };
    dump.arrays.iter().all(|array| array.read().is_ok_and(|read| read.len() == array.elements()))
}

/// Texts of the command line and of contracts: what they are, one, and the reader.
const TEXTS: [(&str, &str, ReadText); 5] = [
    ("a size", "2*T*P - T + 3", |text| text.parse::<Size>().is_ok()),
    ("globs", "blk.*.q*, [!k]_rope,logits", |text| SiteFilter::parse(text).is_ok()),
    ("rows", "0,5,100-120", |text| {
        text.parse::<Queries>().is_ok_and(|queries| queries.of(200).is_ok())
    }),
    ("a rounding", "ffn_down.inputs=int8-blocks@prefill", |text| Convention::parse(text).is_ok()),
    ("an expression", "past > 3 ? ceil_div(4 * (past + n), n % 7) : max(past, n - 1)", |text| {
        let dims = vec![("past", 1000), ("n", 3)];
        Expression::parse(text, &["past", "n"]).is_ok_and(|parsed| parsed.value(&dims).is_ok())
    }),
];

/// The inputs, whole and damaged.
pub struct Readers {
    folder: tempfile::TempDir,
    files: Vec<Vec<u8>>,
    traces: Vec<Trace>,
}

/// The folder of a trace, and its files as they are.
struct Trace {
    folder: PathBuf,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Readers {
    pub fn new() -> Result<Readers> {
        let folder = tempfile::tempdir()?;
        whole::put(folder.path())?;
        let read = |(name, ..): &(&str, usize, Read)| fs::read(folder.path().join(name));
        let files = FILES.iter().map(read).collect::<Result<_>>()?;
        let trace = |name: &str| {
            let trace = folder.path().join(name);
            let files = whole::files(&trace)?.into_iter();
            let files =
                files.map(|path| Ok((path.clone(), fs::read(path)?))).collect::<Result<_>>()?;
            Ok(Trace { folder: trace, files })
        };
        let traces = ["reference", "engine"].into_iter().map(trace).collect::<Result<_>>()?;
        for (name, _, read) in FILES {
            assert!(read(&folder.path().join(name)), "{name} is refused as it is");
        }
        for (_, text, read) in TEXTS {
            assert!(read(text), "{text} is refused as it is");
        }
        Ok(Readers { folder, files, traces })
    }

    /// Damages one input and reads it: what it was, and whether it was taken.
    pub fn round(&self, random: &mut Random) -> Result<(&'static str, bool)> {
        let at = random.below(FILES.len() + TEXTS.len() + 2);
        if let Some(&(name, header, read)) = FILES.get(at) {
            let (path, whole) = (self.folder.path().join(name), &self.files[at]);
            let mut bytes = whole.clone();
            if name == "model.gguf" && random.below(4) == 0 {
                absurd_number(&mut bytes, random);
            } else {
                (0..=random.below(2)).for_each(|_| drop(damage(&mut bytes, header, random)));
            }
            fs::write(&path, &bytes)?;
            let is_taken = read(&path);
            fs::write(&path, whole)?;
            return Ok((name, is_taken));
        }
        if let Some(&(name, text, read)) = TEXTS.get(at - FILES.len()) {
            let times = if random.below(2) == 0 { 1 } else { random.below(40) };
            let mut bytes = text.as_bytes().repeat(times);
            damage(&mut bytes, usize::MAX, random);
            return Ok((name, read(&String::from_utf8_lossy(&bytes))));
        }
        let of = at - FILES.len() - TEXTS.len();
        Ok((["a trace of llama.cpp", "a trace with weights"][of], self.trace(of, random)?))
    }

    /// Damages a file of a trace, mostly so that its length and hash fit.
    fn trace(&self, of: usize, random: &mut Random) -> Result<bool> {
        let Trace { folder: trace, files } = &self.traces[of];
        let (path, whole) = &files[random.below(files.len())];
        let mut bytes = whole.clone();
        damage(&mut bytes, 4_000, random);
        fs::write(path, &bytes)?;
        if random.below(4) > 0 {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            whole::reseal(trace, name)?;
        }
        let is_taken = TraceReader::open(trace).is_ok_and(|reader| {
            let _ = lint::alone(&reader, &|_| true);
            let same = comparable(reader.manifest(), reader.manifest()).is_ok();
            same && reader.graph().is_ok() && reader.weights().is_ok()
        });
        for (path, whole) in files {
            fs::write(path, whole)?;
        }
        Ok(is_taken)
    }
}
