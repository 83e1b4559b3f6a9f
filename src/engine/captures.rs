//! The captures of a decode step that is recorded: the recording copies them into one buffer, which
//! leaves the device as a whole.

use std::{ops::Range, sync::Arc};

use crate::{
    device::{Buffer, Device, DeviceError, Download},
    engine::{EngineError, hooks::Pass},
    model::Config,
    site::{Site, Stage},
    tensor::DType,
};

/// Where a capture begins in the buffer, which is a copy's best start.
const ALIGNMENT: usize = 256;

/// The wanted sites of one token's step, and where a recording leaves them.
pub struct Captures {
    /// In canonical order, with step 0 for any.
    sites: Vec<Site>,
    /// The bytes of each; none of a cache, which stays where it is.
    places: Vec<Range<usize>>,
    buffer: Buffer,
    /// (1, Hq, capacity) f32, where they are wanted.
    pub scores: Option<Buffer>,
    pub probs: Option<Buffer>,
    storage: DType,
}

impl Captures {
    /// Room for the sites, in a cache of `capacity` positions.
    pub fn new(
        device: &dyn Device,
        config: &Config,
        sites: Vec<Site>,
        (capacity, storage): (usize, DType),
    ) -> Result<Captures, DeviceError> {
        let mut end = 0usize;
        let place = |site: &Site| {
            let start = end.next_multiple_of(ALIGNMENT);
            let elements: usize = config.shape(site.stage, 1, capacity).iter().product();
            let is_cache = matches!(site.stage, Stage::KCache | Stage::VCache);
            end = start + if is_cache { 0 } else { elements * dtype(storage, site.stage).size() };
            start..end
        };
        let places = sites.iter().map(place).collect();
        let has = |stage| sites.iter().any(|site| site.stage == stage);
        let tap = |wanted: bool, stage: Stage| {
            let bytes = 4 * config.n_head * capacity;
            wanted.then(|| device.alloc(bytes, stage.name())).transpose()
        };
        // A softmax over split keys reads the scores again.
        let scores = tap(has(Stage::Scores) || has(Stage::Probs), Stage::Scores)?;
        let probs = tap(has(Stage::Probs), Stage::Probs)?;
        let buffer = device.alloc(end, "captures")?;
        Ok(Captures { sites, places, buffer, scores, probs, storage })
    }

    /// Whether these are the sites.
    pub fn are_of(&self, sites: &[Site]) -> bool {
        self.sites == sites
    }

    /// Copies a site to its place, if it is wanted.
    pub fn keep(
        &self,
        device: &dyn Device,
        (layer, stage): (Option<usize>, Stage),
        from: &Buffer,
    ) -> Result<(), DeviceError> {
        let site = Site { step: 0, layer: layer.map(|layer| layer as u32), stage };
        let Ok(at) = self.sites.binary_search(&site) else { return Ok(()) };
        let place = self.places[at].clone();
        device.copy(from, (&self.buffer, place.start), place.len())
    }

    /// Offers what a repetition has left. `cache` gives a layer's keys or values.
    pub fn offer<'b>(
        &self,
        pass: &mut Pass<'_>,
        capacity: usize,
        cache: impl Fn(usize, Stage) -> &'b Buffer,
    ) -> Result<(), EngineError> {
        let whole = pass.start(&self.buffer, 0, self.buffer.bytes)?;
        let whole: Arc<dyn Download> = whole.into();
        for (site, place) in self.sites.iter().zip(&self.places) {
            let layer = site.layer.map_or(0, |layer| layer as usize);
            if matches!(site.stage, Stage::KCache | Stage::VCache) {
                let kept = (capacity, self.storage);
                pass.emit_cache(layer, site.stage, cache(layer, site.stage), kept)?;
                continue;
            }
            let part = |bytes: Range<usize>| -> Box<dyn Download> {
                Box::new(Part { whole: Arc::clone(&whole), bytes })
            };
            // Rows of all keys that the cache has room for; those up to the query's are the step's.
            let pieces = match site.stage {
                Stage::Scores | Stage::Probs => place
                    .clone()
                    .step_by(4 * capacity)
                    .map(|row| part(row..row + 4 * pass.length))
                    .collect(),
                _ => vec![part(place.clone())],
            };
            pass.push(*site, dtype(self.storage, site.stage), pieces);
        }
        Ok(())
    }
}

/// What a stage is stored as.
fn dtype(storage: DType, stage: Stage) -> DType {
    match stage {
        Stage::Scores | Stage::Probs | Stage::Logits => DType::F32,
        _ => storage,
    }
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
