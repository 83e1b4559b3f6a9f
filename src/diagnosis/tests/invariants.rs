//! Properties of a forward pass, each broken once.

use std::collections::BTreeMap;

use crate::{
    diagnosis::{Diagnosis, replay::Operation, tests::subject::Subject},
    graph::site::Stage,
    model::synth::Spec,
};

/// Changes the values of one result, given the length of a row.
type Breaking = fn(&mut [f32], usize);

#[test]
fn every_invariant_is_reported_where_it_is_broken() {
    let subject = Subject::new(&Spec::preset("tiny-qwen3").unwrap(), 6, &[]);
    let cases: [(Stage, Breaking, &str); 7] = [
        (
            Stage::AttnOut,
            |values, _| values[5] += 0.01,
            "token 0's attention output is its own value",
        ),
        // Position 2, head 0: longer.
        (
            Stage::QRope,
            |values, width| values[2 * width] += 1.0,
            "rotation keeps the length of a head",
        ),
        // Position 2, head 1: two elements of different pairs exchanged.
        (
            Stage::KRope,
            |values, width| values[2 * width + 32..].swap(0, 1),
            "rotation keeps the length of a pair",
        ),
        // Position 0, head 0: a pair turned by a right angle.
        (
            Stage::QRope,
            |values, _| (values[1], values[17]) = (-values[17], values[1]),
            "rotation leaves position 0 as it is",
        ),
        (Stage::Probs, |values, keys| values[keys] *= 1.1, "a softmax's row sums to 1"),
        // Token 0 of the first head takes from key 3.
        (
            Stage::Probs,
            |values, _| (values[0], values[3]) = (0.75, 0.25),
            "a softmax sees nothing after the query",
        ),
        (
            Stage::LayerOut,
            |values, width| {
                let (first, rest) = values.split_at_mut(width);
                rest.chunks_mut(width).for_each(|row| row.copy_from_slice(first));
            },
            "different tokens have different rows",
        ),
    ];
    for (stage, change, property) in cases {
        let operation = Operation { layer: Some(1), stage };
        let mut tensor = subject.tensors.own[&operation.site(0)].clone();
        let width = match stage {
            Stage::Probs => tensor.shape[2],
            _ => tensor.shape[1..].iter().product(),
        };
        change(&mut tensor.data, width);
        let tensors = subject.with(BTreeMap::from([(operation.site(0), tensor)]));
        let found = Diagnosis::of(&subject.model, subject.recording(&tensors), None).unwrap();
        let broken = found.engine.broken.iter().map(|one| (&*one.property, &*one.broken_at));
        let broken: Vec<(&str, &str)> = broken.collect();
        let place = operation.site(0).to_string();
        let [(found, at)] = broken[..] else { panic!("{property}: {broken:?}") };
        assert!(found == property && at.starts_with(&place), "{property}: {found} at {at}");
    }
}
