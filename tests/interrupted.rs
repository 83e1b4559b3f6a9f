//! What a person sees of a long run, and what a signal leaves of it.

use std::{
    fs::File,
    io::Read,
    os::fd::{FromRawFd, OwnedFd},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::cli::path;

/// A run whose standard error is a terminal.
struct Seen {
    child: Child,
    terminal: File,
    text: String,
}

impl Seen {
    fn start(arguments: &[&str], folder: &Path) -> Seen {
        let (mut ours, mut theirs) = (-1, -1);
        let none: *mut libc::c_void = std::ptr::null_mut();
        // SAFETY: the descriptors are written by the call, and are nobody else's.
        let [ours, theirs] = unsafe {
            let size = libc::winsize { ws_row: 24, ws_col: 160, ws_xpixel: 0, ws_ypixel: 0 };
            let made = libc::openpty(
                &mut ours,
                &mut theirs,
                none.cast(),
                none.cast(),
                &raw const size as *mut _,
            );
            assert_eq!(made, 0);
            [ours, theirs].map(|fd| OwnedFd::from_raw_fd(fd))
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_firstdiff"));
        command.args(arguments).current_dir(folder).env("TERM", "xterm");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::from(theirs));
        for variable in ["CI", "GITHUB_ACTIONS", "FIRSTDIFF_IN_PROCESS"] {
            command.env_remove(variable);
        }
        Seen { child: command.spawn().unwrap(), terminal: File::from(ours), text: String::new() }
    }

    /// Reads the terminal until it shows a text.
    fn until(&mut self, wanted: &str) {
        let (start, mut bytes) = (Instant::now(), [0; 4096]);
        while !self.text.contains(wanted) {
            // At its end a terminal is an error.
            let n = self.terminal.read(&mut bytes).unwrap_or(0);
            assert!(n > 0 && start.elapsed() < Duration::from_secs(120), "{}", self.text);
            self.text += &String::from_utf8_lossy(&bytes[..n]);
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// The exit code and standard output.
    fn finish(mut self) -> (Option<i32>, String) {
        let mut terminal = self.terminal.try_clone().unwrap();
        let drain =
            std::thread::spawn(move || while terminal.read(&mut [0; 4096]).unwrap_or(0) > 0 {});
        let mut out = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        let code = self.child.wait().unwrap().code();
        drain.join().unwrap();
        (code, out)
    }
}

/// A folder with a kernel that takes so many microseconds to add residuals.
fn slow(micros: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = format!(
        r#"#include <unistd.h>
#include "common.cuh"
template <typename T>
__device__ void residual_add_element(T* out, const T* x, const T* y, int n) {{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i == 0) usleep({micros});
    if (i < n) store(out + i, to_float(x[i]) + to_float(y[i]));
}}
extern "C" __global__ void residual_add_f32(float* out, const float* x, const float* y, int n) {{
    residual_add_element<float>(out, x, y, n);
}}
extern "C" __global__ void residual_add_f16(__half* out, const __half* x, const __half* y, int n) {{
    residual_add_element<__half>(out, x, y, n);
}}
"#
    );
    std::fs::create_dir(folder.path().join("slow")).unwrap();
    std::fs::write(folder.path().join("slow/residual_add.cu"), source).unwrap();
    folder
}

const RUN: [&str; 7] = ["run", "--kernels", "slow", "-p", "Once upon a time", "-n", "20"];

fn json(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

#[test]
fn a_run_that_a_signal_ends_reports_what_was_compared_and_calls_it_partial() {
    let folder = slow(30_000);
    for (signal, code, shown) in [("INT", 130, "Ctrl-C"), ("TERM", 143, "SIGTERM")] {
        let files = ["--json", "report.json", "--html", "report.html"];
        let mut seen = Seen::start(&[&RUN[..], &files].concat(), folder.path());
        seen.until("comparing step 1 layer");
        seen.signal(signal);
        let (exit, out) = seen.finish();
        let first = out.lines().next().unwrap_or_default();
        assert_eq!(exit, Some(code), "{out}");
        let begins = format!("partial, ended by {shown} after ");
        assert!(first.starts_with(&begins), "{first}");
        assert!(first.contains("so far: equal within the floor: "), "{first}");
        let report = json(&folder.path().join("report.json"));
        assert_eq!(report["headline"]["exit_code"], code);
        let partial = &report["partial"];
        assert_eq!(partial["ended_by"], format!("SIG{signal}"));
        assert_eq!(partial["during"], "comparison");
        let sites = report["sites"].as_array().unwrap();
        let asked = report["compared"]["coverage"]["asked"].as_u64().unwrap();
        assert_eq!(partial["not_compared"], asked - sites.len() as u64);
        assert!(sites.len() > 50 && (sites.len() as u64) < asked, "{} of {asked}", sites.len());
        assert_eq!(partial["after"], sites.last().unwrap()["site"]);
        assert!(report["diagnosis"].is_null());
        let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
        assert!(page.trim_end().ends_with("</html>"));
        let files = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name());
        let mut files: Vec<_> = files.collect();
        files.sort();
        assert_eq!(files, ["report.html", "report.json", "slow"]);
    }
}

#[test]
fn a_second_signal_ends_a_run_at_once() {
    let folder = slow(1_000_000_000);
    let mut seen = Seen::start(&RUN, folder.path());
    seen.until("comparing step 0 layer 0");
    // What comes before the slow kernel is done by then.
    std::thread::sleep(Duration::from_secs(2));
    seen.signal("INT");
    std::thread::sleep(Duration::from_millis(300));
    seen.signal("INT");
    assert_eq!(seen.finish(), (Some(130), String::new()));
}

#[test]
fn a_replay_that_a_signal_ends_is_never_a_clean_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("mine");
    // Of a length that takes seconds to replay.
    let capture = ["capture", "engine", "-n", "300", "-o", path(&trace)];
    assert_eq!(crate::cli::outcome(&capture).0, 0);
    let explain = ["explain", "mine", "--replay", "full", "--json", "report.json"];
    let mut seen = Seen::start(&explain, folder.path());
    seen.until("replaying step 1");
    seen.signal("INT");
    let (exit, out) = seen.finish();
    let first = out.lines().next().unwrap_or_default();
    assert_eq!(exit, Some(130), "{out}");
    assert!(first.starts_with("partial, ended by Ctrl-C in the replay after "), "{first}");
    let report = json(&folder.path().join("report.json"));
    assert_eq!(report["partial"]["during"], "replay");
    assert_eq!(report["diagnosis"]["engine"]["is_interrupted"], true);
}
