//! Reads a trace, and trusts nothing in it before its hash and its shape are checked.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};

use super::{
    error::{Limit, TraceError},
    layout::Layout,
    manifest::{CHECKSUM_FILE, MANIFEST_FILE, Manifest, Step, within},
};
use crate::{
    capture::{Sink, Stopped},
    site::Site,
    tensor::Tensor,
};

/// Elements read at a time.
const CHUNK: usize = 16 * 1024;

/// A trace whose every file has been checked; tensors are read one at a time.
#[derive(Debug)]
pub struct TraceReader {
    folder: PathBuf,
    manifest: Manifest,
    places: BTreeMap<Site, Place>,
}

/// Where a tensor lies in its step's file.
#[derive(Clone, Debug)]
struct Place {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes from the start of the file.
    offset: u64,
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
            let file = StepFile { path: folder.join(&step.file), index, step, layout: &layout };
            places.extend(file.places()?);
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

    /// Whether the site was recorded.
    pub fn has(&self, site: Site) -> bool {
        self.places.contains_key(&site)
    }

    /// Reads the tensor of a site as f32, or `None` if it was not recorded.
    ///
    /// f16 and bf16 are widened exactly; f64 is rounded to nearest, beyond the range to infinity.
    pub fn tensor(&self, site: Site) -> Result<Option<Tensor>, TraceError> {
        let Some(place) = self.places.get(&site) else { return Ok(None) };
        let path = self.folder.join(&self.manifest.steps[site.step as usize].file);
        let data = File::open(&path)
            .and_then(|file| place.read(file))
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

impl Place {
    fn read(&self, mut file: File) -> io::Result<Vec<f32>> {
        let size = element_size(self.dtype).expect("checked when the trace was opened");
        let elements: usize = self.shape.iter().product();
        let mut data = Vec::with_capacity(elements);
        let mut bytes = vec![0; size * CHUNK.min(elements)];
        file.seek(SeekFrom::Start(self.offset))?;
        while data.len() < elements {
            let bytes = &mut bytes[..size * CHUNK.min(elements - data.len())];
            file.read_exact(bytes)?;
            data.extend(bytes.chunks_exact(size).map(|bytes| to_f32(self.dtype, bytes)));
        }
        Ok(data)
    }
}

/// Bytes of an element of a supported type.
fn element_size(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F16 | Dtype::BF16 => Some(2),
        Dtype::F32 => Some(4),
        Dtype::F64 => Some(8),
        _ => None,
    }
}

/// One little-endian element of a supported type.
fn to_f32(dtype: Dtype, bytes: &[u8]) -> f32 {
    fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.try_into().expect("as many bytes as the type has")
    }
    match dtype {
        Dtype::F16 => f16::from_le_bytes(array(bytes)).to_f32(),
        Dtype::BF16 => bf16::from_le_bytes(array(bytes)).to_f32(),
        Dtype::F64 => f64::from_le_bytes(array(bytes)) as f32,
        _ => f32::from_le_bytes(array(bytes)),
    }
}

/// Reads and checks the manifest of a folder.
fn read_manifest(folder: &Path) -> Result<Manifest, TraceError> {
    match fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(TraceError::NotATrace { path: folder.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(TraceError::Missing { path: folder.into() });
        }
        Err(error) => return Err(TraceError::io("read", folder)(error)),
    }
    let path = folder.join(MANIFEST_FILE);
    let (file, bytes) = open_file(&path).map_err(|error| match error {
        TraceError::MissingFile { .. } => TraceError::NotATrace { path: folder.into() },
        error => error,
    })?;
    within(&path, Limit::ManifestBytes, bytes)?;
    let json = read_bytes(file, bytes).map_err(TraceError::io("read", &path))?;
    // The version first: another version may have another checksum.
    let manifest = Manifest::parse(&path, &json)?;
    check_manifest_hash(folder, &path, &json)?;
    manifest.check(&path)?;
    Ok(manifest)
}

