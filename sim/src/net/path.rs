//! A link, a path over links, and what keeps links from being joined to paths.

use thiserror::Error;

/// Most links that one path may cross.
pub const MAX_HOPS: usize = 12;

/// A directed link, by its place in the topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u32);

/// What a directed link can do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bytes per second.
    pub capacity: f64,
    /// Picoseconds a bit takes to cross it.
    pub latency: u64,
}

/// The links from one port to another, in order. Copied by value: it is small and needs no table of
/// all pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    links: [LinkId; MAX_HOPS],
    len: u8,
    /// Which of the equal-cost paths between its ports.
    pub(super) choice: u32,
    latency: u64,
}

impl Path {
    pub(super) const EMPTY: Path = Path { links: [LinkId(0); MAX_HOPS], len: 0, choice: 0, latency: 0 };

    pub(super) fn choice(&self) -> u32 {
        self.choice
    }

    /// Adds a link. One that is on the path already counts once for capacity, twice for latency.
    pub(super) fn push(&mut self, id: LinkId, link: &Link) {
        self.latency = self.latency.saturating_add(link.latency);
        if !self.links().contains(&id) {
            self.links[usize::from(self.len)] = id;
            self.len += 1;
        }
    }

    /// The links in the order a bit crosses them, each once.
    pub fn links(&self) -> &[LinkId] {
        &self.links[..usize::from(self.len)]
    }

    /// Picoseconds a bit takes over all of them.
    pub fn latency(&self) -> u64 {
        self.latency
    }
}

/// Why a topology cannot be built.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum TopologyError {
    /// A count that must not be zero.
    #[error("{what} is 0: a topology needs at least one")]
    Zero {
        /// Which count.
        what: &'static str,
    },
    /// A speed that is not one.
    #[error("{what} is {value}: use a finite number that is not negative, at most 1e18 bytes/s")]
    Speed {
        /// Which speed.
        what: &'static str,
        /// The value given.
        value: f64,
    },
    /// A ratio of port speeds to uplink speeds that is not one.
    #[error("oversubscription is {0}: use a finite number above 0; 1 does not block")]
    Oversubscription(f64),
    /// A port that does not exist.
    #[error("port {port} does not exist: the topology has {ports} ports")]
    NoPort {
        /// The port asked for.
        port: u32,
        /// How many there are.
        ports: usize,
    },
    /// A leaf switch that does not exist.
    #[error("port {port} is attached to leaf {leaf}, but there are {leaves} leaves")]
    NoLeaf {
        /// The port.
        port: usize,
        /// Its leaf.
        leaf: u32,
        /// How many there are.
        leaves: u32,
    },
    /// A link that does not exist.
    #[error("link {link} does not exist: the topology has {links} links")]
    NoLink {
        /// The link asked for.
        link: u32,
        /// How many there are.
        links: usize,
    },
    /// More links on a path than it may have.
    #[error("a path would cross {hops} links: at most {MAX_HOPS} are allowed")]
    TooLong {
        /// Links on the longest path.
        hops: usize,
    },
    /// More links than a number can name.
    #[error("{0} ports or links: at most 2^31 are allowed")]
    TooMany(u64),
}
