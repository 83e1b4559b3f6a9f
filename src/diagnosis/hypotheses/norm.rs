//! What goes wrong in an RMS norm.

use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        hypotheses::projection::{candidates_of_width, other_layers},
        replay::{Operation, ReplayError, norm_weight, ops},
        scene::{Candidate, Scene, Visit},
    },
    graph::site::Stage,
};

/// Values of eps in use; the fitted one is told from these.
const EPSILONS: [f64; 8] = [0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 1e-2];

/// What a group's elements are multiplied by.
type ScaleOf<'f> = Box<dyn Fn(&[f64]) -> f64 + 'f>;
/// A scale that may have been used: its key if it is a wrong one, its name, its function.
type Scale<'f> = (Option<CauseKey>, String, ScaleOf<'f>);

/// Another weight, another scale, and one of each together.
pub fn norms<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let x = scene.input()?;
    let weights = weights(scene)?;
    let scales = scales(scene, weights[0].2.len());
    let left_out = scene.whole(ops::copy(&x, scene.rounding()));
    visit(Candidate::mistake(
        CauseKey::NormMissing,
        "left out: the result is its input",
        left_out,
    ))?;
    let mut with = |weight: &Weight, scale: &Scale<'_>, centred: bool| {
        let (weight_key, weight_text, weight) = weight;
        let (scale_key, scale_text, scale) = scale;
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        let none = |_: &[f64]| 0.0;
        let centre: &dyn Fn(&[f64]) -> f64 = if centred { &mean } else { &none };
        let centre_text = if centred { "the mean is subtracted, as LayerNorm does" } else { "" };
        let mut texts = vec![weight_text.as_str(), scale_text.as_str(), centre_text];
        texts.retain(|text| !text.is_empty());
        let key = weight_key.or(*scale_key).unwrap_or(CauseKey::MeanSubtracted);
        let norm = ops::Norm { weight, centre, scale: &**scale };
        let candidate = scene.candidate(key, texts.join(", and "), |_, rows| {
            let few = rows.map(|rows| x.select(rows));
            Ok(ops::norm(few.as_ref().unwrap_or(&x), &norm, scene.rounding()))
        })?;
        visit(candidate.of_mistakes(texts.len()))
    };
    for (w, weight) in weights.iter().enumerate() {
        for (s, scale) in scales.iter().enumerate() {
            for centred in [false, true] {
                let is_right = (w, s, centred) == (0, 0, false);
                let of_three_mistakes = w > 0 && s > 0 && centred;
                if !(is_right || of_three_mistakes) {
                    with(weight, scale, centred)?;
                }
            }
        }
    }
    // Fitted to what the right weight gives.
    if let Some(eps) = fitted_eps(scene) {
        with(&weights[0], &other_eps(eps, scene.config().rms_eps), false)?;
    }
    Ok(())
}

/// A weight that may have been used: its key if it is a wrong one, its name, its values.
type Weight = (Option<CauseKey>, String, Vec<f64>);

fn weights(scene: &Scene<'_, '_>) -> Result<Vec<Weight>, ReplayError> {
    let wide = |weight: Vec<f32>| weight.into_iter().map(f64::from).collect::<Vec<f64>>();
    let part = norm_weight(scene.stage()).expect("called for a norm");
    let own = wide(scene.replay.norm_weight(scene.operation)?);
    let length = own.len();
    let mut list = vec![(None, String::new(), own.clone())];
    list.push((Some(CauseKey::NormWeightMissing), "weight missing".to_string(), vec![1.0; length]));
    let plus_one = own.iter().map(|w| w + 1.0).collect();
    list.push((Some(CauseKey::NormWeightPlusOne), "1 added to the weight".to_string(), plus_one));
    list.push((
        Some(CauseKey::NormWeightZero),
        "the weight is all zero".to_string(),
        vec![0.0; length],
    ));
    let mut others: Vec<(String, String)> = Vec::new();
    for layer in other_layers(scene) {
        let tensor = Operation { layer: Some(layer), stage: scene.stage() }.tensor(part);
        others.push((tensor, format!("the weight of {}", scene.layer_name(layer))));
    }
    let layer = scene.operation.layer.unwrap_or(scene.config().n_layer as u32 - 1);
    for stage in Stage::ALL.into_iter().filter(|&stage| stage != scene.stage()) {
        let of_layer = Operation { layer: stage.in_layer().then_some(layer), stage };
        let Some(part) = norm_weight(stage) else { continue };
        others.push((of_layer.tensor(part), format!("{part} in place of its own weight")));
    }
    if scene.operation.layer.is_none() {
        let text = "blk.0.attn_norm.weight in place of its own weight";
        others.push(("blk.0.attn_norm.weight".to_string(), text.to_string()));
    }
    for (tensor, text) in others {
        if let Some(other) = scene.replay.vector(&tensor)?.filter(|other| other.len() == length) {
            list.push((Some(CauseKey::NormWeightOfOther), text, wide(other)));
        }
    }
    Ok(list)
}

