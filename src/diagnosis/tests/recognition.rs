//! Every hypothesis against itself: its own result, put in place of the recorded one of a random
//! model, must be recognised as its own and as nothing else, or be listed as the same numbers.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use crate::{
    core::{
        attending::{Attending, Calls, Current},
        cause_key::CauseKey,
        tensor::Tensor,
    },
    diagnosis::{
        Cause, Certainty, Scene,
        probe::Probe,
        replay::{Operation, Replay},
        scene::Rank,
        table::{HYPOTHESES, Hypothesis},
        tests::{
            baits::baits,
            subject::{Subject, Tensors, random},
        },
    },
    graph::site::{Site, Stage},
    model::synth::{Arch, Spec},
};

/// A candidate's name and result.
struct Planted {
    hypothesis: usize,
    key: CauseKey,
    text: String,
    rank: Rank,
    mistakes: u8,
    result: BTreeMap<Site, Tensor>,
}

/// Everything that the hypotheses propose for an operation of a recording, none refuted.
fn proposed(subject: &Subject, operation: Operation, tensors: &Tensors<'_>) -> Vec<Planted> {
    let replay = Replay::new(&subject.model, subject.recording(tensors));
    let mut scene = Scene::new(&replay, operation).unwrap().unwrap();
    scene.probe = Probe::default();
    let mut list = Vec::new();
    let applying = HYPOTHESES.iter().enumerate().filter(|(_, h)| (h.applies)(operation.stage));
    for (hypothesis, Hypothesis { keys, candidates, .. }) in applying {
        candidates(&scene, &mut |candidate| {
            let (key, text) = (candidate.key, candidate.text);
            assert!(keys.contains(&key), "{key} is not listed in the table of hypotheses");
            let result = subject.stored(operation, candidate.parts.expect("nothing is refuted"));
            let (rank, mistakes) = (candidate.rank, candidate.mistakes);
            list.push(Planted { hypothesis, key, text, rank, mistakes, result });
            Ok(())
        })
        .unwrap();
    }
    list
}

/// What came of an operation's candidates.
#[derive(Default)]
struct Tested {
    /// Hypotheses, by their place in the table, and keys that were recognised.
    recognised: BTreeSet<(usize, CauseKey)>,
    planted: usize,
    without_effect: usize,
    /// Likenesses and combinations of which a part alone gives the same numbers.
    simpler: usize,
    failures: Vec<String>,
}

/// Of the candidates that combine two mistakes, one in so many is planted.
const COMBINED: usize = 12;

/// Plants what is proposed for an operation, or only what has one of the keys.
fn tested(subject: &Subject, operation: Operation, keys: Option<&[CauseKey]>, seed: u64) -> Tested {
    let mut tested = Tested::default();
    let mut state = seed;
    let mut seen = BTreeSet::new();
    let wanted = |key: CauseKey| keys.is_none_or(|keys| keys.contains(&key));
    let mut plant = |mut candidates: Vec<Planted>, tested: &mut Tested| {
        candidates.retain(|planted| wanted(planted.key));
        let new: BTreeSet<(CauseKey, String)> =
            candidates.iter().map(|planted| (planted.key, planted.text.clone())).collect();
        let new: BTreeSet<_> = new.difference(&seen).cloned().collect();
        for planted in &candidates {
            let chosen = planted.mistakes == 1 || random(&mut state, COMBINED) == 0;
            if chosen && new.contains(&(planted.key, planted.text.clone())) {
                recognise(subject, operation, planted, &candidates, tested);
            }
        }
        seen.extend(new);
    };
    plant(proposed(subject, operation, &subject.tensors), &mut tested);
    for (key, results) in baits(subject, operation).into_iter().filter(|(key, _)| wanted(*key)) {
        let tensors = subject.with(results);
        let cause = subject.cause(operation, &tensors).unwrap();
        if cause.certainty != Certainty::Proven || cause.key != key {
            let Cause { text, certainty, explained, wrong, .. } = cause;
            tested.failures.push(format!(
                "{operation}: {key} was planted; found {certainty:?} {text}, {explained}/{wrong}"
            ));
            continue;
        }
        let names = HYPOTHESES.iter().enumerate();
        let names = names.filter(|(_, h)| (h.applies)(operation.stage) && h.keys.contains(&key));
        tested.recognised.extend(names.map(|(hypothesis, _)| (hypothesis, key)));
        plant(proposed(subject, operation, &tensors), &mut tested);
    }
    tested
}

/// Likenesses that give a number.
const FITTED: [CauseKey; 2] = [CauseKey::Scaled, CauseKey::Offset];

