//! From an experiment to its nodes, and to a simulation of them.
//!
//! A run has three phases. Nodes register their memory and join in a warm-up, which no report shows and whose end is time 0 of every
//! other one: large pools take many seconds. Then requests arrive, and everything runs until each is final and nothing is held any more,
//! or for `SETTLE` after the last one ended. Then all nodes leave, after which the fabric must be empty.

mod cluster;
pub(crate) mod collect;
pub mod faults;
pub(crate) mod nodes;
mod routing;
mod watched;

use std::io::BufRead;
use std::path::PathBuf;

use engine::id::{NodeId, RequestId};
use engine::node::{Held, Node as _};
use engine::registry::Role;
use engine::time::{Span, Time};
use sim::world::{AnyNode, World};
use watched::Look;
pub use watched::{Findings, Lookout};

use crate::compute::Profile;
use crate::report::{Counters, Effects, RunResult};
use crate::spec::{Invariants, Spec};
use crate::workload::{self, WorkloadError};
use collect::Collector;

/// What a running simulation tells about itself, and hears.
pub trait Progress: Sync {
    /// Called now and then, for instance every few thousand events: requests that have ended, the part of the
    /// workload that was taken (0 to 1, as [`crate::workload::Workload::fraction`] says), virtual time.
    /// Returns false when the run is to stop, with [`RunError::Interrupted`].
    fn update(&self, ended: u64, fraction: f64, sim_ps: u64) -> bool;
}

/// No reports, never stopped.
pub struct Silent;

impl Progress for Silent {
    fn update(&self, _ended: u64, _fraction: f64, _sim_ps: u64) -> bool {
        true
    }
}

/// Why a run ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The workload could not be read on.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// The experiment cannot be built.
    #[error("{0}")]
    Input(String),
    /// What the run needs from this machine is not there.
    #[error("{0}")]
    Environment(String),
    /// The output cannot be written.
    #[error("{}: cannot write: {source}; choose another place with --out", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
}

/// The warm-up ends when all instances were there at two looks, this far apart.
const LOOK: Span = Span::ms(500);
/// The warm-up ends after this, whoever is there: a control channel that loses everything lets nobody join.
const LONGEST_WARM_UP: Span = Span::s(600);
/// Virtual time that rooms have to drain after the last request ended, beyond the drain timeout.
pub(crate) const SETTLE: Span = Span::s(30);
/// Events between two looks at progress and quiescence.
const STRIDE: u64 = 4096;

/// Runs one seed of an experiment.
pub fn simulate(spec: &Spec, seed: u64, progress: &dyn Progress) -> Result<RunResult, RunError> {
    let lookout = match spec.invariants {
        Invariants::None => None,
        Invariants::Always => Some(Lookout::default()),
        Invariants::FaultFree => Some(Lookout { fault_free: true, ..Lookout::default() }),
    };
    let (mut result, findings) = run(spec, seed, progress, lookout)?;
    if let Some(findings) = findings {
        // What the watcher says is what the records say, and more.
        result.violations = findings.broken.iter().map(ToString::to_string).collect();
    }
    Ok(result)
}

/// The same with every law looked at after every event, and what the run has been through.
pub fn simulate_watched(
    spec: &Spec,
    seed: u64,
    progress: &dyn Progress,
    lookout: Lookout,
) -> Result<(RunResult, Findings), RunError> {
    let (result, findings) = run(spec, seed, progress, Some(lookout))?;
    Ok((result, findings.unwrap_or_default()))
}

