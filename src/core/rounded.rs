//! What numbers become in a format.

use half::{bf16, f16};

use crate::core::format::Format;

/// A number after rounding: it is at most `slack` from `value`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounded {
    pub value: f64,
    pub slack: f64,
}

impl Format {
    /// Numbers of a block; 1 where each is rounded on its own, 0 where a block is a row.
    fn block(self) -> usize {
        match self {
            Format::Q8_0 | Format::Q8_1 | Format::Q4_0 => 32,
            Format::Int8Blocks | Format::Int8BlocksF16 => 32,
            Format::Q8K => 256,
            Format::Int8Rows => 0,
            _ => 1,
        }
    }

    /// Whether rows of that length divide into its blocks.
    pub fn divides(self, length: usize) -> bool {
        self != Format::Ggml && (self.block() == 0 || length.is_multiple_of(self.block()))
    }

    /// A row rounded, which the format's blocks must divide; `error` is how far off each number may be.
    pub fn rounded(self, row: &[f64], error: &dyn Fn(usize) -> f64) -> Vec<Rounded> {
        let of = |(at, &x): (usize, &f64)| self.number_within(x, error(at));
        match self.block() {
            1 => row.iter().enumerate().map(of).collect(),
            0 => self.block_within(row, error),
            length => {
                let blocks = row.chunks(length).enumerate();
                blocks
                    .flat_map(|(at, block)| self.block_within(block, &|i| error(at * length + i)))
                    .collect()
            }
        }
    }

    /// A number rounded on its own.
    pub fn number(self, x: f32) -> f32 {
        match self {
            Format::F16 => f16::from_f32(x).to_f32(),
            Format::Bf16 => bf16::from_f32(x).to_f32(),
            // Ten bits of fraction; rounded to nearest by adding half of what is cut.
            Format::Tf32 if x.is_finite() => {
                f32::from_bits(x.to_bits().wrapping_add(0x1000) & !0x1fff)
            }
            Format::Tf32Even if x.is_finite() => {
                let bits = x.to_bits();
                f32::from_bits(bits.wrapping_add(0xfff + (bits >> 13 & 1)) & !0x1fff)
            }
            Format::Tf32Cut if x.is_finite() => f32::from_bits(x.to_bits() & !0x1fff),
            Format::Bf16Cut if x.is_finite() => f32::from_bits(x.to_bits() & !0xffff),
            Format::E4m3 => eight_bits(x, 3, -6, 448.0),
            Format::E5m2 => eight_bits(x, 2, -14, 57344.0),
            _ => x,
        }
    }

    /// A number that is known to an error: where that goes over a middle, it may be either neighbour.
    pub fn number_within(self, x: f64, error: f64) -> Rounded {
        let [mut low, mut high] = [x - error, x + error].map(|x| f64::from(self.number(x as f32)));
        // Of what lies in the middle the units that have this format make one or the other.
        let bits = (x as f32).to_bits();
        if self == Format::Tf32 && bits & 0x1fff == 0x1000 {
            let inner = f64::from(f32::from_bits(bits & !0x1fff));
            (low, high) = (low.min(inner), high.max(inner));
        }
        if low == high {
            return Rounded { value: low, slack: 0.0 };
        }
        Rounded { value: 0.5 * (low + high), slack: 0.5 * (high - low) }
    }

    /// A block, as ggml has it or with a scale that is kept in f32. Programs divide by the scale or multiply
    /// by its inverse, and round ties in their own ways: near the middle of two integers either may be theirs.
    fn block_within(self, block: &[f64], error: &dyn Fn(usize) -> f64) -> Vec<Rounded> {
        const ULPS: f64 = 8.0;
        let largest = |a: f64, b: &f64| if b.abs() > a.abs() { *b } else { a };
        let most = block.iter().fold(0.0, largest);
        let divisor = match self {
            Format::Q4_0 => -8.0,
            Format::Q8K => -127.0,
            _ => 127.0,
        };
        let signed = matches!(self, Format::Q4_0 | Format::Q8K);
        let scale = if signed { most } else { most.abs() } / divisor;
        let near = f64::from(f32::EPSILON);
        let half = |scale: f64| f64::from(f16::from_f32(scale as f32));
        let scale = if self == Format::Int8BlocksF16 { half(scale) } else { scale };
        let stored = |scale: f64| match self {
            Format::Q8_0 | Format::Q8_1 | Format::Q4_0 => half(scale),
            _ => f64::from(scale as f32),
        };
        let of_scale = if self.is_scale_narrow() {
            [stored(scale * (1.0 - near)), stored(scale * (1.0 + near))]
        } else {
            [stored(scale); 2]
        };
        let (own, apart) =
            (0.5 * (of_scale[0] + of_scale[1]), 0.5 * (of_scale[1] - of_scale[0]).abs());
        let integer = |scaled: f64| match self {
            Format::Q4_0 => (scaled + 8.5).floor().clamp(0.0, 15.0) - 8.0,
            _ => scaled.round().clamp(-128.0, 127.0),
        };
        let of = |(at, &x): (usize, &f64)| {
            if scale == 0.0 || !scale.is_finite() {
                return Rounded { value: 0.0 * x, slack: 0.0 };
            }
            let scaled = x / scale;
            let off = ULPS * near * scaled.abs() + (error(at) / scale).abs();
            let [a, b] = [integer(scaled - off), integer(scaled + off)];
            let (middle, half) = (0.5 * (a + b), 0.5 * (b - a).abs());
            let slack = half * own.abs() + apart * middle.abs();
            Rounded { value: own * middle, slack }
        };
        let mut rounded: Vec<Rounded> = block.iter().enumerate().map(of).collect();
        if self == Format::Q8_1 {
            // The sum is stored too, of other scales than the integers': it goes with the weights' minimum.
            let sum: f64 = rounded.iter().map(|x| x.value).sum();
            let off = sum.abs() * 2f64.powi(-10) / (block.len() as f64).sqrt();
            rounded.iter_mut().for_each(|x| x.slack += off);
        }
        rounded
    }

