//! A layer's attention by our own kernels, and the cache that it reads.

use crate::{
    engine::{
        AttentionVariant, Engine, EngineError,
        buffers::User,
        device::{Buffer, DeviceError},
        fault::Wiring,
        hooks::Pass,
        kernels::launch::{self, CacheView},
        step::CacheLayout,
        variant::{Decode, Prefill, Softmax},
    },
    graph::site::Stage,
};

impl Engine {
    /// Appends the layer's keys and values, and attends, by our own kernels.
    pub(super) fn own_attention(
        &self,
        layer: usize,
        pass: &mut Pass<'_>,
    ) -> Result<(), EngineError> {
        let (device, dtype, s) = (&*self.device, self.options.storage, &self.scratch);
        self.append_to_cache(layer, pass)?;
        let from_layer_0 = self.options.faults.has(Wiring::CacheOfLayer0);
        let cache = self.cache_view(if from_layer_0 { 0 } else { layer }, pass.length);
        let AttentionVariant { prefill, decode, .. } = self.options.attention;
        let attend = |op: &launch::Attention<'_>, tokens: usize| {
            if pass.tokens == 1 && decode == Decode::Split {
                launch::attention_split(device, dtype, &cache, op, &s.splits, &self.config)
            } else if pass.tokens > 1 && prefill == Prefill::Tiled {
                launch::attention_tiled(device, dtype, &cache, op, tokens)
            } else {
                launch::attention(device, dtype, &cache, op, tokens)
            }
        };
        let taps = pass.taps(layer);
        let op = self.attention(pass, layer, &taps);
        if pass.chosen.is_none() {
            return Ok(attend(&op, pass.tokens)?);
        }
        attend(&launch::Attention { scores: None, probs: None, ..op }, pass.tokens)?;
        self.tap_chosen(pass, &op, &attend)
    }

    /// Fills the taps with the chosen tokens' rows, by further launches whose outputs are thrown away: what
    /// flows on is of the launch that had no taps.
    pub(super) fn tap_chosen(
        &self,
        pass: &Pass<'_>,
        op: &launch::Attention<'_>,
        attend: &dyn Fn(&launch::Attention<'_>, usize) -> Result<(), DeviceError>,
    ) -> Result<(), EngineError> {
        let Some(chosen) = pass.chosen.as_ref().filter(|_| op.scores.or(op.probs).is_some()) else {
            return Ok(());
        };
        let runs: Vec<&[usize]> = chosen.chunk_by(|a, b| a + 1 == *b).collect();
        let width = self.config.n_head * self.config.head_dim * self.options.storage.size();
        let longest = runs.iter().map(|run| run.len()).max().unwrap_or(0);
        let out = &self.device.alloc(longest * width, "unused attn_out")?;
        let mut row = 0;
        for run in runs {
            let before = 4 * row * self.config.n_head * pass.length;
            let of_run = launch::Attention {
                q: (op.q.0, op.q.1 + run[0] * width),
                positions: (op.positions.0, op.positions.1 + 4 * run[0]),
                scores: op.scores.map(|(tap, _)| (tap, before)),
                probs: op.probs.map(|(tap, _)| (tap, before)),
                out,
                ..*op
            };
            attend(&of_run, run.len())?;
            row += run.len();
        }
        Ok(())
    }

    /// What our attention kernels take for a layer.
    pub(super) fn attention<'s>(
        &'s self,
        pass: &'s Pass<'_>,
        layer: usize,
        [scores, probs]: &'s [Option<Buffer>; 2],
    ) -> launch::Attention<'s> {
        let a = pass.activations(Some(layer));
        launch::Attention {
            q: (&a[Stage::QRope], 0),
            out: &a[Stage::AttnOut],
            positions: self.scratch.integers.of(User::Mask, pass.tokens),
            scores: scores.as_ref().map(|tap| (tap, 0)),
            probs: probs.as_ref().map(|tap| (tap, 0)),
            n_head: self.config.n_head,
            scale: self.config.attention_scale,
            online: self.options.attention.softmax == Softmax::Online,
        }
    }

    fn append_to_cache(&self, layer: usize, pass: &mut Pass<'_>) -> Result<(), EngineError> {
        let (s, dtype, faults) = (&self.scratch, self.options.storage, &self.options.faults);
        let a = pass.activations(Some(layer));
        let cache = self.cache_view(layer, pass.length);
        let kv = ((a.appended_keys(faults), 0), (&a[Stage::V], 0));
        let positions = s.integers.of(User::Append, pass.tokens);
        if pass.step == 0 || !faults.has(Wiring::DecodeNeverAppended) {
            self.append(&cache, kv, positions, pass.tokens, dtype)?;
        }
        pass.emit_cache(layer, Stage::KCache, cache.k, self.cache_layout())?;
        pass.emit_cache(layer, Stage::VCache, cache.v, self.cache_layout())
    }

    pub(super) fn cache_layout(&self) -> CacheLayout {
        CacheLayout { capacity: self.capacity, dtype: self.options.storage }
    }

    pub(super) fn cache_view(&self, layer: usize, length: usize) -> CacheView<'_> {
        CacheView {
            k: &self.caches[layer].k,
            v: &self.caches[layer].v,
            n_head_kv: self.config.n_head_kv,
            head_dim: self.config.head_dim,
            capacity: self.capacity,
            length,
        }
    }
}
