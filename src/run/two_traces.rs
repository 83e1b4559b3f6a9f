//! The comparison of two recorded sides.

use std::{sync::Arc, thread};

use crate::{
    compare::{
        RowTokens, SiteFilter, channel,
        verdict::{Rule, SiteReport, judge},
    },
    core::{floor::Floor, task::first_position},
    graph::site::Site,
    run::{
        SeenKeys,
        experts::{InOrder, OtherExperts, SlotOrders},
    },
    trace::{TraceError, TraceReader, feed},
};

/// Feeds both traces through the comparison, a tensor at a time; also which tokens go to other experts.
pub fn judge_traces(
    engine: &TraceReader,
    reference: &TraceReader,
    sites: &[Site],
    filter: SiteFilter,
    floor: &Floor,
    rule: Rule,
) -> Result<(Vec<SiteReport>, OtherExperts), TraceError> {
    let prompt = reference.manifest().steps[0].tokens.len();
    let (filter, list, seen) = (Arc::new(filter), reference.list(), SeenKeys::of(reference)?);
    let orders = SlotOrders::of(engine, reference, list)?;
    let (engine_sink, engine_side) = channel(Arc::clone(&filter), 0);
    let mut engine_sink = InOrder { inner: engine_sink, orders: &orders };
    let (mut reference_sink, reference_side) = channel(filter, 0);
    thread::scope(|scope| {
        let from_engine = scope.spawn(move || feed(engine, &mut engine_sink));
        let from_reference = scope.spawn(move || feed(reference, &mut reference_sink));
        let tokens = |site: Site| RowTokens {
            axes: Some(list.axes(site)),
            seen: seen.get(site),
            ..first_position(prompt, site.step).into()
        };
        let sides = (engine_side, reference_side);
        let reports = judge(sites, sides, floor, rule, &tokens, &mut |_| {});
        for fed in [from_engine.join(), from_reference.join()] {
            fed.unwrap_or_else(|payload| std::panic::resume_unwind(payload))?;
        }
        Ok((reports, orders.others.clone()))
    })
}
