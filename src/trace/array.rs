//! A tensor in an engine's memory, in whatever order and format it lies there.

use safetensors::Dtype;

use crate::{
    core::format::{Format, StoredBlock},
    graph::{ListedSite, site::Axis},
};

/// Elements as they lie in memory. Halves are given as their bits.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [u16]),
    Bf16(&'a [u16]),
    F64(&'a [f64]),
    /// Of a cache: blocks of a format, as the engine keeps them. Counts and strides are of elements.
    Blocks(Format, &'a [u8]),
}

/// How elements are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Numbers(Dtype),
    Blocks(Format, StoredBlock),
}

impl Stored {
    /// The type and shape that the file states of elements of that shape.
    pub fn in_file(self, shape: &[usize]) -> (Dtype, Vec<usize>) {
        match self {
            Stored::Numbers(dtype) => (dtype, shape.to_vec()),
            Stored::Blocks(_, StoredBlock { elements, bytes }) => {
                let mut shape = shape.to_vec();
                if let Some(last) = shape.last_mut() {
                    *last = *last / elements * bytes;
                }
                (Dtype::U8, shape)
            }
        }
    }
}

impl std::fmt::Display for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stored::Numbers(dtype) => write!(f, "{dtype}"),
            Stored::Blocks(format, _) => write!(f, "{format}"),
        }
    }
}

/// Elements with the counts and strides of their axes.
#[derive(Clone, Debug)]
pub struct Array<'a> {
    elements: Elements<'a>,
    shape: Vec<usize>,
    /// In elements, one for each count.
    strides: Vec<usize>,
    /// What the counts are of, where it is not the site's own order.
    axes: Option<&'a str>,
    /// The tokens of the step that the rows are of, where they are not all.
    pub(super) tokens: Option<&'a [usize]>,
}

impl<'a> Array<'a> {
    /// Elements that lie one after another, the last axis fastest.
    pub fn new(elements: Elements<'a>, shape: &[usize]) -> Array<'a> {
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        Array { elements, shape: shape.to_vec(), strides, axes: None, tokens: None }
    }

    /// The same elements that lie so far apart along each axis.
    pub fn strided(self, strides: &[usize]) -> Array<'a> {
        Array { strides: strides.to_vec(), ..self }
    }

    /// The same with its axes in another order than the site's, such as `head token dim`.
    pub fn axes(self, axes: &'a str) -> Array<'a> {
        Array { axes: Some(axes), ..self }
    }

    /// The same where its rows are of these tokens of the step, ascending, and the others are not recorded.
    pub fn of_tokens(self, tokens: &'a [usize]) -> Array<'a> {
        Array { tokens: Some(tokens), ..self }
    }

    /// How many rows a cache has, or positions.
    pub(super) fn count(&self) -> usize {
        let own = self.axes.map_or(0, |axes| {
            axes.split_whitespace().position(|axis| axis == Axis::Position.word()).unwrap_or(0)
        });
        self.shape.get(own).copied().unwrap_or(0)
    }

    /// The rows in the site's own order; `None` of a cache that is not whole. `cut` is the axis of which a rank
    /// has a part.
    ///
    /// # Errors
    /// It does not fit the site, in words that follow the site's name.
    pub(super) fn rows_of(
        &self,
        site: &ListedSite,
        expected: &[usize],
        cut: Option<usize>,
    ) -> Result<Option<Rows>, String> {
        let order = self.order(&site.axes)?;
        let shape: Vec<usize> = order.iter().map(|&axis| self.shape[axis]).collect();
        let strides: Vec<usize> = order.iter().map(|&axis| self.strides[axis]).collect();
        if site.axes[0] == Axis::Position && cut != Some(0) && shape[0] < expected[0] {
            return Ok(None);
        }
        let mut written = shape.clone();
        for (axis, (&found, &all)) in shape.iter().zip(expected).enumerate() {
            let may_be_less = axis == 0 || cut == Some(axis) || site.axes[axis] == Axis::Key;
            if found == 0 || found > all || found < all && !may_be_less {
                return Err(format!("was given as {shape:?}; expected {expected:?}"));
            }
            // Later keys are masked.
            if site.axes[axis] == Axis::Key {
                written[axis] = all;
            }
        }
        let is_ascending = |tokens: &[usize]| tokens.is_sorted_by(|a, b| a < b);
        if let Some(tokens) = self.tokens
            && (!site.has_row_of_each_token()
                || tokens.len() != shape[0]
                || !is_ascending(tokens)
                || tokens.last().is_some_and(|&last| last >= expected[0]))
        {
            return Err(format!("has {} rows of the tokens {tokens:?}", shape[0]));
        }
        let stored = self.elements.stored()?;
        if let Stored::Blocks(format, block) = stored {
            self.check_blocks(site, format, block, [&shape, &strides])?;
        }
        let furthest: usize = shape.iter().zip(&strides).map(|(n, stride)| (n - 1) * stride).sum();
        if furthest >= self.elements.len() {
            let (needed, found) = (furthest + 1, self.elements.len());
            return Err(format!("has {found} elements, but its shape and strides need {needed}"));
        }
        let mut bytes = Vec::new();
        self.gather(&mut bytes, 0, &Layout { shape: &shape, strides: &strides, written: &written });
        Ok(Some(Rows { stored, shape: written, bytes }))
    }

    /// Refuses blocks that are none of a cache's, and layouts that cut them.
    fn check_blocks(
        &self,
        site: &ListedSite,
        format: Format,
        block: StoredBlock,
        [shape, strides]: [&[usize]; 2],
    ) -> Result<(), String> {
        let StoredBlock { elements, bytes } = block;
        if site.axes[0] != Axis::Position {
            return Err(format!(
                "was given in blocks of {format} but is not a cache: give its values"
            ));
        }
        let Elements::Blocks(_, data) = self.elements else { return Ok(()) };
        if !data.len().is_multiple_of(bytes) {
            let found = data.len();
            return Err(format!(
                "has {found} bytes, which are not whole blocks of {format}, of {bytes}"
            ));
        }
        let row = shape.last().copied().unwrap_or(0);
        if !row.is_multiple_of(elements) {
            return Err(format!(
                "has rows of {row}, which blocks of {elements} of {format} do not divide"
            ));
        }
        let (last, others) = strides.split_last().unwrap_or((&1, &[]));
        if *last != 1 || others.iter().any(|stride| !stride.is_multiple_of(elements)) {
            return Err(format!(
                "has the strides {strides:?}, which cut blocks of {elements} of {format}"
            ));
        }
        Ok(())
    }

    /// Which of its own axes each axis of the site is.
    fn order(&self, axes: &[Axis]) -> Result<Vec<usize>, String> {
        let named: Vec<&str> = axes.iter().map(|axis| axis.word()).collect();
        let own: Vec<&str> = match self.axes {
            Some(text) => text.split_whitespace().collect(),
            None => named.clone(),
        };
        let wrong = || {
            let n = self.shape.len();
            format!("has the axes {:?}, not {:?} and {n} of them", named.join(" "), own.join(" "))
        };
        let has_all =
            [self.shape.len(), self.strides.len(), own.len()].iter().all(|&n| n == axes.len());
        let place = |word: &&str| own.iter().position(|other| other == word);
        let order: Option<Vec<usize>> = named.iter().map(place).collect();
        order.filter(|_| has_all).ok_or_else(wrong)
    }

    /// Adds the elements of the axes from one on; keys that were not given are 0.
    fn gather(&self, bytes: &mut Vec<u8>, start: usize, layout: &Layout<'_>) {
        let Some((&count, rest)) = layout.shape.split_first() else {
            return self.elements.write(start, bytes);
        };
        let rest =
            Layout { shape: rest, strides: &layout.strides[1..], written: &layout.written[1..] };
        // A block lies within the last axis.
        let step = if rest.shape.is_empty() { self.elements.together() } else { 1 };
        for at in (0..count).step_by(step) {
            self.gather(bytes, start + at * layout.strides[0], &rest);
        }
        let missing = (layout.written[0] - count) * rest.written.iter().product::<usize>();
        bytes.resize(bytes.len() + missing * self.elements.size(), 0);
    }
}

/// Counts and strides of the axes that are left, and the counts that are written.
struct Layout<'l> {
    shape: &'l [usize],
    strides: &'l [usize],
    written: &'l [usize],
}

impl Elements<'_> {
    fn len(self) -> usize {
        match self {
            Elements::F32(values) => values.len(),
            Elements::F16(bits) | Elements::Bf16(bits) => bits.len(),
            Elements::F64(values) => values.len(),
            Elements::Blocks(format, data) => {
                format.stored_block().map_or(0, |block| data.len() / block.bytes * block.elements)
            }
        }
    }

