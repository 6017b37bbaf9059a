//! From the `faults:` of an experiment to faults at instants.

use engine::id::{NodeId, PortId};
use engine::time::{Span, Time};
use models::Picos;
use sim::fault::{ControlFault, Disturbance, Fault, Ppm};
use sim::world::{Trigger, World};

use super::nodes::span;
use crate::spec::Spec;
use crate::spec::faults::{Control, FaultSpec, NodeName, Site, What, sites};
use crate::workload::random::{Purpose, Random};

/// One fault at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strike {
    /// From the start of the run.
    pub at: Span,
    /// What.
    pub fault: Fault,
    /// How long it lasts; none for ever, or for what strikes at an instant only.
    pub lasts: Option<Span>,
    /// The entry that it is of.
    pub entry: usize,
}

/// Every strike of an experiment's run, in the order of its entries. What is drawn follows from `seed`. An entry that waits for a room is taken
/// to find one at its `at`.
#[must_use]
pub fn strikes(spec: &Spec, seed: u64) -> Vec<Strike> {
    let mut all = Vec::new();
    for (n, entry) in (0..).zip(&spec.faults) {
        let mut random = Random::nth(seed, Purpose::Faults, n);
        // A spec that was checked has one kind, at places that there are.
        if let Some((_, what)) = entry.kinds().first()
            && let Ok(sites) = sites(spec, entry, what)
        {
            let first = all.len();
            entry_strikes(spec, entry, what, sites, &mut random, &mut all);
            all[first..].iter_mut().for_each(|strike| strike.entry = n as usize);
        }
    }
    all
}

/// Strikes so long after `zero`, or when a room is in the state that they wait for.
pub(super) fn schedule(spec: &Spec, seed: u64, world: &mut World, zero: Time) {
    let all = strikes(spec, seed);
    for strike in &all {
        let at = zero + strike.at;
        if spec.faults[strike.entry].when.is_some() {
            continue;
        }
        match strike.lasts {
            Some(span) => world.fault_for(at, strike.fault, span),
            None => world.fault(at, strike.fault),
        }
    }
    for (n, entry) in spec.faults.iter().enumerate() {
        let Some(when) = entry.when else { continue };
        let from = span(entry.at);
        let after = |strike: &Strike| Span(strike.at.0 - from.0) + span(when.after);
        let own = all.iter().filter(|strike| strike.entry == n);
        world.fault_when(Trigger {
            from: zero + from,
            nodes: spec.nodes_named(when.node).unwrap_or_default().into_iter().map(NodeId).collect(),
            state: when.room.state(),
            strikes: own.map(|strike| (after(strike), strike.fault, strike.lasts)).collect(),
        });
    }
}

fn entry_strikes(
    spec: &Spec,
    entry: &FaultSpec,
    what: &What,
    mut sites: Vec<Site>,
    random: &mut Random,
    all: &mut Vec<Strike>,
) {
    let start = span(entry.at);
    if let Some(rate) = entry.random.and_then(|random| random.rate) {
        let (mut at, until) = (start, entry.until.map_or(start, span));
        while !sites.is_empty() {
            at = at + Span((random.exponential() / rate * 1e12) as u64);
            if at >= until {
                return;
            }
            let site = sites[random.below(sites.len() as u64) as usize];
            strike(spec, what, site, at, all);
        }
        return;
    }
    let share = entry.random.and_then(|random| random.share);
    if let Some(share) = share {
        let chosen = ((share * sites.len() as f64 + 0.5) as usize).clamp(1, sites.len());
        for i in 0..chosen {
            let other = i + random.below((sites.len() - i) as u64) as usize;
            sites.swap(i, other);
        }
        sites.truncate(chosen);
    }
    let (every, times, until) = match what {
        What::Flap(flap) => (Some(flap.every), flap.times, flap.until),
        _ => (entry.every, entry.times, entry.until),
    };
    for site in sites {
        let phase = match (share, every) {
            (Some(_), Some(every)) => Span(random.below(every.0)),
            _ => Span(0),
        };
        let mut at = start + phase;
        let mut left = if every.is_none() { 1 } else { times.unwrap_or(u32::MAX) };
        while left > 0 && until.is_none_or(|until| at < span(until)) {
            strike(spec, what, site, at, all);
            left -= 1;
            at = at + every.map_or(Span(0), span);
        }
    }
}

