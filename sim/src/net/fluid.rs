//! Flows in time: who joins, who ends, and when.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use rustc_hash::FxBuildHasher;

use super::class::{Class, ClassKey, FREE, Flow, Target, Targets, WAITING, is_live};
use super::max_min::MaxMin;
use super::min_tree::MinTree;
use super::path::{LinkId, Path};
use super::topology::{MAX_CAPACITY, Topology};
use super::{Done, FlowId, FlowSpec, NetError, Network};

/// Picoseconds per second: rates are bytes per picosecond inside.
const PS: f64 = 1e12;
/// A flow that is this close to its end (picoseconds) at a whole picosecond has ended there, so
/// that rounding does not move an end which falls on a whole picosecond to the next.
const CLOSE: f64 = 1.0 / 1024.0;
/// Service counters beyond this many bytes are set back, to keep targets precise to 2^-13 bytes.
const REBASE: f64 = (1u64 << 40) as f64;
/// Lookups only; nothing iterates over it, so its order cannot show.
#[allow(clippy::disallowed_types)]
type Index = std::collections::HashMap<ClassKey, u32, FxBuildHasher>;

/// A flow that starts later; the earliest comes out first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Later {
    at: u64,
    seq: u64,
    slot: u32,
}

impl PartialOrd for Later {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Later {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}

/// The network at message fidelity: weighted max-min fair rates with a cap per flow.
#[derive(Clone, Debug)]
pub struct Fluid {
    topology: Topology,
    sharing: MaxMin,
    classes: Vec<Class>,
    index: Index,
    flows: Vec<Flow>,
    free: Vec<u32>,
    later: BinaryHeap<Later>,
    /// What the flows asked for that start later, by number.
    waiting: BTreeMap<u64, FlowSpec>,
    /// Next end of each class.
    ends: MinTree,
    now: u64,
    seq: u64,
    /// Classes whose flows changed since the last solve.
    queue: Vec<u32>,
    /// A capacity changed since the last solve.
    relinked: bool,
    /// Ended, not yet handed out.
    ready: Vec<Done>,
}

impl Fluid {
    /// An idle network at instant 0.
    pub fn new(topology: Topology) -> Self {
        let capacities = topology.links().iter().map(|link| link.capacity / PS);
        let sharing = MaxMin::new(capacities, topology.longest_path());
        Fluid {
            topology,
            sharing,
            classes: Vec::new(),
            index: Index::default(),
            flows: Vec::new(),
            free: Vec::new(),
            later: BinaryHeap::new(),
            waiting: BTreeMap::new(),
            ends: MinTree::new(),
            now: 0,
            seq: 0,
            queue: Vec::new(),
            relinked: false,
            ready: Vec::new(),
        }
    }

    /// The instant it was last moved to.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Flows under way or waiting for their start.
    pub fn flows(&self) -> usize {
        self.flows.len() - self.free.len()
    }

    fn check(&self, spec: &FlowSpec) -> Result<Path, NetError> {
        let ports = self.topology.ports();
        for port in [spec.src, spec.dst] {
            if port >= ports {
                return Err(NetError::NoPort { port, ports });
            }
        }
        if !(spec.bytes >= 0.0 && spec.bytes.is_finite()) {
            return Err(NetError::Bytes(spec.bytes));
        }
        check_shape(spec.weight, spec.cap)?;
        let (src, dst) = (spec.src, spec.dst);
        self.topology.path(src, dst, spec.label).ok_or(NetError::NoPath { src, dst })
    }

