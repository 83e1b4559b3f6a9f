//! Each form and each mistake on three models, and 1,000 right weights at random.

use std::path::Path;

use firstdiff::{
    core::{
        format::Format,
        loaded::{LoadedWeight, row_sum},
    },
    diagnosis::loaded::{Form, Standing, compare},
    model::{
        ModelFile,
        synth::{self, Arch, Spec, WeightType},
    },
};

use crate::{common::fixture, trace::support::Random};

/// A model of which every weight is known.
pub struct Subject {
    pub file: ModelFile,
    /// Of a head.
    pub dim: usize,
}

/// A tensor of a file.
pub struct Tensor {
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f32>,
}

impl Subject {
    fn synth(folder: &Path, spec: Spec) -> Subject {
        let path = folder.join(format!("{}.gguf", spec.seed));
        synth::write(&spec, &path, &mut |_| {}).unwrap();
        Subject { file: ModelFile::open(&path).unwrap(), dim: spec.head_dim }
    }

    fn fixture() -> Subject {
        Subject { file: ModelFile::open(&fixture()).unwrap(), dim: 16 }
    }

    /// The fixture in f16, a llama in f32 and a qwen2 in blocks of 4 bits, with its own biases.
    fn three(folder: &Path) -> [Subject; 3] {
        let llama = Spec { n_vocab: 1200, n_embd: 96, ..Spec::preset("tiny-llama").unwrap() };
        let blocks = Spec {
            n_embd: 256,
            n_head: 8,
            n_head_kv: 4,
            head_dim: 32,
            n_ff: 512,
            weight_type: WeightType::Q4K,
            seed: 2,
            ..Spec::preset("tiny-qwen2").unwrap()
        };
        [Subject::fixture(), Subject::synth(folder, llama), Subject::synth(folder, blocks)]
    }

    pub fn tensor(&self, name: &str) -> Tensor {
        let (info, data) = (self.file.info(name).unwrap(), self.file.weights(name).unwrap());
        let (rows, cols) = (info.rows(), info.row_length());
        Tensor { name: name.into(), rows, cols, data }
    }

    /// What is said of a weight.
    #[track_caller]
    fn said(&self, names: &str, shape: [usize; 2], data: &[f32]) -> (Standing, String) {
        self.verdict(&LoadedWeight::of(names, &shape, data).unwrap())
    }

    fn verdict(&self, weight: &LoadedWeight) -> (Standing, String) {
        let verdict = compare(&self.file, weight, None, Form::Any).unwrap();
        (verdict.standing, verdict.text)
    }

    #[track_caller]
    pub fn is(&self, names: &str, shape: [usize; 2], data: &[f32], standing: Standing, text: &str) {
        let said = self.said(names, shape, data);
        let model = self.file.path.display();
        assert!(said.0 == standing && said.1.contains(text), "{model} {names}: {said:?}, {text}");
    }
}

impl Tensor {
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    fn at(&self, row: usize, col: usize) -> f32 {
        self.data[row * self.cols + col]
    }

    /// A matrix of which each element is one of this.
    pub fn from(
        &self,
        rows: usize,
        cols: usize,
        of: impl Fn(usize, usize) -> (usize, usize),
    ) -> Tensor {
        let element = |i: usize| {
            let (row, col) = of(i / cols, i % cols);
            self.at(row, col)
        };
        let data = (0..rows * cols).map(element).collect();
        Tensor { name: self.name.clone(), rows, cols, data }
    }

    pub fn transposed(&self) -> Tensor {
        self.from(self.cols, self.rows, |row, col| (col, row))
    }

    /// Rows in halves of a head where the file has pairs; the other way round of a file's halves.
    fn halves(&self, dim: usize) -> Tensor {
        let file = |row: usize| {
            let (head, j, i) = (row / dim, row % dim / (dim / 2), row % (dim / 2));
            head * dim + 2 * i + j
        };
        self.from(self.rows, self.cols, |row, col| (file(row), col))
    }

    pub fn mapped(&self, of: impl Fn(f32) -> f32) -> Vec<f32> {
        self.data.iter().map(|&x| of(x)).collect()
    }

    /// The same with some rows zero.
    pub fn without(&self, rows: std::ops::Range<usize>) -> Vec<f32> {
        let mut data = self.data.clone();
        data[rows.start * self.cols..rows.end * self.cols].fill(0.0);
        data
    }
}

pub fn below(a: &Tensor, b: &Tensor) -> Vec<f32> {
    [a.data.as_slice(), &b.data].concat()
}

