//! Blocks of quantised weights taken apart: their integers, and the scales and minima that make weights of
//! them: w = scale * (q - offset) - min.

use half::f16;
use llama_cpp_sys_2 as sys;

use crate::core::format::Format;

/// The most elements of a block.
const MOST_ELEMENTS: usize = 256;
/// The most groups of a block that have a scale of their own.
pub const MOST_GROUPS: usize = 16;
/// The most bytes of a block.
pub const MOST_BYTES: usize = 210;

/// A type of ggml whose blocks can be taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl Packing {
    pub const ALL: [Packing; 10] = [
        Packing::Q4_0,
        Packing::Q4_1,
        Packing::Q5_0,
        Packing::Q5_1,
        Packing::Q8_0,
        Packing::Q2K,
        Packing::Q3K,
        Packing::Q4K,
        Packing::Q5K,
        Packing::Q6K,
    ];

    /// That of a type of ggml.
    pub fn of(ggml_type: sys::ggml_type) -> Option<Packing> {
        Packing::ALL.into_iter().find(|packing| packing.ggml_type() == ggml_type)
    }

    /// That of blocks that a cache may be kept in.
    pub fn of_format(format: Format) -> Option<Packing> {
        match format {
            Format::Q4_0 => Some(Packing::Q4_0),
            Format::Q4_1 => Some(Packing::Q4_1),
            Format::Q5_0 => Some(Packing::Q5_0),
            Format::Q5_1 => Some(Packing::Q5_1),
            Format::Q8_0 => Some(Packing::Q8_0),
            _ => None,
        }
    }

    pub fn ggml_type(self) -> sys::ggml_type {
        match self {
            Packing::Q4_0 => sys::GGML_TYPE_Q4_0,
            Packing::Q4_1 => sys::GGML_TYPE_Q4_1,
            Packing::Q5_0 => sys::GGML_TYPE_Q5_0,
            Packing::Q5_1 => sys::GGML_TYPE_Q5_1,
            Packing::Q8_0 => sys::GGML_TYPE_Q8_0,
            Packing::Q2K => sys::GGML_TYPE_Q2_K,
            Packing::Q3K => sys::GGML_TYPE_Q3_K,
            Packing::Q4K => sys::GGML_TYPE_Q4_K,
            Packing::Q5K => sys::GGML_TYPE_Q5_K,
            Packing::Q6K => sys::GGML_TYPE_Q6_K,
        }
    }

    /// Where a block's integers lie, and what they stand for.
    pub fn layout(self) -> Layout {
        let field = |first, width, run| Field { first, width, run };
        // Bytes, groups, the low bits of the integers, the high ones, and what is subtracted.
        let (bytes, groups, low, high, offset) = match self {
            Packing::Q4_0 => (18, 1, field(2, 4, 32), None, 8),
            Packing::Q4_1 => (20, 1, field(4, 4, 32), None, 0),
            Packing::Q5_0 => (22, 1, field(6, 4, 32), Some(field(2, 1, 8)), 16),
            Packing::Q5_1 => (24, 1, field(8, 4, 32), Some(field(4, 1, 8)), 0),
            Packing::Q8_0 => (34, 1, field(2, 8, 1), None, 0),
            Packing::Q2K => (84, 16, field(16, 2, 128), None, 0),
            Packing::Q3K => (110, 16, field(32, 2, 128), Some(field(0, 1, 256)), 4),
            Packing::Q4K => (144, 8, field(16, 4, 64), None, 0),
            Packing::Q5K => (176, 8, field(48, 4, 64), Some(field(16, 1, 256)), 0),
            Packing::Q6K => (210, 16, field(0, 4, 128), Some(field(128, 2, 128)), 32),
        };
        let elements = if groups == 1 { 32 } else { 256 };
        let low = Bits::of(low, elements);
        let high = high.map(|high| Bits::of(high, elements));
        let is_signed = self == Packing::Q8_0;
        Layout { elements, bytes, groups, low, high, flips: 0, is_signed, offset }
    }

    /// The first byte of a block's numbers in f16, and how many they are.
    pub fn halves(self) -> (usize, usize) {
        match self {
            Packing::Q4_0 | Packing::Q5_0 | Packing::Q8_0 => (0, 1),
            Packing::Q4_1 | Packing::Q5_1 | Packing::Q4K | Packing::Q5K => (0, 2),
            Packing::Q2K => (80, 2),
            Packing::Q3K => (108, 1),
            Packing::Q6K => (208, 1),
        }
    }

    /// Whether its blocks have minima.
    pub fn has_min(self) -> bool {
        self.halves().1 == 2
    }

    /// The scales and minima of a block.
    pub fn scales(self, block: &[u8]) -> Scales {
        let (first, count) = self.halves();
        let half = |at: usize| {
            let byte = first + 2 * at;
            if at < count { u16::from_le_bytes([block[byte], block[byte + 1]]) } else { 0 }
        };
        let halves = [half(0), half(1)];
        let [scale, min] = halves.map(|bits| f16::from_bits(bits).to_f32());
        let of_groups = [1; MOST_GROUPS];
        let mins_of_groups = [i32::from(self.has_min()); MOST_GROUPS];
        // Blocks of one group add their minimum.
        let sign = if matches!(self, Packing::Q4_1 | Packing::Q5_1) { -1.0 } else { 1.0 };
        let mut scales = Scales { halves, scale, min, of_groups, mins_of_groups, bias: 0, sign };
        match self {
            Packing::Q2K => scales.set_of_nibbles(&block[..16]),
            Packing::Q3K => scales.set_of_three_quarters(&block[96..108]),
            Packing::Q4K | Packing::Q5K => scales.set_of_six_bits(&block[4..16]),
            Packing::Q6K => {
                let bytes = block[192..208].iter();
                let of = scales.of_groups.iter_mut().zip(bytes);
                of.for_each(|(of, &byte)| *of = i32::from(byte as i8));
            }
            Packing::Q4_0 | Packing::Q4_1 | Packing::Q5_0 | Packing::Q5_1 | Packing::Q8_0 => {}
        }
        scales
    }
}

