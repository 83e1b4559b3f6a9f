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
            Format::Q8_0 | Format::Q8_1 => 32,
            Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 => 32,
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
            Format::E4m3 => eight_bits(x, 3, -6, 448.0, f64::round_ties_even),
            Format::E5m2 => eight_bits(x, 2, -14, 57344.0, f64::round_ties_even),
            _ => x,
        }
    }

    /// The number that a byte of a format of 8 bits stands for.
    pub fn of_byte(self, byte: u8) -> f32 {
        let (fraction, bias) = if self == Format::E4m3 { (3, 7) } else { (2, 15) };
        let (bits, exponent) = (byte & ((1 << fraction) - 1), i32::from(byte & 0x7f) >> fraction);
        let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
        // e4m3 has no infinity, and one NaN.
        let is_last = exponent == (0x7f >> fraction);
        if self == Format::E4m3 && byte & 0x7f == 0x7f
            || self != Format::E4m3 && is_last && bits != 0
        {
            return f32::NAN;
        }
        if self != Format::E4m3 && is_last {
            return sign * f32::INFINITY;
        }
        let part = f32::from(bits) / f32::from(1u8 << fraction);
        let (whole, power) = if exponent == 0 { (0.0, 1 - bias) } else { (1.0, exponent - bias) };
        sign * (whole + part) * 2f32.powi(power)
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

    /// A block, as ggml has it or with a scale that is kept in f32.
    fn block_within(self, block: &[f64], error: &dyn Fn(usize) -> f64) -> Vec<Rounded> {
        let steps = self.steps(block);
        let mut rounded = self.on_steps(block, error, [&steps; 2], Quantising::default());
        if self == Format::Q8_1 {
            // The sum is stored too, of other scales than the integers': it goes with the weights' minimum.
            let sum: f64 = rounded.iter().map(|x| x.value).sum();
            let off = sum.abs() * 2f64.powi(-10) / (block.len() as f64).sqrt();
            rounded.iter_mut().for_each(|x| x.slack += off);
        }
        rounded
    }

    /// A block whose integers are made by one grid, and read by another: the one that is stored. Programs divide by
    /// the scale or multiply by its inverse, and round ties in their own ways: near the middle of two integers either
    /// may be theirs.
    pub fn on_steps(
        self,
        block: &[f64],
        error: &dyn Fn(usize) -> f64,
        [by, read]: [&BlockSteps; 2],
        how: Quantising,
    ) -> Vec<Rounded> {
        const ULPS: f64 = 8.0;
        let near = f64::from(f32::EPSILON);
        // What the numbers at the ends may be off by moves all of the block.
        let worst = (0..block.len()).map(error).fold(0.0, f64::max);
        let of_scale = |steps: &BlockSteps| near * steps.scale.abs() + 2.0 * worst / steps.most;
        let own = self.kept(read.scale, of_scale(read));
        let of_min = if read.min == 0.0 { 0.0 } else { near * read.min.abs() + worst };
        let lowest = self.kept(read.min, of_min);
        let of = |(at, &x): (usize, &f64)| {
            if by.scale == 0.0 || !by.scale.is_finite() {
                return Rounded { value: lowest.value + 0.0 * x, slack: lowest.slack };
            }
            let scaled = (x - by.min) / by.scale;
            let size = scaled.abs().max((by.min / by.scale).abs());
            let of_ends = if worst > 0.0 { size * of_scale(by) / by.scale.abs() } else { 0.0 };
            let off = ULPS * near * size + (error(at) / by.scale).abs() + of_ends;
            let [a, b] = [by.integer(scaled - off, how), by.integer(scaled + off, how)];
            let (middle, half) = (0.5 * (a + b), 0.5 * (b - a).abs());
            let slack = half * own.value.abs() + own.slack * middle.abs() + lowest.slack;
            // The product and the sum are rounded to f32.
            let of_sum = if read.min == 0.0 {
                0.0
            } else {
                near * (own.value * middle).abs().max(read.min.abs())
            };
            Rounded { value: own.value * middle + lowest.value, slack: slack + of_sum }
        };
        block.iter().enumerate().map(of).collect()
    }

    /// A scale or a minimum as a block keeps it, of a number that is known to an error.
    fn kept(self, x: f64, off: f64) -> Rounded {
        let is_narrow = self.is_scale_narrow();
        let of = |x: f64| {
            if is_narrow { f64::from(f16::from_f32(x as f32)) } else { f64::from(x as f32) }
        };
        // In f32 the number itself is kept.
        let off = if is_narrow || off > f64::from(f32::EPSILON) * x.abs() { off } else { 0.0 };
        let [a, b] = [of(x - off), of(x + off)];
        Rounded { value: 0.5 * (a + b), slack: 0.5 * (b - a).abs() }
    }

    /// A number rounded on its own, with a mistake.
    pub fn number_by(self, x: f64, how: Quantising) -> Rounded {
        let x = if how.loses_signs { x.abs() } else { x };
        if !how.cuts {
            return self.number_within(x, 0.0);
        }
        let value = match self {
            Format::E5m2 => eight_bits(x as f32, 2, -14, 57344.0, f64::trunc),
            _ => eight_bits(x as f32, 3, -6, 448.0, f64::trunc),
        };
        Rounded { value: f64::from(value), slack: 0.0 }
    }

    fn is_scale_narrow(self) -> bool {
        use Format::*;
        matches!(self, Q8_0 | Q8_1 | Q4_0 | Q4_1 | Q5_0 | Q5_1)
    }

    /// The grid that the numbers of a block are put on.
    pub fn steps(self, block: &[f64]) -> BlockSteps {
        let largest = |a: f64, b: &f64| if b.abs() > a.abs() { *b } else { a };
        let largest = block.iter().fold(0.0, largest);
        let signed = |levels: f64| BlockSteps {
            scale: largest / -levels,
            min: 0.0,
            least: -levels,
            most: levels - 1.0,
            rounds_up: true,
        };
        let of_range = |levels: f64| {
            let ends = (f64::INFINITY, f64::NEG_INFINITY);
            let (low, high) = block.iter().fold(ends, |(low, high), &x| (low.min(x), high.max(x)));
            let scale = (high - low) / levels;
            BlockSteps { scale, min: low, least: 0.0, most: levels, rounds_up: true }
        };
        let of_bytes = |scale: f64| BlockSteps {
            scale,
            min: 0.0,
            least: -128.0,
            most: 127.0,
            rounds_up: false,
        };
        match self {
            Format::Q4_0 => signed(8.0),
            Format::Q5_0 => signed(16.0),
            Format::Q4_1 => of_range(15.0),
            Format::Q5_1 => of_range(31.0),
            Format::Q8K => of_bytes(largest / -127.0),
            Format::Int8BlocksF16 => {
                of_bytes(f64::from(f16::from_f32((largest.abs() / 127.0) as f32)))
            }
            _ => of_bytes(largest.abs() / 127.0),
        }
    }
}

