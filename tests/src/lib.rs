//! What tests that span crates share: [`cluster`] runs the `kvrail` command's processes on real devices.

pub mod cluster;
