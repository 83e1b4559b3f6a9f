//! What goes wrong in the softmax: its mask, its divisor, its scores, its range.

use std::ops::Range;

use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        hypotheses::attention::right_map,
        replay::{Expected, Operand, Piece, ReplayError, Rounding, Spread, Width, ops},
        scene::{Candidate, Scene, Visit},
    },
    graph::site::Stage,
};

/// The scores of all keys of a step, also those that a right mask hides.
fn unmasked(scene: &Scene<'_, '_>, step: u32) -> Result<Operand, ReplayError> {
    let (heads, right) = (scene.heads(), right_map(scene));
    let q = scene.replay.operand(scene.operation.at(Stage::QRope), &[step])?;
    let k = scene.replay.cache(scene.operation.at(Stage::KCache), step)?;
    let scale = f64::from(scene.config().attention_scale);
    let score = ops::Score { kv_head: &right, scale, dims: 0..heads.dim };
    let positions = scene.replay.recording.positions(step);
    let width = heads.query * positions.end;
    let mut computed = ops::scores(&q, &k, heads, &score, scene.rounding()).into_operand(width);
    // What was recorded is what the softmax saw.
    let recorded = scene.replay.operand(scene.operation.at(Stage::Scores), &[step])?;
    for (index, value) in computed.value.iter_mut().enumerate() {
        let position = positions.start + index / width;
        if index % positions.end <= position {
            *value = recorded.value[index];
            if let Some(spread) = &mut computed.spread {
                spread[index] = recorded.spread_of(index);
            }
        }
    }
    Ok(computed)
}

/// What the terms exp(score - maximum) are divided by, given them and the maximum.
pub(super) type Divisor = Box<dyn Fn(&[f64], f64) -> f64>;

/// One way to take a softmax over the keys.
pub(super) struct Way {
    pub key: CauseKey,
    pub text: String,
    /// The keys that the query of a position sees, given how many there are.
    pub visible: Box<dyn Fn(usize, usize) -> Range<usize>>,
    pub divisor: Divisor,
    /// Factor on the scores.
    pub temperature: f64,
}

impl Way {
    fn right(key: CauseKey, text: impl Into<String>) -> Way {
        Way {
            key,
            text: text.into(),
            visible: Box::new(|position, _| 0..position + 1),
            divisor: Box::new(|terms, _| terms.iter().sum()),
            temperature: 1.0,
        }
    }

    fn sees(self, visible: impl Fn(usize, usize) -> Range<usize> + 'static) -> Way {
        Way { visible: Box::new(visible), ..self }
    }

    fn divides(self, divisor: impl Fn(&[f64], f64) -> f64 + 'static) -> Way {
        Way { divisor: Box::new(divisor), ..self }
    }
}

/// Wrong mask, wrong divisor, scores scaled again, another axis, no maximum.
pub fn softmaxes<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let scores = scene.steps.iter().map(|&step| unmasked(scene, step));
    let scores = scores.collect::<Result<Vec<Operand>, ReplayError>>()?;
    for Way { key, text, visible, divisor, temperature } in ways(scene) {
        visit(scene.candidate(key, text, |piece, rows| {
            let positions = scene.replay.recording.positions(scene.steps[piece]);
            let token = |row: usize| rows.map_or(row, |rows| rows[row]);
            let softmax = ops::Softmax {
                keys: positions.end,
                visible: &|row| visible(positions.start + token(row), positions.end),
                temperature,
                divisor: &*divisor,
            };
            let few = rows.map(|rows| scores[piece].select(rows));
            let scores = few.as_ref().unwrap_or(&scores[piece]);
            Ok(ops::softmax(scores, &softmax, scene.rounding()))
        })?)?;
    }
    other_axes(scene, &scores, visit)?;
    without_maximum(scene, &scores, visit)
}

/// Every way to take it wrong that leaves rows and keys as they are.
pub(super) fn ways(scene: &Scene<'_, '_>) -> impl Iterator<Item = Way> {
    masks(scene).into_iter().chain(divisors(scene)).chain(temperatures(scene))
}

