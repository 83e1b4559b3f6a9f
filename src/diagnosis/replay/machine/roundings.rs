//! The roundings that a side declares, at each node and in each cache; and a side that is more exact than it says.

use super::{AsItIs, Machine};
use crate::{
    core::{arithmetic::Value, format::Format},
    diagnosis::replay::{
        declared::Declared,
        expected::{Expected, Rounding},
        recording::ReplayError,
    },
    graph::{NodeId, SiteSpec, site::Stage},
};

impl<'a> Machine<'a> {
    /// What a site must give where nothing that is declared is rounded, if all that was recorded is within the
    /// bound of that: a side may be more exact than it says. `None` where nothing is rounded on the way.
    pub(super) fn more_exact(
        &self,
        place: usize,
        recorded: &[f32],
    ) -> Result<Option<Expected<'a>>, ReplayError> {
        if self.is_exact || self.run.recording.arithmetic.roundings.is_empty() {
            return Ok(None);
        }
        let cone = self.cone(place);
        let rounds = |id: &NodeId| {
            let declared = self.declared(*id);
            let values = self.graph().rounded_values(*id);
            values.into_iter().any(|value| declared.format(value, self.extent.tokens).is_some())
        };
        if !cone.iter().any(rounds) {
            return Ok(None);
        }
        let exact = Machine { is_exact: true, ..self.clone() }.again(place, &cone, &AsItIs)?;
        let is_within = |(at, &x): (usize, &f32), expected: &Expected<'_>| {
            expected.times_bound(at, x).is_none_or(|times| times <= 1.0)
        };
        Ok(exact.filter(|exact| recorded.iter().enumerate().all(|x| is_within(x, exact))))
    }

    /// What a node's operation rounds on its way, as it is declared.
    pub(super) fn declared(&self, id: NodeId) -> Declared<'a> {
        let all = &self.run.recording.arithmetic.roundings[..];
        let conventions = if self.is_exact { &[] } else { all };
        let place = self.operation_of(id);
        let stage = place.map(|place| self.run.model.sites.specs()[place].stage);
        Declared { conventions, stage }
    }

    /// The site whose operation a node belongs to, by its place.
    pub fn operation_of(&self, id: NodeId) -> Option<usize> {
        self.site_of[id.index()]
    }

    /// Whether a node's result is a site of its own.
    pub fn is_site(&self, id: NodeId) -> bool {
        self.site_at[id.index()].is_some()
    }

    /// The format that a cache keeps its rows in, and the length of the rows that its blocks divide; `None` where
    /// they are kept as they are.
    pub(super) fn stored_as(&self, root: NodeId) -> Option<(Format, usize)> {
        let mut specs = self.run.model.sites.specs().iter();
        let is_cache = |spec: &&SiteSpec| {
            matches!(spec.stage, Stage::KCache | Stage::VCache)
                && self.graph().root(spec.node) == root
        };
        let spec = specs.find(is_cache)?;
        let conventions = &self.run.recording.arithmetic.roundings;
        let of_cache = Declared { conventions, stage: Some(spec.stage) };
        let format = of_cache.format(Value::Caches, self.extent.tokens)?;
        let length = spec.axes.last()?.size.fixed as usize;
        format.divides(length).then_some((format, length))
    }

    /// The declared roundings of a node's result.
    pub(super) fn rounding(&self, id: NodeId) -> Rounding {
        let arithmetic = self.run.recording.arithmetic;
        let specs = self.run.model.sites.specs();
        if let Some(place) = self.site_at[id.index()] {
            return Rounding::of(arithmetic, &specs[place]);
        }
        let sum = arithmetic.default.accumulator;
        // A bias is added to a product that was stored. Else nothing is stored within an operation, unless it
        // says so.
        if self.graph().node(id).op.is_product() {
            return Rounding::new(sum, arithmetic.default.storage);
        }
        let between = arithmetic.between.unwrap_or(sum);
        Rounding::new(sum, between)
    }
}
