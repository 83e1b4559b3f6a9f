//! Mistakes in products of two computed tensors: scores, and sums of values.

use super::{Order, Visit, near::short};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        by_graph::{Change, Edits, Evidence},
        replay::{
            ReplayError,
            rules::{Call, Values},
        },
    },
    graph::{NodeId, Op, SiteSpec, site::Stage},
};

/// Every product of computed tensors in the cone.
pub fn products(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    for id in evidence.nodes(|node| node.op == Op::MulMat) {
        if !evidence.is_of_computed(id) {
            continue;
        }
        heads(evidence, id, visit)?;
        sources(evidence, id, visit)?;
        lengths(evidence, id, visit)?;
    }
    if evidence.spec().stage == Stage::Scores {
        scales(evidence, visit)?;
    }
    caps(evidence, visit)
}

/// A head of the first source, of a head of the second, their numbers.
type HeadMap = fn(usize, usize, usize) -> usize;

/// Heads of keys or values that go with other query heads.
fn heads(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let maps: [(&str, HeadMap); 7] = [
        ("query head h reads KV head h % n", |h, _, kv| h % kv),
        ("query head h reads KV head h / n", |h, _, kv| (h / kv.max(1)).min(kv - 1)),
        ("every query head reads KV head 0", |_, _, _| 0),
        ("every query head reads the last KV head", |_, _, kv| kv - 1),
        ("KV heads in reverse order", |h, q, kv| kv - 1 - h / (q / kv)),
        ("every query head reads the KV head after its own", |h, q, kv| (h / (q / kv) + 1) % kv),
        ("neighbouring KV heads exchanged", |h, q, kv| {
            let own = h / (q / kv);
            if (own ^ 1) < kv { own ^ 1 } else { own }
        }),
    ];
    for (text, map) in maps {
        let edit = Edits::one(id, Change::Call(Box::new(move |call| mapped(call, map))));
        visit(evidence.mistake(CauseKey::HeadMap, text, &edit)?);
    }
    let queries: [(&str, Order); 3] = [
        ("query heads in reverse order", |h, q| q - 1 - h),
        ("each query head is the one after", |h, q| (h + 1) % q),
        ("neighbouring query heads exchanged", |h, q| if (h ^ 1) < q { h ^ 1 } else { h }),
    ];
    for (text, map) in queries {
        let moved = move |i: usize, ne: [usize; 4]| {
            let plane = ne[0] * ne[1];
            let (head, rest) = (i / plane % ne[2], i % plane);
            Some((i / plane / ne[2] * ne[2] + map(head, ne[2])) * plane + rest)
        };
        let edit = Edits::one(id, Change::moved(1, moved));
        visit(evidence.mistake(CauseKey::HeadMap, text, &edit)?);
    }
    Ok(())
}

/// The first source with a block for each head of the second.
fn mapped(call: &mut Call<'_, '_>, map: HeadMap) {
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
    let of_cache = |spec: &SiteSpec| match spec.stage {
        Stage::KCache | Stage::VCache if spec.layer != own => CauseKey::CacheLayer,
        Stage::KCache | Stage::VCache => CauseKey::ValuesSource,
        _ => CauseKey::InputOfOther,
    };
    evidence.other_inputs(id, 0, &of_cache, visit)?;
    let of_query = |_: &SiteSpec| CauseKey::QuerySource;
    evidence.other_inputs(id, 1, &of_query, visit)
}

/// Only a part of the sum.
fn lengths(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let inner =
        evidence.graph().node(id).source(1).map(|source| evidence.graph().node(source).ne[0]);
    let Some(inner) = inner.filter(|n| n.is_fixed()).map(|n| n.fixed as usize) else {
        let text = "the last key is left out of the sum";
        let cut = Change::moved(1, |i, ne| (i % ne[0] + 1 < ne[0]).then_some(i));
        visit(evidence.mistake(CauseKey::ValuesTruncated, text, &Edits::one(id, cut))?);
        return Ok(());
    };
    for n in [inner / 2, inner / 4, 3 * inner / 4, inner - 1] {
        let cut = Change::moved(1, move |i, ne| (i % ne[0] < n).then_some(i));
        let text = format!("only the first {n} of {inner} dims are summed");
        visit(evidence.mistake(CauseKey::InnerTruncated, text, &Edits::one(id, cut))?);
    }
    Ok(())
}

/// Another factor of the scores: the one that the recorded values have.
fn scales(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let own = f64::from(evidence.spec().factor);
    let Some(ratio) = evidence.ratio(&Edits(Vec::new()))?.filter(|_| evidence.may_fit()) else {
        return Ok(());
    };
    if (ratio - 1.0).abs() < 1e-6 {
        return Ok(());
    }
    let mut named = vec![
        (1.0, "not scaled".to_string()),
        (own * own, "scaled twice".to_string()),
        (own.sqrt(), "scaled by the root of the factor".to_string()),
        (1.0 / own, "divided by the factor".to_string()),
    ];
    let mut lengths = evidence.head_dims();
    lengths.extend([128, 256, 96, 192]);
    for dim in lengths {
        named.push((1.0 / (dim as f64).sqrt(), format!("scaled by 1/sqrt({dim})")));
        named.push((1.0 / dim as f64, format!("scaled by 1/{dim}")));
    }
    let found = ratio * own;
    let name = named.into_iter().find(|(factor, _)| (found / factor - 1.0).abs() < 1e-5);
    let (found, text) = name.unwrap_or((found, format!("scale {}", short(found))));
    let text = format!("{text} instead of {}", short(own));
    let by = found / own;
    let Some(&last) = evidence.cone().last() else { return Ok(()) };
    let times = move |values: &mut [f64], _: [usize; 4]| values.iter_mut().for_each(|x| *x *= by);
    let edit = Edits::one(last, Change::Result(Box::new(times)));
    visit(evidence.mistake(CauseKey::ScoreScale, text, &edit)?);
    Ok(())
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
