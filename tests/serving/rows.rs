//! Rows that an engine takes from another token, another sequence or padding.

use super::{
    bugs::{Bug, are_named},
    engine::{Read, StepPlan},
    explained,
    schedules::*,
};

/// The rows of a sequence in a step.
fn rows_of(step: &StepPlan, number: u32) -> Vec<usize> {
    let batch = step.batch.as_ref().unwrap();
    batch.sequences.iter().find(|part| part.sequence == number).unwrap().rows.clone()
}

#[test]
fn a_row_of_another_sequence_of_another_token_or_of_padding_is_named() {
    are_named(&[
        Bug {
            name: "the logits of the last token are those of the sequence before",
            schedule: || padded(false),
            plant: |steps| {
                let [from, to] = [1, 2].map(|number| *rows_of(&steps[0], number).last().unwrap());
                steps[0].rows[to].read = Some(Read { row: from, after: None });
            },
            says: &[
                "sequence 2: guilty: logits projection: row of sequence 1, token 4, in place of token 7 (proven)",
            ],
        },
        Bug {
            name: "the logits of the last token are those of the last but one",
            schedule: paged,
            plant: |steps| {
                let to = *rows_of(&steps[0], 1).last().unwrap();
                steps[0].rows[to].read = Some(Read { row: to - 1, after: None });
            },
            says: &[
                "sequence 1: guilty: logits projection: row of token 19 in place of token 20 (proven)",
            ],
        },
        Bug {
            name: "the logits of the last token are those of padding",
            schedule: || padded(false),
            plant: |steps| {
                let to = *rows_of(&steps[0], 1).last().unwrap();
                steps[0].rows[to].read = Some(Read { row: to + 2, after: None });
            },
            says: &[
                "sequence 1: guilty: logits projection: row of padding in place of token 4 (proven)",
            ],
        },
        Bug {
            name: "rows of two sequences are exchanged after layer 0",
            schedule: || padded(true),
            plant: |steps| {
                for step in &mut steps[1..] {
                    let [a, b] = [0, 2].map(|number| rows_of(step, number)[0]);
                    step.rows[a].read = Some(Read { row: b, after: Some(0) });
                    step.rows[b].read = Some(Read { row: a, after: Some(0) });
                }
            },
            says: &[
                "sequence 0: guilty: feed-forward residual, layer 0: rows of sequence 2 at the same place in the step (proven)",
            ],
        },
    ]);
}

#[test]
fn a_row_that_two_sequences_have_alike_is_not_said_to_be_one_of_them() {
    let part = |sequence: u32, seed: usize| Part {
        sequence,
        ids: ids(7, seed),
        first_position: 0,
        prefix: Vec::new(),
        removed: None,
        blocks: vec![sequence as usize],
        padding: Default::default(),
    };
    let logits_of_another = |twin: usize| {
        let mut step = batch(&[part(0, 0), part(1, 5), part(2, twin)], PAGE);
        let [from, to] = [1, 0].map(|number| *rows_of(&step, number).last().unwrap());
        step.rows[to].read = Some(Read { row: from, after: None });
        let (exit, out) = explained(&[step], 0, &[]);
        assert_eq!(exit, 1, "{out}");
        out.lines().next().unwrap_or_default().to_string()
    };
    let alone = logits_of_another(6);
    let said = "sequence 0: guilty: logits projection: row of sequence 1, token 6, in place of token 6 (proven)";
    assert!(alone.starts_with(said), "{alone}");
    let twins = logits_of_another(5);
    assert!(twins.contains("guilty: logits projection") && !twins.contains("row of"), "{twins}");
}
