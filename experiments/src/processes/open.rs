//! The devices of a node.

#[cfg(feature = "verbs")]
pub(super) use self::real::open;

/// Whether this build has real devices at all.
pub(crate) fn available() -> Result<(), String> {
    if cfg!(feature = "verbs") {
        return Ok(());
    }
    Err("this kvrail was built without RDMA verbs: build it with `cargo build --release --features verbs` (needs libclang, cmake, \
         pkg-config and the headers of libnl-3 and libibverbs; on Debian and Ubuntu: apt-get install libclang-dev cmake \
         pkg-config libnl-3-dev libnl-route-3-dev libibverbs-dev)"
        .to_owned())
}

#[cfg(feature = "verbs")]
mod real {
    use engine::fabric::verbs::VerbsFabric;

    use crate::build::RunError;
    use crate::spec::{Spec, VerbsSideSpec};

    /// Opens the devices that a node of this side uses.
    pub(in crate::processes) fn open(spec: &Spec, side: &VerbsSideSpec) -> Result<VerbsFabric, RunError> {
        VerbsFabric::open(&spec.verbs.device(side)).map_err(|error| RunError::Environment(error.to_string()))
    }
}