    fn insert(&mut self, spec: &FlowSpec) -> FlowId {
        let seq = self.seq;
        self.seq += 1;
        let flow = Flow { seq, target: 0.0, bytes: spec.bytes, class: WAITING, tag: spec.tag };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.flows[slot as usize] = flow;
                slot
            }
            None => {
                self.flows.push(flow);
                self.flows.len() as u32 - 1
            }
        };
        FlowId { seq, slot }
    }

    fn find(&self, id: FlowId) -> Result<&Flow, NetError> {
        let flow = self.flows.get(id.slot as usize);
        flow.filter(|flow| flow.seq == id.seq).ok_or(NetError::NoFlow(id))
    }

    fn free_flow(&mut self, slot: u32) {
        self.flows[slot as usize].seq = FREE;
        self.free.push(slot);
    }

    fn finish(&mut self, slot: u32) {
        let flow = &self.flows[slot as usize];
        let id = FlowId { seq: flow.seq, slot };
        self.ready.push(Done { at: self.now, flow: id, tag: flow.tag });
        self.free_flow(slot);
    }

    /// Lets a flow take part with all its bytes.
    fn join(&mut self, slot: u32, spec: &FlowSpec, path: &Path) {
        let key = ClassKey {
            ports: u64::from(spec.src) << 32 | u64::from(spec.dst),
            choice: path.choice(),
            weight: spec.weight.to_bits(),
            cap: spec.cap.to_bits(),
        };
        self.join_class(slot, key, path.links(), spec.bytes);
    }

    fn join_class(&mut self, slot: u32, key: ClassKey, links: &[LinkId], bytes: f64) {
        if bytes <= 0.0 {
            self.finish(slot);
            return;
        }
        let at = match self.index.get(&key) {
            Some(&at) => at,
            None => self.add_class(key, links),
        };
        self.settle(at);
        let class = &mut self.classes[at as usize];
        let target = class.service + bytes;
        let flow = &mut self.flows[slot as usize];
        flow.class = at;
        flow.target = target;
        class.live += 1;
        class.targets.push(Target { at: target, seq: flow.seq, slot });
        self.enqueue(at);
    }

    fn add_class(&mut self, key: ClassKey, links: &[LinkId]) -> u32 {
        let (weight, cap) = (f64::from_bits(key.weight), f64::from_bits(key.cap));
        // A path without links carries everything at once; a finite rate keeps sums finite.
        let cap = if links.is_empty() { cap.min(MAX_CAPACITY) } else { cap };
        let at = self.sharing.add(links, cap / PS / weight);
        if at as usize == self.classes.len() {
            self.ends.reserve(at as usize);
            self.classes.push(Class {
                key,
                service: 0.0,
                since: self.now,
                rate: 0.0,
                live: 0,
                targets: Targets::default(),
                queued: false,
            });
        } else {
            let class = &mut self.classes[at as usize];
            class.key = key;
            class.service = 0.0;
            class.since = self.now;
            class.rate = 0.0;
        }
        self.index.insert(key, at);
        at
    }

    fn enqueue(&mut self, at: u32) {
        let class = &mut self.classes[at as usize];
        if !class.queued {
            class.queued = true;
            self.queue.push(at);
        }
    }

    /// Takes a flow out of its class and returns the bytes it had left.
    fn leave(&mut self, slot: u32) -> f64 {
        let flow = &mut self.flows[slot as usize];
        let (at, target) = (flow.class, flow.target);
        flow.class = WAITING;
        self.settle(at);
        let class = &mut self.classes[at as usize];
        class.live -= 1;
        // What stays of it in the heap is dropped when it comes up, or here when there is much.
        if class.targets.len() > 2 * class.live as usize + 32 {
            let flows = &self.flows;
            class.targets.rebuild(|entry| is_live(flows, at, entry));
        }
        let left = target - class.service;
        self.enqueue(at);
        left.max(0.0)
    }

    /// Brings the service counter of a class to the present.
    fn settle(&mut self, at: u32) {
        let class = &mut self.classes[at as usize];
        class.service = class.service_at(self.now);
        class.since = self.now;
        if class.service > REBASE {
            let base = class.service;
            class.service = 0.0;
            let flows = &mut self.flows;
            class.targets.rebuild(|entry| {
                let live = is_live(flows, at, entry);
                entry.at -= base;
                if live {
                    flows[entry.slot as usize].target = entry.at;
                }
                live
            });
        }
    }

    /// Makes rates and ends right for the present, after any number of changes at it.
    fn resolve(&mut self) {
        if self.queue.is_empty() && !self.relinked {
            return;
        }
        self.relinked = false;
        for i in 0..self.queue.len() {
            let at = self.queue[i];
            let class = &mut self.classes[at as usize];
            if class.live > 0 {
                self.sharing.set_weight(at, f64::from(class.live) * class.weight());
            } else {
                class.targets.clear();
                class.queued = false;
                self.index.remove(&class.key);
                self.ends.set(at as usize, MinTree::NEVER);
                self.sharing.remove(at);
            }
        }
        self.sharing.solve();
        for i in 0..self.sharing.changed().len() {
            let at = self.sharing.changed()[i];
            self.settle(at);
            let class = &mut self.classes[at as usize];
            class.rate = class.weight() * self.sharing.level(at);
            class.queued = false;
            self.retime(at);
        }
        while let Some(at) = self.queue.pop() {
            if std::mem::take(&mut self.classes[at as usize].queued) {
                self.retime(at);
            }
        }
    }

    /// Works out when the next flow of a class ends.
    fn retime(&mut self, at: u32) {
        let class = &mut self.classes[at as usize];
        while let Some(top) = class.targets.first
            && !is_live(&self.flows, at, &top)
        {
            class.targets.pop();
        }
        let end = match class.targets.first {
            Some(top) if class.rate > 0.0 => {
                // A flow with bytes left never ends at the instant of a solve: what ends now was
                // taken out before.
                let wait = whole((top.at - class.service) / class.rate - CLOSE);
                class.since.saturating_add(wait).max(self.now.saturating_add(1))
            }
            _ => MinTree::NEVER,
        };
        self.ends.set(at as usize, end);
    }

    /// Takes out what ends now in a class whose next end is now.
    fn complete(&mut self, at: u32) {
        self.settle(at);
        let mut first = true;
        loop {
            let class = &mut self.classes[at as usize];
            let Some(top) = class.targets.first else {
                break;
            };
            if is_live(&self.flows, at, &top) {
                if !first && top.at - class.service > class.rate * CLOSE {
                    break;
                }
                first = false;
                class.live -= 1;
                class.targets.pop();
                self.finish(top.slot);
            } else {
                class.targets.pop();
            }
        }
        self.ends.set(at as usize, MinTree::NEVER);
        self.enqueue(at);
    }

    /// Plays everything up to and at `to`. What happens at `to` is not solved yet, so that further
    /// changes at that instant share one solve.
    fn play(&mut self, to: u64) {
        while self.now < to {
            self.resolve();
            let end = self.ends.min();
            let start = self.later.peek().map_or(MinTree::NEVER, |later| later.at);
            let next = end.min(start);
            if next > to {
                break;
            }
            self.now = next;
            if end == next {
                while self.ends.min() == next && next != MinTree::NEVER {
                    self.complete(self.ends.argmin() as u32);
                }
            }
            while let Some(&later) = self.later.peek()
                && later.at <= next
            {
                self.later.pop();
                // A flow that was cancelled waits no more, and a path that was there stays.
                if let Some(spec) = self.waiting.remove(&later.seq)
                    && let Some(path) = self.topology.path(spec.src, spec.dst, spec.label)
                {
                    self.join(later.slot, &spec, &path);
                }
            }
        }
        self.now = self.now.max(to);
    }
}

