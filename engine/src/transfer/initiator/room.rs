//! The life of a room at the initiator: opened, given pages and a page list, cut into parts, ended.

use super::super::checksum::{Side, of_feed};
use super::super::end::RoomState;
use super::super::news::News;
use super::super::pages::PageTable;
use super::super::plan::{PlanLimits, plan};
use super::paths::Ways;
use super::stage::{RemoteStage, RoomStage, Staged, cut_staged};
use super::{Initiator, InitiatorRoom};
use crate::fabric::Plan;
use crate::node::{Cx, Reason};
use crate::policy::{Direction, JobId, Spread};
use crate::registry::{Message, PageList, PageRun, Report, RoomKey};
use crate::time::Time;
use std::ops::Range;
use std::sync::Arc;

/// Where it goes to or, in pull, comes from.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub slot: u16,
    pub generation: u8,
    pub group: u16,
    pub credits: u16,
    pub table: PageTable,
    pub total: u32,
    pub stage: RemoteStage,
}

/// State of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartState {
    /// Not posted to its end.
    Waiting,
    /// All posted.
    Posted,
    /// Completed with success, or seen by the target.
    Done,
}

/// All requests of one (piece, source rank, destination rank) on one queue pair.
#[derive(Clone)]
pub(super) struct Part {
    pub feed: u16,
    /// The rail that it was cut for, and the queue pair that carries it: another rail's where that one is left out.
    pub home: u16,
    pub wire: u32,
    pub number: u16,
    /// Plans with the index of their share; the part is requests `window` of their concatenation.
    pub plans: Vec<(Arc<Plan>, u8)>,
    pub window: Range<u64>,
    /// Requests posted, counted from the window's start, the seal and aux writes behind it.
    pub cursor: u64,
    pub bytes: u64,
    /// Bytes completed on the present connection.
    pub acked: u64,
    /// Total number of parts, on the part that seals.
    pub seal: Option<u16>,
    pub aux: bool,
    pub state: PartState,
    /// If it is staged: then it has no plans.
    pub stage: Option<Box<Staged>>,
}

impl Part {
    /// Requests beside KV.
    pub(super) fn extras(&self) -> u64 {
        u64::from(self.seal.is_some()) + u64::from(self.aux)
    }
}

/// A room at the initiator.
#[derive(Clone)]
pub(super) struct Room {
    pub spec: InitiatorRoom,
    pub cached: u32,
    pub arrived: Time,
    /// This side's pages.
    pub src: PageTable,
    /// Pull: the aux slot where the aux row is read to, once there are pages.
    pub landing: Option<u16>,
    /// Pull: pieces that the target told of, and how many (token, layer) pairs that are.
    pub told: (u32, u64),
    pub remote: Option<Remote>,
    /// Pieces (tokens, layers) that are there but not yet in parts.
    pub pieces: Vec<(Range<u32>, Range<u32>)>,
    pub all_produced: bool,
    pub sealed: bool,
    /// How often pieces were cut into parts.
    pub cuts: u32,
    /// Next part number by feed.
    pub numbers: Vec<u16>,
    /// With checksums, by feed: in push of what was produced so far; in pull what prefill said of everything.
    pub sums: Vec<u64>,
    pub parts: Vec<Part>,
    pub undone: u32,
    pub jobs: Vec<JobId>,
    /// Slices posted and not completed.
    pub outstanding: u32,
    pub started: bool,
    /// A request did not complete with success since the last fence of the target.
    pub dirty: bool,
    pub retries: u32,
    pub ending: bool,
    pub work_requests: u64,
    pub bytes: u64,
    pub stage: RoomStage,
}

