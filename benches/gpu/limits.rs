//! What the GPU can do at best: copy, multiply, and send to the host.

use cudarc::driver::{CudaContext, CudaStream, result as driver, sys};
use firstdiff::{
    core::tensor::DType,
    engine::device::{Device, Gemm, Matrix, cuda::CudaDevice},
};

use crate::{Result, median};

pub struct Limits {
    device: String,
    driver: String,
    /// Bytes read plus bytes written, a second, of a copy on the GPU.
    pub copy: f64,
    /// Floating-point operations a second of an f16 product of 8192 cubed, and of 512 rows.
    gemm: f64,
    /// Bytes a second from the GPU to pinned memory.
    pub link: f64,
}

impl Limits {
    pub fn measure() -> Result<Limits> {
        let device = CudaDevice::new()?;
        let context = CudaContext::new(0)?;
        let stream = context.new_stream()?;
        let gemm = gemm(&device)?;
        let (copy, link) = (copy(&stream)?, link(&stream)?);
        let mut version = 0;
        // SAFETY: a pointer to a live integer.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
        let driver = format!("CUDA {}.{}", version / 1000, version % 1000 / 10);
        Ok(Limits { device: device.name(), driver, copy, gemm, link })
    }

    pub fn print(&self) {
        println!("Device: {}, driver for {}.\n", self.device, self.driver);
        println!("| limit, measured in this run | |\n|---|---:|");
        println!("| copy on the GPU, read plus written | {:.2} TB/s |", self.copy / 1e12);
        println!("| f16 product, 8192 cubed | {:.0} TFLOP/s |", self.gemm / 1e12);
        println!("| GPU to pinned memory | {:.1} GB/s |\n", self.link / 1e9);
    }
}

/// Of 2 GiB, which no cache holds.
fn copy(stream: &CudaStream) -> Result<f64> {
    const BYTES: usize = 2 << 30;
    // SAFETY: both are allocated here, as large as the copy, and freed after it.
    unsafe {
        let (from, to) = (driver::malloc_sync(BYTES)?, driver::malloc_sync(BYTES)?);
        let milliseconds = median(9, || {
            for _ in 0..4 {
                driver::memcpy_dtod_async(to, from, BYTES, stream.cu_stream())?;
            }
            Ok(driver::stream::synchronize(stream.cu_stream())?)
        });
        driver::free_sync(from)?;
        driver::free_sync(to)?;
        Ok(4.0 * 2.0 * BYTES as f64 / (milliseconds? * 1e-3))
    }
}

fn link(stream: &CudaStream) -> Result<f64> {
    const BYTES: usize = 256 << 20;
    // SAFETY: both are allocated here, as large as the copy, and freed after it.
    unsafe {
        let from = driver::malloc_sync(BYTES)?;
        let to = driver::malloc_host(BYTES, 0)?;
        let milliseconds = median(9, || {
            let pinned = std::slice::from_raw_parts_mut(to.cast::<u8>(), BYTES);
            driver::memcpy_dtoh_async(pinned, from, stream.cu_stream())?;
            Ok(driver::stream::synchronize(stream.cu_stream())?)
        });
        driver::free_sync(from)?;
        driver::free_host(to)?;
        Ok(BYTES as f64 / (milliseconds? * 1e-3))
    }
}

fn gemm(device: &CudaDevice) -> Result<f64> {
    const N: usize = 8192;
    let matrix = |what| -> Result<_> {
        let buffer = device.alloc(2 * N * N, what)?;
        device.upload(&buffer, 0, &vec![0; 2 * N * N])?;
        Ok(buffer)
    };
    let (x, w, y) = (matrix("x")?, matrix("w")?, matrix("y")?);
    let (input, output) = (DType::F16, DType::F16);
    let w = Matrix::Held(w);
    let gemm = Gemm { x: &x, w: &w, bias: None, y: &y, rows: N, cols: N, inner: N, input, output };
    let milliseconds = median(9, || {
        for _ in 0..4 {
            device.gemms(&[gemm])?;
        }
        Ok(device.download(&y, 0, &mut [0; 2])?)
    })?;
    Ok(4.0 * 2.0 * (N as f64).powi(3) / (milliseconds * 1e-3))
}
