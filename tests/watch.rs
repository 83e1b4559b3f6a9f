use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use crate::cli::{SHORT, path, refused};

/// A verdict takes about a second; a machine under load may take far longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running `firstdiff run --watch`.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    /// One pipe carries both streams, so that their lines come in the order in which they were written.
    fn start(arguments: &[&str]) -> Watch {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_firstdiff"));
        command.args(arguments).stdout(writer.try_clone().unwrap()).stderr(writer);
        let child = command.spawn().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Watch { child, lines }
    }

    /// The lines of a verdict or an error, and the one that says that the next save is waited for.
    fn verdict(&self) -> (Vec<String>, String) {
        let mut lines = Vec::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap();
            if line.contains("waiting for a save") {
                return (lines, line);
            }
            lines.push(line);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

fn example(folder: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/kernels");
    for file in ["gqa_decode.cu", "gqa_decode.toml"] {
        std::fs::copy(root.join(file), folder.join(file)).unwrap();
    }
    folder.join("gqa_decode.cu")
}

#[test]
fn each_save_gives_a_verdict_or_an_error_and_ctrl_c_ends_the_watch() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = example(folder.path());
    let contract = folder.path().join("gqa_decode.toml");
    let right = std::fs::read_to_string(&kernel).unwrap();
    let given = format!("attention={}", path(&contract));
    let arguments = [&["run", "--watch", "--kernel", &given][..], &SHORT].concat();
    let mut watch = Watch::start(&arguments);
    let (report, _) = watch.verdict();
    assert!(report[0].starts_with("equal within the floor: 237 of 237 sites"), "{report:?}");
    let clean = report.join("\n");

    std::fs::write(&kernel, right.replace("score *= scale", "score *= scal")).unwrap();
    let (errors, end) = watch.verdict();
    assert!(
        errors[0].ends_with("gqa_decode.cu does not compile; fix it and run again"),
        "{errors:?}"
    );
    assert!(errors.iter().any(|line| line.contains("scal")), "{errors:?}");
    assert!(end.starts_with("gqa_decode.cu saved: failed, "), "{end}");

    std::fs::write(&kernel, format!("#define BUG_UNSCALED\n{right}")).unwrap();
    let (report, end) = watch.verdict();
    assert!(end.starts_with("gqa_decode.cu saved: diverged, "), "{end}");
    assert!(report[0].starts_with("first divergence: step 0 layer 0 attn_out"), "{report:?}");
    let named = "1. attention, all layers: scale missing: 1 instead of 0.25 (proven";
    assert!(report.iter().any(|line| line.contains(named)), "{report:?}");

    // The contract is watched as well.
    let text = std::fs::read_to_string(&contract).unwrap();
    std::fs::write(&contract, text.replace("role = \"q\"", "role = \"query\"")).unwrap();
    let (errors, _) = watch.verdict();
    assert!(errors[0].contains("attention has no role query"), "{errors:?}");
    std::fs::write(&kernel, &right).unwrap();
    watch.verdict();
    std::fs::write(&contract, &text).unwrap();
    let (report, _) = watch.verdict();
    // Nothing of the wrong kernels is left: the caches, the weights, and what was known of llama.cpp.
    assert_eq!(report.join("\n"), clean);

    let pid = watch.child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(watch.child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_watch_without_kernels_or_on_two_devices_is_refused() {
    refused(&["run", "--watch"], 2, "--watch needs kernels to watch");
    let given =
        format!("attention={}/examples/kernels/gqa_decode.toml", env!("CARGO_MANIFEST_DIR"));
    let two = ["run", "--watch", "--kernel", &given, "--device", "host,checked"];
    refused(&two, 2, "--watch runs on one device");
}
