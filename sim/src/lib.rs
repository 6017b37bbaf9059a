//! kvrail: `sim`.

pub mod fabric;
pub mod nic;
pub mod queue;
