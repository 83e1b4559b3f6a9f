//! The reference of a check as a file that is committed: of each tensor of llama.cpp a digest, and how
//! far rounding moves it. `docs/ci.md` describes the file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use half::bf16;
use serde::{Deserialize, Serialize};

use crate::{
    ci::check::lines,
    compare::{Digest, SAMPLES, SUMS},
    core::{files, floor::SiteFloor, tensor::DType},
    graph::site::Site,
    reference::Precision,
};

/// Raised when the meaning of the file changes, or which elements a digest takes.
const REFERENCE_VERSION: u32 = 2;
/// Larger files are no snapshots: one of 80 layers and 8 steps has 2 MB a prompt.
const MAX_BYTES: u64 = 256 << 20;
const CHECKSUM: &str = "\"checksum\": \"";
const FLOOR: usize = 4;

/// Why a snapshot of a reference cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinnedError {
    #[error("cannot read {path}: {source}; `firstdiff bless --reference` writes a snapshot")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a snapshot of `firstdiff bless --reference`: {detail}; write it again")]
    Foreign { path: PathBuf, detail: String },
    #[error(
        "{path} was edited or truncated: its checksum does not match its text; write it again with `firstdiff \
         bless --reference`"
    )]
    Edited { path: PathBuf },
}

/// A reference, as far as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Pinned {
    /// The llama.cpp that ran.
    pub llama_cpp: String,
    pub precision: Precision,
    pub models: BTreeMap<String, PinnedModel>,
}

/// By the names of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct PinnedModel {
    pub blake3: String,
    pub prompts: BTreeMap<String, PinnedPrompt>,
}

/// The reference's run of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PinnedPrompt {
    /// Tells the text from others.
    pub text: String,
    /// Steps that were asked for after the prompt; decoding may have ended early.
    pub decode: u32,
    /// The token ids of each step.
    pub steps: Vec<Vec<i32>>,
    /// What the floors are of.
    pub dtypes: Vec<DType>,
    pub sites: BTreeMap<Site, PinnedSite>,
}

/// A tensor of the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct PinnedSite {
    pub digest: Digest,
    /// One a dtype.
    pub floors: Vec<SiteFloor>,
}

impl PinnedSite {
    /// The floors have the three digits that the file has.
    pub fn new(digest: Digest, floors: Vec<SiteFloor>) -> PinnedSite {
        let short = |x: f64| bf16::from_f64(x).to_f64();
        let short = |SiteFloor { elementwise, relative_l2 }| SiteFloor {
            elementwise: short(elementwise),
            relative_l2: short(relative_l2),
        };
        PinnedSite { digest, floors: floors.into_iter().map(short).collect() }
    }
}

/// What a file of any version has.
#[derive(Deserialize)]
struct Versioned {
    reference_version: u32,
}

/// The file as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    reference_version: u32,
    llama_cpp: String,
    precision: Precision,
    models: BTreeMap<String, FileModel>,
    /// Of the text before it, so it is written after the rest.
    #[serde(rename = "checksum", skip_serializing)]
    _checksum: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileModel {
    blake3: String,
    prompts: BTreeMap<String, FilePrompt>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePrompt {
    text: String,
    decode: u32,
    dtypes: Vec<DType>,
    steps: Vec<Vec<i32>>,
    /// In the order of a forward pass.
    sites: serde_json::Map<String, serde_json::Value>,
}

/// Tells a prompt's text from others.
pub fn text_hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..24].to_string()
}

impl Pinned {
    /// Reads a file, and refuses one that is not as it was written.
    pub fn read(path: &Path) -> Result<Pinned, PinnedError> {
        let read = |source| PinnedError::Read { path: path.to_path_buf(), source };
        let foreign = |detail: String| PinnedError::Foreign { path: path.to_path_buf(), detail };
        let text = files::read_text(path, MAX_BYTES).map_err(read)?;
        if let Ok(Versioned { reference_version: found }) = serde_json::from_str(&text)
            && found != REFERENCE_VERSION
        {
            return Err(foreign(format!("version {found}, and this reads {REFERENCE_VERSION}")));
        }
        let starts_so = text.starts_with("{\n\"reference_version\": ");
        let signed = text.rfind(CHECKSUM).map(|at| (&text[..at], &text[at..]));
        let intact = signed.is_some_and(|(body, end)| end == ending(body));
        if starts_so && !intact {
            return Err(PinnedError::Edited { path: path.to_path_buf() });
        }
        let file: File = serde_json::from_str(&text).map_err(|error| foreign(error.to_string()))?;
        let models = file.models.into_iter().map(|(name, model)| match model.opened() {
            Ok(model) => Ok((name, model)),
            Err(detail) => Err(foreign(format!("{name}: {detail}"))),
        });
        Ok(Pinned {
            llama_cpp: file.llama_cpp,
            precision: file.precision,
            models: models.collect::<Result<_, _>>()?,
        })
    }

