//! Mistakes in a rotation: angles, positions, pairs, and how many dims rotate.

use std::{f64::consts::TAU, rc::Rc};

use super::{Visit, near::short};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Change, Edits, Evidence,
        cause::Tried,
        replay::{
            ReplayError,
            rules::{Argument, Values},
        },
    },
    graph::{Extent, Node, NodeId, Op, Params, RopeParams},
};

/// Where the parameters are among a ROPE's.
const DIMS: usize = 1;
const MODE: usize = 2;
const CONTEXT: usize = 4;
const BASE: usize = 5;
const SCALE: usize = 6;
const YARN: usize = 7;
const MAGNITUDE: usize = 8;
const FAST: usize = 9;
const SLOW: usize = 10;
const OFFSET: usize = 15;

/// The modes.
const NORMAL: i32 = 0;
const NEOX: i32 = 2;
const MROPE: i32 = 8;
const IMROPE: i32 = 40;

/// Bases in use.
const BASES: [f64; 9] = [1e4, 5e5, 1e6, 1.5e5, 1e7, 2.5e5, 5e6, 1e5, 2e6];

type Changed<'c> = (CauseKey, String, Change<'c>);

/// Every rotation in the cone: each mistake alone, and wrong pairs together with each other one.
pub fn rotations(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    for id in evidence.nodes(|node| node.op == Op::Rope) {
        let node = evidence.graph().node(id);
        let params = node.params(Extent { tokens: 1, cells: 1, is_first: true });
        let pairs = pairs(params);
        let mut is_proven = false;
        let singles = mistakes(evidence, id, params)?;
        let order = in_other_order(id, node, params).into_iter();
        let pairs_alone = pairs
            .iter()
            .map(|(key, text, change)| (*key, text.clone(), Edits::one(id, change.clone())));
        let singles_alone = singles
            .iter()
            .map(|(key, text, change)| (*key, text.clone(), Edits::one(id, change.clone())));
        for (key, text, edits) in pairs_alone.chain(order).chain(singles_alone) {
            let tried = evidence.mistake(key, text, &edits)?;
            is_proven |= tried.as_ref().is_some_and(|tried| tried.explained.is_proof());
            visit(tried);
        }
        for (key, text, change) in pairs.into_iter().filter(|_| !is_proven) {
            let base = Edits::one(id, change.clone());
            let mut other = params;
            if let Change::Params(set) = &change {
                set(&mut other);
            }
            for (_, with, also) in mistakes(evidence, id, other)? {
                let edits = base.and(&Edits::one(id, also));
                let tried = evidence.mistake(key, format!("{text}, and {with}"), &edits)?;
                visit(tried.map(|tried| Tried { mistakes: 2, ..tried }));
            }
        }
        factors(evidence, id, visit)?;
        evidence.other_inputs(id, 0, &|_| CauseKey::InputOfOther, visit)?;
    }
    Ok(())
}

/// Every mistake but other pairs, where the parameters are these.
fn mistakes<'c>(
    evidence: &Evidence<'_>,
    id: NodeId,
    params: Params,
) -> Result<Vec<Changed<'c>>, ReplayError> {
    let node = evidence.graph().node(id);
    let mut changes = angles(evidence, id, params)?;
    changes.extend(scaling(params));
    changes.extend(positions(evidence));
    changes.extend(parts(node, params));
    if node.source(2).is_some() {
        let text = "frequency factors ignored".to_string();
        changes.push((CauseKey::RopeFactors, text, Change::Without(2)));
        let text = "multiplied by the frequency factors instead of divided".to_string();
        changes.push((CauseKey::RopeFactors, text, Change::each(2, |x| 1.0 / x)));
    }
    Ok(changes)
}

