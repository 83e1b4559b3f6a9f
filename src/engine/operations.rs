//! Each operation on rows: by the kernel of its contract, else by ours.

use crate::engine::{
    Engine, EngineError,
    contract::{Bound, Op, Role},
    device::Buffer,
    kernels::launch::{self, Slice},
};

impl Engine {
    /// out (T, E) = rows of the table.
    pub(super) fn look_up(
        &self,
        out: &Buffer,
        table: &Buffer,
        ids: Slice<'_>,
        (tokens, n_embd): (usize, usize),
    ) -> Result<(), EngineError> {
        let dtype = self.options.storage;
        let Some(loaded) = self.contract(Op::Embedding) else {
            let shape = (tokens, n_embd);
            return Ok(launch::embedding(&*self.device, dtype, out, table, ids, shape)?);
        };
        let inputs = [tensor(Role::Table, (table, 0)), tensor(Role::Ids, ids)];
        let out = (out, tokens * n_embd * dtype.size());
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

    /// out = x + y, of n elements.
    pub(super) fn add_residual(
        &self,
        out: &Buffer,
        (x, y): (&Buffer, &Buffer),
        n: usize,
    ) -> Result<(), EngineError> {
        let dtype = self.options.storage;
        let Some(loaded) = self.contract(Op::ResidualAdd) else {
            return Ok(launch::residual_add(&*self.device, dtype, out, (x, y), n)?);
        };
        let inputs = [tensor(Role::X, (x, 0)), tensor(Role::Y, (y, 0))];
        self.call_on_rows(loaded, &[("elements", n)], (out, n * dtype.size()), &inputs)
    }

    /// out = silu(gate) * up, of n elements.
    pub(super) fn swiglu(
        &self,
        out: &Buffer,
        (gate, up): (&Buffer, &Buffer),
        n: usize,
    ) -> Result<(), EngineError> {
        let dtype = self.options.storage;
        let Some(loaded) = self.contract(Op::Swiglu) else {
            return Ok(launch::swiglu(&*self.device, dtype, out, (gate, up), n)?);
        };
        let inputs = [tensor(Role::Gate, (gate, 0)), tensor(Role::Up, (up, 0))];
        self.call_on_rows(loaded, &[("elements", n)], (out, n * dtype.size()), &inputs)
    }
}

fn tensor<'a>(role: Role, slice: Slice<'a>) -> (Role, Bound<'a>) {
    (role, Bound::Tensor(Some(slice)))
}
