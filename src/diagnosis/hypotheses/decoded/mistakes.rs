//! The mistakes in decoding that are tried, by what of a block they are about.

use half::bf16;

use super::{List, Mistake, OtherBlock, OtherGroup, Part};
use crate::model::gguf::{Bits, Layout, Packing, Scales};

/// Integers in another order.
pub(super) fn order(layout: &Layout) -> List {
    let (field, elements) = (layout.low.field, layout.elements);
    let (what, reversed) = match field.width {
        4 => ("nibbles of a byte", "exchanged"),
        2 => ("pairs of bits of a byte", "in reverse order"),
        _ => return List::new(),
    };
    let per_byte = field.per_byte();
    let mut list = vec![(format!("with the {what} as neighbours"), Mistake::Run(per_byte))];
    for run in [32, 64, 256].into_iter().filter(|&run| run <= elements && run != field.run) {
        let text = format!("with the {what} {} elements apart", run / per_byte);
        list.push((text, Mistake::Run(run)));
    }
    let reverse = Mistake::Layout(|layout| layout.low.reverse());
    list.push((format!("with the {what} {reversed}"), reverse));
    if layout.groups == 1 {
        let high_first = Mistake::Layout(|layout| {
            layout.low.repack(2);
            layout.low.reverse();
        });
        list.push((format!("with the {what} as neighbours, the high one first"), high_first));
        let interleaved = Mistake::Layout(|layout| {
            let half = layout.elements / 2;
            let fields = std::iter::once(&mut layout.low).chain(&mut layout.high);
            fields.for_each(|field| field.reorder(|i| i / 2 + i % 2 * half));
        });
        list.push(("with the halves of a block interleaved".to_string(), interleaved));
    }
    list
}

/// Integers with another sign, or with something else subtracted.
pub(super) fn integers(layout: &Layout) -> List {
    if layout.is_signed {
        let unsigned = Mistake::Layout(|layout| layout.is_signed = false);
        let shifted = Mistake::Layout(|layout| {
            layout.is_signed = false;
            layout.offset = 128;
        });
        let text = "with the integers read as unsigned";
        return vec![(text.to_string(), unsigned), (format!("{text}, less 128"), shifted)];
    }
    let own = layout.offset;
    let mut list = List::new();
    if own == 0 {
        let half = 1 << (layout.width() - 1);
        list.push((format!("with {half} subtracted from the integers"), Mistake::Offset(half)));
    } else {
        let text = format!("without subtracting {own} from the integers");
        list.push((text, Mistake::Offset(0)));
        for other in [own + 1, own - 1, 2 * own, own / 2] {
            let text = format!("with {other} subtracted from the integers instead of {own}");
            list.push((text, Mistake::Offset(other)));
        }
    }
    let signed = Mistake::Layout(|layout| {
        layout.is_signed = true;
        layout.offset = 0;
    });
    list.push(("with the integers in two's complement".to_string(), signed));
    list
}

/// High bits that are others', or none.
pub(super) fn high_bits(layout: &Layout) -> List {
    let Some(high) = &layout.high else { return List::new() };
    let (apart, shared) = (layout.low.field.run / 2, first_of_high(layout));
    let end = if high.field.first < layout.low.field.first { "after" } else { "before" };
    let mut list = vec![
        ("without the high bits".to_string(), Mistake::Layout(|layout| layout.high = None)),
        ("with the high bits inverted".to_string(), Mistake::Layout(invert_high)),
        (
            format!("with the high bits of elements {apart} apart exchanged"),
            Mistake::High(|i, layout| i ^ (layout.low.field.run / 2)),
        ),
        (
            format!("with the high bits of the first {shared} elements used for all"),
            Mistake::High(|i, layout| i % first_of_high(layout)),
        ),
        (format!("with the high bits stored {end} the low ones"), Mistake::Layout(exchange_fields)),
    ];
    if layout.groups == 1 {
        let as_neighbours: fn(usize, &Layout) -> usize =
            |i, layout| 2 * i % layout.elements + 2 * i / layout.elements;
        let text = "with the high bits of the nibbles of a byte as neighbours";
        list.push((text.to_string(), Mistake::High(as_neighbours)));
        let reverse = Mistake::Layout(|layout| layout.high.iter_mut().for_each(Bits::reverse));
        list.push(("with the high bits of a byte in reverse order".to_string(), reverse));
    } else {
        let text = "with the high bits of a byte as neighbours";
        list.push((text.to_string(), Mistake::Layout(high_as_neighbours)));
    }
    list
}

/// Elements whose high bits may be taken for those of all.
fn first_of_high(layout: &Layout) -> usize {
    let run = layout.low.field.run;
    if layout.elements > run { run } else { run / 2 }
}

fn invert_high(layout: &mut Layout) {
    layout.flips = (1 << layout.width()) - (1 << layout.low.field.width);
}

fn high_as_neighbours(layout: &mut Layout) {
    layout.high.iter_mut().for_each(|high| high.repack(high.field.per_byte()));
}

/// Stores the high bits where the low ones begin, or the reverse.
fn exchange_fields(layout: &mut Layout) {
    let Layout { elements, low, high: Some(high), .. } = layout else { return };
    let first = low.field.first.min(high.field.first);
    if first == low.field.first {
        low.move_to(first + *elements * high.field.width / 8);
        high.move_to(first);
    } else {
        high.move_to(first + *elements * low.field.width / 8);
        low.move_to(first);
    }
}

