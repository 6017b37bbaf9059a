//! Work requests, posted one by one or as a *plan*: runs x lanes.
//!
//! KV pages repeat: what is sent for one layer's buffer is sent, at the same offsets, for every other one. 61 layers x 188 pages are
//! 11,468 requests; as a plan they are 61 lanes and 188 runs. The plan is made once; what is posted at a time is a *window* of it,
//! so that send-queue room, failures in the middle and retries only move two numbers. Expanding is exact and in one
//! place ([`Batch::for_each`]); everything that must be counted has a closed form ([`Plan::totals`]).

use crate::id::{LKey, RKey, WrId};
use std::ops::Range;
use std::sync::Arc;

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// RDMA WRITE: gathers locally, one range remotely.
    Write,
    /// RDMA WRITE, then an immediate which consumes a receive at the target.
    WriteImm(u32),
    /// SEND into the target's next receive.
    Send,
    /// SEND with immediate.
    SendImm(u32),
    /// RDMA READ: one range remotely, scatters locally.
    Read,
    /// Adds to 8 remote bytes, 8-aligned, and returns what was there.
    FetchAdd(u64),
    /// Replaces 8 remote bytes, 8-aligned, if they hold `expect`; returns what was there.
    CompareSwap {
        /// What must be there.
        expect: u64,
        /// What takes its place.
        swap: u64,
    },
}

/// Flags of a request.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Flags {
    /// Completes visibly, and so covers the unsignalled ones before it.
    pub signaled: bool,
    /// Waits for earlier READs and atomics of this queue pair.
    pub fence: bool,
    /// The bytes are taken at posting: local keys are ignored and the buffer is free on return.
    pub inline: bool,
}

/// A local range.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Sge {
    /// Its first byte.
    pub addr: u64,
    /// Its bytes.
    pub len: u32,
    /// Key of the registration it lies in.
    pub lkey: LKey,
}

/// One request as verbs knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkRequest<'a> {
    /// Comes back in the completion.
    pub id: WrId,
    /// What to do.
    pub op: Op,
    /// How.
    pub flags: Flags,
    /// Local ranges, in order.
    pub local: &'a [Sge],
    /// Remote address and key; ignored by SEND.
    pub remote: (u64, RKey),
}

/// Where one buffer (a layer's K, say) starts on the two sides, from the bases of the two registrations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lane {
    /// Offset on the initiator's side.
    pub local: u64,
    /// Offset on the target's side.
    pub remote: u64,
}

/// The lanes of one pair of layouts; made once, shared by every plan.
pub type Lanes = [Lane];

/// `count` pieces of `len` bytes, a step apart on each side, at offsets which hold in every lane. Every `gather` pieces make one
/// request; that takes `remote_step == len`, because the remote side of a request is one range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Offset of the first piece on the initiator's side.
    pub local: u64,
    /// Offset of the first piece on the target's side.
    pub remote: u64,
    /// Bytes of a piece.
    pub len: u32,
    /// Pieces.
    pub count: u32,
    /// From one piece to the next, initiator's side.
    pub local_step: u64,
    /// From one piece to the next, target's side.
    pub remote_step: u64,
    /// Pieces in a request, 1 to 32.
    pub gather: u16,
    /// A single piece which goes on in the request of the run before: it touches that one's end on the target's side.
    pub joins: bool,
}

impl Run {
    /// One piece.
    pub fn piece(local: u64, remote: u64, len: u32) -> Self {
        let step = u64::from(len);
        Self { local, remote, len, count: 1, local_step: step, remote_step: step, gather: 1, joins: false }
    }
}

/// Why runs and lanes make no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A run is malformed.
    #[error("run {run}: {why}")]
    Run {
        /// Which.
        run: usize,
        /// What is wrong.
        why: &'static str,
    },
}

/// Most SGEs that a planned request may have.
pub const MAX_GATHER: usize = 32;

/// Requests of a run that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    /// Index, within a lane, of its first request.
    first: u64,
    /// Bytes of a lane before it.
    before: u64,
    /// Requests.
    count: u32,
    /// Bytes of each.
    bytes: u32,
    /// SGEs of each.
    sges: u16,
    /// Where its first piece is: run, and piece within the run.
    run: u32,
    piece: u32,
}

/// `lanes x runs`, lane by lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    lanes: Arc<Lanes>,
    runs: Vec<Run>,
    groups: Vec<Group>,
    per_lane: u64,
    bytes_per_lane: u64,
}

/// Sums over a window of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests.
    pub requests: u64,
    /// SGEs.
    pub sges: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// Packets at the given MTU; a request without bytes takes one.
    pub packets: u64,
}