fn check_manifest_hash(folder: &Path, path: &Path, json: &[u8]) -> Result<(), TraceError> {
    let checksum = folder.join(CHECKSUM_FILE);
    let (file, bytes) = open_file(&checksum)?;
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

/// Opens a regular file and tells its length. A pipe or device would block, so it is refused.
fn open_file(path: &Path) -> Result<(File, u64), TraceError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {
            let file = File::open(path).map_err(TraceError::io("read", path))?;
            Ok((file, metadata.len()))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(TraceError::io("read", path)(error))
        }
        _ => Err(TraceError::MissingFile { path: path.into() }),
    }
}

/// Reads exactly that many bytes.
fn read_bytes(mut file: impl Read, bytes: u64) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes as usize];
    file.read_exact(&mut buffer)?;
    Ok(buffer)
}

/// A step's file and what it must agree with.
struct StepFile<'a> {
    path: PathBuf,
    index: usize,
    step: &'a Step,
    layout: &'a Layout,
}

impl StepFile<'_> {
    /// Checks length, hash and header, and says where each tensor lies.
    fn places(&self) -> Result<Vec<(Site, Place)>, TraceError> {
        let (mut file, found) = open_file(&self.path)?;
        if found != self.step.bytes {
            let (path, expected) = (self.path.clone(), self.step.bytes);
            return Err(TraceError::Length { path, expected, found });
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&file).map_err(TraceError::io("read", &self.path))?;
        let found = hasher.finalize().to_string();
        if found != self.step.blake3 {
            let (path, expected) = (self.path.clone(), self.step.blake3.clone());
            return Err(TraceError::Checksum { path, expected, found });
        }
        file.rewind().map_err(TraceError::io("read", &self.path))?;
        let (data, metadata) = self.header(file)?;
        let names = metadata.offset_keys();
        if names.len() != self.step.sites {
            let (found, expected) = (names.len(), self.step.sites);
            return self.invalid(format!("it has {found} tensors, the manifest says {expected}"));
        }
        // In the order of the file, so that of several errors always the same one is reported.
        let place = |name: String| {
            let info = metadata.info(&name).expect("a name of this header");
            self.place(data, name.clone(), info)
        };
        names.into_iter().map(place).collect()
    }

    /// The start of the data and the header, which the safetensors crate has checked: tensors
    /// follow one another without gap or overlap, each as long as its shape says. Only the header
    /// is read, so that opening needs no memory for the data and no memory map.
    fn header(&self, mut file: File) -> Result<(u64, Metadata), TraceError> {
        let length = read_bytes(&mut file, 8).or_else(|error| self.invalid(error.to_string()))?;
        let length = u64::from_le_bytes(length.try_into().expect("8 bytes were read"));
        within(&self.path, Limit::HeaderBytes, length)?;
        let header =
            read_bytes(&mut file, length).or_else(|error| self.invalid(error.to_string()))?;
        let metadata: Metadata =
            serde_json::from_slice(&header).or_else(|error| self.invalid(error.to_string()))?;
        let data = 8 + length;
        let end = data.saturating_add(metadata.data_len() as u64);
        if end != self.step.bytes {
            return self.invalid(format!("its tensors end at byte {end} of {}", self.step.bytes));
        }
        Ok((data, metadata))
    }

    fn place(
        &self,
        data: u64,
        name: String,
        info: &TensorInfo,
    ) -> Result<(Site, Place), TraceError> {
        let path = self.path.clone();
        let site = Site::from_tensor_name(self.index as u32, &name);
        let Some(site) = site.filter(|&site| self.layout.has(site)) else {
            return Err(TraceError::UnknownTensor { path, name });
        };
        let (tokens, positions) = (self.step.tokens.len(), self.step.positions());
        let expected = self.layout.shape(&path, site, tokens, positions)?;
        if info.shape != expected {
            return Err(TraceError::TensorShape {
                path,
                name,
                expected,
                found: info.shape.clone(),
            });
        }
        if element_size(info.dtype).is_none() {
            return Err(TraceError::TensorType { path, name, found: info.dtype.to_string() });
        }
        let offset = data + info.data_offsets.0 as u64;
        Ok((site, Place { dtype: info.dtype, shape: expected, offset }))
    }

    fn invalid<T>(&self, reason: String) -> Result<T, TraceError> {
        Err(TraceError::SafeTensors { path: self.path.clone(), reason })
    }
}
