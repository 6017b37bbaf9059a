//! The simulated control channel: frames that take time, get lost, doubled and out of order.

mod disturb;

pub use disturb::Disturbed;
pub(crate) use disturb::{Arrival, Damage};

use crate::fault::ControlFault;
use disturb::Disturbances;
use engine::id::NodeId;
use engine::time::{Span, Time};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// How frames travel between a node and the registry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ControlConfig {
    /// One way.
    pub latency: Span,
    /// Added to it, uniform between zero and this.
    pub jitter: Span,
    /// Probability that a frame is lost.
    pub loss: f64,
    /// Probability that a frame comes twice.
    pub duplicate: f64,
    /// Probability that a frame is held back by up to `reorder_by`, so that later ones overtake it.
    pub reorder: f64,
    /// How long a held-back frame is held at most.
    pub reorder_by: Span,
    /// Time of the registry for a frame.
    pub service_per_frame: Span,
    /// And for each of its bytes.
    pub service_per_byte: Span,
    /// Frames that the registry queues; more are dropped.
    pub queue: usize,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            latency: Span::us(20),
            jitter: Span(0),
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_by: Span::us(200),
            service_per_frame: Span::us(1),
            service_per_byte: Span::ns(1),
            queue: 65_536,
        }
    }
}

/// Draws what happens to each frame: one random stream for each pair of nodes.
pub(crate) struct Channel {
    config: ControlConfig,
    seed: u64,
    streams: Vec<Option<Box<ChaCha8Rng>>>,
    nodes: usize,
    disturbances: Disturbances,
}

impl Channel {
    pub(crate) fn new(config: ControlConfig, seed: u64, nodes: usize) -> Self {
        let streams = (0..nodes * nodes).map(|_| None).collect();
        Self { config, seed, streams, nodes, disturbances: Disturbances::default() }
    }

    pub(crate) fn disturb(&mut self, fault: ControlFault) {
        self.disturbances.begin(fault);
    }

    pub(crate) fn calm(&mut self, fault: &ControlFault) {
        self.disturbances.end(fault);
    }

    pub(crate) fn disturbed(&self) -> Disturbed {
        self.disturbances.counted
    }

    /// Whether no fault disturbs any frame.
    pub(crate) fn is_calm(&self) -> bool {
        self.disturbances.are_none()
    }

    /// When and how a frame that leaves now arrives, with what faults do to it.
    pub(crate) fn send_through(&mut self, now: Time, from: NodeId, to: NodeId, into: &mut Vec<Arrival>) {
        into.extend(self.send(now, from, to).into_iter().flatten().map(|at| (at, Damage::None)));
        let index = from.index() * self.nodes + to.index();
        self.disturbances.act(into, (from, to), index, self.seed);
    }

    pub(crate) fn config(&self) -> &ControlConfig {
        &self.config
    }

    /// When a frame that leaves now arrives: never, once, or twice.
    pub(crate) fn send(&mut self, now: Time, from: NodeId, to: NodeId) -> [Option<Time>; 2] {
        let c = self.config;
        let at = now + c.latency;
        if c.jitter == Span(0) && c.loss == 0.0 && c.duplicate == 0.0 && c.reorder == 0.0 {
            return [Some(at), None];
        }
        let index = from.index() * self.nodes + to.index();
        let seed = self.seed;
        let Some(stream) = self.streams.get_mut(index) else { return [Some(at), None] };
        let rng = stream.get_or_insert_with(|| Box::new(stream_of(seed, index as u64)));
        let mut one = || {
            let mut at = at;
            if c.jitter > Span(0) {
                at += Span(rng.random_range(0..=c.jitter.0));
            }
            if rng.random_bool(c.reorder.clamp(0.0, 1.0)) {
                at += Span(rng.random_range(0..=c.reorder_by.0));
            }
            (!rng.random_bool(c.loss.clamp(0.0, 1.0))).then_some(at)
        };
        let first = one();
        let again = one();
        let twice = rng.random_bool(c.duplicate.clamp(0.0, 1.0));
        [first, again.filter(|_| twice)]
    }
}

/// The stream of one pair of nodes.
fn stream_of(seed: u64, index: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x636f_6e74_726f_6c00);
    rng.set_stream(index);
    rng
}
