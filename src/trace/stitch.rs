//! The tensor of a site, put together from those of the ranks.

use std::{collections::BTreeMap, fs::File, path::Path, sync::Arc};

use super::{
    error::TraceError,
    header::{ByteOrder, Place},
    layout::Layout,
    manifest::Manifest,
    ranks::Part,
    shard::{Shard, Split},
};
use crate::{
    core::tensor::Tensor,
    graph::site::{Axis, Site, Stage},
};

/// A rank's tensor of a site.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub rank: usize,
    pub place: Place,
    /// Where it begins on the axis that is cut; pieces with the same beginning are copies.
    pub start: usize,
}

/// A site and what there is of it.
#[derive(Clone, Debug)]
pub(super) struct Whole {
    pub shape: Vec<usize>,
    /// The token of each row, where not every token of the step has one.
    pub rows: Option<Arc<[usize]>>,
    pub split: Split,
    /// The place of the axis that is cut.
    pub cut: Option<usize>,
    /// In the order of the ranks, not empty.
    pub pieces: Vec<Piece>,
}

/// Puts the pieces of each site together. One that does not add up is an error in their stead.
pub(super) fn stitch(
    trace: &Path,
    manifest: &Manifest,
    layout: &Layout,
    parts: &[Part],
    places: Vec<Vec<(Site, Place)>>,
) -> Vec<Result<(Site, Whole), TraceError>> {
    let mut by_site: BTreeMap<Site, Vec<(usize, Place)>> = BTreeMap::new();
    for (rank, places) in places.into_iter().enumerate() {
        for (site, place) in places {
            by_site.entry(site).or_default().push((rank, place));
        }
    }
    let shard = parts[0].manifest.shard.clone().unwrap_or(Shard { world: 1, ..Shard::default() });
    let whole = |(site, places): (Site, Vec<(usize, Place)>)| {
        let step = &manifest.steps[site.step as usize];
        let mut shape = layout.shape(trace, site, step.into())?;
        let split = shard.of(site.stage);
        let rows = places[0].1.rows.clone();
        if let Some((rank, _)) = places.iter().find(|(_, place)| place.rows != rows) {
            let reason = format!("has rows of other tokens on rank {rank}");
            return Err(TraceError::Stitch { path: trace.into(), site, reason });
        }
        if let Some(rows) = &rows {
            shape[0] = rows.len();
        }
        let of = Arranged { site, axes: layout.list().axes(site), split, world: shard.world };
        let pieces = arrange(of, &shape, places).map_err(|reason| TraceError::Stitch {
            path: trace.into(),
            site,
            reason,
        })?;
        Ok((site, Whole { shape, rows, split, cut: split.cut(of.axes), pieces }))
    };
    by_site.into_iter().map(whole).collect()
}

/// A site whose pieces are to be arranged.
#[derive(Clone, Copy)]
struct Arranged<'a> {
    site: Site,
    axes: &'a [Axis],
    split: Split,
    world: usize,
}

/// Where each rank's tensor begins.
///
/// # Errors
/// What keeps them from being the whole, in words.
fn arrange(
    of: Arranged<'_>,
    shape: &[usize],
    places: Vec<(usize, Place)>,
) -> Result<Vec<Piece>, String> {
    let Arranged { site, axes, split, world } = of;
    let at = |starts: Vec<usize>| {
        let pieces = places.iter().cloned().zip(starts);
        pieces.map(|((rank, place), start)| Piece { rank, place, start }).collect()
    };
    let Some(axis) = split.cut(axes) else {
        if split == Split::Partial && places.len() != world {
            return Err(format!("has partial sums of {} of {world} ranks", places.len()));
        }
        return Ok(at(vec![0; places.len()]));
    };
    let sizes: Vec<usize> = places.iter().map(|(_, place)| place.shape[axis]).collect();
    let (sum, all) = (sizes.iter().sum::<usize>(), shape[axis]);
    if sum == all {
        let starts = sizes.iter().scan(0, |end, size| {
            let start = *end;
            *end += size;
            Some(start)
        });
        return Ok(at(starts.collect()));
    }
    // Fewer KV heads than ranks: each rank has one, and those beside it have copies.
    let copied = is_of_kv_heads(site.stage) && split == Split::Along(Axis::Head) && world > all;
    if copied && sum == world && world.is_multiple_of(all) && sizes.iter().all(|&size| size == 1) {
        return Ok(at(places.iter().map(|(rank, _)| rank * all / world).collect()));
    }
    let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
    let name = axes[axis].name();
    Err(format!("does not add up: {} {name}s of ranks are not {all}", sizes.join(" + ")))
}

fn is_of_kv_heads(stage: Stage) -> bool {
    use Stage::*;
    matches!(stage, K | V | KNorm | KRope | KCache | VCache)
}

impl Whole {
    /// Reads the whole; of copies, that of the first rank. `open` gives the file of a rank.
    ///
    /// Partial sums are added in f64 and rounded once.
    pub fn read(
        &self,
        order: ByteOrder,
        open: impl Fn(usize) -> std::io::Result<File>,
    ) -> std::io::Result<Tensor> {
        let read = |piece: &Piece| piece.place.read(open(piece.rank)?, order);
        let first = &self.pieces[0];
        let data = match (self.split, self.cut) {
            (Split::Partial, _) => {
                let mut sum = vec![0f64; self.shape.iter().product()];
                for piece in &self.pieces {
                    let part = read(piece)?;
                    sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += f64::from(part));
                }
                sum.into_iter().map(|sum| sum as f32).collect()
            }
            (_, Some(axis)) if first.place.shape != self.shape => {
                let mut data = vec![0.0; self.shape.iter().product()];
                for piece in self.firsts() {
                    self.place(&mut data, &read(piece)?, piece, axis);
                }
                data
            }
            _ => read(first)?,
        };
        Ok(Tensor::new(self.shape.clone(), data))
    }

    /// One piece of each beginning.
    fn firsts(&self) -> impl Iterator<Item = &Piece> {
        let is_first = |&(at, piece): &(usize, &Piece)| {
            !self.pieces[..at].iter().any(|before| before.start == piece.start)
        };
        self.pieces.iter().enumerate().filter(is_first).map(|(_, piece)| piece)
    }

    fn place(&self, data: &mut [f32], part: &[f32], piece: &Piece, axis: usize) {
        let inner: usize = self.shape[axis + 1..].iter().product();
        let (run, row) = (piece.place.shape[axis] * inner, self.shape[axis] * inner);
        for (outer, run_of) in part.chunks_exact(run).enumerate() {
            let at = outer * row + piece.start * inner;
            data[at..at + run].copy_from_slice(run_of);
        }
    }
}
