//! Dumps under foreign names: found by their values, and read as their mapping says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use firstdiff::{
    core::tensor::Tensor,
    graph::site::{Site, Stage},
    trace::{
        TraceReader,
        import::{Alignment, Confidence, Dump, Mapping, Match, align},
    },
};
use half::f16;

use super::survey::Sides;
use crate::{
    cli::{outcome, path, refused},
    trace::{python::python, support::Random},
};

/// The number type of a file of numpy.
#[derive(Clone, Copy)]
pub enum Type {
    F16,
    F32,
    F64,
}

/// Writes a file of numpy; in Fortran order, of an array whose axes are the other way round.
pub fn npy(file: &Path, shape: &[usize], values: &[f32], of: Type, fortran: bool) {
    let bytes: Vec<u8> = match of {
        Type::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Type::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Type::F64 => values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(),
    };
    let descr = ["<f2", "<f4", "<f8"][of as usize];
    let shape: Vec<String> = shape.iter().map(|n| format!("{n},")).collect();
    let order = if fortran { "True" } else { "False" };
    let header = format!(
        "{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({}), }}\n",
        shape.join(" ")
    );
    let mut whole = b"\x93NUMPY\x01\x00".to_vec();
    whole.extend((header.len() as u16).to_le_bytes());
    whole.extend(header.as_bytes());
    whole.extend(bytes);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, whole).unwrap();
}

/// The tensor with its axes in that order.
pub fn permuted(tensor: &Tensor, axes: &[usize]) -> Tensor {
    let shape: Vec<usize> = axes.iter().map(|&axis| tensor.shape[axis]).collect();
    let mut out = vec![0.0; tensor.data.len()];
    for (flat, value) in out.iter_mut().enumerate() {
        let at = Tensor::unravel(flat, &shape);
        let own = (0..axes.len()).fold(0, |own, axis| {
            let place = axes.iter().position(|&other| other == axis).unwrap();
            own * tensor.shape[axis] + at[place]
        });
        *value = tensor.data[own];
    }
    Tensor::new(shape, out)
}

/// Writes every tensor of a trace under a random name, every second one in another layout, scale or
/// row order. The site of each name.
fn scramble(trace: &Path, to: &Path, types: &[Type]) -> BTreeMap<String, Site> {
    let reader = TraceReader::open(trace).unwrap();
    let mut random = Random(21);
    let mut names = BTreeMap::new();
    for (index, site) in reader.sites().enumerate() {
        let mut tensor = reader.tensor(site).unwrap().unwrap();
        if index % 2 == 1 {
            match random.below(3) {
                0 => {
                    let mut axes: Vec<usize> = (0..tensor.shape.len()).collect();
                    let turn = 1 + random.below(axes.len() - 1);
                    axes.rotate_left(turn);
                    tensor = permuted(&tensor, &axes);
                }
                1 => {
                    let scale = [4.0, 0.125, -2.0, 0.5][random.below(4)];
                    tensor.data.iter_mut().for_each(|value| *value *= scale);
                }
                _ => {
                    let width = tensor.data.len() / tensor.shape[0];
                    let rows = tensor.data.chunks(width).rev();
                    tensor.data = rows.flatten().copied().collect();
                }
            }
        }
        if random.below(3) == 0 {
            // Heads and their elements as one axis.
            let first = tensor.shape[0];
            tensor.shape = vec![first, tensor.data.len() / first];
        }
        let name = format!("x{:016x}", random.next());
        let file = to.join(format!("{name}.npy"));
        npy(&file, &tensor.shape, &tensor.data, types[random.below(types.len())], false);
        names.insert(name, site);
    }
    names
}

/// Fails unless every array has its own site, or, where it is not sure, one with the same values.
fn check(found: &Alignment, names: &BTreeMap<String, Site>, reference: &TraceReader) -> usize {
    assert_eq!((found.ambiguous.len(), &found.unmatched), (0, &vec![]), "{found}");
    assert_eq!(found.matches.len(), names.len());
    let sites: BTreeSet<Site> = found.matches.iter().map(|found| found.site).collect();
    assert_eq!(sites.len(), names.len(), "no site twice");
    let value = |site| reference.tensor(site).unwrap().unwrap();
    for line in &found.matches {
        let own = names[&line.name];
        let right = line.site == own;
        let equal = line.confidence == Confidence::Likely && value(line.site) == value(own);
        assert!(right || equal, "{own} is called {} by {line:?}", line.site);
    }
    found.matches.iter().filter(|found| found.confidence == Confidence::Sure).count()
}

