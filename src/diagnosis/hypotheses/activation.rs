//! Mistakes in functions of one number, and in gated ones.

use std::rc::Rc;

use super::Visit;
use crate::{
    core::{cause_key::CauseKey, format::Format},
    diagnosis::{
        Change, Edits, Evidence,
        replay::{
            ReplayError,
            rules::{Argument, Call, Values},
        },
    },
    graph::{Extent, NodeId, Op},
};

/// Functions that are taken for one another.
const FUNCTIONS: [Op; 14] = [
    Op::Silu,
    Op::Gelu,
    Op::GeluErf,
    Op::GeluQuick,
    Op::Relu,
    Op::Sigmoid,
    Op::Tanh,
    Op::Softplus,
    Op::Exp,
    Op::Elu,
    Op::HardSwish,
    Op::HardSigmoid,
    Op::Neg,
    Op::Sqr,
];

/// Gated functions that are taken for one another.
const GATED: [Op; 5] = [Op::Swiglu, Op::Geglu, Op::GegluErf, Op::GegluQuick, Op::Reglu];

/// Every function in the cone.
pub fn functions(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let is_function = |op: Op| FUNCTIONS.contains(&op) || matches!(op, Op::LeakyRelu | Op::Xielu);
    for id in evidence.nodes(|node| is_function(node.op)) {
        let own = evidence.graph().node(id).op;
        for other in FUNCTIONS.into_iter().filter(|&other| other != own) {
            let text = format!("{} instead of {}", name(other), name(own));
            let edit = Edits::one(id, Change::Op(other));
            visit(evidence.mistake(CauseKey::Activation, text, &edit)?);
        }
        let edit = Edits::one(id, Change::LeftOut(0));
        let text = format!("{} is left out", name(own));
        visit(evidence.mistake(CauseKey::Activation, text, &edit)?);
        let squared = |of: fn(f64) -> f64| -> Change<'static> {
            Change::Result(Rc::new(move |values, _| values.iter_mut().for_each(|x| *x = of(*x))))
        };
        let results: [(&str, Change<'_>); 3] = [
            ("its square", squared(|x| x * x)),
            ("its negative", squared(|x| -x)),
            ("1 minus it", squared(|x| 1.0 - x)),
        ];
        for (text, change) in results {
            let text = format!("{text} instead of {}", name(own));
            visit(evidence.mistake(CauseKey::Activation, text, &Edits::one(id, change))?);
        }
        let square = Edits(vec![(id, Change::Op(Op::Relu)), (id, squared(|x| x * x))]);
        let text = format!("squared RELU instead of {}", name(own));
        visit(evidence.mistake(CauseKey::Activation, text, &square)?);
        evidence.other_inputs(id, 0, &|_| CauseKey::InputOfOther, visit)?;
    }
    untabled(evidence, visit)?;
    complements(evidence, visit)?;
    for id in evidence.nodes(|node| node.op.is_gated()) {
        gated(evidence, id, visit)?;
        limits(evidence, id, visit)?;
        for source in 0..2 {
            evidence.other_inputs(id, source, &|_| CauseKey::InputOfOther, visit)?;
        }
    }
    for id in evidence.nodes(|node| node.op == Op::Clamp) {
        let edit = Edits::one(id, Change::LeftOut(0));
        visit(evidence.mistake(CauseKey::Clamp, "not limited", &edit)?);
        if let Some(limit) = recorded_limit(evidence) {
            let limits = move |params: &mut crate::graph::Params| {
                params.set_float(0, -limit as f32);
                params.set_float(1, limit as f32);
            };
            let edit = Edits::one(id, Change::Params(Rc::new(limits)));
            visit(evidence.mistake(CauseKey::Clamp, format!("limited to {limit}"), &edit)?);
        }
        for factor in [0.5, 2.0] {
            let limited = move |params: &mut crate::graph::Params| {
                (0..2).for_each(|i| {
                    params.set_float(i, (f64::from(params.float(i)) * factor) as f32)
                });
            };
            let edit = Edits::one(id, Change::Params(Rc::new(limited)));
            visit(evidence.mistake(CauseKey::Clamp, format!("limits times {factor}"), &edit)?);
        }
    }
    Ok(())
}

