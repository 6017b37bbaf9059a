//! One side's memory and queue pairs, and what the other side must know of them.

use super::spec::Test;
use super::{Op, TestError, at};
use engine::fabric::{
    Access, Completion, Content, Endpoint, Error, Extent, Fabric, Flags, Gid, Grid, Limits, Memory, Mr,
    QpSpec, Recv, RnrTimer, Rtr, Rts, Sge, Step,
};
use engine::id::{BufId, CqId, PortId, QpId, RKey, WrId};
use serde::{Deserialize, Serialize};

/// Bits of a request's id below its queue pair's index.
const NUMBER_BITS: u32 = 40;

/// What an initiator or target must know of its peer; travels from one host to the other as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Its queue pairs.
    qps: Vec<Address>,
    /// First byte of its memory.
    addr: u64,
    /// Key of it.
    rkey: u32,
    /// READs that it takes at a time.
    reads: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Address {
    qpn: u32,
    psn: u32,
    gid: Gid,
    lid: u16,
    mtu: u16,
}

/// One side's objects, on port 0 of its fabric.
pub struct End {
    buf: BufId,
    mr: Mr,
    send_cq: CqId,
    recv_cq: CqId,
    pub(super) qps: Vec<QpId>,
    /// The peer's memory.
    remote: (u64, RKey),
    /// Whether memory has no bytes, only marks.
    phantom: bool,
    area: u64,
    test: Test,
    reads: u8,
}

const PORT: PortId = PortId(0);

impl End {
    /// Makes them. With `phantom`, messages that do not go inline lie in memory without bytes.
    pub fn make(fabric: &mut dyn Fabric, test: &Test, phantom: bool) -> Result<Self, TestError> {
        let limits: Limits = *fabric.limits();
        test.check(&limits)?;
        if fabric.ports().is_empty() {
            return Err(at("opening the port")(Error::NoSuch("port: the host has none")));
        }
        let phantom = phantom && !test.inlined();
        let kind = if phantom { Memory::Phantom } else { Memory::Host };
        let buf = fabric.alloc(kind, Grid::bytes(test.memory())).map_err(at("allocating memory"))?;
        if !phantom {
            let zero = vec![0; test.memory().min(1 << 20) as usize];
            for start in (0..test.memory()).step_by(zero.len()) {
                let n = zero.len().min((test.memory() - start) as usize);
                fabric.write(buf, start, &zero[..n]).map_err(at("clearing memory"))?;
            }
        }
        let access =
            Access { local_write: true, remote_write: true, remote_read: true, remote_atomic: false };
        let mr = fabric.register(PORT, buf, 0..test.memory(), access).map_err(at("registering memory"))?;
        let send_cq =
            fabric.create_cq(PORT, test.depth * test.qps).map_err(at("making a completion queue"))?;
        let receives = if test.op.received() { test.receives } else { 1 };
        let recv_cq = fabric.create_cq(PORT, receives * test.qps).map_err(at("making a completion queue"))?;
        let spec = QpSpec {
            send_cq,
            recv_cq,
            srq: None,
            max_send: test.depth,
            max_recv: receives,
            max_sge: 1,
            max_inline: if test.inlined() { test.inline } else { 0 },
        };
        let mut end = Self {
            buf,
            mr,
            send_cq,
            recv_cq,
            qps: Vec::with_capacity(test.qps as usize),
            remote: (0, RKey(0)),
            phantom,
            area: test.area(),
            test: *test,
            reads: limits.max_rd_atomic.min(16),
        };
        for _ in 0..test.qps {
            end.qps.push(fabric.create_qp(PORT, spec).map_err(at("making a queue pair"))?);
        }
        for qp in &end.qps {
            fabric.modify_qp(*qp, Step::Init(access)).map_err(at("a queue pair to INIT"))?;
        }
        Ok(end)
    }

    /// What the peer needs.
    pub fn card(&self, fabric: &dyn Fabric) -> Result<Card, TestError> {
        let mut qps = Vec::with_capacity(self.qps.len());
        for qp in &self.qps {
            let Endpoint { qpn, psn, gid, lid, mtu } =
                fabric.endpoint(*qp).map_err(at("asking for an endpoint"))?;
            qps.push(Address { qpn, psn, gid, lid, mtu });
        }
        Ok(Card { qps, addr: self.mr.addr, rkey: self.mr.rkey.0, reads: self.reads })
    }

    /// Connects to the peer, and posts the receives that the test needs.
    pub fn connect(&mut self, fabric: &mut dyn Fabric, peer: &Card) -> Result<(), TestError> {
        if peer.qps.len() != self.qps.len() {
            let (theirs, ours) = (peer.qps.len(), self.qps.len());
            return Err(TestError::Peer(format!(
                "the other side made {theirs} queue pairs, expected {ours}"
            )));
        }
        self.remote = (peer.addr, RKey(peer.rkey));
        let reads = self.reads.min(peer.reads);
        for (index, (qp, there)) in self.qps.clone().into_iter().zip(&peer.qps).enumerate() {
            let Address { qpn, psn, gid, lid, mtu } = *there;
            let peer = Endpoint { qpn, psn, gid, lid, mtu };
            if !fabric.reaches(PORT, &peer) {
                return Err(TestError::Peer("the two ports do not reach each other".to_owned()));
            }
            let rtr = Rtr { peer, max_dest_rd_atomic: self.reads, min_rnr_timer: RnrTimer(12) };
            fabric.modify_qp(qp, Step::Rtr(rtr)).map_err(at("a queue pair to RTR"))?;
            if self.test.op.received() {
                self.receive(fabric, index, self.test.receives)?;
            }
            let rts = Rts { timeout: 14, retry_cnt: 7, rnr_retry: 7, max_rd_atomic: reads };
            fabric.modify_qp(qp, Step::Rts(rts)).map_err(at("a queue pair to RTS"))?;
        }
        Ok(())
    }

