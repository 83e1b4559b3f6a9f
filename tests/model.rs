use std::path::{Path, PathBuf};

use firstdiff::{
    model::{Config, Ledger, ModelFile, RopePairs},
    run,
};
use half::f16;
use tempfile::TempDir;

use crate::{cli::refused, common::fixture};

fn bytes() -> Vec<u8> {
    std::fs::read(fixture()).unwrap()
}

/// A file with these bytes, in a folder that is removed with the returned guard.
fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn open_error(bytes: &[u8]) -> String {
    let (_folder, path) = file(bytes);
    ModelFile::open(&path).err().map_or_else(String::new, |error| error.to_string())
}

/// The same of a model that is to be run.
fn run_error(bytes: &[u8]) -> String {
    let (_folder, path) = file(bytes);
    run::open(&path).err().map_or_else(String::new, |error| error.to_string())
}

/// Replaces the first occurrence of a byte string by another of the same length.
fn patched(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    let mut out = bytes.to_vec();
    out[at..at + to.len()].copy_from_slice(to);
    out
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn the_fixtures_hyperparameters_are_read() {
    let model = run::open(&fixture()).unwrap();
    let wanted = Config {
        architecture: "qwen2".to_string(),
        n_layer: 4,
        n_embd: 224,
        n_head: 14,
        n_head_kv: 2,
        head_dim: 16,
        n_ff: 480,
        n_vocab: 2048,
        qk_norm: false,
        rope_theta: 1e6,
        rope_pairs: RopePairs::Neox,
        rms_eps: 1e-6,
        attention_scale: 0.25,
    };
    assert_eq!(model.config, wanted);
    assert_eq!(model.parameters(), 2_210_912);
    assert!(model.has_qkv_bias() && !model.has("output.weight"));
    assert_eq!(model.trained_positions(), Some(2048));
    let names = &model.names;
    assert!(names.is_tied() && names.rope_factors.is_none());
    assert_eq!(names.layers[2].k.bias.as_deref(), Some("blk.2.attn_k.bias"));
}

#[test]
fn f16_and_f32_tensors_are_widened_exactly() {
    let model = ModelFile::open(&fixture()).unwrap();
    let half = model.info("blk.2.attn_k.weight").unwrap();
    let stored: Vec<f32> = model
        .gguf()
        .data(half)
        .chunks_exact(2)
        .map(|two| f16::from_le_bytes([two[0], two[1]]).to_f32())
        .collect();
    assert_eq!(model.weights("blk.2.attn_k.weight").unwrap(), stored);
    let full = model.info("blk.2.attn_k.bias").unwrap();
    let four = |four: &[u8]| f32::from_le_bytes(four.try_into().unwrap());
    let stored: Vec<f32> = model.gguf().data(full).chunks_exact(4).map(four).collect();
    assert_eq!(model.weights("blk.2.attn_k.bias").unwrap(), stored);
}

#[test]
fn what_is_no_gguf_is_refused_with_its_name() {
    assert!(open_error(b"").contains("model.gguf is not a GGUF file"));
    assert!(open_error(b"GGU").contains("is not a GGUF file"));
    assert!(open_error(b"PK\x03\x04 something else").contains("is not a GGUF file"));
    assert!(open_error(b"GGUF").contains("broken header"));
    assert!(
        ModelFile::open(Path::new("absent.gguf"))
            .err()
            .unwrap()
            .to_string()
            .contains("absent.gguf")
    );
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let whole = bytes();
    let mut state = 1;
    for _ in 0..100 {
        let cut = (splitmix(&mut state) % whole.len() as u64) as usize;
        let error = open_error(&whole[..cut]);
        assert!(error.contains("model.gguf"), "cut at {cut}: {error}");
    }
    let error = open_error(&whole[..whole.len() - 1]);
    assert!(error.contains("ends inside its tensor"), "{error}");
}

#[test]
fn a_flipped_bit_in_the_header_never_crashes() {
    let whole = bytes();
    let header = 60_000;
    let mut state = 2;
    let mut refused = 0;
    for _ in 0..300 {
        let bit = splitmix(&mut state) % (8 * header);
        let mut flipped = whole.clone();
        flipped[bit as usize / 8] ^= 1 << (bit % 8);
        refused += usize::from(!open_error(&flipped).is_empty());
    }
    // Most of the header is token texts, in which a flip is no error.
    assert!(refused > 0);
    // Every bit of the fixed part and the first keys.
    for bit in 0..8 * 200 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        open_error(&flipped);
    }
}

