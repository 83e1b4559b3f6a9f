//! What a replay shows: the error of every result of every step, and pictures of the tensors that matter.
//!
//! It is filled on the way, as the replay computes each result, and only where somebody wants to look.

use std::{cmp::Ordering, collections::BTreeMap};

use super::{
    reading::Reading,
    replay::{GraphRun, Machine, Observed, Operation, wrong_elements},
};
use crate::{
    compare::{Grid, Picture, Pixel},
    core::tensor::Tensor,
    graph::{
        SiteSpec,
        site::{Axis, Site, Stage},
    },
};

/// Pixels down and across of the first pictures of wrong results, of more of them, and of right ones; and how
/// many are taken of each.
const SIZES: [([usize; 2], usize); 3] = [([48, 128], 48), ([24, 64], 400), ([12, 32], 2048)];
/// Results that something is read off.
const MOST_READINGS: usize = 16;
/// The elements that are furthest off and are named.
const WORST: usize = 8;

/// A site of the graph.
#[derive(Clone, Debug)]
pub struct AlbumSite {
    pub layer: Option<u32>,
    pub stage: Stage,
    /// The operation that makes it, as ggml names it.
    pub op: String,
    pub weight: Option<String>,
    /// Tensors that it is computed from, by their names.
    pub inputs: Vec<String>,
    pub axes: Vec<Axis>,
}

/// The verdict of one step on one result.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResultError {
    /// Elements that were judged, and those beyond their bounds.
    pub elements: u64,
    pub beyond: u64,
    /// The error of the worst element in units of its bound.
    pub times_bound: f64,
}

/// An element far off.
#[derive(Clone, Debug)]
pub struct FarElement {
    pub flat: usize,
    pub engine: f32,
    /// What it must be, and how far rounding may take it; NaN where nothing was replayed.
    pub exact: f64,
    pub bound: f64,
    pub reference: Option<f32>,
    /// In bounds, and in floors.
    pub added: Option<f64>,
    pub inherited: Option<f64>,
}

/// A tensor of a step, as it is shown.
#[derive(Clone, Debug)]
pub struct Shot {
    pub shape: Vec<usize>,
    pub axes: Vec<Axis>,
    /// The position of the step's first token.
    pub first_position: usize,
    /// The token of each row; `None` where every token has one.
    pub rows: Option<Vec<usize>>,
    pub picture: Picture,
    /// The worst first.
    pub far: Vec<FarElement>,
    /// Of each axis, the share of wrong elements at each index; empty where none are wrong.
    pub shares: Vec<Vec<f32>>,
}

impl Shot {
    /// Whether it shows this tensor, and not the same with its rows or slots in another order.
    fn is_of(&self, tensor: &Tensor) -> bool {
        let is_same = |pixel: &Pixel| pixel.engine.to_bits() == tensor.data[pixel.flat].to_bits();
        self.shape == tensor.shape && self.picture.pixels.iter().flatten().all(is_same)
    }
}

/// Pictures and errors of one side.
#[derive(Clone, Debug, Default)]
pub struct Album {
    /// In the order of the graph.
    pub sites: Vec<AlbumSite>,
    /// By the steps of the side.
    pub results: BTreeMap<Site, ResultError>,
    pub shots: BTreeMap<Site, Shot>,
    /// Tensors beside the reference's, by the steps of the reference, where the replay has no picture of them.
    pub beside: BTreeMap<Site, Shot>,
    /// What was read off wrong results.
    pub readings: Vec<(Operation, Reading)>,
    /// How many pictures of each size were taken.
    taken: [usize; SIZES.len()],
}

impl Album {
    /// Forgets what was shown, and takes the sites of a graph.
    pub(super) fn begin(&mut self, run: GraphRun<'_>) {
        let site = |spec: &SiteSpec| AlbumSite {
            layer: spec.layer,
            stage: spec.stage,
            op: spec.op.name().to_string(),
            weight: spec.weight.clone(),
            inputs: spec.inputs.clone(),
            axes: spec.axes.iter().map(|axis| axis.axis).collect(),
        };
        *self = Album::default();
        self.sites = run.model.sites.specs().iter().map(site).collect();
    }