impl Room {
    /// A new room, in the memory of one that is over.
    fn new(spec: InitiatorRoom, arrived: Time, spare: Option<Self>) -> Self {
        let (mut src, mut pieces, mut numbers) = (PageTable::default(), Vec::new(), Vec::new());
        let (mut parts, mut jobs) = (Vec::new(), Vec::new());
        if let Some(spare) = spare {
            (src, pieces, numbers, parts, jobs) =
                (spare.src, spare.pieces, spare.numbers, spare.parts, spare.jobs);
            src.clear();
            pieces.clear();
            numbers.clear();
            parts.clear();
            jobs.clear();
        }
        Self {
            spec,
            cached: 0,
            arrived,
            src,
            landing: None,
            told: (0, 0),
            remote: None,
            pieces,
            all_produced: false,
            sealed: false,
            cuts: 0,
            numbers,
            sums: Vec::new(),
            parts,
            undone: 0,
            jobs,
            outstanding: 0,
            started: false,
            dirty: false,
            retries: 0,
            ending: false,
            work_requests: 0,
            bytes: 0,
            stage: RoomStage::default(),
        }
    }
}

impl Room {
    /// What it is doing.
    pub(super) fn state(&self, direction: Direction) -> RoomState {
        let listed = self.remote.as_ref().is_some_and(|remote| remote.table.len() >= remote.total);
        let pages = direction == Direction::Push || self.landing.is_some();
        match () {
            () if self.ending => RoomState::Failed,
            () if self.started => RoomState::Transferring,
            () if listed && pages => RoomState::WaitingForInput,
            () => RoomState::Bootstrapping,
        }
    }
}

impl Initiator {
    /// Opens a room. False if it is open already or has ended here; then its report is told again.
    pub fn open(&mut self, cx: &mut Cx<'_>, spec: InitiatorRoom) -> bool {
        let key = spec.key;
        if self.by_key.contains(&key) {
            return false;
        }
        if let Some(report) = self.tombstones.get(&key).copied()
            && self.config.rules.tombstones
        {
            self.news.push_back(News::Tell(Message::Report { key, report }));
            return false;
        }
        let peer = spec.peer;
        let index = self.free_rooms.pop().unwrap_or_else(|| {
            self.rooms.push(None);
            (self.rooms.len() - 1) as u32
        });
        let spare = self.spare_rooms.pop();
        self.rooms[index as usize] = Some(Room::new(spec, cx.now, spare));
        self.by_key.insert(key, index);
        self.begin(peer, index);
        self.timers.arm(key, cx.now + self.config.room_deadline);
        self.ask_if_idle(peer);
        true
    }

    /// Whether the room is open and not ending.
    pub fn is_active(&self, key: &RoomKey) -> bool {
        self.by_key
            .get(key)
            .is_some_and(|i| self.rooms[*i as usize].as_ref().is_some_and(|room| !room.ending))
    }

    /// The room's pages on this side, and how many of its tokens came from the prefix cache.
    pub fn attach(&mut self, key: &RoomKey, table: &PageTable, cached: u32) {
        if let Some(index) = self.by_key.get(key).copied()
            && let Some(room) = self.room_mut(index)
        {
            room.src.clone_from(table);
            room.cached = cached;
        }
    }

    /// The target's page list, or a fragment of it.
    pub fn publish(&mut self, cx: &mut Cx<'_>, list: &PageList) {
        let Some(index) = self.by_key.get(&list.key).copied() else {
            self.refuse_unknown(cx, list.key);
            return;
        };
        let rules = self.config.rules;
        let Some(room) = self.rooms.get_mut(index as usize).and_then(Option::as_mut) else { return };
        if room.ending {
            return;
        }
        let link = self.links.get(&room.spec.peer);
        let stale = link.is_some_and(|link| rules.fence_epoch && link.is_stale(list.fence_epoch, &list.key));
        let have = room.remote.as_ref().map_or(0, |remote| remote.table.len());
        let listed = list.pages.iter().try_fold(0u32, |sum, run| sum.checked_add(run.count));
        // A fragment that comes again adds nothing.
        let fits = listed
            .is_some_and(|n| list.offset < have || have.checked_add(n).is_some_and(|end| end <= list.total));
        let outside =
            list.pages.iter().any(|run| !in_pool(run, link.map_or(u32::MAX, |link| link.facts.pages)));
        let credits = list.credits > 0 || self.config.direction == Direction::Pull;
        let stage = RemoteStage::new(&list.stage);
        let (Some(stage), false) =
            (stage, stale || outside || !fits || !credits || list.tokens != room.spec.tokens)
        else {
            self.fail(cx, list.key, Reason::Refused, true);
            return;
        };
        match &mut room.remote {
            None if list.offset == 0 => {
                room.remote = Some(Remote {
                    slot: list.slot,
                    generation: list.generation,
                    group: list.group,
                    credits: list.credits,
                    table: PageTable::new(list.pages.clone()),
                    total: list.total,
                    stage,
                });
            }
            Some(remote) if list.offset == remote.table.len() => {
                for run in &list.pages {
                    remote.table.push(*run);
                }
            }
            // The same fragment again.
            Some(remote) if list.offset < remote.table.len() => return,
            _ => {
                self.fail(cx, list.key, Reason::Refused, true);
                return;
            }
        }
        self.advance(cx, index);
        self.pump_all(cx);
    }

