//! The conformance suite: random verbs programs that must leave the same on every fabric.
//!
//! [`program`] generates, [`resolve`] gives each pick a meaning that has no races, [`model`] says what must come of it, [`run`] runs it
//! on two hosts over any fabric, [`outcome`] compares. [`quirks`] is the only leniency, and only towards Soft-RoCE.

pub mod coverage;
pub mod model;
pub mod outcome;
pub mod program;
pub mod quirks;
pub mod race;
mod resolve;
pub mod run;
pub mod script;

pub use resolve::resolve;
