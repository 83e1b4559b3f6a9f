//! `firstdiff doctor`'s probes on the machine of the test, which built firstdiff.

use firstdiff::doctor::{Need, Probe, Status, healthy, probes, render};

use crate::cli::firstdiff;

fn named<'a>(probes: &'a [Probe], name: &str) -> &'a Probe {
    probes.iter().find(|probe| probe.name == name).unwrap()
}

#[test]
fn every_probe_reports_in_a_fixed_order_with_a_detail() {
    let probes = probes();
    let names: Vec<_> = probes.iter().map(|probe| probe.name).collect();
    let expected = [
        "C++ compiler",
        "objcopy",
        "llama.cpp",
        "cache folder",
        "cores and memory",
        "cmake",
        "libclang",
        "GPU",
        "NVRTC",
        "cuBLAS",
        "cuda_fp16.h",
    ];
    assert_eq!(names, expected);
    for Probe { name, needed_for, status, detail, .. } in &probes {
        assert!(!detail.is_empty() && !detail.contains('\n'), "{name}: {detail}");
        // Of a GPU anything may be said: tests run on machines with none and with a broken one.
        assert!(*needed_for == Need::Gpu || *status == Status::Ok, "{name}: {detail}");
    }
    assert_eq!(render(&probes).lines().count(), 1 + probes.len());
}

#[test]
fn a_machine_that_built_firstdiff_can_run_the_host_device() {
    let probes = probes();
    assert!(healthy(&probes), "{}", render(&probes));
    for probe in probes.iter().filter(|probe| probe.needed_for == Need::Build) {
        assert_eq!(probe.status, Status::Ok, "{}: {}", probe.name, probe.detail);
    }
    let llama = &named(&probes, "llama.cpp").detail;
    assert!(llama.contains("ggml 0.") && llama.contains("CPU: "), "{llama}");
    let compiler = &named(&probes, "C++ compiler").detail;
    assert!(compiler.contains('/') && !compiler.contains("unknown"), "{compiler}");
}

#[test]
fn a_compiler_behind_a_launcher_is_the_same_for_doctor_and_run() {
    let [doctor, run] = [&["doctor"][..], &["run", "-p", "Once", "-n", "0"]].map(|arguments| {
        let output = firstdiff(arguments).env("CXX", "env c++").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    });
    assert!(doctor.contains("ok   C++ compiler       env c++ "), "{doctor}");
    assert!(run.starts_with("equal within the floor: "), "{run}");
}

#[test]
fn probes_are_read_as_json_by_name_and_status() {
    let probes = probes();
    let json = serde_json::to_value(&probes).unwrap();
    let rows = json.as_array().unwrap();
    assert_eq!(rows.len(), probes.len());
    assert_eq!(rows[0]["name"], "C++ compiler");
    assert_eq!(rows[0]["status"], "ok");
    assert_eq!(rows[0]["needed_for"], "kernels");
    assert!(rows[0]["next_step"].is_null());
}
