//! The command line, as clap reads it. Model and prompt flags are spelled as llama.cpp spells them.

use std::{net::Ipv4Addr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use firstdiff::{
    compare::{Layers, Queries},
    core::{arithmetic::Convention, tensor::DType},
    diagnosis::replay::Replay,
    engine::AttentionVariant,
    model::synth::{WeightType, arch::Setting},
    reference::{DEFAULT_PORT, Server},
};

use super::{error::Error, lengths::Lengths, output};

/// Find the first tensor where your LLM inference engine diverges from llama.cpp.
#[derive(Parser)]
#[command(name = "firstdiff", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Time limit for one kernel launch, one llama.cpp operation or one compilation [default: 300, plus one second
    /// per 50 MB of the model]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<f64>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (1.0..=1e6).contains(seconds));
    seconds.ok_or_else(|| "expected seconds from 1 to 1000000".to_string())
}

impl Command {
    /// Whether the command reads answers from the terminal.
    pub fn asks_the_user(&self) -> bool {
        matches!(self, Command::Bless(args) if args.ask)
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the engine and llama.cpp side by side and compare every tensor
    Run(RunArgs),
    /// Record one side's tensors as a trace
    Capture(CaptureArgs),
    /// Write what an engine must run and may record (token ids, sites) without running anything
    Plan(PlanArgs),
    /// Compare two recorded traces
    Diff(DiffArgs),
    /// Name the wrong operations of a recorded engine, and their causes
    Explain(ExplainArgs),
    /// List every compared tensor of a model: name, axes, shape, operation, weight, inputs
    Sites(super::sites::SitesArgs),
    /// Show what a trace holds, what is missing or wrong, and which verdicts it allows
    Validate(ValidateArgs),
    /// Match the arrays of a dump to tensors by their values
    Align(AlignArgs),
    /// Convert a dump into a trace with a mapping file
    Import(ImportArgs),
    /// Show which causes a change to the engine fixed, from two reports of `--json`
    Progress(ProgressArgs),
    /// Compare the eight attention variants with llama.cpp
    Variants(VariantsArgs),
    /// Run a matrix of models, prompts and variants from a file, for CI
    Check(super::check::CheckArgs),
    /// Write or review the accuracy baseline that `check --baseline` enforces for every operation
    Bless(super::bless::BlessArgs),
    /// Find the commit that made a kernel diverge, or diverge earlier
    Bisect(super::bisect::BisectArgs),
    /// Join the results of `check --partition` into one
    Merge(super::check::MergeArgs),
    /// Check kernels for races, bad accesses and wrong numbers, on this machine's CPU
    Kernels(super::kernels::KernelsArgs),
    /// List the faults that --fault can plant, and the operation to blame for each
    Faults,
    /// Write the first layers of a model, with its embedding and head, as a smaller model
    Cut(CutArgs),
    /// Write a random model of any shape, or of any architecture
    Synth(SynthArgs),
    /// Lend this machine to another's --rpc: llama.cpp's RPC server on the CPU, without a password
    RpcServer(RpcServerArgs),
    /// The child process in which `synth` runs llama.cpp
    #[command(hide = true, name = firstdiff::model::synth::arch::CHILD_COMMAND)]
    SynthChild,
    /// Check this machine: compiler, libraries, GPU, caches (exit 5 if kernels cannot run here)
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Args, Clone)]
pub struct ModelArgs {
    /// GGUF model [default: the embedded fixture]
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Prompt [default: an embedded one of 86 tokens]
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    pub prompt: Option<String>,
    /// File that holds the prompt, - for standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Tokens to decode after the prompt; both sides run the reference's choice
    #[arg(short, long = "n-predict", alias = "predict", value_name = "N", default_value_t = 4)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=4096))]
    pub n_predict: u32,
    /// Reference precision: weights widened to f32, or the file as it is
    #[arg(long, value_enum, default_value_t = PrecisionArg::F32)]
    pub reference: PrecisionArg,
    /// RPC servers of llama.cpp that hold the model's layers, for models beyond this machine's memory; with
    /// --reference native (docs/rpc.md)
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = Server::parse)]
    pub rpc: Vec<Server>,
    /// Threads for llama.cpp [default: 1 for models under 50M parameters, else three quarters of the cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

