//! Outputs of a product that are the right ones of other rows of its weight, or of another weight that takes
//! the same input: how a fused, sharded or permuted weight was cut, read off column by column.

use super::Visit;
use crate::{
    core::cause_key::CauseKey,
    diagnosis::{
        Evidence, StepEvidence,
        cause::Rank,
        replay::{AsItIs, Expected, ReplayError, Spread},
    },
    graph::{NodeId, Op, SiteSpec},
};

/// Tokens that tell one output from another.
const LEAST_TOKENS: usize = 4;
/// Bounds by which a recorded value may miss the right one of another output, when it is sought.
const NEAR: f64 = 4.0;
/// Runs of rows that are named.
const NAMED: usize = 3;
/// The longest way from a site to its product.
const FAR: usize = 4;

/// Where an output comes from: a site by its number here, and the column in it.
type Origin = (usize, usize);

/// The outputs of a site's product and of those beside it.
struct Columns<'e> {
    /// The site's own first, then those that take the same input, by their places.
    places: Vec<usize>,
    /// What each must give, step by step.
    right: Vec<Vec<Expected<'e>>>,
    widths: Vec<usize>,
}

/// Products whose outputs are those of other rows.
pub fn rows(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let Some(columns) = columns(evidence)? else { return Ok(()) };
    let Some(origins) = origins(evidence, &columns) else { return Ok(()) };
    let is_own = origins.iter().all(|(source, _)| *source == 0);
    let key = if is_own { CauseKey::RowsPermuted } else { CauseKey::PartsLayout };
    let text = described(evidence, &columns, &origins);
    visit(evidence.predicted(key, text, Rank::Likeness, |step| {
        let at = evidence.index_of(step);
        Some(moved(&columns, &origins, at, &step.observed.piece.expected))
    }));
    Ok(())
}

/// A step's right results, each output from its origin.
fn moved<'e>(
    columns: &Columns<'_>,
    origins: &[Origin],
    step: usize,
    right: &Expected<'_>,
) -> Expected<'e> {
    let width = origins.len();
    let (n, rounding) = (right.value.len(), right.rounding);
    let of = |flat: usize| {
        let (source, column) = origins[flat % width];
        let from = &columns.right[source][step];
        (from, flat / width * columns.widths[source] + column)
    };
    let value = (0..n).map(&of).map(|(from, at)| from.value[at]).collect();
    let spread = (0..n).map(&of).map(|(from, at)| from.most_spread(at)).collect();
    let single = (0..n).map(of).map(|(from, at)| from.single_of(at)).collect();
    Expected { value, spread: Spread::Each(spread), single, rounding }
}

fn columns<'e>(evidence: &Evidence<'e>) -> Result<Option<Columns<'e>>, ReplayError> {
    let specs = evidence.run.model.sites.specs();
    let own = evidence.spec();
    let Some(input) = input(evidence, own) else { return Ok(None) };
    let beside = |place: &usize| {
        let spec = &specs[*place];
        *place != evidence.place
            && spec.layer == own.layer
            && self::input(evidence, spec) == Some(input)
    };
    let mut places = vec![evidence.place];
    places.extend((0..specs.len()).filter(beside));
    let tokens: usize = evidence.steps.iter().map(|step| step.machine.extent.tokens).sum();
    if tokens < LEAST_TOKENS {
        return Ok(None);
    }
    let (mut right, mut widths) = (Vec::new(), Vec::new());
    for &place in &places {
        let mut of_steps = Vec::with_capacity(evidence.steps.len());
        for step in &evidence.steps {
            let is_own = place == evidence.place;
            let cone = if is_own { step.cone.clone() } else { step.machine.cone(place) };
            let Some(expected) = step.machine.again(place, &cone, &AsItIs)? else {
                return Ok(None);
            };
            of_steps.push(expected);
        }
        let tokens = evidence.steps[0].machine.extent.tokens.max(1);
        widths.push(of_steps[0].value.len() / tokens);
        right.push(of_steps);
    }
    Ok(Some(Columns { places, right, widths }))
}

/// The input of the product that a site is made by.
fn input(evidence: &Evidence<'_>, spec: &SiteSpec) -> Option<NodeId> {
    let graph = evidence.graph();
    let mut id = graph.root(spec.node);
    for _ in 0..FAR {
        let node = graph.node(id);
        if node.op == Op::MulMat {
            evidence.weight_source(id).filter(|weight| weight.source == 0)?;
            return node.source(1).map(|input| graph.root(input));
        }
        let is_bias = node.op == Op::Add && evidence.weight_source(id).is_some();
        if !(node.op.is_layout() || is_bias) {
            return None;
        }
        id = graph.root(node.source(0)?);
    }
    None
}

