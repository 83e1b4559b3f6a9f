//! Which tensors a step of the recorded model can have, and of which shape.

use std::path::Path;

use super::{
    error::{Limit, TraceError},
    groups::expanded,
    manifest::{ModelId, field, within},
};
use crate::graph::{SiteList, site::Site};

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

    /// The shape of an existing site in a step of `tokens` tokens with `positions` in the cache.
    ///
    /// # Errors
    /// It has no element, or too many.
    pub fn shape(
        &self,
        path: &Path,
        site: Site,
        tokens: usize,
        positions: usize,
    ) -> Result<Vec<usize>, TraceError> {
        let listed = self.0.get(site);
        let shape = listed.map_or(Vec::new(), |listed| listed.shape(tokens, positions));
        let elements = shape.iter().fold(1u64, |product, &n| product.saturating_mul(n as u64));
        within(path, Limit::Elements, elements)?;
        if elements == 0 || shape.is_empty() {
            let reason = format!("give {site} no element in a step of {tokens} tokens");
            return Err(field(path, "model.sites".into(), reason));
        }
        Ok(shape)
    }
}