    /// Takes a result with what it must be.
    pub(super) fn take(&mut self, machine: &Machine<'_>, observed: &Observed<'_>) {
        let spec = &machine.run.model.sites.specs()[observed.place];
        let (site, piece) = (spec.site(observed.step), &observed.piece);
        let n = piece.captured.len();
        let errors: Vec<Option<f64>> =
            (0..n).map(|i| piece.expected.times_bound(i, piece.captured[i])).collect();
        let mut own = ResultError::default();
        for error in errors.iter().flatten() {
            own.elements += 1;
            own.beyond += u64::from(*error > 1.0);
        }
        let far = furthest(&errors, if own.beyond > 0 { WORST } else { 1 });
        // Far from the bound an error is only known to be so.
        let exactly = |flat: usize| {
            let recorded = piece.captured[flat];
            let error = || piece.expected.exact_times_bound(flat, recorded);
            if recorded.is_finite() { error() } else { f64::INFINITY }
        };
        own.times_bound = far.iter().map(|&flat| exactly(flat)).fold(0.0, f64::max);
        self.results.insert(site, own);
        let Some(most) = self.size(own.beyond > 0) else { return };
        let axes: Vec<Axis> = spec.axes.iter().map(|axis| axis.axis).collect();
        let worst = far.first().copied().unwrap_or(0);
        let grid = Grid::of(&axes, &observed.shape, worst, most);
        let pixel = |flat: usize, added: Option<f64>| Pixel {
            flat,
            engine: piece.captured[flat],
            exact: piece.expected.value[flat],
            reference: None,
            added: added.map(|_| exactly(flat)),
            inherited: None,
        };
        let element = |flat: usize| FarElement {
            flat,
            engine: piece.captured[flat],
            exact: piece.expected.value[flat],
            bound: piece.expected.bound(flat),
            reference: None,
            added: Some(exactly(flat)),
            inherited: None,
        };
        let shares = if own.beyond > 0 {
            shares(&observed.shape, &wrong_elements(piece))
        } else {
            Vec::new()
        };
        let shot = Shot {
            shape: observed.shape.clone(),
            axes,
            first_position: machine.first_position,
            rows: None,
            picture: Picture::of(grid, &|flat| errors[flat], &pixel),
            far: far.into_iter().map(element).collect(),
            shares,
        };
        self.shots.insert(site, shot);
    }

    /// Whether a tensor has a picture, or room for one.
    pub fn has_room(&self, site: Site, is_wrong: bool, same_steps: bool) -> bool {
        (same_steps && self.shots.contains_key(&site)) || self.next_size(is_wrong).is_some()
    }

    /// How large the next picture may be; `None` where there is no room for it.
    fn size(&mut self, is_wrong: bool) -> Option<[usize; 2]> {
        let at = self.next_size(is_wrong)?;
        self.taken[at] += 1;
        Some(SIZES[at].0)
    }

    fn next_size(&self, is_wrong: bool) -> Option<usize> {
        let first = if is_wrong { 0 } else { SIZES.len() - 1 };
        (first..SIZES.len()).find(|&at| self.taken[at] < SIZES[at].1)
    }

    /// Whether more can be read off: what the first results show, later ones mostly repeat.
    pub(super) fn has_room_to_read(&self) -> bool {
        self.readings.len() < MOST_READINGS
    }

    /// Takes what was read off a result.
    pub(super) fn read_off(&mut self, operation: Operation, readings: Vec<Reading>) {
        self.readings.extend(readings.into_iter().map(|reading| (operation, reading)));
    }