/// The sigmoid of a negative gate by that of the positive one, in a format in which the difference is coarse.
fn complements(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    for id in evidence.nodes(|node| matches!(node.op, Op::Silu | Op::Swiglu | Op::SwigluClamp)) {
        for format in [Format::F16, Format::Bf16] {
            for activated in [None, Some(format)] {
                let steps = Change::Call(Rc::new(move |call| {
                    call.steps.sigmoid = Some(format);
                    call.steps.activated = activated;
                    call.steps.is_complement = true;
                }));
                let text = format!(
                    "where the gate is negative its sigmoid is 1 - sigmoid(-gate), in {format}"
                );
                let edit = Edits::one(id, steps);
                visit(evidence.mistake(CauseKey::Activation, text, &edit)?);
            }
        }
    }
    Ok(())
}

/// GELU as it is, where the right one is read from a table of f16 values, or another function is right.
fn untabled(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    if !evidence.run.has_tables {
        return Ok(());
    }
    let unary = [Op::Gelu, Op::GeluQuick];
    let gated = [Op::Geglu, Op::GegluQuick];
    for id in evidence.nodes(|node| node.op.is_gated() || FUNCTIONS.contains(&node.op)) {
        let own = evidence.graph().node(id).op;
        let others = if own.is_gated() { gated } else { unary };
        for other in others {
            let of = if other == own { "not read from a table" } else { "in its place" };
            let exact = move |call: &mut Call<'_, '_>| {
                call.op = other;
                call.has_tables = false;
            };
            let text = format!("{} {of} instead of {}", name(other), name(own));
            let edit = Edits::one(id, Change::Call(Rc::new(exact)));
            visit(evidence.mistake(CauseKey::Activation, text, &edit)?);
        }
        if own.is_gated() {
            let swapped = |call: &mut Call<'_, '_>| {
                call.has_tables = false;
                if split(call).is_some() {
                    call.arguments.swap(0, 1);
                }
            };
            let text = "gate and up exchanged, no table of GELU";
            let edit = Edits::one(id, Change::Call(Rc::new(swapped)));
            visit(evidence.mistake(CauseKey::GateUpSwapped, text, &edit)?);
        }
    }
    Ok(())
}

/// The limit that recorded values end at.
fn recorded_limit(evidence: &Evidence<'_>) -> Option<f64> {
    const LEAST: usize = 8;
    let recorded = || evidence.steps.iter().flat_map(|step| &step.observed.piece.captured);
    let most = recorded().fold(0f32, |most, x| most.max(x.abs()));
    let reached = recorded().filter(|x| x.abs() == most).count();
    (reached >= LEAST && most > 0.0 && most.is_finite()).then_some(f64::from(most))
}

/// A function as people write it.
fn name(op: Op) -> &'static str {
    match op {
        Op::Silu => "SiLU",
        Op::Gelu => "GELU (tanh)",
        Op::GeluErf => "GELU (erf)",
        Op::GeluQuick => "quick GELU",
        Op::Relu => "ReLU",
        Op::Sigmoid => "sigmoid",
        Op::Tanh => "tanh",
        Op::Softplus => "softplus",
        Op::Exp => "exp",
        Op::Elu => "ELU",
        Op::HardSwish => "hard swish",
        Op::HardSigmoid => "hard sigmoid",
        Op::Neg => "the negative",
        Op::Sqr => "the square",
        Op::LeakyRelu => "leaky ReLU",
        Op::Xielu => "xIELU",
        Op::Swiglu => "silu(gate) * up",
        Op::SwigluOai => "silu_alpha(gate) * (up + 1)",
        Op::SwigluClamp => "limited silu(gate) * up",
        Op::Geglu => "gelu_tanh(gate) * up",
        Op::GegluErf => "gelu_erf(gate) * up",
        Op::GegluQuick => "gelu_quick(gate) * up",
        Op::Reglu => "relu(gate) * up",
        _ => "another function",
    }
}

