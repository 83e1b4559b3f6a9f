//! A clean run of a reference and others beside it, each of whose tensors is measured against the clean one as soon as
//! it is there.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};

use super::baseline::{Held, row_tokens, wanted_sites};
use crate::{
    compare::{RowTokens, SiteFilter},
    core::{
        floor::{Floor, SiteFloor},
        progress,
        sink::{Choice, Sink, Stopped},
        spans,
        task::Task,
        tensor::Tensor,
    },
    graph::{Extent, ModelGraph, SiteList, site::Site},
    reference::{Amplitude, Changes, Forced, Noise, Place, ReferenceError, Session, is_choice},
};

/// Tensors of the clean run that may wait for the others: enough that it seldom waits itself.
const FEW: usize = 16;

/// A run.
pub struct Side<'a> {
    pub session: Session<'a>,
    pub noise: Option<&'a Noise>,
    /// The nodes that are computed, by their places in the graph; `None` where all are.
    pub needed: Option<Arc<[bool]>>,
}

/// Runs `clean` and others over the same tokens, the greedy ones of `clean` but for those that it is held to. Returns
/// its choices, and for each other its distance from `clean` at every site. What is recorded is the clean run.
pub fn measure_beside(
    graph: &ModelGraph,
    clean: Side<'_>,
    others: Vec<Side<'_>>,
    (task, held): (Task<'_>, Held<'_>),
    filter: &SiteFilter,
    record: Option<&mut dyn Sink>,
) -> Result<(Vec<Option<Choice>>, Vec<Floor>), ReferenceError> {
    let doing = match record {
        Some(_) => "recording, and measuring the floor",
        None => "measuring the floor",
    };
    progress::begin(doing, wanted_sites(graph, filter, task));
    let kept = Kept::new(others.len());
    // An expert less is no rounding: a run makes the choices of the clean one.
    let choices = Choices { graph, kept: &kept };
    let forced: &dyn Forced = match held.routing {
        Some(routing) => routing,
        None => &choices,
    };
    let list = SiteList::from(&graph.sites);
    // All runs compute the same nodes in a step, as they wait for one another: the logits where `clean` chooses.
    let chooses = |step| held.chooses(task, step);
    thread::scope(|scope| {
        let (mut runs, mut senders) = (Vec::new(), Vec::new());
        for Side { session, noise, needed } in others {
            let (sender, tokens) = mpsc::channel();
            senders.push(sender);
            let (kept, list, chooses) = (&kept, &list, &chooses);
            runs.push(scope.spawn(move || {
                let _ended = Ends(kept);
                spans::lane("reference with noise");
                let (prompt, floor) = (task.prompt.len(), Floor::default());
                let mut sink = Measured { kept, graph, list, filter, noise, prompt, floor };
                let needed = needed.as_deref();
                let changes = Changes { noise, forced: Some(forced), needed, ..Changes::default() };
                decode_in(session, task, &mut sink, changes, chooses, |_| tokens.recv().ok())?;
                Ok(sink.floor)
            }));
        }
        let choices = {
            let _ended = Ends(&kept);
            let mut sink = Clean { kept: &kept, graph, filter, record };
            let forced = held.routing.map(|routing| routing as &dyn Forced);
            let needed = clean.needed.as_deref();
            let changes = Changes { forced, needed, ..Changes::default() };
            let mut step = 0;
            decode_in(clean.session, task, &mut sink, changes, &chooses, |choice| {
                let token = held.token(step, choice)?;
                step += 1;
                let sent = senders.iter().all(|sender| sender.send(token).is_ok());
                sent.then_some(token)
            })
        };
        drop(senders);
        let ends: Vec<Result<Floor, ReferenceError>> = runs
            .into_iter()
            .map(|run| {
                run.join().unwrap_or_else(|_| Err(ReferenceError::Panic("a reference run".into())))
            })
            .collect();
        // One that failed has stopped the others, which say no more than that.
        let stopped = |error: &ReferenceError| matches!(error, ReferenceError::Stopped(_));
        let failures = ends.iter().filter_map(|end| end.as_ref().err());
        if failures.clone().any(|failure| !stopped(failure)) {
            let failed = |end: &Result<Floor, _>| end.as_ref().is_err_and(|error| !stopped(error));
            let failure = ends.into_iter().find(failed).and_then(Result::err);
            return Err(failure.expect("there is one"));
        }
        let choices = choices?;
        Ok((choices, ends.into_iter().collect::<Result<_, _>>()?))
    })
}

/// Runs a session over a task's steps, some of which are computed to their logits whatever else is needed; `next` gives
/// the token after each, `None` to end.
pub fn decode_in(
    mut session: Session<'_>,
    task: Task<'_>,
    sink: &mut dyn Sink,
    changes: Changes<'_>,
    chooses: &dyn Fn(u32) -> bool,
    mut next: impl FnMut(Option<Choice>) -> Option<i32>,
) -> Result<Vec<Option<Choice>>, ReferenceError> {
    let (mut tokens, mut position, mut choices) = (task.prompt.to_vec(), 0, Vec::new());
    for step in 0..=task.decode {
        sink.begin_step(&tokens, position)?;
        let needed = changes.needed.filter(|_| !chooses(step));
        let choice = session.step_with(step, &tokens, sink, Changes { needed, ..changes })?;
        sink.end_step(choice)?;
        choices.push(choice);
        position += tokens.len();
        match next(choice) {
            Some(token) => tokens = vec![token],
            None => break,
        }
    }
    Ok(choices)
}

