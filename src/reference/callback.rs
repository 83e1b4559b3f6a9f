//! The graph callback: llama.cpp calls it for every node, it hands wanted tensors to the sink.

use std::{
    collections::BTreeMap,
    ffi::c_void,
    panic::{AssertUnwindSafe, catch_unwind},
};

use llama_cpp_sys_2 as sys;

use crate::{
    core::{
        pool,
        sink::{Sink, Stopped},
        tensor::Tensor,
    },
    graph::site::{Site, Stage},
    model::Config,
    reference::{
        Noise,
        node::{Biases, Node, Role, heads_first_to_tokens},
    },
};

/// Why a step's capture ended early.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    Stopped,
    /// A node of a wanted site is not what it should be.
    Node {
        site: Site,
        detail: String,
    },
    /// Our own code panicked; the payload's text.
    Panic(String),
}

/// One step being captured. Lives while llama.cpp decodes the step.
pub struct Capture<'a> {
    pub config: &'a Config,
    pub biases: &'a Biases,
    pub sink: &'a mut dyn Sink,
    pub noise: Option<&'a Noise>,
    pub step: u32,
    pub tokens: usize,
    /// Positions in the cache after the step.
    pub positions: usize,
    pub seen: BTreeMap<Site, u32>,
    pub failure: Option<Failure>,
    /// The raw scores of a layer, until the softmax node tells their scale.
    raw_scores: Option<(u32, Vec<f32>)>,
}

impl<'a> Capture<'a> {
    pub fn new(
        config: &'a Config,
        biases: &'a Biases,
        sink: &'a mut dyn Sink,
        noise: Option<&'a Noise>,
        (step, tokens, positions): (u32, usize, usize),
    ) -> Capture<'a> {
        let seen = BTreeMap::new();
        let (failure, raw_scores) = (None, None);
        Capture { config, biases, sink, noise, step, tokens, positions, seen, failure, raw_scores }
    }

    fn at(&self, layer: u32, stage: Stage) -> Site {
        Site::in_layer(self.step, layer, stage)
    }

    /// Whether the node is needed: its own site or one that is read through it is wanted. With
    /// noise every site is needed, for all of them are changed.
    fn needs(&self, node: Node) -> bool {
        let wants = |site| self.noise.is_some() || self.sink.wants(site);
        match node.role(self.biases) {
            None => false,
            Some(Role::Stage(stage, layer)) => wants(Site { step: self.step, layer, stage }),
            Some(Role::Scores(layer)) => {
                wants(self.at(layer, Stage::Scores)) || wants(self.at(layer, Stage::KCache))
            }
            Some(Role::Probs(layer)) => {
                wants(self.at(layer, Stage::Probs)) || wants(self.at(layer, Stage::Scores))
            }
            Some(Role::Values(layer)) => wants(self.at(layer, Stage::VCache)),
        }
    }

    fn handle(&mut self, node: Node) -> Result<(), Failure> {
        match node.role(self.biases) {
            None => Ok(()),
            Some(Role::Stage(stage, layer)) => {
                let site = Site { step: self.step, layer, stage };
                self.stage(site, node)
            }
            Some(Role::Scores(layer)) => {
                let key_cache = node.source(0);
                self.cache(self.at(layer, Stage::KCache), key_cache, false)?;
                self.scores(layer, node)
            }
            Some(Role::Probs(layer)) => self.probs(layer, node),
            Some(Role::Values(layer)) => {
                self.cache(self.at(layer, Stage::VCache), node.source(0), true)
            }
        }
    }

    /// A tensor whose elements already lie in the stage's order.
    fn stage(&mut self, site: Site, node: Node) -> Result<(), Failure> {
        let shape = self.config.shape(site.stage, self.tokens, self.positions);
        let wanted: usize = shape.iter().product();
        let found: usize = node.ne().iter().product();
        if found != wanted {
            let detail = format!("node {} has {found} elements, not {wanted}", node.name());
            return Err(Failure::Node { site, detail });
        }
        self.check_readable(site, node)?;
        let mut data = node.read();
        let row_length = *shape.last().expect("every stage has axes");
        if let (Some(noise), Stage::QRope | Stage::KRope) = (self.noise, site.stage) {
            noise.turn(self.config, self.positions - self.tokens, shape[1], &mut data);
        }
        if self.add_noise(site, &mut data, row_length) {
            node.write(&data);
        }
        self.put(site, Tensor::new(shape, data))
    }

    /// kq: [padded P, T, Hq], not scaled yet.
    fn scores(&mut self, layer: u32, node: Node) -> Result<(), Failure> {
        let site = self.at(layer, Stage::Scores);
        let [padded, tokens, heads, _] = node.ne();
        if padded < self.positions || tokens != self.tokens || heads != self.config.n_head {
            let detail = format!("node {} has shape {:?}", node.name(), node.ne());
            return Err(Failure::Node { site, detail });
        }
        self.check_readable(site, node)?;
        let rows = self.read_rows(site, node);
        self.raw_scores = Some((layer, rows));
        Ok(())
    }

    /// kq_soft_max: [padded P, T, Hq], and the scale of the scores.
    fn probs(&mut self, layer: u32, node: Node) -> Result<(), Failure> {
        let site = self.at(layer, Stage::Probs);
        self.check_readable(site, node)?;
        let queries = self.sink.queries(site).map_or(self.tokens, <[usize]>::len);
        let shape = (queries, self.config.n_head, self.positions);
        if let Some((of_layer, raw)) = self.raw_scores.take()
            && of_layer == layer
        {
            let scores = heads_first_to_tokens(&raw, shape, node.float_param(0));
            self.put(self.at(layer, Stage::Scores), scores)?;
        }
        let rows = self.read_rows(site, node);
        self.put(site, heads_first_to_tokens(&rows, shape, 1.0))
    }

    /// The first P elements of each wanted row of a padded [P, T, Hq] node, with this run's noise, which
    /// is written back.
    fn read_rows(&self, site: Site, node: Node) -> Vec<f32> {
        let queries = self.sink.queries(site);
        if let (Some(queries), None) = (queries, self.noise) {
            let counts = [self.positions, queries.len(), self.config.n_head, 1];
            return node.read_rows(counts, Some(queries));
        }
        let mut cropped = node.read_part([self.positions, self.tokens, self.config.n_head, 1]);
        if self.add_noise(site, &mut cropped, self.positions) {
            let mut whole = node.read();
            let rows = whole.chunks_exact_mut(node.ne()[0]);
            for (row, noisy) in rows.zip(cropped.chunks_exact(self.positions)) {
                row[..self.positions].copy_from_slice(noisy);
            }
            node.write(&whole);
        }
        let Some(queries) = queries else { return cropped };
        let heads = cropped.chunks_exact(self.tokens * self.positions);
        let of_head = |head: &[f32]| {
            let rows: Vec<&[f32]> = head.chunks_exact(self.positions).collect();
            queries.iter().map(|&query| rows[query]).collect::<Vec<_>>().concat()
        };
        heads.flat_map(of_head).collect()
    }

    /// A cache view: keys as [D, padded P, Hk], values transposed as [padded P, D, Hk].
    fn cache(&mut self, site: Site, node: Option<Node>, transposed: bool) -> Result<(), Failure> {
        if !self.sink.wants(site) {
            return Ok(());
        }
        let (heads, dim) = (self.config.n_head_kv, self.config.head_dim);
        let positions = self.positions;
        let missing = || Failure::Node { site, detail: "the node has no source".to_string() };
        let node = node.ok_or_else(missing)?;
        self.check_readable(site, node)?;
        let counts = match transposed {
            true => [positions, dim, heads, 1],
            false => [dim, positions, heads, 1],
        };
        if counts.iter().zip(node.ne()).any(|(&wanted, found)| found < wanted) {
            let detail = format!("the cache view has shape {:?}", node.ne());
            return Err(Failure::Node { site, detail });
        }
        let values = node.read_part(counts);
        let mut data = pool::memory(positions * heads * dim);
        for head in 0..heads {
            for position in 0..positions {
                for d in 0..dim {
                    let from = match transposed {
                        true => (head * dim + d) * positions + position,
                        false => (head * positions + position) * dim + d,
                    };
                    data[(position * heads + head) * dim + d] = values[from];
                }
            }
        }
        self.put(site, Tensor::new([positions, heads, dim], data))
    }

    fn check_readable(&self, site: Site, node: Node) -> Result<(), Failure> {
        if node.is_readable() {
            return Ok(());
        }
        let detail = format!("node {} is neither f32 nor f16", node.name());
        Err(Failure::Node { site, detail })
    }

    /// Adds the noise of a site, if this run has noise.
    fn add_noise(&self, site: Site, values: &mut [f32], row_length: usize) -> bool {
        let Some(noise) = self.noise else { return false };
        let amplitude = noise.amplitude(self.config, site.stage, self.positions);
        noise.add_to(site, amplitude, values, row_length);
        true
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Failure> {
        if !self.sink.wants(site) {
            return Ok(());
        }
        *self.seen.entry(site).or_default() += 1;
        self.sink.put(site, tensor).map_err(|Stopped| Failure::Stopped)
    }
}

