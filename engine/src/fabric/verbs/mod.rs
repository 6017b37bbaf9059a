//! The fabric on libibverbs: RoCE and InfiniBand NICs, and Soft-RoCE.
//!
//! [`VerbsFabric::open`] opens what a [`DeviceConfig`] means; [`list`] says what there is. What is decided here, and why:
//!
//! - **`ibv_post_send` and `ibv_poll_cq`**, not the extended calls (`ibv_wr_*`, `ibv_start_poll`): those go wrong in the Soft-RoCE
//!   provider of rdma-core 44, which Debian 12 has. They save a few nanoseconds a request where [`post`] costs a few tens.
//! - **Addresses.** RoCE takes the first IPv4-mapped entry of version 2, then any of version 2 that is not link-local, then any of
//!   version 2: IPv4 is what the routing of a RoCE network is usually made for, and a link-local address does not leave its segment.
//!   InfiniBand goes by LID, with a global header only towards another subnet. The reason of a choice is told by [`PortInfo::choose`].
//! - **Queues are as deep as was asked for**, although drivers round up: a program that overruns a queue does so on every device at the
//!   same request. Requests are counted when they are posted and given back when their completion is polled. Receives are given back
//!   when their completion is made. Only in ERR, where completions no longer say what they cover, the device alone counts.
//! - **The stash.** RESET and `destroy` discard completions that nobody polled. Soft-RoCE leaves them in the queue, where those of a
//!   destroyed queue pair would be taken for those of the next one with its number. So both empty the completion queues: what is
//!   the queue pair's goes, what is others' is kept, in order, for the next poll. Whose a completion is follows from device and `qp_num`.
//! - **State.** A device moves a queue pair to ERR by itself. Here that is learnt from failed completions and from events, and by asking
//!   (`ibv_query_qp`) in `qp_state`, before every step, and when a request is refused. Posting does not ask: in ERR it completes flushed.
//! - **Events** are read by [`wake`](crate::fabric::Device::wake), which costs a system call for each device, and by nothing else.
//!   A driver that spins without sleeping must call it now and then. Soft-RoCE of Linux 6.1 sends none for a responder that refuses
//!   a request, and none for the last receive of a shared queue: the first shows in the peer's completion and in the state, the
//!   second is told here when the fence stands.
//! - **Memory** registered by one port's device has that device's keys. No Rust reference into it ever exists (see `memory`).
//!
//! # Fences
//!
//! The target of requests takes its pages back after it has moved its end to ERR. The state change alone does not give that:
//!
//! - Soft-RoCE's `rxe_qp_error` (rxe_qp.c) sets the state and *schedules* the responder, the completer and the requester. One that runs
//!   at this moment on another CPU goes on with its packet: up to an MTU is copied into memory after `ibv_modify_qp` has returned.
//! - NICs take an incoming packet's place in order with the state change, but their writes may still be on their way over PCIe, and
//!   nothing says when the queues have been flushed.
//!
//! So [`Step::Err`](crate::fabric::Step::Err) does what the kernel's `ib_drain_qp` does, and more. It moves to ERR; posts a marker at the end
//! of the send queue, and of the receive queue if it has one of its own, and waits for both to come back flushed, so that everything
//! before them has its completion (with a shared receive queue it waits for the last-receive event, at most 2 ms, as some drivers send
//! none). The markers have places of their own in both queues and never show. Then it cuts the connection, and brings the queue pair
//! through INIT to ERR again:
//!
//! - A NIC gets a RESET: its firmware answers when it is through with the queue pair.
//! - Soft-RoCE gets a new queue pair in the place of the old one. Its RESET waits only for tasklets. Up to Linux 6.2 a packet that comes
//!   in while none is queued runs the responder or the completer at once (rxe_resp.c, `rxe_resp_queue_pkt`; rxe_comp.c,
//!   `rxe_comp_queue_pkt`), which `tasklet_disable` does not wait for, and `rxe_qp_reset` then runs the same code beside it: references
//!   are given back twice (`refcount_t: underflow`), after which the queue pair never completes anything again. To destroy one is safe:
//!   `__rxe_cleanup` (rxe_pool.c) lets no packet find it any more and waits until nobody holds it. So the queue pair's number, which
//!   [`Fabric::endpoint`](crate::fabric::Fabric::endpoint) tells, is another one afterwards. A step to RESET does the same.
//!
//! If the one is refused the other is tried. So an error of this step says that completions are missing, or that the device is
//! lost, but not that the old connection lives on. All of that is local: no call waits for the network. The same goes for the
//! initiator's end: afterwards nothing reads or writes its buffers, so that pages may be changed even where a flushed WRITE was
//! being cut into packets, or a READ's answer was coming in.
//!
//! A queue pair that fails by itself has had no fence, whatever its completions say, until it is moved to ERR or RESET by a call.
#![allow(unsafe_code)]

mod calls;
mod duo;
mod events;
mod fence;
mod list;
mod memory;
mod open;
mod poll;
pub mod post;
mod qp;
mod sys;

pub use duo::VerbsDuo;
pub use list::{Atomics, DeviceInfo, GidInfo, GidKind, Listed, PortInfo, PortState, list};
pub use open::OpenError;

use crate::fabric::{DeviceConfig, Endpoint, Error, Event, Limits, Port, Result, SrqSpec};
use crate::id::{CqId, PortId, QpId};
use crate::map::Map;
use ibverbs_sys as ffi;
use open::Rail;
use qp::Qp;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::VecDeque;
use std::os::fd::RawFd;

