//! Two traces are compared only where they ran the same model through the same tokens.

use firstdiff::{
    graph::{Size, site::Stage},
    trace::{Common, Length, Longer, Manifest, Step, TraceError, comparable, step_file},
};

use super::support::{STEPS, manifest};

fn run(steps: &[&[i32]]) -> Manifest {
    let mut manifest = manifest();
    let mut first_position = 0;
    for (index, tokens) in steps.iter().enumerate() {
        manifest.steps.push(Step {
            tokens: tokens.to_vec(),
            first_position,
            file: step_file(index),
            bytes: 0,
            blake3: Some(String::new()),
            sites: 0,
            choice: None,
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
    assert_eq!(comparable(&long, &long).unwrap(), Common { steps: 3, longer: None });
    let common = comparable(&long, &short).unwrap();
    assert_eq!(common, Common { steps: 2, longer: Some(Longer::A) });
    let common = comparable(&short, &long).unwrap();
    assert_eq!(common, Common { steps: 2, longer: Some(Longer::B) });
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
fn other_token_ids_are_refused_at_the_first_that_differs() {
    let a = run(&[&[1, 2, 3], &[4], &[5]]);
    let error = comparable(&a, &run(&[&[1, 2, 3], &[4], &[6]])).unwrap_err();
    let expected = TraceError::OtherTokens { step: 2, position: 4, a: 5, b: 6 };
    assert_eq!(error.to_string(), expected.to_string());
    assert!(error.to_string().contains("step 2, position 4 has 5 and 6"), "{error}");
    let error = comparable(&a, &run(&[&[1, 9, 8]])).unwrap_err();
    assert!(error.to_string().contains("step 0, position 1 has 2 and 9"), "{error}");
}

#[test]
fn the_same_tokens_in_other_batches_are_refused() {
    let text = refusal(&run(&[&[1, 2, 3, 4]]), &run(&[&[1, 2, 3], &[4]]));
    assert!(text.contains("step 0 has 4 and 3 tokens"), "{text}");
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
