//! From picks to a script without races.
//!
//! Every request gets ranges of its own on both sides, but for those that one queue pair's order allows to overlap. A connection on which
//! something goes wrong is used by one side only in that round, and is reset and connected anew after it.

use super::model::{Expected, Model, rights};
use super::program::{Before, Flaw, Program, Request, Turn, What};
use super::script::{
    Change, Conn, DATA, EDGE, End, GUARD, INLINE, Key, Link, Many, One, Place, Post, RECEIVES, Receive,
    Region, Round, SGES, SLOT, SLOTS, Script, seed,
};
use engine::fabric::{Content, Flags, Lane, Op, Plan, QpState, Run};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A script, and what each round must leave.
pub fn resolve(program: &Program) -> (Script, Vec<Expected>) {
    let conns: Vec<Conn> = program
        .conns
        .iter()
        .map(|pick| Conn {
            shared_cq: pick.shared_cq,
            srq: pick.srq,
            depth: (1 << pick.log_depth) - 1,
            mtu: [256, 1024, 4096][usize::from(pick.mtu % 3)],
            fragile: pick.fragile,
            reads: pick.reads + 1,
            access: rights(pick.rights),
        })
        .collect();
    let mut all = Resolver {
        model: Model::new(&conns),
        conns,
        receives: BTreeMap::new(),
        ids: 0,
        number: 0,
        round: Round::default(),
        cursors: BTreeMap::new(),
        shared: [None; 2],
    };
    let mut rounds = Vec::new();
    let mut expected = Vec::new();
    for turns in &program.rounds {
        all.turns(turns);
        // Who failed is known after the round: whoever is not in RTS is repaired.
        let mut trial = all.model.clone();
        let states = trial.round(&all.round).seen.states;
        all.round.repair =
            (0..all.conns.len()).filter(|&c| (0..2).any(|s| states[&(c, s)] != Some(QpState::Rts))).collect();
        let round = std::mem::take(&mut all.round);
        expected.push(all.model.round(&round));
        rounds.push(round);
        all.number += 1;
        all.cursors.clear();
        all.shared = [None; 2];
    }
    (Script { conns: all.conns, rounds }, expected)
}

/// Who uses a side's shared receive queue in a round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shared {
    /// Several, with immediates alone: which receive goes to whom is a race, and does not matter.
    Many,
    /// One connection.
    One(usize),
}

struct Resolver {
    model: Model,
    conns: Vec<Conn>,
    /// Receives ever posted, per queue: own ones by end, shared ones by (connections, side).
    receives: BTreeMap<End, u64>,
    ids: u64,
    number: usize,
    round: Round,
    cursors: BTreeMap<End, u64>,
    shared: [Option<Shared>; 2],
}

/// What the requests of a turn so far mean for those that come.
#[derive(Default)]
struct Earlier {
    write: Option<Place>,
    word: Option<Place>,
    read: Option<Place>,
    flawed: bool,
    /// Of each message that consumes a receive: bytes and what is wrong with the receive.
    messages: Vec<(u32, Flaw)>,
}

fn consumes(what: What) -> bool {
    matches!(what, What::WriteImm | What::Send | What::SendImm | What::Writes(true))
}
fn sends(what: What) -> bool {
    matches!(what, What::Send | What::SendImm)
}
fn brings(what: What) -> bool {
    matches!(what, What::Read | What::Reads | What::FetchAdd | What::CompareSwap(_))
}
fn atomic(what: What) -> bool {
    matches!(what, What::FetchAdd | What::CompareSwap(_))
}
fn of_receive(flaw: Flaw) -> bool {
    matches!(flaw, Flaw::TooSmall | Flaw::BadReceiveKey | Flaw::NoReceive | Flaw::LateReceive)
}

impl Resolver {
    fn turns(&mut self, turns: &[Turn]) {
        // Whether a connection is used, and whether something goes wrong on it.
        let mut used: BTreeMap<usize, bool> = BTreeMap::new();
        let mut seen = Vec::new();
        for turn in turns {
            let c = usize::from(turn.conn) % self.conns.len();
            let end = (c, usize::from(turn.side));
            if seen.contains(&end) || used.get(&c) == Some(&true) {
                continue;
            }
            seen.push(end);
            let mut turn = turn.clone();
            let calm = used.contains_key(&c);
            self.tame(&mut turn, end, calm);
            let disruptive = turn.before != Before::Nothing
                || turn.requests.iter().any(|r| self.lacks(c, r) || !matches!(r.flaw, Flaw::None));
            used.insert(c, disruptive);
            self.turn(&turn, end);
        }
    }

