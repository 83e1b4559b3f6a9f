//! Mistakes of how an engine divides its work, each planted in an engine that is right else.

use super::{
    engine::{Row, StepPlan},
    explained,
    schedules::*,
};

/// A mistake, and what the first line says of it.
pub struct Bug {
    pub name: &'static str,
    pub schedule: fn() -> Vec<StepPlan>,
    pub plant: fn(&mut [StepPlan]),
    pub says: &'static [&'static str],
}

/// Changes the rows of all steps but the first, given the row, its place in the step and the position of the first.
fn later(steps: &mut [StepPlan], change: impl Fn(&mut Row, usize, usize)) {
    for step in &mut steps[1..] {
        let first = step.first_position;
        step.rows.iter_mut().enumerate().for_each(|(at, row)| change(row, at, first));
    }
}

/// Changes the rows of a sequence, given its part of the step's batch.
fn of_sequence(step: &mut StepPlan, number: u32, change: impl Fn(&mut Row, usize, usize)) {
    let batch = step.batch.as_ref().unwrap();
    let Some(part) = batch.sequences.iter().find(|part| part.sequence == number) else { return };
    for (at, &row) in part.rows.iter().enumerate() {
        change(&mut step.rows[row], at, part.first_position);
    }
}

/// The table of a sequence in a step.
fn table_of(step: &StepPlan, number: u32) -> Vec<usize> {
    let batch = step.batch.as_ref().unwrap();
    let part = batch.sequences.iter().find(|part| part.sequence == number).unwrap();
    step.rows[*part.rows.last().unwrap()].table.clone()
}

