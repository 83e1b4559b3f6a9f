use firstdiff::{
    arithmetic::Arithmetic,
    diagnosis::{Scene, diagnose},
    fault::{self, Faults},
    replay::{Recording, Replay, judge_all},
    run::EngineSpec,
    tensor::DType,
};

use crate::common::{Bench, engine};

#[test]
fn probe() {
    let bench = Bench::fixture();
    let only = std::env::var("FAULTS").unwrap_or_default();
    for f in fault::FAULTS.iter() {
        if !only.is_empty() && !only.split(',').any(|n| n == f.name) {
            continue;
        }
        let storage = DType::F32;
        let spec = EngineSpec { faults: Faults(vec![f]), ..engine(storage) };
        let (spool, steps) = bench.record(&spec, 40, 3);
        let arithmetic = Arithmetic::engine(storage);
        let start = std::time::Instant::now();
        let recording = Recording { tensors: &spool, steps: &steps, arithmetic: &arithmetic };
        let judged = judge_all(&bench.model, recording).unwrap();
        let t1 = start.elapsed();
        println!("== {}", f.name);
        for j in judged.iter().filter(|j| j.is_guilty()).take(4) {
            let replay = Replay::new(&bench.model, recording);
            let scene = Scene::new(&replay, j.operation).unwrap().unwrap();
            let start = std::time::Instant::now();
            let cause = diagnose(&scene).unwrap();
            println!(
                "  {} {} of {} beyond {:.1} {:?}\n      {:?} {} {} {}/{} also {:?} refuted {} in {:?}",
                j.operation,
                j.beyond,
                j.elements,
                j.times_bound(),
                j.pattern,
                cause.certainty,
                cause.key,
                cause.text,
                cause.explained,
                cause.wrong,
                cause.also,
                cause.refuted,
                start.elapsed()
            );
        }
        println!("   judged in {t1:?}");
    }
}