impl Network for Fluid {
    fn start(&mut self, now: u64, flow: &FlowSpec) -> Result<FlowId, NetError> {
        let path = self.check(flow)?;
        self.play(now);
        let id = self.insert(flow);
        self.join(id.slot, flow, &path);
        Ok(id)
    }

    fn start_at(&mut self, now: u64, at: u64, flow: &FlowSpec) -> Result<FlowId, NetError> {
        let path = self.check(flow)?;
        self.play(now);
        let id = self.insert(flow);
        if at <= self.now {
            self.join(id.slot, flow, &path);
        } else {
            self.waiting.insert(id.seq, *flow);
            self.later.push(Later { at, seq: id.seq, slot: id.slot });
        }
        Ok(id)
    }

    fn next(&mut self) -> Option<u64> {
        if !self.ready.is_empty() {
            return Some(self.now);
        }
        self.resolve();
        while let Some(later) = self.later.peek()
            && !self.waiting.contains_key(&later.seq)
        {
            self.later.pop();
        }
        let start = self.later.peek().map_or(MinTree::NEVER, |later| later.at);
        let next = self.ends.min().min(start);
        (next != MinTree::NEVER).then_some(next)
    }

    fn advance(&mut self, to: u64, done: &mut Vec<Done>) {
        self.play(to);
        if self.ready.len() > 1 {
            self.ready.sort_unstable_by_key(|d| (d.at, d.flow.seq));
        }
        done.append(&mut self.ready);
    }