    fn lacks(&self, c: usize, request: &Request) -> bool {
        let access = self.conns[c].access;
        match request.what {
            What::Write | What::WriteImm | What::Writes(_) => !access.remote_write,
            What::Read | What::Reads => !access.remote_read,
            What::FetchAdd | What::CompareSwap(_) => !access.remote_atomic,
            What::Send | What::SendImm => false,
        }
    }

    /// Takes out of a turn what would race, or mean nothing.
    fn tame(&mut self, turn: &mut Turn, end: End, calm: bool) {
        let (c, peer) = (end.0, 1 - end.1);
        let conn = self.conns[c];
        let dies = matches!(turn.before, Before::PeerErr | Before::PeerReset | Before::PeerDestroyed);
        if calm || dies && !conn.fragile {
            turn.before = Before::Nothing;
        }
        if conn.srq[peer] {
            let exclusive =
                turn.requests.iter().any(|r| sends(r.what) || consumes(r.what) && of_receive(r.flaw));
            let mine = turn.requests.iter().any(|r| consumes(r.what));
            let mode = match self.shared[peer] {
                None if exclusive => Shared::One(c),
                None => Shared::Many,
                Some(mode) => mode,
            };
            if mine {
                self.shared[peer] = Some(mode);
            }
            for r in &mut turn.requests {
                match mode {
                    Shared::One(owner) if owner == c => {}
                    Shared::One(_) if consumes(r.what) => r.what = What::Write,
                    Shared::Many if sends(r.what) => r.what = What::WriteImm,
                    _ => {}
                }
                if mode != Shared::One(c) && of_receive(r.flaw) {
                    r.flaw = Flaw::None;
                }
            }
        }
        if calm {
            turn.requests.retain(|r| !self.lacks(c, r));
        }
        let mut flawed = calm || turn.before != Before::Nothing;
        for r in &mut turn.requests {
            // Nothing else is wrong with a request that the queue pair refuses.
            flawed |= self.lacks(c, r);
            let total = r.pieces.iter().map(|p| u32::from(*p)).sum::<u32>();
            let plan = matches!(r.what, What::Writes(_) | What::Reads);
            let bytes = plan || atomic(r.what) || total > 0;
            if r.flaw == Flaw::NoReceive && !conn.fragile {
                r.flaw = Flaw::LateReceive;
            }
            let right = match r.flaw {
                Flaw::None => false,
                Flaw::BadRkey | Flaw::PastEnd(_) | Flaw::NoRight | Flaw::Stale => bytes && !sends(r.what),
                Flaw::Misaligned => atomic(r.what),
                // A SEND that breaks off takes a shared receive with it.
                Flaw::BadLkey | Flaw::LocalPastEnd => bytes && !(sends(r.what) && conn.srq[peer]),
                Flaw::NoLocalWrite => bytes && brings(r.what),
                Flaw::TooSmall | Flaw::BadReceiveKey => sends(r.what) && total > 0,
                Flaw::NoReceive => consumes(r.what),
                Flaw::LateReceive => consumes(r.what) && !conn.fragile,
            };
            if flawed || !right {
                r.flaw = Flaw::None;
            }
            flawed |= r.flaw != Flaw::None;
            // What rxe does then would change what later rounds find: see `quirks::AVOIDED`.
            if conn.srq[peer]
                && matches!(r.flaw, Flaw::BadRkey | Flaw::PastEnd(_) | Flaw::NoRight | Flaw::Stale)
            {
                r.what = match r.what {
                    What::WriteImm => What::Write,
                    What::Writes(_) => What::Writes(false),
                    what => what,
                };
            }
        }
        // What comes after an answer that cannot be stored may be executed before that is seen.
        let lost = |r: &Request| {
            brings(r.what) && matches!(r.flaw, Flaw::BadLkey | Flaw::LocalPastEnd | Flaw::NoLocalWrite)
        };
        if let Some(last) = turn.requests.iter().position(lost) {
            turn.requests.truncate(last + 1);
        }
        // And here rxe waits for ever.
        let mut waits = dies && turn.before != Before::Nothing;
        let mut answers = false;
        for r in &mut turn.requests {
            waits |= matches!(r.flaw, Flaw::LateReceive | Flaw::NoReceive);
            if answers && matches!(r.flaw, Flaw::BadLkey | Flaw::LocalPastEnd | Flaw::NoLocalWrite) {
                r.flaw = Flaw::None;
            }
            answers |= brings(r.what);
        }
        // A retry may also come of a slow machine, where timeouts are short.
        if (waits || conn.fragile) && answers {
            turn.requests.iter_mut().for_each(|r| r.fence = false);
        }
    }

