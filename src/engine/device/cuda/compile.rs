//! From a `.cu` file to machine code of one GPU, by NVRTC; kept in the cache folder.

use std::{
    ffi::{CStr, CString},
    mem::MaybeUninit,
};

use cudarc::nvrtc::{result as nvrtc, sys as nvrtc_sys};

use crate::{
    core::cache::Entry,
    engine::device::{DeviceError, KernelSource, cuda::toolkit, source::for_nvrtc},
};

/// What the headers of C and C++ have that kernels use, and the names that they are included by: NVRTC has
/// neither.
const STANDARD: &CStr = match CStr::from_bytes_with_nul(
    concat!(include_str!("../../../../kernels/cuda/nvrtc_std.h"), "\0").as_bytes(),
) {
    Ok(text) => text,
    Err(_) => panic!("the header holds no NUL"),
};
const STANDARD_NAMES: [&CStr; 26] = [
    c"algorithm",
    c"assert.h",
    c"cassert",
    c"cfloat",
    c"climits",
    c"cmath",
    c"cstddef",
    c"cstdint",
    c"cstdio",
    c"cstdlib",
    c"cstring",
    c"float.h",
    c"iostream",
    c"limits",
    c"limits.h",
    c"math.h",
    c"stddef.h",
    c"stdexcept",
    c"stdint.h",
    c"stdio.h",
    c"stdlib.h",
    c"string",
    c"string.h",
    c"type_traits",
    c"utility",
    c"vector",
];

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
    let defines = source.defines.join(" ");
    let text = for_nvrtc(&source.text);
    let parts = [text.as_bytes(), architecture.as_bytes(), defines.as_bytes(), STANDARD.to_bytes()];
    for part in parts.into_iter().chain([version().as_bytes()]) {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
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

impl Program {
    /// A program with [`STANDARD`] under each of its names.
    fn new(text: &CStr, name: &CStr) -> Result<Program, nvrtc::NvrtcError> {
        let names = STANDARD_NAMES.map(CStr::as_ptr);
        let headers = [STANDARD.as_ptr(); STANDARD_NAMES.len()];
        let mut program = MaybeUninit::uninit();
        // SAFETY: the strings end with NUL and outlive the call; NVRTC writes the program if it succeeds.
        unsafe {
            let (to, count) = (program.as_mut_ptr(), names.len() as i32);
            let (text, name) = (text.as_ptr(), name.as_ptr());
            let (headers, names) = (headers.as_ptr(), names.as_ptr());
            nvrtc_sys::nvrtcCreateProgram(to, text, name, count, headers, names).result()?;
            Ok(Program(program.assume_init()))
        }
    }
}

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
        // Functions between the kernels are theirs, whether they say so or not.
        "--device-as-default-execution-space".to_string(),
    ];
    options.extend(source.defines.iter().map(|define| format!("-D{define}")));
    let headers = toolkit::include_folders();
    options.extend(headers.iter().map(|folder| format!("--include-path={}", folder.display())));
    let fails = |message: String| DeviceError::Compile { file: source.file.clone(), message };
    let c_string = |text: String| {
        CString::new(text)
            .map_err(|_| fails("it holds a NUL byte, so it is not source text".to_string()))
    };
    let name = c_string(source.file.clone())?;
    // The first line number is that of the file itself.
    let text = c_string(format!("#line 1 \"{}\"\n{}", source.file, for_nvrtc(&source.text)))?;
    let failed = |error: nvrtc::NvrtcError| fails(format!("NVRTC says {:?}", error.0));
    let program = Program::new(&text, &name).map_err(failed)?;
    // SAFETY: the program, its text and its name live; each call writes as many bytes as it was
    // asked for the size of.
    unsafe {
        if nvrtc::compile_program(program.0, &options).is_err() {
            let log = nvrtc::get_program_log(program.0).map_err(failed)?;
            let log = CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned();
            let missing = "cuda_fp16.h was not found: install the CUDA headers or set CUDA_HOME";
            let hint = if headers.is_empty() { format!("\n{missing}") } else { String::new() };
            return Err(fails(log + &hint));
        }
        let mut size = 0;
        nvrtc_sys::nvrtcGetCUBINSize(program.0, &mut size).result().map_err(failed)?;
        let mut code = vec![0u8; size];
        nvrtc_sys::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast()).result().map_err(failed)?;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kernels::KernelSet;

    #[test]
    #[ignore = "needs NVRTC and CUDA's headers, no GPU: CUDA_HOME=... cargo test --lib nvrtc -- --ignored"]
    fn nvrtc_compiles_kernels_as_people_write_them() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ordinary");
        let kernels = KernelSet::beside(&folder);
        let mut compiled = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".cu") {
                let source = kernels.source(&name, Vec::new()).unwrap();
                compile(&source, "sm_90").unwrap();
                compiled += 1;
            }
        }
        assert_eq!(compiled, 20);
    }
}
