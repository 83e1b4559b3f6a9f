//! A small engine that runs the fixture's model in any division: each row says at which position it is rotated, which
//! slot of the cache it fills and which it sees. A bug is a row that says something else.

use std::{path::Path, sync::LazyLock};

use firstdiff::{
    core::{
        arithmetic::Arithmetic,
        loaded::LoadedWeight,
        tensor::{DType, Tensor},
    },
    graph::{
        SiteList,
        site::{Site, Stage},
    },
    model::{Config, Model},
    run,
    trace::{Batch, Manifest, ModelId, Removed, Side, TraceWriter},
};

use crate::common::fixture;

/// Slots of the caches.
pub const SLOTS: usize = 192;

/// What a row of a step does.
#[derive(Clone, Debug)]
pub struct Row {
    pub token: i32,
    /// The position that it is rotated at.
    pub position: usize,
    /// The slot that its key and value are written to; none of padding.
    pub slot: Option<usize>,
    /// The slots of its keys, and which of them it sees.
    pub table: Vec<usize>,
    pub sees: Vec<bool>,
    /// Slots that count in its softmax, though no key of its own stands for them.
    pub beyond: Vec<usize>,
    /// The row that it goes on with, where that is another's.
    pub read: Option<Read>,
}

/// Another row of the step in place of one.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    pub row: usize,
    /// The layer whose output is taken; the logits' input, where it is none.
    pub after: Option<usize>,
}

/// A row of a cache that moves before a step.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    pub from: usize,
    pub to: usize,
    /// Positions that its key is turned by.
    pub turn: i64,
}

/// A step: what it computes, and what is said of it.
#[derive(Clone, Debug)]
pub struct StepPlan {
    pub moves: Vec<Move>,
    pub rows: Vec<Row>,
    pub first_position: usize,
    pub removed: Option<Removed>,
    pub batch: Option<Batch>,
    /// The length of the axis of keys.
    pub keys: usize,
}

impl Row {
    /// A right row: it sees all keys up to its own.
    pub fn right(token: i32, position: usize, table: &[usize]) -> Row {
        let sees = (0..table.len()).map(|key| key <= position).collect();
        let (slot, table) = (Some(table[position]), table.to_vec());
        Row { token, position, slot, table, sees, beyond: Vec::new(), read: None }
    }

    /// A row of padding, whose key and value fill a slot that nothing sees.
    pub fn padding(slot: usize) -> Row {
        let (slot, table, sees) = (Some(slot), Vec::new(), Vec::new());
        Row { token: 0, position: 0, slot, table, sees, beyond: Vec::new(), read: None }
    }
}

impl StepPlan {
    /// A step of one sequence, whose positions are the slots.
    pub fn single(tokens: &[i32], first_position: usize) -> StepPlan {
        let table: Vec<usize> = (0..first_position + tokens.len()).collect();
        let row = |(at, &token): (usize, &i32)| Row::right(token, first_position + at, &table);
        StepPlan {
            moves: Vec::new(),
            rows: tokens.iter().enumerate().map(row).collect(),
            first_position,
            removed: None,
            batch: None,
            keys: table.len(),
        }
    }
}

/// The model's weights, by their names.
struct Weights {
    model: Model,
    embedding: Vec<f32>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
}

struct Layer {
    norms: [Vec<f32>; 2],
    /// Query, key and value, with their biases.
    qkv: [(Vec<f32>, Vec<f32>); 3],
    output: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
}

