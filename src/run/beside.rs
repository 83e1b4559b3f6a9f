//! The reference's tensors in an album of the engine's.

use super::{Pairing, SeenKeys, experts::SlotOrders};
use crate::{
    compare::{RowTokens, in_floors, verdict::Outcome},
    core::{floor::SiteFloor, pool, tensor::Tensor},
    diagnosis::album::{Album, Compared},
    graph::site::Site,
    trace::{TraceError, TraceReader, comparable},
};

/// A site's tensors of both sides, the engine's first; `None` where one of them has none.
pub type Both<'b> = &'b dyn Fn(Site) -> Result<Option<(Tensor, Tensor)>, TraceError>;

/// A site that was compared.
#[derive(Clone, Copy, Debug)]
pub struct ComparedSite {
    pub site: Site,
    pub floor: SiteFloor,
    pub is_diverged: bool,
}

impl ComparedSite {
    /// A site with what came out; `None` where nothing was compared.
    pub fn of(site: Site, floor: Option<SiteFloor>, outcome: &Outcome) -> Option<ComparedSite> {
        let is_diverged = match outcome {
            Outcome::Diverged => true,
            Outcome::Equal => false,
            Outcome::Unmeasured(_) | Outcome::Refused(_) => return None,
        };
        Some(ComparedSite { site, floor: floor?, is_diverged })
    }
}

/// Reads what was compared once more, and shows the two sides beside one another, where `factor` floors are
/// allowed. `same_steps` says whether the engine's steps are the reference's.
pub fn show_beside<'a>(
    album: &mut Album,
    sites: &[ComparedSite],
    both: Both<'_>,
    tokens: &dyn Fn(Site) -> RowTokens<'a>,
    factor: f64,
    same_steps: bool,
) -> Result<(), TraceError> {
    // What diverges first, so that it has room.
    let diverged = sites.iter().filter(|one| one.is_diverged);
    let others = sites.iter().filter(|one| !one.is_diverged);
    for &ComparedSite { site, floor, is_diverged } in diverged.chain(others) {
        if !album.has_room(site, is_diverged, same_steps) {
            continue;
        }
        let Some((engine, reference)) = both(site)?.filter(|(a, b)| a.shape == b.shape) else {
            continue;
        };
        let own = tokens(site);
        let distances = in_floors(site, &engine, &reference, own, floor);
        let compared = Compared {
            engine: &engine,
            reference: &reference,
            distances: &distances,
            factor,
            is_diverged,
            axes: own.axes.unwrap_or(site.stage.axes()),
            first_position: own.first_position,
            rows: own.chosen,
        };
        album.add_reference(site, compared, same_steps);
        [engine, reference].into_iter().for_each(pool::done);
    }
    Ok(())
}

/// The same of two comparable traces.
pub fn show_traces(
    album: &mut Album,
    engine: &TraceReader,
    reference: &TraceReader,
    sites: &[ComparedSite],
    factor: f64,
) -> Result<(), TraceError> {
    let is_whole = |trace: &TraceReader, settled: &TraceReader| {
        trace.manifest().steps.len() == settled.manifest().steps.len()
    };
    let (whole, engine) = (engine, engine.clone().settled()?);
    let reference = reference.clone().settled()?;
    let common = comparable(engine.manifest(), reference.manifest())?;
    let same_steps = common.same_steps && is_whole(whole, &engine);
    let pairing = Pairing::new(&engine, &reference, common);
    let (list, seen) = (reference.list(), SeenKeys::of(&reference)?);
    let orders = SlotOrders::of(&pairing, list)?;
    let both = |site| {
        let Some(own) = pairing.engine(site)? else { return Ok(None) };
        Ok(pairing.reference(site)?.map(|right| (orders.ordered(site, own), right)))
    };
    let tokens = |site: Site| pairing.row_tokens(&seen, site);
    show_beside(album, sites, &both, &tokens, factor, same_steps)
}