/// The numbers that a block's integers become weights by.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// The bits of `scale` and `min` as stored, in f16.
    pub halves: [u16; 2],
    /// The scale of the block, or of the scales of its groups.
    pub scale: f32,
    /// The minimum of the block, or the scale of the minima of its groups.
    pub min: f32,
    /// The scale of each group as stored; 1 where a block is one group.
    pub of_groups: [i32; MOST_GROUPS],
    /// The minimum of each group; 1 where a block is one group, 0 where it has none.
    pub mins_of_groups: [i32; MOST_GROUPS],
    /// What is subtracted from the groups' scales.
    pub bias: i32,
    /// 1 where the minima are subtracted, -1 where they are added.
    pub sign: f32,
}

impl Scales {
    /// A group's scale.
    pub fn scale_of(&self, group: usize) -> f32 {
        self.scale * (self.of_groups[group] - self.bias) as f32
    }

    /// What a group's weights are less than its scaled integers.
    pub fn min_of(&self, group: usize) -> f32 {
        self.sign * (self.min * self.mins_of_groups[group] as f32)
    }

    /// A byte a group: the scale, and above it the minimum.
    fn set_of_nibbles(&mut self, bytes: &[u8]) {
        for (group, &byte) in bytes.iter().enumerate() {
            self.of_groups[group] = i32::from(byte & 15);
            self.mins_of_groups[group] = i32::from(byte >> 4);
        }
    }

    /// 16 scales of six bits: the lower four in 8 bytes, the upper two in the other 4.
    fn set_of_three_quarters(&mut self, bytes: &[u8]) {
        for group in 0..16 {
            let lower = (bytes[group % 8] >> (group / 8 * 4)) & 15;
            let upper = (bytes[8 + group % 4] >> (group / 4 * 2)) & 3;
            self.of_groups[group] = i32::from(lower | (upper << 4));
        }
        self.bias = 32;
    }

