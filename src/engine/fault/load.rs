//! Faults of the loader: what is loaded in place of a tensor.

use crate::{
    engine::fault::Faults,
    model::{Model, ModelError},
};

/// A mistake in loading a tensor: a matrix (outputs, inputs), or a vector as its one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    Zeros,
    Ones,
    PlusOne,
    Scaled(f32),
    /// Another tensor, of the same layer where the right one is in a layer.
    Of(&'static str),
    /// The same tensor of the layer after; of layer 0 for the last one.
    OfNextLayer,
    /// The file's elements are taken for (inputs, outputs).
    Transposed,
    /// Rows are read from every `inputs - 1`th element.
    StrideOneShort,
    /// The second half of each row is zero.
    InnerHalf,
    /// The last rows are zero.
    LastRowsZero(usize),
    /// Each head gets the rows of the head before; the first those of the last.
    HeadsRotated,
    /// Each head gets the elements of the first.
    FirstHeadOnly,
}

impl Faults {
    /// Whether a seeded fault concerns the loading of a tensor.
    pub fn change_load(&self, tensor: &str) -> bool {
        !self.loads(without_layer(tensor)).is_empty()
    }

    /// A tensor's elements as seeded faults load them, in f32; `None` where none concerns it.
    pub fn load_instead(
        &self,
        model: &Model,
        tensor: &str,
    ) -> Result<Option<Vec<f32>>, ModelError> {
        let loads = self.loads(without_layer(tensor));
        if loads.is_empty() {
            return Ok(None);
        }
        let n_layer = model.config.n_layer;
        let source =
            loads.iter().fold(tensor.to_string(), |source, load| load.source(&source, n_layer));
        let mut data = model.weights(&source)?;
        let (inputs, head_dim) = (model.info(tensor)?.row_length(), model.config.head_dim);
        for load in loads {
            data = load.change(data, inputs, head_dim);
        }
        Ok(Some(data))
    }
}

impl Load {
    /// The tensor that is read.
    fn source(self, right: &str, n_layer: usize) -> String {
        let part = without_layer(right);
        match self {
            Load::Of(other) => format!("{}{other}", &right[..right.len() - part.len()]),
            Load::OfNextLayer => {
                let layer = right.split('.').nth(1).and_then(|layer| layer.parse::<usize>().ok());
                layer.map_or(right.to_string(), |layer| {
                    format!("blk.{}.{part}", (layer + 1) % n_layer)
                })
            }
            _ => right.to_string(),
        }
    }

    /// What becomes of its elements; rows are `inputs` long.
    fn change(self, mut data: Vec<f32>, inputs: usize, head_dim: usize) -> Vec<f32> {
        let outputs = data.len() / inputs;
        let reread = |from: &dyn Fn(usize, usize) -> usize| {
            (0..data.len()).map(|i| data[from(i / inputs, i % inputs)]).collect()
        };
        match self {
            Load::Of(_) | Load::OfNextLayer => {}
            Load::Zeros => data.fill(0.0),
            Load::Ones => data.fill(1.0),
            Load::PlusOne => data.iter_mut().for_each(|value| *value += 1.0),
            Load::Scaled(factor) => data.iter_mut().for_each(|value| *value *= factor),
            Load::Transposed => return reread(&|row, column| column * outputs + row),
            Load::StrideOneShort => return reread(&|row, column| row * (inputs - 1) + column),
            Load::FirstHeadOnly => return reread(&|_, column| column % head_dim),
            Load::InnerHalf => {
                data.chunks_exact_mut(inputs).for_each(|row| row[inputs / 2..].fill(0.0));
            }
            Load::LastRowsZero(rows) => data[outputs.saturating_sub(rows) * inputs..].fill(0.0),
            Load::HeadsRotated => data.rotate_right(head_dim * inputs),
        }
        data
    }
}

/// `attn_q.weight` of `blk.3.attn_q.weight`; other names as they are.
fn without_layer(tensor: &str) -> &str {
    let rest = tensor.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    rest.map_or(tensor, |(_, part)| part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_tensor_is_of_the_same_layer_and_the_layer_after_the_last_is_the_first() {
        let of = |load: Load, right| load.source(right, 12);
        assert_eq!(of(Load::Of("attn_v.bias"), "blk.10.attn_k.bias"), "blk.10.attn_v.bias");
        assert_eq!(of(Load::Of("blk.0.attn_norm.weight"), "x.weight"), "blk.0.attn_norm.weight");
        assert_eq!(of(Load::OfNextLayer, "blk.10.attn_k.weight"), "blk.11.attn_k.weight");
        assert_eq!(of(Load::OfNextLayer, "blk.11.attn_k.weight"), "blk.0.attn_k.weight");
        assert_eq!(of(Load::Zeros, "output.weight"), "output.weight");
    }

    #[test]
    fn elements_are_read_again_in_the_wrong_order_or_not_at_all() {
        // Two rows of three; heads of one.
        let of = |load: Load| load.change(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3, 1);
        assert_eq!(of(Load::Transposed), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
        assert_eq!(of(Load::StrideOneShort), [1.0, 2.0, 3.0, 3.0, 4.0, 5.0]);
        assert_eq!(of(Load::InnerHalf), [1.0, 0.0, 0.0, 4.0, 0.0, 0.0]);
        assert_eq!(of(Load::LastRowsZero(1)), [1.0, 2.0, 3.0, 0.0, 0.0, 0.0]);
        assert_eq!(of(Load::LastRowsZero(9)), [0.0; 6]);
        assert_eq!(of(Load::HeadsRotated), [4.0, 5.0, 6.0, 1.0, 2.0, 3.0]);
        assert_eq!(of(Load::PlusOne), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let bias = Load::FirstHeadOnly.change(vec![1.0, 2.0, 3.0, 4.0], 4, 2);
        assert_eq!(bias, [1.0, 2.0, 1.0, 2.0]);
    }
}
