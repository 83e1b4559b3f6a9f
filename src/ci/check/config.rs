//! The file that says what `firstdiff check` runs.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    compare::{FilterError, SiteFilter},
    core::{
        arithmetic::Convention,
        files,
        floor::{DEFAULT_FACTOR, MOST_FACTOR, is_factor},
        tensor::DType,
    },
    engine::{
        AttentionVariant, DeviceKind,
        kernels::{KernelError, KernelSet, Launches},
    },
    graph::site::Site,
    model::synth::{Spec, SynthError},
    reference::Precision,
};

/// A configuration, a prompt, longer than this is none.
const MAX_BYTES: u64 = 1 << 20;
/// Most tokens that are decoded after a prompt.
const MAX_STEPS: u32 = 4096;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}; check the path")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}:{line}: {message}; docs/ci.md lists the keys")]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{path}: {detail}")]
    Value { path: PathBuf, detail: String },
    #[error("{path}: tolerances: {detail}; write globs such as q_rope, blk.0.* or logits")]
    Glob { path: PathBuf, detail: String },
    #[error(
        "{path}: tolerances: {glob} matches no site of any model; fix the glob or remove the rule"
    )]
    Unmatched { path: PathBuf, glob: String },
    #[error("{path}: kernels: {source}")]
    Kernels { path: PathBuf, source: KernelError },
    #[error("{path}: models: {name}: {source}")]
    Synth { path: PathBuf, name: String, source: Box<SynthError> },
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    models: Vec<ModelEntry>,
    prompts: Vec<PromptEntry>,
    #[serde(default = "default_steps")]
    steps: u32,
    #[serde(default = "default_dtypes")]
    dtypes: Vec<String>,
    #[serde(default = "default_variants")]
    variants: Vec<String>,
    #[serde(default = "default_devices")]
    devices: Vec<String>,
    kernels: Option<PathBuf>,
    #[serde(default)]
    arithmetic: Vec<String>,
    #[serde(default = "default_reference")]
    reference: String,
    #[serde(default)]
    tolerances: Vec<ToleranceEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelEntry {
    name: Option<String>,
    path: Option<PathBuf>,
    synth: Option<String>,
    seed: Option<u64>,
    #[serde(default)]
    fixture: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PromptEntry {
    name: String,
    text: Option<String>,
    file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToleranceEntry {
    sites: String,
    factor: f64,
}

fn default_steps() -> u32 {
    4
}

fn default_dtypes() -> Vec<String> {
    vec!["f32".to_string()]
}

fn default_variants() -> Vec<String> {
    vec![AttentionVariant::default().to_string()]
}

fn default_devices() -> Vec<String> {
    vec!["host".to_string()]
}

fn default_reference() -> String {
    "f32".to_string()
}

/// Where a model comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The fixture that the program carries.
    Fixture,
    Path(PathBuf),
    Synth(Spec),
}

/// A model to be checked.
#[derive(Clone, Debug)]
pub struct ModelChoice {
    pub name: String,
    pub source: Source,
}

/// A prompt to be checked.
#[derive(Clone, Debug, Serialize)]
pub struct Prompt {
    pub name: String,
    pub text: String,
}

/// Sites that are allowed more or fewer floors than [`DEFAULT_FACTOR`].
#[derive(Clone, Debug)]
pub struct Tolerance {
    pub glob: String,
    filter: SiteFilter,
    pub factor: f64,
}

/// What is to be checked. Of several tolerances for a site the last one counts.
#[derive(Clone, Debug)]
pub struct Config {
    pub path: PathBuf,
    pub models: Vec<ModelChoice>,
    pub prompts: Vec<Prompt>,
    pub steps: u32,
    pub dtypes: Vec<DType>,
    pub variants: Vec<AttentionVariant>,
    pub devices: Vec<(String, DeviceKind)>,
    pub kernels: KernelSet,
    /// What the kernels round on the way, as they declare.
    pub roundings: Vec<Convention>,
    pub reference: Precision,
    pub tolerances: Vec<Tolerance>,
    /// Tells this matrix from others: of the file, the prompts and the kernels.
    pub hash: String,
}

impl Config {
    /// Reads a configuration; paths in it start from its folder. `kernels` replaces its own folder.
    pub fn read(path: &Path, kernels: Option<&Path>) -> Result<Config, ConfigError> {
        let text = read_text(path)?;
        let file: File = toml::from_str(&text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count() + 1;
            let message = error.message().lines().collect::<Vec<_>>().join(" ");
            ConfigError::Syntax { path: path.to_path_buf(), line, message }
        })?;
        Reader { path, folder: path.parent().unwrap_or(Path::new("")) }.config(file, &text, kernels)
    }

    /// What the tolerances allow a site.
    pub fn factor(&self, site: Site) -> f64 {
        let rule = self.tolerances.iter().rev().find(|rule| rule.filter.wants(site));
        rule.map_or(DEFAULT_FACTOR, |rule| rule.factor)
    }

    /// The least that any site is allowed.
    pub fn least_factor(&self) -> f64 {
        self.tolerances.iter().map(|rule| rule.factor).fold(DEFAULT_FACTOR, f64::min)
    }

    /// Refuses a tolerance that matches none of the sites of all models.
    pub fn check_tolerances(&self, sites: &[Site]) -> Result<(), ConfigError> {
        for rule in &self.tolerances {
            match rule.filter.check(sites) {
                Ok(()) => {}
                Err(FilterError::NoMatch { glob, .. }) => {
                    return Err(ConfigError::Unmatched { path: self.path.clone(), glob });
                }
                Err(error) => {
                    let (path, detail) = (self.path.clone(), without_flag(&error));
                    return Err(ConfigError::Glob { path, detail });
                }
            }
        }
        Ok(())
    }
}

