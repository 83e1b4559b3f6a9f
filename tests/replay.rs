use firstdiff::{
    compare::{SiteFilter, verdict::Rule},
    core::{
        arithmetic::{Arithmetic, OpArithmetic},
        floor::DEFAULT_FACTOR,
        task::Task,
        tensor::{DType, Tensor},
    },
    diagnosis::{
        Cause, Certainty, Diagnosis, Finding, Verdict,
        replay::{GraphRun, Operation, Recording, Replay, judge},
    },
    engine::{
        EngineSpec,
        fault::{self, Faults},
    },
    graph::site::{Site, Stage},
    model::{Model, synth::Spec},
    run::{Run, baseline},
    trace::{TraceError, recording::Recorded},
};
use half::{bf16, f16};

use crate::{
    cli,
    common::{Bench, Keep, engine, random_values},
};

/// The diagnosis of an engine with these faults.
fn diagnosis(bench: &Bench, storage: DType, faults: &[&str], tokens: usize) -> Diagnosis {
    let faults = Faults(faults.iter().map(|name| fault::find(name).unwrap()).collect());
    let spec = EngineSpec { faults, ..engine(storage) };
    let ids = bench.prompt(tokens);
    let rule = Rule { factor: DEFAULT_FACTOR, until_first: false };
    let run = Run {
        model: &bench.model,
        reference: &bench.reference,
        task: Task { prompt: &ids, decode: 3 },
        engine: &spec,
        filter: &SiteFilter::default(),
        rule,
        replay: Some(Replay::Quick),
    };
    run.run(&mut |_| {}).unwrap().diagnosis.unwrap()
}

/// What is blamed, and for what.
fn causes(diagnosis: &Diagnosis) -> Vec<(String, String)> {
    let finding = |finding: &firstdiff::diagnosis::Finding| {
        assert_eq!(finding.cause.certainty, Certainty::Proven, "{}", finding.cause.text);
        (finding.what.clone(), finding.cause.text.clone())
    };
    diagnosis.findings.iter().map(finding).collect()
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(what, cause)| (what.to_string(), cause.to_string())).collect()
}

#[test]
fn a_clean_engine_and_llama_cpp_itself_are_cleared_in_f32_and_f16_on_every_architecture() {
    let tiny = |name| Bench::synth(&Spec::preset(name).unwrap());
    for bench in [Bench::fixture(), tiny("tiny-llama"), tiny("tiny-qwen2"), tiny("tiny-qwen3")] {
        for storage in [DType::F32, DType::F16] {
            for tokens in [1, 40] {
                let diagnosis = diagnosis(&bench, storage, &[], tokens);
                assert_eq!(causes(&diagnosis), []);
                let reference = diagnosis.reference.unwrap();
                for side in [&diagnosis.engine, &reference] {
                    assert!(side.replayed > 50 && side.cleared == side.replayed);
                    assert!(side.unmeasured.is_empty() && side.broken.is_empty(), "{side:?}");
                    assert!(side.worst_cleared > 0.0, "exact results of f32 sums are no results");
                }
            }
        }
    }
}

#[test]
fn two_independent_bugs_are_both_proven_in_one_run() {
    let found =
        diagnosis(&Bench::fixture(), DType::F32, &["qkv-bias-zero", "rope-pairs-interleaved"], 64);
    let wanted = owned(&[
        ("q, k and v projection, all layers", "bias missing"),
        ("q and k rotation, all layers", "pairs (2i, 2i+1) instead of (i, i+d/2)"),
    ]);
    assert_eq!(causes(&found), wanted);
}

#[test]
fn a_uniform_scale_of_a_thousandth_is_found_and_its_factor_told() {
    let found = diagnosis(&Bench::fixture(), DType::F32, &["k-scaled-1.001"], 40);
    let wanted = owned(&[("k projection, all layers", "1.00100 times the correct values")]);
    assert_eq!(causes(&found), wanted);
}

