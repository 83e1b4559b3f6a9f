use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use firstdiff::{
    core::tensor::DType,
    engine::{
        AttentionVariant, DeviceKind, EngineSpec,
        device::{
            Buffer, Device, DeviceError, Download, Gemm, Matrix, Strided, cuda::CudaDevice,
            host::HostDevice,
        },
        fault::{FAULTS, Faults, Subject},
        kernels::{
            KernelSet,
            launch::{self, Attention, CacheView, Rope, Splits},
        },
    },
    model::{
        Config,
        synth::{Arch, Spec, WeightType},
    },
};
use half::f16;
use rayon::prelude::*;

use crate::common::{Bench, assert_equal, engine, random_values};

const DTYPES: [DType; 2] = [DType::F32, DType::F16];

/// Elements of a type as bytes on a device.
fn put(device: &dyn Device, dtype: DType, values: &[f32]) -> Buffer {
    let narrow: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
    let bytes: &[u8] = match dtype {
        DType::F16 => bytemuck::cast_slice(&narrow),
        _ => bytemuck::cast_slice(values),
    };
    let buffer = device.alloc(bytes.len(), "a test's values").unwrap();
    device.upload(&buffer, 0, bytes).unwrap();
    buffer
}

fn integers(device: &dyn Device, values: impl IntoIterator<Item = usize>) -> Buffer {
    let values: Vec<i32> = values.into_iter().map(|value| value as i32).collect();
    let buffer = device.alloc(4 * values.len(), "a test's integers").unwrap();
    device.upload(&buffer, 0, bytemuck::cast_slice(&values)).unwrap();
    buffer
}

fn get(device: &dyn Device, dtype: DType, buffer: &Buffer) -> Vec<f32> {
    let mut narrow = vec![f16::ZERO; buffer.bytes / 2];
    let mut wide = vec![0f32; buffer.bytes / 4];
    let bytes: &mut [u8] = match dtype {
        DType::F16 => bytemuck::cast_slice_mut(&mut narrow),
        _ => bytemuck::cast_slice_mut(&mut wide),
    };
    device.download(buffer, 0, bytes).unwrap();
    match dtype {
        DType::F16 => narrow.iter().map(|x| x.to_f32()).collect(),
        _ => wide,
    }
}

fn load(device: &mut dyn Device, file: &str, defines: Vec<String>) {
    device.load(&KernelSet::embedded().source(file, defines).unwrap()).unwrap();
}

/// The two devices differ by roundings only: of sums of n terms in another order, of functions a few
/// roundings apart, and of one rounding to the storage type. 64 f32 roundings of the largest
/// element allow for sums of a few thousand terms of random sign.
#[track_caller]
fn assert_close(host: &[f32], cuda: &[f32], dtype: DType, what: &str) {
    let largest = host.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    assert_within(largest, host, cuda, dtype, what);
}

/// The same where the terms are up to `largest`, and may have cancelled.
#[track_caller]
fn assert_within(largest: f32, host: &[f32], cuda: &[f32], dtype: DType, what: &str) {
    assert_eq!(host.len(), cuda.len(), "{what}");
    let storage = if dtype == DType::F16 { 2.0 * dtype.unit_roundoff() } else { 0.0 };
    let bound = f64::from(largest) * (64.0 * DType::F32.unit_roundoff() + storage) + 1e-30;
    for (index, (&host, &cuda)) in host.iter().zip(cuda).enumerate() {
        let close = f64::from((host - cuda).abs()) <= bound;
        assert!(close, "{what}: element {index} is {host} on the host and {cuda} on the GPU");
    }
}

/// Runs the same work on both devices and compares what it leaves.
#[track_caller]
fn alike(
    (file, defines): (&str, &[String]),
    dtype: DType,
    what: &str,
    work: impl Fn(&dyn Device) -> Result<Vec<f32>, DeviceError>,
) {
    let mut host = HostDevice::new(Default::default()).unwrap();
    let mut cuda = CudaDevice::new().unwrap();
    load(&mut host, file, defines.to_vec());
    load(&mut cuda, file, defines.to_vec());
    let (host, cuda) = (work(&host).unwrap(), work(&cuda).unwrap());
    assert_close(&host, &cuda, dtype, &format!("{file} {defines:?} {dtype} {what}"));
}

