use firstdiff::{
    baseline::Task,
    compare::{DEFAULT_FACTOR, SiteFilter},
    engine::AttentionVariant,
    exit::Exit,
    fault::{FAULTS, Faults},
    kernels::KernelSet,
    model::Model,
    reference::{Reference, ReferenceOptions},
    run::{DeviceKind, EngineSpec, Finished, Run},
    tensor::DType,
    verdict::{Outcome, Rule},
};

use crate::common::fixture;

fn spec(storage: DType) -> EngineSpec {
    EngineSpec {
        device: DeviceKind::Host,
        storage,
        attention: AttentionVariant::default(),
        faults: Faults::default(),
        kernels: KernelSet::embedded(),
    }
}

fn run(model: &Model, reference: &Reference, engine: &EngineSpec, tokens: usize) -> Finished {
    let text =
        "Once upon a time there was a little girl who lived in a house by the wood. ".repeat(20);
    let ids = reference.tokenize(&text);
    let task = Task { prompt: &ids[..tokens], decode: 2 };
    let rule = Rule { factor: DEFAULT_FACTOR, stop_at_first: false };
    let filter = SiteFilter::default();
    Run { model, reference, task, engine, filter: &filter, rule }.run(&mut |_| {}).unwrap()
}

#[test]
fn debug_print() {
    let model = Model::open(&fixture()).unwrap();
    let reference = Reference::load(&model, ReferenceOptions::default()).unwrap();
    for storage in [DType::F32, DType::F16] {
        for tokens in [1, 2, 31, 40, 200] {
            let finished = run(&model, &reference, &spec(storage), tokens);
            let mut worst: std::collections::BTreeMap<_, (f64, f64)> = Default::default();
            for site in &finished.sites {
                let d = site.difference.as_ref().unwrap();
                let w = worst.entry(site.site.stage).or_insert((0.0, 0.0));
                w.0 = w.0.max(d.worst.as_ref().map_or(0.0, |e| e.times_floor));
                w.1 = w.1.max(d.l2_times_floor);
            }
            println!(
                "{storage} {tokens} {:?} {:?} {}",
                finished.coverage, finished.hooks_leave_logits, finished.seconds
            );
            for (stage, (e, l)) in worst {
                print!("{}={e:.2}/{l:.2} ", stage.name());
            }
            println!();
        }
    }
    for fault in &FAULTS {
        let mut engine = spec(DType::F32);
        engine.faults = Faults(vec![fault]);
        let finished = run(&model, &reference, &engine, 40);
        let first = finished.sites.iter().find(|s| s.outcome == Outcome::Diverged);
        assert_eq!(finished.coverage.exit(), Exit::Diverged, "{}", fault.name);
        let first = first.unwrap();
        let d = first.difference.as_ref().unwrap();
        println!(
            "{}: {} {:?} {:?} | want {} {}",
            fault.name,
            first.site,
            d.pattern.as_ref().map(|p| &p.text),
            d.worst.as_ref().map(|w| w.times_floor),
            fault.blamed.name(),
            fault.pattern
        );
    }
}
