//! What a loader may have made of a weight by mistake.

use super::{
    elements::{differing, span},
    held::{Closeness, Held, Slack},
    right::{Change, Search},
    target::{Target, matrix, read},
};
use crate::{
    core::format::Format,
    diagnosis::hypotheses::misread,
    model::{
        ModelFile,
        gguf::{GgufError, TensorInfo},
    },
};

/// A factor that is nearer to 1 is none.
const LEAST_FACTOR: f64 = 1e-5;

/// A value of an element's.
type Function = fn(f32) -> f32;

/// Mistakes with the values that are there.
pub fn by_itself(search: &Search<'_>) -> Option<String> {
    let held = search.held;
    let broken = held.values().iter().filter(|x| !x.is_finite()).count();
    if broken > 0 && search.view.data.iter().all(|t| t.is_finite()) {
        let all = held.values().len();
        return Some(format!(
            "{broken} of {all} elements are NaN or infinite, but not in the file"
        ));
    }
    if held.is_constant() && held.values().len() > 1 {
        return Some(match held.values()[0] {
            0.0 => "all zero, but not in the file".to_string(),
            x => format!("all {x}, but not in the file"),
        });
    }
    if !search.has_shape() {
        return None;
    }
    changed(search).or_else(|| factor(search)).or_else(|| zeros(search))
}

/// How an element that was computed is compared.
fn computed(search: &Search<'_>, slack: Slack) -> impl Iterator<Item = Closeness> {
    let coarse = [Format::E4m3, Format::E5m2].map(Some);
    let formats = search.formats.iter().filter(move |format| !coarse.contains(format));
    formats.map(move |&format| Closeness { format, file: None, slack })
}

/// A number added, or a function of the weight.
fn changed(search: &Search<'_>) -> Option<String> {
    let changes: [(Function, &str); 4] = [
        (|t| t + 1.0, "1 was added"),
        (|t| t - 1.0, "1 was subtracted"),
        (|t| -t.exp(), "the negative of its exponential"),
        (f32::exp, "its exponential"),
    ];
    changes.iter().find_map(|(of, text)| {
        let view = search.view.mapped(Change::None, *of);
        let mut all = computed(search, view.slack);
        let is_it = |closeness| search.is(closeness, |row| Some(view.row(row)));
        all.any(is_it).then(|| text.to_string())
    })
}

/// All elements multiplied by the same number.
fn factor(search: &Search<'_>) -> Option<String> {
    let (mut of_both, mut of_file) = (0f64, 0f64);
    for (row, e) in search.held.each() {
        for (&e, &t) in e.iter().zip(search.view.row(row)) {
            of_both += f64::from(e) * f64::from(t);
            of_file += f64::from(t) * f64::from(t);
        }
    }
    let factor = of_both / of_file;
    let off = (factor - 1.0).abs();
    if !factor.is_finite() || off < LEAST_FACTOR || factor == 0.0 {
        return None;
    }
    let scaled = |t: f32| (factor * f64::from(t)) as f32;
    let most = search.view.data.iter().fold(0f32, |most, t| most.max(scaled(*t).abs()));
    let mut all = computed(search, Slack { absolute: 8.0 * f32::EPSILON * most, of_row: 0.0 });
    let is_it = |closeness: Closeness| {
        // Rounding moves the mean a little.
        let rounding = closeness.format.map_or(0.0, |format| format.unit_roundoff() / 16.0);
        let is_row = |(row, e): (usize, &[f32])| {
            let t: Vec<f32> = search.view.row(row).iter().map(|&t| scaled(t)).collect();
            closeness.is_row(e, &t)
        };
        off > rounding && search.held.each().all(is_row)
    };
    all.any(is_it).then(|| format!("multiplied by {:.5}", factor))
}

/// Zeros where the file has none, and its values elsewhere.
fn zeros(search: &Search<'_>) -> Option<String> {
    search.closenesses().find_map(|closeness| {
        let found = differing(search, closeness);
        let are_zero = !found.elements.is_empty() && found.elements.iter().all(|one| one.2 == 0.0);
        let rows = || zero_rows(search).map(|rows| span("rows", &rows, search.held.rows));
        let place = || rows().unwrap_or_else(|| found.place(search));
        are_zero.then(|| format!("{} are zero, but not in the file", place()))
    })
}

