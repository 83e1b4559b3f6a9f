use std::path::{Path, PathBuf};

use firstdiff::{
    core::tensor::DType,
    diagnosis::{Certainty, Verdict},
    engine::{
        EngineSpec,
        contract::{Contract, Op},
        kernels::KernelSet,
    },
    model::synth::Spec,
    run::{Finished, run_engine},
};

use crate::{
    cli::{SHORT, outcome, path, refused},
    common::{Bench, Keep, assert_equal, engine},
};

fn root() -> PathBuf {
    let project = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    project.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")))
}

fn example(name: &str) -> PathBuf {
    root().join("examples/kernels").join(name)
}

/// An engine whose attention is a contract's kernel.
fn with_attention(contract: &Path, storage: DType) -> EngineSpec {
    let contract = Contract::read(Op::Attention, contract).unwrap();
    let kernels = KernelSet::embedded().with_contract(contract);
    EngineSpec { kernels, ..engine(storage) }
}

/// A copy of an example with every `from` of both files replaced.
fn edited(folder: &Path, name: &str, edits: &[(&str, &str)]) -> PathBuf {
    for file in [format!("{name}.cu"), format!("{name}.toml")] {
        let mut text = std::fs::read_to_string(example(&file)).unwrap();
        for (from, to) in edits {
            text = text.replace(from, to);
        }
        std::fs::write(folder.join(file), text).unwrap();
    }
    folder.join(format!("{name}.toml"))
}

/// Every tensor and choice of an engine over a prompt and two more tokens.
fn tensors(bench: &Bench, spec: &EngineSpec) -> (Keep, Vec<Option<firstdiff::core::sink::Choice>>) {
    let ids = bench.prompt(37);
    let task = firstdiff::core::task::Task { prompt: &ids, decode: 2 };
    let mut engine = spec.build(&bench.model, task).unwrap();
    let mut kept = Keep::default();
    let choices = run_engine(&mut engine, &[ids, vec![5], vec![77]], &mut kept).unwrap();
    (kept, choices)
}

#[test]
fn each_of_our_kernels_gives_the_same_bits_through_its_contract() {
    let llama = Spec { rope_freqs: true, ..Spec::preset("tiny-llama").unwrap() };
    let benches = [Bench::fixture(), Bench::synth(&llama)];
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(root().join("kernels")).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let op =
            text.lines().find_map(|line| line.strip_prefix("op = ")).unwrap().trim_matches('"');
        let contract = Contract::read(Op::of(op).unwrap(), &file).unwrap();
        sources.push(contract.source.file_name().unwrap().to_string_lossy().into_owned());
        // Qwen2's pairs are (i, i + D/2), llama's (2i, 2i + 1).
        let bench = &benches[usize::from(file.ends_with("rope_norm.toml"))];
        for storage in [DType::F32, DType::F16] {
            let mut own = engine(storage);
            if file.ends_with("attention_tiled.toml") {
                own.attention = "prefill=tiled".parse().unwrap();
            }
            let kernels = KernelSet::embedded().with_contract(contract.clone());
            let through = EngineSpec { kernels, ..own.clone() };
            let (mut own, mut through) = (tensors(bench, &own), tensors(bench, &through));
            if file.ends_with("attention_tiled.toml") {
                // Our engine takes another kernel for a single token.
                for (kept, choices) in [&mut own, &mut through] {
                    kept.tensors.retain(|site, _| site.step == 0);
                    choices.truncate(1);
                }
            }
            assert!(own.0.tensors == through.0.tensors, "{} {storage}", file.display());
            assert_eq!(own.1, through.1, "{} {storage}", file.display());
        }
    }
    // Two launches one after another are no single kernel.
    for file in KernelSet::files().filter(|&file| file != "attention_split.cu") {
        assert!(sources.iter().any(|source| source == file), "{file} has no contract");
    }
}

fn small() -> Bench {
    Bench::synth(&Spec { n_layer: 2, ..Spec::preset("tiny-qwen2").unwrap() })
}