    /// 8 scales and 8 minima of six bits; the upper two of the last four lie above the first four.
    fn set_of_six_bits(&mut self, bytes: &[u8]) {
        for group in 0..4 {
            let (scale, min, rest) = (bytes[group], bytes[group + 4], bytes[group + 8]);
            self.of_groups[group] = i32::from(scale & 63);
            self.mins_of_groups[group] = i32::from(min & 63);
            self.of_groups[group + 4] = i32::from((rest & 15) | ((scale >> 6) << 4));
            self.mins_of_groups[group + 4] = i32::from((rest >> 4) | ((min >> 6) << 4));
        }
    }
}

/// Some bits of each integer of a block, packed in bytes. Elements come in runs: the first ones of a run have
/// the lowest bits of its bytes, the next ones the bits above them, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its first byte in the block.
    pub first: usize,
    /// Bits of an element: 1, 2, 4 or 8.
    pub width: usize,
    /// Elements of a run.
    pub run: usize,
}

impl Field {
    /// Elements that share a byte.
    pub fn per_byte(&self) -> usize {
        8 / self.width
    }

    fn place(&self, element: usize) -> Place {
        let bytes = self.run / self.per_byte();
        let (run, at) = (element / self.run, element % self.run);
        let byte = self.first + run * bytes + at % bytes;
        Place { byte: byte as u8, shift: (at / bytes * self.width) as u8 }
    }
}

/// Where the bits of an element lie.
#[derive(Clone, Copy, Debug)]
struct Place {
    byte: u8,
    shift: u8,
}

/// A field, and where each element of it lies.
#[derive(Clone, Debug)]
pub struct Bits {
    pub field: Field,
    mask: u8,
    places: Vec<Place>,
}

impl Bits {
    fn of(field: Field, elements: usize) -> Bits {
        let places = (0..elements).map(|element| field.place(element)).collect();
        Bits { field, mask: u8::MAX >> (8 - field.width), places }
    }

    /// Those of each element of a block.
    fn of_elements(&self, block: &[u8]) -> impl Iterator<Item = i32> {
        let of = |place: &Place| (block[usize::from(place.byte)] >> place.shift) & self.mask;
        self.places.iter().map(of).map(i32::from)
    }

    /// Packs them in runs of another length.
    pub fn repack(&mut self, run: usize) {
        *self = Bits::of(Field { run, ..self.field }, self.places.len());
    }

    /// Lets them begin at another byte.
    pub fn move_to(&mut self, first: usize) {
        *self = Bits::of(Field { first, ..self.field }, self.places.len());
    }

    /// Gives the first elements of a run the highest bits.
    pub fn reverse(&mut self) {
        let highest = (8 - self.field.width) as u8;
        self.places.iter_mut().for_each(|place| place.shift = highest - place.shift);
    }

    /// Gives each element the bits of the one that `from` names.
    pub fn reorder(&mut self, from: impl Fn(usize) -> usize) {
        self.places = (0..self.places.len()).map(|element| self.places[from(element)]).collect();
    }
}

/// Where a block's integers lie, and what they stand for.
#[derive(Clone, Debug)]
pub struct Layout {
    pub elements: usize,
    pub bytes: usize,
    /// Groups of elements that have a scale of their own.
    pub groups: usize,
    pub low: Bits,
    /// The bits above, where they lie apart.
    pub high: Option<Bits>,
    /// Bits that are inverted.
    pub flips: i32,
    /// Whether the integers are in two's complement.
    pub is_signed: bool,
    /// What is subtracted from the integers.
    pub offset: i32,
}

impl Layout {
    /// Bits of an integer.
    pub fn width(&self) -> usize {
        self.low.field.width + self.high.as_ref().map_or(0, |high| high.field.width)
    }

