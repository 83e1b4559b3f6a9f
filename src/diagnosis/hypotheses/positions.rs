//! The positions that a rotation used, read off what it did to each token.

use std::rc::Rc;

use half::{bf16, f16};

use super::{Visit, near::short};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Change, Edits, Evidence, StepEvidence,
        reading::{Cells, Reading, Shown},
        replay::{Machine, ReplayError, rules::Argument},
    },
    graph::{Extent, NodeId, Op, RopeParams},
};

/// The position that a token was turned to.
#[derive(Clone, Copy)]
struct Used {
    /// The number of its step, and the position of the step's first token.
    step: u32,
    first: usize,
    position: usize,
    used: f64,
}

impl Used {
    fn offset(&self) -> f64 {
        self.used - self.position as f64
    }
}

/// A rotation by the positions that its results tell, where these are others.
pub fn used(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    for id in evidence.nodes(|node| node.op == Op::Rope) {
        if evidence.spec().node != id || !evidence.may_fit() {
            continue;
        }
        let Some(used) = solved(evidence, id)? else { continue };
        if used.iter().all(|one| one.offset() == 0.0) {
            continue;
        }
        let mut text = described(&used);
        let padding = evidence.run.recording.tensors.padding(0);
        let first = used.first().filter(|one| one.step == 0).map(Used::offset);
        if padding > 0 && first == Some(padding as f64) {
            text.push_str(", the padding before it");
        }
        let values = move |machine: &Machine<'_>, positions: &[f64], _: [usize; 4]| {
            let first = machine.first_position;
            let is_of =
                |one: &&Used, token| one.step == machine.step && one.position == first + token;
            let of = |token| used.iter().find(|one| is_of(one, token)).map(|one| one.used);
            (0..positions.len()).map(of).collect()
        };
        let edits = Edits::one(id, Change::Values(1, Rc::new(values)));
        visit(evidence.mistake(CauseKey::RopePosition, text, &edits)?);
    }
    Ok(())
}

/// The position that each token was turned to; `None` where one of them cannot be told.
fn solved(evidence: &Evidence<'_>, id: NodeId) -> Result<Option<Vec<Used>>, ReplayError> {
    let Some(rope) = plain(evidence, id) else { return Ok(None) };
    let mut used = Vec::new();
    for step in &evidence.steps {
        let Some(of_step) = solved_step(evidence, id, rope, step)? else { return Ok(None) };
        used.extend(of_step);
    }
    Ok(Some(used))
}

/// A rotation by one position a token, without YaRN.
pub fn plain(evidence: &Evidence<'_>, id: NodeId) -> Option<RopeParams> {
    let params = evidence.graph().node(id).params(Extent { tokens: 1, cells: 1, is_first: true });
    let rope = RopeParams::of(params);
    (!rope.has_sections && params.float(7) == 0.0 && rope.dims >= 4).then_some(rope)
}

/// What a pair was turned by, how fast it turns, and how much it weighs.
#[derive(Clone, Copy)]
pub struct Turn {
    pub angle: f64,
    pub unit: f64,
    pub weight: f64,
}

fn solved_step(
    evidence: &Evidence<'_>,
    id: NodeId,
    rope: RopeParams,
    step: &StepEvidence<'_>,
) -> Result<Option<Vec<Used>>, ReplayError> {
    let (number, first) = (step.observed.step, step.machine.first_position);
    let Some(tokens) = turns(evidence, id, rope, step)? else { return Ok(None) };
    let mut used = Vec::new();
    for (token, turns) in tokens.iter().enumerate() {
        let right = first + token;
        let Some(turned) = position(turns, right) else { return Ok(None) };
        used.push(Used { step: number, first, position: right, used: turned });
    }
    Ok(Some(used))
}

