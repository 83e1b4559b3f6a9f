use std::collections::BTreeMap;

use firstdiff::{
    core::{
        arithmetic::Arithmetic,
        task::Task,
        tensor::{DType, Tensor},
    },
    engine::{AttentionVariant, EngineSpec},
    graph::site::{Site, Stage},
    reference::Noise,
};

use crate::{
    cli::{SHORT, outcome, refused},
    common::{Bench, Keep, engine},
};

const TOKENS: usize = 41;
/// Single ones, runs, and the tokens at both ends.
const CHOSEN: [usize; 7] = [0, 3, 4, 5, 17, 39, 40];

/// The tensors with only the chosen rows of the prompt's scores and probs.
fn chosen_of(whole: &BTreeMap<Site, Tensor>) -> BTreeMap<Site, Tensor> {
    let cut = |(&site, tensor): (&Site, &Tensor)| {
        if site.step > 0 || !matches!(site.stage, Stage::Scores | Stage::Probs) {
            return (site, tensor.clone());
        }
        let rows: Vec<&[f32]> = tensor.data.chunks_exact(tensor.data.len() / TOKENS).collect();
        let data = CHOSEN.map(|token| rows[token]).concat();
        let shape = [&[CHOSEN.len()], &tensor.shape[1..]].concat();
        (site, Tensor::new(shape, data))
    };
    whole.iter().map(cut).collect()
}

/// What a side gives with all rows and with the chosen ones.
fn both(mut run: impl FnMut(&mut Keep)) -> [BTreeMap<Site, Tensor>; 2] {
    [None, Some(CHOSEN.to_vec())].map(|queries| {
        let mut keep = Keep { queries, ..Keep::default() };
        run(&mut keep);
        keep.tensors
    })
}

#[test]
fn chosen_rows_are_those_of_the_whole_bit_by_bit_and_change_nothing_else() {
    let bench = Bench::fixture();
    let ids = bench.prompt(TOKENS);
    let task = Task { prompt: &ids, decode: 1 };
    for attention in ["softmax=two-pass", "softmax=online", "fast"] {
        let attention: AttentionVariant = attention.parse().unwrap();
        for storage in [DType::F32, DType::F16] {
            let spec = EngineSpec { attention, ..engine(storage) };
            let mut built = spec.build(&bench.model, task).unwrap();
            let [whole, chosen] = both(|keep| {
                built.reset().unwrap();
                built.step(0, &ids, keep).unwrap();
                built.step(1, &[7], keep).unwrap();
            });
            assert_eq!(chosen, chosen_of(&whole), "{attention}");
        }
    }
}

#[test]
fn chosen_rows_of_the_reference_are_those_of_the_whole_with_noise_and_without() {
    let bench = Bench::fixture();
    let ids = bench.prompt(TOKENS);
    let arithmetic = Arithmetic::engine(DType::F32);
    let noise = Noise { seed: 5, arithmetic, weights_are_rounded: false };
    for noise in [None, Some(&noise)] {
        let [whole, chosen] = both(|keep| {
            let mut session = bench.reference.session(64, 64).unwrap();
            session.step(0, &ids, keep, noise).unwrap();
            session.step(1, &[7], keep, noise).unwrap();
        });
        assert_eq!(chosen, chosen_of(&whole));
    }
}

#[test]
fn a_fault_in_chosen_rows_has_its_position_and_one_elsewhere_is_still_blamed() {
    let run = |more: &[&str]| outcome(&[&["run"], more, &SHORT].concat());
    let (exit, out, _) = run(&["--rows", "every:4"]);
    let first = out.lines().next().unwrap();
    let extent = "10 prompt tokens, 2 decode steps, prompt's scores and probs of 4 tokens only)";
    assert!(exit == 0 && first.contains(extent), "{out}");

    let (exit, out, _) = run(&["--rows", "4,9", "--fault", "mask-off-by-one", "--verbose"]);
    assert_eq!(exit, 1);
    let place = "first divergence: step 0 layer 0 probs [position 4, head 0, key ";
    assert!(out.starts_with(place), "{out}");
    assert!(out.contains("  which      positions 4, 9 "), "{out}");
    let cause =
        "1. attention, all layers: mask off by one: a query does not see its own key (proven";
    assert!(out.contains(cause), "{out}");

    let (exit, out, _) = run(&["--rows", "0", "--fault", "mask-off-by-one"]);
    assert_eq!(exit, 1);
    assert!(out.contains(cause), "{out}");
}

#[test]
fn rows_that_cannot_be_had_are_refused() {
    let run = |rows, more: &[&'static str]| [&["run", "--rows", rows], more, &SHORT].concat();
    refused(&run("10", &[]), 2, "position 10 is past the prompt's last token, 9");
    let own = format!("attention={}/kernels/attention.toml", env!("CARGO_MANIFEST_DIR"));
    let arguments = [&["run", "--rows", "last", "--kernel", own.as_str()], &SHORT[..]].concat();
    refused(&arguments, 2, "attention.cu writes the scores or probs of every query");
}
