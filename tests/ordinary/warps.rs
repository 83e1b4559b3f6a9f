//! What lanes and blocks do together: shuffles, votes, atomics, variables of the device.

use super::support::{Call, Value, assert_close, checked, unchecked};
use crate::common::random_values;

/// Whole numbers from -50 to 50.
fn numbers(n: usize, seed: u32) -> Vec<i32> {
    random_values(n, seed).into_iter().map(|x| (50.0 * x) as i32).collect()
}

#[test]
fn scans_by_shuffles_of_three_types_and_widths() {
    let x = numbers(64, 1);
    let scan = |width: usize| -> Vec<i32> {
        x.chunks(width)
            .flat_map(|part| {
                part.iter().scan(0, |sum, x| {
                    *sum += x;
                    Some(*sum)
                })
            })
            .collect()
    };
    let octets: Vec<f64> = scan(8).into_iter().map(|sum| f64::from(sum) / 2.0).collect();
    let last: Vec<i64> = (0..64).map(|i| i64::from(x[i / 16 * 16 + 15]) << 33).collect();
    let values = vec![
        Value::I32(vec![0; 64]),
        Value::F64(vec![0.0; 64]),
        Value::I64(vec![0; 64]),
        Value::I32(x.clone()),
    ];
    for out in Call::new("warp_scan.cu", "scans", values).block(64, 1).run() {
        assert_eq!(out.i32(0), scan(32));
        assert_eq!(out.f64(1), octets);
        assert_eq!(out.i64(2), last);
    }
}

#[test]
fn a_compaction_by_the_active_lanes() {
    let x = numbers(200, 2);
    let mut wanted: Vec<i32> = x.iter().copied().filter(|&x| x > 0).collect();
    wanted.sort_unstable();
    let values =
        vec![Value::I32(vec![-1; 200]), Value::I32(vec![0]), Value::I32(x), Value::Int(197 + 3)];
    for out in Call::new("warp_scan.cu", "compact", values).grid(4, 1).block(64, 1).run() {
        let count = out.i32(1)[0] as usize;
        let mut kept = out.i32(0)[..count].to_vec();
        kept.sort_unstable();
        assert_eq!(kept, wanted);
        assert!(out.i32(0)[count..].iter().all(|&x| x == -1));
    }
}

#[test]
fn votes_under_masks_and_matches() {
    let x = numbers(32, 3);
    let positive = |lanes: std::ops::Range<usize>| -> i32 {
        lanes.filter(|&lane| x[lane] > 0).fold(0u32, |mask, lane| mask | 1 << lane) as i32
    };
    let mut wanted = vec![0i32; 128];
    for lane in 0..32 {
        wanted[lane] = positive(lane / 16 * 16..lane / 16 * 16 + 16);
        wanted[32 + lane] = if lane < 16 { 2 } else { (lane ^ 1) as i32 };
        let same = (0..32).filter(|&other| x[other] & 3 == x[lane] & 3);
        wanted[64 + lane] = same.fold(0u32, |mask, other| mask | 1 << other) as i32;
        wanted[96 + lane] = 31 * 16;
    }
    let values = vec![Value::I32(vec![0; 128]), Value::I32(x.clone())];
    for out in Call::new("warp_scan.cu", "votes", values).run() {
        assert_eq!(out.i32(0), wanted);
    }
}

#[test]
fn a_histogram_and_a_largest_float_by_atomics() {
    let n = 500;
    let x = random_values(n, 4);
    let mut bins = vec![0i32; 17];
    for x in &x {
        let bin = (((x + 1.0) * 8.0).floor() as i32).clamp(0, 15);
        bins[bin as usize] += 1;
        bins[16] = bins[16].max(bin);
    }
    let largest = x.iter().copied().fold(f32::MIN, f32::max);
    let values = vec![
        Value::I32(vec![0; 17]),
        Value::F32(vec![-10.0]),
        Value::F32(x),
        Value::I64(vec![0]),
        Value::Int(n as i32),
    ];
    let call = Call::new("atomics.cu", "histogram", values).grid(4, 1).block(128, 1);
    for options in unchecked() {
        let out = call.run_on(options).unwrap();
        assert_eq!(out.i32(0), bins);
        assert_eq!(out.f32(1), [largest]);
        assert_eq!(out.i64(3), [n as i64]);
    }
    // Its first read of the maximum is no atomic, as C++ counts: the checks say so, by the line.
    let error = call.run_on(checked()).err().unwrap().to_string();
    assert!(error.contains("race: ") && error.contains("atomics.cu:7"), "{error}");
}

#[test]
fn atomic_sums_of_floats_doubles_and_halves() {
    let x = random_values(300, 5);
    let sum: f64 = x.iter().map(|&x| f64::from(x)).sum();
    let values = vec![
        Value::F64(vec![0.0]),
        Value::F16(vec![0.0]),
        Value::F32(vec![0.0]),
        Value::F32(x),
        Value::Int(300),
    ];
    for out in Call::new("atomics.cu", "sums", values).block(64, 1).run() {
        approx::assert_abs_diff_eq!(out.f64(0)[0], sum, epsilon = 1e-12);
        assert_eq!(out.f16(1), [300.0]);
        assert_close(&out.f32(2), &[sum], 1e-5);
    }
}

#[test]
fn variables_of_the_device_live_from_launch_to_launch_for_all_blocks() {
    let (n, blocks) = (10_000, 24);
    let x: Vec<f32> = (0..n).map(|i| (i % 13) as f32).collect();
    let sum: f32 = x.iter().sum();
    let values =
        vec![Value::F32(vec![0.0; 3]), Value::F32(vec![0.0; blocks]), Value::F32(x), Value::Int(n)];
    let call = Call::new("threadfence_reduction.cu", "sum_in_one_pass", values);
    let call = call.grid(blocks, 1).block(128, 1);
    for mut options in unchecked().into_iter().chain([checked()]) {
        options.workers = Some(4);
        assert_eq!(call.run_times(options, 3).unwrap().f32(0), [sum, 3.0 * sum, 3.0]);
    }
}
