//! Coefficients that make sums nearest to what was recorded.

/// The coefficients c for which rows . c is nearest to the targets; `None` where they are not determined.
pub fn solve(rows: &[Vec<f64>], targets: &[f64]) -> Option<Vec<f64>> {
    let n = rows.first()?.len();
    if rows.len() < n {
        return None;
    }
    let mut matrix = vec![0.0; n * n];
    let mut right = vec![0.0; n];
    for (row, target) in rows.iter().zip(targets) {
        for (i, x) in row.iter().enumerate().filter(|(_, x)| **x != 0.0) {
            right[i] += x * target;
            row[..=i].iter().enumerate().for_each(|(j, y)| matrix[i * n + j] += x * y);
        }
    }
    cholesky(&mut matrix, n)?;
    for i in 0..n {
        let sum: f64 = (0..i).map(|j| matrix[i * n + j] * right[j]).sum();
        right[i] = (right[i] - sum) / matrix[i * n + i];
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|j| matrix[j * n + i] * right[j]).sum();
        right[i] = (right[i] - sum) / matrix[i * n + i];
    }
    right.iter().all(|c| c.is_finite()).then_some(right)
}

/// The lower factor of a matrix, in its place; `None` where a column follows from others.
fn cholesky(matrix: &mut [f64], n: usize) -> Option<()> {
    /// What is left of a column that others do not give, at least.
    const LEAST: f64 = 1e-10;
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| matrix[i * n + k] * matrix[j * n + k]).sum();
            let own = matrix[i * n + j];
            if i == j {
                if own <= 0.0 || own - sum <= LEAST * own {
                    return None;
                }
                matrix[i * n + i] = (own - sum).sqrt();
            } else {
                matrix[i * n + j] = (own - sum) / matrix[j * n + j];
            }
        }
    }
    Some(())
}

/// The coefficients as whole numbers, where they are near to these.
pub fn whole(coefficients: &[f64], near: f64) -> Option<Vec<i64>> {
    let rounded = |c: &f64| ((c - c.round()).abs() < near).then_some(c.round() as i64);
    coefficients.iter().map(rounded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::random::splitmix64;

    #[test]
    fn coefficients_are_found_again_and_what_is_not_determined_is_none() {
        let random = |i: usize| splitmix64(7, i as u64) as f64 / u64::MAX as f64 - 0.5;
        for n in [1, 3, 20] {
            let rows: Vec<Vec<f64>> =
                (0..3 * n).map(|r| (0..n).map(|c| random(r * n + c)).collect()).collect();
            let own: Vec<f64> = (0..n).map(|c| (c % 3) as f64 - 1.0).collect();
            let targets: Vec<f64> =
                rows.iter().map(|row| row.iter().zip(&own).map(|(x, c)| x * c).sum()).collect();
            let found = solve(&rows, &targets).unwrap();
            assert_eq!(whole(&found, 0.01), Some(own.iter().map(|&c| c as i64).collect()), "{n}");
            assert!(solve(&rows[..n - 1], &targets[..n - 1]).is_none());
        }
        let twice: Vec<Vec<f64>> = (0..9).map(|i| vec![random(i), random(i)]).collect();
        assert_eq!(solve(&twice, &[1.0; 9]), None);
        assert_eq!(whole(&[0.4], 0.3), None);
    }
}
