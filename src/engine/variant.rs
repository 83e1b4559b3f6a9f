//! The ways to write the attention kernel that must all agree with llama.cpp.

use std::{fmt, str::FromStr};

/// Where the scale 1/sqrt(D) is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// To the query, before the dot product.
    Pre,
    /// To each score, after it.
    #[default]
    Post,
}

/// Who sums a dot product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dot {
    /// One thread, element after element.
    #[default]
    Sequential,
    /// The 32 lanes of a warp.
    Warp,
}

/// How the softmax is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Softmax {
    /// All scores kept: find the maximum, then normalise.
    #[default]
    TwoPass,
    /// Tiles of scores with a running maximum and sum.
    Online,
}

/// How the queries of a prompt are shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefill {
    /// One block a query and head: the kernel that the other choices describe.
    #[default]
    Row,
    /// Many queries a block: `attention_tiled.cu`, which scales after a sequential dot product.
    Tiled,
}

/// How a decode step's keys are shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decode {
    /// One block a query head: the kernel that the other choices describe.
    #[default]
    Block,
    /// Split over blocks, for long contexts: `attention_split.cu`, which scales before a warp's dot
    /// product.
    Split,
}

/// One of the eight attention kernels, and where a faster one takes its place. The default is the one
/// of the note that began this tool: scale after, sequential dot product, two passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionVariant {
    pub scale: Scale,
    pub dot: Dot,
    pub softmax: Softmax,
    pub prefill: Prefill,
    pub decode: Decode,
}

impl AttentionVariant {
    /// All eight, the default first.
    pub fn all() -> impl Iterator<Item = AttentionVariant> {
        (0..8).map(|bits: u8| AttentionVariant {
            scale: if bits & 4 == 0 { Scale::Post } else { Scale::Pre },
            dot: if bits & 2 == 0 { Dot::Sequential } else { Dot::Warp },
            softmax: if bits & 1 == 0 { Softmax::TwoPass } else { Softmax::Online },
            prefill: Prefill::Row,
            decode: Decode::Block,
        })
    }

    /// The fastest kernels: tiles for a prompt, split keys for a token.
    pub fn fast() -> AttentionVariant {
        let (prefill, decode) = (Prefill::Tiled, Decode::Split);
        AttentionVariant { prefill, decode, ..AttentionVariant::default() }
    }

    /// What the size of a head must be a multiple of.
    pub fn head_dim_step(self) -> usize {
        if self.prefill == Prefill::Tiled || self.decode == Decode::Split { 8 } else { 1 }
    }

    /// Whether a decode step launches the same whatever the length of the context.
    pub fn decodes_alike(self) -> bool {
        self.decode == Decode::Split || self.softmax == Softmax::Online
    }

    /// The definitions that make `attention.cu` this variant.
    pub fn defines(self) -> Vec<String> {
        let flag = |name: &str, on: bool| format!("{name}={}", u8::from(on));
        vec![
            flag("SCALE_POST", self.scale == Scale::Post),
            flag("DOT_WARP", self.dot == Dot::Warp),
            flag("SOFTMAX_ONLINE", self.softmax == Softmax::Online),
        ]
    }
}

impl fmt::Display for AttentionVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scale = if self.scale == Scale::Pre { "pre" } else { "post" };
        let dot = if self.dot == Dot::Sequential { "sequential" } else { "warp" };
        let softmax = if self.softmax == Softmax::TwoPass { "two-pass" } else { "online" };
        write!(f, "scale={scale},dot={dot},softmax={softmax}")?;
        if self.prefill == Prefill::Tiled {
            f.write_str(",prefill=tiled")?;
        }
        if self.decode == Decode::Split { f.write_str(",decode=split") } else { Ok(()) }
    }
}

impl FromStr for AttentionVariant {
    type Err = String;

    /// Reads `scale=pre|post,dot=sequential|warp,softmax=two-pass|online,prefill=row|tiled,
    /// decode=block|split`; what is left out keeps its default. `fast` is [`AttentionVariant::fast`].
    fn from_str(text: &str) -> Result<AttentionVariant, String> {
        let mut variant = AttentionVariant::default();
        for part in text.split(',') {
            match part.trim() {
                "scale=pre" => variant.scale = Scale::Pre,
                "scale=post" => variant.scale = Scale::Post,
                "dot=sequential" => variant.dot = Dot::Sequential,
                "dot=warp" => variant.dot = Dot::Warp,
                "softmax=two-pass" => variant.softmax = Softmax::TwoPass,
                "softmax=online" => variant.softmax = Softmax::Online,
                "fast" => variant = AttentionVariant::fast(),
                "prefill=row" => variant.prefill = Prefill::Row,
                "prefill=tiled" => variant.prefill = Prefill::Tiled,
                "decode=block" => variant.decode = Decode::Block,
                "decode=split" => variant.decode = Decode::Split,
                other => {
                    let known = "scale=pre|post, dot=sequential|warp, softmax=two-pass|online, \
                                 prefill=row|tiled, decode=block|split, or fast";
                    return Err(format!("unknown part \"{other}\"; it takes {known}"));
                }
            }
        }
        Ok(variant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eight_variants_differ_and_read_back_from_their_names() {
        let names: std::collections::BTreeSet<String> =
            AttentionVariant::all().map(|variant| variant.to_string()).collect();
        assert_eq!(names.len(), 8);
        for variant in AttentionVariant::all() {
            assert_eq!(variant.to_string().parse(), Ok(variant));
        }
        assert_eq!(AttentionVariant::all().next(), Some(AttentionVariant::default()));
        let fast: AttentionVariant = "fast".parse().unwrap();
        assert_eq!(fast.to_string().parse(), Ok(fast));
        assert!(AttentionVariant::all().all(|variant| variant != fast));
        assert!("scale=both".parse::<AttentionVariant>().is_err());
    }
}
