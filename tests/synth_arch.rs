use std::{
    ffi::CString,
    path::{Path, PathBuf},
};

use firstdiff::{
    model::llama,
    model::synth::arch::{ArchModel, ArchSpec, architectures},
};
use llama_cpp_sys_2 as sys;

/// The program, which is the child process too.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_firstdiff"))
}

/// A model in a folder that is removed with it.
#[track_caller]
fn made(spec: &ArchSpec) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let model = ArchModel::plan(spec, program()).unwrap();
    let mut written = 0;
    model.write(&path, program(), &mut |bytes| written += bytes).unwrap();
    assert_eq!(written, model.data_bytes());
    (folder, path)
}

/// Loads a file in llama.cpp and decodes a prompt and three more tokens: the logits of each step.
#[track_caller]
fn logits(path: &Path) -> Vec<Vec<f32>> {
    llama::backend();
    llama::take_errors();
    let c_path = CString::new(path.to_str().unwrap()).unwrap();
    let prompt: Vec<i32> = (0..40).map(|index| (index * 37 + 11) % 256).collect();
    let mut all = Vec::new();
    // SAFETY: model and context are checked, and freed once; the batch points at `tokens`, and
    // llama.cpp owns n_vocab logits until the next decode.
    unsafe {
        let mut params = sys::llama_model_default_params();
        params.n_gpu_layers = 0;
        params.use_extra_bufts = false;
        let model = sys::llama_model_load_from_file(c_path.as_ptr(), params);
        assert!(!model.is_null(), "{}: {}", path.display(), llama::take_errors());
        let mut params = sys::llama_context_default_params();
        params.n_ctx = 256;
        params.n_threads = 1;
        params.n_threads_batch = 1;
        params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
        params.type_k = sys::GGML_TYPE_F32;
        params.type_v = sys::GGML_TYPE_F32;
        params.swa_full = true;
        let context = sys::llama_init_from_model(model, params);
        assert!(!context.is_null(), "{}: {}", path.display(), llama::take_errors());
        let n_vocab = sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(model)) as usize;
        for mut tokens in [prompt, vec![5], vec![6], vec![7]] {
            let batch = sys::llama_batch_get_one(tokens.as_mut_ptr(), tokens.len() as i32);
            assert_eq!(sys::llama_decode(context, batch), 0, "{}", path.display());
            let logits = sys::llama_get_logits_ith(context, -1);
            all.push(std::slice::from_raw_parts(logits, n_vocab).to_vec());
        }
        sys::llama_free(context);
        sys::llama_model_free(model);
    }
    all
}

/// The deviation of logits; NaN where one is no number.
fn deviation(logits: &[f32]) -> f64 {
    let n = logits.len() as f64;
    let mean = logits.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    (logits.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt()
}

/// Fails unless a model is made, loads from its file and computes: finite logits that are neither
/// flat nor wild.
#[track_caller]
fn assert_runs(spec: &ArchSpec) {
    let (_folder, path) = made(spec);
    for logits in logits(&path) {
        let deviation = deviation(&logits);
        assert!((0.01..100.0).contains(&deviation), "{}: {deviation}", spec.name);
    }
}

#[test]
fn architectures_of_every_kind_are_made_and_decode_in_llama_cpp() {
    let names = [
        "qwen3moe",
        "gemma3",
        "gpt-oss",
        "deepseek2",
        "mamba2",
        "falcon-h1",
        "qwen3next",
        "rwkv7",
        "bloom",
        "cohere2",
        "phi3",
        "llama4",
        "gemma2:caps",
    ];
    for name in names {
        assert_runs(&ArchSpec::new(name));
    }
}

#[test]
#[ignore = "every architecture: a minute"]
fn every_architecture_is_made_and_decodes_in_llama_cpp() {
    for architecture in architectures() {
        let (_folder, path) = made(&ArchSpec::new(&architecture.name()));
        let all = logits(&path);
        let steps: Vec<String> = all.iter().map(|it| format!("{:.2}", deviation(it))).collect();
        let finite = all.iter().flatten().all(|logit| logit.is_finite());
        println!("{} {finite} {}", architecture.name(), steps.join(" "));
        assert!(finite, "{}", architecture.name());
    }
}
