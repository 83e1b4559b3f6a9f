//! Mistakes in decoding a weight of the file: the order of its integers, their high bits, what is subtracted
//! from them, their scales and minima.

mod mistakes;

use std::{ops::Range, rc::Rc};

use half::{bf16, f16};

use self::mistakes::{
    high_bits, integers, order, other_numbers, scales_of_blocks, scales_of_groups,
};
use super::{Visit, near::WeightSource};
use crate::{
    core::{arithmetic::Value, cause_key::CauseKey, format::Format},
    diagnosis::{
        Change, Edits, Evidence,
        replay::{Declared, Machine, Matrix, ReplayError, round},
    },
    graph::Op,
    model::gguf::{Layout, MOST_BYTES, Packing, Scales, TensorInfo, random_blocks},
};

/// How a weight is read.
#[derive(Clone, Copy)]
enum Reading {
    Blocks(Packing, Mistake),
    /// Each number of 16 bits is widened so.
    Halves(fn(u16) -> f32),
}

/// What is done wrong with blocks.
#[derive(Clone, Copy)]
enum Mistake {
    Layout(fn(&mut Layout)),
    /// The low bits are packed in runs of another length.
    Run(usize),
    /// Another number is subtracted from the integers.
    Offset(i32),
    /// The high bits are those of another element.
    High(fn(usize, &Layout) -> usize),
    Scales(fn(&mut Scales)),
    /// A part of the scales is another block's.
    Blocks(Part, OtherBlock),
    /// A part of the scales is another group's.
    Groups(Part, OtherGroup),
    /// What is stored in f16 is looked for at the block's other end.
    HeaderMoved,
}

/// The block that scales are taken from.
type OtherBlock = fn(At) -> usize;
/// The group that scales are taken from, of the group and the number of groups.
type OtherGroup = fn(usize, usize) -> usize;

/// A block's place in its tensor.
#[derive(Clone, Copy)]
struct At {
    index: usize,
    /// Blocks of a row.
    columns: usize,
    blocks: usize,
}

impl At {
    fn column(self) -> usize {
        self.index % self.columns
    }

    /// Another block of the row.
    fn in_row(self, column: usize) -> usize {
        self.index / self.columns * self.columns + column
    }
}

/// Scales, minima or both.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Scale,
    Min,
    Both,
}

impl Part {
    /// Takes the part from another block.
    fn take(self, own: &mut Scales, other: &Scales) {
        if self != Part::Min {
            (own.scale, own.of_groups) = (other.scale, other.of_groups);
        }
        if self != Part::Scale {
            (own.min, own.mins_of_groups) = (other.min, other.mins_of_groups);
        }
    }
}

/// Scales in which each group has those of the group that `from` names.
fn regrouped(scales: &Scales, groups: usize, from: OtherGroup) -> Scales {
    let mut other = scales.clone();
    for group in 0..groups {
        other.of_groups[group] = scales.of_groups[from(group, groups)];
        other.mins_of_groups[group] = scales.mins_of_groups[from(group, groups)];
    }
    other
}

/// Products with a weight of the file and lookups in one, the weight decoded wrongly.
pub fn decoded(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let reads = |op: Op| matches!(op, Op::MulMat | Op::MulMatId | Op::GetRows);
    let conventions = &evidence.run.recording.arithmetic.roundings;
    let declared = Declared { conventions, stage: Some(evidence.spec().stage) };
    for id in evidence.nodes(|node| reads(node.op)) {
        let Some(WeightSource { source: 0, name }) = evidence.weight_source(id) else { continue };
        let Some(info) = evidence.run.file.gguf().tensor(&name) else { continue };
        let is_product = evidence.graph().node(id).op != Op::GetRows;
        for (text, reading) in readings(info) {
            let name = name.clone();
            let change = read_as(move |machine| {
                let format = declared.format(Value::Weights, machine.extent.tokens);
                matrix(machine, &name, reading, format.filter(|_| is_product))
            });
            visit(evidence.mistake(CauseKey::WeightDecoded, text, &Edits::one(id, change))?);
        }
    }
    Ok(())
}

/// The weight of a product as a matrix that is read in another way.
fn read_as<'c>(
    of: impl for<'a> Fn(&Machine<'a>) -> Result<Matrix<'a>, ReplayError> + 'c,
) -> Change<'c> {
    Change::Matrix(0, Rc::new(of))
}

