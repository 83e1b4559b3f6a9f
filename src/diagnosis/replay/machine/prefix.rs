//! A recording that begins in the middle of a sequence, or caches whose contents are lost: they are read off what
//! was recorded.

use std::{collections::BTreeSet, rc::Rc};

use super::{Machine, Root, places::Places};
use crate::{
    diagnosis::replay::recording::{Piece, ReplayError},
    graph::{Kind, NodeId, site::Axis},
};

impl Machine<'_> {
    /// Whether caches may hold what no step that was recorded wrote.
    pub(super) fn has_prefix(&self) -> bool {
        let tensors = self.run.recording.tensors;
        let is_cut = || (1..=self.step).any(|step| tensors.removed(step).is_some());
        tensors.first_position() > 0 || is_cut()
    }

    /// Gives each cache whose contents are not known yet what was recorded of it in this step; the step's own
    /// rows are written anew. A state that was not recorded stays unknown, and so does what is read of it.
    pub(super) fn fill_caches(&mut self) -> Result<(), ReplayError> {
        self.filled = BTreeSet::new();
        if !self.has_prefix() {
            return Ok(());
        }
        for (place, spec) in self.run.model.sites.specs().iter().enumerate() {
            let (root, node) = (self.graph().root(spec.node), self.graph().node(spec.node));
            let is_cache = spec.axes.first().is_some_and(|axis| axis.axis == Axis::Position);
            let is_unknown = self.memory[root.index()].is_none();
            if self.graph().node(root).kind != Kind::State || !is_cache || !is_unknown {
                continue;
            }
            let Some(recorded) = self.recorded(place)? else { continue };
            let known = self.known(place, &recorded)?;
            let sizes = node.sizes(self.extent);
            let Some(places) = Places::of(node.format.size(), &sizes) else { continue };
            let elements = self.graph().node(root).sizes(self.extent).elements();
            let mut value = vec![0.0; elements];
            let mut flat = 0;
            places.each(|at| {
                value[at] = known.value[flat];
                flat += 1;
            });
            self.memory[root.index()] = Some(Rc::new(Root { value, ..Root::default() }));
            self.filled.insert(root);
        }
        Ok(())
    }

    /// Expects nothing of the rows of a cache that were taken from the very recording.
    pub(super) fn leave_out_prefix(&self, root: NodeId, piece: &mut Piece<'_>) {
        if self.filled.contains(&root) {
            let width = piece.captured.len() / self.extent.cells.max(1);
            piece.expected.value[..self.first_position * width].fill(f64::NAN);
        }
    }
}
