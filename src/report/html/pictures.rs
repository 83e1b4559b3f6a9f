//! Pictures of tensors as short texts, as many as there is room for.
//!
//! A pixel is one byte a side. Values are on a scale of square roots, so that a few large ones do not hide the
//! others; errors on one of logarithms.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use serde::Serialize;

use crate::{
    compare::{Picture, Pixel},
    core::tensor::Tensor,
    diagnosis::album::{Album, FarElement, Shot},
    graph::site::{Axis, Site},
    report::html::cells::Layout,
};

/// Elements of an axis whose shares are told apart; more are taken together.
const MOST_BINS: usize = 96;

/// Hardly a picture is shorter.
const LEAST_BYTES: usize = 1024;

/// What a picture has in bytes beside its pixels, roughly.
const WORDS: usize = 700;
/// Pictures of what is not guilty are halved at most so often.
const MOST_HALVINGS: usize = 2;

/// A byte of a value that is no number, and of none at all; others are from -126 to 126.
const NO_NUMBER: i8 = -128;
const ABSENT: i8 = 127;
const STEPS: f64 = 126.0;

/// An error of 10^(`SMALLEST`) or less is 1, and one of 10^(`SMALLEST` + `DECADES`) or more 254; 0 is none, and 255
/// infinite.
const SMALLEST: f64 = -3.0;
const DECADES: f64 = 10.0;

