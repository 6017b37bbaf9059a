//! The measuring process: gathers the nodes of a run, starts it, takes in what happens, and checks what is left.

use std::collections::BTreeMap;

use engine::driver::{self, Context, Link, LinkConfig, LinkError};
use engine::id::NodeId;
use engine::time::{Span, Time};
use sim::world::Stamped;

use super::member::{boot_id, member_number};
use super::message::{FromNode, Hello, Row, Standing, ToNode, VERSION};
use super::serve::fingerprint;
use crate::build::collect::Collector;
use crate::build::nodes::{self, Place, ROUTER, instances, places};
use crate::build::{Progress, RunError, SETTLE, longest_step, no_requests, take};
use crate::report::{Counters, RunResult};
use crate::spec::Spec;
use crate::workload;

/// Nodes are pinged this often: their answers also tell that they live.
const PING: Span = Span::ms(200);
/// Pings before the offset of another host's clock is trusted.
const PINGS: u32 = 10;
/// From the word to begin until the first request may arrive.
const LEAD: Span = Span::ms(300);
/// Records are taken in the order of their times, this long after they were made.
const HOLD_BACK: Span = Span::ms(250);
/// How often nodes are asked what they hold.
const LOOK: Span = Span::ms(100);
/// Silence after which a node is given up; longer with long leases.
const SILENCE: Span = Span::s(15);
/// What the workload is read ahead of time.
const AHEAD: Span = Span::ms(500);

/// What a run knows of its processes beside what they say themselves.
pub(crate) trait Host {
    /// Processes that ended by themselves since the last call, and how.
    fn lost(&mut self) -> Result<Vec<(Place, String)>, RunError>;
    /// The user wants to stop: they are given less time to end by themselves.
    fn hurry(&mut self);
    /// Ends all of them.
    fn finish(&mut self);
}

/// Processes that somebody else started.
pub(crate) struct Elsewhere;

impl Host for Elsewhere {
    fn lost(&mut self) -> Result<Vec<(Place, String)>, RunError> {
        Ok(Vec::new())
    }
    fn hurry(&mut self) {}
    fn finish(&mut self) {}
}

/// One seed's run on real devices.
pub(crate) struct Measured {
    /// As of a simulated run.
    pub(crate) run: RunResult,
    /// How exactly times of several hosts compare, and what went wrong on the way; a line each.
    pub(crate) notes: Vec<String>,
}

/// A node as it is known here.
struct Member {
    place: Place,
    hello: Option<Hello>,
    heard: Time,
    ready: bool,
    /// Its host's clock less this one's, ns, and the round trip that it was found with; none before the first answer.
    offset: Option<(i64, u64)>,
    pings: u32,
    /// Rows that came.
    rows: u64,
    standing: Option<(u32, Standing)>,
    bye: Option<Standing>,
    lost: Option<String>,
}

/// The measuring process's end of all nodes.
pub(crate) struct Hub {
    link: Link,
    _context: Context,
    /// By node number.
    members: Vec<Member>,
    own_boot: String,
    experiment: u64,
    /// When each ping left, by its number.
    sent: BTreeMap<u32, u64>,
    ping: u32,
    pinged: Time,
    rows: Vec<(Time, NodeId, Row)>,
    missing: u64,
    failed: Option<String>,
    notes: Vec<String>,
    started: bool,
}

impl Hub {
    /// Binds the socket to which nodes connect.
    pub(crate) fn bind(spec: &Spec, address: &str) -> Result<Self, LinkError> {
        let context = Context::new();
        let link = Link::bind(&context, &LinkConfig::default(), address)?;
        let member = |place| Member {
            place,
            hello: None,
            heard: Time::ZERO,
            ready: false,
            offset: None,
            pings: 0,
            rows: 0,
            standing: None,
            bye: None,
            lost: None,
        };
        Ok(Self {
            link,
            _context: context,
            members: places(spec).into_iter().map(member).collect(),
            own_boot: boot_id(),
            experiment: fingerprint(spec),
            sent: BTreeMap::new(),
            ping: 0,
            pinged: Time::ZERO,
            rows: Vec::new(),
            missing: 0,
            failed: None,
            notes: Vec::new(),
            started: false,
        })
    }

