use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::Command,
};

use firstdiff::model::{
    MAX_LAYERS, llama,
    synth::{self, Arch, MAX_SIZE, PRESETS, Spec, SynthError, WeightType},
};
use llama_cpp_2::{
    context::{LlamaContext, params::LlamaContextParams},
    llama_batch::LlamaBatch,
    model::{LlamaModel, params::LlamaModelParams},
    token::LlamaToken,
};
use tempfile::TempDir;

use crate::common::fixture;

const ARCHES: [Arch; 3] = [Arch::Llama, Arch::Qwen2, Arch::Qwen3];
const PROMPT: &[u8] = b"Once upon a time";

/// The tiny preset of an architecture.
fn tiny(arch: Arch) -> Spec {
    Spec::preset(&format!("tiny-{}", arch.name())).unwrap()
}

/// A model in a folder that is removed with it.
fn made(spec: &Spec) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("synth.gguf");
    synth::write(spec, &path, &mut |_| {}).unwrap();
    (folder, path)
}

/// A model's file, parted into keys and weights.
fn parts(spec: &Spec) -> (Vec<u8>, Vec<u8>) {
    let (_folder, path) = made(spec);
    let mut keys = std::fs::read(path).unwrap();
    let weights = keys.split_off(keys.len() - synth::data_bytes(spec).unwrap() as usize);
    (keys, weights)
}

#[track_caller]
fn load(path: &Path) -> LlamaModel {
    let model = LlamaModel::load_from_file(llama::backend(), path, &LlamaModelParams::default());
    model.unwrap_or_else(|error| panic!("{error}: {}", llama::take_errors()))
}

/// Decodes the tokens from a position on; the logits of the last one.
fn decode(context: &mut LlamaContext, tokens: &[LlamaToken], first: usize) -> Vec<f32> {
    let mut batch = LlamaBatch::new(tokens.len(), 1);
    for (index, &token) in tokens.iter().enumerate() {
        let is_last = index + 1 == tokens.len();
        batch.add(token, (first + index) as i32, &[0], is_last).unwrap();
    }
    context.decode(&mut batch).unwrap();
    context.get_logits_ith(tokens.len() as i32 - 1).to_vec()
}

/// The prompt and that many greedy tokens in llama.cpp: the logits of each step.
#[track_caller]
fn logits(spec: &Spec, steps: usize) -> Vec<Vec<f32>> {
    let (_folder, path) = made(spec);
    let model = load(&path);
    let size = NonZeroU32::new(64);
    let params = LlamaContextParams::default().with_n_ctx(size);
    // More threads than one spend their time waiting for each other on so small a model.
    let params = params.with_n_threads(1).with_n_threads_batch(1);
    let mut context = model.new_context(llama::backend(), params).unwrap();
    let mut tokens = model.vocab().tokenize(PROMPT, false, false);
    let mut all = vec![decode(&mut context, &tokens, 0)];
    for _ in 0..steps {
        let next = LlamaToken::new(largest(all.last().unwrap()) as i32);
        all.push(decode(&mut context, &[next], tokens.len()));
        tokens.push(next);
    }
    all
}

fn largest(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap()
}

/// Fails unless a model computes: finite logits that are neither flat nor wild.
#[track_caller]
fn assert_sane(spec: &Spec, all: &[Vec<f32>]) {
    for logits in all {
        let n = logits.len() as f64;
        let mean = logits.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let square = logits.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        let deviation = square.sqrt();
        // A NaN is in no range.
        assert!((0.5..20.0).contains(&deviation), "{spec:?}: logits deviate by {deviation}");
    }
}

#[test]
fn a_seed_gives_the_same_bytes_and_another_seed_others() {
    for weight_type in [WeightType::F32, WeightType::Q8_0] {
        let spec = Spec { weight_type, ..tiny(Arch::Qwen3) };
        let (first, other) = (parts(&spec), parts(&Spec { seed: 2, ..spec.clone() }));
        assert!(first == parts(&spec), "{weight_type:?}");
        assert!(first.1 != other.1, "{weight_type:?}: the weights are the same");
    }
}

#[test]
fn every_architecture_and_weight_type_decodes_in_llama_cpp() {
    for arch in ARCHES {
        for weight_type in WeightType::ALL {
            // Sizes that are whole blocks of q4_k, and a head size that is not E / Hq.
            let (n_embd, n_head, n_head_kv, head_dim) = match arch {
                Arch::Qwen2 => (256, 8, 2, 32),
                _ => (256, 4, 2, 128),
            };
            let sizes = Spec { n_embd, n_head, n_head_kv, head_dim, n_ff: 512, ..tiny(arch) };
            let spec = Spec { weight_type, n_layer: 2, ..sizes };
            assert_sane(&spec, &logits(&spec, 2));
        }
    }
}