/// What each token's pairs were turned by; `None` where that cannot be told.
pub fn turns(
    evidence: &Evidence<'_>,
    id: NodeId,
    rope: RopeParams,
    step: &StepEvidence<'_>,
) -> Result<Option<Vec<Vec<Turn>>>, ReplayError> {
    let (machine, node) = (&step.machine, evidence.graph().node(id));
    let argument = |source| node.source(source).map(|id| machine.argument(id)).transpose();
    let [x, factors] = [argument(0)?, argument(2)?].map(Option::flatten);
    let Some(x) = x.filter(|x| x.spread().is_none()) else { return Ok(None) };
    let Some(y) = machine.recorded_as(evidence.place, id, x.ne)? else { return Ok(None) };
    let (values, [dim, heads, tokens, _]) = (x.value()?, x.ne);
    let factors = factors.as_ref().map(Argument::value).transpose()?;
    let of_token = |token: usize| {
        let of_pair = |pair: usize| {
            let (a, b) = rope.elements(pair);
            let (mut cosine, mut sine, mut weight) = (0.0, 0.0, 0.0);
            for start in (0..heads).map(|head| (token * heads + head) * dim) {
                let (x, y) = (&values[start..start + dim], &y[start..start + dim]);
                cosine += x[a] * y[a] + x[b] * y[b];
                sine += x[a] * y[b] - x[b] * y[a];
                weight += x[a] * x[a] + x[b] * x[b];
            }
            let factor = factors.as_ref().map_or(1.0, |factors| factors[pair]);
            Turn { angle: sine.atan2(cosine), unit: rope.angle(1.0, pair) / factor, weight }
        };
        (0..rope.dims / 2).map(of_pair).collect()
    };
    Ok(Some((0..tokens).map(of_token).collect()))
}

/// The position that turns every pair as it was turned, the nearest to the right one of several.
fn position(turns: &[Turn], right: usize) -> Option<f64> {
    /// Of the squared lengths: what f16 results and angles in f32 leave.
    const OFF: f64 = 1e-4;
    let all: f64 = turns.iter().map(|turn| turn.weight).sum();
    let off = |position: f64| {
        let of = |turn: &Turn| turn.weight * (1.0 - (turn.angle - position * turn.unit).cos());
        turns.iter().map(of).sum::<f64>() / all
    };
    let whole = (right + 64).max(4 * right) as i64;
    let mut list: Vec<f64> = (-64..=whole).map(|position| position as f64).collect();
    list.sort_by(|a, b| (a - right as f64).abs().total_cmp(&(b - right as f64).abs()));
    // The slowest pair tells roughly where, each faster one more exactly.
    let mut slow: Vec<&Turn> = turns.iter().filter(|turn| turn.weight > 0.0).collect();
    slow.sort_by(|a, b| a.unit.abs().total_cmp(&b.unit.abs()));
    let mut rough = slow.first().map(|turn| turn.angle / turn.unit)?;
    for turn in &slow[1..] {
        let whole = ((rough * turn.unit - turn.angle) / std::f64::consts::TAU).round();
        rough = (turn.angle + whole * std::f64::consts::TAU) / turn.unit;
    }
    let exact = list.into_iter().find(|&position| off(position) < OFF);
    exact.or_else(|| Some(rough).filter(|&rough| rough.is_finite() && off(rough) < OFF))
}

/// What is read off a wrong rotation: the positions that its tokens were turned to, or how far each pair's angle is
/// off.
pub fn read_off(evidence: &Evidence<'_>) -> Result<Option<Reading>, ReplayError> {
    let mut nodes = evidence.nodes(|node| node.op == Op::Rope).into_iter();
    let Some(id) = nodes.find(|&id| evidence.spec().node == id) else { return Ok(None) };
    if let Some(used) = solved(evidence, id)?
        && let Some(wrong) = used.iter().find(|one| one.offset() != 0.0)
    {
        let points = used.iter().map(|one| (one.position, one.used)).collect();
        let shown = Shown::Positions(points);
        return Ok(Some(Reading {
            title: "The position each token was rotated as",
            step: wrong.step,
            shown,
        }));
    }
    let Some(rope) = plain(evidence, id) else { return Ok(None) };
    let wrong = evidence.wrong.iter().position(|wrong| wrong.contains(&true)).unwrap_or(0);
    let step = &evidence.steps[wrong];
    let Some(turns) = turns(evidence, id, rope, step)? else { return Ok(None) };
    let first = step.machine.first_position;
    let kind = |(token, pair): (usize, &Turn)| {
        let off = pair.angle - (first + token) as f64 * pair.unit;
        let off = off.sin().atan2(off.cos()).abs();
        OFF.iter().take_while(|&&(most, _)| off > most).count() as u8
    };
    let of: Vec<u8> = turns
        .iter()
        .enumerate()
        .flat_map(|(token, pairs)| pairs.iter().map(move |pair| kind((token, pair))))
        .collect();
    let kinds = OFF.iter().map(|(_, text)| text.to_string()).chain(["more".to_string()]).collect();
    let cells = Cells::new(["position", "pair"], first, rope.dims / 2, kinds, &of);
    let title = "The angle each of the model's pairs was rotated by";
    Ok(Some(Reading { title, step: step.observed.step, shown: Shown::Cells(cells) }))
}