impl Totals {
    fn add(&mut self, other: Self, times: u64) {
        self.requests += other.requests * times;
        self.sges += other.sges * times;
        self.bytes += other.bytes * times;
        self.packets += other.packets * times;
    }
}

impl Plan {
    /// Checks the runs and counts their requests.
    pub fn new(lanes: Arc<Lanes>, runs: Vec<Run>) -> Result<Self, PlanError> {
        let mut groups: Vec<Group> = Vec::with_capacity(runs.len());
        let (mut first, mut before, mut end) = (0u64, 0u64, 0u64);
        for (index, run) in runs.iter().enumerate() {
            let fail = |why| Err(PlanError::Run { run: index, why });
            if run.count == 0 || run.len == 0 {
                return fail("it has no bytes");
            }
            if run.gather == 0 || usize::from(run.gather) > MAX_GATHER {
                return fail("a request gathers 1 to 32 pieces");
            }
            if run.gather > 1 && run.count > 1 && run.remote_step != u64::from(run.len) {
                return fail("gathered pieces must touch on the target's side");
            }
            if run.joins {
                let Some(last) = groups.last_mut() else { return fail("there is nothing to join") };
                if run.count != 1 || run.remote != end {
                    return fail("a joining run is one piece that starts where the one before ends");
                }
                if usize::from(last.sges) == MAX_GATHER || last.bytes.checked_add(run.len).is_none() {
                    return fail("the request it joins is full");
                }
                if last.count > 1 {
                    let mut tail = *last;
                    last.count -= 1;
                    let skip = u64::from(last.count);
                    tail.first += skip;
                    tail.before += skip * u64::from(tail.bytes);
                    tail.piece += last.count * u32::from(tail.sges);
                    tail.count = 1;
                    groups.push(tail);
                }
                let last = groups.last_mut().expect("one was there");
                last.sges += 1;
                last.bytes += run.len;
            } else {
                let gather = u32::from(run.gather);
                let (full, rest) = (run.count / gather, run.count % gather);
                for (count, pieces, piece) in [(full, gather, 0), (1, rest, full * gather)] {
                    if count == 0 || pieces == 0 {
                        continue;
                    }
                    let Some(bytes) = run.len.checked_mul(pieces) else {
                        return fail("a request is over 4 GiB");
                    };
                    groups.push(Group {
                        first,
                        before,
                        count,
                        bytes,
                        sges: pieces as u16,
                        run: index as u32,
                        piece,
                    });
                    first += u64::from(count);
                    before += u64::from(count) * u64::from(bytes);
                }
            }
            if run.joins {
                before += u64::from(run.len);
            }
            end = run.remote + u64::from(run.count - 1) * run.remote_step + u64::from(run.len);
        }
        Ok(Self { lanes, runs, groups, per_lane: first, bytes_per_lane: before })
    }

    /// The lanes.
    pub fn lanes(&self) -> &Arc<Lanes> {
        &self.lanes
    }
    /// The runs.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }
    /// Requests in one lane.
    pub fn requests_per_lane(&self) -> u64 {
        self.per_lane
    }
    /// Requests in all.
    pub fn requests(&self) -> u64 {
        self.per_lane * self.lanes.len() as u64
    }
    /// Payload bytes in all.
    pub fn bytes(&self) -> u64 {
        self.bytes_per_lane * self.lanes.len() as u64
    }

    /// Sums over the requests of `window`, in time proportional to the runs and not to the lanes.
    pub fn totals(&self, window: &Range<u64>, mtu: u32) -> Totals {
        let mut sum = Totals::default();
        if self.per_lane == 0 || window.start >= window.end {
            return sum;
        }
        let (a, b) = (window.start / self.per_lane, window.start % self.per_lane);
        let (c, d) = (window.end / self.per_lane, window.end % self.per_lane);
        if a == c {
            sum.add(self.lane_totals(b..d, mtu), 1);
            return sum;
        }
        sum.add(self.lane_totals(b..self.per_lane, mtu), 1);
        if c - a > 1 {
            sum.add(self.lane_totals(0..self.per_lane, mtu), c - a - 1);
        }
        if d > 0 {
            sum.add(self.lane_totals(0..d, mtu), 1);
        }
        sum
    }

    fn lane_totals(&self, part: Range<u64>, mtu: u32) -> Totals {
        let mut sum = Totals::default();
        let from = self.groups.partition_point(|g| g.first + u64::from(g.count) <= part.start);
        for g in &self.groups[from..] {
            if g.first >= part.end {
                break;
            }
            let count = part.end.min(g.first + u64::from(g.count)) - part.start.max(g.first);
            let one = Totals {
                requests: 1,
                sges: u64::from(g.sges),
                bytes: u64::from(g.bytes),
                packets: u64::from(g.bytes.div_ceil(mtu.max(1)).max(1)),
            };
            sum.add(one, count);
        }
        sum
    }

