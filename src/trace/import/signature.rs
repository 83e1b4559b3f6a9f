//! Numbers of a tensor that do not change with its layout, its scale, or a little noise.

/// Moments of the values, relative to their root mean square.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signature {
    mean: f64,
    magnitude: f64,
    fourth: f64,
}

impl Signature {
    /// `None` where all values are one, or some are no numbers: nothing is known by these.
    pub fn of(values: &[f32]) -> Option<Signature> {
        let varies = values.iter().any(|value| *value != values[0]);
        let finite = values.iter().all(|value| value.is_finite());
        (varies && finite).then_some(())?;
        let n = values.len() as f64;
        let mean =
            |of: &dyn Fn(f64) -> f64| values.iter().map(|&v| of(f64::from(v))).sum::<f64>() / n;
        let rms = mean(&|v| v * v).sqrt();
        Some(Signature {
            mean: mean(&|v| v / rms).abs(),
            magnitude: mean(&|v| (v / rms).abs()),
            fourth: mean(&|v| (v / rms).powi(4)),
        })
    }

    /// Whether two tensors whose relative L2 distance is at most `distance` may have these.
    pub fn may_be(&self, other: &Signature, distance: f64) -> bool {
        // The first two are means of values of root mean square 1: they move by the distance at most,
        // and as much again by the norm. The fourth root of the last is an L4 norm, which an outlier
        // can move further.
        let near = |a: f64, b: f64, most: f64| (a - b).abs() <= most + 1e-9;
        near(self.mean, other.mean, 2.0 * distance)
            && near(self.magnitude, other.magnitude, 2.0 * distance)
            && near(self.fourth.ln(), other.fourth.ln(), 20.0 * distance)
    }
}