#[test]
#[ignore = "needs a GPU: make gpu-test"]
fn every_kernel_of_rows_and_elements_gives_the_same_on_both_devices() {
    for dtype in DTYPES {
        for (rows, n) in [(1, 1), (3, 31), (2, 127), (5, 129), (7, 896)] {
            let what = format!("({rows}, {n})");
            let x = random_values(rows * n, 1);
            let weight = random_values(n, 2);
            alike(("rms_norm.cu", &[]), dtype, &what, |device| {
                let (x, weight) = (put(device, dtype, &x), put(device, DType::F32, &weight));
                let out = put(device, dtype, &vec![0.0; rows * n]);
                launch::rms_norm(device, dtype, &out, (&x, 0), &weight, (rows, n), 1e-6)?;
                Ok(get(device, dtype, &out))
            });
            alike(("embedding.cu", &[]), dtype, &what, |device| {
                let (table, ids) = (put(device, dtype, &x), integers(device, (0..rows).rev()));
                let out = put(device, dtype, &vec![0.0; rows * n]);
                launch::embedding(device, dtype, &out, &table, (&ids, 0), (rows, n))?;
                Ok(get(device, dtype, &out))
            });
            let y = random_values(rows * n, 3);
            alike(("swiglu.cu", &[]), dtype, &what, |device| {
                let (gate, up) = (put(device, dtype, &x), put(device, dtype, &y));
                let out = put(device, dtype, &vec![0.0; rows * n]);
                launch::swiglu(device, dtype, &out, (&gate, &up), rows * n)?;
                Ok(get(device, dtype, &out))
            });
            alike(("residual_add.cu", &[]), dtype, &what, |device| {
                let (x, y) = (put(device, dtype, &x), put(device, dtype, &y));
                launch::residual_add(device, dtype, &x, (&x, &y), rows * n)?;
                Ok(get(device, dtype, &x))
            });
        }
    }
}

#[test]
#[ignore = "needs a GPU: make gpu-test"]
fn every_kernel_of_heads_gives_the_same_on_both_devices() {
    for dtype in DTYPES {
        for (tokens, n_head, head_dim) in [(1, 1, 2), (3, 2, 16), (33, 7, 64), (2, 3, 130)] {
            let what = format!("{tokens} tokens, {n_head} heads of {head_dim}");
            let x = random_values(tokens * n_head * head_dim, 4);
            let factors = random_values(head_dim / 2, 5);
            for (neox, scaled) in [(true, false), (false, true)] {
                alike(("rope.cu", &[]), dtype, &what, |device| {
                    let (x, out) = (put(device, dtype, &x), put(device, dtype, &x));
                    let positions = integers(device, 5..5 + tokens);
                    let factors: Vec<f32> = factors.iter().map(|f| 2.0 + f).collect();
                    let factors = put(device, DType::F32, &factors);
                    let factors = scaled.then_some(&factors);
                    let rope = Rope { neox, theta: 1e4, positions: (&positions, 0), factors };
                    launch::rope(device, dtype, &out, &x, &rope, (tokens, n_head, head_dim))?;
                    Ok(get(device, dtype, &out))
                });
            }
            alike(("kv_append.cu", &[]), dtype, &what, |device| {
                let capacity = tokens + 9;
                let empty = vec![0.0; n_head * capacity * head_dim];
                let (k, v) = (put(device, dtype, &empty), put(device, dtype, &empty));
                let x = put(device, dtype, &x);
                let view = CacheView {
                    k: &k,
                    v: &v,
                    n_head_kv: n_head,
                    head_dim,
                    capacity,
                    length: tokens + 4,
                };
                let positions = integers(device, 4..4 + tokens);
                launch::kv_append(
                    device,
                    dtype,
                    &view,
                    ((&x, 0), (&x, 0)),
                    (&positions, 0),
                    tokens,
                )?;
                Ok([get(device, dtype, &k), get(device, dtype, &v)].concat())
            });
        }
    }
}

/// Heads, and the cache that they read.
#[derive(Clone, Copy, Debug)]
struct Shape {
    tokens: usize,
    n_head: usize,
    n_head_kv: usize,
    head_dim: usize,
    positions: usize,
}

/// Which kernel computes attention.
#[derive(Clone, Copy)]
enum Kernel<'a> {
    Plain,
    Tiled,
    Split(&'a Config),
}