    /// More KV of a room is in its pages: these tokens of these layers. `last` says that it was the rest.
    pub fn produced(
        &mut self,
        cx: &mut Cx<'_>,
        key: &RoomKey,
        tokens: Range<u32>,
        layers: Range<u32>,
        last: bool,
    ) {
        let Some(index) = self.by_key.get(key).copied() else { return };
        let Some(room) = self.room_mut(index) else { return };
        if room.ending || room.all_produced {
            return;
        }
        Self::join(&mut room.pieces, tokens, layers);
        room.all_produced = last;
        self.go_on(cx, index);
    }

    /// Adds a piece to others, making the last one longer where that is the same.
    pub(super) fn join(pieces: &mut Vec<(Range<u32>, Range<u32>)>, tokens: Range<u32>, layers: Range<u32>) {
        if tokens.is_empty() || layers.is_empty() {
            return;
        }
        match pieces.last_mut() {
            Some((t, l)) if t.end == tokens.start && *l == layers => t.end = tokens.end,
            Some((t, l)) if *t == tokens && l.end == layers.start => l.end = layers.end,
            _ => pieces.push((tokens, layers)),
        }
    }

    /// Cuts and posts what can be.
    pub(super) fn go_on(&mut self, cx: &mut Cx<'_>, index: u32) {
        self.advance(cx, index);
        self.pump_all(cx);
    }

