//! One node of an experiment in this process.

use engine::driver::{
    self, Context, Driver, DriverConfig, DriverError, Identity, Link, LinkConfig, LinkError,
};
use engine::fabric::{Absent, Device, Objects};
use engine::id::NodeId;
use engine::node::Node as _;
use engine::registry::Registry;
use engine::time::{Span, Time};
use models::Picos;
use sim::world::AnyNode;

use super::member::{Member, Order};
use super::message::Standing;
use super::open;
use crate::build::RunError;
use crate::build::nodes::{self, Nodes, Place, places};
use crate::spec::Spec;
use crate::workload::{self, Workload};

/// What to run, and how it finds the others.
pub(crate) struct Service<'a> {
    /// The experiment.
    pub(crate) spec: &'a Spec,
    /// Seed of its workload.
    pub(crate) seed: u64,
    /// Which of its nodes.
    pub(crate) place: Place,
    /// Where the registry is; for the registry itself, where to bind.
    pub(crate) registry: &'a str,
    /// Where the measuring process is, if there is one.
    pub(crate) collect: Option<&'a str>,
    /// Frames that wait at a socket for one peer.
    pub(crate) queue: u16,
    /// Told once, when the node runs: its own address.
    pub(crate) started: &'a dyn Fn(&str),
    /// Whether it is to wind down.
    pub(crate) stop: &'a dyn Fn() -> bool,
}

/// A node looks at `stop` at least this often.
const LOOK: Span = Span::ms(100);

impl From<LinkError> for RunError {
    fn from(error: LinkError) -> Self {
        RunError::Environment(error.to_string())
    }
}

impl From<DriverError> for RunError {
    fn from(error: DriverError) -> Self {
        RunError::Environment(error.to_string())
    }
}

/// Runs a node until it is told to stop and has wound down. What it counted, in words.
pub(crate) fn serve(service: &Service<'_>) -> Result<String, RunError> {
    let Service { spec, place, .. } = *service;
    let places = places(spec);
    let number = places.iter().position(|other| *other == place).ok_or_else(|| {
        let names: Vec<String> = places.iter().map(Place::to_string).collect();
        RunError::Input(format!("the experiment has no node {place}, expected one of {}", names.join(", ")))
    })?;
    let number = NodeId(u32::try_from(number).unwrap_or(u32::MAX));
    let life = driver::life();
    let context = Context::new();
    let mut member = match service.collect {
        Some(address) => {
            let experiment = fingerprint(spec);
            Some(Member::connect(&context, address, number, place, life, experiment)?)
        }
        None => None,
    };
    let node = match place {
        // It needs nothing of model and compute.
        Place::Registry => AnyNode::Registry(Registry::new(life, nodes::registry(spec))),
        _ => Nodes::new(spec, service.seed)?.node(place, life, spec.verbs.pools()),
    };
    let served = (|| {
        let link = link(service, &context, number)?;
        match place {
            Place::Registry | Place::Router => run(service, node, Absent, link, &mut member),
            #[cfg(feature = "verbs")]
            Place::Prefill(_) => {
                run(service, node, open::open(spec, &spec.verbs.prefill)?, link, &mut member)
            }
            #[cfg(feature = "verbs")]
            Place::Decode(_) => run(service, node, open::open(spec, &spec.verbs.decode)?, link, &mut member),
            #[cfg(not(feature = "verbs"))]
            Place::Prefill(_) | Place::Decode(_) => {
                open::available().map_err(RunError::Environment)?;
                run(service, node, Absent, link, &mut member)
            }
        }
    })();
    if let (Err(why), Some(member)) = (&served, &mut member) {
        member.failed(&why.to_string())?;
    }
    served
}