    /// Gives everything back.
    pub fn destroy(self, fabric: &mut dyn Fabric) -> Result<(), TestError> {
        for qp in self.qps {
            fabric.destroy_qp(qp).map_err(at("destroying a queue pair"))?;
        }
        for cq in [self.send_cq, self.recv_cq] {
            fabric.destroy_cq(cq).map_err(at("destroying a completion queue"))?;
        }
        fabric.deregister(self.mr.id).map_err(at("ending a registration"))?;
        fabric.free(self.buf).map_err(at("freeing memory"))
    }

    /// Posts receives.
    pub(super) fn receive(&self, fabric: &mut dyn Fabric, qp: usize, count: u32) -> Result<(), TestError> {
        let sge = Sge { addr: self.mr.addr + self.incoming(qp), len: self.test.size, lkey: self.mr.lkey };
        let sges = if self.test.op == Op::Send { std::slice::from_ref(&sge) } else { &[] };
        let recv = Recv { first: self.id(qp, 0), count, sges };
        fabric.post_recv(self.qps[qp], recv).map_err(|refused| at("posting receives")(refused.why))
    }

    /// Takes completions of sends, or of receives; every one must be a success.
    pub(super) fn poll(
        &self,
        fabric: &mut dyn Fabric,
        receives: bool,
        into: &mut [Completion],
    ) -> Result<usize, TestError> {
        let n = fabric.poll(if receives { self.recv_cq } else { self.send_cq }, into);
        for completion in &into[..n] {
            if let Err(failed) = completion.result {
                let what = if receives { "receive" } else { self.test.op.name() };
                return Err(TestError::Completion { what, status: failed.status, vendor: failed.vendor });
            }
        }
        Ok(n)
    }

    /// Id of request `number` of a queue pair.
    pub(super) fn id(&self, qp: usize, number: u64) -> WrId {
        WrId((qp as u64) << NUMBER_BITS | number)
    }

    /// Queue pair and number of an id.
    pub(super) fn of(id: WrId) -> (usize, u64) {
        ((id.0 >> NUMBER_BITS) as usize, id.0 & ((1 << NUMBER_BITS) - 1))
    }

    /// Offset of a queue pair's outgoing messages from the start of the memory; of its incoming ones.
    pub(super) fn outgoing(&self, qp: usize) -> u64 {
        2 * self.area * qp as u64
    }
    pub(super) fn incoming(&self, qp: usize) -> u64 {
        self.outgoing(qp) + self.area
    }

    /// The local range of a message that lies `skip` bytes into the outgoing ones (of a READ: into the incoming ones), and the remote place.
    pub(super) fn message(&self, qp: usize, skip: u64) -> (Sge, (u64, RKey)) {
        let (local, remote) = self.places(qp);
        let sge = Sge { addr: local + skip, len: self.test.size, lkey: self.mr.lkey };
        (sge, (remote + skip, self.remote.1))
    }

    /// Addresses of the first message here and there.
    pub(super) fn places(&self, qp: usize) -> (u64, u64) {
        let (out, into) = (self.outgoing(qp), self.incoming(qp));
        let (local, remote) = if self.test.op == Op::Read { (into, out) } else { (out, into) };
        (self.mr.addr + local, self.remote.0 + remote)
    }
    pub(super) fn keys(&self) -> (engine::id::LKey, RKey) {
        (self.mr.lkey, self.remote.1)
    }

    pub(super) fn flags(&self, signaled: bool) -> Flags {
        Flags { signaled, fence: false, inline: self.test.inlined() }
    }

    /// Marks the last byte of the outgoing message with its number.
    pub(super) fn mark(&self, fabric: &mut dyn Fabric, number: u64) -> Result<(), TestError> {
        let last = self.outgoing(0) + u64::from(self.test.size) - 1;
        if self.phantom {
            let place = Extent::piece(0, last, 1);
            fabric.stamp(self.buf, &place, content(number)).map_err(at("writing to memory"))
        } else {
            fabric.write(self.buf, last, &[number as u8]).map_err(at("writing to memory"))
        }
    }

    /// Whether the incoming message's last byte has the mark.
    pub(super) fn marked(&self, fabric: &dyn Fabric, number: u64) -> Result<bool, TestError> {
        let last = self.incoming(0) + u64::from(self.test.size) - 1;
        if self.phantom {
            let place = Extent::piece(0, last, 1);
            fabric.holds(self.buf, &place, content(number)).map_err(at("reading memory"))
        } else {
            let mut byte = [0];
            fabric.read(self.buf, last, &mut byte).map_err(at("reading memory"))?;
            Ok(byte[0] == number as u8)
        }
    }
}

fn content(number: u64) -> Content {
    Content { seed: number, at: 0, per_buffer: 0, per_piece: 0 }
}
