//! What is in a trace, whole or not: all of its files are looked at, and none ends the look.

use std::{collections::BTreeSet, path::Path};

use super::{
    error::TraceError,
    header::StepFile,
    layout::Layout,
    manifest::{MANIFEST_FILE, Manifest, UNFINISHED_FILE, step_file},
    read::{read_json, read_manifest},
};
use crate::{model::Config, site::Site};

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
    /// What is wrong, in the order of the files.
    pub errors: Vec<TraceError>,
    layout: Layout,
}

impl Inspection {
    /// Looks at the trace in a folder.
    ///
    /// # Errors
    /// There is no trace, or its manifest cannot be read or trusted: then nothing can be said of
    /// the rest.
    pub fn of(folder: &Path) -> Result<Inspection, TraceError> {
        let (manifest, finished) = match read_manifest(folder) {
            Err(TraceError::Unfinished { .. }) => (unfinished(folder)?, false),
            manifest => (manifest?, true),
        };
        let path = folder.join(if finished { MANIFEST_FILE } else { UNFINISHED_FILE });
        let layout = Layout::new(&path, &manifest.model)?;
        let (mut sites, mut errors) = (BTreeSet::new(), Vec::new());
        for (index, step) in manifest.steps.iter().enumerate() {
            let (path, run) = (folder.join(&step.file), manifest.run.as_deref());
            match (StepFile { path, index, step, run, layout: &layout }).places() {
                Ok(places) => sites.extend(places.into_iter().map(|(site, _)| site)),
                Err(error) => errors.push(error),
            }
        }
        let cut_step = !finished && folder.join(step_file(manifest.steps.len())).exists();
        Ok(Inspection { manifest, finished, cut_step, sites, errors, layout })
    }

    /// Every site that the model has in the steps of the manifest, in canonical order.
    pub fn model_sites(&self) -> Vec<Site> {
        self.layout.config().sites(self.manifest.steps.len() as u32)
    }

    /// The shapes and stages of the model.
    pub fn config(&self) -> &Config {
        self.layout.config()
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
