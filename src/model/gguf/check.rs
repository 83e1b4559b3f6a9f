//! A header that is checked before ggml reads it: lengths against the file, types, and the values of keys.
//!
//! ggml's own reader and llama.cpp trust some of them: a table of scores that is shorter than that of the
//! tokens is read past its end, a NaN becomes an endless loop, an absurd number ends the process.

use std::collections::BTreeMap;

use llama_cpp_sys_2 as sys;

/// What is wrong with a header.
pub(super) enum Wrong {
    /// The bytes are no header.
    Header(String),
    /// A key's value is impossible.
    Key { key: String, why: String },
}

/// The versions whose layout this is.
const VERSIONS: [u32; 2] = [2, 3];
/// ggml's limits on a tensor's name and axes.
const MAX_NAME: usize = 63;
const MAX_AXES: u32 = 4;
/// Each is compared with those before it.
const MAX_TENSORS: usize = 1 << 14;
const MAX_KEYS: usize = 1 << 16;
/// Above this no model has any size.
const MAX_SIZE: f64 = (1u64 << 31) as f64;

/// Checks the header at the begin of a file.
pub(super) fn check(bytes: &[u8]) -> Result<(), Wrong> {
    let mut reader = Reader { bytes, at: 4 };
    // Other versions, and files of the other byte order, have their own message from ggml.
    if !VERSIONS.contains(&reader.u32("the version")?) {
        return Ok(());
    }
    let n_tensors = reader.count("tensors", 32)?;
    let n_keys = reader.count("keys", 13)?;
    for (n, most, what) in [(n_tensors, MAX_TENSORS, "tensors"), (n_keys, MAX_KEYS, "keys")] {
        if n > most {
            return Err(header(format!(
                "it has {n} {what}, which llama.cpp would compare for minutes"
            )));
        }
    }
    let mut keys = Keys::default();
    for _ in 0..n_keys {
        let key = reader.text("a key")?;
        let value = reader.value(&key)?;
        if keys.0.insert(key.clone(), value).is_some() {
            return Err(Wrong::Header(format!("the key {key} appears twice")));
        }
    }
    for _ in 0..n_tensors {
        reader.tensor()?;
    }
    keys.check()
}

