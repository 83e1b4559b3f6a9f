//! Matrix products: cuBLAS for many rows, `kernels/cuda/gemv.cu` for one.

use std::{ffi::c_void, sync::Arc};

use cudarc::cublas::{result as blas, sys as blas_sys};

use crate::{
    core::tensor::DType,
    engine::device::{
        Arg, DeviceError, Gemm, Launch,
        cuda::{CudaDevice, graph::while_none_is_recorded, stream::Stream},
    },
};

/// Threads of a block of `gemv`.
const BLOCK: u32 = 128;
/// Rows of w of at least so many bytes are shared by the four warps of a block.
const LONG_ROW: usize = 4096;
/// Matrices of one launch.
const GROUP: usize = 3;
/// Bytes that a lane loads at once.
const PACK: usize = 16;

/// Owns a cuBLAS handle on the device's stream.
pub struct Blas {
    handle: blas_sys::cublasHandle_t,
    stream: Arc<Stream>,
}

// SAFETY: the handle is used by one thread at a time, that of the device.
unsafe impl Send for Blas {}

impl Drop for Blas {
    fn drop(&mut self) {
        // It waits for the thread's current context, which may be another's or none.
        let _ = self.stream.context.bind_to_thread();
        // SAFETY: made by create_handle, destroyed once; a failure at the end changes nothing.
        let _ = while_none_is_recorded(|| unsafe { blas::destroy_handle(self.handle) });
    }
}

impl Blas {
    /// A handle whose work goes to a stream.
    pub fn new(stream: &Arc<Stream>) -> Result<Blas, DeviceError> {
        let fails = |what: &str, error: blas::CublasError| DeviceError::NoCuda {
            detail: format!("cuBLAS {what}: {:?}", error.0),
        };
        let handle = while_none_is_recorded(blas::create_handle);
        let handle = handle.map_err(|error| fails("does not start", error))?;
        let blas = Blas { handle, stream: Arc::clone(stream) };
        // SAFETY: the driver's stream is the runtime's, and lives as long as the handle.
        unsafe { blas::set_stream(blas.handle, stream.raw.cast()) }
            .map_err(|error| fails("takes no stream", error))?;
        Ok(blas)
    }