/// Cut off instead of rounded.
fn cut(x: f32) -> f32 {
    f32::from_bits(x.to_bits() & 0xffff_0000)
}

const Q: &str = "blk.1.attn_q.weight";
const GATE: &str = "blk.1.ffn_gate.weight";
const UP: &str = "blk.1.ffn_up.weight";
const DOWN: &str = "blk.1.ffn_down.weight";
const NORM: &str = "blk.1.attn_norm.weight";
const EMBD: &str = "token_embd.weight";

#[test]
fn each_form_that_a_right_engine_may_hold_is_recognised_on_three_models() {
    use Standing::{Otherwise, Right};
    let folder = tempfile::tempdir().unwrap();
    for subject in Subject::three(folder.path()) {
        let of = |name: &str| subject.tensor(name);
        let (q, gate, up, down, norm) = (of(Q), of(GATE), of(UP), of(DOWN), of(NORM));
        for one in [&q, &down, &norm, &of(EMBD)] {
            let is = |data: &[f32], text| subject.is(&one.name, one.shape(), data, Right, text);
            assert_eq!(subject.said(&one.name, one.shape(), &one.data), (Right, String::new()));
            is(&one.mapped(|x| Format::Bf16.number(x)), "rounded to bf16");
            is(&one.mapped(cut), "rounded to bf16");
            // What the file has in f16 is exact.
            let half = one.mapped(|x| Format::F16.number(x));
            is(&half, if half == one.data { "" } else { "rounded to f16" });
        }
        let e4m3 = q.mapped(|x| Format::E4m3.number(x));
        subject.is(Q, q.shape(), &e4m3, Right, "rounded to e4m3");
        let otherwise = |names: &str, shape: [usize; 2], data: &[f32], text: &str| {
            subject.is(names, shape, data, Otherwise, text);
        };
        let turned = down.transposed();
        otherwise(DOWN, turned.shape(), &turned.data, "transposed");
        let narrow = turned.mapped(|x| Format::Bf16.number(x));
        otherwise(DOWN, turned.shape(), &narrow, "transposed, rounded to bf16");
        let half = format!("(i, i + {})", subject.dim / 2);
        otherwise(Q, q.shape(), &q.halves(subject.dim).data, &half);
        let fused = format!("gate_up={GATE} {UP}");
        let [rows, cols] = [2 * gate.rows, gate.cols];
        let both = Tensor { name: String::new(), rows, cols, data: below(&gate, &up) };
        subject.is(&fused, both.shape(), &both.data, Right, "");
        let turns = both.from(rows, cols, |row, col| (row / 2 + row % 2 * gate.rows, col));
        otherwise(&fused, both.shape(), &turns.data, "the rows of its 2 tensors are interleaved");
        let part = up.from(up.rows / 2, up.cols, |row, col| (row + up.rows / 2, col));
        let which = format!("rows {}-{} of {}", up.rows / 2, up.rows - 1, up.rows);
        otherwise(UP, part.shape(), &part.data, &which);
        let part = down.from(down.rows, down.cols / 2, |row, col| (row, col));
        otherwise(DOWN, part.shape(), &part.data, "columns 0-");
        let mut padded = up.data.clone();
        padded.resize((up.rows + 3) * up.cols, 0.0);
        otherwise(UP, [up.rows + 3, up.cols], &padded, "and zeros up to");
        otherwise(NORM, norm.shape(), &norm.mapped(|x| x - 1.0), "minus 1");
        let order = |row: usize| row * 7 % up.rows;
        assert!(!up.rows.is_multiple_of(7), "a permutation");
        let other = up.from(up.rows, up.cols, |row, col| (order(row), col));
        otherwise(UP, up.shape(), &other.data, "its rows are in another order");
        let int8 = |row: &[f32]| {
            let scale = row.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
            row.iter().map(|x| (x / scale).round() * scale).collect::<Vec<f32>>()
        };
        let rows: Vec<f32> = up.data.chunks(up.cols).flat_map(int8).collect();
        otherwise(UP, up.shape(), &rows, "requantised to int8-rows: relative L2");
        let rows: Vec<f32> = up.data.chunks(8).flat_map(int8).collect();
        otherwise(UP, up.shape(), &rows, ": relative L2");
    }
}

