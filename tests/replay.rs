use firstdiff::{
    arithmetic::Arithmetic,
    fault::{self, Faults},
    replay::{Recording, judge_all},
    run::EngineSpec,
    tensor::DType,
};

use crate::common::{Bench, engine};

#[test]
fn probe() {
    let bench = Bench::fixture();
    let names: Vec<String> = std::env::var("FAULTS")
        .unwrap_or_default()
        .split(',')
        .filter(|s| !s.is_empty())
        .map(String::from)
        .collect();
    for storage in [DType::F32, DType::F16] {
        let faults = Faults(names.iter().map(|n| fault::find(n).unwrap()).collect());
        let spec = EngineSpec { faults, ..engine(storage) };
        let (spool, steps) = bench.record(&spec, 40, 3);
        let arithmetic = Arithmetic::engine(storage);
        let start = std::time::Instant::now();
        let recording = Recording { tensors: &spool, steps: &steps, arithmetic: &arithmetic };
        let judged = judge_all(&bench.model, recording).unwrap();
        println!("{storage} took {:?}", start.elapsed());
        for j in &judged {
            println!(
                "{:40} {:8} beyond {:8} times {:.3} drift {:.3} {:?}",
                j.operation.to_string(),
                j.elements,
                j.beyond,
                j.times_bound(),
                j.drift,
                j.pattern
            );
        }
    }
}
