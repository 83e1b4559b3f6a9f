//! Several faults at once: is each of them named?

use std::collections::BTreeMap;

use firstdiff::engine::fault::{self, Fault};

use crate::{
    Progress, Result,
    bench::{Bench, described, faulty, findings, findings_on, operation_of},
};

/// Pairs and triples. The first four are of one operation, the next three of one kernel file.
const SETS: [&[&str]; 14] = [
    &["qkv-bias-zero", "wq-transposed"],
    &["rope-pairs-interleaved", "rope-base-1e4"],
    &["rope-pairs-interleaved", "rope-position-plus-one"],
    &["kv-head-modulo", "scale-missing"],
    &["softmax-temperature", "values-from-keys"],
    &["mask-off-by-one", "out-heads-reversed"],
    &["kv-head-1-unwritten", "v-cache-slot-plus-one"],
    &["norm-eps-1e-2", "ffn-down-zero"],
    &["k-bias-of-v", "v-cache-heads-swapped"],
    &["attn-residual-missing", "gelu-for-silu"],
    &["embd-scaled", "final-norm-missing"],
    &["wo-leading-dimension", "ffn-residual-missing"],
    &["qkv-bias-zero", "rope-base-1e4", "scale-squared"],
    &["wv-inner-half", "window-16", "gate-up-swapped"],
];

/// Faults planted together.
pub struct Set {
    pub names: String,
    /// Each fault, and whether it was named.
    pub members: Vec<(&'static str, bool)>,
    /// All that was found.
    pub found: Vec<String>,
}

pub fn run(bench: &Bench, progress: &mut Progress) -> Result<Vec<Set>> {
    let mut alone = BTreeMap::new();
    let mut sets = Vec::new();
    for set in SETS {
        let names = set.join(" + ");
        if !progress.wants(&names) {
            continue;
        }
        let faults = set.iter().map(|name| fault::find(name).ok_or(format!("no fault {name}")));
        let faults = faults.collect::<std::result::Result<Vec<_>, _>>()?;
        let finished = bench.run(&faulty(&faults))?;
        let mut members = Vec::new();
        for fault in faults {
            let operation = operation_of(fault);
            let on: Vec<_> = findings_on(&finished, operation).collect();
            let mut named = on.iter().any(|finding| finding.cause.key == fault.cause);
            if !named {
                // Two mistakes in one operation have the key of one of them, and the words of both.
                let words = words_alone(bench, fault, &mut alone)?;
                named = on.iter().any(|finding| finding.cause.text.contains(&words));
            }
            members.push((fault.name, named));
        }
        let found = findings(&finished).iter().map(described).collect();
        sets.push(Set { names, members, found });
    }
    Ok(sets)
}

/// How the cause of a fault reads where it is the only one.
fn words_alone(
    bench: &Bench,
    fault: &'static Fault,
    known: &mut BTreeMap<&'static str, String>,
) -> Result<String> {
    if let Some(words) = known.get(fault.name) {
        return Ok(words.clone());
    }
    let finished = bench.run(&faulty(&[fault]))?;
    let operation = operation_of(fault);
    let finding = findings_on(&finished, operation).find(|f| f.cause.key == fault.cause);
    // Nothing contains these words.
    let words = finding.map_or("\0".to_string(), |finding| finding.cause.text.clone());
    known.insert(fault.name, words.clone());
    Ok(words)
}
