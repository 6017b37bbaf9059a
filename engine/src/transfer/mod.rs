//! From pages to work requests, to "decode may start".
mod memory;
mod pages;
mod pairing;
mod plan;
mod wire;

pub use memory::{InstanceMemory, Pool, RankMemory, ports_of};
pub use pages::{PagePool, PageTable};
pub use pairing::{PairFeed, Pairing, PairingError, Share, Wire, layout_of};
pub use plan::{PlanLimits, PlanningError, plan};
pub use wire::{AUX_BYTES, AuxRow, Immediate, MAX_SOURCES, SEAL_BYTES, SLOT_BYTES, Seal};