#[test]
fn a_dump_of_scrambled_names_and_layouts_is_recovered_and_never_wrong_where_sure() {
    let sides = Sides::new();
    let reference = TraceReader::open(&sides.reference).unwrap();
    for (index, types) in [&[Type::F32, Type::F64][..], &[Type::F16]].into_iter().enumerate() {
        let dump = sides.parent.path().join(format!("dump-{index}"));
        let names = scramble(&sides.engine, &dump, types);
        let found = align(&Dump::open(&dump).unwrap(), &reference).unwrap();
        let sure = check(&found, &names, &reference);
        // The caches of the prompt are the values put in: 16 sites that cannot be told apart.
        assert!(sure >= names.len() - 24, "{sure} of {} sure: {found}", names.len());
    }
    // What was found is enough to read it: the trace is the engine's.
    let (dump, map) = (sides.parent.path().join("dump-0"), sides.parent.path().join("map.toml"));
    let trace = sides.parent.path().join("imported");
    let reference = path(&sides.reference);
    let (exit, out, err) =
        outcome(&["align", path(&dump), "--reference", reference, "-o", path(&map)]);
    assert_eq!((exit, err.as_str()), (0, ""), "{out}");
    assert!(out.contains(" of 237 arrays sure, ") && out.contains("\n  scaled     x"), "{out}");
    let import = ["import", path(&dump), "--map", path(&map), "--reference", reference];
    let (exit, out, err) = outcome(&[&import[..], &["-o", path(&trace)]].concat());
    assert_eq!((exit, err.as_str()), (0, ""), "{out}");
    assert!(out.starts_with("imported 237 sites to "), "{out}");
    let (exit, out, _) = outcome(&["explain", path(&trace), "--reference", reference]);
    assert!(exit == 0 && out.starts_with("equal within the floor: 237 of 237 sites"), "{out}");
}

#[test]
fn what_fits_several_sites_or_none_is_listed_and_a_bug_is_not_taken_for_a_scale() {
    let sides = Sides::new();
    let engine = TraceReader::open(&sides.engine).unwrap();
    let reference = TraceReader::open(&sides.reference).unwrap();
    let dump = sides.parent.path().join("dump");
    let put = |name: &str, tensor: &Tensor, scale: f32| {
        let values: Vec<f32> = tensor.data.iter().map(|value| value * scale).collect();
        npy(&dump.join(format!("{name}.npy")), &tensor.shape, &values, Type::F32, false);
    };
    let of = |layer, stage| engine.tensor(Site::in_layer(0, layer, stage)).unwrap().unwrap();
    let keys = of(0, Stage::KRope);
    for name in ["keys-1", "keys-2", "keys-3"] {
        put(name, &keys, 1.0);
    }
    put("noise", &Random(3).tensor(keys.shape.clone()), 1.0);
    put("bug", &of(1, Stage::FfnUp), 1.01);
    put("odd-scale", &of(1, Stage::FfnGate), 3.0);
    put("zero", &of(1, Stage::Q), 0.0);
    let found = align(&Dump::open(&dump).unwrap(), &reference).unwrap();
    let line = |name: &str| found.matches.iter().find(|found| found.name == name).unwrap();
    for name in ["keys-1", "keys-2", "bug", "odd-scale"] {
        assert!(name == "bug" || line(name).confidence == Confidence::Likely, "{found}");
    }
    assert_eq!(line("bug").scale, 1.0);
    assert!((line("odd-scale").scale - 1.0 / 3.0).abs() < 1e-6);
    let both = vec![Site::in_layer(0, 0, Stage::KRope), Site::in_layer(0, 0, Stage::KCache)];
    let mut ambiguous = found.ambiguous.clone();
    ambiguous[0].1.sort();
    assert_eq!(ambiguous, [("keys-3".to_string(), both)]);
    assert_eq!(found.unmatched, ["noise", "zero"]);
    let text = found.to_string();
    assert!(text.contains("# ambiguous: keys-3 has the values of 0/blk.0.k_"), "{text}");
    assert!(text.contains("# unmatched: noise\n"), "{text}");
    let map = sides.parent.path().join("map.toml");
    fs::write(&map, text).unwrap();
    Mapping::open(&map).unwrap();
}

