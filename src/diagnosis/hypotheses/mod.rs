//! The hypotheses by the operations that they may explain: a family a file.

mod activation;
mod added;
mod attention;
mod cache;
mod decoded;
mod elementwise;
mod embedding;
mod expert_map;
mod experts;
mod frequencies;
mod fused;
mod grid;
mod keys;
mod least_squares;
mod likeness;
mod mapped;
mod near;
mod norm;
mod online;
mod outside;
mod parts;
mod positions;
mod product;
mod quantised;
mod recurrent;
mod reduced;
mod reordered;
mod rope;
mod rounded;
mod rows;
mod slots;
mod softmax;
mod split;
mod summed;

pub use attention::OF_VALUES;
pub use cache::found;
pub use decoded::misread;
pub use slots::read_off_unknown;

use crate::diagnosis::{Evidence, cause::Tried, reading::Reading, replay::ReplayError};

/// Where the element of a place comes from, given how many there are: (place, count).
type Order = fn(usize, usize) -> usize;
/// A number changed.
type Scalar = fn(f64) -> f64;
/// A row changed.
type Row = fn(&mut [f64]);

/// Takes what was tried.
pub type Visit<'v> = &'v mut dyn FnMut(Option<Tried>);

type Family = fn(&Evidence<'_>, Visit<'_>) -> Result<(), ReplayError>;

/// The families; each finds its operations among the nodes that make a site.
const FAMILIES: [Family; 33] = [
    |evidence, visit| {
        cache::caches(evidence, visit);
        Ok(())
    },
    |evidence, visit| {
        quantised::caches(evidence, visit);
        Ok(())
    },
    |evidence, visit| {
        slots::contents(evidence, visit);
        Ok(())
    },
    |evidence, visit| {
        added::sums(evidence, visit);
        Ok(())
    },
    |evidence, visit| {
        grid::grids(evidence, visit);
        Ok(())
    },
    |evidence, visit| {
        reordered::layouts(evidence, visit);
        Ok(())
    },
    reduced::sums,
    embedding::lookups,
    norm::norms,
    product::products,
    decoded::decoded,
    mapped::rows,
    summed::inputs,
    rounded::values,
    rounded::between,
    rounded::caches,
    rope::rotations,
    positions::used,
    frequencies::used,
    attention::products,
    softmax::attention,
    keys::weighed,
    outside::read,
    online::tiles,
    fused::attentions,
    activation::functions,
    elementwise::operations,
    experts::mixtures,
    expert_map::mixtures,
    recurrent::recurrences,
    parts::parts,
    rows::of_others,
    likeness::likenesses,
];

/// What can be read off a wrong result and drawn.
pub fn readings(evidence: &Evidence<'_>) -> Result<Vec<Reading>, ReplayError> {
    let found = [
        positions::read_off(evidence)?,
        keys::read_off(evidence),
        slots::contents_of_slots(evidence),
    ];
    Ok(found.into_iter().flatten().collect())
}

/// Every hypothesis that applies to a site, or the only one that is asked for.
pub fn all(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let is_asked =
        |family: &usize| evidence.only.as_ref().is_none_or(|only| only.family == *family);
    for family in (0..FAMILIES.len()).filter(is_asked) {
        let with_family = |tried: Tried| Tried { family, ..tried };
        FAMILIES[family](evidence, &mut |tried| visit(tried.map(with_family)))?;
    }
    Ok(())
}
