//! Element by element: rotations, activations, tables, transposes; and whole programs.

use half::f16;

use super::support::{Call, Value, assert_close, checked, halves};
use crate::common::random_values;

#[test]
fn rope_on_pairs_of_halves() {
    let (tokens, heads, dim, base) = (3, 4, 20, 10_000f64);
    let x = halves(random_values(tokens * heads * dim, 1));
    let positions = [0, 7, 250];
    let mut wanted = Vec::new();
    for (i, pair) in x.chunks(2).enumerate() {
        let (token, p) = (i / (heads * dim / 2), i % (dim / 2));
        let angle = f64::from(positions[token]) * base.powf(-2.0 * p as f64 / dim as f64);
        let (a, b) = (f64::from(pair[0]), f64::from(pair[1]));
        wanted.push(a * angle.cos() - b * angle.sin());
        wanted.push(a * angle.sin() + b * angle.cos());
    }
    let values = vec![
        Value::F16(x),
        Value::I32(positions.to_vec()),
        Value::Int(heads as i32),
        Value::Int(dim as i32),
        Value::Float(base as f32),
    ];
    for out in Call::new("rope_half2.cu", "rope_half2", values).grid(1, tokens).run() {
        assert_close(&out.f16(0), &wanted, 1.0 / 1024.0);
    }
}

#[test]
fn rope_in_half_arithmetic() {
    let (x, angles) = (halves(random_values(40, 2)), random_values(20, 3));
    let cos_sin = halves(angles.iter().flat_map(|a| [a.cos(), a.sin()]).collect());
    let mut wanted = Vec::new();
    for (v, cs) in x.chunks(2).zip(cos_sin.chunks(2)) {
        // The products rounded to half, then each sum once: exact in f64 before it.
        let fma = |a: f32, b: f32, c: f32| {
            f16::from_f64(f64::from(a) * f64::from(b) + f64::from(c)).to_f32()
        };
        let rounded = |x: f32| f16::from_f32(x).to_f32();
        wanted.push(fma(v[1], -cs[1], rounded(v[0] * cs[0])));
        wanted.push(fma(v[0], cs[1], rounded(v[1] * cs[0])));
    }
    let values = vec![Value::F16(x), Value::F16(cos_sin), Value::Int(20)];
    for out in Call::new("rope_half2.cu", "rope_native", values).run() {
        assert_eq!(out.f16(0), wanted);
    }
}

#[test]
fn silu_and_mul_on_eight_halves_and_the_rest() {
    let n = 1003;
    let [gate, up] =
        [4, 5].map(|seed| halves(random_values(n, seed).iter().map(|x| 6.0 * x).collect()));
    let silu = |x: f32| f64::from(x) / (1.0 + (-f64::from(x)).exp());
    let wanted: Vec<f64> = gate.iter().zip(&up).map(|(&g, &u)| silu(g) * f64::from(u)).collect();
    let values = vec![
        Value::F16(vec![0.0; n]),
        Value::F16(gate.clone()),
        Value::F16(up),
        Value::Long(n as i64),
    ];
    for out in Call::new("silu_mul_half8.cu", "silu_and_mul", values).grid(4, 1).run() {
        assert_close(&out.f16(0), &wanted, 1.0 / 512.0);
    }
    let wanted: Vec<f64> = gate.iter().map(|&g| silu(g)).collect();
    let values = vec![Value::F16(vec![0.0; n]), Value::F16(gate), Value::Int(n as i32)];
    for out in Call::new("silu_mul_half8.cu", "silu_native", values).grid(32, 1).run() {
        assert_close(&out.f16(0), &wanted, 1.0 / 256.0);
    }
}

/// The 16 values of the table in `constant_table.cu`.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_1,
    -0.394_917_5,
    -0.284_441_4,
    -0.184_773_4,
    -0.091_05,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_2,
    0.440_709_8,
    0.562_617,
    0.722_956_8,
    1.0,
];

