//! Experts are compared by their ids: of the same experts in another order a slot's results are the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::pairing::Pairing;
use crate::{
    core::{
        sink::{Sink, Stopped},
        tensor::Tensor,
    },
    graph::{
        ModelGraph, SiteList,
        site::{Axis, Site},
    },
    reference::is_choice,
    trace::TraceError,
};

/// Which slot of the engine's is each of the reference's, by step and layer.
pub struct SlotOrders<'a> {
    list: &'a SiteList,
    /// The choice of a layer, and for each token the engine's slots in the reference's order.
    orders: BTreeMap<(u32, Option<u32>), Vec<Vec<usize>>>,
    choices: BTreeSet<Site>,
    pub others: OtherExperts,
}

/// Tokens that the engine sends to other experts than the reference does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OtherExperts {
    /// The first of them: site, token and the experts of the engine and of the reference.
    pub first: Option<(Site, usize, [Vec<i64>; 2])>,
    pub count: usize,
}

impl fmt::Display for OtherExperts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((site, token, [engine, reference])) = &self.first else { return Ok(()) };
        write!(
            f,
            "{} tokens are routed to other experts, the first at step {} {} token {token}: {engine:?} in the engine, \
             {reference:?} in the reference; later results use other weights: record the reference on the \
                 engine's experts, with capture reference --force-routing",
            self.count,
            site.step,
            site.tensor_name()
        )
    }
}

impl<'a> SlotOrders<'a> {
    /// Reads the choices of both sides; nothing is put in order where the reference has no graph.
    pub fn of(pairing: &Pairing<'a>, list: &'a SiteList) -> Result<SlotOrders<'a>, TraceError> {
        let (orders, choices, others) = Default::default();
        let mut found = SlotOrders { list, orders, choices, others };
        let Some((model, _)) = pairing.reference.graph()? else { return Ok(found) };
        for site in pairing.reference.sites().filter(|&site| is_choice(&model, site)) {
            let (Some(own), Some(right)) = (pairing.engine(site)?, pairing.reference(site)?) else {
                continue;
            };
            if own.shape == right.shape
                && let Some(slots) = slots_of(&model, site, &right)
            {
                found.add(site, slots, [&own, &right]);
            }
        }
        Ok(found)
    }

    fn add(&mut self, site: Site, slots: usize, [own, right]: [&Tensor; 2]) {
        let width = right.shape.last().copied().unwrap_or(1).max(1);
        let mut orders = Vec::new();
        let rows = own.data.chunks(width).zip(right.data.chunks(width)).enumerate();
        for (token, (own, right)) in rows {
            let ids = |row: &[f32]| row[..slots].iter().map(|&id| id as i64).collect::<Vec<i64>>();
            let (own, right) = (ids(own), ids(right));
            let order = in_order(&own, &right);
            if right.iter().any(|id| !own.contains(id)) {
                self.others.count += 1;
                self.others.first.get_or_insert((site, token, [own, right]));
            }
            orders.push(order);
        }
        self.choices.insert(site);
        self.orders.insert((site.step, site.layer), orders);
    }

    /// The engine's tensor with its slots in the reference's order.
    pub fn ordered(&self, site: Site, tensor: Tensor) -> Tensor {
        let Some(orders) = self.orders.get(&(site.step, site.layer)) else { return tensor };
        if orders.len() != tensor.shape[0] {
            return tensor;
        }
        let slot_axis = if self.choices.contains(&site) {
            Some(tensor.shape.len() - 1)
        } else {
            self.list.axes(site).iter().position(|&axis| axis == Axis::Slot)
        };
        let Some(axis) = slot_axis.filter(|&axis| axis > 0) else { return tensor };
        let inner: usize = tensor.shape[axis + 1..].iter().product();
        let (of_token, slots) = (tensor.shape[1..].iter().product::<usize>(), tensor.shape[axis]);
        let mut data = tensor.data.clone();
        let rows = data.chunks_mut(of_token).zip(tensor.data.chunks(of_token));
        for ((to, from), order) in rows.zip(orders) {
            for start in (0..of_token).step_by(slots * inner) {
                for (slot, &own) in order.iter().enumerate().filter(|&(slot, _)| slot < slots) {
                    let at = |slot: usize| start + slot * inner..start + (slot + 1) * inner;
                    to[at(slot)].copy_from_slice(&from[at(own)]);
                }
            }
        }
        Tensor { data, ..tensor }
    }
}

/// How many experts each token goes to: a choice may order all of them.
fn slots_of(model: &ModelGraph, site: Site, ids: &Tensor) -> Option<usize> {
    let own = model.sites.get(site)?.node;
    let readers = model
        .graph
        .iter()
        .filter(|(_, node)| node.source(2).is_some_and(|source| model.graph.root(source) == own));
    let slots = readers.filter_map(|(_, node)| {
        let ids = model.graph.node(node.source(2)?).ne[0];
        ids.is_fixed().then_some(ids.fixed as usize)
    });
    slots.min().filter(|slots| ids.shape.last().is_some_and(|all| slots <= all))
}

/// The engine's slot of each of the reference's experts; those that it does not have, in their order.
fn in_order(own: &[i64], right: &[i64]) -> Vec<usize> {
    let place = |id: &i64| own.iter().position(|other| other == id);
    let found: Vec<Option<usize>> = right.iter().map(place).collect();
    let mut left = (0..own.len()).filter(|slot| !found.contains(&Some(*slot)));
    found.iter().map(|slot| slot.or_else(|| left.next()).unwrap_or(0)).collect()
}

/// Puts the slots in order on the way to a comparison.
pub struct InOrder<'a, S> {
    pub inner: S,
    pub orders: &'a SlotOrders<'a>,
}

impl<S: Sink> Sink for InOrder<'_, S> {
    fn wants(&self, site: Site) -> bool {
        self.inner.wants(site)
    }

    fn queries(&self, site: Site) -> Option<&[usize]> {
        self.inner.queries(site)
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        self.inner.put(site, self.orders.ordered(site, tensor))
    }
}

#[cfg(test)]
mod tests {
    use super::in_order;

    #[test]
    fn slots_follow_the_reference_and_others_fill_what_is_left() {
        assert_eq!(in_order(&[5, 2, 7], &[7, 5, 2]), [2, 0, 1]);
        assert_eq!(in_order(&[5, 2, 7], &[7, 1, 5]), [2, 1, 0]);
        assert_eq!(in_order(&[4, 3], &[1, 2]), [0, 1]);
    }
}