/// What is kept of a key's value.
enum Value {
    Number(f64),
    Text(String),
    /// Of numbers: the type, and how many.
    Numbers(u32, usize),
    Texts(usize),
    /// The first of an array's numbers that is none.
    NotANumber(usize),
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

fn header(detail: impl Into<String>) -> Wrong {
    Wrong::Header(detail.into())
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], Wrong> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| header(format!("the file ends within {what}")))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn u32(&mut self, what: &str) -> Result<u32, Wrong> {
        Ok(u32::from_le_bytes(self.take(4, what)?.try_into().expect("4 bytes")))
    }

    fn u64(&mut self, what: &str) -> Result<u64, Wrong> {
        Ok(u64::from_le_bytes(self.take(8, what)?.try_into().expect("8 bytes")))
    }

    /// A number of things that have so many bytes each at least.
    fn count(&mut self, what: &str, least: usize) -> Result<usize, Wrong> {
        let n = self.u64(what)?;
        let room = (self.bytes.len() - self.at) / least;
        let n = usize::try_from(n).ok().filter(|&n| n <= room);
        n.ok_or_else(|| header(format!("the file is too short for its {what}")))
    }

    /// The length of a text.
    fn length(&mut self, what: &str) -> Result<usize, Wrong> {
        let n = usize::try_from(self.u64(what)?).ok();
        n.ok_or_else(|| header(format!("the file ends within {what}")))
    }

    fn text(&mut self, what: &str) -> Result<String, Wrong> {
        let n = self.length(what)?;
        let bytes = self.take(n, what)?;
        let text = String::from_utf8_lossy(bytes).into_owned();
        if text.chars().any(char::is_control) {
            return Err(header(format!("{what} has a control character: {text:?}")));
        }
        Ok(text)
    }

    fn value(&mut self, key: &str) -> Result<Value, Wrong> {
        let kind = self.u32(key)?;
        match kind {
            sys::GGUF_TYPE_STRING => self.string(key).map(Value::Text),
            sys::GGUF_TYPE_ARRAY => self.array(key),
            _ => self.number(kind, key).map(Value::Number),
        }
    }

    /// A string value; other than a key's name it may hold any bytes.
    fn string(&mut self, key: &str) -> Result<String, Wrong> {
        let n = self.length(key)?;
        Ok(String::from_utf8_lossy(self.take(n, key)?).into_owned())
    }

    fn array(&mut self, key: &str) -> Result<Value, Wrong> {
        let kind = self.u32(key)?;
        if kind == sys::GGUF_TYPE_STRING {
            let n = self.count(&format!("elements of {key}"), 8)?;
            for _ in 0..n {
                let length = self.length(key)?;
                self.take(length, key)?;
            }
            return Ok(Value::Texts(n));
        }
        let size = size_of_number(kind).ok_or_else(|| {
            header(format!("the array {key} has elements of the unknown type {kind}"))
        })?;
        let n = self.count(&format!("elements of {key}"), size)?;
        let mut first_nan = None;
        for index in 0..n {
            if self.number(kind, key)?.is_nan() {
                first_nan = first_nan.or(Some(index));
            }
        }
        Ok(first_nan.map_or(Value::Numbers(kind, n), Value::NotANumber))
    }

    fn number(&mut self, kind: u32, key: &str) -> Result<f64, Wrong> {
        let size = size_of_number(kind)
            .ok_or_else(|| header(format!("the key {key} has the unknown type {kind}")))?;
        let bytes = self.take(size, key)?;
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(wide);
        Ok(match kind {
            sys::GGUF_TYPE_INT8 => f64::from(bits as i8),
            sys::GGUF_TYPE_INT16 => f64::from(bits as i16),
            sys::GGUF_TYPE_INT32 => f64::from(bits as i32),
            sys::GGUF_TYPE_INT64 => bits as i64 as f64,
            sys::GGUF_TYPE_FLOAT32 => f64::from(f32::from_bits(bits as u32)),
            sys::GGUF_TYPE_FLOAT64 => f64::from_bits(bits),
            _ => bits as f64,
        })
    }

    /// A tensor's entry: its name, axes, type and offset.
    fn tensor(&mut self) -> Result<(), Wrong> {
        let name = self.text("a tensor's name")?;
        if name.len() > MAX_NAME {
            return Err(header(format!("a tensor's name has more than {MAX_NAME} bytes")));
        }
        let axes = self.u32(&name)?;
        if axes > MAX_AXES {
            return Err(header(format!("the tensor {name} has {axes} axes")));
        }
        let mut elements = 1u64;
        for axis in 0..axes {
            let n = self.u64(&name)?;
            if n == 0 || n > i64::MAX as u64 {
                return Err(header(format!("axis {axis} of the tensor {name} has {n} elements")));
            }
            elements =
                elements.checked_mul(n).filter(|&n| n <= i64::MAX as u64).ok_or_else(|| {
                    header(format!("the tensor {name} has more elements than fit in memory"))
                })?;
        }
        let kind = self.u32(&name)?;
        if !is_tensor_type(kind) {
            return Err(header(format!("the tensor {name} has the unknown type {kind}")));
        }
        self.u64(&name).map(drop)
    }
}

fn size_of_number(kind: u32) -> Option<usize> {
    Some(match kind {
        sys::GGUF_TYPE_UINT8 | sys::GGUF_TYPE_INT8 | sys::GGUF_TYPE_BOOL => 1,
        sys::GGUF_TYPE_UINT16 | sys::GGUF_TYPE_INT16 => 2,
        sys::GGUF_TYPE_UINT32 | sys::GGUF_TYPE_INT32 | sys::GGUF_TYPE_FLOAT32 => 4,
        sys::GGUF_TYPE_UINT64 | sys::GGUF_TYPE_INT64 | sys::GGUF_TYPE_FLOAT64 => 8,
        _ => return None,
    })
}

