//! The names of the weights that a forward pass reads, as the model's file has them.

/// A product's matrix, and what is added to each row of its result.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearNames {
    pub weight: String,
    pub bias: Option<String>,
}

/// The weights of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNames {
    pub attn_norm: String,
    pub q: LinearNames,
    pub k: LinearNames,
    pub v: LinearNames,
    /// Of each head of q and of k.
    pub q_norm: Option<String>,
    pub k_norm: Option<String>,
    pub o: LinearNames,
    pub ffn_norm: String,
    pub gate: LinearNames,
    pub up: LinearNames,
    pub down: LinearNames,
}

/// All weights of a forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightNames {
    pub embedding: String,
    pub layers: Vec<LayerNames>,
    pub final_norm: String,
    /// Its matrix is the embedding's where the two are tied.
    pub output: LinearNames,
    /// Divisors of the angles.
    pub rope_factors: Option<String>,
}

impl LinearNames {
    fn all(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.weight.as_str()).chain(self.bias.as_deref())
    }

    /// The name that a bias has or would have.
    fn bias_name(&self) -> String {
        let part = self.weight.strip_suffix(".weight").unwrap_or(&self.weight);
        self.bias.clone().unwrap_or_else(|| format!("{part}.bias"))
    }
}

impl LayerNames {
    fn linears(&self) -> [&LinearNames; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    pub fn all(&self) -> impl Iterator<Item = &str> {
        let norms = [&self.attn_norm, &self.ffn_norm].into_iter().map(String::as_str);
        let of_heads = [&self.q_norm, &self.k_norm].into_iter().filter_map(|name| name.as_deref());
        norms.chain(of_heads).chain(self.linears().into_iter().flat_map(LinearNames::all))
    }
}

impl WeightNames {
    /// Whether the output projection is the embedding.
    pub fn is_tied(&self) -> bool {
        self.output.weight == self.embedding
    }

    /// Every name; that of a tied output twice.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        let ends = [&self.embedding, &self.final_norm].into_iter().map(String::as_str);
        let layers = self.layers.iter().flat_map(LayerNames::all);
        ends.chain(self.output.all()).chain(self.rope_factors.as_deref()).chain(layers)
    }

    /// Biases that a projection lacks, though the same of another layer, or another one of q, k and v,
    /// has one.
    pub fn absent_biases(&self) -> Vec<String> {
        let groups: [&[usize]; 5] = [&[0, 1, 2], &[3], &[4], &[5], &[6]];
        let of = |group: &[usize]| {
            let linears = self.layers.iter().map(LayerNames::linears);
            let all: Vec<&LinearNames> =
                linears.flat_map(|linears| group.iter().map(move |&i| linears[i])).collect();
            let any = all.iter().any(|linear| linear.bias.is_some());
            let absent = all.into_iter().filter(move |linear| any && linear.bias.is_none());
            absent.map(LinearNames::bias_name).collect::<Vec<String>>()
        };
        groups.into_iter().flat_map(of).collect()
    }
}
