//! Choices that a run is forced to: the experts of each token.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    core::tensor::Tensor,
    graph::{Kind, ModelGraph, site::Site},
};

/// What a run is forced to choose.
pub trait Forced: Sync {
    /// The ids that a site gets; `None` where the run chooses itself.
    fn ids(&self, site: Site) -> Option<Arc<Tensor>>;
}

/// The ids that discrete nodes are to give, whatever they would choose themselves.
#[derive(Clone, Debug, Default)]
pub struct Routing(BTreeMap<Site, Arc<Tensor>>);

impl Forced for Routing {
    fn ids(&self, site: Site) -> Option<Arc<Tensor>> {
        self.0.get(&site).cloned()
    }
}

impl Routing {
    pub fn insert(&mut self, site: Site, ids: Tensor) {
        self.0.insert(site, Arc::new(ids));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells it from any other.
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (site, ids) in &self.0 {
            hasher.update(format!("{}/{}", site.step, site.tensor_name()).as_bytes());
            hasher.update(bytemuck::cast_slice(&ids.data));
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Whether a site's values are a choice among others.
pub fn is_choice(model: &ModelGraph, site: Site) -> bool {
    model.sites.get(site).is_some_and(|spec| {
        let node = model.graph.node(spec.node);
        node.kind == Kind::Computed && node.op.is_choice()
    })
}
