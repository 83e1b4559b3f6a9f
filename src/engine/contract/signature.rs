//! The parameters of a contract against those of the compiled kernel: assertions that the device's own
//! compiler checks, so they hold on every device.

use crate::{
    core::tensor::DType,
    engine::{
        contract::{
            error::ContractError,
            op::Access,
            read::{Contract, Parameter, Stands, Type},
        },
        device::DeviceError,
    },
};

/// How an assertion's message begins.
const MARK: &str = "firstdiff: ";
/// More parameters than a kernel has.
const MANY: usize = 80;

/// What a parameter that is no pointer is, as a number: `code` in [`HELPERS`].
const KINDS: [(u32, &str); 5] = [
    (1, "a 4-byte integer"),
    (2, "an 8-byte integer"),
    (3, "a float"),
    (4, "a double"),
    (0, "something else"),
];

/// The types of an entry's parameters, as the numbers of [`KINDS`] and above.
const HELPERS: &str = include_str!("../../../kernels/signature.cuh");

/// C++ that compiles only if the entry's parameters are the contract's.
pub fn assertions(contract: &Contract, entry: &str, dtype: DType) -> String {
    let wanted = contract.parameters.len();
    let mut text = format!(
        "\n{HELPERS}typedef firstdiff_parameters<decltype(&{entry})> firstdiff_of_entry;\n"
    );
    let mut add = |condition: String, message: String| {
        text += &format!("static_assert({condition}, \"{MARK}{message}\");\n");
    };
    for count in (0..MANY).filter(|&count| count != wanted) {
        let message = format!("{entry} takes {count} parameters, the contract has {wanted}");
        add(format!("firstdiff_of_entry::count != {count}"), message);
    }
    for (index, parameter) in contract.parameters.iter().enumerate() {
        let (name, written) = (&parameter.name, &parameter.written);
        // Where the number of parameters is wrong, their types say nothing more.
        let is = |code: String| {
            format!("firstdiff_of_entry::count != {wanted} || !({code})")
                .replace("CODE", &format!("firstdiff_of_entry::code({index})"))
        };
        let number = index + 1;
        let mut mismatch = |code: String, found: &str| {
            let message = format!(
                "parameter {number} of {entry} is {found}, the contract says {name}: {written}"
            );
            add(is(code), message);
        };
        let kind = match parameter.ty {
            Type::Pointer(_) => None,
            Type::Integer(size) => Some(if size == 4 { 1 } else { 2 }),
            Type::F32 => Some(3),
        };
        for (code, found) in KINDS.into_iter().filter(|(code, _)| Some(*code) != kind) {
            mismatch(format!("CODE == {code}"), found);
        }
        if kind.is_some() {
            mismatch("CODE >= 10".to_string(), "a pointer");
            continue;
        }
        if let Some(size) = element_size(parameter, dtype) {
            for other in [1, 2, 4, 8, 16].into_iter().filter(|&other| other != size) {
                let found = format!("a pointer to elements of {other} bytes");
                mismatch(format!("CODE >= 10 && CODE % 100 == 10 + {other}"), &found);
            }
        }
        if is_written(parameter) {
            mismatch("CODE >= 110".to_string(), "a pointer to const");
        }
    }
    text
}

fn element_size(parameter: &Parameter, dtype: DType) -> Option<usize> {
    match parameter.ty {
        Type::Pointer(Some(0)) => Some(dtype.size()),
        Type::Pointer(size) => size,
        _ => None,
    }
}

fn is_written(parameter: &Parameter) -> bool {
    match &parameter.stands {
        Stands::Tensor { access, .. } => *access != Access::In,
        Stands::Scratch(_) => true,
        _ => false,
    }
}

/// The failed assertion in a compiler's message, in one line; `None` where the source itself is wrong.
pub fn mismatch(contract: &Contract, error: &DeviceError) -> Option<ContractError> {
    let DeviceError::Compile { message, .. } = error else { return None };
    let (_, rest) = message.split_once(MARK)?;
    let end = rest.find(['"', '\n']).unwrap_or(rest.len());
    let (path, message) = (contract.path.clone(), rest[..end].to_string());
    Some(ContractError::Mismatch { path, message })
}
