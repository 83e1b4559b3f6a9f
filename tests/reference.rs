use firstdiff::{
    core::{
        arithmetic::Arithmetic,
        sink::{Sink, Stopped},
        tensor::{DType, Tensor},
    },
    graph::site::{Site, Stage},
    model::Model,
    reference::{Noise, Precision, Reference, ReferenceError, ReferenceOptions},
};

use crate::common::{Keep, fixture};

const PROMPT: &str = "Once upon a time there was a little girl";

fn load() -> (Model, Reference) {
    let model = firstdiff::run::open(&fixture()).unwrap();
    let reference = Reference::load(&model, ReferenceOptions::default()).unwrap();
    (model, reference)
}

/// All tensors of the prompt and one decoded token, and the ids.
fn capture(reference: &Reference, noise: Option<&Noise>) -> (Keep, Vec<i32>) {
    let ids = reference.tokenize(PROMPT);
    let mut session = reference.session(ids.len() + 1, ids.len()).unwrap();
    let mut keep = Keep::default();
    let choice = session.step(0, &ids, &mut keep, noise).unwrap().unwrap();
    session.step(1, &[choice.token], &mut keep, noise).unwrap();
    (keep, ids)
}

#[test]
fn every_site_of_the_model_is_captured_with_its_shape() {
    let (model, reference) = load();
    let (keep, ids) = capture(&reference, None);
    let sites = model.config.sites(2);
    assert_eq!(keep.tensors.keys().copied().collect::<Vec<_>>(), sites);
    for (site, tensor) in &keep.tensors {
        let (tokens, positions) = match site.step {
            0 => (ids.len(), ids.len()),
            _ => (1, ids.len() + 1),
        };
        assert_eq!(tensor.shape, model.config.shape(site.stage, tokens, positions), "{site}");
        assert!(tensor.data.iter().all(|value| value.is_finite()), "{site}");
    }
}

#[test]
fn probs_are_the_masked_softmax_of_the_scores() {
    let (_, reference) = load();
    let (keep, ids) = capture(&reference, None);
    for layer in 0..4 {
        let scores = &keep.tensors[&Site::in_layer(0, layer, Stage::Scores)];
        let probs = &keep.tensors[&Site::in_layer(0, layer, Stage::Probs)];
        let (heads, keys) = (scores.shape[1], scores.shape[2]);
        for row in 0..ids.len() * heads {
            let token = row / heads;
            let row_scores = &scores.data[row * keys..row * keys + token + 1];
            let max = row_scores.iter().fold(f32::MIN, |a, &b| a.max(b));
            let sum: f32 = row_scores.iter().map(|score| (score - max).exp()).sum();
            for (key, &prob) in probs.data[row * keys..(row + 1) * keys].iter().enumerate() {
                let wanted = match row_scores.get(key) {
                    Some(score) => (score - max).exp() / sum,
                    None => 0.0,
                };
                // A few f32 roundings of numbers up to 1.
                assert!((prob - wanted).abs() < 1e-6, "layer {layer} row {row} key {key}");
            }
        }
    }
}

#[test]
fn the_caches_hold_the_rotated_keys_and_the_values_of_all_steps() {
    let (_, reference) = load();
    let (keep, _) = capture(&reference, None);
    let tensor = |step, layer, stage| &keep.tensors[&Site::in_layer(step, layer, stage)].data;
    for layer in 0..4 {
        for (cache, stage) in [(Stage::KCache, Stage::KRope), (Stage::VCache, Stage::V)] {
            let mut written = tensor(0, layer, stage).clone();
            assert_eq!(tensor(0, layer, cache), &written);
            written.extend(tensor(1, layer, stage));
            assert_eq!(tensor(1, layer, cache), &written);
        }
    }
}

#[test]
fn rope_keeps_the_norm_of_every_head() {
    let (model, reference) = load();
    let (keep, _) = capture(&reference, None);
    let dim = model.config.head_dim;
    let before = &keep.tensors[&Site::in_layer(0, 2, Stage::Q)].data;
    let after = &keep.tensors[&Site::in_layer(0, 2, Stage::QRope)].data;
    assert_ne!(before, after);
    let norm = |x: &[f32]| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    for (before, after) in before.chunks(dim).zip(after.chunks(dim)) {
        assert!((norm(after) / norm(before) - 1.0).abs() < 1e-6);
    }
}

