//! Where a case is made and run, by the program as a user has it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    Result,
    case::{Case, Engine},
    judge::Report,
    root,
};

const FIXTURE: &str = "fixtures/tiny-qwen2/tiny-qwen2-f16.gguf";
/// Names a Python that has numpy.
const PYTHON: &str = "FIRSTDIFF_TEST_PYTHON";
/// A case may take so long.
const LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);
/// Equal, diverged, and not all measured: a report was written.
const WITH_REPORT: [Option<i32>; 3] = [Some(0), Some(1), Some(4)];
/// The traces cannot be compared.
const REFUSED: Option<i32> = Some(3);

pub struct Workshop {
    folder: TempDir,
    python: Option<PathBuf>,
    /// Models and recorded references by what they are of; cases share them.
    made: BTreeMap<String, PathBuf>,
}

/// What came of a case.
pub enum Outcome {
    Report(Report),
    /// A program ended without a report.
    Ended(Ended),
    /// No Python has numpy.
    NotRun,
}

/// A case that is run.
struct Job<'a> {
    case: &'a Case,
    model: PathBuf,
    folder: TempDir,
    start: Instant,
}

/// How a program ended.
pub struct Ended {
    /// Absent where a signal or the limit ended it.
    pub code: Option<i32>,
    pub stderr: String,
}

impl Workshop {
    /// `requantise` is the program that makes models of 4 and 5 bit.
    pub fn new(requantise: &str) -> Result<Workshop> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("requantise.py"), requantise)?;
        Ok(Workshop { folder, python: python(), made: BTreeMap::new() })
    }

    /// Runs a case, and says how long its engine and the diagnosis took.
    pub fn run(&mut self, case: &Case) -> Result<(Outcome, Duration)> {
        if case.needs_python() && self.python.is_none() {
            return Ok((Outcome::NotRun, Duration::ZERO));
        }
        let model = self.model(&case.model)?;
        let reference = match case.engine {
            Engine::Kernels => None,
            Engine::Numpy => Some(self.reference(case, &model)?),
        };
        let folder = tempfile::tempdir_in(self.folder.path())?;
        set_up(case, folder.path())?;
        let job = Job { case, model, folder, start: Instant::now() };
        let ended = match reference {
            None => self.run_kernels(&job)?,
            Some(reference) => self.run_numpy(&job, &reference)?,
        };
        let (time, report) = (job.start.elapsed(), job.report());
        // A Python program that fails has the exit status 1 too.
        if !WITH_REPORT.contains(&ended.code) || !report.exists() {
            return Ok((Outcome::Ended(ended), time));
        }
        Ok((Outcome::Report(serde_json::from_slice(&fs::read(report)?)?), time))
    }

    fn run_kernels(&self, job: &Job<'_>) -> Result<Ended> {
        let mut command = self.program();
        command.args(["run", "--kernels"]).arg(job.engine()).arg("--json").arg(job.report());
        with_task(&mut command, job.case, &job.model, &job.case.args);
        self.ended(&mut command, job.start)
    }

    fn run_numpy(&self, job: &Job<'_>, reference: &Path) -> Result<Ended> {
        let trace = job.folder.path().join("trace");
        let mut engine = self.python();
        engine.arg(job.engine().join("engine.py")).arg(&job.model);
        engine.arg(reference.join("plan.txt")).arg(&trace).args(divided(job.case).1);
        let ended = self.ended(&mut engine, job.start)?;
        if ended.code != Some(0) {
            return Ok(ended);
        }
        let explain = || {
            let mut command = self.program();
            command.arg("explain").arg(&trace).arg("-m").arg(&job.model);
            command.arg("--json").arg(job.report());
            command
        };
        let ended = self.ended(explain().arg("--reference").arg(reference), job.start)?;
        if ended.code != REFUSED {
            return Ok(ended);
        }
        // A prompt in other batches can be replayed, and not compared.
        self.ended(&mut explain(), job.start)
    }

    /// The file of a model, which is made the first time.
    fn model(&mut self, of: &str) -> Result<PathBuf> {
        if of == "fixture" {
            return Ok(root().join(FIXTURE));
        }
        if let Some(path) = self.made.get(of) {
            return Ok(path.clone());
        }
        let mut command = match of.split_once(" of ") {
            Some((kind, source)) => {
                let source = self.model(source)?;
                let mut command = self.python();
                command.arg(self.folder.path().join("requantise.py")).arg(source).arg(kind);
                command
            }
            None => {
                let mut command = self.program();
                command.args(of.split_whitespace()).arg("-o");
                command
            }
        };
        let path = self.folder.path().join(format!("model-{}.gguf", self.made.len()));
        self.make(of, command.arg(&path))?;
        self.made.insert(of.to_string(), path.clone());
        Ok(path)
    }

    /// The reference's trace for a case, which is recorded the first time.
    fn reference(&mut self, case: &Case, model: &Path) -> Result<PathBuf> {
        let args = divided(case).0;
        let of = format!("the reference on {}, {:?}, {args:?}", case.model, case.prompt);
        if let Some(path) = self.made.get(&of) {
            return Ok(path.clone());
        }
        let path = self.folder.path().join(format!("reference-{}", self.made.len()));
        let mut command = self.program();
        command.args(["capture", "reference", "-o"]).arg(&path);
        with_task(&mut command, case, model, args);
        self.make(&of, &mut command)?;
        self.made.insert(of, path.clone());
        Ok(path)
    }

    /// Runs a command that has to succeed.
    fn make(&self, what: &str, command: &mut Command) -> Result<()> {
        let ended = self.ended(command, Instant::now())?;
        if ended.code == Some(0) {
            Ok(())
        } else {
            Err(format!("{what} could not be made: {}", ended.stderr.trim()).into())
        }
    }

    /// The program. Each case's kernels are used once: they are not for the user's cache.
    fn program(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_firstdiff"));
        command.env("FIRSTDIFF_CACHE", self.folder.path().join("cache"));
        command
    }

    fn python(&self) -> Command {
        Command::new(self.python.as_deref().unwrap_or(Path::new("python3")))
    }

    /// Waits for a command of a case that began then.
    fn ended(&self, command: &mut Command, start: Instant) -> Result<Ended> {
        let path = self.folder.path().join("stderr.txt");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&path)?);
        let mut child = command.spawn()?;
        loop {
            if let Some(status) = child.try_wait()? {
                let mut stderr = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
                if status.code().is_none() {
                    stderr = format!("{stderr}\n{status}");
                }
                return Ok(Ended { code: status.code(), stderr });
            }
            if start.elapsed() > LIMIT {
                child.kill()?;
                child.wait()?;
                let stderr = format!("not done after {} s", LIMIT.as_secs());
                return Ok(Ended { code: None, stderr });
            }
            thread::sleep(POLL);
        }
    }
}

