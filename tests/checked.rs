use crate::cli::{SHORT, firstdiff, outcome, path, refused};
use firstdiff::{
    ci::kernels,
    engine::{
        device::{
            Arg, Buffer, Device, KernelSource, Launch,
            host::{HostDevice, HostOptions, ThreadOrder},
        },
        kernels::KernelSet,
    },
};

const ORDERS: [ThreadOrder; 5] = [
    ThreadOrder::Forward,
    ThreadOrder::Reverse,
    ThreadOrder::Random(1),
    ThreadOrder::Random(2),
    ThreadOrder::Random(3),
];

/// A device with kernel `k`, whose first line is line 1 of t.cu.
fn device(order: ThreadOrder, kernel: &str) -> HostDevice {
    let options = HostOptions { order, checked: true, ..HostOptions::default() };
    let mut device = HostDevice::new(options).unwrap();
    let text = format!("extern \"C\" __global__ void k({kernel}");
    let source = KernelSource { file: "t.cu".to_string(), text, defines: vec![] };
    device.load(&source).unwrap();
    device
}

fn upload(device: &HostDevice, name: &str, values: &[f32]) -> Buffer {
    let buffer = device.alloc(4 * values.len(), name).unwrap();
    device.upload(&buffer, 0, bytemuck::cast_slice(values)).unwrap();
    buffer
}

const BLOCK: usize = 64;

/// Runs `k(float* out, const float* x)`, out and x of 128 floats, on 2 blocks of 64 threads with 256
/// bytes of dynamic shared memory. The error, without its first words.
fn error_in(order: ThreadOrder, kernel: &str) -> Option<String> {
    let device = device(order, &format!("float* out, const float* x{kernel}"));
    let values: Vec<f32> = (0..2 * BLOCK).map(|i| i as f32).collect();
    let (out, x) = (upload(&device, "out", &values), upload(&device, "x", &values));
    let launch = Launch { grid: [2, 1, 1], block: [BLOCK as u32, 1, 1], shared_bytes: 256 };
    let args = [Arg::Buffer(&out, 0), Arg::Buffer(&x, 0)];
    let text = device.launch("k", launch, &args).err()?.to_string();
    Some(text.replace("t.cu: kernel k, ", "").replace("; fix the kernel", ""))
}

fn error(kernel: &str) -> String {
    error_in(ThreadOrder::Forward, kernel).unwrap_or_else(|| panic!("no report:{kernel}"))
}

fn assert_clean(kernel: &str) {
    for order in ORDERS {
        assert_eq!(error_in(order, kernel), None, "{order:?}:{kernel}");
    }
}

#[test]
fn a_race_between_warps_names_both_lines_and_threads() {
    let body = "){ __shared__ float a[64]; int t = threadIdx.x;\n\
                a[t] = x[t];\nBARRIER\n\
                out[blockIdx.x * 64 + t] = a[63 - t]; }";
    let wanted = "block (0,0,0): race: thread (32,0,0) writes at t.cu:2 bytes 128 to 131 of shared \
                  `a`, which thread (31,0,0) reads at t.cu:4; no barrier is between";
    assert_eq!(error(&body.replace("BARRIER", "")), wanted);
    for order in ORDERS {
        let text = error_in(order, &body.replace("BARRIER", "")).unwrap();
        assert!(text.contains("race: ") && text.contains("t.cu:2"), "{order:?}: {text}");
        assert!(text.contains("t.cu:4"), "{order:?}: {text}");
    }
    assert_clean(&body.replace("BARRIER", "__syncthreads();"));
}

#[test]
fn a_race_between_blocks_names_both_blocks() {
    let wanted = "block (1,0,0): race: thread (5,0,0) reads at t.cu:2 bytes 20 to 23 of `out`, which \
                  block (0,0,0) thread (5,0,0) writes at t.cu:2; nothing orders two blocks";
    assert_eq!(error("){\nif (threadIdx.x == 5) out[5] += x[blockIdx.x]; }"), wanted);
    // All blocks read it before the last one writes it.
    let text =
        error("){ if (blockIdx.x == 1)\nout[0] = 1.0f;\nelse out[64 + threadIdx.x] = out[0]; }");
    assert!(text.contains("writes at t.cu:2 bytes 0 to 3 of `out`, which block (0,0,0)"), "{text}");
    assert!(text.contains("reads at t.cu:3"), "{text}");
}