/// Fails with what was said of each mistake that is not named as it should be.
#[track_caller]
pub fn are_named(bugs: &[Bug]) {
    let mut wrong = Vec::new();
    for &Bug { name, schedule, plant, says } in bugs {
        let mut steps = schedule();
        plant(&mut steps);
        let (exit, out) = explained(&steps, 0, &[]);
        let first = out.lines().next().unwrap_or_default();
        if exit != 1 || !says.iter().all(|text| first.contains(text)) {
            wrong.push(format!("{name}: {exit}: {out}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn sevens() -> Vec<StepPlan> {
    chunks(30, 7, 2)
}

#[test]
fn each_mistake_of_chunks_is_named() {
    are_named(&[
        Bug {
            name: "positions restart",
            schedule: sevens,
            plant: |steps| later(steps, |row, at, _| row.position = at),
            says: &["q and k rotation, all layers: positions begin at 0 in each step (proven)"],
        },
        Bug {
            name: "only the own chunk is seen",
            schedule: sevens,
            plant: |steps| {
                later(steps, |row, _, first| row.sees[..first].fill(false));
            },
            says: &["softmax, all layers", "only to the keys of their own step", "proven"],
        },
        Bug {
            name: "the key before a chunk is not seen",
            schedule: sevens,
            plant: |steps| later(steps, |row, _, first| row.sees[first - 1] = false),
            says: &["softmax, all layers", "the key before their own step is not seen", "proven"],
        },
        Bug {
            name: "the next key is seen",
            schedule: sevens,
            plant: |steps| {
                later(steps, |row, at, first| {
                    if first + at + 1 < row.sees.len() {
                        row.sees[first + at + 1] = true;
                    }
                });
            },
            says: &["softmax, all layers", "proven"],
        },
        Bug {
            name: "the mask is that of the first chunk",
            schedule: sevens,
            plant: |steps| later(steps, |row, at, _| row.sees[at + 1..].fill(false)),
            says: &["softmax, all layers", "by place in the step", "proven"],
        },
        Bug {
            name: "every chunk is written from slot 0 on",
            schedule: sevens,
            plant: |steps| later(steps, |row, at, _| row.slot = Some(at)),
            says: &[
                "k and v cache append, all layers: every step is written from slot 0 on (proven)",
            ],
        },
        Bug {
            name: "no mask within a chunk",
            schedule: sevens,
            plant: |steps| later(steps, |row, _, _| row.sees.fill(true)),
            says: &["softmax, all layers", "proven"],
        },
        Bug {
            name: "the last token of a chunk is not appended",
            schedule: sevens,
            plant: |steps| {
                steps.iter_mut().for_each(|step| step.rows.last_mut().unwrap().slot = None);
            },
            says: &[
                "k and v cache append, all layers: a step's last token is not appended (proven)",
            ],
        },
    ]);
}

#[test]
fn each_mistake_of_padding_and_of_whose_a_row_is_is_named() {
    are_named(&[
        Bug {
            name: "padding on the left is seen",
            schedule: || padded(true),
            plant: |steps| {
                for step in steps {
                    for number in 1..3 {
                        let start = number as usize * LENGTH;
                        of_sequence(step, number, |row, _, _| {
                            row.beyond = (start..row.table[0]).collect();
                        });
                    }
                }
            },
            says: &[
                "sequence 1: guilty: softmax and weighted sum of values, all layers: the padding's keys count in the softmax (proven)",
            ],
        },
        Bug {
            name: "padding counts in positions",
            schedule: || padded(true),
            plant: |steps| {
                for step in steps {
                    of_sequence(step, 1, |row, _, _| row.position += 6);
                }
            },
            says: &[
                "sequence 1: guilty: q and k rotation, all layers: positions off by +6, the padding before it (proven)",
            ],
        },
        Bug {
            name: "padding counts in positions of decode steps",
            schedule: || padded(false),
            plant: |steps| {
                for step in &mut steps[1..] {
                    of_sequence(step, 1, |row, _, _| row.position += 6);
                }
            },
            says: &[
                "sequence 1: guilty: q and k rotation, all layers: positions of decode steps off by +6",
            ],
        },
        Bug {
            name: "the keys of all sequences count",
            schedule: paged,
            plant: |steps| {
                for step in steps {
                    let tables = [0, 1, 2].map(|number| table_of(step, number));
                    for number in 0..3 {
                        let others =
                            tables.iter().enumerate().filter(|(at, _)| *at as u32 != number);
                        let others: Vec<usize> =
                            others.flat_map(|(_, table)| table.clone()).collect();
                        of_sequence(step, number, |row, _, _| row.beyond = others.clone());
                    }
                }
            },
            says: &[
                "sequence 0: guilty: softmax and weighted sum of values, all layers: the keys of all other sequences count in the softmax too (proven)",
            ],
        },
        Bug {
            name: "written into the slots of the sequence before",
            schedule: || padded(false),
            plant: |steps| {
                for step in &mut steps[1..] {
                    let other = table_of(step, 1);
                    of_sequence(step, 2, |row, at, _| row.slot = Some(*other.last().unwrap() + at));
                }
            },
            says: &["guilty: k and v cache append, all layers", "sequence"],
        },
    ]);
}

#[test]
fn each_mistake_of_pages_is_named() {
    are_named(&[
        Bug {
            name: "the pages of another sequence are read",
            schedule: paged,
            plant: |steps| {
                for step in &mut steps[1..] {
                    let other = table_of(step, 0);
                    of_sequence(step, 2, |row, _, _| {
                        let n = row.table.len();
                        row.table.copy_from_slice(&other[..n]);
                    });
                }
            },
            says: &[
                "sequence 2: guilty: attention scores and weighted sum of values, all layers",
                "get the row of sequence 0",
                "(proven)",
            ],
        },
        Bug {
            name: "the last page is read to its end",
            schedule: paged,
            plant: |steps| {
                for step in steps {
                    for number in 0..3 {
                        let last = *table_of(step, number).last().unwrap();
                        of_sequence(step, number, |row, _, _| {
                            row.beyond = (last + 1..(last / PAGE + 1) * PAGE).collect();
                        });
                    }
                }
            },
            says: &[
                // The slots there are zero, so that nothing is added to the sum.
                "sequence 0: guilty: softmax, all layers: keys past the last position count in the softmax, up to the end of its page (proven)",
            ],
        },
        Bug {
            name: "two pages are read in the wrong order",
            schedule: paged,
            plant: |steps| {
                for step in &mut steps[1..] {
                    of_sequence(step, 0, |row, _, _| {
                        let (first, second) = row.table.split_at_mut(PAGE);
                        first.swap_with_slice(&mut second[..PAGE]);
                    });
                }
            },
            says: &[
                "sequence 0: guilty: attention scores and weighted sum of values, all layers",
                "get the row from 16 positions",
                "(proven)",
            ],
        },
    ]);
}

#[test]
fn each_mistake_of_a_cached_prefix_is_named() {
    are_named(&[
        Bug {
            name: "the prefix is another prompt's",
            schedule: prefix,
            plant: |steps| {
                let of_batch = steps[1].batch.as_mut().unwrap();
                of_batch.sequences[1].prefix[3..].copy_from_slice(&ids(PAGE, 9)[3..]);
            },
            says: &[
                "sequence 1: prefix of another prompt: its key at position 3 is token 122's, as in sequence 0, not 1621's",
            ],
        },
        Bug {
            name: "the prefix counts one too many",
            schedule: prefix,
            plant: |steps| {
                for step in &mut steps[1..] {
                    of_sequence(step, 1, |row, _, _| row.position += 1);
                }
            },
            says: &[
                "sequence 1: guilty: q and k rotation, all layers: positions off by +1 (proven)",
            ],
        },
        Bug {
            name: "the prefix is one too short",
            schedule: prefix,
            plant: |steps| {
                for step in &mut steps[1..] {
                    of_sequence(step, 1, |row, _, _| row.sees[PAGE - 1] = false);
                }
            },
            says: &["sequence 1: guilty: softmax, all layers: no query attends to key 15 (proven)"],
        },
    ]);
}

#[test]
fn each_mistake_of_rejected_drafts_is_named() {
    are_named(&[
        Bug {
            name: "rejected keys stay",
            schedule: verify,
            plant: |steps| {
                // Two were rejected before step 2: the engine goes on behind them.
                for step in &mut steps[2..3] {
                    for row in &mut step.rows {
                        let n = row.table.len();
                        row.table = (0..n + 2).collect();
                        let own = row.position;
                        row.sees = (0..n + 2).map(|key| key <= own + 2).collect();
                        row.slot = Some(own + 2);
                    }
                }
            },
            says: &["k and v cache append, all layers", "rejected", "proven"],
        },
        Bug {
            name: "positions count rejected tokens",
            schedule: verify,
            plant: |steps| {
                for step in &mut steps[2..] {
                    step.rows.iter_mut().for_each(|row| row.position += 2);
                }
            },
            says: &["q and k rotation, all layers: positions", "+2", "proven"],
        },
        Bug {
            name: "a rejected key behind the last is seen",
            schedule: || {
                let mut steps = verify();
                steps.truncate(2);
                let removed = firstdiff::trace::Removed { first: 14, count: 3 };
                let own = StepPlan::single(&ids(1, 60), 14);
                steps.push(StepPlan { removed: Some(removed), ..own });
                steps
            },
            plant: |steps| steps[2].rows[0].beyond = vec![15, 16],
            says: &[
                "softmax and weighted sum of values, all layers: rejected keys past the last position count in the softmax (proven)",
            ],
        },
    ]);
}

#[test]
fn each_mistake_of_a_context_shift_is_named() {
    are_named(&[
        Bug {
            name: "keys are not rotated",
            schedule: shift,
            plant: |steps| {
                steps.iter_mut().flat_map(|step| &mut step.moves).for_each(|one| one.turn = 0);
            },
            says: &["k cache append, all layers", "not rotated back", "proven"],
        },
        Bug {
            name: "keys are turned by one too few",
            schedule: shift,
            plant: |steps| {
                steps.iter_mut().flat_map(|step| &mut step.moves).for_each(|one| one.turn += 1);
            },
            says: &["k cache append, all layers", "7 positions instead of 8", "proven"],
        },
        Bug {
            name: "keys are turned the wrong way",
            schedule: shift,
            plant: |steps| {
                steps.iter_mut().flat_map(|step| &mut step.moves).for_each(|one| one.turn *= -1);
            },
            says: &[
                "k cache append, all layers",
                "forward by 8 positions instead of back",
                "proven",
            ],
        },
        Bug {
            name: "the first are not kept",
            schedule: shift,
            plant: |steps| {
                for step in steps.iter_mut().filter(|step| !step.moves.is_empty()) {
                    let last = step.moves[step.moves.len() - 1].from;
                    let one = step.moves[0];
                    step.moves = (EVICTED..=last)
                        .map(|from| super::engine::Move { from, to: from - EVICTED, ..one })
                        .collect();
                }
            },
            says: &["k and v cache append, all layers", "removed", "proven"],
        },
        Bug {
            name: "rows are moved from one position too far",
            schedule: shift,
            plant: |steps| {
                for one in &mut steps[2].moves {
                    one.from += 1;
                    one.turn -= 1;
                }
            },
            says: &[
                "k and v cache append, all layers",
                "hold the row from 1 positions later",
                "are zero",
                "(proven)",
            ],
        },
        Bug {
            name: "new tokens go on at the old positions",
            schedule: shift,
            plant: |steps| {
                for step in &mut steps[2..] {
                    step.rows.iter_mut().for_each(|row| row.position += EVICTED);
                }
            },
            says: &["q and k rotation, all layers: positions", "+8", "proven"],
        },
    ]);
}
