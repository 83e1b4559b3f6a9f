//! Ranks of one run beside each other: what each has whole must be the same on all of them, and a sum
//! is that of all of them.

use std::collections::BTreeSet;

use super::beside::distance;
use crate::{
    core::tensor::Tensor,
    graph::{
        ListedSite,
        site::{Axis, Site, Stage},
    },
    trace::{Split, TraceError, TraceReader},
};

/// Of two explanations the one that is this many times nearer is right: where the sums are small
/// beside what they are added to, both are near.
const CLEARLY: f64 = 8.0;

/// The first thing on which the ranks disagree among the sites that are wanted, in the order of a forward pass; `None`
/// if there is nothing.
///
/// Ranks may round differently. So two rows agree if they do in half of the digits that the declared
/// storage has: a relative L2 of sqrt(u), far from rounding and from any bug.
pub fn ranks(
    trace: &TraceReader,
    wants: &dyn Fn(Site) -> bool,
) -> Result<Option<String>, TraceError> {
    if trace.world() < 2 {
        return Ok(None);
    }
    let sites: Vec<Site> = trace.sites().collect();
    let ranks = Ranks { trace, sites };
    for &site in ranks.sites.iter().filter(|&&site| wants(site)) {
        if let Some(found) = ranks.look(site)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

struct Ranks<'a> {
    trace: &'a TraceReader,
    /// Those that were recorded, in canonical order.
    sites: Vec<Site>,
}

impl Ranks<'_> {
    /// What the ranks disagree on at a site.
    fn look(&self, site: Site) -> Result<Option<String>, TraceError> {
        if let Some((rank, other)) = self.disagreement(site)? {
            let since = self.since(site)?;
            let cause = match self.own_sum(site, rank)? {
                Some(_) => format!(
                    "missing all-reduce: each rank adds its own partial sum of {}, not all ranks'",
                    partial(site).unwrap_or_default()
                ),
                None => self.cause(site)?,
            };
            let name = site.stage.name();
            return Ok(Some(format!(
                "rank {other}'s {name} differs from rank {rank}'s {since}: {cause}"
            )));
        }
        if let Some(rank) = self.own_sum(site, 0)? {
            let (name, part) = (site.stage.name(), partial(site).unwrap_or_default());
            return Ok(Some(format!(
                "rank {rank}'s {name} has only its own partial sum of {part} {}: missing all-reduce",
                place(site)
            )));
        }
        if self.trace.split(site.stage) == Split::Partial && self.is_summed(site)? {
            let name = site.stage.name();
            return Ok(Some(format!(
                "{name} is declared a partial sum and is the same on every rank {}: it was recorded \
                 after the all-reduce, declare it replicated",
                place(site)
            )));
        }
        Ok(None)
    }

    /// The first two ranks whose copies of a site are not the same.
    fn disagreement(&self, site: Site) -> Result<Option<(usize, usize)>, TraceError> {
        if self.trace.split(site.stage) == Split::Partial {
            return Ok(None);
        }
        for group in self.trace.copies(site) {
            let Some(first) = self.trace.of_rank(site, group[0])? else { continue };
            for &rank in &group[1..] {
                let Some(other) = self.trace.of_rank(site, rank)? else { continue };
                if !self.agree(&first, &other) {
                    return Ok(Some((group[0], rank)));
                }
            }
        }
        Ok(None)
    }

    /// Whether two tensors of a shape are the same but for rounding, row by row.
    fn agree(&self, a: &Tensor, b: &Tensor) -> bool {
        let limit = self.trace.manifest().arithmetic.default.storage.unit_roundoff().sqrt();
        let width = a.data.len() / a.shape[0];
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a == b;
        let mut rows = a.data.chunks(width).zip(b.data.chunks(width));
        rows.all(|(a, b)| a.iter().zip(b).all(same) || distance(b, a) <= limit)
    }

    /// From which layer on the copies of a stage differ.
    fn since(&self, site: Site) -> Result<String, TraceError> {
        let Some(layer) = site.layer else { return Ok(place(site)) };
        let later = self.sites.iter().filter(|other| {
            other.step == site.step && other.stage == site.stage && other.layer > site.layer
        });
        for &other in later {
            if self.disagreement(other)?.is_none() {
                return Ok(place(site));
            }
        }
        let step = if site.step == 0 { String::new() } else { format!(" of step {}", site.step) };
        Ok(format!("from layer {layer} on{step}"))
    }

    /// The first rank, from that one on, whose residual is its input plus its own partial sum.
    fn own_sum(&self, site: Site, from: usize) -> Result<Option<usize>, TraceError> {
        let Some((part, input)) = added(site) else { return Ok(None) };
        if self.trace.split(part.stage) != Split::Partial
            || self.trace.split(site.stage) != Split::Replicated
            || self.trace.split(input.stage) != Split::Replicated
        {
            return Ok(None);
        }
        if [site, part, input].into_iter().any(|site| self.trace.rows(site).is_some()) {
            return Ok(None);
        }
        let Some(sum) = self.trace.tensor(part)? else { return Ok(None) };
        let unit = self.trace.manifest().arithmetic.default.storage.unit_roundoff();
        for rank in from..self.trace.world() {
            let of_rank = |site| self.trace.of_rank(site, rank);
            let (Some(out), Some(input), Some(own)) =
                (of_rank(site)?, of_rank(input)?, of_rank(part)?)
            else {
                continue;
            };
            let plus = |part: &Tensor| {
                let sums = input.data.iter().zip(&part.data).map(|(a, b)| a + b);
                Tensor::new(out.shape.clone(), sums.collect())
            };
            let off = |part: &Tensor| distance(&out.data, &plus(part).data);
            let (own, sum) = (off(&own), off(&sum));
            if sum > CLEARLY * unit && own < sum / CLEARLY {
                return Ok(Some(rank));
            }
        }
        Ok(None)
    }

    /// Whether what is declared partial is the same on every rank, and not zero.
    fn is_summed(&self, site: Site) -> Result<bool, TraceError> {
        let Some(first) = self.trace.of_rank(site, 0)? else { return Ok(false) };
        for rank in 1..self.trace.world() {
            let other = self.trace.of_rank(site, rank)?;
            if !other.is_some_and(|other| self.agree(&first, &other)) {
                return Ok(false);
            }
        }
        Ok(first.data.iter().any(|value| *value != 0.0))
    }

    /// Whether each rank has the part that is its number among the parts, and not a share of neighbours: of two KV
    /// heads on four ranks 0, 1, 0, 1 instead of 0, 0, 1, 1.
    fn is_dealt_in_turn(&self, site: Site) -> Result<bool, TraceError> {
        let (world, parts) = (self.trace.world(), self.trace.copies(site).len());
        if parts < 2 || parts == world {
            return Ok(false);
        }
        let all = (0..world).map(|rank| self.trace.of_rank(site, rank));
        let Some(all) = all.collect::<Result<Option<Vec<Tensor>>, _>>()? else { return Ok(false) };
        let same =
            |a: usize, b: usize| all[a].shape == all[b].shape && self.agree(&all[a], &all[b]);
        Ok((0..world).all(|rank| (0..parts).all(|part| same(rank, part) == (rank % parts == part))))
    }

    /// Why copies of a site may differ, where no sum says it.
    fn cause(&self, site: Site) -> Result<String, TraceError> {
        use Stage::*;
        if self.is_dealt_in_turn(site)? {
            let (world, parts) = (self.trace.world(), self.trace.copies(site).len());
            return Ok(format!(
                "rank r has KV head r % {parts}, not r * {parts} / {world}: they are assigned to the ranks round-robin"
            ));
        }
        Ok(match site.stage {
            OProj | FfnDown => {
                "missing all-reduce, or partial sums that are not declared as such".into()
            }
            Embd => "other token ids, or a missing all-reduce of a split embedding".into(),
            _ => match self.summed_before(site).as_str() {
                "" => "another computation or other weights on one rank, because earlier tensors agree"
                    .into(),
                sums => format!("missing all-reduce of {sums}"),
            },
        })
    }

    /// The sums between the last copies that agree and a site; empty where there are none.
    fn summed_before(&self, site: Site) -> String {
        let list = self.trace.list();
        let place = |site: Site| list.place(site);
        let before = |&&other: &&Site| {
            other.step == site.step
                && place(other) < place(site)
                && self.trace.split(other.stage) == Split::Replicated
        };
        let agreed = self.sites.iter().rfind(before).and_then(|&agreed| place(agreed));
        let start = agreed.map_or(0, |place| place + 1);
        let end = place(site).unwrap_or(start).max(start);
        // Slots of experts are summed by rank, before the ranks are.
        let is_sum = |site: &&ListedSite| {
            let is_role = matches!(site.stage, Stage::OProj | Stage::FfnDown);
            let is_partial = self.trace.split(site.stage) == Split::Partial;
            is_role || is_partial && !site.axes.contains(&Axis::Slot)
        };
        let between = list.sites()[start..end].iter().filter(is_sum);
        let names: BTreeSet<Stage> = between.map(|site| site.stage).collect();
        names.into_iter().map(Stage::name).collect::<Vec<_>>().join(" or ")
    }
}

/// Of a residual, the sum that it adds and what it adds it to.
fn added(site: Site) -> Option<(Site, Site)> {
    let (step, layer) = (site.step, site.layer?);
    let at = |stage| Site::in_layer(step, layer, stage);
    match site.stage {
        Stage::AttnResidual => {
            let input = match layer.checked_sub(1) {
                Some(before) => Site::in_layer(step, before, Stage::LayerOut),
                None => Site::global(step, Stage::Embd),
            };
            Some((at(Stage::OProj), input))
        }
        Stage::LayerOut => Some((at(Stage::FfnDown), at(Stage::AttnResidual))),
        _ => None,
    }
}

fn partial(site: Site) -> Option<&'static str> {
    added(site).map(|(part, _)| part.stage.name())
}

/// `in layer 3`, and the step where it is not the prompt.
fn place(site: Site) -> String {
    match (site.layer, site.step) {
        (Some(layer), 0) => format!("in layer {layer}"),
        (Some(layer), step) => format!("in layer {layer} of step {step}"),
        (None, step) => format!("in step {step}"),
    }
}
