//! In which order an array has the axes of a site: `head token dim`, or `token (head dim)` where two
//! are one, the first of them slower, and `1` for an axis that means nothing.

use std::fmt;

use crate::graph::site::Axis;

/// The axes of an array, by their place in the site's own shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// One for each axis of the array; empty for `1`, several for axes that are one.
    groups: Vec<Vec<usize>>,
    names: Vec<&'static str>,
}

/// The names of a site's axes, each one word.
pub(super) fn names(axes: &[Axis]) -> Vec<&'static str> {
    axes.iter().map(|axis| axis.word()).collect()
}

impl Order {
    /// Reads an order of the axes of those names.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str, names: &[&'static str]) -> Result<Order, String> {
        let (mut groups, mut open) = (Vec::new(), None::<Vec<usize>>);
        let spaced = text.replace('(', " ( ").replace(')', " ) ");
        for word in spaced.split_whitespace() {
            match (word, open.take()) {
                ("(", None) => open = Some(Vec::new()),
                (")", Some(group)) => groups.push(group),
                ("1", None) => groups.push(Vec::new()),
                (name, group) => {
                    let known = names.iter().position(|known| *known == name);
                    let wrong = || format!("has axes {text:?}; choose from {}", names.join(", "));
                    let axis = known.ok_or_else(wrong)?;
                    match group {
                        Some(mut group) => {
                            group.push(axis);
                            open = Some(group);
                        }
                        None => groups.push(vec![axis]),
                    }
                }
            }
        }
        let mut named: Vec<usize> = groups.iter().flatten().copied().collect();
        named.sort_unstable();
        if open.is_some() || named != (0..names.len()).collect::<Vec<_>>() {
            return Err(format!("has axes {text:?} instead of each of {} once", names.join(", ")));
        }
        Ok(Order { groups, names: names.to_vec() })
    }

    /// The site's own order.
    pub fn own(names: &[&'static str]) -> Order {
        Order { groups: (0..names.len()).map(|axis| vec![axis]).collect(), names: names.to_vec() }
    }

    /// The order in which an array of that shape has those axes (places in `site`, the slowest
    /// first), if it can.
    pub fn of(
        array: &[usize],
        site: &[usize],
        axes: &[usize],
        names: &[&'static str],
    ) -> Option<Order> {
        let mut left = axes.iter().copied().peekable();
        let mut groups = Vec::new();
        for (place, &n) in array.iter().enumerate() {
            let (mut group, mut size) = (Vec::new(), 1);
            while let Some(&axis) = left.peek() {
                let last = place + 1 == array.len();
                if size * site[axis] > n
                    || (size == n && !(last || site[axis] == 1 && group.is_empty()))
                {
                    break;
                }
                size *= site[axis];
                group.push(axis);
                left.next();
            }
            if size != n {
                return None;
            }
            groups.push(group);
        }
        left.peek().is_none().then_some(Order { groups, names: names.to_vec() })
    }

    /// Puts the values of an array of that shape into the site's own order.
    ///
    /// # Errors
    /// The array has not that shape.
    pub fn apply(
        &self,
        values: &[f32],
        array: &[usize],
        site: &[usize],
    ) -> Result<Vec<f32>, String> {
        let size = |group: &Vec<usize>| group.iter().map(|&axis| site[axis]).product::<usize>();
        let wanted: Vec<usize> = self.groups.iter().map(size).collect();
        if wanted != array {
            return Err(format!("has shape {array:?}, as {self} it would be {wanted:?}"));
        }
        let slowest_first: Vec<usize> = self.groups.iter().flatten().copied().collect();
        Ok(gather(values, site, &strides(&slowest_first, site)))
    }

    /// How many axes of the site it is of.
    pub fn axes(&self) -> usize {
        self.names.len()
    }

    /// That of one row, of an array that has so many axes of one element before its own; `None` where
    /// the rows do not lie one after another.
    pub(super) fn of_row(&self, leading: usize) -> Option<Order> {
        let (first, own) = self.groups.split_first()?;
        let lower = |group: &Vec<usize>| group.iter().map(|axis| axis - 1).collect();
        (*first == [0]).then(|| Order {
            groups: vec![Vec::new(); leading].into_iter().chain(own.iter().map(lower)).collect(),
            names: self.names[1..].to_vec(),
        })
    }

    /// The orders with the same values that differ in place of axes of one element: each of the site's in an
    /// axis of the array that has one, where there are as many. One where nothing is to be chosen.
    pub(super) fn placements(&self, array: &[usize], site: &[usize]) -> Vec<Order> {
        let slots: Vec<usize> = (0..array.len()).filter(|&place| array[place] == 1).collect();
        let ones: Vec<usize> = (0..site.len()).filter(|&axis| site[axis] == 1).collect();
        if array == site && self.long(site).is_sorted() {
            return vec![Order::own(&self.names)];
        }
        if ones.is_empty() || slots.len() < ones.len() {
            return vec![self.clone()];
        }
        let mut long = self.long(site).into_iter();
        let mut groups = vec![Vec::new(); array.len()];
        for (group, &n) in groups.iter_mut().zip(array).filter(|(_, n)| **n > 1) {
            let mut size = 1;
            while size < n
                && let Some(axis) = long.next()
            {
                size *= site[axis];
                group.push(axis);
            }
        }
        let mut all = vec![groups];
        for axis in ones {
            let put = |groups: &Vec<Vec<usize>>, slot: usize| {
                let mut groups = groups.clone();
                groups[slot].push(axis);
                groups
            };
            let each = |groups: Vec<Vec<usize>>| -> Vec<Vec<Vec<usize>>> {
                let free = slots.iter().filter(|&&slot| groups[slot].is_empty());
                free.map(|&slot| put(&groups, slot)).collect()
            };
            all = all.into_iter().flat_map(each).collect();
        }
        all.into_iter().map(|groups| Order { groups, names: self.names.clone() }).collect()
    }

    /// The axes of more than one element, the slowest first.
    fn long(&self, site: &[usize]) -> Vec<usize> {
        self.groups.iter().flatten().copied().filter(|&axis| site[axis] > 1).collect()
    }

    /// Whether it is the site's own.
    pub fn is_own(&self) -> bool {
        self.groups.iter().enumerate().all(|(axis, group)| *group == [axis])
    }
}

/// Of each axis of the site, how far apart its elements lie where those are the slowest first.
pub(super) fn strides(slowest_first: &[usize], site: &[usize]) -> Vec<usize> {
    let (mut strides, mut stride) = (vec![0; site.len()], 1);
    for &axis in slowest_first.iter().rev() {
        strides[axis] = stride;
        stride *= site[axis];
    }
    strides
}

/// The values at those strides, row-major in the site's shape.
pub(super) fn gather(values: &[f32], site: &[usize], strides: &[usize]) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    let mut at = vec![0; site.len()];
    let mut place = 0;
    for _ in 0..values.len() {
        out.push(values[place]);
        for axis in (0..site.len()).rev() {
            at[axis] += 1;
            place += strides[axis];
            if at[axis] < site[axis] {
                break;
            }
            place -= strides[axis] * site[axis];
            at[axis] = 0;
        }
    }
    out
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = |group: &Vec<usize>| {
            let names: Vec<&str> = group.iter().map(|&axis| self.names[axis]).collect();
            match names.as_slice() {
                [] => "1".to_string(),
                [name] => (*name).to_string(),
                names => format!("({})", names.join(" ")),
            }
        };
        let groups: Vec<String> = self.groups.iter().map(group).collect();
        f.write_str(&groups.join(" "))
    }
}