/// Which of gate and up a function takes.
#[derive(Clone, Copy)]
enum Half {
    Gate,
    Up,
}

fn gated(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    let own = evidence.graph().node(id).op;
    for other in GATED.into_iter().filter(|&other| other != own) {
        let text = format!("{} instead of {}", name(other), name(own));
        let edit = Edits::one(id, Change::Op(other));
        visit(evidence.mistake(CauseKey::Activation, text, &edit)?);
    }
    let mut with = |key, text: &str, of: Rc<dyn Fn(&mut Call<'_, '_>)>| {
        visit(evidence.mistake(key, text, &Edits::one(id, Change::Call(of)))?);
        Ok::<(), ReplayError>(())
    };
    let swapped =
        Rc::new(|call: &mut Call<'_, '_>| split(call).map_or((), |()| call.arguments.swap(0, 1)));
    with(CauseKey::GateUpSwapped, "gate and up exchanged", swapped)?;
    for (key, text, op) in [
        (CauseKey::Activation, "no activation: gate * up", Op::Mul),
        (CauseKey::OperationOther, "gate + up, not activated", Op::Add),
    ] {
        with(key, text, Rc::new(move |call| split(call).map_or((), |()| call.op = op)))?;
    }
    for unary in [Op::Silu, Op::Gelu, Op::GeluErf, Op::Relu, Op::Dup] {
        let of = if unary == Op::Dup { "no function" } else { name(unary) };
        let text = format!("up is left out: {of} of gate");
        with(CauseKey::UpMissing, &text, Rc::new(move |call| only(call, Half::Gate, unary)))?;
        let text = format!("gate is left out: {of} of up");
        with(CauseKey::GateMissing, &text, Rc::new(move |call| only(call, Half::Up, unary)))?;
    }
    with(
        CauseKey::GateTwice,
        "gate in place of up too",
        Rc::new(|call| {
            if split(call).is_some() {
                twice(call, 0);
            }
        }),
    )?;
    with(
        CauseKey::GateTwice,
        "up in place of gate too",
        Rc::new(|call| {
            if split(call).is_some() {
                twice(call, 1);
            }
        }),
    )?;
    with(CauseKey::PartsLayout, "gate and up interleaved in one tensor", Rc::new(interleave))
}

/// alpha, the limit and the 1 that is added to up.
fn limits(evidence: &Evidence<'_>, id: NodeId, visit: Visit<'_>) -> Result<(), ReplayError> {
    const ALPHA: usize = 2;
    const LIMIT: usize = 3;
    let node = evidence.graph().node(id);
    if !matches!(node.op, Op::SwigluOai | Op::SwigluClamp) {
        return Ok(());
    }
    let params = node.params(Extent { tokens: 1, cells: 1, is_first: true });
    let own = f64::from(params.float(LIMIT));
    let mut limits = vec![own * 2.0, own / 2.0, 5.0, 6.0, 7.0, 8.0, 10.0];
    limits.retain(|&limit| limit != own);
    let edit = Edits::one(id, Change::float(LIMIT, f64::INFINITY));
    visit(evidence.mistake(CauseKey::Clamp, "gate and up are not limited", &edit)?);
    for limit in limits {
        let edit = Edits::one(id, Change::float(LIMIT, limit));
        visit(evidence.mistake(
            CauseKey::Clamp,
            format!("limit {limit} instead of {own}"),
            &edit,
        )?);
    }
    if node.op != Op::SwigluOai {
        return Ok(());
    }
    for alpha in [1.0, 1.5, 1.6, 1.7, 2.0, 0.0] {
        let edit = Edits::one(id, Change::float(ALPHA, alpha));
        let text = format!("alpha {alpha} instead of {}", params.float(ALPHA));
        visit(evidence.mistake(CauseKey::Activation, text, &edit)?);
    }
    let minus = move |call: &mut Call<'_, '_>| {
        if split(call).is_some() {
            replace(call, 1, |x| x.clamp(-own, own) - 1.0);
        }
    };
    let edit = Edits(vec![(id, Change::Call(Rc::new(minus)))]);
    visit(evidence.mistake(CauseKey::Activation, "up without the 1 that is added", &edit)?);
    let both = move |call: &mut Call<'_, '_>| {
        if split(call).is_some() {
            replace(call, 1, |x| x.clamp(-own, own));
            replace(call, 0, |x| x.min(own));
            call.op = Op::Swiglu;
        }
    };
    let edit = Edits::one(id, Change::Call(Rc::new(both)));
    let text = "silu(gate) * up, limited, without alpha and the 1 that is added";
    visit(evidence.mistake(CauseKey::Activation, text, &edit)?);
    Ok(())
}

