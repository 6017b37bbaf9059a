//! The contract as a sequential program: what a script must leave on every fabric.
//!
//! Scripts have no races, so each send queue can be worked off by itself, request after request. That makes the model small; it has
//! no time, no packets and no NIC, and shares nothing with the simulated fabric but the expansion of plans.

use super::outcome::{Either, Entry, Posted, Seen, Why};
use super::script::{ALL, ARENA, Change, Conn, End, Key, One, Place, Receive, Region, Round, SCRIBBLE, seed};
use engine::fabric::{Content, Op, Opcode, QpState, Status};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

/// Bytes of the receiver that must be in place when a receive completes: arena and range.
pub type Visible = Vec<(usize, Range<u64>)>;

/// What a round must leave.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// All that is determined.
    pub seen: Seen,
    /// Bytes that are not.
    pub either: Vec<Either>,
    /// For each receive completion of a queue pair, in order.
    pub visible: BTreeMap<End, Vec<Visible>>,
    /// Requests that complete in error first, by status, and flushes; for the coverage.
    pub culprits: Vec<Status>,
}

/// Queues that outlive a round.
#[derive(Clone, Debug)]
pub struct Model {
    conns: Vec<Conn>,
    own: BTreeMap<End, VecDeque<Receive>>,
    shared: [VecDeque<Receive>; 2],
    rounds: usize,
}

struct Failure {
    status: Status,
    /// The responder fails too, and its receive with this.
    remote: Option<Option<Status>>,
}

fn local(status: Status) -> Failure {
    Failure { status, remote: None }
}
fn remote(status: Status) -> Failure {
    Failure { status, remote: Some(None) }
}

/// What a write left: (index of the request, arena, range).
type Written = Vec<(u64, usize, Range<u64>)>;

/// A round being worked.
struct Work<'a> {
    model: &'a mut Model,
    out: Expected,
    stale: BTreeSet<End>,
    written: BTreeMap<End, Written>,
    /// Receives with the request that consumed them.
    messages: BTreeMap<End, Vec<Option<u64>>>,
}

impl Model {
    /// Connections without receives.
    pub fn new(conns: &[Conn]) -> Self {
        let own = (0..conns.len()).flat_map(|c| [((c, 0), VecDeque::new()), ((c, 1), VecDeque::new())]);
        Self { conns: conns.to_vec(), own: own.collect(), shared: Default::default(), rounds: 0 }
    }

    fn queue(&mut self, end: End) -> &mut VecDeque<Receive> {
        if self.conns[end.0].srq[end.1] {
            return &mut self.shared[end.1];
        }
        self.own.entry(end).or_default()
    }

    /// Receives that wait for messages to a queue pair.
    pub fn waiting(&mut self, end: End) -> usize {
        self.queue(end).len()
    }

    /// Works a round.
    pub fn round(&mut self, round: &Round) -> Expected {
        let arenas = self.conns.len() + 1;
        let number = self.rounds;
        let fill = |side| {
            let arena = |a| {
                let mut bytes = vec![0; ARENA as usize];
                Content::fill(seed(number, side, a), 0, &mut bytes);
                bytes
            };
            (0..arenas).map(arena).collect()
        };
        let mut out = Expected::default();
        out.seen.memory = [fill(0), fill(1)];
        for c in 0..self.conns.len() {
            for side in 0..2 {
                out.seen.states.insert((c, side), Some(QpState::Rts));
            }
        }
        let mut work = Work {
            model: self,
            out,
            stale: BTreeSet::new(),
            written: BTreeMap::new(),
            messages: BTreeMap::new(),
        };
        work.run(round);
        let out = work.finish(round);
        self.rounds += 1;
        for &c in &round.repair {
            for side in 0..2 {
                self.own.insert((c, side), VecDeque::new());
            }
        }
        out
    }
}