    /// How many requests from `start` on are wholly within the first `bytes` bytes from there.
    pub fn requests_within(&self, start: u64, bytes: u64) -> u64 {
        if self.per_lane == 0 || start >= self.requests() {
            return 0;
        }
        let position = self.offset(start) + bytes;
        let lane = (position / self.bytes_per_lane).min(self.lanes.len() as u64);
        let mut index = lane * self.per_lane;
        let rest = position - lane * self.bytes_per_lane;
        if lane < self.lanes.len() as u64 && rest > 0 {
            let g = self.groups[self.groups.partition_point(|g| g.before <= rest) - 1];
            index += g.first + ((rest - g.before) / u64::from(g.bytes)).min(u64::from(g.count));
        }
        index - start
    }

    /// Bytes of the plan before its request `index`.
    pub fn offset(&self, index: u64) -> u64 {
        if self.per_lane == 0 {
            return 0;
        }
        let (lane, rest) = (index / self.per_lane, index % self.per_lane);
        let mut bytes = lane * self.bytes_per_lane;
        if rest > 0 {
            let g = self.groups[self.groups.partition_point(|g| g.first <= rest) - 1];
            bytes += g.before + (rest - g.first) * u64::from(g.bytes);
        }
        bytes
    }

    /// Calls `each(index, lane, pieces, remote offset)` for every request of `window`; pieces are (local offset, bytes), both
    /// offsets from the bases of the registrations.
    pub fn for_each(&self, window: &Range<u64>, mut each: impl FnMut(u64, &[(u64, u32)], u64)) {
        if self.per_lane == 0 {
            return;
        }
        let end = window.end.min(self.requests());
        let mut pieces = [(0u64, 0u32); MAX_GATHER];
        let mut index = window.start;
        while index < end {
            let lane = self.lanes[(index / self.per_lane) as usize];
            let lane_start = index - index % self.per_lane;
            let mut g = self.groups.partition_point(|g| g.first + u64::from(g.count) <= index - lane_start);
            while index < end && g < self.groups.len() {
                let group = self.groups[g];
                let k = (index - lane_start - group.first) as u32;
                let (mut run, mut piece) = (group.run as usize, group.piece + k * u32::from(group.sges));
                let remote = {
                    let r = &self.runs[run];
                    lane.remote + r.remote + u64::from(piece) * r.remote_step
                };
                let n = usize::from(group.sges);
                for slot in &mut pieces[..n] {
                    if piece == self.runs[run].count {
                        (run, piece) = (run + 1, 0);
                    }
                    let r = &self.runs[run];
                    *slot = (lane.local + r.local + u64::from(piece) * r.local_step, r.len);
                    piece += 1;
                }
                each(index, &pieces[..n], remote);
                index += 1;
                if k + 1 == group.count {
                    g += 1;
                }
            }
        }
    }
}

/// A window of a plan, to post. Request `i` of the plan has id `first + i`.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    /// The plan; a fabric that works it off later keeps a reference.
    pub plan: &'a Arc<Plan>,
    /// Id of the plan's request 0.
    pub first: WrId,
    /// What each request does: WRITE or READ.
    pub op: Op,
    /// Base address and key of the initiator's registration.
    pub local: (u64, LKey),
    /// Base address and key of the target's registration.
    pub remote: (u64, RKey),
    /// Which requests are posted now.
    pub window: Range<u64>,
    /// Requests whose index + 1 is a multiple of this are signalled (0: none), and the window's last one if `signal_last`.
    pub signal_every: u32,
    /// Whether the window's last request is signalled.
    pub signal_last: bool,
    /// Replaces the op of the window's last request, so that an immediate costs no request of its own.
    pub last: Option<Op>,
}

impl Batch<'_> {
    /// Op and flags of request `index` of the plan.
    pub fn request(&self, index: u64) -> (Op, Flags) {
        let last = index + 1 == self.window.end;
        let every = self.signal_every > 0 && (index + 1).is_multiple_of(u64::from(self.signal_every));
        let op = if last { self.last.unwrap_or(self.op) } else { self.op };
        (op, Flags { signaled: every || last && self.signal_last, ..Flags::default() })
    }

    /// The only expansion there is: for verbs, byte memory and packets.
    pub fn for_each(&self, mut each: impl FnMut(&WorkRequest<'_>)) {
        let mut sges = [Sge::default(); MAX_GATHER];
        self.plan.for_each(&self.window, |index, pieces, remote| {
            for (sge, &(offset, len)) in sges.iter_mut().zip(pieces) {
                *sge = Sge { addr: self.local.0 + offset, len, lkey: self.local.1 };
            }
            let (op, flags) = self.request(index);
            each(&WorkRequest {
                id: WrId(self.first.0 + index),
                op,
                flags,
                local: &sges[..pieces.len()],
                remote: (self.remote.0 + remote, self.remote.1),
            });
        });
    }
}

