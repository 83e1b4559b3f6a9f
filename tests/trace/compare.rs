//! Two traces are compared only where they ran the same model through the same tokens.

use firstdiff::{
    graph::{Size, site::Stage},
    trace::{Length, Longer, Manifest, Parting, Step, TraceError, comparable, step_file},
};

use super::support::{STEPS, manifest};

fn run(steps: &[&[i32]]) -> Manifest {
    let mut manifest = manifest();
    let mut first_position = 0;
    for (index, tokens) in steps.iter().enumerate() {
        manifest.steps.push(Step {
            tokens: tokens.to_vec(),
            first_position,
            prefix: Vec::new(),
            removed: None,
            file: step_file(index),
            bytes: 0,
            blake3: Some(String::new()),
            sites: 0,
            choice: None,
            rows: Default::default(),
            quantised: Default::default(),
            batch: None,
        });
        first_position += tokens.len();
    }
    manifest
}

fn refusal(a: &Manifest, b: &Manifest) -> String {
    let error = comparable(a, b).unwrap_err();
    assert!(error.is_refusal());
    error.to_string()
}

#[test]
fn runs_of_one_model_and_prompt_are_comparable_and_the_longer_is_named() {
    let (long, short) = (run(&STEPS), run(&STEPS[..2]));
    for (a, b, end, longer) in [
        (&long, &long, 7, None),
        (&long, &short, 6, Some(Longer::A)),
        (&short, &long, 6, Some(Longer::B)),
    ] {
        let common = comparable(a, b).unwrap();
        assert_eq!((common.positions, common.parting, common.longer), (0..end, None, longer));
        assert!(common.same_steps);
    }
}

#[test]
fn another_model_is_refused_with_both_hashes() {
    let (a, mut b) = (run(&STEPS), run(&STEPS));
    b.model.blake3 = "cd".repeat(32);
    b.model.name = "other.gguf".into();
    let text = refusal(&a, &b);
    for part in ["small.gguf", &"ab".repeat(32), "other.gguf", &"cd".repeat(32)] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn other_ids_after_the_prompt_end_the_comparison_and_within_it_are_refused() {
    let a = run(&[&[1, 2, 3], &[4], &[5]]);
    let common = comparable(&a, &run(&[&[1, 2, 3], &[4], &[6]])).unwrap();
    assert_eq!(common.parting, Some(Parting { position: 4, step: 2, a: 5, b: 6 }));
    assert_eq!(common.positions, 0..4);
    let error = comparable(&a, &run(&[&[1, 9, 8]])).unwrap_err();
    let expected = TraceError::OtherTokens { step: 0, position: 1, a: 2, b: 9 };
    assert_eq!(error.to_string(), expected.to_string());
    // A prompt that one of them ran token by token is a prompt all the same.
    let text = refusal(&run(&[&[1], &[2], &[9]]), &a);
    assert!(text.contains("step 0, position 2 has 9 and 3"), "{text}");
    let mut chunks = run(&[&[1, 2], &[3], &[7]]);
    chunks.prompt_tokens = Some(4);
    assert!(refusal(&run(&[&[1], &[2], &[3], &[8]]), &chunks).contains("position 3 has 8 and 7"));
}

#[test]
fn the_same_tokens_in_other_steps_are_comparable_by_their_positions() {
    let (a, b) = (run(&[&[1, 2, 3, 4]]), run(&[&[1, 2, 3], &[4]]));
    let common = comparable(&a, &b).unwrap();
    assert_eq!((common.positions, common.same_steps), (0..4, false));
    let mut late = run(&[&[3, 4], &[5]]);
    late.steps.iter_mut().for_each(|step| step.first_position += 2);
    assert_eq!(comparable(&late, &a).unwrap().positions, 2..4);
    late.steps.iter_mut().for_each(|step| step.first_position += 2);
    assert!(refusal(&late, &a).contains("one has 4 to 6, the other 0 to 3"));
}

#[test]
fn other_shapes_and_architectures_are_refused() {
    let a = run(&STEPS);
    let mut b = a.clone();
    let q = b.model.sites.iter_mut().find(|group| group.name == Stage::Q).unwrap();
    q.shape[2] = Length(Size::fixed(8));
    let text = "the shape of blk.0.q, (token T, head 6, dim 4) and (token T, head 6, dim 8)";
    assert!(refusal(&a, &b).contains(text));
    let mut b = a.clone();
    b.model.architecture = "llama".into();
    assert!(refusal(&a, &b).contains("architecture, qwen3 and llama"));
    let mut b = a.clone();
    b.model.n_vocab = 14;
    assert!(refusal(&a, &b).contains("n_vocab, 13 and 14"));
    // A list may lack sites of the other.
    let mut b = a.clone();
    b.model.sites.remove(3);
    assert!(comparable(&a, &b).is_ok() && comparable(&b, &a).is_ok());
}
