//! A shell that runs the commands of a page one after another, in a folder with what its reader has.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{common::fixture, trace::python::python};

/// Ends what a command printed; its exit code follows, to the end of that line.
const END: char = '\x1e';
/// A page takes seconds. Beyond this a command hangs.
const LONGEST: &str = "400";

/// What a command printed, both streams as they came, and its exit code.
pub struct Ran {
    pub output: String,
    pub code: i32,
}

/// The folder in which a page's commands run.
pub struct Folder {
    folder: tempfile::TempDir,
    project: &'static Path,
}

impl Folder {
    /// Has the project's files where a page names them, and the fixture as the reader's model.
    pub fn new(project: &'static Path) -> Folder {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let names =
            ["Makefile", "docs", "examples", "fixtures", "include", "kernels", "python", "scripts"];
        let mut copy = Command::new("cp");
        copy.arg("-r").args(names.map(|name| project.join(name))).arg(path);
        assert!(copy.status().unwrap().success());
        std::os::unix::fs::symlink(fixture(), path.join("model.gguf")).unwrap();
        fs::create_dir(path.join("target")).unwrap();
        Folder { folder, project }
    }

    /// Runs the commands and gives each one's output. The shell's variables stay from one to the next.
    pub fn run(&self, commands: &[String]) -> Vec<Ran> {
        let mut script = fs::read_to_string(self.project.join("tests/docs/session.sh")).unwrap();
        for command in commands {
            script += &format!("{command}\nprintf '{END}%d\\n' $?\n");
        }
        let path = self.folder.path();
        fs::write(path.join(".session.sh"), script).unwrap();
        let output = path.join(".output");
        let file = File::create(&output).unwrap();
        let mut shell = Command::new("timeout");
        shell.args([LONGEST, "bash", ".session.sh"]).current_dir(path).env("PATH", self.programs());
        for variable in
            ["CI", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "CARGO_TARGET_DIR", "MAKEFLAGS"]
        {
            shell.env_remove(variable);
        }
        shell.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        shell.status().unwrap();
        let all = String::from_utf8_lossy(&fs::read(&output).unwrap()).into_owned();
        let mut rest = all.as_str();
        let mut ran = Vec::new();
        while let Some((output, after)) = rest.split_once(END) {
            let (code, after) = after.split_once('\n').unwrap();
            ran.push(Ran { output: output.to_string(), code: code.parse().unwrap() });
            rest = after;
        }
        assert_eq!(ran.len(), commands.len(), "the shell ended early: {rest}");
        ran
    }

    /// firstdiff, and a Python with numpy.
    fn programs(&self) -> String {
        let firstdiff = PathBuf::from(env!("CARGO_BIN_EXE_firstdiff"));
        let before = std::env::var("PATH").unwrap();
        let own = [firstdiff.parent().unwrap(), python().parent().unwrap()];
        own.map(|folder| folder.to_str().unwrap().to_string()).join(":") + ":" + &before
    }
}
