//! What spans crates: the conformance suite of both fabrics. The tests themselves are in `tests/`.

pub mod conformance;