    /// Cuts what was produced into parts, if everything that this takes is there.
    pub(super) fn advance(&mut self, cx: &mut Cx<'_>, index: u32) {
        let Some(room) = self.rooms.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let Some(link) = self.links.get_mut(&room.spec.peer) else { return };
        let Some(remote) = &mut room.remote else { return };
        let pull = self.config.direction == Direction::Pull;
        if room.ending || room.sealed || remote.table.len() < remote.total || pull && room.landing.is_none() {
            return;
        }
        // Checked here because the list may have come before the peer's facts.
        let facts = &link.facts;
        if u32::from(remote.slot) >= facts.slots
            || remote.group >= facts.dp
            || !remote.table.runs().iter().all(|run| in_pool(run, facts.pages))
            || !remote.stage.share_out(&link.pairing, facts)
        {
            let key = room.spec.key;
            self.fail(cx, key, Reason::Refused, true);
            return;
        }
        if room.pieces.is_empty() && !room.all_produced {
            return;
        }
        let pairing = link.pairing.clone();
        let key = room.spec.key;
        room.numbers.resize(pairing.feeds.len(), 0);
        self.plans.clear();
        let staged = if self.sources.is_empty() { Vec::new() } else { self.stage_pieces(index) };
        // Staged parts have receives of their own.
        let directly = staged.is_empty() || staged.iter().flatten().any(Option::is_none);
        let Some(room) = self.rooms.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let Some(link) = self.links.get_mut(&room.spec.peer) else { return };
        let Some(remote) = &room.remote else { return };
        let (room_group, remote_group) = (room.spec.group, remote.group);
        // The last parts must fit into the credits: what does not is kept back until all is produced. In pull the target sees to that.
        let spread = |nth| self.config.rail_policy.spread(nth, pairing.rails);
        if !room.all_produced && !pull && directly {
            // Receives are promised by rail. A cut makes one part at most on each, but small ones leave rails out, so parts in all
            // say nothing about the fullest rail.
            let widest = pairing.feeds.iter().map(|feed| spread(feed.nth).width()).max().unwrap_or(1).max(1);
            if room.cuts as usize + 2 > usize::from(remote.credits / widest) {
                return;
            }
        }
        room.cuts += u32::from(directly);
        let all_write_aux = !pull && !self.config.rules.one_aux_writer;
        let limits = PlanLimits { max_sge: self.config.max_sge, max_message: self.config.max_message };
        let last = room.all_produced;
        let dst_groups = link.facts.dp;
        let mut fresh = 0..room.parts.len() as u32;
        fresh.start = fresh.end;
        // Whose last part is a staged one.
        let sealed = if staged.is_empty() {
            Vec::new()
        } else {
            cut_staged(room, &pairing, &staged, (last, all_write_aux), |room, f, nth, bytes| {
                let nth_feed = pairing.feeds[f].nth;
                let base = pairing.wire(dst_groups, room_group, remote_group, f, 0);
                let home = match (spread(nth_feed), &mut self.rails) {
                    (Spread::One, Some(policy)) => {
                        let piece = Self::piece(room, pairing.wires[base].src, nth_feed, bytes);
                        let ports = cx.fabric.ports();
                        let ways = Ways { link, base, ranks: self.memory.ranks.len(), ports };
                        ways.choose(cx.now, &mut **policy, &self.config.rail_policy, &piece)
                    }
                    (Spread::One, None) => 0,
                    (Spread::All(rails), _) => rails.start + (nth % rails.len().max(1)) as u16,
                };
                let wire = base as u32 + u32::from(link.usable.carrier(base, pairing.rails, home));
                if self.measures {
                    link.add_backlog(wire, bytes);
                }
                (home, wire)
            })
        };
        let Some(remote) = &room.remote else { return };
        for (f, feed) in pairing.feeds.iter().enumerate() {
            let mut plans: Vec<(Arc<Plan>, u8)> = Vec::with_capacity(room.pieces.len() * feed.shares.len());
            for (p, (tokens, layers)) in room.pieces.iter().enumerate() {
                if self.config.checksums && !pull {
                    room.sums.resize(pairing.feeds.len(), 0);
                    let wire = pairing.wire(dst_groups, room.spec.group, remote.group, f, 0);
                    let (side, range) = (Side::Initiator(pairing.wires[wire].src), (tokens, layers));
                    match of_feed(cx.fabric, &self.memory, &pairing, f, side, &room.src, range) {
                        Ok(sum) => room.sums[f] = room.sums[f].wrapping_add(sum),
                        Err(_) => {
                            self.fail(cx, key, Reason::Checksum, true);
                            return;
                        }
                    }
                }
                if staged.get(f).is_some_and(|pieces| pieces[p].is_some()) {
                    continue;
                }
                for (s, share) in feed.shares.iter().enumerate() {
                    let made =
                        self.plans.iter().find(|(class, piece, _)| *class == share.class && *piece == p);
                    let made = match made {
                        Some((_, _, made)) => made.clone(),
                        None => {
                            let lanes = share.lanes_of(layers);
                            match plan(share, lanes, &room.src, &remote.table, tokens.clone(), limits) {
                                Ok(made) => {
                                    let made = Arc::new(made);
                                    self.plans.push((share.class, p, made.clone()));
                                    made
                                }
                                Err(_) => {
                                    self.fail(cx, key, Reason::Layout, true);
                                    return;
                                }
                            }
                        }
                    };
                    if made.requests() > 0 {
                        plans.push((made, s as u8));
                    }
                }
            }
            let total: u64 = plans.iter().map(|(plan, _)| plan.requests()).sum();
            let base = pairing.wire(dst_groups, room.spec.group, remote.group, f, 0);
            self.homes.clear();
            match (spread(feed.nth), &mut self.rails) {
                (Spread::One, Some(policy)) => {
                    let bytes = window_bytes(&plans, &(0..total));
                    let rank = pairing.wires[base].src;
                    let piece = Self::piece(room, rank, feed.nth, bytes);
                    let ports = cx.fabric.ports();
                    let ways = Ways { link, base, ranks: self.memory.ranks.len(), ports };
                    self.homes.push(ways.choose(cx.now, &mut **policy, &self.config.rail_policy, &piece));
                }
                (Spread::One, None) => self.homes.push(0),
                (Spread::All(rails), _) => {
                    let live = |rail: &u16| link.usable.has(base + usize::from(*rail));
                    // Of what is left out, another rail carries it all.
                    if rails.len() > 1 && !link.usable.is_whole() && rails.clone().any(|rail| live(&rail)) {
                        self.homes.extend(rails.filter(live));
                    } else {
                        self.homes.extend(rails);
                    }
                }
            }
            let n = self.homes.len() as u64;
            for (j, home) in (0u64..).zip(self.homes.iter().copied()) {
                let window = total * j / n..total * (j + 1) / n;
                let ends = last && j + 1 == n && !sealed.get(f).copied().unwrap_or(false);
                let (seals, aux) = (ends && !pull, ends && (feed.aux || all_write_aux));
                if window.is_empty() && !seals && !aux {
                    continue;
                }
                let number = room.numbers[f];
                room.numbers[f] += 1;
                let wire = base as u32 + u32::from(link.usable.carrier(base, pairing.rails, home));
                let bytes = window_bytes(&plans, &window);
                room.parts.push(Part {
                    feed: f as u16,
                    home,
                    wire,
                    number,
                    plans: if j + 1 == n { std::mem::take(&mut plans) } else { plans.clone() },
                    window,
                    cursor: 0,
                    bytes,
                    acked: 0,
                    seal: seals.then(|| room.numbers[f]),
                    aux,
                    state: PartState::Waiting,
                    stage: None,
                });
                room.undone += 1;
                if self.measures {
                    link.add_backlog(wire, bytes);
                }
            }
        }
        if self.config.rules.chunks_once {
            room.pieces.clear();
        }
        room.sealed = last;
        fresh.end = room.parts.len() as u32;
        if last {
            self.timers.arm(key, cx.now + self.config.transfer_deadline);
        }
        let peer = room.spec.peer;
        self.enqueue(index, fresh);
        // Its queue pairs may have gone to others while there was nothing to move.
        self.ask_if_idle(peer);
    }