/// The output, scores and probs of attention over random values.
fn attention(
    device: &dyn Device,
    dtype: DType,
    shape: Shape,
    online: bool,
    kernel: Kernel<'_>,
) -> Result<[Vec<f32>; 3], DeviceError> {
    let Shape { tokens, n_head, n_head_kv, head_dim, positions } = shape;
    let capacity = positions + 3;
    let q = put(device, dtype, &random_values(tokens * n_head * head_dim, 6));
    let cache = |seed| put(device, dtype, &random_values(n_head_kv * capacity * head_dim, seed));
    let (k, v) = (cache(7), cache(8));
    let out = put(device, dtype, &vec![0.0; tokens * n_head * head_dim]);
    let tap = || put(device, DType::F32, &vec![0.0; tokens * n_head * positions]);
    let (scores, probs) = (tap(), tap());
    let at = integers(device, positions - tokens..positions);
    let view = CacheView { k: &k, v: &v, n_head_kv, head_dim, capacity, length: positions };
    let op = Attention {
        q: (&q, 0),
        out: &out,
        positions: (&at, 0),
        scores: Some((&scores, 0)),
        probs: Some((&probs, 0)),
        n_head,
        scale: 1.0 / (head_dim as f32).sqrt(),
        online,
    };
    match kernel {
        Kernel::Split(config) => {
            let splits = Splits::new(device, config)?;
            launch::attention_split(device, dtype, &view, &op, &splits, config)?;
        }
        Kernel::Tiled => launch::attention_tiled(device, dtype, &view, &op, tokens)?,
        Kernel::Plain => launch::attention(device, dtype, &view, &op, tokens)?,
    }
    let f32 = DType::F32;
    Ok([get(device, dtype, &out), get(device, f32, &scores), get(device, f32, &probs)])
}

#[test]
#[ignore = "needs a GPU: make gpu-test"]
fn every_kernel_of_attention_gives_the_same_on_both_devices() {
    let shapes = [(1, 1, 1, 16, 1), (3, 4, 2, 64, 33), (2, 7, 1, 96, 140)];
    for variant in AttentionVariant::all() {
        for dtype in DTYPES {
            for (tokens, n_head, n_head_kv, head_dim, positions) in shapes {
                let shape = Shape { tokens, n_head, n_head_kv, head_dim, positions };
                let online = variant.decodes_alike();
                let files = ("attention.cu", &variant.defines()[..]);
                alike(files, dtype, &format!("{shape:?}"), |device| {
                    Ok(attention(device, dtype, shape, online, Kernel::Plain)?.concat())
                });
            }
        }
    }
}

/// A model of these heads.
fn config(shape: Shape) -> Config {
    let Shape { n_head, n_head_kv, head_dim, .. } = shape;
    let preset = Spec::preset("tiny-llama").unwrap();
    let spec = Spec { n_layer: 1, n_head, n_head_kv, head_dim, n_embd: 64, ..preset };
    Bench::synth(&spec).model.config.clone()
}