#[test]
fn lanes_race_unless_syncwarp_orders_them() {
    let body = "){ __shared__ float a[64]; int t = threadIdx.x;\na[t] = x[t];\nORDER\n\
                out[blockIdx.x * 64 + t] = a[t ^ 1]; }";
    // A shuffle exchanges registers, and orders no memory.
    for order in ["", "__shfl_xor_sync(0xffffffffu, 1, 1);"] {
        let text = error(&body.replace("ORDER", order));
        assert!(
            text.contains("race: ") && text.contains("thread (1,0,0) writes at t.cu:2"),
            "{text}"
        );
        assert!(text.contains("thread (0,0,0) reads at t.cu:4"), "{text}");
    }
    assert_clean(&body.replace("ORDER", "__syncwarp();"));
    // Only the lanes of the mask are ordered.
    let halves = "unsigned half = t & 16 ? 0xffff0000u : 0x0000ffffu; __syncwarp(half);";
    assert_clean(&body.replace("ORDER", halves));
    assert!(error(&body.replace("ORDER", halves).replace("t ^ 1", "t ^ 16")).contains("race: "));
}

#[test]
fn an_array_used_again_without_a_barrier_is_a_race() {
    let body = "){ __shared__ float a[64]; int t = threadIdx.x;\na[t] = x[t]; __syncthreads();\n\
                float y = a[63 - t];\nBARRIER\na[t] = y; __syncthreads();\n\
                out[blockIdx.x * 64 + t] = a[63 - t]; }";
    let text = error(&body.replace("BARRIER", ""));
    assert!(
        text.contains("race: thread (32,0,0) reads at t.cu:3") || text.contains("t.cu:5"),
        "{text}"
    );
    assert!(text.contains("t.cu:3") && text.contains("t.cu:5"), "{text}");
    assert_clean(&body.replace("BARRIER", "__syncthreads();"));
}

#[test]
fn atomics_race_with_plain_accesses_only() {
    let body = "){ __shared__ float s; int t = threadIdx.x;\nif (t == 0) s = 0.0f; __syncthreads();\n\
                ADD; __syncthreads();\nif (t == 0) atomicAdd(out, s); }";
    assert_clean(&body.replace("ADD", "atomicAdd(&s, x[t])"));
    let text = error(&body.replace("ADD", "s += x[t]"));
    assert!(text.contains("thread (1,0,0) reads at t.cu:3 bytes 0 to 3 of shared `s`"), "{text}");
    assert!(text.contains("which thread (0,0,0) writes at t.cu:3"), "{text}");
    for order in ORDERS {
        let kernel = body.replace("ADD; __syncthreads();", "atomicAdd(&s, x[t]);");
        let text = error_in(order, &kernel).unwrap();
        assert!(text.contains("race: ") && text.contains("updates atomically at t.cu:3"), "{text}");
        assert!(text.contains("at t.cu:4"), "{text}");
    }
}

/// The last of two blocks that have left their numbers adds up those of both. out[0] counts the blocks,
/// and is 0 again after it.
const LAST_BLOCK: &str = "){ __shared__ bool last; int t = threadIdx.x;\n\
    if (t < 32) out[64 + blockIdx.x * 32 + t] = x[t];\n\
    __syncthreads();\n\
    if (t == 0) { __threadfence(); last = atomicInc((unsigned*)out, 1) == 1; __threadfence(); }\n\
    __syncthreads();\n\
    if (last && t < 32) out[1 + t] = out[64 + t] + out[96 + t]; }";

#[test]
fn fences_around_an_atomic_order_what_two_blocks_do() {
    assert_clean(LAST_BLOCK);
    // A second count, of those that have seen the first: what was seen is handed on.
    let counted_again = LAST_BLOCK
        .replace("== 1; __threadfence();", "== 1; __threadfence(); atomicAdd(out + 40, 1.0f);");
    assert_clean(&counted_again);
    let barrier = "__syncthreads();\nif (t == 0) {";
    for (what, stands) in [
        (barrier, "if (t == 0) {"),
        ("{ __threadfence();", "{"),
        ("== 1; __threadfence();", "== 1;"),
        ("(unsigned*)out, 1) == 1", "(unsigned*)out + blockIdx.x, 1) < 2"),
    ] {
        assert!(LAST_BLOCK.contains(what), "{what}");
        let kernel = LAST_BLOCK.replace(what, stands);
        for order in ORDERS {
            let text = error_in(order, &kernel);
            let text = text.unwrap_or_else(|| panic!("{order:?}: no report without {what}"));
            assert!(text.contains("race: ") && text.contains("nothing orders two"), "{text}");
        }
    }
}

