//! Mistakes in recurrences: their states, their sources, and the convolutions before them.

use std::rc::Rc;

use super::{Order, Scalar, Visit};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Change, Edits, Evidence, StepEvidence,
        cause::Rank,
        replay::{
            Machine, ReplayError,
            rules::{Call, Values},
        },
    },
    graph::{Kind, NodeId, Op},
};

/// Every recurrence and convolution in the cone, and what joins a state with new tokens.
pub fn recurrences(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    for id in evidence.nodes(|node| node.op.is_packed()) {
        let op = evidence.graph().node(id).op;
        states(evidence, id, visit)?;
        arguments(evidence, id, visit)?;
        match op {
            Op::SsmScan => scans(evidence, id, visit)?,
            Op::GatedDeltaNet => deltas(evidence, id, visit)?,
            _ => {}
        }
    }
    let graph = evidence.graph();
    let is_state = |id: NodeId| graph.node(graph.root(id)).kind == Kind::State;
    for id in evidence.nodes(|node| node.op == Op::GetRows) {
        if graph.node(id).source(0).is_some_and(is_state) {
            reads(evidence, id, visit)?;
        }
    }
    for id in evidence.nodes(|node| node.op == Op::SsmConv) {
        convolutions(evidence, id, visit)?;
    }
    for id in evidence.nodes(|node| node.op == Op::Concat) {
        joined(evidence, id, visit)?;
    }
    Ok(())
}

/// A state as a step finds it: zero, that of the step before last, or of another layer.
fn reads(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let zero = Edits::one(id, Change::each(0, |_| 0.0));
    let text = "the state is not carried from step to step: it is zero";
    visit(evidence.mistake(CauseKey::StateZero, text, &zero)?);
    let stale = |step: &StepEvidence<'_>| {
        let before = evidence.steps.iter().rfind(|other| other.observed.step < step.observed.step);
        let value = before.map_or_else(
            || vec![0.0; step.observed.piece.expected.value.len()],
            |before| before.observed.piece.expected.value.clone(),
        );
        Some(value)
    };
    let text = "the state of one step earlier";
    visit(evidence.copied(CauseKey::StateStale, text, Rank::Mistake, stale));
    for place in evidence.other_sites(evidence.spec().node) {
        let text = format!("the state is {}", evidence.site_name(place));
        let other = |step: &StepEvidence<'_>| evidence.recorded(step, place);
        visit(evidence.copied(CauseKey::StateLayer, text, Rank::Mistake, other));
    }
    let rows = |order: fn(usize, usize) -> usize| {
        Change::Order(Rc::new(move |i, ne: [usize; 4]| {
            // The taps of a channel lie one after another: one less than the kernel has.
            const TAPS: usize = 3;
            if ne[0].is_multiple_of(TAPS) { i / TAPS * TAPS + order(i % TAPS, TAPS) } else { i }
        }))
    };
    let orders: [(&str, Order); 3] = [
        ("shifted by one token", |i, n| (i + 1) % n),
        ("shifted back by one token", |i, n| (i + n - 1) % n),
        ("in reverse order of the tokens", |i, n| n - 1 - i),
    ];
    for (text, order) in orders {
        let edit = Edits::one(id, rows(order));
        visit(evidence.mistake(CauseKey::StateShifted, format!("the state is {text}"), &edit)?);
    }
    Ok(())
}

/// The source that is the state.
fn state_source(op: Op) -> usize {
    match op {
        Op::SsmScan => 0,
        Op::GatedLinearAttention => 4,
        Op::RwkvWkv7 => 6,
        _ => 5,
    }
}

/// The state that a step begins with.
fn states(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let node = evidence.graph().node(id);
    let source = state_source(node.op);
    let zero = Edits::one(id, Change::each(source, |_| 0.0));
    let text = "the state is zero at the start of every step";
    visit(evidence.mistake(CauseKey::StateZero, text, &zero)?);
    // A head's state is (n, width) of an SSM_SCAN, and square of all others.
    let inner = |call: &Call<'_, '_>| match call.op {
        Op::SsmScan => call.optional(0).map(|state| [state.ne[0], state.ne[1]]),
        Op::GatedDeltaNet => call.optional(2).map(|v| [v.ne[0]; 2]),
        _ => call.optional(0).map(|x| [x.ne[0]; 2]),
    };
    let transposed = move |call: &mut Call<'_, '_>| {
        let Some([n, width]) = inner(call) else { return };
        moved(call, source, |i| {
            let (head, at) = (i / (n * width), i % (n * width));
            head * n * width + at % width * n + at / width
        });
    };
    let edit = Edits::one(id, Change::Call(Rc::new(transposed)));
    visit(evidence.mistake(CauseKey::StateTransposed, "the state is read transposed", &edit)?);
    let reversed = move |call: &mut Call<'_, '_>| {
        let Some([n, width]) = inner(call) else { return };
        let heads = call.optional(source).map_or(1, |state| state.elements() / (n * width).max(1));
        moved(call, source, |i| (heads - 1 - i / (n * width)) * n * width + i % (n * width));
    };
    let edit = Edits::one(id, Change::Call(Rc::new(reversed)));
    visit(evidence.mistake(CauseKey::HeadMap, "states of heads in reverse order", &edit)?);
    Ok(())
}

