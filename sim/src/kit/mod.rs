//! The test kit: a small cluster, told as a story.
//!
//! ```
//! use sim::kit::Kit;
//!
//! let mut t = Kit::pair().prefill(|i| i.tp(2).page(16)).decode(|i| i.tp(4).page(64)).bytes().build();
//! let a = t.request(300, 20);
//! t.run();
//! t.assert_finished(a);
//! t.assert_clean();
//! ```
//!
//! A [`Build`] names what differs from a small fault-free world of one prefill and one decode instance. The [`Kit`] runs the production
//! nodes in the simulated [`World`], watches every event, and knows the laws that hold in every run ([`Kit::violations`]). Faults come when
//! the story says so: queue pairs fail, links go down, processes stop, messages are held or dropped by kind ([`Kit::hold`]).
//! Everything follows from the scenario and its seed.

mod build;
mod laws;
mod tap;

pub use crate::watch::Ending;
pub use build::{Build, FixedCompute, Side};
pub use laws::Counted;
pub use tap::{Said, TapId};

use crate::watch::{Watched, Watcher};
use crate::world::{AnyNode, Fault, Stamped, Verdict, World};
use engine::id::{NodeId, PortId, RequestId};
use engine::node::{Held, Node as _, Request, Step};
use engine::registry::{REGISTRY, RoomKey};
use engine::time::{Span, Time};
use tap::Tap;

/// The router's node.
pub const ROUTER: NodeId = NodeId(1);
/// Virtual time in which nodes register.
const WARM_UP: Span = Span::ms(20);
/// Virtual time after which a request that is not final counts as hanging.
const BOUND: Span = Span::s(200);
/// Events after which a run counts as going round in circles.
const MOST_EVENTS: u64 = 2_000_000;

/// A running scenario.
pub struct Kit {
    build: Build,
    world: World,
    prefill: Vec<NodeId>,
    decode: Vec<NodeId>,
    tap: Tap,
    watcher: Watcher,
}

impl Kit {
    /// One prefill and one decode instance.
    #[must_use]
    pub fn pair() -> Build {
        Build::new()
    }

    /// So many prefill and decode instances.
    #[must_use]
    pub fn cluster(prefill: u32, decode: u32) -> Build {
        Build::new().prefill(|side| side.instances(prefill)).decode(|side| side.instances(decode))
    }

    fn start(build: Build, mut world: World, prefill: Vec<NodeId>, decode: Vec<NodeId>) -> Self {
        let tap = Tap::default();
        world.set_censor(Some(tap.censor()));
        world.start();
        world.run_until(Time(WARM_UP.0));
        for node in prefill.iter().chain(&decode) {
            let error = match world.node(*node) {
                AnyNode::Prefill(node) => node.error(),
                AnyNode::Decode(node) => node.error(),
                AnyNode::Registry(_) | AnyNode::Router(_) | AnyNode::Dead(_) => None,
            };
            assert!(error.is_none(), "node {} cannot start: {error:?}", node.0);
        }
        let watched = Watched {
            prefill: prefill.clone(),
            decode: decode.clone(),
            direction: build.direction(),
            replica: build.replica(),
            prefix_cache: build.prefill.config.prefix_cache,
        };
        let watcher = Watcher::new(&mut world, watched);
        Self { build, world, prefill, decode, tap, watcher }
    }

    // ---- the story ----

    /// A request arrives now.
    pub fn request(&mut self, prompt: u32, output: u32) -> RequestId {
        self.request_with(Request { prompt, output, ..Request::default() })
    }

    /// A request with prefix blocks or a tenant arrives now; its id is given here.
    pub fn request_with(&mut self, request: Request) -> RequestId {
        let id = RequestId(self.watcher.lives().len() as u64);
        let request = Request { id, ..request };
        self.watcher.arrives(&request);
        self.world.arrive(self.world.now(), ROUTER, request);
        self.look();
        id
    }

    /// One event. False if there is none.
    pub fn step(&mut self) -> bool {
        let more = self.world.step();
        self.look();
        more
    }

    /// Runs for a while.
    pub fn run_for(&mut self, span: Span) {
        let until = self.world.now() + span;
        while self.world.next_time().is_some_and(|at| at <= until) {
            self.step();
        }
        self.world.run_until(until);
    }

    /// Runs until `when` holds, asked after every event. False if it never did within the bound.
    pub fn run_until(&mut self, when: impl Fn(&Self) -> bool) -> bool {
        let (until, most) = (self.world.now() + BOUND, self.world.events() + MOST_EVENTS);
        loop {
            if when(self) {
                return true;
            }
            let over = self.world.next_time().is_none_or(|at| at > until) || self.world.events() > most;
            if over || !self.step() {
                return false;
            }
        }
    }

    /// Runs until every request is final and nothing is held for any, and a little longer for what comes late. False if that did not
    /// happen within the bound.
    pub fn run(&mut self) -> bool {
        let (until, most) = (self.world.now() + BOUND, self.world.events() + MOST_EVENTS);
        let mut n = 0u32;
        loop {
            n += 1;
            if self.watcher.open() == 0 && n.is_multiple_of(16) && self.is_quiet() {
                self.run_for(Span::ms(300));
                if self.is_quiet() {
                    return true;
                }
            }
            let over = self.world.next_time().is_none_or(|at| at > until) || self.world.events() > most;
            if over || !self.step() {
                return false;
            }
        }
    }

