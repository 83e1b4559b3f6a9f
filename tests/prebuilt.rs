//! The kernels that the program carries built: no compiler is needed for them, and they compute what it would.

use std::path::Path;

use assert_cmd::Command;
use firstdiff::engine::AttentionVariant;

use crate::cli::{SHORT, firstdiff, path};

/// The program where no other program can be found.
fn alone(arguments: &[&str], nothing: &Path) -> Command {
    let mut command = firstdiff(arguments);
    command.env("PATH", nothing).env_remove("CXX");
    command
}

/// The recorded steps of a trace: their files' bytes, in the order of their names.
fn steps(trace: &Path) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(trace).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|file| file.extension().is_some_and(|ending| ending == "safetensors"))
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// A fault of every kernel file that has any.
const FAULTS: [&str; 6] = [
    "embd-scaled",
    "norm-mean-subtracted",
    "rope-backwards",
    "v-cache-heads-swapped",
    "kv-head-modulo",
    "gelu-for-silu",
];

#[test]
fn each_variant_and_planted_faults_are_bit_for_bit_what_the_compiler_makes_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let variants =
        AttentionVariant::all().map(|variant| vec!["--attention".into(), variant.to_string()]);
    let faults =
        FAULTS.iter().flat_map(|fault| ["--fault".to_string(), fault.to_string()]).collect();
    for (place, more) in variants.chain([faults]).enumerate() {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let [built, compiled] = ["built", "compiled"].map(|name| {
            let trace = folder.path().join(format!("{place}-{name}"));
            let arguments = ["capture", "engine", "-o", path(&trace)];
            let arguments = [&arguments[..], &SHORT, &more].concat();
            let mut command = alone(&arguments, folder.path());
            if name == "compiled" {
                command = firstdiff(&arguments);
                command.env("CXX", "c++");
            }
            let output = command.output().unwrap();
            assert!(output.status.success(), "{more:?}: {output:?}");
            steps(&trace)
        });
        assert_eq!(built.len(), 3, "{more:?}");
        assert!(built == compiled, "{more:?}: the recorded tensors differ");
    }
}

#[test]
fn without_a_compiler_the_own_kernels_run_and_an_edited_one_says_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let run = |more: &[&str]| {
        let output = alone(&[&["run"][..], &SHORT, more].concat(), folder.path()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (exit, out, err) = run(&[]);
    assert!(
        exit == 0 && out.starts_with("equal within the floor: ") && err.is_empty(),
        "{out}{err}"
    );
    let (exit, out, _) = run(&["--fault", "rope-pairs-interleaved"]);
    assert!(exit == 1 && out.starts_with("first divergence: step 0 layer 0 q_rope "), "{out}");

    let kernels = folder.path().join("kernels");
    std::fs::create_dir(&kernels).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/rope.cu");
    let text = std::fs::read_to_string(source).unwrap() + "// mine\n";
    std::fs::write(kernels.join("rope.cu"), text).unwrap();
    let (exit, out, err) = run(&["--kernels", path(&kernels)]);
    assert_eq!((exit, out.as_str()), (5, ""), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    let wanted = "the program does not contain this build of rope.cu, and no C++ compiler was found \
                 (tried c++, g++, clang++); install g++ or set CXX";
    assert!(err.contains(wanted), "{err}");
}
