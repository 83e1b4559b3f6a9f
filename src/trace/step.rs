//! Writes one step's safetensors file while its tensors arrive.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::PathBuf,
};

use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};

use super::{
    array::{Array, Rows, Stored},
    batch::Batch,
    error::TraceError,
    layout::{Layout, StepLengths},
    manifest::{Manifest, Step, step_file},
    removed::Removed,
    seal,
    shard::Shard,
};
use crate::{
    core::{format::Format, sink::Choice, tensor::Tensor},
    graph::{
        ListedSite,
        site::{Site, Stage},
    },
};

/// Elements converted to bytes at a time.
const CHUNK: usize = 16 * 1024;

/// A step whose tensors are being put.
///
/// A safetensors file begins with a header that is known only at the end. The writer leaves room
/// for the longest one and fills what is over with spaces, which JSON and every reader allow.
#[derive(Debug)]
pub(super) struct StepWriter {
    path: PathBuf,
    file: File,
    header_room: usize,
    index: usize,
    tokens: Vec<i32>,
    first_position: usize,
    /// The ids before the first step.
    prefix: Vec<i32>,
    /// What was removed from the caches before.
    removed: Option<Removed>,
    /// Whose the rows are, where there are several sequences.
    batch: Option<Batch>,
    /// The rank whose parts are put.
    shard: Option<Shard>,
    /// The name of the run, which the file repeats.
    run: Option<String>,
    tensors: Vec<(String, TensorInfo)>,
    seen: BTreeSet<Site>,
    /// Bytes of tensors written so far.
    data: usize,
    choice: Option<Choice>,
    /// Of tensors that have not a row for every token: the tokens of their rows.
    rows: BTreeMap<String, Vec<usize>>,
    /// Of caches that came in blocks: their type.
    quantised: BTreeMap<String, Format>,
    /// Tensors whose rows come one by one.
    stacked: BTreeMap<Site, Rows>,
    /// Caches that came with so few positions, and may yet come whole.
    missed: BTreeMap<Site, usize>,
}

