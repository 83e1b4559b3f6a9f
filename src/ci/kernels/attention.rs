//! The attention kernels on made-up data.

use crate::{
    ci::kernels::{
        cases::{Bench, F32_TOLERANCE, Output, Outputs, values},
        reference::{self, Attended, Heads},
    },
    engine::{
        device::{Buffer, DeviceError},
        kernels::launch::{self, CacheView, Splits},
    },
    model::{Config, RopePairs},
};

/// Where the scores lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Around 0.
    Mixed,
    /// All of them so far below 0 that no exponential has a value without the maximum.
    Low,
}

/// The size of low scores, about.
const LOW: f32 = 150.0;

/// A cache with room for three more positions, in which nothing past P is written.
struct Cache {
    k: Buffer,
    v: Buffer,
    /// (Hk, P, D).
    keys: Vec<f64>,
    values: Vec<f64>,
    capacity: usize,
}

impl Cache {
    fn new(bench: Bench<'_>, heads: Heads, level: Level) -> Result<Cache, DeviceError> {
        let capacity = heads.positions + 3;
        let (row, all) = (heads.positions * heads.head_dim, capacity * heads.head_dim);
        let fill = |name, seed| {
            // Later keys are longer: the maximum of the scores moves from tile to tile.
            let growing = |(i, x): (usize, f32)| {
                let x = if level == Level::Low && name == "k_cache" { -1.0 - x.abs() } else { x };
                x * (0.5 + (i % row) as f32 / row as f32)
            };
            let all_values = values(heads.n_head_kv * row, seed);
            let all_values: Vec<f32> = all_values.into_iter().enumerate().map(growing).collect();
            let buffer = bench.output(name, heads.n_head_kv * all)?;
            for (head, values) in all_values.chunks(row).enumerate() {
                bench.put(&buffer, head * all, values)?;
            }
            Ok((buffer, bench.rounded(&all_values)))
        };
        let ((k, keys), (v, values)) = (fill("k_cache", 21)?, fill("v_cache", 22)?);
        Ok(Cache { k, v, keys, values, capacity })
    }

    fn view(&self, heads: Heads) -> CacheView<'_> {
        CacheView {
            k: &self.k,
            v: &self.v,
            n_head_kv: heads.n_head_kv,
            head_dim: heads.head_dim,
            capacity: self.capacity,
            length: heads.positions,
        }
    }
}

/// Which taps a launch writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Taps {
    None,
    Scores,
    Both,
}

impl Taps {
    /// All kinds among neighbouring launches, both first.
    pub fn nth(i: usize) -> Taps {
        [Taps::Both, Taps::None, Taps::Scores][i % 3]
    }
}

/// The buffers of one launch.
struct Scene {
    q: Buffer,
    out: Buffer,
    positions: Buffer,
    scores: Buffer,
    probs: Buffer,
    expected: Attended,
    scale: f32,
    level: Level,
}

impl Scene {
    fn new(
        bench: Bench<'_>,
        (heads, level): (Heads, Level),
        cache: &Cache,
    ) -> Result<Scene, DeviceError> {
        let Heads { tokens, n_head, head_dim, positions, .. } = heads;
        let n = tokens * n_head * head_dim;
        let mut queries = values(n, 23);
        if level == Level::Low {
            queries.iter_mut().for_each(|x| *x = 1.0 + 0.1 * x.abs());
        }
        let q = bench.output("q", n)?;
        bench.put(&q, 0, &queries)?;
        let queries = bench.rounded(&queries);
        // Of a size that makes the softmax neither flat nor a single key; at the widest heads, in which a
        // warp takes few keys at a time, so large that later scores are far above the first ones.
        let spread = if head_dim < 256 { 4.0 } else { 16.0 };
        let scale = match level {
            Level::Mixed => spread / (head_dim as f32).sqrt(),
            Level::Low => LOW / head_dim as f32,
        };
        let expected =
            reference::attention(&queries, &cache.keys, &cache.values, heads, f64::from(scale));
        let own: Vec<i32> = (positions - tokens..positions).map(|p| p as i32).collect();
        let taps = 4 * tokens * n_head * positions;
        Ok(Scene {
            q,
            out: bench.output("out", n)?,
            positions: bench.ints("positions", &own)?,
            scores: bench.device.alloc(taps, "scores_tap")?,
            probs: bench.device.alloc(taps, "probs_tap")?,
            expected,
            scale,
            level,
        })
    }

