//! Brings two sides together, site by site, with bounded memory.
//!
//! Each side runs in its own thread and sends what it computes through a channel of limited bytes.
//! The comparison asks for the sites in canonical order; tensors of the same layer that come
//! earlier wait in a small stash, so the two sides may differ in order within a layer.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        mpsc::{self, Receiver, Sender},
    },
};

use crate::{
    capture::{Sink, Stopped},
    compare::SiteFilter,
    site::Site,
    tensor::Tensor,
};

/// Bytes under way in one channel, and one tensor more: enough that llama.cpp goes on while the engine
/// still loads its weights.
const MOST_BYTES: usize = 256 << 20;

/// What is under way in a channel.
#[derive(Default)]
struct Room {
    taken: Mutex<Taken>,
    freed: Condvar,
}

#[derive(Default)]
struct Taken {
    bytes: usize,
    /// Nobody receives any more.
    closed: bool,
}

impl Room {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().expect("no thread panics while it holds the count")
    }

    /// Waits until there is room, and takes it.
    fn take(&self, bytes: usize) -> Result<(), Stopped> {
        let is_full = |taken: &mut Taken| taken.bytes >= MOST_BYTES && !taken.closed;
        let waited = self.freed.wait_while(self.taken(), is_full);
        let mut taken = waited.expect("no thread panics while it holds the count");
        taken.bytes += bytes;
        if taken.closed { Err(Stopped) } else { Ok(()) }
    }

    fn give(&self, bytes: usize) {
        self.taken().bytes -= bytes;
        self.freed.notify_one();
    }
}

/// The sending end: a [`Sink`] that a side puts its tensors into.
pub struct ChannelSink {
    filter: Arc<SiteFilter>,
    sender: Sender<(Site, Tensor)>,
    room: Arc<Room>,
}

/// The receiving end of one side.
pub struct Side {
    receiver: Receiver<(Site, Tensor)>,
    room: Arc<Room>,
}

impl Drop for Side {
    fn drop(&mut self) {
        self.room.taken().closed = true;
        self.room.freed.notify_one();
    }
}

/// A channel for one side.
pub fn channel(filter: Arc<SiteFilter>) -> (ChannelSink, Side) {
    let (sender, receiver) = mpsc::channel();
    let room = Arc::<Room>::default();
    (ChannelSink { filter, sender, room: Arc::clone(&room) }, Side { receiver, room })
}

impl Sink for ChannelSink {
    fn wants(&self, site: Site) -> bool {
        self.filter.wants(site)
    }

    fn queries(&self, site: Site) -> Option<&[usize]> {
        self.filter.queries(site)
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        self.room.take(bytes_of(&tensor))?;
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

    /// The tensor of a site, or `None` if the side does not provide it. Sites must be asked for in
    /// canonical order.
    pub fn next(&mut self, wanted: Site) -> Option<Tensor> {
        // What is behind the canonical order was never asked for.
        self.stash.retain(|&site, _| site >= wanted);
        loop {
            if let Some(tensor) = self.stash.remove(&wanted) {
                return Some(tensor);
            }
            if self.ended || self.stash.keys().any(|&site| is_in_later_block(site, wanted)) {
                return None;
            }
            match self.side.receiver.recv() {
                Ok((site, tensor)) => {
                    self.side.room.give(bytes_of(&tensor));
                    self.stash.insert(site, tensor);
                }
                Err(_) => self.ended = true,
            }
        }
    }
}

fn bytes_of(tensor: &Tensor) -> usize {
    size_of_val(&tensor.data[..])
}

/// Whether a side that sends `site` is past the layer of `wanted`.
fn is_in_later_block(site: Site, wanted: Site) -> bool {
    site > wanted && (site.step, site.layer) != (wanted.step, wanted.layer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::Stage;

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
        let (mut sink, side) = channel(Arc::default());
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
        let (mut sink, side) = channel(Arc::default());
        drop(side);
        let put = sink.put(Site::global(0, Stage::Embd), Tensor::new([1], vec![0.0]));
        assert_eq!(put, Err(Stopped));
    }

    #[test]
    fn a_side_that_is_far_ahead_waits_until_it_is_listened_to_or_stopped() {
        let half = || Tensor::new([MOST_BYTES / 8], vec![0.0; MOST_BYTES / 8]);
        let sites: Vec<Site> = (0..4).map(|step| Site::global(step, Stage::Embd)).collect();
        let (mut sink, side) = channel(Arc::default());
        let (sent, heard) = mpsc::channel();
        let all = sites.clone();
        let sender = std::thread::spawn(move || {
            all.into_iter().try_for_each(|site| {
                sink.put(site, half())?;
                sent.send(site).map_err(|_| Stopped)
            })
        });
        let briefly = std::time::Duration::from_millis(200);
        for &site in &sites[..2] {
            assert_eq!(heard.recv(), Ok(site));
        }
        assert!(heard.recv_timeout(briefly).is_err(), "the channel is full");
        let mut aligner = Aligner::new(side);
        assert!(aligner.next(sites[0]).is_some());
        assert_eq!(heard.recv(), Ok(sites[2]));
        assert!(heard.recv_timeout(briefly).is_err(), "the channel is full again");
        drop(aligner);
        assert_eq!(sender.join().unwrap(), Err(Stopped));
    }
}