#[test]
fn what_a_thread_does_after_its_fence_is_not_published_by_it() {
    let late = LAST_BLOCK.replace(
        "{ __threadfence(); last",
        "{ __threadfence(); out[64 + blockIdx.x * 32] = 1.0f; last",
    );
    for order in ORDERS {
        let text = error_in(order, &late).unwrap_or_else(|| panic!("{order:?}: no report"));
        assert!(text.contains("nothing orders two blocks"), "{text}");
    }
}

#[test]
fn an_index_past_a_buffer_is_out_of_bounds() {
    let wanted = "block (1,0,0): out of bounds: thread (63,0,0) writes at t.cu:2 bytes 512 to 515 of \
                  `out`, which has 512";
    assert_eq!(error("){ int i = blockIdx.x * 64 + threadIdx.x;\nout[i + 1] = x[i]; }"), wanted);
    let text = error("){ int i = blockIdx.x * 64 + threadIdx.x;\nout[i] = x[i - 1]; }");
    let wanted = "block (0,0,0): out of bounds: thread (0,0,0) reads at t.cu:2 bytes -4 to -1 of `x`, \
                  which has 512";
    assert_eq!(text, wanted);
    let text = error("){ const float* none = x - (long long)x / 4;\nout[0] = *none; }");
    assert!(
        text.contains("out of bounds: thread (0,0,0)") && text.contains("null pointer"),
        "{text}"
    );
    assert!(text.contains("t.cu:2"), "{text}");
}

#[test]
fn an_index_past_a_shared_array_is_out_of_bounds() {
    // The compiler knows the array's length.
    let wanted =
        "block (0,0,0): out of bounds: thread (63,0,0) at t.cu:2: index 64 of 'float [64]'";
    let body = "){ __shared__ float a[64], b[64]; int t = threadIdx.x; b[t] = 0.0f;\nSTORE;\n\
                __syncthreads(); out[blockIdx.x * 64 + t] = b[t]; }";
    assert_eq!(error(&body.replace("STORE", "a[t + 1] = x[t]")), wanted);
    // A pointer does not tell it, and another array lies behind.
    let text = error(&body.replace("STORE", "float* volatile p = a; p[t + 1] = x[t]"));
    let wanted = "block (0,0,0): out of bounds: thread (63,0,0) writes at t.cu:2 bytes 256 to 259 of \
                  shared `a`, which has 256";
    assert_eq!(text, wanted);
    let wanted = "block (0,0,0): out of bounds: thread (63,0,0) writes at t.cu:2 bytes 256 to 259 of \
                  shared `dynamic memory`, which has 256";
    let text = error("){ extern __shared__ float d[];\nd[threadIdx.x + 1] = x[0]; }");
    assert_eq!(text, wanted);
}

#[test]
fn shared_memory_read_before_it_is_written_is_uninitialised() {
    let wanted = "block (0,0,0): uninitialised: thread (63,0,0) reads at t.cu:3 bytes 0 to 3 of shared \
                  `a`, which no thread of the block has written";
    let body = "){ __shared__ float a[64]; int t = threadIdx.x;\nif (t > FIRST) a[t] = x[t];\n\
                __syncthreads(); out[blockIdx.x * 64 + t] = a[63 - t]; }";
    assert_eq!(error(&body.replace("FIRST", "0")), wanted);
    assert_clean(&body.replace("FIRST", "-1"));
    // What one block wrote is not there for the next.
    let body = "){ extern __shared__ float d[]; int t = threadIdx.x;\n\
                if (blockIdx.x == 0) d[t] = x[t];\n__syncthreads(); out[blockIdx.x * 64 + t] = d[t]; }";
    let wanted = "block (1,0,0): uninitialised: thread (0,0,0) reads at t.cu:3 bytes 0 to 3 of shared \
                  `dynamic memory`, which no thread of the block has written";
    assert_eq!(error(body), wanted);
}