#[test]
fn an_engine_that_really_accumulates_in_f16_is_told_so() {
    let found = diagnosis(&Bench::fixture(), DType::F32, &["scores-f16-accumulate"], 40);
    let [finding] = &found.findings[..] else { panic!("{:?}", found.findings) };
    assert_eq!(finding.what, "attention scores, all layers");
    assert_eq!(finding.cause.text, "summed in f16, but declared f32");
    assert_eq!(finding.cause.certainty, Certainty::Consistent);
}

#[test]
fn bugs_of_an_f16_engine_are_proven_too() {
    for (fault, what, cause) in [
        (
            "wq-transposed",
            "q projection, all layers",
            "weight read transposed, as (inputs, outputs)",
        ),
        ("kv-head-1-unwritten", "k and v cache append, all layers", "KV head 1 never written"),
        ("scale-missing", "attention scores, all layers", "scale missing: 1 instead of 0.25"),
    ] {
        let found = diagnosis(&Bench::fixture(), DType::F16, &[fault], 40);
        assert_eq!(causes(&found), owned(&[(what, cause)]));
    }
}

#[test]
fn every_fault_of_a_random_llama_is_proven_for_its_cause() {
    let bench = Bench::synth(&Spec { tied_output: false, ..Spec::preset("tiny-llama").unwrap() });
    assert_eq!(bench.model.config.architecture, "llama");
    for name in [
        "embd-previous-row",
        "norm-mean-subtracted",
        "wo-leading-dimension",
        "logits-tied-mistaken",
        "rope-base-1e4",
        "cache-stride-length",
        "kv-head-modulo",
        "mask-missing",
        "out-heads-reversed",
        "attn-residual-missing",
        "gelu-for-silu",
    ] {
        let fault = fault::find(name).unwrap();
        let found = diagnosis(&bench, DType::F32, &[name], 40);
        assert!(!found.findings.is_empty(), "{name}");
        for finding in &found.findings {
            let cause = &finding.cause;
            let proven = cause.certainty == Certainty::Proven;
            assert!(proven && cause.key == fault.cause, "{name}: {}", cause.text);
        }
    }
}

impl Recorded for Keep {
    fn tensor(&self, site: Site) -> Result<Option<Tensor>, TraceError> {
        Ok(self.tensors.get(&site).cloned())
    }

    fn has(&self, site: Site) -> bool {
        self.tensors.contains_key(&site)
    }
}

/// Everything that llama.cpp computes of these steps, one token a decode step.
fn recorded(bench: &Bench, steps: &[Vec<i32>]) -> Keep {
    let (mut keep, task) = (Keep::default(), Task { prompt: &steps[0], decode: 2 });
    let mut forced = steps[1..].iter().map(|tokens| tokens[0]);
    baseline::decode(&bench.reference, task, &mut keep, Default::default(), |_| forced.next())
        .unwrap();
    keep
}

#[test]
fn a_reference_of_another_parameter_is_told_to_be_another_model_with_both_values() {
    let of = |rope_theta, rms_eps| {
        Bench::synth(&Spec { rope_theta, rms_eps, ..Spec::preset("tiny-qwen2").unwrap() })
    };
    // The same weights: they follow from the seed.
    let (own, other) = (of(1e6, 1e-6), of(23456.0, 3e-4));
    let steps = vec![own.prompt(20), vec![7], vec![8]];
    let arithmetic = Arithmetic::engine(DType::F32);
    let (engine, reference) = (recorded(&own, &steps), recorded(&other, &steps));
    let recording = |tensors| Recording {
        tensors,
        steps: &steps,
        arithmetic: &arithmetic,
        attention: Default::default(),
    };
    let inputs = own.model.inputs();
    let run = |tensors| GraphRun::of(&own.model, inputs, recording(tensors));
    let found = Diagnosis::of(run(&engine), Some(run(&reference))).unwrap();
    let wanted = owned(&[
        ("attention and feed-forward norm, all layers; final norm", "eps 3e-4 instead of 1e-6"),
        ("q and k rotation, all layers", "theta 23456 instead of 1000000"),
    ]);
    assert_eq!(causes(&found), wanted);
    assert!(found.findings.iter().all(|finding| finding.verdict == Verdict::ModelsDiffer));
    assert_eq!(found.engine.cleared, found.engine.replayed);
    assert!(found.first_of_engine().is_none());
}

