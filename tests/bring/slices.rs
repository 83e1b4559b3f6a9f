//! Arrays that are several sites, and axes of one element.

use std::{fs, path::Path};

use firstdiff::{
    core::tensor::Tensor,
    graph::site::{Site, Stage},
    trace::{
        TraceReader,
        import::{Confidence, Dump, align},
    },
};

use super::{
    dump::{Type, npy, permuted},
    survey::Sides,
};
use crate::{
    cli::{outcome, path, refused},
    trace::support::Random,
};

/// The rows of tensors one beside the other, each divided into so many groups.
fn fused(tensors: &[Tensor], groups: usize) -> Tensor {
    let rows = tensors[0].shape[0];
    let mut data = Vec::new();
    for at in 0..rows * groups {
        for tensor in tensors {
            let n = tensor.data.len() / rows / groups;
            data.extend(&tensor.data[at * n..][..n]);
        }
    }
    Tensor::new(vec![rows, data.len() / rows], data)
}

const QKV: [Stage; 3] = [Stage::Q, Stage::K, Stage::V];
const GATE_UP: [Stage; 2] = [Stage::FfnGate, Stage::FfnUp];

fn tensors(trace: &TraceReader, step: u32, layer: u32, stages: &[Stage]) -> Vec<Tensor> {
    let tensor = |&stage| trace.tensor(Site::in_layer(step, layer, stage)).unwrap().unwrap();
    stages.iter().map(tensor).collect()
}

/// A fused q, k, v of two KV heads and a fused gate and up in each step and layer: those of odd layers group by
/// group, and neuron by neuron.
fn write_fused(engine: &TraceReader, dump: &Path) {
    for step in 0..3 {
        for layer in 0..4 {
            let put = |name: &str, stages: &[Stage], groups: usize| {
                let one = fused(&tensors(engine, step, layer, stages), groups);
                let file = dump.join(format!("s{step}/layers.{layer}.{name}.npy"));
                npy(&file, &[&[1], &one.shape[..]].concat(), &one.data, Type::F32, false);
            };
            let neurons = engine.shape(Site::in_layer(step, layer, Stage::FfnUp)).unwrap()[1];
            let (heads, neurons) = if layer % 2 == 1 { (2, neurons) } else { (1, 1) };
            put("qkv", &QKV, heads);
            put("gate_up", &GATE_UP, neurons);
        }
    }
}

/// Fails unless a trace has, in every layer and step, the tensors of the engine.
#[track_caller]
fn check(trace: &Path, engine: &TraceReader, layers: &[u32], stages: &[Stage]) {
    let read = TraceReader::open(trace).unwrap();
    assert_eq!(read.sites().count(), 3 * layers.len() * stages.len());
    for step in 0..3 {
        for &layer in layers {
            assert_eq!(
                tensors(&read, step, layer, stages),
                tensors(engine, step, layer, stages),
                "step {step} layer {layer}"
            );
        }
    }
}

#[test]
fn one_array_feeds_several_sites_by_slices_and_one_line_all_layers() {
    let sides = Sides::new();
    let engine = TraceReader::open(&sides.engine).unwrap();
    let parent = sides.parent.path();
    let (dump, map, trace) = (parent.join("dump"), parent.join("map.toml"), parent.join("trace"));
    write_fused(&engine, &dump);
    let import = ["import", path(&dump), "--map", path(&map), "--reference"];
    let import = [&import[..], &[path(&sides.reference), "-o", path(&trace)]].concat();
    let write = |name: &str, layers: &str, axes: &str, lines: &[(&str, &str)]| {
        let line = |(site, slice): &(&str, &str)| {
            format!(
                r"{{ match = 's(?<s>\d+)/layers\.(?<l>{layers})\.{name}', site = '{{s}}/blk.{{l}}.{site}',
                axes = '{axes}'{slice} }}"
            )
            .replace('\n', " ")
        };
        let lines: Vec<String> = lines.iter().map(line).collect();
        fs::write(&map, format!("tensor = [\n{}\n]", lines.join(",\n"))).unwrap();
    };
    let heads = "1 token (head dim)";
    let whole = [
        ("q", ", slice = '..., 0:224'"),
        ("k", ", slice = ':, :, 224:256'"),
        ("v", ", slice = '..., :, 256:288'"),
    ];
    let groups = [
        ("q", ", slice = '..., 0:112/144'"),
        ("k", ", slice = '..., 112:128/144'"),
        ("v", ", slice = '..., 128:144/144'"),
    ];
    let turns = [("ffn_gate", ", slice = '..., 0:1/2'"), ("ffn_up", ", slice = '..., 1:2/2'")];
    for (name, layers, axes, lines, stages) in [
        ("qkv", "[02]", heads, &whole[..], &QKV[..]),
        ("qkv", "[13]", heads, &groups[..], &QKV[..]),
        ("gate_up", "[13]", "1 token neuron", &turns[..], &GATE_UP[..]),
    ] {
        write(name, layers, axes, lines);
        let (exit, out, err) = outcome(&import);
        let sites = 6 * stages.len();
        assert!(exit == 0 && out.starts_with(&format!("imported {sites} sites to ")), "{out}{err}");
        let layers = if layers == "[02]" { [0, 2] } else { [1, 3] };
        check(&trace, &engine, &layers, stages);
        fs::remove_dir_all(&trace).unwrap();
    }
    for (slice, says) in [
        ("", "matches two expressions"),
        (", slice = '..., 0:289'", "which has no slice ..., 0:289; change its line"),
        (", slice = '0:32'", "has shape [1, 10, 288], which has no slice 0:32"),
        (", slice = '..., 0:16/100'", "which has no slice ..., 0:16/100"),
        (", slice = '..., 0:64'", "as 1 token (head dim) it would be [1, 10, 32]"),
        (", slice = '0-32'", "map.toml: line 3: \"0-32\" is not a slice such as"),
    ] {
        write("qkv", "[02]", heads, &[whole[0], ("k", slice)]);
        refused(&import, 2, says);
        assert!(!trace.exists());
    }
}

