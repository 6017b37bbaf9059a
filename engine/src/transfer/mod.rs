//! From pages to work requests, to "decode may start".
//!
//! Two state machines, one a side: [`Initiator`] (prefill, the initiator of WRITEs) and [`Target`] (decode, their target). States of a
//! room and side are Bootstrapping and WaitingForInput (open, page list or KV missing), Transferring (live), Success and Failed; the last
//! two are final. Every path ends in one of them in bounded time, because every wait has a deadline. The rules that keep a cache
//! from being lost or corrupted stand where they are carried out; [`Rules`] names them all.

mod config;
mod initiator;
mod memory;
mod news;
mod pages;
mod pairing;
mod plan;
mod target;
mod tombstones;
mod wire;

pub use config::{Rules, TransferConfig};
pub use initiator::{Initiator, InitiatorHeld, InitiatorRoom};
pub use memory::{InstanceMemory, Pool, RankMemory, port_of};
pub use news::News;
pub use pages::{PagePool, PageTable};
pub use pairing::{PairFeed, Pairing, PairingError, Share, Wire, layout_of};
pub use plan::{PlanLimits, PlanningError, plan};
pub use target::{Target, TargetHeld, TargetRoom, TargetStats};
pub use wire::{AUX_BYTES, AuxRow, Immediate, MAX_SOURCES, SEAL_BYTES, SLOT_BYTES, Seal};
