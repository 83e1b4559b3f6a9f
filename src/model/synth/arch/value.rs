//! The values of metadata keys: as the table gives them, and as the file has them.

use serde::{Deserialize, Serialize};

use crate::model::gguf::Header;

/// A value in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
}

impl Value {
    /// Reads a value from the command line: true or false, a number, or a list with commas of
    /// either; anything else is text.
    pub fn parse(text: &str) -> Value {
        if let Ok(value) = text.parse() {
            return Value::Bool(value);
        }
        if let Ok(value) = text.parse() {
            return Value::U32(value);
        }
        if let Ok(value) = text.parse() {
            return Value::F32(value);
        }
        let items: Vec<&str> = text.trim_end_matches(',').split(',').map(str::trim).collect();
        if text.contains(',') {
            if let Ok(values) = items.iter().map(|item| item.parse()).collect() {
                return Value::Bools(values);
            }
            if let Ok(values) = items.iter().map(|item| item.parse()).collect() {
                return Value::I32s(values);
            }
            if let Ok(values) = items.iter().map(|item| item.parse()).collect() {
                return Value::F32s(values);
            }
        }
        Value::Text(text.to_string())
    }

    /// The same value in the type of that name in llama.cpp's messages, where it has one.
    pub(super) fn in_type(&self, type_name: &str) -> Option<Value> {
        let number = match self {
            Value::U32(value) => f64::from(*value),
            Value::F32(value) => f64::from(*value),
            Value::Bool(value) => f64::from(u8::from(*value)),
            _ => return None,
        };
        let whole = number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number);
        match type_name {
            "f32" => Some(Value::F32(number as f32)),
            "u32" => whole.then_some(Value::U32(number as u32)),
            "bool" => (number == 0.0 || number == 1.0).then_some(Value::Bool(number == 1.0)),
            _ => None,
        }
    }

    pub(super) fn set(&self, key: &str, header: &mut Header) {
        match self {
            Value::U32(value) => header.set_u32(key, *value),
            Value::F32(value) => header.set_f32(key, *value),
            Value::Bool(value) => header.set_bool(key, *value),
            Value::Text(value) => header.set_string(key, value),
            Value::I32s(values) => header.set_i32s(key, values),
            Value::F32s(values) => header.set_f32s(key, values),
            Value::Bools(values) => header.set_bools(key, values),
        }
    }
}

/// A value as the table gives it; some depend on the model's sizes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Given {
    U(u32),
    F(f32),
    B(bool),
    S(&'static str),
    /// This many times the hidden size.
    Embd(u32),
    /// The head size and this much more.
    Head(u32),
    /// As many as query heads.
    Heads,
    /// One number a layer, repeated over the layers.
    Layers(&'static [u32]),
    LayerFlags(&'static [bool]),
    LayerFloats(&'static [f32]),
    Ints(&'static [i32]),
}

/// The sizes that other values depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) layers: usize,
    pub(super) embd: u32,
    pub(super) heads: u32,
    pub(super) head_dim: u32,
}

impl Given {
    /// The value in a model of that shape. `wanted` is the size from the command line; it replaces
    /// all but 0 and 1, which mean that an architecture has none or shares one.
    pub(super) fn resolve(self, shape: &Shape, wanted: Option<u32>) -> Value {
        let size = |own: u32| if own > 1 { wanted.unwrap_or(own) } else { own };
        match self {
            Given::U(value) => Value::U32(size(value)),
            Given::F(value) => Value::F32(value),
            Given::B(value) => Value::Bool(value),
            Given::S(text) => Value::Text(text.to_string()),
            Given::Embd(times) => Value::U32(wanted.unwrap_or(times * shape.embd)),
            Given::Head(more) => Value::U32(shape.head_dim + more),
            Given::Heads => Value::U32(shape.heads),
            Given::Layers(pattern) => {
                let sizes = pattern.iter().map(|&own| size(own) as i32);
                Value::I32s(sizes.cycle().take(shape.layers).collect())
            }
            Given::LayerFlags(pattern) => Value::Bools(repeat(pattern, shape.layers)),
            Given::LayerFloats(pattern) => Value::F32s(repeat(pattern, shape.layers)),
            Given::Ints(values) => Value::I32s(values.to_vec()),
        }
    }
}

fn repeat<T: Copy>(pattern: &[T], layers: usize) -> Vec<T> {
    pattern.iter().copied().cycle().take(layers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_has_the_type_that_its_text_looks_like() {
        assert_eq!(Value::parse("true"), Value::Bool(true));
        assert_eq!(Value::parse("16"), Value::U32(16));
        assert_eq!(Value::parse("0.5"), Value::F32(0.5));
        assert_eq!(Value::parse("-5"), Value::F32(-5.0));
        assert_eq!(Value::parse("0,2,0"), Value::I32s(vec![0, 2, 0]));
        assert_eq!(Value::parse("8,"), Value::I32s(vec![8]));
        assert_eq!(Value::parse("0.5,2"), Value::F32s(vec![0.5, 2.0]));
        assert_eq!(Value::parse("true,false"), Value::Bools(vec![true, false]));
        assert_eq!(Value::parse("yarn"), Value::Text("yarn".into()));
    }

    #[test]
    fn a_number_becomes_the_type_that_llama_cpp_asks_for_or_stays() {
        assert_eq!(Value::U32(8).in_type("f32"), Some(Value::F32(8.0)));
        assert_eq!(Value::F32(8.0).in_type("u32"), Some(Value::U32(8)));
        assert_eq!(Value::F32(8.5).in_type("u32"), None);
        assert_eq!(Value::U32(1).in_type("bool"), Some(Value::Bool(true)));
        assert_eq!(Value::U32(2).in_type("bool"), None);
        assert_eq!(Value::Text("x".into()).in_type("u32"), None);
    }

    #[test]
    fn a_pattern_repeats_over_the_layers_and_keeps_its_zeros() {
        let shape = Shape { layers: 5, embd: 256, heads: 4, head_dim: 64 };
        let pattern = Given::Layers(&[0, 2]);
        assert_eq!(pattern.resolve(&shape, None), Value::I32s(vec![0, 2, 0, 2, 0]));
        assert_eq!(pattern.resolve(&shape, Some(4)), Value::I32s(vec![0, 4, 0, 4, 0]));
        assert_eq!(Given::U(1).resolve(&shape, Some(4)), Value::U32(1));
    }
}
