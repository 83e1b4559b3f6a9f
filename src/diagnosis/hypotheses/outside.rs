//! Attention that reads rows of a cache which are not the sequence's own: those of other sequences, of padding, past
//! the last position of a page, of rejected drafts. Either they count beside its own, or they are read in their place.

use std::{collections::BTreeMap, rc::Rc};

use super::{
    Visit,
    cache::Shape,
    slots::{Content, Slot, read_as},
};
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Change, Edits, Evidence, StepEvidence,
        cause::{Rank, Tried},
        replay::{Expected, ReplayError, Spread},
    },
    graph::{Op, site::Stage},
    trace::Outside,
};

/// The sites of an attention, by their places.
struct Attention {
    queries: usize,
    scores: usize,
    probs: usize,
    caches: [usize; 2],
    scale: f64,
}

/// A row that is not the sequence's: key and value, (Hk, D).
struct Row {
    of: Outside,
    position: usize,
    key: Vec<f64>,
    value: Vec<f64>,
}

/// What a step recorded of an attention.
struct Recorded {
    /// (T, Hq, D)
    queries: Vec<f64>,
    /// (T, Hq, P)
    scores: Vec<f64>,
    probs: Vec<f64>,
    /// (P, Hk, D)
    keys: Vec<f64>,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    cells: usize,
    others: Vec<Row>,
}

/// Which rows count beside the sequence's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Of(Outside),
    /// Those of all other sequences.
    Sequences,
}

impl Group {
    fn has(self, row: &Row) -> bool {
        match self {
            Group::Of(of) => row.of == of,
            Group::Sequences => matches!(row.of, Outside::Sequence(_)),
        }
    }

    fn text(self) -> String {
        match self {
            Group::Of(Outside::Padding) => "the padding's keys count in the softmax".into(),
            Group::Of(Outside::Page) => {
                "keys past the last position count in the softmax, up to the end of its page".into()
            }
            Group::Of(Outside::Rejected) => {
                "rejected keys past the last position count in the softmax".into()
            }
            Group::Of(Outside::Sequence(n)) => {
                format!("sequence {n}'s keys count in the softmax too")
            }
            Group::Sequences => "the keys of all other sequences count in the softmax too".into(),
        }
    }

    fn key(self) -> CauseKey {
        match self {
            Group::Of(Outside::Padding | Outside::Page) => CauseKey::SoftmaxPadding,
            _ => CauseKey::KeysWeighed,
        }
    }
}

/// Hypotheses of a softmax, a weighted sum, or scores that read what is not the sequence's.
pub fn read(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let stage = evidence.spec().stage;
    if !matches!(stage, Stage::Scores | Stage::Probs | Stage::AttnOut) {
        return Ok(());
    }
    let Some(attention) = Attention::of(evidence) else { return Ok(()) };
    let steps = evidence.steps.iter().map(|step| attention.recorded(evidence, step));
    let Some(steps) = steps.collect::<Result<Option<Vec<Recorded>>, _>>()? else { return Ok(()) };
    if stage != Stage::Scores {
        beside(evidence, &attention, &steps, visit);
    }
    if stage != Stage::Probs {
        instead(evidence, &attention, &steps, visit)?;
    }
    Ok(())
}

impl Attention {
    fn of(evidence: &Evidence<'_>) -> Option<Attention> {
        let (graph, specs) = (evidence.graph(), evidence.run.model.sites.specs());
        let layer = evidence.spec().layer;
        let place =
            |stage| specs.iter().position(|spec| spec.layer == layer && spec.stage == stage);
        let (scores, probs) = (place(Stage::Scores)?, place(Stage::Probs)?);
        let softmax = graph.node(specs[probs].node);
        let product = graph.root(specs[scores].node);
        let any = crate::graph::Extent { tokens: 1, cells: 1, is_first: true };
        let params = softmax.params(any);
        let is_plain = softmax.op == Op::SoftMax
            && graph.node(product).op == Op::MulMat
            && softmax.source(0).map(|source| graph.root(source)) == Some(product)
            && params.float(1) == 0.0
            && params.float(0) == specs[scores].factor;
        let query = graph.root(graph.node(product).source(1)?);
        let queries = specs.iter().position(|spec| graph.root(spec.node) == query)?;
        let caches = [place(Stage::KCache)?, place(Stage::VCache)?];
        let scale = f64::from(params.float(0));
        is_plain.then_some(Attention { queries, scores, probs, caches, scale })
    }

