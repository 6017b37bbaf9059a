//! Staged parts at the initiator: cut, gathered into slots of its own, and posted when the target's slot is free for them.

use super::super::pairing::{Pairing, Share, Wire};
use super::super::stage::{CELL_BYTES, Cut, Header, cut, gather, per_token};
use super::super::wire::{AUX_BYTES, Immediate, SEAL_BYTES, SLOT_BYTES};
use super::Initiator;
use super::room::{Part, PartState, Remote, Room};
use crate::fabric::{LocalCopy, Plan};
use crate::id::{CopyId, PortId, Rank};
use crate::node::{Cx, Reason};
use crate::policy::{JobId, Load};
use crate::registry::{Facts, PageRun, RoomKey};
use std::ops::Range;
use std::sync::Arc;

/// How far a staged part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gather {
    /// It has no slot.
    Idle,
    /// It is being gathered into this one.
    Running(u16),
    /// It is in this one.
    Ready(u16),
}

/// What makes a part a staged one.
#[derive(Clone, Debug)]
pub(super) struct Staged {
    /// Whose slots it takes: the rank in the instance.
    pub rank: Rank,
    /// Its number among the staged parts of its feed.
    pub sequence: u32,
    pub cut: Cut,
    pub gather: Gather,
}

/// The target's staging slots of a room.
#[derive(Clone, Debug, Default)]
pub(super) struct RemoteStage {
    /// Slots of all feeds of a rank.
    pub slots: Vec<u32>,
    /// Slots of each feed; 0 without staging.
    pub window: u32,
}

/// Staging of a room.
#[derive(Clone, Debug, Default)]
pub(super) struct RoomStage {
    /// Staged parts cut so far, by feed.
    pub cut: Vec<u32>,
    /// Staged parts that the target has scattered, by feed.
    pub scattered: Vec<u32>,
}

/// Where a staged part is written to at the target.
pub(super) struct Place {
    /// Offset of its header from the base of the aux slots.
    pub cell: u64,
    /// Offset of the part from the base of the staging slots.
    pub bulk: u64,
}

/// What a feed shares with the others of its room.
struct Beside {
    /// The feed's first port at the initiator.
    port: Option<PortId>,
    /// Ports that it has there.
    ports: u64,
    /// Feeds on the busier one of its two ports.
    sharing: u64,
    /// Feeds of the busier one of its two ranks.
    copying: u64,
}

impl Beside {
    fn of(pairing: &Pairing, feed: usize) -> Self {
        let Some(own) = pairing.wires.iter().find(|wire| usize::from(wire.feed) == feed) else {
            return Self { port: None, ports: 1, sharing: 1, copying: 1 };
        };
        let room = || {
            let groups = (own.src_group, own.dst_group);
            pairing.wires.iter().filter(move |wire| (wire.src_group, wire.dst_group) == groups)
        };
        // Wires of a feed lie side by side.
        let feeds = |shares: fn(&Wire, &Wire) -> bool| {
            let mut of: Vec<u16> = room().filter(|wire| shares(wire, own)).map(|wire| wire.feed).collect();
            of.dedup();
            of.len().max(1) as u64
        };
        let mut ports: Vec<PortId> =
            room().filter(|wire| wire.feed == own.feed).map(|wire| wire.src_port).collect();
        ports.sort_unstable();
        ports.dedup();
        Self {
            port: Some(own.src_port),
            ports: ports.len() as u64,
            sharing: feeds(|a, b| a.src_port == b.src_port).max(feeds(|a, b| a.dst_port == b.dst_port)),
            copying: feeds(|a, b| a.src == b.src).max(feeds(|a, b| a.dst == b.dst)),
        }
    }
}

/// Most staging slots that a room may have.
const MOST_SLOTS: u32 = 1 << 16;

/// Requests that a staged part takes: header and bulk.
pub(super) const REQUESTS: u64 = 2;

/// Where in a rank's aux memory headers are written for their inline requests: behind those of aux row and seal.
pub(super) const HEADER_SCRATCH: u64 = AUX_BYTES + SEAL_BYTES;

/// Parts started of those that wait in a job: beyond the first ones nothing is likely to have a slot.
const LOOK_AHEAD: usize = 64;