impl Work<'_> {
    fn run(&mut self, round: &Round) {
        let ok = round.receives.len() + round.late.len();
        self.out.seen.posts = vec![Ok(()); ok];
        for receive in &round.receives {
            self.model.queue(receive.end).push_back(receive.clone());
        }
        for &change in &round.changes {
            match change {
                Change::Err(end) => self.fail(end),
                Change::Reset(end) | Change::Destroy(end) => {
                    let to = matches!(change, Change::Reset(_)).then_some(QpState::Reset);
                    self.out.seen.states.insert(end, to);
                    self.model.own.insert(end, VecDeque::new());
                }
                Change::Deregister(end) => {
                    self.stale.insert(end);
                }
            }
        }
        // Whoever waits for a receive waits until it comes.
        for receive in &round.late {
            self.model.queue(receive.end).push_back(receive.clone());
        }
        let mut used: BTreeMap<End, u64> = BTreeMap::new();
        for post in &round.posts {
            let used = used.entry(post.end).or_default();
            let depth = u64::from(self.model.conns[post.end.0].depth);
            let (mut at, mut answer): (u64, Posted) = (0, Ok(()));
            if self.out.seen.states[&post.end] == Some(QpState::Reset) {
                answer = Err((0, Why::State));
            }
            for link in &post.chain {
                link.expand(|one| {
                    if answer.is_ok() && *used >= depth {
                        answer = Err((at, Why::Full));
                    }
                    if answer.is_ok() {
                        at += 1;
                        *used += 1;
                        self.request(post.end, *used, &one);
                    }
                });
            }
            self.out.seen.posts.push(answer);
        }
    }

    fn finish(mut self, round: &Round) -> Expected {
        for post in &round.posts {
            for link in &post.chain {
                link.expand(|one| {
                    for p in one.local.iter().filter(|_| one.flags.inline) {
                        self.bytes(post.end.1, p.arena, p.at, p.len.into()).fill(SCRIBBLE);
                    }
                });
            }
        }
        for shared in &mut self.out.seen.shared {
            shared.sort_unstable();
        }
        let none = Vec::new();
        for (end, messages) in &self.messages {
            let peer = (end.0, 1 - end.1);
            let written = self.written.get(&peer).unwrap_or(&none);
            let later = |m: u64, arena: usize, range: &Range<u64>| {
                written
                    .iter()
                    .any(|(n, a, r)| *n > m && *a == arena && r.start < range.end && range.start < r.end)
            };
            let visible = messages.iter().map(|message| {
                let Some(m) = *message else { return Vec::new() };
                let before = written.iter().filter(|(n, ..)| *n <= m);
                let kept = before.filter(|(_, arena, range)| !later(m, *arena, range));
                kept.map(|(_, arena, range)| (*arena, range.clone())).collect()
            });
            self.out.visible.insert(*end, visible.collect());
        }
        self.out
    }

    fn bytes(&mut self, side: usize, arena: usize, at: u64, len: u64) -> &mut [u8] {
        &mut self.out.seen.memory[side][arena][at as usize..(at + len) as usize]
    }

    /// Whether a place is within its registration, and the registration has the right.
    fn allowed(&self, side: usize, place: &Place, right: fn(&engine::fabric::Access) -> bool) -> bool {
        let span = place.region.span();
        place.key == Key::Good
            && place.at + u64::from(place.len) <= span.end
            && right(&place.region.access())
            && !(place.region == Region::Mortal && self.stale.contains(&(place.arena, side)))
    }

    fn sent(&mut self, end: End, id: u64, result: Result<super::outcome::Success, Status>) {
        self.out.seen.sends.entry(end).or_default().push(Entry { id, result });
    }

    fn received(
        &mut self,
        end: End,
        id: u64,
        result: Result<super::outcome::Success, Status>,
        by: Option<u64>,
    ) {
        let shared = self.model.conns[end.0].srq[end.1];
        if shared {
            self.out.seen.shared[end.1].push(id);
        }
        let id = if shared { 0 } else { id };
        self.out.seen.receives.entry(end).or_default().push(Entry { id, result });
        self.messages.entry(end).or_default().push(by);
    }

    /// A queue pair goes to ERR: its receives are flushed.
    fn fail(&mut self, end: End) {
        self.out.seen.states.insert(end, Some(QpState::Err));
        if !self.model.conns[end.0].srq[end.1] {
            while let Some(receive) = self.model.queue(end).pop_front() {
                self.received(end, receive.id, Err(Status::WrFlush), None);
            }
        }
    }

    fn request(&mut self, end: End, number: u64, one: &One) {
        if self.out.seen.states[&end] == Some(QpState::Err) {
            return self.sent(end, one.id, Err(Status::WrFlush));
        }
        let total: u32 = one.local.iter().map(|p| p.len).sum();
        match self.execute(end, number, one, total) {
            Ok(()) => {
                if one.flags.signaled {
                    let (opcode, bytes) = match one.op {
                        Op::Write | Op::WriteImm(_) => (Opcode::Write, None),
                        Op::Send | Op::SendImm(_) => (Opcode::Send, None),
                        Op::Read => (Opcode::Read, Some(total)),
                        Op::FetchAdd(_) => (Opcode::FetchAdd, Some(total)),
                        Op::CompareSwap { .. } => (Opcode::CompareSwap, Some(total)),
                    };
                    self.sent(end, one.id, Ok((opcode, bytes, None)));
                }
            }
            Err(failure) => {
                self.out.culprits.push(failure.status);
                self.sent(end, one.id, Err(failure.status));
                self.fail(end);
                if let Some(receive) = failure.remote {
                    let peer = (end.0, 1 - end.1);
                    if let (Some(status), Some(first)) = (receive, self.model.queue(peer).front()) {
                        let id = first.id;
                        self.model.queue(peer).pop_front();
                        self.received(peer, id, Err(status), None);
                    }
                    self.fail(peer);
                }
            }
        }
    }

    fn execute(&mut self, end: End, number: u64, one: &One, total: u32) -> Result<(), Failure> {
        let (side, peer) = (end.1, (end.0, 1 - end.1));
        if self.out.seen.states[&peer] != Some(QpState::Rts) {
            return Err(local(Status::RetryExc));
        }
        let access = self.model.conns[end.0].access;
        let atomic = matches!(one.op, Op::FetchAdd(_) | Op::CompareSwap { .. });
        let brings = atomic || one.op == Op::Read;
        let sends = matches!(one.op, Op::Send | Op::SendImm(_));
        let writes = matches!(one.op, Op::Write | Op::WriteImm(_));
        let right: fn(&engine::fabric::Access) -> bool = match one.op {
            Op::Read => |a| a.remote_read,
            Op::Write | Op::WriteImm(_) => |a| a.remote_write,
            _ => |a| a.remote_atomic,
        };
        // What would be sent; places that are refused have no bytes of their own to send.
        let mut data = Vec::new();
        let mut good = true;
        for place in one.local.iter().filter(|p| p.len > 0) {
            let fine = one.flags.inline
                || self.allowed(side, place, if brings { |a| a.local_write } else { |_| true });
            good &= fine;
            if !fine && !brings {
                // Packets before the one that cannot be filled may have been sent.
                let end = place.region.span().end;
                if place.key == Key::Good && place.at < end {
                    let len = u64::from(place.len).min(end - place.at);
                    data.extend_from_slice(self.bytes(side, place.arena, place.at, len));
                }
                break;
            }
            if good {
                data.extend_from_slice(self.bytes(side, place.arena, place.at, place.len.into()));
            }
        }
        if !good {
            // Pieces before the bad one may have been worked.
            self.partly(end, one, &data, brings);
            return Err(local(Status::LocProt));
        }
        if !sends {
            // A queue pair that does not take the operation: InfiniBand spec 11.6.2 (remote invalid request error).
            if !right(&access) {
                return Err(remote(Status::RemInvReq));
            }
            if atomic && !one.remote.at.is_multiple_of(8) {
                return Err(remote(Status::RemInvReq));
            }
            let far = Place { len: total, ..one.remote };
            if total > 0 && !self.allowed(peer.1, &far, right) {
                return Err(remote(Status::RemAccess));
            }
        }
        let imm = match one.op {
            Op::WriteImm(imm) | Op::SendImm(imm) => Some(imm),
            _ => None,
        };
        let first = self.model.queue(peer).front().cloned();
        if (sends || imm.is_some()) && first.is_none() {
            if writes {
                self.maybe((peer.1, one.remote.arena), one.remote.at, data);
            }
            return Err(local(Status::RnrRetryExc));
        }
        match one.op {
            Op::Read => {
                let from = self.bytes(peer.1, one.remote.arena, one.remote.at, total.into()).to_vec();
                self.scatter(side, &one.local, &from);
            }
            Op::FetchAdd(_) | Op::CompareSwap { .. } => {
                let word = self.bytes(peer.1, one.remote.arena, one.remote.at, 8);
                let mut old = [0; 8];
                old.copy_from_slice(word);
                let value = u64::from_le_bytes(old);
                let new = match one.op {
                    Op::FetchAdd(add) => value.wrapping_add(add),
                    Op::CompareSwap { expect, swap } if expect == value => swap,
                    _ => value,
                };
                word.copy_from_slice(&new.to_le_bytes());
                self.scatter(side, &one.local, &old);
            }
            Op::Write | Op::WriteImm(_) => {
                let at = one.remote.at;
                self.bytes(peer.1, one.remote.arena, at, total.into()).copy_from_slice(&data);
                let range = at..at + u64::from(total);
                self.written.entry(end).or_default().push((number, one.remote.arena, range));
            }
            Op::Send | Op::SendImm(_) => self.deliver(end, number, first.as_ref(), &data)?,
        }
        if (sends || imm.is_some())
            && let Some(receive) = self.model.queue(peer).pop_front()
        {
            let opcode = if sends { Opcode::Recv } else { Opcode::RecvWithImm };
            self.received(peer, receive.id, Ok((opcode, Some(total), imm)), Some(number));
        }
        Ok(())
    }

    /// A SEND into a receive.
    fn deliver(
        &mut self,
        end: End,
        number: u64,
        receive: Option<&Receive>,
        data: &[u8],
    ) -> Result<(), Failure> {
        let side = 1 - end.1;
        let sges = receive.map_or(&[][..], |r| &r.sges);
        let mut rest = data;
        let mut bad = None;
        for place in sges.iter().filter(|p| p.len > 0) {
            if rest.is_empty() {
                break;
            }
            if !self.allowed(side, place, |a| a.local_write) {
                bad = Some(Failure { status: Status::RemOp, remote: Some(Some(Status::LocProt)) });
                break;
            }
            rest = &rest[rest.len().min(place.len as usize)..];
        }
        if bad.is_none() && !rest.is_empty() {
            bad = Some(Failure { status: Status::RemInvReq, remote: Some(Some(Status::LocLen)) });
        }
        let mut rest = data;
        for place in sges {
            let n = rest.len().min(place.len as usize);
            if bad.is_some() {
                self.maybe((side, place.arena), place.at, rest[..n].to_vec());
            } else {
                self.bytes(side, place.arena, place.at, n as u64).copy_from_slice(&rest[..n]);
                let range = place.at..place.at + n as u64;
                self.written.entry(end).or_default().push((number, place.arena, range));
            }
            rest = &rest[n..];
        }
        bad.map_or(Ok(()), Err)
    }

    fn scatter(&mut self, side: usize, places: &[Place], mut from: &[u8]) {
        for place in places {
            let (head, rest) = from.split_at(place.len as usize);
            self.bytes(side, place.arena, place.at, place.len.into()).copy_from_slice(head);
            from = rest;
        }
    }

    fn maybe(&mut self, arena: (usize, usize), at: u64, new: Vec<u8>) {
        let old = self.bytes(arena.0, arena.1, at, new.len() as u64).to_vec();
        self.out.either.push(Either { arena, at, old, new });
    }

    /// A request with a bad local piece: what it may have done before that was seen.
    fn partly(&mut self, end: End, one: &One, data: &[u8], brings: bool) {
        let (side, peer) = (end.1, (end.0, 1 - end.1));
        if !brings {
            if matches!(one.op, Op::Send | Op::SendImm(_)) {
                let sges = self.model.queue(peer).front().map(|r| r.sges.clone()).unwrap_or_default();
                let mut rest = data;
                for place in sges {
                    let n = rest.len().min(place.len as usize);
                    self.maybe((peer.1, place.arena), place.at, rest[..n].to_vec());
                    rest = &rest[n..];
                }
            } else {
                self.maybe((peer.1, one.remote.arena), one.remote.at, data.to_vec());
            }
            return;
        }
        let total: u32 = one.local.iter().map(|p| p.len).sum();
        let from = self.bytes(peer.1, one.remote.arena, one.remote.at, total.into()).to_vec();
        if one.op != Op::Read {
            let mut old = [0; 8];
            old.copy_from_slice(&from);
            let value = u64::from_le_bytes(old);
            let new = match one.op {
                Op::FetchAdd(add) => value.wrapping_add(add),
                Op::CompareSwap { expect, swap } if expect == value => swap,
                _ => value,
            };
            self.maybe((peer.1, one.remote.arena), one.remote.at, new.to_le_bytes().to_vec());
        }
        let mut rest = &from[..];
        for place in &one.local {
            let (head, tail) = rest.split_at(place.len as usize);
            let fine = self.allowed(side, place, |a| a.local_write);
            if fine || place.key == Key::Good && place.region.access().local_write {
                let most = place.region.span().end.saturating_sub(place.at).min(head.len() as u64);
                self.maybe((side, place.arena), place.at, head[..most as usize].to_vec());
            }
            if !fine {
                break;
            }
            rest = tail;
        }
    }
}

/// Rights of queue pairs, by the program's pick.
pub fn rights(pick: u8) -> engine::fabric::Access {
    match pick {
        1 => engine::fabric::Access { remote_write: false, ..ALL },
        2 => engine::fabric::Access { remote_read: false, ..ALL },
        3 => engine::fabric::Access { remote_atomic: false, ..ALL },
        _ => ALL,
    }
}