#[derive(Args, Clone)]
pub struct EngineArgs {
    /// Where the kernels run; with two, as in `host,cuda`, the second is compared with the first
    #[arg(long, value_enum, value_delimiter = ',', default_value = "host", num_args = 1)]
    pub device: Vec<DeviceArg>,
    /// Storage of weights, activations and KV cache
    #[arg(long, value_enum, default_value_t = DTypeArg::F32)]
    pub dtype: DTypeArg,
    /// Folder whose .cu files replace the embedded ones of the same name
    #[arg(long, value_name = "DIR")]
    pub kernels: Option<PathBuf>,
    /// Run even if a changed kernel of --kernels is not launched
    #[arg(long, requires = "kernels")]
    pub unused_kernels: bool,
    /// Your kernel for an operation, called by a contract: attention=my.toml (docs/kernels.md)
    #[arg(long, value_name = "OP=FILE")]
    pub kernel: Vec<String>,
    /// Attention variant: scale=pre|post,dot=sequential|warp,softmax=two-pass|online,
    /// prefill=row|tiled,decode=block|split, or `fast` for the last two
    #[arg(long, value_name = "SPEC", default_value_t)]
    pub attention: AttentionVariant,
    /// Declare intended roundings of the kernels, such as inputs=q8_0,probs=f16 or
    /// ffn_down.inputs=bf16; the kernels are then held to them (docs/diagnosis.md)
    #[arg(long, value_name = "VALUE=FORMAT", value_delimiter = ',')]
    #[arg(value_parser = Convention::parse)]
    pub arithmetic: Vec<Convention>,
    /// Plant a fault (see `firstdiff faults`); may be given more than once
    #[arg(long, value_name = "NAME", conflicts_with = "kernel")]
    pub fault: Vec<String>,
}

#[derive(Args, Clone)]
pub struct CompareArgs {
    #[command(flatten)]
    pub only: OnlyArgs,
    /// Tolerance in units of the measured floor
    #[arg(long, value_name = "X", default_value_t = firstdiff::core::floor::DEFAULT_FACTOR)]
    pub factor: f64,
    /// How far both sides go: to the end, or to the end of the layer in which a site first diverges
    #[arg(long, value_enum, value_name = "WHERE", default_value_t)]
    pub until: UntilArg,
    #[command(flatten)]
    pub report: ReportArgs,
}

/// The sites that are looked at. Nothing is read or computed that these do not need.
#[derive(Args, Clone, Default)]
pub struct OnlyArgs {
    /// Only these sites: comma-separated globs such as `q_rope,blk.0.*,logits`
    #[arg(long, value_name = "GLOB")]
    pub sites: Option<String>,
    /// Only the sites of these layers, counted from 0, and what they begin from: 3, 0..4 (0 to 3: the end is not
    /// included), ..4 or 8..; with --sites, what is in both. Later layers are neither read nor computed, except in
    /// steps whose next token llama.cpp has yet to choose: give -n 0, or the tokens, to avoid those
    #[arg(long, value_name = "A..B")]
    pub layers: Option<Layers>,
}

/// How far both sides go.
#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum UntilArg {
    /// To the last site
    #[default]
    End,
    /// To the end of the layer in which a site first diverges, or, without a reference, an operation is first wrong
    First,
}

/// Where a report goes, and how much of it is printed.
#[derive(Args, Clone)]
pub struct ReportArgs {
    /// Print everything: each stage, step and setting, not just one screen
    #[arg(short, long)]
    pub verbose: bool,
    /// Print the report for a person, or as one JSON object of at most 4 kB for a program
    #[arg(long, value_enum, value_name = "FORM", default_value_t = FormatArg::Text)]
    pub format: FormatArg,
    /// Write the whole report as JSON; `-` prints it instead of the text
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one page for a browser: layers x sites, pictures of tensors (docs/page.md)
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

impl ReportArgs {
    /// Refuses files that cannot be written, before hours of work.
    pub fn check(&self) -> Result<(), Error> {
        if self.prints_json() && self.format == FormatArg::Agent {
            return Err(Error::Usage("--json - and --format agent both print; choose one".into()));
        }
        output::check_json(self.json.as_deref())?;
        output::check_file("--html", self.html.as_deref())
    }

