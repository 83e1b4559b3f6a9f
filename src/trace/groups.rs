//! The list of sites as a manifest and a plan have it: one entry for the sites of a name that are alike.
//!
//! Groups stand in the order of the graph. A group without layers is one site. Those with layers that
//! follow one another are a section, which goes layer by layer: of each layer every group that has it, in
//! the order of the groups. A group that begins a new section after others with layers says so.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{
    error::{Limit, TraceError},
    manifest::{field, within},
};
use crate::graph::{
    ListedSite, SiteList, Size,
    site::{Axis, Stage},
};

/// The most axes that a site may have.
const MAX_AXES: usize = 8;

/// Sites of one name, each of its own layer, with the same axes and sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteGroup {
    pub name: Stage,
    /// Ascending; none for a site that exists once a step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<u32>,
    /// Slowest first.
    pub axes: Vec<Axis>,
    /// As long as `axes`.
    pub shape: Vec<Length>,
    /// Whether its layers come after all of the groups before it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub section: bool,
}

/// A size: a number, or a text in T and P.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "LengthText", into = "LengthText")]
pub struct Length(pub Size);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum LengthText {
    Number(u32),
    Text(String),
}

impl TryFrom<LengthText> for Length {
    type Error = String;

    fn try_from(text: LengthText) -> Result<Length, String> {
        match text {
            LengthText::Number(number) => Ok(Length(Size::fixed(i64::from(number)))),
            LengthText::Text(text) => {
                text.parse().map(Length).map_err(|error: crate::graph::SizeError| error.to_string())
            }
        }
    }
}

impl From<Length> for LengthText {
    fn from(Length(size): Length) -> LengthText {
        match u32::try_from(size.fixed) {
            Ok(number) if size.is_fixed() => LengthText::Number(number),
            _ => LengthText::Text(size.to_string()),
        }
    }
}

/// The groups of a list, from which [`expanded`] makes the same list.
pub(super) fn grouped(list: &SiteList) -> Vec<SiteGroup> {
    let mut sections: Vec<Vec<SiteGroup>> = Vec::new();
    // Of the site before.
    let mut last: Option<u32> = None;
    // Where in the section the next site of the layer may be.
    let mut next = 0;
    for site in list.sites() {
        let Some(layer) = site.layer else {
            sections.push(vec![group(site)]);
            last = None;
            continue;
        };
        if last.is_none_or(|last| layer < last) {
            sections.push(Vec::new());
        }
        if last != Some(layer) {
            next = 0;
        }
        last = Some(layer);
        let Some(section) = sections.last_mut() else { continue };
        match section[next..].iter().position(|group| group.is_of(site)) {
            Some(ahead) => {
                next += ahead;
                section[next].layers.push(layer);
            }
            None => section.insert(next, group(site)),
        }
        next += 1;
    }
    let mut groups: Vec<SiteGroup> = Vec::new();
    for mut section in sections {
        let has_layers = |group: &SiteGroup| !group.layers.is_empty();
        section[0].section = groups.last().is_some_and(has_layers) && has_layers(&section[0]);
        groups.append(&mut section);
    }
    groups
}

fn group(site: &ListedSite) -> SiteGroup {
    SiteGroup {
        name: site.stage,
        layers: site.layer.into_iter().collect(),
        axes: site.axes.clone(),
        shape: site.sizes.iter().map(|&size| Length(size)).collect(),
        section: false,
    }
}

impl SiteGroup {
    fn is_of(&self, site: &ListedSite) -> bool {
        let shape = self.shape.iter().map(|length| &length.0);
        self.name == site.stage && self.axes == site.axes && shape.eq(&site.sizes)
    }

    fn listed(&self, layer: Option<u32>) -> ListedSite {
        let sizes = self.shape.iter().map(|length| length.0).collect();
        ListedSite { layer, stage: self.name, axes: self.axes.clone(), sizes }
    }

    /// What is wrong with it by itself.
    fn fault(&self) -> Option<&'static str> {
        let is_role = !matches!(self.name, Stage::Other(_));
        let ascends = self.layers.windows(2).all(|pair| pair[0] < pair[1]);
        if self.axes.is_empty() || self.axes.len() > MAX_AXES {
            Some("has no axes, or too many")
        } else if self.axes.len() != self.shape.len() {
            Some("has different numbers of axes and sizes")
        } else if is_role && self.name.in_layer() == self.layers.is_empty() {
            Some("is outside the layers and should be in one, or vice versa")
        } else if !ascends {
            Some("has layers that do not ascend")
        } else {
            None
        }
    }
}

