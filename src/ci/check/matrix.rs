//! The cases of a configuration, and how they are split over machines.

use std::{fmt, ops::Range, str::FromStr};

use crate::{
    ci::check::Config,
    core::tensor::DType,
    engine::{AttentionVariant, DeviceKind},
};

/// One case: indices into the configuration's models and prompts, and the engine.
#[derive(Clone, Debug)]
pub struct Case {
    /// Such as `fixture/short/f16/scale=pre,...`; with the device where there are several.
    pub id: String,
    pub model: usize,
    pub prompt: usize,
    pub dtype: DType,
    pub variant: AttentionVariant,
    pub device: usize,
}

impl Config {
    /// Every case, those of one model after one another.
    pub fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for (model, choice) in self.models.iter().enumerate() {
            for (prompt, text) in self.prompts.iter().enumerate() {
                for &dtype in &self.dtypes {
                    for &variant in &self.variants {
                        for (device, (name, _)) in self.devices.iter().enumerate() {
                            let mut id = format!("{}/{}/{dtype}/{variant}", choice.name, text.name);
                            if self.devices.len() > 1 {
                                id += &format!("/{name}");
                            }
                            cases.push(Case { id, model, prompt, dtype, variant, device });
                        }
                    }
                }
            }
        }
        cases
    }

    /// The device of a case.
    pub fn device(&self, case: &Case) -> DeviceKind {
        self.devices[case.device].1
    }
}

/// A part of the cases: `hash:2/3` or `slice:2/3`, of which every case is in exactly one of three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partition {
    /// By the hash of the id: a case stays in its part when others come or go.
    Hash { part: usize, of: usize },
    /// Neighbours together, so that each part loads few models.
    Slice { part: usize, of: usize },
}

impl Partition {
    /// The cases of this part, in their order.
    pub fn choose(self, cases: Vec<Case>) -> Vec<Case> {
        match self {
            Partition::Slice { part, of } => {
                let range: Range<usize> = (part - 1) * cases.len() / of..part * cases.len() / of;
                cases.into_iter().skip(range.start).take(range.len()).collect()
            }
            Partition::Hash { part, of } => {
                let own = |case: &Case| {
                    let hash = blake3::hash(case.id.as_bytes());
                    let first: [u8; 8] = hash.as_bytes()[..8].try_into().expect("8 of 32 bytes");
                    u64::from_le_bytes(first) % of as u64 == (part - 1) as u64
                };
                cases.into_iter().filter(own).collect()
            }
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Partition::Hash { part, of } => write!(f, "hash:{part}/{of}"),
            Partition::Slice { part, of } => write!(f, "slice:{part}/{of}"),
        }
    }
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Partition, String> {
        let wrong = || "expected hash:M/N or slice:M/N with M from 1 to N".to_string();
        let (kind, parts) = text.split_once(':').ok_or_else(wrong)?;
        let (part, of) = parts.split_once('/').ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<u32>().map(|n| n as usize).map_err(|_| wrong());
        let (part, of) = (number(part)?, number(of)?);
        if !(1..=of).contains(&part) {
            return Err(wrong());
        }
        match kind {
            "hash" => Ok(Partition::Hash { part, of }),
            "slice" => Ok(Partition::Slice { part, of }),
            _ => Err(wrong()),
        }
    }
}
