//! Each operation on rows: by the kernel of its contract, else by ours.

use crate::{
    contract::{Bound, Op, Role},
    device::Buffer,
    engine::{Engine, EngineError},
    kernels::{launch, launch::Slice},
};

impl Engine {
    /// hidden (T, E) = rows of the table.
    pub(super) fn look_up(
        &self,
        table: &Buffer,
        ids: Slice<'_>,
        (tokens, n_embd): (usize, usize),
    ) -> Result<(), EngineError> {
        let (s, dtype) = (&self.scratch, self.options.storage);
        let Some(loaded) = self.contract(Op::Embedding) else {
            let shape = (tokens, n_embd);
            return Ok(launch::embedding(&*self.device, dtype, &s.hidden, table, ids, shape)?);
        };
        let inputs = [tensor(Role::Table, (table, 0)), tensor(Role::Ids, ids)];
        let out = (&s.hidden, tokens * n_embd * dtype.size());
        self.call_on_rows(loaded, &[("tokens", tokens)], out, &inputs)
    }

    /// out (rows, width) = RMS norm of x.
    pub(super) fn norm_of(
        &self,
        out: &Buffer,
        x: Slice<'_>,
        weight: &Buffer,
        (rows, width): (usize, usize),
    ) -> Result<(), EngineError> {
        let (dtype, eps) = (self.options.storage, self.config.rms_eps);
        let Some(loaded) = self.contract(Op::RmsNorm) else {
            let shape = (rows, width);
            return Ok(launch::rms_norm(&*self.device, dtype, out, x, weight, shape, eps)?);
        };
        let inputs =
            [tensor(Role::X, x), tensor(Role::Weight, (weight, 0)), (Role::Eps, Bound::Float(eps))];
        let bytes = rows * width * dtype.size();
        self.call_on_rows(loaded, &[("rows", rows), ("width", width)], (out, bytes), &inputs)
    }

    /// out (T, H, D) = x rotated.
    pub(super) fn rotate(
        &self,
        out: &Buffer,
        x: &Buffer,
        rope: &launch::Rope<'_>,
        (tokens, n_head): (usize, usize),
    ) -> Result<(), EngineError> {
        let (dtype, dim) = (self.options.storage, self.config.head_dim);
        let Some(loaded) = self.contract(Op::Rope) else {
            let shape = (tokens, n_head, dim);
            return Ok(launch::rope(&*self.device, dtype, out, x, rope, shape)?);
        };
        let inputs = [
            tensor(Role::X, (x, 0)),
            tensor(Role::Positions, rope.positions),
            (Role::Factors, Bound::Tensor(rope.factors.map(|factors| (factors, 0)))),
            (Role::Theta, Bound::Float(rope.theta)),
        ];
        let bytes = tokens * n_head * dim * dtype.size();
        self.call_on_rows(loaded, &[("tokens", tokens), ("heads", n_head)], (out, bytes), &inputs)
    }

    /// hidden = residual + projected.
    pub(super) fn add_residual(&self, residual: &Buffer, n: usize) -> Result<(), EngineError> {
        let (s, dtype) = (&self.scratch, self.options.storage);
        let Some(loaded) = self.contract(Op::ResidualAdd) else {
            let pair = (residual, &s.projected);
            return Ok(launch::residual_add(&*self.device, dtype, &s.hidden, pair, n)?);
        };
        let inputs = [tensor(Role::X, (residual, 0)), tensor(Role::Y, (&s.projected, 0))];
        self.call_on_rows(loaded, &[("elements", n)], (&s.hidden, n * dtype.size()), &inputs)
    }

    /// act = silu(gate) * up.
    pub(super) fn swiglu(&self, n: usize) -> Result<(), EngineError> {
        let (s, dtype) = (&self.scratch, self.options.storage);
        let Some(loaded) = self.contract(Op::Swiglu) else {
            return Ok(launch::swiglu(&*self.device, dtype, &s.act, (&s.gate, &s.up), n)?);
        };
        let inputs = [tensor(Role::Gate, (&s.gate, 0)), tensor(Role::Up, (&s.up, 0))];
        self.call_on_rows(loaded, &[("elements", n)], (&s.act, n * dtype.size()), &inputs)
    }
}

fn tensor<'a>(role: Role, slice: Slice<'a>) -> (Role, Bound<'a>) {
    (role, Bound::Tensor(Some(slice)))
}