#[test]
#[ignore = "needs a GPU: make gpu-test"]
fn every_kernel_of_split_attention_agrees_with_the_plain_one_at_all_head_sizes_and_lengths() {
    let mut cuda = CudaDevice::new().unwrap();
    let variant: AttentionVariant = "dot=warp,softmax=online".parse().unwrap();
    load(&mut cuda, "attention.cu", variant.defines());
    // A sanitizer that follows every access takes its time for the longest.
    let longest = std::env::var("FIRSTDIFF_TEST_LONGEST").map_or(32_768, |n| n.parse().unwrap());
    for head_dim in [16, 32, 64, 96, 128, 256] {
        for (n_head, n_head_kv) in [(2, 2), (14, 2), (9, 3), (11, 1)] {
            let of = |positions| Shape { tokens: 1, n_head, n_head_kv, head_dim, positions };
            let config = config(of(1));
            load(&mut cuda, "attention_split.cu", Splits::defines(&config));
            for dtype in DTYPES {
                for positions in [1, 2, 63, 64, 65, 1000, longest] {
                    let shape = of(positions);
                    if positions == longest && n_head != 14 {
                        continue;
                    }
                    let plain = attention(&cuda, dtype, shape, true, Kernel::Plain).unwrap();
                    let split =
                        attention(&cuda, dtype, shape, true, Kernel::Split(&config)).unwrap();
                    let what = format!("{shape:?} {dtype}");
                    // Values are up to 1, and their weights add up to 1.
                    assert_within(1.0, &plain[0], &split[0], dtype, &what);
                    assert_close(&plain[1], &split[1], dtype, &what);
                    assert_close(&plain[2], &split[2], dtype, &what);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: make gpu-test"]
fn every_kernel_of_tiled_attention_agrees_with_the_plain_one_at_all_head_sizes() {
    let mut cuda = CudaDevice::new().unwrap();
    let variant: AttentionVariant = "softmax=online".parse().unwrap();
    load(&mut cuda, "attention.cu", variant.defines());
    for head_dim in [16, 32, 64, 96, 128, 256] {
        let of = |tokens, positions| Shape { tokens, n_head: 6, n_head_kv: 2, head_dim, positions };
        load(&mut cuda, "attention_tiled.cu", launch::tiled_defines(&config(of(1, 1))));
        for dtype in DTYPES {
            for (tokens, positions) in [(2, 2), (31, 40), (33, 33), (64, 64), (200, 333)] {
                let shape = of(tokens, positions);
                let plain = attention(&cuda, dtype, shape, true, Kernel::Plain).unwrap();
                let tiled = attention(&cuda, dtype, shape, true, Kernel::Tiled).unwrap();
                for (plain, tiled) in plain.iter().zip(&tiled) {
                    assert_close(plain, tiled, dtype, &format!("{shape:?} {dtype}"));
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: make gpu-test"]
fn every_kernel_of_products_gives_the_same_on_both_devices_at_odd_sizes() {
    // One row goes to a kernel of the device where it is whole packs, and more rows to cuBLAS.
    let sizes = [(1, 1, 1), (1, 131, 33), (5, 7, 3), (33, 129, 257), (1, 5, 8), (1, 896, 4864)];
    for (rows, cols, inner) in sizes {
        for (input, output) in
            [(DType::F32, DType::F32), (DType::F16, DType::F16), (DType::F16, DType::F32)]
        {
            let x = random_values(rows * inner, 1);
            // Four products of one x, of which every second has a bias.
            let widths: Vec<usize> = (0..4).map(|nth| cols + nth).collect();
            let product = |device: &dyn Device| {
                let x = &put(device, input, &x);
                let of = |(nth, &cols): (usize, &usize)| {
                    let w = put(device, input, &random_values(cols * inner, 2 + nth as u32));
                    let bias = put(device, DType::F32, &random_values(cols, 9));
                    (Matrix::Held(w), bias, put(device, output, &vec![0.0; rows * cols]))
                };
                let matrices: Vec<_> = widths.iter().enumerate().map(of).collect();
                let gemms = matrices.iter().enumerate().map(|(nth, (w, bias, y))| {
                    let (cols, bias) = (widths[nth], (nth % 2 == 1).then_some(bias));
                    Gemm { x, w, bias, y, rows, cols, inner, input, output }
                });
                device.gemms(&gemms.collect::<Vec<_>>()).unwrap();
                let results = matrices.iter().map(|(_, _, y)| get(device, output, y));
                results.collect::<Vec<_>>().concat()
            };
            let host = product(&HostDevice::new(Default::default()).unwrap());
            let cuda = product(&CudaDevice::new().unwrap());
            assert_close(&host, &cuda, output, &format!("({rows}, {cols}, {inner}) {input}"));
        }
    }
}

#[test]
#[ignore = "needs a GPU: make gpu-test"]
fn what_does_not_fit_the_gpu_says_how_much_is_needed_and_free() {
    let device = CudaDevice::new().unwrap();
    let error = device.alloc(1 << 50, "a test's values").err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, DeviceError::OutOfMemory { .. }), "{text}");
    assert!(text.contains("1125899906842624 bytes") && text.contains("bytes are free"), "{text}");

    let shape = Shape { tokens: 1, n_head: 1, n_head_kv: 1, head_dim: 16, positions: 70_000 };
    let mut cuda = CudaDevice::new().unwrap();
    load(&mut cuda, "attention.cu", AttentionVariant::default().defines());
    let text = attention(&cuda, DType::F32, shape, false, Kernel::Plain).unwrap_err().to_string();
    assert!(text.contains("attention_f32") && text.contains("use softmax=online"), "{text}");
    // The device goes on.
    let shape = Shape { positions: 700, ..shape };
    attention(&cuda, DType::F32, shape, false, Kernel::Plain).unwrap();
}

#[test]
#[ignore = "needs a GPU: make gpu-test"]
fn a_kernel_that_does_not_compile_is_told_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let source = KernelSet::embedded().source("rope.cu", vec![]).unwrap().text;
    std::fs::write(folder.path().join("rope.cu"), format!("int x = \"\";\n{source}")).unwrap();
    let kernels = KernelSet::overridden_by(folder.path()).unwrap();
    let mut device = CudaDevice::new().unwrap();
    let error = device.load(&kernels.source("rope.cu", vec![]).unwrap()).unwrap_err();
    assert!(error.to_string().contains("rope.cu(1): error"), "{error}");
}

/// The device under test, with everything else as it is by default.
fn on(device: DeviceKind, storage: DType) -> EngineSpec {
    EngineSpec { device, ..engine(storage) }
}

#[test]
#[ignore = "needs a GPU: make gpu-test"]
fn every_fault_has_the_same_verdict_on_both_devices() {
    let bench = Bench::fixture();
    let (storage, prompt, decode) = (DType::F32, 40, 1);
    let subject = Subject { model: &bench.model, storage, prompt, decode };
    let mut differ = Vec::new();
    for fault in FAULTS.iter().filter(|fault| fault.without_effect(&subject).is_none()) {
        let verdict = |device| {
            let spec = EngineSpec { faults: Faults(vec![fault]), ..on(device, storage) };
            let finished = bench.run_replayed(&spec, prompt, decode);
            let first = crate::common::first_divergence(&finished).map(|first| first.site);
            let findings = finished.diagnosis.unwrap().findings.into_iter();
            let findings = findings.map(|f| (f.what, f.cause.text, f.cause.certainty));
            (first, findings.collect::<Vec<_>>())
        };
        let (host, cuda) = (verdict(DeviceKind::Host), verdict(DeviceKind::Cuda));
        if host != cuda {
            differ.push(format!("{}: host {host:?}, cuda {cuda:?}", fault.name));
        }
    }
    assert!(differ.is_empty(), "{differ:#?}");
}

#[test]
#[ignore = "needs a GPU: make gpu-test"]
fn every_variant_is_equal_at_the_shape_of_a_real_model_of_each_architecture() {
    let qwen2 = Spec::preset("qwen2.5-0.5b").unwrap();
    let other = |arch, n_head, n_head_kv, head_dim| Spec {
        arch,
        n_layer: 4,
        n_embd: 1024,
        n_head,
        n_head_kv,
        head_dim,
        n_ff: 3072,
        n_vocab: 32_000,
        qkv_bias: false,
        rope_freqs: arch == Arch::Llama,
        ..qwen2.clone()
    };
    for spec in [other(Arch::Llama, 16, 4, 64), other(Arch::Qwen3, 16, 8, 128), qwen2.clone()] {
        let bench = Bench::synth(&Spec { weight_type: WeightType::F16, ..spec.clone() });
        for attention in AttentionVariant::all().chain([AttentionVariant::fast()]) {
            for storage in DTYPES {
                let spec = EngineSpec { attention, ..on(DeviceKind::Cuda, storage) };
                let finished = bench.run(&spec, 64, 2);
                assert_equal(&finished, &format!("{:?} {attention} {storage}", spec));
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: make gpu-test"]
fn every_kernel_of_widening_gives_the_same_on_both_devices() {
    let host = HostDevice::new(Default::default()).unwrap();
    let cuda = CudaDevice::new().unwrap();
    for n in [1, 7, 8, 2049, (1 << 24) + 3] {
        // Every pattern of bits but for NaN: infinities, zeros of both signs, and the smallest values too.
        let values: Vec<f16> = (0..n).map(|i| f16::from_bits(i as u16)).collect();
        let values: Vec<f16> = values.into_iter().filter(|x| !x.is_nan()).collect();
        let widened = |device: &dyn Device| {
            let buffer = device.alloc(4 * values.len(), "a test's values").unwrap();
            device.upload_widened(&buffer, &values).unwrap();
            get(device, DType::F32, &buffer).into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        let exact: Vec<u32> = values.iter().map(|x| x.to_f32().to_bits()).collect();
        assert!(widened(&host) == exact, "host, {n}");
        assert!(widened(&cuda) == exact, "cuda, {n}");
    }
}

/// Reads of this size, of a buffer whose every word tells its place.
const READ: usize = 16 << 20;

fn places(device: &CudaDevice, reads: usize) -> Buffer {
    let words: Vec<u32> = (0..(reads * READ / 4) as u32).collect();
    let buffer = device.alloc(reads * READ, "a test's places").unwrap();
    device.upload(&buffer, 0, bytemuck::cast_slice(&words)).unwrap();
    buffer
}

#[test]
#[ignore = "needs a GPU: make gpu-test"]
fn reads_beyond_the_pinned_memory_hold_what_was_there_in_whatever_order_they_are_taken() {
    let device = CudaDevice::new().unwrap();
    let reads = 24;
    let buffer = places(&device, reads);
    for order in ["first to last", "last to first", "by threads"] {
        let mut started: Vec<_> = (0..reads)
            .map(|nth| {
                let rows = Strided::whole(nth * READ, READ);
                (nth, device.read(&buffer, rows).unwrap().expect("there is room on the GPU"))
            })
            .collect();
        // What was read is not what is there now.
        device.upload(&buffer, 0, &vec![0xff; reads * READ]).unwrap();
        let check = |(nth, read): (usize, Box<dyn Download>)| {
            let words: &[u32] = bytemuck::cast_slice(read.bytes().unwrap());
            let first = (nth * READ / 4) as u32;
            let wrong = (first..).zip(words).find(|(place, word)| place != *word);
            assert_eq!((wrong, words.len()), (None, READ / 4), "read {nth}, {order}");
        };
        match order {
            "by threads" => started.into_par_iter().for_each(check),
            "last to first" => {
                started.reverse();
                started.into_iter().for_each(check);
            }
            _ => started.into_iter().for_each(check),
        }
        let words: Vec<u32> = (0..(reads * READ / 4) as u32).collect();
        device.upload(&buffer, 0, bytemuck::cast_slice(&words)).unwrap();
    }
}

#[test]
#[ignore = "needs a GPU: make gpu-test"]
fn a_device_that_holds_as_many_reads_as_it_may_takes_another_when_one_is_gone() {
    let device = CudaDevice::new().unwrap();
    let buffer = places(&device, 1);
    let read = || device.read(&buffer, Strided::whole(0, READ)).unwrap();
    let mut held = Vec::new();
    while let Some(read) = read() {
        held.push(read);
        assert!(held.len() <= 4096, "64 GiB are under way");
    }
    assert!(held.len() >= 8, "{} reads", held.len());
    drop(held.remove(0));
    let another = read().expect("one is gone");
    assert_eq!(another.bytes().unwrap()[..8], [0, 0, 0, 0, 1, 0, 0, 0]);
    assert!(read().is_none());
}

#[test]
#[ignore = "needs a GPU: make gpu-test"]
fn devices_come_and_go_while_others_record_and_repeat() {
    let n = 1 << 10;
    let all_gone = AtomicBool::new(false);
    let come_and_go = || (0..24).for_each(|_| drop(CudaDevice::new().unwrap()));
    let record_and_repeat = || {
        let mut device = CudaDevice::new().unwrap();
        load(&mut device, "residual_add.cu", Vec::new());
        let y = put(&device, DType::F32, &vec![1.0; n]);
        loop {
            let x = put(&device, DType::F32, &vec![0.0; n]);
            let add = || launch::residual_add(&device, DType::F32, &x, (&x, &y), n);
            let mut adds = || (0..300).try_for_each(|_| add());
            let recorded = device.record(&mut adds).unwrap().expect("a GPU records");
            (0..3).for_each(|_| device.repeat(&recorded).unwrap());
            assert_eq!(get(&device, DType::F32, &x), vec![900.0; n]);
            if all_gone.load(Relaxed) {
                break;
            }
        }
    };
    std::thread::scope(|threads| {
        (0..4).for_each(|_| drop(threads.spawn(record_and_repeat)));
        let coming = [(); 4].map(|()| threads.spawn(come_and_go));
        let gone = coming.map(|thread| thread.join());
        // Also where one of them failed: the others would record for ever.
        all_gone.store(true, Relaxed);
        gone.into_iter().for_each(|gone| gone.unwrap());
    });
}