#[test]
fn what_the_file_was_made_of_is_no_wrong_weight() {
    let folder = tempfile::tempdir().unwrap();
    let noise = |i: usize| ((i * 7919) % 1013) as f32 / 506.5 - 1.0;
    for subject in Subject::three(folder.path()) {
        let mut q = subject.tensor(Q);
        // Before it was rounded to f16: less than half of a last bit off.
        let near = |(i, &x): (usize, &f32)| x * (1.0 + noise(i) / 8192.0);
        let before: Vec<f32> = q.data.iter().enumerate().map(near).collect();
        let bf16: Vec<f32> = before.iter().map(|&x| Format::Bf16.number(x)).collect();
        for data in [&before, &bf16] {
            let said = subject.said(Q, q.shape(), data);
            assert!(matches!(said.0, Standing::Right | Standing::Otherwise), "{said:?}");
        }
        // Before it was quantised, in the order of another rotation.
        let size = q.data.iter().fold(0f32, |most, x| most.max(x.abs()));
        q.data.iter_mut().enumerate().for_each(|(i, x)| *x += 0.03 * size * noise(i));
        subject.is(Q, q.shape(), &q.data, Standing::Otherwise, ": relative L2");
        let other = q.halves(subject.dim);
        let half = format!("(i, i + {})", subject.dim / 2);
        subject.is(Q, q.shape(), &other.data, Standing::Otherwise, &half);
        let turned = q.transposed();
        subject.is(Q, turned.shape(), &turned.data, Standing::Otherwise, "transposed, ");
        let half = q.from(q.rows / 2, q.cols, |row, col| (row + q.rows / 2, col));
        subject.is(Q, half.shape(), &half.data, Standing::Otherwise, "rows ");
        // The same values in one row are not near.
        q.data[..q.cols].iter_mut().for_each(|x| *x = -*x);
        subject.is(Q, q.shape(), &q.data, Standing::Wrong, "unknown values");
    }
}

#[test]
fn each_mistake_of_a_loader_is_named_on_three_models() {
    let folder = tempfile::tempdir().unwrap();
    for subject in Subject::three(folder.path()) {
        let of = |name: &str| subject.tensor(name);
        let (q, up, down, norm) = (of(Q), of(UP), of(DOWN), of(NORM));
        let wrong = |one: &Tensor, data: &[f32], text: &str| {
            subject.is(&one.name, one.shape(), data, Standing::Wrong, text);
        };
        for one in [&q, &norm] {
            wrong(one, &one.mapped(|_| 0.0), "all zero, but not in the file");
            wrong(one, &one.mapped(|_| 1.0), "all 1, but not in the file");
            wrong(one, &one.mapped(|x| x + 1.0), "1 was added");
            wrong(one, &one.mapped(|x| 1.001 * x), "multiplied by 1.001");
            wrong(one, &one.mapped(|x| Format::F16.number(0.125 * x)), "multiplied by 0.125");
            wrong(one, &one.mapped(|x| -x.exp()), "the negative of its exponential");
        }
        let last = up.rows - 16..up.rows;
        let text = format!("rows {}-{} of {} are zero", last.start, up.rows - 1, up.rows);
        wrong(&up, &up.without(last), &text);
        let mut inner = up.data.clone();
        inner.chunks_mut(up.cols).for_each(|row| row[up.cols / 2..].fill(0.0));
        wrong(&up, &inner, &format!("columns {}-{}", up.cols / 2, up.cols - 1));
        wrong(&up, &of(GATE).data, "is blk.*.ffn_gate.weight");
        wrong(&up, &of("blk.2.ffn_up.weight").data, "the next layer's");
        wrong(&up, &of("blk.0.ffn_up.weight").data, "the previous layer's");
        let turned = |row, col| {
            let flat: usize = col * up.rows + row;
            (flat / up.cols, flat % up.cols)
        };
        let text = "(outputs, inputs) were read as (inputs, outputs)";
        wrong(&up, &up.from(up.rows, up.cols, turned).data, text);
        // Not where the numbers of rows and columns are the same: then it is only transposed.
        let text = "transposed, then read in the original shape";
        wrong(&up, &up.transposed().data, text);
        let short = |row, col| {
            let flat: usize = row * (up.cols - 1) + col;
            (flat / up.cols, flat % up.cols)
        };
        let text = format!("its rows were read every {} elements", up.cols - 1);
        wrong(&up, &up.from(up.rows, up.cols, short).data, &text);
        let shift = |row: usize, col: usize| ((row + subject.dim) % q.rows, col);
        let text = format!("row i is the file's row (i + {}) mod {}", subject.dim, q.rows);
        wrong(&q, &q.from(q.rows, q.cols, shift).data, &text);
        let first = |row: usize, col: usize| (row % subject.dim, col);
        wrong(&q, &q.from(q.rows, q.cols, first).data, "as another row is");
        let mut one = down.data.clone();
        one[17] += 0.5;
        wrong(&down, &one, &format!("unknown values: row 0 of {}", down.rows));
        wrong(&down, &one, "differ; worst [0, 17]");
        let noise = |i: usize| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5;
        let noise: Vec<f32> = (0..down.data.len()).map(noise).collect();
        wrong(&down, &noise, "unknown values");
        let mut nan = q.data.clone();
        nan[5] = f32::NAN;
        wrong(&q, &nan, "1 of");
        let [k, v] = ["blk.1.attn_k.weight", "blk.1.attn_v.weight"].map(of);
        let names = format!("kv={} {}", k.name, v.name);
        let text = "its tensors are in the order blk.1.attn_v.weight, blk.1.attn_k.weight";
        let shape = [k.rows + v.rows, k.cols];
        subject.is(&names, shape, &below(&v, &k), Standing::Wrong, text);
        let names = format!("part={Q}[{}:{}]", subject.dim, 2 * subject.dim);
        let part = &q.data[(subject.dim - 2) * q.cols..(2 * subject.dim - 2) * q.cols];
        let text = "of blk.*.attn_q.weight instead of";
        subject.is(&names, [subject.dim, q.cols], part, Standing::Wrong, text);
        let right = &q.data[subject.dim * q.cols..2 * subject.dim * q.cols];
        subject.is(&names, [subject.dim, q.cols], right, Standing::Right, "");
        let names = "blk.1.no_such.weight";
        subject.is(names, [1, 2], &[0.0, 1.0], Standing::Absent, "no tensor blk.*.no_such");
    }
}

