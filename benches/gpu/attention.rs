//! The split attention kernels alone, beside a copy of as many bytes and launches that do nothing.

use firstdiff::{
    core::tensor::DType,
    engine::{
        device::{Buffer, Device, DeviceError, KernelSource, Launch, cuda::CudaDevice},
        kernels::{
            KernelSet,
            launch::{self, Attention, CacheView, Splits},
        },
    },
    model::{Config, Model},
};

use crate::{Result, limits::Limits, median};

const REPEATS: usize = 25;
/// Times that a graph of all layers is launched in one measurement.
const ROUNDS: usize = 10;
/// Kernels of a layer's attention.
const LAUNCHES: usize = 2;
const NOTHING: &str = "extern \"C\" __global__ void nothing() {}";

/// The table of all lengths, for the model and for heads that have more to read.
pub fn all(model: &Model, limits: &Limits) -> Result<()> {
    let qwen = &model.config;
    // The caches of four layers, so that the GPU's own does not hold them.
    let llama =
        Config { n_layer: 4, n_head: 32, n_head_kv: 8, head_dim: 128, ..model.config.clone() };
    println!(
        "Split attention of one token alone, f16, in a graph of all layers. The copy reads and"
    );
    println!(
        "writes as many bytes as a layer's keys and values take; the launches are as many empty kernels.\n"
    );
    println!(
        "| Hq, Hk, D | layers | positions | us a layer | of a copy | of launches | TB/s | x the copy's rate |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    for config in [qwen, &llama] {
        for positions in [512, 4096, 32768] {
            row(config, positions, limits)?;
        }
    }
    println!();
    Ok(())
}

fn row(config: &Config, positions: usize, limits: &Limits) -> Result<()> {
    let c = config;
    let mut device = CudaDevice::new()?;
    device.load(&KernelSet::embedded().source("attention_split.cu", Splits::defines(c))?)?;
    let (file, text) = ("nothing.cu".to_string(), NOTHING.to_string());
    device.load(&KernelSource { file, text, defines: Vec::new() })?;
    let bytes = 2 * c.n_head_kv * positions * c.head_dim;
    let zeros = |bytes: usize| -> Result<Buffer> {
        let buffer = device.alloc(bytes, "attention")?;
        device.upload(&buffer, 0, &vec![0; bytes])?;
        Ok(buffer)
    };
    let caches: Vec<_> =
        (0..c.n_layer).map(|_| Ok((zeros(bytes)?, zeros(bytes)?))).collect::<Result<_>>()?;
    let (q, out) = (zeros(2 * c.n_head * c.head_dim)?, zeros(2 * c.n_head * c.head_dim)?);
    let position = zeros(4)?;
    device.upload(&position, 0, &(positions as i32 - 1).to_le_bytes())?;
    let splits = Splits::new(&device, c)?;
    let op = Attention {
        q: (&q, 0),
        out: &out,
        positions: (&position, 0),
        scores: None,
        probs: None,
        n_head: c.n_head,
        scale: c.attention_scale,
        online: true,
    };
    let attention = microseconds(&device, &caches, &out, &|k, v| {
        let (n_head_kv, head_dim, capacity) = (c.n_head_kv, c.head_dim, positions);
        let view = CacheView { k, v, n_head_kv, head_dim, capacity, length: positions };
        launch::attention_split(&device, DType::F16, &view, &op, &splits, c)
    })?;
    let nothing = microseconds(&device, &caches, &out, &|_, _| {
        let launch = Launch { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0 };
        (0..LAUNCHES).try_for_each(|_| device.launch("nothing", launch, &[]))
    })?;
    let copy = microseconds(&device, &caches, &out, &|k, v| device.copy(k, v))?;
    let rate = 2.0 * bytes as f64 / (attention * 1e-6);
    println!(
        "| {}, {}, {} | {} | {positions} | {attention:.2} | {copy:.2} | {nothing:.2} | {:.2} | {:.2} |",
        c.n_head,
        c.n_head_kv,
        c.head_dim,
        c.n_layer,
        rate / 1e12,
        rate / limits.copy
    );
    Ok(())
}

/// The time of a layer of a recorded graph of `work` on each layer's keys and values.
fn microseconds(
    device: &CudaDevice,
    caches: &[(Buffer, Buffer)],
    out: &Buffer,
    work: &dyn Fn(&Buffer, &Buffer) -> std::result::Result<(), DeviceError>,
) -> Result<f64> {
    let layers = &mut || caches.iter().try_for_each(|(k, v)| work(k, v));
    layers()?;
    let recorded = device.record(layers)?.ok_or("a GPU records graphs")?;
    let milliseconds = median(REPEATS, || {
        for _ in 0..ROUNDS {
            device.repeat(&recorded)?;
        }
        Ok(device.download(out, 0, &mut [0; 2])?)
    })?;
    Ok(milliseconds * 1e3 / (ROUNDS * caches.len()) as f64)
}
