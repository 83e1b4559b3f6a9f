//! `scripts/setup.sh` with a `PATH` of the test's making, in which programs are stand-ins that
//! print a version, what is left out is missing, and `apt-get` writes down what it is asked.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

/// What the script looks for by name.
const SOUGHT: [&str; 10] = [
    "cargo",
    "cc",
    "c++",
    "objcopy",
    "cmake",
    "make",
    "git",
    "python3",
    "chromium",
    "chromedriver",
];
/// What the script and the stand-ins use. These run with the made-up `PATH`: `env` runs apt-get.
const USED: [&str; 5] = ["bash", "cat", "dirname", "env", "cp"];

/// A `PATH` with one folder.
struct Machine {
    folder: TempDir,
}

impl Machine {
    /// A machine with all that is sought, but for some programs.
    fn without(left_out: &[&str]) -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(machine.bin()).unwrap();
        for program in USED {
            symlink(real(program), machine.bin().join(program)).unwrap();
        }
        for program in SOUGHT.iter().filter(|program| !left_out.contains(program)) {
            machine.stand_in(program, &format!("echo warning >&2\necho '{program} 99.0.0'"));
        }
        machine
    }

    fn bin(&self) -> PathBuf {
        self.folder.path().join("bin")
    }

    /// Adds apt: `apt-get` writes down its arguments and then runs `action`, a line of shell. No
    /// package is known to `apt-cache` unless `lists` says that the package lists are there.
    fn with_apt(self, lists: bool, action: &str) -> Self {
        let log = self.folder.path().join("log");
        self.stand_in("apt-get", &format!("echo \"$*\" >>'{}'\n{action}", log.display()));
        self.stand_in("apt-cache", if lists { "exit 0" } else { "exit 100" });
        // For a test that does not run as root.
        self.stand_in("sudo", "[ \"$1\" = -n ] && shift\n[ \"$1\" = true ] || exec \"$@\"");
        self
    }

    fn stand_in(&self, name: &str, script: &str) {
        let path = self.bin().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What was asked of `apt-get`: `update` or the packages of an `install`.
    fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let is_option = |word: &&str| word.starts_with('-') || word.contains("::");
        let words = |line: &str| {
            line.split(' ').filter(|word| !is_option(word)).collect::<Vec<_>>().join(" ")
        };
        log.lines().map(words).collect()
    }

    fn setup(&self, arguments: &[&str]) -> Ran {
        self.setup_with_path(arguments, self.bin().as_os_str())
    }

    fn setup_with_path(&self, arguments: &[&str], path: &OsStr) -> Ran {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/setup.sh");
        let mut command = Command::new(real("bash"));
        // A compiler that this machine's builds are told to take is not on the made-up one.
        command.arg(script).args(arguments).env("PATH", path).env_remove("CXX");
        Ran(command.output().unwrap())
    }

    /// The line of shell by which an installation gives this machine a program.
    fn gains(&self, program: &str) -> String {
        let [from, to] = ["make", program].map(|name| self.bin().join(name));
        format!("cp '{}' '{}'", from.display(), to.display())
    }
}

struct Ran(Output);

impl Ran {
    fn code(&self) -> i32 {
        self.0.status.code().unwrap()
    }

    /// Everything printed, standard error after standard output.
    fn text(&self) -> String {
        let [out, err] = [&self.0.stdout, &self.0.stderr].map(|b| String::from_utf8_lossy(b));
        format!("{out}{err}")
    }

    fn says(&self, line: &str) -> bool {
        self.text().lines().any(|other| other == line)
    }
}

/// A program of this machine, found in `PATH`.
fn real(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|p| p.is_file()).unwrap()
}

#[test]
fn the_machine_that_runs_the_tests_has_everything_and_gets_nothing_installed() {
    let machine = Machine { folder: tempfile::tempdir().unwrap() };
    fs::create_dir(machine.bin()).unwrap();
    let machine = machine.with_apt(true, "exit 0");
    let mut path = machine.bin().into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    for arguments in [[].as_slice(), &["--check"], &["--tests"], &["--tests", "--check"]] {
        let ran = machine.setup_with_path(arguments, &path);
        assert_eq!(ran.code(), 0, "{}", ran.text());
        assert!(ran.says("nothing to install"), "{}", ran.text());
    }
    assert!(machine.log().is_empty());
}

#[test]
fn a_check_without_cmake_names_it_and_installs_nothing() {
    let machine = Machine::without(&["cmake"]).with_apt(true, "exit 0");
    let ran = machine.setup(&["--check"]);
    assert_eq!(ran.code(), 1, "{}", ran.text());
    assert!(ran.says("missing cmake"), "{}", ran.text());
    assert!(!ran.text().contains("nothing to install"), "{}", ran.text());
    assert!(machine.log().is_empty());
}