#[test]
fn mistakes_in_decoding_blocks_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let [narrow, _, blocks] = Subject::three(folder.path());
    let name = "blk.0.ffn_gate.weight";
    // Nibbles as neighbours: byte i of 32 has elements i and i + 32 of 64.
    let own = blocks.tensor(name);
    let neighbours = |row: usize, col: usize| {
        let (block, at) = (col / 64, col % 64);
        (row, 64 * block + at / 2 + at % 2 * 32)
    };
    // The scales go with the place, so that is no exact decoding: only in f16 it is said so.
    let other = own.from(own.rows, own.cols, neighbours);
    let said = blocks.said(name, own.shape(), &other.data);
    assert_ne!(said.0, Standing::Right, "{said:?}");
    let own = narrow.tensor(name);
    let bits = |x: f32| half::f16::from_f32(x).to_bits();
    let read = own.mapped(|x| half::bf16::from_bits(bits(x)).to_f32());
    narrow.is(name, own.shape(), &read, Standing::Wrong, "f16 weights read as bf16");
}

#[test]
fn rows_that_were_not_sampled_are_held_to_their_sums() {
    let folder = tempfile::tempdir().unwrap();
    let subject = &Subject::three(folder.path())[1];
    let one = subject.tensor(EMBD);
    let chosen = LoadedWeight::of(EMBD, &one.shape(), &one.data).unwrap().rows.unwrap();
    let row = (0..one.rows).find(|row| !chosen.contains(row)).unwrap();
    let text = format!("row {row} of {} are zero", one.rows);
    subject.is(EMBD, one.shape(), &one.without(row..row + 1), Standing::Wrong, &text);
    let mut moved = one.data.clone();
    moved[row * one.cols + 7] *= 1.01;
    let text = format!("row {row} of {} differ from the file", one.rows);
    subject.is(EMBD, one.shape(), &moved, Standing::Wrong, &text);
    let turned = one.transposed();
    let mut wrong = turned.data.clone();
    wrong[40] += 1.0;
    subject.is(EMBD, turned.shape(), &turned.data, Standing::Otherwise, "transposed");
    let said = subject.said(EMBD, turned.shape(), &wrong);
    assert_eq!(said.0, Standing::Wrong, "{said:?}");
}

#[test]
fn what_is_the_same_in_two_places_is_taken_for_the_right_one() {
    let folder = tempfile::tempdir().unwrap();
    let subject = Subject::synth(folder.path(), Spec::preset("tiny-qwen3").unwrap());
    // A tied output is the embedding.
    let embd = subject.tensor(EMBD);
    subject.is("output.weight", embd.shape(), &embd.data, Standing::Right, "");
    // Weights whose rounding makes them all alike are the file's.
    let norm = subject.tensor(NORM);
    let near: Vec<f32> = norm.mapped(|x| Format::E5m2.number(x));
    let said = subject.said(NORM, norm.shape(), &near);
    assert_ne!(said.0, Standing::Wrong, "{said:?}");
}

