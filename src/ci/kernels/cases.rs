//! Kernels on made-up data: one function an operation, each launching it once on one shape.

use half::f16;

use crate::{
    ci::kernels::reference,
    core::tensor::DType,
    engine::{
        device::{Buffer, Device, DeviceError},
        kernels::launch,
    },
};

/// What one launch left in one buffer, and what it should have.
pub struct Output {
    /// The parameter's name.
    pub name: &'static str,
    pub values: Vec<f64>,
    /// NaN where nothing must be written.
    pub reference: Vec<f64>,
    /// Largest difference allowed, relative to the largest value of the reference.
    pub tolerance: f64,
}

/// The outputs of one case.
pub type Outputs = Result<Vec<Output>, DeviceError>;

/// Sums of up to a few hundred f32 terms of mixed sign: 300 roundings of 2^-24 are 1.8e-5.
pub const F32_TOLERANCE: f64 = 2e-5;
/// An angle is a product of two roundings of powf (a few 2^-24) and a position up to 400, taken
/// before the sine: 400 * 4 * 2^-24 is 1e-4.
const ROPE_TOLERANCE: f64 = 1e-4;

/// A device and the storage type that a case uses.
#[derive(Clone, Copy)]
pub struct Bench<'a> {
    pub device: &'a dyn Device,
    pub dtype: DType,
}

impl Bench<'_> {
    /// What a result may be off, by what its computation may be: the storage rounds once more.
    pub fn tolerance(&self, computed: f64) -> f64 {
        match self.dtype {
            DType::F16 => computed + DType::F16.unit_roundoff(),
            _ => computed,
        }
    }

    /// A buffer of `n` values in [-1, 1) of the storage type, and what they are after rounding.
    pub fn input(
        &self,
        name: &str,
        n: usize,
        seed: u64,
    ) -> Result<(Buffer, Vec<f64>), DeviceError> {
        let values = values(n, seed);
        let buffer = self.device.alloc(n * self.dtype.size(), name)?;
        self.put(&buffer, 0, &values)?;
        Ok((buffer, self.rounded(&values)))
    }

    /// What the storage type makes of values.
    pub fn rounded(&self, values: &[f32]) -> Vec<f64> {
        let rounded = |value: &f32| match self.dtype {
            DType::F16 => f16::from_f32(*value).to_f64(),
            _ => f64::from(*value),
        };
        values.iter().map(rounded).collect()
    }

    /// Writes values of the storage type, from element `at` on.
    pub fn put(&self, buffer: &Buffer, at: usize, values: &[f32]) -> Result<(), DeviceError> {
        match self.dtype {
            DType::F16 => {
                let halves: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
                self.device.upload(buffer, 2 * at, bytemuck::cast_slice(&halves))
            }
            _ => self.device.upload(buffer, 4 * at, bytemuck::cast_slice(values)),
        }
    }

    /// A buffer of the storage type, in which nothing is written.
    pub fn output(&self, name: &str, n: usize) -> Result<Buffer, DeviceError> {
        self.device.alloc(n * self.dtype.size(), name)
    }

    /// The values of a buffer of the storage type.
    pub fn get(&self, buffer: &Buffer) -> Result<Vec<f64>, DeviceError> {
        if self.dtype != DType::F16 {
            return self.get_f32(buffer);
        }
        let mut halves = vec![f16::ZERO; buffer.bytes / 2];
        self.device.download(buffer, 0, bytemuck::cast_slice_mut(&mut halves))?;
        Ok(halves.iter().map(|half| half.to_f64()).collect())
    }

    pub fn get_f32(&self, buffer: &Buffer) -> Result<Vec<f64>, DeviceError> {
        let mut floats = vec![0f32; buffer.bytes / 4];
        self.device.download(buffer, 0, bytemuck::cast_slice_mut(&mut floats))?;
        Ok(floats.iter().map(|&float| f64::from(float)).collect())
    }

    /// A buffer of f32, whatever the storage type: weights of norms, biases, factors.
    pub fn floats(&self, name: &str, values: &[f32]) -> Result<(Buffer, Vec<f64>), DeviceError> {
        let buffer = self.device.alloc(4 * values.len(), name)?;
        self.device.upload(&buffer, 0, bytemuck::cast_slice(values))?;
        Ok((buffer, values.iter().map(|&value| f64::from(value)).collect()))
    }

    pub fn ints(&self, name: &str, values: &[i32]) -> Result<Buffer, DeviceError> {
        let buffer = self.device.alloc(4 * values.len(), name)?;
        self.device.upload(&buffer, 0, bytemuck::cast_slice(values))?;
        Ok(buffer)
    }

    /// The one output of a case.
    fn one(
        &self,
        name: &'static str,
        buffer: &Buffer,
        reference: Vec<f64>,
        tolerance: f64,
    ) -> Outputs {
        Ok(vec![Output { name, values: self.get(buffer)?, reference, tolerance }])
    }
}

/// Values in [-1, 1), always the same for a seed.
pub fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// A table of 7 rows; the first and the last are among the ids.
pub fn embedding(bench: Bench<'_>, tokens: usize, n_embd: usize) -> Outputs {
    let rows = 7;
    let (table, values) = bench.input("table", rows * n_embd, 1)?;
    let ids: Vec<i32> = (0..tokens).map(|t| ((t * 5 + 6) % rows) as i32).collect();
    let reference =
        ids.iter().flat_map(|&id| values[id as usize * n_embd..][..n_embd].to_vec()).collect();
    let (ids, out) = (bench.ints("ids", &ids)?, bench.output("out", tokens * n_embd)?);
    launch::embedding(bench.device, bench.dtype, &out, &table, (&ids, 0), (tokens, n_embd))?;
    bench.one("out", &out, reference, 0.0)
}

