//! Runs a script on two hosts, over whichever fabric they have.

use super::model::Expected;
use super::outcome::{Entry, Seen, posted};
use super::script::{
    ARENA, Change, Conn, End, INLINE, Key, Link, One, Place, Post, RECEIVES, REGIONS, Receive, Region, Round,
    SCRIBBLE, SGES, SLOTS, Script, seed,
};
use engine::fabric::{
    Batch, Completion, Content, Duo, Endpoint, Extent, Fabric, Grid, Item, Memory, Mr, Opcode, QpSpec,
    QpState, Recv, Result, RnrTimer, Rtr, Rts, Sge, SrqSpec, Step, WorkRequest,
};
use engine::id::{BufId, CqId, LKey, PortId, QpId, RKey, SrqId, WrId};
use engine::time::{Span, Time};
use std::collections::BTreeMap;

/// How programs run on a fabric.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// At most this long for a round.
    pub patience: Span,
    /// This long after everything expected was there, for what was not expected.
    pub settle: Span,
    /// Late receives come this long after the posts.
    pub late: Span,
    /// Plans are posted request by request.
    pub expand: bool,
}

impl Pace {
    /// In virtual time: until nothing happens any more.
    pub const VIRTUAL: Self =
        Self { patience: Span::s(2), settle: Span::s(2), late: Span::us(200), expand: false };
    /// On devices.
    pub const REAL: Self = Self { patience: Span::s(4), settle: Span(0), late: Span::ms(2), expand: false };
}

/// A registration with its key.
type Regions = BTreeMap<Region, Mr>;

struct Arena {
    buf: BufId,
    regions: Regions,
}

struct Side {
    arenas: Vec<Arena>,
    srq: SrqId,
    cqs: Vec<CqId>,
    own: Vec<[CqId; 2]>,
    qps: Vec<Option<QpId>>,
}

struct Runner<'a> {
    duo: &'a mut dyn Duo,
    pace: Pace,
    conns: &'a [Conn],
    sides: Vec<Side>,
    names: [BTreeMap<QpId, usize>; 2],
    seen: Seen,
    received: BTreeMap<End, usize>,
}

/// Makes calls on one side and returns what they return.
pub fn on<R>(duo: &mut dyn Duo, side: usize, mut calls: impl FnMut(&mut dyn Fabric) -> R) -> R {
    let mut result = None;
    duo.call(side, &mut |fabric| result = Some(calls(fabric)));
    result.expect("Duo::call makes the calls")
}

const PORT: PortId = PortId(0);

/// Runs a script; what each round left. An error is one of making or connecting objects.
pub fn run(duo: &mut dyn Duo, script: &Script, expected: &[Expected], pace: Pace) -> Result<Vec<Seen>> {
    let mut runner = Runner {
        duo,
        pace,
        conns: &script.conns,
        sides: Vec::new(),
        names: Default::default(),
        seen: Seen::default(),
        received: BTreeMap::new(),
    };
    let result = runner.all(script, expected);
    let cleaned = runner.clean();
    let rounds = result?;
    cleaned?;
    Ok(rounds)
}

