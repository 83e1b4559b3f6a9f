//! The results as Markdown, and whether they are good enough.

use std::fmt::Write;

use crate::{
    case::{Engine, Kind},
    judge::Row,
};

/// So many of so many.
#[derive(Clone, Copy, Default)]
struct Share {
    hits: usize,
    of: usize,
}

impl Share {
    fn of(answers: impl Iterator<Item = bool>) -> Share {
        let mut share = Share::default();
        for hit in answers {
            share.hits += usize::from(hit);
            share.of += 1;
        }
        share
    }

    fn in_full(self) -> String {
        let Share { hits, of } = self;
        if of == 0 {
            return "-".to_string();
        }
        format!("{:.0} % ({hits} of {of})", 100.0 * hits as f64 / of as f64)
    }
}

/// A question, and the answer for a case of which it is asked.
type Question = (&'static str, fn(&Row<'_>) -> Option<bool>);

const QUESTIONS: [Question; 7] = [
    ("bugs: detected", |row| row.detected.filter(|_| row.is_bug())),
    ("bugs: first site as stated", |row| row.site.filter(|_| row.is_bug())),
    ("bugs: guilty operations exact", |row| row.guilty.filter(|_| row.is_bug())),
    ("bugs: cause named", |row| row.named.filter(|_| row.is_bug())),
    ("bugs: in one entry", |row| row.guilty.filter(|_| row.is_bug()).map(|_| row.entries == 1)),
    ("conventions told", |row| row.named.filter(|_| row.case.kind() == Kind::Convention)),
    ("right engines left alone", |row| row.guilty.filter(|_| row.case.kind() == Kind::Right)),
];

impl Row<'_> {
    fn is_bug(&self) -> bool {
        matches!(self.case.kind(), Kind::Bug | Kind::Stopped)
    }

    fn is_judged(&self) -> bool {
        !self.is_not_run && self.died.is_none()
    }
}

/// Whether every case was judged, and nothing proven is false.
pub fn is_good(rows: &[Row<'_>]) -> bool {
    rows.iter().all(|row| row.is_judged() && row.false_proofs.is_empty())
}

/// The whole document.
pub fn markdown(rows: &[Row<'_>]) -> String {
    let mut text = include_str!("introduction.md").to_string();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let _ = writeln!(
        text,
        "\nMeasured on {} with {cores} cores, one case after another. `make wild` repeats it and rewrites this\n\
         file. It fails if a proven cause is not the stated one, or if a case cannot be run.\n",
        std::env::consts::ARCH,
    );
    text += &totals(rows);
    for (title, handed_over) in [("Handed over", true), ("Looked up", false)] {
        let _ = writeln!(
            text,
            "\n## {title}\n\n\
             | case | is | report | engine | detected | guilty | entries | what is said | certainty | named | s |\n\
             |---|---|---|---|---|---|--:|---|---|---|--:|"
        );
        for row in rows.iter().filter(|row| row.case.handed_over == handed_over) {
            let _ = writeln!(text, "{}", table_row(row));
        }
    }
    text
}

/// What is proven and false, what was not judged, and the shares of both parts and of all.
pub fn totals(rows: &[Row<'_>]) -> String {
    let mut text = "## Proven, and not the stated cause\n\n".to_string();
    let false_proofs = rows.iter().flat_map(|row| {
        row.false_proofs
            .iter()
            .map(move |proof| format!("- `{}`: {}", row.case.name, escaped(proof)))
    });
    write_list(&mut text, false_proofs.collect());
    text += "\n## Not run, or ended early\n\n";
    let not_judged = rows.iter().filter(|row| !row.is_judged()).map(|row| {
        let why = row.died.as_deref().unwrap_or("not run: there was no Python with numpy");
        format!("- `{}`: {}", row.case.name, escaped(why))
    });
    write_list(&mut text, not_judged.collect());
    text += "\n## Summary\n\n| | handed over | looked up | all |\n|---|--:|--:|--:|\n";
    let parts: [Vec<&Row<'_>>; 3] = [
        rows.iter().filter(|row| row.case.handed_over).collect(),
        rows.iter().filter(|row| !row.case.handed_over).collect(),
        rows.iter().collect(),
    ];
    write_line(&mut text, "cases", &parts, |rows| rows.len().to_string());
    for (title, answer) in QUESTIONS {
        write_line(&mut text, title, &parts, |rows| {
            Share::of(rows.iter().filter_map(|row| answer(row))).in_full()
        });
    }
    write_line(&mut text, "entries proven, and not the stated cause", &parts, |rows| {
        sum(rows, |row| row.false_proofs.len())
    });
    write_line(&mut text, "entries proven, and only a likeness", &parts, |rows| {
        sum(rows, |row| row.likenesses)
    });
    write_line(&mut text, "cases not run", &parts, |rows| {
        sum(rows, |row| usize::from(row.is_not_run))
    });
    write_line(&mut text, "cases that died", &parts, |rows| {
        sum(rows, |row| usize::from(row.died.is_some()))
    });
    write_line(&mut text, "median seconds", &parts, median_seconds);
    text
}

/// A line of the summary.
fn write_line(
    text: &mut String,
    title: &str,
    parts: &[Vec<&Row<'_>>; 3],
    cell: impl Fn(&[&Row<'_>]) -> String,
) {
    let [handed_over, looked_up, all] = parts.each_ref().map(|rows| cell(rows));
    let _ = writeln!(text, "| {title} | {handed_over} | {looked_up} | {all} |");
}

fn sum(rows: &[&Row<'_>], of: fn(&Row<'_>) -> usize) -> String {
    rows.iter().map(|row| of(row)).sum::<usize>().to_string()
}

fn write_list(text: &mut String, mut lines: Vec<String>) {
    if lines.is_empty() {
        lines.push("None.".to_string());
    }
    let _ = writeln!(text, "{}", lines.join("\n"));
}

fn median_seconds(rows: &[&Row<'_>]) -> String {
    let judged = rows.iter().filter(|row| row.is_judged());
    let mut seconds: Vec<f64> = judged.map(|row| row.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).map_or("-".to_string(), |median| format!("{median:.1}"))
}

fn table_row(row: &Row<'_>) -> String {
    let case = row.case;
    let kind = match case.kind() {
        Kind::Bug => "bug",
        Kind::Stopped => "bug that ends the run",
        Kind::Convention => "convention",
        Kind::Right => "right",
    };
    let engine = match case.engine {
        Engine::Kernels => "kernels",
        Engine::Numpy => "numpy",
    };
    let said = match &row.died {
        _ if row.is_not_run => "**not run**".to_string(),
        Some(died) => format!("**died**: {}", escaped(died)),
        None => escaped(&row.said),
    };
    format!(
        "| `{}` | {kind} | {} | {engine} | {} | {} | {} | {said} | {} | {} | {:.1} |",
        case.name,
        escaped(first_sentence(&case.report)),
        cell(row.detected),
        cell(row.guilty),
        row.entries,
        row.certainty,
        cell(row.named),
        row.seconds,
    )
}

fn cell(answer: Option<bool>) -> &'static str {
    match answer {
        Some(true) => "yes",
        Some(false) => "**no**",
        None => "-",
    }
}

fn first_sentence(text: &str) -> &str {
    text.find(". ").map_or(text, |end| &text[..=end])
}

/// Text that Markdown shows as it is, on one line.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '\n' => escaped.push(' '),
            '\\' | '|' | '*' | '_' | '`' | '<' | '[' | ']' => escaped.extend(['\\', character]),
            _ => escaped.push(character),
        }
    }
    escaped
}