fn matrix<'a>(
    machine: &Machine<'a>,
    name: &str,
    reading: Reading,
    format: Option<Format>,
) -> Result<Matrix<'a>, ReplayError> {
    let file = machine.run.file;
    let info = file.info(name)?;
    let data = file.gguf().data(info);
    let weights = machine.run.recording.arithmetic.weights;
    let (outputs, inputs) = (info.rows(), info.row_length());
    let matrix = match reading {
        Reading::Blocks(packing, mistake) => {
            let decoder = Decoder::new(packing, Some(mistake), data, inputs);
            Matrix::of_rows(outputs, inputs, move |rows, out| {
                decoder.rows(rows, out);
                round(weights, out);
            })
        }
        Reading::Halves(widen) => Matrix::of_rows(outputs, inputs, move |rows, out| {
            widened(&data[2 * inputs * rows.start..], widen, out);
            round(weights, out);
        }),
    };
    Ok(match format {
        Some(format) => matrix.rounded(format),
        None => matrix,
    })
}

/// Reads some rows of a weight.
pub type ReadRows<'a> = Box<dyn Fn(Range<usize>, &mut [f32]) + 'a>;

/// Each wrong way to read a tensor's bytes, in words.
pub fn misread<'a>(info: &TensorInfo, data: &'a [u8]) -> Vec<(String, ReadRows<'a>)> {
    let inputs = info.row_length();
    let rows = |(text, reading)| {
        let read: ReadRows<'a> = match reading {
            Reading::Blocks(packing, mistake) => {
                let decoder = Decoder::new(packing, Some(mistake), data, inputs);
                Box::new(move |rows, out| decoder.rows(rows, out))
            }
            Reading::Halves(widen) => {
                Box::new(move |rows, out| widened(&data[2 * inputs * rows.start..], widen, out))
            }
        };
        (text, read)
    };
    readings(info).into_iter().map(rows).collect()
}

/// Numbers of 16 bits, widened so.
fn widened(bytes: &[u8], widen: fn(u16) -> f32, out: &mut [f32]) {
    for (value, half) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *value = widen(u16::from_le_bytes([half[0], half[1]]));
    }
}

/// The wrong ways to read a tensor; none of a type that is not known here.
fn readings(info: &TensorInfo) -> Vec<(String, Reading)> {
    let name = info.type_name().to_lowercase();
    if let Some(packing) = Packing::of(info.ggml_type) {
        let columns = info.row_length() / packing.layout().elements;
        let reading = |(text, mistake): (String, Mistake)| {
            (format!("{name} decoded {text}"), Reading::Blocks(packing, mistake))
        };
        return mistakes(packing, columns).into_iter().map(reading).collect();
    }
    let halves: (&str, fn(u16) -> f32) = match &name[..] {
        "f16" => ("bf16", |bits| bf16::from_bits(bits).to_f32()),
        "bf16" => ("f16", |bits| f16::from_bits(bits).to_f32()),
        _ => return Vec::new(),
    };
    vec![(format!("{name} weights read as {}", halves.0), Reading::Halves(halves.1))]
}

/// A weight's blocks, decoded with a mistake or without.
struct Decoder<'a> {
    data: &'a [u8],
    packing: Packing,
    layout: Layout,
    /// Blocks of a row.
    columns: usize,
    mistake: Option<Mistake>,
}

