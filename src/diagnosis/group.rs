//! Guilty operations of one mistake as one finding, and what to call them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    blame::{Finding, Guilty, Verdict},
    cause::{Cause, Certainty},
    hypotheses::OF_VALUES,
    replay::{self, Operation},
};
use crate::{
    core::{arithmetic::Value, cause_key::CauseKey},
    graph::{ModelGraph, site::Stage},
};

/// Scores, softmax and weighted sum where they are one.
pub const ATTENTION: &str = "attention";
/// At most this many wordings of one mistake are listed; of more, one of those that differ in numbers alone.
const MOST_TEXTS: usize = 3;

/// Operations that a program computes by the same code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kin {
    Projections,
    Norms,
    Rotations,
    Caches,
    Attention,
    Residuals,
    One(Stage),
}

impl Kin {
    fn of(model: &ModelGraph, operation: Operation) -> Kin {
        match operation.stage {
            Stage::Q | Stage::K | Stage::V | Stage::OProj | Stage::Logits => Kin::Projections,
            Stage::FfnGate | Stage::FfnUp | Stage::FfnDown => Kin::Projections,
            Stage::QNorm | Stage::KNorm => Kin::One(Stage::QNorm),
            Stage::AttnNorm | Stage::FfnNorm | Stage::FinalNorm => Kin::Norms,
            Stage::QRope | Stage::KRope => Kin::Rotations,
            Stage::KCache | Stage::VCache => Kin::Caches,
            Stage::Scores | Stage::Probs | Stage::AttnOut => Kin::Attention,
            Stage::AttnResidual | Stage::LayerOut => Kin::Residuals,
            Stage::Other(_) if multiplies_a_weight(model, operation) => Kin::Projections,
            stage => Kin::One(stage),
        }
    }
}

fn multiplies_a_weight(model: &ModelGraph, operation: Operation) -> bool {
    let mut specs = model.sites.specs().iter();
    let spec = specs.find(|spec| (spec.layer, spec.stage) == (operation.layer, operation.stage));
    spec.is_some_and(|spec| model.graph.rounded_values(spec.node).contains(&Value::Inputs))
}

/// Guilty operations of one mistake together, in the order of the first of each.
pub fn group(model: &ModelGraph, guilty: Vec<Guilty>, verdict: Verdict) -> Vec<Finding> {
    let mut groups: Vec<Vec<Guilty>> = Vec::new();
    for one in guilty {
        match groups.iter_mut().find(|group| is_one_mistake(model, &group[0], &one)) {
            Some(group) => group.push(one),
            None => groups.push(vec![one]),
        }
    }
    let n_layer = model.sites.layers();
    groups.into_iter().map(|group| finding(n_layer, group, verdict)).collect()
}

/// Whether one mistake is likely to have made both wrong: it has the same name, in operations that a program
/// computes by the same code; numbers in it may follow the sizes of each.
fn is_one_mistake(model: &ModelGraph, first: &Guilty, next: &Guilty) -> bool {
    let [a, b] = [first, next].map(|one| &one.cause);
    let [of_a, of_b] = [first, next].map(|one| one.judged.operation);
    if a.certainty != b.certainty || a.is_convention() != b.is_convention() {
        return false;
    }
    if a.is_convention() || a.key == CauseKey::WeightDecoded {
        return a.text == b.text;
    }
    let kin = Kin::of(model, of_a);
    if kin != Kin::of(model, of_b) {
        return false;
    }
    match a.certainty {
        // Nothing but where it is tells one unknown mistake from another. Both caches are written by one kernel, and
        // all of an attention is often one.
        Certainty::Unknown => {
            of_a.stage == of_b.stage
                || matches!(kin, Kin::Caches | Kin::Attention)
                || first.judged.pattern == next.judged.pattern
        }
        _ => a.key == b.key,
    }
}

