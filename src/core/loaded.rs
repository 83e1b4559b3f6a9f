//! A weight as an engine holds it after loading: all of a small one, some rows of a large one.

/// A weight of up to so many elements is recorded whole.
const WHOLE: u64 = 1 << 16;
/// Rows of a larger one that are recorded, where they are not longer than a share of so many elements.
const ROWS: u64 = 32;
const LEAST_ROWS: u64 = 4;
const ELEMENTS: u64 = 1 << 18;
/// The longest name.
const LONGEST: usize = 128;

/// A weight as an engine holds it. Its rows are what all axes but the last count.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedWeight {
    /// The engine's own name of it.
    pub name: String,
    /// The tensors of the model's file that it stands for, one below the other, each by its name or as
    /// `NAME[FIRST:END]` of some of its rows.
    pub of: Vec<String>,
    /// Slowest axis first, without ones at the end.
    pub shape: Vec<usize>,
    /// The rows that `values` has, ascending; `None` where it has all.
    pub rows: Option<Vec<usize>>,
    pub values: Vec<f32>,
    /// Of each row of the whole the sum of (j + 1) x_j, in f64; empty where it is not known.
    pub sums: Vec<f64>,
}

impl LoadedWeight {
    /// A weight of which everything is there. `names` are those of [`parse_names`].
    ///
    /// # Errors
    /// The names are none, or the shape does not have that many elements.
    pub fn of(names: &str, shape: &[usize], data: &[f32]) -> Result<LoadedWeight, String> {
        let (name, of) = parse_names(names)?;
        if data.is_empty() || shape.iter().product::<usize>() != data.len() {
            return Err(format!("{name} of shape {shape:?} has {} elements", data.len()));
        }
        let shape = trimmed(shape);
        let (rows, width) = matrix(&shape);
        let Some(chosen) = sampled_rows(&name, rows, width) else {
            return Ok(LoadedWeight {
                name,
                of,
                shape,
                rows: None,
                values: data.into(),
                sums: Vec::new(),
            });
        };
        let row = |&row: &usize| &data[row * width..(row + 1) * width];
        let values = chosen.iter().flat_map(row).copied().collect();
        let sums = data.chunks_exact(width).map(row_sum).collect();
        Ok(LoadedWeight { name, of, shape, rows: Some(chosen), values, sums })
    }

    /// Rows and their length.
    pub fn matrix(&self) -> (usize, usize) {
        matrix(&self.shape)
    }
}

/// The sum of (j + 1) x_j of a row.
pub fn row_sum(row: &[f32]) -> f64 {
    row.iter().zip(1u32..).map(|(&x, place)| f64::from(x) * f64::from(place)).sum()
}

/// A shape without ones at the end.
pub fn trimmed(shape: &[usize]) -> Vec<usize> {
    let axes = shape.iter().rposition(|&n| n != 1).map_or(1, |last| last + 1);
    let own = shape.get(..axes).unwrap_or(&[1]);
    own.to_vec()
}

fn matrix(shape: &[usize]) -> (usize, usize) {
    let (width, rows) = shape.split_last().map_or((1, &[][..]), |(width, rows)| (*width, rows));
    (rows.iter().product(), width)
}

/// The rows of a weight that are recorded: `None` of a small one, which is recorded whole; else the first, the
/// last, and one of each equal share between them, chosen by the name.
pub fn sampled_rows(name: &str, rows: usize, width: usize) -> Option<Vec<usize>> {
    let (rows, width) = (rows as u64, width.max(1) as u64);
    let count = (ELEMENTS / width).clamp(LEAST_ROWS, ROWS);
    if rows.saturating_mul(width) <= WHOLE || rows <= count {
        return None;
    }
    // FNV-1a, then the generator of Numerical Recipes: a few lines in any language.
    let hash = |state: u32, byte: u8| (state ^ u32::from(byte)).wrapping_mul(16_777_619);
    let mut state = name.bytes().fold(2_166_136_261, hash);
    let row = |share: u64| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (first, next) = (share * rows / count, (share + 1) * rows / count);
        match share {
            0 => 0,
            _ if share + 1 == count => rows as usize - 1,
            _ => (first + u64::from(state >> 8) % (next - first)) as usize,
        }
    };
    Some((0..count).map(row).collect())
}

