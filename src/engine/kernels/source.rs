//! Where kernel sources come from: embedded in the binary, or a folder that overrides them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    core::files,
    engine::{
        contract::{Contract, Op},
        device::{KernelSource, host::has_header},
        kernels::embedded::{
            EMBEDDED, IncludeError, MAX_INCLUDE_DEPTH, embedded, engine_files, included,
            with_includes,
        },
    },
};

/// Larger files are no kernels.
pub const MAX_BYTES: u64 = 16 << 20;

/// The kernel files of a run: the embedded ones, or those of a folder where it has them; and the
/// operations that kernels with a contract take over.
#[derive(Clone, Debug, Default)]
pub struct KernelSet {
    folder: Option<PathBuf>,
    contracts: Vec<Arc<Contract>>,
}

/// A kernel file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("{folder} holds no kernel file; put a changed copy of one of these there: {known}")]
    NothingToOverride { folder: PathBuf, known: String },
    #[error("cannot read {path}: {source}; check --kernels")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{file}:{line}: cannot find the include \"{include}\"; put it beside {file}")]
    Include { file: String, line: usize, include: String },
    #[error("{path} would never run: no kernel of the engine has that name; {help}")]
    NotAKernel { path: PathBuf, help: String },
    #[error(
        "{file} in the kernels folder is changed, but nothing here launches it: {why}; choose an option that \
         launches it, remove it from the folder, or continue with --unused-kernels"
    )]
    NotLaunched { file: String, why: String },
    #[error("{folder} holds more than a thousand files; give a folder of kernels alone")]
    TooManyFiles { folder: PathBuf },
    #[error("{file}: includes nest deeper than {MAX_INCLUDE_DEPTH}; break the cycle")]
    IncludeDepth { file: String },
}

impl KernelSet {
    /// The sources that the binary carries.
    pub fn embedded() -> KernelSet {
        KernelSet::default()
    }

    /// The sources of `folder`, and the embedded ones for files it lacks.
    pub fn overridden_by(folder: &Path) -> Result<KernelSet, KernelError> {
        let has = |(file, _): &(&str, &str)| folder.join(file).is_file();
        if EMBEDDED.iter().any(has) {
            return Ok(KernelSet::beside(folder));
        }
        std::fs::read_dir(folder)
            .map_err(|source| KernelError::Read { path: folder.to_path_buf(), source })?;
        let known: Vec<&str> = EMBEDDED.iter().map(|(file, _)| *file).collect();
        Err(KernelError::NothingToOverride {
            folder: folder.to_path_buf(),
            known: known.join(", "),
        })
    }

    /// The sources of a folder, whatever it has, and the embedded ones for files it lacks.
    pub fn beside(folder: &Path) -> KernelSet {
        KernelSet { folder: Some(folder.to_path_buf()), contracts: Vec::new() }
    }

    /// The same, with a contract's kernel for its operation.
    pub fn with_contract(mut self, contract: Contract) -> KernelSet {
        self.contracts.retain(|other| other.op != contract.op);
        self.contracts.push(Arc::new(contract));
        self
    }

    /// The contracts, one an operation at most.
    pub fn contracts(&self) -> &[Arc<Contract>] {
        &self.contracts
    }

    /// The contract of an operation's kernel.
    pub fn contract(&self, op: Op) -> Option<&Arc<Contract>> {
        self.contracts.iter().find(|contract| contract.op == op)
    }

    /// The folder whose files replace the embedded ones.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The names of the engine's `.cu` files, in the order of a forward pass.
    pub fn files() -> impl Iterator<Item = &'static str> {
        engine_files()
    }

    /// A source file ready to compile: its own includes in place, `defines` passed with `-D`.
    pub fn source(&self, file: &str, defines: Vec<String>) -> Result<KernelSource, KernelError> {
        let text = match self.read(file)? {
            Some(text) => with_includes(file, &text, &|file| self.included(file))?,
            None => {
                let path = self.folder.clone().unwrap_or_default().join(file);
                let source = std::io::ErrorKind::NotFound.into();
                return Err(KernelError::Read { path, source });
            }
        };
        Ok(KernelSource { file: file.to_string(), text, defines })
    }

    /// The text that an include in quotes stands for. The compiler's own headers stay includes.
    fn included(&self, file: &str) -> Result<Option<String>, KernelError> {
        let own = || has_header(file).then(|| format!("#include <{file}>\n"));
        Ok(self.read(file)?.or_else(own))
    }

    /// The text of a file as it stands: the folder's, else the embedded one, if there is one.
    pub fn read(&self, file: &str) -> Result<Option<String>, KernelError> {
        if let Some(path) = self.folder.as_ref().map(|folder| folder.join(file)) {
            match files::read_text(&path, MAX_BYTES) {
                Ok(text) => return Ok(Some(text)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(KernelError::Read { path, source }),
            }
        }
        Ok(embedded(file).map(str::to_string))
    }
}

impl From<IncludeError<KernelError>> for KernelError {
    fn from(error: IncludeError<KernelError>) -> KernelError {
        match error {
            IncludeError::Read(error) => error,
            IncludeError::Missing { file, line, include } => {
                KernelError::Include { file, line, include }
            }
            IncludeError::Depth { file } => KernelError::IncludeDepth { file },
        }
    }
}

/// The files that a source includes by their names in quotes.
pub(super) fn includes(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(included)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_overrides_only_the_files_it_has() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("swiglu.cu"), "// mine\n#include \"common.cuh\"\n")
            .unwrap();
        let kernels = KernelSet::overridden_by(folder.path()).unwrap();
        let mine = kernels.source("swiglu.cu", vec![]).unwrap().text;
        assert!(mine.starts_with("// mine\n#line 1 \"common.cuh\"\n"), "{mine}");
        assert!(mine.ends_with("#line 3 \"swiglu.cu\"\n"), "{mine}");
        let rope = kernels.source("rope.cu", vec![]).unwrap();
        assert_eq!(rope, KernelSet::embedded().source("rope.cu", vec![]).unwrap());
    }

    #[test]
    fn a_folder_without_kernels_and_a_missing_include_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = KernelSet::overridden_by(folder.path()).unwrap_err();
        assert!(error.to_string().contains("rope.cu"), "{error}");
        assert!(KernelSet::overridden_by(&folder.path().join("absent")).is_err());
        std::fs::write(folder.path().join("rope.cu"), "\n#include \"mine.cuh\"\n").unwrap();
        let kernels = KernelSet::overridden_by(folder.path()).unwrap();
        let error = kernels.source("rope.cu", vec![]).unwrap_err().to_string();
        assert!(error.starts_with("rope.cu:2: cannot find the include \"mine.cuh\""), "{error}");
    }

    #[test]
    fn an_include_cycle_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("rope.cu"), "#include \"rope.cu\"\n").unwrap();
        let kernels = KernelSet::overridden_by(folder.path()).unwrap();
        assert!(matches!(kernels.source("rope.cu", vec![]), Err(KernelError::IncludeDepth { .. })));
    }
}
