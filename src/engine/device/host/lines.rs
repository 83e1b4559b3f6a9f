//! Source lines for the program addresses in a message of the checks.

use std::{collections::HashMap, path::Path, process::Command};

use crate::engine::device::host::recipe::HEADERS;

/// How the runtime writes an address: its offset in the library.
const OPEN: &str = "[pc+0x";

/// Replaces each `[pc+0x12]` by `rope.cu:34`, or by `common.cuh:41 (from rope.cu:34)` where the code
/// was inlined from another file. An address that has no line stays.
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

fn places(library: &Path, addresses: &[&str]) -> Option<HashMap<String, String>> {
    let mut command = Command::new("addr2line");
    command.args(["--inlines", "--basenames", "--addresses", "-e"]);
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
        let without_discriminator = |line| str::split(line, " (").next().unwrap_or(line);
        let frames: Vec<&str> = block.lines().skip(1).map(without_discriminator).collect();
        if let Some(place) = place(&frames) {
            places.insert(address.to_string(), place);
        }
    }
    Some(places)
}

/// The place of the first frame, `file:line`, that is not in a header; the frames go outwards.
fn place(frames: &[&str]) -> Option<String> {
    let file = |frame: &str| frame.split(':').next().unwrap_or_default().to_string();
    // The device's own headers, and what they call, are none of the kernel's.
    let is_own =
        |file: &str| file == "type_traits" || HEADERS.iter().any(|(name, _)| *name == file);
    let mut frames = frames.iter().filter(|frame| !is_own(&file(frame)));
    let inner = frames.next().filter(|frame| !frame.contains('?'))?;
    let outer = frames.find(|frame| file(frame) != file(inner));
    Some(outer.map_or_else(|| inner.to_string(), |outer| format!("{inner} (from {outer})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_kernels_and_says_where_it_was_inlined() {
        let frames = ["cuda_host.h:12", "common.cuh:41", "common.cuh:50", "rms_norm.cu:34"];
        assert_eq!(place(&frames).unwrap(), "common.cuh:41 (from rms_norm.cu:34)");
        assert_eq!(place(&frames[3..]).unwrap(), "rms_norm.cu:34");
        assert_eq!(place(&["??:0"]), None);
    }

    #[test]
    fn a_message_without_addresses_stays_as_it_is() {
        assert_eq!(with_lines(Path::new("/none"), "barrier divergence"), "barrier divergence");
        let message = "race at [pc+0x10]";
        assert_eq!(with_lines(Path::new("/none"), message), message);
    }
}