/// The engine's own name and those of the file's tensors, of `[OWN=]TENSOR[ TENSOR ...]`.
///
/// # Errors
/// A name is empty, too long, or has other characters than letters, digits and `. _ - /`.
pub fn parse_names(names: &str) -> Result<(String, Vec<String>), String> {
    let (own, of) = match names.split_once('=') {
        Some((own, of)) => (Some(own), of),
        None => (None, names),
    };
    let of: Vec<String> = of.split(' ').map(str::to_string).collect();
    let own = own.map_or_else(|| of[0].clone(), str::to_string);
    let is_own = is_name(&own) || of.len() == 1 && own == of[0];
    match of.iter().find(|name| !is_tensor(name)).or(Some(&own).filter(|_| !is_own)) {
        Some(name) => Err(format!("{name:?} is not a valid weight name")),
        None => Ok((own, of)),
    }
}

/// Whether a text is a weight's name.
pub fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    (1..=LONGEST).contains(&text.len()) && text.bytes().all(allowed)
}

/// Whether a text names a tensor of a file, or some rows of one.
pub fn is_tensor(text: &str) -> bool {
    let (name, rows) = split_rows(text);
    is_name(name) && (rows.is_some() || !text.contains('['))
}

/// The name and the rows of `NAME[FIRST:END]`; no rows where a whole tensor is meant.
pub fn split_rows(text: &str) -> (&str, Option<std::ops::Range<usize>>) {
    let rows = |(name, rest): (&'_ str, &str)| {
        let (first, end) = rest.strip_suffix(']')?.split_once(':')?;
        let (first, end) = (first.parse().ok()?, end.parse().ok()?);
        (first < end).then_some((name.len(), first..end))
    };
    match text.split_once('[').and_then(rows) {
        Some((length, rows)) => (&text[..length], Some(rows)),
        None => (text.split('[').next().unwrap_or(text), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_weight_is_sampled_in_each_share_and_at_both_ends() {
        assert_eq!(sampled_rows("a", 64, 1024), None);
        assert_eq!(sampled_rows("a", 1, 1 << 20), None);
        for (rows, width, count) in [(896, 896, 32), (151_936, 896, 32), (4864, 1 << 20, 4)] {
            let chosen = sampled_rows("blk.0.attn_q.weight", rows, width).unwrap();
            assert_eq!(chosen.len(), count);
            assert_eq!((chosen[0], chosen[count - 1]), (0, rows - 1));
            for (share, &row) in chosen.iter().enumerate() {
                assert!((share * rows / count..(share + 1) * rows / count).contains(&row));
            }
            assert_ne!(sampled_rows("blk.1.attn_q.weight", rows, width).unwrap(), chosen);
        }
    }

    #[test]
    fn names_are_an_own_one_and_those_of_tensors_or_their_rows() {
        let parsed = |text| parse_names(text).unwrap();
        assert_eq!(parsed("a.weight"), ("a.weight".into(), vec!["a.weight".into()]));
        let of = vec!["a.weight[0:8]".to_string(), "b".to_string()];
        assert_eq!(parsed("x/y=a.weight[0:8] b"), ("x/y".into(), of));
        assert_eq!(split_rows("a.weight[16:32]"), ("a.weight", Some(16..32)));
        for bad in ["", "a b  c", "a=", "=a", "a\"", "a[8:8]", "a[1:x]", "a[", "a=b=c"] {
            assert!(parse_names(bad).is_err(), "{bad}");
        }
        assert!(parse_names(&"a".repeat(129)).is_err());
    }

    #[test]
    fn a_small_weight_is_whole_and_a_large_one_has_the_sums_of_all_rows() {
        let whole = LoadedWeight::of("a", &[2, 2, 1], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!((whole.shape, whole.rows, whole.sums.len()), (vec![2, 2], None, 0));
        let data: Vec<f32> = (0..100_000).map(|i| (i % 100) as f32).collect();
        let large = LoadedWeight::of("a", &[1000, 100], &data).unwrap();
        assert_eq!((large.values.len(), large.sums.len()), (3200, 1000));
        assert_eq!(large.sums[7], (0..100).map(|j| f64::from(j * (j + 1))).sum::<f64>());
        assert!(LoadedWeight::of("a", &[2, 3], &[0.0; 5]).is_err());
    }
}
