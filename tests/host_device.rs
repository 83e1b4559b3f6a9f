use firstdiff::{
    core::tensor::DType,
    engine::device::{
        Arg, Buffer, Device, DeviceError, FileMatrix, Gemm, KernelSource, Launch, Matrix,
        host::{HostDevice, HostOptions, ThreadOrder},
    },
    model::{
        ModelFile,
        synth::{self, Spec, WeightType},
    },
};
use half::f16;

use crate::common::random_values;

const HEADER: &str = "#include <cuda_fp16.h>\n";

fn device_with(options: HostOptions, body: &str) -> HostDevice {
    let mut device = HostDevice::new(options).unwrap();
    device.load(&source(body)).unwrap();
    device
}

fn device(body: &str) -> HostDevice {
    device_with(HostOptions::default(), body)
}

fn source(body: &str) -> KernelSource {
    let text = format!("{HEADER}{body}");
    KernelSource { file: "test.cu".to_string(), text, defines: vec![] }
}

fn upload<T: bytemuck::Pod>(device: &HostDevice, values: &[T]) -> Buffer {
    let bytes = bytemuck::cast_slice(values);
    let buffer = device.alloc(bytes.len(), "test").unwrap();
    device.upload(&buffer, 0, bytes).unwrap();
    buffer
}

fn download<T: bytemuck::Pod>(device: &HostDevice, buffer: &Buffer, n: usize) -> Vec<T> {
    let mut values = vec![T::zeroed(); n];
    device.download(buffer, 0, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

fn launch(blocks: u32, threads: u32, shared_bytes: u32) -> Launch {
    Launch { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes }
}

const SUM: &str = r#"
extern "C" __global__ void sum(float* out, const float* x, int n) {
    extern __shared__ float part[];
    float mine = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) mine += x[i];
    part[threadIdx.x] = mine;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        SYNC
    }
    if (threadIdx.x == 0) *out = part[0];
}
"#;

fn sum_of(order: ThreadOrder, synchronised: bool) -> f32 {
    let body = SUM.replace("SYNC", if synchronised { "__syncthreads();" } else { "" });
    let device = device_with(HostOptions { order, ..HostOptions::default() }, &body);
    let values: Vec<f32> = (0..1000).map(|i| (i % 17) as f32).collect();
    let (x, out) = (upload(&device, &values), upload(&device, &[0f32]));
    let args = [Arg::Buffer(&out, 0), Arg::Buffer(&x, 0), Arg::I32(1000)];
    device.launch("sum", launch(1, 256, 1024), &args).unwrap();
    download::<f32>(&device, &out, 1)[0]
}

#[test]
fn a_reduction_through_shared_memory_is_right_in_every_thread_order() {
    let wanted: f32 = (0..1000).map(|i| (i % 17) as f32).sum();
    for order in [ThreadOrder::Forward, ThreadOrder::Reverse, ThreadOrder::Random(5)] {
        assert_eq!(sum_of(order, true), wanted, "{order:?}");
    }
    // Without its barrier it depends on the order.
    assert_ne!(sum_of(ThreadOrder::Forward, false), wanted);
}

#[test]
fn every_thread_of_an_odd_grid_runs_once() {
    let device = device(
        "extern \"C\" __global__ void axpy(float* y, const float* x, float a, int n) {\n\
         int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) y[i] += a * x[i]; }",
    );
    for n in [1usize, 31, 33, 255, 257, 20_011] {
        let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let (x, y) = (upload(&device, &values), upload(&device, &vec![1f32; n]));
        let args = [Arg::Buffer(&y, 0), Arg::Buffer(&x, 0), Arg::F32(2.0), Arg::I32(n as i32)];
        device.launch("axpy", launch(n.div_ceil(256) as u32, 256, 0), &args).unwrap();
        let wanted: Vec<f32> = (0..n).map(|i| 1.0 + 2.0 * i as f32).collect();
        assert_eq!(download::<f32>(&device, &y, n), wanted);
    }
}

#[test]
fn shuffles_follow_the_rules_of_the_hardware() {
    let device = device(
        "extern \"C\" __global__ void shuffle(int* out) {\n\
         int i = threadIdx.x; unsigned all = 0xffffffffu;\n\
         out[i] = __shfl_xor_sync(all, i, 5);\n\
         out[32 + i] = __shfl_down_sync(all, i, 3);\n\
         out[64 + i] = __shfl_up_sync(all, i, 3, 8);\n\
         out[96 + i] = __shfl_sync(all, i, 9, 16);\n\
         out[128 + i] = __ballot_sync(all, i % 3 == 0); }",
    );
    let out = upload(&device, &[0i32; 160]);
    device.launch("shuffle", launch(1, 32, 0), &[Arg::Buffer(&out, 0)]).unwrap();
    let found = download::<i32>(&device, &out, 160);
    let votes: i32 = (0..32).filter(|lane| lane % 3 == 0).fold(0, |mask, lane| mask | 1 << lane);
    for i in 0..32i32 {
        let at = |part: i32| found[(32 * part + i) as usize];
        assert_eq!(at(0), i ^ 5);
        assert_eq!(at(1), if i + 3 < 32 { i + 3 } else { i });
        assert_eq!(at(2), if i % 8 >= 3 { i - 3 } else { i });
        assert_eq!(at(3), i / 16 * 16 + 9);
        assert_eq!(at(4), votes);
    }
}