/// The rows of a sampled weight that are zero by their sums, and not in the file; `None` where there are none.
fn zero_rows(search: &Search<'_>) -> Option<Vec<usize>> {
    let is_zero = |(row, sum): (usize, &f64)| {
        (*sum == 0.0 && search.view.row(row).iter().any(|&t| t != 0.0)).then_some(row)
    };
    let rows: Vec<usize> = search.held.sums.iter().enumerate().filter_map(is_zero).collect();
    (!rows.is_empty()).then_some(rows)
}

/// The file's elements, read in a wrong order or again and again.
pub fn arranged(search: &Search<'_>) -> Option<String> {
    if !search.has_shape() {
        return None;
    }
    let (held, flat) = (search.held, &search.view.data);
    for closeness in search.closenesses() {
        let is_from = |from: &dyn Fn(usize, usize) -> usize| {
            held.each().all(|(row, e)| {
                let is_it = |(col, &e): (usize, &f32)| {
                    flat.get(from(row, col)).is_some_and(|&t| closeness.is(e, t, 0.0))
                };
                e.iter().enumerate().all(is_it)
            })
        };
        if held.cols == 1 {
            let is_period = |&n: &usize| is_from(&|row, _| row % n);
            if let Some(n) = (1..=held.rows / 2).find(is_period) {
                return Some(format!("its first {n} elements, repeated"));
            }
            continue;
        }
        // Each matrix of experts by itself.
        let rows = held.rows / search.target.batch;
        let matrix = |row: usize| row / rows * rows * held.cols;
        if is_from(&|row, col| matrix(row) + col * rows + row % rows) {
            return Some("the file's (outputs, inputs) were read as (inputs, outputs)".into());
        }
        let transposed = |row: usize, col: usize| {
            let at = row % rows * held.cols + col;
            matrix(row) + at % rows * held.cols + at / rows
        };
        if is_from(&transposed) {
            return Some("transposed, then read in the original shape".into());
        }
        if let Some(stride) =
            stride(search, closeness).filter(|&n| is_from(&|row, col| row * n + col))
        {
            return Some(format!(
                "its rows were read every {stride} elements, but they are {} long",
                held.cols
            ));
        }
    }
    None
}

/// How many elements apart rows were read: by where the second recorded one begins in the file.
fn stride(search: &Search<'_>, closeness: Closeness) -> Option<usize> {
    let (row, e) = search.held.each().nth(1)?;
    let (cols, flat) = (search.held.cols, &search.view.data);
    let near = cols.saturating_sub(cols / 2)..=2 * cols;
    let is_it = |n: &usize| {
        let at = row * n;
        flat.get(at..at + cols).is_some_and(|t| closeness.is_row(e, t))
    };
    near.filter(|&n| n != cols && n > 0).find(is_it)
}

/// Another tensor of the file, other rows of the same one, or one that is decoded wrongly.
pub fn elsewhere(
    file: &ModelFile,
    target: &Target<'_>,
    search: &Search<'_>,
) -> Result<Option<String>, GgufError> {
    let [part] = &target.parts[..] else { return Ok(None) };
    if part.rows.len() != matrix(part.info).0 {
        return cut(file, part.info, part.rows.start, search);
    }
    if !search.has_shape() {
        return Ok(None);
    }
    if let Some(other) = other_tensor(file, part.info, search)? {
        return Ok(Some(relation(file, &part.info.name, &other)));
    }
    Ok(decoded(file, part.info, search))
}

/// The tensor whose rows are the recorded ones; of the same name in another layer before others.
fn other_tensor(
    file: &ModelFile,
    own: &TensorInfo,
    search: &Search<'_>,
) -> Result<Option<String>, GgufError> {
    let part = without_layer(&own.name).1;
    let mut others: Vec<&TensorInfo> = file.gguf().tensors().iter().collect();
    others.retain(|other| other.name != own.name && matrix(other) == matrix(own));
    others.sort_by_key(|other| without_layer(&other.name).1 != part);
    for other in others {
        for closeness in search.closenesses() {
            if has_rows(file, other, 0, search.held, closeness)? {
                return Ok(Some(other.name.clone()));
            }
        }
    }
    Ok(None)
}

