//! What is in a trace, whole or not: all of its files are looked at, and none ends the look.

use std::{collections::BTreeSet, path::Path};

use super::{
    error::TraceError,
    layout::Layout,
    loaded,
    manifest::{MANIFEST_FILE, Manifest, UNFINISHED_FILE, step_file},
    ranks::{Part, folders, join},
    read::{read_json, read_manifest},
    shard::Shard,
    stitch::stitch,
};
use crate::graph::{SiteList, site::Site};

/// What is in a trace.
#[derive(Debug)]
pub struct Inspection {
    pub manifest: Manifest,
    /// Whether its writer ended it. Else the manifest lists the steps that were whole.
    pub finished: bool,
    /// Whether an unfinished trace has the file of a step that was not whole.
    pub cut_step: bool,
    /// The sites that were recorded, in the files that can be read.
    pub sites: BTreeSet<Site>,
    /// How many weights were recorded, of all ranks together.
    pub weights: usize,
    /// Those of them that have not a row for every token: how many they have, of how many.
    pub partly: Vec<(Site, [usize; 2])>,
    /// What is wrong, in the order of the files.
    pub errors: Vec<TraceError>,
    shard: Option<Shard>,
    layout: Layout,
}

impl Inspection {
    /// Looks at the trace in a folder.
    ///
    /// # Errors
    /// There is no trace, or its manifest cannot be read or trusted: then nothing can be said of
    /// the rest.
    pub fn of(folder: &Path) -> Result<Inspection, TraceError> {
        let (mut parts, mut finished) = (Vec::new(), true);
        for folder in folders(folder)? {
            let manifest = match read_manifest(&folder) {
                Err(TraceError::Unfinished { .. }) => {
                    finished = false;
                    unfinished(&folder)?
                }
                manifest => manifest?,
            };
            parts.push(Part { folder, manifest });
        }
        if !finished {
            // What one rank has not, no rank has.
            let whole = parts.iter().map(|part| part.manifest.steps.len()).min().unwrap_or(0);
            parts.iter_mut().for_each(|part| part.manifest.steps.truncate(whole));
        }
        let manifest = join(folder, &mut parts)?;
        let path = folder.join(if finished { MANIFEST_FILE } else { UNFINISHED_FILE });
        let layout = Layout::new(&path, &manifest.model)?;
        let (mut places, mut errors, mut weights) = (Vec::new(), Vec::new(), 0);
        for part in &parts {
            let mut of_part = Vec::new();
            for file in part.step_files(&layout) {
                match file.places() {
                    Ok(places) => of_part.extend(places),
                    Err(error) => errors.push(error),
                }
            }
            errors.extend(loaded::check(&part.folder, &part.manifest).err());
            weights += part.manifest.weights.as_ref().map_or(0, |own| own.tensors.len());
            places.push(of_part);
        }
        let (mut sites, mut partly) = (BTreeSet::new(), Vec::new());
        let read = errors.is_empty();
        for whole in stitch(folder, &manifest, &layout, &parts, places) {
            match whole {
                Ok((site, whole)) => {
                    sites.insert(site);
                    let all = manifest.steps[site.step as usize].tokens.len();
                    partly.extend(whole.rows.map(|rows| (site, [rows.len(), all])));
                }
                // A file that cannot be read is the reason, and is said.
                Err(error) if read => errors.push(error),
                Err(_) => {}
            }
        }
        let next = step_file(manifest.steps.len());
        let cut_step = !finished && parts.iter().any(|part| part.folder.join(&next).exists());
        let shard = parts[0].manifest.shard.clone();
        Ok(Inspection {
            manifest,
            shard,
            finished,
            cut_step,
            sites,
            weights,
            partly,
            errors,
            layout,
        })
    }

    /// How a rank's trace is split; `None` where there are no ranks.
    pub fn shard(&self) -> Option<&Shard> {
        self.shard.as_ref()
    }

    /// Every site that the model has in the steps of the manifest, in order.
    pub fn model_sites(&self) -> Vec<Site> {
        self.layout.list().of_run(self.manifest.steps.len() as u32)
    }

    /// The sites of the model.
    pub fn list(&self) -> &SiteList {
        self.layout.list()
    }
}

/// The manifest of a run that did not end.
fn unfinished(folder: &Path) -> Result<Manifest, TraceError> {
    let path = folder.join(UNFINISHED_FILE);
    let json = read_json(&path)?;
    if json.is_empty() {
        return Err(TraceError::NoStep { path: folder.into() });
    }
    let manifest = Manifest::parse(&path, &json)?;
    manifest.check_all_but_steps(&path)?;
    manifest.check_steps(&path)?;
    Ok(manifest)
}
