//! kvrail: `sim`.

pub mod fabric;
pub mod net;
pub mod nic;
pub mod queue;
