//! Which elements of a weight are not the file's.

use super::{held::Closeness, right::Search};

/// The elements that differ.
pub struct Differing {
    /// Row in the whole, column, held value and the file's.
    pub elements: Vec<(usize, usize, f32, f32)>,
    /// Elements that were looked at.
    pub of: usize,
}

/// The elements of a weight in the file's own form that are not the file's.
pub fn differing(search: &Search<'_>, closeness: Closeness) -> Differing {
    let mut elements = Vec::new();
    for (row, e) in search.held.each() {
        let t = search.view.row(row);
        let slack = closeness.of_row(t);
        for (col, (&e, &t)) in e.iter().zip(t).enumerate() {
            if !closeness.is(e, t, slack) {
                elements.push((row, col, e, t));
            }
        }
    }
    Differing { elements, of: search.held.values().len() }
}

impl Differing {
    /// Where they are: rows, columns, or a number of elements.
    pub fn place(&self, search: &Search<'_>) -> String {
        let held = search.held;
        let is_vector = held.cols == 1;
        let mut rows: Vec<usize> = self.elements.iter().map(|one| one.0).collect();
        rows.dedup();
        let mut cols: Vec<usize> = self.elements.iter().map(|one| one.1).collect();
        cols.sort_unstable();
        cols.dedup();
        let what = if is_vector { "elements" } else { "rows" };
        if !is_vector && rows.len() == held.at.len() && cols.len() < held.cols {
            return span("columns", &cols, held.cols);
        }
        if rows.len() < held.at.len() {
            // Between recorded rows nothing is known of a large weight.
            let known = held.at.len() == held.rows;
            let place = span(what, &rows, held.rows);
            let seen = format!("{place} ({} of {} that were recorded)", rows.len(), held.at.len());
            return if known { place } else { seen };
        }
        format!("{} of {} elements", self.elements.len(), self.of)
    }

    /// The element that is furthest off.
    pub fn worst(&self) -> Option<&(usize, usize, f32, f32)> {
        let off = |one: &(usize, usize, f32, f32)| {
            let off = (one.2 - one.3).abs();
            if off.is_nan() { f32::INFINITY } else { off }
        };
        self.elements.iter().max_by(|a, b| off(a).total_cmp(&off(b)))
    }
}

/// `rows 8-15 of 16`, of places that ascend.
pub fn span(what: &str, places: &[usize], of: usize) -> String {
    match (places, places.first(), places.last()) {
        ([one], ..) => format!("{} {one} of {of}", what.trim_end_matches('s')),
        (_, Some(first), Some(last)) if last - first + 1 == places.len() => {
            format!("{what} {first}-{last} of {of}")
        }
        (_, Some(first), Some(last)) => {
            format!("{} {what} from {first} to {last} of {of}", places.len())
        }
        _ => format!("no {what} of {of}"),
    }
}