#[test]
fn global_memory_is_initialised_by_uploads_and_kernels() {
    let kernel = "float* out, const float* x, int n){\n\
                  int i = threadIdx.x; if (i < n)\nout[i] = x[i]; }";
    let device = device(ThreadOrder::Forward, kernel);
    let x = device.alloc(16, "x").unwrap();
    device.upload(&x, 0, bytemuck::cast_slice(&[1f32, 2.0, 3.0])).unwrap();
    let (y, z) = (device.alloc(16, "y").unwrap(), device.alloc(16, "z").unwrap());
    let run = |out: &Buffer, x: &Buffer, n: i32| {
        let launch = Launch { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0 };
        let args = [Arg::Buffer(out, 0), Arg::Buffer(x, 0), Arg::I32(n)];
        device.launch("k", launch, &args).err().map(|error| error.to_string())
    };
    assert_eq!(run(&y, &x, 3), None);
    assert_eq!(run(&z, &y, 3), None);
    let text = run(&z, &y, 4).unwrap();
    let wanted = "uninitialised: thread (3,0,0) reads at t.cu:3 bytes 12 to 15 of `y`, which nothing \
                  has written";
    assert!(text.contains(wanted), "{text}");
}

#[test]
fn an_access_of_an_earlier_launch_races_with_nothing() {
    let kernel = "float* out, int i){ if (threadIdx.x == i) out[0] = 1.0f; }";
    let mut device = device(ThreadOrder::Forward, kernel);
    let out = upload(&device, "out", &[0.0]);
    let launch = Launch { grid: [1, 1, 1], block: [64, 1, 1], shared_bytes: 0 };
    let run = |device: &HostDevice, i| {
        device.launch("k", launch, &[Arg::Buffer(&out, 0), Arg::I32(i)]).unwrap();
    };
    run(&device, 40);
    // Another library, whose first launch this is.
    let (file, text) = ("u.cu".to_string(), "// nothing\n".to_string());
    device.load(&KernelSource { file, text, defines: vec![] }).unwrap();
    run(&device, 0);
}

#[test]
fn a_const_a_foreign_and_a_freed_buffer_are_not_written() {
    let text = error("){\n((float*)x)[threadIdx.x] = 1.0f; }");
    let wanted = "block (0,0,0): read-only: thread (0,0,0) writes at t.cu:2 bytes 0 to 3 of `x`, which \
                  is given as const";
    assert_eq!(text, wanted);

    let kernel = "long long* address, float* buffer){ *address = (long long)buffer; }\n\
                  extern \"C\" __global__ void poke(float* out, int low, int high) {\n\
                  *(float*)((long long)high << 32 | (unsigned)low) = 1.0f; }";
    let device = device(ThreadOrder::Forward, kernel);
    let (out, other) = (upload(&device, "out", &[0.0; 2]), upload(&device, "other", &[0.0]));
    let launch = Launch { grid: [1, 1, 1], block: [1, 1, 1], shared_bytes: 0 };
    device.launch("k", launch, &[Arg::Buffer(&out, 0), Arg::Buffer(&other, 0)]).unwrap();
    let mut address = [0i32; 2];
    device.download(&out, 0, bytemuck::cast_slice_mut(&mut address)).unwrap();
    let poke = || {
        let args = [Arg::Buffer(&out, 0), Arg::I32(address[0]), Arg::I32(address[1])];
        device.launch("poke", launch, &args).unwrap_err().to_string()
    };
    let text = poke();
    let wanted = "out of bounds: thread (0,0,0) writes at t.cu:3 bytes 0 to 3 of `other`: not an \
                  argument of this launch";
    assert!(text.contains(wanted), "{text}");
    drop(other);
    let text = poke();
    assert!(
        text.contains("out of bounds: thread (0,0,0) writes at t.cu:3 4 bytes at 0x"),
        "{text}"
    );
    assert!(text.contains("no buffer is there, or no longer"), "{text}");
}

