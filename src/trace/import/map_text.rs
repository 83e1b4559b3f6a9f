//! The mapping file that an alignment is written as.

use std::fmt;

use super::{Alignment, Confidence};

impl Confidence {
    /// The word in a mapping file.
    pub fn name(self) -> &'static str {
        match self {
            Confidence::Sure => "sure",
            Confidence::Likely => "likely",
        }
    }
}

/// The mapping file.
impl fmt::Display for Alignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Written by firstdiff align: read it before you use it.\ntensor = [")?;
        for found in &self.matches {
            let (step, name) = (found.site.step, found.site.tensor_name());
            if found.arrays > 1 {
                let pattern = quoted(&found.name);
                write!(f, "  {{ match = {pattern}, site = \"{name}\", position = '{{t}}'")?;
            } else {
                let pattern = quoted(&regex::escape(&found.name));
                write!(f, "  {{ match = {pattern}, site = \"{step}/{name}\"")?;
            }
            if let Some(slice) = &found.slice {
                write!(f, ", slice = \"{slice}\"")?;
            }
            if found.arrays > 1 || !found.order.is_own() {
                write!(f, ", axes = \"{}\"", found.order)?;
            }
            if found.scale != 1.0 {
                write!(f, ", scale = {:?}", found.scale)?;
            }
            if let Some(rows) = &found.rows {
                write!(f, ", rows = {rows:?}")?;
            }
            write!(f, ", confidence = \"{}\" }},", found.confidence.name())?;
            match found.doubt.as_ref().or(found.note.as_ref()) {
                Some(comment) => writeln!(f, " # {comment}")?,
                None => writeln!(f)?,
            }
        }
        writeln!(f, "]")?;
        for (name, sites) in &self.ambiguous {
            let sites: Vec<String> =
                sites.iter().map(|site| format!("{}/{}", site.step, site.tensor_name())).collect();
            writeln!(
                f,
                "# ambiguous: {} has the values of {}",
                name.escape_debug(),
                sites.join(", ")
            )?;
        }
        for name in &self.unmatched {
            writeln!(f, "# unmatched: {}", name.escape_debug())?;
        }
        Ok(())
    }
}

/// A string of TOML: literal where it can be, for the backslashes of expressions.
fn quoted(text: &str) -> String {
    if !text.contains('\'') && !text.chars().any(char::is_control) {
        return format!("'{text}'");
    }
    let escape = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04X}", c as u32),
        c => c.to_string(),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}