static WEIGHTS: LazyLock<Weights> = LazyLock::new(|| {
    let model = run::open(&fixture()).unwrap();
    let read = |name: String| model.file().weights(&name).unwrap();
    let layer = |l: usize| {
        let of = |name: &str| read(format!("blk.{l}.{name}"));
        let product = |name: &str| (of(&format!("{name}.weight")), of(&format!("{name}.bias")));
        Layer {
            norms: ["attn_norm.weight", "ffn_norm.weight"].map(of),
            qkv: ["attn_q", "attn_k", "attn_v"].map(product),
            output: of("attn_output.weight"),
            gate: of("ffn_gate.weight"),
            up: of("ffn_up.weight"),
            down: of("ffn_down.weight"),
        }
    };
    let layers = (0..model.config.n_layer).map(layer).collect();
    let (embedding, norm) = (read("token_embd.weight".into()), read("output_norm.weight".into()));
    Weights { embedding, layers, norm, model }
});

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Rows times a matrix of (outputs, inputs).
fn product(x: &[f32], width: usize, matrix: &[f32]) -> Vec<f32> {
    let row = |x: &[f32]| matrix.chunks_exact(width).map(|w| dot(x, w)).collect::<Vec<f32>>();
    x.chunks_exact(width).flat_map(row).collect()
}

fn norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let row = |x: &[f32]| {
        let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
        x.iter().zip(weight).map(|(x, w)| x * scale * w).collect::<Vec<f32>>()
    };
    x.chunks_exact(weight.len()).flat_map(row).collect()
}

