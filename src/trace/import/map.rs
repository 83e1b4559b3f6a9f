//! `map.toml`: which array of a dump is which site, and how its values lie.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use regex::{Regex, RegexBuilder};
use serde::Deserialize;

use super::{
    axes::{Order, names},
    error::DumpError,
    files::Array,
    slice::Slice,
};
use crate::{
    core::files,
    graph::{
        SiteList,
        site::{Axis, Site},
    },
};

/// Longer mapping files are none.
const MAX_BYTES: u64 = 16 << 20;
/// What all expressions together may take, and what one may, in bytes.
const MAX_COMPILED: usize = 512 << 20;
const MAX_EXPRESSION: usize = 1 << 20;
/// Expressions times arrays that are tried.
const MAX_TRIED: usize = 1 << 25;

/// A mapping file.
#[derive(Debug)]
pub struct Mapping {
    path: PathBuf,
    /// The lines that name one array as it is, as those of `align` do.
    whole: HashMap<String, Vec<Line>>,
    expressions: Vec<(Regex, Line)>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tensor: Vec<Line>,
}

/// One line of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// A regular expression of the whole name of an array.
    #[serde(rename = "match")]
    pattern: String,
    /// `1/blk.3.q`, or `blk.3.q` in step 0; `{name}` stands for a group of the expression.
    site: String,
    /// Where an array has one token only: its position, counted over all steps; as `site`.
    position: Option<String>,
    /// The part of the array that is the site; all of it if absent.
    slice: Option<Slice>,
    /// The array's axes in its own order; the site's if absent.
    axes: Option<String>,
    /// What the values are to be multiplied by.
    scale: Option<f64>,
    /// Of each row of the site, the row of the array.
    rows: Option<Vec<usize>>,
    /// For the reader: what `align` was sure of.
    #[serde(default)]
    #[expect(dead_code, reason = "a field of the format that nothing depends on")]
    confidence: Option<String>,
}

/// How an array is read.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// In step 0 where there is a position.
    pub site: Site,
    /// The position of the one token, whose axis the order may be without.
    pub position: Option<usize>,
    pub slice: Option<Slice>,
    pub order: Order,
    pub scale: f64,
    pub rows: Option<Vec<usize>>,
}

impl Reading {
    /// The shape of the part of an array that is read.
    ///
    /// # Errors
    /// The array has no such part.
    pub fn shape(&self, array: &Array) -> Result<Vec<usize>, DumpError> {
        let wrong = |reason| DumpError::Line { name: array.name.clone(), reason };
        let Some(slice) = &self.slice else { return Ok(array.shape.clone()) };
        slice.shape(&array.shape).map_err(wrong)
    }
}

impl Mapping {
    /// Reads a mapping file.
    ///
    /// # Errors
    /// It cannot be read, is no TOML of this form, or has an expression that is none.
    pub fn open(path: &Path) -> Result<Mapping, DumpError> {
        let read = |source| DumpError::Read { path: path.into(), source };
        let wrong = |reason: String| DumpError::Mapping { path: path.into(), reason };
        let text = files::read_text(path, MAX_BYTES).map_err(read)?;
        let file: File = toml::from_str(&text).map_err(|error| {
            let at = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
            wrong(format!("line {at}: {}", error.message().replace('\n', " ")))
        })?;
        let mut whole: HashMap<String, Vec<Line>> = HashMap::new();
        let mut others = Vec::new();
        for line in file.tensor {
            match whole_name(&line.pattern) {
                Some(name) => whole.entry(name).or_default().push(line),
                None => others.push(line),
            }
        }
        let most = MAX_EXPRESSION.min(MAX_COMPILED / others.len().max(1));
        let expression = |line: Line| -> Result<(Regex, Line), DumpError> {
            let whole = format!("^(?:{})$", line.pattern);
            let regex = RegexBuilder::new(&whole).size_limit(most).build();
            let regex = regex.map_err(|error| {
                let is_large = matches!(error, regex::Error::CompiledTooBig(_));
                let what = if is_large { "is too large" } else { "is not a regular expression" };
                wrong(format!("{:?} {what}", line.pattern))
            })?;
            Ok((regex, line))
        };
        let expressions = others.into_iter().map(expression).collect::<Result<_, _>>()?;
        Ok(Mapping { path: path.into(), whole, expressions })
    }