/// One tensor of a step.
#[derive(Debug, Serialize)]
pub struct Shown {
    pub step: u32,
    pub cell: usize,
    /// Whether it is by the reference's steps, without a replay.
    pub beside: bool,
    pub shape: Vec<usize>,
    pub axes: Vec<&'static str>,
    /// The position of its first token, or the tokens of its rows.
    pub first_position: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<Vec<usize>>,
    /// Pixels down and across, elements of each, and elements down and across.
    pub pixels: [usize; 2],
    pub block: [usize; 2],
    pub size: [usize; 2],
    pub names: [String; 2],
    /// Elements of a head, where columns run through several.
    pub group: usize,
    /// The axis and index that all of it shares.
    pub fixed: Option<(&'static str, usize)>,
    /// The largest magnitude: what the value 126 stands for.
    pub scale: f64,
    pub engine: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub added: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inherited: Option<String>,
    pub far: Vec<Far>,
    /// Of each axis, the share of wrong elements at each index, in thousandths, and how many indices are one.
    pub shares: Vec<(usize, Vec<u16>)>,
}

/// An element far off; numbers as texts, as JSON has no NaN.
#[derive(Debug, Serialize)]
pub struct Far {
    pub index: Vec<usize>,
    pub engine: String,
    pub exact: Option<String>,
    pub bound: Option<String>,
    pub reference: Option<String>,
    pub added: Option<String>,
    pub inherited: Option<String>,
}

/// Elements that are named: of what entries are told by, of other guilty results, of the rest.
const FAR: [usize; 3] = [8, 4, 2];

/// Which pictures are wanted first.
pub struct Wanted {
    /// The result that each entry is told by, and the first divergence: as large as there are.
    pub first: Vec<Site>,
    /// Results of guilty operations.
    pub guilty: BTreeSet<Site>,
    /// Sites that differ from the reference's.
    pub diverged: BTreeSet<Site>,
}

/// Pictures within so many bytes, and how many were left out.
pub fn pictures(
    album: &Album,
    layout: &Layout,
    wanted: &Wanted,
    most_bytes: usize,
) -> (Vec<Shown>, usize) {
    let shots = album.shots.iter().map(|(&site, shot)| (site, shot, false));
    let beside = album.beside.iter().map(|(&site, shot)| (site, shot, true));
    let mut all: Vec<(Site, &Shot, bool)> = shots.chain(beside).collect();
    let class = |site: &Site| {
        if wanted.first.contains(site) {
            0
        } else if wanted.guilty.contains(site) {
            1
        } else if wanted.diverged.contains(site) {
            2
        } else {
            3
        }
    };
    // Early steps first: what is wrong later mostly follows from them.
    all.sort_by_key(|(site, ..)| (class(site), *site));
    let others = finest(&all, &class, most_bytes);
    let (all_shots, mut shown, mut bytes) = (all.len(), Vec::new(), 0);
    for (site, shot, beside) in all {
        let Some(cell) = layout.cell(site.layer, site.stage) else { continue };
        let halvings = match class(&site) {
            0 => 0,
            1 => 1,
            _ => others,
        };
        let own = Shown::of(site, cell, shot, beside, halvings, class(&site));
        let length = serde_json::to_string(&own).map_or(usize::MAX, |text| text.len() + 1);
        if length <= most_bytes - bytes {
            bytes += length;
            shown.push(own);
        } else if most_bytes - bytes < LEAST_BYTES {
            break;
        }
    }
    let left_out = all_shots - shown.len();
    (shown, left_out)
}

/// How often pictures of what is not guilty are halved so that all are likely to fit.
fn finest(all: &[(Site, &Shot, bool)], class: &dyn Fn(&Site) -> usize, most_bytes: usize) -> usize {
    let bytes = |halvings: usize| -> usize {
        let of = |(site, shot, _): &(Site, &Shot, bool)| {
            let (halvings, sides) = match class(site) {
                0 => (0, 5),
                1 => (1, 5),
                2 => (halvings, 4),
                _ => (halvings, 3),
            };
            WORDS + sides * (shot.picture.pixels.len() >> (2 * halvings)) * 4 / 3
        };
        all.iter().map(of).sum()
    };
    (0..MOST_HALVINGS).find(|&halvings| bytes(halvings) <= most_bytes).unwrap_or(MOST_HALVINGS)
}

impl Shown {
    fn of(
        site: Site,
        cell: usize,
        shot: &Shot,
        beside: bool,
        halvings: usize,
        class: usize,
    ) -> Shown {
        let picture = sized(&shot.picture, halvings);
        let grid = &picture.grid;
        let values = |of: &dyn Fn(&Pixel) -> Option<f64>| -> Vec<Option<f64>> {
            picture.pixels.iter().map(|pixel| pixel.as_ref().and_then(of)).collect()
        };
        let engine = values(&|pixel| Some(f64::from(pixel.engine)));
        let exact = values(&|pixel| Some(pixel.exact).filter(|x| !x.is_nan()));
        let reference = values(&|pixel| pixel.reference.map(f64::from));
        let of_all = [&engine, &exact, &reference].into_iter().flatten().flatten();
        let scale = of_all.map(|x| x.abs()).filter(|x| x.is_finite()).fold(0.0, f64::max);
        let some = |all: &[Option<f64>]| all.iter().any(Option::is_some);
        // A right result is what f64 gives, and an equal one what the reference has, to the eye.
        let side = |all: &[Option<f64>], told: bool| (told && some(all)).then(|| coded(all, scale));
        let named = FAR[class.min(FAR.len() - 1)];
        let errors = |of: &dyn Fn(&Pixel) -> Option<f64>| {
            let all = values(of);
            some(&all).then(|| coded_errors(&all))
        };
        Shown {
            step: site.step,
            cell,
            beside,
            shape: shot.shape.clone(),
            axes: shot.axes.iter().map(|axis: &Axis| axis.word()).collect(),
            first_position: shot.first_position,
            rows: shot.rows.clone(),
            pixels: grid.pixels(),
            block: grid.block,
            size: grid.size,
            names: grid.names.clone(),
            group: grid.group,
            fixed: grid.fixed.map(|(axis, index)| (axis.word(), index)),
            scale: format!("{scale:.3e}").parse().unwrap_or(scale),
            engine: coded(&engine, scale),
            exact: side(&exact, class < 2),
            reference: side(&reference, class < 3),
            added: errors(&|pixel| pixel.added),
            inherited: errors(&|pixel| pixel.inherited),
            far: shot.far.iter().take(named).map(|far| Far::of(far, &shot.shape)).collect(),
            shares: shot.shares.iter().map(|shares| binned(shares)).collect(),
        }
    }
}

impl Far {
    fn of(far: &FarElement, shape: &[usize]) -> Far {
        let digits =
            |x: f64| format!("{x:.9}").trim_end_matches('0').trim_end_matches('.').to_string();
        let exact = |x: f64| {
            if x != 0.0 && (x.abs() < 1e-3 || x.abs() >= 1e9) {
                format!("{x:.8e}")
            } else {
                digits(x)
            }
        };
        let short = |x: Option<f64>| x.map(|x| format!("{x:.3e}"));
        Far {
            index: Tensor::unravel(far.flat, shape),
            engine: far.engine.to_string(),
            exact: Some(far.exact).filter(|x| !x.is_nan()).map(exact),
            bound: short(Some(far.bound).filter(|x| !x.is_nan())),
            reference: far.reference.map(|x| x.to_string()),
            added: short(far.added),
            inherited: short(far.inherited),
        }
    }
}

/// A picture with half as many pixels down and across, so many times. A small one stays as it is.
fn sized(picture: &Picture, halvings: usize) -> Picture {
    const SMALL: usize = 1024;
    let mut own = picture.clone();
    let mut left = halvings;
    while left > 0 && own.pixels.len() > SMALL >> halvings {
        own = own.halved();
        left -= 1;
    }
    own
}

/// Values as bytes, on a scale of square roots.
fn coded(values: &[Option<f64>], scale: f64) -> String {
    let code = |x: &Option<f64>| match x {
        None => ABSENT,
        Some(x) if !x.is_finite() => NO_NUMBER,
        Some(x) if scale > 0.0 => {
            ((x.abs() / scale).min(1.0).sqrt() * STEPS).round().copysign(*x) as i8
        }
        Some(_) => 0,
    };
    let bytes: Vec<u8> = values.iter().map(|x| code(x) as u8).collect();
    STANDARD_NO_PAD.encode(bytes)
}

/// Errors as bytes, on a scale of logarithms.
fn coded_errors(errors: &[Option<f64>]) -> String {
    let code = |error: &Option<f64>| match error {
        None => 0,
        Some(error) if !error.is_finite() => 255,
        Some(error) => {
            let part = (error.max(f64::MIN_POSITIVE).log10() - SMALLEST) / DECADES;
            (1.0 + 253.0 * part.clamp(0.0, 1.0)).round() as u8
        }
    };
    STANDARD_NO_PAD.encode(errors.iter().map(code).collect::<Vec<u8>>())
}

/// Shares in thousandths; of many indices the largest of some that follow one another.
fn binned(shares: &[f32]) -> (usize, Vec<u16>) {
    let width = shares.len().div_ceil(MOST_BINS).max(1);
    let largest = |shares: &[f32]| shares.iter().copied().fold(0.0, f32::max);
    // A share that is not nothing is seen.
    let bins = shares.chunks(width).map(|part| (1000.0 * largest(part)).ceil() as u16).collect();
    (width, bins)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        STANDARD_NO_PAD.decode(text).unwrap()
    }

