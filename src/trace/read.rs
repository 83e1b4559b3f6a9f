//! Reads a trace, and trusts nothing in it before its hash and its shape are checked.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    error::{Limit, TraceError},
    graph_files,
    header::{ByteOrder, StepFile, open_file, read_bytes},
    layout::Layout,
    loaded,
    manifest::{CHECKSUM_FILE, MANIFEST_FILE, Manifest, UNFINISHED_FILE, within},
    ranks::{Part, folders, join},
    sequence::Selection,
    shard::Split,
    stitch::{Whole, stitch},
};
use crate::{
    core::{
        loaded::LoadedWeight,
        sink::{Choice, Sink, Stopped},
        tensor::Tensor,
    },
    graph::{
        ModelGraph, SequenceInputs, SiteList,
        site::{Site, Stage},
    },
};

/// A trace whose every file has been checked; tensors are read one at a time. Those of several
/// ranks are read as one.
#[derive(Clone, Debug)]
pub struct TraceReader {
    folder: PathBuf,
    manifest: Manifest,
    parts: Vec<Part>,
    layout: Layout,
    sites: BTreeMap<Site, Whole>,
    /// The part of another trace that this is.
    pub(in crate::trace) selection: Option<Box<Selection>>,
}

impl TraceReader {
    /// Opens the trace in a folder, or that of the ranks in its folders, and checks the manifest,
    /// the hash of every file, and the name, type and shape of every tensor.
    ///
    /// # Errors
    /// [`TraceError::kind`] is `BadInput` where there is no trace or it cannot be read, and
    /// `Refused` where one is there that cannot be trusted, or ranks that are not of one run.
    pub fn open(folder: &Path) -> Result<TraceReader, TraceError> {
        let part = |folder: PathBuf| Ok(Part { manifest: read_manifest(&folder)?, folder });
        let mut parts = folders(folder)?.into_iter().map(part).collect::<Result<Vec<_>, _>>()?;
        let manifest = join(folder, &mut parts)?;
        let layout = Layout::new(&folder.join(MANIFEST_FILE), &manifest.model)?;
        let places = |part: &Part| {
            let of_steps = part.step_files(&layout).map(|file| file.places());
            Ok(of_steps.collect::<Result<Vec<_>, _>>()?.concat())
        };
        let places = parts.iter().map(places).collect::<Result<Vec<_>, TraceError>>()?;
        parts.iter().try_for_each(|part| loaded::check(&part.folder, &part.manifest))?;
        let sites = stitch(folder, &manifest, &layout, &parts, places);
        let sites = sites.into_iter().collect::<Result<_, _>>()?;
        let folder = folder.into();
        Ok(TraceReader { folder, manifest, parts, layout, sites, selection: None })
    }

    /// The reader of a part of a trace, whose steps are those of the manifest.
    pub(super) fn of_selection(
        manifest: Manifest,
        selection: Selection,
    ) -> Result<TraceReader, TraceError> {
        let of = &selection.whole;
        let (folder, parts) = (of.folder.clone(), of.parts.clone());
        let mut own = TraceReader {
            folder,
            manifest,
            parts,
            layout: of.layout.clone(),
            sites: BTreeMap::new(),
            selection: None,
        };
        for (&site, whole) in &of.sites {
            let Some(step) = selection.own_step(site.step) else { continue };
            let site = Site { step, ..site };
            if let Some(mut whole) = selection.of_site(site, whole) {
                whole.shape = own.shape(site)?;
                if let Some(rows) = &whole.rows {
                    whole.shape[0] = rows.len();
                }
                own.sites.insert(site, whole);
            }
        }
        own.selection = Some(Box::new(selection));
        Ok(own)
    }

    /// What the trace says about the run.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The sites of the model.
    pub fn list(&self) -> &SiteList {
        self.layout.list()
    }

    /// Every site that the model has in the recorded steps, in the order of its graph.
    pub fn model_sites(&self) -> Vec<Site> {
        self.list().of_run(self.manifest.steps.len() as u32)
    }

    /// The folder that was opened.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The tokens of all steps after the prompt.
    pub fn forced(&self) -> Vec<i32> {
        self.manifest.steps[1..].iter().flat_map(|step| step.tokens.iter().copied()).collect()
    }

