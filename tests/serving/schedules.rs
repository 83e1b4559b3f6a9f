//! How an engine divides its work: chunks, batches, pages, prefixes, drafts that are rejected, shifts.

use firstdiff::trace::{Batch, BatchedSequence, Removed};

use super::engine::{Move, Row, SLOTS, StepPlan};

pub const PAGE: usize = 16;
/// Slots that each sequence of a padded batch has.
pub const LENGTH: usize = 24;
/// The steps of a batch's sequences: prompts of so many tokens, then a token each.
const PROMPTS: [usize; 3] = [11, 5, 8];
const DECODED: usize = 3;

/// Ids of a prompt, others for each `seed`.
pub fn ids(count: usize, seed: usize) -> Vec<i32> {
    (0..count).map(|at| ((at * 37 + seed * 611 + 11) % 2000) as i32).collect()
}

/// Tokens in steps of these sizes, the last of them repeated; then single ones.
pub fn chunks(tokens: usize, size: usize, decoded: usize) -> Vec<StepPlan> {
    let ids = ids(tokens + decoded, 0);
    let (prompt, rest) = ids.split_at(tokens);
    let mut first = 0;
    let steps = prompt.chunks(size).chain(rest.chunks(1)).map(|ids| {
        let step = StepPlan::single(ids, first);
        first += ids.len();
        step
    });
    steps.collect()
}

/// A sequence's part of a step of several: its new ids, and the blocks of its cache.
#[derive(Clone, Debug)]
pub struct Part {
    pub sequence: u32,
    pub ids: Vec<i32>,
    pub first_position: usize,
    /// The ids before that, where they are said.
    pub prefix: Vec<i32>,
    pub removed: Option<Removed>,
    pub blocks: Vec<usize>,
    /// Slots of the rows of padding before and after its own.
    pub padding: [Vec<usize>; 2],
}

impl Part {
    fn table(&self, block_size: usize) -> Vec<usize> {
        let positions = 0..self.first_position + self.ids.len();
        positions.map(|at| self.blocks[at / block_size] * block_size + at % block_size).collect()
    }
}

/// A step of several sequences.
pub fn batch(parts: &[Part], block_size: usize) -> StepPlan {
    let (mut rows, mut sequences) = (Vec::new(), Vec::new());
    for part in parts {
        let table = part.table(block_size);
        rows.extend(part.padding[0].iter().map(|&slot| Row::padding(slot)));
        let start = rows.len();
        let row = |(at, &id): (usize, &i32)| Row::right(id, part.first_position + at, &table);
        rows.extend(part.ids.iter().enumerate().map(row));
        let own = (start..rows.len()).collect();
        rows.extend(part.padding[1].iter().map(|&slot| Row::padding(slot)));
        let blocks = part.blocks[..table.len().div_ceil(block_size)].to_vec();
        sequences.push(BatchedSequence {
            sequence: part.sequence,
            first_position: part.first_position,
            prefix: part.prefix.clone(),
            removed: part.removed,
            rows: own,
            blocks,
            keys: None,
        });
    }
    let keys = rows.iter().map(|row| row.table.len()).max().unwrap_or(0);
    let batch = Batch { slots: SLOTS, block_size, keys: None, sequences };
    let batch = Some(batch);
    StepPlan { moves: Vec::new(), rows, first_position: 0, removed: None, batch, keys }
}

/// Three ragged sequences, padded on the left or on the right, each in a run of slots of its own.
pub fn padded(left: bool) -> Vec<StepPlan> {
    let longest = PROMPTS[0];
    let part = |(number, &tokens): (usize, &usize)| {
        let (over, ids) = (longest - tokens, ids(tokens, number));
        let (start, end) = (number * LENGTH, (number + 1) * LENGTH);
        let first = if left { start + over } else { start };
        let padding = [start..first, first + tokens..start + longest].map(Iterator::collect);
        let (sequence, blocks) = (number as u32, (first..end).collect());
        Part {
            sequence,
            ids,
            first_position: 0,
            prefix: Vec::new(),
            removed: None,
            blocks,
            padding,
        }
    };
    decoding(PROMPTS.iter().enumerate().map(part).collect(), 1)
}

/// Three sequences of more than two pages each, whose pages lie in no order.
pub fn paged() -> Vec<StepPlan> {
    let part = |(number, tokens): (usize, usize)| Part {
        sequence: number as u32,
        ids: ids(tokens, number),
        first_position: 0,
        prefix: Vec::new(),
        removed: None,
        blocks: shuffled(number),
        padding: Default::default(),
    };
    decoding([40, 21, 34].into_iter().enumerate().map(part).collect(), PAGE)
}