/// The same weight with all of its rows, and with those rows of it and the sums of all.
fn whole_and_sampled(
    names: &str,
    shape: [usize; 2],
    data: &[f32],
    rows: Vec<usize>,
) -> [LoadedWeight; 2] {
    let whole = LoadedWeight {
        rows: None,
        values: data.into(),
        sums: Vec::new(),
        ..LoadedWeight::of(names, &shape, data).unwrap()
    };
    let row = |&row: &usize| &data[row * shape[1]..(row + 1) * shape[1]];
    let values = rows.iter().flat_map(row).copied().collect();
    let sums = data.chunks_exact(shape[1]).map(row_sum).collect();
    let sampled = LoadedWeight { rows: Some(rows), values, sums, ..whole.clone() };
    [whole, sampled]
}

#[test]
fn a_weight_is_recognised_whole_and_by_some_of_its_rows() {
    use Standing::{Otherwise, Right, Wrong};
    let folder = tempfile::tempdir().unwrap();
    for subject in Subject::three(folder.path()) {
        let (up, down, gate) = (subject.tensor(UP), subject.tensor(DOWN), subject.tensor(GATE));
        let q = subject.tensor(Q);
        let half = up.from(up.rows / 2, up.cols, |row, col| (row + up.rows / 2, col));
        let columns = down.from(down.rows, down.cols / 2, |row, col| (row, col));
        let (turned, halves) = (down.transposed(), q.halves(subject.dim));
        let both = |standing, names: &str, shape: [usize; 2], data: &[f32], text: &str| {
            let rows = vec![0, shape[0] / 3, shape[0] / 2 + 1, shape[0] - 1];
            for weight in whole_and_sampled(names, shape, data, rows) {
                let said = subject.verdict(&weight);
                let model = subject.file.path.display();
                assert!(said.0 == standing && said.1.contains(text), "{model} {names}: {said:?}");
            }
        };
        both(Right, UP, up.shape(), &up.data, "");
        both(Right, UP, up.shape(), &up.mapped(|x| Format::Bf16.number(x)), "rounded to bf16");
        both(Right, UP, up.shape(), &up.mapped(|x| Format::E4m3.number(x)), "rounded to e4m3");
        both(Otherwise, UP, half.shape(), &half.data, "rows ");
        both(Otherwise, DOWN, columns.shape(), &columns.data, "columns 0-");
        both(Otherwise, DOWN, turned.shape(), &turned.data, "transposed");
        both(Otherwise, Q, halves.shape(), &halves.data, "as halves (i, i + ");
        let q8_0: Vec<f32> = up.data.chunks(32).flat_map(rounded_q8_0).collect();
        let said = |weight: &LoadedWeight| subject.verdict(weight);
        for weight in whole_and_sampled(UP, up.shape(), &q8_0, vec![1, up.rows - 1]) {
            assert!(matches!(said(&weight).0, Right | Otherwise), "{:?}", said(&weight));
        }
        both(Wrong, UP, up.shape(), &up.mapped(|_| 0.0), "all zero, but not in the file");
        both(Wrong, UP, up.shape(), &up.mapped(|x| x + 1.0), "1 was added");
        both(Wrong, UP, up.shape(), &up.mapped(|x| x - 1.0), "1 was subtracted");
        both(Wrong, UP, up.shape(), &up.mapped(|x| -x.exp()), "the negative of its exponential");
        both(Wrong, UP, up.shape(), &gate.data, "is blk.*.ffn_gate.weight");
        let next = subject.tensor("blk.2.ffn_up.weight");
        both(Wrong, UP, up.shape(), &next.data, "the next layer's");
        let text = "transposed, then read in the original shape";
        both(Wrong, UP, up.shape(), &up.transposed().data, text);
    }
}

/// A block of 32 as q8_0 has it.
fn rounded_q8_0(block: &[f32]) -> Vec<f32> {
    let most = block.iter().fold(0f32, |most, x| most.max(x.abs()));
    let scale = Format::F16.number(most / 127.0);
    let number = |x: &f32| if scale == 0.0 { 0.0 } else { (x * (127.0 / most)).round() * scale };
    block.iter().map(number).collect()
}

