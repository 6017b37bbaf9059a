//! A run with a watcher: every law is looked at after every event, and everything must come to rest in bounded time.

use engine::id::NodeId;
use engine::node::Request;
use engine::time::{Span, Time};
use sim::watch::{Broken, Coverage, Law, Watched, Watcher};
use sim::world::World;

use super::collect::Collector;
use super::nodes::span;
use super::{SETTLE, STRIDE};
use crate::spec::{Direction, Spec};

/// How closely a run is looked at, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Lookout {
    /// Hold it to the laws of runs without faults as well.
    pub fault_free: bool,
    /// Events after an arrival without another one, after which a run counts as going round in circles.
    pub most_events: u64,
    /// End at the first broken law that shows before everything has come to rest.
    pub first: bool,
}

impl Default for Lookout {
    fn default() -> Self {
        Self { fault_free: false, most_events: 20_000_000, first: false }
    }
}

/// What a watcher found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Broken laws, in the order in which they were seen.
    pub broken: Vec<Broken>,
    /// What the run has been through.
    pub coverage: Coverage,
    /// Events since nodes have joined.
    pub events: u64,
}

impl Findings {
    /// All nodes were told to leave; some are slow, and one that registers its memory hears of it afterwards.
    pub(super) fn has_left(&mut self, world: &mut World) {
        let until = world.busy_until() + SETTLE * 2;
        let mut goes_on = true;
        while goes_on && !Watcher::after_leaving(world).is_empty() {
            // Not after each event: it looks at all nodes.
            for _ in 0..64 {
                goes_on = world.next_time().is_some_and(|at| at <= until) && world.step();
                if !goes_on {
                    break;
                }
            }
        }
        self.broken.extend(Watcher::after_leaving(world));
    }
}

/// Events at one instant, after which time counts as standing still.
const MOST_AT_ONCE: u64 = 1_000_000;

/// Longer than anything is waited for. The router waits for instances, then for a request, and gives up; sent back, it begins anew.
pub(super) fn longest_wait(spec: &Spec) -> Span {
    let t = &spec.transfer;
    span(t.room_timeout) * 20 + span(t.lease) * 8 + span(t.drain_timeout) * 4 + SETTLE * 2
}

/// A watcher at work.
pub(super) struct Look {
    watcher: Watcher,
    lookout: Lookout,
    /// From the last arrival until everything must be final and at rest.
    bound: Span,
    /// Whatever comes late has come by then, once everything was at rest.
    linger: Span,
    last_arrival: Time,
    events_then: u64,
    /// The present instant, and the events before it.
    instant: (Time, u64),
    /// Events of the warm-up.
    before: u64,
    stuck: Option<Broken>,
}

impl Look {
    pub(super) fn new(
        spec: &Spec,
        world: &mut World,
        instances: &(Vec<NodeId>, Vec<NodeId>),
        zero: Time,
        lookout: Lookout,
    ) -> Self {
        let what = Watched {
            prefill: instances.0.clone(),
            decode: instances.1.clone(),
            replica: spec.policy.replica.engine(),
            direction: match spec.policy.direction {
                Direction::Push => engine::policy::Direction::Push,
                Direction::Pull => engine::policy::Direction::Pull,
            },
            prefix_cache: spec.batch.prefix_cache,
        };
        Self {
            watcher: Watcher::new(world, what),
            lookout,
            bound: longest_wait(spec),
            linger: span(spec.transfer.drain_timeout).max(span(spec.transfer.retransmit) * 4),
            last_arrival: zero,
            events_then: world.events(),
            instant: (zero, world.events()),
            before: world.events(),
            stuck: None,
        }
    }

    pub(super) fn arrives(&mut self, request: &Request) {
        self.watcher.arrives(request);
        self.events_then = 0;
    }

    /// Looks at what the last event did. When the last request that it ended did so.
    pub(super) fn after(&mut self, world: &mut World, run: &mut Collector) -> Option<Time> {
        if self.events_then == 0 {
            (self.last_arrival, self.events_then) = (world.now(), world.events());
        }
        if world.now() > self.instant.0 {
            self.instant = (world.now(), world.events());
        }
        let records = self.watcher.look(world);
        if records.is_empty() { None } else { run.take(records.iter().copied()) }
    }

    /// Works off what comes before `at`, as [`World::run_before`] does.
    pub(super) fn run_before(&mut self, world: &mut World, at: Time, run: &mut Collector) -> Option<Time> {
        let (last, mut end) = (world.events() + STRIDE, None);
        while world.events() < last && world.next_time().is_some_and(|next| next < at) {
            world.step();
            end = self.after(world, run).or(end);
            if self.is_over(world, false) {
                break;
            }
        }
        end
    }

    /// Whether there is no use in going on.
    pub(super) fn is_over(&mut self, world: &World, all_arrived: bool) -> bool {
        if self.lookout.first && !self.watcher.broken().is_empty() || self.stuck.is_some() {
            return true;
        }
        let events = world.events() - self.events_then;
        let since = self.last_arrival.max(world.faults_until());
        if world.events() - self.instant.1 > MOST_AT_ONCE
            || events > self.lookout.most_events
            || all_arrived && world.now() > since + self.bound
        {
            self.stuck = Some(Broken::new(
                Law::Bounded,
                format!(
                    "not at rest {} s and {events} events after the last arrival: {} requests are not final",
                    world.now().since(self.last_arrival).0 as f64 / 1e12,
                    self.watcher.open()
                ),
            ));
        }
        self.stuck.is_some()
    }

    /// Waits for what comes late, and says what is broken.
    pub(super) fn settle(mut self, world: &mut World, run: &mut Collector) -> Findings {
        // Nothing is meant to happen after that: faults are over.
        let late = world.now() + self.linger;
        let end = |world: &World| late.max(world.faults_until());
        while self.stuck.is_none() && world.next_time().is_some_and(|at| at <= end(world)) {
            world.step();
            self.after(world, run);
            if self.is_over(world, true) {
                break;
            }
        }
        // What was late may have begun something.
        let mut n = 0u32;
        while self.stuck.is_none() && !(n.is_multiple_of(16) && self.watcher.is_quiet(world)) {
            n += 1;
            if !world.step() {
                break;
            }
            self.after(world, run);
            if self.is_over(world, true) {
                break;
            }
        }
        let mut broken: Vec<Broken> = self.stuck.into_iter().collect();
        let cut_short = self.lookout.first && !self.watcher.broken().is_empty();
        if broken.is_empty() && !cut_short {
            broken = self.watcher.at_rest(world);
            if self.lookout.fault_free {
                broken.extend(self.watcher.fault_free(world));
            }
        } else {
            broken.extend(self.watcher.broken().iter().cloned());
        }
        let events = world.events() - self.before;
        Findings { broken, coverage: self.watcher.coverage().clone(), events }
    }
}