    /// Where it is bound.
    pub(crate) fn address(&self) -> Result<String, LinkError> {
        self.link.address()
    }

    /// Waits for up to so many milliseconds and takes in what came.
    fn take(&mut self, ms: i64) -> Result<(), RunError> {
        let now = driver::now();
        if now.since(self.pinged) >= PING {
            self.pinged = now;
            self.ping = self.ping.wrapping_add(1);
            self.sent.insert(self.ping, driver::host_ns(driver::now()));
            while self.sent.len() > 64 {
                self.sent.pop_first();
            }
            let ping = self.ping;
            self.tell(|_| Some(ToNode::Ping { ping }))?;
        }
        // An interrupted wait is one that ended early.
        let _ = self.link.socket().poll(driver::POLLIN, ms);
        // Bounded, so that whoever floods does not stop the clock.
        for _ in 0..10_000 {
            let Some((from, frame)) = self.link.receive(driver::now())? else { break };
            let Some(number) = from.index().checked_sub(1) else { continue };
            let message = serde_json::from_slice::<FromNode>(frame);
            let name = self.link.name(from).unwrap_or_default();
            self.took(number, &name, message.map_err(|error| error.to_string()))?;
        }
        Ok(())
    }

    fn took(&mut self, number: usize, name: &str, message: Result<FromNode, String>) -> Result<(), RunError> {
        let Some(member) = self.members.get_mut(number).filter(|m| m.place.to_string() == name) else {
            let note = format!("{name} is no node of this experiment: it was left aside");
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
            return Ok(());
        };
        let now = driver::now();
        member.heard = now;
        match message {
            Ok(FromNode::Hello(hello)) => {
                if hello.version != VERSION {
                    self.failed = Some(format!(
                        "{name} speaks version {} of the measuring protocol, this process {VERSION}: use the same kvrail everywhere",
                        hello.version
                    ));
                    return Ok(());
                }
                let same = member.hello.as_ref().is_some_and(|before| before.life == hello.life);
                if !same {
                    if member.hello.is_some() && self.started {
                        self.notes.push(format!("{name} was started again"));
                        if member.place == Place::Router {
                            member.lost.get_or_insert_with(|| "it was started again".to_owned());
                        } else {
                            member.lost = None;
                        }
                    }
                    if hello.experiment != self.experiment {
                        let note = format!(
                            "{name} runs another experiment than this process: give both the same file, --set and --seed"
                        );
                        if !self.notes.contains(&note) {
                            self.notes.push(note);
                        }
                    }
                    member.offset = (hello.boot == self.own_boot && !hello.boot.is_empty()).then_some((0, 0));
                    (member.rows, member.pings, member.ready) = (0, 0, false);
                    (member.standing, member.bye) = (None, None);
                    member.hello = Some(hello);
                }
                // An answer at once: it says hello until it has one.
                let ping = self.ping;
                self.say(number, &ToNode::Ping { ping })?;
            }
            Ok(FromNode::Pong { ping, at_ns, ready }) => {
                member.ready = ready;
                let present = driver::host_ns(now);
                let shared = member.hello.as_ref().is_some_and(|hello| hello.boot == self.own_boot);
                if let Some(left) = self.sent.get(&ping).filter(|_| !shared) {
                    let trip = present.saturating_sub(*left);
                    if member.offset.is_none_or(|(_, best)| trip < best) {
                        // Half a round trip ago, give or take half a round trip.
                        let middle = left + trip / 2;
                        member.offset = Some((at_ns.wrapping_sub(middle) as i64, trip));
                    }
                }
                member.pings += 1;
            }
            Ok(FromNode::Records { first, rows }) => {
                self.missing += first.saturating_sub(member.rows);
                member.rows = first + rows.len() as u64;
                let offset = member.offset.map_or(0, |(offset, _)| offset);
                let node = NodeId(number as u32);
                for row in rows {
                    let at = driver::from_host_ns(row.1.saturating_add_signed(-offset));
                    self.rows.push((at, node, row));
                }
            }
            Ok(FromNode::Holds { look, standing }) => member.standing = Some((look, standing)),
            Ok(FromNode::Bye { standing, failures }) => {
                member.bye = Some(standing);
                self.notes.extend(failures.map(|text| format!("{name}: {text}")));
            }
            Ok(FromNode::Failed(why)) => {
                let why = format!("{name}: {why}");
                if self.started {
                    self.notes.push(why);
                } else {
                    self.failed = Some(why);
                }
            }
            Err(why) => {
                self.failed =
                    Some(format!("{name} sent what is no message ({why}): use the same kvrail everywhere"));
            }
        }
        Ok(())
    }

