//! What a segment does to memory when it arrives: keys, ranges and rights are checked, bytes move.
//!
//! A window of a plan is checked by its hull and moved run by run over all lanes at once. Only if the hull is refused, or the window
//! begins or ends within a lane, are single requests looked at.

use super::Mistakes;
use super::memory::{Block, Right, Sides, Spot};
use super::qp::{Kind, Qp, Segment, Work};
use engine::fabric::{Access, Lanes, Plan, Sge, Status};
use engine::id::{LKey, PortId, RKey};
use engine::map::Map;
use std::ops::Range;
use std::sync::Arc;

/// Why a segment did not get through, and at which of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) index: u64,
    /// What the requester's completion says.
    pub(super) requester: Status,
    /// What the responder's receive completes with, if it is the responder's fault that a SEND failed.
    pub(super) receive: Option<Status>,
    /// Whether the responder saw it, and so fails too.
    pub(super) remote: bool,
}

impl Fault {
    fn local(status: Status) -> Self {
        Self { index: 0, requester: status, receive: None, remote: false }
    }
    fn remote(status: Status) -> Self {
        Self { index: 0, requester: status, receive: None, remote: true }
    }
    fn at(self, index: u64) -> Self {
        Self { index, ..self }
    }
}

/// Lanes that follow each other by one step on each side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    first: u64,
    pub(super) count: u64,
    pub(super) local: u64,
    pub(super) remote: u64,
    pub(super) local_step: u64,
    pub(super) remote_step: u64,
}

/// Lanes as rows, and the last offset on each side.
#[derive(Debug)]
struct Rows {
    rows: Vec<Row>,
    local: Range<u64>,
    remote: Range<u64>,
    /// Keeps the address, which is the key, from being used again.
    _lanes: Arc<Lanes>,
}

/// The hull of nothing yet.
const NOWHERE: Range<u64> = Range { start: u64::MAX, end: 0 };

/// Lanes are made once per pair of layouts and shared by all plans: so are their rows.
#[derive(Debug, Default)]
pub(super) struct LaneCache(Map<usize, Arc<Rows>>);

impl LaneCache {
    /// Lanes as rows.
    pub(super) fn rows_of(&mut self, lanes: &Arc<Lanes>) -> Vec<Row> {
        self.rows(lanes).rows.clone()
    }

    fn rows(&mut self, lanes: &Arc<Lanes>) -> Arc<Rows> {
        if self.0.len() > 4096 {
            self.0.clear();
        }
        let key = lanes.as_ptr() as usize;
        let make = || {
            let mut rows: Vec<Row> = Vec::new();
            let (mut local, mut remote) = (NOWHERE, NOWHERE);
            for (i, lane) in lanes.iter().enumerate() {
                local = local.start.min(lane.local)..local.end.max(lane.local);
                remote = remote.start.min(lane.remote)..remote.end.max(lane.remote);
                if let Some(row) = rows.last_mut() {
                    let n = row.count - 1;
                    let ends = (row.local + n * row.local_step, row.remote + n * row.remote_step);
                    let steps = (lane.local.checked_sub(ends.0), lane.remote.checked_sub(ends.1));
                    if let (Some(l), Some(r)) = steps
                        && (row.count == 1 || (l, r) == (row.local_step, row.remote_step))
                    {
                        (row.local_step, row.remote_step) = (l, r);
                        row.count += 1;
                        continue;
                    }
                }
                rows.push(Row {
                    first: i as u64,
                    count: 1,
                    local: lane.local,
                    remote: lane.remote,
                    local_step: 0,
                    remote_step: 0,
                });
            }
            Arc::new(Rows { rows, local, remote, _lanes: lanes.clone() })
        };
        self.0.or_insert_with(key, make).clone()
    }
}

/// The two ends of what is executed.
pub(super) struct Ends<'a> {
    pub(super) sides: Sides<'a>,
    pub(super) local_port: PortId,
    pub(super) remote_port: PortId,
    /// Rights of the responder's queue pair.
    pub(super) access: Access,
    pub(super) mtu: u64,
    pub(super) mistakes: Mistakes,
}

