//! Texts that may hold anybody's names: of files, tensors, tokens, kernels.
//!
//! A terminal must not obey them, nor a CI runner, which takes commands from any line.

/// A longer line of a message, in bytes, is cut: to so many characters of its begin and of its end.
const MOST_BYTES: usize = 4000;
const KEPT: [usize; 2] = [1500, 300];
/// Characters that change how those around them are shown: direction, and nothing to be seen.
const UNSEEN: [std::ops::RangeInclusive<char>; 4] = [
    '\u{200b}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2060}'..='\u{2069}',
    '\u{feff}'..='\u{feff}',
];

/// The text with control characters as JSON writes them, and no line that is a command to a CI runner.
/// With `colours`, the program's own stay.
pub fn harmless(text: &str, colours: bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with("::") {
            shown.push('\\');
        }
        let mut rest = line;
        while let Some(c) = rest.chars().next() {
            let n = if colours { colour(rest) } else { 0 };
            if n > 0 {
                shown.push_str(&rest[..n]);
                rest = &rest[n..];
                continue;
            }
            rest = &rest[c.len_utf8()..];
            let is_command = c == '[' && shown.ends_with("##");
            let is_seen = !c.is_control() && !UNSEEN.iter().any(|unseen| unseen.contains(&c));
            if !is_command && (is_seen || matches!(c, '\n' | '\t')) {
                shown.push(c);
            } else {
                shown += &format!("\\u{:04x}", u32::from(c));
            }
        }
    }
    shown
}

/// How long the escape sequence for a colour is that a text begins with; 0 where it does not.
fn colour(text: &str) -> usize {
    let Some(rest) = text.strip_prefix("\x1b[") else { return 0 };
    let digits = rest.find(|c: char| !c.is_ascii_digit() && c != ';').unwrap_or(rest.len());
    if rest[digits..].starts_with('m') { text.len() - rest.len() + digits + 1 } else { 0 }
}

/// A line of a message, cut where it is too long to be one.
pub fn shortened(line: &str) -> String {
    if line.len() <= MOST_BYTES {
        return line.to_string();
    }
    let begin: String = line.chars().take(KEPT[0]).collect();
    let end = line.char_indices().rev().nth(KEPT[1] - 1).map_or(0, |(at, _)| at);
    format!("{begin} ... {}", &line[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_neither_move_the_cursor_nor_command_a_runner() {
        let cases = [
            ("plain \u{e4}\u{4e2d}\ttext\n", "plain \u{e4}\u{4e2d}\ttext\n"),
            ("a\x1b[2Jb\u{9b}31mc\r\x7f\u{202e}d", "a\\u001b[2Jb\\u009b31mc\\u000d\\u007f\\u202ed"),
            (
                "::error::x\n a\n \u{a0}::stop-commands::y",
                "\\::error::x\n a\n\\ \u{a0}::stop-commands::y",
            ),
            ("say ##[error]x, [1] ## [2]", "say ##\\u005berror]x, [1] ## [2]"),
            ("\x1b[31mred\x1b[0m", "\\u001b[31mred\\u001b[0m"),
        ];
        for (text, shown) in cases {
            assert_eq!(harmless(text, false), shown);
        }
        assert_eq!(harmless("\x1b[1;31mred\x1b[0m\x1b[1", true), "\x1b[1;31mred\x1b[0m\\u001b[1");
        // JSON stays what it is.
        let name = "\u{7f}\u{9b}##[x]";
        let json = serde_json::to_string(name).unwrap();
        assert_eq!(serde_json::from_str::<String>(&harmless(&json, true)).unwrap(), name);
    }

    #[test]
    fn a_long_line_keeps_its_begin_and_what_to_do() {
        let line = format!("file: {}; do that", "\u{e4}".repeat(100_000));
        let short = shortened(&line);
        assert!(short.len() < MOST_BYTES, "{}", short.len());
        assert!(short.starts_with("file: ") && short.ends_with("; do that"));
    }
}
