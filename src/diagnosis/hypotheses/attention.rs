//! Mistakes in products of two computed tensors: scores, and sums of values.

use std::{cell::Cell, rc::Rc};

use super::{Order, Visit};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Change, Edits, Evidence,
        cause::Tried,
        replay::{
            ReplayError,
            rules::{Call, Values},
        },
    },
    graph::{
        Extent, NodeId, Op, Params,
        site::{Axis, Site, Stage},
    },
};

/// The products of computed tensors in the cone: of queries and keys, and of probabilities and values.
pub fn products(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let products = evidence.nodes(|node| node.op == Op::MulMat);
    let products: Vec<NodeId> =
        products.into_iter().filter(|&id| evidence.is_of_computed(id)).collect();
    for &id in &products {
        sources(evidence, id, visit)?;
        lengths(evidence, id, visit)?;
        readings(evidence, &products, id, visit)?;
    }
    let mut is_proven = false;
    for (text, edits) in scales(evidence)? {
        let tried = evidence.mistake(CauseKey::ScoreScale, text, &edits)?;
        is_proven |= tried.as_ref().is_some_and(|tried| tried.explained.is_proof());
        visit(tried);
    }
    heads(evidence, &products, is_proven, visit)?;
    caps(evidence, visit)
}

/// What a product of several sums, in words: nothing where it is the only one.
fn role(evidence: &Evidence<'_>, products: &[NodeId], id: NodeId) -> &'static str {
    match (products, evidence.spec().stage) {
        ([_], Stage::Scores) => "",
        ([first, _], _) if *first == id => "keys: ",
        _ => OF_VALUES,
    }
}

/// What the cause of a product with values begins with, where it stands beside others.
pub const OF_VALUES: &str = "values: ";

/// The KV head of a query head, given the numbers of both.
type HeadMap = Rc<dyn Fn(usize, usize, usize) -> usize>;

/// Wrong maps from query heads to KV heads.
fn head_maps() -> Vec<(String, HeadMap)> {
    let mut maps: Vec<(String, HeadMap)> = Vec::new();
    let mut add = |text: &str, map: HeadMap| maps.push((text.to_string(), map));
    add("query head h reads KV head h % Hk", Rc::new(|h, _, kv| h % kv));
    add("query head h reads KV head h / Hk", Rc::new(|h, _, kv| (h / kv).min(kv - 1)));
    add("every query head reads KV head 0", Rc::new(|_, _, _| 0));
    add("every query head reads the last KV head", Rc::new(|_, _, kv| kv - 1));
    let text = "query head h reads KV head min(h, Hk - 1)";
    add(text, Rc::new(|h, _, kv| h.min(kv - 1)));
    for shift in 1..4 {
        let text = format!("query heads read the KV head {shift} after theirs");
        add(&text, Rc::new(move |h, q, kv| (h / (q / kv) + shift) % kv));
    }
    add("KV heads in reverse order", Rc::new(|h, q, kv| kv - 1 - h / (q / kv)));
    let neighbours = |h: usize, q: usize, kv: usize| {
        let own = h / (q / kv);
        if (own ^ 1) < kv { own ^ 1 } else { own }
    };
    add("neighbouring KV heads exchanged", Rc::new(neighbours));
    maps
}

/// Heads of keys or values that go with other query heads, and that with a wrong scale.
fn heads(
    evidence: &Evidence<'_>,
    products: &[NodeId],
    is_proven: bool,
    visit: Visit<'_>,
) -> Result<(), ReplayError> {
    let mapped = |id: NodeId, map: &HeadMap| {
        let map = Rc::clone(map);
        Edits::one(id, Change::Call(Rc::new(move |call| mapped(call, &*map))))
    };
    let is_proven = Cell::new(is_proven);
    let mut with = |text: String, edits: &Edits<'_>, mistakes| {
        let tried = evidence.mistake(CauseKey::HeadMap, text, edits)?;
        let proves = tried.as_ref().is_some_and(|tried| tried.explained.is_proof());
        is_proven.set(is_proven.get() || proves);
        visit(tried.map(|tried| Tried { mistakes, ..tried }));
        Ok::<(), ReplayError>(())
    };
    let maps = head_maps();
    for (text, map) in &maps {
        for &id in products {
            with(format!("{}{text}", role(evidence, products, id)), &mapped(id, map), 1)?;
        }
        if let [keys, values] = products {
            let both = mapped(*keys, map).and(&mapped(*values, map));
            with(text.clone(), &both, 1)?;
        }
    }
    let queries: [(&str, Order); 3] = [
        ("query heads in reverse order", |h, q| q - 1 - h),
        ("each query head is the next one", |h, q| (h + 1) % q),
        ("neighbouring query heads exchanged", |h, q| if (h ^ 1) < q { h ^ 1 } else { h }),
    ];
    for (text, map) in queries {
        let moved = move |i: usize, ne: [usize; 4]| {
            let plane = ne[0] * ne[1];
            let (head, rest) = (i / plane % ne[2], i % plane);
            Some((i / plane / ne[2] * ne[2] + map(head, ne[2])) * plane + rest)
        };
        for &id in products {
            let edits = Edits::one(id, Change::moved(1, moved));
            with(format!("{}{text}", role(evidence, products, id)), &edits, 1)?;
        }
    }
    let (Some(&first), false) = (products.first(), is_proven.get()) else { return Ok(()) };
    let has_keys = products.len() == 2 || evidence.spec().stage == Stage::Scores;
    let scales = if has_keys { named_scales(evidence)? } else { Vec::new() };
    for (text, map) in &maps {
        let mut both = mapped(first, map);
        if let [_, values] = products {
            both = both.and(&mapped(*values, map));
        }
        for (scale_text, scale) in &scales {
            with(format!("{text}, and {scale_text}"), &both.and(scale), 2)?;
        }
    }
    Ok(())
}