/// What a kind does in one place at one instant.
fn strike(spec: &Spec, what: &What, site: Site, at: Span, all: &mut Vec<Strike>) {
    let (number, port) = match site {
        Site::Port(host, port) => (host, PortId(port)),
        Site::Node(node) => (node, PortId(0)),
        Site::Channel => (0, PortId(0)),
    };
    let (host, node) = (number as usize, NodeId(number));
    let mut push =
        |fault, lasts: Option<Picos>| all.push(Strike { at, fault, lasts: lasts.map(span), entry: 0 });
    match *what {
        What::QueuePairError(f) => push(Fault::QueuePairError { host, index: f.index as usize }, None),
        What::LinkDown(f) => push(Fault::LinkDown { host, port }, Some(f.duration)),
        What::Flap(f) => {
            let down = f
                .duration
                .unwrap_or_else(|| Picos(((f.duty.unwrap_or(0.5) * f.every.0 as f64) as u64).max(1)));
            push(Fault::LinkDown { host, port }, Some(down));
        }
        What::Degrade(f) => push(Fault::Degrade { host, port, to: Ppm::of(f.to) }, Some(f.duration)),
        What::Loss(f) => {
            push(Fault::Loss { host, port, probability: Ppm::of(f.probability) }, Some(f.duration));
        }
        What::NicReset(f) => match site {
            Site::Node(_) => {
                let side = if number < 2 + spec.cluster.prefill.instances {
                    &spec.cluster.prefill
                } else {
                    &spec.cluster.decode
                };
                for port in 0..spec.ports(side) {
                    push(Fault::NicReset { host, port: PortId(port) }, Some(f.duration));
                }
            }
            _ => push(Fault::NicReset { host, port }, Some(f.duration)),
        },
        What::LinkRemove(f) => {
            push(Fault::LinkDrain { host, port }, f.duration);
            let rest = f.duration.map(|d| span(Picos(d.0.saturating_sub(f.grace.0))));
            let fault = Fault::LinkDown { host, port };
            all.push(Strike { at: at + span(f.grace), fault, lasts: rest, entry: 0 });
        }
        What::PostFailure(f) => push(Fault::PostFailure { host, request: f.request, times: f.times }, None),
        What::CompletionDelay(f) => {
            push(Fault::CompletionDelay { host, by: span(f.by) }, Some(f.duration));
        }
        What::Unacknowledged(f) => push(Fault::Unacknowledged { host, times: f.times }, None),
        What::ReceivesDry(f) => push(Fault::ReceivesDry { host }, Some(f.duration)),
        What::Crash(f) => push(Fault::Crash { node }, f.duration),
        What::Pause(f) => push(Fault::Pause { node }, Some(f.duration)),
        What::Leave(f) => push(Fault::Leave { node }, f.duration),
        What::Clock(f) => {
            let fault = Fault::Clock { node, ahead: span(f.ahead), drift_ppm: f.drift_ppm };
            push(fault, f.duration);
        }
        What::Slow(f) => {
            let thousandths = |factor: f64| (factor * 1000.0 + 0.5) as u32;
            let (cpu, compute) = (thousandths(f.cpu), thousandths(f.compute));
            push(Fault::Slow { node, cpu, call: span(f.call), compute }, Some(f.duration));
        }
        What::Control(f) => {
            for (from, to) in channels(spec, &f) {
                for (probability, how) in [
                    (f.loss, Disturbance::Lose),
                    (f.duplicate, Disturbance::Duplicate(span(f.by))),
                    (f.reorder, Disturbance::Reorder(span(f.by))),
                    (
                        f64::from(u8::from(f.delay.is_some())),
                        Disturbance::Delay(f.delay.map_or(Span(0), span)),
                    ),
                    (f.truncate, Disturbance::Truncate),
                    (f.garble, Disturbance::Garble),
                ] {
                    if probability > 0.0 {
                        let probability = Ppm::of(probability);
                        let fault = ControlFault { from, to, probability, how };
                        push(Fault::Control(fault), Some(f.duration));
                    }
                }
            }
        }
    }
}

/// Pairs of nodes whose frames are meant; none stands for any node.
fn channels(spec: &Spec, fault: &Control) -> Vec<(Option<NodeId>, Option<NodeId>)> {
    let named = |name: Option<NodeName>| match name {
        None => vec![None],
        Some(name) => {
            spec.nodes_named(name).unwrap_or_default().into_iter().map(|node| Some(NodeId(node))).collect()
        }
    };
    if fault.node.is_some() {
        let nodes = named(fault.node);
        return nodes.into_iter().flat_map(|node| [(node, None), (None, node)]).collect();
    }
    let to = named(fault.to);
    named(fault.from).into_iter().flat_map(|from| to.iter().map(move |to| (from, *to))).collect()
}