#[test]
fn the_example_kernels_are_equal_at_1_2_33_and_500_positions() {
    let bench = small();
    for name in ["gqa_decode.toml", "gqa_prefill.toml"] {
        for storage in [DType::F32, DType::F16] {
            let spec = with_attention(&example(name), storage);
            for positions in [1, 2, 33, 500] {
                let finished = bench.run_replayed(&spec, positions, 2);
                let what = format!("{name} {storage} {positions} positions");
                assert_equal(&finished, &what);
                let diagnosis = finished.diagnosis.unwrap();
                assert!(diagnosis.findings.is_empty(), "{what}: {:?}", diagnosis.findings);
                assert_eq!(finished.coverage.recomputed, 2 * 2 * 3, "{what}");
            }
        }
    }
}

/// The same kernel fed in another way must give the same verdict.
#[test]
fn layouts_and_appends_that_a_contract_names_are_what_the_kernel_gets() {
    let folder = tempfile::tempdir().unwrap();
    let bench = small();
    let decode: [(&str, &[(&str, &str)]); 5] = [
        (
            "the engine appends after the call",
            &[
                ("append = \"kernel\"", "append = \"after\""),
                (", access = \"inout\"", ""),
                ("bool appends = q_head % group == 0;", "bool appends = false;"),
            ],
        ),
        (
            "caches [position][kv_head][dim] that the kernel appends to",
            &[
                (
                    "\"batch\", \"kv_head\", \"position\", \"dim\"",
                    "\"position\", \"kv_head\", \"dim\"",
                ),
                ("+ kv_head) * stride * head_dim", "+ 0) * stride * head_dim + kv_head * head_dim"),
                ("(size_t)pos * head_dim", "(size_t)pos * head_dim * num_kv_heads"),
                ("(size_t)cache_len * head_dim", "(size_t)cache_len * head_dim * num_kv_heads"),
            ],
        ),
        (
            "caches as long as they are filled",
            &[
                ("positions = \"capacity\"", "positions = \"length\""),
                ("value = \"capacity\"", "value = \"length\""),
            ],
        ),
        (
            "query heads in another order",
            &[
                ("scale = \"passed\"", "scale = \"passed\"\nhead_map = \"head % n_head_kv\""),
                ("kv_head = q_head / group", "kv_head = q_head % num_kv_heads"),
                ("q_head % group == 0", "q_head / num_kv_heads == 0"),
            ],
        ),
        (
            "64-bit integers, scratch and a null pointer",
            &[
                (
                    "{ name = \"cache_len\", value = \"past\", type = \"u32\" }",
                    "{ name = \"cache_len\", value = \"past\", type = \"i64\" },\n    \
              { name = \"unused\", role = \"null\", type = \"void*\" },\n    \
              { name = \"room\", role = \"scratch\", bytes = \"4 * n_head\", type = \"f32*\" }",
                ),
                (
                    "unsigned batch, unsigned cache_len,",
                    "unsigned batch, long long cache_len, const void* unused, float* room,",
                ),
            ],
        ),
    ];
    for (what, edits) in decode {
        let contract = edited(folder.path(), "gqa_decode", edits);
        let spec = with_attention(&contract, DType::F32);
        for positions in [1, 33] {
            assert_equal(
                &bench.run(&spec, positions, 2),
                &format!("{what}, {positions} positions"),
            );
        }
    }
    // With a mask in place of the kernel's own comparison.
    let masked = edited(
        folder.path(),
        "gqa_prefill",
        &[
            (
                "{ name = \"past\"",
                "{ name = \"mask\", role = \"mask\", type = \"f32*\" },\n    { name = \"past\"",
            ),
            ("int past,", "const float* mask, int past,"),
            ("v_cache, past,", "v_cache, mask, past,"),
            ("keys = past + token + 1", "keys = length"),
            ("scores[j] = score * scale;", "scores[j] = score * scale + mask[token * length + j];"),
        ],
    );
    assert_equal(&bench.run(&with_attention(&masked, DType::F32), 33, 2), "masked");
}