    fn is_scale_narrow(self) -> bool {
        matches!(self, Format::Q8_0 | Format::Q8_1 | Format::Q4_0)
    }
}

/// Rounded to nearest, ties to even, with so many bits of fraction and that least exponent; what is larger
/// than `most` saturates.
fn eight_bits(x: f32, fraction: i32, least: i32, most: f32) -> f32 {
    if !x.is_finite() || x == 0.0 {
        return x;
    }
    let wide = f64::from(x);
    let exponent = (wide.abs().log2().floor() as i32).max(least);
    let step = 2f64.powi(exponent - fraction);
    (((wide / step).round_ties_even() * step) as f32).clamp(-most, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(format: Format, row: &[f64]) -> Vec<f64> {
        format.rounded(row, &|_| 0.0).iter().map(|x| x.value).collect()
    }

    #[test]
    fn eight_bits_are_those_of_the_standard() {
        let cases = [(0.3, 0.3125), (1.0, 1.0), (17.0, 16.0), (500.0, 448.0), (0.001, 0.001953125)];
        for (x, rounded) in cases {
            assert_eq!(of(Format::E4m3, &[x, -x]), [rounded, -rounded]);
        }
        assert_eq!(of(Format::E5m2, &[0.3, 1.1, 70000.0]), [0.3125, 1.0, 57344.0]);
    }

    #[test]
    fn formats_of_matrix_units_differ_in_what_they_make_of_what_they_drop() {
        let unit = 2f64.powi(-10);
        let middle = 1.0 + unit / 2.0;
        let all =
            |x: f64| [Format::Tf32, Format::Tf32Even, Format::Tf32Cut].map(|f| of(f, &[x])[0]);
        assert_eq!(all(1.0 + 0.9 * unit), [1.0 + unit, 1.0 + unit, 1.0]);
        assert_eq!(all(middle)[1..], [1.0, 1.0]);
        assert_eq!(f64::from(Format::Tf32.number(middle as f32)), 1.0 + unit);
        assert_eq!(of(Format::Bf16Cut, &[1.99, -1.99]), [1.984375, -1.984375]);
    }

    #[test]
    fn a_block_is_within_half_a_step_and_its_largest_number_keeps_its_place() {
        let row: Vec<f64> = (0..256).map(|i| f64::from((i * 37 % 101) as f32 - 40.3)).collect();
        for format in Format::ALL.into_iter().filter(|format| !format.is_of_numbers()) {
            if format == Format::Ggml {
                assert!(!format.divides(256));
                continue;
            }
            let most = row.iter().fold(0f64, |most, x| most.max(x.abs()));
            let step = 2.1 * format.unit_roundoff() * most;
            for (x, rounded) in row.iter().zip(of(format, &row)) {
                assert!((x - rounded).abs() <= step, "{format}: {x} {rounded}");
            }
            assert!(format.divides(256) && of(format, &[0.0; 256]) == [0.0; 256]);
        }
        assert!(!Format::Q8_0.divides(40) && Format::Int8Rows.divides(40));
    }

    #[test]
    fn near_a_middle_both_neighbours_are_allowed_and_elsewhere_only_one() {
        let mut row = vec![0.0; 32];
        (row[0], row[1], row[2]) = (127.0, 3.5, 3.3);
        let rounded = Format::Int8Blocks.rounded(&row, &|_| 0.0);
        assert_eq!((rounded[1].value, rounded[1].slack), (3.5, 0.5));
        assert_eq!((rounded[2].value, rounded[2].slack), (3.0, 0.0));
        let middle = 1.0 + 2f64.powi(-11);
        assert_eq!(Format::F16.number_within(middle, 1e-7).slack, 2f64.powi(-11));
        assert_eq!(Format::F16.number_within(1.2, 1e-7).slack, 0.0);
    }
}
