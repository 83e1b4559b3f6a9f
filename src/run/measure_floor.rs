//! Measures a site's floor in a noisy run beside the clean one.

use crate::{
    compare::{RowTokens, lanes::Totals, rows::Rows},
    core::{floor::SiteFloor, tensor::Tensor},
    graph::site::Site,
    reference::Amplitude,
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
            let totals = rows.totals(row, noisy, clean).unwrap_or_else(|| {
                let pairs = rows.runs(row).flatten().map(|column| (noisy[column], clean[column]));
                let finite = pairs.filter(|(n, c)| n.is_finite() && c.is_finite());
                let (n, c): (Vec<f32>, Vec<f32>) = finite.unzip();
                let totals = Totals::of([(&n[..], &c[..])].into_iter()).unwrap_or_default();
                Totals { scale: rows.scale(row, clean) as f32, ..totals }
            });
            distance += totals.squared_distance;
            size += totals.squared_reference;
            if totals.scale > 0.0 {
                elementwise = elementwise.max(totals.max_abs / f64::from(totals.scale));
            }
        }
        let own = amplitude.relative + amplitude.additive;
        let relative_l2 = if size > 0.0 { (distance / size).sqrt() } else { 0.0 };
        let floor = SiteFloor { elementwise, relative_l2 };
        floor.max(SiteFloor { elementwise: own, relative_l2: own }).capped()
    }
}
