//! Sums and extremes over pairs of elements, several side by side so that the compiler can take them at
//! once.

/// Elements side by side.
const LANES: usize = 8;

/// Bits of the smallest magnitude that is no number: infinity.
const INFINITE: u32 = 0x7f80_0000;
const MAGNITUDE: u32 = 0x7fff_ffff;

/// What is accumulated over pairs of finite elements, a place for each lane.
#[derive(Default)]
struct Lanes {
    max_abs: [f64; LANES],
    squared_distance: [f64; LANES],
    squared_engine: [f64; LANES],
    squared_reference: [f64; LANES],
    product: [f64; LANES],
    max_ulp: [u32; LANES],
    scale: [f32; LANES],
    largest_bits: [u32; LANES],
}

/// The same over all lanes: of `a` and `b` of some row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// The largest |a - b|.
    pub max_abs: f64,
    /// ||a - b||^2, ||a||^2, ||b||^2, a.b
    pub squared_distance: f64,
    pub squared_engine: f64,
    pub squared_reference: f64,
    pub product: f64,
    /// The largest distance in f32 numbers.
    pub max_ulp: u32,
    /// The largest |b|.
    pub scale: f32,
}

impl Totals {
    /// Over runs of a row; `None` if an element is NaN or infinite.
    pub fn of<'a>(runs: impl Iterator<Item = (&'a [f32], &'a [f32])>) -> Option<Totals> {
        let mut lanes = Lanes::default();
        for (engine, reference) in runs {
            let (whole, rest) = engine.as_chunks::<LANES>();
            let (whole_r, rest_r) = reference.as_chunks::<LANES>();
            whole.iter().zip(whole_r).for_each(|(e, r)| lanes.add(e, r));
            // A pair of zeros adds nothing.
            let (mut e, mut r) = ([0.0; LANES], [0.0; LANES]);
            e[..rest.len()].copy_from_slice(rest);
            r[..rest_r.len()].copy_from_slice(rest_r);
            lanes.add(&e, &r);
        }
        lanes.totals()
    }
}

impl Lanes {
    #[inline]
    fn add(&mut self, engine: &[f32; LANES], reference: &[f32; LANES]) {
        for lane in 0..LANES {
            let (e, r) = (engine[lane], reference[lane]);
            let bits = (e.to_bits() & MAGNITUDE).max(r.to_bits() & MAGNITUDE);
            self.largest_bits[lane] = self.largest_bits[lane].max(bits);
            self.max_ulp[lane] = self.max_ulp[lane].max(ulp_distance(e, r));
            self.scale[lane] = larger(self.scale[lane], r.abs());
            let (e, r) = (f64::from(e), f64::from(r));
            self.max_abs[lane] = larger(self.max_abs[lane], (e - r).abs());
            self.squared_distance[lane] += (e - r) * (e - r);
            self.squared_engine[lane] += e * e;
            self.squared_reference[lane] += r * r;
            self.product[lane] += e * r;
        }
    }

    fn totals(&self) -> Option<Totals> {
        if self.largest_bits.iter().any(|&bits| bits >= INFINITE) {
            return None;
        }
        Some(Totals {
            max_abs: self.max_abs.into_iter().fold(0.0, larger),
            squared_distance: self.squared_distance.iter().sum(),
            squared_engine: self.squared_engine.iter().sum(),
            squared_reference: self.squared_reference.iter().sum(),
            product: self.product.iter().sum(),
            max_ulp: self.max_ulp.into_iter().max().unwrap_or(0),
            scale: self.scale.into_iter().fold(0.0, larger),
        })
    }
}

/// The larger of two numbers, as one instruction.
#[inline]
fn larger<T: PartialOrd>(a: T, b: T) -> T {
    if b > a { b } else { a }
}

/// f32 numbers between the two, NaN and infinities excluded.
#[inline]
pub fn ulp_distance(a: f32, b: f32) -> u32 {
    let ordered = |x: f32| {
        let bits = x.to_bits() as i32;
        if bits < 0 { i32::MIN.wrapping_sub(bits) } else { bits }
    };
    ordered(a).abs_diff(ordered(b))
}