/// The first source with a block for each head of the second.
fn mapped(call: &mut Call<'_, '_>, map: &dyn Fn(usize, usize, usize) -> usize) {
    let [first, second] = [0, 1].map(|index| call.optional(index).map(|argument| argument.ne));
    let (Some(first), Some(second)) = (first, second) else { return };
    let (kv, queries) = (first[2], second[2]);
    if kv == 0 || queries % kv != 0 || first[3] != 1 {
        return;
    }
    let Some(Some(argument)) = call.arguments.get_mut(0) else { return };
    let block = first[0] * first[1];
    let taken = |values: &[f64]| {
        let of = |h: usize| map(h, queries, kv).min(kv - 1) * block;
        (0..queries).flat_map(|h| values[of(h)..of(h) + block].to_vec()).collect::<Vec<f64>>()
    };
    let Ok(value) = argument.value() else { return };
    let (value, spread) = (taken(&value), argument.spread().map(taken));
    argument.ne[2] = queries;
    argument.values = Values::Dense { value: value.into(), spread: spread.map(Into::into) };
}

/// Other queries, keys or values.
fn sources(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let own = evidence.spec().layer;
    let Some(read) = evidence.graph().node(id).source(0) else { return Ok(()) };
    let specs = evidence.run.model.sites.specs();
    for place in evidence.other_sites(read) {
        let spec = &specs[place];
        let (key, text) = match spec.stage {
            Stage::KCache | Stage::VCache if spec.layer != own => {
                let layer = spec.layer.map_or(String::new(), |layer| evidence.layer_name(layer));
                (CauseKey::CacheLayer, format!("reads the cache of {layer}"))
            }
            Stage::KCache => {
                let text = "the keys' cache is read in place of the values'";
                (CauseKey::ValuesSource, text.to_string())
            }
            Stage::VCache => {
                let text = "the values' cache is read in place of the keys'";
                (CauseKey::ValuesSource, text.to_string())
            }
            _ => {
                let names = (evidence.site_name(place), evidence.name_of(read));
                (CauseKey::InputOfOther, format!("its input is {} instead of {}", names.0, names.1))
            }
        };
        let edit = Edits::one(id, Change::Recorded(0, place));
        visit(evidence.mistake(key, text, &edit)?);
    }
    let Some(query) = evidence.graph().node(id).source(1) else { return Ok(()) };
    for place in evidence.other_sites(query) {
        let names = (evidence.site_name(place), evidence.name_of(query));
        let text = format!("the query is {} instead of {}", names.0, names.1);
        let edit = Edits::one(id, Change::Recorded(1, place));
        visit(evidence.mistake(CauseKey::QuerySource, text, &edit)?);
    }
    Ok(())
}

