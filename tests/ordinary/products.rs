//! Products: tensor cores, pipelined tiles, int8 blocks, attention.

use half::f16;

use super::support::{Call, Value, assert_close, bfloats, halves};
use crate::common::random_values;

/// C (m, n) = A (m, k) times B, whose element (k, n) is `b(k, n)`.
fn product(
    a: &[f32],
    (m, n, k): (usize, usize, usize),
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f64> {
    let element = |row: usize, col: usize| -> f64 {
        (0..k).map(|i| f64::from(a[row * k + i]) * f64::from(b(i, col))).sum()
    };
    (0..m * n).map(|i| element(i / n, i % n)).collect()
}

#[test]
fn tensor_cores_in_half() {
    let (m, n, k) = (32, 48, 80);
    let (a, b) = (halves(random_values(m * k, 1)), halves(random_values(n * k, 2)));
    let wanted: Vec<f64> =
        product(&a, (m, n, k), |i, col| b[col * k + i]).iter().map(|x| 0.5 * x).collect();
    let mut values = vec![Value::F32(vec![0.0; m * n]), Value::F16(a), Value::F16(b)];
    values.extend([m, n, k].map(|size| Value::Int(size as i32)));
    values.push(Value::Float(0.5));
    for out in Call::new("wmma_gemm.cu", "wmma_gemm", values).block(64, 3).run() {
        assert_close(&out.f32(0), &wanted, 1e-5);
    }
}

#[test]
fn tensor_cores_in_bf16_from_shared_memory() {
    let k = 48;
    let (a, b) = (bfloats(random_values(16 * k, 3)), bfloats(random_values(16 * k, 4)));
    let wanted = product(&a, (16, 16, k), |i, col| b[i * 16 + col]);
    let values =
        vec![Value::F32(vec![0.0; 256]), Value::Bf16(a), Value::Bf16(b), Value::Int(k as i32)];
    for out in Call::new("wmma_gemm.cu", "wmma_bf16", values).run() {
        assert_close(&out.f32(0), &wanted, 1e-5);
    }
}

#[test]
fn tensor_cores_with_a_half_accumulator_by_columns() {
    let (a, b) = (halves(random_values(256, 5)), halves(random_values(256, 6)));
    let c = halves(random_values(256, 7));
    let by_rows: Vec<f32> = (0..256).map(|i| a[i % 16 * 16 + i / 16]).collect();
    let sums = product(&by_rows, (16, 16, 16), |i, col| b[i * 16 + col]);
    let wanted: Vec<f64> = (0..256).map(|i| sums[i % 16 * 16 + i / 16] + f64::from(c[i])).collect();
    let values = vec![Value::F16(c), Value::F16(a), Value::F16(b)];
    for out in Call::new("wmma_gemm.cu", "wmma_half_accumulator", values).run() {
        assert_close(&out.f16(0), &wanted, 1.0 / 2048.0);
    }
}

#[test]
fn a_product_with_asynchronous_copies() {
    let (m, n, k) = (32, 48, 80);
    let (a, b) = (random_values(m * k, 8), random_values(k * n, 9));
    let wanted = product(&a, (m, n, k), |i, col| b[i * n + col]);
    let mut values = vec![Value::F32(vec![0.0; m * n]), Value::F32(a), Value::F32(b)];
    values.extend([m, n, k].map(|size| Value::Int(size as i32)));
    let call = Call::new("pipelined_gemm.cu", "sgemm_async", values);
    for out in call.grid(n / 16, m / 16).block(16, 16).run() {
        assert_close(&out.f32(0), &wanted, 1e-5);
    }
}

/// Blocks of 32 int8 values, each after its scale in f16; and the values that they stand for.
fn q8_0(n: usize, seed: u32) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut meant) = (Vec::new(), Vec::new());
    for block in random_values(n, seed).chunks(32) {
        let scale = f16::from_f32(block[0].abs() / 64.0 + 0.001);
        bytes.extend(scale.to_le_bytes());
        for x in block {
            let code = (127.0 * x) as i8;
            bytes.push(code as u8);
            meant.push(f32::from(code) * scale.to_f32());
        }
    }
    (bytes, meant)
}

#[test]
fn int8_blocks_by_dp4a() {
    let (rows, columns) = (5, 96);
    let ((x, x_meant), (y, y_meant)) = (q8_0(rows * columns, 10), q8_0(columns, 11));
    let wanted = product(&x_meant, (rows, 1, columns), |i, _| y_meant[i]);
    let values = vec![
        Value::F32(vec![0.0; rows]),
        Value::Bytes(x),
        Value::Bytes(y),
        Value::Int(columns as i32),
    ];
    for out in Call::new("dp4a_q8.cu", "mul_mat_vec_q8_0", values).grid(rows, 1).run() {
        assert_close(&out.f32(0), &wanted, 1e-5);
    }
}

#[test]
fn attention_by_tiles_in_dynamic_memory_that_the_file_declares() {
    let (batch, heads, n, d) = (2, 2, 45, 24);
    let size = batch * heads * n * d;
    let [q, k, v] = [12, 13, 14].map(|seed| random_values(size, seed));
    let scale = 1.0 / (d as f32).sqrt();
    let mut wanted = vec![0f64; size];
    for head in 0..batch * heads {
        for row in 0..n {
            let at = |token: usize| (head * n + token) * d;
            let score = |key: usize| -> f64 {
                let terms = (0..d).map(|i| f64::from(q[at(row) + i]) * f64::from(k[at(key) + i]));
                terms.sum::<f64>() * f64::from(scale)
            };
            let weights: Vec<f64> = (0..=row).map(|key| score(key).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for i in 0..d {
                let terms =
                    weights.iter().enumerate().map(|(key, w)| w * f64::from(v[at(key) + i]));
                wanted[at(row) + i] = terms.sum::<f64>() / sum;
            }
        }
    }
    let mut values = vec![Value::F32(vec![0.0; size])];
    values.extend([q, k, v].map(Value::F32));
    values.extend([Value::Int(n as i32), Value::Int(d as i32), Value::Float(scale), Value::Int(1)]);
    let shared = 4 * (2 * 32 * d + 2 * 16 * d + 32 * 16);
    let call = Call::new("flash_tile.cu", "flash_forward", values);
    for out in call.grid(batch, heads).shared(shared).run() {
        assert_close(&out.f32(0), &wanted, 1e-5);
    }
}
