//! One call of a contract's kernel: sizes and arguments, in the order that the contract gives them.

use std::collections::BTreeSet;

use crate::{
    core::tensor::DType,
    engine::{
        contract::{
            error::ContractError,
            expression::{Dims, Expression},
            op::Role,
            read::{Contract, Stands, Type},
            signature,
        },
        device::{Arg, Buffer, Device, DeviceError, KernelSource, Launch},
        kernels::{KernelError, KernelSet},
    },
};

/// CUDA's limits.
const MAX_THREADS: i64 = 1024;
const MAX_GRID: [i64; 3] = [0x7fff_ffff, 65535, 65535];
const MAX_SHARED: i64 = 227 << 10;

/// What stands for a role in a call.
#[derive(Clone, Copy)]
pub enum Bound<'a> {
    /// A buffer from a byte offset on; `None` is a null pointer.
    Tensor(Option<(&'a Buffer, usize)>),
    Float(f32),
}

/// A call to be made.
pub struct Call<'a> {
    pub contract: &'a Contract,
    pub dtype: DType,
    pub dims: Dims,
    pub bound: Vec<(Role, Bound<'a>)>,
    /// A buffer for each parameter that is scratch, in their order.
    pub scratch: &'a [Buffer],
}

impl Contract {
    /// The kernel's source, which compiles only if its parameters are the contract's. Entries that have a
    /// name of `taken` get another one: see [`Contract::called`].
    pub fn kernel_source(
        &self,
        dtype: DType,
        dims: &Dims,
        taken: &BTreeSet<String>,
    ) -> Result<KernelSource, ContractError> {
        let entry = self.entry(dtype)?;
        let read = |file, source| ContractError::Source { path: self.path.clone(), file, source };
        std::fs::metadata(&self.source).map_err(|source| read(self.source.clone(), source))?;
        let defines = self.defines.iter().map(|(name, value)| {
            let value = self.value(&format!("define {name}"), value, dims)?;
            Ok(format!("{name}={value}"))
        });
        let defines = defines.collect::<Result<_, ContractError>>()?;
        let folder = self.source.parent().unwrap_or(std::path::Path::new(""));
        let name = self.source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kernels = KernelSet::beside(folder);
        let mut source = kernels.source(&name, defines).map_err(|error| match error {
            KernelError::Read { path, source } => read(path, source),
            error => ContractError::Invalid { path: self.path.clone(), message: error.to_string() },
        })?;
        source.file = self.source.display().to_string();
        let entries = source.entries();
        if !entries.iter().any(|own| own == entry) {
            return Err(ContractError::NoEntry {
                path: self.path.clone(),
                source_file: self.source.clone(),
                entry: entry.to_string(),
                known: if entries.is_empty() { "none".to_string() } else { entries.join(", ") },
            });
        }
        source.text += &signature::assertions(self, entry, dtype);
        for own in entries.iter().filter(|own| taken.contains(*own)) {
            source.text = with_word(&source.text, own, &called(own));
        }
        Ok(source)
    }

    /// The entry's name as it is loaded.
    pub fn called(&self, dtype: DType, taken: &BTreeSet<String>) -> Result<String, ContractError> {
        let entry = self.entry(dtype)?;
        Ok(if taken.contains(entry) { called(entry) } else { entry.to_string() })
    }

    /// A failed compilation that is a contract's mismatch, in one line.
    pub fn mismatch(&self, error: &DeviceError) -> Option<ContractError> {
        signature::mismatch(self, error)
    }

    /// The value of an expression of the contract.
    pub fn value(
        &self,
        what: &str,
        expression: &Expression,
        dims: &Dims,
    ) -> Result<i64, ContractError> {
        expression.value(dims).map_err(|message| ContractError::Expression {
            path: self.path.clone(),
            what: what.to_string(),
            expression: expression.to_string(),
            message,
        })
    }

    /// Bytes of a scratch parameter.
    pub fn scratch_bytes(
        &self,
        expression: &Expression,
        dims: &Dims,
    ) -> Result<usize, ContractError> {
        let bytes = self.value("bytes of scratch", expression, dims)?;
        usize::try_from(bytes).map_err(|_| ContractError::Launch {
            path: self.path.clone(),
            message: format!("scratch `{expression}` is {bytes} bytes"),
        })
    }

    /// Grid, block and shared memory for these dims.
    pub fn launch(&self, dims: &Dims) -> Result<Launch, ContractError> {
        for condition in &self.requires {
            if self.value("requires", condition, dims)? == 0 {
                let named = dims.iter().map(|(name, value)| format!("{name} {value}"));
                return Err(ContractError::Requires {
                    path: self.path.clone(),
                    condition: condition.to_string(),
                    model: named.collect::<Vec<_>>().join(", "),
                });
            }
        }
        let wrong = |message: String| ContractError::Launch { path: self.path.clone(), message };
        let sizes = |what: &str, list: &[Expression], most: [i64; 3]| {
            let mut sizes = [1u32; 3];
            for ((size, expression), most) in sizes.iter_mut().zip(list).zip(most) {
                let value = self.value(what, expression, dims)?;
                if value < 1 || value > most {
                    let text = format!("{what} `{expression}` is {value}, outside 1 to {most}");
                    return Err(wrong(text));
                }
                *size = value as u32;
            }
            Ok(sizes)
        };
        let grid = sizes("grid", &self.grid, MAX_GRID)?;
        let block = sizes("block", &self.block, [MAX_THREADS, MAX_THREADS, 64])?;
        let threads: i64 = block.iter().map(|&n| i64::from(n)).product();
        if threads > MAX_THREADS {
            return Err(wrong(format!("block has {threads} threads, more than {MAX_THREADS}")));
        }
        let shared = match &self.shared {
            Some(expression) => self.value("shared", expression, dims)?,
            None => 0,
        };
        if !(0..=MAX_SHARED).contains(&shared) {
            let text = format!("shared is {shared} bytes, outside 0 to {MAX_SHARED}");
            return Err(wrong(text));
        }
        Ok(Launch { grid, block, shared_bytes: shared as u32 })
    }
}

impl Call<'_> {
    /// The arguments, in the order of the kernel's parameters.
    pub fn arguments(&self) -> Result<Vec<Arg<'_>>, ContractError> {
        let mut scratch = self.scratch.iter();
        let mut arguments = Vec::with_capacity(self.contract.parameters.len());
        for parameter in &self.contract.parameters {
            arguments.push(match &parameter.stands {
                Stands::Tensor { role, .. } | Stands::Float(role) => self.bound(*role),
                Stands::Scratch(_) => {
                    Arg::Buffer(scratch.next().expect("a buffer for each parameter"), 0)
                }
                Stands::Null => Arg::Null,
                Stands::Value(expression) => {
                    let what = format!("parameter {}", parameter.name);
                    let value = self.contract.value(&what, expression, &self.dims)?;
                    self.integer(&parameter.name, parameter.ty, value)?
                }
            });
        }
        Ok(arguments)
    }

    fn bound(&self, role: Role) -> Arg<'_> {
        let found = self.bound.iter().find(|(own, _)| *own == role);
        match found.expect("every role of an operation is bound").1 {
            Bound::Tensor(Some((buffer, offset))) => Arg::Buffer(buffer, offset),
            Bound::Tensor(None) => Arg::Null,
            Bound::Float(value) => Arg::F32(value),
        }
    }

    fn integer(&self, name: &str, ty: Type, value: i64) -> Result<Arg<'static>, ContractError> {
        Ok(match ty {
            Type::F32 => Arg::F32(value as f32),
            Type::Integer(8) => Arg::I64(value),
            _ => Arg::I32(i32::try_from(value).map_err(|_| ContractError::Launch {
                path: self.contract.path.clone(),
                message: format!("parameter {name} is {value}, which does not fit 32 bits"),
            })?),
        })
    }

    /// Launches the kernel under the name that it was loaded as.
    pub fn launch(&self, device: &dyn Device, entry: &str) -> Result<(), CallError> {
        let launch = self.contract.launch(&self.dims)?;
        Ok(device.launch(entry, launch, &self.arguments()?)?)
    }
}

/// Why a call could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error(transparent)]
    Contract(#[from] ContractError),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

fn called(entry: &str) -> String {
    format!("contract_{entry}")
}

/// The text with a word of C replaced by another.
fn with_word(text: &str, word: &str, by: &str) -> String {
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(word) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        out += before;
        let alone = !out.ends_with(inside) && !after.starts_with(inside);
        out += if alone { by } else { word };
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_words_are_replaced() {
        let text = "void a(); a_b(a); ba a";
        assert_eq!(with_word(text, "a", "x"), "void x(); a_b(x); ba x");
    }
}
