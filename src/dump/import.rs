//! A dump as a trace, read as its mapping says.

use std::{collections::BTreeMap, path::Path};

use super::{Array, Dump, DumpError, Mapping, map::Reading};
use crate::{
    arithmetic::Arithmetic,
    site::Site,
    tensor::{DType, Tensor},
    trace::{Manifest, Producer, Side, TraceReader, TraceWriter},
};

/// What became of a dump.
#[derive(Debug)]
pub struct Imported {
    pub sites: usize,
    /// Arrays that no line of the mapping names.
    pub unmapped: Vec<String>,
}

/// Writes the arrays that the mapping names as the trace of an engine that ran what `reference` ran.
///
/// # Errors
/// A line fits no site of that run, or an array not its line; two arrays are one site; nothing can
/// be written at `to`.
pub fn import(
    dump: &Dump,
    mapping: &Mapping,
    reference: &TraceReader,
    storage: DType,
    to: &Path,
) -> Result<Imported, DumpError> {
    let sites = reference.model_sites()?;
    let (mut found, mut unmapped) = (BTreeMap::<Site, (&Array, Reading)>::new(), Vec::new());
    for array in &dump.arrays {
        let wrong = |reason| DumpError::Line { name: array.name.clone(), reason };
        let Some(reading) = mapping.reading(&array.name)? else {
            unmapped.push(array.name.clone());
            continue;
        };
        let site = reading.site;
        if !sites.contains(&site) {
            return Err(wrong(format!("is to be {site}, which the reference's run has not")));
        }
        if let Some((other, _)) = found.insert(site, (array, reading)) {
            return Err(wrong(format!("and {} are both to be {site}", other.name)));
        }
    }
    if found.is_empty() {
        return Err(DumpError::Nothing);
    }
    let mut writer = TraceWriter::create(to, manifest(reference.manifest(), storage), false)?;
    for (index, step) in reference.manifest().steps.iter().enumerate() {
        writer.begin_step(&step.tokens, step.first_position)?;
        for (site, (array, reading)) in found.iter().filter(|(site, _)| site.step as usize == index)
        {
            let shape = reference.shape(*site)?;
            writer.put(*site, &read(array, reading, shape)?)?;
        }
        writer.end_step()?;
    }
    writer.finish()?;
    Ok(Imported { sites: found.len(), unmapped })
}

fn manifest(reference: &Manifest, storage: DType) -> Manifest {
    let arithmetic = Arithmetic::engine(storage);
    let producer = Producer {
        name: "firstdiff import".to_string(),
        version: env!("CARGO_PKG_VERSION").to_string(),
    };
    let model = reference.model.clone();
    Manifest { producer, ..Manifest::new(Side::Engine, model, arithmetic, "a dump".into()) }
}

/// The array's values in the site's own shape.
fn read(array: &Array, reading: &Reading, shape: Vec<usize>) -> Result<Tensor, DumpError> {
    let wrong = |reason| DumpError::Line { name: array.name.clone(), reason };
    let values = array.read()?;
    let mut data = reading.order.apply(&values, &array.shape, &shape).map_err(wrong)?;
    if let Some(rows) = &reading.rows {
        let width = data.len() / shape[0];
        if rows.len() != shape[0] || rows.iter().any(|&row| row >= shape[0]) {
            return Err(wrong(format!("has rows {rows:?}, wanted {} below that", shape[0])));
        }
        data = rows.iter().flat_map(|&row| data[row * width..][..width].to_vec()).collect();
    }
    if reading.scale != 1.0 {
        data.iter_mut().for_each(|value| *value = (f64::from(*value) * reading.scale) as f32);
    }
    Ok(Tensor::new(shape, data))
}
