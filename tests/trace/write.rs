//! What is recorded is read back bit for bit, and a run that fails leaves nothing.

use std::{fs, io};

use firstdiff::{
    core::{
        arithmetic::Arithmetic,
        floor::{DeclaredFloor, Floor, SiteFloor},
        sink::{Choice, NoSink, Sink, Stopped},
        tensor::{DType, Tensor},
    },
    graph::site::{Site, Stage},
    trace::{Kind, Limit, PLAN_FILE, Plan, Side, TraceError, TraceReader, TraceWriter, feed},
};

use super::support::{Recorded, STEPS, listing, manifest, record, shape, tensors};

const CHOICE: Choice = Choice { token: 6, logit: 0.5, second: 3, second_logit: 0.25 };

/// Keeps what it is fed, up to a number of tensors.
struct Keep {
    kept: Vec<(Site, Tensor)>,
    room: usize,
}

impl Sink for Keep {
    fn wants(&self, site: Site) -> bool {
        site.stage != Stage::Logits
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        self.kept.push((site, tensor));
        (self.kept.len() < self.room).then_some(()).ok_or(Stopped)
    }
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.data.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_trace_gives_back_every_bit() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    let mut written = tensors(7);
    let odd = [f32::NAN, -f32::NAN, f32::INFINITY, -0.0, f32::MIN_POSITIVE / 4.0, f32::MAX];
    for (_, tensor) in &mut written {
        tensor.data[..4].copy_from_slice(&odd[..4]);
        tensor.data[5] = f32::from_bits(0x7fa1_2345);
    }
    record(&folder, &written).unwrap();
    let reader = TraceReader::open(&folder).unwrap();
    assert!(reader.sites().eq(written.iter().map(|(site, _)| *site)), "canonical order");
    for (site, tensor) in &written {
        let read = reader.tensor(*site).unwrap().unwrap();
        assert_eq!((&read.shape, bits(&read)), (&tensor.shape, bits(tensor)), "{site}");
    }
    assert_eq!(reader.tensor(Site::global(9, Stage::Embd)).unwrap(), None);
}

#[test]
fn tensors_put_in_any_order_within_a_step_are_found() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    let mut written = tensors(8);
    written.reverse();
    record(&folder, &written).unwrap();
    let reader = TraceReader::open(&folder).unwrap();
    assert!(reader.sites().is_sorted());
    for (site, tensor) in &written {
        assert_eq!(reader.tensor(*site).unwrap().as_ref(), Some(tensor), "{site}");
    }
}

#[test]
fn the_manifest_comes_back_as_it_was_set() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    let mut manifest = manifest();
    manifest.prompt = Some("a \"prompt\"\nof two lines".into());
    manifest.kernels.insert("rope.cu".into(), "00".repeat(32));
    manifest.settings.fault = Some("rope-pairs".into());
    let mut writer = TraceWriter::create(&folder, manifest.clone(), false).unwrap();
    writer.begin_step(STEPS[0], 0).unwrap();
    writer.set_choice(CHOICE).unwrap();
    writer.end_step().unwrap();
    let site = Site::in_layer(0, 1, Stage::Q);
    let floor = Floor([(site, SiteFloor { elementwise: 1e-7, relative_l2: 0.25 })].into());
    let declared = DeclaredFloor { arithmetic: Arithmetic::engine(DType::F16), floor };
    writer.manifest_mut().floors.push(declared.clone());
    writer.finish().unwrap();
    let read = TraceReader::open(&folder).unwrap().manifest().clone();
    assert_eq!(read.steps[0].choice, Some(CHOICE));
    assert_eq!(read.floors, [declared]);
    manifest.floors = read.floors.clone();
    manifest.steps = read.steps.clone();
    assert_eq!(read, manifest);
}

#[test]
fn a_step_of_which_nothing_is_wanted_still_has_a_file() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    record(&folder, &[]).unwrap();
    let reader = TraceReader::open(&folder).unwrap();
    assert_eq!(reader.sites().count(), 0);
    assert_eq!(reader.manifest().steps.len(), 3);
    assert_eq!(
        listing(&folder),
        [
            "manifest.json",
            "manifest.json.blake3",
            "step-0000.safetensors",
            "step-0001.safetensors",
            "step-0002.safetensors"
        ]
    );
}

