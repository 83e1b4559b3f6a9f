//! The comparison of two recorded sides.

use std::{borrow::Cow, sync::Arc, thread};

use crate::{
    compare::{
        SiteFilter, channel,
        verdict::{Outcome, Rule, SiteReport, judge},
    },
    core::{
        floor::{Floor, SiteFloor},
        sink::{Sink, Stopped},
        tensor::Tensor,
    },
    graph::site::Site,
    run::{
        SeenKeys,
        experts::{InOrder, OtherExperts, SlotOrders},
        pairing::Pairing,
    },
    trace::TraceError,
};

/// Feeds both traces through the comparison, a tensor at a time; also which tokens go to other experts.
pub fn judge_traces(
    pairing: &Pairing<'_>,
    sites: &[Site],
    filter: SiteFilter,
    floor: &Floor,
    rule: Rule,
) -> Result<(Vec<SiteReport>, OtherExperts), TraceError> {
    let reference = pairing.reference;
    let (filter, list, seen) = (Arc::new(filter), reference.list(), SeenKeys::of(reference)?);
    let orders = SlotOrders::of(pairing, list)?;
    let floor = of_rows(pairing, sites, floor);
    let (engine_sink, engine_side) = channel(Arc::clone(&filter), 0);
    let mut engine_sink = InOrder { inner: engine_sink, orders: &orders };
    let (mut reference_sink, reference_side) = channel(filter, 0);
    thread::scope(|scope| {
        let from_engine =
            scope.spawn(move || feed(sites, &mut engine_sink, |site| pairing.engine(site)));
        let from_reference =
            scope.spawn(move || feed(sites, &mut reference_sink, |site| pairing.reference(site)));
        let tokens = |site: Site| pairing.row_tokens(&seen, site);
        let sides = (engine_side, reference_side);
        let mut reports = judge(sites, sides, &floor, rule, &tokens, &mut |_| {});
        for fed in [from_engine.join(), from_reference.join()] {
            fed.unwrap_or_else(|payload| std::panic::resume_unwind(payload))?;
        }
        for report in &mut reports {
            report.rows = pairing.partly(report.site);
            if let (Outcome::Unmeasured(_), Some(why)) =
                (&report.outcome, pairing.missing(report.site))
            {
                report.outcome = why.clone();
            }
        }
        Ok((reports, orders.others.clone()))
    })
}

/// Puts the sites of a side into a sink, in order.
fn feed(
    sites: &[Site],
    sink: &mut dyn Sink,
    tensor: impl Fn(Site) -> Result<Option<Tensor>, TraceError>,
) -> Result<(), TraceError> {
    for &site in sites {
        if !sink.wants(site) {
            continue;
        }
        let Some(tensor) = tensor(site)? else { continue };
        // A receiver that has seen enough is no error of this side.
        if let Err(Stopped) = sink.put(site, tensor) {
            break;
        }
    }
    Ok(())
}

/// The floors of sites that are compared in some rows only. An element's is the largest of all rows, and so
/// holds for any of them. A relative L2 was measured over all rows together: of some it is at most the root
/// of a row's length times an element's, as a row's norm is at least its largest element.
fn of_rows<'f>(pairing: &Pairing<'_>, sites: &[Site], floor: &'f Floor) -> Cow<'f, Floor> {
    let mut changed = Cow::Borrowed(floor);
    for &site in sites {
        let Some(listed) = pairing.partly(site).and_then(|_| pairing.reference.list().get(site))
        else {
            continue;
        };
        let Some(&SiteFloor { elementwise, relative_l2 }) = floor.0.get(&site) else { continue };
        let step = &pairing.reference.manifest().steps[site.step as usize];
        let width: usize = listed.shape(step.tokens.len(), step.positions())[1..].iter().product();
        let relative_l2 = relative_l2.max(elementwise * (width as f64).sqrt());
        changed.to_mut().0.insert(site, SiteFloor { elementwise, relative_l2 }.capped());
    }
    changed
}