/// Whether ggml knows a type, and stores tensors in it.
fn is_tensor_type(kind: u32) -> bool {
    // SAFETY: below the count ggml has traits of every number, of sizes 0 where a type is gone.
    kind < sys::GGML_TYPE_COUNT && unsafe { (*sys::ggml_get_type_traits(kind)).type_size } > 0
}

/// The keys with their values.
#[derive(Default)]
struct Keys(BTreeMap<String, Value>);

impl Keys {
    fn check(&self) -> Result<(), Wrong> {
        for (key, value) in &self.0 {
            let wrong = |why: String| Err(Wrong::Key { key: key.clone(), why });
            match value {
                Value::Number(number) if number.is_nan() => return wrong("is NaN".to_string()),
                Value::NotANumber(index) => return wrong(format!("is NaN at element {index}")),
                _ => {}
            }
        }
        self.check_tokens()?;
        match self.0.get("general.architecture") {
            Some(Value::Text(name)) if name.chars().any(char::is_control) => {
                let why = format!("has a control character: {name:?}");
                Err(Wrong::Key { key: "general.architecture".to_string(), why })
            }
            Some(Value::Text(name)) => self.check_sizes(name),
            _ => Ok(()),
        }
    }

    /// The tables beside that of the tokens are as long as it.
    fn check_tokens(&self) -> Result<(), Wrong> {
        let wrong = |key: &str, why: String| Err(Wrong::Key { key: key.to_string(), why });
        let tokens = "tokenizer.ggml.tokens";
        let n = match self.0.get(tokens) {
            None => return Ok(()),
            Some(&Value::Texts(n)) => n,
            Some(_) => return wrong(tokens, "is not an array of strings".to_string()),
        };
        let tables = [
            ("tokenizer.ggml.scores", sys::GGUF_TYPE_FLOAT32),
            ("tokenizer.ggml.token_type", sys::GGUF_TYPE_INT32),
        ];
        for (key, kind) in tables {
            match self.0.get(key) {
                None => {}
                Some(&Value::Numbers(found, length)) if found == kind && length == n => {}
                Some(&Value::Numbers(found, length)) if found == kind => {
                    return wrong(key, format!("has {length} elements for {n} tokens"));
                }
                Some(_) => return wrong(key, "is not an array of its type".to_string()),
            }
        }
        match self.0.get("tokenizer.ggml.merges") {
            None | Some(Value::Texts(_)) => Ok(()),
            Some(_) => wrong("tokenizer.ggml.merges", "is not an array of strings".to_string()),
        }
    }

