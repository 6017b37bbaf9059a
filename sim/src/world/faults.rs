//! Faults as the world strikes them.

use super::triggers::Trigger;
use super::{AnyNode, Dead, Ev, Waiting, World};
use crate::control::Disturbed;
use crate::digest::Digest;
use crate::fabric::PortFault;
use crate::fault::{Fault, FaultKind, Pace, Struck};
use engine::id::{NodeId, QpId};
use engine::node::Node as _;
use engine::time::{Span, Time};

/// Makes a node anew: which, and its life, which rises with each start.
pub type Maker = Box<dyn FnMut(NodeId, u32) -> AnyNode>;

/// What goes on, and what went on.
#[derive(Default)]
pub(super) struct Faults {
    active: Vec<Fault>,
    struck: Struck,
    maker: Option<Maker>,
    paces: Vec<Pace>,
    /// The run is over: nothing strikes any more.
    ended: bool,
    /// What waits for a room.
    pub(super) triggers: Vec<Trigger>,
    /// When the last of those on their way is over.
    pub(super) until: Time,
}

/// How slow a node's calls are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slowness {
    cpu: u32,
    call: Span,
}

impl Default for Slowness {
    fn default() -> Self {
        Self { cpu: 1000, call: Span(0) }
    }
}

impl Slowness {
    pub(super) fn stretch(&self, busy: Span) -> Span {
        if self.cpu == 1000 {
            return busy + self.call;
        }
        let ps = u128::from(busy.0) * u128::from(self.cpu) / 1000;
        Span(u64::try_from(ps).unwrap_or(u64::MAX)) + self.call
    }
}

/// Where a fault that lasts strikes: faults of one place and kind are counted together.
fn same_place(a: &Fault, b: &Fault) -> bool {
    use Fault as F;
    match (a, b) {
        (F::Degrade { host, port, .. }, F::Degrade { host: h, port: p, .. })
        | (F::Loss { host, port, .. }, F::Loss { host: h, port: p, .. }) => host == h && port == p,
        (F::CompletionDelay { host, .. }, F::CompletionDelay { host: h, .. }) => host == h,
        (F::Clock { node, .. }, F::Clock { node: n, .. })
        | (F::Slow { node, .. }, F::Slow { node: n, .. }) => node == n,
        _ => a == b,
    }
}

impl World {
    /// What makes nodes anew. Without it nodes that died or left stay away.
    pub fn set_maker(&mut self, maker: Maker) {
        self.faults.maker = Some(maker);
    }

    /// The pace of each node's model, by node: what [`Fault::Slow`] changes.
    pub fn set_paces(&mut self, paces: Vec<Pace>) {
        self.faults.paces = paces;
    }

    /// A fault begins at some time.
    pub fn fault(&mut self, at: Time, fault: Fault) {
        self.push_fault(at, Ev::Fault(fault));
    }

    /// A fault that lasts is over at some time.
    pub fn fault_over(&mut self, at: Time, fault: Fault) {
        self.push_fault(at, Ev::FaultOver(fault));
    }

    /// A fault begins at some time and is over after a while.
    pub fn fault_for(&mut self, at: Time, fault: Fault, span: Span) {
        self.fault(at, fault);
        if fault.lasts() {
            self.fault_over(at + span, fault);
        }
    }

    /// How many faults struck. One that finds nothing to strike is not counted.
    pub fn struck(&self) -> &Struck {
        &self.faults.struck
    }

    /// Frames of the control channel that faults disturbed.
    pub fn disturbed(&self) -> Disturbed {
        self.channel.disturbed()
    }

    /// How often a node was started.
    pub fn life(&self, node: NodeId) -> u32 {
        self.places[node.index()].life
    }

    /// A node's process dies, and another one takes its place, with nothing of what the old one knew.
    pub fn restart(&mut self, node: NodeId, fresh: AnyNode) {
        if !matches!(self.places[node.index()].node, AnyNode::Dead(_)) {
            self.kill(node);
        }
        let place = &mut self.places[node.index()];
        place.life += 1;
        place.node = fresh;
        self.deliver(node, Waiting::Start);
        self.settle();
    }