    #[test]
    fn values_keep_their_sign_and_what_is_no_number_is_told_apart() {
        let all = [Some(4.0), Some(-1.0), Some(0.0), Some(f64::NAN), None];
        let found: Vec<i8> = bytes(&coded(&all, 4.0)).iter().map(|&x| x as i8).collect();
        assert_eq!(found, [126, -63, 0, NO_NUMBER, ABSENT]);
        assert_eq!(bytes(&coded(&[Some(0.0)], 0.0)), [0]);
    }

    #[test]
    fn errors_below_and_above_one_bound_have_other_bytes() {
        let all = [None, Some(0.0), Some(0.9), Some(1.1), Some(1e9), Some(f64::INFINITY)];
        let found = bytes(&coded_errors(&all));
        assert_eq!((found[0], found[1], found[4], found[5]), (0, 1, 254, 255));
        assert!(found[2] < found[3], "{found:?}");
    }

    #[test]
    fn one_wrong_element_of_many_is_a_share() {
        let mut shares = vec![0.0; 1000];
        shares[517] = 1e-6;
        let (width, bins) = binned(&shares);
        assert_eq!((width, bins.len()), (11, 91));
        assert_eq!(bins.iter().filter(|&&bin| bin == 1).count(), 1);
        assert_eq!(bins[517 / 11], 1);
    }
}
