//! Kernels with a contract in place of ours. What their layouts need is copied through the CPU:
//! here it matters what a kernel computes, not how fast it is fed.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    core::{attending::Calls, tensor::DType},
    engine::{
        Engine, EngineError,
        buffers::User,
        contract::{
            Access, Append, Axis, Bound, Call, CallError, Contract, ContractError, Dims, Op,
            Positions, Role, Stands,
            layout::{From, Layout, To, rearrange},
        },
        device::{Buffer, DeviceError, KernelSource},
        hooks::Pass,
        kernels::{
            KernelSet,
            launch::{self, CacheView, Slice},
        },
    },
    graph::site::Stage,
    model::Config,
};

/// A contract whose kernel is loaded under that name.
pub struct Loaded {
    pub contract: Arc<Contract>,
    entry: String,
}

/// The contracts of a run, and the sources that they add to those of the engine.
pub fn prepare(
    kernels: &KernelSet,
    (config, storage): (&Config, DType),
    sources: &mut Vec<KernelSource>,
) -> Result<Vec<Loaded>, EngineError> {
    let taken: BTreeSet<String> = sources.iter().flat_map(KernelSource::entries).collect();
    let mut loaded = Vec::new();
    for contract in kernels.contracts() {
        if contract.pairs.is_some_and(|pairs| pairs != config.rope_pairs) {
            return Err(EngineError::Contract(ContractError::Requires {
                path: contract.path.clone(),
                condition: format!("pairs = \"{:?}\"", contract.pairs).to_lowercase(),
                model: format!("this model, whose pairs are {:?}", config.rope_pairs),
            }));
        }
        let dims = model_dims(config, storage);
        sources.push(contract.kernel_source(storage, &dims, &taken)?);
        let entry = contract.called(storage, &taken)?;
        loaded.push(Loaded { contract: Arc::clone(contract), entry });
    }
    Ok(loaded)
}

/// A failed compilation as the contract's mismatch, where it is one.
pub fn explained(loaded: &[Loaded], error: DeviceError) -> EngineError {
    let mismatch = loaded.iter().find_map(|loaded| loaded.contract.mismatch(&error));
    mismatch.map_or(EngineError::Device(error), EngineError::Contract)
}

fn model_dims(c: &Config, storage: DType) -> Dims {
    let dims = [
        ("n_layer", c.n_layer),
        ("n_embd", c.n_embd),
        ("n_head", c.n_head),
        ("n_head_kv", c.n_head_kv),
        ("head_dim", c.head_dim),
        ("n_ff", c.n_ff),
        ("n_vocab", c.n_vocab),
        ("batch", 1),
        ("element", storage.size()),
    ];
    dims.map(|(name, value)| (name, value as i64)).to_vec()
}

impl std::convert::From<CallError> for EngineError {
    fn from(error: CallError) -> EngineError {
        match error {
            CallError::Contract(error) => EngineError::Contract(error),
            CallError::Device(error) => EngineError::Device(error),
        }
    }
}

/// The tokens of one call.
#[derive(Clone, Copy)]
struct Part {
    layer: usize,
    /// The first of them within the step, and how many.
    start: usize,
    tokens: usize,
    /// Positions before them.
    past: usize,
}

/// A tensor of the engine: its first byte, and where its elements lie from there.
struct Own<'a> {
    role: Role,
    slice: Slice<'a>,
    layout: Layout,
}

/// A tensor laid out for the kernel.
struct Laid<'a> {
    own: Own<'a>,
    access: Access,
    /// `None` where the kernel takes the engine's memory.
    other: Option<(Buffer, Layout)>,
}

impl Engine {
    /// The contract of an operation, if it has one.
    pub(super) fn contract(&self, op: Op) -> Option<&Loaded> {
        self.contracts.iter().find(|loaded| loaded.contract.op == op)
    }

