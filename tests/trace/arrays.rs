//! The Rust writer takes arrays of any layout and format, rows of some tokens, and a row at a time.

use firstdiff::{
    core::tensor::Tensor,
    graph::site::{Site, Stage},
    trace::{Array, Elements, TraceError, TraceReader, TraceWriter},
};

use super::support::{manifest, shape};

fn site(stage: Stage) -> Site {
    if stage.in_layer() { Site::in_layer(0, 0, stage) } else { Site::global(0, stage) }
}

/// Element i of a site is i mod 61 in the site's own order.
fn value(flat: usize) -> f32 {
    (flat % 61) as f32
}

fn values(stage: Stage) -> Vec<f32> {
    (0..shape(site(stage)).iter().product()).map(value).collect()
}

/// What is read of a step of five tokens into which `record` put arrays.
fn written(
    record: impl FnOnce(&mut TraceWriter) -> Result<(), TraceError>,
) -> Result<(tempfile::TempDir, TraceReader), TraceError> {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    let mut writer = TraceWriter::create(&folder, manifest(), false)?;
    writer.begin_step(&[1, 2, 3, 4, 5], 0)?;
    record(&mut writer)?;
    writer.end_step()?;
    writer.finish()?;
    let trace = TraceReader::open(&folder)?;
    Ok((parent, trace))
}

#[test]
fn every_layout_and_format_is_written_in_the_sites_own_order() {
    let (q, v, probs) = (values(Stage::Q), values(Stage::V), values(Stage::Probs));
    // Heads before tokens: (6, 5, 4).
    let mut by_head = vec![0.0; q.len()];
    let (tokens, heads, dim) = (5, 6, 4);
    for (flat, &value) in q.iter().enumerate() {
        let [t, h, d] = Tensor::unravel(flat, &[tokens, heads, dim])[..] else { unreachable!() };
        by_head[(h * tokens + t) * dim + d] = value;
    }
    // v within rows of 20: as in a fused product.
    let mut fused = vec![-1.0; 5 * 20];
    for (flat, &value) in v.iter().enumerate() {
        fused[flat / 8 * 20 + 12 + flat % 8] = value;
    }
    let halves: Vec<u16> = probs.iter().map(|&x| half::f16::from_f32(x).to_bits()).collect();
    let wide: Vec<f64> = values(Stage::OProj).iter().map(|&x| f64::from(x)).collect();
    let (_parent, trace) = written(|writer| {
        let array = Array::new(Elements::F32(&by_head), &[6, 5, 4]).axes("head token dim");
        writer.put_array(site(Stage::Q), &array)?;
        let array = Array::new(Elements::F32(&fused[12..]), &[5, 2, 4]).strided(&[20, 4, 1]);
        writer.put_array(site(Stage::V), &array)?;
        writer.put_array(site(Stage::Probs), &Array::new(Elements::F16(&halves), &[5, 6, 5]))?;
        writer.put_array(site(Stage::OProj), &Array::new(Elements::F64(&wide), &[5, 9]))
    })
    .unwrap();
    for stage in [Stage::Q, Stage::V, Stage::Probs, Stage::OProj] {
        let tensor = trace.tensor(site(stage)).unwrap().unwrap();
        assert_eq!(tensor.shape, shape(site(stage)));
        assert_eq!(tensor.data, values(stage), "{}", stage.name());
    }
}

#[test]
fn rows_come_one_by_one_or_of_some_tokens_and_one_of_logits_is_the_last() {
    let (k, out, logits) = (values(Stage::K), values(Stage::LayerOut), values(Stage::Logits));
    let (_parent, trace) = written(|writer| {
        for row in k.chunks(8) {
            writer.put_array(site(Stage::K), &Array::new(Elements::F32(row), &[1, 2, 4]))?;
        }
        // A cache that grows.
        for positions in 1..=5 {
            let array = Array::new(Elements::F32(&k[..positions * 8]), &[positions, 2, 4]);
            writer.put_array(site(Stage::KCache), &array)?;
        }
        let array = Array::new(Elements::F32(&out[..18]), &[2, 9]).of_tokens(&[1, 4]);
        writer.put_array(site(Stage::LayerOut), &array)?;
        writer.put_array(site(Stage::Logits), &Array::new(Elements::F32(&logits[..13]), &[1, 13]))
    })
    .unwrap();
    let tensor = |stage| trace.tensor(site(stage)).unwrap().unwrap();
    assert_eq!((tensor(Stage::K).data, tensor(Stage::KCache).data), (k.clone(), k));
    assert_eq!(trace.rows(site(Stage::LayerOut)), Some(&[1, 4][..]));
    assert_eq!(tensor(Stage::LayerOut).data, out[..18]);
    assert_eq!(trace.rows(site(Stage::Logits)), Some(&[4][..]));
    assert_eq!(tensor(Stage::Logits).shape, [1, 13]);
}

#[test]
fn an_array_that_does_not_fit_is_refused_with_its_site() {
    let x = vec![0.0; 400];
    let of = |shape: &[usize]| Array::new(Elements::F32(&x), shape);
    let cases: [(Stage, Array<'_>, &str); 9] = [
        (Stage::Q, of(&[5, 4, 6]), "was given as [5, 4, 6]; expected [5, 6, 4]"),
        (Stage::Q, of(&[5, 24]), "has the axes"),
        (Stage::Q, of(&[5, 6, 4]).axes("head token"), "has the axes"),
        (Stage::Q, of(&[5, 6, 4]).strided(&[100, 4, 1]), "its shape and strides need 424"),
        (Stage::Q, of(&[2, 6, 4]), "has 2 of 5 rows"),
        (Stage::Q, of(&[2, 6, 4]).of_tokens(&[3, 1]), "has 2 rows of the tokens [3, 1]"),
        (Stage::Q, of(&[2, 6, 4]).of_tokens(&[3, 5]), "has 2 rows of the tokens [3, 5]"),
        (Stage::KCache, of(&[1, 2, 4]).of_tokens(&[0]), "has 1 of 5 positions"),
        (Stage::KCache, of(&[4, 2, 4]), "has 4 of 5 positions and was never completed"),
    ];
    for (stage, array, says) in cases {
        let error = written(|writer| writer.put_array(site(stage), &array)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(says) && text.contains(stage.name()), "{text}");
    }
}