/// A slot that is read in place of one, of the number of slots.
type Slot = fn(usize, usize) -> Option<usize>;

/// Slots, dims or heads that are read in another order.
fn readings(
    evidence: &Evidence<'_>,
    products: &[NodeId],
    id: NodeId,
    visit: Visit<'_>,
) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    let Some(read) = graph.node(id).source(0).map(|source| graph.node(source)) else {
        return Ok(());
    };
    // Keys lie (dim, slot, head), values (slot, dim, head).
    let Some(slots) = (0..2).find(|&axis| read.ne[axis].per_cell != 0) else { return Ok(()) };
    let role = role(evidence, products, id);
    let named = |text: &str| format!("{role}{text}");
    let index = move |i: usize, ne: [usize; 4]| (i / ne[0] % ne[1], i % ne[0]);
    let at = move |i: usize, ne: [usize; 4], slot: usize, dim: usize| {
        let plane = i / (ne[0] * ne[1]) * ne[0] * ne[1];
        plane + if slots == 1 { slot * ne[0] + dim } else { dim * ne[0] + slot }
    };
    let place = move |i: usize, ne: [usize; 4]| {
        let (row, column) = index(i, ne);
        if slots == 1 { (row, column) } else { (column, row) }
    };
    let orders: [(CauseKey, &str, Slot); 3] = [
        (CauseKey::CacheUnwritten, "read before this step's last slot is written", |slot, n| {
            (slot + 1 < n).then_some(slot)
        }),
        (CauseKey::CacheSlot, "slots read one position too low", |slot, _| slot.checked_sub(1)),
        (CauseKey::CacheSlot, "slots read one position too high", |slot, n| {
            Some(slot + 1).filter(|&slot| slot < n)
        }),
    ];
    for (key, text, order) in orders {
        let moved = Change::moved(0, move |i, ne| {
            let (slot, dim) = place(i, ne);
            order(slot, ne[slots]).map(|slot| at(i, ne, slot, dim))
        });
        visit(evidence.mistake(key, named(text), &Edits::one(id, moved))?);
    }
    let reversed = Change::moved(0, move |i, ne| {
        let (slot, dim) = place(i, ne);
        Some(at(i, ne, slot, ne[1 - slots] - 1 - dim))
    });
    let text = named("dims read in reverse order");
    visit(evidence.mistake(CauseKey::DimsReversed, text, &Edits::one(id, reversed))?);
    // Element (slot, dim) of a head is read where (dim, slot) of its rows would be.
    let transposed = Change::moved(0, move |i, ne| {
        let (slot, dim) = place(i, ne);
        let flat = dim * ne[slots] + slot;
        Some(at(i, ne, flat / ne[1 - slots], flat % ne[1 - slots]))
    });
    let text = named("each head's [position][dim] read as [dim][position]");
    visit(evidence.mistake(CauseKey::CacheTransposed, text, &Edits::one(id, transposed))?);
    Ok(())
}

