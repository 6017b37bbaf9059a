//! Chains of work requests as arrays of `ibv_send_wr`.
//!
//! The arrays are made once and used again: entry `i` points to entry `i + 1` for ever, and only the last one of a doorbell is cut
//! off for its time. A plan's requests are written straight from [`Plan::for_each`](crate::fabric::Plan::for_each) into them, without
//! a [`WorkRequest`] between; that both ways give the same arrays is a test below.

use crate::fabric::{Batch, Error, Flags, Item, Op, Refused, Result, WorkRequest};
use ffi::ibv_wr_opcode as opcode;
use ibverbs_sys as ffi;
use std::collections::VecDeque;
use std::ffi::c_uint;
use std::ptr::null_mut;

/// Requests posted with one doorbell at most.
pub const CHAIN: usize = 256;
/// SGEs of a doorbell's requests at most, and of one request.
const SGES: usize = 4 * CHAIN;

const SIGNALED: c_uint = ffi::ibv_send_flags::IBV_SEND_SIGNALED.0;

/// What posts a chain that is filled in.
pub trait Doorbell {
    /// Posts `head` and what it points to. On failure: how many were posted, and the error number.
    fn ring(&mut self, head: *mut ffi::ibv_send_wr) -> Result<(), (usize, i32)>;
}

/// What a request may have.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// SGEs.
    pub max_sge: u32,
    /// Inline bytes.
    pub max_inline: u32,
    /// Bytes.
    pub max_message: u32,
}

/// Places of a send queue: unsignalled requests hold theirs until a later one's completion is polled.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    max: u32,
    used: u32,
    /// Unsignalled ones since the last signalled one.
    silent: u32,
    /// Places that each outstanding signalled request gives back.
    groups: VecDeque<u32>,
    /// In ERR nothing tells which request a completion belongs to: the device alone says when it is full.
    open: bool,
}

impl Ledger {
    /// An empty queue of `max` places.
    pub fn new(max: u32) -> Self {
        Self { max, ..Self::default() }
    }
    fn room(&self) -> u64 {
        if self.open { u64::MAX } else { u64::from(self.max - self.used.min(self.max)) }
    }
    fn post(&mut self, signaled: bool) {
        self.used = self.used.saturating_add(1);
        self.silent += 1;
        if signaled {
            self.groups.push_back(std::mem::take(&mut self.silent));
        }
    }
    /// A signalled request's success was polled.
    pub fn complete(&mut self) {
        self.used = self.used.saturating_sub(self.groups.pop_front().unwrap_or(0));
    }
    /// The queue pair failed.
    pub fn fail(&mut self) {
        self.open = true;
    }
    /// The queue pair was reset: all is empty.
    pub fn clear(&mut self) {
        *self = Self { max: self.max, ..Self::default() };
    }
}

/// The arrays, and how much of them is filled in.
pub struct Chain {
    wrs: Box<[ffi::ibv_send_wr]>,
    sges: Box<[ffi::ibv_sge]>,
    requests: usize,
    pieces: usize,
    /// Requests of this chain that were posted.
    posted: u64,
}

// SAFETY: the pointers in the arrays point into the arrays, which belong to the chain and never move.
unsafe impl Send for Chain {}

impl Default for Chain {
    fn default() -> Self {
        let mut wrs = vec![ffi::ibv_send_wr::default(); CHAIN].into_boxed_slice();
        let base = wrs.as_mut_ptr();
        for (i, wr) in wrs.iter_mut().enumerate() {
            // Past the last one it is cut off whenever it is posted.
            wr.next = base.wrapping_add(i + 1);
        }
        let sges = vec![ffi::ibv_sge::default(); SGES].into_boxed_slice();
        Self { wrs, sges, requests: 0, pieces: 0, posted: 0 }
    }
}

fn invalid<T>(what: &'static str, value: u64, right: &'static str) -> Result<T> {
    Err(Error::Invalid { what, value, right })
}

