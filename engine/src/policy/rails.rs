//! Which rails, that is queue pairs of a pair of ranks, carry a piece of work.

/// How work is spread over the rails of a pair of ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RailPolicy {
    /// All of a feed on one rail: its own by affinity, the n-th feed of a source rank on rail n modulo their number.
    #[default]
    Pinned,
    /// Each piece cut into as many parts as there are rails, alike in size.
    Striped,
}

impl RailPolicy {
    /// Rails that a piece of the `nth` feed of a source rank uses, out of `rails`.
    pub fn choose(self, nth: u16, rails: u16) -> std::ops::Range<u16> {
        let rails = rails.max(1);
        match self {
            Self::Pinned => nth % rails..nth % rails + 1,
            Self::Striped => 0..rails,
        }
    }
}
