//! A host without NICs.

use super::{
    Access, Completion, Content, Endpoint, Error, Event, Extent, Fabric, Grid, Item, Limits, LocalCopy,
    Memory, Mr, Port, QpSpec, QpState, Recv, Refused, Result, SrqSpec, Step, Units,
};
use crate::id::{BufId, CopyId, CqId, MrId, PortId, QpId, SrqId};
use std::ops::Range;

/// No ports, no memory: what the registry and the router have. Every call that makes something is refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct Absent;

const NOTHING: Limits = Limits {
    max_qp_wr: 0,
    max_sge: 0,
    max_inline: 0,
    max_rd_atomic: 0,
    max_cqe: 0,
    max_srq_wr: 0,
    max_qp: 0,
    max_message: 0,
};

fn refuse<T>() -> Result<T> {
    Err(Error::Unsupported("device"))
}

impl Fabric for Absent {
    fn ports(&self) -> &[Port] {
        &[]
    }
    fn limits(&self) -> &Limits {
        &NOTHING
    }
    fn reaches(&self, _port: PortId, _peer: &Endpoint) -> bool {
        false
    }
    fn alloc(&mut self, _kind: Memory, _grid: Grid) -> Result<BufId> {
        refuse()
    }
    fn free(&mut self, _buf: BufId) -> Result<()> {
        refuse()
    }
    fn write(&mut self, _buf: BufId, _at: u64, _bytes: &[u8]) -> Result<()> {
        refuse()
    }
    fn read(&self, _buf: BufId, _at: u64, _bytes: &mut [u8]) -> Result<()> {
        refuse()
    }
    fn stamp(&mut self, _buf: BufId, _place: &Extent, _what: Content) -> Result<()> {
        refuse()
    }
    fn holds(&self, _buf: BufId, _place: &Extent, _what: Content) -> Result<bool> {
        refuse()
    }
    fn checksum(&self, _buf: BufId, _place: &Extent, _units: Units) -> Result<u64> {
        refuse()
    }
    fn flush(&mut self, _buf: BufId) -> Result<()> {
        refuse()
    }
    fn copy(&mut self, _engine: u32, _id: CopyId, _parts: &[LocalCopy<'_>]) -> Result<()> {
        refuse()
    }
    fn register(&mut self, _port: PortId, _buf: BufId, _span: Range<u64>, _access: Access) -> Result<Mr> {
        refuse()
    }
    fn deregister(&mut self, _mr: MrId) -> Result<()> {
        refuse()
    }
    fn create_cq(&mut self, _port: PortId, _depth: u32) -> Result<CqId> {
        refuse()
    }
    fn destroy_cq(&mut self, _cq: CqId) -> Result<()> {
        refuse()
    }
    fn create_srq(&mut self, _port: PortId, _spec: SrqSpec) -> Result<SrqId> {
        refuse()
    }
    fn arm_srq(&mut self, _srq: SrqId, _limit: u32) -> Result<()> {
        refuse()
    }
    fn destroy_srq(&mut self, _srq: SrqId) -> Result<()> {
        refuse()
    }
    fn create_qp(&mut self, _port: PortId, _spec: QpSpec) -> Result<QpId> {
        refuse()
    }
    fn endpoint(&self, _qp: QpId) -> Result<Endpoint> {
        refuse()
    }
    fn modify_qp(&mut self, _qp: QpId, _step: Step) -> Result<()> {
        refuse()
    }
    fn qp_state(&self, _qp: QpId) -> Result<QpState> {
        refuse()
    }
    fn destroy_qp(&mut self, _qp: QpId) -> Result<()> {
        refuse()
    }
    fn post_send(&mut self, _qp: QpId, _chain: &[Item<'_>]) -> Result<(), Refused> {
        Err(Refused { at: 0, why: Error::Unsupported("device") })
    }
    fn post_recv(&mut self, _qp: QpId, _recv: Recv<'_>) -> Result<(), Refused> {
        Err(Refused { at: 0, why: Error::Unsupported("device") })
    }
    fn post_srq_recv(&mut self, _srq: SrqId, _recv: Recv<'_>) -> Result<(), Refused> {
        Err(Refused { at: 0, why: Error::Unsupported("device") })
    }
    fn poll(&mut self, _cq: CqId, _into: &mut [Completion]) -> usize {
        0
    }
    fn next_event(&mut self) -> Option<Event> {
        None
    }
}
