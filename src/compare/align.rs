//! Brings two sides together, site by site, with bounded memory.
//!
//! Each side runs in its own thread and sends what it computes through a channel of bounded room.
//! The comparison asks for the sites in the order of the graph; tensors of the same layer that come
//! earlier wait in a small stash, so the two sides may differ in order within a layer.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::Duration,
};

use crate::{
    compare::SiteFilter,
    core::{
        activity,
        sink::{Sink, Stopped},
        tensor::Tensor,
    },
    graph::site::{Site, Stage},
};

/// Tensors that may be under way in any channel: enough that a side seldom waits for the comparison.
const FEW: usize = 16;
/// How often one that waits for a side looks whether the run was told to end.
const TICK: Duration = Duration::from_millis(100);

/// The sending end: a [`Sink`] that a side puts its tensors into.
pub struct ChannelSink {
    filter: Arc<SiteFilter>,
    sender: Sender<(Site, Tensor)>,
    lead: Arc<Lead>,
}

/// The receiving end of one side.
pub struct Side {
    receiver: Receiver<(Site, Tensor)>,
    lead: Arc<Lead>,
}

/// How far a side is ahead of the comparison, and may be.
struct Lead {
    most_elements: usize,
    state: Mutex<Ahead>,
    changed: Condvar,
}

#[derive(Default)]
struct Ahead {
    tensors: usize,
    elements: usize,
    /// Nobody listens any more.
    closed: bool,
}

/// A channel for one side, which may be ahead by a few tensors, or by as many as have together at most
/// `lead` elements.
pub fn channel(filter: Arc<SiteFilter>, lead: usize) -> (ChannelSink, Side) {
    let (sender, receiver) = mpsc::channel();
    let (state, changed) = (Mutex::default(), Condvar::new());
    let lead = Arc::new(Lead { most_elements: lead, state, changed });
    (ChannelSink { filter, sender, lead: Arc::clone(&lead) }, Side { receiver, lead })
}

impl Lead {
    fn state(&self) -> MutexGuard<'_, Ahead> {
        self.state.lock().expect("no thread panics while it holds a lead")
    }

    /// Waits until a tensor may be sent.
    fn take(&self, elements: usize) -> Result<(), Stopped> {
        let is_full = |ahead: &mut Ahead| {
            !ahead.closed && ahead.tensors >= FEW && ahead.elements + elements > self.most_elements
        };
        let waited = self.changed.wait_while(self.state(), is_full);
        let mut ahead = waited.expect("no thread panics while it holds a lead");
        if ahead.closed {
            return Err(Stopped);
        }
        ahead.tensors += 1;
        ahead.elements += elements;
        Ok(())
    }

    /// A tensor was received.
    fn give_back(&self, elements: usize) {
        let mut ahead = self.state();
        ahead.tensors -= 1;
        ahead.elements -= elements;
        self.changed.notify_one();
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.lead.state().closed = true;
        self.lead.changed.notify_one();
    }
}

impl Sink for ChannelSink {
    fn wants(&self, site: Site) -> bool {
        self.filter.wants(site)
    }

    fn queries(&self, site: Site) -> Option<&[usize]> {
        self.filter.queries(site)
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        self.lead.take(tensor.data.len())?;
        self.sender.send((site, tensor)).map_err(|_| Stopped)
    }
}

/// Finds the tensor of each site in what a side sends.
pub struct Aligner {
    side: Side,
    stash: HashMap<Site, Tensor>,
    ended: bool,
}

impl Aligner {
    pub fn new(side: Side) -> Aligner {
        Aligner { side, stash: HashMap::new(), ended: false }
    }

    /// The tensor of a site, or `None` if the side does not provide it, or the run was told to end. Steps must be asked for in order,
    /// and in each the layers.
    pub fn next(&mut self, wanted: Site) -> Option<Tensor> {
        // What is left of an earlier step was never asked for.
        self.stash.retain(|&site, _| site.step >= wanted.step);
        loop {
            if let Some(tensor) = self.stash.remove(&wanted) {
                return Some(tensor);
            }
            if self.ended || self.stash.keys().any(|&site| is_past(site, wanted)) {
                return None;
            }
            match self.side.receiver.recv_timeout(TICK) {
                Err(RecvTimeoutError::Timeout) if activity::interrupted().is_none() => {}
                Err(RecvTimeoutError::Timeout) => return None,
                Ok((site, tensor)) => {
                    self.side.lead.give_back(tensor.data.len());
                    self.stash.insert(site, tensor);
                }
                Err(RecvTimeoutError::Disconnected) => self.ended = true,
            }
        }
    }
}

