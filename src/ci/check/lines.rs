//! JSON for files that are committed: an entry a line where the entries are many, so that a review
//! shows which one moved.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// A value as JSON. Objects nested so deep have an entry a line, each after the indent that is given;
/// all other objects and arrays are on one line.
pub fn text(value: &impl Serialize, broken: &[(usize, &str)]) -> String {
    let mut json = Vec::new();
    let lines = Lines { broken, depth: 0 };
    let mut serializer = Serializer::with_formatter(&mut json, lines);
    value.serialize(&mut serializer).expect("plain data has no reason to fail");
    json.push(b'\n');
    String::from_utf8(json).expect("JSON is UTF-8")
}

struct Lines<'a> {
    broken: &'a [(usize, &'a str)],
    /// Of the object that is written; 1 for the outermost.
    depth: usize,
}

impl Lines<'_> {
    fn indent(&self) -> Option<&str> {
        self.broken.iter().find(|(depth, _)| *depth == self.depth).map(|(_, indent)| *indent)
    }
}

impl Formatter for Lines<'_> {
    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth += 1;
        writer.write_all(b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        let end = if self.indent().is_some() { "\n}" } else { "}" };
        self.depth -= 1;
        writer.write_all(end.as_bytes())
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        let comma = if first { "" } else { "," };
        match self.indent() {
            Some(indent) => write!(writer, "{comma}\n{indent}"),
            None if first => Ok(()),
            None => writer.write_all(b", "),
        }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        write!(writer, "{value:e}")
    }
}
