//! What tests that span crates share: the conformance suite of both fabrics, and clusters of real processes, and what
//! goes wrong between them. The tests themselves are
//! in `tests/`.

pub mod cluster;
pub mod conformance;
pub mod network;
