//! Groups of elements, each divided by its size.

use std::ops::Range;

use rayon::prelude::*;

use super::{Call, FUNCTION, LAMBDA, Op, Point};
use crate::{diagnosis::replay::Expected, model::gguf::GgufError};

/// How the elements of a group are normalised.
struct Norm {
    eps: f64,
    /// Whether their mean is subtracted first.
    is_centred: bool,
    /// Whether they are divided by the root of their squares' sum, not of their mean.
    is_unit: bool,
}

impl Norm {
    /// What the elements, less their mean, are multiplied by.
    fn scale(&self, squares: f64, count: usize) -> f64 {
        if self.is_unit {
            return 1.0 / squares.sqrt().max(self.eps);
        }
        1.0 / (squares / count as f64 + self.eps).sqrt()
    }

    /// The elements of a group; `spread` is that of each, or none.
    fn points<'n>(
        &self,
        elements: &'n [f64],
        spread: Option<&'n [f64]>,
        call: &Call<'_, '_>,
    ) -> impl Fn(usize) -> Point + 'n {
        let (count, u) = (elements.len(), call.rounding.sum);
        let mean_of = |sum: f64| sum / count as f64;
        let centre = if self.is_centred { mean_of(elements.iter().sum()) } else { 0.0 };
        let magnitude = mean_of(elements.iter().map(|x| x.abs()).sum());
        let squares: f64 = elements.iter().map(|x| (x - centre).powi(2)).sum();
        // A sum that leaves the range of f32 is none that a side can be held to.
        let is_in_range = squares <= f64::from(f32::MAX);
        let scale = if is_in_range { self.scale(squares, count) } else { f64::NAN };
        // What uncertain elements do to the scale, relative to it, and to the mean.
        let spread_of = move |i: usize| spread.map_or(0.0, |spread| spread[i]);
        let moment = |i: usize| ((elements[i] - centre) * spread_of(i)).powi(2);
        let (mut of_scale, mut of_mean) = (0.0, 0.0);
        if spread.is_some() && squares > 0.0 {
            of_scale = (0..count).map(moment).sum::<f64>().sqrt() / squares;
        }
        if spread.is_some() && self.is_centred {
            of_mean = mean_of((0..count).map(|i| spread_of(i).powi(2)).sum::<f64>().sqrt());
        }
        let mut own = 0.5 * (count as f64).sqrt() * u;
        let (mut scale, mut of_root) = (scale, 0.0);
        if let Some(format) = call.steps.roots {
            let rounded =
                format.number_within(scale, scale * (LAMBDA * (own + of_scale) + FUNCTION * u));
            (scale, own, of_scale) = (rounded.value, 0.0, 0.0);
            of_root = rounded.slack / rounded.value.abs().max(f64::MIN_POSITIVE);
        }
        let of_centre = if self.is_centred { 2.0 * magnitude } else { 0.0 };
        let once = FUNCTION * u + call.rounding.between + of_root;
        let is_known = spread.is_none();
        move |i| {
            let value = (elements[i] - centre) * scale;
            let inherited = if is_known {
                0.0
            } else {
                (scale * spread_of(i)).hypot(scale * of_mean).hypot(value * of_scale)
            };
            Point {
                value,
                spread: (value.abs() + scale * of_centre) * own + inherited,
                single: once * (value.abs() + (scale * centre).abs()),
            }
        }
    }
}