#[test]
fn a_reference_that_computes_an_operation_wrong_is_told_to_be_wrong() {
    let bench = Bench::fixture();
    let steps = vec![bench.prompt(20), vec![7], vec![8]];
    let arithmetic = Arithmetic::engine(DType::F32);
    let (engine, mut reference) = (recorded(&bench, &steps), recorded(&bench, &steps));
    for (_, tensor) in reference.tensors.iter_mut().filter(|(s, _)| s.stage == Stage::Logits) {
        tensor.data.iter_mut().for_each(|x| *x *= 2.0);
    }
    let recording = |tensors| Recording {
        tensors,
        steps: &steps,
        arithmetic: &arithmetic,
        attention: Default::default(),
    };
    let inputs = bench.model.inputs();
    let run = |tensors| GraphRun::of(&bench.model, inputs, recording(tensors));
    let found = Diagnosis::of(run(&engine), Some(run(&reference))).unwrap();
    assert_eq!(causes(&found), owned(&[("logits projection", "doubled")]));
    assert_eq!(found.findings[0].verdict, Verdict::ReferenceWrong);
    assert_eq!(found.engine.cleared, found.engine.replayed);
    assert!(found.first_of_engine().is_none());
}

/// Whether an operation of layer 0 is guilty, if the engine declares bf16 storage and these.
fn is_guilty(
    (model, tensors): (&Model, &Keep),
    tokens: &[i32],
    stage: Stage,
    (vectors, between): (Option<DType>, Option<DType>),
) -> bool {
    let default = OpArithmetic { storage: DType::Bf16, accumulator: DType::F32 };
    let arithmetic = Arithmetic { vectors, between, default, ..Arithmetic::engine(DType::F32) };
    let (steps, attention) = ([tokens.to_vec()], Default::default());
    let recording = Recording { tensors, steps: &steps, arithmetic: &arithmetic, attention };
    let operation = Operation { layer: Some(0), stage };
    let inputs = model.inputs();
    let verdict = judge(GraphRun::of(model, inputs, recording)).unwrap();
    verdict.judged.iter().find(|judged| judged.operation == operation).unwrap().is_guilty()
}

fn stored(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

#[test]
fn roundings_of_a_framework_are_no_fault_where_they_are_declared() {
    let bench = Bench::fixture();
    let tokens = bench.prompt(20);
    let mut engine = recorded(&bench, &[tokens.clone(), vec![7], vec![8]]);
    // The norm as a framework computes it, each of its steps and its weight stored in bf16.
    let weight = bench.model.weights("blk.0.attn_norm.weight").unwrap();
    let (eps, embd) = (bench.model.config.rms_eps, Site::global(0, Stage::Embd));
    let of_row = |x: &[f32]| {
        let mean_square = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        let y = x.iter().zip(&weight).map(|(x, w)| stored(stored(x * scale) * stored(*w)));
        y.collect::<Vec<f32>>()
    };
    let rows = engine.tensors[&embd].data.chunks_exact(weight.len()).flat_map(of_row).collect();
    let norm = Site::in_layer(0, 0, Stage::AttnNorm);
    engine.tensors.get_mut(&norm).unwrap().data = rows;
    let guilty = |declared| is_guilty((&bench.model, &engine), &tokens, Stage::AttnNorm, declared);
    let bf16 = Some(DType::Bf16);
    assert!(!guilty((bf16, bf16)));
    assert!(guilty((bf16, None)) && guilty((None, bf16)));
}

#[test]
fn roundings_between_steps_that_repeat_are_no_common_error() {
    let bench = Bench::fixture();
    // Gates of few values: silu of each is rounded alike wherever it stands.
    let (tokens, mut engine) = (vec![7; 300], Keep::default());
    let n = tokens.len() * bench.model.config.n_ff;
    let gate: Vec<f32> = (0..n).map(|i| stored(1.0 + (i % 5) as f32 / 50.0)).collect();
    let up: Vec<f32> = random_values(n, 5).into_iter().map(stored).collect();
    let act = gate.iter().zip(&up).map(|(x, up)| stored(stored(x / (1.0 + (-x).exp())) * up));
    let act = act.collect();
    for (stage, data) in [(Stage::FfnGate, gate), (Stage::FfnUp, up), (Stage::FfnAct, act)] {
        let tensor = Tensor::new(vec![tokens.len(), bench.model.config.n_ff], data);
        engine.tensors.insert(Site::in_layer(0, 0, stage), tensor);
    }
    let bf16 = Some(DType::Bf16);
    let guilty = |declared| is_guilty((&bench.model, &engine), &tokens, Stage::FfnAct, declared);
    assert!(!guilty((bf16, bf16)));
    assert!(guilty((bf16, None)));
}

/// ggml's q8_0, widened again.
fn q8_0(x: &[f32]) -> Vec<f32> {
    let block = |x: &[f32]| {
        let scale = x.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
        let stored = f16::from_f32(scale).to_f32();
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        x.iter().map(|x| stored * (x * inverse).round()).collect::<Vec<f32>>()
    };
    x.chunks(32).flat_map(block).collect()
}

/// Ten bits of fraction.
fn tf32(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| f32::from_bits(x.to_bits().wrapping_add(0x1000) & !0x1fff)).collect()
}

