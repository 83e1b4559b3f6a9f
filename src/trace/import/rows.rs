//! The arrays of each site: one that is the whole of it, or one for each of its tokens.

use std::collections::BTreeMap;

use super::{Array, DumpError, map::Reading};
use crate::{
    core::tensor::Tensor,
    graph::{
        SiteList,
        site::{Axis, Site},
    },
    trace::{Step, TraceReader},
};

/// What is known of each site while the arrays of a dump are looked at.
pub(super) struct Sources<'a> {
    /// Of the run that the dump is of.
    list: &'a SiteList,
    steps: &'a [Step],
    found: BTreeMap<Site, Source<'a>>,
}

/// The arrays of a site.
pub(super) enum Source<'a> {
    Whole(&'a Array, Reading),
    /// By the token's place in the step.
    Rows(BTreeMap<usize, (&'a Array, Reading)>),
}

impl<'a> Sources<'a> {
    pub fn new(reference: &'a TraceReader) -> Sources<'a> {
        let (list, steps) = (reference.list(), &reference.manifest().steps);
        Sources { list, steps, found: BTreeMap::new() }
    }

    /// Adds an array as its line says.
    ///
    /// # Errors
    /// The run has not that site or position, or another array is it already.
    pub fn add(&mut self, array: &'a Array, reading: Reading) -> Result<(), DumpError> {
        let wrong = |reason| Err(DumpError::Line { name: array.name.clone(), reason });
        let (mut site, mut row) = (reading.site, None);
        if let Some(position) = reading.position {
            let holds = |step: &Step| (step.first_position..step.positions()).contains(&position);
            let Some(step) = self.steps.iter().position(holds) else {
                return wrong(format!(
                    "is mapped to position {position}, which the run does not have"
                ));
            };
            site.step = step as u32;
            let last = position + 1 == self.steps[step].positions();
            match self.list.axes(site)[0] {
                Axis::Token => row = Some(position - self.steps[step].first_position),
                // A cache that grows: that of the last token is the whole.
                _ if !last => return Ok(()),
                _ => {}
            }
        }
        let has_step = (site.step as usize) < self.steps.len();
        if !has_step || self.list.get(site).is_none() {
            return wrong(format!("is mapped to {site}, which the reference's run does not have"));
        }
        let other = match (row, self.found.get_mut(&site)) {
            (Some(row), Some(Source::Rows(rows))) => {
                rows.insert(row, (array, reading)).map(|(other, _)| other.name.clone())
            }
            (_, Some(Source::Whole(other, _))) => Some(other.name.clone()),
            (None, Some(Source::Rows(rows))) => rows.values().next().map(|(a, _)| a.name.clone()),
            (Some(row), None) => {
                let rows = BTreeMap::from([(row, (array, reading))]);
                self.found.insert(site, Source::Rows(rows));
                None
            }
            (None, None) => {
                self.found.insert(site, Source::Whole(array, reading));
                None
            }
        };
        match other {
            Some(other) => wrong(format!("and {other} are both mapped to {site}")),
            None => Ok(()),
        }
    }

    /// The arrays of each site.
    ///
    /// # Errors
    /// A site has some of its tokens only.
    pub fn whole(self) -> Result<BTreeMap<Site, Source<'a>>, DumpError> {
        for (site, source) in &self.found {
            let Source::Rows(rows) = source else { continue };
            let step = &self.steps[site.step as usize];
            let missing = (0..step.tokens.len()).find(|row| !rows.contains_key(row));
            if let (Some(row), Some((array, _))) = (missing, rows.values().next()) {
                let position = step.first_position + row;
                let reason =
                    format!("is a row of {site}, but position {position} is not in the dump");
                return Err(DumpError::Line { name: array.name.clone(), reason });
            }
        }
        Ok(self.found)
    }
}

impl Source<'_> {
    /// The values in the site's own shape.
    pub fn read(&self, axes: &[Axis], shape: Vec<usize>) -> Result<Tensor, DumpError> {
        let data = match self {
            Source::Whole(array, reading) => values(array, reading, &shape)?,
            Source::Rows(rows) => {
                let mut data = Vec::with_capacity(shape.iter().product());
                for (array, reading) in rows.values() {
                    data.extend(row(array, reading, axes, &shape)?);
                }
                data
            }
        };
        Ok(Tensor::new(shape, data))
    }
}

/// The values of an array that is one token's.
pub(super) fn row(
    array: &Array,
    reading: &Reading,
    axes: &[Axis],
    shape: &[usize],
) -> Result<Vec<f32>, DumpError> {
    let mut own = shape.to_vec();
    own[0] = 1;
    let last = shape.len() - 1;
    let keys = shape[last];
    if axes.last() == Some(&Axis::Key) {
        // As many keys as the token sees, or more: later ones are masked.
        let there = reading.shape(array)?.iter().product::<usize>()
            / own[..last].iter().product::<usize>().max(1);
        own[last] = there.clamp(1, keys);
    }
    let values = values(array, reading, &own)?;
    if own[last] == keys {
        return Ok(values);
    }
    let padded = |row: &[f32]| [row, &vec![0.0; keys - row.len()]].concat();
    Ok(values.chunks(own[last]).flat_map(padded).collect())
}

/// An array's values in a shape of the site's axes, of which the first may be left out of its order.
fn values(array: &Array, reading: &Reading, shape: &[usize]) -> Result<Vec<f32>, DumpError> {
    let wrong = |reason| DumpError::Line { name: array.name.clone(), reason };
    let ordered = &shape[shape.len() - reading.order.axes()..];
    let shape_of_part = reading.shape(array)?;
    let mut data = array.read()?;
    if let Some(slice) = &reading.slice {
        data = slice.apply(data, &array.shape).map_err(wrong)?;
    }
    data = reading.order.apply(&data, &shape_of_part, ordered).map_err(wrong)?;
    if let Some(rows) = &reading.rows {
        let width = data.len() / shape[0];
        if rows.len() != shape[0] || rows.iter().any(|&row| row >= shape[0]) {
            return Err(wrong(format!("has rows {rows:?}, wanted {} below that", shape[0])));
        }
        data = rows.iter().flat_map(|&row| data[row * width..][..width].to_vec()).collect();
    }
    if reading.scale != 1.0 {
        data.iter_mut().for_each(|value| *value = (f64::from(*value) * reading.scale) as f32);
    }
    Ok(data)
}
