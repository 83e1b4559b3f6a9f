//! Why a trace cannot be written, trusted or compared.

use std::{fmt, io, ops::Range, path::PathBuf};

use crate::{core::exit::Exit, graph::site::Site};

/// A cap on a length that a trace states, checked before anything of that length is read or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Bytes of `manifest.json`.
    ManifestBytes,
    /// Steps of a trace.
    Steps,
    /// Tokens of all steps together.
    Tokens,
    /// Ranks that one trace is made of.
    Ranks,
    /// Layers of the model.
    Layers,
    /// Entries of the vocabulary, or another size of the model.
    Dimension,
    /// Sites of a step.
    Sites,
    /// Bytes of `graph.json`.
    GraphBytes,
    /// Tensors of all steps together.
    Tensors,
    /// Bytes of a step file's safetensors header.
    HeaderBytes,
    /// Elements of one tensor.
    Elements,
    /// Weights that an engine held.
    Weights,
}

impl Limit {
    /// The largest value allowed: far above any real run, low enough to hold in memory.
    pub fn max(self) -> u64 {
        match self {
            Limit::ManifestBytes => 64 << 20,
            Limit::Steps => 1 << 16,
            Limit::Tokens => 1 << 20,
            Limit::Ranks => 1 << 10,
            Limit::Layers => 1 << 10,
            Limit::Dimension => 1 << 24,
            Limit::Sites => 1 << 17,
            Limit::GraphBytes => 256 << 20,
            Limit::Tensors => 1 << 22,
            // All sites of a step at under 512 bytes an entry.
            Limit::HeaderBytes => 64 << 20,
            Limit::Elements => 1 << 32,
            Limit::Weights => 1 << 17,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::ManifestBytes => "bytes of manifest",
            Limit::Steps => "steps",
            Limit::Tokens => "tokens",
            Limit::Ranks => "ranks",
            Limit::Layers => "layers",
            Limit::Dimension => "entries of a model dimension",
            Limit::Sites => "sites",
            Limit::GraphBytes => "bytes of graph",
            Limit::Tensors => "tensors",
            Limit::HeaderBytes => "bytes of safetensors header",
            Limit::Elements => "elements of a tensor",
            Limit::Weights => "weights",
        })
    }
}

/// What a [`TraceError`] means for the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The user named something that is not there or cannot be used: exit 2.
    BadInput,
    /// The trace cannot be trusted, or the two cannot be compared: exit 3.
    Refused,
    /// The side that recorded broke the writer's contract, a bug of that side: exit 70.
    Internal,
}