/// Pairs of neighbours, but of transformers' order of rows: there i and i + d/2 belong together.
fn in_other_order<'c>(
    id: NodeId,
    node: &Node,
    params: Params,
) -> Option<(CauseKey, String, Edits<'c>)> {
    let rope = RopeParams::of(params);
    let (head, dims) = (node.ne[0].fixed.max(1) as usize, rope.dims);
    if rope.is_neox || dims != head || !dims.is_multiple_of(2) {
        return None;
    }
    let place = move |e: usize| e % (dims / 2) * 2 + e / (dims / 2);
    let inverse = move |e: usize| e % 2 * (dims / 2) + e / 2;
    let gathered = Change::moved(0, move |i, _| Some(i / dims * dims + place(i % dims)));
    let back = move |i: usize, _: [usize; 4]| i / dims * dims + inverse(i % dims);
    let edits = Edits(vec![(id, gathered), (id, Change::Order(Rc::new(back)))]);
    let text = "pairs (2i, 2i+1) instead of (i, i+d/2) in transformers' order of rows";
    Some((CauseKey::RopePairs, text.to_string(), edits))
}

/// Several parameters are others.
fn floats<'c>(values: Vec<(usize, f64)>) -> Change<'c> {
    let set = move |params: &mut Params| {
        values.iter().for_each(|&(index, value)| params.set_float(index, value as f32));
    };
    Change::Params(Rc::new(set))
}

/// Other bases.
fn angles<'c>(
    evidence: &Evidence<'_>,
    id: NodeId,
    params: Params,
) -> Result<Vec<Changed<'c>>, ReplayError> {
    let any = Extent { tokens: 1, cells: 1, is_first: true };
    let own = f64::from(params.float(BASE));
    let ropes = evidence.graph().nodes.iter().filter(|node| node.op == Op::Rope);
    let of_others = ropes.map(|node| f64::from(node.params(any).float(BASE)));
    let mut bases: Vec<f64> = of_others.chain(BASES).collect();
    bases.extend([own * 10.0, own / 10.0]);
    let unit = solved_unit(evidence, id, params)?;
    let (dims, scale) = (params.int(DIMS).max(1) as f64, f64::from(params.float(SCALE)));
    let mut changes: Vec<Changed<'c>> = Vec::new();
    if let Some(unit) = unit {
        let base = (unit / scale).powf(-dims / 2.0);
        bases.extend(rounded(base).into_iter().filter(|base| (1.5..1e10).contains(base)));
        let solved = unit * own.powf(2.0 / dims);
        for scale in rounded(solved).into_iter().filter(|scale| (1e-4..1e4).contains(scale)) {
            let text = format!(
                "positions times {} instead of {}",
                short(scale),
                short(f64::from(params.float(SCALE)))
            );
            changes.push((CauseKey::RopeScaling, text, Change::float(SCALE, scale)));
        }
    }
    bases.sort_by(f64::total_cmp);
    bases.dedup();
    for base in bases.into_iter().filter(|base| (*base as f32) != params.float(BASE)) {
        let text = format!("theta {base} instead of {own}");
        changes.push((CauseKey::RopeTheta, text, Change::float(BASE, base)));
    }
    let text = "exponent i/d instead of 2i/d".to_string();
    changes.push((CauseKey::RopeTheta, text, Change::float(BASE, own.sqrt())));
    Ok(changes)
}

/// A fitted number to three, five and seven digits.
fn rounded(x: f64) -> Vec<f64> {
    let mut list = [2, 4, 6].map(|digits| format!("{x:.digits$e}").parse().unwrap_or(x)).to_vec();
    list.dedup();
    list
}