impl StepWriter {
    pub fn create(
        path: PathBuf,
        index: usize,
        tokens: &[i32],
        first_position: usize,
        layout: &Layout,
        manifest: &Manifest,
    ) -> Result<StepWriter, TraceError> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true);
        let mut file = options.open(&path).map_err(TraceError::io("create", &path))?;
        let header_room = header_room(layout);
        let start = SeekFrom::Start(8 + header_room as u64);
        file.seek(start).map_err(TraceError::io("write", &path))?;
        Ok(StepWriter {
            path,
            file,
            header_room,
            index,
            tokens: tokens.to_vec(),
            first_position,
            prefix: Vec::new(),
            removed: None,
            batch: None,
            shard: manifest.shard.clone(),
            run: manifest.run.clone(),
            tensors: Vec::new(),
            seen: BTreeSet::new(),
            data: 0,
            choice: None,
            rows: BTreeMap::new(),
            quantised: BTreeMap::new(),
            stacked: BTreeMap::new(),
            missed: BTreeMap::new(),
        })
    }

    /// Says that the rows are of several sequences.
    pub fn with_batch(self, batch: Batch) -> StepWriter {
        StepWriter { batch: Some(batch), ..self }
    }

    /// Says which ids were in the cache before the first step.
    pub fn with_prefix(self, prefix: &[i32]) -> StepWriter {
        StepWriter { prefix: prefix.to_vec(), ..self }
    }

    /// Says which positions were removed before the step.
    pub fn with_removed(self, removed: Option<Removed>) -> StepWriter {
        StepWriter { removed, ..self }
    }

    pub fn set_choice(&mut self, choice: Choice) {
        self.choice = Some(choice);
    }

    /// Whether the site belongs to this step.
    pub fn takes(&self, layout: &Layout, site: Site) -> bool {
        site.step as usize == self.index && layout.has(site)
    }

    /// Appends a tensor to the file.
    pub fn put(&mut self, layout: &Layout, site: Site, tensor: &Tensor) -> Result<(), TraceError> {
        self.check_new(layout, site)?;
        let expected = self.shape(layout, site)?;
        let elements: usize = tensor.shape.iter().product();
        let listed = layout.list().get(site);
        let is_part = |shard: &Shard| {
            listed.is_some_and(|listed| shard.is_part(listed, &tensor.shape, &expected))
        };
        let fits = self.shard.as_ref().map_or(tensor.shape == expected, is_part);
        if !fits || tensor.data.len() != elements {
            return Err(TraceError::PutShape { site, expected, found: tensor.shape.clone() });
        }
        let mut bytes = Vec::with_capacity(4 * CHUNK);
        for chunk in tensor.data.chunks(CHUNK) {
            bytes.clear();
            bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
            self.file.write_all(&bytes).map_err(TraceError::io("write", &self.path))?;
        }
        self.list(site, Dtype::F32, tensor.shape.clone(), 4 * tensor.data.len());
        Ok(())
    }

    /// Appends an array of any type and layout, or keeps its rows until all are there.
    pub fn put_array(
        &mut self,
        layout: &Layout,
        site: Site,
        array: &Array<'_>,
    ) -> Result<(), TraceError> {
        if !self.stacked.contains_key(&site) {
            self.check_new(layout, site)?;
        }
        let expected = self.shape(layout, site)?;
        let listed = layout.list().get(site).expect("a site that the step takes");
        let cut = self.shard.as_ref().and_then(|shard| shard.of(site.stage).cut(&listed.axes));
        let wrong = |reason: String| TraceError::PutArray { site, reason };
        let rows = array.rows_of(listed, &expected, cut).map_err(wrong)?;
        let Some(rows) = rows else {
            // A cache that grows token by token: it is recorded when it is whole.
            self.seen.remove(&site);
            self.missed.insert(site, array.count());
            return Ok(());
        };
        self.missed.remove(&site);
        if let Some(tokens) = array.tokens {
            if self.stacked.contains_key(&site) {
                return Err(wrong("names the tokens of its rows after rows without tokens".into()));
            }
            if tokens.len() < expected[0] {
                self.rows.insert(site.tensor_name(), tokens.to_vec());
            }
            return self.write_rows(site, &rows);
        }
        let rows = match self.stacked.remove(&site) {
            Some(before) => before.then(rows).map_err(wrong)?,
            None => rows,
        };
        if cut == Some(0) || rows.count() == expected[0] {
            return self.write_rows(site, &rows);
        }
        if rows.count() > expected[0] {
            let (found, all) = (rows.count(), expected[0]);
            return Err(wrong(format!("has {found} rows in a step of {all}")));
        }
        self.stacked.insert(site, rows);
        Ok(())
    }

    /// Refuses a site that the step has not, or has already.
    fn check_new(&mut self, layout: &Layout, site: Site) -> Result<(), TraceError> {
        let misuse =
            |what| Err(TraceError::Misuse(format!("in step {}, {site} {what}", self.index)));
        if !self.takes(layout, site) {
            return misuse("was put, but that step of the model does not have it");
        }
        if !self.seen.insert(site) {
            return misuse("was put twice");
        }
        Ok(())
    }

    /// The shape of a site in this step.
    fn shape(&self, layout: &Layout, site: Site) -> Result<Vec<usize>, TraceError> {
        let tokens = self.tokens.len();
        let positions = self.first_position + tokens;
        let batch = self.batch.as_ref();
        layout.shape(&self.path, site, StepLengths { tokens, positions, batch })
    }

    fn write_rows(&mut self, site: Site, rows: &Rows) -> Result<(), TraceError> {
        self.file.write_all(&rows.bytes).map_err(TraceError::io("write", &self.path))?;
        if let Stored::Blocks(format, _) = rows.stored {
            self.quantised.insert(site.tensor_name(), format);
        }
        let (dtype, shape) = rows.stored.in_file(&rows.shape);
        self.list(site, dtype, shape, rows.bytes.len());
        Ok(())
    }

    /// Notes where a tensor lies that was written.
    fn list(&mut self, site: Site, dtype: Dtype, shape: Vec<usize>, bytes: usize) {
        let end = self.data + bytes;
        let info = TensorInfo { dtype, shape, data_offsets: (self.data, end) };
        self.tensors.push((site.tensor_name(), info));
        self.data = end;
    }

    /// Writes the header and hashes the file.
    pub fn close(mut self) -> Result<Step, TraceError> {
        if let Some((&site, found)) = self.missed.first_key_value() {
            let all = self.first_position + self.tokens.len();
            let reason = format!(
                "has {found} of {all} positions and was never completed: put it in one array, or leave it out"
            );
            return Err(TraceError::PutArray { site, reason });
        }
        for (site, rows) in std::mem::take(&mut self.stacked) {
            let (found, all) = (rows.count(), self.tokens.len());
            // Logits with one row are the last token's.
            if site.stage != Stage::Logits || found > 1 || self.batch.is_some() {
                let reason =
                    format!("has {found} of {all} rows: record them all, or say of which tokens");
                return Err(TraceError::PutArray { site, reason });
            }
            self.write_rows(site, &rows)?;
        }
        let sites = self.tensors.len();
        let entries =
            |run| [("run".to_string(), run), ("step".to_string(), self.index.to_string())];
        let run = self.run.map(|run| HashMap::from(entries(run)));
        let metadata = Metadata::new(run, self.tensors).expect("offsets follow one another");
        let mut header = serde_json::to_vec(&metadata).expect("names and numbers are JSON");
        assert!(header.len() <= self.header_room, "the room is counted for the longest header");
        header.resize(self.header_room, b' ');
        let blake3 = self
            .file
            .rewind()
            .and_then(|()| self.file.write_all(&(self.header_room as u64).to_le_bytes()))
            .and_then(|()| self.file.write_all(&header))
            .and_then(|()| self.file.rewind())
            .and_then(|()| seal::of_file(&self.file))
            .map_err(TraceError::io("write", &self.path))?;
        Ok(Step {
            file: step_file(self.index),
            bytes: (8 + self.header_room + self.data) as u64,
            blake3,
            sites,
            tokens: self.tokens,
            first_position: self.first_position,
            prefix: self.prefix,
            removed: self.removed,
            choice: self.choice,
            rows: self.rows,
            quantised: self.quantised,
            batch: self.batch,
        })
    }
}

/// Bytes that the header of a step with every site may take, a multiple of 8 as is customary.
fn header_room(layout: &Layout) -> usize {
    // `"":{"dtype":"F32","shape":[],"data_offsets":[,]},`, and numbers of up to 20 digits with commas.
    let entry =
        |site: &ListedSite| site.site(0).tensor_name().len() + 52 + (site.axes.len() + 2) * 21;
    let entries: usize = layout.list().sites().iter().map(entry).sum();
    // And the names of the run and the step.
    (256 + entries).next_multiple_of(8)
}
