//! Integer expressions of dims, such as `4 * (past + 3)`: how a contract writes sizes.
//!
//! ```text
//! choice  = compare [ "?" choice ":" choice ]
//! compare = sum [ ("==" | "!=" | "<=" | ">=" | "<" | ">") sum ]      1 or 0
//! sum     = product { ("+" | "-") product }
//! product = value { ("*" | "/" | "%") value }                        "/" towards zero
//! value   = number | name | "(" choice ")" | function "(" choice "," choice ")"
//! function: min, max, ceil_div, round_up (the second argument is the step)
//! ```

use std::fmt;

/// Deeper than this no size is written, nor longer, in bytes: each operator of a sum is a level of its tree.
const MAX_DEPTH: usize = 32;
const MAX_BYTES: usize = 4096;

/// An expression as it was written, and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    text: String,
    tree: Tree,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Tree {
    Number(i64),
    Name(String),
    Two(Operator, Box<(Tree, Tree)>),
    Choice(Box<(Tree, Tree, Tree)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Equal,
    NotEqual,
    AtMost,
    AtLeast,
    Less,
    More,
    Min,
    Max,
    CeilDiv,
    RoundUp,
}

/// Operators in pairs of text and meaning; a longer text before its beginning.
const COMPARISONS: [(&str, Operator); 6] = [
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<=", Operator::AtMost),
    (">=", Operator::AtLeast),
    ("<", Operator::Less),
    (">", Operator::More),
];
const SUMS: [(&str, Operator); 2] = [("+", Operator::Add), ("-", Operator::Subtract)];
const PRODUCTS: [(&str, Operator); 3] =
    [("*", Operator::Multiply), ("/", Operator::Divide), ("%", Operator::Remainder)];
const FUNCTIONS: [(&str, Operator); 4] = [
    ("min", Operator::Min),
    ("max", Operator::Max),
    ("ceil_div", Operator::CeilDiv),
    ("round_up", Operator::RoundUp),
];

/// What stands for a name.
pub type Dims = Vec<(&'static str, i64)>;

impl Expression {
    /// Reads an expression that may use `names`. The error is a phrase.
    pub fn parse(text: &str, names: &[&str]) -> Result<Expression, String> {
        if text.len() > MAX_BYTES {
            return Err(format!("it is longer than {MAX_BYTES} bytes"));
        }
        let mut parser = Parser { rest: text.trim(), names };
        let tree = parser.choice(0)?;
        if parser.rest.is_empty() {
            Ok(Expression { text: text.trim().to_string(), tree })
        } else {
            Err(format!("unexpected trailing \"{}\"", parser.rest))
        }
    }

    /// The value for these dims. The error is a phrase.
    pub fn value(&self, dims: &Dims) -> Result<i64, String> {
        self.tree.value(dims)
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Tree {
    fn value(&self, dims: &Dims) -> Result<i64, String> {
        match self {
            Tree::Number(number) => Ok(*number),
            Tree::Name(name) => {
                let dim = dims.iter().find(|(dim, _)| dim == name);
                dim.map(|(_, value)| *value).ok_or_else(|| format!("{name} is not known here"))
            }
            Tree::Two(operator, sides) => operator.of(sides.0.value(dims)?, sides.1.value(dims)?),
            Tree::Choice(parts) => match parts.0.value(dims)? {
                0 => parts.2.value(dims),
                _ => parts.1.value(dims),
            },
        }
    }
}

impl Operator {
    fn of(self, a: i64, b: i64) -> Result<i64, String> {
        use Operator::*;
        let divides = matches!(self, Divide | Remainder | CeilDiv | RoundUp);
        if divides && b == 0 {
            return Err("it divides by zero".to_string());
        }
        let value = match self {
            Add => a.checked_add(b),
            Subtract => a.checked_sub(b),
            Multiply => a.checked_mul(b),
            Divide => a.checked_div(b),
            Remainder => a.checked_rem(b),
            Equal => Some(i64::from(a == b)),
            NotEqual => Some(i64::from(a != b)),
            AtMost => Some(i64::from(a <= b)),
            AtLeast => Some(i64::from(a >= b)),
            Less => Some(i64::from(a < b)),
            More => Some(i64::from(a > b)),
            Min => Some(a.min(b)),
            Max => Some(a.max(b)),
            CeilDiv => a.checked_add(b - b.signum()).and_then(|sum| sum.checked_div(b)),
            RoundUp => {
                let steps = a.checked_add(b - b.signum()).and_then(|sum| sum.checked_div(b));
                steps.and_then(|steps| steps.checked_mul(b))
            }
        };
        value.ok_or_else(|| "it does not fit 64 bits".to_string())
    }
}

struct Parser<'a> {
    rest: &'a str,
    names: &'a [&'a str],
}

impl Parser<'_> {
    fn take(&mut self, word: &str) -> bool {
        match self.rest.strip_prefix(word) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn needs(&mut self, word: &str) -> Result<(), String> {
        if self.take(word) {
            Ok(())
        } else if self.rest.is_empty() {
            Err(format!("\"{word}\" is missing at its end"))
        } else {
            Err(format!("\"{word}\" is missing before \"{}\"", self.rest))
        }
    }

    fn operator(&mut self, list: &[(&str, Operator)]) -> Option<Operator> {
        list.iter().find(|(word, _)| self.take(word)).map(|(_, operator)| *operator)
    }

    fn choice(&mut self, depth: usize) -> Result<Tree, String> {
        if depth > MAX_DEPTH {
            return Err(format!("it nests deeper than {MAX_DEPTH}"));
        }
        let mut tree = self.sum(depth)?;
        if let Some(operator) = self.operator(&COMPARISONS) {
            tree = Tree::Two(operator, Box::new((tree, self.sum(depth)?)));
        }
        if !self.take("?") {
            return Ok(tree);
        }
        let then = self.choice(depth + 1)?;
        self.needs(":")?;
        Ok(Tree::Choice(Box::new((tree, then, self.choice(depth + 1)?))))
    }

    fn sum(&mut self, depth: usize) -> Result<Tree, String> {
        let mut tree = self.product(depth)?;
        while let Some(operator) = self.operator(&SUMS) {
            tree = Tree::Two(operator, Box::new((tree, self.product(depth)?)));
        }
        Ok(tree)
    }

    fn product(&mut self, depth: usize) -> Result<Tree, String> {
        let mut tree = self.one(depth)?;
        while let Some(operator) = self.operator(&PRODUCTS) {
            tree = Tree::Two(operator, Box::new((tree, self.one(depth)?)));
        }
        Ok(tree)
    }

    fn one(&mut self, depth: usize) -> Result<Tree, String> {
        if self.take("(") {
            let tree = self.choice(depth + 1)?;
            self.needs(")")?;
            return Ok(tree);
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.parse().map(Tree::Number).map_err(|_| format!("{word} is not a number"));
        }
        if let Some(&(_, function)) = FUNCTIONS.iter().find(|(name, _)| *name == word) {
            self.needs("(")?;
            let first = self.choice(depth + 1)?;
            self.needs(",")?;
            let second = self.choice(depth + 1)?;
            self.needs(")")?;
            return Ok(Tree::Two(function, Box::new((first, second))));
        }
        match word {
            "" if self.rest.is_empty() => Err("a value is missing at its end".to_string()),
            "" => Err(format!("a value is missing before \"{}\"", self.rest)),
            name if self.names.contains(&name) => Ok(Tree::Name(name.to_string())),
            name => {
                Err(format!("{name} is not a known name; choose from {}", self.names.join(", ")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Result<i64, String> {
        let dims = vec![("past", 7), ("n", 3)];
        Expression::parse(text, &["past", "n", "later"])?.value(&dims)
    }

    #[test]
    fn an_expression_has_the_value_that_it_has_in_c() {
        for (text, wanted) in [
            ("4 * (past + 3)", 40),
            ("past - n - 1", 3),
            ("past / n * n", 6),
            ("past % n", 1),
            ("2 + past * n", 23),
            ("n == 3 ? 10 : 20", 10),
            ("n > 3 ? 10 : past <= 7 ? 5 : 6", 5),
            ("ceil_div(past, n)", 3),
            ("round_up(past, 4) + max(1, n) + min(past, 2)", 13),
            ("round_up(8, 4)", 8),
        ] {
            assert_eq!(value(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_has_no_value_says_why() {
        for (text, wanted) in [
            ("past / (n - 3)", "divides by zero"),
            ("ceil_div(past, 0)", "divides by zero"),
            ("width", "width is not a known name; choose from past"),
            ("later", "later is not known here"),
            ("(past", "\")\" is missing at its end"),
            ("past +", "a value is missing at its end"),
            ("past past", "unexpected trailing \"past\""),
            ("* 3", "a value is missing before \"* 3\""),
            ("9223372036854775807 + 1", "does not fit 64 bits"),
            ("99999999999999999999", "is not a number"),
            ("min(1)", "\",\" is missing"),
        ] {
            let error = value(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
        assert!(value(&"(".repeat(1000)).is_err());
        assert!(value(&format!("1{}", "+1".repeat(400_000))).unwrap_err().contains("longer than"));
        assert_eq!(value(&format!("1{}", "+1".repeat(2000))), Ok(2001));
    }
}