impl<'a> Decoder<'a> {
    fn new(
        packing: Packing,
        mistake: Option<Mistake>,
        data: &'a [u8],
        row_length: usize,
    ) -> Decoder<'a> {
        let mut layout = packing.layout();
        match mistake {
            Some(Mistake::Layout(change)) => change(&mut layout),
            Some(Mistake::Run(run)) => layout.low.repack(run),
            Some(Mistake::Offset(offset)) => layout.offset = offset,
            Some(Mistake::High(from)) => {
                let order: Vec<usize> = (0..layout.elements).map(|i| from(i, &layout)).collect();
                layout.high.iter_mut().for_each(|high| high.reorder(|i| order[i]));
            }
            _ => {}
        }
        let columns = (row_length / layout.elements).max(1);
        Decoder { data, packing, layout, columns, mistake }
    }

    fn block(&self, index: usize) -> &'a [u8] {
        &self.data[index * self.layout.bytes..(index + 1) * self.layout.bytes]
    }

    /// The scales that a block is decoded with.
    fn scales(&self, index: usize, block: &[u8]) -> Scales {
        let mut scales = self.packing.scales(block);
        match self.mistake {
            Some(Mistake::Scales(change)) => change(&mut scales),
            Some(Mistake::Blocks(part, from)) => {
                let blocks = self.data.len() / self.layout.bytes;
                let other = from(At { index, columns: self.columns, blocks });
                part.take(&mut scales, &self.packing.scales(self.block(other)));
            }
            Some(Mistake::Groups(part, from)) => {
                let other = regrouped(&scales, self.layout.groups, from);
                part.take(&mut scales, &other);
            }
            _ => {}
        }
        scales
    }

    fn rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let mut memory = [0u8; MOST_BYTES];
        let first = rows.start * self.columns;
        for (index, out) in (first..).zip(out.chunks_exact_mut(self.layout.elements)) {
            let mut block = self.block(index);
            if let Some(Mistake::HeaderMoved) = self.mistake {
                let moved = &mut memory[..block.len()];
                moved.copy_from_slice(block);
                match self.packing.halves() {
                    (0, count) => moved.rotate_right(2 * count),
                    (_, count) => moved.rotate_left(2 * count),
                }
                block = moved;
            }
            self.layout.decode(block, &self.scales(index, block), out);
        }
    }
}

type List = Vec<(String, Mistake)>;

/// The mistakes that change weights of a type, whose rows are of so many blocks.
fn mistakes(packing: Packing, columns: usize) -> List {
    let layout = packing.layout();
    let mut list = order(&layout);
    list.extend(integers(&layout));
    list.extend(high_bits(&layout));
    if layout.groups == 1 {
        list.extend(scales_of_blocks(packing));
    } else {
        list.extend(scales_of_groups(packing, layout.groups));
    }
    list.extend(other_numbers(packing, &layout));
    let end = if packing.halves().0 == 0 { "after" } else { "before" };
    list.push((format!("with the scale stored {end} the integers"), Mistake::HeaderMoved));
    distinct(packing, columns, list)
}

/// Those that give other weights than the right ones, and than those before.
fn distinct(packing: Packing, columns: usize, mut list: List) -> List {
    // Rows of few blocks, but of an odd number where it is odd.
    let columns = if columns > 5 { 4 + columns % 2 } else { columns.max(1) };
    let data = random_blocks(packing, 3 * columns);
    let mut seen = vec![bits(packing, None, &data, columns)];
    list.retain(|(_, mistake)| {
        let given = bits(packing, Some(*mistake), &data, columns);
        let is_new = !seen.contains(&given);
        seen.push(given);
        is_new
    });
    list
}

