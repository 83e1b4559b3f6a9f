use std::{path::Path, process::Command};

use tempfile::TempDir;

use crate::cli::{outcome, path, refused};

/// A repository whose folder `cu/kernels` has had these changes, a commit each; a tag `cN` names each.
fn repository(changes: &[(&str, &str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    git(&folder, &["init", "-q"]);
    let kernels = folder.path().join("cu/kernels");
    std::fs::create_dir_all(&kernels).unwrap();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    for file in ["rope.cu", "rms_norm.cu", "common.cuh"] {
        std::fs::copy(own.join(file), kernels.join(file)).unwrap();
    }
    commit(&folder, 0, "Kernels");
    for (index, (file, from, to)) in changes.iter().enumerate() {
        let file = kernels.join(file);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(&file, text.replace(from, to)).unwrap();
        commit(&folder, index + 1, &format!("Change {}", index + 1));
    }
    folder
}

fn commit(folder: &TempDir, number: usize, subject: &str) {
    git(folder, &["add", "."]);
    git(folder, &["commit", "-qm", subject]);
    git(folder, &["tag", &format!("c{number}")]);
}

fn git(folder: &TempDir, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(folder.path());
    command.args(["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]);
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const NOTE: (&str, &str, &str) = ("rms_norm.cu", "// RMS norm:", "// RMS norm again:");
const BROKEN: (&str, &str, &str) = ("rope.cu", "sinf(angle)", "sinf(angel)");
const MENDED_WRONG: (&str, &str, &str) = ("rope.cu", "sinf(angel)", "sinf(-angle)");
const LATER: (&str, &str, &str) = ("rms_norm.cu", "again:", "once more:");

fn bisect<'a>(folder: &'a str, good: &'a str, bad: &'a str) -> Vec<&'a str> {
    vec!["bisect", "-p", "Once upon", "-n", "1", "--folder", folder, "--", good, bad]
}

#[test]
fn the_commit_that_broke_a_kernel_is_named_and_the_working_tree_is_left_alone() {
    let wrong = ("rope.cu", "sinf(angle)", "sinf(-angle)");
    let repository = repository(&[NOTE, wrong, LATER]);
    let kernels = repository.path().join("cu/kernels");
    std::fs::write(kernels.join("rope.cu"), "unfinished work").unwrap();
    let before =
        (git(&repository, &["status", "--porcelain"]), git(&repository, &["rev-parse", "HEAD"]));
    let (exit, out, err) = outcome(&bisect(path(&kernels), "c0", "c3"));
    assert_eq!(exit, 1, "{err}");
    let hash = git(&repository, &["rev-parse", "c2"]);
    let wanted = format!(
        "first bad commit: {} Change 2: first divergence step 0 layer 0 q_rope <- q and k rotation, \
         all layers: rotated backwards (sine negated)\n",
        &hash[..10]
    );
    assert!(out.starts_with(&wanted), "{out}");
    assert!(out.contains(" Change 1: none\n"), "{out}");
    let after =
        (git(&repository, &["status", "--porcelain"]), git(&repository, &["rev-parse", "HEAD"]));
    assert_eq!(before, after);
    assert_eq!(std::fs::read_to_string(kernels.join("rope.cu")).unwrap(), "unfinished work");
}

#[test]
fn a_commit_that_does_not_compile_is_passed_over_and_stays_in_doubt() {
    let repository = repository(&[NOTE, BROKEN, MENDED_WRONG]);
    let kernels = repository.path().join("cu/kernels");
    let (exit, out, err) = outcome(&bisect(path(&kernels), "c0", "c3"));
    assert_eq!(exit, 1, "{err}");
    let first = out.lines().next().unwrap();
    assert!(first.starts_with("first bad commit, or one of the 1 before it that do not run: "));
    assert!(first.contains(" Change 3: first divergence step 0 layer 0 q_rope <- "), "{first}");
    assert!(out.contains(" Change 2: does not run: rope.cu"), "{out}");
}

#[test]
fn ends_that_are_not_good_and_bad_are_refused() {
    let wrong = ("rope.cu", "sinf(angle)", "sinf(-angle)");
    let repository = repository(&[NOTE, wrong, LATER]);
    let kernels = repository.path().join("cu/kernels");
    let folder = path(&kernels);
    let says = "c1 (first divergence none) is not worse than c0 (first divergence none)";
    refused(&bisect(folder, "c0", "c1"), 3, says);
    let says = "c3 (first divergence step 0 layer 0 q_rope) is not worse than c2 (first";
    refused(&bisect(folder, "c2", "c3"), 3, says);
    refused(
        &bisect(folder, "c3", "c0"),
        2,
        "c3 is not an ancestor of c0; give the older commit first",
    );
    refused(&bisect(folder, "c0", "c0"), 2, "no commit after c0 up to c0 changes ");
    refused(&bisect(folder, "c0", "none"), 2, "git rev-parse: ");
    refused(&bisect(folder, "c0", "--output=x"), 2, "git rev-parse: ");
    let nowhere = tempfile::tempdir().unwrap();
    refused(&bisect(path(nowhere.path()), "c0", "c1"), 2, "git rev-parse: ");
    let empty = repository.path().join("cu");
    std::fs::create_dir(empty.join("other")).unwrap();
    let other = empty.join("other");
    refused(&bisect(path(&other), "c0", "c3"), 2, "no commit after c0 up to c3 changes ");
}