/// In place, or from the second row on into a buffer of its own.
pub fn rms_norm(bench: Bench<'_>, rows: usize, n: usize, in_place: bool) -> Outputs {
    let eps = 1e-5;
    let (x, values) = bench.input("x", rows * n, 2)?;
    let (weight, weights) = bench.floats("weight", &self::values(n, 3))?;
    let skipped = if in_place { 0 } else { n.min(values.len() - n) };
    let reference = reference::rms_norm(&values[skipped..], &weights, f64::from(eps));
    let own = bench.output("out", values.len() - skipped)?;
    let (out, offset) = if in_place { (&x, 0) } else { (&own, skipped * bench.dtype.size()) };
    let shape = ((values.len() - skipped) / n, n);
    launch::rms_norm(bench.device, bench.dtype, out, (&x, offset), &weight, shape, eps)?;
    bench.one("out", out, reference, bench.tolerance(F32_TOLERANCE))
}

/// (T, H, D) at positions from 389 down, which start one element into their buffer.
pub fn rope(
    bench: Bench<'_>,
    neox: bool,
    with_factors: bool,
    (tokens, n_head, head_dim): (usize, usize, usize),
) -> Outputs {
    let (x, values) = bench.input("x", tokens * n_head * head_dim, 6)?;
    let positions: Vec<i32> = (0..=tokens).map(|t| 426 - 37 * t as i32).collect();
    let own = bench.ints("positions", &positions)?;
    let factors: Vec<f32> =
        self::values(head_dim / 2, 7).iter().map(|x| 1.0 + 7.0 * x.abs()).collect();
    let (factors, factor_values) = bench.floats("factors", &factors)?;
    let theta = 10_000.0;
    let reference = reference::Rope {
        neox,
        theta,
        positions: &positions[1..],
        factors: with_factors.then_some(&factor_values[..]),
        n_head,
        head_dim,
    };
    let reference = reference::rope(&values, &reference);
    let out = bench.output("out", values.len())?;
    let factors = with_factors.then_some(&factors);
    let op = launch::Rope { neox, theta: theta as f32, positions: (&own, 4), factors };
    launch::rope(bench.device, bench.dtype, &out, &x, &op, (tokens, n_head, head_dim))?;
    bench.one("out", &out, reference, bench.tolerance(ROPE_TOLERANCE))
}

/// T tokens after `past` ones, into a cache with room for three more; nothing else is written.
pub fn kv_append(
    bench: Bench<'_>,
    (tokens, n_head_kv, head_dim): (usize, usize, usize),
    past: usize,
) -> Outputs {
    let n = n_head_kv * head_dim;
    let length = past + tokens;
    let capacity = length + 3;
    let (k, k_values) = bench.input("k", tokens * n, 8)?;
    let (v, v_values) = bench.input("v", tokens * n, 9)?;
    let positions: Vec<i32> = (past..length).map(|position| position as i32).collect();
    let positions = bench.ints("positions", &positions)?;
    let k_cache = bench.output("k_cache", capacity * n)?;
    let v_cache = bench.output("v_cache", capacity * n)?;
    let cache =
        launch::CacheView { k: &k_cache, v: &v_cache, n_head_kv, head_dim, capacity, length };
    launch::kv_append(
        bench.device,
        bench.dtype,
        &cache,
        ((&k, 0), (&v, 0)),
        (&positions, 0),
        tokens,
    )?;
    let expected = |values: &[f64]| {
        let mut cache = vec![f64::NAN; capacity * n];
        for (i, row) in values.chunks(head_dim).enumerate() {
            let (token, head) = (i / n_head_kv, i % n_head_kv);
            cache[(head * capacity + past + token) * head_dim..][..head_dim].copy_from_slice(row);
        }
        cache
    };
    let output = |name, buffer: &Buffer, values: &[f64]| {
        let (values, reference) = (bench.get(buffer)?, expected(values));
        Ok(Output { name, values, reference, tolerance: 0.0 })
    };
    Ok(vec![output("k_cache", &k_cache, &k_values)?, output("v_cache", &v_cache, &v_values)?])
}

pub fn swiglu(bench: Bench<'_>, n: usize) -> Outputs {
    let (gate, gates) = bench.input("gate", n, 10)?;
    let (up, ups) = bench.input("up", n, 11)?;
    let out = bench.output("out", n)?;
    launch::swiglu(bench.device, bench.dtype, &out, (&gate, &up), n)?;
    let reference = reference::swiglu(&gates, &ups);
    bench.one("out", &out, reference, bench.tolerance(F32_TOLERANCE))
}

/// Into a buffer of its own, or into x.
pub fn residual_add(bench: Bench<'_>, n: usize, in_place: bool) -> Outputs {
    let (x, xs) = bench.input("x", n, 12)?;
    let (y, ys) = bench.input("y", n, 13)?;
    let own = bench.output("out", n)?;
    let out = if in_place { &x } else { &own };
    launch::residual_add(bench.device, bench.dtype, out, (&x, &y), n)?;
    let reference = xs.iter().zip(&ys).map(|(x, y)| x + y).collect();
    bench.one("out", out, reference, bench.tolerance(F32_TOLERANCE))
}
