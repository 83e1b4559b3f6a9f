//! Values written into memory: a node's own, or that of another which it lies in.

use std::{borrow::Cow, rc::Rc};

use super::{Machine, Root, places::Places};
use crate::{
    diagnosis::replay::{declared, rules::Values},
    graph::NodeId,
};

impl Machine<'_> {
    /// Writes rows into a state, or into another tensor's memory.
    pub(super) fn set_rows(&mut self, id: NodeId) {
        let graph = self.graph();
        let node = graph.node(id);
        let (Some(rows), Some(places), Some(window)) =
            (node.source(0), node.source(1), node.window)
        else {
            return;
        };
        let through = self.through(id);
        let stored = self.stored_as(window.root);
        let (Ok(Some(rows)), Ok(Some(indices))) = (self.argument(rows), self.argument(places))
        else {
            self.memory[window.root.index()] = None;
            return;
        };
        let sizes = node.sizes(self.extent);
        let Some(target) = Places::of(node.format.size(), &sizes) else { return };
        let [_, per_group, per_outer, _] = indices.ne;
        let (Values::Dense { value, spread }, Ok(indices)) = (&rows.values, indices.value()) else {
            return;
        };
        let (mut value, mut spread) =
            (Cow::Borrowed(&value[..]), spread.as_deref().map(Cow::Borrowed));
        if let Some((format, length)) = stored {
            let (rounded, slack) = declared::rows(&value, spread.as_deref(), length, format);
            (value, spread) = (Cow::Owned(rounded), slack.map(Cow::Owned));
        }
        let [length, n, groups, outer] = rows.ne;
        let is_uncertain = spread.is_some();
        let mut writes = Vec::with_capacity(value.len());
        for i3 in 0..outer {
            for i2 in 0..groups {
                for i1 in 0..n {
                    let group = i3 % per_outer.max(1) * per_group + i2 % per_group.max(1);
                    let Some(&row) = indices.get(group * n + i1) else { continue };
                    let row = row as usize;
                    let from = ((i3 * groups + i2) * n + i1) * length;
                    for i0 in 0..length {
                        let at = target.place([i0, row, i2, i3]);
                        writes.push((at, value[from + i0], spread.as_ref().map(|s| s[from + i0])));
                    }
                }
            }
        }
        let Some(root) = &mut self.memory[window.root.index()] else { return };
        let root = Rc::make_mut(root);
        if is_uncertain && root.spread.is_none() {
            root.spread = Some(vec![0.0; root.value.len()]);
        }
        for (at, value, spread) in writes {
            if at < root.value.len() {
                root.value[at] = value;
                if let Some(all) = &mut root.spread {
                    all[at] = spread.unwrap_or(0.0);
                }
            }
        }
        root.through.extend(through);
    }

    /// Stores a node's values: its own, or in the memory that it lies in.
    pub(super) fn store(&mut self, id: NodeId, root: Option<Root>) {
        let node = self.graph().node(id);
        let Some(window) = node.window else {
            self.memory[id.index()] = root.map(Rc::new);
            return;
        };
        let places = Places::of(node.format.size(), &node.sizes(self.extent));
        let (Some(values), Some(places)) = (root, places) else {
            self.memory[window.root.index()] = None;
            return;
        };
        let Some(root) = &mut self.memory[window.root.index()] else { return };
        let root = Rc::make_mut(root);
        if values.spread.is_some() && root.spread.is_none() {
            root.spread = Some(vec![0.0; root.value.len()]);
        }
        let mut flat = 0;
        places.each(|at| {
            root.value[at] = values.value[flat];
            if let Some(spread) = &mut root.spread {
                spread[at] = values.spread.as_ref().map_or(0.0, |spread| spread[flat]);
            }
            flat += 1;
        });
        root.through.extend(values.through);
    }
}
