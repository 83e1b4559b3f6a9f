use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

/// A short run with a cache of its own: its exit code and what it printed.
fn run(cache: &Path, args: &[&str]) -> (i32, String) {
    let mut command = assert_cmd::Command::cargo_bin("firstdiff").unwrap();
    let output = command.args(args).env("FIRSTDIFF_CACHE", cache).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
}

const SHORT: [&str; 5] = ["run", "-p", "Once upon a time", "-n", "0"];

/// The entries of a cache with their contents, but for the seals.
fn entries(cache: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = |folder: fs::DirEntry| fs::read_dir(folder.path()).unwrap().flatten();
    let all = fs::read_dir(cache).unwrap().flatten().flat_map(files).map(|file| file.path());
    let mut all: Vec<PathBuf> =
        all.filter(|path| path.extension().is_none_or(|ending| ending != "blake3")).collect();
    all.sort();
    all.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn what_is_damaged_in_the_cache_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let (exit, first) = run(&cache, &SHORT);
    assert_eq!(exit, 0, "{first}");
    assert_eq!(fs::metadata(&cache).unwrap().permissions().mode() & 0o777, 0o700);
    let whole = entries(&cache);
    let names: Vec<&str> =
        whole.iter().filter_map(|(path, _)| path.extension()?.to_str()).collect();
    assert!(["gguf", "so", "json"].iter().all(|ending| names.contains(ending)), "{names:?}");
    let damaged = |bytes: &[u8]| {
        let mut damaged = bytes.to_vec();
        damaged[bytes.len() / 2] ^= 1 << 6;
        damaged
    };
    for (path, bytes) in &whole {
        fs::write(path, damaged(bytes)).unwrap();
    }
    let (exit, second) = run(&cache, &SHORT);
    assert_eq!(exit, 0, "{second}");
    assert_eq!(first.lines().next(), second.lines().next());
    for (path, bytes) in &whole {
        // An entry that was not needed again is gone, or as it was damaged; it is looked at when it is read.
        let is_model = path.extension().is_some_and(|ending| ending == "gguf");
        let now = fs::read(path).ok();
        assert!(!is_model || now.as_ref() == Some(bytes), "{path:?}");
        let parent = path.parent().and_then(Path::file_name);
        let is_named_by_time = parent.is_some_and(|parent| parent == "hashes");
        let is_read = !is_named_by_time && path.extension().is_none_or(|ending| ending != "o");
        assert!(!is_read || now != Some(damaged(bytes)), "{path:?}");
    }
}

/// Put there by whatever unpacked a cache: nothing is waited for, followed or read without end.
#[test]
fn what_is_no_file_in_the_place_of_an_entry_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let (exit, first) = run(&cache, &SHORT);
    assert_eq!(exit, 0, "{first}");
    // Hashes have the time of their file in their names.
    let lasting = || {
        let all = entries(&cache).into_iter();
        all.filter(|(path, _)| path.parent().unwrap().file_name().unwrap() != "hashes").collect()
    };
    let whole: Vec<(PathBuf, Vec<u8>)> = lasting();
    let outside = folder.path().join("outside");
    fs::write(&outside, "the user's").unwrap();
    for put in 0..4 {
        for (path, _) in &whole {
            fs::remove_file(path).unwrap();
            match put {
                0 => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
                1 => fs::create_dir(path).unwrap(),
                2 => symlink(&outside, path).unwrap(),
                _ => fs::File::create(path).unwrap().set_len(1 << 40).unwrap(),
            }
        }
        let (exit, text) = run(&cache, &SHORT);
        assert_eq!((exit, text.lines().next()), (0, first.lines().next()), "{put}: {text}");
        assert!(lasting() == whole, "{put}");
    }
    assert_eq!(fs::read_to_string(outside).unwrap(), "the user's");
}

#[test]
fn a_cache_that_others_can_write_to_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (exit, text) = run(folder.path(), &SHORT);
    assert_eq!(exit, 2, "{text}");
    assert!(text.contains("others can write to it, and firstdiff runs its files"), "{text}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_cache_that_cannot_be_made_is_elsewhere_and_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let mut command = assert_cmd::Command::cargo_bin("firstdiff").unwrap();
    command.args(SHORT).env("FIRSTDIFF_CACHE", file.join("cache")).env("TMPDIR", folder.path());
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert_eq!(errors.matches("firstdiff: cannot use the cache in ").count(), 1, "{errors}");
    let is_cache =
        |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with("firstdiff-");
    assert!(fs::read_dir(folder.path()).unwrap().flatten().any(is_cache));
}

#[test]
fn the_cache_is_emptied_and_says_what_went() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    assert_eq!(run(&cache, &["plan"]).0, 0);
    let files = entries(&cache).len();
    assert!(files > 0);
    let (exit, text) = run(&cache, &["doctor", "--prune"]);
    assert_eq!(exit, 0, "{text}");
    assert!(text.starts_with(&format!("removed {} files, ", 2 * files)), "{text}");
    assert_eq!(entries(&cache), []);
}