fn masks(scene: &Scene<'_, '_>) -> Vec<Way> {
    let mut list = vec![
        Way::right(CauseKey::MaskMissing, "mask missing: every key of the step is seen")
            .sees(|_, end| 0..end),
        Way::right(CauseKey::MaskOffByOne, "mask off by one: a query does not see its own key")
            .sees(|position, _| 0..position.max(1)),
        Way::right(
            CauseKey::MaskOffByOne,
            "mask off by one: a query does not see its own key, and the first one sees none",
        )
        .sees(|position, _| 0..position),
        Way::right(CauseKey::MaskOffByOne, "mask off by one: a query sees the next key")
            .sees(|position, end| 0..(position + 2).min(end)),
    ];
    for window in windows(scene) {
        let way = Way::right(CauseKey::Window, format!("only the last {window} keys are seen"));
        list.push(way.sees(move |p, _| (p + 1).saturating_sub(window)..p + 1));
    }
    list
}

fn divisors(scene: &Scene<'_, '_>) -> Vec<Way> {
    let mut list = Vec::new();
    let longest = scene.positions().last().map_or(0, |last| last + 1);
    for (block, first) in [(32, 1), (64, 32), (128, 32), (256, 32), (512, 32), (1024, 32)] {
        if block >= longest {
            continue;
        }
        let text = match first {
            1 => "each row divided by the terms of one lane".to_string(),
            _ => format!("divided by the terms of the first warp of {block} threads only"),
        };
        let seen = move |terms: &[f64], _| -> f64 {
            let seen = terms.iter().enumerate().filter(|(j, _)| j % block < first);
            seen.map(|(_, term)| term).sum()
        };
        list.push(Way::right(CauseKey::SoftmaxPartialSum, text).divides(seen));
    }
    for first in [1, 16, 32, 64, 128, 256] {
        let text = format!("divided by the terms of the first {first} keys only");
        let seen = move |terms: &[f64], _| -> f64 { terms.iter().take(first).sum() };
        list.push(Way::right(CauseKey::SoftmaxPartialSum, text).divides(seen));
    }
    let way = Way::right(CauseKey::SoftmaxPartialSum, "its own key is left out of the sum");
    list.push(way.divides(|terms, _| terms.iter().take(terms.len().saturating_sub(1)).sum()));
    for multiple in [8, 16, 32, 64, 128, 256] {
        let text = format!(
            "divided by the terms of zero scores as padding to a multiple of {multiple} too"
        );
        let padded = move |terms: &[f64], maximum: f64| -> f64 {
            let padding = terms.len().next_multiple_of(multiple) - terms.len();
            terms.iter().sum::<f64>() + padding as f64 * (-maximum).exp()
        };
        list.push(Way::right(CauseKey::SoftmaxPadding, text).divides(padded));
    }
    let way = |text: &str| Way::right(CauseKey::SoftmaxUnnormalised, text);
    list.push(way("not divided by the sum").divides(|_, _| 1.0));
    list.push(way("divided by the number of keys").divides(|terms, _| terms.len() as f64));
    list
}

fn temperatures(scene: &Scene<'_, '_>) -> Vec<Way> {
    let own = f64::from(scene.config().attention_scale);
    let way = |(temperature, text): (f64, &str)| Way {
        temperature,
        ..Way::right(CauseKey::SoftmaxTemperature, text)
    };
    let list = [
        (0.5, "scores halved"),
        (2.0, "scores doubled"),
        (own, "scores scaled a second time"),
        (1.0 / own, "scores divided by the scale"),
        (std::f64::consts::LN_2, "exp2 instead of exp"),
        (std::f64::consts::LOG2_E, "scores multiplied by log2(e) and then exp"),
    ];
    list.map(way).into_iter().collect()
}

/// A softmax over the tokens of a step, or over the heads, in place of the keys.
fn other_axes<'a>(
    scene: &Scene<'_, 'a>,
    scores: &[Operand],
    visit: Visit<'_, 'a>,
) -> Result<(), ReplayError> {
    for (text, over_tokens) in [
        ("normalised over the step's tokens instead of the keys", true),
        ("normalised over the heads instead of the keys", false),
    ] {
        let of = |(piece, scores): (&Piece<'a>, &Operand)| {
            let keys = scores.width / scene.heads().query;
            let sees = |index: usize| index % keys <= piece.positions[index / scores.width];
            // What one sum takes: a key of a head, or a key of a token.
            let group = |index: usize| {
                if over_tokens {
                    index % scores.width
                } else {
                    index / scores.width * keys + index % keys
                }
            };
            (piece.steps.clone(), grouped(scores, &sees, &group, scene.rounding()))
        };
        let parts = scene.pieces.iter().zip(scores).map(of).collect();
        visit(Candidate::mistake(
            CauseKey::SoftmaxAxis,
            text,
            (Width::Keys(scene.heads().query), parts),
        ))?;
    }
    Ok(())
}

