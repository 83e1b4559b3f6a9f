//! What outlives the working process: the pieces of work that it has done, and those it died of.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, Write},
    sync::{Mutex, OnceLock},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::core::exit::Exit;

/// What a piece of work died of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Death {
    /// Such as `rope.cu: the kernel rope_neox_f32 crashed ...; mend it`.
    pub text: String,
    pub exit: Exit,
    /// From the begin of the piece of work on.
    pub seconds: f64,
}

/// A line of the journal.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Done {
        unit: String,
        result: serde_json::Value,
    },
    Died {
        unit: String,
        death: Death,
    },
    /// The process died, and several pieces may have been what killed it.
    Unclear,
}

/// A file of lines that several processes write, one after another.
pub struct Journal {
    file: Mutex<File>,
    done: HashMap<String, serde_json::Value>,
    died: HashMap<String, Death>,
    is_unclear: bool,
}

impl Journal {
    /// Reads what is in a file, to write behind it. The last line may be cut off.
    pub fn read(mut file: File) -> std::io::Result<Journal> {
        let mut text = String::new();
        file.rewind()?;
        file.read_to_string(&mut text)?;
        let (mut done, mut died, mut is_unclear) = (HashMap::new(), HashMap::new(), false);
        for line in text.lines() {
            match serde_json::from_str(line) {
                Ok(Entry::Done { unit, result }) => drop(done.insert(unit, result)),
                Ok(Entry::Died { unit, death }) => drop(died.insert(unit, death)),
                Ok(Entry::Unclear) => is_unclear = true,
                Err(_) => {}
            }
        }
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        Ok(Journal { file: Mutex::new(file), done, died, is_unclear })
    }

    /// Whether a piece of work is in it.
    pub fn has(&self, unit: &str) -> bool {
        self.done.contains_key(unit) || self.died.contains_key(unit)
    }

    /// Pieces of work that were done.
    pub fn n_done(&self) -> usize {
        self.done.len()
    }

    /// Whether pieces must be done one after another, so that the one that kills the process is known.
    pub fn is_unclear(&self) -> bool {
        self.is_unclear
    }

    /// Writes that a piece of work killed the process.
    pub fn write_death(&self, unit: &str, death: &Death) -> std::io::Result<()> {
        self.write(&Entry::Died { unit: unit.to_string(), death: death.clone() })
    }

    /// Writes that it is not known which piece killed the process.
    pub fn write_unclear(&self) -> std::io::Result<()> {
        self.write(&Entry::Unclear)
    }

    fn write(&self, entry: &Entry) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let mut file = self.file.lock().map_err(|_| std::io::Error::other("a writer panicked"))?;
        file.write_all(&line)
    }
}

static JOURNAL: OnceLock<Journal> = OnceLock::new();

/// Makes a journal this process's.
pub fn open_journal(journal: Journal) {
    // A process has one.
    let _ = JOURNAL.set(journal);
}

/// This process's journal, if it has one.
pub fn journal() -> Option<&'static Journal> {
    JOURNAL.get()
}

/// What an earlier process died of in a piece of work.
pub fn died(unit: &str) -> Option<Death> {
    journal()?.died.get(unit).cloned()
}

/// The result of a piece of work that an earlier process has done.
pub fn done<T: DeserializeOwned>(unit: &str) -> Option<T> {
    let result = journal()?.done.get(unit)?;
    serde_json::from_value(result.clone()).ok()
}

/// Keeps the result of a piece of work for the case that this process dies.
pub fn keep<T: Serialize>(unit: &str, result: &T) {
    let json = serde_json::to_value(result);
    if let (Some(journal), Ok(result)) = (journal(), json) {
        // What cannot be kept is done again if the process dies.
        let _ = journal.write(&Entry::Done { unit: unit.to_string(), result });
    }
}
