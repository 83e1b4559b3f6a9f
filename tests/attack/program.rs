//! The program under attack: a run with all that it leaves.

use std::{
    io::Read,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Nothing may take longer.
pub const LIMIT: Duration = Duration::from_secs(20);
/// Nor more memory, in bytes.
const MEMORY: u64 = 2 << 30;

/// Marks the processes of a run.
const MARK: &str = "FIRSTDIFF_ATTACK";

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub out: String,
    pub err: String,
    pub time: Duration,
    /// The most that the program and its worker had resident, in bytes.
    pub memory: u64,
    /// Processes that outlived it.
    pub orphans: Vec<String>,
    /// Unfinished files in the run's folder.
    pub leftovers: Vec<String>,
}

/// A run that has been started.
pub struct Started {
    pub child: Child,
    mark: String,
    start: Instant,
    readers: [thread::JoinHandle<String>; 2],
    folder: std::path::PathBuf,
}

/// Starts the program in a folder, which also is its temporary directory.
pub fn start(mut command: Command, folder: &Path) -> Started {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mark = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let temporary = folder.join("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    command.current_dir(folder).env("TMPDIR", &temporary).env(MARK, &mark);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for variable in ["CI", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "FIRSTDIFF_IN_PROCESS"] {
        command.env_remove(variable);
    }
    let mut child = command.spawn().unwrap();
    let readers = [
        reader(child.stdout.take().expect("it is piped")),
        reader(child.stderr.take().expect("it is piped")),
    ];
    Started { child, mark, start: Instant::now(), readers, folder: folder.to_path_buf() }
}

fn reader(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could be read is judged.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs it to its end; what hangs is ended, and seen by its time.
pub fn run(command: Command, folder: &Path) -> Outcome {
    start(command, folder).finish()
}

impl Started {
    pub fn finish(mut self) -> Outcome {
        let mut memory = 0;
        let status = loop {
            memory = memory.max(resident(self.child.id()));
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.start.elapsed() > LIMIT + Duration::from_secs(5) {
                self.child.kill().unwrap();
            }
            thread::sleep(Duration::from_millis(2));
        };
        let time = self.start.elapsed();
        let orphans = marked(&self.mark);
        for (pid, _) in &orphans {
            // Else the pipes stay open.
            let _ = Command::new("kill").args(["-KILL", pid]).status();
        }
        let [out, err] = self.readers.map(|reader| reader.join().unwrap());
        let mut leftovers = Vec::new();
        unfinished(&self.folder, &mut leftovers);
        Outcome {
            code: status.code(),
            signal: status.signal(),
            out,
            err,
            time,
            memory,
            orphans: orphans.into_iter().map(|(_, name)| name).collect(),
            leftovers,
        }
    }
}

/// The peaks of a process and of its children.
fn resident(pid: u32) -> u64 {
    let own = |pid: &str| -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(1024 * peak.trim().strip_suffix(" kB")?.parse::<u64>().ok()?)
    };
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let pid = pid.to_string();
    let children = children.unwrap_or_default();
    children.split_whitespace().chain([pid.as_str()]).filter_map(own).sum()
}

/// The processes that have the mark in their environment.
fn marked(mark: &str) -> Vec<(String, String)> {
    let wanted = format!("{MARK}={mark}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|&byte| byte == 0).any(|entry| entry == wanted.as_bytes()) {
            let name = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            found.push((pid, name.replace('\0', " ")));
        }
    }
    found
}

fn unfinished(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".firstdiff-") || name.starts_with("cc") && name.ends_with(".s") {
            found.push(name);
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            unfinished(&entry.path(), found);
        }
    }
}

impl Outcome {
    /// What no run may do, whatever it was given.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut fault = |is_one: bool, text: String| {
            if is_one {
                faults.push(text);
            }
        };
        fault(self.signal.is_some(), format!("ended by signal {:?}", self.signal));
        fault(self.time > LIMIT, format!("took {:.0} s", self.time.as_secs_f64()));
        fault(
            self.code.is_some_and(|code| code > 5 && code < 128),
            format!("exit {:?}", self.code),
        );
        fault(self.memory > MEMORY, format!("took {} MB of memory", self.memory >> 20));
        fault(!self.orphans.is_empty(), format!("left {:?}", self.orphans));
        fault(!self.leftovers.is_empty(), format!("left {:?}", self.leftovers));
        let json =
            self.out.is_empty() || serde_json::from_str::<serde_json::Value>(&self.out).is_ok();
        fault(self.out.starts_with('{') && !json, "its JSON is spoilt".to_string());
        faults
    }

    /// Whether a terminal would obey something in what was printed, or a CI runner.
    pub fn spoils_terminals(&self) -> bool {
        let is_hidden = |c: char| c.is_control() && !"\n\t".contains(c) || c == '\u{202e}';
        [&self.out, &self.err].into_iter().any(|text| {
            let mut lines = text.lines().map(str::trim_start);
            text.contains(is_hidden) || lines.any(|line| line.starts_with("::"))
        })
    }

    /// The last line that is the program's says what is wrong: with the file, and after a `;` what to do. What a
    /// compiler said may follow, marked.
    pub fn is_told(&self, file: &str) -> bool {
        let line = self.err.lines().rfind(|line| !line.starts_with("| ")).unwrap_or_default();
        line.starts_with("firstdiff: ") && line.contains(file) && line.contains("; ")
    }
}
