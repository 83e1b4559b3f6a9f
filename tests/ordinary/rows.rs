//! Norms and softmaxes, a row at a time.

use super::support::{Call, Value, assert_close, bfloats};
use crate::common::random_values;

/// Row by row, its values in f64.
fn by_rows(values: &[f32], width: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let wide = |row: &[f32]| row.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    values.chunks(width).flat_map(|row| f(&wide(row))).collect()
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let most = row.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = row.iter().map(|x| (x - most).exp()).sum();
    row.iter().map(|x| (x - most).exp() / sum).collect()
}

#[test]
fn rms_norm_with_wide_loads() {
    let (rows, width, eps) = (3, 1040, 1e-5);
    let (x, weight) = (random_values(rows * width, 1), random_values(width, 2));
    let wanted = by_rows(&x, width, |row| {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
        let scale = 1.0 / (mean + eps).sqrt();
        row.iter().zip(&weight).map(|(x, &w)| x * scale * f64::from(w)).collect()
    });
    let values = vec![
        Value::F32(vec![0.0; rows * width]),
        Value::F32(x),
        Value::F32(weight),
        Value::Int(width as i32),
        Value::Float(eps as f32),
    ];
    let call =
        Call::new("rms_norm_float4.cu", "rms_norm_kernel", values).grid(rows, 1).block(256, 1);
    for out in call.run() {
        assert_close(&out.f32(0), &wanted, 1e-5);
    }
}

#[test]
fn softmax_by_a_templated_block_reduction() {
    let (rows, width) = (3, 333);
    let x: Vec<f32> = random_values(rows * width, 3).iter().map(|x| 8.0 * x).collect();
    let wanted = by_rows(&x, width, softmax);
    let values = vec![Value::F32(vec![0.0; rows * width]), Value::F32(x), Value::Int(width as i32)];
    let call = Call::new("block_reduce.cu", "block_softmax", values).grid(rows, 1).block(128, 1);
    for out in call.run() {
        assert_close(&out.f32(0), &wanted, 1e-5);
    }
}

#[test]
fn softmax_with_cooperative_groups() {
    let (rows, width) = (13, 75);
    let x: Vec<f32> = random_values(rows * width, 4).iter().map(|x| 5.0 * x).collect();
    let wanted = by_rows(&x, width, softmax);
    let (n, c) = (Value::Int(rows as i32), Value::Int(width as i32));
    // Rows of a block: threads by the tile's size.
    for (entry, tile) in [("softmax_warp", 32), ("softmax_octet", 8)] {
        let values =
            vec![Value::F32(vec![0.0; rows * width]), Value::F32(x.clone()), n.clone(), c.clone()];
        let call = Call::new("cg_softmax.cu", entry, values);
        for out in call.grid(rows.div_ceil(64 / tile), 1).block(64, 1).run() {
            assert_close(&out.f32(0), &wanted, 1e-5);
        }
    }
    let values = vec![Value::F32(vec![0.0; rows * width]), Value::F32(x), c];
    let call = Call::new("cg_softmax.cu", "softmax_by_hand", values);
    for out in call.grid(rows, 1).block(96, 1).run() {
        assert_close(&out.f32(0), &wanted, 1e-5);
    }
}

#[test]
fn layer_norm_over_packs_of_bf16() {
    let (rows, width) = (11, 520);
    let x = bfloats(random_values(rows * width, 5));
    let (weight, bias) = (bfloats(random_values(width, 6)), bfloats(random_values(width, 7)));
    let stats = |row: &[f64]| {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / width as f64;
        (mean, 1.0 / (variance + 1e-5).sqrt())
    };
    let wanted = by_rows(&x, width, |row| {
        let (mean, scale) = stats(row);
        let at =
            |(i, x): (usize, &f64)| (x - mean) * scale * f64::from(weight[i]) + f64::from(bias[i]);
        row.iter().enumerate().map(at).collect()
    });
    let means = by_rows(&x, width, |row| vec![stats(row).0]);
    let scales = by_rows(&x, width, |row| vec![stats(row).1]);
    let values = vec![
        Value::Bf16(vec![0.0; rows * width]),
        Value::F32(vec![0.0; rows]),
        Value::F32(vec![0.0; rows]),
        Value::Bf16(x),
        Value::Bf16(weight),
        Value::Bf16(bias),
        Value::Int(rows as i32),
        Value::Int(width as i32),
    ];
    let call = Call::new("layer_norm_packed.cu", "layernorm_forward_kernel", values);
    for out in call.grid(rows.div_ceil(8), 1).block(32, 8).run() {
        assert_close(&out.bf16(0), &wanted, 1.0 / 256.0);
        assert_close(&out.f32(1), &means, 1e-5);
        assert_close(&out.f32(2), &scales, 1e-5);
    }
}

#[test]
fn residual_and_norm_in_pairs_of_bf16() {
    let (rows, width, eps) = (3, 258, 1e-6);
    let (x, residual) =
        (bfloats(random_values(rows * width, 8)), bfloats(random_values(rows * width, 9)));
    let weight = bfloats(random_values(width, 10));
    let sums = bfloats(x.iter().zip(&residual).map(|(x, r)| x + r).collect());
    let wanted = by_rows(&sums, width, |row| {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
        let scale = 1.0 / (mean + eps).sqrt();
        row.iter().zip(&weight).map(|(x, &w)| x * scale * f64::from(w)).collect()
    });
    let values = vec![
        Value::Bf16(x),
        Value::Bf16(residual),
        Value::Bf16(weight),
        Value::Float(eps as f32),
        Value::Int(width as i32),
    ];
    let call = Call::new("add_norm_bf16.cu", "fused_add_rms_norm_bf16", values);
    for out in call.grid(rows, 1).block(64, 1).run() {
        assert_eq!(out.bf16(1), sums);
        assert_close(&out.bf16(0), &wanted, 1.0 / 128.0);
    }
}

#[test]
fn bf16_one_by_one() {
    let x = random_values(30, 11);
    let wanted: Vec<f32> = bfloats(x.clone())
        .iter()
        .map(|&b| {
            let y = bfloats(vec![b * b + b.max(0.5)])[0];
            if b > y { -b } else { y }
        })
        .collect();
    let values = vec![Value::Bf16(vec![0.0; 30]), Value::F32(x), Value::Int(30)];
    for out in Call::new("add_norm_bf16.cu", "bf16_scalars", values).run() {
        assert_eq!(out.bf16(0), wanted);
    }
}

#[test]
fn the_largest_logit_by_pairs_under_a_mask() {
    let (rows, vocab) = (4, 1000);
    let mut logits = random_values(rows * vocab, 12);
    // Equal ones: the first is it.
    logits[2 * vocab + 700] = 3.0;
    logits[2 * vocab + 311] = 3.0;
    let largest = |row: &[f32]| {
        let most = row.iter().copied().fold(f32::MIN, f32::max);
        row.iter().position(|&x| x == most).unwrap() as i32
    };
    let wanted: Vec<i32> = logits.chunks(vocab).map(largest).collect();
    let values = vec![Value::I32(vec![0; rows]), Value::F32(logits), Value::Int(vocab as i32)];
    let call = Call::new("argmax.cu", "argmax", values).grid(rows, 1).block(256, 1).shared(64);
    for out in call.run() {
        assert_eq!(out.i32(0), wanted);
    }
}