#[test]
fn only_what_is_missing_is_installed_and_the_second_run_installs_nothing() {
    let machine = Machine::without(&["cmake"]);
    let gains = machine.gains("cmake");
    let machine = machine.with_apt(true, &gains);
    let ran = machine.setup(&[]);
    assert_eq!(ran.code(), 0, "{}", ran.text());
    assert!(ran.says("installing cmake"), "{}", ran.text());
    // What a program warns of is not its version.
    assert!(ran.says("found git: git 99.0.0"), "{}", ran.text());
    assert_eq!(machine.log(), ["install cmake"]);

    let ran = machine.setup(&[]);
    assert!(ran.says("nothing to install"), "{}", ran.text());
    assert_eq!(machine.log().len(), 1);
}

#[test]
fn clang_is_installed_for_the_tests_alone() {
    let machine = Machine::without(&[]);
    let gains = ["clang", "clang++"].map(|program| machine.gains(program)).join("\n");
    let machine = machine.with_apt(true, &gains);
    assert!(machine.setup(&[]).says("nothing to install"));
    let ran = machine.setup(&["--check", "--tests"]);
    assert_eq!(ran.code(), 1, "{}", ran.text());
    assert!(ran.says("missing clang") && machine.log().is_empty(), "{}", ran.text());
    let ran = machine.setup(&["--tests"]);
    assert_eq!(ran.code(), 0, "{}", ran.text());
    assert_eq!(machine.log(), ["install clang"]);
}

#[test]
fn a_browser_without_its_driver_is_installed_for_the_tests_alone() {
    let machine = Machine::without(&["chromedriver"]);
    let gains = ["chromedriver", "clang", "clang++"].map(|program| machine.gains(program));
    let machine = machine.with_apt(true, &gains.join("\n"));
    assert!(machine.setup(&[]).says("nothing to install"));
    let ran = machine.setup(&["--tests"]);
    assert_eq!(ran.code(), 0, "{}", ran.text());
    assert_eq!(machine.log(), ["install clang chromium chromium-driver"]);
}

#[test]
fn package_lists_are_fetched_where_there_are_none() {
    let machine = Machine::without(&["cmake"]);
    let gains = machine.gains("cmake");
    let machine = machine.with_apt(false, &gains);
    let ran = machine.setup(&[]);
    assert_eq!(ran.code(), 0, "{}", ran.text());
    assert_eq!(machine.log(), ["update", "install cmake"]);
}

#[test]
fn a_failed_installation_is_tried_once_more_and_then_explained() {
    let machine = Machine::without(&["cmake", "objcopy"]).with_apt(true, "exit 100");
    let ran = machine.setup(&[]);
    assert_eq!(ran.code(), 1, "{}", ran.text());
    assert_eq!(machine.log(), ["install binutils cmake", "update", "install binutils cmake"]);
    let last = ran.text().lines().last().unwrap().to_owned();
    assert!(last.starts_with("apt-get could not install binutils cmake"), "{last}");
}

#[test]
fn an_installation_that_changes_nothing_is_not_believed() {
    let machine = Machine::without(&["cmake"]).with_apt(true, "exit 0");
    let ran = machine.setup(&[]);
    assert_eq!(ran.code(), 1, "{}", ran.text());
    assert!(ran.text().contains("cmake is still missing"), "{}", ran.text());
}

#[test]
fn without_apt_the_packages_are_listed_for_other_systems() {
    let machine = Machine::without(&["c++", "cmake"]);
    let ran = machine.setup(&[]);
    assert_eq!(ran.code(), 2, "{}", ran.text());
    for line in ["  dnf install gcc-c++ cmake", "  pacman -S gcc cmake", "  brew install gcc cmake"]
    {
        assert!(ran.says(line), "{line} in {}", ran.text());
    }
}

#[test]
fn without_rust_the_way_to_rustup_is_shown() {
    let machine = Machine::without(&["cargo"]).with_apt(true, "exit 0");
    let ran = machine.setup(&[]);
    assert_eq!(ran.code(), 2, "{}", ran.text());
    assert!(ran.text().contains("missing cargo"), "{}", ran.text());
    assert!(machine.log().is_empty());
}

#[test]
fn a_cargo_too_old_is_told_to_update() {
    let machine = Machine::without(&["cargo"]);
    machine.stand_in("cargo", "echo 'cargo 1.65.0 (4bc8f24d3 2022-10-20)'");
    let ran = machine.setup(&["--check"]);
    assert_eq!(ran.code(), 1, "{}", ran.text());
    assert!(ran.text().contains("is too old; run: rustup update stable"), "{}", ran.text());
}