#[test]
fn every_head_size_and_ratio_tied_or_not_decodes_in_llama_cpp() {
    for arch in ARCHES {
        for head_dim in [16, 64, 128] {
            for (n_head, n_head_kv) in [(2, 2), (4, 2), (7, 1)] {
                let n_embd = if arch == Arch::Qwen2 { n_head * head_dim } else { 96 };
                let tied_output = n_head != 4;
                let sizes = Spec { n_embd, n_head, n_head_kv, head_dim, n_layer: 2, ..tiny(arch) };
                let spec = Spec { tied_output, qkv_bias: head_dim != 64, n_ff: 96, ..sizes };
                assert_sane(&spec, &logits(&spec, 2));
            }
        }
    }
}

#[test]
fn a_deep_model_neither_dies_nor_explodes_nor_repeats_itself() {
    for arch in ARCHES {
        for tied_output in [false, true] {
            let spec = Spec { n_layer: 24, tied_output, ..tiny(arch) };
            let all = logits(&spec, 10);
            assert_sane(&spec, &all);
            let mut tokens: Vec<usize> = all.iter().map(|logits| largest(logits)).collect();
            tokens.sort_unstable();
            tokens.dedup();
            assert!(tokens.len() >= 6, "{spec:?} says only {tokens:?}");
        }
    }
}

#[test]
fn biases_and_rope_factors_are_read_and_change_the_logits() {
    let llama = tiny(Arch::Llama);
    let plain = Spec { rope_freqs: false, ..llama.clone() };
    assert_ne!(logits(&llama, 0), logits(&plain, 0));
    assert_ne!(logits(&Spec { qkv_bias: true, ..llama.clone() }, 0), logits(&llama, 0));
}

#[test]
fn the_file_says_what_it_is() {
    for name in PRESETS.into_iter().filter(|name| name.starts_with("tiny")) {
        let spec = Spec { seed: 77, ..Spec::preset(name).unwrap() };
        let (_folder, path) = made(&spec);
        let size = std::fs::metadata(&path).unwrap().len();
        assert!((100_000..1_500_000).contains(&size), "{name}: {size} bytes");
        let model = load(&path);
        let title = model.meta_val_str("general.name").unwrap();
        assert!(title.contains("3 layers, hidden 96") && title.ends_with("seed 77"), "{title}");
        assert!(model.n_ctx_train() >= 32_768, "{name}");
        assert_eq!(model.n_vocab() as usize, spec.n_vocab);
        assert_eq!(model.n_head_kv() as usize, spec.n_head_kv);
    }
    let real = Spec::preset("qwen2.5-0.5b").unwrap();
    // 494,032,768 parameters, as in the model that it is shaped after.
    let vectors = 24 * (2 * 896 + 896 + 2 * 128) + 896;
    assert_eq!(synth::data_bytes(&real).unwrap(), 2 * 494_032_768 + 2 * vectors);
}

#[test]
fn any_bytes_tokenize_one_by_one_and_come_back() {
    for arch in ARCHES {
        let (_folder, path) = made(&tiny(arch));
        let model = load(&path);
        let text = "Once upon a time, w259\n\tżółw 龍 <|im_end|> 12345";
        let tokens = model.vocab().tokenize(text.as_bytes(), false, false);
        let ids: Vec<u8> = tokens.iter().map(|token| u8::try_from(token.0).unwrap()).collect();
        assert_eq!(ids, text.as_bytes(), "{arch:?}");
        let piece = |token: &LlamaToken| model.vocab().token_to_piece(*token, false, None);
        assert_eq!(tokens.iter().flat_map(piece).collect::<Vec<u8>>(), text.as_bytes());
        assert_eq!(piece(&LlamaToken::new(300)), b" w300", "{arch:?}");
    }
}