/// The clean run's tensors, until every other run has taken them.
struct Kept {
    others: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Each with the runs that have yet to take it.
    tensors: HashMap<Site, (Arc<Tensor>, usize)>,
    /// Runs that wait for a tensor.
    waiting: usize,
    /// A run has ended: nobody waits any more.
    is_over: bool,
}

impl Kept {
    fn new(others: usize) -> Kept {
        Kept { others, state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a tensor, once there is room. There is where another run waits, whatever it waits for.
    fn put(&self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        if self.others == 0 {
            return Ok(());
        }
        let is_full =
            |state: &mut State| !state.is_over && state.waiting == 0 && state.tensors.len() >= FEW;
        let state = self.changed.wait_while(self.state(), is_full);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.is_over {
            return Err(Stopped);
        }
        state.tensors.insert(site, (Arc::new(tensor), self.others));
        self.changed.notify_all();
        Ok(())
    }

    /// The tensor of a site, once the clean run has it; `None` if it never will.
    fn get(&self, site: Site) -> Option<Arc<Tensor>> {
        let mut state = self.state();
        state.waiting += 1;
        self.changed.notify_all();
        let is_missing = |state: &mut State| !state.is_over && !state.tensors.contains_key(&site);
        let state = self.changed.wait_while(state, is_missing);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state.tensors.get(&site).map(|(tensor, _)| Arc::clone(tensor))
    }

    /// The same, of which the run then needs no more.
    fn take(&self, site: Site) -> Result<Arc<Tensor>, Stopped> {
        let tensor = self.get(site).ok_or(Stopped)?;
        let mut state = self.state();
        if let Some((_, left)) = state.tensors.get_mut(&site) {
            *left -= 1;
            if *left == 0 {
                state.tensors.remove(&site);
                self.changed.notify_all();
            }
        }
        Ok(tensor)
    }
}

/// Says that a run has ended, however it did. One that ends well has taken all that there is to come.
struct Ends<'a>(&'a Kept);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.state().is_over = true;
        self.0.changed.notify_all();
    }
}

/// The clean run's choices among experts, as it makes them.
struct Choices<'a> {
    graph: &'a ModelGraph,
    kept: &'a Kept,
}

impl Forced for Choices<'_> {
    fn ids(&self, site: Site) -> Option<Arc<Tensor>> {
        is_choice(self.graph, site).then(|| self.kept.get(site)).flatten()
    }
}

/// Keeps the clean run's tensors, and records them.
struct Clean<'a, 'r> {
    kept: &'a Kept,
    graph: &'a ModelGraph,
    filter: &'a SiteFilter,
    record: Option<&'r mut dyn Sink>,
}

impl Sink for Clean<'_, '_> {
    fn wants(&self, site: Site) -> bool {
        self.filter.wants(site) || is_choice(self.graph, site)
    }

    fn queries(&self, site: Site) -> Option<&[usize]> {
        self.filter.queries(site)
    }

    fn begin_step(&mut self, tokens: &[i32], first_position: usize) -> Result<(), Stopped> {
        self.record.as_mut().map_or(Ok(()), |record| record.begin_step(tokens, first_position))
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        if self.record.is_none() && self.filter.wants(site) {
            progress::advance(site);
        }
        if let Some(record) = self.record.as_mut().filter(|record| record.wants(site)) {
            record.put(site, tensor.clone())?;
        }
        self.kept.put(site, tensor)
    }

    fn end_step(&mut self, choice: Option<Choice>) -> Result<(), Stopped> {
        self.record.as_mut().map_or(Ok(()), |record| record.end_step(choice))
    }
}

/// Measures the tensors of a run against the clean one's.
struct Measured<'a> {
    kept: &'a Kept,
    graph: &'a ModelGraph,
    list: &'a SiteList,
    filter: &'a SiteFilter,
    noise: Option<&'a Noise>,
    /// Tokens of the first step.
    prompt: usize,
    floor: Floor,
}

impl Measured<'_> {
    fn amplitude(&self, site: Site) -> Amplitude {
        let none = Amplitude { relative: 0.0, additive: 0.0 };
        let spec = self.graph.sites.get(site);
        let Some((noise, spec)) = self.noise.zip(spec) else { return none };
        let tokens = if site.step == 0 { self.prompt } else { 1 };
        let cells = self.prompt + site.step as usize;
        let extent = Extent { tokens, cells, is_first: tokens == cells };
        noise.amplitude(Place { graph: &self.graph.graph, spec, extent })
    }
}

impl Sink for Measured<'_> {
    /// What the clean run keeps.
    fn wants(&self, site: Site) -> bool {
        self.filter.wants(site) || is_choice(self.graph, site)
    }

    fn queries(&self, site: Site) -> Option<&[usize]> {
        self.filter.queries(site)
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        let clean = self.kept.take(site)?;
        if !self.filter.wants(site) {
            return Ok(());
        }
        let tokens = row_tokens(self.filter, self.prompt, site);
        let tokens = RowTokens { axes: Some(self.list.axes(site)), ..tokens };
        let floor = SiteFloor::measure(site, &tensor, &clean, tokens, self.amplitude(site));
        self.floor.0.insert(site, floor);
        Ok(())
    }
}