/// Whole numbers from `least` to `most`, times a scale, from a minimum on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockSteps {
    pub scale: f64,
    min: f64,
    least: f64,
    most: f64,
    /// Whether a middle is rounded up, not away from zero.
    rounds_up: bool,
}

impl BlockSteps {
    /// The same with another scale.
    pub fn with_scale(self, scale: f64) -> BlockSteps {
        BlockSteps { scale, ..self }
    }

    /// The same with integers that end at the negative of the largest.
    pub fn symmetric(self) -> BlockSteps {
        BlockSteps { least: -self.most, ..self }
    }

    fn integer(&self, scaled: f64, how: Quantising) -> f64 {
        let scaled = if how.loses_signs { scaled.abs() } else { scaled };
        let whole = match (how.cuts, self.rounds_up) {
            (true, true) => scaled.floor(),
            (true, false) => scaled.trunc(),
            (false, true) => (scaled + 0.5).floor(),
            (false, false) => scaled.round(),
        };
        whole.clamp(self.least, self.most)
    }
}

/// Mistakes in how integers are made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantising {
    /// Cut off instead of rounded.
    pub cuts: bool,
    pub loses_signs: bool,
}

/// Rounded as `whole` does, with so many bits of fraction and that least exponent; what is larger
/// than `most` saturates.
fn eight_bits(x: f32, fraction: i32, least: i32, most: f32, whole: fn(f64) -> f64) -> f32 {
    if !x.is_finite() || x == 0.0 {
        return x;
    }
    let wide = f64::from(x);
    let exponent = (wide.abs().log2().floor() as i32).max(least);
    let step = 2f64.powi(exponent - fraction);
    ((whole(wide / step) * step) as f32).clamp(-most, most)
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
        for (format, byte, x) in [
            (Format::E4m3, 0x7e, 448.0),
            (Format::E4m3, 0x81, -0.001953125),
            (Format::E5m2, 0x7b, 57344.0),
            (Format::E5m2, 0xfc, f32::NEG_INFINITY),
        ] {
            assert_eq!(format.of_byte(byte), x, "{format}");
        }
        // Every number of 8 bits is its own rounding.
        for format in [Format::E4m3, Format::E5m2] {
            for x in (0..=255).map(|byte| format.of_byte(byte)).filter(|x| x.is_finite()) {
                assert_eq!(format.number(x), x, "{format}");
            }
            assert!(format.of_byte(0x7f).is_nan());
        }
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
    fn blocks_of_4_and_5_bits_are_those_that_ggml_makes() {
        // Ends that are exact in f16, and steps that no middle is near.
        let row: Vec<f64> = (0..32).map(|i| -1.5 + f64::from(i * 13 % 31) * 0.1).collect();
        let expected = |of: &dyn Fn(f64) -> f64| row.iter().map(|&x| of(x)).collect::<Vec<f64>>();
        let half = |x: f64| f64::from(f16::from_f32(x as f32));
        for (format, levels) in [(Format::Q4_1, 15.0), (Format::Q5_1, 31.0)] {
            let step = 3.0 / levels;
            let made =
                expected(&|x| ((x + 1.5) / step + 0.5).floor().min(levels) * half(step) - 1.5);
            for (own, made) in format.rounded(&row, &|_| 0.0).iter().zip(made) {
                assert!((own.value - made).abs() <= own.slack + 1e-7, "{format} {own:?} {made}");
            }
        }
        let step = -1.5 / -16.0;
        let made = expected(&|x| ((x / step + 16.5).floor().clamp(0.0, 31.0) - 16.0) * half(step));
        for (own, made) in Format::Q5_0.rounded(&row, &|_| 0.0).iter().zip(made) {
            assert!((own.value - made).abs() <= own.slack + 1e-7, "{own:?} {made}");
        }
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