#[test]
fn a_shape_that_cannot_run_is_refused_by_name() {
    let (llama, qwen2) = (tiny(Arch::Llama), tiny(Arch::Qwen2));
    let typed = |weight_type| Spec { weight_type, ..llama.clone() };
    let cases = [
        (Spec { n_layer: 0, ..llama.clone() }, "number of layers 0"),
        (Spec { n_layer: MAX_LAYERS + 1, ..llama.clone() }, "choose 1 to 512"),
        (Spec { n_layer: usize::MAX, ..llama.clone() }, "number of layers"),
        (Spec { n_ff: MAX_SIZE + 1, ..llama.clone() }, "feed-forward size"),
        (Spec { n_head: 1 << 40, head_dim: 1 << 40, ..llama.clone() }, "query heads"),
        (Spec { n_head: 1 << 12, head_dim: 1 << 12, ..llama.clone() }, "query heads x head size"),
        (Spec { head_dim: 15, ..llama.clone() }, "head size 15 is odd"),
        (Spec { head_dim: 0, ..llama.clone() }, "head size 0"),
        (Spec { n_head_kv: 4, ..llama.clone() }, "4 KV heads do not divide 6"),
        (Spec { n_head_kv: 0, ..llama.clone() }, "number of KV heads 0"),
        (Spec { n_vocab: 257, ..llama.clone() }, "vocabulary size 257"),
        (Spec { head_dim: 32, ..qwen2.clone() }, "192 is not 96"),
        (Spec { rope_freqs: true, ..qwen2 }, "not for qwen2"),
        (Spec { rope_theta: f32::NAN, ..llama.clone() }, "rope theta NaN"),
        (Spec { rms_eps: 0.0, ..llama.clone() }, "RMS epsilon 0"),
        (Spec { n_ff: 100, ..typed(WeightType::Q8_0) }, "feed-forward size 100"),
        (Spec { n_embd: 80, ..typed(WeightType::Q8_0) }, "hidden size 80"),
        (Spec { head_dim: 6, ..typed(WeightType::Q8_0) }, "query heads x head size 36"),
        (typed(WeightType::Q4K), "not a multiple of 256, the block size of q4_k"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    for (spec, says) in cases {
        let error = synth::write(&spec, &path, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!(synth::data_bytes(&spec).unwrap_err().to_string(), error);
        assert_eq!(entries(folder.path()), 0);
    }
    assert!(Spec::preset("qwen9").unwrap_err().to_string().contains("tiny-llama, tiny-qwen2"));
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn a_file_that_cannot_be_put_in_place_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let spec = tiny(Arch::Qwen2);
    // No folder, a folder that is a file, and a place that is taken by a folder.
    let taken = folder.path().join("taken");
    std::fs::create_dir_all(taken.join("inside")).unwrap();
    std::fs::write(folder.path().join("file"), "kept").unwrap();
    for path in ["missing/x.gguf", "file/x.gguf", "taken"].map(|path| folder.path().join(path)) {
        let error = synth::write(&spec, &path, &mut |_| {}).unwrap_err();
        assert!(matches!(error, SynthError::Write(_)), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert_eq!(entries(folder.path()), 2, "{path:?}");
    }
    assert_eq!(std::fs::read(folder.path().join("file")).unwrap(), b"kept");
    assert_eq!(entries(&taken), 1);
}

/// A limit on the size of files stands in for a disk that fills up while the weights are written.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    std::fs::write(&path, "old").unwrap();
    // 1000 blocks of at most 1 kB; the file is larger. Writing past the limit must fail, not kill.
    let script = "trap '' XFSZ; ulimit -f 1000; exec \"$0\" synth -o \"$1\" --shape tiny-qwen2";
    let program = env!("CARGO_BIN_EXE_firstdiff");
    let output = Command::new("sh").args(["-c", script, program]).arg(&path).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("free some space"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(entries(folder.path()), 1);
}

#[cfg(unix)]
#[test]
fn a_model_is_for_all_that_the_umask_lets_in() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, path) = made(&tiny(Arch::Llama));
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&path), mode(&plain));
}

#[test]
fn the_progress_adds_up_to_what_was_promised() {
    for weight_type in [WeightType::F32, WeightType::F16, WeightType::Q8_0] {
        // Large enough that the embedding takes several chunks.
        let spec = Spec { weight_type, n_vocab: 50_000, ..tiny(Arch::Qwen2) };
        let folder = tempfile::tempdir().unwrap();
        let (mut calls, mut written) = (0, 0);
        let path = folder.path().join("x.gguf");
        synth::write(&spec, &path, &mut |bytes| (calls, written) = (calls + 1, written + bytes))
            .unwrap();
        assert_eq!(written, synth::data_bytes(&spec).unwrap(), "{weight_type:?}");
        assert!(calls > spec.n_layer * 12 + 3, "{weight_type:?}: {calls} calls");
    }
}

#[test]
fn the_fixture_s_prompts_are_as_long_as_promised() {
    let model = load(&fixture());
    let folder = fixture();
    let folder = folder.parent().unwrap();
    let count = |name: &str| {
        let text = std::fs::read(folder.join(name)).unwrap();
        model.vocab().tokenize(text.trim_ascii_end(), false, false).len()
    };
    let (plain, long) = (count("prompt.txt"), count("prompt-long.txt"));
    assert!((8..32).contains(&plain), "{plain}");
    assert!((70..=90).contains(&long), "{long}");
    let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(readme.contains(&format!("({plain} tokens)")), "{plain}");
    assert!(readme.contains(&format!("({long} tokens)")), "{long}");
}
