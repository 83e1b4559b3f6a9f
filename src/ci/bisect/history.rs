//! The commits that changed a folder of kernels, and the folder as it was in each.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// More files, or larger ones, are no kernels.
const MAX_FILES: usize = 1000;
const MAX_BYTES: usize = 4 << 20;

/// Why a history cannot be searched.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("cannot run git: {0}; install it")]
    NoGit(std::io::Error),
    #[error("git {command}: {message}; name two commits of the repository of the kernels")]
    Git { command: String, message: String },
    #[error("{good} is not an ancestor of {bad}; give the older commit first")]
    NoAncestor { good: String, bad: String },
    #[error("no commit after {good} up to {bad} changes {folder}; name the folder with --folder")]
    NoChange { good: String, bad: String, folder: PathBuf },
    #[error("{commit}: {folder} is not a folder of kernels: {detail}; name it with --folder")]
    Folder { commit: String, folder: PathBuf, detail: String },
    #[error("cannot write {path}: {source}; choose another temporary folder")]
    Write { path: PathBuf, source: std::io::Error },
}

/// A commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    pub hash: String,
    pub subject: String,
}

impl Commit {
    /// Enough of the hash to find it again.
    pub fn short(&self) -> &str {
        self.hash.get(..10).unwrap_or(&self.hash)
    }
}

/// The good commit, then those on its first-parent line up to the bad one that change the folder.
pub struct History {
    repository: PathBuf,
    folder: PathBuf,
    pub commits: Vec<Commit>,
}

impl History {
    /// Reads the history of a folder of the repository that it lies in.
    pub fn read(folder: &Path, good: &str, bad: &str) -> Result<History, HistoryError> {
        let (name, parent) = (folder.file_name(), folder.parent());
        let inside = folder.is_dir().then_some(folder).or(parent).unwrap_or(folder);
        let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
        let top = git(inside, &["rev-parse", "--show-toplevel"])?;
        let prefix = git(inside, &["rev-parse", "--show-prefix"])?;
        let own = Path::new(prefix.trim_end().trim_end_matches('/'));
        let within =
            if folder.is_dir() { own.to_path_buf() } else { own.join(name.unwrap_or_default()) };
        let repository = PathBuf::from(top.trim_end());
        let commit = |name: &str| {
            let name = format!("{name}^{{commit}}");
            let hash = git(&repository, &["rev-parse", "--verify", "--end-of-options", &name])?;
            Ok(hash.trim_end().to_string())
        };
        let (first, last) = (commit(good)?, commit(bad)?);
        if git(&repository, &["merge-base", "--is-ancestor", &first, &last]).is_err() {
            let (good, bad) = (good.to_string(), bad.to_string());
            return Err(HistoryError::NoAncestor { good, bad });
        }
        let (range, shown) = (format!("{first}..{last}"), within.display().to_string());
        let path = if shown.is_empty() { "." } else { &shown };
        let list = ["log", "--first-parent", "--reverse", "--format=%H %s", &range, "--", path];
        let mut commits = commits(&git(&repository, &["log", "-1", "--format=%H %s", &first])?);
        commits.extend(self::commits(&git(&repository, &list)?));
        if commits.len() < 2 {
            let (good, bad, folder) = (good.to_string(), bad.to_string(), folder.to_path_buf());
            return Err(HistoryError::NoChange { good, bad, folder });
        }
        Ok(History { repository, folder: within, commits })
    }

    /// Writes the folder's kernel files as they were in a commit.
    pub fn extract(&self, commit: &Commit, to: &Path) -> Result<(), HistoryError> {
        let hash = &commit.hash;
        let folder = |detail: String| HistoryError::Folder {
            commit: commit.short().to_string(),
            folder: self.folder.clone(),
            detail,
        };
        let tree = if self.folder.as_os_str().is_empty() {
            format!("{hash}:")
        } else {
            format!("{hash}:{}", self.folder.display())
        };
        let listed = git(&self.repository, &["ls-tree", "-r", "-z", "--name-only", &tree])
            .map_err(|_| folder("it is not there".to_string()))?;
        let is_kernel = |name: &&str| name.ends_with(".cu") || name.ends_with(".cuh");
        let names: Vec<&str> = listed.split('\0').filter(is_kernel).collect();
        if names.len() > MAX_FILES {
            return Err(folder(format!("{} kernel files", names.len())));
        }
        for name in names {
            let colon = if tree.ends_with(':') { "" } else { "/" };
            let text =
                git(&self.repository, &["cat-file", "blob", &format!("{tree}{colon}{name}")])?;
            if text.len() > MAX_BYTES {
                return Err(folder(format!("{name} is over 4 MiB")));
            }
            let path = to.join(name);
            let write = |source| HistoryError::Write { path: path.clone(), source };
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(write)?;
            }
            std::fs::write(&path, text).map_err(write)?;
        }
        Ok(())
    }
}

fn commits(log: &str) -> Vec<Commit> {
    let lines = log.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(hash, subject)| Commit { hash: hash.into(), subject: subject.into() }).collect()
}

/// What git prints.
fn git(folder: &Path, arguments: &[&str]) -> Result<String, HistoryError> {
    let output = Command::new("git").arg("-C").arg(folder).args(arguments).output();
    let output = output.map_err(HistoryError::NoGit)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let message = message.lines().next().unwrap_or_default().to_string();
    Err(HistoryError::Git { command: arguments[0].to_string(), message })
}
