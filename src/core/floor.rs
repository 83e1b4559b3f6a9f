//! The floor: how far rounding alone moves each site, measured by noisy reference runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{core::arithmetic::Arithmetic, graph::site::Site};

/// Tolerance in units of the floor.
///
/// The noise has the size of one rounding error, or of a random walk of them (lambda = 1 in the
/// bound lambda sqrt(n) u); 8 leaves room for the lambda = 6 that probabilistic rounding analysis
/// asks for, and for the luck of one noisy run.
pub const DEFAULT_FACTOR: f64 = 8.0;

/// Most floors that a user may allow: noise of one rounding never explains more.
pub const MOST_FACTOR: f64 = 1000.0;

/// Whether so many floors are a tolerance.
pub fn is_factor(factor: f64) -> bool {
    0.0 < factor && factor <= MOST_FACTOR
}

/// The floor of one site.
///
/// An element of row i (a token or a position) may differ by factor x `elementwise` x the largest
/// |reference| of its row; the whole site by factor x `relative_l2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SiteFloor {
    /// max over rows of (max |noisy - clean| / max |clean|).
    pub elementwise: f64,
    /// ||noisy - clean|| / ||clean||.
    pub relative_l2: f64,
}

impl SiteFloor {
    /// At most the values themselves: noise that is larger says no more.
    pub fn capped(self) -> SiteFloor {
        SiteFloor { elementwise: self.elementwise.min(1.0), relative_l2: self.relative_l2.min(1.0) }
    }

    /// Whether it is a part of the values, as [`SiteFloor::capped`] leaves it.
    pub fn is_sound(self) -> bool {
        [self.elementwise, self.relative_l2].iter().all(|part| (0.0..=1.0).contains(part))
    }

    /// Whether a tensor of zeros is within so many floors of any other.
    pub fn passes_zeros(self, factor: f64) -> bool {
        factor * self.elementwise >= 1.0 && factor * self.relative_l2 >= 1.0
    }

    /// The larger of two measurements.
    pub fn max(self, other: SiteFloor) -> SiteFloor {
        SiteFloor {
            elementwise: self.elementwise.max(other.elementwise),
            relative_l2: self.relative_l2.max(other.relative_l2),
        }
    }

    /// The sum of two independent sources of distance.
    pub fn plus(self, other: SiteFloor) -> SiteFloor {
        let sum = SiteFloor {
            elementwise: self.elementwise + other.elementwise,
            relative_l2: self.relative_l2 + other.relative_l2,
        };
        sum.capped()
    }
}

/// The floors of a run: what rounding of a declared arithmetic may do to each site.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Floor(pub BTreeMap<Site, SiteFloor>);

/// A floor with the arithmetic whose rounding it measures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredFloor {
    pub arithmetic: Arithmetic,
    pub floor: Floor,
}

/// Serialised as `{"0/blk.3.q_rope": {...}, ...}`.
impl Serialize for Floor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = |site: &Site| format!("{}/{}", site.step, site.tensor_name());
        serializer.collect_map(self.0.iter().map(|(site, floor)| (name(site), floor)))
    }
}

impl<'de> Deserialize<'de> for Floor {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Floor, D::Error> {
        let named = BTreeMap::<String, SiteFloor>::deserialize(deserializer)?;
        let site = |name: &str| {
            let (step, tensor) = name.split_once('/')?;
            Site::from_tensor_name(step.parse().ok()?, tensor)
        };
        let floors = named.into_iter().map(|(name, floor)| match site(&name) {
            Some(site) => Ok((site, floor)),
            None => Err(serde::de::Error::custom(format!("unknown site {name}"))),
        });
        Ok(Floor(floors.collect::<Result<_, _>>()?))
    }
}
