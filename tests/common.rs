//! What several tests need: the fixture model, and a sink that keeps everything.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use firstdiff::{
    capture::{Sink, Stopped},
    site::{Site, Stage},
    tensor::Tensor,
};

/// The trained fixture model.
pub fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-qwen2/tiny-qwen2-f16.gguf")
}

/// Keeps every tensor of the stages it wants; an empty list wants all.
#[derive(Default)]
pub struct Keep {
    pub tensors: BTreeMap<Site, Tensor>,
    pub only: Vec<Stage>,
}

impl Sink for Keep {
    fn wants(&self, site: Site) -> bool {
        self.only.is_empty() || self.only.contains(&site.stage)
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        assert!(self.tensors.insert(site, tensor).is_none(), "{site} came twice");
        Ok(())
    }
}
