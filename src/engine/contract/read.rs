//! A contract file, read and checked by itself. `docs/kernels.md` describes it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    core::{
        attending::{Calls, Current},
        files,
        tensor::DType,
    },
    engine::contract::{
        error::ContractError,
        expression::Expression,
        op::{Access, Axis, Element, Op, Place, Role},
    },
    model::RopePairs,
};

/// A contract larger than this is none.
const MAX_BYTES: u64 = 1 << 20;
/// CUDA takes no more bytes of parameters on older devices; no kernel comes near.
const MAX_PARAMETERS: usize = 64;

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    op: String,
    source: PathBuf,
    entry: BTreeMap<String, String>,
    #[serde(default)]
    defines: BTreeMap<String, String>,
    #[serde(default)]
    requires: Vec<String>,
    #[serde(default)]
    call: Calls,
    scale: Option<ScaleAt>,
    head_map: Option<String>,
    pairs: Option<Pairs>,
    cache: Option<WrittenCache>,
    launch: WrittenLaunch,
    parameters: Vec<WrittenParameter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Pairs {
    Norm,
    Neox,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCache {
    append: Append,
    #[serde(default)]
    current: Current,
    #[serde(default)]
    positions: Positions,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLaunch {
    grid: Vec<String>,
    block: Vec<String>,
    shared: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenParameter {
    name: String,
    role: Option<String>,
    value: Option<String>,
    #[serde(rename = "type")]
    ty: String,
    access: Option<Access>,
    axes: Option<Vec<Axis>>,
    bytes: Option<String>,
}

/// Where the scale 1/sqrt(D) comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleAt {
    /// A parameter.
    Passed,
    /// The kernel computes it.
    Inside,
}

/// Who writes a call's keys and values to the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Append {
    /// The kernel, at the tokens' positions.
    Kernel,
    /// The engine, before the call.
    Before,
    /// The engine, after the call.
    After,
}

/// Positions that the cache's memory has room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// As many as it may ever hold.
    #[default]
    Capacity,
    /// As many as it holds after the call: laid out anew for each.
    Length,
}

/// The C type of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A pointer, and the bytes of its elements: `None` for void, 0 for the storage type.
    Pointer(Option<usize>),
    /// An integer of 4 or 8 bytes.
    Integer(usize),
    F32,
}

/// What a parameter stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum Stands {
    /// A tensor, in this order of its axes.
    Tensor {
        role: Role,
        access: Access,
        axes: Vec<Axis>,
    },
    /// Memory of that many bytes.
    Scratch(Expression),
    Null,
    Float(Role),
    Value(Expression),
}

/// One parameter of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    pub name: String,
    /// The type as it is written.
    pub written: String,
    pub ty: Type,
    pub stands: Stands,
}

/// A contract that holds together by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Contract {
    pub path: PathBuf,
    pub op: Op,
    /// The `.cu` file.
    pub source: PathBuf,
    /// The entry for each storage type.
    pub entries: Vec<(DType, String)>,
    pub defines: Vec<(String, Expression)>,
    pub requires: Vec<Expression>,
    pub calls: Calls,
    pub append: Append,
    pub current: Current,
    pub positions: Positions,
    /// The KV head of a query head, where it is not h / (Hq / Hk).
    pub head_map: Option<Expression>,
    /// The pairs that a rope kernel rotates.
    pub pairs: Option<RopePairs>,
    pub grid: Vec<Expression>,
    pub block: Vec<Expression>,
    pub shared: Option<Expression>,
    pub parameters: Vec<Parameter>,
}

impl Contract {
    /// Reads a contract file for an operation.
    pub fn read(op: Op, path: &Path) -> Result<Contract, ContractError> {
        let failed = |source| ContractError::Read { path: path.to_path_buf(), source };
        let text = files::read_text(path, MAX_BYTES).map_err(failed)?;
        let reader = Reader { path, op };
        let written: Written = toml::from_str(&text).map_err(|error| {
            let line = error.span().map(|span| 1 + text[..span.start].matches('\n').count());
            let at = line.map_or(String::new(), |line| format!("line {line}: "));
            let message = format!("{at}{}", error.message().replace('\n', " "));
            ContractError::Toml { path: path.to_path_buf(), message }
        })?;
        reader.contract(written)
    }

    /// Whether a parameter stands for a role.
    pub fn has(&self, role: Role) -> bool {
        self.parameters.iter().any(|parameter| match &parameter.stands {
            Stands::Tensor { role: own, .. } | Stands::Float(own) => *own == role,
            _ => false,
        })
    }