/// A link of a chain: a single request, or a window of a plan.
#[derive(Clone, Debug)]
pub enum Item<'a> {
    /// One request.
    One(WorkRequest<'a>),
    /// Many.
    Many(Batch<'a>),
}

impl Item<'_> {
    /// Requests in it.
    pub fn requests(&self) -> u64 {
        match self {
            Item::One(_) => 1,
            Item::Many(batch) => batch.window.end.saturating_sub(batch.window.start),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn runs() -> impl Strategy<Value = Vec<Run>> {
        proptest::collection::vec((1u32..9, 1u32..70, 1u16..33, any::<bool>(), 0u64..50), 1..8).prop_map(
            |specs| {
                let (mut runs, mut remote, mut open): (Vec<Run>, u64, u32) = (Vec::new(), 0, 0);
                for (count, len, gather, joins, local) in specs {
                    let joins = joins && open > 0 && open < MAX_GATHER as u32;
                    let count = if joins { 1 } else { count };
                    if !joins {
                        remote += 3;
                    }
                    let step = u64::from(len);
                    runs.push(Run {
                        local,
                        remote,
                        len,
                        count,
                        local_step: step + 5,
                        remote_step: step,
                        gather,
                        joins,
                    });
                    remote += step * u64::from(count);
                    open = if joins { open + 1 } else { (count - 1) % u32::from(gather) + 1 };
                }
                runs
            },
        )
    }

    type Flat = Vec<(u64, Vec<(u64, u32)>, u64)>;

    /// Piece by piece, without groups.
    fn naive(lanes: &[Lane], runs: &[Run]) -> Flat {
        let mut all: Flat = Vec::new();
        for lane in lanes {
            for run in runs {
                for piece in 0..run.count {
                    let local = lane.local + run.local + u64::from(piece) * run.local_step;
                    if run.joins || piece % u32::from(run.gather) != 0 {
                        all.last_mut().unwrap().1.push((local, run.len));
                    } else {
                        let remote = lane.remote + run.remote + u64::from(piece) * run.remote_step;
                        all.push((all.len() as u64, vec![(local, run.len)], remote));
                    }
                }
            }
        }
        all
    }

    proptest! {
        #[test]
        fn windows_expand_and_count_like_the_pieces(runs in runs(), lanes in 1u64..5, a in 0u64..200, b in 0u64..200, mtu in 1u32..100) {
            let lanes: Arc<Lanes> = (0..lanes).map(|i| Lane { local: i * 1000, remote: i * 7000 }).collect();
            let all = naive(&lanes, &runs);
            let plan = Plan::new(lanes, runs).unwrap();
            prop_assert_eq!(plan.requests(), all.len() as u64);
            let (a, b) = (a.min(plan.requests()), b.min(plan.requests()));
            let window = a.min(b)..a.max(b);
            let mut got: Flat = Vec::new();
            plan.for_each(&window, |i, pieces, remote| got.push((i, pieces.to_vec(), remote)));
            let want = &all[window.start as usize..window.end as usize];
            prop_assert_eq!(&got[..], want);
            let size = |r: &(u64, Vec<(u64, u32)>, u64)| r.1.iter().map(|p| u64::from(p.1)).sum::<u64>();
            let totals = plan.totals(&window, mtu);
            prop_assert_eq!(totals.requests, want.len() as u64);
            prop_assert_eq!(totals.bytes, want.iter().map(size).sum::<u64>());
            prop_assert_eq!(totals.sges, want.iter().map(|r| r.1.len() as u64).sum::<u64>());
            prop_assert_eq!(totals.packets, want.iter().map(|r| size(r).div_ceil(u64::from(mtu))).sum::<u64>());
            prop_assert_eq!(plan.offset(window.start), all[..window.start as usize].iter().map(size).sum::<u64>());
            for bytes in [0, 1, totals.bytes / 2, totals.bytes] {
                let (mut n, mut sum) = (0, 0);
                while window.start as usize + n < all.len() && sum + size(&all[window.start as usize + n]) <= bytes {
                    sum += size(&all[window.start as usize + n]);
                    n += 1;
                }
                prop_assert_eq!(plan.requests_within(window.start, bytes), n as u64);
            }
        }
    }
}
