use firstdiff::{
    compare::{compare, verdict::Outcome},
    core::{
        floor::{DEFAULT_FACTOR, SiteFloor},
        tensor::Tensor,
    },
    graph::site::{Site, Stage},
    reference::Amplitude,
};
use proptest::prelude::*;

const FLOOR: SiteFloor = SiteFloor { elementwise: 1e-6, relative_l2: 1e-6 };

fn site(stage: Stage) -> Site {
    Site::in_layer(0, 0, stage)
}

fn q(data: Vec<f32>) -> Tensor {
    Tensor::new([2, 3, data.len() / 6], data)
}

proptest! {
    #[test]
    fn the_statistics_are_those_of_plain_loops(
        pairs in prop::collection::vec((-10f32..10.0, -1e-3f32..1e-3), 6 * 5),
    ) {
        let reference: Vec<f32> = pairs.iter().map(|pair| pair.0).collect();
        let engine: Vec<f32> = pairs.iter().map(|pair| pair.0 + pair.1).collect();
        let found = compare(site(Stage::Q), &q(engine.clone()), &q(reference.clone()), 0.into(), FLOOR, 8.0);
        let pair = engine.iter().zip(&reference).map(|(&e, &r)| (f64::from(e), f64::from(r)));
        let sum = |of: fn((f64, f64)) -> f64| pair.clone().map(of).sum::<f64>();
        let (ee, rr) = (sum(|(e, _)| e * e), sum(|(_, r)| r * r));
        let distance = sum(|(e, r)| (e - r) * (e - r)).sqrt();
        let max_abs = pair.clone().map(|(e, r)| (e - r).abs()).fold(0.0, f64::max);
        prop_assert_eq!(found.elements, 30);
        approx::assert_relative_eq!(found.max_abs, max_abs);
        approx::assert_relative_eq!(found.relative_l2, distance / rr.sqrt(), max_relative = 1e-12);
        approx::assert_relative_eq!(found.norm_ratio, (ee / rr).sqrt(), max_relative = 1e-12);
        let cosine = sum(|(e, r)| e * r) / (ee * rr).sqrt();
        approx::assert_relative_eq!(found.cosine, cosine, max_relative = 1e-12);
        // Beyond tolerance: 8 floors of the largest |reference| of the element's token.
        let scale = |row: usize| {
            reference[15 * row..15 * (row + 1)].iter().fold(0f32, |a, b| a.max(b.abs()))
        };
        let is_beyond = |i: &usize| {
            let unit = 1e-6 * f64::from(scale(i / 15));
            (f64::from(engine[*i]) - f64::from(reference[*i])).abs() / unit > 8.0
        };
        let beyond: Vec<usize> = (0..30).filter(is_beyond).collect();
        prop_assert_eq!(found.beyond as usize, beyond.len());
        let first = found.first.map(|element| element.index);
        let wanted = beyond.first().map(|i| vec![i / 15, i % 15 / 5, i % 5]);
        prop_assert_eq!(first, wanted);
    }

    #[test]
    fn a_uniform_scale_of_a_thousandth_is_beyond_the_floor_of_f32(
        values in prop::collection::vec(-1f32..1.0, 6 * 16),
    ) {
        let scaled: Vec<f32> = values.iter().map(|value| value * 1.001).collect();
        let found = compare(site(Stage::Q), &q(scaled), &q(values), 0.into(), FLOOR, DEFAULT_FACTOR);
        prop_assert!(found.diverged(DEFAULT_FACTOR));
        prop_assert!((found.norm_ratio - 1.001).abs() < 1e-6);
    }
}

#[test]
fn a_row_of_huge_values_does_not_hide_another() {
    let reference: Vec<f32> = (0..12).map(|i| if i < 6 { 1e6 } else { 1.0 }).collect();
    let mut engine = reference.clone();
    engine[9] += 1e-4;
    let found = compare(site(Stage::Q), &q(engine), &q(reference), 0.into(), FLOOR, DEFAULT_FACTOR);
    assert_eq!(found.first.unwrap().index, [1, 1, 1]);
    assert_eq!(found.beyond, 1);
}