impl RemoteStage {
    /// From what a page list says. None for more slots than anybody has.
    pub(super) fn new(runs: &[PageRun]) -> Option<Self> {
        let count = runs.iter().try_fold(0u32, |sum, run| sum.checked_add(run.count))?;
        let slots = || runs.iter().flat_map(|run| run.first.0..run.first.0.saturating_add(run.count));
        (count <= MOST_SLOTS).then(|| Self { slots: slots().collect(), window: 0 })
    }

    /// Shares the slots out among a rank's feeds. False if they are not the target's, or no equal share.
    pub(super) fn share_out(&mut self, pairing: &Pairing, facts: &Facts) -> bool {
        let feeds = pairing.most_feeds().max(1);
        self.window = self.slots.len() as u32 / feeds;
        self.slots.iter().all(|slot| *slot < facts.stage_slots)
            && self.slots.len() as u32 == self.window * feeds
            && (self.slots.is_empty() || facts.stage_bytes > 0)
    }

    /// The target's slot of a feed's staged part, which is the `nth` feed of its rank.
    pub(super) fn place(&self, nth: usize, sequence: u32, facts: &Facts) -> Option<Place> {
        let slot = self.slots.get(nth * self.window as usize + (sequence % self.window.max(1)) as usize)?;
        Some(Place {
            cell: u64::from(facts.slots) * SLOT_BYTES + u64::from(*slot) * CELL_BYTES,
            bulk: u64::from(*slot) * facts.stage_bytes,
        })
    }
}

/// Which feed of its rank a feed is.
pub(super) fn nth_of(pairing: &Pairing, feed: usize) -> usize {
    let dst = pairing.feeds[feed].dst.index();
    feed - pairing.feeds_of.get(dst).map_or(feed, |feeds| feeds.start)
}

/// The header of a staged part. The target is asked to say when it was scattered only if a part that may come waits for that, and once for
/// half of the slots.
pub(super) fn header_of(
    part: &Part,
    staged: &Staged,
    remote: &Remote,
    room: &RoomStage,
    sealed: bool,
    key: RoomKey,
) -> Header {
    let window = u64::from(remote.stage.window.max(1));
    let half = (window / 2).max(1);
    let cut = u64::from(room.cut.get(usize::from(part.feed)).copied().unwrap_or(0));
    let next = u64::from(staged.sequence) + 1;
    // The part that waits for just this is number `next - half + window`.
    let waited_for = !sealed || cut + half > next + window;
    Header {
        key,
        generation: remote.generation,
        part: part.number,
        sequence: staged.sequence,
        tell: next.is_multiple_of(half) && waited_for,
        tokens: staged.cut.tokens.clone(),
        layers: staged.cut.layers.clone(),
    }
}

impl Part {
    /// Whether it is staged and not in a slot yet.
    pub(super) fn lacks_gather(&self) -> bool {
        self.stage.as_ref().is_some_and(|staged| !matches!(staged.gather, Gather::Ready(_)))
    }
    /// Whether it is staged and on its way into a slot.
    pub(super) fn is_gathering(&self) -> bool {
        self.stage.as_ref().is_some_and(|staged| matches!(staged.gather, Gather::Running(_)))
    }
}

impl Initiator {
    /// Staging slots of this side in use.
    pub(super) fn held_sources(&self) -> u64 {
        let all = self.memory.staging().map_or(0, |staging| u64::from(staging.slots.min(u16::MAX.into())));
        self.sources.iter().map(|free| all - free.len() as u64).sum()
    }

    /// Bytes of a slot on both sides; 0 if a room is not staged.
    fn slot_bytes(&self, room: &Room, facts: &Facts) -> u64 {
        let staged = room.remote.as_ref().is_some_and(|remote| remote.stage.window > 0);
        let own = self.memory.staging().map_or(0, |staging| staging.slot);
        // Header, bulk, aux row and seal are posted together.
        if !staged || self.config.send_depth < 4 {
            return 0;
        }
        own.min(facts.stage_bytes).min(self.config.max_message.into())
    }