    /// y = x W^T of checked addresses, without the bias.
    fn multiply(&self, gemm: &Gemm<'_>, [x, w, y]: [u64; 3]) -> Result<(), DeviceError> {
        let (cols, rows, inner) = (gemm.cols as i32, gemm.rows as i32, gemm.inner as i32);
        // cuBLAS counts columns first: y^T (cols, rows) = W (cols, inner) x^T (inner, rows).
        let (one, zero) = (1f32, 0f32);
        // SAFETY: the addresses are those of whole matrices; one and zero live through the call.
        // Without a math mode set, f32 products use no TF32, and sums are f32 for both types.
        let multiplied = unsafe {
            blas::gemm_ex(
                self.handle,
                blas_sys::cublasOperation_t::CUBLAS_OP_T,
                blas_sys::cublasOperation_t::CUBLAS_OP_N,
                cols,
                rows,
                inner,
                std::ptr::from_ref(&one).cast(),
                w as *const c_void,
                blas_type(gemm.input),
                inner,
                x as *const c_void,
                blas_type(gemm.input),
                inner,
                std::ptr::from_ref(&zero).cast(),
                y as *mut c_void,
                blas_type(gemm.output),
                cols,
                blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        multiplied.map_err(|error| DeviceError::Cuda {
            doing: format!("multiplying ({rows}, {inner}) by ({inner}, {cols})"),
            detail: format!("{:?}", error.0),
        })
    }
}

impl CudaDevice {
    /// Products of one x, several at once where a kernel can.
    pub(super) fn multiply_all(&self, gemms: &[Gemm<'_>]) -> Result<(), DeviceError> {
        let alike = |a: &Gemm<'_>, b: &Gemm<'_>| {
            (a.x.address, a.inner, a.input, a.output) == (b.x.address, b.inner, b.input, b.output)
        };
        for same in gemms.chunk_by(|a, b| is_gemv(a) && is_gemv(b) && alike(a, b)) {
            if is_gemv(&same[0]) {
                same.chunks(GROUP).try_for_each(|group| self.gemv(group))?
            } else {
                self.multiply(&same[0])?
            }
        }
        Ok(())
    }

    fn multiply(&self, gemm: &Gemm<'_>) -> Result<(), DeviceError> {
        self.bind()?;
        self.blas.multiply(gemm, self.addresses(gemm)?)?;
        let Some(bias) = gemm.bias else { return Ok(()) };
        let launch =
            Launch { grid: [gemm.rows as u32, 1, 1], block: [BLOCK, 1, 1], shared_bytes: 0 };
        let args = [Arg::Buffer(gemm.y, 0), Arg::Buffer(bias, 0), Arg::I32(gemm.cols as i32)];
        super::Device::launch(self, &format!("add_bias_{}", gemm.output), launch, &args)
    }

    /// At most [`GROUP`] products of one row.
    fn gemv(&self, group: &[Gemm<'_>]) -> Result<(), DeviceError> {
        let first = &group[0];
        group.iter().try_for_each(|gemm| self.addresses(gemm).map(drop))?;
        let of = |nth: usize, arg: &dyn Fn(&Gemm<'_>) -> Option<u64>| match group.get(nth) {
            Some(gemm) => arg(gemm).map_or(Arg::Null, Arg::Address),
            None => Arg::Null,
        };
        let three = |arg: &dyn Fn(&Gemm<'_>) -> Option<u64>| [0, 1, 2].map(|nth| of(nth, arg));
        let outputs = [0, 1, 2].map(|nth| group.get(nth).map_or(0, |gemm| gemm.cols as i32));
        let mut args = vec![Arg::Buffer(first.x, 0)];
        args.extend(three(&|gemm| gemm.w.held().ok().map(|w| w.address)));
        args.extend(three(&|gemm| gemm.bias.map(|bias| bias.address)));
        args.extend(three(&|gemm| Some(gemm.y.address)));
        args.extend(outputs.map(Arg::I32));
        args.push(Arg::I32(first.inner as i32));
        let warps = if first.inner * first.input.size() >= LONG_ROW { 4 } else { 1 };
        let blocks = outputs.iter().sum::<i32>() as u32;
        let grid = [blocks.div_ceil(BLOCK / 32 / warps), 1, 1];
        let launch = Launch { grid, block: [BLOCK, 1, 1], shared_bytes: 0 };
        let entry = format!("gemv_{}_{}_{warps}", first.input, first.output);
        super::Device::launch(self, &entry, launch, &args)
    }

    /// The addresses of x, w and y, each of which holds its whole matrix.
    fn addresses(&self, gemm: &Gemm<'_>) -> Result<[u64; 3], DeviceError> {
        let (input, output) = (gemm.input.size(), gemm.output.size());
        if let Some(bias) = gemm.bias {
            self.checked(bias, 0, gemm.cols * DType::F32.size())?;
        }
        Ok([
            self.checked(gemm.x, 0, gemm.rows * gemm.inner * input)?,
            self.checked(gemm.w.held()?, 0, gemm.cols * gemm.inner * input)?,
            self.checked(gemm.y, 0, gemm.rows * gemm.cols * output)?,
        ])
    }
}

/// Whether it is one row, in whole packs.
fn is_gemv(gemm: &Gemm<'_>) -> bool {
    gemm.rows == 1 && (gemm.inner * gemm.input.size()).is_multiple_of(PACK)
}

fn blas_type(dtype: DType) -> blas_sys::cudaDataType {
    match dtype {
        DType::F16 => blas_sys::cudaDataType::CUDA_R_16F,
        _ => blas_sys::cudaDataType::CUDA_R_32F,
    }
}