/// The pages of a sequence of three.
fn shuffled(number: usize) -> Vec<usize> {
    (0..3).map(|page| (page * 3 + number) * 7 % (SLOTS / PAGE)).collect()
}

/// A prompt for each part, then a token each, several times.
fn decoding(mut parts: Vec<Part>, block_size: usize) -> Vec<StepPlan> {
    let mut steps = vec![batch(&parts, block_size)];
    for step in 0..DECODED {
        for part in &mut parts {
            part.first_position += part.ids.len();
            part.ids = ids(1, 40 + 3 * step + part.sequence as usize);
            part.prefix.clear();
            part.padding = Default::default();
        }
        steps.push(batch(&parts, block_size));
    }
    steps
}

/// A sequence of 23 tokens, then another that has its first 16, a page that both share.
pub fn prefix() -> Vec<StepPlan> {
    let mut first = Part {
        sequence: 0,
        ids: ids(23, 0),
        first_position: 0,
        prefix: Vec::new(),
        removed: None,
        blocks: shuffled(0),
        padding: Default::default(),
    };
    let alone = batch(std::slice::from_ref(&first), PAGE);
    (first.first_position, first.ids) = (23, ids(1, 50));
    let blocks = [&shuffled(0)[..1], &shuffled(1)[..2]].concat();
    let second = Part {
        sequence: 1,
        ids: ids(9, 3),
        first_position: PAGE,
        prefix: ids(PAGE, 0),
        blocks,
        ..first.clone()
    };
    let steps = decoding(vec![first, second], PAGE);
    std::iter::once(alone).chain(steps).collect()
}

/// A prompt of 12, then steps that verify four drafted tokens each, of which two are rejected, then none, then all.
pub fn verify() -> Vec<StepPlan> {
    let mut steps = vec![StepPlan::single(&ids(12, 0), 0)];
    let mut end = 12;
    for (step, rejected) in [0, 2, 0, 4].into_iter().enumerate() {
        let first = end - rejected;
        let removed = (rejected > 0).then_some(Removed { first, count: rejected });
        steps.push(StepPlan { removed, ..StepPlan::single(&ids(5, 20 + step), first) });
        end = first + 5;
    }
    steps
}

/// The same for two sequences in pages, which reject different numbers of tokens.
pub fn verify_paged() -> Vec<StepPlan> {
    let part = |number: usize| Part {
        sequence: number as u32,
        ids: ids(14 + 3 * number, number),
        first_position: 0,
        prefix: Vec::new(),
        removed: None,
        blocks: shuffled(number),
        padding: Default::default(),
    };
    let mut parts = [part(0), part(1)];
    let mut steps = vec![batch(&parts, PAGE)];
    for (step, rejected) in [[0, 0], [3, 1], [0, 4]].into_iter().enumerate() {
        for (part, rejected) in parts.iter_mut().zip(rejected) {
            let end = part.first_position + part.ids.len();
            part.first_position = end - rejected;
            let removed = Removed { first: part.first_position, count: rejected };
            part.removed = (rejected > 0).then_some(removed);
            part.ids = ids(5, 30 + 2 * step + part.sequence as usize);
        }
        steps.push(batch(&parts, PAGE));
    }
    steps
}

/// Positions that a context shift keeps at the beginning, and removes behind them.
pub const KEPT: usize = 4;
pub const EVICTED: usize = 8;

/// A prompt of 24 and a token, then twice a shift and two tokens, the last step of three.
pub fn shift() -> Vec<StepPlan> {
    let mut steps = vec![StepPlan::single(&ids(24, 0), 0), StepPlan::single(&ids(1, 1), 24)];
    let mut end = 25;
    for round in 0..2 {
        let removed = Removed { first: KEPT, count: EVICTED };
        let moves = (removed.end()..end).map(|from| Move {
            from,
            to: from - EVICTED,
            turn: -(EVICTED as i64),
        });
        let first = end - EVICTED;
        let own = StepPlan::single(&ids(1 + 2 * round, 5 + round), first);
        steps.push(StepPlan { moves: moves.collect(), removed: Some(removed), ..own });
        end = first + 1 + 2 * round;
        steps.push(StepPlan::single(&ids(1, 8 + round), end));
        end += 1;
    }
    steps
}