/// Only a part of the sum.
fn lengths(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let inner =
        evidence.graph().node(id).source(1).map(|source| evidence.graph().node(source).ne[0]);
    let Some(inner) = inner.filter(|n| n.is_fixed()).map(|n| n.fixed as usize) else {
        let text = "the last key is left out of the sum";
        let cut = Change::moved(1, |i, ne| (i % ne[0] + 1 < ne[0]).then_some(i));
        visit(evidence.mistake(CauseKey::ValuesTruncated, text, &Edits::one(id, cut))?);
        let text = "the first key is left out";
        let cut = Change::moved(1, |i, ne| (i % ne[0] > 0).then_some(i));
        visit(evidence.mistake(CauseKey::ValuesTruncated, text, &Edits::one(id, cut))?);
        for n in [1, 16, 31, 32, 64, 128, 256] {
            let text = format!("only the first {n} keys are summed");
            let cut = Change::moved(1, move |i, ne| (i % ne[0] < n).then_some(i));
            visit(evidence.mistake(CauseKey::ValuesTruncated, text, &Edits::one(id, cut))?);
        }
        return Ok(());
    };
    let mut lengths = vec![inner / 2, inner / 4, 3 * inner / 4, inner - 1, 32, 64];
    lengths.retain(|&n| 0 < n && n < inner);
    lengths.sort_unstable();
    lengths.dedup();
    for n in lengths {
        let cut = Change::moved(1, move |i, ne| (i % ne[0] < n).then_some(i));
        let text = format!("only the first {n} of {inner} dims are summed");
        visit(evidence.mistake(CauseKey::InnerTruncated, text, &Edits::one(id, cut))?);
    }
    Ok(())
}

/// Other factors of the scores: the named ones, and the one that the recorded values have.
fn scales(evidence: &Evidence<'_>) -> Result<Vec<(String, Edits<'static>)>, ReplayError> {
    let mut list = named_scales(evidence)?;
    let is_scores = evidence.spec().stage == Stage::Scores && evidence.may_fit();
    let (Some((own, id)), true) = (own_scale(evidence), is_scores) else { return Ok(list) };
    if let Some(ratio) = evidence.ratio(&Edits(Vec::new()))? {
        let found = ratio * own;
        let is_named = wrong_scales(evidence, own)
            .iter()
            .any(|(_, factor)| (found / factor - 1.0).abs() < 1e-4);
        if (ratio - 1.0).abs() > 1e-6 && !is_named {
            let text = format!("scale {} instead of {}", digits(found), digits(own));
            list.push((text, times(id, ratio)));
        }
    }
    Ok(list)
}

/// Factors of the scores that people mistake for the right one.
fn named_scales(evidence: &Evidence<'_>) -> Result<Vec<(String, Edits<'static>)>, ReplayError> {
    let Some((own, id)) = own_scale(evidence) else { return Ok(Vec::new()) };
    let of = |(name, factor): (String, f64)| {
        let text = format!("{name}: {} instead of {}", digits(factor), digits(own));
        (text, times(id, factor / own))
    };
    Ok(wrong_scales(evidence, own).into_iter().map(of).collect())
}

/// The factor of the scores, and the node that it is changed at: the scores themselves, or the softmax.
fn own_scale(evidence: &Evidence<'_>) -> Option<(f64, (NodeId, bool))> {
    if evidence.spec().stage == Stage::Scores {
        return Some((f64::from(evidence.spec().factor), (*evidence.cone().last()?, false)));
    }
    let any = Extent { tokens: 1, cells: 1, is_first: true };
    let softmax = |id: &NodeId| {
        let node = evidence.graph().node(*id);
        node.op == Op::SoftMax && node.source(1).is_some()
    };
    let id = evidence.cone().iter().copied().find(softmax)?;
    let reads = evidence.graph().node(id).source(0).map(|source| evidence.graph().root(source));
    let is_whole = reads.is_some_and(|scores| evidence.cone().contains(&scores));
    let own = f64::from(evidence.graph().node(id).params(any).float(0));
    is_whole.then_some((own, (id, true)))
}

/// The scores times a factor.
fn times(at: (NodeId, bool), factor: f64) -> Edits<'static> {
    let (id, is_softmax) = at;
    if !is_softmax {
        return Edits::one(id, Change::Times(factor));
    }
    let scaled = move |params: &mut Params| {
        params.set_float(0, (f64::from(params.float(0)) * factor) as f32);
    };
    Edits::one(id, Change::Params(Rc::new(scaled)))
}

