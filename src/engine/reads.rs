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
    core::{
        pool,
        tensor::{DType, Tensor},
    },
    engine::{
        EngineError,
        device::{DeviceError, Download},
    },
    graph::site::{Site, Stage},
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
    /// Of a cache, a piece for each KV head, which arrive as one; else what follows one another.
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

    /// Whether the first of it is there: what is large is widened as it arrives.
    pub fn is_ready(&self) -> bool {
        self.pieces.first().is_none_or(|first| first.is_ready())
    }

    /// Waits for the first of it.
    pub fn wait(&self) -> Result<(), EngineError> {
        let waited = self.pieces.first().map_or(Ok(()), |first| first.bytes().map(drop));
        Ok(waited.map_err(|error| at_site(error, self.site))?)
    }

    /// The values, once they are there, in f32 and in the stage's order; by all threads, if there are many
    /// and that may be.
    pub fn tensor(self, may_share: bool) -> Result<(Site, Tensor), EngineError> {
        let Read { site, shape, dtype, head_dim, pieces } = self;
        let mut data = pool::memory(shape.iter().product());
        let is_cache = matches!(site.stage, Stage::KCache | Stage::VCache);
        let dim = Some(head_dim).filter(|_| is_cache && pieces.len() > 1);
        let widened = match dtype {
            DType::F16 => widen::<f16>(pieces, dim, &mut data, may_share),
            _ => widen::<f32>(pieces, dim, &mut data, may_share),
        };
        widened.map_err(|error| at_site(error, site))?;
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

/// Widens pieces that follow one another, each as it arrives, and gives it back; with a `dim`, those of
/// heads: from [head][position][dim] to (position, head, dim).
fn widen<T: Stored>(
    pieces: Vec<Box<dyn Download>>,
    dim: Option<usize>,
    data: &mut [f32],
    may_share: bool,
) -> Result<(), DeviceError> {
    if let Some(dim) = dim {
        let heads = pieces.iter().map(|piece| Ok(bytemuck::cast_slice(piece.bytes()?)));
        interleave::<T>(&heads.collect::<Result<Vec<_>, _>>()?, dim, data, may_share);
        return Ok(());
    }
    let mut rest = data;
    for piece in pieces {
        let from: &[T] = bytemuck::cast_slice(piece.bytes()?);
        let (to, after) = std::mem::take(&mut rest).split_at_mut(from.len());
        if may_share && to.len() > TASK {
            let tasks = to.par_chunks_mut(TASK).zip(from.par_chunks(TASK));
            tasks.for_each(|(to, from)| T::widen(from, to));
        } else {
            T::widen(from, to)
        }
        rest = after;
    }
    Ok(())
}

fn interleave<T: Stored>(heads: &[&[T]], dim: usize, data: &mut [f32], may_share: bool) {
    let row = heads.len() * dim;
    let rows = (TASK / row).max(1);
    let part = |(part, data): (usize, &mut [f32])| {
        for (position, data) in (part * rows..).zip(data.chunks_exact_mut(row)) {
            for (head, to) in heads.iter().zip(data.chunks_exact_mut(dim)) {
                T::widen(&head[position * dim..(position + 1) * dim], to);
            }
        }
    };
    if may_share && data.len() > TASK {
        data.par_chunks_mut(rows * row).enumerate().for_each(part)
    } else {
        data.chunks_mut(rows * row).enumerate().for_each(part)
    }
}
