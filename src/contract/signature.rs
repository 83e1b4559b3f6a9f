//! The parameters of a contract against those of the compiled kernel: assertions that the device's own
//! compiler checks, so they hold on every device.

use crate::{
    contract::{
        error::ContractError,
        op::Access,
        read::{Contract, Parameter, Stands, Type},
    },
    device::DeviceError,
    tensor::DType,
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

/// No type traits: NVRTC has none without further headers.
const HELPERS: &str = "
template <class T> struct firstdiff_parameter { static constexpr unsigned code = 0; };
template <unsigned N> struct firstdiff_integer { static constexpr unsigned code = N == 4 ? 1 : 2; };
template <> struct firstdiff_parameter<int> : firstdiff_integer<4> {};
template <> struct firstdiff_parameter<unsigned> : firstdiff_integer<4> {};
template <> struct firstdiff_parameter<long> : firstdiff_integer<sizeof(long)> {};
template <> struct firstdiff_parameter<unsigned long> : firstdiff_integer<sizeof(long)> {};
template <> struct firstdiff_parameter<long long> : firstdiff_integer<8> {};
template <> struct firstdiff_parameter<unsigned long long> : firstdiff_integer<8> {};
template <> struct firstdiff_parameter<float> { static constexpr unsigned code = 3; };
template <> struct firstdiff_parameter<double> { static constexpr unsigned code = 4; };
template <class T> struct firstdiff_element { static constexpr unsigned size = sizeof(T); };
template <> struct firstdiff_element<void> { static constexpr unsigned size = 0; };
template <> struct firstdiff_element<const void> { static constexpr unsigned size = 0; };
template <class T> struct firstdiff_pointee {
    static constexpr unsigned code = 10 + firstdiff_element<T>::size;
};
template <class T> struct firstdiff_pointee<const T> {
    static constexpr unsigned code = 110 + firstdiff_element<const T>::size;
};
template <class T> struct firstdiff_parameter<T*> {
    static constexpr unsigned code = firstdiff_pointee<T>::code;
};
template <class T> struct firstdiff_parameters;
template <class... A> struct firstdiff_parameters<void (*)(A...)> {
    static constexpr unsigned count = sizeof...(A);
    static constexpr unsigned code(unsigned i) {
        const unsigned codes[] = {firstdiff_parameter<A>::code..., 0};
        return i < sizeof...(A) ? codes[i] : 0;
    }
};
";

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
