//! Caches in the blocks that an engine keeps: written as they are, read as ggml reads them, refused where they are none.

use firstdiff::{
    core::{
        arithmetic::{Arithmetic, Convention, Value},
        format::Format,
        tensor::DType,
    },
    graph::site::{Site, Stage},
    model::{
        Config,
        gguf::{Packing, random_blocks},
        llama,
    },
    trace::{
        Array, Elements, Manifest, Side, TraceError, TraceReader, TraceWriter, caches_in_words,
    },
};
use serde_json::{Value as Json, json};

use super::support::{Random, Recorded, config, model_id};

/// Positions, KV heads and elements of a head.
const SHAPE: [usize; 3] = [5, 2, 64];

fn site(stage: Stage) -> Site {
    Site::in_layer(0, 0, stage)
}

fn manifest() -> Manifest {
    let model = model_id("wide.gguf", &Config { head_dim: SHAPE[2], ..config() });
    Manifest::new(Side::Engine, model, Arithmetic::engine(DType::F32), "host (test)".into())
}

/// Records a step of five tokens.
fn record(
    manifest: Manifest,
    put: impl FnOnce(&mut TraceWriter) -> Result<(), TraceError>,
) -> Result<Recorded, TraceError> {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    let mut writer = TraceWriter::create(&folder, manifest, false)?;
    writer.begin_step(&[1, 2, 3, 4, 5], 0)?;
    put(&mut writer)?;
    writer.end_step()?;
    writer.finish()?;
    Ok(Recorded { parent, folder })
}

/// What ggml makes of blocks.
fn of_ggml(packing: Packing, blocks: &[u8], elements: usize) -> Vec<f32> {
    llama::backend();
    let mut out = vec![0.0; elements];
    // SAFETY: the traits are static; the blocks are whole, and have that many elements.
    unsafe {
        let traits = &*llama_cpp_sys_2::ggml_get_type_traits(packing.ggml_type());
        let to_float = traits.to_float.expect("ggml widens every type");
        to_float(blocks.as_ptr().cast(), out.as_mut_ptr(), elements as i64);
    }
    out
}

#[test]
fn blocks_are_kept_as_they_are_and_read_as_ggml_reads_them() {
    let elements: usize = SHAPE.iter().product();
    for (format, block) in Format::stored().filter(|(_, block)| block.elements > 1) {
        let packing = Packing::of_format(format).unwrap();
        let bytes = random_blocks(packing, elements / block.elements);
        let expected = of_ggml(packing, &bytes, elements);
        // Heads before positions, as an engine may have them.
        let row = SHAPE[2] / block.elements * block.bytes;
        let by_head: Vec<u8> = (0..SHAPE[1])
            .flat_map(|head| bytes.chunks(row).skip(head).step_by(SHAPE[1]).flatten().copied())
            .collect();
        let recorded = record(manifest(), |writer| {
            let array = Array::new(Elements::Blocks(format, &bytes), &SHAPE);
            writer.put_array(site(Stage::KCache), &array)?;
            let [positions, heads, dim] = SHAPE;
            let array = Array::new(Elements::Blocks(format, &by_head), &[heads, positions, dim]);
            writer.put_array(site(Stage::VCache), &array.axes("head position dim"))
        });
        let recorded = recorded.unwrap();
        let trace = TraceReader::open(&recorded.folder).unwrap();
        for stage in [Stage::KCache, Stage::VCache] {
            let tensor = trace.tensor(site(stage)).unwrap().unwrap();
            assert_eq!(tensor.shape, SHAPE);
            let bits = |data: &[f32]| data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&tensor.data), bits(&expected), "{format} {}", stage.name());
        }
        let says = format!("k_cache in {format}, v_cache in {format}");
        assert_eq!(caches_in_words(trace.manifest()), Some(says));
        // It is a declaration.
        let declared = |stage| Convention {
            stage: Some(stage),
            ..Convention::everywhere(Value::Caches, format)
        };
        let roundings = &trace.manifest().arithmetic.roundings;
        assert_eq!(*roundings, [declared(Stage::KCache), declared(Stage::VCache)]);
    }
}