/// What is blamed, and the key and text of its cause.
type Named = (&'static str, &'static str, &'static str);

/// The mistakes of the decode example, and what each must be named.
const BUGS: [(&str, &[Named]); 8] = [
    (
        "BUG_STRIDE",
        &[
            (
                "k and v cache append, all layers",
                "cache-stride",
                "KV heads strided by the cache's length instead of its capacity",
            ),
            (
                "attention, all layers",
                "cache-stride",
                "KV heads strided by the cache's length instead of its capacity, written and read",
            ),
        ],
    ),
    (
        "BUG_STRIDE_READ",
        &[(
            "attention, all layers",
            "cache-stride",
            "KV heads strided by the cache's length instead of its capacity when read",
        )],
    ),
    (
        "BUG_CURRENT_TWICE",
        &[("attention, all layers", "key-twice", "a query's own key and value count twice")],
    ),
    // The attention itself is right: it reads what was never written.
    (
        "BUG_KV_HEAD_1_UNWRITTEN",
        &[("k and v cache append, all layers", "cache-unwritten", "KV head 1 never written")],
    ),
    (
        "BUG_SOFTMAX_OVER_CACHE_LEN",
        &[(
            "attention, all layers",
            "mask-off-by-one",
            "mask off by one: a query does not see its own key, and the first one sees none",
        )],
    ),
    (
        "BUG_UNSCALED",
        &[("attention, all layers", "score-scale", "scale missing: 1 instead of 0.25")],
    ),
    (
        "BUG_Q_IN_REGISTERS",
        &[(
            "attention, all layers",
            "query-in-registers",
            "q is in registers, not in shared memory: for key j only dim j is summed",
        )],
    ),
    (
        "BUG_PARTIAL_REDUCTION",
        &[(
            "attention, all layers",
            "softmax-partial-sum",
            "divided by the terms of the first 32 keys only",
        )],
    ),
];

fn assert_named(finished: &Finished, bug: &str, wanted: &[Named]) {
    let diagnosis = finished.diagnosis.as_ref().unwrap();
    let found: Vec<_> = diagnosis
        .findings
        .iter()
        .map(|finding| {
            assert_eq!(finding.verdict, Verdict::EngineWrong, "{bug}");
            assert_eq!(finding.cause.certainty, Certainty::Proven, "{bug}: {finding:?}");
            (finding.what.as_str(), finding.cause.key.name(), finding.cause.text.as_str())
        })
        .collect();
    assert_eq!(found, wanted, "{bug}");
}

#[test]
fn each_likely_mistake_of_the_decode_kernel_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::fixture();
    for (bug, wanted) in BUGS {
        let define = format!("#define {bug}\n#define MAX_HEAD_DIM 256");
        let contract =
            edited(folder.path(), "gqa_decode", &[("#define MAX_HEAD_DIM 256", &define)]);
        let spec = with_attention(&contract, DType::F32);
        assert_named(&bench.run_replayed(&spec, 50, 3), bug, wanted);
    }
}

/// Mistakes that are planted by an edit: what stands, what is put there, and what is named.
const EDITS: [(&str, &str, Named); 2] = [
    (
        "bool appends = q_head % group == 0;",
        "bool appends = q_head % group == 0;\n    k_cache = kv_cache_k + kv_head * keys * head_dim;\n    \
         v_cache = kv_cache_v + kv_head * keys * head_dim;",
        (
            "k and v cache append, all layers",
            "cache-stride",
            "KV heads strided by the cache's length instead of its capacity",
        ),
    ),
    (
        "score *= scale;",
        "score *= scale * scale;",
        ("attention, all layers", "score-scale", "scale applied twice: 0.0625 instead of 0.25"),
    ),
];

#[test]
fn a_stride_that_is_wrong_only_where_it_writes_is_no_fault_of_what_reads_and_a_scale_applied_twice_is_named()
 {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::fixture();
    for (from, to, wanted) in EDITS {
        let contract = edited(folder.path(), "gqa_decode", &[(from, to)]);
        // Enough tokens that some are written to another head's slots, and some of these over again.
        let finished = bench.run_replayed(&with_attention(&contract, DType::F32), 50, 3);
        assert_named(&finished, to, &[wanted]);
    }
}

