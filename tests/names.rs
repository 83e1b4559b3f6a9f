//! What the program does follows from a model's graph, never from what its architecture is called.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use firstdiff::model::synth::arch::{Architecture, architectures};

/// Where names may stand: random models have architectures, and so have tests; traces of old formats name
/// theirs in place of their sites.
const MAY_NAME: [&str; 4] =
    ["src/model/synth/", "src/diagnosis/tests/", "src/trace/old.rs", "src/cli/help.rs"];

/// The name that llama.cpp and its bindings share with an architecture: it counts as one in quotes only.
const LIBRARY: &str = "llama";

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The architectures that a line names. A word goes on over dots and dashes: `tiny-qwen2` is a shape, and
/// `llama.cpp` a program.
fn named<'n>(line: &str, names: &'n BTreeSet<&'static str>) -> Vec<&'n str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let mut found = Vec::new();
    for word in line.split(|c| !is_part(c)).map(|word| word.trim_matches(['.', '-'])) {
        let Some(name) = names.get(word.to_ascii_lowercase().as_str()) else { continue };
        let is_quoted =
            ['"', '`'].iter().any(|quote| line.contains(&format!("{quote}{word}{quote}")));
        if *name != LIBRARY || is_quoted {
            found.push(*name);
        }
    }
    found
}

#[test]
fn no_code_but_that_of_random_models_names_an_architecture() {
    let names: BTreeSet<&str> = architectures().map(Architecture::arch).collect();
    assert!(names.contains("gemma2") && names.contains(LIBRARY));
    assert_eq!(named("match arch { \"llama\" => 1, Qwen3 => 2 }", &names), ["llama", "qwen3"]);
    assert!(named("llama::backend() of llama.cpp; tiny-qwen2-f16.gguf", &names).is_empty());

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    assert!(files.len() > 100);
    let mut hits = Vec::new();
    for file in files {
        let path = file.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
        if MAY_NAME.iter().any(|allowed| path.starts_with(allowed)) {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        for (line, text) in text.lines().enumerate() {
            let named = named(text, &names);
            hits.extend(named.iter().map(|name| format!("{path}:{}: {name}", line + 1)));
        }
    }
    assert!(hits.is_empty(), "ask the graph instead of the name:\n{}", hits.join("\n"));
}