/// llama.cpp's `cb_eval`. `user_data` points to a pointer to the [`Capture`] of the step.
pub unsafe extern "C" fn on_node(
    tensor: *mut sys::ggml_tensor,
    ask: bool,
    user_data: *mut c_void,
) -> bool {
    // SAFETY: the session sets the slot to a live capture for the time of a decode, else to null.
    let capture = unsafe { (*user_data.cast::<*mut Capture<'_>>()).as_mut() };
    let Some(capture) = capture.filter(|capture| capture.failure.is_none()) else { return false };
    let node = Node(tensor);
    let handled = catch_unwind(AssertUnwindSafe(|| match ask {
        true => Ok(capture.needs(node)),
        false => capture.handle(node).map(|()| true),
    }));
    let failure = match handled {
        Ok(Ok(answer)) => return answer,
        Ok(Err(failure)) => failure,
        Err(payload) => {
            let text = payload.downcast_ref::<String>().cloned();
            let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| text.to_string()));
            Failure::Panic(text.unwrap_or_default())
        }
    };
    capture.failure = Some(failure);
    false
}

/// llama.cpp's `abort_callback`: ends the decode once a capture has failed or was stopped.
pub unsafe extern "C" fn is_over(user_data: *mut c_void) -> bool {
    // SAFETY: as in `on_node`.
    let capture = unsafe { (*user_data.cast::<*mut Capture<'_>>()).as_ref() };
    capture.is_some_and(|capture| capture.failure.is_some())
}
