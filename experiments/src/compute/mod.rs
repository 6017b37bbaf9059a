//! How long prefill and decode take on given hardware, from measured tables.
//!
//! A [`Profile`] holds, for one model on one instance, measured times of prefill steps by tokens and of decode
//! steps by requests. Inside the table times are interpolated linearly; beyond it they are extrapolated with a
//! linear and, for attention, a quadratic term, and said to be so. Profiles are YAML files with their source;
//! those of this repository are built in.

mod profile;

pub use profile::{ComputeError, Profile, for_model, names};