    /// A node's process dies: the system takes back what it had of the fabric, and what had reached it is lost.
    fn kill(&mut self, node: NodeId) {
        let now = self.now;
        let place = &mut self.places[node.index()];
        place.past += place.node.counters();
        place.node = AnyNode::Dead(Dead);
        place.busy = now;
        place.digest.word(8);
        if let Some(noted) = &mut self.noted {
            noted.called.push(node);
        }
        for waiting in std::mem::take(&mut place.inbox) {
            if let Waiting::Frame { frame, .. } = waiting {
                self.free_frames.push(frame);
            }
        }
        place.paused = false;
        let host = place.host;
        // Another process is not the one that was stopped.
        self.faults.active.retain(|fault| *fault != Fault::Pause { node });
        self.fabrics.process_dies(host, now, &mut self.queue, &mut self.ready);
    }

    fn note_fault(&mut self, fault: Fault) {
        if let Some(noted) = &mut self.noted {
            noted.faults.push(fault);
        }
    }

    pub(super) fn strike(&mut self, fault: Fault) {
        if self.faults.ended {
            return;
        }
        match fault {
            Fault::LinkUp { host, port } => return self.over(Fault::LinkDown { host, port }),
            Fault::Resume { node } => return self.over(Fault::Pause { node }),
            _ => {}
        }
        if self.begin(fault) {
            self.note_fault(fault);
            self.faults.struck.count(fault.kind());
            if fault.lasts() {
                self.faults.active.push(fault);
                self.adjust(fault);
            }
        }
        self.settle();
    }

    /// What a fault does at its instant. False if there is nothing to strike.
    fn begin(&mut self, fault: Fault) -> bool {
        let (now, q, ready) = (self.now, &mut self.queue, &mut self.ready);
        match fault {
            Fault::QueuePairError { host, index } => {
                let qps: Vec<QpId> = self.fabrics.host_ref(host).queue_pairs();
                let Some(qp) = qps.get(index % qps.len().max(1)) else { return false };
                self.fabrics.fail_qp(host, *qp, now, q, ready);
                true
            }
            Fault::PostFailure { host, request, times } => {
                self.fabrics.refuse_posts(host, request, times);
                true
            }
            Fault::Unacknowledged { host, times } => {
                self.fabrics.swallow_acks(host, times);
                true
            }
            Fault::Control(fault) => {
                self.channel.disturb(fault);
                true
            }
            Fault::Crash { node } | Fault::Leave { node } | Fault::Pause { node }
                if matches!(self.places[node.index()].node, AnyNode::Dead(_)) =>
            {
                false
            }
            Fault::Crash { node } => {
                self.kill(node);
                true
            }
            Fault::Leave { node } => {
                self.leave(node);
                true
            }
            Fault::Clock { node, ahead, .. } => {
                let place = &mut self.places[node.index()];
                place.clock = place.clock.set(now, ahead, 0);
                true
            }
            _ => true,
        }
    }

    /// A fault that lasts is over.
    pub(super) fn over(&mut self, fault: Fault) {
        let Some(at) = self.faults.active.iter().position(|active| *active == fault) else { return };
        self.faults.active.remove(at);
        match fault {
            Fault::LinkDown { host, port } => self.note_fault(Fault::LinkUp { host, port }),
            Fault::Pause { node } => self.note_fault(Fault::Resume { node }),
            _ => {}
        }
        if let Fault::Control(fault) = fault {
            self.channel.calm(&fault);
        }
        let again = match fault {
            Fault::Crash { node } | Fault::Leave { node } => Some(node),
            _ => None,
        };
        match again {
            None => self.adjust(fault),
            Some(node) => {
                let still = |f: &Fault| matches!(f, Fault::Crash { node: n } | Fault::Leave { node: n } if *n == node);
                if !self.faults.ended && !self.faults.active.iter().any(still) {
                    self.revive(node);
                }
            }
        }
        self.settle();
    }

    /// A node that died or left is started anew.
    fn revive(&mut self, node: NodeId) {
        let life = self.places[node.index()].life + 1;
        if let Some(maker) = &mut self.faults.maker {
            let fresh = maker(node, life);
            self.restart(node, fresh);
        }
    }