    fn place(&self, end: End, region: Region, at: u64, len: u32) -> Place {
        Place { arena: end.0, region, at, len, key: Key::Good }
    }

    /// Bytes of an end's arena that nothing else in this round touches.
    fn fresh(&mut self, end: End, len: u32, odd: u64) -> Option<u64> {
        let cursor = self.cursors.entry(end).or_default();
        let at = *cursor + odd % 8;
        let next = (at + u64::from(len)).next_multiple_of(8);
        if next > DATA - EDGE {
            return None;
        }
        *cursor = next;
        Some(at)
    }

    fn turn(&mut self, turn: &Turn, end: End) {
        let mut so_far = Earlier::default();
        let mut links: Vec<(Link, Option<(u32, Flaw)>)> = Vec::new();
        for request in &turn.requests {
            so_far.messages.clear();
            let link = match request.what {
                What::Writes(_) | What::Reads => self.many(request, end, &mut so_far),
                _ => self.one(request, end, &mut so_far),
            };
            if let Some(link) = link {
                links.push((link, so_far.messages.first().copied()));
            }
        }
        if turn.before == Before::OwnErr {
            // When a queue that is flushed is full is a race.
            let mut requests = 0;
            links.retain(|(link, _)| {
                requests += link.requests();
                requests <= u64::from(self.conns[end.0].depth)
            });
        }
        if links.is_empty() {
            return;
        }
        // The last request that is posted is signalled, or nobody would know that it is done.
        let depth = u64::from(self.conns[end.0].depth);
        let mut posted = 0;
        let mut last = links.len() - 1;
        for (i, (link, _)) in links.iter().enumerate() {
            posted += link.requests();
            if posted >= depth {
                last = i;
                break;
            }
        }
        match &mut links[last].0 {
            Link::One(one) => one.flags.signaled = true,
            Link::Many(many) if posted > depth => many.signal_every = 1,
            Link::Many(many) => many.signal_last = true,
        }
        // A window that is cut short has no last request.
        let fits = last + usize::from(posted <= depth || matches!(links[last].0, Link::One(_)));
        let messages: Vec<(u32, Flaw)> = links[..fits].iter().filter_map(|(_, m)| *m).collect();
        let chains: Vec<Vec<Link>> = links
            .chunks(usize::from(turn.chain))
            .map(|c| c.iter().map(|(l, _)| l.clone()).collect())
            .collect();
        self.receives(turn, end, &messages);
        let peer = (end.0, 1 - end.1);
        match turn.before {
            Before::Nothing => {}
            Before::PeerErr => self.round.changes.push(Change::Err(peer)),
            Before::PeerReset => self.round.changes.push(Change::Reset(peer)),
            Before::PeerDestroyed => self.round.changes.push(Change::Destroy(peer)),
            Before::OwnErr => self.round.changes.push(Change::Err(end)),
            Before::OwnReset => self.round.changes.push(Change::Reset(end)),
        }
        let mut before = 0;
        for chain in chains {
            let requests: u64 = chain.iter().map(Link::requests).sum();
            self.round.posts.push(Post { end, chain });
            before += requests;
            if before > depth || turn.before == Before::OwnReset {
                break;
            }
        }
    }