#[test]
fn undefined_behaviour_names_its_line() {
    for (store, says) in [
        ("x[0] * (1 << (threadIdx.x + 8))", "thread (24,0,0) at t.cu:2: a shift by"),
        ("64 / (int)(threadIdx.x - 7)", "thread (7,0,0) at t.cu:2: an integer division by zero"),
        ("0x7ffffff0 + (int)threadIdx.x", "thread (16,0,0) at t.cu:2: a signed overflow of +"),
        (
            "((const float2*)(x + threadIdx.x))->y",
            "thread (1,0,0) at t.cu:2: a 'const struct float2'",
        ),
    ] {
        let text = error(&format!("){{\nout[blockIdx.x * 64 + threadIdx.x] = {store}; }}"));
        assert!(text.contains("undefined behaviour: ") && text.contains(says), "{text}");
    }
}

#[test]
fn a_local_of_another_thread_is_out_of_bounds() {
    let text = error(
        "){ __shared__ float* p; float mine = x[threadIdx.x];\n\
         if (threadIdx.x == 0) p = &mine; __syncthreads();\n\
         if (threadIdx.x == 40)\n*p = 1.0f;\n__syncthreads(); out[blockIdx.x * 64 + threadIdx.x] = mine; }",
    );
    assert!(text.contains("out of bounds: thread (40,0,0) writes at t.cu:4"), "{text}");
    assert!(text.contains("a local variable of another thread"), "{text}");
}

#[test]
fn a_report_in_a_shared_function_says_where_it_was_called() {
    let kernels = KernelSet::embedded();
    let mut source = kernels.source("rms_norm.cu", vec![]).unwrap();
    let barrier = "    __syncthreads();\n    float sum = 0.0f;";
    assert!(source.text.contains(barrier));
    source.text = source.text.replace(barrier, "    float sum = 0.0f;\n");
    let options = HostOptions { checked: true, ..HostOptions::default() };
    let mut device = HostDevice::new(options).unwrap();
    device.load(&source).unwrap();
    let x = upload(&device, "x", &[1.0; 64]);
    let args = [0, 0, 0].map(|offset| Arg::Buffer(&x, offset));
    let args = [args[0], args[1], args[2], Arg::I32(64), Arg::F32(1e-6)];
    let launch = Launch { grid: [1, 1, 1], block: [64, 1, 1], shared_bytes: 0 };
    let text = device.launch("rms_norm_f32", launch, &args).unwrap_err().to_string();
    assert!(text.contains("race: ") && text.contains("of shared `partial`"), "{text}");
    assert!(text.contains("common.cuh:34 (from rms_norm.cu:26)"), "{text}");
}

/// A folder with one kernel file, changed.
pub fn changed(file: &str, from: &str, to: &str) -> tempfile::TempDir {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(file);
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{file}: {from}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(file), text.replace(from, to)).unwrap();
    folder
}

#[test]
fn all_kernels_are_clean_in_five_thread_orders() {
    let (exit, out, err) = outcome(&["kernels", "check"]);
    assert_eq!((exit, err.as_str()), (0, ""), "{out}");
    let first = out.lines().next().unwrap();
    let subjects = kernels::subjects();
    let launches: usize = subjects.iter().map(|subject| ORDERS.len() * subject.cases.len()).sum();
    let n = subjects.len();
    let wanted = format!("clean: {n} of {n} kernels, {launches} launches in 5 thread orders");
    assert_eq!(first, wanted);
    let page = std::fs::read_to_string("docs/kernel-checks.md").unwrap();
    assert!(page.contains(&format!("$ firstdiff kernels check\n{wanted}\n")), "{wanted}");
    let rows = |file: &str| out.lines().filter(|line| line.trim().starts_with(file)).count();
    // Eight variants of attention.cu; every file of the engine, and the cuda device's own.
    assert_eq!(rows("attention.cu"), 8);
    for file in KernelSet::files().chain(["cuda/gemv.cu", "cuda/widen.cu"]) {
        assert!(rows(file) >= 1, "{file}");
    }
}

