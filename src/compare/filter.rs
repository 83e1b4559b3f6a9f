//! Which sites a run looks at: comma-separated globs, layers, and the queries of scores and probs.

use std::{collections::BTreeSet, sync::Arc};

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::{
    compare::Layers,
    core::near::did_you_mean,
    graph::{
        ModelGraph,
        site::{Site, Stage},
    },
};

/// Sites chosen by globs over `blk.3.q_rope`, over the stage alone (`q_rope`), or over either with
/// its step before it (`1/blk.*.scores`), and by layers. The default wants every site.
#[derive(Clone, Debug, Default)]
pub struct SiteFilter {
    globs: Vec<String>,
    set: Option<GlobSet>,
    /// The same without their steps.
    in_any_step: Option<GlobSet>,
    layers: Option<Layers>,
    /// What chosen layers begin from, which is wanted too.
    inputs: BTreeSet<(Option<u32>, Stage)>,
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
    #[error("--layers {layers}: the model's layers are 0 to {}; give some of these", has - 1)]
    Layers { layers: Layers, has: usize },
    #[error("--sites and --layers {layers} have no site in common; leave one of them out")]
    Nothing { layers: Layers },
}

impl SiteFilter {
    /// Reads comma-separated globs.
    pub fn parse(text: &str) -> Result<SiteFilter, FilterError> {
        if text.len() > MAX_BYTES {
            return Err(FilterError::TooLong);
        }
        let globs = text.split(',').map(str::trim).filter(|glob| !glob.is_empty());
        let globs: Vec<String> = globs.map(str::to_string).collect();
        let (mut set, mut in_any_step) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for glob in &globs {
            set.add(Glob::new(glob)?);
            let without = glob.split_once('/').map_or(&**glob, |(_, rest)| rest);
            in_any_step.add(Glob::new(without.trim_start_matches(|c: char| c.is_ascii_digit()))?);
        }
        let (set, in_any_step) = (Some(set.build()?), Some(in_any_step.build()?));
        Ok(SiteFilter { globs, set, in_any_step, ..SiteFilter::default() })
    }

    /// Those of these sites that lie in some layers.
    pub fn with_layers(self, layers: Option<Layers>) -> SiteFilter {
        SiteFilter { layers, ..self }
    }

    /// The same for a model: of chosen layers also what their operations begin from.
    ///
    /// # Errors
    /// The model does not have the layers, or no site of theirs is chosen.
    pub fn of_model(self, model: &ModelGraph) -> Result<SiteFilter, FilterError> {
        let Some(layers) = self.layers else { return Ok(self) };
        let has = model.sites.layers();
        if layers.first as usize >= has || layers.end.is_some_and(|end| end as usize > has) {
            return Err(FilterError::Layers { layers, has });
        }
        let inputs = model.inputs_of(&self.places(model));
        let of = |place: usize| {
            let spec = &model.sites.specs()[place];
            (spec.layer, spec.stage)
        };
        Ok(SiteFilter { inputs: inputs.into_iter().map(of).collect(), ..self })
    }

    /// The sites that are asked for in any step, by their places, without what they begin from.
    pub fn places(&self, model: &ModelGraph) -> BTreeSet<usize> {
        let specs = model.sites.specs().iter().enumerate();
        let is_asked = |site: Site| {
            let is_match = |set: &GlobSet| names(site).iter().any(|name| set.is_match(name));
            self.is_in_layers(site) && self.in_any_step.as_ref().is_none_or(is_match)
        };
        specs.filter(|(_, spec)| is_asked(spec.site(0))).map(|(place, _)| place).collect()
    }

    /// The places of all wanted sites where not all are, those that chosen ones begin from among them.
    pub fn wanted_places(&self, model: &ModelGraph) -> Option<BTreeSet<usize>> {
        let is_input = |place: &usize| {
            let spec = &model.sites.specs()[*place];
            self.inputs.contains(&(spec.layer, spec.stage))
        };
        let inputs = (0..model.sites.specs().len()).filter(is_input);
        (!self.wants_all()).then(|| self.places(model).into_iter().chain(inputs).collect())
    }

    /// How many layers of our engine make all of these sites that are wanted; `None` where the logits are made too.
    pub fn depth(&self, sites: &[Site]) -> Option<usize> {
        let mut wanted = sites.iter().filter(|&&site| self.wants(site));
        let is_of_head = |site: &Site| matches!(site.stage, Stage::FinalNorm | Stage::Logits);
        if wanted.clone().any(is_of_head) {
            return None;
        }
        let layers = wanted.by_ref().filter_map(|site| site.layer);
        Some(layers.max().map_or(0, |last| last as usize + 1))
    }

    /// Whether every site is wanted.
    pub fn wants_all(&self) -> bool {
        self.set.is_none() && self.layers.is_none()
    }

    /// Tells it from others that want other sites.
    pub fn key(&self) -> Option<(&[String], Option<Layers>)> {
        (!self.wants_all()).then_some((&self.globs[..], self.layers))
    }

    /// The layers that are asked for, where not all are.
    pub fn layers(&self) -> Option<Layers> {
        self.layers
    }

    /// The globs that sites are asked for by; none where all are.
    pub fn globs(&self) -> &[String] {
        &self.globs
    }

    /// The same sites, with only some queries' rows of the prompt's scores and probs.
    pub fn with_queries(self, queries: Option<Arc<[usize]>>) -> SiteFilter {
        SiteFilter { queries, ..self }
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
        self.is_in_layers(site) && self.is_named(site)
            || self.inputs.contains(&(site.layer, site.stage))
    }

    fn is_in_layers(&self, site: Site) -> bool {
        self.layers.is_none_or(|layers| site.layer.is_some_and(|layer| layers.contains(layer)))
    }

    fn is_named(&self, site: Site) -> bool {
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
        let is_asked = |site: &&Site| self.is_in_layers(**site) && self.is_named(**site);
        match self.layers {
            Some(layers) if !sites.iter().any(|site| is_asked(&site)) => {
                Err(FilterError::Nothing { layers })
            }
            _ => Ok(()),
        }
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
