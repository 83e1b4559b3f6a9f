//! A file of every kind that is read, as firstdiff or a user writes it, to be damaged.

use std::{
    fs,
    io::Result,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

pub const CONFIG: &str = "steps = 0\ndtypes = [\"f32\"]\n\n[[models]]\nfixture = true\n\n[[prompts]]\nname = \"line\"\n\
                          text = \"Once\"\n\n[[tolerances]]\nsites = \"blk.*.q\"\nfactor = 8\n";
const MAP: &str = "[[tensor]]\nmatch = 'a'\nsite = '0/embd'\naxes = \"token channel\"\n\n\
                   [[tensor]]\nmatch = 'x/layer(?<l>\\d+)[.](?<name>q|k)'\nsite = 'blk.{l}.{name}'\nscale = 1.0\n";

/// Writes them into a folder.
pub fn put(folder: &Path) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in ["rms_norm.toml", "rms_norm.cu"] {
        fs::copy(root.join("kernels").join(name), folder.join(name))?;
    }
    fs::copy(root.join("fixtures/tiny-qwen2/tiny-qwen2-f16.gguf"), folder.join("model.gguf"))?;
    fs::write(folder.join("firstdiff.toml"), CONFIG)?;
    fs::write(folder.join("map.toml"), MAP)?;
    for command in [
        "capture reference -o reference -p Once -n 1",
        "capture engine -o engine -p Once -n 1",
        "plan -p Once -n 2 -o plan.txt",
        "run -p Once -n 0 --json report.json",
        "check --json results.json",
        "bless --baseline lock.json --all",
        "bless --reference snapshot.json --all",
    ] {
        let mut run = Command::new(env!("CARGO_BIN_EXE_firstdiff"));
        let output = run.args(command.split(' ')).current_dir(folder).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{command}: {said}");
    }
    for name in ["npy", "npz", "safetensors"] {
        fs::create_dir(folder.join(name))?;
    }
    // The embedding of one token, as 224 numbers.
    let values: Vec<u8> = (0..224u16).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let numpy = npy(&values);
    fs::write(folder.join("npy/a.npy"), &numpy)?;
    fs::write(folder.join("npz/x.npz"), npz(&["a.npy", "layer0.q.npy"], &numpy))?;
    let header = r#"{"a":{"dtype":"F32","shape":[1,224],"data_offsets":[0,896]}}    "#;
    let length = (header.len() as u64).to_le_bytes();
    fs::write(
        folder.join("safetensors/x.safetensors"),
        [&length[..], header.as_bytes(), &values].concat(),
    )
}

fn npy(values: &[u8]) -> Vec<u8> {
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 224), }  \n";
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\0", &length[..], header.as_bytes(), values].concat()
}

/// An archive that stores the same bytes under each name.
fn npz(names: &[&str], bytes: &[u8]) -> Vec<u8> {
    let crc = bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    });
    let (crc, size) = ((!crc).to_le_bytes(), (bytes.len() as u32).to_le_bytes());
    let (mut body, mut directory) = (Vec::new(), Vec::new());
    for name in names {
        let at = (body.len() as u32).to_le_bytes();
        let length = (name.len() as u16).to_le_bytes();
        // Version, flags, method, time and date; then what both headers have.
        let common =
            [&[20, 0, 0, 0, 0, 0, 0, 0, 33, 0], &crc[..], &size, &size, &length, &[0, 0]].concat();
        body.extend([b"PK\x03\x04", &common[..], name.as_bytes(), bytes].concat());
        let rest = [&[0u8; 10][..], &at, name.as_bytes()].concat();
        directory.extend([b"PK\x01\x02\x14\0", &common[..], &rest].concat());
    }
    let n = (names.len() as u16).to_le_bytes();
    let [length, at] = [directory.len(), body.len()].map(|n| (n as u32).to_le_bytes());
    let end = [b"PK\x05\x06\0\0\0\0", &n[..], &n, &length, &at, &[0, 0]].concat();
    [body, directory, end].concat()
}

/// The files of a trace.
pub fn files(trace: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(trace)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    Ok(files)
}

/// Makes the lengths and hashes of a trace fit a file of it that is not what it was, as of a writer that is wrong.
pub fn reseal(trace: &Path, file: &str) -> Result<()> {
    let path = trace.join("manifest.json");
    let mut json = fs::read(&path)?;
    let manifest: Option<Value> = serde_json::from_slice(&json).ok();
    if let Some(mut manifest) = manifest.filter(|_| file != "manifest.json") {
        let entry = match file {
            "weights.bin" => manifest.pointer_mut("/weights"),
            "graph.json" => manifest.pointer_mut("/graph/nodes"),
            "inputs.safetensors" => manifest.pointer_mut("/graph/inputs"),
            "step-0000.safetensors" => manifest.pointer_mut("/steps/0"),
            "step-0001.safetensors" => manifest.pointer_mut("/steps/1"),
            _ => None,
        };
        if let Some(entry) = entry {
            let bytes = fs::read(trace.join(file))?;
            entry["bytes"] = bytes.len().into();
            entry["blake3"] = blake3::hash(&bytes).to_string().into();
        }
        json = serde_json::to_vec(&manifest)?;
        fs::write(&path, &json)?;
    }
    fs::write(
        trace.join("manifest.json.blake3"),
        format!("{}  manifest.json\n", blake3::hash(&json)),
    )
}
