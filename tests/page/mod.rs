//! The page of a report in a real browser: what is on it, and that a mouse, keys and a screen reader reach it.

mod browser;
mod kinds;

use std::path::{Path, PathBuf};

use firstdiff::report::html::MOST_BYTES;
use serde_json::json;

use crate::{
    cli::{SHORT, outcome, path, refused},
    common::fixture,
};
use browser::{Browser, DOWN, ENTER, LEFT, RIGHT};

/// Roles of what is used or looked at.
const ROLES: [&str; 7] = ["button", "radio", "gridcell", "img", "image", "combobox", "link"];

/// Runs a command that writes a page, and gives the page.
fn made(folder: &Path, arguments: &[&str], exit: i32) -> PathBuf {
    let page = folder.join("page.html");
    let arguments = [arguments, &["--html", path(&page)]].concat();
    let (code, _, err) = outcome(&arguments);
    assert_eq!(code, exit, "{arguments:?}: {err}");
    let bytes = std::fs::metadata(&page).unwrap().len() as usize;
    assert!(bytes <= MOST_BYTES, "{bytes} bytes");
    page
}

/// What must hold of every page: nothing complains, nothing is loaded, everything has a name.
#[track_caller]
fn sound(browser: &Browser) {
    assert_eq!(browser.complaints(), [""; 0]);
    let loaded = browser.script("return performance.getEntriesByType('resource').length");
    assert_eq!(loaded, json!(0));
    assert_eq!(browser.nameless(&ROLES), [""; 0]);
    // A note may speak of NaN, and no number may be one.
    for (of, bad) in [("body", "undefined"), ("body", "[object"), ("#detail", "NaN")] {
        let text = browser.text(of);
        assert!(!text.contains(bad), "{bad} in {text}");
    }
    // Nothing but a map or a table is wider than the window.
    let over = browser.script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth",
    );
    assert_eq!(over, json!(0));
}

#[test]
fn two_mistakes_are_the_answer_and_each_cell_opens_its_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let faults = ["run", "--fault", "qkv-bias-zero", "--fault", "rope-pairs-interleaved"];
    let page = made(folder.path(), &[&faults[..], &SHORT].concat(), 1);
    let browser = Browser::open(1400, 1000);
    browser.load(&page);
    assert_eq!(browser.text("h1").lines().last(), Some("2 mistakes"));
    let causes = browser.text(".causes");
    assert!(
        causes.contains("q, k and v projection, all layers: bias missing (proven)"),
        "{causes}"
    );
    assert!(causes.contains("pairs (2i, 2i+1) instead of (i, i+d/2) (proven)"), "{causes}");
    let entries = browser.text(".entries");
    for wanted in ["within the bound", "kernels/rope.cu:", "blk.*.attn_q.bias: all zero"] {
        assert!(entries.contains(wanted), "{wanted} in {entries}");
    }
    // It begins at the first mistake; all guilty results are marked.
    assert_eq!(browser.text("#detail h3"), "blk.0.q");
    assert_eq!(browser.count("td.guilty"), 5 * 4);
    assert_eq!(browser.count(".pictures canvas"), 5);
    sound(&browser);
    browser.picture("two-mistakes");

    // A click on a cell opens it, and keys go on from there.
    browser.click("td[aria-label^='layer 2 k_rope']");
    assert_eq!(browser.text("#detail h3"), "blk.2.k_rope");
    assert!(browser.text("#detail .said").contains("guilty"));
    browser.keys(RIGHT);
    assert_eq!(browser.text("#detail h3"), "blk.2.k_rope", "a move opens nothing");
    browser.keys(ENTER);
    assert_eq!(browser.text("#detail h3"), "blk.3.k_rope");
    browser.keys(DOWN);
    browser.keys(ENTER);
    assert_eq!(browser.text("#detail h3"), "blk.3.k_cache");
    assert!(!browser.text("#detail .said").contains("guilty"));

    // Of what came in, all that follows differs too.
    let beyond = "return document.querySelectorAll('table.map td[class^=b]').length";
    let added = browser.script(beyond).as_u64().unwrap();
    browser.click("[data-value=inherited]");
    assert!(browser.text("#map-lead").contains("in floors"));
    let inherited = browser.script(beyond).as_u64().unwrap();
    assert!(added == 20 && inherited > 60, "{added} {inherited}");

    // The other choice by a key, and another step.
    browser.script("document.querySelector('[data-value=inherited]').focus()");
    browser.keys(LEFT);
    assert_eq!(browser.script("return view.kind"), json!("added"));
    browser.click("[aria-label='Next step']");
    assert!(browser.text("#detail .title").contains("step 1 · position 10"));
    browser.script("const s = document.getElementById('step'); s.value = '2'; s.dispatchEvent(new Event('change'))");
    assert!(browser.text("#detail .title").contains("step 2 · position 11"));

    // Keys move over the pictures, and what is there is said.
    browser.script("document.querySelector('.pictures').focus()");
    browser.keys(RIGHT);
    let said = browser.text(".readout");
    assert!(said.starts_with("position 0") && said.contains("engine ≈"), "{said}");

    // From the graph to what it is computed from.
    browser.click("[aria-label^='Go to blk.3.k_rope']");
    assert_eq!(browser.text("#detail h3"), "blk.3.k_rope");
    // The second entry shows its own tensor.
    browser.click("[aria-label='Show the tensor of entry 2']");
    assert_eq!(browser.text("#detail h3"), "blk.0.q_rope");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_page_is_dark_where_the_system_is_or_the_user_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let page = made(folder.path(), &[&["run"][..], &SHORT].concat(), 0);
    let browser = Browser::open(1400, 1000);
    browser.prefer("light");
    browser.load(&page);
    let paper = "return getComputedStyle(document.body).backgroundColor";
    let light = browser.script(paper);
    assert_eq!(browser.text("h1").lines().last(), Some("Equal within the floor"));
    assert_eq!(browser.count("td.guilty"), 0);
    assert_eq!(browser.count(".entries"), 0);
    sound(&browser);
    browser.picture("clean");
    let pixels = "return document.querySelector('canvas').toDataURL()";
    let light_pixels = browser.script(pixels);
    browser.prefer("dark");
    let dark = browser.script(paper);
    assert_ne!(light, dark);
    assert_ne!(light_pixels, browser.script(pixels), "pictures follow");
    browser.click("#theme [data-value=light]");
    assert_eq!(browser.script(paper), light);
    browser.click("#theme [data-value=dark]");
    browser.prefer("light");
    assert_eq!(browser.script(paper), dark);
    browser.picture("clean-dark");
    sound(&browser);
}

