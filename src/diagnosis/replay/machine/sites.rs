//! What a side recorded of a site, in the order of its node, and results in the order of their sites.

use rayon::prelude::*;

use super::{Machine, Root};
use crate::{
    diagnosis::replay::{
        expected::{Expected, Rounding},
        recording::{Piece, ReplayError},
    },
    graph::{SiteAxis, SiteSpec},
};

/// Elements that a thread widens at a time.
const AT_ONCE: usize = 1 << 14;

impl<'a> Machine<'a> {
    /// The shape of a site's tensor in this step.
    pub(in crate::diagnosis::replay) fn shape(&self, spec: &SiteSpec) -> Vec<usize> {
        spec.shape(self.extent.tokens, self.extent.cells)
    }

    /// What the side recorded of a site in this step.
    pub(in crate::diagnosis::replay) fn recorded(
        &self,
        place: usize,
    ) -> Result<Option<Vec<f32>>, ReplayError> {
        let spec = &self.run.model.sites.specs()[place];
        let tensor = self.run.recording.tensors.tensor(spec.site(self.step))?;
        let shape = self.shape(spec);
        Ok(tensor.filter(|tensor| tensor.shape == shape).map(|tensor| tensor.data))
    }

    /// A site's values in its node's own order.
    pub(super) fn in_node_order(&self, place: usize, mut values: Vec<f64>) -> Vec<f64> {
        let spec = &self.run.model.sites.specs()[place];
        let sizes = self.graph().node(spec.node).sizes(self.extent);
        let Some(order) = site_order(spec, &self.shape(spec), sizes.ne) else {
            values.resize(sizes.elements(), 0.0);
            return values;
        };
        let mut ordered = vec![0.0; sizes.elements()];
        order.into_iter().zip(values).for_each(|(at, x)| ordered[at] = x);
        ordered
    }

    /// Of a result that is the sum of what ranks recorded, the sums of their magnitudes.
    fn magnitudes(&self, spec: &SiteSpec) -> Result<Option<Vec<f32>>, ReplayError> {
        let sums = self.run.recording.tensors.magnitudes(spec.site(self.step))?;
        let elements = self.shape(spec).iter().product::<usize>();
        Ok(sums.filter(|sums| sums.len() == elements))
    }

    /// A site's recorded values in its node's own order.
    pub(in crate::diagnosis::replay) fn known(
        &self,
        place: usize,
        recorded: &[f32],
    ) -> Result<Root, ReplayError> {
        let spec = &self.run.model.sites.specs()[place];
        let factor = f64::from(spec.factor);
        let value = self.widened(place, recorded, |x| x / factor);
        // What the ranks add up is known, the order and the format in which they did is not.
        let Rounding { sum, storage, .. } = self.rounding(spec.node);
        let unit = sum.max(storage) / factor.abs();
        let spread = self.magnitudes(spec)?;
        let spread = spread.map(|sums| self.widened(place, &sums, |x| unit * x));
        Ok(Root { value, spread, is_recorded: true, ..Root::default() })
    }

    /// What is made of each of a site's values, in its node's own order.
    fn widened(
        &self,
        place: usize,
        values: &[f32],
        of: impl Fn(f64) -> f64 + Send + Sync,
    ) -> Vec<f64> {
        let values = values.par_iter().with_min_len(AT_ONCE).map(|&x| of(f64::from(x)));
        self.in_node_order(place, values.collect())
    }

    /// A result in the order of its site, beside what was recorded.
    pub(in crate::diagnosis::replay) fn piece(
        &self,
        spec: &SiteSpec,
        expected: Expected<'a>,
        captured: Vec<f32>,
    ) -> Result<Piece<'a>, ReplayError> {
        let mut expected = self.in_site_order(spec, expected);
        // Each rank stored its partial sum rounded.
        if let Some(sums) = self.magnitudes(spec)? {
            let Expected { value, single, rounding, .. } = &mut expected;
            single.resize(value.len(), 0.0);
            for (single, sum) in single.iter_mut().zip(&sums) {
                *single += rounding.storage * f64::from(*sum);
            }
        }
        Ok(Piece { expected, captured })
    }

    /// A result in the order of its site.
    pub(super) fn in_site_order(&self, spec: &SiteSpec, expected: Expected<'a>) -> Expected<'a> {
        let ne = self.graph().node(spec.node).sizes(self.extent).ne;
        let factor = f64::from(spec.factor);
        match site_order(spec, &self.shape(spec), ne) {
            None if factor == 1.0 => expected,
            None => {
                let order = (0..expected.value.len()).collect();
                expected.rearranged(order, factor)
            }
            Some(order) => expected.rearranged(order, factor),
        }
    }

    /// A node's values in the order of its site.
    pub fn ordered(&self, place: usize, value: Vec<f64>) -> Option<Vec<f64>> {
        let spec = &self.run.model.sites.specs()[place];
        let ne = self.graph().node(spec.node).sizes(self.extent).ne;
        let factor = f64::from(spec.factor);
        let Some(order) = site_order(spec, &self.shape(spec), ne) else {
            let is_whole = value.len() == ne.iter().product::<usize>();
            return is_whole.then(|| value.into_iter().map(|x| x * factor).collect());
        };
        order.into_iter().map(|at| value.get(at).map(|x| x * factor)).collect()
    }
}

/// The place in a node's own order of each element of its site; `None` where both orders are one.
pub(super) fn site_order(spec: &SiteSpec, shape: &[usize], ne: [usize; 4]) -> Option<Vec<usize>> {
    let strides = [1, ne[0], ne[0] * ne[1], ne[0] * ne[1] * ne[2]];
    let stride = |axis: &SiteAxis| axis.step * strides[axis.along];
    let axes: Vec<(usize, usize)> =
        spec.axes.iter().zip(shape).map(|(axis, &n)| (n, stride(axis))).collect();
    let mut run = 1;
    let is_same = axes.iter().rev().all(|&(n, stride)| {
        let fits = n == 1 || stride == run;
        run *= n;
        fits
    });
    if is_same && run == ne.iter().product::<usize>() {
        return None;
    }
    let mut order = vec![0];
    for (n, stride) in axes {
        let of = |first: usize| (0..n).map(move |i| first + i * stride);
        order = order.into_iter().flat_map(of).collect();
    }
    Some(order)
}
