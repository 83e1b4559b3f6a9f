//! What each kernel computes, in f64, by the formula in its header.

/// out[r][c] = x[r][c] / sqrt(mean of x[r]^2 + eps) * weight[c].
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let row = |x: &[f64]| -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(weight).map(|(x, weight)| x / (mean + eps).sqrt() * weight).collect()
    };
    x.chunks(weight.len()).flat_map(row).collect()
}

/// How [`rope`] rotates: x is (T, H, D).
pub struct Rope<'a> {
    pub neox: bool,
    pub theta: f64,
    pub positions: &'a [i32],
    /// (D/2).
    pub factors: Option<&'a [f64]>,
    pub n_head: usize,
    pub head_dim: usize,
}

pub fn rope(x: &[f64], rope: &Rope<'_>) -> Vec<f64> {
    let (d, mut out) = (rope.head_dim, x.to_vec());
    for (row, out) in out.chunks_mut(d).enumerate() {
        let position = f64::from(rope.positions[row / rope.n_head]);
        for pair in 0..d / 2 {
            let factor = rope.factors.map_or(1.0, |factors| factors[pair]);
            let angle = position * rope.theta.powf(-2.0 * pair as f64 / d as f64) / factor;
            let (first, second) =
                if rope.neox { (pair, pair + d / 2) } else { (2 * pair, 2 * pair + 1) };
            let (a, b) = (out[first], out[second]);
            out[first] = a * angle.cos() - b * angle.sin();
            out[second] = a * angle.sin() + b * angle.cos();
        }
    }
    out
}

/// silu(gate) * up.
pub fn swiglu(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
}

/// Shapes of [`attention`]: T queries at the last positions of P.
#[derive(Clone, Copy)]
pub struct Heads {
    /// T.
    pub tokens: usize,
    /// Hq.
    pub n_head: usize,
    /// Hk.
    pub n_head_kv: usize,
    /// D.
    pub head_dim: usize,
    /// P.
    pub positions: usize,
}

/// What attention leaves: out (T, Hq, D); scores and probs (T, Hq, P), 0 past the query.
pub struct Attended {
    pub out: Vec<f64>,
    pub scores: Vec<f64>,
    pub probs: Vec<f64>,
}

/// q is (T, Hq, D), k and v (Hk, P, D).
pub fn attention(q: &[f64], k: &[f64], v: &[f64], heads: Heads, scale: f64) -> Attended {
    let Heads { tokens, n_head, n_head_kv, head_dim: d, positions: p } = heads;
    let mut out = vec![0.0; q.len()];
    let (mut scores, mut probs) = (vec![0.0; tokens * n_head * p], vec![0.0; tokens * n_head * p]);
    for row in 0..tokens * n_head {
        let (end, head) = (p - tokens + row / n_head + 1, row % n_head / (n_head / n_head_kv));
        let key = |cache: &[f64], j: usize| cache[(head * p + j) * d..][..d].to_vec();
        let (q, scores) = (&q[row * d..][..d], &mut scores[row * p..][..end]);
        for (j, score) in scores.iter_mut().enumerate() {
            *score = scale * q.iter().zip(key(k, j)).map(|(q, k)| q * k).sum::<f64>();
        }
        let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - maximum).exp()).sum();
        for j in 0..end {
            let prob = (scores[j] - maximum).exp() / sum;
            probs[row * p + j] = prob;
            for (out, v) in out[row * d..].iter_mut().zip(key(v, j)) {
                *out += prob * v;
            }
        }
    }
    Attended { out, scores, probs }
}