/// Whether a side that sends `site` will not send `wanted` any more: it is in a later step, or at a role
/// of a later layer. A tensor without a role may be computed long before its place.
fn is_past(site: Site, wanted: Site) -> bool {
    let is_other = |site: Site| matches!(site.stage, Stage::Other(_));
    if site.step != wanted.step || is_other(site) {
        return site.step > wanted.step;
    }
    let is_placed = wanted.layer.is_some() || !is_other(wanted);
    is_placed && site.layer != wanted.layer && site > wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites() -> Vec<Site> {
        let mut sites = Vec::new();
        for step in 0..2 {
            sites.push(Site::global(step, Stage::Embd));
            for layer in 0..3 {
                for stage in [Stage::Q, Stage::K, Stage::Scores, Stage::LayerOut] {
                    sites.push(Site::in_layer(step, layer, stage));
                }
            }
            sites.push(Site::global(step, Stage::Logits));
        }
        sites
    }

    fn send(order: Vec<Site>) -> Aligner {
        let (mut sink, side) = channel(Arc::default(), 0);
        std::thread::spawn(move || {
            for (index, site) in order.into_iter().enumerate() {
                if sink.put(site, Tensor::new([1], vec![index as f32])).is_err() {
                    return;
                }
            }
        });
        Aligner::new(side)
    }

    #[test]
    fn any_order_within_a_layer_is_brought_into_the_canonical_one() {
        for seed in 0..50u64 {
            let mut order = sites();
            // Swap neighbours of the same layer at seeded places.
            for i in 1..order.len() {
                let same = order[i - 1].layer == order[i].layer && order[i].layer.is_some();
                if same && (seed >> (i % 6)) & 1 == 1 {
                    order.swap(i - 1, i);
                }
            }
            let mut aligner = send(order.clone());
            for site in sites() {
                let index = aligner.next(site).expect("the side sends every site").data[0];
                assert_eq!(order[index as usize], site);
            }
        }
    }

    #[test]
    fn a_site_that_a_side_leaves_out_is_none_and_the_rest_is_found() {
        for left_out in sites() {
            let order: Vec<Site> = sites().into_iter().filter(|&site| site != left_out).collect();
            let mut aligner = send(order);
            for site in sites() {
                assert_eq!(aligner.next(site).is_none(), site == left_out, "{site}");
            }
        }
    }

    #[test]
    fn a_side_that_nobody_listens_to_is_stopped() {
        let (mut sink, side) = channel(Arc::default(), 0);
        let mut put = move || sink.put(Site::global(0, Stage::Embd), Tensor::new([1], vec![0.0]));
        let full = std::thread::spawn(move || (0..=FEW).map(|_| put()).collect::<Vec<_>>());
        drop(side);
        assert_eq!(full.join().unwrap().last(), Some(&Err(Stopped)));
    }

    #[test]
    fn a_side_is_ahead_by_no_more_elements_than_it_may_be() {
        let (mut sink, side) = channel(Arc::default(), 100);
        let sent = Arc::new(Mutex::new(0));
        let counter = Arc::clone(&sent);
        let run = std::thread::spawn(move || {
            while sink.put(Site::global(0, Stage::Embd), Tensor::new([5], vec![0.0; 5])).is_ok() {
                *counter.lock().unwrap() += 1;
            }
        });
        let wait_for = |n: usize| {
            while *sent.lock().unwrap() < n {
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert_eq!(*sent.lock().unwrap(), n);
        };
        wait_for(20);
        let mut aligner = Aligner::new(side);
        aligner.next(Site::global(0, Stage::Embd)).unwrap();
        wait_for(21);
        drop(aligner);
        run.join().unwrap();
    }
}
