//! What is run: each kernel file, the attention kernel in all its variants, and their shapes.

use crate::{
    ci::kernels::{
        attention::{self, Level, Taps},
        cases::{self, Bench, Outputs},
        product,
        reference::Heads,
    },
    core::tensor::DType,
    engine::{
        AttentionVariant,
        kernels::launch::{self, Splits},
        variant::{Decode, Prefill, Softmax},
    },
};

type Run = Box<dyn Fn(Bench<'_>) -> Outputs + Send + Sync>;

/// One launch: a shape, and how to run it.
pub struct Case {
    /// Such as `f16, 3 rows of 33`.
    pub shape: String,
    pub dtype: DType,
    pub run: Run,
}

/// One kernel file with its definitions, and the cases that it is run on.
pub struct Subject {
    pub file: &'static str,
    /// What tells it from others of the file: the attention variant.
    pub variant: String,
    pub defines: Vec<String>,
    pub cases: Vec<Case>,
}

impl Subject {
    fn new(file: &'static str, shapes: Vec<(String, Run)>) -> Subject {
        Subject { file, variant: String::new(), defines: Vec::new(), cases: Vec::new() }
            .with(shapes)
    }

    /// Adds each shape twice, in f32 and f16.
    fn with(mut self, shapes: Vec<(String, Run)>) -> Subject {
        for (shape, run) in shapes {
            let run = std::sync::Arc::new(run);
            for dtype in [DType::F32, DType::F16] {
                let (shape, run) = (format!("{dtype}, {shape}"), run.clone());
                self.cases.push(Case { shape, dtype, run: Box::new(move |bench| run(bench)) });
            }
        }
        self
    }

    /// `attention.cu, scale=pre,...`.
    pub fn name(&self) -> String {
        if self.variant.is_empty() {
            self.file.to_string()
        } else {
            format!("{}, {}", self.file, self.variant)
        }
    }
}

fn case(
    shape: String,
    run: impl Fn(Bench<'_>) -> Outputs + Send + Sync + 'static,
) -> (String, Run) {
    (shape, Box::new(run))
}

/// Rows and columns: 1, primes, and around a warp, a block and two. A norm leaves the first row out, and a
/// single one has a thread for each column.
const ROWS: [(usize, usize); 6] = [(1, 1), (3, 31), (2, 33), (1, 127), (3, 128), (3, 257)];
/// Elements: 1, and around a block of 256.
const ELEMENTS: [usize; 5] = [1, 31, 255, 256, 1000];
/// T, H, D.
const ROTATED: [(usize, usize, usize); 4] = [(1, 1, 2), (3, 2, 6), (2, 7, 64), (1, 3, 80)];
/// T, Hk, D and the tokens before.
const APPENDED: [((usize, usize, usize), usize); 4] =
    [((1, 1, 2), 0), ((3, 2, 6), 30), ((2, 3, 64), 1), ((1, 2, 130), 31)];
/// T, Hq, Hk, D, P: odd ones, and decoding where the keys fill whole tiles and pages.
const ATTENDED: [[usize; 5]; 9] = [
    [1, 4, 1, 64, 64],
    [1, 6, 2, 16, 32],
    [1, 8, 2, 40, 256],
    [1, 1, 1, 2, 1],
    [1, 4, 2, 6, 33],
    [3, 6, 2, 64, 32],
    [2, 3, 3, 80, 129],
    [4, 2, 1, 130, 5],
    [1, 2, 1, 64, 299],
];
/// Hq, Hk, D, and T and P of each launch: around tiles of 32 queries and 32 keys, after other tokens
/// and not.
const TILED: [([usize; 3], &[[usize; 2]]); 4] = [
    ([7, 1, 16], &[[1, 32], [1, 64], [8, 40]]),
    ([2, 1, 8], &[[1, 1], [31, 31], [33, 64]]),
    ([3, 3, 24], &[[32, 33], [2, 65], [7, 32], [5, 5]]),
    ([4, 2, 64], &[[33, 33], [3, 31], [34, 97]]),
];
/// Hq, Hk, D, and P of each launch: below, at and above one chunk of keys, many chunks, heads so
/// wide that a chunk takes many rounds, and so many keys that a chunk is longer than the least.
const SPLIT: [([usize; 3], &[usize]); 8] = [
    ([8, 2, 64], &[128, 256, 32]),
    ([3, 3, 64], &[1, 63, 65, 300]),
    ([4, 2, 64], &[2, 130, 64]),
    ([4, 2, 80], &[1, 64, 129]),
    ([2, 1, 24], &[66, 15, 7]),
    ([7, 1, 32], &[33, 200]),
    ([2, 1, 256], &[49, 300]),
    ([1, 1, 32], &[8300]),
];
/// Outputs of each matrix and inner size: whole packs of both types, around the packs of a warp and of
/// a block.
const MULTIPLIED: [([usize; 3], usize); 5] =
    [([1, 0, 0], 8), ([5, 3, 2], 24), ([2, 7, 0], 256), ([3, 1, 1], 264), ([9, 0, 0], 1032)];

/// Everything, in the order of a forward pass.
pub fn subjects() -> Vec<Subject> {
    let mut all = vec![
        Subject::new("embedding.cu", by_rows(cases::embedding)),
        Subject::new("rms_norm.cu", {
            let mut shapes = by_rows(|bench, rows, n| cases::rms_norm(bench, rows, n, false));
            shapes.push(case("2 rows of 65, in place".to_string(), |bench| {
                cases::rms_norm(bench, 2, 65, true)
            }));
            shapes
        }),
        Subject::new("rope.cu", rope()),
        Subject::new("kv_append.cu", kv_append()),
    ];
    all.extend(AttentionVariant::all().map(attention));
    all.extend(TILED.iter().map(|(heads, sizes)| attention_tiled(*heads, sizes)));
    all.extend(SPLIT.iter().map(|(heads, positions)| attention_split(*heads, positions)));
    all.push(Subject::new("swiglu.cu", by_elements(cases::swiglu)));
    let mut shapes = by_elements(|bench, n| cases::residual_add(bench, n, false));
    shapes.push(case("257 elements, in place".to_string(), |bench| {
        cases::residual_add(bench, 257, true)
    }));
    all.push(Subject::new("residual_add.cu", shapes));
    all.push(products());
    all.push(widening());
    all
}

fn by_rows(run: fn(Bench<'_>, usize, usize) -> Outputs) -> Vec<(String, Run)> {
    let shape = |(rows, n)| case(format!("{rows} rows of {n}"), move |bench| run(bench, rows, n));
    ROWS.map(shape).into()
}

fn by_elements(run: fn(Bench<'_>, usize) -> Outputs) -> Vec<(String, Run)> {
    ELEMENTS.map(|n| case(format!("{n} elements"), move |bench| run(bench, n))).into()
}

fn rope() -> Vec<(String, Run)> {
    let mut shapes = Vec::new();
    for (i, shape) in ROTATED.into_iter().enumerate() {
        for neox in [false, true] {
            let factors = i % 2 == 1;
            let (t, h, d) = shape;
            let pairs = if neox { "neox" } else { "norm" };
            let with = if factors { ", with factors" } else { "" };
            shapes.push(case(format!("{pairs}, T {t}, H {h}, D {d}{with}"), move |bench| {
                cases::rope(bench, neox, factors, shape)
            }));
        }
    }
    shapes
}

fn kv_append() -> Vec<(String, Run)> {
    let shape = |((t, h, d), past)| {
        case(format!("T {t}, Hk {h}, D {d} after {past}"), move |bench| {
            cases::kv_append(bench, (t, h, d), past)
        })
    };
    APPENDED.map(shape).into()
}

/// Each shape with scores around 0, and the first with all of them far below it.
fn attended(
    heads: Vec<Heads>,
    run: impl Fn(Bench<'_>, (Heads, Level), Taps) -> Outputs + Clone + Send + Sync + 'static,
) -> Vec<(String, Run)> {
    let mixed = heads.iter().map(|&heads| (heads, Level::Mixed));
    let low = heads.first().map(|&heads| (heads, Level::Low));
    let shape = |(i, (heads, level)): (usize, (Heads, Level))| {
        let Heads { tokens, n_head, n_head_kv, head_dim, positions } = heads;
        let low = if level == Level::Low { ", low scores" } else { "" };
        let text =
            format!("T {tokens}, Hq {n_head}, Hk {n_head_kv}, D {head_dim}, P {positions}{low}");
        let run = run.clone();
        case(text, move |bench| run(bench, (heads, level), Taps::nth(i)))
    };
    mixed.chain(low).enumerate().map(shape).collect()
}

fn attention(variant: AttentionVariant) -> Subject {
    let online = variant.softmax == Softmax::Online;
    let heads = |shape: [usize; 5]| {
        let [tokens, n_head, n_head_kv, head_dim, positions] = shape;
        Heads { tokens, n_head, n_head_kv, head_dim, positions }
    };
    let shapes = attended(ATTENDED.map(heads).to_vec(), move |bench, scene, taps| {
        attention::attention(bench, scene, taps, online)
    });
    let subject = Subject::new("attention.cu", shapes);
    Subject { variant: variant.to_string(), defines: variant.defines(), ..subject }
}

fn attention_tiled([n_head, n_head_kv, head_dim]: [usize; 3], sizes: &[[usize; 2]]) -> Subject {
    let heads = |tokens, positions| Heads { tokens, n_head, n_head_kv, head_dim, positions };
    let all = sizes.iter().map(|&[tokens, positions]| heads(tokens, positions)).collect();
    let shapes = attended(all, attention::attention_tiled);
    let tiled = AttentionVariant { prefill: Prefill::Tiled, ..Default::default() };
    let defines = launch::tiled_defines(&attention::config(heads(1, 1)));
    with_defines(Subject::new("attention_tiled.cu", shapes), tiled, defines)
}

fn attention_split([n_head, n_head_kv, head_dim]: [usize; 3], positions: &[usize]) -> Subject {
    let heads = |positions| Heads { tokens: 1, n_head, n_head_kv, head_dim, positions };
    let shapes =
        attended(positions.iter().copied().map(heads).collect(), attention::attention_split);
    let split = AttentionVariant { decode: Decode::Split, ..Default::default() };
    let defines = Splits::defines(&attention::config(heads(1)));
    with_defines(Subject::new("attention_split.cu", shapes), split, defines)
}

/// Named by the choice that the kernel is for, which comes last in a variant's name.
fn with_defines(subject: Subject, variant: AttentionVariant, defines: Vec<String>) -> Subject {
    let choice = variant.to_string().rsplit(',').next().unwrap_or_default().to_string();
    let variant = format!("{choice},{}", defines.join(","));
    Subject { variant, defines, ..subject }
}

/// Each shape with the launches of short and of long rows, into the storage type and into f32.
fn products() -> Subject {
    let mut shapes = Vec::new();
    for (i, (outputs, inner)) in MULTIPLIED.into_iter().enumerate() {
        for warps in [1, 4] {
            let (wide, [a, b, c]) = (i % 2 == 0, outputs);
            let out = if wide { " to f32" } else { "" };
            let text = format!("{a} + {b} + {c} outputs of {inner}{out}, {warps} warps");
            let product = product::Product { outputs, inner, warps, wide };
            shapes.push(case(text, move |bench| product::gemv(bench, product)));
        }
    }
    for (rows, n) in [(1, 1), (3, 31), (2, 257)] {
        let text = format!("bias of {rows} rows of {n}");
        shapes.push(case(text, move |bench| product::add_bias(bench, rows, n)));
    }
    Subject::new("cuda/gemv.cu", shapes)
}

/// One element, some packs with and without a rest, and more than a block.
fn widening() -> Subject {
    let case = |n: usize| {
        let run: Run = Box::new(move |bench| product::widen(bench, n));
        Case { shape: format!("{n} values of f16"), dtype: DType::F16, run }
    };
    let cases = [1, 8, 31, 2048, 2057].map(case).into();
    Subject { cases, ..Subject::new("cuda/widen.cu", Vec::new()) }
}