#[test]
fn half_precision_converts_as_the_half_crate_does() {
    let device = device(
        "extern \"C\" __global__ void widen(float* y, const __half* x, int n) {\n\
         int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) y[i] = __half2float(x[i]); }\n\
         extern \"C\" __global__ void narrow(__half* y, const float* x, int n) {\n\
         int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) y[i] = __float2half(x[i]); }",
    );
    let halves: Vec<u16> = (0..=u16::MAX).collect();
    let n = halves.len();
    let (x, y) = (upload(&device, &halves), upload(&device, &vec![0f32; n]));
    let args = [Arg::Buffer(&y, 0), Arg::Buffer(&x, 0), Arg::I32(n as i32)];
    device.launch("widen", launch(256, 256, 0), &args).unwrap();
    for (bits, found) in halves.iter().zip(download::<f32>(&device, &y, n)) {
        let wanted = f16::from_bits(*bits).to_f32();
        assert!(found == wanted || found.is_nan() && wanted.is_nan(), "{bits:#x}");
    }
    // Floats around every rounding boundary: a third and half of the way to the next half.
    let floats: Vec<f32> =
        halves.iter().map(|&bits| f32::from_bits(u32::from(bits) << 16 | 0x5555)).collect();
    let (x, y) = (upload(&device, &floats), upload(&device, &vec![0u16; n]));
    let args = [Arg::Buffer(&y, 0), Arg::Buffer(&x, 0), Arg::I32(n as i32)];
    device.launch("narrow", launch(256, 256, 0), &args).unwrap();
    for (float, found) in floats.iter().zip(download::<u16>(&device, &y, n)) {
        let wanted = f16::from_f32(*float);
        let found = f16::from_bits(found);
        assert!(found == wanted || found.is_nan() && wanted.is_nan(), "{float:e}");
    }
}

#[test]
fn divergence_is_an_error_with_its_place_and_the_device_goes_on() {
    let device = device(
        "extern \"C\" __global__ void branch(int* out) {\n\
         if (threadIdx.x < 32) __syncthreads();\n\
         *out = 1; }\n\
         extern \"C\" __global__ void exits(int* out) {\n\
         if (threadIdx.x == 3) return;\n\
         *out = __shfl_sync(0xffffffffu, 1, 3); }\n\
         extern \"C\" __global__ void outside(int* out) {\n\
         *out = __shfl_sync(0xfffffffeu, 1, 3); }\n\
         extern \"C\" __global__ void two_sites(int* out) {\n\
         if (threadIdx.x < 32) __syncthreads();\n\
         else __syncthreads();\n\
         *out = 1; }\n\
         extern \"C\" __global__ void fine(int* out) { __syncthreads(); *out = 7; }",
    );
    let out = upload(&device, &[0i32]);
    for (entry, line, says) in [
        ("branch", 3, "barrier divergence: 32 of 64 threads wait"),
        ("exits", 7, "shuffle reads lane 3, which has exited"),
        ("outside", 9, "leaves out the calling lane"),
        ("two_sites", 11, "barrier divergence: thread (0,0,0) waits"),
    ] {
        let error = device.launch(entry, launch(2, 64, 0), &[Arg::Buffer(&out, 0)]).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(&format!("test.cu: kernel {entry}, block (0,0,0): ")), "{text}");
        assert!(text.contains(says), "{text}");
        assert!(text.contains(&format!("test.cu:{line}")), "{text}");
        assert!(text.contains("thread ("), "{text}");
        device.launch("fine", launch(1, 64, 0), &[Arg::Buffer(&out, 0)]).unwrap();
        assert_eq!(download::<i32>(&device, &out, 1), [7]);
    }
}

#[test]
fn a_wrong_launch_is_refused_before_it_runs() {
    let device = device("extern \"C\" __global__ void one(float* y, int n) { y[0] = n; }");
    let y = upload(&device, &[0f32]);
    let right = [Arg::Buffer(&y, 0), Arg::I32(1)];
    let error = |entry, launch, args: &[Arg<'_>]| {
        device.launch(entry, launch, args).unwrap_err().to_string()
    };
    let text = error("two", launch(1, 1, 0), &right);
    assert!(text.contains("no kernel entry two; the loaded files have: one"), "{text}");
    let text = error("one", launch(1, 1, 0), &[Arg::Buffer(&y, 0), Arg::F32(1.0)]);
    assert!(text.contains("one takes (pointer, int), but is given (pointer, float)"), "{text}");
    assert!(error("one", launch(1, 1025, 0), &right).contains("1 to 1024 threads"));
    assert!(error("one", launch(0, 32, 0), &right).contains("CUDA's limits"));
    assert!(error("one", launch(1, 32, 1 << 20), &right).contains("dynamic shared memory"));
    assert!(matches!(device.upload(&y, 2, &[0; 4]), Err(DeviceError::Bounds { .. })));
    assert!(matches!(
        device.download(&y, usize::MAX, &mut [0; 4]),
        Err(DeviceError::Bounds { .. })
    ));
}