/// The bits of the weights that blocks are decoded to.
fn bits(packing: Packing, mistake: Option<Mistake>, data: &[u8], columns: usize) -> Vec<u32> {
    let Layout { elements, bytes, .. } = packing.layout();
    let decoder = Decoder::new(packing, mistake, data, columns * elements);
    let mut weights = vec![0.0; data.len() / bytes * elements];
    decoder.rows(0..data.len() / bytes / columns, &mut weights);
    weights.into_iter().map(f32::to_bits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weights that a mistake gives of blocks, and the right ones.
    fn decoded_as(packing: Packing, text: &str, data: &[u8], columns: usize) -> [Vec<f32>; 2] {
        let list = mistakes(packing, columns);
        let (_, mistake) = list.into_iter().find(|(own, _)| own == text).expect(text);
        [Some(mistake), None].map(|mistake| {
            bits(packing, mistake, data, columns).into_iter().map(f32::from_bits).collect()
        })
    }

    fn half(block: &[u8], byte: usize) -> f32 {
        f16::from_bits(u16::from_le_bytes([block[byte], block[byte + 1]])).to_f32()
    }

    #[test]
    fn each_mistake_of_a_type_changes_weights_in_its_own_way() {
        let sizes = [1, 4, 9];
        for at in 0..Packing::ALL.len() * sizes.len() {
            let (packing, columns) = (Packing::ALL[at / sizes.len()], sizes[at % sizes.len()]);
            let list = mistakes(packing, columns);
            assert!((8..=32).contains(&list.len()), "{packing:?}: {}", list.len());
            let layout = packing.layout();
            // Other blocks than those by which the mistakes were chosen.
            let data = &random_blocks(packing, 11 * columns)[5 * columns * layout.bytes..];
            let mut seen = vec![(String::new(), bits(packing, None, data, columns))];
            for (text, mistake) in list {
                let given = bits(packing, Some(mistake), data, columns);
                for (other, same) in &seen {
                    assert!(*other != text && *same != given, "{packing:?} {text}: {other}");
                }
                seen.push((text, given));
            }
        }
    }

    #[test]
    fn a_decoder_gives_any_rows() {
        let (packing, columns) = (Packing::Q6K, 2);
        let data = random_blocks(packing, 6);
        let all = bits(packing, None, &data, columns);
        let decoder = Decoder::new(packing, None, &data, 512);
        let mut rows = vec![0.0; 2 * 512];
        decoder.rows(1..3, &mut rows);
        let rows: Vec<u32> = rows.into_iter().map(f32::to_bits).collect();
        assert_eq!(rows, all[512..]);
    }

    #[test]
    fn nibbles_are_taken_as_neighbours() {
        let data = random_blocks(Packing::Q4_1, 6);
        let text = "with the nibbles of a byte as neighbours";
        let [given, right] = decoded_as(Packing::Q4_1, text, &data, 2);
        for (at, block) in data.chunks_exact(20).enumerate() {
            for (byte, pair) in block[4..].iter().enumerate() {
                let of = |q: u8| half(block, 0) * f32::from(q) + half(block, 2);
                assert_eq!(given[32 * at + 2 * byte], of(pair & 15));
                assert_eq!(given[32 * at + 2 * byte + 1], of(pair >> 4));
                assert_eq!(right[32 * at + byte + 16], of(pair >> 4));
            }
        }
    }

    #[test]
    fn fifth_bits_are_taken_as_neighbours() {
        let data = random_blocks(Packing::Q5_0, 4);
        let text = "with the high bits of the nibbles of a byte as neighbours";
        let [given, _] = decoded_as(Packing::Q5_0, text, &data, 4);
        for (at, block) in data.chunks_exact(22).enumerate() {
            let high = |bit: usize| (block[2 + bit / 8] >> (bit % 8)) & 1;
            for byte in 0..16 {
                let (low, above) = (block[6 + byte] & 15, block[6 + byte] >> 4);
                let of = |q: u8| half(block, 0) * (f32::from(q) - 16.0);
                assert_eq!(given[32 * at + byte], of(low | (high(2 * byte) << 4)));
                assert_eq!(given[32 * at + byte + 16], of(above | (high(2 * byte + 1) << 4)));
            }
        }
    }

    #[test]
    fn every_second_scale_is_used() {
        let data = random_blocks(Packing::Q8_0, 12);
        let text = "with the scales of the first of every two blocks";
        let [given, _] = decoded_as(Packing::Q8_0, text, &data, 3);
        for (i, &weight) in given.iter().enumerate() {
            let (at, byte) = (i / 32, 34 * (i / 32) + 2 + i % 32);
            assert_eq!(weight, half(&data, 34 * (at & !1)) * f32::from(data[byte] as i8));
        }
    }

    #[test]
    fn scales_of_the_lower_sub_blocks_are_used_for_the_upper_ones() {
        let data = random_blocks(Packing::Q4K, 3);
        let text = "with the scales and minima of sub-blocks 0-3 for 4-7";
        let [given, right] = decoded_as(Packing::Q4K, text, &data, 3);
        for (i, &weight) in given.iter().enumerate() {
            let block = &data[144 * (i / 256)..];
            let (group, within) = (i % 256 / 32, i % 32);
            let nibbles = block[16 + group / 2 * 32 + within];
            let q = if group % 2 == 0 { nibbles & 15 } else { nibbles >> 4 };
            let (scale, min) = (block[4 + group % 4] & 63, block[8 + group % 4] & 63);
            let scaled = half(block, 0) * f32::from(scale) * f32::from(q);
            assert_eq!(weight, scaled - half(block, 2) * f32::from(min));
            assert!(group >= 4 || weight == right[i]);
        }
    }
}