/// One position hides some mistakes by its nature: they are to be found in the tokens after it.
#[test]
fn each_likely_mistake_is_found_where_it_is_at_1_2_33_and_500_positions() {
    let folder = tempfile::tempdir().unwrap();
    let bench = small();
    for (bug, wanted) in BUGS {
        let define = format!("#define {bug}\n#define MAX_HEAD_DIM 256");
        let contract =
            edited(folder.path(), "gqa_decode", &[("#define MAX_HEAD_DIM 256", &define)]);
        let spec = with_attention(&contract, DType::F32);
        for positions in [1, 2, 33, 500] {
            let finished = bench.run_replayed(&spec, positions, 2);
            let what = format!("{bug}, {positions} positions");
            // Its 32 terms are all that there are.
            if bug == "BUG_PARTIAL_REDUCTION" && positions < 31 {
                assert_equal(&finished, &what);
                continue;
            }
            assert!(finished.coverage.diverged > 0, "{what}");
            let diagnosis = finished.diagnosis.unwrap();
            let first = diagnosis.findings.first();
            let first = first.unwrap_or_else(|| panic!("{what}: nothing is blamed"));
            assert_eq!(first.what, wanted[0].0, "{what}: {first:?}");
            if positions > 2 {
                assert_eq!(first.cause.key.name(), wanted[0].1, "{what}: {first:?}");
                assert_eq!(first.cause.certainty, Certainty::Proven, "{what}: {first:?}");
            }
        }
    }
}

#[test]
fn a_partial_reduction_of_a_long_context_names_its_block() {
    let folder = tempfile::tempdir().unwrap();
    let edits =
        [("#define MAX_HEAD_DIM 256", "#define BUG_PARTIAL_REDUCTION\n#define MAX_HEAD_DIM 256")];
    let contract = edited(folder.path(), "gqa_decode", &edits);
    let finished = small().run_replayed(&with_attention(&contract, DType::F32), 300, 1);
    let text = "divided by the terms of the first warp of 256 threads only";
    assert_named(
        &finished,
        "300 positions",
        &[("attention, all layers", "softmax-partial-sum", text)],
    );
}

#[test]
fn recomputed_stages_are_marked_and_not_recorded() {
    let contract = format!("attention={}", path(&example("gqa_decode.toml")));
    let run = [&["run", "--kernel", &contract][..], &SHORT].concat();
    let (exit, out, _) = outcome(&run);
    assert_eq!(exit, 0);
    let first = out.lines().next().unwrap();
    assert!(
        first.starts_with("equal within the floor: 237 of 237 sites, 24 of them recomputed ("),
        "{first}"
    );
    for says in [
        "71 of 71 operations",
        "not recorded: blk.0.scores, blk.0.probs",
        "does not expose scores and probs",
    ] {
        assert!(out.contains(says), "{says}: {out}");
    }
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("mine");
    let capture = [&["capture", "engine", "-o", path(&trace), "--kernel", &contract][..], &SHORT];
    assert_eq!(outcome(&capture.concat()).0, 0);
    let (exit, out, _) = outcome(&["explain", path(&trace)]);
    assert_eq!(exit, 0);
    assert!(
        out.contains("71 of 71 recorded operations within their rounding bounds, 8 not recorded"),
        "{out}"
    );
}