/// exp of each visible score over the sum of its group.
fn grouped(
    scores: &Operand,
    sees: &dyn Fn(usize) -> bool,
    group: &dyn Fn(usize) -> usize,
    rounding: Rounding,
) -> Expected<'static> {
    let n = scores.value.len();
    let visible = || (0..n).filter(|&index| sees(index));
    let mut maximum = vec![f64::NEG_INFINITY; n];
    for index in visible() {
        maximum[group(index)] = maximum[group(index)].max(scores.value[index]);
    }
    let (mut sums, mut terms) = (vec![0.0; n], vec![0; n]);
    let term = |index: usize| (scores.value[index] - maximum[group(index)]).exp();
    for index in visible() {
        sums[group(index)] += term(index);
        terms[group(index)] += 1;
    }
    let (mut value, mut spread, mut single) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    for index in visible() {
        let (y, own) = (term(index) / sums[group(index)], f64::from(terms[group(index)]).sqrt());
        value[index] = y;
        spread[index] = y * (own * rounding.sum + 2.0 * scores.spread_of(index));
        single[index] = y * ops::exp_error(scores.value[index], maximum[group(index)], rounding);
    }
    Expected { value, spread: Spread::Each(spread), single, rounding }
}

/// A softmax that takes exp of the scores themselves, which leaves the range of a format.
fn without_maximum<'a>(
    scene: &Scene<'_, 'a>,
    scores: &[Operand],
    visit: Visit<'_, 'a>,
) -> Result<(), ReplayError> {
    if scene.recorded().all(f32::is_finite) {
        return Ok(());
    }
    // The smallest number, and the largest.
    let f32 = (2f64.powi(-149), f64::from(f32::MAX));
    for (format, (least, most)) in [("f32", f32), ("f16", (2f64.powi(-24), 65504.0))] {
        let mut parts =
            scene.replaced(scene.pieces.iter().map(|p| p.expected.value.clone()).collect());
        for ((piece, scores), (_, expected)) in scene.pieces.iter().zip(scores).zip(&mut parts.1) {
            let keys = scores.width / scene.heads().query;
            for start in (0..scores.value.len()).step_by(keys) {
                let seen = start..start + piece.positions[start / scores.width] + 1;
                let terms: Vec<f64> =
                    scores.value[seen.clone()].iter().map(|score| score.exp()).collect();
                let sum: f64 = terms.iter().sum();
                for (index, term) in seen.zip(terms) {
                    // 0 / 0 and inf / inf are no numbers, and anything meets an expectation that is
                    // none.
                    let is_number = sum > least / 2.0 && term <= most;
                    match (is_number, piece.captured[index].is_finite()) {
                        (false, false) => expected.value[index] = f64::NAN,
                        (true, _) if sum > most => expected.value[index] = 0.0,
                        (true, _) => expected.single[index] += least / sum,
                        (false, true) => {}
                    }
                }
            }
        }
        let text = format!("the maximum is not subtracted: exp leaves the range of {format}");
        visit(Candidate::mistake(CauseKey::SoftmaxOverflow, text, parts))?;
    }
    Ok(())
}

fn windows(scene: &Scene<'_, '_>) -> Vec<usize> {
    let longest = scene.positions().last().map_or(0, |last| last + 1);
    let mut list: Vec<usize> = (1..=64).collect();
    list.extend([96, 127, 128, 255, 256, 511, 512, 1023, 1024, 2048, 4096]);
    list.retain(|&window| window < longest);
    if scene.stage() != Stage::Probs {
        list.retain(|window| window.is_power_of_two());
        return list;
    }
    // The window that the last recorded row speaks of.
    let seen = scene.pieces.last().and_then(|piece| {
        let row = piece.captured.rchunks_exact(longest.max(1)).next()?;
        Some(row.len() - row.iter().position(|&p| p != 0.0)?)
    });
    list.retain(|&window| seen == Some(window));
    list
}