    /// Refuses to try more expressions on more arrays than end in seconds.
    pub(super) fn check(&self, arrays: &[Array]) -> Result<(), DumpError> {
        let (n, of) = (self.expressions.len(), arrays.len());
        if n.saturating_mul(of) <= MAX_TRIED {
            return Ok(());
        }
        let reason = format!(
            "{n} expressions for {of} arrays are too many to try; use fewer, or whole names"
        );
        Err(DumpError::Mapping { path: self.path.clone(), reason })
    }

    /// How an array is read: one way for each line that names it.
    ///
    /// # Errors
    /// Two lines name it and one takes it whole, or a line does not fit it.
    pub(super) fn readings<'m>(
        &'m self,
        array: &Array,
        list: &SiteList,
    ) -> Result<Vec<Reading>, DumpError> {
        let name = array.name.as_str();
        let matched = |(regex, line): &'m (Regex, Line)| {
            let captures = regex.captures(name)?;
            let group = |name| (name, captures.name(name).map_or("", |value| value.as_str()));
            Some((line, regex.capture_names().flatten().map(group).collect()))
        };
        let whole = self.whole.get(name).into_iter().flatten();
        let whole = whole.map(|line| (line, BTreeMap::new()));
        let named: Vec<(&Line, BTreeMap<&str, &str>)> =
            whole.chain(self.expressions.iter().filter_map(matched)).collect();
        if let [(line, _), (other, _), ..] = &named[..]
            && named.iter().any(|(line, _)| line.slice.is_none())
        {
            let (a, b) = (&line.pattern, &other.pattern);
            let reason = format!("matches two expressions, {a:?} and {b:?}, not all with a slice");
            return Err(DumpError::Line { name: name.into(), reason });
        }
        named.into_iter().map(|(line, groups)| line.reading(&groups, array, list)).collect()
    }
}

/// The one name that an expression fits, where it is one that is only escaped.
fn whole_name(pattern: &str) -> Option<String> {
    let (mut name, mut chars) = (String::new(), pattern.chars());
    while let Some(c) = chars.next() {
        name.push(match c {
            '\\' => chars.next().filter(char::is_ascii_punctuation)?,
            '.' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$' => {
                return None;
            }
            c => c,
        });
    }
    Some(name)
}

impl Line {
    /// How an array is read; `groups` are those of its name, by the names of the expression.
    fn reading(
        &self,
        groups: &BTreeMap<&str, &str>,
        array: &Array,
        list: &SiteList,
    ) -> Result<Reading, DumpError> {
        let line = self;
        let wrong = |reason: String| DumpError::Line { name: array.name.clone(), reason };
        let filled = |text: &str| {
            groups.iter().fold(text.to_string(), |text, (group, value)| {
                text.replace(&format!("{{{group}}}"), value)
            })
        };
        let text = filled(&line.site);
        let position = line.position.as_deref().map(|text| {
            let text = filled(text);
            text.parse().map_err(|_| {
                wrong(format!("is mapped to position {text:?}, which is not a number"))
            })
        });
        let position: Option<usize> = position.transpose()?;
        if position.is_some() && (text.contains('/') || line.rows.is_some()) {
            return Err(wrong("has a position together with a step or rows".into()));
        }
        let (step, tensor) = text.split_once('/').unwrap_or(("0", &text));
        let site = step.parse().ok().and_then(|step| Site::from_tensor_name(step, tensor));
        let site =
            site.ok_or_else(|| wrong(format!("is mapped to {text:?}, which is not a site")))?;
        let own = list.axes(site);
        let mut names = names(own);
        let without = match &line.axes {
            Some(axes) => !axes.split([' ', '(', ')']).any(|axis| axis == names[0]),
            None => array.shape.len() + 1 == names.len(),
        };
        if position.is_some() && own[0] == Axis::Token && without {
            names.remove(0);
        }
        let order = match &line.axes {
            Some(axes) => Order::parse(axes, &names).map_err(wrong)?,
            None => Order::own(&names),
        };
        let scale = line.scale.unwrap_or(1.0);
        let (slice, rows) = (line.slice.clone(), line.rows.clone());
        Ok(Reading { site, position, slice, order, scale, rows })
    }
}
