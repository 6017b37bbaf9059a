//! A watcher: looks at a [`World`] after every event, and knows the laws that hold in every run.
//!
//! It needs nothing from the nodes but what they say of themselves ([`engine::node::Held`], their rooms and pages, their records), so that scenarios,
//! experiments and random exploration are held to the same laws. [`Watcher::look`] costs little for an event that changed nothing: only
//! nodes that were called are looked at.

mod coverage;
mod law;
mod life;
mod rest;
mod rooms;
mod zones;

pub use coverage::{Coverage, State, Who};
pub use law::{Broken, Law};
pub use life::{Ending, Life};
pub use rest::least_bytes;

use crate::world::{AnyNode, Noted, Stamped, World};
use engine::id::{NodeId, RequestId};
use engine::map::Map;
use engine::node::{Node as _, Request};
use engine::policy::{Direction, ReplicaChoice};
use rooms::{Changed, Rooms};
use zones::Zones;

/// Which nodes there are, and how they work.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Nodes of prefill instances.
    pub prefill: Vec<NodeId>,
    /// Nodes of decode instances.
    pub decode: Vec<NodeId>,
    /// Who moves the bytes.
    pub direction: Direction,
    /// Which copy of replicated KV sends.
    pub replica: ReplicaChoice,
    /// Whether prefill keeps pages beyond their room.
    pub prefix_cache: bool,
}

/// Looks at a world, and at the requests in it.
pub struct Watcher {
    what: Watched,
    zones: Zones,
    /// By node.
    rooms: Vec<Rooms>,
    lives: Vec<Life>,
    index: Map<RequestId, usize>,
    open: usize,
    corrupt: usize,
    coverage: Coverage,
    broken: Vec<Broken>,
    /// By node: whether it had pages when it was last called.
    had_pages: Vec<bool>,
    /// By node: which of its lives is watched.
    life: Vec<u32>,
    noted: Noted,
    fresh: Vec<Stamped>,
    changed: Changed,
}

impl Watcher {
    /// For a world whose nodes have started and have served nobody.
    #[must_use]
    pub fn new(world: &mut World, what: Watched) -> Self {
        world.note();
        let mut zones = Zones::default();
        let shown = what.direction == Direction::Pull && !what.prefix_cache;
        for node in what.decode.iter().chain(what.prefill.iter().filter(|_| shown)) {
            zones.add(world, *node);
        }
        let nodes = world.nodes();
        Self {
            what,
            zones,
            rooms: vec![Rooms::default(); nodes],
            lives: Vec::new(),
            index: Map::default(),
            open: 0,
            corrupt: 0,
            coverage: Coverage::default(),
            broken: Vec::new(),
            had_pages: vec![false; nodes],
            life: (0..nodes).map(|node| world.life(NodeId(node as u32))).collect(),
            noted: Noted::default(),
            fresh: Vec::new(),
            changed: Changed::default(),
        }
    }

    /// A request is about to reach the router.
    pub fn arrives(&mut self, request: &Request) {
        self.index.insert(request.id, self.lives.len());
        self.lives.push(Life::new(request.clone()));
        self.open += 1;
        self.coverage.moved(Who::Router, State::Nowhere, State::Queued);
    }

    /// After every event: what it did. Returns the records that it made.
    pub fn look(&mut self, world: &mut World) -> &[Stamped] {
        let mut noted = world.noted(std::mem::take(&mut self.noted));
        for fault in &noted.faults {
            self.met(fault);
        }
        self.fresh.clear();
        self.fresh.extend(world.records());
        for stamped in &self.fresh {
            let Some(life) = self.index.get(&stamped.record.request).and_then(|i| self.lives.get_mut(*i))
            else {
                continue;
            };
            let was_open = life.ends() == 0;
            self.corrupt += usize::from(life.take(*stamped, &mut self.coverage));
            self.open -= usize::from(was_open && life.ends() > 0);
        }
        // A node that is called, and called again by what that made ready, is looked at once.
        noted.called.sort_unstable();
        noted.called.dedup();
        for node in &noted.called {
            self.called(world, *node);
        }
        self.noted = noted;
        &self.fresh
    }

