//! The table of probes, and what they found as text.

use std::fmt::Write;

use serde::Serialize;

use super::{cuda, guard, system, tools};
use crate::engine::device::host;

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Ok,
    /// Not there. Only for what the host device needs is that a fault.
    Missing,
    /// There, but not working, or the probe itself did not end.
    Failed,
}

/// Who needs what a probe looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// The reference or the host device: without it nothing runs.
    Run,
    /// Kernels that this program does not carry built: edited ones, others' own, checked ones.
    Kernels,
    /// Building firstdiff; one that is built runs without it.
    Build,
    /// The cuda device.
    Gpu,
    /// Nobody: it is there to be read.
    Information,
}

/// One thing looked for and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    pub name: &'static str,
    pub needed_for: Need,
    pub status: Status,
    pub detail: String,
    /// What to do about it, where there is something to do.
    pub next_step: Option<String>,
}

/// What a probe says, before it has a name.
pub(super) struct Finding {
    pub status: Status,
    pub detail: String,
    pub next_step: Option<String>,
}

impl Finding {
    pub fn ok(detail: impl Into<String>) -> Self {
        Self { status: Status::Ok, detail: detail.into(), next_step: None }
    }

    pub fn missing(detail: impl Into<String>) -> Self {
        Self { status: Status::Missing, detail: detail.into(), next_step: None }
    }

    pub fn failed(detail: impl Into<String>) -> Self {
        Self { status: Status::Failed, detail: detail.into(), next_step: None }
    }

    pub fn next(self, step: impl Into<String>) -> Self {
        Self { next_step: Some(step.into()), ..self }
    }
}

/// A row of the table of probes.
struct Check {
    name: &'static str,
    needed_for: Need,
    find: fn() -> Finding,
}

/// Who needs to compile kernels.
const COMPILING: Need = if host::HAS_PREBUILT { Need::Kernels } else { Need::Run };

const CHECKS: [Check; 11] = [
    Check { name: "C++ compiler", needed_for: COMPILING, find: tools::cxx_compiler },
    Check { name: "objcopy", needed_for: COMPILING, find: tools::objcopy },
    Check { name: "llama.cpp", needed_for: Need::Run, find: system::llama_cpp },
    Check { name: "cache folder", needed_for: Need::Run, find: system::cache_folder },
    Check { name: "cores and memory", needed_for: Need::Information, find: system::machine },
    Check { name: "cmake", needed_for: Need::Build, find: tools::cmake },
    Check { name: "libclang", needed_for: Need::Build, find: tools::libclang },
    Check { name: "GPU", needed_for: Need::Gpu, find: cuda::gpu },
    Check { name: "NVRTC", needed_for: Need::Gpu, find: cuda::nvrtc },
    Check { name: "cuBLAS", needed_for: Need::Gpu, find: cuda::cublas },
    Check { name: "cuda_fp16.h", needed_for: Need::Gpu, find: cuda::half_header },
];

/// Runs every probe and returns all of them, in a fixed order, whatever this machine lacks.
/// Takes at most as long as the slowest probe is allowed to take.
pub fn probes() -> Vec<Probe> {
    let running = CHECKS.map(|check| (guard::start(check.find), check));
    let finish = |(run, Check { name, needed_for, .. }): (guard::Run, Check)| {
        let Finding { status, detail, next_step } = run.finish();
        Probe { name, needed_for, status, detail, next_step }
    };
    running.into_iter().map(finish).collect()
}

/// Whether all that the reference and the host device need is there. A GPU is not among it.
pub fn healthy(probes: &[Probe]) -> bool {
    probes.iter().all(|probe| !is_fault(probe))
}

/// The probes as text: a first line with the answer, then one line each.
pub fn render(probes: &[Probe]) -> String {
    let faults: Vec<_> =
        probes.iter().filter(|probe| is_fault(probe)).map(|probe| probe.name).collect();
    let answer = match faults.as_slice() {
        [] if lacks_compiler(probes) => {
            "the kernels built into this program can run; other kernels cannot be compiled"
                .to_owned()
        }
        [] => "everything the host device needs is installed".to_owned(),
        names => format!("the host device cannot run: see {}", names.join(", ")),
    };
    let width = probes.iter().map(|probe| probe.name.chars().count()).max().unwrap_or(0);
    let mut text = answer + "\n";
    for probe in probes {
        let label = match probe.status {
            Status::Ok => "ok",
            Status::Missing => "--",
            Status::Failed => "FAIL",
        };
        let next_step = probe.next_step.as_ref().map(|step| format!("; {step}"));
        let Probe { name, detail, .. } = probe;
        let next_step = next_step.unwrap_or_default();
        writeln!(text, "{label:<4} {name:<width$}   {detail}{next_step}")
            .expect("writing to a String does not fail");
    }
    text
}

fn lacks_compiler(probes: &[Probe]) -> bool {
    probes.iter().any(|probe| probe.needed_for == Need::Kernels && probe.status != Status::Ok)
}

fn is_fault(probe: &Probe) -> bool {
    probe.needed_for == Need::Run && probe.status != Status::Ok
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(needed_for: Need, status: Status) -> Probe {
        let next_step = Some("install it".to_owned());
        Probe { name: "thing", needed_for, status, detail: "not found".to_owned(), next_step }
    }

    #[test]
    fn only_what_the_host_device_needs_is_a_fault() {
        for status in [Status::Missing, Status::Failed] {
            assert!(!healthy(&[probe(Need::Run, Status::Ok), probe(Need::Run, status)]));
            for needed_for in [Need::Kernels, Need::Build, Need::Gpu, Need::Information] {
                assert!(healthy(&[probe(needed_for, status)]), "{needed_for:?} {status:?}");
            }
        }
    }

    #[test]
    fn the_first_line_names_what_is_at_fault_and_each_probe_has_one_line() {
        let text = render(&[probe(Need::Run, Status::Failed), probe(Need::Gpu, Status::Missing)]);
        let lines: Vec<_> = text.lines().collect();
        let expected = [
            "the host device cannot run: see thing",
            "FAIL thing   not found; install it",
            "--   thing   not found; install it",
        ];
        assert_eq!(lines, expected);
    }
}
