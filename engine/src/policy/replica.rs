//! Which copy of replicated KV sends: GQA heads on more ranks than heads, MLA latents on every rank.

/// The choice must come out the same on both sides without a message, so it is arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplicaChoice {
    /// By destination rank: destination ranks are spread over the copies, so that no source NIC idles.
    #[default]
    ByDestination,
}

impl ReplicaChoice {
    /// Index of the copy that sends to this destination rank, modulo the number of copies.
    pub fn choose(self, dst_rank: u32) -> u64 {
        match self {
            Self::ByDestination => u64::from(dst_rank),
        }
    }
}
