use std::{
    ffi::CString,
    path::{Path, PathBuf},
    process::Command,
};

use firstdiff::{
    model::gguf::Gguf,
    model::llama,
    model::synth::{
        SynthError, WeightType,
        arch::{ArchModel, ArchSpec, Architecture, Setting, Sizes, Value, architectures},
    },
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

/// The text of that many bytes, and so tokens.
fn prompt(tokens: usize) -> String {
    "Once upon a time, \u{17c}\u{f3}\u{142}w 12\n".repeat(tokens / 10)[..tokens].to_string()
}

/// Loads a file in llama.cpp and decodes a prompt and three more tokens: the logits of each step.
#[track_caller]
fn logits(path: &Path, prompt: &str) -> Vec<Vec<f32>> {
    llama::backend();
    llama::take_errors();
    let c_path = CString::new(path.to_str().unwrap()).unwrap();
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
        params.n_ctx = 512;
        params.n_threads = 1;
        params.n_threads_batch = 1;
        params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
        params.type_k = sys::GGML_TYPE_F32;
        params.type_v = sys::GGML_TYPE_F32;
        params.swa_full = true;
        let context = sys::llama_init_from_model(model, params);
        assert!(!context.is_null(), "{}: {}", path.display(), llama::take_errors());
        let vocab = sys::llama_model_get_vocab(model);
        let n_vocab = sys::llama_vocab_n_tokens(vocab) as usize;
        let tokens = tokenize(vocab, prompt);
        for mut tokens in [tokens, vec![5], vec![6], vec![7]] {
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

/// The tokens of a text, which must be its bytes.
///
/// # Safety
/// The vocabulary is live.
#[track_caller]
unsafe fn tokenize(vocab: *const sys::llama_vocab, text: &str) -> Vec<i32> {
    let mut tokens = vec![0; text.len() + 8];
    let (from, to, room) = (text.as_ptr().cast(), tokens.as_mut_ptr(), tokens.len() as i32);
    // SAFETY: the text has that many bytes, and `tokens` that much room.
    let n = unsafe { sys::llama_tokenize(vocab, from, text.len() as i32, to, room, true, true) };
    tokens.truncate(usize::try_from(n).unwrap());
    let bytes: Vec<i32> = text.bytes().map(i32::from).collect();
    assert_eq!(tokens, bytes);
    tokens
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
    for logits in logits(&path, &prompt(40)) {
        let deviation = deviation(&logits);
        assert!((0.1..20.0).contains(&deviation), "{}: {deviation}", spec.name);
    }
}

fn setting(text: &str) -> Setting {
    Setting::parse(text).unwrap()
}

/// The error of a model that cannot be made: one line.
#[track_caller]
fn refusal(spec: &ArchSpec) -> String {
    let error = ArchModel::plan(spec, program()).map(|_| ()).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

/// Runs the program: its exit code, what it prints and what it complains of.
fn synth(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(program()).arg("synth").args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
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

/// Run by hand after llama.cpp or the table has changed.
#[test]
#[ignore = "every architecture, and a prompt that fills most caches"]
fn every_architecture_is_made_and_decodes_in_llama_cpp() {
    for architecture in architectures() {
        let (_folder, path) = made(&ArchSpec::new(&architecture.name()));
        for tokens in [40, 300] {
            let all = logits(&path, &prompt(tokens));
            let steps: Vec<String> = all.iter().map(|it| format!("{:.2}", deviation(it))).collect();
            println!("{} {tokens} {}", architecture.name(), steps.join(" "));
            assert!(all.iter().flatten().all(|logit| logit.is_finite()));
        }
    }
}

#[test]
fn a_seed_gives_the_same_bytes_and_another_seed_or_type_others() {
    let bytes = |spec: &ArchSpec| std::fs::read(made(spec).1).unwrap();
    let spec = ArchSpec::new("qwen3moe");
    let first = bytes(&spec);
    assert!(first == bytes(&spec));
    assert!(first != bytes(&ArchSpec { seed: 2, ..spec.clone() }));
    let quantised = bytes(&ArchSpec { weight_type: WeightType::Q4K, ..spec });
    // 4.5 bits a weight of most.
    assert!(quantised.len() < first.len() / 4, "{} of {}", quantised.len(), first.len());
}

#[test]
fn quantised_weights_and_other_sizes_decode_too() {
    for name in ["deepseek2", "falcon-h1", "rwkv7", "gemma3n"] {
        for weight_type in [WeightType::Q8_0, WeightType::Q4K] {
            assert_runs(&ArchSpec { weight_type, ..ArchSpec::new(name) });
        }
        let sizes = Sizes {
            layers: Some(6),
            embd: Some(512),
            heads: Some(8),
            kv_heads: Some(4),
            head_dim: None,
            ffn: Some(640),
        };
        assert_runs(&ArchSpec { sizes, vocab: Some(400), ..ArchSpec::new(name) });
    }
}

#[test]
fn the_file_has_the_keys_and_tensors_of_real_models() {
    let settings = vec![setting("rope.freq_base=5e5"), setting("qwen3moe.expert_used_count=3")];
    let (_folder, path) = made(&ArchSpec { settings, ..ArchSpec::new("qwen3moe") });
    let gguf = Gguf::open(&path).unwrap();
    let number = |key: &str| gguf.number(&format!("qwen3moe.{key}"));
    assert_eq!(gguf.string("general.architecture").as_deref(), Some("qwen3moe"));
    assert_eq!((number("vocab_size"), number("expert_count")), (Some(320.0), Some(8.0)));
    assert_eq!((number("rope.freq_base"), number("expert_used_count")), (Some(5e5), Some(3.0)));
    let dims = |name: &str| gguf.tensor(&format!("blk.3.{name}")).map(|info| info.dims.clone());
    assert_eq!(dims("ffn_gate_exps.weight"), Some(vec![256, 128, 8]));
    assert_eq!(dims("attn_k.weight"), Some(vec![256, 128]));
    let absent = ["attn_q.bias", "ffn_gate_up_exps.weight", "attn_q.scale"];
    assert!(absent.iter().all(|name| dims(name).is_none()));
    let (_folder, path) = made(&ArchSpec::new("phi3"));
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.tensor("blk.0.attn_qkv.weight").unwrap().dims, [256, 512]);
}

#[test]
fn a_removed_key_is_not_given_again() {
    let settings = vec![setting("block_count=none")];
    let error = refusal(&ArchSpec { settings, ..ArchSpec::new("gemma3") });
    assert!(error.contains("needs the key gemma3.block_count"), "{error}");
    let settings = vec![setting("attention.sliding_window=none")];
    let spec = ArchSpec { settings, ..ArchSpec::new("gemma3") };
    let model = ArchModel::plan(&spec, program()).unwrap();
    assert!(!model.layout().keys.contains_key("gemma3.attention.sliding_window"));
}

#[test]
fn a_number_of_the_wrong_type_is_given_in_the_right_one() {
    let settings = vec![setting("rope.freq_base=500000"), setting("expert_weights_norm=1")];
    let spec = ArchSpec { settings, ..ArchSpec::new("bailingmoe2") };
    let keys = &ArchModel::plan(&spec, program()).unwrap().layout().keys.clone();
    assert_eq!(keys["bailingmoe2.rope.freq_base"], Value::F32(500_000.0));
    assert_eq!(keys["bailingmoe2.expert_weights_norm"], Value::Bool(true));
}

#[test]
fn what_llama_cpp_cannot_make_is_one_line_and_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    std::fs::write(&path, "old").unwrap();
    let output = path.to_str().unwrap();
    let cases: [(&[&str], &str); 7] = [
        // llama.cpp ends the process.
        (&["--arch", "llama", "--set", "block_count=600"], "llama.cpp exited on llama (signal: 6"),
        (&["--arch", "qwen2", "--head-dim", "128"], "leave out --head-dim"),
        // It throws.
        (&["--arch", "mamba", "--set", "ssm.inner_size=256"], "only an expansion factor of 2"),
        (&["--arch", "llama", "--set", "rope.freq_base=x"], "llama.rope.freq_base has wrong type"),
        (&["--arch", "llama", "--heads", "3"], "2 KV heads do not divide 3 query heads"),
        (&["--arch", "chameleon", "--vocab", "300"], "vocabulary size 300"),
        (&["--arch", "qwen3-moe"], "the nearest are qwen3moe"),
    ];
    for (args, says) in cases {
        let (code, out, error) = synth(&[&["-o", output], args].concat());
        assert_eq!((code, out.as_str()), (2, ""), "{error}");
        assert!(error.contains(says) && error.lines().count() == 1, "{says}: {error}");
        // Neither in place of the old file nor beside it.
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn the_program_lists_every_architecture_and_writes_one() {
    let (code, out, _) = synth(&["--list-archs"]);
    let names: Vec<String> = architectures().map(Architecture::name).collect();
    assert_eq!((code, out.lines().collect::<Vec<_>>()), (0, names.iter().map(|n| &**n).collect()));
    assert!(names.len() > 130 && names.contains(&"llama:yarn".to_string()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let output = path.to_str().unwrap();
    let (code, out, error) = synth(&["--arch", "gemma2:caps", "-o", output]);
    assert_eq!(code, 0, "{error}");
    assert!(out.starts_with(&format!("wrote {output}: gemma2:caps model of ")), "{out}");
    for args in [["--shape", "tiny-llama"], ["--set", "a"]] {
        let (code, _, error) = synth(&[&["--arch", "llama", "-o", output], &args[..]].concat());
        assert_eq!(code, 2, "{error}");
    }
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let error = ArchModel::plan(&ArchSpec::new("llama"), Path::new("/absent/firstdiff"));
    assert!(matches!(error, Err(SynthError::Program { .. })));
}