#[expect(
    clippy::disallowed_types,
    reason = "the time that the run itself takes is reported, and nothing depends on it"
)]
fn run(
    spec: &Spec,
    seed: u64,
    progress: &dyn Progress,
    lookout: Option<Lookout>,
) -> Result<(RunResult, Option<Findings>), RunError> {
    let started = std::time::Instant::now();
    let mut requests = workload::open(&spec.workload, seed)?;
    let cluster::Cluster { mut world, router, instances } = cluster::build(spec, seed)?;
    world.start();
    let look = LOOK.min(Span(spec.transfer.lease.0));
    let zero = warm_up(&mut world, instances.0.len() + instances.1.len(), look)?;
    faults::schedule(spec, seed, &mut world, zero);
    let mut look = lookout.map(|lookout| Look::new(spec, &mut world, &instances, zero, lookout));
    let mut run = Collector::new(instances, zero);

    let mut next = take(&mut *requests, zero)?;
    if let (None, Some(path)) = (&next, &spec.workload.path) {
        return Err(RunError::Input(no_requests(path)));
    }
    let mut looked = 0;
    let mut last_end = zero;
    // A request that failed while a step computed it keeps its pages until the step ends.
    let patience = Span(spec.transfer.drain_timeout.0) + SETTLE + longest_step(spec)?;
    let bound = watched::longest_wait(spec);
    let mut last_news = zero;
    loop {
        match &next {
            Some((at, _)) if world.next_time().is_some_and(|event| event < *at) => match &mut look {
                None => world.run_before(*at, STRIDE),
                Some(look) => last_end = look.run_before(&mut world, *at, &mut run).unwrap_or(last_end),
            },
            Some(_) => {
                if let Some((at, request)) = next.take() {
                    run.arrived(at, &request);
                    if let Some(look) = &mut look {
                        look.arrives(&request);
                    }
                    world.arrive(at, router, request);
                    next = take(&mut *requests, zero)?;
                }
            }
            None => {
                if !world.step() {
                    break;
                }
            }
        }
        if let Some(look) = &mut look {
            last_end = look.after(&mut world, &mut run).unwrap_or(last_end);
            if look.is_over(&world, next.is_none()) {
                break;
            }
        } else if world.has_records() {
            last_news = world.now();
            last_end = run.take(world.records()).unwrap_or(last_end);
        }
        if world.events() - looked >= STRIDE
            || (next.is_none() && run.all_final() && world.events() - looked >= 64)
        {
            looked = world.events();
            let sim = world.now().since(zero).0;
            if !progress.update(run.ended(), requests.fraction(), sim) {
                return Err(RunError::Interrupted);
            }
            // Whatever a request waits for would have ended by now: it never will.
            if look.is_none()
                && next.is_none()
                && !run.all_final()
                && world.now() > last_news.max(world.faults_until()) + bound
            {
                break;
            }
            if next.is_none()
                && run.all_final()
                && (nodes::quiet(&held(&world)) || world.now().since(last_end) > patience)
            {
                break;
            }
        }
    }

    let mut violations = Vec::new();
    let held = held(&world);
    let leaks = nodes::leaks(&held, objects(&world).0, objects(&world).1);
    let digest = world.digest();
    let counters = Counters {
        bytes_moved: world.fabrics().counters().bytes,
        work_requests: world.fabrics().counters().work_requests,
        registry_messages: world.counters().registry_messages,
        staged_parts: world.counters().staged_parts,
        copied_bytes: world.counters().copied_bytes,
        checksum_mismatches: world.counters().checksum_mismatches,
        rnr_naks: world.fabrics().counters().rnr_naks,
        extrapolated: world.counters().extrapolated,
        events: world.events(),
    };
    let sim_ps = last_end.since(zero).0;
    let mut findings = look.map(|look| look.settle(&mut world, &mut run));

    world.shut_down();
    let until = world.now() + Span(spec.transfer.lease.0) * 4;
    while world.next_time().is_some_and(|at| at <= until) {
        world.step();
    }
    let (regions, queue_pairs, buffers) = objects(&world);
    violations.extend(nodes::left(regions, queue_pairs, buffers));
    run.finish(&mut violations);
    if let Some(findings) = &mut findings {
        findings.has_left(&mut world);
    }
    let result = RunResult {
        seed,
        digest,
        requests: run.into_requests(),
        counters,
        struck: *world.struck(),
        effects: Effects::of(&world),
        leaks,
        sim_ps,
        wall_seconds: started.elapsed().as_secs_f64(),
        violations,
    };
    Ok((result, findings))
}

/// What is wrong with a trace that holds no request.
pub(crate) fn no_requests(path: &std::path::Path) -> String {
    format!(
        "{}: the trace has no requests (after workload.skip and workload.limit); expected at least one",
        path.display()
    )
}

/// The longest that a prefill step can take.
pub(crate) fn longest_step(spec: &Spec) -> Result<Span, RunError> {
    let context = spec.model().map_err(RunError::Input)?.context_len;
    let profile = Profile::load(&spec.compute.profile).map_err(|error| RunError::Input(error.to_string()))?;
    Ok(Span(profile.scaled(spec.compute.scale).prefill(spec.batch.prefill_tokens.min(context), context).0))
}

/// Runs until every instance has joined, and returns that time.
fn warm_up(world: &mut World, instances: usize, look: Span) -> Result<Time, RunError> {
    let joined = |world: &World| match world.node(NodeId(0)) {
        AnyNode::Registry(registry) => {
            registry.instances().filter(|(_, role, _)| *role != Role::Router).count() >= instances
        }
        _ => false,
    };
    let mut seen = false;
    loop {
        world.run_until(world.now() + look);
        for node in 0..world.nodes() {
            if let Some(why) = nodes::start_error(world.node(NodeId(node as u32))) {
                return Err(RunError::Input(why));
            }
        }
        if seen || world.now().0 >= LONGEST_WARM_UP.0 {
            return Ok(world.now());
        }
        seen = joined(world);
    }
}

/// The next request of the workload, as the router sees it.
pub(crate) fn take(
    requests: &mut dyn workload::Workload,
    zero: Time,
) -> Result<Option<(Time, engine::node::Request)>, RunError> {
    let Some(request) = requests.next().transpose()? else { return Ok(None) };
    let at = zero + Span(request.arrival_ps);
    let request = engine::node::Request {
        id: RequestId(request.id),
        prompt: request.prompt,
        output: request.output,
        tenant: request.tenant,
        blocks: request.blocks,
    };
    Ok(Some((at, request)))
}

/// What all nodes hold together.
fn held(world: &World) -> Held {
    nodes::sum((0..world.nodes()).map(|node| world.node(NodeId(node as u32)).held()))
}

/// Memory regions, queue pairs and buffers that the fabric has.
fn objects(world: &World) -> (u64, u64, u64) {
    let mut sum = (0, 0, 0);
    for host in 0..world.fabrics().hosts() {
        let objects = world.fabrics().host_ref(host).objects();
        sum.0 += objects.memory_regions as u64;
        sum.1 += objects.queue_pairs as u64;
        sum.2 += objects.buffers as u64;
    }
    sum
}

/// Runs bare flows (`start_s src dst bytes` a line) on a star of `hosts` hosts, and gives each flow's duration
/// in seconds, in the order of the lines. The error says what is wrong with the input.
pub fn flows(reader: &mut dyn BufRead, hosts: u32, gbps: f64, latency_us: f64) -> Result<Vec<f64>, RunError> {
    sim::net::flows::run(reader, hosts, gbps, latency_us).map_err(|error| RunError::Input(error.to_string()))
}