    /// Sizes that no model has.
    fn check_sizes(&self, architecture: &str) -> Result<(), Wrong> {
        let number = |name: &str| match self.0.get(&format!("{architecture}.{name}")) {
            Some(&Value::Number(number)) => Some(number),
            _ => None,
        };
        let wrong = |name: &str, why: String| {
            Err(Wrong::Key { key: format!("{architecture}.{name}"), why })
        };
        for name in ["block_count", "embedding_length", "context_length"] {
            if let Some(size) = number(name).filter(|size| !(1.0..MAX_SIZE).contains(size)) {
                return wrong(name, format!("is {size}"));
            }
        }
        let sizes = ["feed_forward_length", "attention.head_count", "attention.head_count_kv"];
        let more = ["attention.key_length", "attention.value_length", "rope.dimension_count"];
        for name in sizes.into_iter().chain(more) {
            if let Some(size) = number(name).filter(|size| !(0.0..MAX_SIZE).contains(size)) {
                return wrong(name, format!("is {size}"));
            }
        }
        for name in
            ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base"]
        {
            let is_possible = |value: &f64| value.is_finite() && *value >= 0.0;
            if let Some(value) = number(name).filter(|value| !is_possible(value)) {
                return wrong(name, format!("is {value}"));
            }
        }
        let (heads, heads_kv) = (number("attention.head_count"), number("attention.head_count_kv"));
        if let Some((heads, heads_kv)) = heads.zip(heads_kv)
            && heads_kv > 0.0
            && (heads % heads_kv != 0.0 || heads == 0.0)
        {
            return wrong(
                "attention.head_count_kv",
                format!("is {heads_kv}, which does not divide {heads} heads"),
            );
        }
        let (all, used) = (number("expert_count"), number("expert_used_count"));
        match all.zip(used) {
            Some((all, used)) if used > all => {
                wrong("expert_used_count", format!("is {used} of {all} experts"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [text(name), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
    }

    fn array(kind: u32, n: u64, elements: &[u8]) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &n.to_le_bytes(), elements].concat()
    }

    /// The header of a small model with these keys, and no tensor.
    fn says(more: &[Vec<u8>]) -> String {
        let tokens = array(sys::GGUF_TYPE_STRING, 2, &[text("a"), text("b")].concat());
        let keys = [
            key("general.architecture", sys::GGUF_TYPE_STRING, &text("any")),
            key("tokenizer.ggml.tokens", sys::GGUF_TYPE_ARRAY, &tokens),
        ];
        let n = (keys.len() + more.len()) as u64;
        let counts = [0u64.to_le_bytes(), n.to_le_bytes()].concat();
        let bytes = [&b"GGUF"[..], &3u32.to_le_bytes(), &counts, &keys.concat(), &more.concat()];
        match check(&bytes.concat()) {
            Ok(()) => String::new(),
            Err(Wrong::Header(detail)) => detail,
            Err(Wrong::Key { key, why }) => format!("{key} {why}"),
        }
    }

    #[test]
    fn impossible_values_are_named() {
        let float = |name: &str, value: f32| {
            key(&format!("any.{name}"), sys::GGUF_TYPE_FLOAT32, &value.to_le_bytes())
        };
        let int = |name: &str, value: u32| {
            key(&format!("any.{name}"), sys::GGUF_TYPE_UINT32, &value.to_le_bytes())
        };
        let scores = |n: u64| {
            let scores = array(sys::GGUF_TYPE_FLOAT32, n, &vec![0; 4 * n as usize]);
            key("tokenizer.ggml.scores", sys::GGUF_TYPE_ARRAY, &scores)
        };
        let nan = array(
            sys::GGUF_TYPE_FLOAT32,
            2,
            &[1f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat(),
        );
        let cases: [(&[Vec<u8>], &str); 11] = [
            (&[], ""),
            (&[scores(2), int("block_count", 4), float("rope.freq_base", 1e6)], ""),
            (&[scores(1)], "tokenizer.ggml.scores has 1 elements for 2 tokens"),
            (&[key("x", sys::GGUF_TYPE_ARRAY, &nan)], "x is NaN at element 1"),
            (&[float("rope.freq_base", f32::NAN)], "any.rope.freq_base is NaN"),
            (&[float("rope.freq_base", f32::INFINITY)], "any.rope.freq_base is inf"),
            (&[int("block_count", 0)], "any.block_count is 0"),
            (&[int("embedding_length", u32::MAX)], "any.embedding_length is 4294967295"),
            (
                &[int("attention.head_count", 15), int("attention.head_count_kv", 2)],
                "any.attention.head_count_kv is 2, which does not divide 15 heads",
            ),
            (
                &[int("expert_count", 4), int("expert_used_count", 5)],
                "any.expert_used_count is 5 of 4 experts",
            ),
            (&[int("a", 1), int("a", 1)], "the key any.a appears twice"),
        ];
        for (keys, wanted) in cases {
            assert_eq!(says(keys), wanted);
        }
    }

    #[test]
    fn lengths_beyond_the_file_are_named() {
        let long = u64::MAX.to_le_bytes();
        let array = [&sys::GGUF_TYPE_FLOAT32.to_le_bytes()[..], &long].concat();
        let cases = [
            (key("x", sys::GGUF_TYPE_STRING, &long), "the file ends within x"),
            (key("x", sys::GGUF_TYPE_ARRAY, &array), "the file is too short for its elements of x"),
            (key("x", 99, &[]), "the key x has the unknown type 99"),
            (key("x", sys::GGUF_TYPE_UINT64, &[1]), "the file ends within x"),
        ];
        for (key, wanted) in cases {
            assert_eq!(says(&[key]), wanted);
        }
    }
}
