//! The GPU, its driver and CUDA's libraries. None of them is needed by the host device.

use std::path::PathBuf;

use cudarc::{
    cublas::sys as cublas_sys,
    driver::{
        result as driver,
        sys::{self as driver_sys, CUdevice_attribute as Attribute, CUresult},
    },
    nvrtc::sys as nvrtc_sys,
};

use super::probes::Finding;
use crate::{
    core::places,
    engine::device::cuda::{cuda_folders, include_folder},
};

const HOST_ONLY: &str = "needed only for a GPU";

/// The driver's version and every GPU with its compute capability and memory.
pub(super) fn gpu() -> Finding {
    if !has_driver() {
        return Finding::missing("no CUDA driver found; the host device needs none");
    }
    match gpus() {
        Ok(names) if names.is_empty() => no_gpu(),
        Ok(names) => Finding::ok(names.join(", ")),
        Err(driver::DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => no_gpu(),
        Err(error) => Finding::failed(format!("the CUDA driver does not start: {:?}", error.0))
            .next("see what nvidia-smi says; the host device needs no GPU"),
    }
}

fn no_gpu() -> Finding {
    Finding::missing("a CUDA driver, but no GPU; the host device needs none")
}

fn has_driver() -> bool {
    // SAFETY: opens and closes the driver's library, which has no requirements.
    unsafe { driver_sys::is_culib_present() }
}

fn gpus() -> Result<Vec<String>, driver::DriverError> {
    driver::init()?;
    let mut version = 0;
    // SAFETY: the pointer is to a live integer; the driver is initialised.
    unsafe { driver_sys::cuDriverGetVersion(&mut version) }.result()?;
    let describe = |ordinal| {
        let device = driver::device::get(ordinal)?;
        // SAFETY: the device was returned by `get` just now.
        let attribute = |which| unsafe { driver::device::get_attribute(device, which) };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        // SAFETY: as above.
        let bytes = unsafe { driver::device::total_mem(device) }?;
        let gib = bytes as f64 / f64::from(1 << 30);
        let name = driver::device::get_name(device)?;
        Ok(format!("{name} (compute capability {major}.{minor}, {gib:.0} GiB)"))
    };
    let mut names: Vec<_> =
        (0..driver::device::get_count()?).map(describe).collect::<Result<_, _>>()?;
    if !names.is_empty() {
        names.push(format!("driver for CUDA {}.{}", version / 1000, version % 1000 / 10));
    }
    Ok(names)
}

/// The compiler of `.cu` files at run time.
pub(super) fn nvrtc() -> Finding {
    // SAFETY: opens and closes the library, which has no requirements.
    if !unsafe { nvrtc_sys::is_culib_present() } {
        return missing_library("nvrtc");
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both pointers are to live integers.
    match unsafe { nvrtc_sys::nvrtcVersion(&mut major, &mut minor) } {
        nvrtc_sys::nvrtcResult::NVRTC_SUCCESS => {
            Finding::ok(format!("NVRTC {major}.{minor}{}", loaded_from("libnvrtc")))
        }
        error => Finding::failed(format!("NVRTC reports no version: {error:?}")),
    }
}

/// Matrix multiplication.
pub(super) fn cublas() -> Finding {
    use cublas_sys::{cublasStatus_t, libraryPropertyType as Property};
    // SAFETY: opens and closes the library, which has no requirements.
    if !unsafe { cublas_sys::is_culib_present() } {
        return missing_library("cublas");
    }
    let mut version = Vec::new();
    for part in [Property::MAJOR_VERSION, Property::MINOR_VERSION, Property::PATCH_LEVEL] {
        let mut value = 0;
        // SAFETY: the pointer is to a live integer.
        match unsafe { cublas_sys::cublasGetProperty(part, &mut value) } {
            cublasStatus_t::CUBLAS_STATUS_SUCCESS => version.push(value.to_string()),
            error => return Finding::failed(format!("cuBLAS reports no version: {error:?}")),
        }
    }
    Finding::ok(format!("cuBLAS {}{}", version.join("."), loaded_from("libcublas")))
}

fn missing_library(name: &str) -> Finding {
    match elsewhere(name, &cuda_folders("lib*")) {
        Some(finding) => finding,
        None if has_driver() => Finding::missing(format!("no lib{name}.so; {HOST_ONLY}"))
            .next("install NVIDIA's CUDA toolkit, or set LD_LIBRARY_PATH to where it is"),
        None => Finding::missing(format!("no lib{name}.so; {HOST_ONLY}")),
    }
}

/// A library that the loader does not find may still be on the disk: in a Python wheel, or with
/// the number of a version that cudarc does not ask for.
fn elsewhere(name: &str, folders: &[PathBuf]) -> Option<Finding> {
    let pattern = format!("lib{name}.so*");
    let is_in = |folder: &&PathBuf| !places::expand(&folder.join(&pattern)).is_empty();
    let asked_for = cudarc::get_lib_name_candidates(name);
    let fits = |folder: &&PathBuf| asked_for.iter().any(|file| folder.join(file).exists());
    if let Some(folder) = folders.iter().find(fits) {
        let detail = format!(
            "lib{name}.so is in {}, which is not on the library search path",
            folder.display()
        );
        let step = format!("add {} to LD_LIBRARY_PATH", folder.display());
        return Some(Finding::missing(detail).next(step));
    }
    let folder = folders.iter().find(is_in)?;
    let file = places::expand(&folder.join(&pattern)).pop()?;
    let step = format!("link lib{name}.so to it in a folder of LD_LIBRARY_PATH");
    Some(Finding::missing(format!("only {}", file.display())).next(step))
}

/// Where the loader found a library, for the reader to see which of several is used.
fn loaded_from(stem: &str) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let is_it = |path: &&str| path.rsplit('/').next().is_some_and(|name| name.starts_with(stem));
    let path = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).find(is_it);
    path.map(|path| format!(" ({path})")).unwrap_or_default()
}

/// The header of half precision, which NVRTC does not bring along.
pub(super) fn half_header() -> Finding {
    match include_folder() {
        Some(folder) => Finding::ok(format!("{}", folder.join("cuda_fp16.h").display())),
        None if has_driver() => Finding::missing(format!("not found; {HOST_ONLY} and f16"))
            .next("set CUDA_HOME to a CUDA toolkit, or pip install nvidia-cuda-runtime-cu12"),
        None => Finding::missing(format!("not found; {HOST_ONLY} and f16")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_where_the_loader_does_not_look_comes_with_the_way_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let folders = ["none", "wheel"].map(|name| folder.path().join(name));
        std::fs::create_dir(&folders[1]).unwrap();
        assert!(elsewhere("nvrtc", &folders).is_none());

        std::fs::write(folders[1].join("libnvrtc.so.99"), "").unwrap();
        let step = elsewhere("nvrtc", &folders).unwrap().next_step.unwrap();
        assert!(step.starts_with("link libnvrtc.so to it"), "{step}");

        std::fs::write(folders[1].join("libnvrtc.so.12"), "").unwrap();
        let step = elsewhere("nvrtc", &folders).unwrap().next_step.unwrap();
        assert_eq!(step, format!("add {} to LD_LIBRARY_PATH", folders[1].display()));
    }
}