/// Scales and minima of other blocks.
pub(super) fn scales_of_blocks(packing: Packing) -> List {
    let others: [(bool, &str, OtherBlock); 7] = [
        (true, "of the next block", |at| (at.index + 1) % at.blocks),
        (true, "of the previous block", |at| (at.index + at.blocks - 1) % at.blocks),
        (false, "of the next block, wrapping to the first at the end of a row", |at| {
            at.in_row((at.column() + 1) % at.columns)
        }),
        (false, "of the next block, its own at the end of a row", |at| {
            at.in_row((at.column() + 1).min(at.columns - 1))
        }),
        (false, "of the first of every two blocks", |at| at.index & !1),
        (false, "of the first of every two blocks of a row", |at| at.in_row(at.column() & !1)),
        (false, "of blocks twice as long", |at| at.in_row(at.column() / 2)),
    ];
    of_others(packing, &others, Mistake::Blocks)
}

/// Scales and minima of other groups of a block, or of another block of groups.
pub(super) fn scales_of_groups(packing: Packing, groups: usize) -> List {
    let after: OtherBlock = |at| (at.index + 1) % at.blocks;
    let mut list =
        of_others(packing, &[(false, "of the next super-block", after)], Mistake::Blocks);
    let half = groups / 2;
    let halves = format!("of sub-blocks 0-{} for {half}-{}", half - 1, groups - 1);
    let others: [(bool, &str, OtherGroup); 4] = [
        (true, "of the next sub-block", |i, n| (i + 1) % n),
        (true, "of the previous sub-block", |i, n| (i + n - 1) % n),
        (false, "of the first of every two sub-blocks", |i, _| i & !1),
        (false, &halves, |i, n| i % (n / 2)),
    ];
    list.extend(of_others(packing, &others, Mistake::Groups));
    list
}

/// Scales and minima that are taken from elsewhere, in some cases either of them alone too.
fn of_others<F: Copy>(
    packing: Packing,
    others: &[(bool, &str, F)],
    mistake: fn(Part, F) -> Mistake,
) -> List {
    let parts: &[(Part, &str)] = if packing.has_min() {
        &[(Part::Both, "scales and minima"), (Part::Scale, "scales"), (Part::Min, "minima")]
    } else {
        &[(Part::Both, "scales")]
    };
    let mut list = List::new();
    for &(is_each_alone, which, from) in others {
        let count = if is_each_alone { parts.len() } else { 1 };
        for &(part, what) in &parts[..count] {
            list.push((format!("with the {what} {which}"), mistake(part, from)));
        }
    }
    list
}

/// Scales and minima that are other numbers.
pub(super) fn other_numbers(packing: Packing, layout: &Layout) -> List {
    let block = if layout.groups == 1 { "block" } else { "super-block" };
    let mut list = List::new();
    let mut add = |text: &str, change: fn(&mut Scales)| {
        list.push((text.to_string(), Mistake::Scales(change)));
    };
    add(&format!("with the scale of a {block} read as bf16 instead of f16"), |scales| {
        let [scale, min] = scales.halves.map(|bits| bf16::from_bits(bits).to_f32());
        (scales.scale, scales.min) = (scale, min);
    });
    add(&format!("without the scale of a {block}"), |scales| scales.scale = 1.0);
    if packing.has_min() {
        let is_added = layout.groups == 1;
        let sign = if is_added { "subtracted, not added" } else { "added, not subtracted" };
        add("without the minima", |scales| scales.min = 0.0);
        add(&format!("with the minima {sign}"), |scales| scales.sign = -scales.sign);
        add(&format!("with the scale and the minimum of a {block} exchanged"), |scales| {
            (scales.scale, scales.min) = (scales.min, scales.scale);
        });
    }
    match packing {
        Packing::Q4_1 | Packing::Q5_1 => {
            add("with the minimum multiplied by the scale", |scales| scales.min *= scales.scale);
        }
        Packing::Q2K | Packing::Q4K | Packing::Q5K => {
            let text = "with the minima multiplied by the scale of the scales";
            add(text, |scales| scales.min = scales.scale);
            add("with the scales and the minima of sub-blocks exchanged", |scales| {
                std::mem::swap(&mut scales.of_groups, &mut scales.mins_of_groups);
            });
        }
        _ => {}
    }
    match packing {
        Packing::Q3K => {
            let text = "without subtracting 32 from the scales of sub-blocks";
            add(text, |scales| scales.bias = 0);
            let text = "without the upper bits of the scales of sub-blocks";
            add(text, |scales| scales.of_groups.iter_mut().for_each(|scale| *scale &= 15));
        }
        Packing::Q4K | Packing::Q5K => {
            let text = "without the upper bits of the scales and minima of sub-blocks 4-7";
            add(text, |scales| {
                let upper = scales.of_groups[4..].iter_mut().chain(&mut scales.mins_of_groups[4..]);
                upper.for_each(|number| *number &= 15);
            });
        }
        Packing::Q6K => {
            add("with the scales of sub-blocks read as unsigned", |scales| {
                scales.of_groups.iter_mut().for_each(|scale| *scale &= 255);
            });
        }
        _ => {}
    }
    list
}