    /// How a room's pieces are cut into staged parts: for each feed, and of it each piece, the cuts; none where it goes directly.
    pub(super) fn stage_pieces(&mut self, index: u32) -> Vec<Vec<Option<Vec<Cut>>>> {
        let Some(room) = self.rooms.get(index as usize).and_then(Option::as_ref) else { return Vec::new() };
        let Some(link) = self.links.get(&room.spec.peer) else { return Vec::new() };
        let slot = self.slot_bytes(room, &link.facts);
        if slot == 0 {
            return Vec::new();
        }
        let pairing = link.pairing.clone();
        let credits = room.remote.as_ref().map_or(0, |remote| remote.credits);
        let pieces: Vec<Cut> = room
            .pieces
            .iter()
            .map(|(tokens, layers)| Cut { tokens: tokens.clone(), layers: layers.clone() })
            .collect();
        let numbers = room.numbers.clone();
        let mut all = Vec::with_capacity(pairing.feeds.len());
        for (f, feed) in pairing.feeds.iter().enumerate() {
            // Numbers for what goes directly are kept back.
            let mut left = u32::from(Immediate::PARTS as u16)
                .saturating_sub(u32::from(numbers.get(f).copied().unwrap_or(0)))
                .saturating_sub(u32::from(credits));
            let mut of_feed = Vec::with_capacity(pieces.len());
            for (p, piece) in pieces.iter().enumerate() {
                // Of layers that this feed has nothing of nothing goes directly either.
                let cuts = cut(feed, piece, slot).filter(|cuts| {
                    cuts.is_empty()
                        || cuts.len() as u64 <= u64::from(left)
                            && self.is_worth_it(index, &pairing, f, p, piece, slot)
                });
                left -= cuts.as_ref().map_or(0, |cuts| cuts.len() as u32);
                of_feed.push(cuts);
            }
            all.push(of_feed);
        }
        all
    }

    /// Whether the policy wants a piece staged.
    fn is_worth_it(
        &mut self,
        index: u32,
        pairing: &Pairing,
        f: usize,
        p: usize,
        piece: &Cut,
        slot: u64,
    ) -> bool {
        if !self.config.coalescing.predicts() {
            return self.config.coalescing.staging().is_some();
        }
        let feed = &pairing.feeds[f];
        let (mut requests, mut sges) = (0, 0);
        for share in &feed.shares {
            if let Some(plan) = self.direct_plan(index, share, p, &piece.tokens, &piece.layers) {
                let totals = plan.totals(&(0..plan.requests()), self.config.max_message);
                requests += totals.requests;
                sges += totals.sges;
            }
        }
        let bytes = per_token(feed, &piece.layers) * piece.tokens.len() as u64;
        let beside = Beside::of(pairing, f);
        let rate = beside.port.and_then(|port| self.rates.get(port.index()).copied()).unwrap_or(0);
        let window = self.config.window;
        let fills = |all: u64, room: u64| all.div_ceil(room.max(1));
        let chains = fills(requests, u64::from(self.config.send_depth).min(window.requests))
            .max(fills(bytes.saturating_mul(beside.sharing), window.bytes));
        let load = Load {
            bytes,
            requests,
            sges,
            slot,
            rate: rate.saturating_mul(beside.ports),
            chains,
            pairs: pairing.feeds.len() as u64,
            sharing: beside.sharing,
            copying: beside.copying,
        };
        self.config.coalescing.stages(&load)
    }

    /// Starts to gather what of a job's next parts has a slot at both sides, and takes the job out of the queue if nothing of it can be
    /// posted meanwhile.
    pub(super) fn gather(&mut self, cx: &mut Cx<'_>, id: JobId) {
        let job = &mut self.jobs[id as usize];
        let (index, port) = (job.room, job.port);
        let mut at = 0;
        let mut looked = 0;
        while looked < LOOK_AHEAD {
            looked += 1;
            let Some(p) = self.jobs[id as usize].parts.get(at).copied() else { break };
            let Some(room) = self.rooms.get(index as usize).and_then(Option::as_ref) else { break };
            if room.parts[p as usize].stage.is_none() {
                break;
            }
            if self.start_gather(cx, index, p) {
                self.jobs[id as usize].parts.remove(at);
            } else {
                at += 1;
            }
            if !self.by_index_is_active(index) {
                return;
            }
        }
        let room = self.rooms.get(index as usize).and_then(Option::as_ref);
        let job = &mut self.jobs[id as usize];
        let next = job.parts.front().and_then(|p| room.map(|room| &room.parts[*p as usize]));
        let postable = !job.ready.is_empty() || next.is_some_and(|part| part.stage.is_none());
        if !postable && job.queued {
            job.queued = false;
            self.ports[port.index()].order.remove(id);
        }
    }