#[test]
fn a_mapping_by_hand_names_sites_by_groups_and_layouts_by_axes() {
    let sides = Sides::new();
    let dump = sides.parent.path().join("dump");
    let engine = TraceReader::open(&sides.engine).unwrap();
    for step in 0..3 {
        for layer in 0..4 {
            let q = engine.tensor(Site::in_layer(step, layer, Stage::Q)).unwrap().unwrap();
            let file = dump.join(format!("step{step}/model.layers.{layer}.q_proj.npy"));
            let heads_first = permuted(&q, &[1, 0, 2]);
            let mut shape = vec![1];
            shape.extend(&heads_first.shape);
            npy(&file, &shape, &heads_first.data, Type::F64, false);
        }
        // In Fortran order the file is that of the transpose.
        let embd = engine.tensor(Site::global(step, Stage::Embd)).unwrap().unwrap();
        let file = dump.join(format!("step{step}/embed.npy"));
        npy(&file, &embd.shape, &permuted(&embd, &[1, 0]).data, Type::F32, true);
    }
    fs::write(dump.join("notes.txt"), "not an array").unwrap();
    let (map, trace) = (sides.parent.path().join("map.toml"), sides.parent.path().join("trace"));
    let import = ["import", path(&dump), "--map", path(&map), "--reference"];
    let import = [&import[..], &[path(&sides.reference), "-o", path(&trace)]].concat();
    let q = r"match = 'step(?<s>\d+)/model\.layers\.(?<l>\d+)\.q_proj', site = '{s}/blk.{l}.q'";
    let write =
        |lines: &[&str]| fs::write(&map, format!("tensor = [{}]", lines.join(", "))).unwrap();

    write(&[&format!("{{ {q}, axes = '1 head token dim' }}")]);
    let (exit, out, err) = outcome(&import);
    assert_eq!((exit, err.as_str()), (0, ""));
    assert!(
        out.starts_with("imported 12 sites to ") && out.contains("unmapped   step0/embed, "),
        "{out}"
    );
    fs::remove_dir_all(&trace).unwrap();

    let embed = r"{ match = 'step(?<s>\d)/embed', site = '{s}/embd', scale = 1.0 }";
    write(&[&format!("{{ {q}, axes = '1 head token dim' }}"), embed]);
    assert_eq!(outcome(&import).0, 0);
    let read = TraceReader::open(&trace).unwrap();
    assert_eq!(read.sites().count(), 15);
    for site in read.sites() {
        assert_eq!(read.tensor(site).unwrap(), engine.tensor(site).unwrap(), "{site}");
    }
    fs::remove_dir_all(&trace).unwrap();

    let cases: [(&[&str], &str); 9] = [
        (&[&format!("{{ {q} }}")], "has shape [1, 14, "),
        (&[&format!("{{ {q}, axes = 'head token' }}")], "instead of each of token, head, dim once"),
        (&[&format!("{{ {q}, axes = 'head token depth' }}")], "has axes \"head token depth\""),
        (&["{ match = '.*q_proj', site = 'blk.0.q' }"], "are both mapped to step 0 layer 0 q"),
        (&["{ match = '.*', site = '9/embd' }"], "which the reference's run does not have"),
        (&["{ match = '.*', site = 'blk.0.query' }"], "which the reference's run does not have"),
        (&[embed, "{ match = 'step0.*', site = 'logits' }"], "matches two expressions"),
        (&["{ match = '(', site = 'embd' }"], "\"(\" is not a regular expression"),
        (&["{ match = 'x', site = 'embd', axis = '1' }"], "map.toml: line 1: unknown field `axis`"),
    ];
    for (lines, says) in cases {
        write(lines);
        refused(&import, 2, says);
    }
    write(&["{ match = 'x', site = 'embd' }"]);
    refused(&import, 2, "matches no tensor of the dump");
    fs::write(&map, "tensor = [").unwrap();
    refused(&import, 2, "map.toml: line 1: ");
}