    /// A process that died, or was started anew: of what there was before nothing is left.
    fn meet_life(&mut self, world: &mut World, node: NodeId) {
        let (life, dead) = (world.life(node), matches!(world.node(node), AnyNode::Dead(_)));
        if self.life[node.index()] == life && !dead {
            return;
        }
        self.life[node.index()] = life;
        self.rooms[node.index()] = Rooms::default();
        self.had_pages[node.index()] = false;
        self.zones.forget(node);
        let shown = self.what.direction == Direction::Pull && !self.what.prefix_cache;
        match world.node(node) {
            AnyNode::Decode(_) => self.zones.add(world, node),
            AnyNode::Prefill(_) if shown => self.zones.add(world, node),
            _ => {}
        }
    }

    fn called(&mut self, world: &mut World, node: NodeId) {
        self.meet_life(world, node);
        let (who, initiator) = match (world.node(node), self.what.direction) {
            (AnyNode::Prefill(_), way) => (Who::Prefill(way), way == Direction::Push),
            (AnyNode::Decode(_), way) => (Who::Decode(way), way == Direction::Pull),
            (AnyNode::Registry(_) | AnyNode::Router(_) | AnyNode::Dead(_), _) => return,
        };
        let (coverage, changed) = (&mut self.coverage, &mut self.changed);
        self.rooms[node.index()].look(world, node, who, coverage, changed, &mut self.broken);
        self.zones.after(world, node, &self.changed, &mut self.broken);
        if initiator {
            let held = world.node(node).held();
            let has = held.pages > 0;
            if std::mem::replace(&mut self.had_pages[node.index()], has)
                && !has
                && held.pool_memory_regions > 0
            {
                let sends = world.fabrics().host_ref(node.index()).objects().sends;
                if sends > 0 {
                    self.broken.push(Broken::new(
                        Law::InitiatorWaits,
                        format!(
                            "node {} gave all pages back while {sends} work requests that name them were outstanding, at {:?}",
                            node.0,
                            world.now()
                        ),
                    ));
                }
            }
        }
    }

    /// Counts the states that a fault meets.
    fn met(&mut self, fault: &crate::world::Fault) {
        // Registry and router have no rooms: what strikes them strikes all.
        let struck =
            coverage::struck(fault).filter(|node| self.what.prefill.first().is_some_and(|p| node >= p));
        for (index, rooms) in self.rooms.iter().enumerate() {
            let node = NodeId(index as u32);
            if struck.is_some_and(|struck| struck != node) {
                continue;
            }
            let who = if self.what.prefill.contains(&node) {
                Who::Prefill(self.what.direction)
            } else {
                Who::Decode(self.what.direction)
            };
            for state in rooms.states() {
                self.coverage.met(fault, who, State::Room(state));
            }
        }
        for state in self.lives.iter().filter_map(Life::at_router) {
            self.coverage.met(fault, Who::Router, state);
        }
    }

    /// Requests that have no final state.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open
    }
    /// Checks that found wrong content.
    #[must_use]
    pub fn corrupt(&self) -> usize {
        self.corrupt
    }
    /// What was seen of a request.
    #[must_use]
    pub fn life(&self, request: RequestId) -> Option<&Life> {
        self.index.get(&request).and_then(|index| self.lives.get(*index))
    }
    /// What was seen of all requests, in the order in which they came.
    #[must_use]
    pub fn lives(&self) -> &[Life] {
        &self.lives
    }
    /// What the run has been through.
    #[must_use]
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }
    /// Laws that were seen broken so far; others only show at rest.
    #[must_use]
    pub fn broken(&self) -> &[Broken] {
        &self.broken
    }
}
