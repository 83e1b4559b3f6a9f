//! The models in which faults are planted.

use firstdiff::model::synth::arch::{ArchSpec, Sizes};

/// Architectures and variants, each with as many layers as its pattern of layers needs.
pub const MODELS: [(&str, u32); 40] = [
    ("llama", 2),
    ("llama4", 4),
    ("gpt2", 2),
    ("gptneox", 2),
    ("mpt:clamped", 2),
    ("bloom", 2),
    ("qwen2moe", 2),
    ("qwen3moe", 2),
    ("qwen3next", 4),
    ("qwen35", 4),
    ("qwen35moe", 4),
    ("phi3", 2),
    ("plamo2", 4),
    ("minicpm", 2),
    ("minicpm3", 2),
    ("gemma2:caps", 2),
    ("gemma3", 6),
    ("gemma3n", 5),
    ("starcoder2", 2),
    ("mamba", 2),
    ("mamba2", 2),
    ("jamba", 4),
    ("falcon-h1", 2),
    ("command-r", 2),
    ("cohere2", 4),
    ("olmo2", 2),
    ("deepseek2:groups", 3),
    ("glm4", 2),
    ("glm4moe", 3),
    ("nemotron", 2),
    ("rwkv6", 2),
    ("rwkv7", 2),
    ("granitemoe:scales", 2),
    ("granitehybrid", 4),
    ("ernie4_5-moe", 3),
    ("hunyuan-moe", 3),
    ("smollm3", 4),
    ("gpt-oss", 2),
    ("lfm2", 4),
    ("grok", 2),
];

/// The model of an architecture and a seed.
pub fn spec(name: &str, seed: u64) -> ArchSpec {
    let layers = MODELS.iter().find(|(own, _)| *own == name).map(|&(_, layers)| layers);
    let sizes = Sizes { layers, ..Sizes::default() };
    ArchSpec { sizes, seed, ..ArchSpec::new(name) }
}
