//! Rows in another order than the file's.

use super::{Found, held::Closeness, right::Search};

/// An exchange of two axes that rows or columns are made of: the file has them as (a, b, c, d), the engine as
/// (a, c, b, d).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regrouping {
    pub a: usize,
    pub b: usize,
    pub c: usize,
    pub d: usize,
}

impl Regrouping {
    /// The file's place of what the engine has at a place.
    pub fn file(&self, at: usize) -> usize {
        let Regrouping { b, c, d, .. } = *self;
        let (at, last) = (at / d, at % d);
        let (at, y) = (at / b, at % b);
        let (x, z) = (at / c, at % c);
        ((x * b + y) * c + z) * d + last
    }

    /// In words; `what` are rows or columns, `tensors` is how many tensors they are of.
    pub fn text(&self, what: &str, tensors: usize) -> String {
        let Regrouping { a, b, c, d } = *self;
        let each = |n: usize| if a > 1 { format!(" of each {n}") } else { String::new() };
        match (a, b, c, d) {
            (1, _, _, 1) if tensors == b => {
                format!("the {what} of its {b} tensors are interleaved")
            }
            (_, _, 2, 1) => format!(
                "{what}{} as halves (i, i + {b}), where the file has pairs (2i, 2i + 1)",
                each(2 * b)
            ),
            (_, 2, _, 1) => format!(
                "{what}{} as pairs (2i, 2i + 1), where the file has halves (i, i + {c})",
                each(2 * c)
            ),
            _ => format!(
                "{what}{} as {c} x {b} groups of {d}, where the file has {b} x {c}",
                each(b * c * d)
            ),
        }
    }
}

/// The exchanges that a number of rows allows. Those of single rows come first, and of these those of pairs.
pub fn regroupings(n: usize, visit: &mut dyn FnMut(Regrouping)) {
    let divisors = |n: usize| (1..=n).filter(move |d| n.is_multiple_of(*d));
    let mut all = Vec::new();
    let own: Vec<usize> = divisors(n).collect();
    for &a in &own {
        for &b in own.iter().filter(|&&b| b > 1 && (n / a).is_multiple_of(b)) {
            let rest = n / a / b;
            for &c in own.iter().filter(|&&c| c > 1 && rest.is_multiple_of(c)) {
                all.push(Regrouping { a, b, c, d: rest / c });
            }
        }
    }
    all.sort_by_key(|one| (one.d, one.b.min(one.c), one.a));
    all.into_iter().for_each(visit);
}

/// What a weight is whose every row is one of the file's, in an order that is no exchange of axes.
pub fn matched(search: &Search<'_>) -> Option<Found> {
    if search.held.is_constant() || !search.has_shape() && search.held.cols != search.view.cols {
        return None;
    }
    search.closenesses().find_map(|closeness| {
        if search.held.cols == 1 {
            return elements(search, closeness);
        }
        let rows = rows(search, closeness)?;
        Some(described(search, &rows))
    })
}

/// The file's row of each recorded one: one that no other is, if there is such a row.
fn rows(search: &Search<'_>, closeness: Closeness) -> Option<Vec<usize>> {
    let (view, mut is_used) = (&search.view, vec![false; search.view.rows]);
    let mut found = Vec::with_capacity(search.held.at.len());
    for (_, e) in search.held.each() {
        let is_it = |row: &usize| closeness.is_row(e, view.row(*row));
        let free = (0..view.rows).filter(|&row| !is_used[row]).find(is_it);
        let row = free.or_else(|| (0..view.rows).find(is_it))?;
        is_used[row] = true;
        found.push(row);
    }
    Some(found)
}

fn described(search: &Search<'_>, rows: &[usize]) -> Found {
    let (held, n) = (search.held, search.view.rows);
    let mut sorted = rows.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() < rows.len() {
        let twice = |&(at, row): &(usize, &usize)| rows[..at].contains(row);
        let (at, row) = rows.iter().enumerate().find(twice).unwrap_or((0, &rows[0]));
        let text = format!("row {} is the file's row {row}, as another row is", held.at[at]);
        return Found::wrong(text);
    }
    if held.rows != n {
        return Found::otherwise(format!("{} of {n} rows, in their own order", held.rows));
    }
    if let Some(order) = parts_in_order(search, rows) {
        return Found::wrong(format!("its tensors are in the order {order}"));
    }
    let shift = (rows[0] + n - held.at[0]) % n;
    if held.at.iter().zip(rows).all(|(at, row)| (at + shift) % n == *row) {
        return Found::wrong(format!("row i is the file's row (i + {shift}) mod {n}"));
    }
    if held.at.iter().zip(rows).all(|(at, row)| n - 1 - at == *row) {
        return Found::wrong("its rows are in reverse order".into());
    }
    Found::otherwise("its rows are in another order".into())
}

/// The tensors of a fused weight, where each is whole and they are in another order than stated.
fn parts_in_order(search: &Search<'_>, rows: &[usize]) -> Option<String> {
    let target = search.target;
    let mut order: Vec<&str> = Vec::new();
    for (at, &row) in rows.iter().enumerate() {
        let name = target.place(row).0.info.name.as_str();
        match order.last() {
            Some(&last) if last == name => {
                let [own, before] = [search.held.at[at], search.held.at[at - 1]];
                if row.checked_sub(rows[at - 1]) != Some(own - before) {
                    return None;
                }
            }
            _ if order.contains(&name) => return None,
            _ => order.push(name),
        }
    }
    let stated = target.parts.iter().map(|part| part.info.name.as_str());
    let is_stated = order.iter().copied().eq(stated);
    (order.len() > 1 && !is_stated).then(|| order.join(", "))
}

/// A vector whose elements are the file's, each once.
fn elements(search: &Search<'_>, closeness: Closeness) -> Option<Found> {
    if !search.has_shape() || search.held.at.len() != search.view.rows {
        return None;
    }
    let n = search.view.rows;
    let (held, file) = (search.held.values(), &search.view.data);
    for shift in 1..n {
        let is_it = |at: usize| closeness.is(held[at], file[(at + shift) % n], 0.0);
        if (0..n).all(is_it) {
            let text = format!("element i is the file's element (i + {shift}) mod {n}");
            return Some(Found::wrong(text));
        }
    }
    let sorted = |values: &[f32]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f32::total_cmp);
        sorted
    };
    let pairs = sorted(held).into_iter().zip(sorted(file));
    let are_same = pairs.into_iter().all(|(e, t)| closeness.is(e, t, 0.0));
    are_same.then(|| Found::otherwise("its elements are in another order".into()))
}
