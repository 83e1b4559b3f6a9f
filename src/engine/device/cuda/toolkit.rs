//! Where the CUDA toolkit is installed.

use std::path::{Path, PathBuf};

use crate::core::places;

/// The folder with `cuda_fp16.h`: of `CUDA_HOME`, `CUDA_PATH`, `/usr/local/cuda*`, the system, or a Python
/// wheel, in this order.
pub fn include_folder() -> Option<PathBuf> {
    folder_of("cuda_fp16.h")
}

/// NVRTC's include path: Python wheels and newer toolkits divide the headers among several folders.
pub fn include_folders() -> Vec<PathBuf> {
    let Some(first) = include_folder() else { return Vec::new() };
    let mut folders = vec![first];
    for header in ["crt/mma.h", "nv/target"] {
        folders.extend(folder_of(header).filter(|folder| !folders.contains(folder)));
    }
    folders
}

fn folder_of(header: &str) -> Option<PathBuf> {
    let folders = cuda_folders("include").into_iter().chain(cuda_folders("include/cccl"));
    folders.into_iter().find(|folder| folder.join(header).is_file())
}

/// The folders of that name (a pattern) in every place where CUDA is installed.
pub fn cuda_folders(name: &str) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> =
        ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(places::variable).collect();
    roots.extend(["/usr/local/cuda", "/usr/local/cuda-*", "/opt/cuda", "/usr"].map(PathBuf::from));
    roots.extend(site_packages().iter().map(|folder| folder.join("nvidia/*")));
    let mut folders: Vec<_> =
        roots.iter().flat_map(|root| places::expand(&root.join(name))).collect();
    // `lib*` of a toolkit is a link to this one.
    folders
        .extend(roots.iter().flat_map(|root| places::expand(&root.join("targets/*").join(name))));
    folders
}

/// Where Python keeps packages: of an active environment, the user's and the system's.
fn site_packages() -> Vec<PathBuf> {
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(places::variable);
    let home = places::variable("HOME").unwrap_or_default();
    let of_user = [home.join(".local"), home.join(".pyenv/versions/*")];
    let of_system = ["/usr/local", "/usr"].map(PathBuf::from);
    let prefixes = environments.chain(of_user).chain(of_system);
    let folders = |prefix: PathBuf| {
        ["lib/python3*/site-packages", "lib/python3*/dist-packages"]
            .map(|folder| prefix.join(Path::new(folder)))
    };
    prefixes.flat_map(folders).collect()
}
