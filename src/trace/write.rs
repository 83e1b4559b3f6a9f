//! Records one side's run. Nothing appears at the target before the run is complete.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{
    array::Array,
    batch::Batch,
    error::{Limit, TraceError},
    layout::Layout,
    manifest::{CHECKSUM_FILE, MANIFEST_FILE, Manifest, Side, Step, step_file, within},
    plan::{PLAN_FILE, plan},
    removed::Removed,
    seal,
    shard::rank_folder,
    step::StepWriter,
    weights::{WEIGHTS_FILE, WeightsWriter},
};
use crate::{
    core::{
        files,
        loaded::LoadedWeight,
        sink::{Choice, Sink, Stopped},
        tensor::Tensor,
    },
    graph::{SiteList, site::Site},
};

/// Writes a trace step by step; a tensor goes to disk as it is put, so memory holds one at most.
///
/// The files grow in a temporary folder beside the target and move there in [`finish`]. A writer
/// dropped before that removes what it wrote. After an error the writer can only be dropped.
///
/// As a [`Sink`] it wants every site of the open step. An error in there is kept, stops the side,
/// and is returned by the writer's next call.
///
/// [`finish`]: TraceWriter::finish
#[derive(Debug)]
pub struct TraceWriter {
    target: PathBuf,
    overwrite: bool,
    /// Removed on drop. The trace grows in a subfolder, which has the user's default permissions.
    temporary: TempDir,
    manifest: Manifest,
    layout: Layout,
    open: Option<StepWriter>,
    weights: Option<WeightsWriter>,
    failure: Failure,
}

/// Whether a call has failed.
#[derive(Debug)]
enum Failure {
    None,
    /// Through the [`Sink`], which cannot return it.
    Kept(TraceError),
    Returned,
}

impl TraceWriter {
    /// Starts a trace that will lie in `folder`, or, of a rank, in `folder/rankN`. Steps already in the manifest are dropped.
    ///
    /// # Errors
    /// The folder exists (unless it is empty, or holds a trace and `overwrite` is set), nothing can
    /// be written beside it, or the manifest describes no usable model.
    pub fn create(
        folder: &Path,
        mut manifest: Manifest,
        overwrite: bool,
    ) -> Result<TraceWriter, TraceError> {
        let (path, within) = (folder.join(MANIFEST_FILE), folder);
        let layout = Layout::new(&path, &manifest.model)?;
        let folder = match &manifest.shard {
            None => within.to_path_buf(),
            Some(shard) => {
                shard.check(&path, layout.list())?;
                fs::create_dir_all(within).map_err(TraceError::io("create", within))?;
                rank_folder(within, shard.rank)
            }
        };
        check_target(&folder, overwrite)?;
        manifest.steps.clear();
        (manifest.graph, manifest.weights) = (None, None);
        manifest.run = manifest.run.or_else(seal::run_name);
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let temporary = files::temporary_folder_in(parent)
            .map_err(TraceError::io("create a folder in", parent))?;
        let draft = draft(&temporary);
        fs::create_dir(&draft).map_err(TraceError::io("create", draft))?;
        Ok(TraceWriter {
            target: folder,
            overwrite,
            temporary,
            manifest,
            layout,
            open: None,
            weights: None,
            failure: Failure::None,
        })
    }

    /// The sites that a step may have, with their shapes.
    pub fn list(&self) -> &SiteList {
        self.layout.list()
    }

    /// The manifest, for what is known only during the run, such as floors.
    pub fn manifest_mut(&mut self) -> &mut Manifest {
        &mut self.manifest
    }

    /// Writes the model's graph beside the trace, with the values of its inputs over all tokens of the run.
    #[cfg(feature = "full")]
    pub fn put_graph(
        &mut self,
        graph: &crate::graph::ModelGraph,
        inputs: &crate::graph::SequenceInputs,
    ) -> Result<(), TraceError> {
        self.guard(|writer| {
            let folder = draft(&writer.temporary);
            writer.manifest.graph = Some(super::graph_files::write(&folder, graph, inputs)?);
            Ok(())
        })
    }

    /// Records a weight as the engine holds it once it is loaded, before the first step.
    pub fn put_weight(&mut self, weight: &LoadedWeight) -> Result<(), TraceError> {
        self.guard(|writer| {
            let name = &weight.name;
            if writer.open.is_some() || !writer.manifest.steps.is_empty() {
                let what = format!("the weight {name} was put after the first step began");
                return Err(TraceError::Misuse(what));
            }
            let weights = match &mut writer.weights {
                Some(weights) => weights,
                none => {
                    let path = draft(&writer.temporary).join(WEIGHTS_FILE);
                    let run = writer.manifest.run.as_deref();
                    none.insert(WeightsWriter::create(path, run)?)
                }
            };
            weights.put(weight)
        })
    }

    /// Starts the next step, which runs `tokens` from `first_position` on.
    pub fn begin_step(&mut self, tokens: &[i32], first_position: usize) -> Result<(), TraceError> {
        self.begin(tokens, first_position, None)
    }