#[test]
fn an_array_that_cannot_be_read_is_named() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("a.npy");
    let open = || Dump::open(parent.path()).map(drop).unwrap_err().to_string();
    assert!(open().contains("holds no .npy, .npz or .safetensors file"), "{}", open());
    npy(&file, &[2, 3], &[0.0; 6], Type::F32, false);
    let whole = fs::read(&file).unwrap();
    Dump::open(parent.path()).unwrap();
    for cut in 0..whole.len() {
        fs::write(&file, &whole[..cut]).unwrap();
        assert!(open().contains("a.npy is not a readable array"), "{cut}: {}", open());
    }
    let text = |from: &str, to: &str| {
        let at = whole.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        fs::write(&file, bytes).unwrap();
        open()
    };
    assert!(text("<f4", "<i4").contains("its type is \"<i4\""));
    assert!(text("(2, 3,)", "(9, 9,)").contains("its length does not match its shape [9, 9]"));
    fs::write(&file, &whole).unwrap();
    fs::write(parent.path().join("b.safetensors"), [0xff; 20]).unwrap();
    assert!(open().contains("b.safetensors is not a readable array"), "{}", open());
}

/// Packs each folder of a dump into an archive beside it, the first of them compressed.
fn pack(dump: &Path) {
    let script = "
import pathlib, shutil, sys
import numpy as np
for i, folder in enumerate(sorted(path for path in pathlib.Path(sys.argv[1]).iterdir())):
    save = np.savez if i else np.savez_compressed
    save(folder.with_suffix('.npz'), **{path.stem: np.load(path) for path in folder.iterdir()})
    shutil.rmtree(folder)
";
    let output = Command::new(python()).args(["-c", script]).arg(dump).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_arrays_of_archives_are_those_of_files() {
    let sides = Sides::new();
    let (dump, trace) = (sides.parent.path().join("dump"), sides.parent.path().join("trace"));
    let engine = TraceReader::open(&sides.engine).unwrap();
    for site in engine.sites() {
        let tensor = engine.tensor(site).unwrap().unwrap();
        let file = dump.join(format!("step{}/{}.npy", site.step, site.tensor_name()));
        npy(&file, &tensor.shape, &tensor.data, Type::F32, false);
    }
    pack(&dump);
    assert_eq!(fs::read_dir(&dump).unwrap().count(), 3);
    let map = sides.parent.path().join("map.toml");
    fs::write(&map, r"tensor = [{ match = 'step(?<s>\d+)/(?<n>.*)', site = '{s}/{n}' }]").unwrap();
    let import = ["import", path(&dump), "--map", path(&map), "--reference"];
    let import = [&import[..], &[path(&sides.reference), "-o", path(&trace)]].concat();
    let (exit, out, err) = outcome(&import);
    assert!(exit == 0 && out.starts_with("imported 237 sites to "), "{out}{err}");
    let read = TraceReader::open(&trace).unwrap();
    for site in engine.sites() {
        assert_eq!(read.tensor(site).unwrap(), engine.tensor(site).unwrap(), "{site}");
    }
    let found = align(&Dump::open(&dump).unwrap(), &TraceReader::open(&sides.reference).unwrap());
    let found = found.unwrap();
    assert_eq!((found.matches.len(), found.unmatched.len()), (237, 0), "{found}");

    fs::remove_dir_all(&trace).unwrap();
    // Deflated, and stored.
    for name in ["step0.npz", "step1.npz"] {
        let file = dump.join(name);
        let whole = fs::read(&file).unwrap();
        for cut in (0..whole.len()).step_by(whole.len() / 50).chain([whole.len() - 1]) {
            fs::write(&file, &whole[..cut]).unwrap();
            let error = Dump::open(&dump).map(drop).unwrap_err().to_string();
            let says = format!("{name} is not a readable array: ");
            assert!(error.contains(&says), "{cut}: {error}");
        }
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 0x10;
        fs::write(&file, damaged).unwrap();
        refused(&import, 2, &format!("{name} is not a readable array: step"));
        fs::write(&file, whole).unwrap();
    }
}

/// Writes an array for each token of those sites: scores end at the token's own key, caches grow.
fn one_array_a_token(engine: &TraceReader, names: &[&str], dump: &Path) {
    for (index, step) in engine.manifest().steps.iter().enumerate() {
        for name in names {
            let site = Site::from_tensor_name(index as u32, name).unwrap();
            let tensor = engine.tensor(site).unwrap().unwrap();
            let width: usize = tensor.shape[1..].iter().product();
            for position in step.first_position..step.positions() {
                let row = |values: &[f32]| {
                    values[(position - step.first_position) * width..][..width].to_vec()
                };
                let keys = position + 1;
                let (shape, data) = match site.stage {
                    Stage::Scores => {
                        let row = row(&tensor.data);
                        let seen = row.chunks(tensor.shape[2]).flat_map(|row| &row[..keys]);
                        (vec![tensor.shape[1], keys], seen.copied().collect())
                    }
                    Stage::KCache | Stage::VCache => {
                        let shape = vec![keys, tensor.shape[1], tensor.shape[2]];
                        (shape, tensor.data[..keys * width].to_vec())
                    }
                    _ if tensor.shape.len() == 3 => {
                        (vec![1, tensor.shape[1], tensor.shape[2]], row(&tensor.data))
                    }
                    _ => (vec![width], row(&tensor.data)),
                };
                let file = dump.join(format!("t{position:02}/{name}.npy"));
                npy(&file, &shape, &data, Type::F32, false);
            }
        }
    }
}

/// An entry whose values end before those that its header and the archive's own list state.
#[test]
fn an_archive_that_states_more_values_than_it_has_is_refused() {
    let sides = Sides::new();
    let dump = sides.parent.path().join("dump");
    npy(&dump.join("step0/blk.0.q.npy"), &[100], &[1.5; 100], Type::F32, false);
    let script = "
import pathlib, struct, sys, zipfile
folder = pathlib.Path(sys.argv[1])
whole = (folder / 'step0/blk.0.q.npy').read_bytes()
packed = folder / 'step0.npz'
with zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('blk.0.q.npy', whole[:-40])
zipped = bytearray(packed.read_bytes())
entry = zipped.rindex(b'PK\\1\\2')
struct.pack_into('<I', zipped, entry + 24, len(whole))
packed.write_bytes(zipped)
";
    let output = Command::new(python()).args(["-c", script]).arg(&dump).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_dir_all(dump.join("step0")).unwrap();
    let reference = path(&sides.reference);
    let map = sides.parent.path().join("map.toml");
    let align = ["align", path(&dump), "--reference", reference, "-o", path(&map)];
    refused(&align, 2, "step0.npz is not a readable array: step0/blk.0.q: its length");
}

#[test]
fn one_array_a_token_is_stacked_in_the_order_of_the_positions() {
    let sides = Sides::new();
    let (dump, trace) = (sides.parent.path().join("dump"), sides.parent.path().join("trace"));
    let engine = TraceReader::open(&sides.engine).unwrap();
    let names = ["blk.1.q", "blk.2.scores", "blk.0.k_cache", "logits"];
    let steps = engine.manifest().steps.clone();
    let sites = |step| names.map(|name| Site::from_tensor_name(step as u32, name).unwrap());
    one_array_a_token(&engine, &names, &dump);
    let map = sides.parent.path().join("map.toml");
    let write = |line: &str| fs::write(&map, format!("tensor = [{line}]")).unwrap();
    let import = ["import", path(&dump), "--map", path(&map), "--reference"];
    let import = [&import[..], &[path(&sides.reference), "-o", path(&trace)]].concat();
    let line = r"{ match = 't(?<t>\d+)/(?<n>.*)', site = '{n}', position = '{t}' }";
    write(line);
    let (exit, out, err) = outcome(&import);
    assert!(exit == 0 && out.starts_with("imported 12 sites to "), "{out}{err}");
    let read = TraceReader::open(&trace).unwrap();
    for (index, step) in steps.iter().enumerate() {
        for site in sites(index) {
            let mut right = engine.tensor(site).unwrap().unwrap();
            if site.stage == Stage::Scores {
                for (row, keys) in right.data.chunks_mut(right.shape[2]).enumerate() {
                    keys[step.first_position + row / right.shape[1] + 1..].fill(0.0);
                }
            }
            assert_eq!(read.tensor(site).unwrap().unwrap(), right, "{site}");
        }
    }
    fs::remove_dir_all(&trace).unwrap();

    let axes =
        r"{ match = 't(?<t>\d+)/logits', site = 'logits', position = '{t}', axes = 'vocab' }";
    write(axes);
    assert!(outcome(&import).1.starts_with("imported 3 sites to "));
    fs::remove_dir_all(&trace).unwrap();
    write(&line.replace("{n}'", "0/{n}'"));
    refused(&import, 2, "has a position together with a step or rows");
    write(&line.replace("'{t}'", "'4'"));
    refused(&import, 2, "are both mapped to step 0 layer 1 q");
    write(&line.replace("'{t}'", "'{n}'"));
    refused(&import, 2, "is mapped to position \"blk.0.k_cache\", which is not a number");
    write(line);
    fs::rename(dump.join("t03/logits.npy"), dump.join("t09/more.npy")).unwrap();
    write(axes);
    refused(&import, 2, "is a row of step 0 logits, but position 3 is not in the dump");
    fs::create_dir(dump.join("t77")).unwrap();
    fs::rename(dump.join("t09/more.npy"), dump.join("t77/logits.npy")).unwrap();
    refused(&import, 2, "is mapped to position 77, which the run does not have");
}

#[test]
fn arrays_of_one_token_each_are_found_together_and_read_as_the_engine_wrote_them() {
    let sides = Sides::new();
    let (dump, trace) = (sides.parent.path().join("dump"), sides.parent.path().join("trace"));
    let engine = TraceReader::open(&sides.engine).unwrap();
    let names = [
        "embd",
        "blk.1.q",
        "blk.1.k_rope",
        "blk.2.scores",
        "blk.0.k_cache",
        "blk.3.v_cache",
        "blk.3.layer_out",
        "logits",
    ];
    one_array_a_token(&engine, &names, &dump);
    let positions = engine.manifest().steps.last().unwrap().positions();
    let (map, reference) = (sides.parent.path().join("map.toml"), path(&sides.reference));
    let arguments = ["align", path(&dump), "--reference", reference, "-o", path(&map)];
    let (exit, out, err) = outcome(&arguments);
    let all = names.len() * positions;
    let says = format!("{all} of {all} arrays sure, 0 likely, 0 ambiguous, 0 unmatched: ");
    assert!(exit == 0 && out.starts_with(&says), "{out}{err}{}", fs::read_to_string(&map).unwrap());
    let text = fs::read_to_string(&map).unwrap();
    let line = r#"  { match = 't(?<t>\d+)/blk\.1\.q', site = "blk.1.q", position = '{t}', axes = "1 head dim""#;
    assert!(text.contains(line), "{text}");
    let import = ["import", path(&dump), "--map", path(&map), "--reference", reference, "-o"];
    let import = [&import[..], &[path(&trace)]].concat();
    let (exit, out, err) = outcome(&import);
    assert!(exit == 0 && out.starts_with("imported 24 sites to "), "{out}{err}");
    let (exit, out, _) = outcome(&["diff", path(&trace), path(&sides.engine)]);
    let equal =
        "24 of 237 sites (4 layers, 10 prompt tokens, 2 decode steps) are equal within the floor";
    assert!(exit == 4 && out.contains(equal), "{out}");

    // A row that is another's in a decoded step keeps its line from being sure.
    let last = positions - 1;
    let from = dump.join(format!("t{:02}/blk.3.layer_out.npy", last - 1));
    fs::copy(from, dump.join(format!("t{last:02}/blk.3.layer_out.npy"))).unwrap();
    let found = align(&Dump::open(&dump).unwrap(), &TraceReader::open(&sides.reference).unwrap());
    let found = found.unwrap();
    let doubtful = |found: &&Match| found.confidence == Confidence::Likely;
    let doubtful: Vec<_> = found.matches.iter().filter(doubtful).collect();
    assert!(doubtful.len() == 1 && doubtful[0].site.stage == Stage::LayerOut, "{found}");
    let doubt = format!("the array of position {last} is another");
    assert_eq!(doubtful[0].doubt.as_deref(), Some(doubt.as_str()));
}
