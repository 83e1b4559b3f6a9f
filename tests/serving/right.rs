//! A right engine is green.

use super::{engine::StepPlan, explained, schedules::*};

#[track_caller]
fn is_right(name: &str, steps: &[StepPlan], unrecorded: usize) {
    let (exit, out) = explained(steps, unrecorded, &[]);
    let first = out.lines().next().unwrap_or_default();
    assert_eq!(exit, 0, "{name}: {out}");
    assert!(first.contains("nothing guilty: 79 of 79 operations within"), "{name}: {out}");
    assert!(!out.contains("suspicious"), "{name}: {out}");
}

#[test]
fn a_prompt_is_right_in_chunks_of_any_size() {
    for size in [1, 7, 16, 43, 47] {
        is_right(&format!("chunks of {size}"), &chunks(47, size, 2), 0);
    }
}

#[test]
fn three_ragged_sequences_are_right_padded_on_either_side_and_in_shuffled_pages() {
    is_right("padded left", &padded(true), 0);
    is_right("padded right", &padded(false), 0);
    is_right("paged", &paged(), 0);
}

#[test]
fn what_follows_a_cached_prefix_is_right_alone_and_in_a_batch() {
    is_right("prefix", &prefix(), 0);
    let (_, out) = explained(&prefix(), 0, &["--sequence", "1"]);
    let said = "the first layer's keys of all 16 cached positions are those of their ids";
    assert!(out.contains(said), "{out}");
    is_right("alone", &chunks(30, 20, 3), 1);
}

#[test]
fn rejected_drafts_are_rolled_back_and_overwritten() {
    is_right("verify", &verify(), 0);
    is_right("verify in pages", &verify_paged(), 0);
}

#[test]
fn a_context_shift_turns_the_keys_that_move() {
    is_right("shift", &shift(), 0);
}