/// A number that differs between experiments.
pub(super) fn fingerprint(spec: &Spec) -> u64 {
    let text = spec.resolved().unwrap_or_default();
    // FNV-1a, 64 bits: only a mix-up is to be found.
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn link(service: &Service<'_>, context: &Context, number: NodeId) -> Result<Link, LinkError> {
    let config =
        LinkConfig { send_queue: service.queue, receive_queue: service.queue, ..LinkConfig::default() };
    if service.place == Place::Registry {
        return Link::bind(context, &config, service.registry);
    }
    let identity = Identity::new(number, &service.place.to_string())?;
    Link::connect(context, &config, service.registry, &identity)
}

/// Requests of the workload, at their times.
struct Feed {
    requests: Box<dyn Workload>,
    zero: Option<Time>,
    next: Option<(Time, engine::node::Request)>,
}

impl Feed {
    fn start(&mut self, zero: Time) -> Result<(), RunError> {
        if self.zero.is_none() {
            self.zero = Some(zero);
            self.next = crate::build::take(&mut *self.requests, zero)?;
        }
        Ok(())
    }
}

fn run<D: Device>(
    service: &Service<'_>,
    node: AnyNode,
    device: D,
    link: Link,
    member: &mut Option<Member>,
) -> Result<String, RunError> {
    let spec = service.spec;
    let spin = match service.place {
        // Without a device there is nothing to poll; a thread that spins takes the processor from ZeroMQ's own.
        Place::Registry => Span(0),
        _ => spec.verbs.spin(),
    };
    let config = DriverConfig { spin, ..DriverConfig::default() };
    let mut driver = Driver::new(node, device, link, config)?;
    let mut feed = match service.place {
        Place::Router => {
            let requests = workload::open(&spec.workload, service.seed)?;
            Some(Feed { requests, zero: None, next: None })
        }
        _ => None,
    };
    driver.start()?;
    if let Some(why) = nodes::start_error(driver.node()) {
        return Err(RunError::Environment(format!("{}: {why}", service.place)));
    }
    (service.started)(&driver.link().address()?);
    let mut leave_by = None;
    loop {
        let now = driver::now();
        let ready = ready(spec, driver.node());
        let mut until = now + LOOK;
        let order = match member {
            Some(member) => {
                let order = member.tick(now, ready, || standing(&driver))?;
                until = until.min(member.deadline(now));
                order
            }
            None => {
                if let Some(feed) = feed.as_mut().filter(|_| ready) {
                    feed.start(now)?;
                }
                None
            }
        };
        if let (Some(Order::Start(zero)), Some(feed)) = (&order, &mut feed) {
            feed.start(*zero)?;
        }
        if leave_by.is_none() && (matches!(order, Some(Order::Stop)) || (service.stop)()) {
            feed = None;
            leave_by = Some(now + Span(spec.transfer.lease.max(LEAST_LEAVE).0) * 2);
            driver.shut_down()?;
        }
        if let Some(by) = leave_by
            && (wound_down(&driver) || by <= now)
        {
            break;
        }
        if let Some(Feed { requests, zero: Some(zero), next }) = &mut feed {
            while let Some((_, request)) = next.as_ref().filter(|(at, _)| *at <= driver::now()) {
                driver.arrive(request)?;
                *next = crate::build::take(&mut **requests, *zero)?;
            }
            until = next.as_ref().map_or(until, |(at, _)| until.min(*at));
        }
        let aside: &[&driver::Socket] = match member {
            Some(member) => &[member.socket()],
            None => &[],
        };
        driver.turn(aside, until)?;
        for (at, record) in driver.records() {
            if let Some(member) = member {
                member.record(at, &record);
            }
        }
    }
    if let Some(member) = member {
        member.bye(standing(&driver), failures(&driver))?;
    }
    Ok(counts(&driver))
}

/// The least that a node has to wind down: even with short leases pages have to drain.
const LEAST_LEAVE: Picos = Picos(2_000_000_000_000);

/// Whether the workload may begin, as far as this node knows.
fn ready(spec: &Spec, node: &AnyNode) -> bool {
    match node {
        AnyNode::Router(router) => {
            let (prefill, decode) = router.instances();
            prefill >= spec.cluster.prefill.instances as usize
                && decode >= spec.cluster.decode.instances as usize
        }
        _ => true,
    }
}

fn standing<D: Device>(driver: &Driver<AnyNode, D>) -> Standing {
    let node = driver.node();
    Standing::new(&node.held(), &node.counters(), &driver.device().objects())
}

/// Whether nothing is left, and nothing is waited for.
fn wound_down<D: Device>(driver: &Driver<AnyNode, D>) -> bool {
    let Objects { buffers, memory_regions, queue_pairs, .. } = driver.device().objects();
    let registry = matches!(driver.node(), AnyNode::Registry(_));
    buffers + memory_regions + queue_pairs == 0 && (registry || driver.node().deadline().is_none())
}

/// Completions that were no success, in words; none if there were none.
fn failures<D: Device>(driver: &Driver<AnyNode, D>) -> Option<String> {
    let stats = driver.stats();
    let last = stats.last_failure?;
    Some(format!(
        "{} work requests failed and {} were flushed, the last failure was {:?} (vendor code {:#x})",
        stats.failed, stats.flushed, last.status, last.vendor
    ))
}

fn counts<D: Device>(driver: &Driver<AnyNode, D>) -> String {
    let (own, link) = (driver.stats(), driver.link().stats());
    let failures = failures(driver).map(|text| format!("; {text}")).unwrap_or_default();
    format!(
        "{} frames and {} completions taken, {} frames sent, {} lost to full queues, {} for nodes that were not there, {} malformed, \
         {} refused{failures}",
        own.frames, own.completions, link.sent, link.full, link.unknown, link.malformed, link.refused
    )
}
