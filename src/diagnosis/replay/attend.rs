//! A whole attention in f64: where neither scores nor probabilities were recorded, its three operations
//! are one.

use std::{ops::Range, sync::Arc};

use crate::diagnosis::replay::{
    expected::{Expected, Operand, Rounding, Spread},
    ops::{self, Heads, Score, Softmax},
};

/// How an attention attends.
pub struct Way<'f> {
    pub score: Score<'f>,
    /// The KV head whose values a query head takes.
    pub value_head: &'f dyn Fn(usize) -> usize,
    /// Factor on the scores.
    pub temperature: f64,
    /// As in [`Softmax::divisor`].
    pub divisor: &'f dyn Fn(&[f64], f64) -> f64,
}

/// What one query reads: keys and values (keys, Hk D), and those of them that it sees.
#[derive(Clone)]
pub struct Reading {
    pub keys: Arc<Operand>,
    pub values: Arc<Operand>,
    pub visible: Range<usize>,
}

impl Reading {
    fn reads_same(&self, other: &Reading) -> bool {
        Arc::ptr_eq(&self.keys, &other.keys) && Arc::ptr_eq(&self.values, &other.values)
    }
}

/// The roundings of scores, probabilities and output.
#[derive(Clone, Copy)]
pub struct Roundings {
    pub scores: Rounding,
    pub probs: Rounding,
    pub out: Rounding,
}

/// Rows whose readings are held at a time: each may be a cache of its own.
const ROWS: usize = 32;

/// out (rows, Hq D) of q (rows, Hq D), each row with its own reading.
pub fn attend(
    q: &Operand,
    reading: &dyn Fn(usize) -> Reading,
    heads: Heads,
    way: &Way<'_>,
    roundings: Roundings,
) -> Expected<'static> {
    let (mut value, mut spread, mut single) = (Vec::new(), Vec::new(), Vec::new());
    let all: Vec<usize> = (0..q.rows()).collect();
    for rows in all.chunks(ROWS) {
        let readings: Vec<Reading> = rows.iter().map(|&row| reading(row)).collect();
        let mut rest = rows;
        for block in readings.chunk_by(Reading::reads_same) {
            let (rows, later) = rest.split_at(block.len());
            rest = later;
            let out = attend_alike(Arc::new(q.select(rows)), block, heads, way, roundings);
            spread.extend((0..out.value.len()).map(|i| out.most_spread(i)));
            value.extend(out.value);
            single.extend(out.single);
        }
    }
    Expected { value, spread: Spread::Each(spread), single, rounding: roundings.out }
}

/// The same for rows that read the same keys and values.
fn attend_alike(
    q: Arc<Operand>,
    readings: &[Reading],
    heads: Heads,
    way: &Way<'_>,
    roundings: Roundings,
) -> Expected<'static> {
    let (keys, values) = (&readings[0].keys, &readings[0].values);
    let n = keys.rows();
    let scores = ops::scores(&q, keys, heads, &way.score, roundings.scores);
    let scores = scores.into_operand(heads.query * n);
    let softmax = Softmax {
        keys: n,
        visible: &|row| readings[row].visible.clone(),
        temperature: way.temperature,
        divisor: way.divisor,
    };
    let probs = ops::softmax(&scores, &softmax, roundings.probs).into_operand(heads.query * n);
    ops::weighted_sum(&probs, values, heads, (way.value_head, 0..n), roundings.out)
}