    /// Bytes of one that lies alone.
    fn size(self) -> usize {
        match self {
            Elements::F32(_) => 4,
            Elements::F16(_) | Elements::Bf16(_) => 2,
            Elements::F64(_) => 8,
            Elements::Blocks(..) => 1,
        }
    }

    /// Elements that are written at once.
    fn together(self) -> usize {
        match self {
            Elements::Blocks(format, _) => format.stored_block().map_or(1, |block| block.elements),
            _ => 1,
        }
    }

    fn stored(self) -> Result<Stored, String> {
        Ok(match self {
            Elements::F32(_) => Stored::Numbers(Dtype::F32),
            Elements::F16(_) => Stored::Numbers(Dtype::F16),
            Elements::Bf16(_) => Stored::Numbers(Dtype::BF16),
            Elements::F64(_) => Stored::Numbers(Dtype::F64),
            Elements::Blocks(format, _) => {
                let unknown = || format!("was given in blocks of {format}; {}", block_types());
                Stored::Blocks(format, format.stored_block().ok_or_else(unknown)?)
            }
        })
    }

    fn write(self, at: usize, bytes: &mut Vec<u8>) {
        match self {
            Elements::F32(values) => bytes.extend(values[at].to_le_bytes()),
            Elements::F16(bits) | Elements::Bf16(bits) => bytes.extend(bits[at].to_le_bytes()),
            Elements::F64(values) => bytes.extend(values[at].to_le_bytes()),
            Elements::Blocks(format, data) => {
                if let Some(StoredBlock { elements, bytes: size }) = format.stored_block() {
                    let first = at / elements * size;
                    bytes.extend(&data[first..first + size]);
                }
            }
        }
    }
}

/// The types that blocks of a cache may have, as a next step.
pub(super) fn block_types() -> String {
    let names: Vec<&str> = Format::stored().map(|(format, _)| format.name()).collect();
    format!("blocks of a cache are {}", names.join(", "))
}

/// Rows of a tensor as they are written.
#[derive(Debug)]
pub(super) struct Rows {
    pub stored: Stored,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Rows {
    pub fn count(&self) -> usize {
        self.shape[0]
    }

    /// These and those that follow them.
    pub fn then(mut self, next: Rows) -> Result<Rows, String> {
        if self.stored != next.stored || self.shape[1..] != next.shape[1..] {
            let (a, b) = (self.stored, next.stored);
            return Err(format!("was given as {a} {:?} and {b} {:?}", self.shape, next.shape));
        }
        self.shape[0] += next.shape[0];
        self.bytes.extend(next.bytes);
        Ok(self)
    }
}
