//! Weights of experts: matrices one below the other, of which a loader may exchange, cut or transpose each.

use std::path::Path;

use firstdiff::{
    core::format::Format,
    diagnosis::loaded::Standing,
    model::{
        ModelFile,
        synth::arch::{ArchModel, ArchSpec, Sizes},
    },
};

use super::forms::{Subject, below};

const GATE: &str = "blk.1.ffn_gate_exps.weight";
const UP: &str = "blk.1.ffn_up_exps.weight";
const DOWN: &str = "blk.1.ffn_down_exps.weight";

fn subject(folder: &Path) -> Subject {
    let mut spec = ArchSpec::new("qwen3moe");
    spec.sizes = Sizes { layers: Some(3), ..Sizes::default() };
    let path = folder.join("experts.gguf");
    let program = Path::new(env!("CARGO_BIN_EXE_firstdiff"));
    ArchModel::plan(&spec, program).unwrap().write(&path, program, &mut |_| {}).unwrap();
    Subject { file: ModelFile::open(&path).unwrap(), dim: 16 }
}

#[test]
fn weights_of_experts_are_recognised_in_each_form_and_each_mistake_is_named() {
    use Standing::{Otherwise, Right, Wrong};
    let folder = tempfile::tempdir().unwrap();
    let subject = subject(folder.path());
    let (gate, up, down) = (subject.tensor(GATE), subject.tensor(UP), subject.tensor(DOWN));
    let dims = &subject.file.info(UP).unwrap().dims;
    let (neurons, experts) = (dims[1] as usize, dims[2] as usize);
    assert_eq!((up.rows, down.cols), (experts * neurons, neurons));
    assert!(experts > 2 && up.cols != neurons, "{dims:?}");

    subject.is(UP, up.shape(), &up.data, Right, "");
    subject.is(UP, up.shape(), &up.mapped(|x| Format::Bf16.number(x)), Right, "rounded to bf16");
    // Each expert's matrix transposed: (experts, inputs, outputs).
    let each = up.from(experts * up.cols, neurons, |row, col| {
        (row / up.cols * neurons + col, row % up.cols)
    });
    subject.is(UP, each.shape(), &each.data, Otherwise, "transposed");
    let half = up.from(up.rows / 2, up.cols, |row, col| (row + up.rows / 2, col));
    let text = format!("rows {}-{} of {}", up.rows / 2, up.rows - 1, up.rows);
    subject.is(UP, half.shape(), &half.data, Otherwise, &text);
    // The gate and up of an expert one below the other, expert by expert.
    let fused = format!("gate_up={GATE} {UP}");
    let mut both = below(&gate, &up);
    subject.is(&fused, [2 * up.rows, up.cols], &both, Right, "");
    let n = neurons * up.cols;
    both.clear();
    for expert in 0..experts {
        both.extend([&gate, &up].map(|one| &one.data[expert * n..(expert + 1) * n]).concat());
    }
    let text = format!("rows as {experts} x 2 groups of {neurons}");
    subject.is(&fused, [2 * up.rows, up.cols], &both, Otherwise, &text);
    // One expert's matrix alone, and another's in its place.
    let one = format!("expert.1={UP}[{neurons}:{}]", 2 * neurons);
    subject.is(&one, [neurons, up.cols], &up.data[n..2 * n], Right, "");
    let text = format!("rows 0-{} of blk.*.ffn_up_exps.weight instead of", neurons - 1);
    subject.is(&one, [neurons, up.cols], &up.data[..n], Wrong, &text);

    let wrong = |data: &[f32], text: &str| subject.is(UP, up.shape(), data, Wrong, text);
    wrong(&subject.tensor("blk.2.ffn_up_exps.weight").data, "the next layer's");
    wrong(&gate.data, "is blk.*.ffn_gate_exps.weight");
    let rows = neurons..2 * neurons;
    let text = format!("rows {}-{} of {} are zero", rows.start, rows.end - 1, up.rows);
    wrong(&up.without(rows), &text);
    let next = |row: usize, col: usize| ((row + neurons) % up.rows, col);
    let text = format!("row i is the file's row (i + {neurons}) mod {}", up.rows);
    wrong(&up.from(up.rows, up.cols, next).data, &text);
    wrong(&each.data, "transposed, then read in the original shape");
}
