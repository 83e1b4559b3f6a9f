//! What the parameters of a ROPE node say.

use super::Params;

/// Bit of the mode: pair i is (i, i + n/2), not (2i, 2i+1).
const NEOX: i32 = 2;
/// Bit of the mode: sections of the pairs have positions of their own.
const SECTIONS: i32 = 8;

/// The parameters of a rotation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeParams {
    /// Dims of a head that are rotated.
    pub dims: usize,
    /// The first of them.
    pub offset: usize,
    /// Whether pair i is (i, i + dims/2), not (2i, 2i+1).
    pub is_neox: bool,
    pub has_sections: bool,
    pub theta: f64,
    /// What positions are multiplied by, where YaRN does not say otherwise.
    pub scale: f64,
}

impl RopeParams {
    /// From a node's `op_params`.
    pub fn of(params: Params) -> RopeParams {
        let mode = params.int(2);
        RopeParams {
            dims: params.int(1).max(0) as usize,
            offset: params.int(15).max(0) as usize,
            is_neox: mode & (NEOX | SECTIONS) != 0,
            has_sections: mode & SECTIONS != 0,
            theta: f64::from(params.float(5)),
            scale: f64::from(params.float(6)),
        }
    }

    /// The angle of a pair at a position: position * scale * theta^(-2 i / dims).
    pub fn angle(&self, position: f64, pair: usize) -> f64 {
        position * self.scale * self.theta.powf(-2.0 * pair as f64 / self.dims as f64)
    }

    /// The two elements of a pair.
    pub fn elements(&self, pair: usize) -> (usize, usize) {
        if self.is_neox {
            (self.offset + pair, self.offset + pair + self.dims / 2)
        } else {
            (self.offset + 2 * pair, self.offset + 2 * pair + 1)
        }
    }
}