#[test]
fn a_missing_or_misshapen_tensor_is_named() {
    let whole = bytes();
    let error = run_error(&patched(&whole, b"blk.2.attn_k.weight", b"blk.2.attn_x.weight"));
    assert!(error.contains("model.gguf") && error.contains("blk.2.attn_k.weight"), "{error}");
    // The dims follow the name and the number of axes; swapped, they take the same bytes.
    let dims = |first: u64, second: u64| {
        let sizes = [first.to_le_bytes(), second.to_le_bytes()].concat();
        [b"blk.1.ffn_down.weight", &2u32.to_le_bytes()[..], &sizes].concat()
    };
    let error = run_error(&patched(&whole, &dims(480, 224), &dims(224, 480)));
    assert!(error.contains("blk.1.ffn_down.weight"), "{error}");
}

#[test]
fn keys_that_llama_cpp_refuses_are_named() {
    let whole = bytes();
    let error = run_error(&patched(&whole, b"qwen2.block_count", b"qwen2.block_xount"));
    assert!(error.contains("qwen2.block_count"), "{error}");
    let key = |name: &str, value: u32| {
        [name.as_bytes(), &4u32.to_le_bytes(), &value.to_le_bytes()].concat()
    };
    for (name, right, wrong, says) in [
        ("qwen2.attention.head_count", 14, 0, "model.gguf"),
        (
            "qwen2.attention.head_count",
            14,
            15,
            "head_count_kv is 2, which does not divide 15 heads",
        ),
        ("qwen2.attention.head_count", 14, 16, "blk.0.attn_k.weight"),
        ("qwen2.block_count", 4, 0, "qwen2.block_count is 0"),
        ("qwen2.block_count", 4, 500, "blk.4."),
        ("qwen2.block_count", 4, 600, "llama.cpp runs at most 512"),
    ] {
        let error = run_error(&patched(&whole, &key(name, right), &key(name, wrong)));
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn what_ends_llama_cpp_is_one_line() {
    // One token is there twice.
    let token = |text: &[u8]| [&1u64.to_le_bytes()[..], text].concat();
    let (_folder, path) = file(&patched(&bytes(), &token(b"B"), &token(b"A")));
    let arguments = ["run", "-m", path.to_str().unwrap()];
    refused(&arguments, 2, "llama.cpp cannot continue with");
}

#[test]
fn the_ledger_finds_zeros_nan_unused_and_absent_tensors() {
    let mut model = run::open(&fixture()).unwrap();
    let clean = Ledger::of(&model).unwrap();
    assert!(clean.is_clean());
    assert_eq!(clean.tensors, 50);

    let mut broken = bytes();
    let zeroed = model.info("blk.3.ffn_up.weight").unwrap();
    broken[zeroed.offset..zeroed.offset + zeroed.bytes].fill(0);
    let nan = model.info("blk.0.attn_q.weight").unwrap();
    for element in [7, 500] {
        let at = nan.offset + 2 * element;
        broken[at..at + 2].copy_from_slice(&f16::NAN.to_le_bytes());
    }
    let (_folder, path) = file(&broken);
    let ledger = Ledger::of(&run::open(&path).unwrap()).unwrap();
    assert_eq!(ledger.all_zero, ["blk.3.ffn_up.weight"]);
    let [found] = &ledger.non_finite[..] else { panic!("{:?}", ledger.non_finite) };
    assert_eq!((found.tensor.as_str(), found.count, found.first), ("blk.0.attn_q.weight", 2, 7));

    // As of a graph that does not read it.
    model.names.layers[1].v.bias = None;
    let ledger = Ledger::of(&model).unwrap();
    assert_eq!(ledger.unused, ["blk.1.attn_v.bias"]);
    assert_eq!(ledger.absent, ["blk.1.attn_v.bias"]);
}

#[test]
fn what_is_no_gguf_file_is_told_what_gives_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let error = |path: &std::path::Path| match ModelFile::open(path) {
        Ok(_) => panic!("{path:?} is no model"),
        Err(error) => error.to_string(),
    };
    std::fs::create_dir(path("hf")).unwrap();
    std::fs::write(path("hf/config.json"), "{}").unwrap();
    std::fs::write(path("hf/model.safetensors"), "").unwrap();
    let convert = format!("python convert_hf_to_gguf.py {} --outfile", path("hf").display());
    assert!(error(&path("hf")).contains(&convert));
    assert!(error(&path("hf/model.safetensors")).contains(&convert));
    let url = "https://example.com/model.gguf";
    assert!(error(std::path::Path::new(url)).contains(&format!("curl -LO {url}")));
    std::fs::create_dir(path("models")).unwrap();
    assert!(error(&path("models")).ends_with("is a folder; give a .gguf model"));
    std::fs::write(path("models/a.gguf"), "").unwrap();
    assert!(error(&path("models")).ends_with("models/a.gguf"));
    std::fs::create_dir(path("trace")).unwrap();
    std::fs::write(path("trace/manifest.json"), "{}").unwrap();
    assert!(error(&path("trace")).contains("`firstdiff explain "));
}