fn finding(n_layer: usize, group: Vec<Guilty>, verdict: Verdict) -> Finding {
    let operations: Vec<Operation> = group.iter().map(|one| one.judged.operation).collect();
    let sum = |of: &dyn Fn(&Guilty) -> u64| group.iter().map(of).sum::<u64>();
    let (elements, beyond) = (sum(&|one| one.judged.elements), sum(&|one| one.judged.beyond));
    let (explained, wrong) = (sum(&|one| one.cause.explained), sum(&|one| one.cause.wrong));
    let further =
        |a: &&Guilty, b: &&Guilty| a.judged.times_bound().total_cmp(&b.judged.times_bound());
    // Its index is told by the axes of the first.
    let stage = operations[0].stage;
    let alike = group.iter().filter(|one| one.judged.operation.stage == stage);
    let worst = alike.max_by(further).and_then(|one| one.judged.worst.clone());
    let mut spanned: Vec<Operation> =
        group.iter().flat_map(|one| one.judged.spanned.iter().copied()).collect();
    spanned.sort_by_cached_key(|operation| operation.result());
    spanned.dedup();
    let mut what = what(n_layer, &operations);
    // An attention that is one kernel has scores and probabilities within it.
    let fused = |operation: &Operation| {
        let within = [Stage::Scores, Stage::Probs].map(|stage| Operation { stage, ..*operation });
        operation.stage == Stage::AttnOut && within.iter().all(|one| spanned.contains(one))
    };
    if operations.iter().all(&fused) {
        what = what.replace(replay::name(Stage::AttnOut), ATTENTION);
    }
    let text = worded(n_layer, &group);
    let first = group.into_iter().next().expect("a group has a member");
    let stage = first.judged.operation.stage;
    if let Some(after) = first.after
        && !operations.iter().any(fused)
        && operations.iter().all(|operation| operation.stage == stage)
    {
        what = what.replacen(replay::name(stage), &between(after, first.judged.operation), 1);
    }
    Finding {
        verdict,
        what,
        operations,
        cause: Cause { text, explained, wrong, ..first.cause },
        elements,
        beyond,
        worst,
        pattern: first.judged.pattern,
        spanned,
        weights: Vec::new(),
    }
}

/// `between the layer's input and layer_out`: what was recorded before and after what was not.
fn between(after: Operation, operation: Operation) -> String {
    let (stage, result) = (operation.stage.name(), after.result());
    let before = match (after.layer, operation.layer) {
        (own, layer) if own == layer => after.stage.name(),
        (Some(own), Some(layer)) if own + 1 == layer => "the layer's input",
        (None, Some(0)) => "the layer's input",
        _ => &result,
    };
    format!("between {before} and {stage}")
}

/// The cause of a group's first operation, then of those where it reads otherwise.
fn worded(n_layer: usize, group: &[Guilty]) -> String {
    let mut texts: Vec<(&str, Vec<Operation>)> = Vec::new();
    for Guilty { judged, cause, .. } in group {
        // The operation says already that it is of the values.
        let own = cause.text.strip_prefix(OF_VALUES).unwrap_or(&cause.text);
        match texts.iter_mut().find(|(text, _)| [own, &*cause.text].contains(text)) {
            Some((_, operations)) => operations.push(judged.operation),
            None => texts.push((&cause.text, vec![judged.operation])),
        }
    }
    let mut parts = vec![texts[0].0.to_string()];
    let all = texts.len();
    if all > MOST_TEXTS {
        let mut seen = BTreeSet::new();
        texts.retain(|(text, _)| seen.insert(without_numbers(text)));
        texts.truncate(MOST_TEXTS);
    }
    for (text, operations) in &texts[1..] {
        parts.push(format!("in {}: {text}", what(n_layer, operations)));
    }
    if all > texts.len() {
        parts.push("and so on, with other numbers".to_string());
    }
    parts.join("; ")
}