#[test]
fn names_with_markup_are_texts() {
    let folder = tempfile::tempdir().unwrap();
    // A path has slashes, so it can end an element.
    let inner = folder.path().join("<script>window.evil=1<");
    std::fs::create_dir_all(&inner).unwrap();
    let model = inner.join("script><img src=x onerror='window.evil=1'>.gguf");
    std::fs::copy(fixture(), &model).unwrap();
    let page = made(folder.path(), &[&["run", "-m", path(&model)][..], &SHORT].concat(), 0);
    let browser = Browser::open(1400, 1000);
    browser.load(&page);
    assert_eq!(browser.script("return window.evil"), json!(null));
    assert_eq!(browser.count("img"), 0);
    assert!(browser.text("#setup").contains("<script>window.evil=1</script><img src=x"));
    assert!(browser.text("#commands").contains("firstdiff run -m '"));
    sound(&browser);
}

#[test]
fn twenty_four_layers_open_at_once_and_fit_a_narrow_window() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("deep.gguf");
    let (exit, _, err) = outcome(&["synth", "-o", path(&model), "--layers", "24"]);
    assert_eq!(exit, 0, "{err}");
    let prompt = ["-p", "Once upon a time there was a girl who lived in a house"];
    let faults = ["--fault", "mask-off-by-one", "--fault", "kv-head-1-unwritten"];
    let run = [&["run", "-m", path(&model), "-n", "4"][..], &prompt, &faults].concat();
    let page = made(folder.path(), &run, 1);
    let browser = Browser::open(1400, 1000);
    let took = browser.load(&page);
    println!("24 layers: {took:?}, {} bytes", std::fs::metadata(&page).unwrap().len());
    assert!(took.as_secs_f64() < 5.0, "{took:?}");
    assert_eq!(browser.count("table.map thead th"), 1 + 24);
    assert_eq!(browser.count("td.guilty"), 3 * 24);
    // What each query weighed was read off.
    browser.click("[aria-label='Show the tensor of entry 2']");
    assert_eq!(browser.text("#detail h3"), "blk.0.probs");
    assert!(browser.text("#detail").contains("not attended to, but must be"));
    sound(&browser);
    browser.picture("24-layers");
    browser.size(500, 900);
    browser.load(&page);
    sound(&browser);
    browser.picture("narrow");
}

#[test]
fn the_page_of_many_lengths_is_of_the_first_that_diverges_or_else_of_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("lengths.html");
    let run = ["run", "-n", "1", "--lengths", "1,3,5", "--html", path(&page)];
    // Position 0 is not rotated: a prompt of one token is right.
    let made = |run: &[&str], code: i32| {
        let (exit, _, err) = outcome(&[run, &["-p", SHORT[1]]].concat());
        assert_eq!(exit, code, "{err}");
        std::fs::read_to_string(&page).unwrap()
    };
    let right = made(&run, 0);
    assert!(right.contains("this page shows the run with 5 prompt tokens; equal at all 3 lengths"));
    let fault = ["run", "-n", "0", "--fault", "rope-pairs-interleaved"];
    let wrong = made(&[&fault, &run[3..]].concat(), 1);
    assert!(
        wrong
            .contains("this page shows the run with 3 prompt tokens; diverges at 2 of 3 lengths: ")
    );
    assert!(wrong.contains("pairs (2i, 2i+1) instead of (i, i+d/2)"));
}

#[test]
fn a_page_is_written_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("no/page.html");
    let run = [&["run"][..], &SHORT].concat();
    refused(&[&run[..], &["--html", path(&nowhere)]].concat(), 2, "cannot write");
    refused(&[&run[..], &["--html", "-"]].concat(), 2, "--html writes a file; give it a path");
    // What is no file is written to, and stays what it is.
    let (exit, _, err) = outcome(&[&run[..], &["--html", "/dev/null"]].concat());
    assert_eq!(exit, 0, "{err}");
    let link = folder.path().join("link.html");
    let target = folder.path().join("target.html");
    std::fs::write(&target, "old").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let (exit, _, err) = outcome(&[&run[..], &["--html", path(&link)]].concat());
    assert_eq!(exit, 0, "{err}");
    assert!(link.is_symlink());
    assert!(std::fs::read_to_string(&target).unwrap().starts_with("<!doctype html>"));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}