    /// The file's text: a site a line.
    pub fn text(&self) -> String {
        let models = self.models.iter().map(|(name, model)| (name.clone(), FileModel::of(model)));
        let file = File {
            reference_version: REFERENCE_VERSION,
            llama_cpp: self.llama_cpp.clone(),
            precision: self.precision,
            models: models.collect(),
            _checksum: String::new(),
        };
        let text = lines::text(&file, &[(1, ""), (2, ""), (4, ""), (6, "")]);
        let body = text.strip_suffix("\n}\n").expect("its last line ends the file's object");
        let body = format!("{body},\n");
        let end = ending(&body);
        body + &end
    }

    /// `llama-cpp-sys-2 0.1.161, 6 elements and 8 sums of each tensor`
    pub fn described(&self) -> String {
        format!("{}, {SAMPLES} elements and {SUMS} sums of each tensor", self.llama_cpp)
    }
}

/// What ends a file of that body.
fn ending(body: &str) -> String {
    format!("{CHECKSUM}{}\"\n}}\n", &blake3::hash(body.as_bytes()).to_hex()[..32])
}

impl FileModel {
    fn of(model: &PinnedModel) -> FileModel {
        let prompts = model.prompts.iter();
        let prompts = prompts.map(|(name, prompt)| (name.clone(), FilePrompt::of(prompt)));
        FileModel { blake3: model.blake3.clone(), prompts: prompts.collect() }
    }

    fn opened(self) -> Result<PinnedModel, String> {
        let prompts = self.prompts.into_iter().map(|(name, prompt)| match prompt.opened() {
            Ok(prompt) => Ok((name, prompt)),
            Err(detail) => Err(format!("{name}: {detail}")),
        });
        Ok(PinnedModel { blake3: self.blake3, prompts: prompts.collect::<Result<_, _>>()? })
    }
}

impl FilePrompt {
    fn of(prompt: &PinnedPrompt) -> FilePrompt {
        let site = |(site, pinned): (&Site, &PinnedSite)| {
            let mut bytes = pinned.digest.to_bytes();
            for floor in &pinned.floors {
                bytes.extend(bf16::from_f64(floor.elementwise).to_le_bytes());
                bytes.extend(bf16::from_f64(floor.relative_l2).to_le_bytes());
            }
            let name = format!("{}/{}", site.step, site.tensor_name());
            (name, BASE64.encode(&bytes).into())
        };
        FilePrompt {
            text: prompt.text.clone(),
            decode: prompt.decode,
            dtypes: prompt.dtypes.clone(),
            steps: prompt.steps.clone(),
            sites: prompt.sites.iter().map(site).collect(),
        }
    }

    fn opened(self) -> Result<PinnedPrompt, String> {
        let FilePrompt { text, decode, steps, dtypes, sites } = self;
        let later = steps.get(1..).unwrap_or_default();
        let too_many = steps.len() > decode as usize + 1;
        if steps.first().is_none_or(Vec::is_empty) || later.iter().any(|step| step.len() != 1) {
            return Err("its steps are not a prompt and single tokens".to_string());
        }
        if too_many || dtypes.is_empty() {
            return Err("its steps or dtypes are not those of a run".to_string());
        }
        let opened = sites.into_iter().map(|(name, text)| {
            let site = name
                .split_once('/')
                .and_then(|(step, tensor)| Site::from_tensor_name(step.parse().ok()?, tensor));
            let pinned = BASE64.decode(text.as_str().unwrap_or_default()).ok();
            let pinned = pinned.and_then(|bytes| opened(&bytes, dtypes.len()));
            site.zip(pinned).ok_or_else(|| format!("{name} is not a site with its digest"))
        });
        let sites = opened.collect::<Result<_, _>>()?;
        Ok(PinnedPrompt { text, decode, steps, dtypes, sites })
    }
}

