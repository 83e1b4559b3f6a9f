//! The captures of a decode step that is recorded: what is wanted is computed in one buffer, a place for
//! each site, which leaves the device as a whole.

use std::{ops::Range, sync::Arc};

use crate::{
    core::tensor::DType,
    engine::{
        EngineError,
        buffers::{Activations, Scratch},
        device::{Buffer, Device, DeviceError, Download, Strided},
        hooks::Pass,
        reads::parts,
        step::{CacheLayout, Target},
    },
    graph::site::{Site, Stage},
};

/// Where a capture begins in the buffer, which is a copy's best start.
const ALIGNMENT: usize = 256;
/// Caches of at most so many bytes in all are copied by the recording, whole. Of larger ones the positions
/// in use are read after it.
const CACHES: usize = 64 << 20;

/// The wanted sites of one token's step, and where a recording leaves them.
pub struct Captures {
    /// In canonical order, with step 0 for any.
    sites: Vec<Site>,
    /// The bytes of each; none of a cache that stays where it is.
    places: Vec<Range<usize>>,
    buffer: Buffer,
    /// Of the step as a whole, and of each layer: the places, and the scratch for what is not wanted.
    whole: Activations,
    layers: Vec<Activations>,
    /// (1, Hq, capacity) f32: the scores of layers whose probs alone are wanted.
    unwanted_scores: Option<Buffer>,
    storage: DType,
}

impl Captures {
    /// Room for the sites, in a cache of `capacity` positions.
    pub fn new(
        Target { device, config }: Target<'_>,
        scratch: &Scratch,
        sites: Vec<Site>,
        layout: CacheLayout,
    ) -> Result<Captures, DeviceError> {
        let CacheLayout { capacity, dtype: storage } = layout;
        let bytes = |site: &Site| {
            let elements: usize = config.shape(site.stage, 1, capacity).iter().product();
            elements * dtype(storage, site.stage).size()
        };
        let caches = sites.iter().filter(|site| is_cache(site.stage));
        let stay = caches.map(bytes).sum::<usize>() > CACHES;
        let mut end = 0usize;
        let place = |site: &Site| {
            let start = end.next_multiple_of(ALIGNMENT);
            end = start + if stay && is_cache(site.stage) { 0 } else { bytes(site) };
            start..end
        };
        let places: Vec<Range<usize>> = sites.iter().map(place).collect();
        let probs = sites.iter().any(|site| site.stage == Stage::Probs);
        let row = 4 * config.n_head * capacity;
        let unwanted_scores = probs.then(|| device.alloc(row, Stage::Scores.name())).transpose()?;
        let buffer = device.alloc(end, "captures")?;
        let activations = |layer: Option<u32>| {
            let place = |stage| place_of(&sites, &places, &buffer, Site { step: 0, layer, stage });
            scratch.activations.with(place)
        };
        let layers = (0..config.n_layer as u32).map(|layer| activations(Some(layer))).collect();
        let whole = activations(None);
        Ok(Captures { sites, places, buffer, whole, layers, unwanted_scores, storage })
    }

    /// Whether these are the sites.
    pub fn are_of(&self, sites: &[Site]) -> bool {
        self.sites == sites
    }

    /// Where a layer's activations are computed; without a layer, those of the whole step.
    pub fn activations(&self, layer: Option<usize>) -> &Activations {
        layer.map_or(&self.whole, |layer| &self.layers[layer])
    }

    /// A layer's scores and probs, where they are wanted. A softmax over split keys reads the scores again.
    pub fn taps(&self, layer: usize) -> [Option<Buffer>; 2] {
        let [scores, probs] =
            [Stage::Scores, Stage::Probs].map(|stage| self.place(Some(layer as u32), stage));
        let needed = || self.unwanted_scores.clone().filter(|_| probs.is_some());
        [scores.or_else(needed), probs]
    }

    /// Where the logits are computed, if they are wanted.
    pub fn logits(&self) -> Option<Buffer> {
        self.place(None, Stage::Logits)
    }

    /// Copies a cache to its place, if it has one.
    pub fn keep_cache(
        &self,
        device: &dyn Device,
        layer: usize,
        stage: Stage,
        cache: &Buffer,
    ) -> Result<(), DeviceError> {
        let place = self.place(Some(layer as u32), stage);
        place.map_or(Ok(()), |place| device.copy(cache, &place))
    }

    fn place(&self, layer: Option<u32>, stage: Stage) -> Option<Buffer> {
        place_of(&self.sites, &self.places, &self.buffer, Site { step: 0, layer, stage })
    }

    /// Offers what a repetition has left. `cache` gives a layer's keys or values.
    pub fn offer<'b>(
        &self,
        pass: &mut Pass<'_>,
        capacity: usize,
        cache: impl Fn(usize, Stage) -> &'b Buffer,
    ) -> Result<(), EngineError> {
        let whole = pass.start(&self.buffer, Strided::whole(0, self.buffer.bytes))?;
        let whole: Arc<dyn Download> = whole.into();
        for (site, place) in self.sites.iter().zip(&self.places) {
            let layer = site.layer.map_or(0, |layer| layer as usize);
            if is_cache(site.stage) && place.is_empty() {
                let layout = CacheLayout { capacity, dtype: self.storage };
                pass.emit_cache(layer, site.stage, cache(layer, site.stage), layout)?;
                continue;
            }
            let dtype = dtype(self.storage, site.stage);
            // What a head has for one position. There is room for as many as the cache has; those up to the
            // query's are the step's.
            let position = match site.stage {
                Stage::Scores | Stage::Probs => Some(dtype.size()),
                Stage::KCache | Stage::VCache => Some(pass.config.head_dim * dtype.size()),
                _ => None,
            };
            let pieces = match position {
                Some(bytes) => {
                    let heads = place.clone().step_by(bytes * capacity);
                    parts(&whole, heads.map(|head| head..head + bytes * pass.length))
                }
                None => parts(&whole, [place.clone()].into_iter()),
            };
            pass.push(*site, dtype, pieces);
        }
        Ok(())
    }
}

/// The place of a site of step 0 in the buffer, if it has one.
fn place_of(
    sites: &[Site],
    places: &[Range<usize>],
    buffer: &Buffer,
    site: Site,
) -> Option<Buffer> {
    let at = sites.binary_search(&site).ok()?;
    Some(places[at].clone()).filter(|place| !place.is_empty()).map(|place| buffer.part(place))
}

fn is_cache(stage: Stage) -> bool {
    matches!(stage, Stage::KCache | Stage::VCache)
}

/// What a stage is stored as.
fn dtype(storage: DType, stage: Stage) -> DType {
    match stage {
        Stage::Scores | Stage::Probs | Stage::Logits => DType::F32,
        _ => storage,
    }
}