    /// Whether the whole report is printed as JSON.
    pub fn prints_json(&self) -> bool {
        self.json.as_deref().is_some_and(output::is_stdout)
    }
}

/// Whom a report is printed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// A person
    Text,
    /// A program
    Agent,
}

/// How a run is replayed.
#[derive(Clone, Copy, Default, ValueEnum)]
pub enum ReplayArg {
    /// All elements, except those of large products that random sums clear (docs/diagnosis.md)
    #[default]
    Quick,
    /// All elements
    Full,
}

impl From<ReplayArg> for Replay {
    fn from(arg: ReplayArg) -> Replay {
        match arg {
            ReplayArg::Quick => Replay::Quick,
            ReplayArg::Full => Replay::Full,
        }
    }
}

#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub compare: CompareArgs,
    /// Compare the prompt's scores and probs for these queries only: last, every:N, or positions
    /// such as 0,5,100-120
    #[arg(long, value_name = "WHICH")]
    pub rows: Option<Queries>,
    /// Compare only: do not replay the operations or search for causes
    #[arg(long)]
    pub no_replay: bool,
    /// Which elements the replay computes
    #[arg(long, value_enum, default_value_t, conflicts_with = "no_replay")]
    pub replay: ReplayArg,
    /// Run the prompt at many lengths and report which diverge: auto (where kernels break) or 1,31-33,64;
    /// --html then shows the first length that diverges, or the last if none does
    #[arg(long, value_name = "WHICH", conflicts_with_all = ["watch", "rows"])]
    pub lengths: Option<Lengths>,
    /// Record where the time goes, as trace events for chrome://tracing or ui.perfetto.dev (docs/report.md)
    #[arg(long, value_name = "FILE", conflicts_with = "watch")]
    pub trace_events: Option<PathBuf>,
    /// Keep running and give a new verdict whenever a kernel of --kernels or --kernel is saved; Ctrl-C stops it
    #[arg(long)]
    pub watch: bool,
}

#[derive(Args)]
pub struct CaptureArgs {
    /// The side to record
    #[arg(value_enum)]
    pub side: SideArg,
    /// Folder to write the trace to
    #[arg(short, long, value_name = "TRACE")]
    pub output: PathBuf,
    /// Replace an existing trace
    #[arg(long)]
    pub overwrite: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub ids: IdsArgs,
    /// Run the reference over the tokens of an engine's trace, which the engine may have chosen itself
    #[arg(long, value_name = "TRACE")]
    #[arg(conflicts_with_all = ["prompt", "file", "n_predict", "tokens", "decoded"])]
    pub tokens_of: Option<PathBuf>,
    /// The sequence to run, if the trace of --tokens-of has several
    #[arg(long, value_name = "N", requires = "tokens_of")]
    pub sequence: Option<u32>,
    /// Route each token to the experts that the engine of --tokens-of chose
    #[arg(long, requires = "tokens_of", conflicts_with = "chunks")]
    pub force_routing: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub only: OnlyArgs,
}

/// Token ids in place of a text.
#[derive(Args, Clone, Default)]
pub struct IdsArgs {
    /// The prompt as comma-separated token ids
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with_all = ["prompt", "file"])]
    pub tokens: Vec<i32>,
    /// The tokens after the prompt, instead of the reference's choices
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with = "n_predict")]
    pub decoded: Vec<i32>,
    /// Run the prompt in steps of N tokens
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub chunks: Option<u32>,
}

#[derive(Args)]
pub struct PlanArgs {
    /// File to write the plan to [default: print it]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub ids: IdsArgs,
}