#[test]
fn inputs_that_are_rounded_before_a_product_are_simulated_and_random_weights_are_unknown() {
    let bench = Bench::fixture();
    let steps = vec![bench.prompt(20), vec![7], vec![8]];
    let arithmetic = Arithmetic::engine(DType::F32);
    let weight = bench.model.weights("blk.0.attn_output.weight").unwrap();
    let n = bench.model.config.n_embd;
    let random = random_values(weight.len(), 3);
    type Rounded = fn(&[f32]) -> Vec<f32>;
    let as_it_is: Rounded = |x| x.to_vec();
    let bf16s: Rounded = |x| x.iter().map(|&x| stored(x)).collect();
    let cases: [(Rounded, Vec<f32>, Certainty, &str); 4] = [
        (tf32, tf32(&weight), Certainty::Proven, "inputs of the product rounded to tf32"),
        (
            bf16s,
            bf16s(&weight),
            Certainty::Proven,
            "inputs and weights of the product rounded to bf16",
        ),
        (q8_0, weight, Certainty::Proven, "inputs of the product rounded to q8_0"),
        (as_it_is, random, Certainty::Unknown, "unknown"),
    ];
    for (rounded, weight, certainty, text) in cases {
        let mut engine = recorded(&bench, &steps);
        for step in 0..3 {
            let x = &engine.tensors[&Site::in_layer(step, 0, Stage::AttnOut)].data;
            let of_row = |x: &[f32]| {
                let x = rounded(x);
                let sum = |w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
                weight.chunks_exact(n).map(sum).collect::<Vec<f32>>()
            };
            let data = x.chunks_exact(n).flat_map(of_row).collect();
            engine.tensors.get_mut(&Site::in_layer(step, 0, Stage::OProj)).unwrap().data = data;
        }
        let (tensors, attention) = (&engine, Default::default());
        let recording = Recording { tensors, steps: &steps, arithmetic: &arithmetic, attention };
        let inputs = bench.model.inputs();
        let run = GraphRun::of(&bench.model, inputs, recording);
        let found = Diagnosis::of(run, None).unwrap();
        let is_product = |one: &&Finding| one.what == "output projection, layer 0";
        let product = found.findings.iter().find(is_product).unwrap();
        assert_eq!(product.cause.text, text);
        assert_eq!(product.cause.certainty, certainty, "{text}");
    }
}

/// Numbers below n, the same on every machine.
fn random_below(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |n| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    }
}