#[test]
fn a_race_in_a_kernel_of_ones_own_is_the_first_line_and_exits_1() {
    let barrier = "    __syncthreads();\n    for (int i = threadIdx.x; i < HEADS * HEAD_DIM";
    let folder = changed(
        "attention_split.cu",
        barrier,
        barrier.trim_start_matches("    __syncthreads();\n"),
    );
    let arguments = ["kernels", "check", "attention_split.cu", "swiglu.cu", "--kernels"];
    let (exit, out, _) = outcome(&[&arguments, &[path(folder.path())][..]].concat());
    assert_eq!(exit, 1, "{out}");
    let first = out.lines().next().unwrap();
    let wanted = "attention_split.cu: kernel attention_split_f32, block (0,0,0): race: thread (";
    assert!(first.starts_with(wanted), "{first}");
    assert!(first.contains("of shared `dynamic memory`"), "{first}");
    let shapes = kernels::subjects().iter().filter(|s| s.file == "attention_split.cu").count();
    let wanted = format!("found in {shapes} of {} kernels", shapes + 1);
    assert!(out.contains(&wanted), "{out}");
    let swiglu = out.lines().find(|line| line.trim().starts_with("swiglu.cu ")).unwrap();
    assert!(swiglu.trim().ends_with("clean"), "{swiglu}");
}

#[test]
fn wrong_numbers_of_a_kernel_that_races_nowhere_are_found() {
    let folder = changed("rope.cu", "a * sine + b * cosine", "a * sine - b * cosine");
    let arguments = ["kernels", "check", "rope.cu", "--shuffle-threads", "0", "--kernels"];
    let (exit, out, _) = outcome(&[&arguments, &[path(folder.path())][..]].concat());
    assert_eq!(exit, 1, "{out}");
    let first = out.lines().next().unwrap();
    assert!(first.starts_with("rope.cu: f32: out[") && first.contains("in f64"), "{first}");
}

/// `make test` sees to it that there is one.
#[test]
fn clang_builds_checked_kernels_too() {
    let check = |folder: Option<&tempfile::TempDir>| {
        let mut command = firstdiff(&["kernels", "check", "rms_norm.cu"]);
        folder.map(|folder| command.args(["--kernels", path(folder.path())]));
        let output = command.env("CXX", "clang++").output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (exit, out) = check(None);
    assert_eq!(exit, Some(0), "{out}");
    // Its assembly is where the shared arrays get their gaps.
    let beyond = changed("rms_norm.cu", "store(out + first + c,", "store(out + c,");
    let (exit, out) = check(Some(&beyond));
    assert_eq!(exit, Some(1), "{out}");
    assert!(out.contains("race") && out.contains("rms_norm.cu:28"), "{out}");
}

#[test]
fn kernels_that_cannot_be_checked_are_refused() {
    refused(
        &["kernels", "check", "softmax.cu"],
        2,
        "no kernel file softmax.cu; choose from embedding.cu",
    );
    refused(&["kernels", "check", "--kernels", "/none"], 2, "cannot read /none");
    let folder = changed("swiglu.cu", "store(out + i,", "store(out + z,");
    let arguments = ["kernels", "check", "swiglu.cu", "--kernels", path(folder.path())];
    let (exit, out, err) = outcome(&arguments);
    assert_eq!((exit, out.as_str()), (5, ""), "{err}");
    assert!(err.starts_with("firstdiff: swiglu.cu does not compile"), "{err}");
}

#[test]
fn the_engine_runs_on_the_checked_device_and_a_race_in_it_ends_the_run() {
    let (exit, out, err) = outcome(&[&["run", "--device", "checked"], &SHORT[..]].concat());
    assert_eq!((exit, err.as_str()), (0, ""), "{out}");
    let folder = changed("rms_norm.cu", "store(out + first + c,", "store(out + c,");
    let run = ["run", "--device", "checked", "--kernels", path(folder.path())];
    let (exit, out, err) = outcome(&[&run, &SHORT[..]].concat());
    assert_eq!((exit, out.as_str()), (5, ""), "{err}");
    let wanted = "rms_norm.cu: kernel rms_norm_f32, block (1,0,0): race: thread (0,0,0) writes at \
                  common.cuh:12 (from rms_norm.cu:28) bytes 0 to 3 of `attn_norm`, which block (0,0,0) \
                  thread (0,0,0) writes at common.cuh:12 (from rms_norm.cu:28)";
    assert!(err.contains(wanted), "{err}");
}

/// The barriers of the decode example, and an index past its dynamic shared memory.
#[test]
fn a_kernel_with_a_contract_is_checked_as_it_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let example = |name: &str| {
        let root = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        root.join("examples/kernels").join(name)
    };
    let check = |from: &str, to: &str| {
        let text = std::fs::read_to_string(example("gqa_decode.cu")).unwrap();
        assert_eq!(text.matches(from).count(), 1, "{from}");
        std::fs::write(folder.path().join("gqa_decode.cu"), text.replace(from, to)).unwrap();
        let contract = folder.path().join("gqa_decode.toml");
        std::fs::copy(example("gqa_decode.toml"), &contract).unwrap();
        let given = format!("attention={}", path(&contract));
        outcome(&["kernels", "check", "--shuffle-threads", "0", "--kernel", &given])
    };
    let (exit, out, err) = check("scores[pos] = score;", "scores[pos] = score;");
    assert_eq!((exit, err.as_str()), (0, ""), "{out}");
    assert!(out.starts_with("clean: 1 of 1 kernels, "), "{out}");
    for (from, to, says) in [
        (
            "*sum_exp = partial[0];\n    __syncthreads();",
            "*sum_exp = partial[0];",
            "race: thread (",
        ),
        ("scores[pos] = score;", "scores[pos + 64] = score;", "out of bounds: thread ("),
        ("score *= scale;", "score *= 1.01f * scale;", "attn_out[0, "),
    ] {
        let (exit, out, _) = check(from, to);
        assert_eq!(exit, 1, "{out}");
        let first = out.lines().next().unwrap();
        assert!(first.contains("gqa_decode.") && first.contains(says), "{first}");
    }
    refused(
        &["kernels", "check", "--kernel", "softmax=x.toml"],
        2,
        "--kernel takes OP=FILE.toml, where OP is one of embedding",
    );
}