    /// A page list or abort for a room that is not open here: it ended, and its report is told again; or nothing was posted for
    /// it, and nothing ever will be.
    fn refuse_unknown(&mut self, cx: &mut Cx<'_>, key: RoomKey) {
        let ended = self.tombstones.get(&key).copied().filter(|_| self.config.rules.tombstones);
        let report = ended.unwrap_or(Report { delivered: false, clean: true });
        if ended.is_none() {
            self.tombstones.add(cx.now, key, report);
        }
        self.news.push_back(News::Tell(Message::Report { key, report }));
    }

    /// Decode, the router or this node ends a room. An abort for an unknown room leaves a tombstone before "none posted" is answered, so
    /// that an assignment which comes later finds it.
    pub fn abort(&mut self, cx: &mut Cx<'_>, key: RoomKey, reason: Reason, tell: bool) {
        if self.by_key.contains(&key) {
            self.fail(cx, key, reason, tell);
        } else if self.tombstones.get(&key).is_none() || !self.config.rules.tombstones {
            self.refuse_unknown(cx, key);
        }
    }

    /// Posts nothing more for a room, and ends it as Failed once what is posted has completed.
    pub(super) fn fail(&mut self, cx: &mut Cx<'_>, key: RoomKey, reason: Reason, tell: bool) {
        let Some(index) = self.by_key.get(&key).copied() else { return };
        let (waits, crossed) = (self.config.rules.initiator_waits, self.config.rules.crossed_aborts_wait);
        let Some(room) = self.room_mut(index) else { return };
        if room.ending {
            if !crossed {
                self.news.push_back(News::Released(key));
            }
            return;
        }
        room.ending = true;
        room.pieces.clear();
        let (drained, started) = (room.outstanding == 0, room.started);
        self.news.push_back(News::Failed(key, reason));
        if tell && self.config.rules.failures_told {
            self.news.push_back(News::Tell(Message::Abort { key, reason }));
        }
        self.timers.cancel(key);
        self.drop_jobs(index);
        self.ungather(index);
        if drained {
            self.end(cx, index, false);
        } else if !waits {
            debug_assert!(started);
            self.news.push_back(News::Released(key));
        }
    }

