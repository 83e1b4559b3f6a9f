//! From a `.cu` file to machine code of one GPU, by NVRTC; kept in the cache folder.

use std::ffi::{CStr, CString};

use cudarc::nvrtc::{result as nvrtc, sys as nvrtc_sys};

use crate::{
    core::cache::Entry,
    engine::device::{DeviceError, KernelSource, cuda::toolkit},
};

/// The machine code (a cubin) of a source for an architecture such as `sm_90`, from the cache or
/// NVRTC.
pub fn cubin(source: &KernelSource, architecture: &str) -> Result<Vec<u8>, DeviceError> {
    let entry = Entry::new("cuda", file_name(source, architecture)).ok();
    if let Some(code) = entry.as_ref().and_then(Entry::read) {
        return Ok(code);
    }
    let code = compile(source, architecture)?;
    entry.inspect(|entry| entry.write(&code));
    Ok(code)
}

/// The hash of everything that the machine code depends on.
fn file_name(source: &KernelSource, architecture: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [&source.text, architecture, &version(), &source.defines.join(" ")] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    format!("{}.cubin", hasher.finalize().to_hex())
}

/// NVRTC's version.
pub fn version() -> String {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library was found when the device was opened; both pointers are to live integers.
    let _ = unsafe { nvrtc_sys::nvrtcVersion(&mut major, &mut minor) };
    format!("{major}.{minor}")
}

/// Owns a program that NVRTC compiles.
struct Program(nvrtc_sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by create_program, destroyed once.
        let _ = unsafe { nvrtc::destroy_program(self.0) };
    }
}

fn compile(source: &KernelSource, architecture: &str) -> Result<Vec<u8>, DeviceError> {
    let mut options = vec![
        format!("--gpu-architecture={architecture}"),
        "--generate-line-info".to_string(),
        "--std=c++17".to_string(),
    ];
    options.extend(source.defines.iter().map(|define| format!("-D{define}")));
    let headers = toolkit::include_folder();
    options.extend(headers.iter().map(|folder| format!("--include-path={}", folder.display())));
    let fails = |message: String| DeviceError::Compile { file: source.file.clone(), message };
    let c_string = |text: String| {
        CString::new(text)
            .map_err(|_| fails("it holds a NUL byte, so it is not source text".to_string()))
    };
    let name = c_string(source.file.clone())?;
    // The first line number is that of the file itself.
    let text = c_string(format!("#line 1 \"{}\"\n{}", source.file, source.text))?;
    let failed = |error: nvrtc::NvrtcError| fails(format!("NVRTC says {:?}", error.0));
    let program = Program(nvrtc::create_program(&text, Some(&name)).map_err(failed)?);
    // SAFETY: the program, its text and its name live; each call writes as many bytes as it was
    // asked for the size of.
    unsafe {
        if nvrtc::compile_program(program.0, &options).is_err() {
            let log = nvrtc::get_program_log(program.0).map_err(failed)?;
            let log = CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned();
            let missing = "cuda_fp16.h was not found: install the CUDA headers or set CUDA_HOME";
            return Err(fails(match headers {
                Some(_) => log,
                None => format!("{log}\n{missing}"),
            }));
        }
        let mut size = 0;
        nvrtc_sys::nvrtcGetCUBINSize(program.0, &mut size).result().map_err(failed)?;
        let mut code = vec![0u8; size];
        nvrtc_sys::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast()).result().map_err(failed)?;
        Ok(code)
    }
}