/// The list that groups stand for.
///
/// # Errors
/// There are too many sites, one is there twice, or one is none.
pub(super) fn expanded(path: &Path, groups: &[SiteGroup]) -> Result<SiteList, TraceError> {
    let refuse = |at: usize, reason: String| {
        let name = groups[at].name.name();
        Err(field(path, format!("model.sites[{at}]"), format!("({name}) {reason}")))
    };
    let all = groups.iter().map(|group| group.layers.len().max(1) as u64).sum();
    within(path, Limit::Sites, all)?;
    for (at, group) in groups.iter().enumerate() {
        let last = group.layers.last().copied().unwrap_or(0);
        within(path, Limit::Layers, u64::from(last) + 1)?;
        if let Some(fault) = group.fault() {
            return refuse(at, fault.into());
        }
    }
    let mut sites = Vec::with_capacity(all as usize);
    let mut rest = groups;
    while let Some(first) = rest.first() {
        let is_inside = |group: &&SiteGroup| !group.layers.is_empty() && !group.section;
        let section = 1 + rest[1..].iter().take_while(is_inside).count();
        if first.layers.is_empty() {
            sites.push(first.listed(None));
            rest = &rest[1..];
            continue;
        }
        let (of_section, after) = rest.split_at(section);
        let mut placed: Vec<(u32, usize)> = Vec::new();
        for (at, group) in of_section.iter().enumerate() {
            placed.extend(group.layers.iter().map(|&layer| (layer, at)));
        }
        placed.sort_unstable();
        sites.extend(placed.into_iter().map(|(layer, at)| of_section[at].listed(Some(layer))));
        rest = after;
    }
    let list = SiteList::new(sites);
    let is_twice = |(place, site): (usize, &ListedSite)| list.place(site.site(0)) != Some(place);
    let twice = list.sites().iter().enumerate().find(|&(place, site)| is_twice((place, site)));
    if let Some((_, site)) = twice {
        let name = site.site(0).tensor_name();
        return Err(field(path, "model.sites".into(), format!("has {name} twice")));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> SiteList {
        let site = |name: &&str| {
            let site = crate::graph::site::Site::from_tensor_name(0, name).unwrap();
            let (axes, sizes) = (vec![Axis::Token], vec!["T".parse().unwrap()]);
            ListedSite { layer: site.layer, stage: site.stage, axes, sizes }
        };
        SiteList::new(names.iter().map(site).collect())
    }

    fn order(list: &SiteList) -> Vec<String> {
        list.sites().iter().map(|site| site.site(0).tensor_name()).collect()
    }

    #[test]
    fn groups_give_back_the_order_of_the_sites() {
        for (names, groups) in [
            (&["embd", "blk.0.q", "blk.0.k", "blk.1.q", "blk.1.k", "logits"][..], 4),
            // A site that the first layer has not, and one that only it has.
            (&["blk.0.q", "blk.0.x", "blk.1.y", "blk.1.q", "blk.1.k", "blk.2.y", "blk.2.q"], 4),
            // Two sites in another order.
            (&["blk.0.a", "blk.0.b", "blk.1.b", "blk.1.a", "blk.2.a", "blk.2.b"], 3),
            // Layers that come again, and sites outside of layers between them.
            (&["blk.0.a", "blk.1.a", "blk.0.b", "blk.1.b", "s", "blk.1.c", "t", "blk.1.d"], 6),
            (&["blk.1.a", "blk.0.a", "blk.0.z", "s", "embd", "blk.7.a"], 6),
        ] {
            let list = list(names);
            let found = grouped(&list);
            assert_eq!(found.len(), groups, "{found:?}");
            let json = serde_json::to_vec(&found).unwrap();
            let read: Vec<SiteGroup> = serde_json::from_slice(&json).unwrap();
            assert_eq!(read, found);
            let back = expanded(Path::new("m"), &read).unwrap();
            assert_eq!(order(&back), order(&list));
            assert_eq!(back, list);
        }
    }

    #[test]
    fn groups_that_are_none_are_refused() {
        for (json, why) in [
            (r#"[{"name":"a","axes":["token"],"shape":["T",1]}]"#, "different numbers of axes"),
            (r#"[{"name":"a","axes":[],"shape":[]}]"#, "no axes"),
            (r#"[{"name":"q","axes":["token"],"shape":["T"]}]"#, "should be in one"),
            (r#"[{"name":"a","layers":[1,1],"axes":["token"],"shape":["T"]}]"#, "do not ascend"),
            (r#"[{"name":"a","layers":[4096],"axes":["token"],"shape":["T"]}]"#, "4097 layers"),
            (
                r#"[{"name":"a","axes":["token"],"shape":[1]},{"name":"a","axes":["token"],"shape":[2]}]"#,
                "a twice",
            ),
        ] {
            let groups: Vec<SiteGroup> = serde_json::from_str(json).unwrap();
            let error = expanded(Path::new("m"), &groups).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        for json in [
            r#"[{"name":"a b","axes":["token"],"shape":["T"]}]"#,
            r#"[{"name":"a","axes":["tokens"],"shape":["T"]}]"#,
            r#"[{"name":"a","axes":["token"],"shape":["T*"]}]"#,
            r#"[{"name":"a","axes":["token"],"shape":[-1]}]"#,
            r#"[{"name":"a","axes":["token"],"shape":[1],"more":1}]"#,
        ] {
            assert!(serde_json::from_str::<Vec<SiteGroup>>(json).is_err(), "{json}");
        }
    }
}
