//! Where the time goes: spans of what runs, in the form that trace viewers of browsers read.
//!
//! Nothing is collected until [`collect`]; until then a span costs one load of a flag.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// At most so many spans are kept; what comes later is counted.
const MOST: usize = 1 << 20;

static IS_ON: AtomicBool = AtomicBool::new(false);
static START: OnceLock<Instant> = OnceLock::new();
static COLLECTED: Mutex<Collected> =
    Mutex::new(Collected { spans: Vec::new(), lanes: BTreeMap::new(), left_out: 0 });
static LANES: AtomicU32 = AtomicU32::new(1);

thread_local! {
    /// The number of this thread.
    static LANE: u32 = LANES.fetch_add(1, Ordering::Relaxed);
    /// What this thread does, where that is said.
    static NAME: RefCell<Option<&'static str>> = const { RefCell::new(None) };
}

struct Collected {
    spans: Vec<Ended>,
    /// What each thread does.
    lanes: BTreeMap<u32, String>,
    left_out: usize,
}

struct Ended {
    kind: &'static str,
    name: String,
    lane: u32,
    /// Since the collection began.
    start: Duration,
    took: Duration,
}

/// Something that runs until this is dropped.
#[must_use = "a span ends when it is dropped"]
pub struct Span(Option<Running>);

struct Running {
    kind: &'static str,
    name: String,
    start: Instant,
}

/// Begins to collect, for the whole process.
pub fn collect() {
    START.get_or_init(Instant::now);
    IS_ON.store(true, Ordering::Relaxed);
}

/// Whether spans are collected.
pub fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// Says what this thread does from now on.
pub fn lane(name: &'static str) {
    if is_on() {
        NAME.with_borrow_mut(|own| *own = Some(name));
    }
}

/// Begins a span of a kind. Its name is only made where it is collected.
pub fn span(kind: &'static str, name: impl FnOnce() -> String) -> Span {
    Span(is_on().then(|| Running { kind, name: name(), start: Instant::now() }))
}

/// A span that began at an instant and ends now.
pub fn since(start: Instant, kind: &'static str, name: impl FnOnce() -> String) {
    if is_on() {
        end(Running { kind, name: name(), start });
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            end(running);
        }
    }
}

fn end(running: Running) {
    let Running { kind, name, start } = running;
    let took = start.elapsed();
    let begun = START.get().map_or(Duration::ZERO, |begun| start.saturating_duration_since(*begun));
    let lane = LANE.with(|lane| *lane);
    // A thread that panicked while it held them leaves them whole.
    let mut all = COLLECTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    all.lanes.entry(lane).or_insert_with(|| {
        let own = NAME.with_borrow(|own| own.map(str::to_string));
        let own = own.or_else(|| std::thread::current().name().map(str::to_string));
        own.unwrap_or_else(|| "worker".to_string())
    });
    if all.spans.len() < MOST {
        all.spans.push(Ended { kind, name, lane, start: begun, took });
    } else {
        all.left_out += 1;
    }
}

/// All spans so far, as the JSON of Chrome's trace events: complete events, and the names of the threads.
pub fn trace_events() -> Value {
    let all = COLLECTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let micros = |time: Duration| time.as_nanos() as f64 / 1000.0;
    let process = [json!({
        "name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": "firstdiff"},
    })];
    let lanes = all.lanes.iter().map(|(lane, name)| {
        json!({"name": "thread_name", "ph": "M", "pid": 1, "tid": lane, "args": {"name": name}})
    });
    let spans = all.spans.iter().map(|span| {
        json!({
            "name": span.name, "cat": span.kind, "ph": "X", "pid": 1, "tid": span.lane,
            "ts": micros(span.start), "dur": micros(span.took),
        })
    });
    let events: Vec<Value> = process.into_iter().chain(lanes).chain(spans).collect();
    json!({
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"firstdiff": env!("CARGO_PKG_VERSION"), "spans left out": all.left_out},
    })
}
