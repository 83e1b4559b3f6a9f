//! The cuda device's own kernels on made-up data, launched as that device does: products, bias, widening.

use crate::{
    ci::kernels::cases::{Bench, F32_TOLERANCE, Output, Outputs, values},
    core::tensor::DType,
    engine::device::{Arg, Buffer, Launch},
};

const BLOCK: u32 = 128;
const WIDEN_BLOCK: u32 = 256;

/// One launch of `gemv`.
#[derive(Clone, Copy)]
pub struct Product {
    /// Of each matrix; one without outputs is absent.
    pub outputs: [usize; 3],
    pub inner: usize,
    /// Warps that share an output: 1 or 4.
    pub warps: u32,
    /// Whether the outputs are f32, whatever the storage type.
    pub wide: bool,
}

/// y = x W^T + bias for one x; the second matrix has no bias.
pub fn gemv(bench: Bench<'_>, product: Product) -> Outputs {
    let Product { outputs, inner, warps, wide } = product;
    let out_bench = Bench { dtype: if wide { DType::F32 } else { bench.dtype }, ..bench };
    let (x, xs) = bench.input("x", inner, 31)?;
    let mut matrices = Vec::new();
    for (nth, &n) in outputs.iter().enumerate().filter(|&(_, &n)| n > 0) {
        let (w, ws) = bench.input("w", n * inner, 32 + nth as u64)?;
        let bias = (nth != 1).then(|| bench.floats("bias", &values(n, 40 + nth as u64)));
        let y = out_bench.output("y", n)?;
        matrices.push((w, ws, bias.transpose()?, y));
    }
    let whole = |buffer| Arg::Buffer(buffer, 0);
    let mut args = vec![whole(&x)];
    args.extend([0, 1, 2].map(|i| matrices.get(i).map_or(Arg::Null, |m| whole(&m.0))));
    let bias = |i: usize| matrices.get(i).and_then(|m| m.2.as_ref());
    args.extend([0, 1, 2].map(|i| bias(i).map_or(Arg::Null, |(buffer, _)| whole(buffer))));
    args.extend([0, 1, 2].map(|i| matrices.get(i).map_or(Arg::Null, |m| whole(&m.3))));
    args.extend(outputs.map(|n| Arg::I32(n as i32)));
    args.push(Arg::I32(inner as i32));
    let blocks = (outputs.iter().sum::<usize>() as u32).div_ceil(BLOCK / 32 / warps);
    let launch = Launch { grid: [blocks, 1, 1], block: [BLOCK, 1, 1], shared_bytes: 0 };
    let entry = format!("gemv_{}_{}_{warps}", bench.dtype, out_bench.dtype);
    bench.device.launch(&entry, launch, &args)?;
    let names = ["y0", "y1", "y2"];
    let output = |(name, (_, ws, bias, y)): (&'static str, &Matrix)| {
        let dot = |(c, w): (usize, &[f64])| {
            let sum: f64 = xs.iter().zip(w).map(|(x, w)| x * w).sum();
            sum + bias.as_ref().map_or(0.0, |(_, bias)| bias[c])
        };
        let reference = ws.chunks(inner).enumerate().map(dot).collect();
        let tolerance = out_bench.tolerance(F32_TOLERANCE);
        Ok(Output { name, values: out_bench.get(y)?, reference, tolerance })
    };
    names.into_iter().zip(&matrices).map(output).collect()
}

/// w and its values, bias and its values, y.
type Matrix = (Buffer, Vec<f64>, Option<(Buffer, Vec<f64>)>, Buffer);

/// x (rows, n) += bias (n).
pub fn add_bias(bench: Bench<'_>, rows: usize, n: usize) -> Outputs {
    let (x, xs) = bench.input("x", rows * n, 51)?;
    let (bias, biases) = bench.floats("bias", &values(n, 52))?;
    let args = [Arg::Buffer(&x, 0), Arg::Buffer(&bias, 0), Arg::I32(n as i32)];
    let launch = Launch { grid: [rows as u32, 1, 1], block: [BLOCK, 1, 1], shared_bytes: 0 };
    bench.device.launch(&format!("add_bias_{}", bench.dtype), launch, &args)?;
    let reference = xs.iter().enumerate().map(|(i, x)| x + biases[i % n]).collect();
    let (values, tolerance) = (bench.get(&x)?, bench.tolerance(F32_TOLERANCE));
    Ok(vec![Output { name: "x", values, reference, tolerance }])
}

/// out (n) = x (n), from f16 to f32.
pub fn widen(bench: Bench<'_>, n: usize) -> Outputs {
    let (x, reference) = bench.input("x", n, 61)?;
    let out_bench = Bench { dtype: DType::F32, ..bench };
    let out = out_bench.output("out", n)?;
    let args = [Arg::Buffer(&out, 0), Arg::Buffer(&x, 0), Arg::I32(n as i32)];
    let grid = [(n as u32).div_ceil(8 * WIDEN_BLOCK), 1, 1];
    let launch = Launch { grid, block: [WIDEN_BLOCK, 1, 1], shared_bytes: 0 };
    bench.device.launch("widen_f16", launch, &args)?;
    Ok(vec![Output { name: "out", values: out_bench.get(&out)?, reference, tolerance: 0.0 }])
}