#[test]
fn a_contract_that_does_not_hold_together_is_one_line_with_the_file_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let cases: &[(&str, &str, &str)] = &[
        ("op = \"attention\"", "op = \"softmax\"", "it is for softmax, not attention"),
        (
            "role = \"q\"",
            "role = \"query\"",
            "parameter q: attention has no role query; it has out, q, k_current",
        ),
        (
            "    { name = \"q\", role = \"q\", type = \"T*\", axes = [\"batch\", \"head\", \"token\", \"dim\"] },\n",
            "",
            "no parameter has the role q; attention needs it",
        ),
        (
            "gqa_decode_f32\" }",
            "gqa_f32\" }",
            "has no entry gqa_f32: no `extern \"C\" __global__ void gqa_f32(`; it has gqa_decode_f16, gqa_decode_f32",
        ),
        (
            "    { name = \"batch\", value = \"batch\", type = \"u32\" },\n",
            "",
            "gqa_decode_f32 takes 13 parameters, the contract has 12; make contract and kernel agree",
        ),
        (
            "value = \"past\", type = \"u32\"",
            "value = \"past\", type = \"i64\"",
            "parameter 8 of gqa_decode_f32 is a 4-byte integer, the contract says cache_len: i64",
        ),
        (
            "value = \"head_dim\", type = \"u32\"",
            "value = \"head_dim\", type = \"f32\"",
            "parameter 12 of gqa_decode_f32 is a 4-byte integer, the contract says head_dim: f32",
        ),
        (
            "entry = { f16 = \"gqa_decode_f16\", f32 = \"gqa_decode_f32\" }",
            "entry = { f32 = \"gqa_decode_f16\" }",
            "parameter 1 of gqa_decode_f16 is a pointer to elements of 2 bytes, the contract says output: T*",
        ),
        (
            "value = \"past\"",
            "value = \"cache_len\"",
            "parameter cache_len is `cache_len`, but cache_len is not a known name; choose from tokens, past, length",
        ),
        (
            "4 * (past + 3)",
            "4 * (past + 3) / (batch - 1)",
            "shared is `4 * (past + 3) / (batch - 1)`, but it divides by zero; fix the expression",
        ),
        (
            "block = [\"256\"]",
            "block = [\"256\", \"8\"]",
            "block has 2048 threads, more than 1024; fix [launch]",
        ),
        ("block = [\"256\"]", "block = [\"0\"]", "block `0` is 0, outside 1 to 1024; fix [launch]"),
        ("4 * (past + 3)", "400000", "shared is 400000 bytes, outside 0 to 232448"),
        ("head_dim <= 256", "head_dim > 256", "needs head_dim > 256, which does not hold for"),
        ("\"gqa_decode.cu\"", "\"absent.cu\"", "absent.cu: No such file"),
        ("append = \"kernel\"", "append = \"engine\"", "line 27: unknown variant `engine`"),
        (
            "append = \"kernel\"",
            "append = \"before\"",
            "caches have access = \"inout\" if the kernel appends, else \"in\"",
        ),
        ("scale = \"passed\"", "scale = \"inside\"", "scale is \"inside\", but a parameter has it"),
        ("call = \"token\"", "calls = \"token\"", "unknown field `calls`"),
        (
            "\"batch\", \"kv_head\", \"position\", \"dim\"",
            "\"kv_head\", \"position\"",
            "has the axes kv_head, position, dim, each once",
        ),
    ];
    for (from, to, says) in cases {
        let contract = edited(folder.path(), "gqa_decode", &[]);
        let text = std::fs::read_to_string(&contract).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(&contract, text.replace(from, to)).unwrap();
        let given = format!("attention={}", path(&contract));
        let arguments = [&["run", "--kernel", &given][..], &SHORT].concat();
        refused(&arguments, 2, says);
    }
    let contract = example("gqa_decode.toml");
    let other = format!("rope={}", path(&contract));
    refused(&["run", "--kernel", &other], 2, "it is for attention, not rope");
    refused(
        &["run", "--kernel", path(&contract)],
        2,
        "--kernel takes OP=FILE.toml, where OP is one of embedding, rms_norm",
    );
    let contract = edited(folder.path(), "gqa_decode", &[(", f32 = \"gqa_decode_f32\"", "")]);
    let given = format!("attention={}", path(&contract));
    refused(&["run", "--kernel", &given], 2, "no entry for f32; add one, or run with --dtype f16");
}

#[test]
fn a_const_pointer_for_what_the_kernel_must_write_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let edits = [
        ("float* kv_cache_v", "const float* kv_cache_v"),
        ("kv_cache_v, cache_len", "(float*)kv_cache_v, cache_len"),
    ];
    let contract = edited(folder.path(), "gqa_decode", &edits);
    let given = format!("attention={}", path(&contract));
    let says =
        "parameter 6 of gqa_decode_f32 is a pointer to const, the contract says kv_cache_v: T*";
    refused(&["run", "--kernel", &given], 2, says);
}
