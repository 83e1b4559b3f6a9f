//! Where an axis of one element lies in an array: as other steps prove it, or it is said that nothing does.

use std::collections::BTreeMap;

use super::{Alignment, Dump, DumpError, Match, Order};
use crate::{graph::site::Stage, trace::TraceReader};

/// Of each site's name and number of axes of its arrays, the order that all of them have; `None` where they
/// differ.
type ProvenOrders = BTreeMap<(Stage, usize), Option<Order>>;

/// Gives the arrays in which axes have one element the order of the others of their name.
///
/// # Errors
/// The reference has no shape for a site.
pub(super) fn settle(
    alignment: &mut Alignment,
    dump: &Dump,
    reference: &TraceReader,
) -> Result<(), DumpError> {
    let shapes: BTreeMap<&str, &[usize]> =
        dump.arrays.iter().map(|array| (array.name.as_str(), array.shape.as_slice())).collect();
    // Arrays of one token each have an order without its axis.
    let shape = |found: &Match| {
        let whole = *shapes.get(found.name.as_str()).filter(|_| found.arrays == 1)?;
        match &found.slice {
            Some(slice) => slice.shape(whole).ok(),
            None => Some(whole.to_vec()),
        }
    };
    let mut proven = ProvenOrders::new();
    for found in &alignment.matches {
        let Some(array) = shape(found) else { continue };
        if !reference.shape(found.site)?.contains(&1) {
            let order = proven.entry((found.site.stage, array.len()));
            let order = order.or_insert_with(|| Some(found.order.clone()));
            if order.as_ref() != Some(&found.order) {
                *order = None;
            }
        }
    }
    for found in &mut alignment.matches {
        let Some(array) = shape(found) else { continue };
        let ways = found.order.placements(&array, &reference.shape(found.site)?);
        let other = proven.get(&(found.site.stage, array.len())).and_then(Option::as_ref);
        if let Some(order) = other.filter(|order| ways.contains(order)) {
            found.order = order.clone();
        } else {
            if ways.len() > 1 {
                let ways: Vec<String> = ways.iter().map(|order| format!("\"{order}\"")).collect();
                found.note = Some(format!("axes of 1 may be {}", ways.join(" or ")));
            }
            found.order = ways[0].clone();
        }
    }
    Ok(())
}