    /// Posts the receives that a turn's messages need.
    fn receives(&mut self, turn: &Turn, end: End, messages: &[(u32, Flaw)]) {
        let peer = (end.0, 1 - end.1);
        let waiting = self.model.waiting(peer) + self.pending(peer);
        let bad = messages.iter().position(|(_, flaw)| of_receive(*flaw)).filter(|k| *k >= waiting);
        let flaw = bad.map_or(Flaw::None, |k| messages[k].1);
        let spare = if flaw == Flaw::None || flaw == Flaw::LateReceive { usize::from(turn.spare) } else { 0 };
        for k in waiting..messages.len() + spare {
            let late = bad.is_some_and(|bad| k >= bad);
            if late && flaw == Flaw::NoReceive {
                break;
            }
            let full = self.conns[peer.0].srq[peer.1] && k >= SLOTS as usize;
            if full || k >= SLOTS as usize {
                break;
            }
            let bytes = messages.get(k).map_or(0, |m| m.0);
            let receive = self.receive(peer, k as u64 + u64::from(turn.chain), bytes, flaw, bad == Some(k));
            if late && flaw == Flaw::LateReceive {
                self.round.late.push(receive);
            } else {
                self.round.receives.push(receive);
            }
        }
    }

    /// Receives that this round's earlier turns left over on a shared queue are used up by their own messages.
    fn pending(&self, peer: End) -> usize {
        if !self.conns[peer.0].srq[peer.1] {
            return 0;
        }
        let same = |r: &&Receive| self.conns[r.end.0].srq[r.end.1] && r.end.1 == peer.1;
        let posted = self.round.receives.iter().filter(same).count();
        let mut needed = 0;
        for post in &self.round.posts {
            if self.conns[post.end.0].srq[1 - post.end.1] && 1 - post.end.1 == peer.1 {
                for link in &post.chain {
                    link.expand(|one| {
                        needed += usize::from(matches!(one.op, Op::WriteImm(_) | Op::Send | Op::SendImm(_)));
                    });
                }
            }
        }
        posted.saturating_sub(needed)
    }

    fn receive(&mut self, peer: End, salt: u64, bytes: u32, flaw: Flaw, bad: bool) -> Receive {
        let shared = self.conns[peer.0].srq[peer.1];
        let queue = if shared { (self.conns.len(), peer.1) } else { peer };
        let count = self.receives.entry(queue).or_default();
        let (number, arena) = (*count, queue.0);
        *count += 1;
        let at = DATA + GUARD + (number % SLOTS) * SLOT;
        let room = if bad && flaw == Flaw::TooSmall { bytes.saturating_sub(1) } else { SLOT as u32 };
        // One to three ranges that fill the room.
        let (a, b) = (room / 3, room / 2);
        let cuts = match salt % 3 {
            0 => vec![0, room],
            1 => vec![0, b, room],
            _ => vec![0, a, b, room],
        };
        let mut sges: Vec<Place> = cuts
            .windows(2)
            .map(|w| Place {
                arena,
                region: Region::Local,
                at: at + u64::from(w[0]),
                len: w[1] - w[0],
                key: Key::Good,
            })
            .collect();
        if bad && flaw == Flaw::BadReceiveKey {
            sges[0].key = Key::Bad;
            // The bad range must be met.
            sges = vec![Place { len: room, ..sges[0] }];
        }
        Receive { end: peer, id: RECEIVES + number, sges }
    }

    fn id(&mut self, requests: u64) -> u64 {
        self.ids += requests;
        self.ids - requests + 1
    }

    fn imm(request: &Request, id: u64) -> u32 {
        (id as u32) << 16 | u32::from(request.salt)
    }

    fn takes_shared(&self, what: What, peer: End) -> bool {
        consumes(what) && self.conns[peer.0].srq[peer.1]
    }

    /// The remote place of a request, with what is wrong with it.
    fn target(&mut self, request: &Request, peer: End, at: u64, len: u32) -> Place {
        let good = self.place(peer, Region::Whole, at, len);
        match request.flaw {
            Flaw::BadRkey => Place { key: Key::Bad, ..good },
            Flaw::NoRight => {
                let region = if request.what == What::Read || request.what == What::Reads {
                    Region::Local
                } else {
                    Region::ReadOnly
                };
                Place { region, ..good }
            }
            Flaw::Stale => {
                let change = Change::Deregister(peer);
                if !self.round.changes.contains(&change) {
                    self.round.changes.push(change);
                }
                Place { region: Region::Mortal, ..good }
            }
            // Good while it lasts; but see `quirks::AVOIDED` of what takes a shared receive.
            Flaw::None if request.salt % 16 == 7 && !self.takes_shared(request.what, peer) => {
                Place { region: Region::Mortal, ..good }
            }
            _ => good,
        }
    }