/// The angle of pair 1 at position 1 that the recorded values speak of, before any frequency factor. The
/// angle of a token is only known up to whole turns; that of the token before says how many there are.
fn solved_unit(
    evidence: &Evidence<'_>,
    id: NodeId,
    params: Params,
) -> Result<Option<f64>, ReplayError> {
    let rope = RopeParams::of(params);
    let is_own = evidence.spec().node == id;
    if rope.dims < 4 || params.float(YARN) != 0.0 || !is_own || !evidence.may_fit() {
        return Ok(None);
    }
    let step = &evidence.steps[0];
    let (machine, node) = (&step.machine, evidence.graph().node(id));
    let argument = |source| node.source(source).map(|id| machine.argument(id)).transpose();
    let [x, at, factors] = [argument(0)?, argument(1)?, argument(2)?].map(Option::flatten);
    let (Some(x), Some(at)) = (x, at) else { return Ok(None) };
    let Some(y) = machine.recorded_as(evidence.place, id, x.ne)? else { return Ok(None) };
    let (x_values, positions) = (x.value()?, at.value()?);
    let [dim, heads, tokens, _] = x.ne;
    let (a, b) = rope.elements(1);
    let mut unit: Option<f64> = None;
    for token in 0..tokens {
        let position = positions[token];
        if position <= 0.0 {
            continue;
        }
        let (mut cosine, mut sine) = (0.0, 0.0);
        for start in (0..heads).map(|head| (token * heads + head) * dim) {
            let (before, after) =
                ([x_values[start + a], x_values[start + b]], [y[start + a], y[start + b]]);
            cosine += before[0] * after[0] + before[1] * after[1];
            sine += before[0] * after[1] - before[1] * after[0];
        }
        let angle = sine.atan2(cosine).rem_euclid(TAU);
        unit = match unit {
            None if position == 1.0 => Some(angle),
            None => return Ok(None),
            Some(unit) => {
                Some((((position * unit - angle) / TAU).round() * TAU + angle) / position)
            }
        };
    }
    let factor =
        factors.as_ref().map(Argument::value).transpose()?.map_or(1.0, |factors| factors[1]);
    Ok(unit.map(|unit| unit * factor).filter(|&unit| unit > 0.0))
}

/// Scaling, YaRN and magnitude.
fn scaling<'c>(params: Params) -> Vec<Changed<'c>> {
    let float = |index| f64::from(params.float(index));
    let (scale, yarn, magnitude) = (float(SCALE), float(YARN), float(MAGNITUDE));
    let mut changes: Vec<Changed<'c>> = Vec::new();
    let mut add = |key, text: &str, values: Vec<(usize, f64)>| {
        changes.push((key, text.to_string(), floats(values)));
    };
    let of_yarn = 1.0 + 0.1 * (1.0 / scale).ln();
    for (key, text, other) in [
        (CauseKey::RopeScaling, "positions are not scaled", 1.0),
        (
            CauseKey::RopeScaling,
            "positions multiplied by the factor instead of divided",
            1.0 / scale,
        ),
        (CauseKey::RopeScaling, "positions scaled twice", scale * scale),
    ] {
        if other != scale {
            add(key, text, vec![(SCALE, other)]);
        }
    }
    for factor in [2.0, 4.0, 8.0, 0.5, 0.25, 0.125] {
        let text = format!("positions times {factor}");
        add(CauseKey::RopePosition, &text, vec![(SCALE, scale * factor)]);
    }
    if yarn != 0.0 {
        let magnitudes = [magnitude, magnitude * of_yarn, 1.0];
        for (i, own) in magnitudes.into_iter().enumerate() {
            let of = ["", ", with its magnitude", ", with magnitude 1"][i];
            add(
                CauseKey::RopeScaling,
                &format!("YaRN is off: all pairs are interpolated{of}"),
                vec![(YARN, 0.0), (MAGNITUDE, own)],
            );
            add(
                CauseKey::RopeScaling,
                &format!("YaRN is off: no pair is interpolated{of}"),
                vec![(YARN, 0.0), (SCALE, 1.0), (MAGNITUDE, own)],
            );
        }
        add(
            CauseKey::RopeScaling,
            "YaRN's two limits are exchanged",
            vec![(FAST, float(SLOW)), (SLOW, float(FAST))],
        );
        add(
            CauseKey::RopeMagnitude,
            "sine and cosine are not scaled",
            vec![(MAGNITUDE, 1.0 / of_yarn)],
        );
        add(
            CauseKey::RopeMagnitude,
            "sine and cosine are scaled twice",
            vec![(MAGNITUDE, magnitude * magnitude * of_yarn)],
        );
        add(
            CauseKey::RopeMagnitude,
            "sine and cosine are scaled by YaRN's own factor",
            vec![(MAGNITUDE, 1.0)],
        );
    } else if scale != 1.0 {
        let text = "YaRN is on";
        add(CauseKey::RopeScaling, text, vec![(YARN, 1.0), (MAGNITUDE, magnitude / of_yarn)]);
    }
    if magnitude != 1.0 {
        add(CauseKey::RopeMagnitude, "the attention factor is 1", vec![(MAGNITUDE, 1.0)]);
    }
    if yarn == 0.0 {
        changes.extend(yarns(params));
    } else {
        for (text, factor) in [("half", 2), ("double", 1)] {
            let context =
                if factor == 2 { params.int(CONTEXT) / 2 } else { params.int(CONTEXT) * 2 };
            let text = format!("YaRN with {text} the original context");
            changes.push((CauseKey::RopeScaling, text, Change::int(CONTEXT, context)));
        }
    }
    changes
}

