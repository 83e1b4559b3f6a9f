//! Which sites a run looks at: comma-separated globs, and the queries of scores and probs.

use std::{collections::BTreeSet, sync::Arc};

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::{
    core::near::did_you_mean,
    graph::site::{Site, Stage},
};

/// Sites chosen by globs over `blk.3.q_rope`, over the stage alone (`q_rope`), or over either with
/// its step before it (`1/blk.*.scores`). The default wants every site.
#[derive(Clone, Debug, Default)]
pub struct SiteFilter {
    globs: Vec<String>,
    set: Option<GlobSet>,
    /// The prompt's tokens whose scores and probs are wanted; `None` means all.
    queries: Option<Arc<[usize]>>,
}

/// Longer texts choose nothing that a shorter one does not.
const MAX_BYTES: usize = 1 << 14;

/// A glob that cannot choose a site.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("--sites: {0}; write globs such as q_rope,blk.0.*,logits")]
    Syntax(#[from] globset::Error),
    #[error("--sites: the globs are longer than {MAX_BYTES} bytes; write fewer")]
    TooLong,
    #[error("--sites: {glob} matches no site of this model{near}; `firstdiff sites` lists them")]
    NoMatch { glob: String, near: String },
}

impl SiteFilter {
    /// Reads comma-separated globs.
    pub fn parse(text: &str) -> Result<SiteFilter, FilterError> {
        if text.len() > MAX_BYTES {
            return Err(FilterError::TooLong);
        }
        let globs = text.split(',').map(str::trim).filter(|glob| !glob.is_empty());
        let globs: Vec<String> = globs.map(str::to_string).collect();
        let mut set = GlobSetBuilder::new();
        for glob in &globs {
            set.add(Glob::new(glob)?);
        }
        Ok(SiteFilter { globs, set: Some(set.build()?), queries: None })
    }

    /// The same sites, with only some queries' rows of the prompt's scores and probs.
    pub fn with_queries(self, queries: Option<Arc<[usize]>>) -> SiteFilter {
        SiteFilter { queries, ..self }
    }

    /// Every site, with the rows that this filter wants.
    pub fn rows_only(&self) -> SiteFilter {
        SiteFilter::default().with_queries(self.queries.clone())
    }

    /// The tokens that a site's rows are of; `None` where every token of the step has one.
    pub fn queries(&self, site: Site) -> Option<&[usize]> {
        let chosen = site.step == 0 && matches!(site.stage, Stage::Scores | Stage::Probs);
        self.queries.as_deref().filter(|_| chosen)
    }

    /// The prompt's tokens whose scores and probs are wanted; `None` means all.
    pub fn prompt_queries(&self) -> Option<&[usize]> {
        self.queries.as_deref()
    }

    /// Whether a site is wanted.
    pub fn wants(&self, site: Site) -> bool {
        self.set.as_ref().is_none_or(|set| names(site).iter().any(|name| set.is_match(name)))
    }

    /// Refuses a glob that matches none of the sites.
    pub fn check(&self, sites: &[Site]) -> Result<(), FilterError> {
        for glob in &self.globs {
            let matcher = Glob::new(glob)?.compile_matcher();
            let matches = |site: &Site| names(*site).iter().any(|name| matcher.is_match(name));
            if !sites.iter().any(matches) {
                let known: BTreeSet<String> = sites.iter().flat_map(|&site| names(site)).collect();
                let near = did_you_mean(glob, known.iter().map(String::as_str));
                return Err(FilterError::NoMatch { glob: glob.clone(), near });
            }
        }
        Ok(())
    }
}

fn names(site: Site) -> [String; 4] {
    let (tensor, stage) = (site.tensor_name(), site.stage.name());
    let with_step = |name: &str| format!("{}/{name}", site.step);
    [with_step(&tensor), with_step(stage), tensor, stage.to_string()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::site::Stage;

    #[test]
    fn globs_match_the_tensor_name_the_stage_and_the_step() {
        let site = Site::in_layer(1, 3, Stage::QRope);
        for (globs, wanted) in [
            ("q_rope", true),
            ("blk.3.*", true),
            ("blk.*.q_rope", true),
            ("1/*", true),
            ("logits, q_*", true),
            ("0/*", false),
            ("blk.2.*", false),
            ("q", false),
        ] {
            assert_eq!(SiteFilter::parse(globs).unwrap().wants(site), wanted, "{globs}");
        }
        assert!(SiteFilter::default().wants(site));
        let error = SiteFilter::parse("q_rope,bogus").unwrap().check(&[site]).unwrap_err();
        assert!(error.to_string().contains("bogus matches no site of this model;"), "{error}");
        let error = SiteFilter::parse("q-rope").unwrap().check(&[site]).unwrap_err();
        assert!(error.to_string().contains("(did you mean q_rope?)"), "{error}");
        assert!(SiteFilter::parse("[").is_err());
        assert!(SiteFilter::parse(&"q*,".repeat(10_000)).is_err());
    }
}
