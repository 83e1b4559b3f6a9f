//! A small recorded run, and ways to damage it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use firstdiff::{
    core::{
        arithmetic::Arithmetic,
        tensor::{DType, Tensor},
    },
    graph::{
        ListedSite, SiteList, Size,
        site::{Axis, Site},
    },
    model::{Config, RopePairs},
    trace::{
        CHECKSUM_FILE, MANIFEST_FILE, Manifest, ModelId, Side, TraceError, TraceReader,
        TraceWriter, step_file,
    },
};
use serde_json::{Value, json};

/// Three steps: a prefill of five tokens and two decoded ones.
pub const STEPS: [&[i32]; 3] = [&[1, 2, 3, 4, 5], &[6], &[7]];

/// A qwen3, as it has every stage, whose dimensions all differ.
pub fn config() -> Config {
    Config {
        architecture: "qwen3".to_string(),
        n_layer: 2,
        n_embd: 9,
        n_head: 6,
        n_head_kv: 2,
        head_dim: 4,
        n_ff: 11,
        n_vocab: 13,
        qk_norm: true,
        rope_theta: 1e4,
        rope_pairs: RopePairs::Neox,
        rms_eps: 1e-6,
        attention_scale: 0.5,
    }
}

pub fn manifest() -> Manifest {
    let model = model_id("small.gguf", &config());
    Manifest::new(Side::Engine, model, Arithmetic::engine(DType::F16), "host (test)".into())
}

/// The identity of a model of ours.
pub fn model_id(name: &str, config: &Config) -> ModelId {
    let list = site_list(config);
    ModelId::new(name, "ab".repeat(32), &config.architecture, config.n_vocab, &list)
}

/// The sites of a model of ours, with their sizes in T and P.
pub fn site_list(config: &Config) -> SiteList {
    let listed = |site: Site| {
        let axes = site.stage.axes().to_vec();
        let size = |(axis, n): (&Axis, usize)| match axis {
            Axis::Token => Size { per_token: 1, ..Size::default() },
            Axis::Position | Axis::Key => Size { per_cell: 1, ..Size::default() },
            _ => Size::fixed(n as i64),
        };
        let sizes = axes.iter().zip(config.shape(site.stage, 1, 1)).map(size).collect();
        ListedSite { layer: site.layer, stage: site.stage, axes, sizes }
    };
    SiteList::new(config.sites(1).into_iter().map(listed).collect())
}

/// splitmix64: as random as tests need, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, end).
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Multiples of 2^-20 in [-8, 8), whose sum in f64 is exact.
    pub fn tensor(&mut self, shape: Vec<usize>) -> Tensor {
        let elements = shape.iter().product();
        let value = |bits: u64| (bits >> 40) as f32 / (1 << 20) as f32 - 8.0;
        let data = (0..elements).map(|_| value(self.next())).collect();
        Tensor::new(shape, data)
    }
}

/// The shape of a site of the small run.
pub fn shape(site: Site) -> Vec<usize> {
    let tokens = STEPS[site.step as usize].len();
    let positions = STEPS[..=site.step as usize].iter().map(|tokens| tokens.len()).sum();
    config().shape(site.stage, tokens, positions)
}

/// Every site of the small run with a random tensor, in canonical order.
pub fn tensors(seed: u64) -> Vec<(Site, Tensor)> {
    let mut random = Random(seed);
    config().sites(3).into_iter().map(|site| (site, random.tensor(shape(site)))).collect()
}

/// Records the small run.
pub fn record(folder: &Path, tensors: &[(Site, Tensor)]) -> Result<(), TraceError> {
    let mut writer = TraceWriter::create(folder, manifest(), false)?;
    let mut position = 0;
    for (step, tokens) in STEPS.into_iter().enumerate() {
        writer.begin_step(tokens, position)?;
        for (site, tensor) in tensors.iter().filter(|(site, _)| site.step as usize == step) {
            writer.put(*site, tensor)?;
        }
        writer.end_step()?;
        position += tokens.len();
    }
    writer.finish()
}