    /// Ends a room whose requests have all completed.
    pub(super) fn end(&mut self, cx: &mut Cx<'_>, index: u32, delivered: bool) {
        self.drop_jobs(index);
        let Some(room) = self.rooms.get_mut(index as usize).and_then(Option::take) else { return };
        let key = room.spec.key;
        let rules = self.config.rules;
        if delivered {
            let (work_requests, bytes) = (room.work_requests, room.bytes);
            cx.out.record(room.spec.request, crate::node::Step::Delivered { work_requests, bytes });
            self.news.push_back(News::Success(key));
        }
        let clean = !room.dirty || !rules.honest_report;
        let report = Report { delivered, clean };
        if delivered || rules.failures_told {
            self.news.push_back(News::Tell(Message::Report { key, report }));
        }
        // In pull what has arrived is decode's, for as long as it generates.
        let pull = self.config.direction == Direction::Pull;
        if !(pull && delivered) && (delivered || rules.initiator_waits || !room.started) {
            self.news.push_back(News::Released(key));
        }
        self.free_slots.extend(room.landing);
        self.timers.cancel(key);
        self.tombstones.add(cx.now, key, report);
        let peer = room.spec.peer;
        if self.measures
            && let Some(link) = self.links.get_mut(&peer)
        {
            link.drop_backlog(&room);
        }
        self.by_key.remove(&key);
        self.free_rooms.push(index);
        self.spare_rooms.push(room);
        self.leave(cx, peer, index);
    }

    /// Ends a room if nothing is left to do for it.
    pub(super) fn settle(&mut self, cx: &mut Cx<'_>, index: u32) {
        let lease = !self.config.rules.lease || cx.now <= self.lease_until;
        let Some(room) = self.room_mut(index) else { return };
        if room.ending {
            if room.outstanding == 0 {
                self.end(cx, index, false);
            }
        } else if room.sealed && room.undone == 0 && room.outstanding == 0 {
            let key = room.spec.key;
            if !lease {
                self.fail(cx, key, Reason::LeaseLost, true);
            } else if self.config.direction == Direction::Push {
                self.end(cx, index, true);
            } else if !self.has_arrived(cx, index) {
                self.fail(cx, key, Reason::Transfer, true);
            } else if !self.is_as_sent(cx, index) {
                self.stats.checksum_mismatches += 1;
                self.fail(cx, key, Reason::Checksum, true);
            } else {
                self.end(cx, index, true);
            }
        }
    }
}

/// Whether a run lies in a pool of so many pages, the padding page 0 not being one to write to.
fn in_pool(run: &PageRun, pages: u32) -> bool {
    run.first.0 > 0 && run.first.0.checked_add(run.count).is_some_and(|end| end <= pages)
}

/// Bytes of a window over the concatenation of plans.
fn window_bytes(plans: &[(Arc<Plan>, u8)], window: &Range<u64>) -> u64 {
    let (mut base, mut bytes) = (0, 0);
    for (plan, _) in plans {
        let (from, to) = (window.start.max(base), window.end.min(base + plan.requests()));
        if from < to {
            bytes += plan.offset(to - base) - plan.offset(from - base);
        }
        base += plan.requests();
    }
    bytes
}
