//! kvrail: `sim`.

pub mod net;
