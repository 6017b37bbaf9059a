//! Tests of the control channel: codec, sessions, and the registry with toy nodes on a bad network.

mod codec;
mod leases;
mod net;
mod rooms;
mod rules;
mod sessions;
