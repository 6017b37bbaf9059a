//! The conformance suite: the simulated fabric against the contract, and against real verbs where there are devices.
//!
//! `KVRAIL_CONFORMANCE` is the number of random programs: 500 without it, and on the simulated fabric alone never fewer.
//! `KVRAIL_CONFORMANCE_ALL=1` goes on after a divergence and prints every one.

mod check;
mod direct;
mod laws;
mod mistakes;
#[cfg(feature = "verbs")]
mod real;
mod rows;