    /// Sends to every node that was heard.
    fn tell(&mut self, message: impl Fn(&Member) -> Option<ToNode>) -> Result<(), RunError> {
        for number in 0..self.members.len() {
            if self.members[number].hello.is_some()
                && let Some(message) = message(&self.members[number])
            {
                self.say(number, &message)?;
            }
        }
        Ok(())
    }

    fn say(&mut self, number: usize, message: &ToNode) -> Result<(), RunError> {
        if let Ok(bytes) = serde_json::to_vec(message) {
            let to = member_number(NodeId(number as u32));
            // What a full queue loses is said again: pings and looks go on.
            self.link.send(to, &bytes)?;
        }
        Ok(())
    }

    /// Notes who was lost. The registry of somebody else is not waited for.
    fn look_for_lost(&mut self, host: &mut dyn Host, silence: Span) -> Result<(), RunError> {
        for (place, why) in host.lost()? {
            self.notes.push(format!("{place}: {why}"));
            if let Some(member) = self.members.iter_mut().find(|m| m.place == place) {
                if !self.started && member.hello.is_none() {
                    self.failed.get_or_insert_with(|| format!("{place}: {why}"));
                }
                // Its last word, if it had one, came before its end.
                if place != Place::Registry {
                    member.lost.get_or_insert(why);
                }
            }
        }
        let now = driver::now();
        for member in &mut self.members {
            if member.hello.is_some()
                && member.lost.is_none()
                && member.bye.is_none()
                && now.since(member.heard) > silence
                && member.place != Place::Registry
            {
                let why = format!("nothing was heard of it for {:.0} s", silence.as_secs());
                self.notes.push(format!("{}: {why}", member.place));
                member.lost = Some(why);
            }
            if member.place != Place::Router
                && member.lost.as_deref().is_some_and(|why| why.starts_with("nothing was heard"))
                && now.since(member.heard) < PING * 2
            {
                // It was stopped, and goes on.
                member.lost = None;
            }
        }
        Ok(())
    }

    /// Rows up to a time, in the order of their times.
    fn ripe(&mut self, until: Time) -> Vec<(Time, NodeId, Row)> {
        self.rows.sort_by_key(|(at, node, _)| (*at, *node));
        let count = self.rows.partition_point(|(at, ..)| *at <= until);
        self.rows.drain(..count).collect()
    }

    /// Nodes that take part: the registry only if it was heard.
    fn present(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.hello.is_some() && member.lost.is_none())
    }
}

/// Runs one seed on nodes that are there already, or come within `patience`.
pub(crate) fn measure(
    spec: &Spec,
    seed: u64,
    hub: &mut Hub,
    host: &mut dyn Host,
    patience: Span,
    progress: &dyn Progress,
) -> Result<Measured, RunError> {
    let measured = uninterrupted(spec, seed, hub, host, patience, progress);
    if matches!(measured, Err(RunError::Interrupted)) {
        host.hurry();
    }
    measured
}