    fn by_index_is_active(&self, index: u32) -> bool {
        self.rooms.get(index as usize).and_then(Option::as_ref).is_some_and(|room| !room.ending)
    }

    /// Starts to gather a part. False if it has to wait for a slot; then the room is woken when there is one.
    fn start_gather(&mut self, cx: &mut Cx<'_>, index: u32, p: u32) -> bool {
        let Some(room) = self.rooms.get_mut(index as usize).and_then(Option::as_mut) else { return false };
        let Some(link) = self.links.get(&room.spec.peer) else { return false };
        let Some(staging) = self.memory.staging() else { return false };
        let key = room.spec.key;
        let part = &mut room.parts[p as usize];
        let feed = usize::from(part.feed);
        let Some(staged) = &mut part.stage else { return false };
        let window = room.remote.as_ref().map_or(0, |remote| remote.stage.window);
        let scattered = room.stage.scattered.get(feed).copied().unwrap_or(0);
        if staged.sequence >= scattered.saturating_add(window) {
            return false;
        }
        let rank = staged.rank;
        let Some(slot) = self.sources.get_mut(rank.index()).and_then(Vec::pop) else {
            if !self.starved_rooms.contains(&index) {
                self.starved_rooms.push(index);
            }
            return false;
        };
        let memory = &self.memory.ranks[rank.index()];
        let feed = &link.pairing.feeds[feed];
        let started = match (&memory.stage, gather(feed, &staged.cut, &room.src)) {
            (Some(stage), Ok(plans)) => {
                let parts: Vec<LocalCopy<'_>> = plans
                    .iter()
                    .map(|(plan, share)| LocalCopy {
                        plan,
                        from: (memory.pools[feed.shares[*share].group.pool_src].buf, 0),
                        to: (stage.buf, u64::from(slot) * staging.slot),
                    })
                    .collect();
                let id = CopyId(u64::from(index) << 32 | u64::from(p));
                cx.fabric.copy(rank.0.into(), id, &parts).is_ok()
            }
            _ => false,
        };
        if !started {
            self.sources[rank.index()].push(slot);
            self.fail(cx, key, Reason::Transfer, true);
            return false;
        }
        staged.gather = Gather::Running(slot);
        room.outstanding += 1;
        true
    }

    /// A copy is over: its part can be posted, if it still has to be.
    pub(super) fn gathered(&mut self, cx: &mut Cx<'_>, id: CopyId) {
        let (index, p) = ((id.0 >> 32) as u32, id.0 as u32);
        let Some(room) = self.rooms.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let Some(part) = room.parts.get_mut(p as usize) else { return };
        let Some(staged) = &mut part.stage else { return };
        let Gather::Running(slot) = staged.gather else { return };
        room.outstanding -= 1;
        self.stats.staged_bytes += part.bytes;
        let up = self.links.get(&room.spec.peer).is_some_and(super::Link::is_up);
        if up && !room.ending && part.state == PartState::Waiting && part.cursor == 0 {
            staged.gather = Gather::Ready(slot);
            if self.config.rules.staged_in_parts {
                self.put_back(index, p);
            } else {
                self.put_back_chunk(index);
            }
        } else {
            staged.gather = Gather::Idle;
            let (rank, again) = (staged.rank, !room.ending && part.state == PartState::Waiting);
            self.give_source(rank, slot);
            if again {
                self.put_back(index, p);
            }
            self.settle(cx, index);
        }
    }

    /// Only where [`crate::transfer::Rules::staged_in_parts`] is off: posts what was gathered once all that was cut so far is.
    fn put_back_chunk(&mut self, index: u32) {
        let Some(room) = self.rooms.get(index as usize).and_then(Option::as_ref) else { return };
        let unposted = || {
            let waits =
                |part: &Part| part.stage.is_some() && part.state == PartState::Waiting && part.cursor == 0;
            (0u32..).zip(&room.parts).filter(move |(_, part)| waits(part))
        };
        if unposted().all(|(_, part)| !part.lacks_gather()) {
            for p in unposted().map(|(p, _)| p).collect::<Vec<_>>() {
                self.put_back(index, p);
            }
        }
    }

