//! What `include/firstdiff.h` costs beside plain writes of the same bytes: see write.c.

use std::{fs, path::Path, process::Command};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const PLAN: &str = "\
model bench.gguf
blake3 abababababababababababababababababababababababababababababababab
architecture qwen2
n_vocab 1000
site embd - token,channel T,896
site attn_norm 0-5 token,channel T,896
site q 0-5 token,head,dim T,14,64
site k 0-5 token,head,dim T,2,64
site v 0-5 token,head,dim T,2,64
site q_rope 0-5 token,head,dim T,14,64
site k_rope 0-5 token,head,dim T,2,64
site k_cache 0-5 position,head,dim P,2,64
site v_cache 0-5 position,head,dim P,2,64
site scores 0-5 token,head,key T,14,P
site probs 0-5 token,head,key T,14,P
site attn_out 0-5 token,head,dim T,14,64
site o_proj 0-5 token,channel T,896
site attn_residual 0-5 token,channel T,896
site ffn_norm 0-5 token,channel T,896
site ffn_gate 0-5 token,neuron T,4864
site ffn_up 0-5 token,neuron T,4864
site ffn_act 0-5 token,neuron T,4864
site ffn_down 0-5 token,channel T,896
site layer_out 0-5 token,channel T,896
site final_norm - token,channel T,896
site logits - token,vocab T,1000
";
const REPEATS: usize = 21;
/// Recording may cost this much more than the copy.
const MOST: f64 = 1.3;

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (program, plan) = (folder.path().join("write"), folder.path().join("plan.txt"));
    fs::write(&plan, PLAN)?;
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut compile = Command::new("cc");
    compile.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-I"]).arg(project.join("include"));
    compile.arg(project.join("benches/trace/write.c")).arg("-o").arg(&program);
    if !compile.status()?.success() {
        return Err("cc failed; scripts/setup.sh installs a compiler".into());
    }
    println!("recording with firstdiff.h and plain fwrite of the same bytes, medians of {REPEATS}");
    let mut worst: f64 = 0.0;
    for (what, steps, tokens) in [("a prompt of 64 tokens", 1, 64), ("32 decoded tokens", 32, 1)] {
        let mut write = Command::new(&program);
        write.arg(folder.path()).arg(&plan).args([steps, tokens, REPEATS].map(|n| n.to_string()));
        let output = write.output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        let [plain, recorded, ratio] = medians(&String::from_utf8(output.stdout)?)?;
        println!("  {what}: {plain:.1} ms plain, {recorded:.1} ms recorded, ratio {ratio:.2}");
        worst = worst.max(ratio);
    }
    if worst <= MOST {
        Ok(())
    } else {
        Err(format!("recording costs {worst:.2} of the copy, over {MOST}").into())
    }
}

/// Medians of plain and recorded in milliseconds, and of the ratio of each pair.
fn medians(lines: &str) -> Result<[f64; 3]> {
    let mut columns = [vec![], vec![], vec![]];
    for line in lines.lines() {
        let (plain, recorded) = line.split_once(' ').ok_or("a line of two numbers")?;
        let (plain, recorded): (f64, f64) = (plain.parse()?, recorded.parse()?);
        let values = [plain / 1e6, recorded / 1e6, recorded / plain];
        columns.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
    }
    Ok(columns.map(|mut column| {
        column.sort_by(f64::total_cmp);
        column[column.len() / 2]
    }))
}