fn uninterrupted(
    spec: &Spec,
    seed: u64,
    hub: &mut Hub,
    host: &mut dyn Host,
    patience: Span,
    progress: &dyn Progress,
) -> Result<Measured, RunError> {
    let began = driver::now();
    let silence = SILENCE.max(Span(spec.transfer.lease.0) * 3);
    gather(hub, host, patience, progress)?;

    let zero = driver::now() + LEAD;
    hub.started = true;
    let offset = hub.members[ROUTER.index()].offset.map_or(0, |(offset, _)| offset);
    let zero_ns = driver::host_ns(zero).saturating_add_signed(offset);
    hub.say(ROUTER.index(), &ToNode::Start { zero_ns })?;

    let mut requests = workload::open(&spec.workload, seed)?;
    let mut next = take(&mut *requests, zero)?;
    if let (None, Some(path)) = (&next, &spec.workload.path) {
        return Err(RunError::Input(no_requests(path)));
    }
    let mut run = Collector::new(instances(&places(spec)), zero);
    let settle = Span(spec.transfer.drain_timeout.0) + SETTLE + longest_step(spec)?;
    let (mut last_end, mut look, mut looked) = (zero, 0_u32, zero);
    loop {
        hub.take(20)?;
        let now = driver::now();
        while let Some((at, request)) = next.take_if(|(at, _)| *at <= now + AHEAD) {
            run.arrived(at, &request);
            next = take(&mut *requests, zero)?;
        }
        let all_in = next.is_none() && run.all_final();
        let until = if all_in { Time::NEVER } else { now - HOLD_BACK };
        let ripe = hub.ripe(until);
        let records = ripe.iter().filter_map(|(at, node, row)| {
            row.record().map(|record| Stamped { at: *at, node: *node, record })
        });
        if let Some(end) = run.take(records) {
            last_end = last_end.max(end);
        }
        hub.look_for_lost(host, silence)?;
        if !progress.update(run.ended(), requests.fraction() * run.share(), now.since(zero).0) {
            return Err(RunError::Interrupted);
        }
        if let Some(why) = &hub.members[ROUTER.index()].lost {
            let why = format!("the router was lost: {why}");
            while let Some((at, request)) = next.take() {
                run.arrived(at, &request);
                next = take(&mut *requests, zero)?;
            }
            run.give_up(&why);
        } else if hub
            .members
            .iter()
            .all(|m| m.lost.is_some() || m.hello.is_none() || m.place == Place::Router)
        {
            return Err(RunError::Environment(format!("all nodes were lost:\n{}", hub.notes.join("\n"))));
        }
        if next.is_none() && run.all_final() {
            let quiet = look > 0
                && hub.present().all(|member| {
                    member.standing.is_some_and(|(of, standing)| of == look && nodes::quiet(&standing.held()))
                });
            if quiet || now.since(last_end) > settle {
                break;
            }
            if now.since(looked) > LOOK {
                looked = now;
                look += 1;
                hub.tell(|_| Some(ToNode::Look { look }))?;
            }
        }
    }

    let standings: Vec<Standing> =
        hub.present().filter_map(|member| member.standing.map(|(_, standing)| standing)).collect();
    let held = nodes::sum(standings.iter().map(Standing::held));
    let count = |of: fn(&Standing) -> u64| standings.iter().map(of).sum::<u64>();
    let leaks = nodes::leaks(&held, count(|s| s.memory_regions), count(|s| s.queue_pairs));
    let goes_on = || progress.update(run.ended(), 1.0, last_end.since(zero).0);
    let mut violations = stop(spec, hub, host, &goes_on)?;

    // What was recorded at the very end.
    let ripe = hub.ripe(Time::NEVER);
    let records = ripe
        .iter()
        .filter_map(|(at, node, row)| row.record().map(|record| Stamped { at: *at, node: *node, record }));
    run.take(records);
    let mut counters = engine::node::Counters::default();
    standings.iter().for_each(|standing| counters += standing.counters());
    if hub.missing > 0 {
        violations.push(format!("{} records of nodes were lost on the way here", hub.missing));
    }
    for member in &hub.members {
        if let Some(why) = &member.lost {
            violations.push(format!("{} was lost: {why}", member.place));
        }
    }
    run.finish(&mut violations);
    let requests = run.into_requests();
    let sum = |of: fn(&crate::report::RequestRecord) -> u64| requests.iter().map(of).sum::<u64>();
    let counters = Counters {
        bytes_moved: sum(|request| request.bytes),
        work_requests: sum(|request| request.work_requests),
        registry_messages: counters.registry_messages,
        staged_parts: counters.staged_parts,
        copied_bytes: counters.copied_bytes,
        checksum_mismatches: counters.checksum_mismatches,
        rnr_naks: 0,
        extrapolated: counters.extrapolated,
        events: 0,
    };
    let run = RunResult {
        seed,
        digest: 0,
        requests,
        counters,
        struck: Default::default(),
        effects: Default::default(),
        leaks,
        sim_ps: last_end.since(zero).0,
        wall_seconds: driver::now().since(began).as_secs(),
        violations,
    };
    Ok(Measured { run, notes: notes(hub) })
}