#[derive(Args)]
pub struct DiffArgs {
    /// The trace to judge; an engine's trace is always judged by a reference's, in either order
    pub trace_a: PathBuf,
    /// The trace to judge it by
    pub trace_b: PathBuf,
    /// Both are runs of one engine: a rerun must be equal bit for bit, the same tokens in other steps within the
    /// floor; the report names the errors in either
    #[arg(long)]
    pub same_engine: bool,
    /// With --same-engine: the GGUF model that was recorded [default: the embedded fixture, if it matches]
    #[arg(short, long, value_name = "FILE", requires = "same_engine")]
    pub model: Option<PathBuf>,
    /// The sequence to compare, if the trace has several
    #[arg(long, value_name = "N")]
    pub sequence: Option<u32>,
    #[command(flatten)]
    pub compare: CompareArgs,
}

#[derive(Args)]
pub struct ExplainArgs {
    /// The engine's trace
    pub trace: PathBuf,
    /// The reference's trace of the same tokens, to compare every site as `diff` does; with
    /// several sequences, only those with these tokens are compared
    #[arg(long, value_name = "TRACE")]
    pub reference: Option<PathBuf>,
    /// The sequence to explain, if the trace has several [default: each in turn]
    #[arg(long, value_name = "N")]
    pub sequence: Option<u32>,
    /// The GGUF model that was recorded [default: the embedded fixture, if it matches]
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub only: OnlyArgs,
    /// How far the engine is explained
    #[arg(long, value_enum, value_name = "WHERE", default_value_t)]
    pub until: UntilArg,
    #[command(flatten)]
    pub report: ReportArgs,
    /// Which elements the replay computes
    #[arg(long, value_enum, default_value_t)]
    pub replay: ReplayArg,
    /// Record where the time goes, as trace events for chrome://tracing or ui.perfetto.dev (docs/report.md)
    #[arg(long, value_name = "FILE")]
    pub trace_events: Option<PathBuf>,
}

#[derive(Args)]
pub struct ValidateArgs {
    /// The trace: complete, in ranks, or from a killed run
    pub trace: PathBuf,
}

#[derive(Args)]
pub struct AlignArgs {
    /// Folder of .npy, .npz or .safetensors files
    pub dump: PathBuf,
    /// The reference's trace of the same tokens
    #[arg(long, value_name = "TRACE")]
    pub reference: PathBuf,
    /// Mapping file to write
    #[arg(short, long, value_name = "MAP", default_value = "map.toml")]
    pub output: PathBuf,
}

#[derive(Args)]
pub struct ImportArgs {
    /// Folder of .npy, .npz or .safetensors files
    pub dump: PathBuf,
    /// Mapping file, written by hand or by `firstdiff align`
    #[arg(long, value_name = "MAP")]
    pub map: PathBuf,
    /// The reference's trace of the same tokens
    #[arg(long, value_name = "TRACE")]
    pub reference: PathBuf,
    /// Folder to write the trace to
    #[arg(short, long, value_name = "TRACE")]
    pub output: PathBuf,
    /// Storage of weights, activations and KV cache in the program that wrote the dump
    #[arg(long, value_enum, default_value_t = DTypeArg::F32)]
    pub dtype: DTypeArg,
}

#[derive(Args)]
pub struct ProgressArgs {
    /// The report before the change, written by `run --json`
    #[arg(value_name = "OLD.json")]
    pub old: PathBuf,
    /// The report after the change, of the same model and prompt
    #[arg(value_name = "NEW.json")]
    pub new: PathBuf,
}

#[derive(Args)]
pub struct VariantsArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where the kernels run
    #[arg(long, value_enum, default_value_t = DeviceArg::Host)]
    pub device: DeviceArg,
    /// Storage of weights, activations and KV cache
    #[arg(long, value_enum, default_value_t = DTypeArg::F32)]
    pub dtype: DTypeArg,
    /// Folder whose .cu files replace the embedded ones of the same name
    #[arg(long, value_name = "DIR")]
    pub kernels: Option<PathBuf>,
    /// Tolerance in units of the measured floor
    #[arg(long, value_name = "X", default_value_t = firstdiff::core::floor::DEFAULT_FACTOR)]
    pub factor: f64,
    /// Write the table as JSON; `-` prints it instead of the text
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Args)]
pub struct DoctorArgs {
    /// Print the probes as JSON
    #[arg(long)]
    pub json: bool,