    fn recorded(
        &self,
        evidence: &Evidence<'_>,
        step: &StepEvidence<'_>,
    ) -> Result<Option<Recorded>, ReplayError> {
        let of = |place| evidence.recorded(step, place);
        let (Some(queries), Some(scores), Some(probs), Some(keys)) =
            (of(self.queries), of(self.scores), of(self.probs), of(self.caches[0]))
        else {
            return Ok(None);
        };
        let specs = evidence.run.model.sites.specs();
        let (tokens, cells) = (step.machine.extent.tokens, step.machine.extent.cells);
        let [query, cache] =
            [self.queries, self.caches[0]].map(|at| specs[at].shape(tokens, cells));
        let ([_, heads, dim], [_, kv_heads, own]) = (&query[..], &cache[..]) else {
            return Ok(None);
        };
        let (&heads, &dim, &kv_heads) = (heads, dim, kv_heads);
        let is_whole = scores.len() == tokens * heads * cells && probs.len() == scores.len();
        if *own != dim || kv_heads == 0 || heads % kv_heads != 0 || !is_whole {
            return Ok(None);
        }
        let others = self.others(evidence, step)?;
        let is_row =
            |row: &Row| row.key.len() == kv_heads * dim && row.value.len() == row.key.len();
        if !others.iter().all(is_row) {
            return Ok(None);
        }
        Ok(Some(Recorded {
            queries,
            scores,
            probs,
            keys,
            tokens,
            heads,
            kv_heads,
            dim,
            cells,
            others,
        }))
    }

    /// Rows of the caches that hold none of the sequence's positions in a step.
    fn others(
        &self,
        evidence: &Evidence<'_>,
        step: &StepEvidence<'_>,
    ) -> Result<Vec<Row>, ReplayError> {
        let (recording, specs) = (&evidence.run.recording, evidence.run.model.sites.specs());
        let number = step.observed.step;
        let [keys, values] =
            self.caches.map(|at| recording.tensors.outside(specs[at].site(number)));
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
        let pairs = keys?.into_iter().zip(values?);
        let mut rows: Vec<Row> = pairs
            .map(|(key, value)| Row {
                of: key.of,
                position: key.position,
                key: wide(key.values),
                value: wide(value.values),
            })
            .collect();
        let end = step.machine.extent.cells;
        let longer = (0..number).rev().find(|&before| recording.positions(before).end > end);
        let Some(before) =
            longer.filter(|_| (1..=number).any(|at| recording.tensors.removed(at).is_some()))
        else {
            return Ok(rows);
        };
        let caches = self.caches.map(|at| recording.tensors.tensor(specs[at].site(before)));
        let [Some(keys), Some(values)] =
            [&caches[0], &caches[1]].map(|cache| cache.as_ref().ok().and_then(Option::as_ref))
        else {
            return Ok(rows);
        };
        for position in end..recording.positions(before).end {
            let row = |of: &crate::core::tensor::Tensor| {
                let width = of.data.len() / of.shape[0].max(1);
                wide(of.data[position * width..(position + 1) * width].to_vec())
            };
            rows.push(Row { of: Outside::Rejected, position, key: row(keys), value: row(values) });
        }
        Ok(rows)
    }
}

impl Recorded {
    /// The query of a token and a head.
    fn query(&self, token: usize, head: usize) -> &[f64] {
        &self.queries[(token * self.heads + head) * self.dim..][..self.dim]
    }

    /// A query's head of a row (Hk, D).
    fn head_of<'r>(&self, row: &'r [f64], head: usize) -> &'r [f64] {
        &row[head * self.kv_heads / self.heads * self.dim..][..self.dim]
    }

    /// The weights of the rows of a group for a token and a head, in units of the largest of its own, and the
    /// relative deviation that rounding gives them.
    fn weights(
        &self,
        rows: &[&Row],
        scale: f64,
        unit: f64,
        (token, head): (usize, usize),
    ) -> Vec<Weight> {
        let at = (token * self.heads + head) * self.cells;
        let largest = largest(&self.probs[at..at + self.cells]);
        let query = self.query(token, head);
        let weight = |row: &&Row| {
            let products = query.iter().zip(self.head_of(&row.key, head)).map(|(q, k)| q * k);
            let (sum, sizes) =
                products.fold((0.0, 0.0), |(sum, sizes), x: f64| (sum + x, sizes + x.abs()));
            let (score, own) = (scale * sum, self.scores[at + largest]);
            let off = unit
                * ((self.dim as f64).sqrt() * scale.abs() * sizes + score.abs() + own.abs() + 4.0);
            Weight { ratio: (score - own).exp(), off }
        };
        rows.iter().map(weight).collect()
    }
}