fn without_numbers(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// `q and k rotation, all layers`; `final norm`.
fn what(n_layer: usize, operations: &[Operation]) -> String {
    let mut layers: BTreeMap<Stage, Vec<u32>> = BTreeMap::new();
    for operation in operations {
        layers.entry(operation.stage).or_default().extend(operation.layer);
    }
    let mut by_layers: Vec<(Vec<u32>, Vec<Stage>)> = Vec::new();
    for (stage, layers) in layers {
        match by_layers.iter_mut().find(|(same, _)| *same == layers) {
            Some((_, stages)) => stages.push(stage),
            None => by_layers.push((layers, vec![stage])),
        }
    }
    let part = |(layers, stages): &(Vec<u32>, Vec<Stage>)| {
        let names = joined_names(stages);
        match layer_phrase(layers, n_layer as u32) {
            Some(layers) => format!("{names}, {layers}"),
            None => names,
        }
    };
    by_layers.iter().map(part).collect::<Vec<_>>().join("; ")
}

/// `q and k rotation`, where the names end alike; else joined in full.
pub(super) fn joined_names(stages: &[Stage]) -> String {
    let names: Vec<&str> = stages.iter().map(|&stage| replay::name(stage)).collect();
    let halves: Vec<Option<(&str, &str)>> = names.iter().map(|name| name.split_once(' ')).collect();
    let end = halves[0].map(|(_, end)| end);
    let alike = end.is_some() && halves.iter().all(|half| half.map(|(_, end)| end) == end);
    let list = |words: &[&str]| match words {
        [one] => one.to_string(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
        [] => String::new(),
    };
    if alike {
        let starts: Vec<&str> = halves.iter().flatten().map(|(start, _)| *start).collect();
        format!("{} {}", list(&starts), end.unwrap_or_default())
    } else {
        list(&names)
    }
}

fn layer_phrase(layers: &[u32], n_layer: u32) -> Option<String> {
    let (first, last) = (*layers.first()?, *layers.last()?);
    let without_gap = (last - first) as usize + 1 == layers.len();
    Some(match layers.len() {
        1 => format!("layer {first}"),
        n if n == n_layer as usize => "all layers".to_string(),
        _ if without_gap => format!("layers {first}-{last}"),
        n if n > 6 => format!("{n} layers from {first} to {last}"),
        _ => {
            let names: Vec<String> = layers.iter().map(u32::to_string).collect();
            format!("layers {}", names.join(", "))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::replay::Judged;

    fn guilty(stage: Stage, layer: u32, key: CauseKey, text: &str) -> Guilty {
        let operation = Operation { layer: Some(layer), stage };
        let judged = Judged {
            operation,
            elements: 10,
            beyond: 5,
            worst: None,
            drift: 0.0,
            pattern: Some(format!("{stage:?}")),
            by_sums: None,
            spanned: Vec::new(),
        };
        let certainty =
            if key == CauseKey::Unknown { Certainty::Unknown } else { Certainty::Proven };
        let cause = Cause {
            key,
            text: text.to_string(),
            certainty,
            explained: 5,
            wrong: 5,
            also: Vec::new(),
            refuted: 0,
            signs: Vec::new(),
            declare: Vec::new(),
        };
        Guilty { judged, cause, after: None }
    }

    fn grouped(guilty: Vec<Guilty>) -> Vec<(String, String)> {
        let findings = group(&ModelGraph::default(), guilty, Verdict::EngineWrong);
        findings.into_iter().map(|finding| (finding.what, finding.cause.text)).collect()
    }

    #[test]
    fn one_mistake_in_all_projections_is_one_entry_though_its_numbers_follow_their_sizes() {
        use CauseKey::{InnerTruncated, RopeTheta};
        let found = grouped(vec![
            guilty(Stage::Q, 0, InnerTruncated, "first 192 of 224"),
            guilty(Stage::QRope, 0, RopeTheta, "theta 1"),
            guilty(Stage::FfnDown, 0, InnerTruncated, "first 448 of 480"),
            guilty(Stage::Q, 1, InnerTruncated, "first 192 of 224"),
        ]);
        let [projections, rotation] = &found[..] else { panic!("{found:?}") };
        assert!(projections.0.contains("q projection, layers 0-1"), "{projections:?}");
        let text = "first 192 of 224; in down projection, layer 0: first 448 of 480";
        assert_eq!(projections.1, text);
        assert_eq!(rotation.1, "theta 1");
    }

    #[test]
    fn unknown_mistakes_are_one_where_one_kernel_makes_them_or_the_pattern_is_the_same() {
        let unknown = |stage, layer| guilty(stage, layer, CauseKey::Unknown, "unknown");
        let of =
            |stages: [Stage; 2]| grouped(vec![unknown(stages[0], 0), unknown(stages[1], 1)]).len();
        assert_eq!(of([Stage::KCache, Stage::VCache]), 1);
        assert_eq!(of([Stage::Scores, Stage::AttnOut]), 1);
        assert_eq!(of([Stage::Q, Stage::Q]), 1);
        assert_eq!(of([Stage::Q, Stage::FfnDown]), 2);
        assert_eq!(of([Stage::Q, Stage::QRope]), 2);
    }

    #[test]
    fn of_many_wordings_those_that_differ_in_numbers_alone_are_not_repeated() {
        let key = CauseKey::CacheSlot;
        let slots = |layer| guilty(Stage::KCache, layer, key, &format!("slot {layer} is zero"));
        let mut all: Vec<Guilty> = (0..5).map(slots).collect();
        all.push(guilty(Stage::VCache, 5, key, "all slots are zero"));
        let [(_, text)] = &grouped(all)[..] else { panic!() };
        let expected = "slot 0 is zero; in v cache append, layer 5: all slots are zero; and so on, \
                        with other numbers";
        assert_eq!(text, expected);
    }
}
