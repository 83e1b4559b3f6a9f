//! Measures a site's floor in a noisy run beside the clean one.

use crate::{
    compare::{SiteFloor, queries::RowTokens, stats::Rows},
    reference::Amplitude,
    site::Site,
    tensor::Tensor,
};

impl SiteFloor {
    /// Measures the floor of a site, at least the noise's own amplitude so that luck in a small
    /// tensor cannot make it tiny.
    pub fn measure(
        site: Site,
        noisy: &Tensor,
        clean: &Tensor,
        tokens: RowTokens<'_>,
        amplitude: Amplitude,
    ) -> SiteFloor {
        let rows = Rows::new(site.stage, &clean.shape, tokens);
        let (mut elementwise, mut distance, mut size) = (0f64, 0f64, 0f64);
        for row in 0..rows.count {
            let range = row * rows.length..(row + 1) * rows.length;
            let (noisy, clean) = (&noisy.data[range.clone()], &clean.data[range]);
            let mut furthest = 0f64;
            for (column, (&n, &c)) in noisy.iter().zip(clean).enumerate() {
                if !(rows.counts(row, column) && n.is_finite() && c.is_finite()) {
                    continue;
                }
                let difference = (f64::from(n) - f64::from(c)).abs();
                furthest = furthest.max(difference);
                distance += difference * difference;
                size += f64::from(c) * f64::from(c);
            }
            let scale = rows.scale(row, clean);
            if scale > 0.0 {
                elementwise = elementwise.max(furthest / scale);
            }
        }
        let own = amplitude.relative + amplitude.additive;
        let relative_l2 = if size > 0.0 { (distance / size).sqrt() } else { 0.0 };
        SiteFloor { elementwise: elementwise.max(own), relative_l2: relative_l2.max(own) }
    }
}
