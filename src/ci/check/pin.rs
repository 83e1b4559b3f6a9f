//! Makes the snapshot of a reference: llama.cpp's runs of a configuration's prompts, without an engine.

use std::{collections::BTreeMap, fmt};

use crate::{
    ci::check::{
        CheckError, Config, Opened, Pinned, PinnedModel, PinnedPrompt, PinnedSite, cases::tokens,
        pinned::text_hash,
    },
    compare::{Digest, SiteFilter},
    core::{
        arithmetic::Arithmetic,
        sink::{Sink, Stopped},
        task::{Task, first_position},
        tensor::{DType, Tensor},
    },
    doctor,
    graph::site::Site,
    model::Model,
    reference::{Changes, Reference, ReferenceOptions},
    run::baseline::{self, Baseline},
};

/// Runs llama.cpp over every model and prompt. `done` hears each, as `model/prompt`.
pub fn pin(
    config: &Config,
    opened: &Opened,
    done: &mut dyn FnMut(&str),
) -> Result<Pinned, CheckError> {
    let mut models = BTreeMap::new();
    for (index, (choice, model)) in config.models.iter().zip(&opened.models).enumerate() {
        let options = ReferenceOptions { precision: config.reference, threads: None };
        let reference = Reference::load(model, options)?;
        let mut prompts = BTreeMap::new();
        for prompt in &config.prompts {
            let ids = tokens(config, model, &reference, index, prompt)?;
            let task = Task { prompt: &ids, decode: config.steps };
            let (text, dtypes) = (&prompt.text, &config.dtypes[..]);
            let pinned = PinnedPrompt::of(model, &reference, task, text, dtypes)?;
            prompts.insert(prompt.name.clone(), pinned);
            done(&format!("{}/{}", choice.name, prompt.name));
        }
        models.insert(choice.name.clone(), PinnedModel { blake3: model.hash(), prompts });
    }
    Ok(Pinned { llama_cpp: doctor::llama_cpp_version(), precision: config.reference, models })
}

impl PinnedPrompt {
    /// The reference's run of a prompt of that text, and its floors for engines of some dtypes.
    pub fn of(
        model: &Model,
        reference: &Reference,
        task: Task<'_>,
        text: &str,
        dtypes: &[DType],
    ) -> Result<PinnedPrompt, CheckError> {
        let every = SiteFilter::default();
        let of = |&dtype| Baseline::of(reference, model, task, &Arithmetic::engine(dtype), &every);
        let baselines = dtypes.iter().map(of).collect::<Result<Vec<_>, _>>()?;
        let steps = baselines.first().map_or_else(Vec::new, |first| first.steps.clone());
        let mut digests = Digests { prompt: task.prompt.len(), of: BTreeMap::new() };
        let mut forced = steps.iter().skip(1).flatten().copied();
        baseline::decode(reference, task, &mut digests, Changes::default(), |_| forced.next())?;
        let kept = digests.of.into_iter().map(|(site, digest)| {
            let floors = baselines.iter().map(|baseline| baseline.floor.0.get(&site).copied());
            Some((site, PinnedSite::new(digest, floors.collect::<Option<_>>()?)))
        });
        Ok(PinnedPrompt {
            text: text_hash(text),
            decode: task.decode,
            dtypes: dtypes.to_vec(),
            // A site without a floor was not measured, and is not kept.
            sites: kept.flatten().collect(),
            steps,
        })
    }
}

/// Keeps the digest of every tensor.
struct Digests {
    /// Tokens of the prompt.
    prompt: usize,
    of: BTreeMap<Site, Digest>,
}

impl Sink for Digests {
    fn wants(&self, _site: Site) -> bool {
        true
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        let first = first_position(self.prompt, site.step);
        self.of.insert(site, Digest::of(site, &tensor, first));
        Ok(())
    }
}

/// What a new snapshot has otherwise than an old one.
#[derive(Clone, Debug, PartialEq)]
pub struct Moved {
    /// `model/prompt`.
    pub name: String,
    pub how: String,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<10} {}", self.how, self.name)
    }
}

/// What changed from one snapshot to the next, a prompt a line. `None` is no snapshot.
pub fn moved(old: Option<&Pinned>, new: &Pinned) -> Vec<Moved> {
    let was = old.map(prompts).unwrap_or_default();
    let now = prompts(new);
    let mut all = Vec::new();
    for (name, (hash, prompt)) in &now {
        let how = match was.get(name) {
            None => "new".to_string(),
            Some((old_hash, _)) if old_hash != hash => "other model".to_string(),
            Some((_, old)) if old == prompt => continue,
            Some((_, old)) if old.text != prompt.text => "other text".to_string(),
            Some((_, old)) if old.steps != prompt.steps => "other ids".to_string(),
            Some((_, old)) => {
                let other = |site: &&Site| old.sites.get(site) != prompt.sites.get(site);
                let sites: Vec<&Site> = prompt.sites.keys().filter(other).collect();
                match sites.first() {
                    Some(first) => format!("{} sites, first {first}", sites.len()),
                    None => "other dtypes".to_string(),
                }
            }
        };
        all.push(Moved { name: name.clone(), how });
    }
    let gone = was.keys().filter(|name| !now.contains_key(*name));
    all.extend(gone.map(|name| Moved { name: name.clone(), how: "gone".to_string() }));
    all
}

fn prompts(pinned: &Pinned) -> BTreeMap<String, (&str, &PinnedPrompt)> {
    let of_model = |(name, model): (&'_ String, &'_ PinnedModel)| -> Vec<String> {
        model.prompts.keys().map(|prompt| format!("{name}/{prompt}")).collect()
    };
    let names = pinned.models.iter().flat_map(of_model);
    let kept = pinned
        .models
        .values()
        .flat_map(|model| model.prompts.values().map(|prompt| (model.blake3.as_str(), prompt)));
    names.zip(kept).collect()
}
