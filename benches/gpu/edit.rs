//! From an edited kernel to the verdict: the whole program, as a user runs it.

use std::{path::PathBuf, process::Command};

use crate::{Result, median, project};

/// The program: that of this build, or of a bundle.
fn program() -> PathBuf {
    let given = std::env::var_os("FIRSTDIFF").map(PathBuf::from);
    given.unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_firstdiff")))
}

pub fn kernel_edit_to_verdict() -> Result<()> {
    println!(
        "From an edited attention.cu to the verdict on the fixture, as a new process (NVRTC compile,"
    );
    println!("load, run, compare, replay); medians of 5:\n");
    println!("| | ms |\n|---|---:|");
    let source = std::fs::read_to_string(project().join("kernels/attention.cu"))?;
    let folder = tempfile::tempdir()?;
    let mut edits = 0;
    for (name, edited) in [("kernel edited", true), ("kernel unchanged", false)] {
        let milliseconds = median(5, || {
            edits += usize::from(edited);
            let text = format!("{source}// edit {edits}\n");
            std::fs::write(folder.path().join("attention.cu"), text)?;
            let mut command = Command::new(program());
            command.args(["run", "--device", "cuda", "--kernels"]).arg(folder.path());
            let output = command.output()?;
            if !output.status.success() {
                return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
            }
            Ok(())
        })?;
        println!("| {name} | {milliseconds:.0} |");
    }
    println!();
    Ok(())
}