/// A completion queue, and what was taken off it but not yet polled.
struct Cq {
    raw: sys::Completions,
    port: PortId,
    /// Ends of queue pairs that complete here.
    users: u32,
    stash: VecDeque<(QpId, ffi::ibv_wc)>,
}

/// A shared receive queue.
struct Srq {
    raw: sys::Shared,
    port: PortId,
    spec: SrqSpec,
    users: u32,
    /// Receives that have not completed.
    posted: u32,
    /// False once a failed completion may or may not have been one of its receives: from then on the device alone counts.
    counted: bool,
}

struct Nic {
    context: sys::Context,
    info: DeviceInfo,
}

/// The devices of a host that a [`DeviceConfig`] chose.
///
/// Whatever is left on it is given back when it is dropped.
pub struct VerbsFabric {
    // In the order in which they must be given back.
    qps: Vec<Option<Box<Qp>>>,
    srqs: Vec<Option<Srq>>,
    cqs: Vec<Option<Cq>>,
    memory: memory::Memory,
    nics: Vec<Nic>,

    config: DeviceConfig,
    rails: Vec<Rail>,
    ports: Vec<Port>,
    limits: Limits,
    /// Queue pairs by device and number.
    numbers: Map<(usize, u32), QpId>,
    live_qps: u32,
    /// The queues that exist.
    live_cqs: Vec<CqId>,
    descriptors: Vec<RawFd>,
    events: VecDeque<Event>,
    chain: post::Chain,
    /// Receives on their way to the device.
    recvs: Vec<ffi::ibv_recv_wr>,
    wcs: Box<[ffi::ibv_wc]>,
    psns: ChaCha8Rng,
    /// Ids of what a fence posts to the send and the receive queue; drawn at random, so that they are nobody else's.
    markers: [u64; 2],
}

// SAFETY: libibverbs' objects may be used from any thread, and its calls are thread-safe; here only the owner of the fabric calls
// them. The pointers in `recvs` and `wcs` are made anew by each call that uses them.
unsafe impl Send for VerbsFabric {}

impl VerbsFabric {
    /// Opens the devices that a configuration means. The first port is [`PortId`] 0.
    pub fn open(config: &DeviceConfig) -> Result<Self, OpenError> {
        let open::Chosen { nics, rails, ports } = open::choose(config)?;
        let mut limits = Limits {
            max_qp_wr: u32::MAX,
            max_sge: u32::MAX,
            max_inline: u32::MAX,
            max_rd_atomic: u8::MAX,
            max_cqe: u32::MAX,
            max_srq_wr: u32::MAX,
            max_qp: u32::MAX,
            max_message: u32::MAX,
        };
        for own in nics.iter().map(|(_, info)| &info.limits) {
            limits = Limits {
                max_qp_wr: limits.max_qp_wr.min(own.max_qp_wr),
                max_sge: limits.max_sge.min(own.max_sge),
                max_inline: limits.max_inline.min(own.max_inline),
                max_rd_atomic: limits.max_rd_atomic.min(own.max_rd_atomic),
                max_cqe: limits.max_cqe.min(own.max_cqe),
                max_srq_wr: limits.max_srq_wr.min(own.max_srq_wr),
                max_qp: limits.max_qp.min(own.max_qp),
                max_message: limits.max_message.min(own.max_message),
            };
        }
        let mut seed = [0; 32];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).map_err(|e| {
            OpenError::Call {
                device: "this host".into(),
                call: "getrandom",
                errno: e.raw_os_error(),
                advice: "",
            }
        })?;
        let mut psns = ChaCha8Rng::from_seed(seed);
        let nics: Vec<_> = nics.into_iter().map(|(context, info)| Nic { context, info }).collect();
        let descriptors =
            nics.iter().flat_map(|n| [n.context.completion_fd(), n.context.event_fd()]).collect();
        Ok(Self {
            qps: Vec::new(),
            srqs: Vec::new(),
            cqs: Vec::new(),
            memory: memory::Memory::default(),
            nics,
            config: config.clone(),
            rails,
            ports,
            limits,
            numbers: Map::default(),
            live_qps: 0,
            live_cqs: Vec::new(),
            descriptors,
            events: VecDeque::new(),
            chain: post::Chain::default(),
            recvs: Vec::new(),
            wcs: vec![ffi::ibv_wc::default(); poll::AT_ONCE].into_boxed_slice(),
            markers: [psns.next_u64(), psns.next_u64()],
            psns,
        })
    }

    /// The devices in use.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceInfo> {
        self.nics.iter().map(|nic| &nic.info)
    }

    fn rail(&self, port: PortId) -> Result<&Rail> {
        self.rails.get(port.index()).ok_or(Error::NoSuch("port"))
    }

    fn qp(&self, qp: QpId) -> Result<&Qp> {
        self.qps.get(qp.index()).and_then(Option::as_deref).ok_or(Error::NoSuch("queue pair"))
    }

    fn qp_mut(&mut self, qp: QpId) -> Result<&mut Qp> {
        self.qps.get_mut(qp.index()).and_then(Option::as_deref_mut).ok_or(Error::NoSuch("queue pair"))
    }

    fn end(&self, qp: &Qp) -> Endpoint {
        let port = &self.ports[qp.port.index()];
        let gid = port.gids.first().copied().unwrap_or_default();
        Endpoint { qpn: qp.pair.number(), psn: qp.psn, gid, lid: port.lid, mtu: port.mtu }
    }
}