#[test]
fn a_reference_has_a_plan_beside_it_and_can_still_be_replaced() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    let mut of_reference = manifest();
    of_reference.side = Side::Reference;
    for overwrite in [false, true] {
        let mut writer = TraceWriter::create(&folder, of_reference.clone(), overwrite).unwrap();
        for (tokens, first) in [(STEPS[0], 0), (STEPS[1], STEPS[0].len())] {
            writer.begin_step(tokens, first).unwrap();
            writer.end_step().unwrap();
        }
        writer.finish().unwrap();
        let plan = fs::read_to_string(folder.join(PLAN_FILE)).unwrap();
        let expected = crate::bring::header::PLAN.replace("small \"quoted\".gguf", "small.gguf");
        assert_eq!(plan, expected);
        let read = Plan::open(&folder.join(PLAN_FILE)).unwrap();
        assert_eq!((read.model, read.steps.len()), (of_reference.model.clone(), 2));
    }
}

#[test]
fn a_writer_dropped_before_its_end_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    let mut writer = TraceWriter::create(&folder, manifest(), false).unwrap();
    writer.begin_step(STEPS[0], 0).unwrap();
    for (site, tensor) in tensors(1).iter().filter(|(site, _)| site.step == 0) {
        writer.put(*site, tensor).unwrap();
    }
    assert!(!folder.exists(), "nothing at the target before the end");
    drop(writer);
    assert!(listing(parent.path()).is_empty());
}

#[test]
fn an_existing_trace_is_replaced_only_when_asked_and_only_at_the_end() {
    let old = Recorded::new();
    let error = TraceWriter::create(&old.folder, manifest(), false).unwrap_err();
    assert!(matches!(error, TraceError::Exists { .. }), "{error}");
    assert_eq!(error.kind(), Kind::BadInput);

    let mut writer = TraceWriter::create(&old.folder, manifest(), true).unwrap();
    writer.begin_step(STEPS[0], 0).unwrap();
    drop(writer);
    assert_eq!(TraceReader::open(&old.folder).unwrap().manifest().steps.len(), 3);

    let mut writer = TraceWriter::create(&old.folder, manifest(), true).unwrap();
    writer.begin_step(STEPS[0], 0).unwrap();
    writer.end_step().unwrap();
    writer.finish().unwrap();
    assert_eq!(TraceReader::open(&old.folder).unwrap().manifest().steps.len(), 1);
    assert_eq!(listing(old.parent.path()), ["trace"]);
}

#[test]
fn a_folder_or_file_that_is_no_trace_is_never_replaced() {
    let parent = tempfile::tempdir().unwrap();
    let create = |name: &str| TraceWriter::create(&parent.path().join(name), manifest(), true);
    let occupied = |name: &str| matches!(create(name), Err(TraceError::Occupied { .. }));

    fs::write(parent.path().join("file"), "mine").unwrap();
    assert!(occupied("file"));
    fs::create_dir(parent.path().join("app")).unwrap();
    fs::write(parent.path().join("app/manifest.json"), "{}").unwrap();
    assert!(occupied("app"), "a manifest.json alone makes no trace");
    let recorded = Recorded::new();
    fs::write(recorded.folder.join("notes.txt"), "mine").unwrap();
    let error = TraceWriter::create(&recorded.folder, manifest(), true).unwrap_err();
    assert!(matches!(error, TraceError::Occupied { .. }), "a trace with a foreign file: {error}");

    fs::create_dir(parent.path().join("empty")).unwrap();
    record(&parent.path().join("empty"), &tensors(1)).unwrap();
    assert_eq!(fs::read(parent.path().join("file")).unwrap(), b"mine");
}

#[test]
fn a_missing_parent_is_an_io_error_with_advice() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("none/trace");
    let error = TraceWriter::create(&folder, manifest(), false).unwrap_err();
    assert_eq!(error.kind(), Kind::BadInput);
    let text = error.to_string();
    assert!(text.contains("none") && text.contains("create its parent folder"), "{text}");
}

#[test]
fn an_io_error_ends_with_what_to_do_about_it() {
    let message = |kind: io::ErrorKind| {
        TraceError::Io { action: "write", path: "/x/trace".into(), source: kind.into() }.to_string()
    };
    let full = message(io::ErrorKind::StorageFull);
    assert!(full.starts_with("cannot write /x/trace: ") && full.contains("; free space"), "{full}");
    for kind in [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied] {
        assert!(message(kind).contains("; choose a folder that you can access"), "{kind}");
    }
    assert!(message(io::ErrorKind::Other).ends_with("check the disk, then try again"));
}