/// How far an angle is off, in radians, and what that is called.
const OFF: [(f64, &str); 4] = [
    (1e-3, "correct"),
    (0.01, "off by up to 0.01 rad"),
    (0.1, "up to 0.1 rad"),
    (1.0, "up to 1 rad"),
];

/// The map in the shortest words that are true of it.
fn described(used: &[Used]) -> String {
    let all = |of: &dyn Fn(usize) -> f64| used.iter().all(|one| of(one.position) == one.used);
    let of_steps = |is_one: &dyn Fn(u32) -> bool| {
        used.iter().copied().filter(|one| is_one(one.step)).collect::<Vec<Used>>()
    };
    let first = used.first().map_or(0, |one| one.step);
    let (prompt, rest) = (of_steps(&|step| step == first), of_steps(&|step| step > first));
    let wrong = used.iter().find(|one| one.offset() != 0.0).map_or(first, |one| one.step);
    let (before, after) = (of_steps(&|step| step < wrong), of_steps(&|step| step >= wrong));
    if let Some(offset) = common(used, Used::offset) {
        return format!("positions off by {}", signed(offset));
    }
    if let (Some(offset), Some(0.0)) = (common(&prompt, Used::offset), common(&rest, Used::offset))
    {
        return format!("positions of the prompt off by {}", signed(offset));
    }
    if let Some(to) = common(used, |one| one.used) {
        return format!("every token is rotated as position {}", short(to));
    }
    let is_decoding = rest.windows(2).all(|pair| pair[0].step != pair[1].step);
    let which = if before.len() == prompt.len() && is_decoding {
        "of decode steps".to_string()
    } else {
        format!("from step {wrong} on")
    };
    if let (Some(0.0), Some(offset)) = (common(&before, Used::offset), common(&after, Used::offset))
    {
        return format!("positions {which} off by {}", signed(offset));
    }
    if let (Some(0.0), Some(to)) = (common(&prompt, Used::offset), common(&rest, |one| one.used))
        && is_decoding
    {
        return format!("every decode step rotates at position {}", short(to));
    }
    if used.iter().all(|one| one.used == (one.position - one.first) as f64) {
        return "positions begin at 0 in each step".to_string();
    }
    if let Some(one) = used.iter().find(|one| one.position > 0) {
        let factor = one.used / one.position as f64;
        let near = |one: &Used| (one.used - factor * one.position as f64).abs() < 1e-3;
        if used.iter().all(near) {
            return format!("positions times {}", short(factor));
        }
    }
    let wraps = used.iter().find(|one| one.offset() < 0.0).map(|one| one.position);
    if let Some(length) = wraps.filter(|&n| n > 0 && all(&|p| (p % n) as f64)) {
        return format!("positions wrap at {length}");
    }
    let halved = |p: usize| if p.is_multiple_of(2) { (p / 2) as f64 } else { 0.0 };
    let is_halved = |one: &Used| halved(one.position) == one.used;
    if prompt.iter().all(is_halved)
        && (rest.iter().all(is_halved) || common(&rest, Used::offset) == Some(0.0))
    {
        return "even positions p are rotated as p / 2, odd ones as 0: 64-bit numbers read as 32-bit"
            .to_string();
    }
    if all(&|p| bf16::from_f64(p as f64).to_f64()) {
        return "positions are rounded to bf16".to_string();
    }
    if all(&|p| f16::from_f64(p as f64).to_f64()) {
        return "positions are rounded to f16".to_string();
    }
    const LISTED: usize = 6;
    let others: Vec<String> = used
        .iter()
        .filter(|one| one.offset() != 0.0)
        .map(|one| format!("{} as {}", one.position, short(one.used)))
        .collect();
    let rest = others.len().saturating_sub(LISTED);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    format!("positions rotated as others: {}{more}", others[..others.len() - rest].join(", "))
}