/// Scales of a group of `length` elements, the right one first.
fn scales<'f>(scene: &Scene<'_, '_>, length: usize) -> Vec<Scale<'f>> {
    let stored = scene.config().rms_eps;
    let eps = f64::from(stored);
    let mut list: Vec<Scale<'f>> =
        vec![(None, String::new(), Box::new(move |x| ops::inverse_rms(x, eps)))];
    for other in EPSILONS.into_iter().filter(|&other| other as f32 != stored) {
        list.push(other_eps(other, stored));
    }
    let squares = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
    let mut add = |key, text: &str, scale: ScaleOf<'f>| {
        list.push((Some(key), text.to_string(), scale));
    };
    let outside = move |x: &[f64]| 1.0 / ((squares(x) / x.len() as f64).sqrt() + eps);
    add(CauseKey::Eps, "eps added after the square root", Box::new(outside));
    let sum = move |x: &[f64]| 1.0 / (squares(x) + eps).sqrt();
    add(CauseKey::NotAveraged, "the squares are summed, not averaged", Box::new(sum));
    let less_one =
        move |x: &[f64]| 1.0 / (squares(x) / (x.len() as f64 - 1.0).max(1.0) + eps).sqrt();
    add(CauseKey::NotAveraged, "the squares are divided by n - 1", Box::new(less_one));
    let no_root = move |x: &[f64]| 1.0 / (squares(x) / x.len() as f64 + eps);
    add(CauseKey::RootMissing, "divided by the mean square, without its root", Box::new(no_root));
    let absolute = |x: &[f64]| x.len() as f64 / x.iter().map(|x| x.abs()).sum::<f64>();
    add(
        CauseKey::NotSquared,
        "divided by the mean magnitude instead of the RMS",
        Box::new(absolute),
    );
    add(CauseKey::NormMissing, "not normalised, only multiplied by the weight", Box::new(|_| 1.0));
    // A longer block is as good as all of the elements.
    let blocks = [(64, 32), (128, 32), (256, 32), (512, 32), (1024, 32)];
    for (block, first) in blocks.into_iter().filter(|&(block, _)| block < length) {
        let text = format!(
            "only the first {first} of every {block} elements are summed (one warp of a block)"
        );
        let partial = move |x: &[f64]| {
            let seen = x.iter().enumerate().filter(|(i, _)| i % block < first);
            1.0 / (seen.map(|(_, x)| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt()
        };
        list.push((Some(CauseKey::PartialSum), text, Box::new(partial)));
    }
    for first in [32, 64, 128, 256, 512].into_iter().filter(|&first| first < length) {
        let text = format!("only the first {first} elements are summed");
        let partial = move |x: &[f64]| 1.0 / (squares(&x[..first]) / x.len() as f64 + eps).sqrt();
        list.push((Some(CauseKey::PartialSum), text, Box::new(partial)));
    }
    list
}

fn other_eps<'f>(eps: f64, stored: f32) -> Scale<'f> {
    let text = format!("eps {eps:e} instead of {stored:e}");
    (Some(CauseKey::Eps), text, Box::new(move |x| ops::inverse_rms(x, eps)))
}

/// The eps that the recorded values speak of, to three digits: from y = x w / sqrt(ms + eps).
fn fitted_eps(scene: &Scene<'_, '_>) -> Option<f64> {
    let x = scene.input().ok()?;
    let weight = scene.replay.norm_weight(scene.operation).ok()?;
    let recorded: Vec<f32> = scene.recorded().collect();
    let mut found: Vec<f64> = Vec::new();
    for (x, y) in x.value.chunks_exact(weight.len()).zip(recorded.chunks_exact(weight.len())) {
        let (mut xy, mut xx) = (0.0, 0.0);
        for ((x, y), w) in x.iter().zip(y).zip(&weight) {
            let x = x * f64::from(*w);
            (xy, xx) = (xy + x * f64::from(*y), xx + x * x);
        }
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        found.push((xx / xy).powi(2) - mean_square);
    }
    found.retain(|eps| eps.is_finite() && *eps > 0.0);
    found.sort_by(f64::total_cmp);
    let median = *found.get(found.len() / 2)?;
    let fitted: f64 = format!("{median:.2e}").parse().ok()?;
    let stored = scene.config().rms_eps;
    let is_known = |eps: f64| eps as f32 == stored || EPSILONS.contains(&eps);
    (!is_known(fitted)).then_some(fitted)
}

/// The norm of another tensor of the same width.
pub fn other_input<'a>(scene: &Scene<'_, 'a>, visit: Visit<'_, 'a>) -> Result<(), ReplayError> {
    let weight = scene.replay.norm_weight(scene.operation)?;
    let weight: Vec<f64> = weight.into_iter().map(f64::from).collect();
    let eps = f64::from(scene.config().rms_eps);
    let right = scene.replay.input(scene.operation);
    for (operation, x) in candidates_of_width(scene, scene.width())? {
        if operation == right {
            continue;
        }
        let scale = |x: &[f64]| ops::inverse_rms(x, eps);
        let norm = ops::Norm { weight: &weight, centre: &|_| 0.0, scale: &scale };
        let names = (scene.named(operation), scene.named(right));
        let text = format!("its input is {} instead of {}", names.0, names.1);
        visit(Candidate::mistake(
            CauseKey::InputOfOther,
            text,
            scene.whole(ops::norm(&x, &norm, scene.rounding())),
        ))?;
    }
    Ok(())
}