/// The result of a norm. A mean is a sum too: what it loses is lost by every element.
pub fn compute(call: &Call<'_, '_>) -> Result<Expected<'static>, GgufError> {
    let x = call.argument(0);
    let float = |param: usize| f64::from(call.params.float(param));
    let norm = match call.op {
        Op::GroupNorm => Norm { eps: float(1), is_centred: true, is_unit: false },
        Op::Norm => Norm { eps: float(0), is_centred: true, is_unit: false },
        Op::L2Norm => Norm { eps: float(0), is_centred: false, is_unit: true },
        _ => Norm { eps: float(0), is_centred: false, is_unit: false },
    };
    let values = x.value()?;
    let of_group = |group: Range<usize>| {
        let spread = x.spread().map(|spread| &spread[group.clone()]);
        norm.points(&values[group], spread, call)
    };
    if call.op != Op::GroupNorm {
        return Ok(call.each_row(|first| of_group(first..first + call.ne[0])));
    }
    let starts = starts(call);
    let ends = starts.iter().skip(1).copied().chain([values.len()]);
    let groups: Vec<Range<usize>> = starts.iter().zip(ends).map(|(&from, to)| from..to).collect();
    let points = groups.into_par_iter().map(|group| {
        let point = of_group(group.clone());
        (0..group.len()).map(point).collect::<Vec<_>>()
    });
    Ok(call.expected(&points.collect::<Vec<_>>().concat()))
}

/// Where each group of a group norm starts: some channels of ne[0] ne[1] elements, of which a batch's last group may
/// have fewer.
fn starts(call: &Call<'_, '_>) -> Vec<usize> {
    let [width, rows, channels, batches] = call.ne;
    let groups = call.params.int(0).max(1) as usize;
    let together = channels.div_ceil(groups);
    let of_batch = |batch: usize| {
        let channel = (0..channels).step_by(together);
        channel.map(move |channel| (batch * channels + channel) * width * rows)
    };
    (0..batches).flat_map(of_batch).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Given, Node, assert_near},
        *,
    };

    #[test]
    fn groups_have_the_mean_and_the_size_that_a_norm_gives() {
        for width in [1, 2, 7, 64] {
            let x = Given::random([width, 5, 1, 1], 1).map(|x| 3.0 * x + 1.0);
            for op in [Op::Norm, Op::RmsNorm, Op::L2Norm] {
                let node = Node::new(op, x.ne);
                let node = node.float(0, if width == 1 { 1.0 } else { 1e-9 });
                let y = node.value(std::slice::from_ref(&x));
                for row in y.chunks(width).filter(|_| width > 1) {
                    let mean =
                        |of: fn(f64) -> f64| row.iter().map(|y| of(*y)).sum::<f64>() / width as f64;
                    let size = if node.op == Op::L2Norm { 1.0 / width as f64 } else { 1.0 };
                    assert!((mean(|y| y * y) - size).abs() < 1e-6, "{} {width}", node.op);
                    assert!(node.op != Op::Norm || mean(|y| y).abs() < 1e-12);
                }
                if width > 2 {
                    node.propagates(&[x.clone().uncertain(1e-3)]);
                }
            }
        }
    }

    #[test]
    fn an_epsilon_is_added_to_the_mean_square_or_limits_the_length() {
        let x = Given::of([2, 1, 1, 1], vec![0.6, 0.8]);
        let node = |op| Node::new(op, x.ne).float(0, 0.5).value(std::slice::from_ref(&x));
        assert_near(&node(Op::RmsNorm), &[0.6, 0.8], "RMS_NORM");
        assert_near(&node(Op::L2Norm), &[0.6, 0.8], "L2_NORM");
        let scale = 1.0 / (0.01f64 + 0.5).sqrt();
        assert_near(&node(Op::Norm), &[-0.1 * scale, 0.1 * scale], "NORM");
    }

    #[test]
    fn a_group_is_some_channels() {
        let x = Given::random([3, 2, 5, 2], 2);
        let node = Node::new(Op::GroupNorm, x.ne).int(0, 2).float(1, 1e-5);
        let y = node.value(std::slice::from_ref(&x));
        // Three channels of 6 elements, then the two that are left.
        for (from, count) in [(0, 18), (18, 12), (30, 18), (48, 12)] {
            let group = Given::of([count, 1, 1, 1], x.value[from..from + count].to_vec());
            let norm = Node::new(Op::Norm, group.ne).float(0, 1e-5).value(&[group]);
            assert_near(&y[from..from + count], &norm, "GROUP_NORM");
        }
        node.propagates(&[x.uncertain(1e-3)]);
    }
}
