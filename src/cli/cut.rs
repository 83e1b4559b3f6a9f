//! `firstdiff cut`: the first layers of a model.

use std::path::Path;

use firstdiff::{
    core::{exit::Exit, files},
    model::{Cut, ModelFile},
    reference::{Reference, ReferenceOptions},
};

use super::{args::CutArgs, error::Error, output};

/// Writes the first layers of a model as a model.
pub fn cut(args: &CutArgs) -> Result<Exit, Error> {
    let model = ModelFile::open(&args.model)?;
    let real = |path: &Path| path.canonicalize().ok();
    if real(&args.output).is_some_and(|output| real(&args.model) == Some(output)) {
        return Err(Error::Usage("-o names the model itself; give another file".into()));
    }
    if !files::is_replaced(&args.output) {
        let path = args.output.display();
        let what = "is a device or a pipe, and a cut model is read again; give a file";
        return Err(Error::Usage(format!("{path} {what}")));
    }
    let cut = Cut::plan(&model, args.layers)?;
    let bar = output::progress(Some(cut.data_bytes()), "writing weights");
    cut.write(&args.output, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    // Some architectures have tensors for all layers together.
    let loaded = ModelFile::open(&args.output).map_err(Error::from).and_then(|model| {
        Reference::load(&model, ReferenceOptions::default()).map_err(Error::from)
    });
    if let Err(error) = loaded {
        // What stays behind cannot be used.
        let _ = std::fs::remove_file(&args.output);
        let (path, architecture) = (args.model.display(), &model.architecture);
        return Err(Error::Usage(format!(
            "{path} cannot be cut, because its architecture is {architecture}: {error}"
        )));
    }
    let size = std::fs::metadata(&args.output).map_or(0, |metadata| metadata.len());
    let (path, layers) = (args.output.display(), args.layers);
    output::print(&format!("wrote {path}: {layers} of {} layers, {size} bytes\n", cut.of))?;
    Ok(Exit::Equal)
}
