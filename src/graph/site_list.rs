//! The sites of a model as its recordings have them: what the axes of each count, and how long they are.

use std::collections::{BTreeSet, HashMap};

use super::{
    Extent, Sites, Size,
    site::{Axis, Site, Stage},
};

/// A site of every step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSite {
    pub layer: Option<u32>,
    pub stage: Stage,
    /// Slowest first, as are the sizes.
    pub axes: Vec<Axis>,
    /// In a step of T tokens; per cell means per position in the cache.
    pub sizes: Vec<Size>,
}

impl ListedSite {
    /// Its site in a step.
    pub fn site(&self, step: u32) -> Site {
        Site { step, layer: self.layer, stage: self.stage }
    }

    /// Whether the first axis counts the tokens of a step.
    pub fn has_row_of_each_token(&self) -> bool {
        let tokens = Size { per_token: 1, ..Size::default() };
        self.axes.first() == Some(&Axis::Token) && self.sizes.first() == Some(&tokens)
    }

    /// The shape of its tensor in a step of `tokens` tokens with `positions` in the cache.
    pub fn shape(&self, tokens: usize, positions: usize) -> Vec<usize> {
        let extent = Extent { tokens, cells: positions, is_first: positions == tokens };
        self.sizes.iter().map(|size| size.at(extent).max(0) as usize).collect()
    }
}

/// Every site of a model's steps, in the order of its graph.
#[derive(Clone, Debug, Default)]
pub struct SiteList {
    sites: Vec<ListedSite>,
    places: HashMap<(Option<u32>, Stage), usize>,
}

impl PartialEq for SiteList {
    fn eq(&self, other: &SiteList) -> bool {
        self.sites == other.sites
    }
}

impl SiteList {
    /// Of sites that are listed twice, the later counts.
    pub fn new(sites: Vec<ListedSite>) -> SiteList {
        let key = |(place, site): (usize, &ListedSite)| ((site.layer, site.stage), place);
        let places = sites.iter().enumerate().map(key).collect();
        SiteList { sites, places }
    }

    /// Every site, in order.
    pub fn sites(&self) -> &[ListedSite] {
        &self.sites
    }

    pub fn get(&self, site: Site) -> Option<&ListedSite> {
        self.place(site).map(|place| &self.sites[place])
    }

    /// The place of a site in the order of the graph.
    pub fn place(&self, site: Site) -> Option<usize> {
        self.places.get(&(site.layer, site.stage)).copied()
    }

    /// What the axes of a site's tensor count, slowest first.
    pub fn axes(&self, site: Site) -> &[Axis] {
        self.get(site).map_or(site.stage.axes(), |listed| &listed.axes)
    }

    /// Every site of a run with that many steps (prefill included), in order.
    pub fn of_run(&self, steps: u32) -> Vec<Site> {
        (0..steps).flat_map(|step| self.sites.iter().map(move |site| site.site(step))).collect()
    }

    /// Layers that have sites.
    pub fn layers(&self) -> usize {
        self.sites.iter().filter_map(|site| site.layer).collect::<BTreeSet<_>>().len()
    }

    /// The stages in the order of their first sites.
    pub fn stages(&self) -> Vec<Stage> {
        let mut seen = BTreeSet::new();
        let stages = self.sites.iter().map(|site| site.stage);
        stages.filter(|&stage| seen.insert(stage)).collect()
    }
}

impl From<&Sites> for SiteList {
    fn from(sites: &Sites) -> SiteList {
        let specs = sites.specs().iter();
        let listed = specs.map(|spec| ListedSite {
            layer: spec.layer,
            stage: spec.stage,
            axes: spec.axes.iter().map(|axis| axis.axis).collect(),
            sizes: spec.axes.iter().map(|axis| axis.size).collect(),
        });
        SiteList::new(listed.collect())
    }
}