#[test]
fn keys_after_the_query_do_not_count() {
    let reference = Tensor::new([2, 1, 4], vec![1.0; 8]);
    let mut engine = reference.clone();
    // Queries at positions 1 and 2: key 3 counts for neither, key 2 only for the second.
    for masked in [2, 3, 7] {
        engine.data[masked] = 99.0;
    }
    let equal = compare(site(Stage::Scores), &engine, &reference, 1.into(), FLOOR, DEFAULT_FACTOR);
    assert_eq!((equal.elements, equal.beyond), (5, 0));
    engine.data[6] = 99.0;
    let differs =
        compare(site(Stage::Scores), &engine, &reference, 1.into(), FLOOR, DEFAULT_FACTOR);
    assert_eq!(differs.first.unwrap().index, [1, 0, 2]);
}

#[test]
fn values_that_are_no_numbers_are_counted_and_located() {
    let reference = vec![1.0, f32::NAN, f32::INFINITY, 1.0, 1.0, 1.0];
    let same =
        compare(site(Stage::Q), &q(reference.clone()), &q(reference.clone()), 0.into(), FLOOR, 8.0);
    assert!(!same.diverged(8.0));
    let outcome = Outcome::of(&same, FLOOR, 8.0);
    assert_eq!(
        outcome,
        Outcome::Unmeasured("2 of 6 elements are NaN or infinite on both sides".into())
    );
    // What a mask writes is the same number on both sides.
    let masked = q(vec![1.0, f32::NEG_INFINITY, 1.0, 1.0, 1.0, 1.0]);
    let same = compare(site(Stage::Q), &masked, &masked, 0.into(), FLOOR, 8.0);
    assert_eq!(Outcome::of(&same, FLOOR, 8.0), Outcome::Equal);
    let mut engine = reference.clone();
    engine[2] = f32::NEG_INFINITY;
    engine[4] = f32::NAN;
    let found = compare(site(Stage::Q), &q(engine), &q(reference), 0.into(), FLOOR, 8.0);
    assert_eq!((found.non_finite.engine, found.non_finite.reference), (3, 2));
    assert_eq!((found.non_finite.mismatched, found.beyond), (2, 2));
    assert!(found.diverged(8.0));
    assert_eq!(found.first.unwrap().index, [0, 2, 0]);
}

#[test]
fn a_tolerance_that_lets_zeros_pass_measures_nothing() {
    let tensor = q(vec![1.0, -2.0, 3.0, 4.0, 0.5, 1.0]);
    let of = |floor: f64, factor| {
        let floor = SiteFloor { elementwise: floor, relative_l2: floor };
        let same = compare(site(Stage::Q), &tensor, &tensor, 0.into(), floor, factor);
        Outcome::of(&same, floor, factor)
    };
    assert_eq!(of(0.12, 8.0), Outcome::Equal);
    assert!(matches!(of(0.13, 8.0), Outcome::Unmeasured(why) if why.contains("zeros would pass")));
    assert!(matches!(of(0.001, 1000.0), Outcome::Unmeasured(_)));
}

#[test]
fn a_floor_is_the_largest_relative_move_of_a_row_and_never_below_the_noise() {
    let clean = q(vec![100.0, 0.0, 0.0, 1.0, 0.5, 0.0]);
    let noisy = q(vec![100.0 + 1e-3, 0.0, 0.0, 1.0, 0.5 + 1e-4, 0.0]);
    let none = Amplitude { relative: 0.0, additive: 0.0 };
    let floor = SiteFloor::measure(site(Stage::Q), &noisy, &clean, 0.into(), none);
    approx::assert_relative_eq!(floor.elementwise, 1e-4, max_relative = 1e-2);
    let loud = Amplitude { relative: 0.25, additive: 0.25 };
    let floor = SiteFloor::measure(site(Stage::Q), &noisy, &clean, 0.into(), loud);
    assert_eq!(floor, SiteFloor { elementwise: 0.5, relative_l2: 0.5 });
}
