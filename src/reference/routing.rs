//! Choices that a run is forced to: the experts of each token.

use std::collections::BTreeMap;

use crate::{
    core::{
        sink::{Sink, Stopped},
        tensor::Tensor,
    },
    graph::{Kind, ModelGraph, site::Site},
};

/// The ids that discrete nodes are to give, whatever they would choose themselves.
#[derive(Clone, Debug, Default)]
pub struct Routing(BTreeMap<Site, Tensor>);

impl Routing {
    pub fn get(&self, site: &Site) -> Option<&Tensor> {
        self.0.get(site)
    }

    pub fn insert(&mut self, site: Site, ids: Tensor) {
        self.0.insert(site, ids);
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

/// Takes the choices of a run.
pub struct RoutingSink<'a> {
    pub model: &'a ModelGraph,
    pub routing: Routing,
}

/// Whether a site's values are a choice among others.
pub fn is_choice(model: &ModelGraph, site: Site) -> bool {
    model.sites.get(site).is_some_and(|spec| {
        let node = model.graph.node(spec.node);
        node.kind == Kind::Computed && node.op.is_choice()
    })
}

impl Sink for RoutingSink<'_> {
    fn wants(&self, site: Site) -> bool {
        is_choice(self.model, site)
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        self.routing.insert(site, tensor);
        Ok(())
    }
}