/// The number that is the same for all tokens, if there are any.
fn common(used: &[Used], of: impl Fn(&Used) -> f64) -> Option<f64> {
    let first = of(used.first()?);
    used.iter().all(|one| of(one) == first).then_some(first)
}

fn signed(offset: f64) -> String {
    let text = short(offset);
    if offset > 0.0 { format!("+{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A prompt of 20 tokens, and four of a token each.
    fn of(map: impl Fn(usize) -> f64) -> String {
        in_steps(&[20, 1, 1, 1, 1], |position, _| map(position))
    }

    fn in_steps(steps: &[usize], map: impl Fn(usize, usize) -> f64) -> String {
        let (mut used, mut first) = (Vec::new(), 0);
        for (step, tokens) in (0..).zip(steps) {
            let own = |position| Used { step, first, position, used: map(position, first) };
            used.extend((first..first + tokens).map(own));
            first += tokens;
        }
        described(&used)
    }

    #[test]
    fn what_follows_the_steps_is_said_by_the_steps() {
        let p = |p: usize| p as f64;
        let text = in_steps(&[7, 7, 7, 2, 1], |position, first| p(position - first));
        assert_eq!(text, "positions begin at 0 in each step");
        let text =
            in_steps(&[7, 5, 5, 1], |position, first| p(position + 2 * usize::from(first > 7)));
        assert_eq!(text, "positions from step 2 on off by +2");
        let text = in_steps(&[7, 5, 5], |position, first| p(position + usize::from(first > 0)));
        assert_eq!(text, "positions from step 1 on off by +1");
    }

    #[test]
    fn a_map_of_positions_is_said_in_the_shortest_words() {
        let p = |p: usize| p as f64;
        assert_eq!(of(|i| p(i) + 5.0), "positions off by +5");
        assert_eq!(
            of(|i| p(i) + if i < 20 { 3.0 } else { 0.0 }),
            "positions of the prompt off by +3"
        );
        assert_eq!(of(|_| 3.0), "every token is rotated as position 3");
        assert_eq!(
            of(|i| p(i) + if i < 20 { 0.0 } else { 3.0 }),
            "positions of decode steps off by +3"
        );
        assert_eq!(of(|i| p(i) * 0.5), "positions times 0.5");
        assert_eq!(of(|i| p(i % 16)), "positions wrap at 16");
        assert!(of(|i| if i % 2 == 0 { p(i / 2) } else { 0.0 }).contains("64-bit"));
        let text = of(|i| p(if i == 7 { 2 } else { i }));
        assert_eq!(text, "positions rotated as others: 7 as 2");
        assert!(of(|i| p(i * 7 % 24)).ends_with(" and 12 more"));
    }

    #[test]
    fn a_position_is_told_by_the_angles_of_all_pairs() {
        let units: Vec<f64> = (0..8).map(|i| 1e4f64.powf(-(f64::from(i)) / 8.0)).collect();
        for position in [0.0, 1.0, 17.0, 63.0, 2.5, -3.0] {
            let turn = |&unit: &f64| {
                let angle = (position * unit).sin().atan2((position * unit).cos());
                Turn { angle, unit, weight: 1.0 }
            };
            let turns: Vec<Turn> = units.iter().map(turn).collect();
            let found = super::position(&turns, 20).unwrap();
            assert!((found - position).abs() < 1e-6, "{position}: {found}");
        }
        let random = |i: usize| Turn { angle: (i * i) as f64 % 3.0, unit: units[i], weight: 1.0 };
        assert_eq!(super::position(&(0..8).map(random).collect::<Vec<Turn>>(), 20), None);
    }
}
