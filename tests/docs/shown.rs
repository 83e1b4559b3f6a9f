//! Whether a page shows what a command prints. `...` stands for what is left out; numbers are held as closely as
//! another machine computes them.

use std::sync::LazyLock;

use regex::Regex;

use super::page::Line;

const LEFT_OUT: &str = "...";

/// What differs between machines and runs, and what is held in its place.
static REDACTED: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let all = [
        // Another order of a sum moves a floor, a rounding error, and where the largest is.
        (r"[\d.e]+ x floor", "N x floor"),
        (r"(x floor) at step \d+ (layer \d+ )?\w+", "$1 at PLACE"),
        (r"bounds, worst 0\.\d+ x", "bounds, worst 0.N x"),
        (r"step \d+ blk\.\d+\.\w+ +0\.\d+", "PLACE"),
        (r"regressed [\d.]+ x", "regressed N x"),
        (r"error [\d.]+ -> [\d.]+ x bound \(chance explains [\d.]+\)", "error N"),
        (r"\d+ other causes", "N other causes"),
        (r"\b[0-9a-f]{10}\b", "COMMIT"),
        (r"\(c\+\+ \(.*?\) [\d.]+,", "(COMPILER,"),
        (r"llama-cpp-sys-2 [\d.]+", "llama-cpp-sys-2 VERSION"),
        (r"\d+\.\d\d s\b", "TIME"),
    ];
    all.map(|(expression, put)| (Regex::new(expression).unwrap(), put)).into()
});

#[derive(Debug, PartialEq)]
enum Token {
    /// `...` on a line by itself: any lines, not a part of one.
    Lines,
    /// `...` within a line: any words.
    Words,
    /// A new line, with its indentation.
    NewLine(usize),
    Word(String),
}

/// The tokens of lines, each with the line that it stands in. Where lines are wrapped, only words count.
fn tokens<'a>(lines: impl Iterator<Item = &'a str>, is_wrapped: bool) -> Vec<(usize, Token)> {
    let mut all = Vec::new();
    for (index, line) in lines.enumerate() {
        if line.trim() == LEFT_OUT {
            all.push((index, if is_wrapped { Token::Words } else { Token::Lines }));
            continue;
        }
        if !is_wrapped {
            all.push((index, Token::NewLine(line.len() - line.trim_start().len())));
        }
        let text = REDACTED.iter().fold(line.to_string(), |text, (expression, put)| {
            expression.replace_all(&text, *put).into_owned()
        });
        let token =
            |word| if word == LEFT_OUT { Token::Words } else { Token::Word(String::from(word)) };
        all.extend(text.split_whitespace().map(|word| (index, token(word))));
    }
    all
}

/// Where a page does not show what a command prints: the line of the page, and what is printed there instead.
#[derive(Debug, PartialEq)]
pub struct Mismatch {
    pub line: usize,
    pub printed: String,
}

/// Holds the shown lines to the output.
pub fn compare(shown: &[Line], output: &str, is_wrapped: bool) -> Result<(), Mismatch> {
    let printed: Vec<&str> = output.lines().collect();
    let wanted = tokens(shown.iter().map(|line| &*line.text), is_wrapped);
    let given = tokens(printed.iter().map(|line| line.trim_end()), is_wrapped);
    let Err((w, g)) = matches(&wanted, &given) else { return Ok(()) };
    let line = wanted.get(w).or(wanted.last()).map_or(0, |&(line, _)| line);
    let text = given.get(g).map_or("(nothing more)", |&(line, _)| printed[line]);
    Err(Mismatch { line: shown[line].number, printed: text.to_string() })
}

/// Whether the tokens are these; if not, the furthest pair that differs.
fn matches(wanted: &[(usize, Token)], given: &[(usize, Token)]) -> Result<(), (usize, usize)> {
    let (mut w, mut g) = (0, 0);
    // Behind the last `...`, and the first token that it does not stand for.
    let mut gap: Option<(usize, usize)> = None;
    let mut furthest = (0, 0);
    while w < wanted.len() || g < given.len() {
        furthest = furthest.max((w, g));
        let next = given.get(g).map(|(_, token)| token);
        let is_gap = match wanted.get(w) {
            Some((_, Token::Lines)) => matches!(next, None | Some(Token::NewLine(_))),
            Some((_, Token::Words)) => true,
            _ => false,
        };
        if is_gap {
            w += 1;
            gap = Some((w, g));
        } else if wanted.get(w).zip(next).is_some_and(|((_, a), b)| is_same(a, b)) {
            w += 1;
            g += 1;
        } else {
            let (behind, at) = gap.filter(|&(_, at)| at < given.len()).ok_or(furthest)?;
            gap = Some((behind, at + 1));
            (w, g) = (behind, at + 1);
        }
    }
    Ok(())
}

fn is_same(wanted: &Token, given: &Token) -> bool {
    match (wanted, given) {
        (Token::Word(wanted), Token::Word(given)) => is_same_word(wanted, given),
        _ => wanted == given,
    }
}

/// Words are the same but for their numbers, and these nearly.
fn is_same_word(wanted: &str, given: &str) -> bool {
    static NUMBER: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\d[\d,]*\d(\.\d+)?(e-?\d+)?|\d(\.\d+)?(e-?\d+)?").unwrap());
    let rest = |word: &str| NUMBER.replace_all(word, "#").into_owned();
    let numbers = |word| NUMBER.find_iter(word).map(|found| found.as_str()).collect::<Vec<_>>();
    let (a, b) = (numbers(wanted), numbers(given));
    rest(wanted) == rest(given) && a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_near(a, b))
}

