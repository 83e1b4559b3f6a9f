//! Reads a trace, and trusts nothing in it before its hash and its shape are checked.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    error::{Limit, TraceError},
    header::{ByteOrder, Place, StepFile, open_file, read_bytes},
    layout::Layout,
    manifest::{CHECKSUM_FILE, MANIFEST_FILE, Manifest, UNFINISHED_FILE, within},
};
use crate::{
    capture::{Choice, Sink, Stopped},
    site::{Site, Stage},
    tensor::Tensor,
};

/// A trace whose every file has been checked; tensors are read one at a time.
#[derive(Debug)]
pub struct TraceReader {
    folder: PathBuf,
    manifest: Manifest,
    places: BTreeMap<Site, Place>,
}

impl TraceReader {
    /// Opens the trace in a folder and checks the manifest, the hash of every file, and the name,
    /// type and shape of every tensor.
    ///
    /// # Errors
    /// [`TraceError::kind`] is `BadInput` where there is no trace or it cannot be read, and
    /// `Refused` where one is there that cannot be trusted.
    pub fn open(folder: &Path) -> Result<TraceReader, TraceError> {
        let manifest = read_manifest(folder)?;
        let layout = Layout::new(&folder.join(MANIFEST_FILE), &manifest.model)?;
        let mut places = BTreeMap::new();
        for (index, step) in manifest.steps.iter().enumerate() {
            let (path, run) = (folder.join(&step.file), manifest.run.as_deref());
            places.extend(StepFile { path, index, step, run, layout: &layout }.places()?);
        }
        Ok(TraceReader { folder: folder.into(), manifest, places })
    }

    /// What the trace says about the run.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Every site that the model has in the recorded steps, in canonical order.
    pub fn model_sites(&self) -> Result<Vec<Site>, TraceError> {
        let of_step = Layout::new(&self.folder, &self.manifest.model)?.sites();
        let steps = 0..self.manifest.steps.len() as u32;
        Ok(steps.flat_map(|step| of_step.iter().map(move |&site| Site { step, ..site })).collect())
    }

    /// The recorded sites in canonical order.
    pub fn sites(&self) -> impl Iterator<Item = Site> + '_ {
        self.places.keys().copied()
    }

    /// The shape of a site of the model in a recorded step.
    pub fn shape(&self, site: Site) -> Result<Vec<usize>, TraceError> {
        let step = &self.manifest.steps[site.step as usize];
        let layout = Layout::new(&self.folder, &self.manifest.model)?;
        layout.shape(&self.folder, site, step.tokens.len(), step.positions())
    }

    /// Whether the site was recorded.
    pub fn has(&self, site: Site) -> bool {
        self.places.contains_key(&site)
    }

    /// What the side would have decoded after a step: as recorded, or else by its logits.
    pub fn choice(&self, step: usize) -> Result<Option<Choice>, TraceError> {
        let entry = &self.manifest.steps[step];
        if entry.choice.is_some() {
            return Ok(entry.choice);
        }
        let logits = self.tensor(Site::global(step as u32, Stage::Logits))?;
        let last = self.manifest.model.shapes.n_vocab;
        Ok(logits.and_then(|logits| Choice::of(&logits.data[logits.data.len() - last..])))
    }

    /// Reads the tensor of a site as f32, or `None` if it was not recorded.
    ///
    /// f16 and bf16 are widened exactly; f64 is rounded to nearest, beyond the range to infinity.
    pub fn tensor(&self, site: Site) -> Result<Option<Tensor>, TraceError> {
        self.read(site, ByteOrder::Own)
    }

    /// The same with the bytes of every element swapped: what a big-endian writer meant.
    pub fn byte_swapped(&self, site: Site) -> Result<Option<Tensor>, TraceError> {
        self.read(site, ByteOrder::Swapped)
    }

    /// The file that a step of the trace lies in.
    pub fn path(&self, step: u32) -> PathBuf {
        self.folder.join(&self.manifest.steps[step as usize].file)
    }

    fn read(&self, site: Site, order: ByteOrder) -> Result<Option<Tensor>, TraceError> {
        let Some(place) = self.places.get(&site) else { return Ok(None) };
        let path = self.path(site.step);
        let data = File::open(&path)
            .and_then(|file| place.read(file, order))
            .map_err(TraceError::io("read", path))?;
        Ok(Some(Tensor::new(place.shape.clone(), data)))
    }
}

/// Feeds a recorded run into a sink in canonical order, as a live side would.
pub fn feed(reader: &TraceReader, sink: &mut dyn Sink) -> Result<(), TraceError> {
    for site in reader.sites() {
        if !sink.wants(site) {
            continue;
        }
        let Some(tensor) = reader.tensor(site)? else { continue };
        // A receiver that has seen enough is no error of this side.
        if let Err(Stopped) = sink.put(site, tensor) {
            break;
        }
    }
    Ok(())
}

/// Reads and checks the manifest of a folder.
pub(super) fn read_manifest(folder: &Path) -> Result<Manifest, TraceError> {
    check_folder(folder)?;
    let path = folder.join(MANIFEST_FILE);
    let json = read_json(&path).map_err(|error| match error {
        TraceError::MissingFile { .. } if folder.join(UNFINISHED_FILE).exists() => {
            TraceError::Unfinished { path: folder.into() }
        }
        TraceError::MissingFile { .. } => TraceError::NotATrace { path: folder.into() },
        error => error,
    })?;
    // The version first: another version may have another checksum.
    let manifest = Manifest::parse(&path, &json)?;
    check_manifest_hash(folder, &path, &json, manifest.run.is_none())?;
    manifest.check(&path)?;
    Ok(manifest)
}

/// Says why a path is no folder.
fn check_folder(folder: &Path) -> Result<(), TraceError> {
    match fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(TraceError::NotATrace { path: folder.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(TraceError::Missing { path: folder.into() })
        }
        Err(error) => Err(TraceError::io("read", folder)(error)),
    }
}

/// Reads a manifest's bytes.
pub(super) fn read_json(path: &Path) -> Result<Vec<u8>, TraceError> {
    let (file, bytes) = open_file(path)?;
    within(path, Limit::ManifestBytes, bytes)?;
    read_bytes(file, bytes).map_err(TraceError::io("read", path))
}

/// Checks the manifest's hash. Without `required` there may be none.
fn check_manifest_hash(
    folder: &Path,
    path: &Path,
    json: &[u8],
    required: bool,
) -> Result<(), TraceError> {
    let checksum = folder.join(CHECKSUM_FILE);
    let (file, bytes) = match open_file(&checksum) {
        Err(TraceError::MissingFile { .. }) if !required => return Ok(()),
        opened => opened?,
    };
    let found = blake3::hash(json).to_string();
    let line = format!("{found}  {MANIFEST_FILE}\n");
    // No more than the line and a byte, however long the file is.
    let stated = read_bytes(file, bytes.min(line.len() as u64 + 1))
        .map_err(TraceError::io("read", checksum))?;
    if stated != line.as_bytes() {
        let stated = String::from_utf8_lossy(&stated);
        let expected = stated.split_whitespace().next().unwrap_or("nothing").to_string();
        return Err(TraceError::Checksum { path: path.into(), expected, found });
    }
    Ok(())
}