    /// A queue pair of a node fails by itself, now: the `index`-th, modulo their number.
    pub fn fail_qp(&mut self, node: NodeId, index: usize) {
        self.fault(Fault::QueuePairError { host: node.index(), index });
    }
    /// A port of a node loses its link now.
    pub fn link_down(&mut self, node: NodeId, port: u32) {
        self.fault(Fault::LinkDown { host: node.index(), port: PortId(port) });
    }
    /// It has it back.
    pub fn link_up(&mut self, node: NodeId, port: u32) {
        self.fault(Fault::LinkUp { host: node.index(), port: PortId(port) });
    }
    /// A node's process stops; its NIC goes on.
    pub fn pause(&mut self, node: NodeId) {
        self.fault(Fault::Pause { node });
    }
    /// A stopped process goes on.
    pub fn resume(&mut self, node: NodeId) {
        self.fault(Fault::Resume { node });
    }
    /// A node winds down in good order, now.
    pub fn leave(&mut self, node: NodeId) {
        self.world.leave(node);
        self.look();
    }
    /// A node's process dies, and does not come back before [`Kit::restart`].
    pub fn crash(&mut self, node: NodeId) {
        self.fault(Fault::Crash { node });
    }
    /// A node comes back, knowing nothing. It dies before that if it lives.
    pub fn restart(&mut self, node: NodeId) {
        if !matches!(self.world.node(node), AnyNode::Dead(_)) {
            self.fault(Fault::Crash { node });
        }
        self.over(Fault::Crash { node });
    }
    /// The registry dies and comes back, knowing nothing.
    pub fn restart_registry(&mut self) {
        self.restart(REGISTRY);
    }
    /// A fault begins now.
    pub fn fault(&mut self, fault: Fault) {
        self.world.fault(self.world.now(), fault);
        self.run_for(Span(0));
    }
    /// A fault that lasts is over now.
    pub fn over(&mut self, fault: Fault) {
        self.world.fault_over(self.world.now(), fault);
        self.run_for(Span(0));
    }
    /// A fault begins now and is over after a while.
    pub fn fault_for(&mut self, fault: Fault, span: Span) {
        self.world.fault_for(self.world.now(), fault, span);
        self.run_for(Span(0));
    }
    /// A fault after some time.
    pub fn fault_in(&mut self, after: Span, fault: Fault) {
        self.world.fault(self.world.now() + after, fault);
    }

    /// Holds every frame with such a message back, until [`Kit::let_go`]. Sessions are in order: what the same node says to the same
    /// peer later waits behind it.
    pub fn hold(&mut self, pick: impl Fn(&Said<'_>) -> bool + 'static) -> TapId {
        self.tap.add(Verdict::Hold, pick)
    }
    /// Loses every frame with such a message, repetitions too, until [`Kit::let_go`].
    pub fn lose(&mut self, pick: impl Fn(&Said<'_>) -> bool + 'static) -> TapId {
        self.tap.add(Verdict::Drop, pick)
    }
    /// Ends a hold or a loss. What was held arrives a latency from now.
    pub fn let_go(&mut self, id: TapId) {
        self.tap.remove(id, &mut self.world);
    }

    // ---- what can be asked ----

    /// The n-th prefill instance's node.
    #[must_use]
    pub fn prefill(&self, n: usize) -> NodeId {
        self.prefill[n]
    }
    /// The n-th decode instance's node.
    #[must_use]
    pub fn decode(&self, n: usize) -> NodeId {
        self.decode[n]
    }
    /// How many prefill instances there are.
    #[must_use]
    pub fn prefills(&self) -> usize {
        self.prefill.len()
    }
    /// Steps of a request so far, with time and node.
    pub fn steps(&self, request: RequestId) -> impl Iterator<Item = &Stamped> {
        self.watcher.life(request).into_iter().flat_map(|life| life.steps())
    }
    /// Whether a request had such a step.
    #[must_use]
    pub fn saw(&self, request: RequestId, step: impl Fn(&Step) -> bool) -> bool {
        self.steps(request).any(|stamped| step(&stamped.record.step))
    }
    /// Whether decode has all of a request.
    #[must_use]
    pub fn succeeded(&self, request: RequestId) -> bool {
        self.saw(request, |step| *step == Step::Success)
    }
    /// Whether prefill says that it delivered all of a request.
    #[must_use]
    pub fn delivered(&self, request: RequestId) -> bool {
        self.saw(request, |step| matches!(step, Step::Delivered { .. }))
    }
    /// How a request ended.
    #[must_use]
    pub fn ending(&self, request: RequestId) -> Option<Ending> {
        self.watcher.life(request).and_then(|life| life.ending())
    }
    /// Checks that found wrong content.
    #[must_use]
    pub fn corrupt(&self) -> usize {
        self.watcher.corrupt()
    }
    /// The request's room, once the router made one.
    #[must_use]
    pub fn room(&self, request: RequestId) -> Option<RoomKey> {
        self.tap.room(request)
    }
    /// What a node holds.
    #[must_use]
    pub fn held(&self, node: NodeId) -> Held {
        self.world.node(node).held()
    }
    /// What was seen of every request.
    #[must_use]
    pub fn watcher(&self) -> &Watcher {
        &self.watcher
    }
    /// The world, for what the kit has no word for; what happens behind the kit's back is not watched.
    pub fn world_mut(&mut self) -> &mut World {
        &mut self.world
    }
    /// The world.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }
    /// The present.
    #[must_use]
    pub fn now(&self) -> Time {
        self.world.now()
    }
    /// The digest so far.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.world.digest()
    }

    /// Takes in what the last event did.
    fn look(&mut self) {
        self.watcher.look(&mut self.world);
    }

    /// Whether no node holds anything for a request, and nothing moves.
    fn is_quiet(&self) -> bool {
        self.watcher.is_quiet(&self.world)
    }
}