    /// Empty the cache instead; entries are rebuilt when needed
    #[arg(long, conflicts_with = "json")]
    pub prune: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum SideArg {
    Reference,
    Engine,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum PrecisionArg {
    F32,
    Native,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum DeviceArg {
    /// This machine's CPU
    Host,
    /// This machine's CPU, with each access of shared and global memory checked: slow
    Checked,
    /// The first CUDA GPU
    Cuda,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum DTypeArg {
    F32,
    F16,
}

impl From<DTypeArg> for DType {
    fn from(dtype: DTypeArg) -> DType {
        match dtype {
            DTypeArg::F32 => DType::F32,
            DTypeArg::F16 => DType::F16,
        }
    }
}

#[derive(Args)]
pub struct CutArgs {
    /// GGUF model to cut
    pub model: PathBuf,
    /// Number of layers to keep, from the first
    #[arg(long, value_name = "N")]
    pub layers: usize,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

#[derive(Args)]
pub struct RpcServerArgs {
    /// Address to listen on; anyone who reaches it can use and harm this process: on a network, only a trusted one
    #[arg(long, value_name = "IPv4", default_value_t = Ipv4Addr::LOCALHOST)]
    pub host: Ipv4Addr,
    /// Port to listen on
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub threads: Option<u16>,
}

#[derive(Args)]
pub struct SynthArgs {
    /// File to write
    #[arg(short, long, value_name = "FILE", required_unless_present = "list_archs")]
    pub output: Option<PathBuf>,
    /// Shape to start from: tiny-llama, tiny-qwen2, tiny-qwen3 or qwen2.5-0.5b
    #[arg(long, value_name = "PRESET", default_value = "tiny-qwen2")]
    pub shape: String,
    /// Architecture, by its name in llama.cpp, instead of a shape
    #[arg(long, value_name = "NAME", conflicts_with = "shape")]
    pub arch: Option<String>,
    /// List the architectures that --arch accepts
    #[arg(long)]
    pub list_archs: bool,
    /// Metadata key of the architecture to set; the value `none` removes it; may be given more than
    /// once
    #[arg(long, value_name = "KEY=VALUE", requires = "arch", value_parser = setting)]
    pub set: Vec<Setting>,
    /// Seed of the weights
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Type of the weight matrices: f32, f16, q8_0 or q4_k
    #[arg(long = "type", value_name = "TYPE", value_parser = weight_type)]
    pub weight_type: Option<WeightType>,
    /// Layers [default for this and the rest: the shape's or the architecture's]
    #[arg(long, value_name = "N")]
    pub layers: Option<u32>,
    /// Hidden size
    #[arg(long, value_name = "N")]
    pub embd: Option<u32>,
    /// Query heads
    #[arg(long, value_name = "N")]
    pub heads: Option<u32>,
    /// KV heads
    #[arg(long, value_name = "N")]
    pub kv_heads: Option<u32>,
    /// Head size
    #[arg(long, value_name = "N")]
    pub head_dim: Option<u32>,
    /// Feed-forward size
    #[arg(long, value_name = "N")]
    pub ffn: Option<u32>,
    /// Vocabulary size
    #[arg(long, value_name = "N")]
    pub vocab: Option<u32>,
}

fn setting(text: &str) -> Result<Setting, String> {
    Setting::parse(text).ok_or_else(|| "expected a key and a value, as in KEY=VALUE".to_string())
}

fn weight_type(name: &str) -> Result<WeightType, String> {
    WeightType::from_name(name).ok_or_else(|| "expected f32, f16, q8_0 or q4_k".to_string())
}