/// Works a segment at its responder. Requests before [`Fault::index`] are done; with `limit` only so many bytes came through, and
/// nothing is refused. `receive` is where a SEND goes.
pub(super) fn execute(
    qp: &Qp,
    segment: &Segment,
    ends: &mut Ends<'_>,
    cache: &mut LaneCache,
    receive: &[Sge],
    limit: Option<u64>,
) -> Result<(), Fault> {
    let mut index = 0;
    let mut left = limit.unwrap_or(u64::MAX);
    for work in qp.works_of(segment) {
        if left == 0 {
            break;
        }
        match work {
            Work::One { sge, sges, remote, data, .. } => {
                let pieces = || qp.sges_of(*sge, *sges).map(|s| (s.addr, s.len, s.lkey));
                let done = match data {
                    Some(data) => ends.inline(segment.kind, data, *remote, receive, left),
                    None => ends.request(segment.kind, pieces, *remote, receive, left),
                };
                left -= done.map_err(|fault| fault.at(index))?.min(left);
                index += 1;
            }
            Work::Many { plan, window, local, remote, .. } => {
                let mut part = window.clone();
                if limit.is_some() {
                    part.end = part.end.min(part.start + plan.requests_within(part.start, left));
                }
                ends.window(segment.kind, plan, &part, (*local, *remote), cache)
                    .map_err(|f| f.at(f.index + index))?;
                if limit.is_some() {
                    left -= (plan.offset(part.end) - plan.offset(part.start)).min(left);
                    if part.end < window.end {
                        let torn = part.end..part.end + 1;
                        ends.singles(segment.kind, plan, &torn, (*local, *remote), left)
                            .map_err(|f| f.at(f.index + index))?;
                        left = 0;
                    }
                }
                index += window.end - window.start;
            }
        }
    }
    Ok(())
}