impl Job<'_> {
    fn engine(&self) -> PathBuf {
        self.folder.path().join(self.case.engine.folder())
    }

    fn report(&self) -> PathBuf {
        self.folder.path().join("report.json")
    }
}

/// Copies a case's engine to a folder as it lies in the project, and edits it.
fn set_up(case: &Case, folder: &Path) -> Result<()> {
    let engine = case.engine.folder();
    copy(&root().join(engine), &folder.join(engine))?;
    for (file, text) in case.edited()? {
        fs::write(folder.join(engine).join(file), text)?;
    }
    if case.engine == Engine::Numpy {
        copy(&root().join("python"), &folder.join("python"))?;
    }
    Ok(())
}

/// Appends the model, the prompt and further arguments.
fn with_task(command: &mut Command, case: &Case, model: &Path, args: &[String]) {
    command.arg("-m").arg(model).args(args);
    if let Some(prompt) = &case.prompt {
        command.arg("-p").arg(prompt);
    }
}

/// The arguments of `capture reference`, and the engine's own, `--ranks N`, which come last.
fn divided(case: &Case) -> (&[String], &[String]) {
    let ranks = case.args.iter().position(|arg| arg == "--ranks");
    case.args.split_at(ranks.unwrap_or(case.args.len()))
}

/// A Python that has numpy: the one that is named, else the one that is there.
fn python() -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os(PYTHON).unwrap_or("python3".into()));
    let mut command = Command::new(&python);
    command.args(["-c", "import numpy"]).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success()).then_some(python)
}

/// Copies a folder and all that is in it.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
