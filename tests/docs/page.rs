//! The commands that a page shows, and what it shows of their output.

/// A line of a page, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub number: usize,
    pub text: String,
}

/// A command, and the lines that stand below it as its output; where there are none, nothing is said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub line: usize,
    pub text: String,
    pub shown: Vec<Line>,
}

const PROMPT: &str = "$ ";

/// The commands of a page, in its order: the `$ ` lines of a ```console block, each line of a ```sh block. An error
/// says where a command stands in a block of another kind.
pub fn commands(page: &str) -> Result<Vec<Command>, String> {
    let mut found: Vec<Command> = Vec::new();
    let mut block: Option<&str> = None;
    for (index, text) in page.lines().enumerate() {
        let number = index + 1;
        if let Some(kind) = text.strip_prefix("```") {
            block = if block.is_some() { None } else { Some(kind) };
            continue;
        }
        let command = |text: &str| Command { line: number, text: text.into(), shown: Vec::new() };
        match (block, text.strip_prefix(PROMPT)) {
            (Some("console"), Some(text)) => found.push(command(text)),
            (Some("console"), None) => {
                let last = found.last_mut().filter(|_| !text.starts_with('#'));
                let last = last.ok_or_else(|| format!("line {number}: no command gives this"))?;
                last.shown.push(Line { number, text: text.trim_end().into() });
            }
            (Some("sh"), None) if text.trim().is_empty() => {}
            (Some("sh"), None) => found.push(command(text)),
            (Some(kind), Some(_)) => {
                return Err(format!(
                    "line {number}: a command in a block of `{kind}`: write console"
                ));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The commands in the running text of a page, between backquotes, with their lines.
pub fn in_text(page: &str) -> Vec<Line> {
    let mut block = false;
    let mut found = Vec::new();
    for (index, text) in page.lines().enumerate() {
        block ^= text.starts_with("```");
        let spans = text.split('`').skip(1).step_by(2).filter(|_| !block);
        let commands =
            spans.filter(|span| span.starts_with("firstdiff ") || span.starts_with("make "));
        found.extend(commands.map(|span| Line { number: index + 1, text: span.into() }));
    }
    found
}

#[test]
fn commands_are_read_with_their_lines_and_what_is_shown() {
    let page = "text\n```console\n$ a -b\nout\n\n...\n$ c\n```\n```sh\nd   # why\n\ne\n```\n```toml\nf\n```\n";
    let found = commands(page).unwrap();
    let seen: Vec<_> = found.iter().map(|one| (one.line, &*one.text, one.shown.len())).collect();
    assert_eq!(seen, [(3, "a -b", 3), (7, "c", 0), (10, "d   # why", 0), (12, "e", 0)]);
    assert_eq!(found[0].shown[2], Line { number: 6, text: "...".into() });
    assert_eq!(
        commands("```\n$ a\n```\n").unwrap_err(),
        "line 2: a command in a block of ``: write console"
    );
    assert!(commands("```console\nout\n```\n").is_err());
    let spans = in_text("`make x`, `firstdiff a --b` and `c`\n```sh\n`make y`\n```\n");
    assert_eq!(
        spans.iter().map(|span| &*span.text).collect::<Vec<_>>(),
        ["make x", "firstdiff a --b"]
    );
}
