//! What the same kernels gave on two devices, as data and as text.

use crate::{
    compare::verdict::Outcome,
    diagnosis::replay::Operation,
    report::{
        DevicesSummary, SiteRow, named,
        terminal::{coordinates, number},
    },
    run::CrossCheck,
};

/// Who is wrong where the same kernels differ by more than rounding.
const WHOSE: &str = "the same kernels, so a compiler, a race or the host's CUDA runtime is wrong";

impl DevicesSummary {
    /// The summary of a check; `first_position` gives the position of a step's first token.
    pub fn of(check: CrossCheck, first_position: &dyn Fn(u32) -> usize) -> DevicesSummary {
        let agree = check.agree();
        let CrossCheck { devices: [first, second], sites, coverage, guilty_on_one } = check;
        let replayed = guilty_on_one.is_some();
        let [guilty_on_first_only, guilty_on_second_only] = guilty_on_one.unwrap_or_default();
        let rows: Vec<SiteRow> = sites.into_iter().map(SiteRow::from).collect();
        let (a, b) = (short(&first), short(&second));
        let differing = rows.iter().find(|row| row.outcome == Outcome::Diverged);
        let worst = rows.iter().map(SiteRow::times_floor).fold(0.0, f64::max);
        let text = match differing {
            Some(row) => {
                let place = place(row, (a, b), first_position(row.place.step));
                format!("{a} and {b} differ first at {}{place}; {WHOSE}", row.place)
            }
            None if !guilty_on_first_only.is_empty() || !guilty_on_second_only.is_empty() => {
                let on = |device, only: &[Operation]| {
                    let named = named(only);
                    (!only.is_empty())
                        .then(|| format!("{named} beyond the rounding bound only on {device}"))
                };
                let parts = [on(a, &guilty_on_first_only), on(b, &guilty_on_second_only)];
                let parts: Vec<String> = parts.into_iter().flatten().collect();
                format!("{}; {WHOSE}", parts.join(", "))
            }
            None if !agree => {
                format!("{a} and {b}: {} of {} sites measured", coverage.equal, coverage.asked)
            }
            None => {
                let same =
                    if replayed { ", the same operations are within their bounds" } else { "" };
                format!(
                    "{a} and {b} agree on {} of {} sites, worst {} x floor{same}",
                    coverage.equal,
                    coverage.asked,
                    number(worst)
                )
            }
        };
        let differing = rows.into_iter().filter(|row| row.outcome == Outcome::Diverged).collect();
        DevicesSummary {
            first,
            second,
            agree,
            text,
            coverage,
            guilty_on_first_only,
            guilty_on_second_only,
            differing,
        }
    }
}

/// ` [position 3, head 0, dim 1] host 1.5 cuda 1.25, 4.0e3 x floor`
fn place(row: &SiteRow, (first, second): (&str, &str), first_position: usize) -> String {
    let Some(difference) = &row.difference else { return String::new() };
    match difference.first.as_ref().or(difference.worst.as_ref()) {
        Some(element) => format!(
            " [{}] {first} {} {second} {}, {} x floor",
            coordinates(row.place, &element.index, first_position),
            element.reference,
            element.engine,
            number(row.times_floor())
        ),
        None => String::new(),
    }
}

/// `host` of `host (g++ 12.2.0, 2 workers)`.
fn short(device: &str) -> &str {
    device.split(" (").next().unwrap_or(device)
}
