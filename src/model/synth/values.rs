//! The values of a tensor: each depends on (seed, tensor name, index) alone, in arithmetic that
//! every machine rounds alike (no logarithms, no sines).

use crate::core::random::{self, splitmix64};

/// How a tensor's values are drawn.
#[derive(Clone, Copy, Debug)]
pub(super) enum Draw {
    /// Close to a normal distribution.
    Normal { mean: f32, deviation: f32 },
    /// 1 for the fastest pair rising to 8 for the slow ones, as llama-3's factors do.
    RopeFactor,
}

/// The values of one tensor.
#[derive(Clone, Copy)]
pub(super) struct Values {
    key: u64,
    draw: Draw,
}

impl Values {
    pub(super) fn new(seed: u64, name: &str, draw: Draw) -> Values {
        Values { key: random::key(seed, name), draw }
    }

    /// Fills `to` with the values from an index on.
    pub(super) fn fill(&self, first: u64, to: &mut [f32]) {
        for (index, value) in (first..).zip(to) {
            *value = self.at(index);
        }
    }

    fn at(&self, index: u64) -> f32 {
        match self.draw {
            Draw::Normal { mean, deviation } => mean + deviation * normal(self.key, index),
            Draw::RopeFactor => 1.0 + index.min(7) as f32,
        }
    }
}

/// Mean 0, deviation 1, at most 3.46 in size: the sum of four uniform 16-bit numbers (Irwin-Hall).
/// The sum is exact and the one product correctly rounded.
fn normal(key: u64, index: u64) -> f32 {
    /// Four uniform numbers in [0, 2^16) have a sum of deviation 2^16 / sqrt(3).
    const SCALE: f32 = 1.732_050_8 / 65_536.0;
    let bits = splitmix64(key, index);
    let sum: u64 = (0..4).map(|lane| (bits >> (16 * lane)) & 0xffff).sum();
    (sum as i64 - 2 * 0xffff) as f32 * SCALE
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDARD: Draw = Draw::Normal { mean: 0.0, deviation: 1.0 };

    #[test]
    fn a_seed_means_the_same_weights_on_every_machine() {
        let mut values = [0f32; 4];
        Values::new(7, "blk.0.attn_q.weight", STANDARD).fill(0, &mut values);
        // Worked out apart, in Python with numpy's f32.
        let expected = [3_213_558_455, 1_068_630_594, 1_067_816_724, 3_217_766_369];
        assert_eq!(values.map(f32::to_bits), expected);
    }

    #[test]
    fn a_value_depends_on_seed_name_and_index_and_on_nothing_else() {
        let all = |seed, name| {
            let mut values = vec![0f32; 100];
            Values::new(seed, name, STANDARD).fill(0, &mut values);
            values
        };
        let mut tail = vec![0f32; 40];
        Values::new(1, "a", STANDARD).fill(60, &mut tail);
        assert_eq!(all(1, "a")[60..], tail);
        assert_ne!(all(1, "a"), all(2, "a"));
        assert_ne!(all(1, "a"), all(1, "b"));
    }

    #[test]
    fn values_have_the_mean_and_deviation_that_they_are_drawn_with() {
        let n = 100_000;
        let mut values = vec![0f32; n];
        Values::new(3, "x", Draw::Normal { mean: 1.0, deviation: 0.5 }).fill(0, &mut values);
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let square = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
        // Five standard errors: 0.5 / sqrt(n) of the mean, less than that of the deviation.
        assert!((mean - 1.0).abs() < 0.008, "{mean}");
        assert!((square.sqrt() - 0.5).abs() < 0.008, "{square}");
        let largest = values.iter().copied().max_by(f32::total_cmp).unwrap();
        assert!(largest > 2.2 && largest < 1.0 + 0.5 * 3.47, "{largest}");
    }
}
