//! A trace opens in Python with the stock safetensors package.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use firstdiff::{core::tensor::Tensor, graph::site::Site};

use super::support::{Recorded, tensors};

/// A Python with safetensors and numpy, made once and kept in the target folder.
pub fn python() -> &'static Path {
    // Several tests need it and run side by side.
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
        let python = folder.join("bin/python3");
        // Last to be made: a folder without it is the rest of an interrupted set-up.
        let ready = folder.join("ready");
        if !ready.exists() {
            let _ = fs::remove_dir_all(&folder);
            set_up(Command::new("python3").args(["-m", "venv"]).arg(&folder));
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
            set_up(Command::new(&python).args(pip).args(["safetensors", "numpy"]));
            fs::write(ready, "").unwrap();
        }
        python
    })
}

fn set_up(command: &mut Command) {
    let advice = "install python3 with venv and pip (apt-get install python3-venv, or \
                  scripts/setup.sh) and let pip reach the package index";
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; {advice}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}\n{advice}");
}

#[test]
fn a_trace_opens_in_python_with_stock_safetensors() {
    let recorded = Recorded::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/read_trace.py");
    let output = Command::new(python()).arg(script).arg(&recorded.folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();

    let mut step = 0;
    let mut listed = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("step ") {
            step = rest.split_once(':').unwrap().0.parse().unwrap();
        } else if let Some(entry) = line.strip_prefix("  ") {
            let (entry, sum) = entry.rsplit_once("  ").unwrap();
            listed.push((step, entry.to_string(), sum.parse::<f64>().unwrap()));
        }
    }
    // Sums of the values are exact in f64, so that they are equal in any order.
    let expect = |(site, tensor): &(Site, Tensor)| {
        let entry = format!("{}  float32  {:?}", site.tensor_name(), tensor.shape);
        (site.step, entry, tensor.data.iter().map(|&value| f64::from(value)).sum())
    };
    let mut expected: Vec<(u32, String, f64)> = tensors(1).iter().map(expect).collect();
    listed.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    expected.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    assert_eq!(listed, expected);
}

#[test]
fn a_step_without_tensors_opens_in_python() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    super::support::record(&folder, &[]).unwrap();
    let code = "import sys, safetensors.numpy as s; print(s.load_file(sys.argv[1]))";
    let file = folder.join("step-0000.safetensors");
    let output = Command::new(python()).args(["-c", code]).arg(file).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "{}");
}