/// The origin of every output; `None` where one has none, or all are where they should be.
fn origins(evidence: &Evidence<'_>, columns: &Columns<'_>) -> Option<Vec<Origin>> {
    let width = columns.widths[0];
    let most = |step: &&StepEvidence<'_>| step.machine.extent.tokens;
    let at = (0..evidence.steps.len()).max_by_key(|&at| most(&&evidence.steps[at]))?;
    let step = &evidence.steps[at];
    let tokens = step.machine.extent.tokens;
    let captured = &step.observed.piece.captured;
    let is_wrong =
        |column: usize| (0..tokens).any(|token| evidence.wrong[at][token * width + column]);
    // The outputs of the first token, by their values.
    let mut sorted: Vec<(f64, Origin)> = Vec::new();
    for (source, right) in columns.right.iter().enumerate() {
        let first = &right[at].value[..columns.widths[source]];
        sorted.extend(first.iter().enumerate().map(|(column, &x)| (x, (source, column))));
    }
    sorted.retain(|(x, _)| x.is_finite());
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let fits = |column: usize, (source, from): Origin| {
        let right = &columns.right[source][at];
        (0..tokens).all(|token| {
            let flat = token * columns.widths[source] + from;
            let off = f64::from(captured[token * width + column]) - right.value[flat];
            off.abs() <= NEAR * right.most_bound(flat)
        })
    };
    let largest = (0..width).map(|flat| columns.right[0][at].most_bound(flat));
    let window = NEAR * largest.fold(0.0, f64::max);
    let origin = |column: usize| {
        if !is_wrong(column) {
            return Some((0, column));
        }
        let x = f64::from(captured[column]);
        let from = sorted.partition_point(|(value, _)| *value < x - window);
        let near = sorted[from..].iter().take_while(|(value, _)| *value <= x + window);
        near.map(|(_, origin)| *origin).find(|&origin| fits(column, origin))
    };
    let origins: Vec<Origin> = (0..width).map(origin).collect::<Option<_>>()?;
    let is_moved = origins.iter().enumerate().any(|(column, &from)| from != (0, column));
    is_moved.then_some(origins)
}

/// Rows that follow one another with a step.
#[derive(Clone, Copy)]
struct Run {
    first: usize,
    origin: Origin,
    step: i64,
    count: usize,
}

/// `rows 0-63 are q 0-63, 64-95 k 0-31, ...`.
fn described(evidence: &Evidence<'_>, columns: &Columns<'_>, origins: &[Origin]) -> String {
    let names: Vec<String> = columns.places.iter().map(|&at| evidence.site_name(at)).collect();
    if let Some(text) = as_fused(columns, origins, &names) {
        return text;
    }
    if let Some(text) = in_turn(origins, &names) {
        return text;
    }
    let runs = runs(origins);
    let part = |run: &Run| {
        let (source, from) = run.origin;
        if run.count == 1 {
            return format!("{} is {} {from}", run.first, names[source]);
        }
        let last = run.first + run.count - 1;
        let end = from as i64 + run.step * (run.count as i64 - 1);
        let every = match run.step.abs() {
            1 => String::new(),
            step => format!(", every {step}"),
        };
        format!("{}-{last} are {} {from}-{end}{every}", run.first, names[source])
    };
    let named: Vec<String> = runs.iter().take(NAMED).map(part).collect();
    let more = runs.len().saturating_sub(NAMED);
    let rest = if more == 0 { String::new() } else { format!(", and {more} more runs") };
    let is_own = origins.iter().all(|(source, _)| *source == 0);
    let what = if is_own {
        "its rows are reordered"
    } else {
        "the fused weight is split differently: its rows"
    };
    format!("{what}: {}{rest}", named.join(", ")).replace("rows: ", "rows ")
}

/// Where rows of several weights take turns.
fn in_turn(origins: &[Origin], names: &[String]) -> Option<String> {
    const MOST: usize = 4;
    let of = |turns: usize| {
        let first = origins.get(..turns)?;
        let follows = |(at, &(source, column)): (usize, &Origin)| {
            (source, column) == (first[at % turns].0, first[at % turns].1 + at / turns)
        };
        origins.iter().enumerate().all(follows).then_some(first)
    };
    let first = (2..=MOST).find_map(of)?;
    let named: Vec<String> = first
        .iter()
        .map(|&(source, column)| format!("{} from {column} on", names[source]))
        .collect();
    Some(format!("rows of the fused weight are interleaved: {}", named.join(", ")))
}

/// Where rows are those of the weights one after another, at a stride.
fn as_fused(columns: &Columns<'_>, origins: &[Origin], names: &[String]) -> Option<String> {
    let mut order: Vec<usize> = (0..columns.places.len()).collect();
    order.sort_by_key(|&source| columns.places[source]);
    let offset = |source: usize| {
        let before = order.iter().take_while(|&&other| other != source);
        before.map(|&other| columns.widths[other]).sum::<usize>()
    };
    let place = |&(source, column): &Origin| (offset(source) + column) as i64;
    let (first, second) = (place(&origins[0]), place(origins.get(1)?));
    let stride = second - first;
    let is_straight = |(at, origin): (usize, &Origin)| place(origin) == first + stride * at as i64;
    if !origins.iter().enumerate().all(is_straight) {
        return None;
    }
    let of: Vec<&str> = order.iter().map(|&source| names[source].as_str()).collect();
    let rows = match stride {
        1 => format!("its rows are those from {first} on"),
        stride => format!("its rows are every {stride} from {first} on"),
    };
    Some(format!("{rows} of {} concatenated", of.join(", ")))
}

fn runs(origins: &[Origin]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (at, &(source, column)) in origins.iter().enumerate() {
        if let Some(run) = runs.last_mut()
            && run.origin.0 == source
        {
            let step = column as i64 - run.origin.1 as i64;
            if run.count == 1 {
                (run.step, run.count) = (step, 2);
                continue;
            }
            if step == run.step * run.count as i64 {
                run.count += 1;
                continue;
            }
        }
        runs.push(Run { first: at, origin: (source, column), step: 1, count: 1 });
    }
    // Two rows that do not follow one another are no run.
    let parted = |run: Run| {
        let is_pair = run.count == 2 && run.step.abs() != 1;
        let second = |run: &Run| {
            let (source, from) = run.origin;
            let origin = (source, (from as i64 + run.step) as usize);
            Run { first: run.first + 1, origin, step: 1, count: 1 }
        };
        if is_pair { vec![Run { step: 1, count: 1, ..run }, second(&run)] } else { vec![run] }
    };
    runs.into_iter().flat_map(parted).collect()
}