fn wrong_scales(evidence: &Evidence<'_>, own: f64) -> Vec<(String, f64)> {
    let width = |stage| evidence.width_of(stage).map(|n| n as f64);
    let spec = |stage| {
        let site = Site { step: 0, layer: evidence.spec().layer, stage };
        evidence.run.model.sites.get(site)
    };
    let length = |stage, axis| {
        let axes = spec(stage).map(|spec| spec.axes.iter());
        let own = axes.into_iter().flatten().find(|own| own.axis == axis)?;
        own.size.is_fixed().then_some(own.size.fixed as f64)
    };
    let mut list = vec![
        ("scale missing".to_string(), 1.0),
        ("scale applied twice".to_string(), own * own),
        ("divided by the scale, not multiplied".to_string(), 1.0 / own),
        ("the root of the scale".to_string(), own.sqrt()),
    ];
    let mut add = |name: &str, square: Option<f64>| {
        list.extend(square.map(|square| (name.to_string(), 1.0 / square.sqrt())));
    };
    add("scale 1/sqrt(hidden size)", width(Stage::Embd));
    let query = length(Stage::QRope, Axis::Head).or(length(Stage::Q, Axis::Head));
    add("scale 1/sqrt(number of heads)", query);
    let dim = length(Stage::QRope, Axis::Dim).or(length(Stage::Q, Axis::Dim));
    add("scale 1/sqrt(d/2)", dim.map(|dim| dim / 2.0));
    add("scale 1/sqrt(2d)", dim.map(|dim| 2.0 * dim));
    let kv = length(Stage::KCache, Axis::Head);
    add("scale 1/sqrt(heads of a group)", query.zip(kv).map(|(query, kv)| query / kv));
    add("scale 1/sqrt(d + 1)", dim.map(|dim| dim + 1.0));
    add("scale 1/d", dim.map(|dim| dim * dim));
    for other in evidence.head_dims() {
        let root = (other as f64).sqrt();
        list.push((format!("scale 1/sqrt({other})"), 1.0 / root));
    }
    list.retain(|(_, scale)| (scale / own - 1.0).abs() > 1e-9);
    let mut seen: Vec<f64> = Vec::new();
    list.retain(|(_, scale)| {
        let is_new = seen.iter().all(|other| (scale / other - 1.0).abs() > 1e-9);
        seen.push(*scale);
        is_new
    });
    list
}

/// At most six digits behind the point: 0.25, 0.267261.
fn digits(x: f64) -> String {
    format!("{x:.6}").trim_end_matches('0').trim_end_matches('.').to_string()
}

/// A soft cap left out, or another: cap * tanh(x / cap) where all of it is in the cone.
fn caps(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    for tanh in evidence.nodes(|node| node.op == Op::Tanh) {
        let before = graph.node(tanh).source(0).map(|source| graph.root(source));
        let scales = evidence.nodes(|node| node.op == Op::Scale);
        let after = scales
            .iter()
            .copied()
            .find(|&id| graph.node(id).source(0).map(|source| graph.root(source)) == Some(tanh));
        let (Some(before), Some(after)) = (before.filter(|id| scales.contains(id)), after) else {
            let edit = Edits::one(tanh, Change::LeftOut(0));
            visit(evidence.mistake(CauseKey::SoftCap, "no soft cap: tanh is left out", &edit)?);
            continue;
        };
        let all = [before, tanh, after];
        let edit = Edits(all.map(|id| (id, Change::LeftOut(0))).into());
        visit(evidence.mistake(CauseKey::SoftCap, "no soft cap", &edit)?);
        for cap in [5.0, 8.0, 10.0, 15.0, 20.0, 23.0, 25.0, 30.0, 40.0, 50.0, 60.0, 100.0] {
            let edit =
                Edits(vec![(before, Change::float(0, 1.0 / cap)), (after, Change::float(0, cap))]);
            visit(evidence.mistake(CauseKey::SoftCap, format!("soft cap {cap}"), &edit)?);
        }
    }
    Ok(())
}