/// The first finding on a run of which one result of layer 0 is another in every step.
fn finding(
    bench: &Bench,
    stage: Stage,
    of: impl Fn(&Keep, Site, usize) -> Vec<f32>,
) -> (String, Cause) {
    let steps = vec![bench.prompt(33), vec![7], vec![8]];
    let mut engine = recorded(bench, &steps);
    let first = |step: u32| steps[..step as usize].iter().map(Vec::len).sum();
    for step in 0..3 {
        let site = Site::in_layer(step, 0, stage);
        let data = of(&engine, site, first(step));
        engine.tensors.get_mut(&site).unwrap().data = data;
    }
    let arithmetic = Arithmetic::engine(DType::F32);
    let (tensors, attention) = (&engine, Default::default());
    let recording = Recording { tensors, steps: &steps, arithmetic: &arithmetic, attention };
    let inputs = bench.model.inputs();
    let found = Diagnosis::of(GraphRun::of(&bench.model, inputs, recording), None).unwrap();
    let first = found.findings.into_iter().next().expect("a wrong result is blamed");
    (first.what, first.cause)
}

#[test]
fn positions_at_random_are_read_off_the_rotation() {
    let bench = Bench::fixture();
    let (dim, theta) = (bench.model.config.head_dim, f64::from(bench.model.config.rope_theta));
    for seed in 0..4 {
        let mut random = random_below(seed);
        let used: Vec<usize> = (0..35).map(|_| random(60)).collect();
        let (what, cause) = finding(&bench, Stage::QRope, |engine, site, first| {
            let q = &engine.tensors[&Site { stage: Stage::Q, ..site }];
            let width = q.shape[1] * q.shape[2];
            let turned = |(row, x): (usize, &[f32])| {
                let position = used[first + row] as f64;
                let mut y = x.to_vec();
                for (x, y) in x.chunks(dim).zip(y.chunks_mut(dim)) {
                    for i in 0..dim / 2 {
                        let angle = position * theta.powf(-2.0 * i as f64 / dim as f64);
                        let (sine, cosine) = (angle.sin() as f32, angle.cos() as f32);
                        let (a, b) = (x[i], x[i + dim / 2]);
                        (y[i], y[i + dim / 2]) = (a * cosine - b * sine, a * sine + b * cosine);
                    }
                }
                y
            };
            q.data.chunks(width).enumerate().flat_map(turned).collect()
        });
        assert_eq!(
            (&*what, cause.certainty),
            ("q rotation, layer 0", Certainty::Proven),
            "{cause:?}"
        );
        let other = (0..35).find(|&p| used[p] != p).unwrap();
        let text = format!("positions rotated as others: {other} as {}", used[other]);
        assert!(cause.text.starts_with(&text), "{} {used:?}", cause.text);
    }
}

/// A softmax of the recorded scores over the keys that are seen, with so many zeros in each sum.
fn softmax(
    engine: &Keep,
    site: Site,
    first: usize,
    sees: &dyn Fn(usize, usize) -> bool,
    zeros: &dyn Fn(usize) -> usize,
) -> Vec<f32> {
    let scores = &engine.tensors[&Site { stage: Stage::Scores, ..site }];
    let (heads, keys) = (scores.shape[1], scores.shape[2]);
    let of_row = |(row, scores): (usize, &[f32])| {
        let query = first + row / heads;
        let seen = |key: usize| key <= query && sees(query, key);
        let largest = (0..keys).filter(|&k| seen(k)).map(|k| scores[k]).fold(f32::MIN, f32::max);
        let term = |k: usize| if seen(k) { (scores[k] - largest).exp() } else { 0.0 };
        let sum = (0..keys).map(term).sum::<f32>() + zeros(query) as f32 * (-largest).exp();
        (0..keys).map(|k| term(k) / sum).collect::<Vec<f32>>()
    };
    scores.data.chunks(keys).enumerate().flat_map(of_row).collect()
}