    fn dims(&self, own: &[(&'static str, usize)]) -> Dims {
        let own = own.iter().map(|&(name, value)| (name, value as i64));
        own.chain(model_dims(&self.config, self.options.storage)).collect()
    }

    fn call(
        &self,
        loaded: &Loaded,
        dims: Dims,
        bound: Vec<(Role, Bound<'_>)>,
    ) -> Result<(), EngineError> {
        let contract = &*loaded.contract;
        let mut scratch = Vec::new();
        for parameter in &contract.parameters {
            if let Stands::Scratch(bytes) = &parameter.stands {
                let bytes = contract.scratch_bytes(bytes, &dims)?;
                scratch.push(self.device.alloc(bytes, &parameter.name)?);
            }
        }
        let (dtype, scratch) = (self.options.storage, &scratch);
        Ok(Call { contract, dtype, dims, bound, scratch }.launch(&*self.device, &loaded.entry)?)
    }

    /// An operation on rows whose order is fixed: its result goes to `out`, by way of x where the kernel
    /// works in place.
    pub(super) fn call_on_rows(
        &self,
        loaded: &Loaded,
        dims: &[(&'static str, usize)],
        (out, bytes): (&Buffer, usize),
        inputs: &[(Role, Bound<'_>)],
    ) -> Result<(), EngineError> {
        let mut bound = vec![(Role::Out, Bound::Tensor(Some((out, 0))))];
        let in_place = loaded.contract.access(Role::X) == Some(Access::InOut);
        for &(role, input) in inputs {
            match input {
                Bound::Tensor(Some(slice)) if role == Role::X && in_place => {
                    self.copy(out, slice, bytes)?;
                    bound.push((role, Bound::Tensor(Some((out, 0)))));
                }
                _ => bound.push((role, input)),
            }
        }
        self.call(loaded, self.dims(dims), bound)
    }

    fn copy(
        &self,
        to: &Buffer,
        (from, offset): Slice<'_>,
        bytes: usize,
    ) -> Result<(), EngineError> {
        let mut data = vec![0; bytes];
        self.device.download(from, offset, &mut data)?;
        Ok(self.device.upload(to, 0, &data)?)
    }

    /// The layer's attention by a contract's kernel, cache and all; then the stages of it that the
    /// kernel keeps to itself, by ours.
    pub(super) fn contracted_attention(
        &self,
        loaded: &Loaded,
        layer: usize,
        pass: &mut Pass<'_>,
    ) -> Result<(), EngineError> {
        let contract = &*loaded.contract;
        let first = pass.length - pass.tokens;
        let of_token = |start: usize| Part { layer, start, tokens: 1, past: first + start };
        let parts: Vec<Part> = match contract.calls {
            Calls::Step => vec![Part { tokens: pass.tokens, ..of_token(0) }],
            Calls::Token => (0..pass.tokens).map(of_token).collect(),
        };
        for part in parts {
            if contract.append == Append::Before {
                self.append_part(part, pass)?;
            }
            self.attend_part(loaded, part, pass)?;
            if contract.append == Append::After {
                self.append_part(part, pass)?;
            }
        }
        let layout = self.cache_layout();
        pass.emit_cache(layer, Stage::KCache, &self.caches[layer].k, layout)?;
        pass.emit_cache(layer, Stage::VCache, &self.caches[layer].v, layout)?;
        self.recompute(contract, layer, pass)
    }

    /// Scores and probabilities that the kernel does not give, from its inputs.
    fn recompute(
        &self,
        contract: &Contract,
        layer: usize,
        pass: &Pass<'_>,
    ) -> Result<(), EngineError> {
        let [scores, probs] = pass.taps(layer);
        let scores = scores.filter(|_| !contract.has(Role::Scores));
        let taps = [scores, probs.filter(|_| !contract.has(Role::Probs))];
        if taps.iter().all(Option::is_none) {
            return Ok(());
        }
        let unused =
            self.device.alloc(self.scratch.activations[Stage::AttnOut].bytes, "unused attn_out")?;
        let op = launch::Attention { out: &unused, ..self.attention(pass, layer, &taps) };
        let (cache, dtype) = (self.cache_view(layer, pass.length), self.options.storage);
        let attend = |op: &launch::Attention<'_>, tokens: usize| {
            launch::attention(&*self.device, dtype, &cache, op, tokens)
        };
        match pass.chosen {
            Some(_) => self.tap_chosen(pass, &op, &attend),
            None => Ok(attend(&op, pass.tokens)?),
        }
    }

    fn append_part(&self, part: Part, pass: &Pass<'_>) -> Result<(), EngineError> {
        let (s, dtype) = (&self.scratch, self.options.storage);
        let cache = self.cache_view(part.layer, part.past + part.tokens);
        let row = self.config.n_head_kv * self.config.head_dim * dtype.size();
        let rows = |buffer| (buffer, part.start * row);
        let a = &s.activations;
        let kv = (rows(a.appended_keys(&self.options.faults)), rows(&a[Stage::V]));
        let (positions, offset) = s.integers.of(User::Append, pass.tokens);
        let positions = (positions, offset + 4 * part.start);
        self.append(&cache, kv, positions, part.tokens, dtype)
    }

    /// Appends rows by the contract of that, or by our kernel.
    pub(super) fn append(
        &self,
        cache: &CacheView<'_>,
        (k, v): (Slice<'_>, Slice<'_>),
        positions: Slice<'_>,
        tokens: usize,
        dtype: DType,
    ) -> Result<(), EngineError> {
        let Some(loaded) = self.contract(Op::KvAppend) else {
            let kv = (k, v);
            return Ok(launch::kv_append(&*self.device, dtype, cache, kv, positions, tokens)?);
        };
        let (length, capacity) = (cache.length, cache.capacity);
        let dims = self.dims(&[
            ("tokens", tokens),
            ("past", length - tokens),
            ("length", length),
            ("capacity", capacity),
        ]);
        let tensor = |role, slice| (role, Bound::Tensor(Some(slice)));
        let bound = vec![
            tensor(Role::KCache, (cache.k, 0)),
            tensor(Role::VCache, (cache.v, 0)),
            tensor(Role::K, k),
            tensor(Role::V, v),
            tensor(Role::Positions, positions),
        ];
        self.call(loaded, dims, bound)
    }

    fn attend_part(&self, loaded: &Loaded, part: Part, pass: &Pass<'_>) -> Result<(), EngineError> {
        let (c, contract) = (&self.config, &*loaded.contract);
        let length = part.past + part.tokens;
        let dims = self.dims(&[
            ("tokens", part.tokens),
            ("past", part.past),
            ("length", length),
            ("capacity", self.capacity),
        ]);
        let heads = contract.head_map.is_some().then(|| self.heads(contract, &dims)).transpose()?;
        let mut laid = Vec::new();
        for own in self.own_tensors(part) {
            if let Some(laid_out) = self.lay_out(contract, own, length, heads.as_deref())? {
                laid.push(laid_out);
            }
        }
        let mask = contract.has(Role::Mask).then(|| self.mask(part)).transpose()?;
        let (positions, offset) = self.scratch.integers.of(User::Mask, pass.tokens);
        let [scores, probs] = pass.taps(part.layer);
        let tap = |tap| Bound::Tensor(Option::map(tap, |buffer| (buffer, 0)));
        let mut bound = vec![
            (Role::Positions, Bound::Tensor(Some((positions, offset + 4 * part.start)))),
            (Role::Scale, Bound::Float(c.attention_scale)),
            (Role::Mask, tap(mask.as_ref())),
            (Role::Scores, tap(scores.as_ref())),
            (Role::Probs, tap(probs.as_ref())),
        ];
        for laid in &laid {
            let slice = match &laid.other {
                Some((buffer, _)) => (buffer, 0),
                None => laid.own.slice,
            };
            bound.push((laid.own.role, Bound::Tensor(Some(slice))));
        }
        self.call(loaded, dims, bound)?;
        laid.iter().try_for_each(|laid| self.take_back(laid, heads.as_deref()))
    }

    /// The engine's side of an attention's tensors.
    fn own_tensors(&self, part: Part) -> Vec<Own<'_>> {
        let (c, size) = (&self.config, self.options.storage.size());
        let a = &self.scratch.activations;
        let extent = |axis| match axis {
            Axis::Batch => 1,
            Axis::Token => part.tokens,
            Axis::Head => c.n_head,
            Axis::KvHead => c.n_head_kv,
            Axis::Position => self.capacity,
            Axis::Dim => c.head_dim,
        };
        let cache = &self.caches[part.layer];
        let tensor = |role, buffer, heads: usize| {
            let place = Op::Attention.places().iter().find(|place| place.role == role);
            let axes = place.expect("a role of attention").axes;
            let offset = part.start * heads * c.head_dim * size;
            Own { role, slice: (buffer, offset), layout: Layout::packed(axes, &extent) }
        };
        vec![
            tensor(Role::Out, &a[Stage::AttnOut], c.n_head),
            tensor(Role::Q, &a[Stage::QRope], c.n_head),
            tensor(Role::KCurrent, a.appended_keys(&self.options.faults), c.n_head_kv),
            tensor(Role::VCurrent, &a[Stage::V], c.n_head_kv),
            tensor(Role::KCache, &cache.k, 0),
            tensor(Role::VCache, &cache.v, 0),
        ]
    }

    /// A tensor in the contract's layout; `None` where the kernel does not take it.
    fn lay_out<'a>(
        &self,
        contract: &Contract,
        own: Own<'a>,
        length: usize,
        heads: Option<&[usize]>,
    ) -> Result<Option<Laid<'a>>, EngineError> {
        let tensor = contract.parameters.iter().find_map(|parameter| match &parameter.stands {
            Stands::Tensor { role, access, axes } if *role == own.role => Some((*access, axes)),
            _ => None,
        });
        let Some((access, axes)) = tensor else { return Ok(None) };
        let other = Layout::packed(axes, &|axis| match axis {
            Axis::Position if contract.positions == Positions::Length => length,
            axis => own.layout.0.iter().find(|(own, ..)| *own == axis).map_or(1, |own| own.1),
        });
        let moved = heads.filter(|_| matches!(own.role, Role::Q | Role::Out));
        if other.is_same_as(&own.layout) && moved.is_none() {
            return Ok(Some(Laid { own, access, other: None }));
        }
        let size = self.options.storage.size();
        let buffer = self.device.alloc(other.elements() * size, own.role.name())?;
        if access != Access::Out {
            let mut from = vec![0; own.layout.elements() * size];
            self.device.download(own.slice.0, own.slice.1, &mut from)?;
            let mut to = vec![0; buffer.bytes];
            rearrange(&From(&from, &own.layout), &mut To(&mut to, &other), size, moved);
            self.device.upload(&buffer, 0, &to)?;
        }
        Ok(Some(Laid { own, access, other: Some((buffer, other)) }))
    }

    /// What the kernel wrote, in the engine's layout.
    fn take_back(&self, laid: &Laid<'_>, heads: Option<&[usize]>) -> Result<(), EngineError> {
        let Some((buffer, other)) = laid.other.as_ref().filter(|_| laid.access != Access::In)
        else {
            return Ok(());
        };
        let (own, size) = (&laid.own, self.options.storage.size());
        let mut from = vec![0; buffer.bytes];
        self.device.download(buffer, 0, &mut from)?;
        let mut to = vec![0; own.layout.elements() * size];
        self.device.download(own.slice.0, own.slice.1, &mut to)?;
        let back = heads.filter(|_| own.role == Role::Out).map(inverse);
        rearrange(&From(&from, other), &mut To(&mut to, &own.layout), size, back.as_deref());
        Ok(self.device.upload(own.slice.0, own.slice.1, &to)?)
    }

    /// The model's query head that each of the kernel's heads is given, so that it reads the right KV
    /// head.
    fn heads(&self, contract: &Contract, dims: &Dims) -> Result<Vec<usize>, EngineError> {
        let map = contract.head_map.as_ref().expect("called where there is one");
        let c = &self.config;
        let group = c.n_head / c.n_head_kv;
        let mut given = vec![0; c.n_head_kv];
        let mut heads = Vec::with_capacity(c.n_head);
        for head in 0..c.n_head {
            let mut dims = dims.clone();
            dims.push(("head", head as i64));
            let kv = contract.value("head_map", map, &dims)?;
            let free = usize::try_from(kv).ok().filter(|&kv| kv < c.n_head_kv && given[kv] < group);
            let kv = free.ok_or_else(|| {
                EngineError::Contract(ContractError::Expression {
                    path: contract.path.clone(),
                    what: "head_map".to_string(),
                    expression: map.to_string(),
                    message: format!(
                        "query head {head} maps to KV head {kv}, which is not below {} or has more than {group} \
                         query heads",
                        c.n_head_kv
                    ),
                })
            })?;
            heads.push(kv * group + given[kv]);
            given[kv] += 1;
        }
        Ok(heads)
    }

    /// (tokens, length) f32: 0 where a query sees a key, else minus infinity.
    fn mask(&self, part: Part) -> Result<Buffer, EngineError> {
        let length = part.past + part.tokens;
        let row = |token: usize| {
            let sees = move |key: usize| key <= part.past + token;
            (0..length).map(move |key| if sees(key) { 0.0 } else { f32::NEG_INFINITY })
        };
        let mask: Vec<f32> = (0..part.tokens).flat_map(row).collect();
        let buffer = self.device.alloc(4 * mask.len(), "mask")?;
        self.device.upload(&buffer, 0, bytemuck::cast_slice(&mask))?;
        Ok(buffer)
    }
}

fn inverse(heads: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; heads.len()];
    for (index, &head) in heads.iter().enumerate() {
        inverse[head] = index;
    }
    inverse
}