fn sum(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// The rows that a step goes on with after a layer, or to the logits.
fn read(x: &[f32], rows: &[Row], after: Option<usize>) -> Vec<f32> {
    let width = x.len() / rows.len();
    let from = |(row, own): (usize, &Row)| {
        let row = own.read.filter(|read| read.after == after).map_or(row, |read| read.row);
        &x[row * width..(row + 1) * width]
    };
    rows.iter().enumerate().flat_map(from).copied().collect()
}

/// Turns heads by a number of positions.
fn turn(heads: &mut [f32], config: &Config, by: i64) {
    let half = config.head_dim / 2;
    for head in heads.chunks_exact_mut(config.head_dim) {
        for pair in 0..half {
            let unit = f64::from(config.rope_theta).powf(-(pair as f64) / half as f64);
            let (sine, cosine) = ((by as f64 * unit).sin() as f32, (by as f64 * unit).cos() as f32);
            let (a, b) = (head[pair], head[pair + half]);
            (head[pair], head[pair + half]) = (a * cosine - b * sine, a * sine + b * cosine);
        }
    }
}

/// The engine: its caches, by layers, of (slot, KV head, dim).
pub struct Engine {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

/// Runs the steps and records them, but for the first few.
pub fn record(folder: &Path, steps: &[StepPlan], unrecorded: usize) {
    record_as(Side::Engine, folder, steps, unrecorded, &[]);
}

/// The same as a side's, with weights.
pub fn record_as(
    side: Side,
    folder: &Path,
    steps: &[StepPlan],
    unrecorded: usize,
    weights: &[LoadedWeight],
) {
    let Weights { model, .. } = &*WEIGHTS;
    let config = &model.config;
    let width = SLOTS * config.n_head_kv * config.head_dim;
    let empty = vec![vec![0.0; width]; config.n_layer];
    let mut engine = Engine { keys: empty.clone(), values: empty };
    let list = SiteList::from(&model.graph.sites);
    let id = ModelId::new("tiny-qwen2", model.file().hash(), "qwen2", config.n_vocab, &list);
    let arithmetic = Arithmetic::engine(DType::F32);
    let manifest = Manifest::new(side, id, arithmetic, "the tests".into());
    let mut writer = TraceWriter::create(folder, manifest, true).unwrap();
    weights.iter().for_each(|weight| writer.put_weight(weight).unwrap());
    let (before, recorded) = steps.split_at(unrecorded);
    before.iter().for_each(|step| engine.step(step, &mut |_, _, _, _| {}));
    for (index, step) in (0..).zip(recorded) {
        let tokens: Vec<i32> = step.rows.iter().map(|row| row.token).collect();
        match (&step.batch, step.removed) {
            (Some(batch), _) => writer.begin_batch(&tokens, batch.clone()).unwrap(),
            (None, None) => writer.begin_step(&tokens, step.first_position).unwrap(),
            (None, Some(removed)) => {
                writer.begin_step_after(removed, &tokens, step.first_position).unwrap();
            }
        }
        engine.step(step, &mut |layer, stage, data, shape| {
            let site = Site { step: index, layer, stage };
            writer.put(site, &Tensor::new(shape.to_vec(), data.to_vec())).unwrap();
        });
        writer.end_step().unwrap();
    }
    writer.finish().unwrap();
}

/// Takes a tensor of a layer, or of none, with its shape.
type Put<'p> = &'p mut dyn FnMut(Option<u32>, Stage, &[f32], &[usize]);

impl Engine {
    fn step(&mut self, step: &StepPlan, put: Put<'_>) {
        let Weights { model, embedding, layers, norm: of_output } = &*WEIGHTS;
        let (config, eps) = (&model.config, model.config.rms_eps);
        let (width, row) = (config.n_embd, config.n_head_kv * config.head_dim);
        let (n, positions) = (step.rows.len(), step.first_position + step.rows.len());
        self.shift(&step.moves, config);
        let ids = step.rows.iter().map(|row| row.token as usize);
        let mut x: Vec<f32> =
            ids.flat_map(|id| &embedding[id * width..(id + 1) * width]).copied().collect();
        put(None, Stage::Embd, &x, &[n, width]);
        for (l, layer) in layers.iter().enumerate() {
            let at = Some(l as u32);
            let normed = norm(&x, &layer.norms[0], eps);
            put(at, Stage::AttnNorm, &normed, &[n, width]);
            let [mut q, mut k, v] = layer.qkv.each_ref().map(|(weight, bias)| {
                let y = product(&normed, width, weight);
                y.chunks_exact(bias.len()).flat_map(|y| sum(y, bias)).collect::<Vec<f32>>()
            });
            let heads = |count: usize| [n, count, config.head_dim];
            put(at, Stage::Q, &q, &heads(config.n_head));
            put(at, Stage::K, &k, &heads(config.n_head_kv));
            put(at, Stage::V, &v, &heads(config.n_head_kv));
            for (token, own) in step.rows.iter().enumerate() {
                let by = own.position as i64;
                let q_row = config.n_head * config.head_dim;
                turn(&mut q[token * q_row..(token + 1) * q_row], config, by);
                turn(&mut k[token * row..(token + 1) * row], config, by);
                if let Some(slot) = own.slot {
                    let to = slot * row..(slot + 1) * row;
                    self.keys[l][to.clone()].copy_from_slice(&k[token * row..(token + 1) * row]);
                    self.values[l][to].copy_from_slice(&v[token * row..(token + 1) * row]);
                }
            }
            put(at, Stage::QRope, &q, &heads(config.n_head));
            put(at, Stage::KRope, &k, &heads(config.n_head_kv));
            // Without a batch a cache has the positions, as the step's last row finds them.
            let slots: Vec<usize> = match &step.batch {
                Some(_) => (0..SLOTS).collect(),
                None => step.rows[n - 1].table[..positions].to_vec(),
            };
            let cache = |of: &[f32]| -> Vec<f32> {
                slots.iter().flat_map(|slot| &of[slot * row..(slot + 1) * row]).copied().collect()
            };
            let shape = [slots.len(), config.n_head_kv, config.head_dim];
            put(at, Stage::KCache, &cache(&self.keys[l]), &shape);
            put(at, Stage::VCache, &cache(&self.values[l]), &shape);
            let attended = self.attend(l, step, &q);
            let weights = [n, config.n_head, step.keys];
            put(at, Stage::Scores, &attended.scores, &weights);
            put(at, Stage::Probs, &attended.probs, &weights);
            put(at, Stage::AttnOut, &attended.out, &heads(config.n_head));
            let projected = product(&attended.out, config.n_head * config.head_dim, &layer.output);
            let residual = sum(&x, &projected);
            let normed = norm(&residual, &layer.norms[1], eps);
            let [gate, up] = [&layer.gate, &layer.up].map(|w| product(&normed, width, w));
            let act: Vec<f32> =
                gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let down = product(&act, config.n_ff, &layer.down);
            x = sum(&residual, &down);
            put(at, Stage::OProj, &projected, &[n, width]);
            put(at, Stage::AttnResidual, &residual, &[n, width]);
            put(at, Stage::FfnNorm, &normed, &[n, width]);
            put(at, Stage::FfnGate, &gate, &[n, config.n_ff]);
            put(at, Stage::FfnUp, &up, &[n, config.n_ff]);
            put(at, Stage::FfnAct, &act, &[n, config.n_ff]);
            put(at, Stage::FfnDown, &down, &[n, width]);
            x = read(&x, &step.rows, Some(l));
            put(at, Stage::LayerOut, &x, &[n, width]);
        }
        let normed = norm(&x, of_output, eps);
        put(None, Stage::FinalNorm, &normed, &[n, width]);
        let last = read(&normed, &step.rows, None);
        put(None, Stage::Logits, &product(&last, width, embedding), &[n, config.n_vocab]);
    }

    /// Moves rows of the caches.
    fn shift(&mut self, moves: &[Move], config: &Config) {
        let row = config.n_head_kv * config.head_dim;
        for (keys, values) in self.keys.iter_mut().zip(&mut self.values) {
            for &Move { from, to, turn: by } in moves {
                keys.copy_within(from * row..(from + 1) * row, to * row);
                values.copy_within(from * row..(from + 1) * row, to * row);
                turn(&mut keys[to * row..(to + 1) * row], config, by);
            }
        }
    }

    fn attend(&self, layer: usize, step: &StepPlan, q: &[f32]) -> Attended {
        let config = &WEIGHTS.model.config;
        let (dim, group) = (config.head_dim, config.n_head / config.n_head_kv);
        let mut all = Attended::default();
        for (token, row) in step.rows.iter().enumerate() {
            for head in 0..config.n_head {
                let q = &q[(token * config.n_head + head) * dim..][..dim];
                let at = |slot: usize| (slot * config.n_head_kv + head / group) * dim;
                let score = |slot: usize| {
                    dot(q, &self.keys[layer][at(slot)..][..dim]) * config.attention_scale
                };
                let own = row.table.iter().zip(&row.sees).map(|(&slot, &sees)| (slot, sees));
                let keys: Vec<(usize, bool)> =
                    own.chain(row.beyond.iter().map(|&slot| (slot, true))).collect();
                let scores: Vec<f32> = keys.iter().map(|&(slot, _)| score(slot)).collect();
                let seen = keys.iter().zip(&scores).filter(|((_, sees), _)| *sees);
                let most = seen.map(|(_, &s)| s).fold(f32::NEG_INFINITY, f32::max);
                let term = |(&(_, sees), &s): (&(usize, bool), &f32)| {
                    if sees { (s - most).exp() } else { 0.0 }
                };
                let terms: Vec<f32> = keys.iter().zip(&scores).map(term).collect();
                let total: f32 = terms.iter().sum();
                let probs: Vec<f32> =
                    terms.iter().map(|term| if total > 0.0 { term / total } else { 0.0 }).collect();
                let mut out = vec![0.0; dim];
                for (&(slot, _), &p) in keys.iter().zip(&probs) {
                    let value = &self.values[layer][at(slot)..][..dim];
                    out.iter_mut().zip(value).for_each(|(out, v)| *out += p * v);
                }
                let wide = |values: &[f32]| -> Vec<f32> {
                    (0..step.keys)
                        .map(|key| values[..row.table.len()].get(key).copied().unwrap_or(0.0))
                        .collect()
                };
                all.scores.extend(wide(&scores));
                all.probs.extend(wide(&probs));
                all.out.extend(out);
            }
        }
        all
    }
}

/// (token, head, key), the same, and (token, head, dim).
#[derive(Default)]
struct Attended {
    scores: Vec<f32>,
    probs: Vec<f32>,
    out: Vec<f32>,
}