#[test]
fn key_sets_at_random_are_read_off_the_probabilities() {
    let bench = Bench::fixture();
    for seed in 0..4 {
        let mut random = random_below(seed);
        let holes: Vec<bool> = (0..35 * 35).map(|_| random(3) == 0).collect();
        let sees = |query: usize, key: usize| key == query || !holes[query * 35 + key];
        let (what, cause) = finding(&bench, Stage::Probs, |engine, site, first| {
            softmax(engine, site, first, &sees, &|_| 0)
        });
        assert_eq!((&*what, cause.certainty), ("softmax, layer 0", Certainty::Proven), "{cause:?}");
        assert_eq!(cause.key.name(), "keys-weighed", "{}", cause.text);
    }
    let (_, cause) = finding(&bench, Stage::Probs, |engine, site, first| {
        softmax(engine, site, first, &|query, key| query < 33 || key == 0, &|_| 0)
    });
    assert_eq!(cause.text, "queries from position 33 on attend to keys 0 to 0 only");
    assert_eq!(cause.certainty, Certainty::Proven);
}

#[test]
fn zeros_in_a_softmax_are_counted_and_said_where_they_are() {
    let bench = Bench::fixture();
    let (what, cause) = finding(&bench, Stage::Probs, |engine, site, first| {
        softmax(engine, site, first, &|_, _| true, &|query| if query % 16 == 15 { 16 } else { 0 })
    });
    assert_eq!((&*what, cause.certainty), ("softmax, layer 0", Certainty::Proven), "{cause:?}");
    let text = "16 extra keys with score 0 are included in the sum, where the number of keys is a multiple of 16";
    assert_eq!(cause.text, text);
}

#[test]
fn rows_of_a_weight_at_random_are_read_off_the_product() {
    let bench = Bench::fixture();
    let n = bench.model.config.n_embd;
    for seed in 0..4 {
        let mut random = random_below(seed);
        let from: Vec<usize> = (0..n).map(|_| random(n)).collect();
        let (what, cause) = finding(&bench, Stage::OProj, |engine, site, _| {
            let right = &engine.tensors[&site].data;
            right.chunks(n).flat_map(|row| from.iter().map(|&at| row[at])).collect()
        });
        let said = (&*what, cause.certainty, cause.key.name());
        assert_eq!(said, ("output projection, layer 0", Certainty::Proven, "rows-permuted"));
        let text =
            format!("its rows are reordered: 0 is o_proj {}, 1 is o_proj {}", from[0], from[1]);
        let is_run = from[0].abs_diff(from[1]) == 1 || from[1].abs_diff(from[2]) == 1;
        assert!(cause.text.starts_with(&text) || is_run, "{} {from:?}", cause.text);
    }
}

#[test]
fn inputs_at_random_that_a_product_leaves_out_or_sums_twice_are_read_off_it() {
    let bench = Bench::fixture();
    let n = bench.model.config.n_embd;
    let weight = bench.model.weights("blk.0.attn_output.weight").unwrap();
    for seed in 0..4 {
        let mut random = random_below(seed);
        let mut counts = vec![1.0f32; n];
        for _ in 0..5 {
            counts[random(n)] = [0.0, 2.0][random(2)];
        }
        let (what, cause) = finding(&bench, Stage::OProj, |engine, site, _| {
            let x = &engine.tensors[&Site { stage: Stage::AttnOut, ..site }].data;
            let of_row = |x: &[f32]| {
                let term = |(i, w): (usize, &f32)| counts[i] * x[i] * w;
                let sum = |w: &[f32]| w.iter().enumerate().map(term).sum::<f32>();
                weight.chunks_exact(n).map(sum).collect::<Vec<f32>>()
            };
            x.chunks_exact(n).flat_map(of_row).collect()
        });
        assert_eq!((&*what, cause.certainty), ("output projection, layer 0", Certainty::Proven));
        for (count, words) in [(0.0, "left out of the sum"), (2.0, "summed twice")] {
            assert_eq!(cause.text.contains(words), counts.contains(&count), "{}", cause.text);
        }
    }
}