/// A source's elements in another order.
fn moved(call: &mut Call<'_, '_>, source: usize, from: impl Fn(usize) -> usize) {
    let Some(Some(argument)) = call.arguments.get_mut(source) else { return };
    let Ok(value) = argument.value() else { return };
    let of = |values: &[f64]| {
        (0..values.len()).map(|i| values.get(from(i)).copied().unwrap_or(0.0)).collect::<Vec<f64>>()
    };
    let (value, spread) = (of(&value), argument.spread().map(of));
    argument.values = Values::Dense { value: value.into(), spread: spread.map(Into::into) };
}

/// The names of a recurrence's sources, the state left out.
fn names(op: Op) -> &'static [(usize, &'static str)] {
    match op {
        Op::SsmScan => &[(1, "x"), (2, "dt"), (3, "A"), (4, "B"), (5, "C")],
        Op::GatedDeltaNet => &[(0, "q"), (1, "k"), (2, "v"), (3, "g"), (4, "beta")],
        Op::RwkvWkv7 => &[(0, "r"), (1, "w"), (2, "k"), (3, "v"), (4, "a"), (5, "b")],
        Op::RwkvWkv6 => &[(0, "k"), (1, "v"), (2, "r"), (3, "u"), (4, "w")],
        _ => &[(0, "k"), (1, "v"), (2, "q"), (3, "g")],
    }
}

/// Sources exchanged, changed, or those of elsewhere.
fn arguments(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    let op = graph.node(id).op;
    let size = |source: usize| graph.node(id).source(source).map(|id| graph.node(id).ne);
    let all = names(op);
    for (at, &(a, first)) in all.iter().enumerate() {
        for &(b, second) in &all[at + 1..] {
            if size(a).is_some() && size(a) == size(b) {
                let text = format!("{first} and {second} exchanged");
                let edit = Edits::one(id, Change::Swapped(a, b));
                visit(evidence.mistake(CauseKey::ArgumentsSwapped, text, &edit)?);
            }
        }
    }
    let changes: [(CauseKey, &str, Scalar); 8] = [
        (CauseKey::ArgumentMissing, "is 1", |_| 1.0),
        (CauseKey::ArgumentMissing, "is 0", |_| 0.0),
        (CauseKey::WeightFunction, "is negated", |x| -x),
        (CauseKey::WeightFunction, "is its exponential", f64::exp),
        (CauseKey::WeightFunction, "is its negative exponential", |x| -x.exp()),
        (CauseKey::WeightFunction, "is the logarithm of its negative", |x| (-x).ln()),
        (CauseKey::WeightFunction, "is its logarithm", f64::ln),
        (CauseKey::WeightFunction, "is its sigmoid", |x| 1.0 / (1.0 + (-x).exp())),
    ];
    for &(source, name) in all {
        for (key, what, of) in changes {
            let edit = Edits::one(id, Change::each(source, of));
            visit(evidence.mistake(key, format!("{name} {what}"), &edit)?);
        }
        let size = size(source).map_or(1, |ne| ne[0].fixed.max(1)) as f64;
        for (text, factor) in [("multiplied by", size.sqrt()), ("divided by", 1.0 / size.sqrt())] {
            let text = format!("{name} {text} the root of its length");
            let edit = Edits::one(id, Change::each(source, move |x| x * factor));
            visit(evidence.mistake(CauseKey::Factor, text, &edit)?);
        }
        evidence.other_inputs(id, source, &|_| CauseKey::InputOfOther, visit)?;
    }
    tokens(evidence, id, visit)
}

