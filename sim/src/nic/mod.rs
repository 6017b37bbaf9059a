//! What a NIC costs: the parameters of a device ([`NicProfile`]) and the arithmetic that turns work requests into time
//! ([`cost`]).

pub mod cost;
mod profile;
mod units;

pub use profile::{Headers, NicProfile, ProfileError};
pub use units::{Bandwidth, Duration};