    fn one(&mut self, request: &Request, end: End, so_far: &mut Earlier) -> Option<Link> {
        let peer = (end.0, 1 - end.1);
        let (what, flaw) = (request.what, request.flaw);
        let odd = u64::from(request.salt >> 4);
        let most = if sends(what) { SLOT as u32 } else { 3 * EDGE as u32 / 4 };
        let mut lens: Vec<u32> = Vec::new();
        if atomic(what) {
            lens.push(8);
        } else {
            let mut left = most;
            for piece in &request.pieces {
                lens.push(u32::from(*piece).min(left));
                left -= u32::from(*piece).min(left);
            }
        }
        let mut total: u32 = lens.iter().sum();
        let id = self.id(1);
        let mut flags = Flags {
            signaled: request.signaled,
            fence: request.fence,
            inline: request.inline && !brings(what) && total <= INLINE && flaw == Flaw::None,
        };

        // Local side.
        let region = if brings(what) { Region::Local } else { Region::ReadOnly };
        let mut local = Vec::new();
        let resend = so_far.read.filter(|_| {
            request.again && request.fence && !brings(what) && flaw == Flaw::None && !lens.is_empty()
        });
        if let Some(read) = resend {
            total = read.len.min(total);
            flags.inline = false;
            local.push(Place { len: total, region, ..read });
        } else {
            for len in &lens {
                let at = self.fresh(end, *len, if atomic(what) { 0 } else { odd })?;
                local.push(self.place(end, region, at, *len));
            }
        }
        if flags.inline && request.salt % 2 == 1 {
            local.iter_mut().for_each(|p| p.key = Key::Bad);
        }
        let last = local.iter().rposition(|p| p.len > 0);
        if let Some(bad) = last.map(|i| &mut local[i]) {
            match flaw {
                Flaw::BadLkey => bad.key = Key::Bad,
                Flaw::LocalPastEnd => {
                    (bad.region, bad.at) = (Region::Short, DATA - u64::from(bad.len) + 1);
                }
                Flaw::NoLocalWrite => bad.region = Region::ReadOnly,
                _ => {}
            }
        }

        // Remote side.
        let mut remote = self.place(peer, Region::Whole, 0, 0);
        if !sends(what) {
            let before = match what {
                What::Write | What::WriteImm | What::Read => so_far.write.filter(|w| total <= w.len),
                _ => so_far.word,
            };
            let at = match (before, flaw) {
                (Some(before), Flaw::None) if request.again => before.at,
                (_, Flaw::PastEnd(over)) if atomic(what) => DATA - u64::from(over / 60 * 8),
                (_, Flaw::PastEnd(over)) => DATA - u64::from(total) + u64::from(over).min(total.into()),
                (_, Flaw::Misaligned) => self.fresh(peer, 16, 0)? + 1 + odd % 7,
                _ => self.fresh(peer, total, if atomic(what) { 0 } else { odd / 8 })?,
            };
            remote = self.target(request, peer, at, total);
            if matches!(flaw, Flaw::PastEnd(_)) {
                remote.region = Region::Short;
            }
            if total == 0 {
                // Nobody looks at the key of nothing.
                remote.key = Key::Bad;
            }
        }
        let good = flaw == Flaw::None || of_receive(flaw);
        match what {
            What::Write | What::WriteImm if good && total > 0 => {
                so_far.write = Some(Place { len: total, ..remote });
            }
            What::Read => {
                so_far.write = None;
                so_far.read = local.first().copied().filter(|p| good && p.len > 0);
            }
            What::FetchAdd | What::CompareSwap(_) if good => so_far.word = Some(remote),
            _ => {}
        }
        let value = self.word(peer, remote.at);
        let op = match what {
            What::Write => Op::Write,
            What::WriteImm => Op::WriteImm(Self::imm(request, id)),
            What::Send => Op::Send,
            What::SendImm => Op::SendImm(Self::imm(request, id)),
            What::Read => Op::Read,
            What::FetchAdd => Op::FetchAdd(u64::from(request.salt) << 24 | 1),
            What::CompareSwap(right) => {
                Op::CompareSwap { expect: value ^ u64::from(!right), swap: !value ^ u64::from(request.salt) }
            }
            What::Writes(_) | What::Reads => return None,
        };
        if consumes(what) {
            so_far.messages.push((total, flaw));
        }
        so_far.flawed |= flaw != Flaw::None;
        local.truncate(SGES as usize);
        Some(Link::One(One { id, op, flags, local, remote }))
    }