/// Sources of the token before.
fn tokens(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    for &(source, name) in names(evidence.graph().node(id).op) {
        let heads = move |order: fn(usize, usize) -> usize| {
            Change::moved(source, move |i, ne| {
                let head = i / ne[0] % ne[1];
                Some(i - head * ne[0] + order(head, ne[1]) * ne[0])
            })
        };
        let orders: [(&str, Order); 2] =
            [("in reverse order", |h, n| n - 1 - h), ("shifted by one", |h, n| (h + 1) % n)];
        for (text, order) in orders {
            let text = format!("heads of {name} {text}");
            let edit = Edits::one(id, heads(order));
            visit(evidence.mistake(CauseKey::HeadMap, text, &edit)?);
        }
    }
    Ok(())
}

/// Heads of B and C that go with other heads of x, and steps that are not what softplus gives.
fn scans(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let inverse =
        Change::each(2, |dt| if dt > 0.0 { dt + (-(-dt).exp()).ln_1p() } else { f64::NAN });
    let text = "dt itself, without softplus";
    visit(evidence.mistake(CauseKey::Activation, text, &Edits::one(id, inverse))?);
    let twice = Change::each(2, |dt| dt.max(0.0) + (-dt.abs()).exp().ln_1p());
    let text = "softplus of dt twice";
    visit(evidence.mistake(CauseKey::Activation, text, &Edits::one(id, twice))?);
    for factor in [0.1, 0.5, 1.5, 2.0, 10.0] {
        let edit = Edits::one(id, Change::each(3, move |a| factor * a));
        visit(evidence.mistake(CauseKey::Scaled, format!("A times {factor}"), &edit)?);
    }
    let tiled = |call: &mut Call<'_, '_>| {
        let heads = call.optional(1).map_or(1, |x| x.ne[1]);
        [4, 5].into_iter().for_each(|source| spread_heads(call, source, heads, |h, n, _| h % n));
    };
    let edit = Edits::one(id, Change::Call(Rc::new(tiled)));
    let text = "head h reads group h % n of B and C, not h / n";
    visit(evidence.mistake(CauseKey::HeadMap, text, &edit)?);
    let first = |call: &mut Call<'_, '_>| {
        let heads = call.optional(1).map_or(1, |x| x.ne[1]);
        [4, 5].into_iter().for_each(|source| spread_heads(call, source, heads, |_, _, _| 0));
    };
    let edit = Edits::one(id, Change::Call(Rc::new(first)));
    let text = "every head reads group 0 of B and C";
    visit(evidence.mistake(CauseKey::HeadMap, text, &edit)?);
    Ok(())
}

/// q and k of other heads.
fn deltas(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    type Map = fn(usize, usize, usize) -> usize;
    let maps: [(&str, Map); 2] = [
        ("head h reads q and k of head h / n, not h % n", |h, n, all| h / (all / n)),
        ("every head reads q and k of head 0", |_, _, _| 0),
    ];
    for (text, map) in maps {
        let spread = move |call: &mut Call<'_, '_>| {
            let heads = call.optional(2).map_or(1, |v| v.ne[1]);
            [0, 1].into_iter().for_each(|source| spread_heads(call, source, heads, map));
        };
        let edit = Edits::one(id, Change::Call(Rc::new(spread)));
        visit(evidence.mistake(CauseKey::HeadMap, text, &edit)?);
    }
    Ok(())
}

/// A source (n, groups, tokens, ..) with a row for each head.
fn spread_heads(
    call: &mut Call<'_, '_>,
    source: usize,
    heads: usize,
    map: fn(usize, usize, usize) -> usize,
) {
    let Some(Some(argument)) = call.arguments.get_mut(source) else { return };
    let Ok(value) = argument.value() else { return };
    let [n, groups, tokens, sequences] = argument.ne;
    if groups == 0 || !heads.is_multiple_of(groups) {
        return;
    }
    let of = |values: &[f64]| {
        let mut out = Vec::with_capacity(n * heads * tokens * sequences);
        for token in 0..tokens * sequences {
            for head in 0..heads {
                let at = (token * groups + map(head, groups, heads)) * n;
                out.extend_from_slice(&values[at..at + n]);
            }
        }
        out
    };
    let (value, spread) = (of(&value), argument.spread().map(of));
    argument.ne[1] = heads;
    argument.values = Values::Dense { value: value.into(), spread: spread.map(Into::into) };
}

