//! The tokens of a CUDA file: enough of C++'s for the passes over it.

/// A word, a literal, a sign, or a whole preprocessor directive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub text: &'a str,
    /// Its first byte in the file.
    pub start: usize,
    /// Whether it is part of a `#define`, after the token of the whole directive.
    pub in_macro: bool,
}

impl Token<'_> {
    pub fn end(&self) -> usize {
        self.start + self.text.len()
    }

    pub fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
    }

    pub fn is_directive(&self) -> bool {
        self.text.starts_with('#') && !self.in_macro
    }
}

/// The tokens of a text, without its comments.
pub fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    let mut starts_line = true;
    while let Some(length) = next(&text[at..]) {
        let piece = &text[at..at + length];
        if starts_line && piece == "#" {
            let length = directive(&text[at..]);
            let piece = &text[at..at + length];
            tokens.push(Token { text: piece, start: at, in_macro: false });
            if piece[1..].trim_start().starts_with("define") {
                tokens.extend(of_macro(piece, at));
            }
            at += length;
            continue;
        }
        match piece.as_bytes()[0] {
            b'\n' => starts_line = true,
            byte if byte.is_ascii_whitespace() => {}
            _ if piece.starts_with("//") || piece.starts_with("/*") => {}
            _ => {
                starts_line = false;
                tokens.push(Token { text: piece, start: at, in_macro: false });
            }
        }
        at += length;
    }
    tokens
}

/// The token after the one that closes the bracket at `open`.
pub fn after_group(tokens: &[Token<'_>], open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some(at + 1);
        }
    }
    None
}

/// The first token of the bracketed group that ends at `close`.
pub fn before_group(tokens: &[Token<'_>], close: usize) -> Option<usize> {
    let (opens, closes): (&[&str], &[&str]) = match tokens[close].text {
        ">" | ">>>" => (&["<"], &[">", ">>>"]),
        _ => (&["(", "["], &[")", "]"]),
    };
    let mut depth = 0usize;
    for at in (0..=close).rev() {
        let text = tokens[at].text;
        if closes.contains(&text) {
            depth += if text == ">>>" { 3 } else { 1 };
        } else if opens.contains(&text) {
            depth = depth.checked_sub(1)?;
        } else if [";", "{", "}"].contains(&text) {
            return None;
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// The tokens of a `#define` after its `#`.
fn of_macro(directive: &str, start: usize) -> impl Iterator<Item = Token<'_>> {
    let inner = tokens(&directive[1..]).into_iter();
    let inner = inner.filter(|token| token.text != "\\");
    inner.map(move |token| Token { start: start + 1 + token.start, in_macro: true, ..token })
}

/// Bytes of the first piece: a token, a comment, white space. `None` at the end.
fn next(text: &str) -> Option<usize> {
    let first = text.chars().next()?;
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let until = |ends: &dyn Fn(char) -> bool| text.find(ends).unwrap_or(text.len());
    Some(if text.starts_with("//") {
        text.find('\n').unwrap_or(text.len())
    } else if let Some(comment) = text.strip_prefix("/*") {
        comment.find("*/").map_or(text.len(), |end| end + 4)
    } else if text.starts_with("R\"") {
        raw_string(text)
    } else if is_of_word(first) {
        until(&|c| !is_of_word(c))
    } else if first == '"' || first == '\'' {
        quoted(text, first)
    } else if let Some(sign) = ["<<<", ">>>", "::"].iter().find(|sign| text.starts_with(**sign)) {
        sign.len()
    } else {
        first.len_utf8()
    })
}

/// Bytes of a literal in quotes; one that does not end on its line is just its quote.
fn quoted(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '\n' => return 1,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    1
}

/// Bytes of `R"x(...)x"`.
fn raw_string(text: &str) -> usize {
    let Some((delimiter, _)) = text[2..].split_once('(') else { return 1 };
    let end = format!("){delimiter}\"");
    text.find(&end).map_or(text.len(), |at| at + end.len())
}

/// Bytes of a directive: to the end of its line, or of the lines that a backslash joins.
fn directive(text: &str) -> usize {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim_end_matches(['\n', '\r']);
        if !content.ends_with('\\') {
            return at + content.len();
        }
        at += line.len();
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        tokens(text).iter().map(|token| token.text).collect()
    }

    #[test]
    fn comments_and_literals_hide_what_is_in_them() {
        assert_eq!(
            texts("a<<<b>>>(\"x<<<\\\"\", '\\'') // c"),
            ["a", "<<<", "b", ">>>", "(", "\"x<<<\\\"\"", ",", "'\\''", ")"]
        );
        assert_eq!(
            texts("R\"x(a)\" {)x\"; /* { \n */ n::y"),
            ["R\"x(a)\" {)x\"", ";", "n", "::", "y"]
        );
        assert_eq!(texts("don't { \n é \"open"), ["don", "'", "t", "{", "é", "\"", "open"]);
    }

    #[test]
    fn a_directive_is_one_token_and_a_macro_has_its_own_too() {
        let text = "#include <a.h>\n  #define F(x) \\\n  g<<<x>>>()\nint a;";
        let found = tokens(text);
        assert_eq!(found[0].text, "#include <a.h>");
        assert!(found[1].is_directive() && found[1].text.ends_with("g<<<x>>>()"));
        let launch = found.iter().find(|token| token.text == "<<<").unwrap();
        assert!(launch.in_macro && text[launch.start..].starts_with("<<<x"));
        assert!(!found.last().unwrap().in_macro);
    }
}