#[test]
fn fresh_memory_is_nan() {
    let device = HostDevice::new(HostOptions::default()).unwrap();
    let buffer = device.alloc(16, "test").unwrap();
    assert!(download::<f32>(&device, &buffer, 4).iter().all(|value| value.is_nan()));
}

#[test]
fn products_are_right_for_odd_sizes_and_the_same_for_any_number_of_workers() {
    for (rows, cols, inner) in [(1, 1, 1), (1, 131, 33), (5, 7, 3), (33, 129, 257)] {
        for (input, output) in
            [(DType::F32, DType::F32), (DType::F16, DType::F16), (DType::F16, DType::F32)]
        {
            let x = random_values(rows * inner, 1);
            let w = random_values(cols * inner, 2);
            let products = [1, 2, 2].map(|workers| {
                let options = HostOptions { workers: Some(workers), ..HostOptions::default() };
                let device = HostDevice::new(options).unwrap();
                product(&device, &x, &w, (rows, cols, inner), (input, output))
            });
            assert_eq!(products[0], products[1]);
            assert_eq!(products[1], products[2]);
            let narrow = |value: f32| match input {
                DType::F16 => f64::from(f16::from_f32(value).to_f32()),
                _ => f64::from(value),
            };
            for row in 0..rows {
                for col in 0..cols {
                    let (mut sum, mut size) = (0.0, 0.0);
                    for k in 0..inner {
                        let term = narrow(x[row * inner + k]) * narrow(w[col * inner + k]);
                        sum += term;
                        size += term.abs();
                    }
                    // n terms summed in f32, then one rounding of the result to the output.
                    let bound = inner as f64 * DType::F32.unit_roundoff() * size
                        + output.unit_roundoff() * sum.abs();
                    let found = f64::from(products[0][row * cols + col]);
                    approx::assert_abs_diff_eq!(found, sum, epsilon = bound + 1e-7);
                }
            }
        }
    }
}

#[test]
fn a_matrix_in_the_file_gives_the_bits_of_one_in_memory() {
    for weight_type in WeightType::ALL {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let spec = Spec {
            n_layer: 1,
            n_embd: 256,
            n_head: 4,
            n_head_kv: 2,
            head_dim: 64,
            n_ff: 512,
            n_vocab: 261,
            weight_type,
            ..Spec::preset("tiny-llama").unwrap()
        };
        synth::write(&spec, &path, &mut |_| {}).unwrap();
        let file = ModelFile::open(&path).unwrap();
        let device = HostDevice::new(Default::default()).unwrap();
        let matrices = file.gguf().tensors().iter().filter(|info| info.dims.len() == 2);
        for (info, input) in matrices.flat_map(|info| [(info, DType::F32), (info, DType::F16)]) {
            let sizes = |rows| (rows, info.rows(), info.row_length());
            let wide = file.weights(&info.name).unwrap();
            let in_file = Matrix::InFile(FileMatrix::new(file.gguf(), info, input));
            for rows in [1, 7] {
                let x = random_values(rows * info.row_length(), 5);
                let types = (input, DType::F32);
                let held = product(&device, &x, &wide, sizes(rows), types);
                let found = product_with(&device, &x, &in_file, sizes(rows), types);
                assert!(held.iter().all(|y| y.is_finite()) && held[0] != 0.0);
                assert_eq!(found, held, "{} in {input}, {rows} rows", info.name);
            }
        }
    }
}

fn product(
    device: &HostDevice,
    x: &[f32],
    w: &[f32],
    sizes: (usize, usize, usize),
    (input, output): (DType, DType),
) -> Vec<f32> {
    let w = Matrix::Held(put(device, w, input));
    product_with(device, x, &w, sizes, (input, output))
}

/// Values on the device, rounded to a type.
fn put(device: &HostDevice, values: &[f32], dtype: DType) -> Buffer {
    match dtype {
        DType::F16 => {
            let halves: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
            upload(device, &halves)
        }
        _ => upload(device, values),
    }
}

fn product_with(
    device: &HostDevice,
    x: &[f32],
    w: &Matrix,
    (rows, cols, inner): (usize, usize, usize),
    (input, output): (DType, DType),
) -> Vec<f32> {
    let x = &put(device, x, input);
    let y = device.alloc(rows * cols * output.size(), "y").unwrap();
    let sizes = Gemm { x, w, bias: None, y: &y, rows, cols, inner, input, output };
    device.gemms(&[sizes]).unwrap();
    match output {
        DType::F16 => {
            download::<f16>(device, &y, rows * cols).iter().map(|half| half.to_f32()).collect()
        }
        _ => download(device, &y, rows * cols),
    }
}