/// YaRN in place of no scaling: by factors and original contexts in use.
fn yarns<'c>(params: Params) -> Vec<Changed<'c>> {
    let own = params.int(CONTEXT);
    let mut contexts = vec![own, 512, 2048, 4096, 8192, 16384, 32768];
    contexts.sort_unstable();
    contexts.dedup();
    let mut changes: Vec<Changed<'c>> = Vec::new();
    for context in contexts.into_iter().filter(|&context| context > 0) {
        for factor in [2.0f64, 4.0, 8.0, 16.0, 32.0, 40.0] {
            for is_scaled in [true, false] {
                let of_yarn = 1.0 + 0.1 * factor.ln();
                let magnitude = if is_scaled { 1.0 } else { 1.0 / of_yarn };
                let set = move |params: &mut Params| {
                    params.set_int(CONTEXT, context);
                    params.set_float(SCALE, (1.0 / factor) as f32);
                    params.set_float(YARN, 1.0);
                    params.set_float(MAGNITUDE, magnitude as f32);
                };
                let of = if is_scaled { "" } else { ", its magnitude 1" };
                let text = format!("YaRN of factor {factor} and context {context}{of}");
                changes.push((CauseKey::RopeScaling, text, Change::Params(Rc::new(set))));
            }
        }
    }
    changes
}

/// Other positions.
fn positions<'c>(evidence: &Evidence<'_>) -> Vec<Changed<'c>> {
    let prompt = evidence.run.recording.steps.first().map_or(1, Vec::len) as f64;
    let mut changes: Vec<Changed<'c>> = Vec::new();
    let mut add = |key, text: &str, of: Box<dyn Fn(f64) -> f64>| {
        changes.push((key, text.to_string(), Change::each(1, of)));
    };
    add(CauseKey::RopeMissing, "not rotated (as if every position were 0)", Box::new(|_| 0.0));
    for offset in [-2.0, -1.0, 1.0, 2.0] {
        let text = format!("positions off by {offset:+}");
        add(CauseKey::RopePosition, &text, Box::new(move |p| p + offset));
        let text = format!("positions of decode steps off by {offset:+}");
        let of = move |p| if p < prompt { p } else { p + offset };
        add(CauseKey::RopePosition, &text, Box::new(of));
    }
    for first in [0.0, 1.0] {
        let text = format!("positions of decode steps count from {first}");
        let of = move |p| if p < prompt { p } else { p - prompt + first };
        add(CauseKey::RopePosition, &text, Box::new(of));
        let text = format!("every decode step rotates at position {first}");
        let of = move |p| if p < prompt { p } else { first };
        add(CauseKey::RopePosition, &text, Box::new(of));
    }
    add(CauseKey::RopePosition, "every position is 1", Box::new(|_| 1.0));
    add(CauseKey::RopeDirection, "rotated backwards (sine negated)", Box::new(|p| -p));
    changes
}

/// Other pairs, or sections that are not told apart.
fn pairs<'c>(params: Params) -> Vec<Changed<'c>> {
    let mode = params.int(MODE);
    let halves = "pairs (i, i+d/2) instead of (2i, 2i+1)";
    let neighbours = "pairs (2i, 2i+1) instead of (i, i+d/2)";
    let others: &[(CauseKey, &str, i32)] = match mode {
        NORMAL => &[(CauseKey::RopePairs, halves, NEOX)],
        NEOX => &[(CauseKey::RopePairs, neighbours, NORMAL)],
        _ => &[
            (CauseKey::RopeSections, "one position for all sections", NEOX),
            (CauseKey::RopePairs, neighbours, NORMAL),
            (CauseKey::RopeSections, "sections one after another", MROPE),
            (CauseKey::RopeSections, "sections interleaved", IMROPE),
        ],
    };
    let other = others.iter().filter(|(_, _, other)| *other != mode);
    other.map(|&(key, text, mode)| (key, text.to_string(), Change::int(MODE, mode))).collect()
}

