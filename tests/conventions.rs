use std::{collections::BTreeSet, path::Path};

use firstdiff::{
    compare::{SiteFilter, verdict::Rule},
    core::{
        arithmetic::{Arithmetic, Convention},
        exit::Exit,
        floor::DEFAULT_FACTOR,
        task::Task,
        tensor::DType,
    },
    diagnosis::{
        Diagnosis, Verdict,
        replay::{GraphRun, Recording, Replay},
    },
    engine::{EngineSpec, kernels::KernelSet},
    model::{
        ModelFile,
        synth::{
            WeightType,
            arch::{ArchModel, ArchSpec},
        },
    },
    reference::{Changes, Precision, Reference, ReferenceOptions},
    run::{Finished, Run, baseline},
    trace::recording::Spool,
};

use crate::common::{Bench, engine};

/// The fixture through kernels of which one is written otherwise.
fn run_with(
    bench: &Bench,
    (file, from, to): (&str, &str, &str),
    storage: DType,
    roundings: Vec<Convention>,
) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(file);
    let text = std::fs::read_to_string(own).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{file}: {from}");
    std::fs::write(folder.path().join(file), text.replace(from, to)).unwrap();
    let kernels = KernelSet::overridden_by(folder.path()).unwrap();
    let spec = EngineSpec { kernels, roundings, ..engine(storage) };
    let ids = bench.prompt(40);
    let rule = Rule { factor: DEFAULT_FACTOR, until_first: false };
    let run = Run {
        model: &bench.model,
        reference: &bench.reference,
        task: Task { prompt: &ids, decode: 2 },
        engine: &spec,
        filter: &SiteFilter::default(),
        rule,
        replay: Some(Replay::Quick),
    };
    run.run(&mut |_| {}).unwrap()
}

#[test]
fn a_rounding_that_a_kernel_makes_is_undeclared_arithmetic_and_nothing_once_it_is_declared() {
    let bench = Bench::fixture();
    let cases = [
        (
            "attention.cu",
            "sum += p[j - first] * to_float(",
            "sum += __half2float(__float2half_rn(p[j - first])) * to_float(",
            DType::F32,
            "exps=f16",
        ),
        (
            "attention.cu",
            "sum += p[j - first] * to_float(v[(long long)j * head_dim + d]);",
            "sum += __half2float(__float2half_rn(p[j - first]))
                   * __half2float(__float2half_rn(to_float(v[(long long)j * head_dim + d])));",
            DType::F32,
            "exps=f16,values=f16",
        ),
        (
            "swiglu.cu",
            "float activated = x / (1.0f + expf(-x));",
            "T s; store(&s, 1.0f / (1.0f + expf(-x))); T t; store(&t, x * to_float(s));
             float activated = to_float(t);",
            DType::F16,
            "sigmoid=f16,activated=f16",
        ),
    ];
    for (file, from, to, storage, declared) in cases {
        let undeclared = run_with(&bench, (file, from, to), storage, Vec::new());
        let diagnosis = undeclared.diagnosis.unwrap();
        assert!(diagnosis.first_of_engine().is_none(), "{declared}: {:?}", diagnosis.findings);
        let own: Vec<String> = diagnosis.undeclared().iter().map(ToString::to_string).collect();
        assert_eq!(own.join(","), declared);
        let held = run_with(&bench, (file, from, to), storage, diagnosis.undeclared());
        assert_eq!(held.coverage.exit(), Exit::Equal, "{declared}");
        assert!(held.diagnosis.unwrap().findings.is_empty(), "{declared}");
    }
}

#[test]
fn an_engine_that_is_more_exact_than_it_declares_is_right() {
    let bench = Bench::fixture();
    for declared in ["caches=f16", "caches=int8-rows", "inputs=q8_0", "exps=f16,values=f16"] {
        let roundings = declared.split(',').map(|text| Convention::parse(text).unwrap()).collect();
        let found = run_with(
            &bench,
            ("rope.cu", "rotation in float.", "rotation in f32."),
            DType::F32,
            roundings,
        );
        assert!(found.diagnosis.unwrap().findings.is_empty(), "{declared}");
    }
}

#[test]
fn a_mistake_is_found_beside_what_is_declared() {
    let bench = Bench::fixture();
    let from = "sum += p[j - first] * to_float(";
    let to = "sum += 1.02f * __half2float(__float2half_rn(p[j - first])) * to_float(";
    let declared = vec![Convention::parse("exps=f16").unwrap()];
    let found = run_with(&bench, ("attention.cu", from, to), DType::F32, declared);
    let diagnosis = found.diagnosis.unwrap();
    let [finding] = &diagnosis.findings[..] else { panic!("{:?}", diagnosis.findings) };
    assert_eq!(
        (finding.verdict, &*finding.what),
        (Verdict::EngineWrong, "weighted sum of values, all layers")
    );
    assert!(finding.cause.text.contains("1.02"), "{}", finding.cause.text);
}

/// llama.cpp's own tensors on a file as it is.
fn native(arch: &str, weight_type: WeightType, of: impl FnOnce(GraphRun<'_>, &Arithmetic)) {
    let program = Path::new(env!("CARGO_BIN_EXE_firstdiff"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let spec = ArchSpec { weight_type, ..ArchSpec::new(arch) };
    let model = ArchModel::plan(&spec, program).unwrap();
    model.write(&path, program, &mut |_| {}).unwrap();
    let file = ModelFile::open(&path).unwrap();
    let options = ReferenceOptions { precision: Precision::Native, ..Default::default() };
    let llama = Reference::load(&file, options).unwrap();
    let prompt: Vec<i32> = (0..24).map(|index| (index * 37 + 11) % 256).collect();
    let task = Task { prompt: &prompt, decode: 2 };
    let mut spool = Spool::new().unwrap();
    let choices = baseline::decode(&llama, task, &mut spool, Changes::default(), |choice| {
        Some(choice?.token)
    });
    let steps = baseline::steps_of(task, Default::default(), &choices.unwrap());
    let spool = spool.finished().unwrap();
    let (model, inputs) = llama.import(&steps.concat()).unwrap();
    let arithmetic = Arithmetic::engine(DType::F32);
    let attention = Default::default();
    let recording =
        Recording { tensors: &spool, steps: &steps, arithmetic: &arithmetic, attention };
    let (file, model, inputs) = (&file, &*model, &inputs);
    of(GraphRun { has_tables: true, ..GraphRun::new(file, model, inputs, recording) }, &arithmetic);
}

#[test]
fn llama_cpp_on_quantised_weights_is_right_in_an_arithmetic_of_its_own() {
    for (arch, weight_type) in
        [("llama", WeightType::Q8_0), ("qwen3", WeightType::Q4K), ("gemma2", WeightType::F16)]
    {
        native(arch, weight_type, |run, arithmetic| {
            let found = Diagnosis::of(run, None).unwrap();
            let wrong = found.first_of_engine().map(|finding| (&finding.what, &finding.cause.text));
            assert_eq!(wrong, None, "{arch}");
            let undeclared = found.undeclared();
            let names: BTreeSet<String> = undeclared.iter().map(ToString::to_string).collect();
            assert!(names.iter().any(|name| name.contains("caches=f16")), "{arch}: {names:?}");
            let held = arithmetic.clone().rounding(&undeclared);
            let recording = Recording { arithmetic: &held, ..run.recording };
            let found = Diagnosis::of(GraphRun { recording, ..run }, None).unwrap();
            let left: Vec<&str> = found.findings.iter().map(|left| &*left.what).collect();
            assert!(left.is_empty(), "{arch} {names:?}: {left:?}");
        });
    }
}