#[test]
fn a_writer_misused_says_so_and_can_only_be_dropped() {
    type Call = fn(&mut TraceWriter) -> Result<(), TraceError>;
    let calls: [(&str, Call); 6] = [
        ("after 0 tokens and an unended step", |w| w.begin_step(&[1], 0)),
        ("that step of the model does not have it", |w| w.put(site(1, None), &embedding())),
        ("that step of the model does not have it", |w| w.put(site(0, Some(2)), &embedding())),
        ("put twice", |w| {
            w.put(site(0, None), &embedding())?;
            w.put(site(0, None), &embedding())
        }),
        ("shape [1] instead of [5, 9]", |w| w.put(site(0, None), &Tensor::new([1], vec![0.0]))),
        ("had not begun", |w| {
            w.end_step()?;
            w.end_step()
        }),
    ];
    for (message, call) in calls {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("trace");
        let mut writer = TraceWriter::create(&folder, manifest(), false).unwrap();
        writer.begin_step(STEPS[0], 0).unwrap();
        let error = call(&mut writer).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(error.kind(), Kind::Internal);
        assert!(writer.end_step().unwrap_err().to_string().contains("used after it failed"));
        assert!(writer.finish().is_err());
        assert!(listing(parent.path()).is_empty());
    }
}

fn site(step: u32, layer: Option<u32>) -> Site {
    match layer {
        Some(layer) => Site::in_layer(step, layer, Stage::AttnNorm),
        None => Site::global(step, Stage::Embd),
    }
}

fn embedding() -> Tensor {
    Tensor::new([5, 9], vec![0.5; 45])
}

#[test]
fn a_trace_without_steps_or_with_an_open_one_does_not_finish() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    let writer = TraceWriter::create(&folder, manifest(), false).unwrap();
    assert!(writer.finish().unwrap_err().to_string().contains("after 0 ended steps"));
    let mut writer = TraceWriter::create(&folder, manifest(), false).unwrap();
    writer.begin_step(STEPS[0], 0).unwrap();
    assert!(matches!(writer.finish(), Err(TraceError::Misuse(_))));
    assert!(!folder.exists());
}

#[test]
fn a_run_too_large_to_read_back_is_not_begun() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    let mut large = manifest();
    large.model.sites[1].layers = vec![1 << 30];
    let error = TraceWriter::create(&folder, large, false).unwrap_err();
    assert!(matches!(error, TraceError::OverLimit { limit: Limit::Layers, .. }), "{error}");
}

#[test]
fn an_error_inside_the_sink_is_returned_by_the_next_call() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    let mut writer = TraceWriter::create(&folder, manifest(), false).unwrap();
    assert!(!writer.wants(site(0, None)), "no step is open");
    writer.begin_step(STEPS[0], 0).unwrap();
    assert!(writer.wants(site(0, None)) && writer.wants(site(0, Some(1))));
    assert!(!writer.wants(site(1, None)) && !writer.wants(site(0, Some(2))));
    Sink::put(&mut writer, site(0, None), embedding()).unwrap();
    assert_eq!(Sink::put(&mut writer, site(0, None), embedding()), Err(Stopped));
    assert!(!writer.wants(site(0, Some(1))), "a failed writer wants nothing");
    assert!(writer.end_step().unwrap_err().to_string().contains("put twice"));
}

#[test]
fn a_trace_feeds_a_sink_what_it_wants_until_it_stops() {
    let recorded = Recorded::new();
    let reader = TraceReader::open(&recorded.folder).unwrap();
    let mut all = Keep { kept: Vec::new(), room: usize::MAX };
    feed(&reader, &mut all).unwrap();
    let mut expected = tensors(1);
    expected.retain(|(site, _)| site.stage != Stage::Logits);
    assert_eq!(all.kept, expected);
    let mut few = Keep { kept: Vec::new(), room: 4 };
    feed(&reader, &mut few).unwrap();
    assert_eq!(few.kept, expected[..4]);
    feed(&reader, &mut NoSink).unwrap();
    assert_eq!(shape(Site::in_layer(2, 1, Stage::Scores)), [1, 6, 7]);
}