/// Whether the recorded rows are a tensor's, from one of its own on.
fn has_rows(
    file: &ModelFile,
    info: &TensorInfo,
    first: usize,
    held: &Held<'_>,
    closeness: Closeness,
) -> Result<bool, GgufError> {
    let gguf = file.gguf();
    if held.cols == 1 {
        let mut whole = vec![0.0; held.rows];
        read(gguf, info, first..first + held.rows, &mut whole)?;
        return Ok(closeness.is_row(held.values(), &whole));
    }
    let mut t = vec![0.0; held.cols];
    for (row, e) in held.each() {
        read(gguf, info, first + row..first + row + 1, &mut t)?;
        if !closeness.is_row(e, &t) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Other rows of the tensor than those that are stated.
fn cut(
    file: &ModelFile,
    info: &TensorInfo,
    stated: usize,
    search: &Search<'_>,
) -> Result<Option<String>, GgufError> {
    let held = search.held;
    let (rows, cols) = matrix(info);
    if cols != held.cols || rows < held.rows {
        return Ok(None);
    }
    for closeness in search.closenesses() {
        for first in (0..=rows - held.rows).filter(|&first| first != stated) {
            if has_rows(file, info, first, held, closeness)? {
                let (end, n) = (first + held.rows - 1, stated + held.rows - 1);
                let name = starred(&info.name);
                return Ok(Some(format!("rows {first}-{end} of {name} instead of {stated}-{n}")));
            }
        }
    }
    Ok(None)
}

/// A mistake in decoding the file's bytes.
fn decoded(file: &ModelFile, info: &TensorInfo, search: &Search<'_>) -> Option<String> {
    let held = search.held;
    if matrix(info).1 != info.row_length() {
        return None;
    }
    let data = file.gguf().data(info);
    let mut t = vec![0.0; held.cols];
    for (text, rows) in misread(info, data) {
        for closeness in search.closenesses() {
            let mut is_it = |(row, e): (usize, &[f32])| {
                rows(row..row + 1, &mut t);
                closeness.is_row(e, &t)
            };
            if held.each().all(&mut is_it) {
                return Some(text);
            }
        }
    }
    None
}

/// What another tensor is to a tensor, in words that are the same in each layer.
fn relation(file: &ModelFile, own: &str, other: &str) -> String {
    let ((own_layer, own_part), (layer, part)) = (without_layer(own), without_layer(other));
    let layers = file.gguf().tensors().iter().filter_map(|info| without_layer(&info.name).0);
    let layers = layers.max().map_or(1, |last| last + 1);
    match (own_layer, layer) {
        (Some(own), Some(layer)) if own_part == part => match (layer + layers - own) % layers {
            1 => "the next layer's".to_string(),
            n if n == layers - 1 => "the previous layer's".to_string(),
            _ => format!("layer {layer}'s"),
        },
        (Some(own), Some(layer)) if own == layer => format!("is {}", starred(other)),
        _ => format!("is {other}"),
    }
}

/// The layer of a tensor, and its name without it.
pub fn without_layer(name: &str) -> (Option<u32>, &str) {
    let split = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let layer = |(layer, part): (&str, _)| Some((Some(layer.parse().ok()?), part));
    match split {
        Some((number, part)) => layer((number, part)).unwrap_or((None, name)),
        None => (None, name),
    }
}

/// `blk.*.attn_q.weight`
pub fn starred(name: &str) -> String {
    match without_layer(name) {
        (Some(_), part) => format!("blk.*.{part}"),
        (None, name) => name.to_string(),
    }
}

/// What is there of values that nothing explains.
pub fn unknown(search: &Search<'_>) -> String {
    if !search.has_shape() {
        let (held, view) = (search.held, &search.view);
        let [own, file] = [(held.rows, held.cols), (view.rows, view.cols)];
        return format!(
            "has the shape {own:?} instead of {file:?}, and values that the file does not have"
        );
    }
    let all = search.closenesses().map(|closeness| differing(search, closeness));
    let Some(found) = all.min_by_key(|found| found.elements.len()) else { return String::new() };
    let worst = found.worst().map_or(String::new(), |(row, col, e, t)| {
        let place = match search.held.cols {
            1 => format!("[{row}]"),
            _ => format!("[{row}, {col}]"),
        };
        format!("; worst {place} {e}, the file has {t}")
    });
    format!("unknown values: {} differ{worst}", found.place(search))
}