fn opened(bytes: &[u8], dtypes: usize) -> Option<PinnedSite> {
    let (digest, floors) = bytes.split_at_checked(Digest::BYTES)?;
    let digest = Digest::from_bytes(digest.try_into().ok()?)?;
    let number = |bytes: &[u8]| bf16::from_le_bytes([bytes[0], bytes[1]]).to_f64();
    let floor = |bytes: &[u8]| {
        let (elementwise, relative_l2) = (number(bytes), number(&bytes[2..]));
        let floor = SiteFloor { elementwise, relative_l2 };
        floor.is_sound().then_some(floor)
    };
    let floors = (floors.len() == FLOOR * dtypes).then(|| floors.chunks(FLOOR).map(floor))?;
    Some(PinnedSite { digest, floors: floors.collect::<Option<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{core::tensor::Tensor, graph::site::Stage};

    fn pinned() -> Pinned {
        let site = Site::global(0, Stage::Embd);
        let tensor = Tensor::new([2, 3], vec![1.0, -2.0, 3.0, 0.5, 0.25, -8.0]);
        let floor = |x| SiteFloor { elementwise: x, relative_l2: x };
        let digest = Digest::of(site, &tensor, 0);
        let floors = vec![floor(0.0), floor(2f64.powi(-11))];
        let prompt = PinnedPrompt {
            text: text_hash("Once"),
            decode: 1,
            steps: vec![vec![5, 6], vec![7]],
            dtypes: vec![DType::F32, DType::F16],
            sites: BTreeMap::from([(site, PinnedSite { digest, floors })]),
        };
        let prompts = BTreeMap::from([("a \"line\"".to_string(), prompt)]);
        let model = PinnedModel { blake3: "cd".to_string(), prompts };
        Pinned {
            llama_cpp: "llama-cpp-sys-2 0.1.161".to_string(),
            precision: Precision::F32,
            models: BTreeMap::from([("m".to_string(), model)]),
        }
    }

    fn read(text: &str) -> Result<Pinned, String> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("it can be written");
        Pinned::read(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_snapshot_is_read_as_it_was_written() {
        assert_eq!(read(&pinned().text()), Ok(pinned()));
        let committed = read(include_str!("../../../fixtures/check/quick.ref.json")).unwrap();
        assert_eq!(read(&committed.text()), Ok(committed));
    }

    #[test]
    fn a_file_that_is_edited_cut_off_or_foreign_is_refused_with_the_reason() {
        let text = pinned().text();
        let refused = |text: &str, says: &str| {
            let error = read(text).expect_err(text);
            assert!(error.contains(says), "{error}");
        };
        let edited = "was edited or truncated";
        refused(&text[..text.len() / 2], edited);
        refused(&text.replace("[5, 6]", "[5, 7]"), edited);
        refused(&text.replace("\"decode\": 1", "\"decode\": 2"), edited);
        refused("{}", "is not a snapshot of `firstdiff bless --reference`: missing field");
        refused("", "is not a snapshot");
        refused(&"[".repeat(9000), "is not a snapshot");
        // With a checksum that fits.
        let again = |from: &str, to: &str| {
            let (body, _) = text.rsplit_once(CHECKSUM).expect("it has one");
            let body = body.replace(from, to);
            format!("{body}{}", ending(&body))
        };
        refused(&again("_version\": 2", "_version\": 3"), "version 3, and this reads 2");
        // Another version has other fields.
        let old = ["_version\": 2,", "_version\": 1,\n\"date\": \"2026-11-25\","];
        refused(&again(old[0], old[1]), "version 1, and this reads 2");
        refused(&again("[[5, 6]", "[[]"), "its steps are not a prompt and single tokens");
        refused(&again("[7]", "[7],[8]"), "its steps or dtypes are not those of a run");
        refused(&again(", \"f16\"]", "]"), "0/embd is not a site with its digest");
        refused(&again("0/embd", "0/blk.0.embd"), "0/blk.0.embd is not a site with its digest");
        refused(&again("0/embd\": \"", "0/embd\": \"?"), "0/embd is not a site with its digest");
    }
}