/// What a row weighs beside another, and the relative deviation of that.
struct Weight {
    ratio: f64,
    off: f64,
}

fn largest(row: &[f64]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0)
}

/// Rows that count beside the sequence's own: each makes the others' probabilities smaller, and adds its value.
fn beside(evidence: &Evidence<'_>, attention: &Attention, steps: &[Recorded], visit: Visit<'_>) {
    let is_sum = evidence.spec().stage == Stage::AttnOut;
    let mut groups: Vec<Group> = Vec::new();
    for row in steps.iter().flat_map(|step| &step.others) {
        groups.push(Group::Of(row.of));
    }
    groups.sort();
    groups.dedup();
    let is_sequence = |group: &&Group| matches!(group, Group::Of(Outside::Sequence(_)));
    if groups.iter().filter(is_sequence).count() > 1 {
        groups.push(Group::Sequences);
    }
    for group in groups {
        visit(evidence.predicted(group.key(), group.text(), Rank::Mistake, |step| {
            let recorded = &steps[evidence.index_of(step)];
            let rows: Vec<&Row> = recorded.others.iter().filter(|row| group.has(row)).collect();
            let right = &step.observed.piece.expected;
            let unit = right.rounding.sum;
            let n = right.value.len();
            let mut value = right.value.clone();
            let mut spread: Vec<f64> = (0..n).map(|i| right.most_spread(i)).collect();
            let mut single: Vec<f64> = (0..n).map(|i| right.single_of(i)).collect();
            let width = if is_sum { recorded.dim } else { recorded.cells };
            if n != recorded.tokens * recorded.heads * width {
                return None;
            }
            for line in 0..recorded.tokens * recorded.heads {
                let of = (line / recorded.heads, line % recorded.heads);
                let weights = recorded.weights(&rows, attention.scale, unit, of);
                let at = line * width..(line + 1) * width;
                let probs = &recorded.probs[line * recorded.cells..(line + 1) * recorded.cells];
                if is_sum {
                    let own = probs[largest(probs)];
                    for (weight, row) in weights.iter().zip(&rows) {
                        let added = recorded
                            .head_of(&row.value, of.1)
                            .iter()
                            .map(|v| weight.ratio * own * v);
                        for (i, added) in at.clone().zip(added) {
                            value[i] += added;
                            spread[i] += weight.off * added.abs();
                        }
                    }
                    continue;
                }
                let own = right.value[at.start + largest(probs)];
                let more: f64 = weights.iter().map(|weight| weight.ratio * own).sum();
                let off: f64 = weights.iter().map(|weight| weight.ratio * own * weight.off).sum();
                let factor = 1.0 / (1.0 + more);
                for i in at {
                    value[i] *= factor;
                    spread[i] = factor * spread[i] + value[i].abs() * (factor * off + unit);
                    single[i] *= factor;
                }
            }
            let (spread, rounding) = (Spread::Each(spread), right.rounding);
            Some(Expected { value, spread, single, rounding })
        }));
    }
}

/// Which row was read for each position of a step; those that are their own are left out.
type ReadMap = BTreeMap<usize, Content>;

