//! A step's file: is it what the manifest says, and where in it does each tensor lie?

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use half::{bf16, f16};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};

use super::{
    array::{Stored, block_types},
    error::{Limit, TraceError},
    fits::fits,
    layout::Layout,
    manifest::{Step, within},
    shard::{Shard, Split},
};
use crate::{
    core::{
        files,
        format::{Format, StoredBlock},
    },
    graph::{
        ListedSite,
        site::{Axis, Site, Stage},
    },
    model::gguf::Packing,
};

/// Elements read at a time.
const CHUNK: usize = 16 * 1024;

/// How the bytes of an element follow one another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteOrder {
    /// Little-endian, as the format has it.
    Own,
    Swapped,
}

/// Where a tensor lies in its step's file.
#[derive(Clone, Debug)]
pub(super) struct Place {
    stored: Stored,
    pub shape: Vec<usize>,
    /// The token of each row, where not every token of the step has one.
    pub rows: Option<Arc<[usize]>>,
    /// Bytes from the start of the file.
    offset: u64,
}

impl Place {
    /// Reads the tensor from the step's file as f32, the bytes of each element in the order given.
    pub fn read(&self, mut file: File, order: ByteOrder) -> io::Result<Vec<f32>> {
        file.seek(SeekFrom::Start(self.offset))?;
        match self.stored {
            Stored::Numbers(dtype) => self.numbers(file, dtype, order),
            Stored::Blocks(format, block) => self.blocks(file, format, block),
        }
    }

    fn numbers(&self, mut file: File, dtype: Dtype, order: ByteOrder) -> io::Result<Vec<f32>> {
        let size = element_size(dtype).expect("checked when the trace was opened");
        let elements: usize = self.shape.iter().product();
        if dtype == Dtype::F32 && order == ByteOrder::Own && cfg!(target_endian = "little") {
            let mut data = vec![0f32; elements];
            file.read_exact(bytemuck::cast_slice_mut(&mut data))?;
            return Ok(data);
        }
        let mut data = Vec::with_capacity(elements);
        let mut bytes = vec![0; size * CHUNK.min(elements)];
        while data.len() < elements {
            let bytes = &mut bytes[..size * CHUNK.min(elements - data.len())];
            file.read_exact(bytes)?;
            if order == ByteOrder::Swapped {
                bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
            }
            data.extend(bytes.chunks_exact(size).map(|bytes| to_f32(dtype, bytes)));
        }
        Ok(data)
    }

    /// The numbers that blocks stand for, as ggml has them.
    fn blocks(&self, mut file: File, format: Format, block: StoredBlock) -> io::Result<Vec<f32>> {
        let blocks: usize = self.shape.iter().product::<usize>() / block.elements;
        let mut bytes = vec![0; blocks * block.bytes];
        file.read_exact(&mut bytes)?;
        let mut data = vec![0.0; blocks * block.elements];
        let both = bytes.chunks_exact(block.bytes).zip(data.chunks_exact_mut(block.elements));
        match Packing::of_format(format) {
            Some(packing) => {
                let layout = packing.layout();
                both.for_each(|(bytes, out)| layout.decode(bytes, &packing.scales(bytes), out));
            }
            None => both.for_each(|(bytes, out)| out[0] = format.of_byte(bytes[0])),
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

/// Opens a file and tells its length.
pub(super) fn open_file(path: &Path) -> Result<(File, u64), TraceError> {
    match files::open_any(path).and_then(|file| Ok((file.metadata()?.len(), file))) {
        Ok((length, file)) => Ok((file, length)),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) =>
        {
            Err(TraceError::MissingFile { path: path.into() })
        }
        Err(error) => Err(TraceError::io("read", path)(error)),
    }
}

/// Reads exactly that many bytes.
pub(super) fn read_bytes(mut file: impl Read, bytes: u64) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes as usize];
    file.read_exact(&mut buffer)?;
    Ok(buffer)
}

/// A step's file and what it must agree with.
pub(super) struct StepFile<'a> {
    pub path: PathBuf,
    pub index: usize,
    pub step: &'a Step,
    /// The manifest's, which the file must repeat.
    pub run: Option<&'a str>,
    /// The rank whose parts the file has.
    pub shard: Option<&'a Shard>,
    pub layout: &'a Layout,
}

