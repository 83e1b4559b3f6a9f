//! Values that a node does not read: other recorded tensors in the order of one of its sources.

use super::{machine::Machine, recording::ReplayError};
use crate::graph::{NodeId, SiteSpec, site::Axis};

impl Machine<'_> {
    /// What was recorded of a site in this step, in the order of a tensor of `ne` elements along each axis.
    /// `None` where nothing was recorded, or the number of elements is another.
    pub fn recorded_as(
        &self,
        place: usize,
        source: NodeId,
        ne: [usize; 4],
    ) -> Result<Option<Vec<f64>>, ReplayError> {
        let spec = &self.run.model.sites.specs()[place];
        let Some(recorded) = self.recorded(place)? else { return Ok(None) };
        let shape = self.shape(spec);
        if recorded.len() != ne.iter().product::<usize>() {
            return Ok(None);
        }
        let factor = f64::from(spec.factor);
        let values: Vec<f64> = recorded.iter().map(|&x| f64::from(x) / factor).collect();
        Ok(Some(match self.order_of_source(source, spec, &shape) {
            Some(order) => order.into_iter().map(|from| values[from]).collect(),
            None => in_axes_of(&values, &shape, ne),
        }))
    }

    /// Where a source's elements are in a site of the same shape as its own.
    fn order_of_source(
        &self,
        source: NodeId,
        other: &SiteSpec,
        shape: &[usize],
    ) -> Option<Vec<usize>> {
        let specs = self.run.model.sites.specs();
        let own = specs.iter().find(|spec| spec.node == source)?;
        let counts =
            |spec: &SiteSpec| spec.axes.iter().map(|axis| axis.axis).collect::<Vec<Axis>>();
        if self.shape(own) != shape || counts(own) != counts(other) {
            return None;
        }
        let ne = self.graph().node(source).sizes(self.extent).ne;
        let mut order = vec![0; shape.iter().product()];
        let mut flat = 0;
        own.each_index(shape, |at| {
            order[((at[3] * ne[2] + at[2]) * ne[1] + at[1]) * ne[0] + at[0]] = flat;
            flat += 1;
        });
        Some(order)
    }
}

/// Row-major values in ggml's order of `ne`: their axes are moved to where `ne` has the same lengths.
fn in_axes_of(values: &[f64], shape: &[usize], ne: [usize; 4]) -> Vec<f64> {
    let from: Vec<usize> = shape.iter().rev().copied().filter(|&n| n != 1).collect();
    let to: Vec<usize> = ne.into_iter().filter(|&n| n != 1).collect();
    if from == to || from.len() != to.len() {
        return values.to_vec();
    }
    let mut strides = Vec::with_capacity(from.len());
    let mut taken = vec![false; from.len()];
    for &length in &to {
        let Some(axis) = (0..from.len()).find(|&axis| !taken[axis] && from[axis] == length) else {
            return values.to_vec();
        };
        taken[axis] = true;
        strides.push(from[..axis].iter().product::<usize>());
    }
    let place = |flat: usize| {
        let mut rest = flat;
        to.iter().zip(&strides).fold(0, |place, (&n, stride)| {
            let index = rest % n;
            rest /= n;
            place + index * stride
        })
    };
    (0..values.len()).map(|flat| values[place(flat)]).collect()
}

#[cfg(test)]
mod tests {
    use super::in_axes_of;

    #[test]
    fn axes_are_moved_to_where_their_lengths_are() {
        let values: Vec<f64> = (0..6).map(f64::from).collect();
        assert_eq!(in_axes_of(&values, &[2, 3], [3, 2, 1, 1]), values);
        assert_eq!(in_axes_of(&values, &[2, 3], [2, 3, 1, 1]), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(in_axes_of(&values, &[2, 3], [6, 1, 1, 1]), values);
    }
}
