//! What the tests of the simulated fabric share.
#![allow(dead_code, unreachable_pub)]

use engine::fabric::{
    Access, Completion, Fabric, Failed, Flags, Grid, Item, Memory, Mr, Op, Recv, Refused, Sge, Status,
    WorkRequest,
};
use engine::id::{BufId, RKey, WrId};
use sim::fabric::pair::{Pair, PairSpec};

pub const ALL: Access =
    Access { local_write: true, remote_write: true, remote_read: true, remote_atomic: true };

/// A pair with a byte buffer of 64 KiB on each side, registered with all rights.
pub struct Rig {
    pub pair: Pair,
    pub bufs: [BufId; 2],
    pub mrs: [Mr; 2],
}

pub const SIZE: u64 = 65_536;

pub fn signaled() -> Flags {
    Flags { signaled: true, ..Flags::default() }
}

impl Rig {
    pub fn new(spec: PairSpec) -> Self {
        let mut pair = Pair::new(spec).unwrap();
        let mut make = |i: usize| {
            let port = pair.ends[i].port;
            pair.call(i, |f| {
                let buf = f.alloc(Memory::Host, Grid::bytes(SIZE)).unwrap();
                (buf, f.register(port, buf, 0..SIZE, ALL).unwrap())
            })
        };
        let ((a, m), (b, n)) = (make(0), make(1));
        Self { pair, bufs: [a, b], mrs: [m, n] }
    }

    pub fn ideal() -> Self {
        Self::new(PairSpec::default())
    }

    pub fn sge(&self, side: usize, at: u64, len: u32) -> Sge {
        Sge { addr: self.mrs[side].addr + at, len, lkey: self.mrs[side].lkey }
    }

    /// The other side's memory at `at`.
    pub fn remote(&self, side: usize, at: u64) -> (u64, RKey) {
        (self.mrs[1 - side].addr + at, self.mrs[1 - side].rkey)
    }

    pub fn post(&mut self, side: usize, chain: &[Item<'_>]) -> Result<(), Refused> {
        let qp = self.pair.ends[side].qp;
        self.pair.call(side, |f| f.post_send(qp, chain))
    }

    /// One request of `len` bytes from offset `at` to the same offset of the other side.
    pub fn send(&mut self, side: usize, id: u64, op: Op, at: u64, len: u32, flags: Flags) {
        let sge = [self.sge(side, at, len)];
        let request = WorkRequest { id: WrId(id), op, flags, local: &sge, remote: self.remote(side, at) };
        self.post(side, &[Item::One(request)]).unwrap();
    }

    pub fn recv(&mut self, side: usize, first: u64, count: u32, sges: &[Sge]) {
        let qp = self.pair.ends[side].qp;
        let recv = Recv { first: WrId(first), count, sges };
        self.pair.call(side, |f| f.post_recv(qp, recv)).unwrap();
    }

    pub fn fill(&mut self, side: usize, at: u64, byte: u8, len: usize) {
        let buf = self.bufs[side];
        self.pair.call(side, |f| f.write(buf, at, &vec![byte; len])).unwrap();
    }

    pub fn bytes(&self, side: usize, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pair.fabrics.host_ref(self.pair.ends[side].host).read(self.bufs[side], at, &mut bytes).unwrap();
        bytes
    }

    pub fn run(&mut self) -> u64 {
        self.pair.run().0
    }

    /// Ids and statuses of send completions.
    pub fn sent(&mut self, side: usize) -> Vec<(u64, Option<Status>)> {
        short(&self.pair.sends(side))
    }

    pub fn received(&mut self, side: usize) -> Vec<(u64, Option<Status>)> {
        short(&self.pair.receives(side))
    }
}

/// `None` for success.
pub fn short(completions: &[Completion]) -> Vec<(u64, Option<Status>)> {
    completions.iter().map(|c| (c.id.0, c.result.err().map(|Failed { status, .. }| status))).collect()
}
