//! What leaves the device: bytes in the engine's storage, which become the f32 of a site's tensor.

use std::{
    ops::Range,
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
};

use half::{f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use crate::{
    device::{DeviceError, Download},
    engine::EngineError,
    recycle,
    site::{Site, Stage},
    tensor::{DType, Tensor},
};

/// A site on its way to the sink.
pub enum UnderWay {
    Reading(Read),
    /// By another thread.
    Widening(Receiver<Result<(Site, Tensor), EngineError>>),
}

/// A site's values while they leave the device.
pub struct Read {
    pub site: Site,
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub head_dim: usize,
    /// One piece a KV head for a cache, else what follows one another.
    pub pieces: Vec<Box<dyn Download>>,
}

/// What a thread has sent, unless it ended before.
pub fn received(
    widened: Option<Result<(Site, Tensor), EngineError>>,
) -> Result<(Site, Tensor), EngineError> {
    widened.unwrap_or_else(|| {
        let text = "a thread that widens captures ended early; please report it";
        Err(DeviceError::Failed(text.to_string()).into())
    })
}

/// Parts of one read.
pub fn parts(
    whole: &Arc<dyn Download>,
    ranges: impl Iterator<Item = Range<usize>>,
) -> Vec<Box<dyn Download>> {
    let part = |bytes| Box::new(Part { whole: Arc::clone(whole), bytes }) as Box<dyn Download>;
    ranges.map(part).collect()
}

/// Some bytes of a read.
struct Part {
    whole: Arc<dyn Download>,
    bytes: Range<usize>,
}

impl Download for Part {
    fn is_ready(&self) -> bool {
        self.whole.is_ready()
    }

    fn bytes(&self) -> Result<&[u8], DeviceError> {
        Ok(&self.whole.bytes()?[self.bytes.clone()])
    }
}

impl Read {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Pieces arrive in their order.
    pub fn is_ready(&self) -> bool {
        self.pieces.last().is_none_or(|last| last.is_ready())
    }

    pub fn wait(&self) -> Result<(), EngineError> {
        let waited = self.pieces.last().map_or(Ok(()), |last| last.bytes().map(drop));
        Ok(waited.map_err(|error| at_site(error, self.site))?)
    }

    /// The values, once they are there, in f32 and in the stage's order; by all threads, if there are many
    /// and that may be.
    pub fn tensor(self, may_share: bool) -> Result<(Site, Tensor), EngineError> {
        let Read { site, shape, dtype, head_dim, pieces } = self;
        let of_site = |error| at_site(error, site);
        let pieces: Vec<&[u8]> =
            pieces.iter().map(|piece| piece.bytes().map_err(of_site)).collect::<Result<_, _>>()?;
        let mut data = recycle::memory(shape.iter().product());
        // A cache has a piece for each head; the rows of other stages are in order.
        let dim = match site.stage {
            Stage::KCache | Stage::VCache => head_dim,
            _ => data.len() / pieces.len().max(1),
        };
        match dtype {
            DType::F16 => interleave::<f16>(&pieces, &mut data, dim, may_share),
            _ => interleave::<f32>(&pieces, &mut data, dim, may_share),
        }
        Ok((site, Tensor::new(shape, data)))
    }
}

impl UnderWay {
    /// Hands a read to another thread.
    pub fn widen_elsewhere(&mut self) {
        let (sender, widened) = mpsc::sync_channel(1);
        if let UnderWay::Reading(read) = std::mem::replace(self, UnderWay::Widening(widened)) {
            // Nobody waits for it any more where the step has failed. A thread of the pool that waited for
            // others would take up the next tensor meanwhile, and within that another one.
            rayon::spawn(move || drop(sender.send(read.tensor(false))));
        }
    }
}

/// An error met while a site was read.
fn at_site(error: DeviceError, site: Site) -> DeviceError {
    match error {
        DeviceError::Cuda { doing, detail } => {
            DeviceError::Cuda { doing: format!("{doing} (reading {site})"), detail }
        }
        other => other,
    }
}

/// An element of the engine's storage.
trait Stored: bytemuck::Pod + Sync {
    /// Widens as many elements as there are.
    fn widen(from: &[Self], to: &mut [f32]);
}

impl Stored for f32 {
    fn widen(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Stored for f16 {
    fn widen(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

/// Elements that one task widens.
const TASK: usize = 1 << 16;

/// Widens pieces, one a head: from [head][position][dim] to (position, head, dim). A single piece keeps
/// its order.
fn interleave<T: Stored>(pieces: &[&[u8]], data: &mut [f32], dim: usize, may_share: bool) {
    let heads: Vec<&[T]> = pieces.iter().map(|piece| bytemuck::cast_slice(piece)).collect();
    let (row, dim) = match heads.len() {
        1 => (1, 1),
        heads => (heads * dim, dim),
    };
    let rows = (TASK / row).max(1);
    let part = |(part, data): (usize, &mut [f32])| {
        let first = part * rows;
        if let [whole] = heads[..] {
            return T::widen(&whole[first..first + data.len()], data);
        }
        for (position, data) in (first..).zip(data.chunks_exact_mut(row)) {
            for (head, to) in heads.iter().zip(data.chunks_exact_mut(dim)) {
                T::widen(&head[position * dim..(position + 1) * dim], to);
            }
        }
    };
    match may_share && data.len() > TASK {
        true => data.par_chunks_mut(rows * row).enumerate().for_each(part),
        false => data.chunks_mut(rows * row).enumerate().for_each(part),
    }
}
