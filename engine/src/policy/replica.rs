//! Which copy of replicated KV sends: GQA heads on more ranks than heads, MLA latents on every rank.

/// The choice must come out the same on both sides without a message, so it is arithmetic. Whichever it is, every byte of a destination rank
/// comes from one copy, and each rank that sends any of them seals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplicaChoice {
    /// By destination rank: destination ranks are spread over the copies, so that no source NIC idles when there are as many of them.
    /// Promises that the numbers of destination ranks which two copies serve differ by one at most.
    #[default]
    ByDestination,
    /// Always the copy of this index, modulo the number of copies: the other ranks' NICs send nothing.
    Fixed(u16),
    /// The layers of each destination rank are spread over the copies, the next one taking the next layer. Promises that the numbers of
    /// layers which two copies send to a destination rank differ by one at most. Takes a queue pair for each copy and destination rank.
    Striped,
}

impl ReplicaChoice {
    /// Index of the copy that sends a layer to this destination rank, modulo the number of copies.
    pub fn choose(self, dst_rank: u32, layer: u32) -> u64 {
        match self {
            Self::ByDestination => u64::from(dst_rank),
            Self::Fixed(copy) => u64::from(copy),
            // From another copy on for each rank: layers seldom divide by the copies.
            Self::Striped => u64::from(dst_rank) + u64::from(layer),
        }
    }

    /// Whether several copies serve one destination rank.
    pub fn splits(self) -> bool {
        self == Self::Striped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn copies_are_used_evenly(copies in 1u64..9, ranks in 1u32..33, layers in 1u32..100) {
            let count = |choices: &mut dyn Iterator<Item = u64>| {
                let mut counts = vec![0u32; copies as usize];
                choices.for_each(|choice| counts[(choice % copies) as usize] += 1);
                counts.iter().max().unwrap() - counts.iter().min().unwrap()
            };
            prop_assert!(count(&mut (0..ranks).map(|rank| ReplicaChoice::ByDestination.choose(rank, 0))) <= 1);
            for rank in 0..ranks {
                prop_assert!(count(&mut (0..layers).map(|layer| ReplicaChoice::Striped.choose(rank, layer))) <= 1);
            }
        }
    }
}
