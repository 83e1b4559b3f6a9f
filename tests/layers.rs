//! No folder of `src/` imports from one above it.

use std::path::{Path, PathBuf};

/// From the ground up. Those on one line cannot see one another.
const LAYERS: [&[&str]; 10] = [
    &["graph::site"],
    &["core"],
    &["graph"],
    &["model"],
    &["reference", "engine", "trace", "compare"],
    &["diagnosis"],
    &["run"],
    &["report", "doctor"],
    &["ci"],
    &["cli"],
];

/// The layer and the name of the folder that a path such as `engine::device::cuda` leads into.
fn folder(path: &str) -> Option<(usize, &'static str)> {
    let leads_into = |name: &str| path == name || path.starts_with(&format!("{name}::"));
    let layers = LAYERS.iter().enumerate();
    let all = layers.flat_map(|(layer, names)| names.iter().map(move |name| (layer, *name)));
    all.filter(|(_, name)| leads_into(name)).max_by_key(|(_, name)| name.len())
}

/// Every path of the crate that a text names, imports taken apart, with its line.
fn paths(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let roots = ["crate::", "firstdiff::"];
    let roots = roots.iter().flat_map(|root| text.match_indices(root));
    for (at, root) in roots {
        let rest = &text[at + root.len()..];
        let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let is_import = text[..at].ends_with("use ");
        let end = if is_import { rest.find(';') } else { rest.find(|c| !is_part(c)) };
        let end = end.unwrap_or(rest.len());
        let (mut outer, mut path) = (vec![String::new()], String::new());
        for (offset, char) in rest[..end].char_indices().chain([(end, ',')]) {
            let whole = format!("{}{path}", outer.last().expect("braces are in pairs"));
            match char {
                ' ' | '\n' => continue,
                '{' => outer.push(whole),
                ',' | '}' if !path.is_empty() => {
                    let line = text[..at + root.len() + offset].matches('\n').count() + 1;
                    found.push((line, whole));
                }
                ',' | '}' => {}
                part => {
                    path.push(part);
                    continue;
                }
            }
            path.clear();
            if char == '}' {
                outer.pop();
            }
        }
    }
    found
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[test]
fn no_folder_imports_from_one_above_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut upward, mut imports) = (Vec::new(), 0);
    for file in sources(&src) {
        let own = file.strip_prefix(&src).unwrap().with_extension("");
        let own = own.to_string_lossy().replace('/', "::");
        let Some((layer, name)) = folder(&own) else { continue };
        for (line, path) in paths(&std::fs::read_to_string(&file).unwrap()) {
            let Some((other_layer, other)) = folder(&path) else { continue };
            imports += 1;
            if name != other && other_layer >= layer {
                upward.push(format!("{}:{line}: {name} imports {path}", file.display()));
            }
        }
    }
    assert!(upward.is_empty(), "imports that go up:\n{}", upward.join("\n"));
    assert!(imports > 1000, "{imports} imports are not all of src/");
}

#[test]
fn imports_are_taken_apart() {
    let text = "use crate::{\n    a::{b, c::D},\n    e,\n};\nlet x = crate::f::g(1);";
    let found = paths(text);
    let found: Vec<(usize, &str)> = found.iter().map(|(at, path)| (*at, &path[..])).collect();
    assert_eq!(found, [(2, "a::b"), (2, "a::c::D"), (3, "e"), (5, "f::g")]);
}