#[test]
fn the_compilers_own_sanitizers_find_nothing_in_all_kernels_and_what_is_planted() {
    let example =
        |name: &str| format!("attention={}/examples/kernels/{name}", env!("CARGO_MANIFEST_DIR"));
    let (decode, prefill) = (example("gqa_decode.toml"), example("gqa_prefill.toml"));
    let asan = ["kernels", "check", "--asan", "--shuffle-threads", "0"];
    for given in [&["--kernel", &decode, "--kernel", &prefill][..], &[]] {
        let (exit, out, err) = outcome(&[&asan, given].concat());
        assert_eq!((exit, err.as_str()), (0, ""), "{out}");
        assert!(out.starts_with("clean: "), "{out}");
    }
    for (file, from, to, says) in [
        (
            "rope.cu",
            "positions[blockIdx.x]",
            "positions[blockIdx.x + 1]",
            "AddressSanitizer: heap-buffer-overflow, READ of size 4 at rope.cu:",
        ),
        (
            "common.cuh",
            "block_sum(float x) {\n    __shared__ float partial[32];",
            "block_sum(float x) {\n    __shared__ float partial[2];",
            "UBSan: index 2 out of bounds for type 'float [2]' at common.cuh:",
        ),
        // A pointer past a static shared array.
        (
            "common.cuh",
            "if (threadIdx.x % 32 == 0) partial[warp] = x;\n    __syncthreads();\n    float sum",
            "if (threadIdx.x % 32 == 0) { volatile int far = 33; float* p = partial; p[far] = x; \
             partial[warp] = x; }\n    __syncthreads();\n    float sum",
            "UBSan: store to address 0x",
        ),
        // Past the dynamic shared memory, of which the runtime tells AddressSanitizer.
        (
            "attention.cu",
            "*tile = shared + 2 * head_dim",
            "*tile = shared + 2 * head_dim + 64",
            "AddressSanitizer: use-after-poison, WRITE of size 4 at attention.cu:",
        ),
        ("rope.cu", "a * sine + b * cosine", "a * sine - b * cosine", "rope.cu: f32: out["),
    ] {
        let folder = changed(file, from, to);
        let subject = if file == "common.cuh" { "rms_norm.cu" } else { file };
        let arguments = [&asan[..], &[subject, "--kernels", path(folder.path())]].concat();
        let (exit, out, err) = outcome(&arguments);
        assert_eq!((exit, err.as_str()), (1, ""), "{out}");
        let first = out.lines().next().unwrap();
        assert!(first.starts_with(says), "{first}");
    }
}