    /// A block's integers as stored, one an element.
    pub fn integers(&self, block: &[u8], integers: &mut [i32]) {
        let low = integers.iter_mut().zip(self.low.of_elements(block));
        low.for_each(|(integer, bits)| *integer = bits);
        if let Some(high) = &self.high {
            let shift = self.low.field.width;
            let high = integers.iter_mut().zip(high.of_elements(block));
            high.for_each(|(integer, bits)| *integer |= bits << shift);
        }
        let unused = if self.is_signed { 32 - self.width() } else { 0 };
        for integer in integers {
            *integer = ((*integer ^ self.flips) << unused) >> unused;
        }
    }

    /// The weights of a block.
    pub fn decode(&self, block: &[u8], scales: &Scales, out: &mut [f32]) {
        let length = self.elements / self.groups;
        let mut memory = [0; MOST_ELEMENTS];
        let integers = &mut memory[..self.elements];
        self.integers(block, integers);
        let groups = out.chunks_exact_mut(length).zip(integers.chunks_exact(length));
        for (group, (out, integers)) in groups.enumerate() {
            let (scale, min) = (scales.scale_of(group), scales.min_of(group));
            for (weight, &integer) in out.iter_mut().zip(integers) {
                *weight = scale * (integer - self.offset) as f32 - min;
            }
        }
    }
}

/// Blocks of bytes that look random, with finite scales.
pub fn random_blocks(packing: Packing, blocks: usize) -> Vec<u8> {
    let size = packing.layout().bytes;
    let noise = |i: usize| {
        let mixed = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56) as u8
    };
    let mut bytes: Vec<u8> = (0..blocks * size).map(noise).collect();
    let (first, count) = packing.halves();
    for block in bytes.chunks_exact_mut(size) {
        // A number in f16 is finite without the highest bit of its exponent.
        (0..count).for_each(|at| block[first + 2 * at + 1] &= 0xbf);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{gguf::type_name, llama};

    /// What ggml makes of blocks.
    fn of_ggml(packing: Packing, blocks: &[u8]) -> Vec<f32> {
        llama::backend();
        let layout = packing.layout();
        // SAFETY: the type is one that ggml knows; traits are static.
        let traits = unsafe { &*sys::ggml_get_type_traits(packing.ggml_type()) };
        let size = (traits.blck_size as usize, traits.type_size);
        assert_eq!(size, (layout.elements, layout.bytes), "{packing:?}");
        let mut out = vec![f32::NAN; blocks.len() / layout.bytes * layout.elements];
        let to_float = traits.to_float.unwrap();
        // SAFETY: `blocks` holds whole blocks of the type, `out` as many elements.
        unsafe { to_float(blocks.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64) };
        out
    }

    #[test]
    fn blocks_are_decoded_to_the_bits_that_ggml_gives() {
        for packing in Packing::ALL {
            let layout = packing.layout();
            assert!(layout.bytes <= MOST_BYTES && layout.groups <= MOST_GROUPS);
            let blocks = random_blocks(packing, 64);
            let mut own = vec![f32::NAN; 64 * layout.elements];
            let chunks = own.chunks_exact_mut(layout.elements);
            for (block, out) in blocks.chunks_exact(layout.bytes).zip(chunks) {
                layout.decode(block, &packing.scales(block), out);
            }
            let theirs = of_ggml(packing, &blocks);
            let name = type_name(packing.ggml_type());
            for (element, (own, theirs)) in own.iter().zip(&theirs).enumerate() {
                assert!(own.is_finite(), "{name} {element}");
                assert_eq!(own.to_bits(), theirs.to_bits(), "{name} {element}: {own} {theirs}");
            }
        }
    }

    #[test]
    fn the_type_of_a_packing_is_its_own() {
        for packing in Packing::ALL {
            assert_eq!(Packing::of(packing.ggml_type()), Some(packing));
        }
        assert_eq!(Packing::of(sys::GGML_TYPE_F32), None);
        assert_eq!(Packing::of(sys::GGML_TYPE_F16), None);
    }
}