/// Counts are the same; large ones and measured values within 2 % or a unit of the last digit, and what rounding
/// leaves within a factor of 2.
fn is_near(wanted: &str, given: &str) -> bool {
    let value = |text: &str| text.replace(',', "").parse::<f64>().ok();
    let (Some(a), Some(b)) = (value(wanted), value(given)) else { return wanted == given };
    let (mantissa, exponent) = wanted.split_once('e').unwrap_or((wanted, "0"));
    let decimals = mantissa.split_once('.').map_or(0, |(_, decimals)| decimals.len() as i32);
    let digit = 10_f64.powi(exponent.parse::<i32>().unwrap_or(0) - decimals);
    let is_measured = wanted.contains(['.', ',', 'e']);
    let is_residue = wanted.contains("e-");
    let most = if is_residue { 0.5 } else { 0.02 };
    a == b || is_measured && (a - b).abs() <= (most * a.max(b)).max(1.01 * digit)
}

/// Shown lines as an output of now has them. A line that is left out stays so, and one of which nothing like it is
/// printed goes.
pub fn renewed(shown: &[Line], output: &str) -> Vec<String> {
    let printed: Vec<&str> = output.lines().map(str::trim_end).collect();
    let is_gap = |line: &Line| line.text.trim() == LEFT_OUT;
    if !shown.iter().any(is_gap) {
        return printed.into_iter().map(String::from).collect();
    }
    let mut lines: Vec<String> = Vec::new();
    let mut next = 0;
    for line in shown {
        let is_after_gap = lines.last().is_some_and(|last| last.trim() == LEFT_OUT);
        if is_gap(line) {
            lines.extend((!is_after_gap).then(|| line.text.clone()));
            continue;
        }
        let like = |other: &&str| likeness(&line.text) == likeness(other);
        let Some(skipped) = printed[next..].iter().position(like) else { continue };
        let now = printed[next + skipped];
        if skipped > 0 && !is_after_gap {
            let indent = now.len() - now.trim_start().len();
            lines.push(" ".repeat(indent) + LEFT_OUT);
        }
        lines.push(now.to_string());
        next += skipped + 1;
    }
    let is_after_gap = lines.last().is_some_and(|last| last.trim() == LEFT_OUT);
    match (is_after_gap, next < printed.len()) {
        (true, false) => drop(lines.pop()),
        (false, true) => lines.push(LEFT_OUT.to_string()),
        _ => {}
    }
    lines
}

/// How a line begins, without its numbers.
fn likeness(line: &str) -> Vec<String> {
    let word = |word: &str| word.replace(|c: char| c.is_ascii_digit(), "");
    line.split_whitespace().take(2).map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(shown: &str, printed: &str) -> Result<(), (usize, String)> {
        let line = |(index, text): (usize, &str)| Line { number: index + 1, text: text.into() };
        let shown: Vec<Line> = shown.lines().enumerate().map(line).collect();
        compare(&shown, printed, false).map_err(|mismatch| (mismatch.line, mismatch.printed))
    }

    #[test]
    fn lines_may_be_left_out_and_nothing_else() {
        assert_eq!(held("a b\n...\n  d", "a b\nc\n  c\n  d\n"), Ok(()));
        assert_eq!(held("a b\n ...", "a b\nc\n"), Ok(()));
        assert_eq!(held("a ... d\n...", "a b c d\n"), Ok(()));
        // A part of a line is no line.
        assert_eq!(held("a\n...", "a b\nc\n"), Err((2, "a b".into())));
        assert_eq!(held("a b", "a b\nc\n"), Err((1, "c".into())));
        assert_eq!(held("a\n...\n  d", "a\nc\nd\n").unwrap_err().0, 3);
        assert_eq!(held("a\nb", "a\n").unwrap_err(), (2, "(nothing more)".into()));
        assert_eq!(held("a\nx y\nc", "a\nx z\nc\n"), Err((2, "x z".into())));
    }

    #[test]
    fn numbers_are_held_as_closely_as_another_machine_gives_them() {
        let same = |wanted: &str, given: &str| held(wanted, given).is_ok();
        assert!(same("9901 x", "9901 x") && !same("9901 x", "9902 x"));
        assert!(same("4.4e5 x", "4.5e5 x") && !same("4.4e5 x", "4.7e5 x"));
        assert!(same("2.83e-6", "1.9e-6") && !same("2.83e-6", "6e-6"));
        assert!(same("91,112 of", "91,120 of") && !same("91,112 of", "95,112 of"));
        assert!(same("0.012", "0.013") && !same("0.012", "0.014"));
        assert!(same("[position 1,", "[position 1,") && !same("[position 1,", "[position 2,"));
        let at =
            |site: &str, times: &str| format!("worst {times} x floor at step 0 layer 0 {site}");
        assert!(same(&at("q", "0.34"), &at("ffn_down", "0.34")));
    }

    #[test]
    fn shown_lines_are_renewed_and_what_is_left_out_stays_so() {
        let line = |(index, text): (usize, &str)| Line { number: index + 1, text: text.into() };
        let renew = |shown: &str, printed: &str| {
            let shown: Vec<Line> = shown.lines().enumerate().map(line).collect();
            let now = renewed(&shown, printed).join("\n");
            let again: Vec<Line> = now.lines().enumerate().map(line).collect();
            assert_eq!(compare(&again, printed, false), Ok(()), "{now}");
            now
        };
        assert_eq!(renew("a 1\nb", "a 2\nc\n"), "a 2\nc");
        assert_eq!(renew("a 1\n...\n  d 3", "a 2\nx\n  d 4\ny\n"), "a 2\n...\n  d 4\n...");
        assert_eq!(renew("a 1\n  d 3\n...", "a 2\nx\n  d 4\n"), "a 2\n  ...\n  d 4");
        assert_eq!(renew("a 1\ngone\n...", "a 2\nx\n"), "a 2\n...");
    }
}