/// Waits until every node has joined and its clock is known.
fn gather(
    hub: &mut Hub,
    host: &mut dyn Host,
    patience: Span,
    progress: &dyn Progress,
) -> Result<(), RunError> {
    let end = driver::now() + patience;
    loop {
        hub.take(20)?;
        hub.look_for_lost(host, patience)?;
        if let Some(why) = hub.failed.take() {
            return Err(RunError::Environment(why));
        }
        if !progress.update(0, 0.0, 0) {
            return Err(RunError::Interrupted);
        }
        let fine = |member: &Member| {
            let known = member.offset.is_some_and(|(_, trip)| trip == 0 || member.pings >= PINGS);
            // The registry need not take part.
            (member.place == Place::Registry && member.hello.is_none()) || (known && member.ready)
        };
        if hub.members.iter().all(fine) {
            return Ok(());
        }
        if driver::now() >= end {
            let silent: Vec<String> = hub
                .members
                .iter()
                .filter(|m| m.hello.is_none() && m.place != Place::Registry)
                .map(|m| m.place.to_string())
                .collect();
            let what = if silent.is_empty() {
                "all nodes are there, but not all have joined at the registry: can they reach it?".to_owned()
            } else {
                format!("nothing was heard of {}", silent.join(", "))
            };
            let notes = hub.notes.iter().map(|note| format!("\n{note}")).collect::<String>();
            return Err(RunError::Environment(format!(
                "no run within {:.0} s: {what}{notes}",
                patience.as_secs()
            )));
        }
    }
}

/// Stops the nodes and says what is left of them.
fn stop(
    spec: &Spec,
    hub: &mut Hub,
    host: &mut dyn Host,
    goes_on: &dyn Fn() -> bool,
) -> Result<Vec<String>, RunError> {
    let end = driver::now() + Span(spec.transfer.lease.0) * 4 + Span::s(10);
    let mut told = Time::ZERO;
    // The registry goes last, and where somebody else started it, not at all.
    let waits =
        |m: &Member| m.place != Place::Registry && m.hello.is_some() && m.bye.is_none() && m.lost.is_none();
    while hub.members.iter().any(waits) && driver::now() < end {
        if !goes_on() {
            return Err(RunError::Interrupted);
        }
        if driver::now().since(told) > Span::s(1) {
            told = driver::now();
            hub.tell(|member| waits(member).then_some(ToNode::Stop))?;
        }
        hub.take(20)?;
        let gone: Vec<(Place, String)> = host.lost()?;
        for (place, why) in gone {
            // It says goodbye, then it ends: that word may still be on its way.
            hub.take(50)?;
            if let Some(member) = hub.members.iter_mut().find(|m| m.place == place && m.bye.is_none()) {
                member.lost.get_or_insert(why);
            }
        }
    }
    let mut violations = Vec::new();
    for member in &hub.members {
        if waits(member) {
            violations.push(format!("{} did not wind down when it was told to", member.place));
        }
        if let Some(left) = &member.bye {
            let left = nodes::left(left.memory_regions, left.queue_pairs, left.buffers);
            violations.extend(left.map(|line| format!("{}: {line}", member.place)));
        }
    }
    host.finish();
    Ok(violations)
}

/// How exactly the clocks are known, and what happened.
fn notes(hub: &Hub) -> Vec<String> {
    let mut notes = hub.notes.clone();
    let mut remote: Vec<(u64, String)> = hub
        .members
        .iter()
        .filter_map(|member| {
            let (_, trip) = member.offset.filter(|(_, trip)| *trip > 0)?;
            Some((trip, member.place.to_string()))
        })
        .collect();
    remote.sort();
    match remote.last() {
        None => notes.push("clocks: one host, one clock".to_owned()),
        Some((trip, name)) => notes.push(format!(
            "clocks: times of {} nodes on other hosts are right to {:.0} us (half the shortest round trip, worst for {name})",
            remote.len(),
            *trip as f64 / 2e3
        )),
    }
    notes
}
