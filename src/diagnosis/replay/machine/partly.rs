//! Sites of which a side recorded some rows: those are judged, and the others are taken as computed.

use super::{Machine, Observe, Observed, Root, errors_of};
use crate::{
    diagnosis::replay::recording::ReplayError,
    graph::{NodeId, site::Axis},
};

impl<'a> Machine<'a> {
    /// Whether not every token of the step has a row of a site.
    pub(super) fn is_partly(&self, place: usize) -> bool {
        let spec = &self.run.model.sites.specs()[place];
        self.run.recording.tensors.rows(spec.site(self.step)).is_some()
    }

    /// Computes a node and judges the rows that were recorded of its site.
    pub(super) fn see_rows(
        &mut self,
        id: NodeId,
        place: usize,
        observe: Observe<'_, 'a>,
    ) -> Result<(), ReplayError> {
        let spec = &self.run.model.sites.specs()[place];
        let Some(mut expected) = self.compute(id, &super::AsItIs)? else {
            // What is known of some rows is no input.
            self.without_rule_if_fed(id);
            self.store(id, None);
            return Ok(());
        };
        let through = self.through(id);
        let mut root = Root { value: expected.value.clone(), ..errors_of(&expected) };
        root.through = through.clone();
        root.through.insert(place);
        let Some(recorded) =
            self.spread_out(place)?.filter(|_| !self.graph().node(id).op.is_choice())
        else {
            self.store(id, Some(root));
            return Ok(());
        };
        let mut known = self.known(place, &recorded)?;
        let is_recorded: Vec<bool> = known.value.iter().map(|x| !x.is_nan()).collect();
        self.leave_out_unseen(id, &mut expected, &mut known);
        for (flat, _) in is_recorded.iter().enumerate().filter(|(_, is_recorded)| **is_recorded) {
            root.value[flat] = known.value[flat];
            root.spread.iter_mut().for_each(|spread| spread[flat] = 0.0);
            root.single.get_mut(flat).into_iter().for_each(|single| *single = 0.0);
        }
        let mut piece = self.piece(spec, expected, recorded)?;
        // A row that is not there, in the site's own order.
        self.each_row(place, |row, is_there| {
            let width = piece.captured.len() / self.extent.tokens.max(1);
            if !is_there {
                piece.expected.value[row * width..(row + 1) * width].fill(f64::NAN);
            }
        });
        let (shape, step, spanned) = (self.shape(spec), self.step, through);
        let (is_partly, choice) = (true, None);
        observe(self, Observed { place, step, shape, piece, is_partly, spanned, choice })?;
        self.store(id, Some(root));
        Ok(())
    }

    /// Tells of each token of the step whether a site has its row.
    fn each_row(&self, place: usize, mut tell: impl FnMut(usize, bool)) {
        let spec = &self.run.model.sites.specs()[place];
        let rows = self.run.recording.tensors.rows(spec.site(self.step));
        for row in 0..self.extent.tokens {
            tell(row, rows.is_none_or(|rows| rows.binary_search(&row).is_ok()));
        }
    }

    /// The rows of a site at their places among all, NaN between them.
    fn spread_out(&self, place: usize) -> Result<Option<Vec<f32>>, ReplayError> {
        let spec = &self.run.model.sites.specs()[place];
        let (site, shape) = (spec.site(self.step), self.shape(spec));
        let is_of_tokens = spec.axes.first().is_some_and(|axis| axis.axis == Axis::Token);
        let tensors = self.run.recording.tensors;
        let (Some(tensor), Some(rows)) = (tensors.tensor(site)?, tensors.rows(site)) else {
            return Ok(None);
        };
        let width: usize = shape[1..].iter().product();
        let fits = tensor.shape[1..] == shape[1..] && tensor.shape[0] == rows.len();
        if !fits || !is_of_tokens || shape[0] != self.extent.tokens {
            return Ok(None);
        }
        let mut all = vec![f32::NAN; shape[0] * width];
        for (&row, values) in rows.iter().zip(tensor.data.chunks(width.max(1))) {
            all[row * width..(row + 1) * width].copy_from_slice(values);
        }
        Ok(Some(all))
    }
}