/// A recorded small run in a folder that goes away with it.
pub struct Recorded {
    /// The folder that the trace and its temporary sibling lie in.
    pub parent: tempfile::TempDir,
    pub folder: PathBuf,
}

impl Recorded {
    pub fn new() -> Recorded {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("trace");
        record(&folder, &tensors(1)).unwrap();
        Recorded { parent, folder }
    }

    /// The small run as a writer without hashes leaves it: a run's name in every file instead.
    pub fn unhashed() -> Recorded {
        let recorded = Recorded::new();
        for step in 0..3 {
            let bytes = fs::read(recorded.step(step)).unwrap();
            recorded.replace_step(step, &named(&bytes, "run-1", step));
        }
        recorded.edit_manifest(|manifest| {
            manifest["run"] = "run-1".into();
            for step in manifest["steps"].as_array_mut().unwrap() {
                step.as_object_mut().unwrap().remove("blake3");
            }
        });
        fs::remove_file(recorded.folder.join(CHECKSUM_FILE)).unwrap();
        recorded
    }

    pub fn step(&self, step: usize) -> PathBuf {
        self.folder.join(step_file(step))
    }

    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.folder.join(MANIFEST_FILE), self.folder.join(CHECKSUM_FILE)];
        files.extend((0..3).map(|step| self.step(step)));
        files
    }

    /// The error that opening it gives, which must be a refusal.
    pub fn refusal(&self) -> TraceError {
        let error = TraceReader::open(&self.folder).expect_err("a damaged trace was opened");
        assert!(error.is_refusal(), "{error}");
        error
    }

    /// Changes the manifest as one whose writer is wrong, not the disk: its hash fits.
    pub fn edit_manifest(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.folder.join(MANIFEST_FILE);
        let mut manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut manifest);
        fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
        self.seal();
    }

    /// Replaces a step file as one whose writer is wrong, not the disk: its length and hash fit.
    pub fn replace_step(&self, step: usize, bytes: &[u8]) {
        fs::write(self.step(step), bytes).unwrap();
        self.edit_manifest(|manifest| {
            manifest["steps"][step]["bytes"] = bytes.len().into();
            manifest["steps"][step]["blake3"] = blake3::hash(bytes).to_string().into();
        });
    }

    /// Replaces a step file by one with that header and data, and the manifest's count of tensors.
    pub fn replace_header(&self, step: usize, header: &str, data: &[u8]) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        self.replace_step(step, &bytes);
        self.edit_manifest(|manifest| manifest["steps"][step]["sites"] = 1.into());
    }

    /// Makes the manifest's hash fit it.
    pub fn seal(&self) {
        let json = fs::read(self.folder.join(MANIFEST_FILE)).unwrap();
        let line = format!("{}  {MANIFEST_FILE}\n", blake3::hash(&json));
        fs::write(self.folder.join(CHECKSUM_FILE), line).unwrap();
    }
}

/// A step file that says which run and step it is of.
pub fn named(file: &[u8], run: &str, step: usize) -> Vec<u8> {
    let length = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&file[8..length]).unwrap();
    header["__metadata__"] = json!({ "run": run, "step": step.to_string() });
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &file[length..]].concat()
}

/// The entry of a name among the sites of a manifest.
pub fn group<'a>(manifest: &'a mut Value, name: &str) -> &'a mut Value {
    let groups = manifest["model"]["sites"].as_array_mut().unwrap();
    groups.iter_mut().find(|group| group["name"] == name).unwrap()
}

/// Its shape.
pub fn shape_of<'a>(manifest: &'a mut Value, name: &str) -> &'a mut Value {
    &mut group(manifest, name)["shape"]
}

/// Names of all that lies in a folder.
pub fn listing(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