    /// A part needs its slot no more.
    fn give_source(&mut self, rank: Rank, slot: u16) {
        if let Some(slots) = self.sources.get_mut(rank.index()) {
            slots.push(slot);
        }
    }

    /// Takes the slot away from a part, if it has one that no copy is filling.
    pub(super) fn release_source(&mut self, index: u32, p: u32) {
        let Some(room) = self.rooms.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let Some(part) = room.parts.get_mut(p as usize) else { return };
        if let Some(staged) = &mut part.stage
            && let Gather::Ready(slot) = staged.gather
        {
            staged.gather = Gather::Idle;
            let rank = staged.rank;
            self.give_source(rank, slot);
        }
    }

    /// Gives up the slots of a room's parts that were gathered and not posted: the link broke, or the room ends.
    pub(super) fn ungather(&mut self, index: u32) {
        let Some(room) = self.rooms.get(index as usize).and_then(Option::as_ref) else { return };
        if room.stage.cut.is_empty() {
            return;
        }
        let unposted: Vec<u32> = (0u32..)
            .zip(&room.parts)
            .filter(|(_, part)| part.stage.is_some() && part.cursor == 0)
            .map(|(p, _)| p)
            .collect();
        for p in unposted {
            self.release_source(index, p);
        }
    }

    /// Rooms that waited for a slot of this side go on, if there is one.
    pub(super) fn feed_starved(&mut self, cx: &mut Cx<'_>) {
        if self.starved_rooms.is_empty() || self.sources.iter().all(Vec::is_empty) {
            return;
        }
        for index in std::mem::take(&mut self.starved_rooms) {
            let up = |room: &Room| self.links.get(&room.spec.peer).is_some_and(super::Link::is_up);
            if self.rooms.get(index as usize).and_then(Option::as_ref).is_some_and(up) {
                self.queue_jobs(index);
            }
        }
        self.pump_all(cx);
    }

    /// The target's word on what it has scattered: slots of it can be written to again.
    pub fn scattered(&mut self, cx: &mut Cx<'_>, key: RoomKey, done: &[u32]) {
        let Some(index) = self.by_key.get(&key).copied() else { return };
        let Some(room) = self.room_mut(index) else { return };
        if room.ending {
            return;
        }
        let cut = &room.stage.cut;
        if done.len() != cut.len() || done.iter().zip(cut).any(|(done, cut)| done > cut) {
            self.fail(cx, key, Reason::Refused, true);
            return;
        }
        for (old, new) in room.stage.scattered.iter_mut().zip(done) {
            *old = (*old).max(*new);
        }
        let up = room.spec.peer;
        if self.links.get(&up).is_some_and(super::Link::is_up) {
            self.queue_jobs(index);
        }
        self.pump_all(cx);
    }

    /// The plan that moves a piece of a share directly, made once for all feeds of its class.
    pub(super) fn direct_plan(
        &mut self,
        index: u32,
        share: &Share,
        p: usize,
        tokens: &Range<u32>,
        layers: &Range<u32>,
    ) -> Option<Arc<Plan>> {
        if let Some((_, _, made)) =
            self.plans.iter().find(|(class, piece, _)| *class == share.class && *piece == p)
        {
            return Some(made.clone());
        }
        let room = self.rooms.get(index as usize)?.as_ref()?;
        let remote = room.remote.as_ref()?;
        let limits = super::super::plan::PlanLimits {
            max_sge: self.config.max_sge,
            max_message: self.config.max_message,
        };
        let lanes = share.lanes_of(layers);
        let made =
            super::super::plan::plan(share, lanes, &room.src, &remote.table, tokens.clone(), limits).ok()?;
        let made = Arc::new(made);
        self.plans.push((share.class, p, made.clone()));
        Some(made)
    }
}