#[test]
fn a_second_run_is_bit_identical_and_a_noisy_one_is_not() {
    let (model, reference) = load();
    let (first, _) = capture(&reference, None);
    let (second, _) = capture(&reference, None);
    assert_eq!(first.tensors, second.tensors);
    let arithmetic = Arithmetic::engine(DType::F32);
    let noise = Noise { seed: 1, arithmetic, weights_are_rounded: false };
    let (noisy, _) = capture(&reference, Some(&noise));
    for site in model.config.sites(2).into_iter().filter(|site| site.stage != Stage::Embd) {
        let (a, b) = (&first.tensors[&site].data, &noisy.tensors[&site].data);
        assert_ne!(a, b, "{site}");
        let distance: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let size: f64 = a.iter().map(|&a| f64::from(a).powi(2)).sum();
        assert!((distance / size).sqrt() < 1e-4, "{site} moved by {}", (distance / size).sqrt());
    }
}

#[test]
fn only_wanted_sites_reach_the_sink_and_a_refusing_sink_stops_the_decode() {
    let (_, reference) = load();
    let ids = reference.tokenize(PROMPT);
    let mut keep = Keep { only: vec![Stage::Scores, Stage::Logits], ..Keep::default() };
    let mut session = reference.session(64, 64).unwrap();
    session.step(0, &ids, &mut keep, None).unwrap();
    assert_eq!(keep.tensors.len(), 5);

    struct Refuse(u32);
    impl Sink for Refuse {
        fn wants(&self, _: Site) -> bool {
            true
        }
        fn put(&mut self, _: Site, _: Tensor) -> Result<(), Stopped> {
            self.0 += 1;
            if self.0 == 5 { Err(Stopped) } else { Ok(()) }
        }
    }
    let mut refuse = Refuse(0);
    let mut session = reference.session(64, 64).unwrap();
    let stopped = session.step(0, &ids, &mut refuse, None);
    assert!(matches!(stopped, Err(ReferenceError::Stopped(_))), "{stopped:?}");
    assert_eq!(refuse.0, 5);
}

#[test]
fn a_panic_in_the_sink_becomes_an_error() {
    struct Panics;
    impl Sink for Panics {
        fn wants(&self, _: Site) -> bool {
            true
        }
        fn put(&mut self, _: Site, _: Tensor) -> Result<(), Stopped> {
            panic!("in the sink")
        }
    }
    let (_, reference) = load();
    let ids = reference.tokenize(PROMPT);
    let mut session = reference.session(64, 64).unwrap();
    let error = session.step(0, &ids, &mut Panics, None).unwrap_err();
    assert!(matches!(&error, ReferenceError::Panic(text) if text == "in the sink"), "{error:?}");
}

#[test]
fn the_native_precision_differs_from_f32_by_far_more_than_f32_rounding() {
    let (model, reference) = load();
    let options = ReferenceOptions { precision: Precision::Native, threads: None };
    let native = Reference::load(&model, options).unwrap();
    let (wide, _) = capture(&reference, None);
    let (narrow, _) = capture(&native, None);
    let site = Site::in_layer(0, 3, Stage::LayerOut);
    let (a, b) = (&wide.tensors[&site].data, &narrow.tensors[&site].data);
    let distance: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let size: f64 = a.iter().map(|&a| f64::from(a).powi(2)).sum();
    let relative = (distance / size).sqrt();
    assert!((1e-5..1e-2).contains(&relative), "{relative}");
}

#[test]
fn a_one_token_prompt_works() {
    let (_, reference) = load();
    let mut keep = Keep::default();
    let mut session = reference.session(2, 1).unwrap();
    session.step(0, &reference.tokenize("a")[..1], &mut keep, None).unwrap();
    let probs = &keep.tensors[&Site::in_layer(0, 0, Stage::Probs)];
    assert!(probs.data.iter().all(|&prob| prob == 1.0));
}