/// Why a trace cannot be written, trusted or compared.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("no trace at {path}; check the path, or record one with `firstdiff capture`")]
    Missing { path: PathBuf },
    #[error(
        "{path} is not a trace: it has no manifest.json; name the folder that was recorded to, or make a trace of \
         a dump with `firstdiff align` and `firstdiff import`"
    )]
    NotATrace { path: PathBuf },
    #[error(
        "{path} is unfinished: the recording program ended too early; `firstdiff validate {path}` reports what \
         is readable"
    )]
    Unfinished { path: PathBuf },
    #[error(
        "{path} has no step: the recording program ended before its first step was complete; record it again"
    )]
    NoStep { path: PathBuf },
    #[error(
        "{path} exists; choose another folder, or overwrite the trace in it (capture --overwrite)"
    )]
    Exists { path: PathBuf },
    #[error(
        "{path} holds something other than a trace, which firstdiff does not overwrite; choose another folder"
    )]
    Occupied { path: PathBuf },
    #[error("cannot {action} {path}: {source}; {}", advice(source.kind()))]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    #[error("{path} {}", sequences_text(all, *number))]
    Sequences { path: PathBuf, all: Vec<u32>, number: Option<u32> },

    #[error("the writer was misused: {0}; this is a bug of the recording side, please report it")]
    Misuse(String),
    #[error("{site} was put with shape {found:?} instead of {expected:?}; fix the recording side")]
    PutShape { site: Site, expected: Vec<usize>, found: Vec<usize> },

    #[error("{path} is not a trace manifest: {source}; record the trace again")]
    Manifest { path: PathBuf, source: serde_json::Error },
    #[error(
        "{path} has format version {found}, this firstdiff reads {supported}; \
         record the trace again with this version"
    )]
    Version { path: PathBuf, found: u64, supported: u32 },
    #[error("{path} states {found} {limit}, the limit is {}; record a smaller run", limit.max())]
    OverLimit { path: PathBuf, limit: Limit, found: u64 },
    #[error("{path}: {field} {reason}; fix the program that wrote the trace, or record it again")]
    Field { path: PathBuf, field: String, reason: String },
    #[error(
        "{path} belongs to the trace but is missing or not a file; copy it again or record the trace again"
    )]
    MissingFile { path: PathBuf },
    #[error(
        "{path} has {found} bytes, the manifest says {expected}; \
         it was truncated or replaced: copy it again or record the trace again"
    )]
    Length { path: PathBuf, expected: u64, found: u64 },
    #[error(
        "{path} has blake3 {found} instead of the recorded {expected}; \
         it was changed or swapped after recording: copy it again or record it again"
    )]
    Checksum { path: PathBuf, expected: String, found: String },
    #[error(
        "{path} was written as {found}, but the manifest expects {expected}; \
         files of two runs or steps were mixed up: copy the whole trace or record it again"
    )]
    OtherRun { path: PathBuf, expected: String, found: String },
    #[error("{path} is not a valid safetensors file: {reason}; fix its writer or record it again")]
    SafeTensors { path: PathBuf, reason: String },
    #[error("{path} has tensor {name:?}, which this model does not have; fix its writer")]
    UnknownTensor { path: PathBuf, name: String },
    #[error("{path} has {name} as {found} instead of F32, F16, BF16 or F64; fix its writer")]
    TensorType { path: PathBuf, name: String, found: String },
    #[error("{path} has {name} of shape {found:?}{fits} instead of {expected:?}; fix its writer")]
    TensorShape {
        path: PathBuf,
        name: String,
        expected: Vec<usize>,
        found: Vec<usize>,
        /// The layout that it would fit, in words, or nothing.
        fits: Box<str>,
    },
    #[error(
        "{path} has {site} in big-endian: its values are sane only with swapped bytes; write little-endian"
    )]
    ByteOrder { path: PathBuf, site: Site },

    #[error("{path} is rank {rank} of {world} only; name the folder that holds all ranks")]
    OneRank { path: PathBuf, rank: usize, world: usize },
    #[error("{path} holds a whole trace and the ranks of another; delete the wrong one")]
    WholeAndRanks { path: PathBuf },
    #[error(
        "{path} is in a rank's folder but was not recorded as a rank; pass the rank to its writer"
    )]
    NoRank { path: PathBuf },
    #[error("{path} has no rank {rank} of {world}; copy its folder there, or record it again")]
    MissingRank { path: PathBuf, rank: usize, world: usize },
    #[error("{a} and {b} are both rank {rank}; give each process its own rank")]
    SameRank { a: PathBuf, b: PathBuf, rank: usize },
    #[error("{a} and {b} are not ranks of one run: {reason}; delete the folder and record again")]
    OtherWorld { a: PathBuf, b: PathBuf, reason: String },
    #[error("{a} and {b} are not ranks of one run: {source}")]
    OtherRank { a: PathBuf, b: PathBuf, source: Box<TraceError> },
    #[error("{path}: {site} {reason}; record it whole on every rank, or on none")]
    Stitch { path: PathBuf, site: Site, reason: String },

    #[error(
        "the traces are of different models, {a} and {b}{alike}; record both from the same file"
    )]
    OtherModel {
        a: String,
        b: String,
        /// What the two have in common, in words, or nothing.
        alike: &'static str,
    },
    #[error("the traces disagree on {what}, {a} and {b}; record both from the same file")]
    OtherShapes { what: String, a: String, b: String },
    #[error(
        "the traces ran different token ids: step {step}, position {position} \
         has {a} and {b}; record both with the same prompt and decoded tokens"
    )]
    OtherTokens { step: usize, position: usize, a: i32, b: i32 },
    #[error(
        "the traces have no position in common: one has {} to {}, the other {} to {}; record both over \
         the same tokens", a.start, a.end - 1, b.start, b.end - 1
    )]
    OtherPositions { a: Range<usize>, b: Range<usize> },
    #[error("{site} {reason}")]
    PutArray { site: Site, reason: String },
    #[error(
        "step {step} has {a} and {b} tokens; record both with the same prompt in as many batches"
    )]
    OtherStepLength { step: usize, a: usize, b: usize },
}

impl TraceError {
    /// What the error means for the exit code.
    pub fn kind(&self) -> Kind {
        use TraceError::*;
        match self {
            Missing { .. } | NotATrace { .. } | Exists { .. } | Occupied { .. } | Io { .. } => {
                Kind::BadInput
            }
            OneRank { .. } | Sequences { .. } => Kind::BadInput,
            Misuse(_) | PutShape { .. } | PutArray { .. } => Kind::Internal,
            _ => Kind::Refused,
        }
    }

    /// The exit code of the error.
    pub fn exit(&self) -> Exit {
        match self.kind() {
            Kind::BadInput => Exit::BadInput,
            Kind::Refused => Exit::Refused,
            Kind::Internal => Exit::Internal,
        }
    }

    /// Whether the trace was there and readable, but cannot be trusted or compared.
    pub fn is_refusal(&self) -> bool {
        self.kind() == Kind::Refused
    }

    /// Wraps an io error: `map_err(TraceError::io("write", &path))`.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> TraceError {
        let path = path.into();
        move |source| TraceError::Io { action, path, source }
    }
}

/// Which sequences a trace has, where one must be named.
fn sequences_text(all: &[u32], number: Option<u32>) -> String {
    let named: Vec<String> = all.iter().map(u32::to_string).collect();
    match (all, number) {
        ([], Some(number)) => {
            format!("is one sequence without a number, not {number}; leave out --sequence")
        }
        (_, None) => {
            format!("has the sequences {}; choose one with --sequence", named.join(", "))
        }
        (_, Some(number)) => {
            format!("has no sequence {number}; choose one of {}", named.join(", "))
        }
    }
}

fn advice(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free space on that disk or choose a folder on another"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "choose a folder that you can access, or change its permissions"
        }
        io::ErrorKind::NotFound => "create its parent folder, or check the path",
        _ => "check the disk, then try again",
    }
}