    /// Makes a place what the faults that go on there say.
    fn adjust(&mut self, fault: Fault) {
        let (now, q, ready) = (self.now, &mut self.queue, &mut self.ready);
        let active = || self.faults.active.iter().filter(|active| same_place(active, &fault));
        let any = active().next().is_some();
        match fault {
            Fault::LinkDown { host, port } => {
                self.fabrics.port_fault(host, port, PortFault::Down(any), now, q, ready);
            }
            Fault::LinkDrain { host, port } => {
                self.fabrics.port_fault(host, port, PortFault::Drained(any), now, q, ready);
            }
            Fault::Degrade { host, port, .. } => {
                let to =
                    active().filter_map(|f| if let Fault::Degrade { to, .. } = f { Some(*to) } else { None });
                let to = to.min().unwrap_or(crate::fault::Ppm::ONE);
                // The rate was the topology's, and is a part of it.
                let _ = self.fabrics.degrade(host, port, to.share(), now, q);
            }
            Fault::Loss { host, port, .. } => {
                let keep = active().fold(1.0, |keep, f| match f {
                    Fault::Loss { probability, .. } => keep * (1.0 - probability.share()),
                    _ => keep,
                });
                self.fabrics.lose_packets(host, port, 1.0 - keep);
            }
            Fault::NicReset { host, port } => {
                self.fabrics.port_fault(host, port, PortFault::Reset(any), now, q, ready);
            }
            Fault::CompletionDelay { host, .. } => {
                let by = active()
                    .filter_map(|f| if let Fault::CompletionDelay { by, .. } = f { Some(*by) } else { None });
                let by = by.max().unwrap_or(Span(0));
                self.fabrics.delay_completions(host, by);
            }
            Fault::ReceivesDry { host } => self.fabrics.withhold_receives(host, any),
            Fault::Pause { node } => {
                let place = &mut self.places[node.index()];
                place.paused = any;
                if !any {
                    self.resume(node);
                    self.arm(node);
                }
            }
            Fault::Clock { node, .. } => {
                let drift: i32 = active()
                    .map(|f| if let Fault::Clock { drift_ppm, .. } = f { *drift_ppm } else { 0 })
                    .sum();
                let place = &mut self.places[node.index()];
                place.clock = place.clock.set(now, Span(0), drift);
                self.arm(node);
            }
            Fault::Slow { node, .. } => {
                let (mut slow, mut pace) = (Slowness::default(), 1000);
                for f in active() {
                    if let Fault::Slow { cpu, call, compute, .. } = f {
                        slow = Slowness { cpu: slow.cpu.max(*cpu), call: slow.call.max(*call) };
                        pace = pace.max(*compute);
                    }
                }
                self.places[node.index()].slow = slow;
                // Steps that are over by now were at the old pace.
                self.deliver(node, Waiting::Wake);
                if let Some(own) = self.faults.paces.get(node.index()) {
                    own.set(pace);
                }
            }
            Fault::Control(_)
            | Fault::QueuePairError { .. }
            | Fault::LinkUp { .. }
            | Fault::Resume { .. }
            | Fault::PostFailure { .. }
            | Fault::Unacknowledged { .. }
            | Fault::Crash { .. }
            | Fault::Leave { .. } => {}
        }
    }

    /// Nothing strikes any more, and who was stopped goes on.
    pub(super) fn end_faults(&mut self) {
        self.faults.ended = true;
        self.faults.triggers.clear();
        let stopped = self.faults.active.iter().filter(|f| f.kind() == FaultKind::Pause).copied();
        for fault in stopped.collect::<Vec<_>>() {
            self.over(fault);
        }
    }

    /// Puts a frame on its way through what disturbs it.
    pub(super) fn carry_disturbed(&mut self, now: Time, from: NodeId, to: NodeId, bytes: &[u8]) {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        self.channel.send_through(now, from, to, &mut arrivals);
        let mut damaged = Vec::new();
        for (at, damage) in arrivals.drain(..) {
            damaged.clear();
            damaged.extend_from_slice(bytes);
            damage.apply(&mut damaged);
            let frame = self.keep(&damaged, Digest::of(&damaged));
            self.queue.push(at, Ev::Frame { to, from, frame });
        }
        self.arrivals = arrivals;
    }
}