#[test]
fn what_lies_in_the_slots_of_a_cache_is_read_off_it() {
    let bench = Bench::fixture();
    let (heads, dim) = (bench.model.config.n_head_kv, bench.model.config.head_dim);
    let row = heads * dim;
    // Of position p the slot holds the row of `from(p)`, or zeros.
    let held = |from: &dyn Fn(usize) -> Option<usize>| {
        finding(&bench, Stage::KCache, |engine, site, _| {
            let right = &engine.tensors[&site].data;
            let slot = |p: usize| match from(p) {
                Some(other) => right[other * row..(other + 1) * row].to_vec(),
                None => vec![0.0; row],
            };
            (0..right.len() / row).flat_map(slot).collect()
        })
    };
    let said = |from: &dyn Fn(usize) -> Option<usize>| {
        let (what, cause) = held(from);
        assert_eq!(
            (&*what, cause.certainty),
            ("k cache append, layer 0", Certainty::Proven),
            "{cause:?}"
        );
        cause.text
    };
    let zero = |p: usize| (!(16..24).contains(&p)).then_some(p);
    assert_eq!(said(&zero), "never written, positions 16-23 only");
    let later = |p: usize| Some(if p < 8 { p + 3 } else { p });
    assert_eq!(said(&later), "slots of positions 0-7 hold the row from 3 positions later");
    for seed in 0..4 {
        let mut random = random_below(seed);
        let from: Vec<usize> = (0..40).map(|p| if p < 33 { random(33) } else { p }).collect();
        let text = said(&|p| Some(from[p]));
        assert!(text.starts_with("slots hold other rows"), "{text}");
    }
}

/// A model whose gate, up and down projections are multiplied by random sums first.
fn wide_model(folder: &std::path::Path) -> std::path::PathBuf {
    let path = folder.join("wide.gguf");
    let shape = ["--shape", "tiny-llama", "--layers", "2", "--embd", "512", "--ffn", "1024"];
    let (exit, out, err) =
        cli::outcome(&[&["synth"][..], &shape, &["-o", cli::path(&path)]].concat());
    assert_eq!(exit, 0, "{out}{err}");
    path
}

#[test]
fn random_sums_clear_what_is_right_and_change_nothing_of_what_is_said_of_wrong_operations() {
    let folder = tempfile::tempdir().unwrap();
    let model = wide_model(folder.path());
    let report = |fault: Option<&str>, replay: &str| {
        let json = folder.path().join("report.json");
        let mut run = vec!["run", "-m", cli::path(&model), "-p", "Once upon a time", "-n", "2"];
        run.extend(fault.iter().flat_map(|fault| ["--fault", fault]));
        run.extend(["--replay", replay, "--json", cli::path(&json)]);
        let (exit, out, err) = cli::outcome(&run);
        let text = std::fs::read_to_string(&json).unwrap_or_else(|_| panic!("{out}{err}"));
        (exit, serde_json::from_str::<serde_json::Value>(&text).unwrap()["diagnosis"].clone())
    };
    for fault in [
        None,
        Some("ffn-gate-weight-of-up"),
        Some("ffn-up-outputs-truncated"),
        Some("gate-up-swapped"),
    ] {
        let [(quick_exit, quick), (full_exit, full)] =
            ["quick", "full"].map(|how| report(fault, how));
        assert_eq!(quick_exit, full_exit);
        assert_eq!(quick["findings"], full["findings"], "{fault:?}");
        for side in ["engine", "reference"] {
            let [quick, full] = [&quick[side], &full[side]];
            for same in ["replayed", "cleared", "unmeasured", "broken"] {
                assert_eq!(quick[same], full[same], "{fault:?} {side} {same}");
            }
            let by_sums = quick["by_sums"].as_u64().unwrap();
            // Gate, up and down of two layers.
            assert!(full["by_sums"] == 0 && by_sums <= 6, "{by_sums}");
            assert!(
                by_sums == 6 || side == "engine" && fault.is_some() && by_sums > 0,
                "{by_sums}"
            );
            assert!(quick["worst_cleared"].as_f64().unwrap() < 1.0);
        }
    }
}