    /// The recorded sites in the order of the graph.
    pub fn sites(&self) -> impl Iterator<Item = Site> + '_ {
        let steps = 0..self.manifest.steps.len() as u32;
        let all = steps.flat_map(|step| self.list().sites().iter().map(move |s| s.site(step)));
        all.filter(|&site| self.has(site))
    }

    /// The shape of a site of the model in a recorded step.
    pub fn shape(&self, site: Site) -> Result<Vec<usize>, TraceError> {
        let step = &self.manifest.steps[site.step as usize];
        self.layout.shape(&self.folder, site, step.into())
    }

    /// The model's graph, and the values of its inputs over all tokens of the run, where the trace has them.
    ///
    /// # Errors
    /// A file of it is missing or another one, or is of another model or run.
    pub fn graph(&self) -> Result<Option<(ModelGraph, SequenceInputs)>, TraceError> {
        let part = &self.parts[0];
        graph_files::read(&part.folder, &part.manifest, self.list())
    }

    /// The weights that were recorded, each with its rank where there are several.
    pub fn weights(&self) -> Result<Vec<(Option<usize>, LoadedWeight)>, TraceError> {
        let mut all = Vec::new();
        for (rank, part) in self.parts.iter().enumerate() {
            let rank = (self.parts.len() > 1).then_some(rank);
            all.extend(loaded::read(part)?.into_iter().map(|weight| (rank, weight)));
        }
        Ok(all)
    }

    /// Which tokens of the step the rows of a site are of; `None` where every token has one, or it was not
    /// recorded.
    pub fn rows(&self, site: Site) -> Option<&[usize]> {
        self.sites.get(&site)?.rows.as_deref()
    }

    /// The sites that have not a row for every token: how many they have, of how many.
    pub fn partly(&self) -> impl Iterator<Item = (Site, [usize; 2])> + '_ {
        let all = |site: Site| self.manifest.steps[site.step as usize].tokens.len();
        self.sites().filter_map(move |site| Some((site, [self.rows(site)?.len(), all(site)])))
    }

    /// Whether the site was recorded.
    pub fn has(&self, site: Site) -> bool {
        self.sites.contains_key(&site)
    }

    /// What the side would have decoded after a step: as recorded, or else by its logits.
    pub fn choice(&self, step: usize) -> Result<Option<Choice>, TraceError> {
        let entry = &self.manifest.steps[step];
        if entry.choice.is_some() {
            return Ok(entry.choice);
        }
        let site = Site::global(step as u32, Stage::Logits);
        if self.rows(site).is_some_and(|rows| rows.last() != Some(&(entry.tokens.len() - 1))) {
            return Ok(None);
        }
        let logits = self.tensor(site)?;
        Ok(logits.and_then(|logits| {
            let last = *logits.shape.last()?;
            Choice::of(&logits.data[logits.data.len() - last..])
        }))
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

    /// The file that a step of the trace lies in, or that of its first rank.
    pub fn path(&self, step: u32) -> PathBuf {
        match &self.selection {
            Some(selection) => selection.whole.path(selection.of_whole_step(step)),
            None => self.parts[0].path(step),
        }
    }

    /// How many ranks recorded it; 1 where it is not in parts.
    pub fn world(&self) -> usize {
        self.parts.len()
    }

    /// How the ranks' tensors of a stage make up the whole.
    pub fn split(&self, stage: Stage) -> Split {
        self.parts[0].manifest.shard.as_ref().map_or(Split::Replicated, |shard| shard.of(stage))
    }

    /// The ranks that recorded a site, in groups: those of a group have copies of the same part.
    pub fn copies(&self, site: Site) -> Vec<Vec<usize>> {
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for piece in self.sites.get(&site).into_iter().flat_map(|whole| &whole.pieces) {
            groups.entry(piece.start).or_default().push(piece.rank);
        }
        groups.into_values().collect()
    }

    /// Of partial sums, the sum of the ranks' magnitudes: rounding moves their sum by parts of that.
    pub fn magnitudes(&self, site: Site) -> Result<Option<Vec<f32>>, TraceError> {
        if self.world() == 1 || self.split(site.stage) != Split::Partial || !self.has(site) {
            return Ok(None);
        }
        let elements = |whole: &Whole| whole.shape.iter().product();
        let mut all = vec![0.0; self.sites.get(&site).map_or(0, elements)];
        for rank in 0..self.world() {
            let part = self.of_rank(site, rank)?.into_iter().flat_map(|part| part.data);
            all.iter_mut().zip(part).for_each(|(all, part)| *all += part.abs());
        }
        Ok(Some(all))
    }

    /// One rank's own tensor of a site, in its own shape.
    pub fn of_rank(&self, site: Site, rank: usize) -> Result<Option<Tensor>, TraceError> {
        if let Some(selection) = &self.selection {
            let part = selection.whole.of_rank(selection.of_whole(site), rank)?;
            return Ok(part.and_then(|part| selection.of_tensor(site, part)));
        }
        let pieces = self.sites.get(&site).into_iter().flat_map(|whole| &whole.pieces);
        let Some(piece) = pieces.into_iter().find(|piece| piece.rank == rank) else {
            return Ok(None);
        };
        let path = self.parts[rank].path(site.step);
        let data = File::open(&path).and_then(|file| piece.place.read(file, ByteOrder::Own));
        let data = data.map_err(TraceError::io("read", path))?;
        Ok(Some(Tensor::new(piece.place.shape.clone(), data)))
    }

    pub(super) fn read(&self, site: Site, order: ByteOrder) -> Result<Option<Tensor>, TraceError> {
        if let Some(selection) = self.selection.as_ref().filter(|_| self.has(site)) {
            return selection.read(site, order);
        }
        let Some(whole) = self.sites.get(&site) else { return Ok(None) };
        let open = |rank: usize| File::open(self.parts[rank].path(site.step));
        let read = whole.read(order, open);
        Ok(Some(read.map_err(TraceError::io("read", self.path(site.step)))?))
    }
}

impl Part {
    /// Its file of a step.
    fn path(&self, step: u32) -> PathBuf {
        self.folder.join(&self.manifest.steps[step as usize].file)
    }

    /// Its files, with what each must agree with.
    pub(super) fn step_files<'a>(
        &'a self,
        layout: &'a Layout,
    ) -> impl Iterator<Item = StepFile<'a>> {
        let (run, shard) = (self.manifest.run.as_deref(), self.manifest.shard.as_ref());
        self.manifest.steps.iter().enumerate().map(move |(index, step)| {
            let path = self.folder.join(&step.file);
            StepFile { path, index, step, run, shard, layout }
        })
    }
}

/// Feeds a recorded run into a sink in the order of the graph, as a live side would.
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
