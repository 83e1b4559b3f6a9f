//! The checks that are usually made instead, judged on the same runs.

use std::collections::BTreeMap;

use firstdiff::{
    compare::compare,
    core::{
        floor::SiteFloor,
        sink::{Sink, Stopped},
        task::first_position,
        tensor::Tensor,
    },
    engine::EngineSpec,
    graph::site::{Site, Stage},
    run::{
        Finished,
        baseline::{self, Baseline},
        run_engine,
    },
};

use crate::{Result, bench::Bench};

/// The checks in the order of [`caught`]: a column's title, and when it speaks.
pub const CHECKS: [(&str, &str); 5] = [
    ("norms", "the norm of a tensor is off by more than 1 %"),
    ("cosine", "the cosine of a step's logits is below 0.999"),
    ("argmax", "a step's most likely token changes"),
    ("first 8", "one of a tensor's first 8 values is off by more than 0.1 % of its row's largest"),
    ("token 0", "the prompt's first token, compared as firstdiff does, is beyond the floor"),
];

const NORM_TOLERANCE: f64 = 0.01;
const LEAST_COSINE: f64 = 0.999;
const FIRST_VALUES: usize = 8;
const FIRST_VALUES_TOLERANCE: f64 = 1e-3;

/// Keeps every tensor.
#[derive(Default)]
pub struct Keep(BTreeMap<Site, Tensor>);

impl Sink for Keep {
    fn wants(&self, _: Site) -> bool {
        true
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> std::result::Result<(), Stopped> {
        self.0.insert(site, tensor);
        Ok(())
    }
}

/// The reference's tensors, which are the same for every fault.
pub fn reference_side(bench: &Bench, baseline: &Baseline) -> Result<Keep> {
    let mut keep = Keep::default();
    let mut forced = baseline.forced().into_iter();
    baseline::decode(&bench.reference, bench.task(), &mut keep, Default::default(), |_| {
        forced.next()
    })?;
    Ok(keep)
}

/// Which of the checks notice that an engine is wrong.
pub fn caught(
    bench: &Bench,
    engine: &EngineSpec,
    finished: &Finished,
    reference: &Keep,
) -> Result<[bool; CHECKS.len()]> {
    let mut keep = Keep::default();
    let mut engine = engine.build(&bench.model, bench.task())?;
    run_engine(&mut engine, &finished.baseline.steps, &mut keep)?;
    let differences = || {
        let of = |report: &firstdiff::compare::verdict::SiteReport| {
            Some((report.site, report.difference.clone()?))
        };
        finished.sites.iter().filter_map(of)
    };
    // A NaN is off too: hence the negations.
    let is_close = |ratio: f64| (ratio - 1.0).abs() <= NORM_TOLERANCE;
    let norms = differences().any(|(_, difference)| !is_close(difference.norm_ratio));
    let cosine = differences().any(|(site, difference)| {
        site.stage == Stage::Logits && !matches!(difference.cosine, LEAST_COSINE..)
    });
    let token = |choice: &Option<firstdiff::core::sink::Choice>| choice.map(|choice| choice.token);
    let tokens = |choices: &[Option<firstdiff::core::sink::Choice>]| -> Vec<Option<i32>> {
        choices.iter().map(token).collect()
    };
    let argmax = tokens(&finished.engine_choices) != tokens(&finished.baseline.choices);
    let first_8 = keep.0.iter().any(|(&site, tensor)| {
        reference.0.get(&site).is_some_and(|right| first_values_differ(bench, site, tensor, right))
    });
    // The first element beyond tolerance in row-major order is in row 0 if any is.
    let token_0 = differences().any(|(site, difference)| {
        site.step == 0 && difference.first.is_some_and(|first| first.index[0] == 0)
    });
    Ok([norms, cosine, argmax, first_8, token_0])
}

fn first_values_differ(bench: &Bench, site: Site, tensor: &Tensor, right: &Tensor) -> bool {
    if tensor.shape != right.shape {
        return true;
    }
    let first = first_position(bench.prompt.len(), site.step);
    let floor = SiteFloor { elementwise: FIRST_VALUES_TOLERANCE, relative_l2: 1.0 };
    // The first element beyond, in row-major order.
    let element = compare(site, tensor, right, first.into(), floor, 1.0).first;
    let flat = |index: &[usize]| {
        index.iter().zip(&tensor.shape).fold(0, |flat, (index, length)| flat * length + index)
    };
    element.is_some_and(|element| flat(&element.index) < FIRST_VALUES)
}