/// A kernel that is reversed or cut, and a window of other tokens.
fn convolutions(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let reversed = Change::moved(1, |i, ne| Some(i / ne[0] * ne[0] + ne[0] - 1 - i % ne[0]));
    let text = "the kernel is reversed";
    visit(evidence.mistake(CauseKey::KernelReversed, text, &Edits::one(id, reversed))?);
    let transposed = Change::moved(1, |i, ne| {
        let (k, channels) = (ne[0], ne[1]);
        Some(i % k * channels + i / k)
    });
    let text = "the kernel is read transposed, as (channels, taps)";
    visit(evidence.mistake(CauseKey::WeightTransposed, text, &Edits::one(id, transposed))?);
    for (text, shift) in [("one token early", 1i64), ("one token late", -1)] {
        let shifted = Change::moved(0, move |i, ne| {
            let at = (i % ne[0]) as i64 + shift;
            (0..ne[0] as i64).contains(&at).then(|| i / ne[0] * ne[0] + at as usize)
        });
        let text = format!("the window is {text}");
        visit(evidence.mistake(CauseKey::StateShifted, text, &Edits::one(id, shifted))?);
    }
    let before = Change::Order(Rc::new(|i, ne: [usize; 4]| {
        let token = i / ne[0] % ne[1];
        if token > 0 { i - ne[0] } else { i }
    }));
    let text = "each token has the previous token's result";
    visit(evidence.mistake(CauseKey::TokenBefore, text, &Edits::one(id, before))?);
    let graph = evidence.graph();
    let taps = graph.node(id).source(1).map_or(1, |kernel| graph.node(kernel).ne[0].fixed) as usize;
    let without = Change::moved(0, move |i, ne| (i % ne[0] + 1 >= taps).then_some(i));
    let text = "the tokens before a step are zero";
    visit(evidence.mistake(CauseKey::StateZero, text, &Edits::one(id, without))?);
    for tap in 0..taps {
        let cut = Change::moved(1, move |i, ne| (i % ne[0] != tap).then_some(i));
        let text = format!("tap {tap} of {taps} is left out");
        visit(evidence.mistake(CauseKey::InnerTruncated, text, &Edits::one(id, cut))?);
    }
    let only = Change::moved(1, move |i, ne| (i % ne[0] + 1 == ne[0]).then_some(i));
    let text = "only the last tap";
    visit(evidence.mistake(CauseKey::InnerTruncated, text, &Edits::one(id, only))?);
    let keys = [CauseKey::WeightOfOtherLayer, CauseKey::WeightOfOther];
    evidence.of_other_weights(id, keys, visit)?;
    evidence.other_inputs(id, 0, &|_| CauseKey::InputOfOther, visit)
}

/// A state before the tokens of a step: zero, exchanged with them, or that of elsewhere.
fn joined(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let graph = evidence.graph();
    let node = graph.node(id);
    let (Some(first), Some(second)) = (node.source(0), node.source(1)) else { return Ok(()) };
    let names = [evidence.name_of(first), evidence.name_of(second)];
    let swapped = Edits::one(id, Change::Swapped(0, 1));
    let text = format!("{} comes before {}", names[1], names[0]);
    visit(evidence.mistake(CauseKey::PartsSwapped, text, &swapped)?);
    for (source, name) in names.iter().enumerate() {
        let zero = Edits::one(id, Change::each(source, |_| 0.0));
        visit(evidence.mistake(CauseKey::StateZero, format!("{name} is zero"), &zero)?);
        let shifts: [(&str, Order); 3] = [
            ("shifted by one", |i, n| (i + 1) % n),
            ("shifted back by one", |i, n| (i + n - 1) % n),
            ("in reverse order", |i, n| n - 1 - i),
        ];
        for (text, order) in shifts {
            let moved = Change::moved(source, move |i, ne| {
                Some(i / ne[0] * ne[0] + order(i % ne[0], ne[0]))
            });
            let text = format!("{name} {text}");
            visit(evidence.mistake(CauseKey::StateShifted, text, &Edits::one(id, moved))?);
        }
        let transposed = move |_: &Machine<'_>, values: &[f64], ne: [usize; 4]| {
            let size = ne[0] * ne[1];
            let from = |i: usize| i / size * size + i % size % ne[0] * ne[1] + i % size / ne[0];
            Some((0..values.len()).map(|i| values[from(i)]).collect::<Vec<f64>>())
        };
        let edit = Edits::one(id, Change::Values(source, Rc::new(transposed)));
        let text = format!("{name} is read transposed");
        visit(evidence.mistake(CauseKey::StateTransposed, text, &edit)?);
        evidence.other_inputs(id, source, &|_| CauseKey::InputOfOther, visit)?;
    }
    Ok(())
}