/// Rows that are read in place of the sequence's own, read off the scores.
fn instead(
    evidence: &Evidence<'_>,
    attention: &Attention,
    steps: &[Recorded],
    visit: Visit<'_>,
) -> Result<(), ReplayError> {
    let maps: Option<Vec<ReadMap>> =
        steps.iter().map(|recorded| read_map(recorded, attention.scale)).collect();
    let Some(maps) = maps.filter(|maps| maps.iter().any(|map| !map.is_empty())) else {
        return Ok(());
    };
    let slots = maps.iter().enumerate().flat_map(|(step, map)| {
        map.iter()
            .map(move |(&position, content)| (Slot { step, position, head: 0 }, content.clone()))
    });
    let shape = Shape { heads: 1, dim: steps[0].dim };
    let text = read_as(evidence, shape, slots.collect());
    let graph = evidence.graph();
    let is_values = evidence.spec().stage == Stage::AttnOut;
    let Some(product) = evidence.nodes(|node| node.op == Op::MulMat).into_iter().find(|&id| {
        let cache = evidence.run.model.sites.specs()[attention.caches[usize::from(is_values)]].node;
        graph.node(id).source(0).map(|source| graph.root(source)) == Some(graph.root(cache))
    }) else {
        return Ok(());
    };
    let numbers: Vec<u32> = evidence.steps.iter().map(|step| step.observed.step).collect();
    let rows: Vec<BTreeMap<usize, Source>> = maps
        .iter()
        .zip(steps)
        .map(|(map, recorded)| {
            let source = |content: &Content| recorded.source(content, is_values);
            map.iter().filter_map(|(&at, content)| Some((at, source(content)?))).collect()
        })
        .collect();
    let [heads, dim] = [steps[0].kv_heads, steps[0].dim];
    let change = Change::Values(
        0,
        Rc::new(move |machine, own, ne| {
            let at = numbers.iter().position(|&number| number == machine.step)?;
            let cells = machine.extent.cells;
            let mut value = own.to_vec();
            let lies = |position: usize, head: usize, i: usize| {
                let (row, column) = if is_values { (i, position) } else { (position, i) };
                (head * ne[1] + row) * ne[0] + column
            };
            let wanted = if is_values { [cells, dim] } else { [dim, cells] };
            if ne[..3] != [wanted[0], wanted[1], heads] {
                return None;
            }
            for (&position, source) in &rows[at] {
                for (head, i) in (0..heads).flat_map(|head| (0..dim).map(move |i| (head, i))) {
                    value[lies(position, head, i)] = match source {
                        Source::Position(from) => own[lies(*from, head, i)],
                        Source::Outside(row) => row[head * dim + i],
                    };
                }
            }
            Some(value)
        }),
    );
    let tried = evidence.mistake(CauseKey::CacheSlot, text, &Edits::one(product, change))?;
    visit(tried.map(|tried| Tried { mistakes: 2, ..tried }));
    Ok(())
}

/// Where a row that is read in place of another comes from.
enum Source {
    /// The cache itself.
    Position(usize),
    /// What is not the sequence's: (Hk, D).
    Outside(Vec<f64>),
}

impl Recorded {
    /// The row that a content names.
    fn source(&self, content: &Content, is_values: bool) -> Option<Source> {
        if let Content::Row { position, .. } = content {
            return Some(Source::Position(*position));
        }
        let other = self.others.iter().find(|row| row.content() == *content)?;
        Some(Source::Outside(if is_values { other.value.clone() } else { other.key.clone() }))
    }
}

impl Row {
    fn content(&self) -> Content {
        let (position, head) = (self.position, 0);
        match self.of {
            Outside::Sequence(sequence) => Content::Neighbour { sequence, position, head },
            Outside::Rejected => Content::Removed { position, head, is_rejected: true },
            Outside::Padding => Content::Padding,
            Outside::Page => Content::PageEnd,
        }
    }
}

/// The row whose products with all queries are the scores of each position; `None` where one is not found.
fn read_map(recorded: &Recorded, scale: f64) -> Option<ReadMap> {
    /// Of the sizes of the terms of a product.
    const NEAR: f64 = 2e-6;
    let Recorded { tokens, heads, cells, .. } = *recorded;
    let width = recorded.kv_heads * recorded.dim;
    let gives = |row: &[f64], position: usize| {
        let first = cells - tokens;
        // Scores that a query does not see are nobody's.
        (position.saturating_sub(first)..tokens).all(|token| {
            (0..heads).all(|head| {
                let products = recorded.query(token, head).iter().zip(recorded.head_of(row, head));
                let (mut sum, mut sizes) = (0.0, 0.0);
                products.for_each(|(q, k)| {
                    sum += q * k;
                    sizes += (q * k).abs();
                });
                let score = recorded.scores[(token * heads + head) * cells + position];
                (scale * sum - score).abs() <= NEAR * scale.abs() * sizes
            })
        })
    };
    let own = |position: usize| &recorded.keys[position * width..(position + 1) * width];
    let mut map = ReadMap::new();
    for position in 0..cells {
        if gives(own(position), position) {
            continue;
        }
        let other = recorded.others.iter().find(|row| gives(&row.key, position));
        let content = other.map(Row::content).or_else(|| {
            let from = (0..cells).find(|&from| gives(own(from), position))?;
            Some(Content::Row { position: from, head: 0 })
        })?;
        map.insert(position, content);
    }
    Some(map)
}
