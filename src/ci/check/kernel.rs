//! Which kernel makes a stage, and on which line of which file it stands.

use std::path::{Path, PathBuf};

use crate::{
    core::tensor::DType,
    engine::{
        AttentionVariant,
        kernels::KernelSet,
        variant::{Decode, Prefill},
    },
    graph::site::Stage,
    model::RopePairs,
    report::ci::Place,
};

/// How an engine chooses its kernels.
#[derive(Clone, Copy)]
pub struct Chosen {
    pub dtype: DType,
    pub variant: AttentionVariant,
    pub rope_pairs: RopePairs,
}

impl Chosen {
    /// The file and entry that make a stage in a step of so many tokens; `None` for matrix products,
    /// which are the device's own.
    fn kernel(self, stage: Stage, tokens: usize) -> Option<(&'static str, String)> {
        let (file, name) = match stage {
            Stage::Embd => ("embedding.cu", "embedding"),
            Stage::AttnNorm | Stage::QNorm | Stage::KNorm | Stage::FfnNorm | Stage::FinalNorm => {
                ("rms_norm.cu", "rms_norm")
            }
            Stage::QRope | Stage::KRope if self.rope_pairs == RopePairs::Neox => {
                ("rope.cu", "rope_neox")
            }
            Stage::QRope | Stage::KRope => ("rope.cu", "rope_norm"),
            Stage::KCache | Stage::VCache => ("kv_append.cu", "kv_append"),
            Stage::Scores | Stage::Probs | Stage::AttnOut => self.attention(stage, tokens),
            Stage::FfnAct => ("swiglu.cu", "swiglu"),
            Stage::AttnResidual | Stage::LayerOut => ("residual_add.cu", "residual_add"),
            Stage::Q | Stage::K | Stage::V | Stage::OProj => return None,
            Stage::FfnGate | Stage::FfnUp | Stage::FfnDown | Stage::Logits => return None,
            Stage::Other(_) => return None,
        };
        Some((file, format!("{name}_{}", self.dtype)))
    }

    fn attention(self, stage: Stage, tokens: usize) -> (&'static str, &'static str) {
        match (tokens, stage) {
            (1, Stage::Scores) if self.variant.decode == Decode::Split => {
                ("attention_split.cu", "attention_split")
            }
            (1, _) if self.variant.decode == Decode::Split => {
                ("attention_split.cu", "attention_combine")
            }
            (2.., _) if self.variant.prefill == Prefill::Tiled => {
                ("attention_tiled.cu", "attention_tiled")
            }
            _ => ("attention.cu", "attention"),
        }
    }

    /// Where the kernel of a stage begins.
    pub fn place(self, kernels: &KernelSet, stage: Stage, tokens: usize) -> Option<Place> {
        let (file, entry) = self.kernel(stage, tokens)?;
        let text = kernels.read(file).ok()??;
        let is_entry =
            |line: &str| line.contains("__global__") && line.contains(&format!(" {entry}("));
        let line = text.lines().position(is_entry)? + 1;
        Some(Place { file: shown(kernels, file), line, entry })
    }
}

/// The line that an error about a kernel file names, such as `rope.cu:33`.
pub fn place_of_error(kernels: &KernelSet, message: &str) -> Option<Place> {
    let of = |file: &'static str| {
        let after = message.match_indices(file).map(|(at, _)| &message[at + file.len()..]);
        let line = |rest: &str| {
            let digits = rest.strip_prefix(':')?;
            digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let line = after.filter_map(line).next()?;
        Some(Place { file: shown(kernels, file), line, entry: String::new() })
    };
    KernelSet::files().chain(["common.cuh"]).find_map(of)
}

/// The path of a kernel file as a repository sees it: from the current folder.
fn shown(kernels: &KernelSet, file: &str) -> String {
    let own = kernels.folder().map(|folder| folder.join(file)).filter(|path| path.is_file());
    let path = own.unwrap_or_else(|| Path::new("kernels").join(file));
    let here = std::env::current_dir().ok();
    let relative = |path: &PathBuf| {
        let (path, here) = (path.canonicalize().ok()?, here?.canonicalize().ok()?);
        path.strip_prefix(here).ok().map(Path::to_path_buf)
    };
    relative(&path).unwrap_or(path).display().to_string()
}