    /// What eight bytes hold at the start of the round.
    fn word(&self, end: End, at: u64) -> u64 {
        let mut bytes = [0; 8];
        Content::fill(seed(self.number, end.1, end.0), at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn many(&mut self, request: &Request, end: End, so_far: &mut Earlier) -> Option<Link> {
        let peer = (end.0, 1 - end.1);
        let (salt, flaw) = (u64::from(request.salt), request.flaw);
        let (mut runs, mut local, mut remote) = (Vec::<Run>::new(), 0u64, 0u64);
        for (i, piece) in request.pieces.iter().filter(|p| **p > 0).take(3).enumerate() {
            let len = u32::from(piece % 90) + 1;
            let joins = i > 0 && salt & 16 != 0 && !runs[i - 1].joins;
            let count = if joins { 1 } else { 1 + (salt >> i) as u32 % 4 };
            let gather = if joins { 1 } else { 1 + (salt >> 2) as u16 % 3 };
            let local_step = u64::from(len) + 5;
            let remote_step = u64::from(len) + if gather > 1 || joins { 0 } else { 3 };
            if i > 0 && !joins {
                remote += 3;
            }
            // A joining run starts where the run before ends.
            if let Some(before) = runs.last().filter(|_| joins) {
                remote =
                    before.remote + u64::from(before.count - 1) * before.remote_step + u64::from(before.len);
            }
            runs.push(Run { local, remote, len, count, local_step, remote_step, gather, joins });
            local += u64::from(count) * local_step;
            remote += u64::from(count) * remote_step;
        }
        if runs.is_empty() {
            return None;
        }
        let (local_pitch, remote_pitch) = (local.next_multiple_of(8), remote.next_multiple_of(8));
        let count = 1 + (salt >> 5) % 3;
        let lanes: Arc<[Lane]> =
            (0..count).map(|i| Lane { local: i * local_pitch, remote: i * remote_pitch }).collect();
        let plan = Arc::new(Plan::new(lanes, runs).ok()?);
        let from = (salt >> 7) % plan.requests();
        let window = from..plan.requests();
        let (local_len, remote_len) = (count * local_pitch, count * remote_pitch);
        let mut end_of_last = 0;
        plan.for_each(&window, |_, pieces, at| {
            let len: u64 = pieces.iter().map(|p| u64::from(p.1)).sum();
            end_of_last = end_of_last.max(at + len);
        });
        let reads = request.what == What::Reads;
        let source = self.fresh(end, local_len as u32, salt)?;
        let mut local =
            self.place(end, if reads { Region::Local } else { Region::ReadOnly }, source, local_len as u32);
        match flaw {
            Flaw::BadLkey => local.key = Key::Bad,
            Flaw::NoLocalWrite => local.region = Region::ReadOnly,
            Flaw::LocalPastEnd if local_len <= EDGE => {
                let mut far = 0;
                plan.for_each(&window, |_, pieces, _| {
                    far = pieces.iter().fold(far, |far, p| far.max(p.0 + u64::from(p.1)));
                });
                (local.region, local.at) = (Region::Short, DATA + 1 - far);
            }
            _ => {}
        }
        let mut at = self.fresh(peer, remote_len as u32, salt / 8)?;
        let mut region = None;
        if let Flaw::PastEnd(over) = flaw
            && end_of_last <= EDGE
        {
            (at, region) = (DATA + u64::from(over) - end_of_last, Some(Region::Short));
        }
        let mut remote = self.target(request, peer, at, remote_len as u32);
        remote.region = region.unwrap_or(remote.region);
        let id = self.id(plan.requests());
        let imm = matches!(request.what, What::Writes(true)).then(|| Op::WriteImm(Self::imm(request, id)));
        if imm.is_some() {
            so_far.messages.push((0, flaw));
        }
        so_far.flawed |= flaw != Flaw::None;
        so_far.write = None;
        Some(Link::Many(Many {
            first: id,
            op: if reads { Op::Read } else { Op::Write },
            plan,
            window,
            local,
            remote,
            signal_every: (salt >> 9) as u32 % 4,
            signal_last: request.signaled,
            last: imm,
        }))
    }
}