/// A model of random sizes and type.
fn random_spec(random: &mut Random, seed: u64) -> Spec {
    let arch = [Arch::Llama, Arch::Qwen2, Arch::Qwen3][random.below(3)];
    let weight_type = WeightType::ALL[random.below(4)];
    let unit = if weight_type == WeightType::Q4K { 256 } else { 32 };
    let n_head_kv = 1 + random.below(3);
    let is_wide = unit > 32;
    let n_head = n_head_kv * if is_wide { 4 } else { 1 + random.below(3) };
    let head_dim = if is_wide { 64 } else { 32 };
    let n_embd = match arch {
        Arch::Qwen2 => n_head * head_dim,
        _ => unit * (1 + random.below(if is_wide { 1 } else { 4 })),
    };
    Spec {
        arch,
        n_layer: 2,
        n_embd,
        n_head,
        n_head_kv,
        head_dim,
        n_ff: unit * (1 + random.below(if is_wide { 2 } else { 5 })),
        n_vocab: 300 + random.below(1500),
        tied_output: random.below(2) == 0,
        qkv_bias: arch == Arch::Qwen2,
        rope_freqs: false,
        weight_type,
        seed,
        ..Spec::preset("tiny-qwen2").unwrap()
    }
}

/// A right form of a tensor.
fn right_form(random: &mut Random, one: &Tensor, dim: usize) -> Tensor {
    let is_matrix = one.cols > 1 && one.rows > 1;
    let (rows, cols) = (one.rows, one.cols);
    match random.below(if is_matrix { 8 } else { 3 }) {
        2 if !is_matrix => {
            let n = one.data.len();
            let count = 1 + random.below(n);
            let first = random.below(n - count + 1);
            one.from(1, count, |_, col| (0, first + col))
        }
        2 => one.transposed(),
        3 if rows.is_multiple_of(dim) => one.halves(dim),
        4 => {
            let count = 2 + random.below(rows - 2);
            let first = random.below(rows - count + 1);
            one.from(count, cols, |row, col| (first + row, col))
        }
        5 => {
            let count = 2 + random.below(cols - 2);
            let first = random.below(cols - count + 1);
            one.from(rows, count, |row, col| (row, first + col))
        }
        6 if rows.is_multiple_of(dim) => {
            let (heads, turned) = (rows / dim, one.transposed());
            let file = |col: usize| col % heads * dim + col / heads;
            turned.from(turned.rows, turned.cols, |row, col| (row, file(col)))
        }
        7 => {
            let mut padded = one.from(rows, cols, |row, col| (row, col));
            padded.rows += 1 + random.below(9);
            padded.data.resize(padded.rows * cols, 0.0);
            padded
        }
        _ => one.from(rows, cols, |row, col| (row, col)),
    }
}

#[test]
fn a_right_weight_is_never_accused_in_1_000_random_cases() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random(18);
    let formats = [Format::F16, Format::Bf16, Format::Tf32, Format::E4m3, Format::E5m2];
    for model in 0..25 {
        let spec = random_spec(&mut random, 100 + model);
        let subject = Subject::synth(folder.path(), spec.clone());
        let names: Vec<String> =
            subject.file.gguf().tensors().iter().map(|info| info.name.clone()).collect();
        for _ in 0..40 {
            let one = subject.tensor(&names[random.below(names.len())]);
            let mut held = right_form(&mut random, &one, subject.dim);
            let rounding = random.below(8);
            let number = |x: f32| match rounding {
                6 => cut(x),
                at => formats.get(at).map_or(x, |format| format.number(x)),
            };
            held.data = held.mapped(number);
            let all = LoadedWeight::of(&one.name, &held.shape(), &held.data).unwrap();
            // The first and the last, as they are always recorded, and some between.
            let few = 2 + random.below(32);
            let mut rows: Vec<usize> = (0..few).map(|_| random.below(held.rows)).collect();
            rows.extend([0, held.rows - 1]);
            rows.sort_unstable();
            rows.dedup();
            let [_, some] = whole_and_sampled(&one.name, held.shape(), &held.data, rows.clone());
            let is_vector = held.cols == 1 || held.rows == 1;
            for weight in [Some(all), (!is_vector).then_some(some)].into_iter().flatten() {
                let said = subject.verdict(&weight);
                let [own, file] = [held.shape(), one.shape()];
                assert!(
                    matches!(said.0, Standing::Right | Standing::Otherwise),
                    "{spec:?} {} {own:?} of {file:?}, rounding {rounding}, rows {rows:?}: {said:?}",
                    one.name
                );
            }
        }
    }
}