impl Runner<'_> {
    fn all(&mut self, script: &Script, expected: &[Expected]) -> Result<Vec<Seen>> {
        for side in 0..2 {
            let made = self.make(side)?;
            self.sides.push(made);
        }
        for c in 0..self.conns.len() {
            for side in 0..2 {
                self.create((c, side))?;
            }
            self.connect(c)?;
        }
        let mut rounds = Vec::new();
        for (n, (round, expected)) in script.rounds.iter().zip(expected).enumerate() {
            rounds.push(self.round(n, round, expected)?);
        }
        Ok(rounds)
    }

    fn make(&mut self, side: usize) -> Result<Side> {
        let conns = self.conns;
        on(self.duo, side, |f| {
            let mut arenas = Vec::new();
            for _ in 0..=conns.len() {
                let buf = f.alloc(Memory::Host, Grid::bytes(ARENA))?;
                let mut regions = Regions::new();
                for region in REGIONS {
                    regions.insert(region, f.register(PORT, buf, region.span(), region.access())?);
                }
                arenas.push(Arena { buf, regions });
            }
            let depth = 2048;
            let shared_cq = f.create_cq(PORT, depth)?;
            let srq = f.create_srq(PORT, SrqSpec { max_recv: 127, max_sge: SGES })?;
            let mut cqs = vec![shared_cq];
            let mut own = Vec::new();
            for conn in conns {
                let pair = if conn.shared_cq {
                    [shared_cq; 2]
                } else {
                    let pair = [f.create_cq(PORT, depth)?, f.create_cq(PORT, depth)?];
                    cqs.extend(pair);
                    pair
                };
                own.push(pair);
            }
            Ok(Side { arenas, srq, cqs, own, qps: vec![None; conns.len()] })
        })
    }

    fn create(&mut self, end: End) -> Result<()> {
        let (c, s) = end;
        let conn = self.conns[c];
        let side = &self.sides[s];
        let spec = QpSpec {
            send_cq: side.own[c][0],
            recv_cq: side.own[c][1],
            srq: conn.srq[s].then_some(side.srq),
            max_send: conn.depth,
            max_recv: if conn.srq[s] { 0 } else { SLOTS as u32 + 15 },
            max_sge: SGES,
            max_inline: INLINE,
        };
        let qp = on(self.duo, s, |f| f.create_qp(PORT, spec))?;
        self.sides[s].qps[c] = Some(qp);
        self.names[s].insert(qp, c);
        Ok(())
    }

    fn qp(&self, end: End) -> QpId {
        self.sides[end.1].qps[end.0].unwrap_or(QpId(u32::MAX))
    }

    fn connect(&mut self, c: usize) -> Result<()> {
        let conn = self.conns[c];
        let mut ends = [Endpoint::default(); 2];
        for (s, end) in ends.iter_mut().enumerate() {
            let qp = self.qp((c, s));
            *end = on(self.duo, s, |f| {
                f.modify_qp(qp, Step::Reset)?;
                f.modify_qp(qp, Step::Init(conn.access))?;
                f.endpoint(qp)
            })?;
            end.mtu = end.mtu.min(conn.mtu);
        }
        // Patient, 134 and 537 ms: no packet of a program is lost, so what a timeout sends again on a machine that was busy is only a
        // way into what rxe does wrong then (see `quirks::AVOIDED`).
        let rts = if conn.fragile {
            Rts { timeout: 15, retry_cnt: 1, rnr_retry: 1, max_rd_atomic: conn.reads }
        } else {
            Rts { timeout: 17, retry_cnt: 7, rnr_retry: 7, max_rd_atomic: conn.reads }
        };
        for s in 0..2 {
            let qp = self.qp((c, s));
            let rtr = Rtr { peer: ends[1 - s], max_dest_rd_atomic: conn.reads, min_rnr_timer: RnrTimer(1) };
            on(self.duo, s, |f| {
                f.modify_qp(qp, Step::Rtr(rtr))?;
                f.modify_qp(qp, Step::Rts(rts))
            })?;
        }
        Ok(())
    }

    fn round(&mut self, n: usize, round: &Round, expected: &Expected) -> Result<Seen> {
        let place = Extent::piece(0, 0, ARENA);
        for s in 0..2 {
            for (a, arena) in self.sides[s].arenas.iter().enumerate() {
                let (buf, what) =
                    (arena.buf, Content { seed: seed(n, s, a), at: 0, per_buffer: 0, per_piece: 0 });
                on(self.duo, s, |f| f.stamp(buf, &place, what))?;
            }
        }
        self.seen = Seen::default();
        self.received.clear();
        for receive in &round.receives {
            self.receive(receive);
        }
        for change in &round.changes {
            self.change(*change)?;
        }
        // Flushes of the changes come before what is posted.
        for post in &round.posts {
            self.post(post);
        }
        if !round.late.is_empty() {
            let until = self.duo.now() + self.pace.late;
            self.wait(until, expected, true);
            for receive in &round.late {
                self.receive(receive);
            }
        }
        // In the order in which the model has them: receives first.
        let receives = round.receives.len() + round.late.len();
        let late = self.seen.posts.split_off(self.seen.posts.len() - round.late.len());
        let at = round.receives.len();
        self.seen.posts.splice(at..at, late);
        debug_assert!(self.seen.posts.len() == receives + round.posts.len());
        let until = self.duo.now() + self.pace.patience;
        self.wait(until, expected, false);
        self.look()?;
        for &c in &round.repair {
            self.repair(c)?;
        }
        for change in &round.changes {
            if let Change::Deregister((c, s)) = *change {
                let buf = self.sides[s].arenas[c].buf;
                let region = Region::Mortal;
                let mr = on(self.duo, s, |f| f.register(PORT, buf, region.span(), region.access()))?;
                self.sides[s].arenas[c].regions.insert(region, mr);
            }
        }
        Ok(std::mem::take(&mut self.seen))
    }

    fn change(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Err(end) => self.modify(end, Step::Err),
            Change::Reset(end) => self.modify(end, Step::Reset),
            Change::Destroy(end) => {
                let qp = self.qp(end);
                self.sides[end.1].qps[end.0] = None;
                on(self.duo, end.1, |f| f.destroy_qp(qp))
            }
            Change::Deregister((c, s)) => {
                let mr = self.sides[s].arenas[c].regions[&Region::Mortal].id;
                on(self.duo, s, |f| f.deregister(mr))
            }
        }
    }

    fn modify(&mut self, end: End, step: Step) -> Result<()> {
        let qp = self.qp(end);
        on(self.duo, end.1, |f| f.modify_qp(qp, step))
    }

    fn sge(&self, side: usize, place: &Place) -> Sge {
        let mr = self.sides[side].arenas[place.arena].regions[&place.region];
        let lkey = match place.key {
            Key::Good => mr.lkey,
            Key::Bad => LKey(mr.lkey.0 ^ 0x55),
        };
        Sge { addr: mr.addr + place.at, len: place.len, lkey }
    }

    fn remote(&self, side: usize, place: &Place) -> (u64, RKey) {
        let mr = self.sides[side].arenas[place.arena].regions[&place.region];
        let rkey = match place.key {
            Key::Good => mr.rkey,
            Key::Bad => RKey(mr.rkey.0 ^ 0x55),
        };
        (mr.addr + place.at, rkey)
    }

    fn receive(&mut self, receive: &Receive) {
        let (c, s) = receive.end;
        let sges: Vec<Sge> = receive.sges.iter().map(|p| self.sge(s, p)).collect();
        let shared = self.conns[c].srq[s];
        let (qp, srq) = (self.qp(receive.end), self.sides[s].srq);
        let recv = Recv { first: WrId(receive.id), count: 1, sges: &sges };
        let result =
            on(self.duo, s, |f| if shared { f.post_srq_recv(srq, recv) } else { f.post_recv(qp, recv) });
        self.seen.posts.push(posted(result));
    }

    fn post(&mut self, post: &Post) {
        let (end, peer) = (post.end, 1 - post.end.1);
        let mut ones: Vec<(One, Vec<Sge>)> = Vec::new();
        let mut links: Vec<Option<usize>> = Vec::new();
        for link in &post.chain {
            if let (Link::Many(_), false) = (link, self.pace.expand) {
                links.push(None);
                continue;
            }
            link.expand(|one| {
                let sges = one.local.iter().map(|p| self.sge(end.1, p)).collect();
                links.push(Some(ones.len()));
                ones.push((one, sges));
            });
        }
        let mut windows = post.chain.iter().filter_map(|link| match link {
            Link::Many(many) => Some(many),
            Link::One(_) => None,
        });
        let mut items = Vec::new();
        for link in &links {
            items.push(match link {
                Some(i) => {
                    let (one, local) = &ones[*i];
                    let remote = self.remote(peer, &one.remote);
                    Item::One(WorkRequest { id: WrId(one.id), op: one.op, flags: one.flags, local, remote })
                }
                None => {
                    let Some(many) = windows.next() else { continue };
                    let local = self.sge(end.1, &many.local);
                    Item::Many(Batch {
                        plan: &many.plan,
                        first: WrId(many.first),
                        op: many.op,
                        local: (local.addr, local.lkey),
                        remote: self.remote(peer, &many.remote),
                        window: many.window.clone(),
                        signal_every: many.signal_every,
                        signal_last: many.signal_last,
                        last: many.last,
                    })
                }
            });
        }
        let qp = self.qp(end);
        let inline: Vec<&Place> =
            ones.iter().filter(|(one, _)| one.flags.inline).flat_map(|(one, _)| &one.local).collect();
        let arenas = &self.sides[end.1].arenas;
        let (result, scribbled) = on(self.duo, end.1, |f| {
            let result = f.post_send(qp, &items);
            let scribbled: Result<Vec<()>> = inline
                .iter()
                .map(|p| f.write(arenas[p.arena].buf, p.at, &vec![SCRIBBLE; p.len as usize]))
                .collect();
            (result, scribbled)
        });
        if let Err(error) = scribbled {
            self.seen.wrong.push(format!("writing an inline source: {error}"));
        }
        self.seen.posts.push(posted(result));
    }

    /// Takes completions until all expected ones are there, at most until `until`; with `short`, until then.
    fn wait(&mut self, until: Time, expected: &Expected, short: bool) {
        let (mut until, mut done) = (until, short);
        loop {
            self.poll(expected);
            if !done && self.complete(expected) {
                done = true;
                until = self.duo.now() + self.pace.settle;
            }
            let now = self.duo.now();
            if now >= until {
                return;
            }
            if !self.duo.pass(until.min(now + Span::ms(1))) && !self.poll(expected) {
                return;
            }
        }
    }

    fn complete(&mut self, expected: &Expected) -> bool {
        let count = |all: &BTreeMap<End, Vec<Entry>>| all.values().map(Vec::len).sum::<usize>();
        count(&self.seen.sends) >= count(&expected.seen.sends)
            && count(&self.seen.receives) >= count(&expected.seen.receives)
            && self.states() == expected.seen.states
    }

    fn states(&mut self) -> BTreeMap<End, Option<QpState>> {
        let mut states = BTreeMap::new();
        for s in 0..2 {
            for c in 0..self.conns.len() {
                let qp = self.sides[s].qps[c];
                let state = qp.and_then(|qp| on(self.duo, s, |f| f.qp_state(qp)).ok());
                states.insert((c, s), state);
            }
        }
        states
    }

    fn poll(&mut self, expected: &Expected) -> bool {
        let mut some = false;
        for s in 0..2 {
            // Named tests look at events; here they only must not be in the way.
            on(self.duo, s, |f| while f.next_event().is_some() {});
            for q in 0..self.sides[s].cqs.len() {
                let cq = self.sides[s].cqs[q];
                let mut batch = [Completion::default(); 16];
                loop {
                    let n = on(self.duo, s, |f| f.poll(cq, &mut batch));
                    if n == 0 {
                        break;
                    }
                    some = true;
                    for completion in &batch[..n] {
                        self.completion(s, completion, expected);
                    }
                }
            }
        }
        some
    }

    fn completion(&mut self, s: usize, completion: &Completion, expected: &Expected) {
        let Some(&c) = self.names[s].get(&completion.qp) else {
            return self.seen.wrong.push(format!("{completion:?} on side {s}: no such queue pair"));
        };
        let end = (c, s);
        let receive = completion.id.0 >= RECEIVES;
        let result = completion.result.map_err(|failed| failed.status).map(|done| {
            let bytes = receive || !matches!(done.opcode, Opcode::Write | Opcode::Send);
            (done.opcode, bytes.then_some(done.bytes), done.imm.filter(|_| receive))
        });
        let mut id = completion.id.0;
        if receive && self.conns[c].srq[s] {
            self.seen.shared[s].push(id);
            self.seen.shared[s].sort_unstable();
            id = 0;
        }
        let queue = if receive { &mut self.seen.receives } else { &mut self.seen.sends };
        queue.entry(end).or_default().push(Entry { id, result });
        if receive {
            let k = self.received.entry(end).or_default();
            let number = *k;
            *k += 1;
            if let Some(visible) = expected.visible.get(&end).and_then(|v| v.get(number)) {
                self.visible(end, number, visible, expected);
            }
        }
    }

    /// All data up to this message must be there now.
    fn visible(&mut self, end: End, number: usize, visible: &super::model::Visible, expected: &Expected) {
        let s = end.1;
        for (arena, range) in visible {
            let buf = self.sides[s].arenas[*arena].buf;
            let mut bytes = vec![0; (range.end - range.start) as usize];
            let read = on(self.duo, s, |f| f.read(buf, range.start, &mut bytes));
            let want = &expected.seen.memory[s][*arena][range.start as usize..range.end as usize];
            if read.is_err() || bytes != want {
                self.seen.wrong.push(format!(
                    "receive {number} of connection {} side {s} completed before bytes {range:?} were there",
                    end.0
                ));
            }
        }
    }

    fn look(&mut self) -> Result<()> {
        for (s, side) in self.sides.iter().enumerate() {
            for arena in &side.arenas {
                let mut bytes = vec![0; ARENA as usize];
                let buf = arena.buf;
                on(self.duo, s, |f| f.read(buf, 0, &mut bytes))?;
                self.seen.memory[s].push(bytes);
            }
        }
        self.seen.states = self.states();
        Ok(())
    }

    /// Both ends start anew.
    fn repair(&mut self, c: usize) -> Result<()> {
        for s in 0..2 {
            match self.sides[s].qps[c] {
                Some(_) => self.modify((c, s), Step::Reset)?,
                None => self.create((c, s))?,
            }
        }
        self.connect(c)
    }

    fn clean(&mut self) -> Result<()> {
        for (s, side) in self.sides.iter().enumerate() {
            on(self.duo, s, |f| {
                for qp in side.qps.iter().flatten() {
                    f.destroy_qp(*qp)?;
                }
                for cq in &side.cqs {
                    f.destroy_cq(*cq)?;
                }
                f.destroy_srq(side.srq)?;
                for arena in &side.arenas {
                    for mr in arena.regions.values() {
                        f.deregister(mr.id)?;
                    }
                    f.free(arena.buf)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
