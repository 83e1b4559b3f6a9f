//! Runs a kernel file on the host device: threads in order, in a random order, and every access checked.

use std::path::Path;

use firstdiff::engine::{
    device::{
        Arg, Buffer, Device, DeviceError, KernelSource, Launch,
        host::{HostDevice, HostOptions, ThreadOrder},
    },
    kernels::KernelSet,
};
use half::{bf16, f16};

/// One argument: a buffer with its values, or a number.
#[derive(Clone)]
pub enum Value {
    F32(Vec<f32>),
    F16(Vec<f32>),
    Bf16(Vec<f32>),
    F64(Vec<f64>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    Bytes(Vec<u8>),
    Int(i32),
    Long(i64),
    Float(f32),
}

impl Value {
    fn bytes(&self) -> Option<Vec<u8>> {
        Some(match self {
            Value::F32(values) => bytemuck::cast_slice(values).to_vec(),
            Value::F16(values) => {
                values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()
            }
            Value::Bf16(values) => {
                values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect()
            }
            Value::F64(values) => bytemuck::cast_slice(values).to_vec(),
            Value::I32(values) => bytemuck::cast_slice(values).to_vec(),
            Value::I64(values) => bytemuck::cast_slice(values).to_vec(),
            Value::Bytes(values) => values.clone(),
            Value::Int(_) | Value::Long(_) | Value::Float(_) => return None,
        })
    }
}

/// A launch of a kernel of a file in this folder.
pub struct Call {
    pub file: &'static str,
    pub entry: &'static str,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: u32,
    pub values: Vec<Value>,
}

/// What the buffers hold after a launch, in the order of the arguments.
pub struct Outputs(Vec<Vec<u8>>);

impl Outputs {
    fn of<T: bytemuck::Pod>(&self, index: usize) -> Vec<T> {
        self.0[index].chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    pub fn f32(&self, index: usize) -> Vec<f32> {
        self.of(index)
    }

    pub fn f64(&self, index: usize) -> Vec<f64> {
        self.of(index)
    }

    pub fn i32(&self, index: usize) -> Vec<i32> {
        self.of(index)
    }

    pub fn i64(&self, index: usize) -> Vec<i64> {
        self.of(index)
    }

    pub fn f16(&self, index: usize) -> Vec<f32> {
        self.of::<u16>(index).into_iter().map(|bits| f16::from_bits(bits).to_f32()).collect()
    }

    pub fn bf16(&self, index: usize) -> Vec<f32> {
        self.of::<u16>(index).into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect()
    }
}

pub fn unchecked() -> Vec<HostOptions> {
    let random = HostOptions { order: ThreadOrder::Random(7), ..HostOptions::default() };
    let reverse = HostOptions { order: ThreadOrder::Reverse, ..HostOptions::default() };
    vec![HostOptions::default(), random, reverse]
}

pub fn checked() -> HostOptions {
    HostOptions { checked: true, ..HostOptions::default() }
}

/// A file of this folder, its includes in place.
pub fn source(file: &str) -> KernelSource {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ordinary");
    KernelSet::beside(&folder).source(file, vec![]).unwrap()
}

impl Call {
    pub fn new(file: &'static str, entry: &'static str, values: Vec<Value>) -> Call {
        Call { file, entry, grid: [1; 3], block: [32, 1, 1], shared_bytes: 0, values }
    }

    pub fn grid(self, x: usize, y: usize) -> Call {
        Call { grid: [x as u32, y as u32, 1], ..self }
    }

    pub fn block(self, x: usize, y: usize) -> Call {
        Call { block: [x as u32, y as u32, 1], ..self }
    }

    pub fn shared(self, bytes: usize) -> Call {
        Call { shared_bytes: bytes as u32, ..self }
    }

    /// The buffers after the launch, on each device.
    pub fn run(&self) -> Vec<Outputs> {
        let mut all = unchecked();
        all.push(checked());
        all.into_iter().map(|options| self.run_on(options).unwrap()).collect()
    }

    pub fn run_on(&self, options: HostOptions) -> Result<Outputs, DeviceError> {
        self.run_times(options, 1)
    }

    /// After so many launches, one after another.
    pub fn run_times(&self, options: HostOptions, times: usize) -> Result<Outputs, DeviceError> {
        let mut device = HostDevice::new(options)?;
        device.load(&source(self.file))?;
        let upload = |value: &Value| {
            let bytes = value.bytes()?;
            let buffer = device.alloc(bytes.len(), "a buffer").unwrap();
            device.upload(&buffer, 0, &bytes).unwrap();
            Some(buffer)
        };
        let buffers: Vec<Option<Buffer>> = self.values.iter().map(upload).collect();
        let args: Vec<Arg<'_>> = self
            .values
            .iter()
            .zip(&buffers)
            .map(|(value, buffer)| match (value, buffer) {
                (Value::Int(n), _) => Arg::I32(*n),
                (Value::Long(n), _) => Arg::I64(*n),
                (Value::Float(x), _) => Arg::F32(*x),
                (_, buffer) => Arg::Buffer(buffer.as_ref().unwrap(), 0),
            })
            .collect();
        let Call { grid, block, shared_bytes, .. } = *self;
        for _ in 0..times {
            device.launch(self.entry, Launch { grid, block, shared_bytes }, &args)?;
        }
        let download = |buffer: &Buffer| {
            let mut bytes = vec![0; buffer.bytes];
            device.download(buffer, 0, &mut bytes).unwrap();
            bytes
        };
        Ok(Outputs(buffers.iter().flatten().map(download).collect()))
    }
}

/// Each value is within `relative` of what is wanted, or of 1.
pub fn assert_close(found: &[f32], wanted: &[f64], relative: f64) {
    assert_eq!(found.len(), wanted.len());
    for (at, (&found, &wanted)) in found.iter().zip(wanted).enumerate() {
        let bound = relative * wanted.abs().max(1.0);
        assert!((f64::from(found) - wanted).abs() <= bound, "element {at}: {found}, not {wanted}");
    }
}

/// Values as they are in f16.
pub fn halves(values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|x| f16::from_f32(x).to_f32()).collect()
}

/// Values as they are in bf16.
pub fn bfloats(values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect()
}