/// Makes parts of what is staged, in turns over the feeds, so that all of their slots are filled at the same time. Which feeds need no part
/// that goes directly for their seal.
pub(super) fn cut_staged(
    room: &mut Room,
    pairing: &Pairing,
    staged: &[Vec<Option<Vec<Cut>>>],
    (last, all_write_aux): (bool, bool),
    mut wire: impl FnMut(&Room, usize, usize, u64) -> (u16, u32),
) -> Vec<bool> {
    room.stage.cut.resize(pairing.feeds.len(), 0);
    room.stage.scattered.resize(pairing.feeds.len(), 0);
    let cuts: Vec<Vec<&Cut>> =
        staged.iter().map(|pieces| pieces.iter().flatten().flatten().collect()).collect();
    let whole = |f: usize| last && !cuts[f].is_empty() && staged[f].iter().all(Option::is_some);
    let sealed: Vec<bool> = (0..pairing.feeds.len()).map(whole).collect();
    for nth in 0..cuts.iter().map(Vec::len).max().unwrap_or(0) {
        for (f, feed) in pairing.feeds.iter().enumerate() {
            let Some(cut) = cuts[f].get(nth).copied() else { continue };
            let ends = sealed[f] && nth + 1 == cuts[f].len();
            let number = room.numbers[f];
            room.numbers[f] += 1;
            let sequence = room.stage.cut[f];
            room.stage.cut[f] += 1;
            let bytes = per_token(feed, &cut.layers) * cut.tokens.len() as u64;
            let (home, wire) = wire(room, f, sequence as usize, bytes);
            let rank = pairing.wires[wire as usize].src;
            room.parts.push(Part {
                feed: f as u16,
                wire,
                number,
                plans: Vec::new(),
                window: 0..0,
                cursor: 0,
                bytes,
                home,
                acked: 0,
                seal: ends.then(|| room.numbers[f]),
                aux: ends && (feed.aux || all_write_aux),
                state: PartState::Waiting,
                stage: Some(Box::new(Staged { rank, sequence, cut: cut.clone(), gather: Gather::Idle })),
            });
            room.undone += 1;
        }
    }
    sealed
}

#[cfg(test)]
mod tests {
    use super::super::super::pairing::tests::{facts, pairing};
    use super::*;
    use crate::id::Page;
    use models::{Parallel, presets};

    #[test]
    fn slots_are_the_targets_and_shared_out_evenly() {
        let model = presets::lookup("tiny-gqa").unwrap();
        let src = facts(&model, Parallel::tp(2), 16, false);
        let mut dst = facts(&model, Parallel::tp(1), 16, false);
        (dst.stage_slots, dst.stage_bytes) = (4, 1024);
        let pairing = pairing(&model, &src, &dst, 1);
        assert_eq!(pairing.most_feeds(), 2);
        let shared = |first, count, dst: &Facts| {
            let mut stage = RemoteStage::new(&[PageRun { first: Page(first), count }]).unwrap();
            stage.share_out(&pairing, dst).then_some(stage.window)
        };
        assert_eq!(shared(0, 4, &dst), Some(2));
        assert_eq!(shared(2, 2, &dst), Some(1));
        assert_eq!(shared(0, 0, &dst), Some(0));
        assert_eq!(shared(1, 4, &dst), None, "slot 4 is not there");
        assert_eq!(shared(0, 3, &dst), None, "no equal share");
        dst.stage_bytes = 0;
        assert_eq!(shared(0, 4, &dst), None, "it has no staging memory");
        assert_eq!(shared(0, 0, &dst), Some(0));
        assert!(RemoteStage::new(&[PageRun { first: Page(0), count: MOST_SLOTS + 1 }]).is_none());
    }

    #[test]
    fn each_feed_has_slots_of_its_own_and_goes_round() {
        let facts = Facts { slots: 3, stage_slots: 9, stage_bytes: 1000, ..Facts::default() };
        let stage = RemoteStage { slots: vec![4, 5, 7, 8], window: 2 };
        let place = |nth, sequence| {
            let place = stage.place(nth, sequence, &facts).unwrap();
            ((place.cell - 3 * SLOT_BYTES) / CELL_BYTES, place.bulk / 1000)
        };
        let places: Vec<_> = (0..2).flat_map(|nth| (0..3).map(move |sequence| (nth, sequence))).collect();
        let got: Vec<_> = places.into_iter().map(|(nth, sequence)| place(nth, sequence)).collect();
        assert_eq!(got, [(4, 4), (5, 5), (4, 4), (7, 7), (8, 8), (7, 7)]);
        assert!(stage.place(2, 0, &facts).is_none());
    }
}