    /// The same of the first step, after a cached prefix of these ids: the step begins behind them.
    pub fn begin_step_behind(&mut self, prefix: &[i32], tokens: &[i32]) -> Result<(), TraceError> {
        if !self.manifest.steps.is_empty() {
            let what = format!("a prefix was given to step {}", self.manifest.steps.len());
            return self.guard(|_| Err(TraceError::Misuse(what)));
        }
        self.begin(tokens, prefix.len(), None)?;
        self.open = self.open.take().map(|open| open.with_prefix(prefix));
        Ok(())
    }

    /// The same after positions were removed from the caches: rejected drafts, or the oldest in a context shift.
    pub fn begin_step_after(
        &mut self,
        removed: Removed,
        tokens: &[i32],
        first_position: usize,
    ) -> Result<(), TraceError> {
        self.begin(tokens, first_position, Some(removed))
    }

    fn begin(
        &mut self,
        tokens: &[i32],
        first_position: usize,
        removed: Option<Removed>,
    ) -> Result<(), TraceError> {
        self.guard(|writer| {
            let index = writer.manifest.steps.len();
            // What was in the cache before the first step is another run's.
            let end = writer.manifest.steps.last().map(Step::positions);
            let left = |removed: Removed| {
                removed.left_of(end.unwrap_or(0)).map_err(|reason| {
                    TraceError::Misuse(format!("what is removed before step {index} {reason}"))
                })
            };
            let expected = match removed {
                Some(removed) => left(removed)?,
                None => end.unwrap_or(first_position),
            };
            if writer.open.is_some() || tokens.is_empty() || first_position != expected {
                return Err(TraceError::Misuse(format!(
                    "step {index} began with {} tokens at position {first_position} \
                     after {expected} tokens{}",
                    tokens.len(),
                    if writer.open.is_some() { " and an unended step" } else { "" },
                )));
            }
            if let Some(weights) = writer.weights.take() {
                writer.manifest.weights = Some(weights.close()?);
            }
            let path = draft(&writer.temporary).join(step_file(index));
            let (layout, manifest) = (&writer.layout, &writer.manifest);
            let open = StepWriter::create(path, index, tokens, first_position, layout, manifest)?;
            writer.open = Some(open.with_removed(removed));
            Ok(())
        })
    }

    /// Starts the next step of several sequences: `tokens` are those of all rows, padding among them.
    pub fn begin_batch(&mut self, tokens: &[i32], batch: Batch) -> Result<(), TraceError> {
        let rows = self.manifest.steps.last().map_or(0, Step::positions);
        self.begin_step(tokens, rows)?;
        self.open = self.open.take().map(|open| open.with_batch(batch));
        Ok(())
    }

    /// Writes the tensor of a site of the open step, in the shape of the stage's definition.
    pub fn put(&mut self, site: Site, tensor: &Tensor) -> Result<(), TraceError> {
        self.guard(|writer| match &mut writer.open {
            Some(open) => open.put(&writer.layout, site, tensor),
            None => Err(TraceError::Misuse(format!("{site} was put outside of a step"))),
        })
    }

    /// Writes an array of the open step in any layout and format, or some rows of it: rows are stacked in the
    /// order of the calls. A cache with fewer positions than there are after the step is left out.
    pub fn put_array(&mut self, site: Site, array: &Array<'_>) -> Result<(), TraceError> {
        self.guard(|writer| match &mut writer.open {
            Some(open) => open.put_array(&writer.layout, site, array),
            None => Err(TraceError::Misuse(format!("{site} was put outside of a step"))),
        })
    }

    /// Notes what the side itself would decode after the open step.
    pub fn set_choice(&mut self, choice: Choice) -> Result<(), TraceError> {
        self.guard(|writer| {
            let misuse = || TraceError::Misuse("a choice was made outside of a step".into());
            writer.open.as_mut().ok_or_else(misuse)?.set_choice(choice);
            Ok(())
        })
    }

    /// Ends the open step; its file exists even if no tensor was put.
    pub fn end_step(&mut self) -> Result<(), TraceError> {
        self.guard(|writer| {
            let misuse = || TraceError::Misuse("a step ended that had not begun".into());
            let step = writer.open.take().ok_or_else(misuse)?.close()?;
            writer.manifest.steps.push(step);
            Ok(())
        })
    }

    /// Returns the error of a call through the [`Sink`], if one has failed.
    pub fn failure(&mut self) -> Result<(), TraceError> {
        self.guard(|_| Ok(()))
    }

    /// Writes the manifest and moves the trace to its target.
    ///
    /// # Errors
    /// As any other call; then nothing changes at the target.
    pub fn finish(mut self) -> Result<(), TraceError> {
        self.guard(|writer| {
            if writer.open.is_some() || writer.manifest.steps.is_empty() {
                let steps = writer.manifest.steps.len();
                return Err(TraceError::Misuse(format!("finished after {steps} ended steps")));
            }
            writer.write_manifest()
        })?;
        self.publish()
    }