    fn op(&self, heads: Heads, taps: Taps, online: bool) -> launch::Attention<'_> {
        launch::Attention {
            q: (&self.q, 0),
            out: &self.out,
            positions: (&self.positions, 0),
            scores: (taps != Taps::None).then_some((&self.scores, 0)),
            probs: (taps == Taps::Both).then_some((&self.probs, 0)),
            n_head: heads.n_head,
            scale: self.scale,
            online,
        }
    }

    fn outputs(self, bench: Bench<'_>, taps: Taps) -> Outputs {
        // An exponential is off by as much as its exponent.
        let tolerance = match self.level {
            Level::Mixed => F32_TOLERANCE,
            Level::Low => 10.0 * F32_TOLERANCE,
        };
        let out = Output {
            name: "out",
            values: bench.get(&self.out)?,
            reference: self.expected.out,
            tolerance: bench.tolerance(tolerance),
        };
        let mut outputs = Vec::new();
        for (name, buffer, reference, wanted) in [
            ("scores_tap", &self.scores, self.expected.scores, taps != Taps::None),
            ("probs_tap", &self.probs, self.expected.probs, taps == Taps::Both),
        ] {
            if wanted {
                let values = bench.get_f32(buffer)?;
                outputs.push(Output { name, values, reference, tolerance });
            }
        }
        outputs.push(out);
        Ok(outputs)
    }
}

pub fn attention(
    bench: Bench<'_>,
    (heads, level): (Heads, Level),
    taps: Taps,
    online: bool,
) -> Outputs {
    let cache = Cache::new(bench, heads, level)?;
    let scene = Scene::new(bench, (heads, level), &cache)?;
    let op = scene.op(heads, taps, online);
    launch::attention(bench.device, bench.dtype, &cache.view(heads), &op, heads.tokens)?;
    scene.outputs(bench, taps)
}

pub fn attention_tiled(bench: Bench<'_>, (heads, level): (Heads, Level), taps: Taps) -> Outputs {
    let cache = Cache::new(bench, heads, level)?;
    let scene = Scene::new(bench, (heads, level), &cache)?;
    let op = scene.op(heads, taps, false);
    launch::attention_tiled(bench.device, bench.dtype, &cache.view(heads), &op, heads.tokens)?;
    scene.outputs(bench, taps)
}

pub fn attention_split(bench: Bench<'_>, (heads, level): (Heads, Level), taps: Taps) -> Outputs {
    let config = config(heads);
    let cache = Cache::new(bench, heads, level)?;
    let scene = Scene::new(bench, (heads, level), &cache)?;
    let op = scene.op(heads, taps, false);
    let (splits, view) = (Splits::new(bench.device, &config)?, cache.view(heads));
    launch::attention_split(bench.device, bench.dtype, &view, &op, &splits, &config)?;
    scene.outputs(bench, taps)
}

/// A model with these heads; the attention kernels ask for nothing else of it.
pub fn config(heads: Heads) -> Config {
    Config {
        architecture: String::new(),
        n_layer: 1,
        n_embd: heads.n_head * heads.head_dim,
        n_head: heads.n_head,
        n_head_kv: heads.n_head_kv,
        head_dim: heads.head_dim,
        n_ff: 1,
        n_vocab: 1,
        qk_norm: false,
        rope_theta: 10_000.0,
        rope_pairs: RopePairs::Neox,
        rms_eps: 1e-6,
        attention_scale: 1.0,
    }
}