/// What is wrong with a glob, not as of the command line.
fn without_flag(error: &FilterError) -> String {
    match error {
        FilterError::Syntax(error) => error.to_string(),
        FilterError::NoMatch { glob, .. } => glob.clone(),
        FilterError::TooLong => "the globs of one rule are too many".to_string(),
        other => other.to_string(),
    }
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_path_buf(), source };
    files::read_text(path, MAX_BYTES).map_err(read)
}

/// Turns the file's values into what they mean.
struct Reader<'a> {
    path: &'a Path,
    folder: &'a Path,
}

impl Reader<'_> {
    fn config(
        &self,
        file: File,
        text: &str,
        kernels: Option<&Path>,
    ) -> Result<Config, ConfigError> {
        let own = file.kernels.map(|folder| self.folder.join(folder));
        let kernels = match kernels.map(Path::to_path_buf).or(own) {
            Some(folder) => KernelSet::overridden_by(&folder).map_err(|e| self.kernels(e))?,
            None => KernelSet::embedded(),
        };
        if file.steps > MAX_STEPS {
            let detail = format!("steps = {}: at most {MAX_STEPS}; give fewer", file.steps);
            return Err(self.value(detail));
        }
        let read_rounding = |text: &String| {
            Convention::parse(text).map_err(|error| self.value(format!("arithmetic: {error}")))
        };
        let prompts = self.each("prompts", file.prompts, |entry| self.prompt(entry))?;
        let mut config = Config {
            path: self.path.to_path_buf(),
            models: self.each("models", file.models, |entry| self.model(entry))?,
            prompts,
            steps: file.steps,
            dtypes: self.each("dtypes", file.dtypes, |name| self.dtype(&name))?,
            variants: self.variants(&file.variants)?,
            devices: self.each("devices", file.devices, |name| self.device(name))?,
            kernels,
            roundings: file.arithmetic.iter().map(read_rounding).collect::<Result<_, _>>()?,
            reference: self.reference(&file.reference)?,
            tolerances: file
                .tolerances
                .into_iter()
                .map(|t| self.tolerance(t))
                .collect::<Result<_, _>>()?,
            hash: String::new(),
        };
        self.distinct("models", config.models.iter().map(|model| model.name.clone()))?;
        self.distinct("prompts", config.prompts.iter().map(|prompt| prompt.name.clone()))?;
        self.distinct("dtypes", config.dtypes.iter().map(DType::to_string))?;
        self.distinct("variants", config.variants.iter().map(AttentionVariant::to_string))?;
        self.distinct("devices", config.devices.iter().map(|(name, _)| name.clone()))?;
        self.launched(&config).map_err(|e| self.kernels(e))?;
        config.hash = self.hash(text, &config)?;
        Ok(config)
    }

    /// Refuses kernels that no case launches.
    fn launched(&self, config: &Config) -> Result<(), KernelError> {
        let on_gpu = config.devices.iter().any(|(_, device)| *device == DeviceKind::Cuda);
        let decodes = config.steps > 0;
        let launches = |&attention: &AttentionVariant| Launches { attention, decodes, on_gpu };
        config.kernels.check_names()?;
        config.kernels.check_launched(&config.variants.iter().map(launches).collect::<Vec<_>>())
    }

    /// Every entry of a list that must have some.
    fn each<T, U>(
        &self,
        what: &str,
        entries: Vec<T>,
        read: impl Fn(T) -> Result<U, ConfigError>,
    ) -> Result<Vec<U>, ConfigError> {
        if entries.is_empty() {
            Err(self.value(format!("{what} is empty; give at least one")))
        } else {
            entries.into_iter().map(read).collect()
        }
    }

    fn distinct(&self, what: &str, names: impl Iterator<Item = String>) -> Result<(), ConfigError> {
        let mut seen = BTreeSet::new();
        for name in names {
            if name.chars().any(char::is_control) {
                let detail = format!("{what}: {name:?} has a control character; use another name");
                return Err(self.value(detail));
            }
            if !seen.insert(name.clone()) {
                return Err(
                    self.value(format!("{what}: {name} appears twice; use different names"))
                );
            }
        }
        Ok(())
    }

    fn model(&self, entry: ModelEntry) -> Result<ModelChoice, ConfigError> {
        let ModelEntry { name, path, synth, seed, fixture } = entry;
        let (own, source) = match (path, synth, fixture) {
            (Some(path), None, false) if seed.is_none() => {
                let own = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into());
                (own, Source::Path(self.folder.join(path)))
            }
            (None, Some(preset), false) => {
                let spec = Spec::preset(&preset).map_err(|source| ConfigError::Synth {
                    path: self.path.to_path_buf(),
                    name: preset.clone(),
                    source: Box::new(source),
                })?;
                (preset, Source::Synth(Spec { seed: seed.unwrap_or(spec.seed), ..spec }))
            }
            (None, None, true) if seed.is_none() => ("fixture".to_string(), Source::Fixture),
            _ => {
                let detail = "a model has one of path, synth (optionally with a seed) and fixture = true; \
                    remove the others";
                return Err(self.value(format!("models: {detail}")));
            }
        };
        Ok(ModelChoice { name: name.unwrap_or(own), source })
    }

    fn prompt(&self, entry: PromptEntry) -> Result<Prompt, ConfigError> {
        let PromptEntry { name, text, file } = entry;
        let text = match (text, file) {
            (Some(text), None) => text,
            (None, Some(file)) => {
                let text = read_text(&self.folder.join(file))?;
                text.strip_suffix('\n').map(str::to_string).unwrap_or(text)
            }
            _ => {
                return Err(self.value(format!("prompts: {name} needs a text or a file; give one")));
            }
        };
        Ok(Prompt { name, text })
    }

    fn dtype(&self, name: &str) -> Result<DType, ConfigError> {
        match name {
            "f32" => Ok(DType::F32),
            "f16" => Ok(DType::F16),
            _ => Err(self.value(format!("dtypes: no dtype {name}; use f32 or f16"))),
        }
    }

    /// `all` is the eight.
    fn variants(&self, names: &[String]) -> Result<Vec<AttentionVariant>, ConfigError> {
        let mut variants = Vec::new();
        for name in names {
            match name.as_str() {
                "all" => variants.extend(AttentionVariant::all()),
                name => {
                    variants.push(name.parse().map_err(|e| self.value(format!("variants: {e}")))?)
                }
            }
        }
        if variants.is_empty() {
            Err(self.value("variants is empty; give at least one".to_string()))
        } else {
            Ok(variants)
        }
    }

    fn device(&self, name: String) -> Result<(String, DeviceKind), ConfigError> {
        let kind = match name.as_str() {
            "host" => DeviceKind::Host,
            "checked" => DeviceKind::Checked,
            "cuda" => DeviceKind::Cuda,
            _ => {
                let detail = format!("devices: no device {name}; use host, checked or cuda");
                return Err(self.value(detail));
            }
        };
        Ok((name, kind))
    }

    fn reference(&self, name: &str) -> Result<Precision, ConfigError> {
        match name {
            "f32" => Ok(Precision::F32),
            "native" => Ok(Precision::Native),
            _ => Err(self.value(format!("reference = {name}; use f32 or native"))),
        }
    }

    fn tolerance(&self, entry: ToleranceEntry) -> Result<Tolerance, ConfigError> {
        let ToleranceEntry { sites: glob, factor } = entry;
        if !is_factor(factor) {
            let detail = format!(
                "tolerances: {glob}: factor {factor} is out of range; give more than 0 and at most \
                 {MOST_FACTOR}"
            );
            return Err(self.value(detail));
        }
        let filter = SiteFilter::parse(&glob).map_err(|error| ConfigError::Glob {
            path: self.path.to_path_buf(),
            detail: without_flag(&error),
        })?;
        if glob.trim_matches([',', ' ']).is_empty() {
            return Err(self.value("tolerances: a rule has no sites; give a glob".to_string()));
        }
        Ok(Tolerance { glob, filter, factor })
    }

    fn hash(&self, text: &str, config: &Config) -> Result<String, ConfigError> {
        let mut hasher = blake3::Hasher::new();
        let mut add = |part: &str| {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        };
        add(text);
        config.prompts.iter().for_each(|prompt| add(&prompt.text));
        for file in KernelSet::files() {
            let source = config.kernels.source(file, Vec::new()).map_err(|e| self.kernels(e))?;
            add(&source.text);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    fn value(&self, detail: String) -> ConfigError {
        ConfigError::Value { path: self.path.to_path_buf(), detail }
    }

    fn kernels(&self, source: KernelError) -> ConfigError {
        ConfigError::Kernels { path: self.path.to_path_buf(), source }
    }
}
