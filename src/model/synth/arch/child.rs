//! The child process: what it is asked and what it answers, as JSON.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde::{Deserialize, Serialize};

use super::{log, plan, plan::Layout, request::ArchSpec, trial};
use crate::{
    core::activity::{self, Foreign},
    model::synth::SynthError,
};

/// The hidden command of the program that is the child process; it must call [`serve`].
pub const CHILD_COMMAND: &str = "synth-child";

/// What the child is asked.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Question {
    /// The keys and tensors of a model.
    Plan(ArchSpec),
    /// Whether llama.cpp loads a file and decodes with it.
    Trial { spec: ArchSpec, path: PathBuf },
}

impl Question {
    fn spec(&self) -> &ArchSpec {
        match self {
            Question::Plan(spec) | Question::Trial { spec, .. } => spec,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Layout(Layout),
    Decoded,
    /// The message of an error.
    Refused(String),
}

/// Answers one question from standard input on standard output.
pub fn serve() -> std::io::Result<()> {
    let mut question = String::new();
    std::io::stdin().read_to_string(&mut question)?;
    let answer = match serde_json::from_str(&question)? {
        Question::Plan(spec) => plan::plan(&spec).map(Answer::Layout),
        Question::Trial { spec, path } => trial::trial(&spec, &path).map(|()| Answer::Decoded),
    };
    let answer = answer.unwrap_or_else(|error| Answer::Refused(error.to_string()));
    let mut out = std::io::stdout();
    serde_json::to_writer(&mut out, &answer)?;
    out.flush()
}

/// The keys and tensors of a model.
pub(super) fn layout(spec: &ArchSpec, program: &Path) -> Result<Layout, SynthError> {
    match ask(&Question::Plan(spec.clone()), spec, program)? {
        Answer::Layout(layout) => Ok(layout),
        Answer::Decoded | Answer::Refused(_) => Err(spec.refused("it planned nothing".to_string())),
    }
}

/// Loads a file of an architecture in llama.cpp and decodes with it.
pub(super) fn try_out(spec: &ArchSpec, path: &Path, program: &Path) -> Result<(), SynthError> {
    let question = Question::Trial { spec: spec.clone(), path: path.to_path_buf() };
    ask(&question, spec, program).map(|_| ())
}

fn ask(question: &Question, spec: &ArchSpec, program: &Path) -> Result<Answer, SynthError> {
    let failed = |source| SynthError::Program { program: program.to_path_buf(), source };
    let output = run(question, program).map_err(failed)?;
    match serde_json::from_slice(&output.stdout) {
        Ok(Answer::Refused(message)) => Err(SynthError::Child(message)),
        Ok(answer) => Ok(answer),
        Err(_) => {
            let said = log::complaint(&String::from_utf8_lossy(&output.stderr));
            let detail = format!("{}; it last said: {said}", output.status);
            let (name, next_step) = (spec.name.clone(), spec.next_step());
            Err(SynthError::Crashed { name, detail, next_step })
        }
    }
}

fn run(question: &Question, program: &Path) -> std::io::Result<Output> {
    let _running = activity::running(Foreign::Llama, &question.spec().name, "makes a model");
    let mut child = Command::new(program)
        .arg(CHILD_COMMAND)
        // Else llama.cpp starts a debugger when it ends the process.
        .env("GGML_NO_BACKTRACE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let json = serde_json::to_vec(question)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&json)?;
    }
    child.wait_with_output()
}
