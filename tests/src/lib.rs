//! What tests that span crates share: the conformance suite of both fabrics, clusters of real processes and what goes wrong between them,
//! and scenarios that show what a rule is for. The tests themselves are in `tests/`.

pub mod cluster;
pub mod conformance;
pub mod memory;
pub mod network;
pub mod stories;