/// Fewer or more dims of a head, or others.
fn parts<'c>(node: &Node, params: Params) -> Vec<Changed<'c>> {
    let (dims, offset) = (params.int(DIMS), params.int(OFFSET));
    let (head, base) = (node.ne[0].fixed as i32, f64::from(params.float(BASE)));
    let mut changes: Vec<Changed<'c>> = Vec::new();
    let mut lengths = vec![dims / 4, dims / 2, dims * 3 / 4, dims - 2, dims * 2, head, head / 2];
    lengths.iter_mut().for_each(|length| *length = *length / 2 * 2);
    lengths.sort_unstable();
    lengths.dedup();
    for length in lengths.into_iter().filter(|&n| n > 0 && n != dims && n + offset <= head) {
        let text = if length < dims {
            format!("only {length} of {dims} dims rotate")
        } else {
            format!("{length} dims rotate instead of {dims}")
        };
        let of_size = "at the angles of a head of that size";
        // The angles of a head of that size, or those of the pairs as they were.
        let same = base.powf(f64::from(length) / f64::from(dims));
        let with_angles = move |params: &mut Params| {
            params.set_int(DIMS, length);
            params.set_float(BASE, same as f32);
        };
        let key = CauseKey::RopePartial;
        let among = if RopeParams::of(params).is_neox && length < dims {
            // The first pairs as they were, or pairs of the first dims among themselves.
            let kept = length as usize / 2;
            changes.push((key, text.clone(), first_pairs(kept, None)));
            let angles = (base, f64::from(dims), f64::from(length));
            let as_small = first_pairs(kept, Some(angles));
            changes.push((key, format!("{text}, {of_size}"), as_small));
            ", in pairs among themselves"
        } else {
            ""
        };
        let own = format!("{text}{among}");
        changes.push((key, own, Change::Params(Rc::new(with_angles))));
        changes.push((key, format!("{text}, {of_size}{among}"), Change::int(DIMS, length)));
    }
    for first in [0, head - dims].into_iter().filter(|&first| first != offset && first >= 0) {
        let text = format!("dims from {first} on rotate instead of those from {offset} on");
        changes.push((CauseKey::RopePartial, text, Change::int(OFFSET, first)));
    }
    changes
}

/// Only the first pairs turn: by their own angles, or by those that the base and the lengths of the head and
/// of a smaller one make.
fn first_pairs<'c>(kept: usize, other: Option<(f64, f64, f64)>) -> Change<'c> {
    Change::Call(Rc::new(move |call| {
        let pairs = call.params.int(DIMS).max(0) as usize / 2;
        let own = call.optional(2).and_then(|factors| factors.value().ok());
        let factor = |i: usize| {
            let own = own.as_ref().and_then(|own| own.get(i)).copied().unwrap_or(1.0);
            let of_size = other.map_or(1.0, |(base, dims, length)| {
                base.powf(2.0 * i as f64 * (1.0 / length - 1.0 / dims))
            });
            if i < kept { own * of_size } else { f64::INFINITY }
        };
        let value: Vec<f64> = (0..pairs).map(factor).collect();
        let values = Values::Dense { value: value.into(), spread: None };
        let factors = Argument { ne: [pairs, 1, 1, 1], values };
        call.arguments.resize_with(3, || None);
        call.arguments[2] = Some(factors);
    }))
}

/// A rotated tensor that is also scaled: by the magnitude that fits.
fn factors(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    if evidence.spec().node != id || !evidence.may_fit() {
        return Ok(());
    }
    let node = evidence.graph().node(id);
    let own = node.params(Extent { tokens: 1, cells: 1, is_first: true }).float(MAGNITUDE);
    let Some(ratio) = evidence.ratio(&Edits(Vec::new()))? else { return Ok(()) };
    if (ratio - 1.0).abs() > 1e-6 && ratio.abs() > 1e-3 {
        let text = format!("sine and cosine times {} of the correct values", short(ratio));
        let edit = Edits::one(id, Change::float(MAGNITUDE, f64::from(own) * ratio));
        visit(evidence.mistake(CauseKey::RopeMagnitude, text, &edit)?);
    }
    Ok(())
}