/// Opcode, and immediate in the order of the wire.
fn word(op: Op) -> (opcode::Type, u32) {
    match op {
        Op::Write => (opcode::IBV_WR_RDMA_WRITE, 0),
        Op::WriteImm(imm) => (opcode::IBV_WR_RDMA_WRITE_WITH_IMM, imm.to_be()),
        Op::Send => (opcode::IBV_WR_SEND, 0),
        Op::SendImm(imm) => (opcode::IBV_WR_SEND_WITH_IMM, imm.to_be()),
        Op::Read => (opcode::IBV_WR_RDMA_READ, 0),
        Op::FetchAdd(_) => (opcode::IBV_WR_ATOMIC_FETCH_AND_ADD, 0),
        Op::CompareSwap { .. } => (opcode::IBV_WR_ATOMIC_CMP_AND_SWP, 0),
    }
}

fn flag_bits(flags: Flags) -> c_uint {
    let mut bits = 0;
    if flags.signaled {
        bits |= SIGNALED;
    }
    if flags.fence {
        bits |= ffi::ibv_send_flags::IBV_SEND_FENCE.0;
    }
    if flags.inline {
        bits |= ffi::ibv_send_flags::IBV_SEND_INLINE.0;
    }
    bits
}

impl Chain {
    /// Posts a chain, as many requests at a time as the arrays hold. `sees` says whether the CPU may read a range, for inline.
    pub fn post<B: Doorbell>(
        &mut self,
        items: &[Item<'_>],
        caps: &Caps,
        ledger: &mut Ledger,
        sees: &dyn Fn(u64, u64) -> bool,
        bell: &mut B,
    ) -> Result<(), Refused> {
        (self.requests, self.pieces, self.posted) = (0, 0, 0);
        let mut result = Ok(());
        for item in items {
            result = match item {
                Item::One(request) => self.one(request, caps, ledger, sees, bell),
                Item::Many(batch) => self.many(batch, caps, ledger, bell),
            };
            if result.is_err() {
                break;
            }
        }
        // What came before a bad request is posted. If that fails, it fails earlier, and for its own reason.
        let at = self.posted + self.requests as u64;
        let last = self.ring(ledger, bell);
        match (result, last) {
            (Ok(()), Ok(())) => Ok(()),
            (_, Err(why)) => Err(Refused { at: self.posted, why }),
            (Err(why), Ok(())) => Err(Refused { at, why }),
        }
    }

    /// Posts what is filled in.
    #[inline(never)]
    fn ring<B: Doorbell>(&mut self, ledger: &mut Ledger, bell: &mut B) -> Result<()> {
        let n = self.requests;
        if n == 0 {
            return Ok(());
        }
        let next = std::mem::replace(&mut self.wrs[n - 1].next, null_mut());
        let result = bell.ring(self.wrs.as_mut_ptr());
        self.wrs[n - 1].next = next;
        (self.requests, self.pieces) = (0, 0);
        let done = match result {
            Ok(()) => n,
            Err((posted, _)) => posted.min(n),
        };
        for wr in &self.wrs[..done] {
            ledger.post(wr.send_flags & SIGNALED != 0);
        }
        self.posted += done as u64;
        result.map_err(|(_, errno)| refusal(errno))
    }

    /// Makes room for a request of so many SGEs.
    #[inline]
    fn fit<B: Doorbell>(&mut self, pieces: usize, ledger: &mut Ledger, bell: &mut B) -> Result<()> {
        if self.requests == self.wrs.len() || self.pieces + pieces > self.sges.len() {
            return self.ring(ledger, bell);
        }
        Ok(())
    }

    /// Fills in one request, for which there is room.
    #[inline]
    fn fill(
        &mut self,
        id: u64,
        op: Op,
        flags: Flags,
        pieces: impl ExactSizeIterator<Item = (u64, u32, u32)>,
        remote: (u64, u32),
    ) {
        let n = pieces.len();
        let sges = &mut self.sges[self.pieces..self.pieces + n];
        for (sge, (addr, length, lkey)) in sges.iter_mut().zip(pieces) {
            *sge = ffi::ibv_sge { addr, length, lkey };
        }
        let (opcode, imm) = word(op);
        let wr = &mut self.wrs[self.requests];
        wr.wr_id = id;
        wr.sg_list = sges.as_mut_ptr();
        wr.num_sge = n as i32;
        wr.opcode = opcode;
        wr.send_flags = flag_bits(flags);
        wr.__bindgen_anon_1.imm_data = imm;
        let (remote_addr, rkey) = remote;
        match op {
            Op::FetchAdd(add) => {
                wr.wr.atomic = ffi::ibv_send_wr__bindgen_ty_2__bindgen_ty_2 {
                    remote_addr,
                    compare_add: add,
                    swap: 0,
                    rkey,
                };
            }
            Op::CompareSwap { expect, swap } => {
                wr.wr.atomic = ffi::ibv_send_wr__bindgen_ty_2__bindgen_ty_2 {
                    remote_addr,
                    compare_add: expect,
                    swap,
                    rkey,
                };
            }
            _ => wr.wr.rdma = ffi::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 { remote_addr, rkey },
        }
        self.requests += 1;
        self.pieces += n;
    }

    fn one<B: Doorbell>(
        &mut self,
        request: &WorkRequest<'_>,
        caps: &Caps,
        ledger: &mut Ledger,
        sees: &dyn Fn(u64, u64) -> bool,
        bell: &mut B,
    ) -> Result<()> {
        if self.requests as u64 >= ledger.room() {
            return Err(Error::QueueFull);
        }
        let count = request.local.len();
        if count as u64 > u64::from(caps.max_sge) || count > SGES {
            return invalid("SGEs of a request", count as u64, "at most the queue pair's max_sge");
        }
        let bytes: u64 = request.local.iter().map(|s| u64::from(s.len)).sum();
        if bytes > u64::from(caps.max_message) {
            return invalid("bytes of a request", bytes, "at most the device's max_message");
        }
        let atomic = matches!(request.op, Op::FetchAdd(_) | Op::CompareSwap { .. });
        if atomic && bytes != 8 {
            return invalid("bytes of an atomic", bytes, "exactly 8");
        }
        if request.flags.inline {
            if atomic || request.op == Op::Read {
                return invalid("inline", bytes, "not for READ and atomics");
            }
            if bytes > u64::from(caps.max_inline) {
                return invalid("inline bytes", bytes, "at most the queue pair's max_inline");
            }
            if let Some(bad) = request.local.iter().find(|s| !sees(s.addr, s.len.into())) {
                return invalid("inline address", bad.addr, "an address range of one buffer of this host");
            }
        }
        self.fit(count, ledger, bell)?;
        let pieces = request.local.iter().map(|s| (s.addr, s.len, s.lkey.0));
        self.fill(request.id.0, request.op, request.flags, pieces, (request.remote.0, request.remote.1.0));
        Ok(())
    }

    fn many<B: Doorbell>(
        &mut self,
        batch: &Batch<'_>,
        caps: &Caps,
        ledger: &mut Ledger,
        bell: &mut B,
    ) -> Result<()> {
        let (window, total) = (batch.window.clone(), batch.plan.requests());
        if window.start > window.end || window.end > total {
            return invalid("window", window.end, "a range of the plan's requests");
        }
        if window.is_empty() {
            return Ok(());
        }
        let read = |op| op == Op::Read;
        let rows = |op| matches!(op, Op::Write | Op::WriteImm(_) | Op::Read);
        let last = batch.last.unwrap_or(batch.op);
        if !rows(batch.op) || !rows(last) || read(batch.op) != read(last) {
            return Err(Error::Unsupported("batch of anything but WRITE or READ"));
        }
        let room = ledger.room().saturating_sub(self.requests as u64);
        let end = window.end.min(window.start.saturating_add(room));
        let (local, lkey) = (batch.local.0, batch.local.1.0);
        let (remote, rkey) = (batch.remote.0, batch.remote.1.0);
        let mut why = None;
        batch.plan.for_each(&(window.start..end), |index, pieces, at| {
            if why.is_some() {
                return;
            }
            let bytes: u64 = pieces.iter().map(|p| u64::from(p.1)).sum();
            if pieces.len() as u64 > u64::from(caps.max_sge) {
                let (value, right) = (pieces.len() as u64, "at most the queue pair's max_sge");
                why = Some(Error::Invalid { what: "SGEs of a request", value, right });
                return;
            }
            if bytes > u64::from(caps.max_message) {
                let right = "at most the device's max_message";
                why = Some(Error::Invalid { what: "bytes of a request", value: bytes, right });
                return;
            }
            if let Err(failed) = self.fit(pieces.len(), ledger, bell) {
                why = Some(failed);
                return;
            }
            let (op, flags) = batch.request(index);
            // Sums that pass the end of the address space are for the device to refuse.
            let pieces = pieces.iter().map(|&(at, len)| (local.wrapping_add(at), len, lkey));
            self.fill(batch.first.0.wrapping_add(index), op, flags, pieces, (remote.wrapping_add(at), rkey));
        });
        match why {
            Some(why) => Err(why),
            None if end < window.end => Err(Error::QueueFull),
            None => Ok(()),
        }
    }
}

/// What an error number of `ibv_post_*` means.
pub(super) fn refusal(errno: i32) -> Error {
    if errno == rustix::io::Errno::NOMEM.raw_os_error() {
        return Error::QueueFull;
    }
    Error::System { call: "ibv_post_send or ibv_post_recv", errno, advice: "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::{Lane, Plan, Run, Sge};
    use crate::id::{LKey, RKey, WrId};
    use proptest::prelude::*;
    use std::sync::Arc;

    /// A request as the device finds it: id, opcode, flags, immediate, gather list, remote address and key.
    type Seen = (u64, u32, u32, u32, Vec<(u64, u32, u32)>, (u64, u32));

    /// Notes what is posted, and refuses the request that comes after so many.
    struct Notes {
        seen: Vec<Seen>,
        chains: usize,
        takes: usize,
    }

    impl Notes {
        fn new(takes: usize) -> Self {
            Self { seen: Vec::new(), chains: 0, takes }
        }
    }

    impl Doorbell for Notes {
        fn ring(&mut self, head: *mut ffi::ibv_send_wr) -> Result<(), (usize, i32)> {
            self.chains += 1;
            let (mut at, mut n) = (head, 0);
            while !at.is_null() {
                if self.seen.len() == self.takes {
                    return Err((n, rustix::io::Errno::NOMEM.raw_os_error()));
                }
                // SAFETY: the chain was filled in: each entry, its gather list, and the next one or null. Every operation here is one
                // with `rdma`.
                let (wr, sges, remote) = unsafe {
                    let wr = &*at;
                    let sges = std::slice::from_raw_parts(wr.sg_list, wr.num_sge as usize);
                    (wr, sges, wr.wr.rdma)
                };
                let sges = sges.iter().map(|s| (s.addr, s.length, s.lkey)).collect();
                // SAFETY: both views of the union are the same four bytes.
                let imm = unsafe { wr.__bindgen_anon_1.imm_data };
                let remote = (remote.remote_addr, remote.rkey);
                self.seen.push((wr.wr_id, wr.opcode, wr.send_flags, imm, sges, remote));
                (at, n) = (wr.next, n + 1);
            }
            Ok(())
        }
    }

    const CAPS: Caps = Caps { max_sge: 32, max_inline: 64, max_message: 1 << 31 };

    fn post(
        items: &[Item<'_>],
        caps: Caps,
        ledger: &mut Ledger,
        takes: usize,
    ) -> (Vec<Seen>, Result<(), Refused>) {
        let mut notes = Notes::new(takes);
        let result = Chain::default().post(items, &caps, ledger, &|_, _| true, &mut notes);
        (notes.seen, result)
    }

    fn plan(lanes: u64, gather: u16, pieces: u32) -> Arc<Plan> {
        let lanes: Arc<[Lane]> = (0..lanes).map(|i| Lane { local: i << 20, remote: i << 24 }).collect();
        let run = |at: u64, gather| Run { count: pieces, local_step: 100, gather, ..Run::piece(at, at, 64) };
        Arc::new(Plan::new(lanes, vec![run(0, gather), run(1 << 16, 1)]).unwrap())
    }

    fn batch(plan: &Arc<Plan>, every: u32) -> Batch<'_> {
        Batch {
            plan,
            first: WrId(5),
            op: Op::Write,
            local: (1 << 40, LKey(3)),
            remote: (1 << 41, RKey(4)),
            window: 0..plan.requests(),
            signal_every: every,
            signal_last: true,
            last: Some(Op::WriteImm(0x0102_0304)),
        }
    }

    proptest! {
        /// What is filled in from a plan is what its expansion, posted one by one, gives: also when the queue or the device stops it.
        #[test]
        fn a_batch_is_its_requests(
            lanes in 1u64..20, gather in 1u16..33, pieces in 1u32..60, every in 0u32..9,
            from in 0u64..300, room in 0u32..900, takes in 0usize..900, max_sge in 1u32..40,
        ) {
            let plan = plan(lanes, gather, pieces);
            let from = from.min(plan.requests());
            let batch = Batch { window: from..plan.requests(), ..batch(&plan, every) };
            let mut requests: Vec<(WorkRequest<'_>, Vec<Sge>)> = Vec::new();
            batch.for_each(|r| requests.push((WorkRequest { local: &[], ..*r }, r.local.to_vec())));
            let ones: Vec<_> =
                requests.iter().map(|(r, sges)| Item::One(WorkRequest { local: sges, ..*r })).collect();
            let caps = Caps { max_sge, ..CAPS };
            let (mut a, mut b) = (Ledger::new(room), Ledger::new(room));
            let many = post(&[Item::Many(batch)], caps, &mut a, takes);
            prop_assert_eq!(&many, &post(&ones, caps, &mut b, takes));
            prop_assert_eq!((a.used, a.silent, &a.groups), (b.used, b.silent, &b.groups));
            let posted = many.0.len();
            prop_assert_eq!(a.used as usize, posted);
            match many.1 {
                Ok(()) => prop_assert_eq!(posted, ones.len()),
                Err(refused) => prop_assert_eq!(refused.at as usize, posted),
            }
            // A success of the last signalled one frees what it covers.
            while !a.groups.is_empty() {
                a.complete();
            }
            prop_assert_eq!(a.used, a.silent);
        }
    }

    #[test]
    fn immediates_are_in_the_order_of_the_wire() {
        let plan = plan(1, 1, 1);
        let (seen, _) = post(&[Item::Many(batch(&plan, 0))], CAPS, &mut Ledger::new(9), 9);
        assert_eq!(seen[1].3.to_ne_bytes(), [1, 2, 3, 4]);
        assert_eq!(seen[1].0, 6);
    }

    #[test]
    fn a_chain_is_posted_in_pieces_that_fit() {
        let plan = plan(10, 1, 100);
        let mut notes = Notes::new(usize::MAX);
        let mut chain = Chain::default();
        let mut ledger = Ledger::new(5000);
        for _ in 0..2 {
            chain.post(&[Item::Many(batch(&plan, 0))], &CAPS, &mut ledger, &|_, _| true, &mut notes).unwrap();
        }
        assert_eq!((notes.seen.len(), notes.chains), (4000, 2 * 2000usize.div_ceil(CHAIN)));
    }

    #[test]
    fn in_err_the_device_alone_says_when_it_is_full() {
        let plan = plan(1, 1, 10);
        let mut ledger = Ledger::new(3);
        ledger.fail();
        let (seen, result) = post(&[Item::Many(batch(&plan, 0))], CAPS, &mut ledger, 7);
        assert_eq!((seen.len(), result), (7, Err(Refused { at: 7, why: Error::QueueFull })));
        ledger.clear();
        let (seen, result) = post(&[Item::Many(batch(&plan, 0))], CAPS, &mut ledger, 7);
        assert_eq!((seen.len(), result), (3, Err(Refused { at: 3, why: Error::QueueFull })));
    }
}