/// Plants a candidate's own result, and asks for the cause.
fn recognise(
    subject: &Subject,
    operation: Operation,
    planted: &Planted,
    all: &[Planted],
    tested: &mut Tested,
) {
    tested.planted += 1;
    let Some(cause) = subject.cause(operation, &subject.with(planted.result.clone())) else {
        tested.without_effect += 1;
        return;
    };
    let proven = cause.certainty == Certainty::Proven;
    // Another number is fitted to the same result, a digit away.
    let is_fitted = FITTED.contains(&planted.key) && cause.key == planted.key;
    let itself = cause.text == planted.text || cause.also.contains(&planted.text) || is_fitted;
    if proven && itself {
        tested.recognised.insert((planted.hypothesis, planted.key));
        return;
    }
    let simplicity = |planted: &Planted| (planted.rank, planted.mistakes);
    // A cause may be followed by where it holds, and a mistake may be fitted to a likeness.
    let is_found = |other: &&Planted| {
        let rest = cause.text.strip_prefix(&*other.text);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(", "))
            || planted.rank == Rank::Likeness && other.key == cause.key
    };
    let found = all.iter().filter(is_found);
    if proven && found.map(simplicity).any(|found| found < simplicity(planted)) {
        tested.simpler += 1;
        return;
    }
    tested.failures.push(format!(
        "{operation}: \"{}\" ({}, {:?}, {}) was planted; found {:?} \"{}\" ({}), {}/{}; also {:?}",
        planted.text,
        planted.key,
        planted.rank,
        planted.mistakes,
        cause.certainty,
        cause.text,
        cause.key,
        cause.explained,
        cause.wrong,
        cause.also
    ));
}

/// Random shapes: both kinds of pairs, with and without biases and head norms, head ratios from one
/// to one on. The last prompt is longer than a warp.
fn subjects() -> Vec<Subject> {
    let mut state = 7;
    let shapes = [
        (Arch::Llama, 6, 3, 9, false),
        (Arch::Qwen2, 4, 2, 8, false),
        (Arch::Qwen3, 3, 3, 7, true),
        (Arch::Llama, 8, 2, 38, true),
    ];
    let of = |(arch, n_head, n_head_kv, tokens, tied_output)| {
        let head_dim = 2 * (4 + random(&mut state, 6));
        let spec = Spec {
            arch,
            n_head,
            n_head_kv,
            head_dim,
            n_embd: if arch == Arch::Qwen2 {
                n_head * head_dim
            } else {
                66 + random(&mut state, 9)
            },
            n_ff: 30 + random(&mut state, 30),
            tied_output,
            qkv_bias: arch == Arch::Qwen2,
            rope_freqs: arch == Arch::Llama && !tied_output,
            seed: 100 + random(&mut state, 1000) as u64,
            ..Spec::preset("tiny-qwen2").unwrap()
        };
        Subject::new(&spec, tokens, &[])
    };
    shapes.map(of).into_iter().collect()
}

#[test]
fn every_hypothesis_is_recognised_as_itself_or_listed_as_the_same_numbers() {
    let subjects = subjects();
    let fed = [
        Attending::default(),
        Attending { calls: Calls::Token, current: Current::Argument },
        Attending { calls: Calls::Step, current: Current::Argument },
        Attending { calls: Calls::Token, current: Current::Cache },
    ];
    let fused = self::subjects().into_iter().zip(fed);
    let fused: Vec<Subject> = fused.map(|(subject, fed)| subject.fused(fed)).collect();
    let large = Subject::new(
        &Spec::preset("tiny-llama").unwrap(),
        9,
        &[(Stage::Embd, 1e6), (Stage::Scores, 200.0)],
    );
    let operations = |subject: &Subject| Operation::all(subject.config());
    let mut work: Vec<(&Subject, Operation, Option<&[CauseKey]>)> = Vec::new();
    for subject in &subjects {
        let all = operations(subject).into_iter().filter(|o| o.layer.is_none_or(|l| l == 1));
        work.extend(all.map(|operation| (subject, operation, None)));
    }
    let attention = Operation { layer: Some(1), stage: Stage::AttnOut };
    work.extend(fused.iter().map(|subject| (subject, attention, None)));
    // In a run of numbers this large other causes are no longer told apart.
    let layer_0 = operations(&large).into_iter().filter(|operation| operation.layer == Some(0));
    work.extend(layer_0.filter_map(|operation| match operation.stage {
        Stage::AttnResidual => Some((&large, operation, Some(&[CauseKey::Overflow][..]))),
        Stage::Probs => Some((&large, operation, Some(&[CauseKey::SoftmaxOverflow][..]))),
        _ => None,
    }));
    let tested: Vec<Tested> = work
        .par_iter()
        .enumerate()
        .map(|(seed, (subject, operation, keys))| tested(subject, *operation, *keys, seed as u64))
        .collect();
    let failures: Vec<&String> = tested.iter().flat_map(|tested| &tested.failures).collect();
    let planted: usize = tested.iter().map(|tested| tested.planted).sum();
    let without: usize = tested.iter().map(|tested| tested.without_effect).sum();
    let recognised: BTreeSet<_> = tested.iter().flat_map(|tested| &tested.recognised).collect();
    let listed = HYPOTHESES.iter().enumerate();
    let listed = listed.flat_map(|(at, h)| h.keys.iter().map(move |&key| (at, key)));
    let missing: Vec<_> = listed.filter(|name| !recognised.contains(name)).collect();
    let simpler: usize = tested.iter().map(|tested| tested.simpler).sum();
    println!("{planted} planted, {without} without effect, {simpler} by a simpler cause");
    assert!(failures.is_empty() && missing.is_empty(), "never: {missing:?}\n{failures:#?}");
}
