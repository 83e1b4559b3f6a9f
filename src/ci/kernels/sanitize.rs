//! Kernels under AddressSanitizer and UBSan, each in a process of its own: they end it at the first bad
//! access, and it must have been started with AddressSanitizer loaded.

use std::{
    ffi::OsString,
    path::Path,
    process::{Command, Output},
};

use rayon::prelude::*;

use crate::{
    ci::kernels::{
        KernelCheckError,
        run::{Finding, Kind, Outcome},
    },
    core::activity::{self, Foreign},
    engine::device::{
        DeviceError,
        host::{self, ThreadOrder},
    },
};

/// How the sanitizers end a process.
const ENDED: i32 = 99;
const OPTIONS: &str = "exitcode=99:detect_leaks=0:detect_odr_violation=0:handle_abort=0:\
                       detect_stack_use_after_return=0:quarantine_size_mb=16:halt_on_error=1";
/// Lines of what a process says that are worth showing.
const SAID_LINES: usize = 6;

/// What a process of its own says of its target; [`said`] reads it.
pub fn text(outcome: &Outcome) -> String {
    match &outcome.finding {
        None => format!("clean {}\n", outcome.launches),
        Some(Finding { kind, text, .. }) => format!("found {} {kind}: {text}\n", outcome.launches),
    }
}

/// What it says before each launch.
pub fn announcement(shape: &str, order: ThreadOrder) -> String {
    let (kind, seed) = match order {
        ThreadOrder::Forward => ("forward", 0),
        ThreadOrder::Reverse => ("reverse", 0),
        ThreadOrder::Random(seed) => ("random", seed),
    };
    format!("launch {kind} {seed} {shape}\n")
}

/// Checks targets, each by a process of `program` with the arguments that `of` gives for it.
pub fn sanitize(
    program: &Path,
    names: &[String],
    of: &(dyn Fn(usize) -> Vec<OsString> + Sync),
    done: &(dyn Fn() + Sync),
) -> Result<Vec<Outcome>, KernelCheckError> {
    let library = host::compiler()?.address_sanitizer()?;
    let one = |(index, name): (usize, &String)| {
        let mut command = Command::new(program);
        command.args(of(index)).env("LD_PRELOAD", &library);
        command.env("ASAN_OPTIONS", OPTIONS).env("UBSAN_OPTIONS", OPTIONS);
        // The sanitizers end that process themselves, and its silence is seen from here.
        command.env(activity::IN_PROCESS, "1");
        let _running = activity::running(Foreign::Kernel, name, "runs under AddressSanitizer");
        let output = command.output().map_err(|error| failed(name, &error.to_string()))?;
        done();
        said(name, &output)
    };
    names.par_iter().enumerate().map(one).collect()
}

fn failed(name: &str, detail: &str) -> KernelCheckError {
    let tool = format!("the check of {name} under AddressSanitizer");
    DeviceError::Tool { tool, detail: detail.to_string() }.into()
}

/// What became of a target, by what its process said.
fn said(name: &str, output: &Output) -> Result<Outcome, KernelCheckError> {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let launches: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix("launch ")).collect();
    let (order, shape) = launches.last().and_then(|line| launched(line)).unwrap_or_default();
    let outcome = |launches, finding: Option<(Kind, String)>| Outcome {
        name: name.to_string(),
        launches,
        finding: finding.map(|(kind, text)| Finding { kind, text, shape, order }),
    };
    let last = out.lines().rev().find(|line| !line.starts_with("launch "));
    match (output.status.code(), last.unwrap_or_default()) {
        (Some(0), last)
            if last.strip_prefix("clean ").is_some_and(|n| n.parse::<usize>().is_ok()) =>
        {
            let n = last.trim_start_matches("clean ").parse().unwrap_or_default();
            Ok(outcome(n, None))
        }
        (Some(1), last) if last.starts_with("found ") => {
            let mut parts = last.splitn(3, ' ').skip(1);
            let n = parts.next().and_then(|n| n.parse().ok()).unwrap_or_default();
            let (kind, text) =
                parts.next().and_then(|rest| rest.split_once(": ")).unwrap_or_default();
            let kind = Kind::ALL.into_iter().find(|known| known.to_string() == kind);
            Ok(outcome(n, Some((kind.unwrap_or(Kind::Launch), text.to_string()))))
        }
        (Some(ENDED), _) => {
            let found = report(&err).ok_or_else(|| failed(name, &shortened(&err)))?;
            Ok(outcome(launches.len(), Some(found)))
        }
        _ => Err(failed(name, &shortened(&err))),
    }
}

fn launched(line: &str) -> Option<(ThreadOrder, String)> {
    let mut parts = line.splitn(3, ' ');
    let (kind, seed, shape) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
    let order = match kind {
        "forward" => ThreadOrder::Forward,
        "reverse" => ThreadOrder::Reverse,
        _ => ThreadOrder::Random(seed),
    };
    Some((order, shape.to_string()))
}

/// The first report of a sanitizer: what, and at which line of which kernel file.
fn report(err: &str) -> Option<(Kind, String)> {
    let undefined = err.lines().find_map(|line| {
        let (place, what) = line.split_once(": runtime error: ")?;
        Some((Kind::Undefined, format!("UBSan: {what} at {}", base_name(place))))
    });
    if undefined.is_some() {
        return undefined;
    }
    let mut lines = err.lines().skip_while(|line| !line.contains("ERROR: AddressSanitizer: "));
    let what = lines.next()?.split_once("ERROR: AddressSanitizer: ")?.1;
    let what = what.split(" on ").next().unwrap_or(what);
    let access = lines.clone().find(|line| line.starts_with("READ ") || line.starts_with("WRITE "));
    let access = access.and_then(|line| line.split(" at ").next()).unwrap_or("an access");
    let frames = lines.filter(|line| line.trim_start().starts_with('#'));
    let place = frames.filter_map(|line| line.rsplit_once(' ')).find_map(|(_, place)| {
        place.contains(':').then(|| base_name(place)).filter(|place| !place.contains("libasan"))
    });
    let place = place.unwrap_or("an unknown line");
    Some((Kind::Bounds, format!("AddressSanitizer: {what}, {access} at {place}")))
}

fn base_name(place: &str) -> &str {
    place.rsplit('/').next().unwrap_or(place)
}

fn shortened(err: &str) -> String {
    let lines: Vec<&str> = err.lines().filter(|line| !line.trim().is_empty()).collect();
    let first = lines.len().saturating_sub(SAID_LINES);
    if lines.is_empty() {
        "it ended without a message".to_string()
    } else {
        lines[first..].join("; ")
    }
}