impl Ends<'_> {
    fn needs(kind: Kind) -> Right {
        match kind {
            Kind::Read => Right::Read,
            Kind::FetchAdd(_) | Kind::CompareSwap { .. } => Right::Atomic,
            Kind::Write | Kind::Send => Right::Write,
        }
    }

    /// Whether the responder's queue pair takes such requests at all, however short. If not, the request is invalid and its key is not
    /// looked at (InfiniBand spec 11.6.2, remote invalid request error: "not supported by this receive queue"; Linux rxe_resp.c,
    /// `check_op_valid`).
    fn takes(&self, kind: Kind) -> Result<(), Fault> {
        let takes = Self::needs(kind).within(&self.access) || self.mistakes.queue_pair_rights_ignored;
        if takes { Ok(()) } else { Err(Fault::remote(Status::RemInvReq)) }
    }

    fn right(&self, kind: Kind, addr: u64, len: u64, key: RKey) -> Result<Spot, Fault> {
        self.takes(kind)?;
        let right = Self::needs(kind);
        self.sides.remote.remote(self.remote_port, key, addr, len, right).map_err(Fault::remote)
    }

    /// One request whose local side is in memory. Returns how many bytes it has.
    fn request<I: Iterator<Item = (u64, u32, LKey)>>(
        &mut self,
        kind: Kind,
        pieces: impl Fn() -> I,
        remote: (u64, RKey),
        receive: &[Sge],
        limit: u64,
    ) -> Result<u64, Fault> {
        let total: u64 = pieces().map(|p| u64::from(p.1)).sum();
        match kind {
            Kind::FetchAdd(_) | Kind::CompareSwap { .. } => return self.atomic(kind, pieces, remote),
            Kind::Send => return self.send(pieces, total, receive, limit),
            Kind::Write | Kind::Read => {}
        }
        if total == 0 {
            self.takes(kind)?;
            if self.mistakes.zero_length_checked {
                self.right(kind, remote.0, 0, remote.1)?;
            }
            return Ok(0);
        }
        for (addr, len, key) in pieces().filter(|p| p.1 > 0) {
            let write = kind == Kind::Read;
            self.sides.local().local(self.local_port, key, addr, len.into(), write).map_err(Fault::local)?;
        }
        let target = self.right(kind, remote.0, total, remote.1)?;
        // What is torn is torn between two packets.
        let limit = if limit < total { limit / self.mtu * self.mtu } else { total };
        let mut done = 0;
        for (addr, len, key) in pieces() {
            let len = u64::from(len).min(limit - done);
            if len == 0 {
                continue;
            }
            let own =
                self.sides.local().local(self.local_port, key, addr, len, false).map_err(Fault::local)?;
            let (a, b) = ((own.buf, Block::one(own.at)), (target.buf, Block::one(target.at + done)));
            if kind == Kind::Read {
                self.sides.pull(b, a, 1, len, 1);
            } else {
                self.sides.push(a, b, 1, len, 1);
            }
            done += len;
        }
        Ok(total)
    }

    /// A SEND: scattered over the receive's ranges.
    fn send<I: Iterator<Item = (u64, u32, LKey)>>(
        &mut self,
        pieces: impl Fn() -> I,
        total: u64,
        receive: &[Sge],
        limit: u64,
    ) -> Result<u64, Fault> {
        for (addr, len, key) in pieces().filter(|p| p.1 > 0) {
            self.sides.local().local(self.local_port, key, addr, len.into(), false).map_err(Fault::local)?;
        }
        let slots = self.room(total, receive)?;
        let limit = if limit < total { limit / self.mtu * self.mtu } else { total };
        let (mut slot, mut used, mut done) = (0, 0, 0);
        for (addr, len, key) in pieces() {
            let mut at = addr;
            let end = addr + u64::from(len);
            while at < end && done < limit {
                let (target, size) = slots[slot];
                let n = (end - at).min(size - used).min(limit - done);
                if n == 0 {
                    (slot, used) = (slot + 1, 0);
                    continue;
                }
                let own =
                    self.sides.local().local(self.local_port, key, at, n, false).map_err(Fault::local)?;
                let to = (target.buf, Block::one(target.at + used));
                self.sides.push((own.buf, Block::one(own.at)), to, 1, n, 1);
                (at, used, done) = (at + n, used + n, done + n);
            }
        }
        Ok(total)
    }

    /// Where the receive's ranges lie; refused if they are too small or not ours to write.
    fn room(&self, total: u64, receive: &[Sge]) -> Result<Vec<(Spot, u64)>, Fault> {
        let fault =
            |requester, receive| Err(Fault { index: 0, requester, receive: Some(receive), remote: true });
        if receive.iter().map(|s| u64::from(s.len)).sum::<u64>() < total {
            return fault(Status::RemInvReq, Status::LocLen);
        }
        let mut slots = Vec::new();
        let mut need = total;
        for sge in receive.iter().filter(|s| s.len > 0) {
            if need == 0 {
                break;
            }
            let len = u64::from(sge.len);
            match self.sides.remote.local(self.remote_port, sge.lkey, sge.addr, len, true) {
                Ok(spot) => slots.push((spot, len)),
                Err(status) => return fault(Status::RemOp, status),
            }
            need = need.saturating_sub(len);
        }
        Ok(slots)
    }

    /// One request whose bytes were taken at posting.
    fn inline(
        &mut self,
        kind: Kind,
        data: &[u8],
        remote: (u64, RKey),
        receive: &[Sge],
        limit: u64,
    ) -> Result<u64, Fault> {
        let total = data.len() as u64;
        let bytes = if limit < total { &data[..(limit / self.mtu * self.mtu) as usize] } else { data };
        if kind == Kind::Send {
            let mut rest = bytes;
            for (spot, len) in self.room(total, receive)? {
                let n = rest.len().min(len as usize);
                self.sides.remote.place(spot, &rest[..n]);
                rest = &rest[n..];
            }
        } else if total > 0 {
            let spot = self.right(kind, remote.0, total, remote.1)?;
            self.sides.remote.place(spot, bytes);
        } else {
            self.takes(kind)?;
        }
        Ok(total)
    }

    fn atomic<I: Iterator<Item = (u64, u32, LKey)>>(
        &mut self,
        kind: Kind,
        pieces: impl Fn() -> I,
        remote: (u64, RKey),
    ) -> Result<u64, Fault> {
        let Some((addr, _, key)) = pieces().find(|p| p.1 >= 8) else {
            return Err(Fault::local(Status::LocLen));
        };
        let own = self.sides.local().local(self.local_port, key, addr, 8, true).map_err(Fault::local)?;
        if !remote.0.is_multiple_of(8) {
            return Err(Fault::remote(Status::RemInvReq));
        }
        let spot = self.right(kind, remote.0, 8, remote.1)?;
        let Some(word) = self.sides.remote.word(spot) else { return Err(Fault::remote(Status::RemOp)) };
        let mut old = [0; 8];
        old.copy_from_slice(word);
        let value = u64::from_le_bytes(old);
        match kind {
            Kind::FetchAdd(add) => word.copy_from_slice(&value.wrapping_add(add).to_le_bytes()),
            Kind::CompareSwap { expect, swap } if value == expect => {
                word.copy_from_slice(&swap.to_le_bytes());
            }
            _ => {}
        }
        if self.mistakes.atomics_answer_new {
            old.copy_from_slice(word);
        }
        self.sides.answer(own, old);
        Ok(8)
    }

    /// A window of a plan.
    fn window(
        &mut self,
        kind: Kind,
        plan: &Arc<Plan>,
        window: &Range<u64>,
        bases: ((u64, LKey), (u64, RKey)),
        cache: &mut LaneCache,
    ) -> Result<(), Fault> {
        if window.start >= window.end {
            return Ok(());
        }
        let rows = cache.rows(plan.lanes());
        let Some((own, target)) = self.hull(kind, plan, &rows, bases) else {
            return self.singles(kind, plan, window, bases, u64::MAX).map(|_| ());
        };
        let per = plan.requests_per_lane();
        let (mut from, mut to) = (window.start / per, window.end / per);
        if !window.start.is_multiple_of(per) {
            let end = ((from + 1) * per).min(window.end);
            self.checked(kind, plan, &(window.start..end), own, target);
            from += 1;
        }
        if from < to {
            for row in &rows.rows {
                let (a, b) = (row.first.max(from), (row.first + row.count).min(to));
                if a >= b {
                    continue;
                }
                let skip = a - row.first;
                let local = own.at + row.local + skip * row.local_step;
                let remote = target.at + row.remote + skip * row.remote_step;
                for run in plan.runs() {
                    let l = Block { at: local + run.local, lane: row.local_step, step: run.local_step };
                    let r = Block { at: remote + run.remote, lane: row.remote_step, step: run.remote_step };
                    let (len, count) = (u64::from(run.len), u64::from(run.count));
                    if kind == Kind::Read {
                        self.sides.pull((target.buf, r), (own.buf, l), b - a, len, count);
                    } else {
                        self.sides.push((own.buf, l), (target.buf, r), b - a, len, count);
                    }
                }
            }
        }
        to = to.max(from);
        if to * per < window.end {
            self.checked(kind, plan, &(to * per..window.end), own, target);
        }
        Ok(())
    }

    /// Part of a lane whose hull was found good: nothing can be refused.
    fn checked(&mut self, kind: Kind, plan: &Plan, window: &Range<u64>, own: Spot, target: Spot) {
        plan.for_each(window, |_, pieces, offset| {
            let mut remote = target.at + offset;
            for &(at, len) in pieces {
                let (l, r) = ((own.buf, Block::one(own.at + at)), (target.buf, Block::one(remote)));
                if kind == Kind::Read {
                    self.sides.pull(r, l, 1, len.into(), 1);
                } else {
                    self.sides.push(l, r, 1, len.into(), 1);
                }
                remote += u64::from(len);
            }
        });
    }

    /// Where offset 0 of the lanes lies on both sides, if everything that the plan names is within the two registrations.
    fn hull(
        &self,
        kind: Kind,
        plan: &Plan,
        rows: &Rows,
        ((base, lkey), (remote, rkey)): ((u64, LKey), (u64, RKey)),
    ) -> Option<(Spot, Spot)> {
        let (mut l, mut r) = (NOWHERE, NOWHERE);
        for run in plan.runs() {
            let n = u64::from(run.count - 1);
            let len = u64::from(run.len);
            l = l.start.min(run.local)..l.end.max(run.local + n * run.local_step + len);
            r = r.start.min(run.remote)..r.end.max(run.remote + n * run.remote_step + len);
        }
        let hull = |base: u64, lanes: &Range<u64>, runs: &Range<u64>| {
            let start = lanes.start.checked_add(runs.start)?;
            Some((base.checked_add(start)?, start, lanes.end.checked_add(runs.end)? - start))
        };
        let (addr, skip, len) = hull(base, &rows.local, &l)?;
        let own = self.sides.local().local(self.local_port, lkey, addr, len, kind == Kind::Read).ok()?;
        let own = Spot { at: own.at.checked_sub(skip)?, ..own };
        let (addr, skip, len) = hull(remote, &rows.remote, &r)?;
        let target = self.right(kind, addr, len, rkey).ok()?;
        Some((own, Spot { at: target.at.checked_sub(skip)?, ..target }))
    }

    /// Requests of a plan one by one; returns their bytes.
    fn singles(
        &mut self,
        kind: Kind,
        plan: &Arc<Plan>,
        window: &Range<u64>,
        (local, remote): ((u64, LKey), (u64, RKey)),
        limit: u64,
    ) -> Result<u64, Fault> {
        let (mut result, mut bytes) = (Ok(()), 0);
        plan.for_each(window, |index, pieces, offset| {
            if result.is_ok() {
                let pieces = || pieces.iter().map(|&(at, len)| (local.0 + at, len, local.1));
                let limit = limit.saturating_sub(bytes);
                match self.request(kind, pieces, (remote.0 + offset, remote.1), &[], limit) {
                    Ok(n) => bytes += n,
                    Err(fault) => result = Err(fault.at(index - window.start)),
                }
            }
        });
        result.map(|()| bytes)
    }
}
