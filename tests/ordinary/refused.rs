//! What no CPU runs, and what is not there: one line with file, line and the next step.

use firstdiff::engine::{
    device::{
        Arg, Device, KernelSource, Launch,
        host::{HostDevice, HostOptions},
    },
    kernels::KernelSet,
};

use super::support::checked;

fn source(text: &str) -> KernelSource {
    KernelSource { file: "t.cu".to_string(), text: text.to_string(), defines: vec![] }
}

/// The error of `k(float*)` on one warp.
fn error(text: &str, options: HostOptions) -> String {
    let mut device = HostDevice::new(options).unwrap();
    let loaded = device.load(&source(text));
    let out = device.alloc(4 * 32, "out").unwrap();
    let launch = Launch { grid: [1; 3], block: [32, 1, 1], shared_bytes: 0 };
    let done = loaded.and_then(|_| device.launch("k", launch, &[Arg::Buffer(&out, 0)]));
    done.unwrap_err().to_string()
}

#[test]
fn what_no_cpu_runs_is_told_with_its_line_where_it_is_run() {
    for (line, says) in [
        (
            "asm volatile(\"cp.async.ca.shared.global [%0], [%1], 4;\" :: \"r\"(1), \"l\"(x));",
            "inline PTX (cp.async.ca.shared.global), which no CPU runs; use --device cuda, or",
        ),
        (
            "x[0] = tex2D<float>(cudaTextureObject_t(1), 0.5f, 0.5f);",
            "tex2D, a texture fetch, which no CPU does; use --device cuda, or",
        ),
        (
            "cooperative_groups::this_grid().sync();",
            "a barrier over the grid, whose blocks run one after another on the CPU; use --device cuda, or",
        ),
        ("k<<<1, 32>>>(x);", "a launch of k by code that runs on the CPU"),
    ] {
        let text = format!(
            "#include <cuda_runtime.h>\n#include <cooperative_groups.h>\n__global__ void k(float* x) {{\n  {line}\n}}\n"
        );
        for options in [HostOptions::default(), checked()] {
            let error = error(&text, options);
            let place = "t.cu: kernel k, block (0,0,0): thread (0,0,0) at t.cu:4: ";
            assert!(error.starts_with(&format!("{place}{says}")), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}

#[test]
fn what_is_not_run_does_no_harm() {
    let text = "__device__ int lane() { int l; asm(\"mov.u32 %0, %%laneid;\" : \"=r\"(l)); return l; }\n\
                __global__ void k(float* x) {\n#ifdef CUDA_HOST\n  x[threadIdx.x] = 1;\n#else\n  x[lane()] = 1;\n#endif\n}\n";
    let mut device = HostDevice::new(HostOptions::default()).unwrap();
    assert_eq!(device.load(&source(text)).unwrap(), ["k"]);
    let out = device.alloc(4 * 32, "out").unwrap();
    let launch = Launch { grid: [1; 3], block: [32, 1, 1], shared_bytes: 0 };
    device.launch("k", launch, &[Arg::Buffer(&out, 0)]).unwrap();
}

#[test]
fn a_header_that_is_not_there_is_one_line() {
    let text = "// a kernel\n#include <cuda_runtime.h>\n#include <cub/cub.cuh>\n__global__ void k(float* x) {}\n";
    let wanted = "t.cu:3: the host device has no <cub/cub.cuh>; put what the kernel needs of it into the file, or \
                  use --device cuda (docs/kernels.md lists the headers)";
    assert_eq!(error(text, HostOptions::default()), wanted);
}

#[test]
fn a_mistake_is_told_with_the_line_of_the_file_after_all_its_includes() {
    let folder = tempfile::tempdir().unwrap();
    let put = |file: &str, text: &str| std::fs::write(folder.path().join(file), text).unwrap();
    put(
        "mine.cuh",
        "#include \"cuda_runtime.h\"\n#include <vector>\n__device__ int two() { return 2; }\n",
    );
    put(
        "t.cu",
        "#include <cstdio>\n#include \"mine.cuh\"  // ours\n#  include <cuda_fp16.h>\n\
         __global__ void k(float* x) {\n  k<<<two(),\n    1>>>(x);\n  x[0] = undeclared;\n}\n",
    );
    let source = KernelSet::beside(folder.path()).source("t.cu", vec![]).unwrap();
    let mut device = HostDevice::new(HostOptions::default()).unwrap();
    let error = device.load(&source).unwrap_err().to_string();
    assert!(error.starts_with("t.cu does not compile; fix it and run again\n"), "{error}");
    assert!(error.contains("t.cu:7:10: error: "), "{error}");
}

#[test]
fn a_file_that_throws_compiles_and_a_missing_include_in_quotes_is_refused() {
    let text = "#include <stdexcept>\nvoid check(int error) {\n  try { if (error) throw std::runtime_error(\"no\"); }\n\
                \x20 catch (const std::exception& e) { printf(\"%s\", e.what()); throw; }\n}\n\
                __global__ void k(float* x) { x[0] = 1; }\n";
    let mut device = HostDevice::new(HostOptions::default()).unwrap();
    assert_eq!(device.load(&source(text)).unwrap(), ["k"]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("t.cu"), "#include \"cuda_bf16.h\"\n#include \"ours.h\"\n")
        .unwrap();
    let error = KernelSet::beside(folder.path()).source("t.cu", vec![]).unwrap_err().to_string();
    assert_eq!(error, "t.cu:2: cannot find the include \"ours.h\"; put it beside t.cu");
}
