//! The weight ledger: what a model file holds that a forward pass would not miss.

use std::collections::{BTreeSet, HashSet};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    core::cache::Entry,
    model::{
        Model,
        gguf::{GgufError, TensorInfo},
    },
};

/// Weights that deserve a look before an engine is blamed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// Tensors of the file.
    pub tensors: usize,
    /// How many of them were looked through, where not all were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looked_through: Option<usize>,
    /// In the file, but no operation reads them.
    pub unused: Vec<String>,
    /// Biases that some layers have and others lack.
    pub absent: Vec<String>,
    /// Every element is zero.
    pub all_zero: Vec<String>,
    /// Holds NaN or infinities.
    pub non_finite: Vec<NonFinite>,
}

/// A tensor with NaN or infinities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NonFinite {
    pub tensor: String,
    pub count: u64,
    /// Index of the first, in elements, first ggml axis fastest.
    pub first: u64,
}

/// What one scan over a tensor finds.
#[derive(Clone, Copy)]
struct Scan {
    any_non_zero: bool,
    non_finite: u64,
    first_non_finite: u64,
}

/// Goes up where a ledger says other things.
const VERSION: u32 = 1;

/// Elements widened at a time: the ledger's memory, per thread.
const CHUNK_ELEMENTS: usize = 1 << 20;

impl Ledger {
    /// That of a model: kept from an earlier time, or read.
    ///
    /// # Errors
    /// A tensor cannot be widened.
    pub fn of(model: &Model) -> Result<Ledger, GgufError> {
        Ledger::of_some(model, None)
    }

    /// The same, with a look through some weights only where that is not known of all.
    ///
    /// # Errors
    /// As [`Ledger::of`].
    pub fn of_some(model: &Model, only: Option<&BTreeSet<String>>) -> Result<Ledger, GgufError> {
        let names: Vec<&str> = model.names.all().collect();
        let of = format!("{} {VERSION} {}", model.file().hash(), names.join(" "));
        let name = blake3::hash(of.as_bytes()).to_hex();
        let entry = Entry::new("ledgers", name.as_str()).ok();
        let known = entry.as_ref().and_then(Entry::read);
        if let Some(known) = known.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            return Ok(known);
        }
        let ledger = Ledger::read(model, only)?;
        // Of a few weights it is made in no time.
        let entry = entry.filter(|_| only.is_none());
        if let Some((entry, text)) = entry.zip(serde_json::to_vec(&ledger).ok()) {
            entry.write(&text);
        }
        Ok(ledger)
    }

    /// Reads every tensor once, or some of them, a chunk at a time.
    fn read(model: &Model, only: Option<&BTreeSet<String>>) -> Result<Ledger, GgufError> {
        let names: HashSet<&str> = model.names.all().collect();
        let infos = model.gguf().tensors();
        let known = |info: &&TensorInfo| names.contains(info.name.as_str());
        let (used, unused): (Vec<_>, Vec<_>) = infos.iter().partition(known);
        let mut ledger = Ledger {
            tensors: infos.len(),
            unused: unused.into_iter().map(|info| info.name.clone()).collect(),
            absent: model.names.absent_biases(),
            ..Ledger::default()
        };
        let is_read = |info: &&&TensorInfo| only.is_none_or(|only| only.contains(&info.name));
        let read: Vec<&TensorInfo> = used.iter().filter(is_read).copied().collect();
        ledger.looked_through = only.map(|_| read.len());
        let scans: Vec<Scan> =
            read.par_iter().map(|info| scan(model, info)).collect::<Result<_, _>>()?;
        for (info, scan) in read.iter().zip(scans) {
            if !scan.any_non_zero {
                ledger.all_zero.push(info.name.clone());
            }
            if scan.non_finite > 0 {
                ledger.non_finite.push(NonFinite {
                    tensor: info.name.clone(),
                    count: scan.non_finite,
                    first: scan.first_non_finite,
                });
            }
        }
        Ok(ledger)
    }

    /// Whether there is nothing to report.
    pub fn is_clean(&self) -> bool {
        self.unused.is_empty()
            && self.absent.is_empty()
            && self.all_zero.is_empty()
            && self.non_finite.is_empty()
    }
}

fn scan(model: &Model, info: &TensorInfo) -> Result<Scan, GgufError> {
    let (rows, row_length) = (info.rows(), info.row_length().max(1));
    let step = (CHUNK_ELEMENTS / row_length).max(1);
    let mut chunk = vec![0f32; step.min(rows) * row_length];
    let mut found = Scan { any_non_zero: false, non_finite: 0, first_non_finite: 0 };
    for first in (0..rows).step_by(step) {
        let last = (first + step).min(rows);
        let values = &mut chunk[..(last - first) * row_length];
        model.gguf().widen_rows(info, first..last, values)?;
        found.any_non_zero |= values.iter().any(|&value| value != 0.0);
        // The usual case, no NaN at all, is one pass that the compiler vectorises.
        if values.iter().fold(false, |any, value| any | !value.is_finite()) {
            for (index, _) in values.iter().enumerate().filter(|(_, value)| !value.is_finite()) {
                if found.non_finite == 0 {
                    found.first_non_finite = (first * row_length + index) as u64;
                }
                found.non_finite += 1;
            }
        }
    }
    model.gguf().forget(info);
    Ok(found)
}
