//! Source lines for the program addresses in a message of the checks.

use std::{collections::HashMap, path::Path, process::Command};

/// How the runtime writes an address: its offset in the library.
const OPEN: &str = "[pc+0x";

/// Where the device's own headers end and the kernel begins.
const HEADERS: [&str; 2] = ["cuda_host.h", "type_traits"];

/// Replaces each `[pc+0x12]` by `rope.cu:34`, or `common.cuh:41 in block_sum from rope.cu:34` where
/// the code was inlined from another file. An address that has no line stays.
pub fn with_lines(library: &Path, message: &str) -> String {
    let addresses: Vec<&str> = message
        .split(OPEN)
        .skip(1)
        .filter_map(|rest| rest.split_once(']').map(|(address, _)| address))
        .collect();
    if addresses.is_empty() {
        return message.to_string();
    }
    let places = places(library, &addresses).unwrap_or_default();
    let mut text = message.to_string();
    for (address, place) in places {
        text = text.replace(&format!("{OPEN}{address}]"), &place);
    }
    text
}

/// A function and the line in it, innermost first.
type Frame = (String, String);

fn places(library: &Path, addresses: &[&str]) -> Option<HashMap<String, String>> {
    let mut command = Command::new("addr2line");
    command.args(["--inlines", "--functions", "--demangle", "--basenames", "--addresses", "-e"]);
    command.arg(library);
    // The compiler's calls return to the instruction after them: the line is that of the one before.
    let before = |address: &&str| {
        let address = u64::from_str_radix(address, 16).ok()?;
        Some(format!("{:#x}", address.saturating_sub(1)))
    };
    command.args(addresses.iter().filter_map(before));
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut places = HashMap::new();
    for (address, block) in addresses.iter().zip(text.split("\n0x").map(str::trim)) {
        let mut lines = block.lines().skip(1);
        let mut frames: Vec<Frame> = Vec::new();
        while let (Some(function), Some(place)) = (lines.next(), lines.next()) {
            let place = place.split(" (discriminator").next().unwrap_or(place);
            frames.push((function.to_string(), place.to_string()));
        }
        if let Some(place) = place(&frames) {
            places.insert(address.to_string(), place);
        }
    }
    Some(places)
}

fn place(frames: &[Frame]) -> Option<String> {
    let file = |frame: &Frame| frame.1.split(':').next().unwrap_or_default().to_string();
    let mut frames = frames.iter().filter(|frame| !HEADERS.contains(&file(frame).as_str()));
    let inner = frames.next().filter(|frame| !frame.1.contains('?'))?;
    let outer = frames.find(|frame| file(frame) != file(inner));
    Some(match outer {
        Some(outer) => format!("{} in {} from {}", inner.1, short(&inner.0), outer.1),
        None => inner.1.clone(),
    })
}

/// `block_sum`, from `(anonymous namespace)::block_sum(float)`.
fn short(function: &str) -> &str {
    let name = function.rsplit("::").next().unwrap_or(function);
    name.split(['(', '<']).next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_kernels_and_says_where_it_was_inlined() {
        let frame = |function: &str, place: &str| (function.to_string(), place.to_string());
        let frames = [
            frame("atomicAdd", "cuda_host.h:12"),
            frame("(anonymous namespace)::block_sum(float)", "common.cuh:41"),
            frame("void (anonymous namespace)::rms_norm_row<float>(float*)", "rms_norm.cu:34"),
        ];
        assert_eq!(place(&frames).unwrap(), "common.cuh:41 in block_sum from rms_norm.cu:34");
        assert_eq!(place(&frames[2..]).unwrap(), "rms_norm.cu:34");
        assert_eq!(place(&[frame("??", "??:0")]), None);
    }

    #[test]
    fn a_message_without_addresses_stays_as_it_is() {
        assert_eq!(with_lines(Path::new("/none"), "barrier divergence"), "barrier divergence");
        let message = "race at [pc+0x10]";
        assert_eq!(with_lines(Path::new("/none"), message), message);
    }
}
