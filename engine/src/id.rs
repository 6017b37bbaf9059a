//! Small copyable names of things. A number without its kind cannot be passed.

macro_rules! ids { ($($(#[$doc:meta])* $name:ident: $int:ty;)*) => {$(
    $(#[$doc])*
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct $name(pub $int);
    impl std::fmt::Display for $name {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { self.0.fmt(f) }
    }
    impl $name {
        /// The number as an index.
        #[inline]
        pub fn index(self) -> usize { self.0 as usize }
    }
)*} }

ids! {
    /// One port of one NIC of this host; one rail.
    PortId: u32;
    /// A buffer allocated by, or lent to, a fabric.
    BufId: u32;
    /// A memory registration.
    MrId: u32;
    /// A completion queue.
    CqId: u32;
    /// A queue pair of this host (not its number on the wire).
    QpId: u32;
    /// A shared receive queue.
    SrqId: u32;
    /// Local protection key.
    LKey: u32;
    /// Remote protection key.
    RKey: u32;
    /// Chosen by the poster of a work request; comes back in its completion.
    WrId: u64;
    /// Chosen by whoever starts a copy within a host's memory; comes back when it is over.
    CopyId: u64;
    /// A node: its address on the control channel. The registry is node 0.
    NodeId: u32;
    /// One life of one model replica. A restarted node is a new instance; never reused.
    InstanceId: u64;
    /// The rendezvous of the two sides of one request.
    Room: u64;
    /// A request of the workload.
    RequestId: u64;
    /// A rank (one GPU) within its instance: pipeline stage major, then tensor-parallel rank.
    Rank: u16;
    /// A page of a pool. Ranks of an instance use the same numbers.
    Page: u32;
}
