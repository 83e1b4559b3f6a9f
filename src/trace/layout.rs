//! Which tensors a step of the recorded model can have, and of which shape.

use std::path::Path;

use super::{
    batch::Batch,
    error::{Limit, TraceError},
    groups::expanded,
    manifest::{ModelId, Step, field, within},
};
use crate::graph::{
    ListedSite, SiteList, Size,
    site::{Axis, Site},
};

/// The sites and shapes of a model known from its manifest only.
#[derive(Clone, Debug)]
pub(super) struct Layout(SiteList);

impl Layout {
    /// The layout of a model, whose fields are checked.
    pub fn new(path: &Path, model: &ModelId) -> Result<Layout, TraceError> {
        model.check(path)?;
        Ok(Layout(expanded(path, &model.sites)?))
    }

    /// Every site of a step, in the order of the graph.
    pub fn list(&self) -> &SiteList {
        &self.0
    }

    /// Whether the model's forward pass has the site.
    pub fn has(&self, site: Site) -> bool {
        self.0.get(site).is_some()
    }

    /// The shape of an existing site in a step.
    ///
    /// # Errors
    /// It has no element, or too many, or a batch has no such tensor.
    pub fn shape(
        &self,
        path: &Path,
        site: Site,
        step: StepLengths<'_>,
    ) -> Result<Vec<usize>, TraceError> {
        let StepLengths { tokens, positions, batch } = step;
        let listed = self.0.get(site);
        let shape = match (listed, batch) {
            (None, _) => Vec::new(),
            (Some(listed), None) => listed.shape(tokens, positions),
            (Some(listed), Some(batch)) => batched(listed, tokens, batch).ok_or_else(|| {
                let reason = "cannot be divided into the sequences of a batch: leave it out".into();
                field(path, site.tensor_name(), reason)
            })?,
        };
        let elements = shape.iter().fold(1u64, |product, &n| product.saturating_mul(n as u64));
        within(path, Limit::Elements, elements)?;
        let is_cache = listed.and_then(RowKind::of) == Some(RowKind::Slots);
        if elements == 0 && batch.is_some() && is_cache {
            let reason = "is recorded, but the step's batch has no slots: state slots and blocks";
            return Err(field(path, site.tensor_name(), reason.into()));
        }
        if elements == 0 || shape.is_empty() {
            let reason = format!("give {site} no element in a step of {tokens} tokens");
            return Err(field(path, "model.sites".into(), reason));
        }
        Ok(shape)
    }
}

/// What the shapes of a step's tensors depend on.
#[derive(Clone, Copy)]
pub(super) struct StepLengths<'a> {
    pub tokens: usize,
    pub positions: usize,
    pub batch: Option<&'a Batch>,
}

impl<'a> From<&'a Step> for StepLengths<'a> {
    fn from(step: &'a Step) -> StepLengths<'a> {
        let (tokens, positions) = (step.tokens.len(), step.positions());
        StepLengths { tokens, positions, batch: step.batch.as_ref() }
    }
}

/// What the rows of a tensor of a batch are of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RowKind {
    Tokens,
    /// Of a cache.
    Slots,
    /// So many of each sequence, one sequence after another, as of a recurrent state.
    Sequences,
}

impl RowKind {
    /// `None` where the tensor cannot be divided into sequences.
    pub fn of(listed: &ListedSite) -> Option<RowKind> {
        let positions = Size { per_cell: 1, ..Size::default() };
        let (first, others) = listed.sizes.split_first()?;
        let axes = listed.axes.get(1..)?.iter().zip(others);
        let is_divided = |(axis, size): (&Axis, &Size)| {
            size.is_fixed() || *axis == Axis::Key && *size == positions
        };
        let keys = listed.axes.iter().filter(|&&axis| axis == Axis::Key).count();
        let is_last = keys == 0 || keys == 1 && listed.axes.last() == Some(&Axis::Key);
        if !axes.into_iter().all(is_divided) || !is_last {
            return None;
        }
        match listed.axes[0] {
            _ if listed.has_row_of_each_token() => Some(RowKind::Tokens),
            Axis::Position if *first == positions => Some(RowKind::Slots),
            _ if first.is_fixed() && keys == 0 => Some(RowKind::Sequences),
            _ => None,
        }
    }
}

/// The shape of a site in a step of several sequences.
fn batched(listed: &ListedSite, tokens: usize, batch: &Batch) -> Option<Vec<usize>> {
    let axes = batch.axes();
    let mut shape = listed.shape(tokens, axes.keys);
    match RowKind::of(listed)? {
        RowKind::Tokens => {}
        RowKind::Slots => shape[0] = axes.slots,
        RowKind::Sequences => shape[0] *= axes.sequences,
    }
    Some(shape)
}