#[test]
fn blocks_that_are_none_are_refused_by_the_writer() {
    let bytes = vec![0; 5 * 2 * 2 * 34];
    let of = |format, shape: &[usize]| Array::new(Elements::Blocks(format, &bytes), shape);
    let short = Array::new(Elements::Blocks(Format::Q8_0, &bytes[..33]), &SHAPE);
    let strided = of(Format::Q8_0, &SHAPE).strided(&[130, 64, 1]);
    let cases: [(Stage, Array<'_>, &str); 6] = [
        (Stage::KCache, short, "has 33 bytes, which are not whole blocks of q8_0, of 34"),
        (
            Stage::KCache,
            of(Format::Bf16, &SHAPE),
            "was given in blocks of bf16; blocks of a cache are",
        ),
        (
            Stage::KCache,
            of(Format::Q8_0, &[5, 2, 48]),
            "was given as [5, 2, 48]; expected [5, 2, 64]",
        ),
        (Stage::KCache, strided, "which cut blocks of 32 of q8_0"),
        (Stage::KCache, of(Format::Q5_1, &[5, 4, 64]), "expected [5, 2, 64]"),
        (Stage::K, of(Format::Q8_0, &SHAPE), "is not a cache: give its values"),
    ];
    for (stage, array, says) in cases {
        let error = record(manifest(), |writer| writer.put_array(site(stage), &array));
        let text = error.err().expect(says).to_string();
        assert!(text.contains(says) && text.contains(stage.name()), "{text}");
    }
    // A head of 48 is one and a half blocks.
    let model = model_id("odd.gguf", &Config { head_dim: 48, ..config() });
    let odd = Manifest { model, ..manifest() };
    let error =
        record(odd, |writer| writer.put_array(site(Stage::KCache), &of(Format::Q8_0, &[5, 2, 48])));
    let text = error.err().unwrap().to_string();
    assert!(text.contains("has rows of 48, which blocks of 32 of q8_0 do not divide"), "{text}");
}

#[test]
fn blocks_that_are_none_are_refused_by_the_reader() {
    let bytes = random_blocks(Packing::Q8_0, 20);
    let damaged = |edit: &dyn Fn(&mut Json)| {
        let recorded = record(manifest(), |writer| {
            let array = Array::new(Elements::Blocks(Format::Q8_0, &bytes), &SHAPE);
            writer.put_array(site(Stage::KCache), &array)
        });
        let recorded = recorded.unwrap();
        recorded.edit_manifest(edit);
        recorded.refusal().to_string()
    };
    let quantised =
        |value: Json| move |manifest: &mut Json| manifest["steps"][0]["quantised"] = value.clone();
    let name = "blk.0.k_cache";
    let cases: [(Json, &str); 6] = [
        (json!({ name: "q9_0" }), "\"q9_0\" is not a number format"),
        (
            json!({ name: "bf16" }),
            "steps[0].quantised.blk.0.k_cache is bf16; blocks of a cache are",
        ),
        (json!({ name: "q5_1" }), "but its rows are not whole blocks of q5_1, of 24"),
        (json!({ name: "e4m3" }), "blk.0.k_cache"),
        (json!({}), "has blk.0.k_cache as U8 instead of F32"),
        (json!({ name: "q8_0", "blk.1.k_cache": "q8_0" }), "it has no blk.1.k_cache, for which"),
    ];
    for (value, says) in cases {
        let text = damaged(&quantised(value));
        assert!(text.contains(says), "{says}: {text}");
    }
    let text = damaged(&|manifest| {
        manifest["arithmetic"]["roundings"] = json!([{ "value": "caches", "format": "q4_0" }]);
    });
    assert!(text.contains("is q8_0, and caches=q4_0 is declared"), "{text}");
    let text = damaged(&|manifest| manifest["format_version"] = 5.into());
    assert!(text.contains("steps[].quantised belongs to version 6"), "{text}");
    // Numbers that are said to be blocks.
    let recorded = record(manifest(), |writer| {
        let numbers = vec![0.5; 640];
        writer.put_array(site(Stage::KCache), &Array::new(Elements::F32(&numbers), &SHAPE))
    });
    let recorded = recorded.unwrap();
    recorded.edit_manifest(quantised(json!({ name: "q8_0" })));
    let text = recorded.refusal().to_string();
    assert!(text.contains("is declared as blocks of q8_0 but has the type F32"), "{text}");
}

/// A row in f32 of a format, as ggml's own quantisation makes it.
type Quantise = fn(Packing, &[f32]) -> Vec<u8>;

#[test]
fn what_ggml_makes_of_a_row_is_what_the_replay_allows() {
    fn of_chunks(packing: Packing, row: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; row.len() / packing.layout().elements * packing.layout().bytes];
        // SAFETY: the row is of whole blocks, and there is room for them.
        unsafe {
            let (from, to) = (row.as_ptr(), bytes.as_mut_ptr().cast());
            let n = row.len() as i64;
            llama_cpp_sys_2::ggml_quantize_chunk(
                packing.ggml_type(),
                from,
                to,
                0,
                1,
                n,
                std::ptr::null(),
            );
        }
        bytes
    }
    /// As llama.cpp's own CPU backend writes rows of a quantised cache.
    fn of_cache(packing: Packing, row: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; row.len() / packing.layout().elements * packing.layout().bytes];
        // SAFETY: as above; the traits are static.
        unsafe {
            let traits = &*llama_cpp_sys_2::ggml_get_type_traits_cpu(packing.ggml_type());
            let from_float = traits.from_float.expect("ggml writes caches of every such type");
            from_float(row.as_ptr(), bytes.as_mut_ptr().cast(), row.len() as i64);
        }
        bytes
    }
    llama::backend();
    let mut random = Random(7);
    let ways: [Quantise; 2] = [of_chunks, of_cache];
    for (format, block) in Format::stored().filter(|(_, block)| block.elements > 1) {
        let packing = Packing::of_format(format).unwrap();
        for scale in [1.0, 1e-3, 37.0] {
            let mut row = random.tensor(vec![64 * block.elements]).data;
            row.iter_mut().for_each(|x| *x *= scale);
            row[..block.elements].fill(0.0);
            let wide: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
            let allowed = format.rounded(&wide, &|_| 0.0);
            for quantise in ways {
                let own = of_ggml(packing, &quantise(packing, &row), row.len());
                for (at, (x, rounded)) in own.iter().zip(&allowed).enumerate() {
                    let off = (f64::from(*x) - rounded.value).abs();
                    let near = 1e-6 * rounded.value.abs();
                    assert!(off <= rounded.slack + near, "{format} {at}: {x} {rounded:?}");
                }
            }
        }
    }
}