impl StepFile<'_> {
    /// Checks length, hash and header, and says where each tensor lies.
    pub fn places(&self) -> Result<Vec<(Site, Place)>, TraceError> {
        let (mut file, found) = open_file(&self.path)?;
        if found != self.step.bytes {
            let (path, expected) = (self.path.clone(), self.step.bytes);
            return Err(TraceError::Length { path, expected, found });
        }
        if files::is_hollow(&file).map_err(TraceError::io("read", &self.path))? {
            return self.invalid("nothing is stored of nearly all of its bytes".into());
        }
        if let Some(expected) = &self.step.blake3 {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(&file).map_err(TraceError::io("read", &self.path))?;
            let found = hasher.finalize().to_string();
            if found != *expected {
                let (path, expected) = (self.path.clone(), expected.clone());
                return Err(TraceError::Checksum { path, expected, found });
            }
            file.rewind().map_err(TraceError::io("read", &self.path))?;
        }
        let (data, metadata) = self.header(file)?;
        self.check_run(&metadata)?;
        let names = metadata.offset_keys();
        if names.len() != self.step.sites {
            let (found, expected) = (names.len(), self.step.sites);
            return self.invalid(format!("it has {found} tensors, the manifest says {expected}"));
        }
        let is_absent = |name: &&String| metadata.info(name).is_none();
        if let Some(name) = self.step.rows.keys().find(is_absent) {
            return self.invalid(format!("it has no {name}, for which the manifest names rows"));
        }
        if let Some(name) = self.step.quantised.keys().find(is_absent) {
            return self
                .invalid(format!("it has no {name}, for which the manifest names the type"));
        }
        // In the order of the file, so that of several errors always the same one is reported.
        let place = |name: String| {
            let info = metadata.info(&name).expect("a name of this header");
            self.place(data, name.clone(), info)
        };
        names.into_iter().map(place).collect()
    }

    /// Refuses a file of another run, or of another step of this one.
    fn check_run(&self, metadata: &Metadata) -> Result<(), TraceError> {
        let Some(run) = self.run else { return Ok(()) };
        let stated = |key: &str| {
            let value = metadata.metadata().as_ref().and_then(|entries| entries.get(key));
            value.map_or("unstated", String::as_str)
        };
        let found = format!("step {} of run {}", stated("step"), stated("run"));
        let expected = format!("step {} of run {run}", self.index);
        if found != expected {
            return Err(TraceError::OtherRun { path: self.path.clone(), expected, found });
        }
        Ok(())
    }

    /// The start of the data and the header, which the safetensors crate has checked: tensors
    /// follow one another without gap or overlap, each as long as its shape says. Only the header
    /// is read, so that opening needs no memory for the data and no memory map.
    fn header(&self, mut file: File) -> Result<(u64, Metadata), TraceError> {
        let length = read_bytes(&mut file, 8).or_else(|error| self.invalid(error.to_string()))?;
        let length = u64::from_le_bytes(length.try_into().expect("8 bytes were read"));
        if length > self.step.bytes && length.swap_bytes() < self.step.bytes {
            let reason = "its header's length is big-endian, the format is little-endian";
            return self.invalid(reason.into());
        }
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
        let mut expected = self.layout.shape(&path, site, self.step.into())?;
        let listed = self.layout.list().get(site);
        let (stored, found) = self.stored(listed, &name, info)?;
        let rows = self.rows(site, listed, &name, &found)?;
        if let Some(rows) = &rows {
            expected[0] = rows.len();
        }
        let is_part =
            |shard: &Shard| listed.is_some_and(|listed| shard.is_part(listed, &found, &expected));
        if !self.shard.map_or(found == expected, is_part) {
            let split = self.shard.map_or(Split::Replicated, |shard| shard.of(site.stage));
            let fits = match split.axis() {
                Some(_) => format!(" which is not a rank's shard by {split}"),
                None => fits(site, &found, &expected, self.layout.list()),
            };
            let fits = fits.into();
            return Err(TraceError::TensorShape { path, name, expected, found, fits });
        }
        let offset = data + info.data_offsets.0 as u64;
        Ok((site, Place { stored, shape: found, rows, offset }))
    }

    /// How a tensor's elements lie in the file, and its shape in elements.
    fn stored(
        &self,
        listed: Option<&ListedSite>,
        name: &str,
        info: &TensorInfo,
    ) -> Result<(Stored, Vec<usize>), TraceError> {
        let Some(&format) = self.step.quantised.get(name) else {
            if element_size(info.dtype).is_none() {
                let (path, name) = (self.path.clone(), name.to_string());
                return Err(TraceError::TensorType { path, name, found: info.dtype.to_string() });
            }
            return Ok((Stored::Numbers(info.dtype), info.shape.clone()));
        };
        let Some(block) = format.stored_block() else {
            return self.invalid(format!("{name} is {format}; {}", block_types()));
        };
        let is_cache = listed.is_some_and(|listed| listed.axes[0] == Axis::Position);
        if !is_cache || info.dtype != Dtype::U8 {
            let found = info.dtype;
            return self.invalid(format!(
                "{name} is declared as blocks of {format} but has the type {found}; cache blocks are U8"
            ));
        }
        let mut shape = info.shape.clone();
        let Some(last) = shape.last_mut().filter(|last| last.is_multiple_of(block.bytes)) else {
            let (found, bytes) = (&info.shape, block.bytes);
            return self.invalid(format!(
                "{name} has the shape {found:?} in bytes, but its rows are not whole blocks of {format}, of {bytes}"
            ));
        };
        *last = *last / block.bytes * block.elements;
        Ok((Stored::Blocks(format, block), shape))
    }

    /// Which tokens the rows of a tensor are of, where it has not all: those that the manifest names, and of
    /// logits with one row the last one.
    fn rows(
        &self,
        site: Site,
        listed: Option<&ListedSite>,
        name: &str,
        found: &[usize],
    ) -> Result<Option<Arc<[usize]>>, TraceError> {
        let tokens = self.step.tokens.len();
        let has_tokens = listed.is_some_and(ListedSite::has_row_of_each_token);
        if let Some(rows) = self.step.rows.get(name) {
            if !has_tokens {
                return self.invalid(format!(
                    "{name} does not have a row for each token: remove its rows"
                ));
            }
            return Ok((rows.len() < tokens).then(|| Arc::from(&rows[..])));
        }
        let is_last = has_tokens
            && site.stage == Stage::Logits
            && self.step.batch.is_none()
            && found.first() == Some(&1);
        Ok((is_last && tokens > 1).then(|| Arc::from([tokens - 1])))
    }

    fn invalid<T>(&self, reason: String) -> Result<T, TraceError> {
        Err(TraceError::SafeTensors { path: self.path.clone(), reason })
    }
}