    fn cancel(&mut self, now: u64, flow: FlowId) -> Result<f64, NetError> {
        self.play(now);
        let state = self.find(flow)?;
        let bytes = state.bytes;
        let left = if state.class == WAITING {
            self.waiting.remove(&flow.seq);
            bytes
        } else {
            self.leave(flow.slot)
        };
        self.free_flow(flow.slot);
        Ok((bytes - left).max(0.0))
    }

    fn served(&mut self, now: u64, flow: FlowId) -> Result<f64, NetError> {
        self.play(now);
        let state = self.find(flow)?;
        if state.class == WAITING {
            return Ok(0.0);
        }
        let left = state.target - self.classes[state.class as usize].service_at(self.now);
        Ok((state.bytes - left.max(0.0)).max(0.0))
    }

    fn rate(&mut self, now: u64, flow: FlowId) -> Result<f64, NetError> {
        self.play(now);
        self.resolve();
        let state = self.find(flow)?;
        let class = self.classes.get(state.class as usize);
        Ok(class.map_or(0.0, |class| class.rate * PS))
    }

    fn reshape(&mut self, now: u64, flow: FlowId, weight: f64, cap: f64) -> Result<(), NetError> {
        check_shape(weight, cap)?;
        self.play(now);
        let at = self.find(flow)?.class;
        if at == WAITING {
            if let Some(spec) = self.waiting.get_mut(&flow.seq) {
                spec.weight = weight;
                spec.cap = cap;
            }
            return Ok(());
        }
        let old = self.classes[at as usize].key;
        let key = ClassKey { weight: weight.to_bits(), cap: cap.to_bits(), ..old };
        if key != old {
            let links: Vec<LinkId> = self.sharing.path(at).collect();
            let left = self.leave(flow.slot);
            self.join_class(flow.slot, key, &links, left);
        }
        Ok(())
    }

    fn set_capacity(&mut self, now: u64, link: LinkId, capacity: f64) -> Result<(), NetError> {
        let links = self.topology.links().len();
        if link.0 as usize >= links {
            return Err(NetError::NoLink { link: link.0, links: links as u32 });
        }
        if !(0.0..=MAX_CAPACITY).contains(&capacity) {
            return Err(NetError::Capacity(capacity));
        }
        self.play(now);
        self.sharing.set_capacity(link, capacity / PS);
        self.relinked = true;
        Ok(())
    }

    fn topology(&self) -> &Topology {
        &self.topology
    }
}

fn check_shape(weight: f64, cap: f64) -> Result<(), NetError> {
    if !(weight > 0.0 && weight.is_finite()) {
        return Err(NetError::Weight(weight));
    }
    if cap >= 0.0 { Ok(()) } else { Err(NetError::Cap(cap)) }
}

/// The least whole number not below `x`, 0 for what is not above 0, saturating.
fn whole(x: f64) -> u64 {
    let down = x as u64;
    if (down as f64) < x { down.saturating_add(1) } else { down }
}
