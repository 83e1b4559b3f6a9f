//! Pages of recorded engines, of other architectures, of several sequences, without a replay, and of a check.

use std::path::Path;

use super::{browser::Browser, made, sound};
use crate::{
    bring::engines::{FIXTURE, NUMPY},
    cli::{SHORT, outcome, path},
    common::fixture,
    trace::any::{REFERENCES, engine},
};

fn succeeds(arguments: &[&str]) {
    let (exit, _, err) = outcome(arguments);
    assert_eq!(exit, 0, "{arguments:?}: {err}");
}

/// Records both sides of the fixture, the engine's with more arguments.
fn recorded(folder: &Path, more: &[&str]) -> [String; 2] {
    let (own, right) = (folder.join("mine"), folder.join("ref"));
    succeeds(&[&["capture", "engine", "-o", path(&own)][..], &SHORT, more].concat());
    succeeds(&[&["capture", "reference", "-o", path(&right)][..], &SHORT].concat());
    [own, right].map(|folder| path(&folder).to_string())
}

#[test]
fn of_a_sparse_trace_what_was_not_recorded_is_hatched_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let sites = ["--fault", "gelu-for-silu", "--sites", "embd,attn_residual,layer_out,logits"];
    let [own, right] = recorded(folder.path(), &sites);
    let fixture = fixture();
    let model = path(&fixture);
    let explain = ["explain", &own, "--reference", &right, "-m", model];
    let page = made(folder.path(), &explain, 1);
    let browser = Browser::open(1300, 1000);
    browser.load(&page);
    assert!(browser.text("h1").contains("gelu_tanh(gate) * up instead of silu(gate) * up"));
    assert!(browser.count("td.hatched") > 50);
    browser.click("td[aria-label^='layer 1 ffn_act: unmeasured']");
    assert!(browser.text("#detail").contains("judged with the next recorded one"));
    assert_eq!(browser.count("#detail canvas"), 0);
    browser.click("[data-value=inherited]");
    assert!(browser.text("#detail").contains("the engine does not have it"));
    sound(&browser);
    browser.picture("sparse");

    // Without a reference there is nothing to inherit from; without a model nothing is added.
    let page = made(folder.path(), &["explain", &own, "-m", model], 1);
    browser.load(&page);
    assert_eq!(browser.count("[data-value=inherited]:disabled"), 1);
    sound(&browser);
    let page = made(folder.path(), &["diff", &own, &right], 1);
    browser.load(&page);
    assert_eq!(browser.count("[data-value=added]:disabled"), 1);
    assert!(browser.text("h1").contains("First divergence: step 0, blk.0.layer_out"));
    assert_eq!(browser.count("#detail canvas"), 3);
    sound(&browser);
    browser.picture("diff");
}

#[test]
fn a_run_that_stops_or_replays_nothing_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let browser = Browser::open(1300, 1000);
    for more in [
        &["--no-replay"][..],
        &["--until", "first"],
        &["--sites", "blk.0.*,logits"],
        &["--rows", "last"],
    ] {
        let run = [&["run", "--fault", "relu-for-silu"][..], &SHORT, more].concat();
        browser.load(&made(folder.path(), &run, 1));
        assert!(browser.count("table.map td") > 20, "{more:?}");
        assert!(browser.count("#detail canvas") >= 3, "{more:?}");
        sound(&browser);
    }
}

#[test]
fn a_mixture_of_experts_has_a_page_with_its_own_sites() {
    let folder = tempfile::tempdir().unwrap();
    let reference = REFERENCES.trace("qwen3moe");
    let own = engine(&reference, folder.path(), 1.5);
    let model = reference.with_extension("gguf");
    let explain = ["explain", path(&own), "--reference", path(&reference), "-m", path(&model)];
    let page = made(folder.path(), &explain, 1);
    let browser = Browser::open(1300, 1000);
    browser.load(&page);
    assert!(browser.text("h1").contains("Logits projection: 1.500 times the correct values"));
    let sites = browser.text("table.map");
    assert!(sites.contains("ffn_moe"), "{sites}");
    browser.click("td[aria-label*='layer 0 ffn_moe_gate']");
    assert!(browser.text("#detail .title").contains("slot"), "{}", browser.text("#detail"));
    sound(&browser);
    browser.picture("experts");
}

#[test]
fn of_several_sequences_each_has_its_answer_and_the_worst_its_page() {
    let folder = tempfile::tempdir().unwrap();
    let bug = Some("padding-in-positions");
    let trace = NUMPY.record_with(&FIXTURE, "page-left", bug, &["--batch", "left"]);
    let page = made(folder.path(), &["explain", &trace, "-m", path(&FIXTURE.model)], 1);
    let browser = Browser::open(1300, 1000);
    browser.load(&page);
    assert_eq!(browser.count(".sequences li"), 3);
    assert!(browser.text(".sequences").contains("Sequence 0 equal: nothing guilty"));
    // The position that each token was rotated as was read off.
    assert_eq!(browser.text("#detail h3"), "blk.0.q_rope");
    assert_eq!(browser.count("#detail .chart circle.wrong"), 5);
    sound(&browser);
    browser.picture("sequences");
}

#[test]
fn a_check_shows_its_matrix_and_what_failed_where() {
    let folder = tempfile::tempdir().unwrap();
    let kernels = folder.path().join("kernels");
    std::fs::create_dir(&kernels).unwrap();
    let rope = include_str!("../../kernels/swiglu.cu");
    let wrong = rope.replacen("expf(-", "expf(-1.01f * ", 1);
    assert_ne!(rope, wrong, "the kernel has another form now; change the replacement");
    std::fs::write(kernels.join("swiglu.cu"), wrong).unwrap();
    let config = folder.path().join("check.toml");
    let text = "steps = 1\ndtypes = [\"f32\", \"f16\"]\nvariants = [\"scale=post,dot=sequential,softmax=two-pass\", \
                \"scale=pre,dot=warp,softmax=online\"]\n[[models]]\nfixture = true\n[[prompts]]\nname = \"line\"\n\
                text = \"Once upon a time\"\n[[prompts]]\nname = \"word\"\ntext = \"Once\"\n";
    std::fs::write(&config, text).unwrap();
    let browser = Browser::open(1300, 1000);
    let check = ["check", "--config", path(&config)];
    browser.load(&made(folder.path(), &check, 0));
    assert_eq!(browser.text("h1").lines().last(), Some("All 8 cases equal"));
    assert_eq!(browser.count("td.v-equal"), 8);
    sound(&browser);
    let page = made(folder.path(), &[&check[..], &["--kernels", path(&kernels)]].concat(), 1);
    browser.load(&page);
    assert_eq!(browser.text("h1").lines().last(), Some("8 of 8 cases not equal"));
    browser.click("td[aria-label^='fixture/word/f16']");
    assert!(browser.text("#detail h3").starts_with("fixture/word/f16"));
    assert!(browser.text("#failed").contains("swiglu.cu:"), "{}", browser.text("#failed"));
    sound(&browser);
    browser.picture("check");
}