#[test]
fn fused_arrays_are_found_where_their_parts_prove_them() {
    let sides = Sides::new();
    let engine = TraceReader::open(&sides.engine).unwrap();
    let reference = TraceReader::open(&sides.reference).unwrap();
    let parent = sides.parent.path();
    let (dump, map, trace) = (parent.join("dump"), parent.join("map.toml"), parent.join("trace"));
    write_fused(&engine, &dump);
    let align_it = ["align", path(&dump), "--reference", path(&sides.reference), "-o", path(&map)];
    let (exit, out, err) = outcome(&align_it);
    let text = fs::read_to_string(&map).unwrap();
    let says = "24 of 24 arrays sure, 0 likely, 0 ambiguous, 0 unmatched: ";
    assert!(exit == 0 && out.starts_with(says), "{out}{err}{text}");
    let line = r#"  { match = 's0/layers\.1\.qkv', site = "0/blk.1.k", slice = "..., 112:128/144", axes = "1 token (head dim)", confidence = "sure" },"#;
    assert!(text.contains(line), "{text}");
    let import = ["import", path(&dump), "--map", path(&map), "--reference"];
    let import = [&import[..], &[path(&sides.reference), "-o", path(&trace)]].concat();
    assert_eq!(outcome(&import).0, 0);
    check(&trace, &engine, &[0, 1, 2, 3], &[&QKV[..], &GATE_UP].concat());

    // A part that is no site's, and one that is missing: nothing is proven.
    let [q, k, v] = &tensors(&engine, 0, 0, &QKV)[..] else { unreachable!() };
    let noise = Random(5).tensor(k.shape.clone());
    fs::remove_dir_all(&dump).unwrap();
    for (name, parts) in [("bug", [q, &noise, v]), ("twice", [q, k, k]), ("swapped", [q, v, k])] {
        let one = fused(&parts.map(Clone::clone), 1);
        npy(&dump.join(format!("{name}.npy")), &one.shape, &one.data, Type::F16, false);
    }
    let found = align(&Dump::open(&dump).unwrap(), &reference).unwrap();
    assert_eq!(found.unmatched, ["bug", "twice"], "{found}");
    let slices: Vec<(Stage, String)> = (found.matches.iter())
        .map(|found| (found.site.stage, found.slice.as_ref().unwrap().to_string()))
        .collect();
    let right = [(Stage::Q, "..., 0:224"), (Stage::K, "..., 256:288"), (Stage::V, "..., 224:256")];
    assert_eq!(slices, right.map(|(stage, slice)| (stage, slice.to_string())));
}

#[test]
fn the_order_of_axes_of_one_element_is_that_of_other_steps_or_said_to_be_unknown() {
    let sides = Sides::new();
    let engine = TraceReader::open(&sides.engine).unwrap();
    let reference = TraceReader::open(&sides.reference).unwrap();
    let dump = sides.parent.path().join("dump");
    let put = |name: &str, step, layer, stage, axes: &[usize], ones: usize| {
        let tensor = engine.tensor(Site::in_layer(step, layer, stage)).unwrap().unwrap();
        let turned = permuted(&tensor, axes);
        let shape = [&vec![1; ones], &turned.shape[..]].concat();
        npy(&dump.join(name).with_extension("npy"), &shape, &turned.data, Type::F32, false);
    };
    // A batch and the token are both 1 long; of v nothing proves which is which.
    put("prompt-q", 0, 1, Stage::Q, &[1, 0, 2], 1);
    put("decode-q", 1, 1, Stage::Q, &[1, 0, 2], 1);
    put("decode-v", 1, 1, Stage::V, &[1, 0, 2], 1);
    // The only axis of 1 is the token's.
    put("decode-k", 2, 2, Stage::K, &[1, 0, 2], 0);
    put("last-k", 2, 3, Stage::K, &[1, 2, 0], 0);
    put("plain-k", 1, 0, Stage::K, &[0, 1, 2], 0);
    // Two orders of q_rope: none is proven.
    put("prompt-q-rope", 0, 1, Stage::QRope, &[1, 0, 2], 1);
    put("other-q-rope", 0, 2, Stage::QRope, &[0, 1, 2], 1);
    put("decode-q-rope", 2, 1, Stage::QRope, &[1, 0, 2], 1);
    let found = align(&Dump::open(&dump).unwrap(), &reference).unwrap();
    assert_eq!(found.matches.len(), 9, "{found}");
    let unknown = r#"axes of 1 may be "token head 1 dim" or "1 head token dim""#;
    for (name, order, note) in [
        ("prompt-q", "1 head token dim", None),
        ("decode-q", "1 head token dim", None),
        ("decode-v", "token head 1 dim", Some(unknown)),
        ("decode-k", "head token dim", None),
        ("last-k", "head dim token", None),
        ("plain-k", "token head dim", None),
        ("decode-q-rope", "token head 1 dim", Some(unknown)),
    ] {
        let line = found.matches.iter().find(|found| found.name == name).unwrap();
        let said = (line.order.to_string(), line.note.as_deref());
        assert_eq!(said, (order.to_string(), note), "{name}: {found}");
        assert_eq!(line.confidence, Confidence::Sure, "{name}: {found}");
    }
    assert!(found.to_string().contains(&format!(" }}, # {unknown}\n")), "{found}");
}
