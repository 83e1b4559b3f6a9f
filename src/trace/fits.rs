//! What a tensor of a wrong shape may be.

use crate::graph::{
    SiteList, Size,
    site::{Axis, Site, Stage},
};

/// The layout in which a wrong shape would fit, in words that follow the two shapes; empty if none.
pub(super) fn fits(site: Site, found: &[usize], expected: &[usize], list: &SiteList) -> String {
    let own_axes = list.axes(site);
    let axes: Vec<&str> = own_axes.iter().map(|axis| axis.name()).collect();
    let own = axes.join(", ");
    let elements = |shape: &[usize]| shape.iter().fold(1usize, |all, &n| all.saturating_mul(n));
    if let Some(order) = permutation(found, expected) {
        let order: Vec<&str> = order.into_iter().map(|axis| axes[axis]).collect();
        return format!(" which fits as ({}): write it as ({own})", order.join(", "));
    }
    if elements(found) == elements(expected) {
        return format!(" which has as many elements: give it as ({own})");
    }
    let (rows, rest) =
        (found.first().copied().unwrap_or(0), elements(found.get(1..).unwrap_or(&[])));
    let same_row = rest == elements(&expected[1..]);
    if site.stage == Stage::Logits && *found == expected[1..] {
        return " which is one token's: record it as one row".into();
    }
    if matches!(site.stage, Stage::Q | Stage::K | Stage::V) && Some(rest) == fused(site, list) {
        return " which fits a fused qkv: write q, k and v of it".into();
    }
    let axis = axes[0];
    match (same_row, rows) {
        (true, rows) if rows + 1 == expected[0] => {
            let early = match own_axes[0] {
                Axis::Position => ": it was recorded before this step's were added",
                _ => "",
            };
            format!(" which is one {axis} too few{early}")
        }
        (true, rows) if rows == expected[0] + 1 => format!(" which is one {axis} too many"),
        (true, rows) if rows > expected[0] => {
            format!(" which has room for more {axis}s: write the first {}", expected[0])
        }
        _ => String::new(),
    }
}

/// Elements that q, k and v of a token have together.
fn fused(site: Site, list: &SiteList) -> Option<usize> {
    let width = |stage: Stage| {
        let sizes = list.get(Site { stage, ..site })?.sizes.get(1..)?;
        let fixed = |size: &Size| usize::try_from(size.fixed).ok();
        sizes.iter().map(fixed).try_fold(1usize, |all, n| all.checked_mul(n?))
    };
    width(Stage::Q)?.checked_add(width(Stage::K)?)?.checked_add(width(Stage::V)?)
}

/// Which axis of the expected shape each of the found one is, where they are the same in another
/// order.
fn permutation(found: &[usize], expected: &[usize]) -> Option<Vec<usize>> {
    let mut left: Vec<usize> = (0..expected.len()).collect();
    let mut order = Vec::new();
    for &n in found {
        let at = left.iter().position(|&axis| expected[axis] == n)?;
        order.push(left.remove(at));
    }
    left.is_empty().then_some(order)
}