/// A dense argument.
fn dense<'c, 'a>(ne: [usize; 4], value: Vec<f64>, spread: Option<Vec<f64>>) -> Argument<'c, 'a> {
    Argument { ne, values: Values::Dense { value: value.into(), spread: spread.map(Into::into) } }
}

fn replace(call: &mut Call<'_, '_>, source: usize, of: impl Fn(f64) -> f64) {
    let Some(Some(argument)) = call.arguments.get_mut(source) else { return };
    let Ok(value) = argument.value() else { return };
    let value = value.iter().map(|&x| of(x)).collect();
    let spread = argument.spread().map(<[f64]>::to_vec);
    *argument = dense(argument.ne, value, spread);
}

/// Gate and up as two sources, gate first; `None` where there are neither.
fn split(call: &mut Call<'_, '_>) -> Option<()> {
    let is_swapped = call.params.int(1) != 0;
    if call.optional(1).is_some() {
        return Some(());
    }
    let (first, width, ne) = (call.optional(0)?, call.ne[0], call.ne);
    let value = first.value().ok()?;
    let spread = first.spread();
    let halves = if is_swapped { [width, 0] } else { [0, width] };
    let wide = first.ne[0];
    let half = |values: &[f64], start: usize| {
        let rows = values.chunks_exact(wide);
        rows.flat_map(|row| row[start..start + width].to_vec()).collect::<Vec<f64>>()
    };
    let part = |start| (half(&value, start), spread.map(|spread| half(spread, start)));
    let (gate, up) = (part(halves[0]), part(halves[1]));
    call.params.set_int(1, 0);
    call.arguments = vec![Some(dense(ne, gate.0, gate.1)), Some(dense(ne, up.0, up.1))];
    Some(())
}

/// A function of gate, or of up, alone.
fn only(call: &mut Call<'_, '_>, half: Half, op: Op) {
    if split(call).is_none() {
        return;
    }
    let kept = match half {
        Half::Gate => 0,
        Half::Up => 1,
    };
    call.arguments.swap(0, kept);
    call.arguments.truncate(1);
    call.op = op;
}

/// One of two sources in place of both.
fn twice(call: &mut Call<'_, '_>, source: usize) {
    let Some(argument) = call.optional(source) else { return };
    let Ok(value) = argument.value() else { return };
    let value = value.into_owned();
    let spread = argument.spread().map(<[f64]>::to_vec);
    let ne = argument.ne;
    call.arguments[1 - source] = Some(dense(ne, value, spread));
}

/// Two halves read as (gate, up) pairs.
fn interleave(call: &mut Call<'_, '_>) {
    if call.optional(1).is_some() {
        return;
    }
    let width = call.ne[0];
    let Some(Some(argument)) = call.arguments.get_mut(0) else { return };
    let wide = argument.ne[0];
    let taken = |values: &[f64]| {
        let from = |i: usize| i / wide * wide + i % wide % width * 2 + i % wide / width;
        (0..values.len()).map(|i| values[from(i)]).collect::<Vec<f64>>()
    };
    let Ok(value) = argument.value() else { return };
    let (value, spread) = (taken(&value), argument.spread().map(taken));
    *argument = dense(argument.ne, value, spread);
}