    /// What the kernel does with a tensor; `None` where it has no such parameter.
    pub fn access(&self, wanted: Role) -> Option<Access> {
        self.parameters.iter().find_map(|parameter| match &parameter.stands {
            Stands::Tensor { role, access, .. } if *role == wanted => Some(*access),
            _ => None,
        })
    }

    /// The entry for a storage type.
    pub fn entry(&self, dtype: DType) -> Result<&str, ContractError> {
        let found = self.entries.iter().find(|(own, _)| *own == dtype);
        found.map(|(_, entry)| entry.as_str()).ok_or_else(|| ContractError::NoDType {
            path: self.path.clone(),
            dtype: dtype.to_string(),
            has: self
                .entries
                .iter()
                .map(|(own, _)| own.to_string())
                .collect::<Vec<_>>()
                .join(" or "),
        })
    }

    /// The files that the kernel is made of, as far as the contract names them.
    pub fn files(&self) -> [&Path; 2] {
        [&self.path, &self.source]
    }
}

/// A file being read.
struct Reader<'a> {
    path: &'a Path,
    op: Op,
}

impl Reader<'_> {
    fn invalid(&self, message: impl Into<String>) -> ContractError {
        ContractError::Invalid { path: self.path.to_path_buf(), message: message.into() }
    }

    fn expression(&self, what: &str, text: &str) -> Result<Expression, ContractError> {
        self.expression_of(what, text, &self.op.dims())
    }

    fn expression_of(
        &self,
        what: &str,
        text: &str,
        names: &[&str],
    ) -> Result<Expression, ContractError> {
        Expression::parse(text, names).map_err(|message| ContractError::Expression {
            path: self.path.to_path_buf(),
            what: what.to_string(),
            expression: text.to_string(),
            message,
        })
    }

    fn contract(&self, written: Written) -> Result<Contract, ContractError> {
        if written.op != self.op.name() {
            let (op, wanted) = (&written.op, self.op);
            let text = format!("it is for {op}, not {wanted}; give it with --kernel {op}=FILE");
            return Err(self.invalid(text));
        }
        let parameters = written.parameters.iter().map(|parameter| self.parameter(parameter));
        let parameters = parameters.collect::<Result<Vec<_>, _>>()?;
        let all = |what: &str, texts: &[String]| -> Result<Vec<Expression>, ContractError> {
            if texts.is_empty() || texts.len() > 3 {
                return Err(self.invalid(format!("{what} has one to three sizes; give those")));
            }
            texts.iter().map(|text| self.expression(what, text)).collect()
        };
        let defines = written.defines.iter();
        let defines = defines.map(|(name, text)| {
            let value = self.expression(&format!("define {name}"), text)?;
            Ok((name.clone(), value))
        });
        let requires = written.requires.iter();
        let shared = written.launch.shared.as_deref();
        let mut head_dims = self.op.dims();
        head_dims.push("head");
        let head_map = written.head_map.as_deref();
        let cache = self.cache(&written)?;
        let contract = Contract {
            path: self.path.to_path_buf(),
            op: self.op,
            source: self.path.parent().unwrap_or(Path::new("")).join(&written.source),
            entries: self.entries(&written.entry)?,
            defines: defines.collect::<Result<_, ContractError>>()?,
            requires: requires
                .map(|text| self.expression("requires", text))
                .collect::<Result<_, _>>()?,
            calls: written.call,
            append: cache.append,
            current: cache.current,
            positions: cache.positions,
            head_map: head_map
                .map(|text| self.expression_of("head_map", text, &head_dims))
                .transpose()?,
            pairs: written.pairs.as_ref().map(|pairs| match pairs {
                Pairs::Norm => RopePairs::Norm,
                Pairs::Neox => RopePairs::Neox,
            }),
            grid: all("grid", &written.launch.grid)?,
            block: all("block", &written.launch.block)?,
            shared: shared.map(|text| self.expression("shared", text)).transpose()?,
            parameters,
        };
        self.check(&contract, written.scale)?;
        Ok(contract)
    }

    fn entries(
        &self,
        written: &BTreeMap<String, String>,
    ) -> Result<Vec<(DType, String)>, ContractError> {
        let of = |(dtype, entry): (&String, &String)| {
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if entry.is_empty() || !entry.chars().all(word) {
                return Err(
                    self.invalid(format!("entry \"{entry}\" is not a C identifier; fix it"))
                );
            }
            match dtype.as_str() {
                "f32" => Ok((DType::F32, entry.clone())),
                "f16" => Ok((DType::F16, entry.clone())),
                _ => Err(self.invalid(format!("entry has f32 and f16, not {dtype}; leave it out"))),
            }
        };
        if written.is_empty() {
            Err(self.invalid("entry is empty; name one for f32 or f16"))
        } else {
            written.iter().map(of).collect()
        }
    }

    /// The rules of the cache, which an attention kernel must state.
    fn cache(&self, written: &Written) -> Result<WrittenCache, ContractError> {
        let own = self.op == Op::Attention;
        let none = WrittenCache {
            append: Append::Before,
            current: Current::Cache,
            positions: Positions::Capacity,
        };
        match written.cache {
            Some(cache) if own => Ok(cache),
            None if own => Err(self.invalid(
                "[cache] is missing; state who appends: append = \"kernel\", \"before\" or \"after\"",
            )),
            Some(_) => Err(self.invalid(format!("{} has no [cache]; leave it out", self.op))),
            None => Ok(none),
        }
    }

    fn parameter(&self, written: &WrittenParameter) -> Result<Parameter, ContractError> {
        let name = &written.name;
        let ty = type_of(&written.ty).ok_or_else(|| {
            let known = "T*, f32*, f16*, i32*, void*, i32, u32, i64, u64 or f32";
            self.invalid(format!("parameter {name}: no type {}; choose from {known}", written.ty))
        })?;
        let stands = match (&written.role, &written.value) {
            (Some(role), None) => self.role(written, role, ty)?,
            (None, Some(value)) => {
                if matches!(ty, Type::Pointer(_)) {
                    let text =
                        format!("parameter {name}: a value cannot be a pointer; give it a role");
                    return Err(self.invalid(text));
                }
                Stands::Value(self.expression(&format!("parameter {name}"), value)?)
            }
            _ => {
                let text = format!("parameter {name} has either a role or a value; give it one");
                return Err(self.invalid(text));
            }
        };
        let tensor = matches!(stands, Stands::Tensor { .. });
        for (what, given) in
            [("axes", written.axes.is_some()), ("access", written.access.is_some())]
        {
            if given && !tensor {
                let text =
                    format!("parameter {name} is not a tensor and takes no {what}; leave it out");
                return Err(self.invalid(text));
            }
        }
        if written.bytes.is_some() && !matches!(stands, Stands::Scratch(_)) {
            let text = format!("parameter {name}: only scratch has bytes; leave them out");
            return Err(self.invalid(text));
        }
        Ok(Parameter { name: name.clone(), written: written.ty.clone(), ty, stands })
    }

    fn role(
        &self,
        written: &WrittenParameter,
        role: &str,
        ty: Type,
    ) -> Result<Stands, ContractError> {
        let name = &written.name;
        let places = self.op.places();
        let place = places.iter().find(|place| place.role.name() == role).ok_or_else(|| {
            let known: Vec<&str> = places.iter().map(|place| place.role.name()).collect();
            let op = self.op;
            let known = known.join(", ");
            self.invalid(format!("parameter {name}: {op} has no role {role}; it has {known}"))
        })?;
        let fits = match (place.element, ty) {
            (Element::Storage, Type::Pointer(size)) => size == Some(0),
            (Element::F32 | Element::I32, Type::Pointer(size)) => size == Some(4),
            (Element::Any, Type::Pointer(_)) => true,
            (Element::Scalar, ty) => ty == Type::F32,
            _ => false,
        };
        if !fits {
            let wanted = match place.element {
                Element::Storage => "T*, the storage type of the run",
                Element::F32 => "f32*",
                Element::I32 => "i32*",
                Element::Any => "a pointer",
                Element::Scalar => "f32",
            };
            let ty = &written.ty;
            let text = format!("parameter {name}: {role} is {wanted}, not {ty}; fix its type");
            return Err(self.invalid(text));
        }
        match place.role {
            Role::Null => return Ok(Stands::Null),
            Role::Scratch => {
                let bytes = written.bytes.as_deref().ok_or_else(|| {
                    self.invalid(format!("parameter {name}: state the number of bytes of scratch"))
                })?;
                return Ok(Stands::Scratch(self.expression(&format!("bytes of {name}"), bytes)?));
            }
            _ => {}
        }
        if place.element == Element::Scalar {
            return Ok(Stands::Float(place.role));
        }
        let access = written.access.unwrap_or(place.access[0]);
        if !place.access.contains(&access) {
            let known = place.access.iter().map(|access| match access {
                Access::In => "in",
                Access::Out => "out",
                Access::InOut => "inout",
            });
            let known = known.collect::<Vec<_>>().join(" or ");
            return Err(self.invalid(format!("parameter {name}: {role} is {known}; fix access")));
        }
        let axes = self.axes(name, written.axes.as_deref(), place)?;
        Ok(Stands::Tensor { role: place.role, access, axes })
    }

    fn axes(
        &self,
        name: &str,
        written: Option<&[Axis]>,
        place: &Place,
    ) -> Result<Vec<Axis>, ContractError> {
        let Some(axes) = written else { return Ok(place.axes.to_vec()) };
        let kept: Vec<Axis> = axes.iter().copied().filter(|axis| *axis != Axis::Batch).collect();
        let once = |axis: &Axis| kept.iter().filter(|other| *other == axis).count() == 1;
        let right = kept.len() == place.axes.len() && place.axes.iter().all(once);
        if right {
            Ok(kept)
        } else {
            let own: Vec<String> =
                place.axes.iter().map(|axis| format!("{axis:?}").to_lowercase()).collect();
            let own = if own.is_empty() { "no".to_string() } else { own.join(", ") };
            let own = own.replace("kvhead", "kv_head");
            let text = format!("parameter {name} has the axes {own}, each once; fix its axes");
            Err(self.invalid(text))
        }
    }

    /// What holds between parts of the file.
    fn check(&self, contract: &Contract, scale: Option<ScaleAt>) -> Result<(), ContractError> {
        if contract.parameters.len() > MAX_PARAMETERS {
            return Err(self.invalid(format!("over {MAX_PARAMETERS} parameters; give fewer")));
        }
        for place in self.op.places() {
            let role = place.role.name();
            let count = contract.parameters.iter().filter(|parameter| match &parameter.stands {
                Stands::Tensor { role, .. } | Stands::Float(role) => *role == place.role,
                _ => false,
            });
            match count.count() {
                0 if place.required => {
                    let text = format!("no parameter has the role {role}; {} needs it", self.op);
                    return Err(self.invalid(text));
                }
                0 | 1 => {}
                _ => return Err(self.invalid(format!("two parameters are {role}; keep one"))),
            }
        }
        let in_place = contract.access(Role::X) == Some(Access::InOut);
        let needs_out = matches!(self.op, Op::RmsNorm | Op::Rope | Op::ResidualAdd);
        if needs_out && in_place == contract.has(Role::Out) {
            return Err(self
                .invalid("a parameter is out, or x has access = \"inout\"; give one of the two"));
        }
        if (self.op == Op::Rope) != contract.pairs.is_some() {
            let text = "rope, and only rope, has pairs = \"norm\" or \"neox\"; say which";
            return Err(self.invalid(text));
        }
        match self.op {
            Op::Attention => self.check_attention(contract, scale),
            _ if scale.is_some()
                || contract.head_map.is_some()
                || contract.calls == Calls::Token =>
            {
                let text = "scale, head_map and call belong to attention; leave them out";
                Err(self.invalid(text))
            }
            _ => Ok(()),
        }
    }

    fn check_attention(
        &self,
        contract: &Contract,
        scale: Option<ScaleAt>,
    ) -> Result<(), ContractError> {
        let passed = contract.has(Role::Scale);
        match scale {
            Some(ScaleAt::Inside) if passed => {
                return Err(self.invalid("scale is \"inside\", but a parameter has it; drop one"));
            }
            Some(ScaleAt::Passed) | None if !passed => {
                let text = "no parameter is scale; add it, or say scale = \"inside\"";
                return Err(self.invalid(text));
            }
            _ => {}
        }
        let reads = contract.current == Current::Argument;
        let needs = reads || contract.append == Append::Kernel;
        let both = contract.has(Role::KCurrent) && contract.has(Role::VCurrent);
        if needs && !both {
            let text = "the kernel appends or reads the current token, so k_current and v_current \
                        are parameters; add them";
            return Err(self.invalid(text));
        }
        let taps = contract.has(Role::Scores) || contract.has(Role::Probs);
        if taps && contract.calls == Calls::Token {
            let text = "scores and probs cover whole steps; leave them out, or set call = \"step\"";
            return Err(self.invalid(text));
        }
        if contract.append == Append::After && !reads {
            let text = "append = \"after\" requires current = \"argument\"; set it";
            return Err(self.invalid(text));
        }
        let writes = |role| contract.access(role) == Some(Access::InOut);
        let appends = contract.append == Append::Kernel;
        if appends != writes(Role::KCache) || appends != writes(Role::VCache) {
            let text = "caches have access = \"inout\" if the kernel appends, else \"in\"; make the two agree";
            return Err(self.invalid(text));
        }
        Ok(())
    }
}

fn type_of(written: &str) -> Option<Type> {
    Some(match written {
        "T*" => Type::Pointer(Some(0)),
        "f32*" | "i32*" => Type::Pointer(Some(4)),
        "f16*" => Type::Pointer(Some(2)),
        "void*" => Type::Pointer(None),
        "i32" | "u32" => Type::Integer(4),
        "i64" | "u64" => Type::Integer(8),
        "f32" => Type::F32,
        _ => return None,
    })
}