    fn write_manifest(&self) -> Result<(), TraceError> {
        let target = self.target.join(MANIFEST_FILE);
        self.manifest.check(&target)?;
        let mut json = serde_json::to_vec_pretty(&self.manifest)
            .map_err(|error| TraceError::Misuse(format!("the manifest is not JSON: {error}")))?;
        json.push(b'\n');
        within(&target, Limit::ManifestBytes, json.len() as u64)?;
        let checksum = seal::of_manifest(&json).map(|text| (CHECKSUM_FILE, text.into_bytes()));
        let mut files = vec![(MANIFEST_FILE, json)];
        files.extend(checksum);
        if self.manifest.side == Side::Reference {
            files.push((PLAN_FILE, plan(&self.manifest).into_bytes()));
        }
        for (name, bytes) in files {
            let path = draft(&self.temporary).join(name);
            fs::write(&path, bytes).map_err(TraceError::io("write", path))?;
        }
        Ok(())
    }

    fn publish(self) -> Result<(), TraceError> {
        // Again, as a run takes time and the folder may have appeared since.
        check_target(&self.target, self.overwrite)?;
        let old = self.temporary.path().join(files::REPLACED);
        let replaces = self.target.symlink_metadata().is_ok();
        if replaces {
            fs::rename(&self.target, &old).map_err(TraceError::io("replace", &self.target))?;
        }
        if let Err(source) = fs::rename(draft(&self.temporary), &self.target) {
            if replaces && fs::rename(&old, &self.target).is_err() {
                // The old trace stays in the temporary folder rather than vanish with it.
                let _ = self.temporary.keep();
            }
            return Err(TraceError::Io { action: "move the trace to", path: self.target, source });
        }
        let leftover = self.temporary.path().to_path_buf();
        self.temporary.close().map_err(TraceError::io("remove", leftover))
    }

    /// Keeps the error of a call through the [`Sink`].
    fn kept(&mut self, result: Result<(), TraceError>) -> Result<(), Stopped> {
        result.map_err(|error| {
            self.failure = Failure::Kept(error);
            Stopped
        })
    }

    /// Runs a call unless an earlier one failed, and remembers if this one does.
    fn guard(
        &mut self,
        call: impl FnOnce(&mut TraceWriter) -> Result<(), TraceError>,
    ) -> Result<(), TraceError> {
        match std::mem::replace(&mut self.failure, Failure::Returned) {
            Failure::None => {}
            Failure::Kept(error) => return Err(error),
            Failure::Returned => return Err(TraceError::Misuse("used after it failed".into())),
        }
        call(self)?;
        self.failure = Failure::None;
        Ok(())
    }
}

impl Sink for TraceWriter {
    fn wants(&self, site: Site) -> bool {
        let open = self.open.as_ref().filter(|_| matches!(self.failure, Failure::None));
        open.is_some_and(|open| open.takes(&self.layout, site))
    }

    fn begin_step(&mut self, tokens: &[i32], first_position: usize) -> Result<(), Stopped> {
        let begun = TraceWriter::begin_step(self, tokens, first_position);
        self.kept(begun)
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        let put = TraceWriter::put(self, site, &tensor);
        self.kept(put)
    }

    fn end_step(&mut self, choice: Option<Choice>) -> Result<(), Stopped> {
        let set = choice.map_or(Ok(()), |choice| self.set_choice(choice));
        let ended = set.and_then(|()| TraceWriter::end_step(self));
        self.kept(ended)
    }
}

/// Where the trace grows.
fn draft(temporary: &TempDir) -> PathBuf {
    temporary.path().join("trace")
}

/// Refuses a folder that is not the writer's to replace.
fn check_target(folder: &Path, overwrite: bool) -> Result<(), TraceError> {
    let occupied = || TraceError::Occupied { path: folder.into() };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Err(occupied()),
        Err(error) => return Err(TraceError::io("read", folder)(error)),
    };
    let (mut empty, mut marks, mut steps) = (true, 0, 0);
    for entry in entries {
        let name = entry.map_err(TraceError::io("read", folder))?.file_name();
        let name = name.to_string_lossy();
        empty = false;
        match &*name {
            MANIFEST_FILE | CHECKSUM_FILE => marks += 1,
            PLAN_FILE | WEIGHTS_FILE | "graph.json" | "inputs.safetensors" => {}
            name if name.starts_with("step-") && name.ends_with(".safetensors") => steps += 1,
            // Never delete a folder with a file in it that no trace has.
            _ => return Err(occupied()),
        }
    }
    // A trace without hashes has its steps.
    match (empty, marks == 2 || marks == 1 && steps > 0, overwrite) {
        (true, ..) | (_, true, true) => Ok(()),
        (_, false, _) => Err(occupied()),
        (_, true, false) => Err(TraceError::Exists { path: folder.into() }),
    }
}