    /// Adds the reference's tensor of a site of one of its steps. `distances` has that of each element in floors;
    /// `same_steps` says whether the steps are the side's own.
    pub fn add_reference(&mut self, site: Site, compared: Compared<'_>, same_steps: bool) {
        let Compared { engine, reference, distances, is_diverged, .. } = compared;
        let shot = self.shots.get_mut(&site).filter(|_| same_steps);
        if let Some(shot) = shot.filter(|shot| shot.is_of(engine)) {
            shot.picture.add_reference(&reference.data, &|flat| distances[flat]);
            for far in &mut shot.far {
                far.reference = Some(reference.data[far.flat]);
                far.inherited = distances[far.flat];
            }
            return;
        }
        let Some(most) = self.size(is_diverged) else { return };
        let far = furthest(distances, if is_diverged { WORST } else { 1 });
        let grid = Grid::of(compared.axes, &engine.shape, far.first().copied().unwrap_or(0), most);
        let pixel = |flat: usize, inherited: Option<f64>| Pixel {
            flat,
            engine: engine.data[flat],
            exact: f64::NAN,
            reference: Some(reference.data[flat]),
            added: None,
            inherited,
        };
        let element = |flat: usize| FarElement {
            flat,
            engine: engine.data[flat],
            exact: f64::NAN,
            bound: f64::NAN,
            reference: Some(reference.data[flat]),
            added: None,
            inherited: distances[flat],
        };
        let wrong = |distance: &Option<f64>| distance.is_some_and(|d| d > compared.factor);
        let wrong: Vec<bool> = distances.iter().map(wrong).collect();
        let shares = if wrong.contains(&true) { shares(&engine.shape, &wrong) } else { Vec::new() };
        let shot = Shot {
            shape: engine.shape.clone(),
            axes: compared.axes.to_vec(),
            first_position: compared.first_position,
            rows: compared.rows.map(<[usize]>::to_vec),
            picture: Picture::of(grid, &|flat| distances[flat], &pixel),
            far: far.into_iter().map(element).collect(),
            shares,
        };
        self.beside.insert(site, shot);
    }
}

/// A tensor of both sides, of the same shape.
#[derive(Clone, Copy)]
pub struct Compared<'a> {
    pub engine: &'a Tensor,
    pub reference: &'a Tensor,
    /// Row-major, in floors; `None` where an element does not count.
    pub distances: &'a [Option<f64>],
    /// Floors that are allowed.
    pub factor: f64,
    pub is_diverged: bool,
    pub axes: &'a [Axis],
    pub first_position: usize,
    /// The token of each row; `None` where every token has one.
    pub rows: Option<&'a [usize]>,
}

/// The elements with the largest errors, the largest first.
fn furthest(errors: &[Option<f64>], most: usize) -> Vec<usize> {
    let larger = |a: &usize, b: &usize| -> Ordering {
        let error = |i: usize| errors[i].unwrap_or(-1.0);
        error(*b).total_cmp(&error(*a)).then(a.cmp(b))
    };
    let mut all: Vec<usize> = (0..errors.len()).filter(|&i| errors[i].is_some()).collect();
    if all.len() > most {
        all.select_nth_unstable_by(most - 1, larger);
        all.truncate(most);
    }
    all.sort_by(larger);
    all
}

/// Of each axis, the share of wrong elements at each index.
fn shares(shape: &[usize], wrong: &[bool]) -> Vec<Vec<f32>> {
    let mut counts: Vec<Vec<u32>> = shape.iter().map(|&n| vec![0; n]).collect();
    for (flat, _) in wrong.iter().enumerate().filter(|(_, wrong)| **wrong) {
        for (counts, i) in counts.iter_mut().zip(Tensor::unravel(flat, shape)) {
            counts[i] += 1;
        }
    }
    let share = |(counts, &n): (Vec<u32>, &usize)| {
        let all = wrong.len() as f32 / n.max(1) as f32;
        counts.into_iter().map(|count| count as f32 / all).collect()
    };
    counts.into_iter().zip(shape).map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_furthest_elements_come_first_and_what_was_not_judged_never() {
        let errors = [Some(1.0), None, Some(f64::INFINITY), Some(0.5), Some(3.0)];
        assert_eq!(furthest(&errors, 3), [2, 4, 0]);
        assert_eq!(furthest(&errors, 9), [2, 4, 0, 3]);
        assert_eq!(furthest(&[None], 3), [0usize; 0]);
    }

    #[test]
    fn the_shares_of_an_axis_say_where_the_wrong_elements_are() {
        // Token 0 of 2 is right, head 1 of 3 is wrong of the other.
        let wrong: Vec<bool> = (0..2 * 3 * 4).map(|i| i / 12 == 1 && i / 4 % 3 == 1).collect();
        let found = shares(&[2, 3, 4], &wrong);
        assert_eq!(found[0], [0.0, 4.0 / 12.0]);
        assert_eq!(found[1], [0.0, 0.5, 0.0]);
        assert_eq!(found[2], [1.0 / 6.0; 4]);
    }
}