#[test]
fn codes_through_a_table_in_constant_memory() {
    let n = 512;
    let codes: Vec<u8> =
        random_values(n / 2, 6).iter().map(|x| (127.5 * (x + 1.0)) as u8).collect();
    let scales = random_values(n / 64, 7);
    let value = |i: usize| NF4[(codes[i / 2] >> (4 - 4 * (i % 2)) & 15) as usize] * scales[i / 64];
    let wanted: Vec<f32> = (0..n).map(value).collect();
    let values = vec![
        Value::F32(vec![0.0; n]),
        Value::Bytes(codes.clone()),
        Value::F32(scales.clone()),
        Value::Int(n as i32),
    ];
    for out in Call::new("constant_table.cu", "dequantize_nf4", values).grid(8, 1).run() {
        assert_eq!(out.f32(0), wanted);
    }
}

#[test]
fn a_transpose_through_a_padded_tile() {
    let (rows, cols) = (45, 70);
    let x = random_values(rows * cols, 8);
    let wanted: Vec<f32> = (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect();
    let values = vec![
        Value::F32(vec![0.0; rows * cols]),
        Value::F32(x),
        Value::Int(rows as i32),
        Value::Int(cols as i32),
    ];
    let call = Call::new("transpose_tile.cu", "transpose", values);
    for out in call.grid(cols.div_ceil(32), rows.div_ceil(32)).block(32, 8).run() {
        assert_eq!(out.f32(0), wanted);
    }
}

#[test]
fn lambdas_and_functors_on_vectors() {
    let n = 1024;
    let x: Vec<f32> = random_values(n, 9).iter().map(|x| 4.0 * x).collect();
    let gelu = |&x: &f32| {
        let x = f64::from(x);
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
    };
    let wanted: Vec<f64> = x.iter().map(gelu).collect();
    let values = vec![Value::F32(vec![0.0; n]), Value::F32(x.clone()), Value::Int(n as i32)];
    for out in Call::new("elementwise.cu", "gelu", values).grid(2, 1).block(64, 1).run() {
        assert_close(&out.f32(0), &wanted, 1e-6);
    }
    let x = halves(x);
    let clamped = |&x: &f32| 2f32.copysign(x.clamp(-0.75, 0.5)) * x.clamp(-0.75, 0.5).abs();
    let wanted: Vec<f32> = halves(x.iter().map(clamped).collect());
    let mut values = vec![Value::F16(vec![0.0; n]), Value::F16(x), Value::Int(n as i32)];
    values.extend([Value::Float(-0.75), Value::Float(0.5)]);
    for out in Call::new("elementwise.cu", "clamp_scale", values).grid(2, 1).run() {
        assert_eq!(out.f16(0), wanted);
    }
}

#[test]
fn a_whole_program_with_a_launcher_and_main() {
    let n = 300;
    let [x, y] = [10, 11].map(|seed| random_values(n, seed));
    let wanted: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 2.5 * x + y).collect();
    let values = vec![Value::Int(n as i32), Value::Float(2.5), Value::F32(x), Value::F32(y)];
    for out in Call::new("host_launcher.cu", "saxpy", values).grid(2, 1).run() {
        assert_eq!(out.f32(1), wanted);
    }
}

#[test]
fn a_kernel_prints_and_a_failed_assertion_is_one_line() {
    let values = |x: Vec<f32>| {
        vec![Value::F32(vec![0.0; x.len()]), Value::F32(x.clone()), Value::Int(x.len() as i32)]
    };
    let x: Vec<f32> = random_values(40, 12).iter().map(|x| x + 1.0).collect();
    let wanted: Vec<f32> = x.iter().map(|x| x.sqrt()).collect();
    for out in Call::new("debug_printf.cu", "root", values(x.clone())).grid(2, 1).run() {
        assert_eq!(out.f32(0), wanted);
    }
    let mut wrong = x;
    wrong[35] = -1.0;
    let wanted = "debug_printf.cu: kernel root, block (1,0,0): thread (3,0,0) at debug_printf.cu:12: assertion \
                  `x >= 0.0f && \"a root of a negative\"` failed; fix the kernel";
    let call = Call::new("debug_printf.cu", "root", values(wrong)).grid(2, 1);
    for options in [Default::default(), checked()] {
        assert_eq!(call.run_on(options).err().unwrap().to_string(), wanted);
    }
}
