//! `firstdiff synth`: random models.

use std::path::Path;

use firstdiff::{
    core::exit::Exit,
    model::synth::{
        self, Spec, WeightType,
        arch::{self, ArchModel, ArchSpec, Architecture, Sizes},
    },
};

use super::{args::SynthArgs, error::Error, output};

/// Writes a random model.
pub fn synth(args: &SynthArgs) -> Result<Exit, Error> {
    if args.list_archs {
        let names: Vec<String> = arch::architectures().map(Architecture::name).collect();
        output::print(&format!("{}\n", names.join("\n")))?;
        return Ok(Exit::Equal);
    }
    let path = args.output.as_deref().expect("clap asks for it unless --list-archs is there");
    let what = match &args.arch {
        Some(name) => of_arch(args, name, path)?,
        None => of_shape(args, path)?,
    };
    let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    output::print(&format!("wrote {}: {what}, {size} bytes\n", path.display()))?;
    Ok(Exit::Equal)
}

/// Answers the parent process.
pub fn child() -> Result<Exit, Error> {
    arch::serve().map_err(|source| Error::Read { path: "standard input".into(), source })?;
    Ok(Exit::Equal)
}

fn of_shape(args: &SynthArgs, path: &Path) -> Result<String, Error> {
    let mut spec = Spec::preset(&args.shape)?;
    spec.seed = args.seed;
    let sizes = [
        (&mut spec.n_layer, args.layers),
        (&mut spec.n_embd, args.embd),
        (&mut spec.n_head, args.heads),
        (&mut spec.n_head_kv, args.kv_heads),
        (&mut spec.head_dim, args.head_dim),
        (&mut spec.n_ff, args.ffn),
        (&mut spec.n_vocab, args.vocab),
    ];
    for (size, wanted) in sizes {
        *size = wanted.map_or(*size, |wanted| wanted as usize);
    }
    spec.weight_type = args.weight_type.unwrap_or(spec.weight_type);
    let bar = output::progress(Some(synth::data_bytes(&spec)?), "writing weights");
    synth::write(&spec, path, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    Ok(format!("{} model", spec.arch.name()))
}

fn of_arch(args: &SynthArgs, name: &str, path: &Path) -> Result<String, Error> {
    let spec = ArchSpec {
        name: name.to_string(),
        sizes: Sizes {
            layers: args.layers,
            embd: args.embd,
            heads: args.heads,
            kv_heads: args.kv_heads,
            head_dim: args.head_dim,
            ffn: args.ffn,
        },
        vocab: args.vocab.map(|vocab| vocab as usize),
        settings: args.set.clone(),
        weight_type: args.weight_type.unwrap_or(WeightType::F32),
        seed: args.seed,
    };
    let program = std::env::current_exe()
        .map_err(|source| Error::Read { path: "firstdiff".into(), source })?;
    let model = ArchModel::plan(&spec, &program)?;
    let bar = output::progress(Some(model.data_bytes()), "writing weights");
    model.write(path, &program, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    Ok(format!("{name} model of {} tensors", model.layout().tensors.len()))
}
