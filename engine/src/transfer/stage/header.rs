//! What a staged part says about itself.

use crate::id::Room;
use crate::registry::RoomKey;
use std::ops::Range;

/// Bytes of a header.
pub const HEADER_BYTES: u64 = 48;
/// Bytes of the place of a header: a cache line.
pub(crate) const CELL_BYTES: u64 = 64;

const MAGIC: u32 = 0x4b56_5347;

/// In front of a staged part, in the cell of the slot that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Its room.
    pub key: RoomKey,
    /// Generation of the room's aux slot.
    pub generation: u8,
    /// Its number among the parts of its sender to this rank.
    pub part: u16,
    /// Its number among the staged ones of these.
    pub sequence: u32,
    /// The sender wants to know when it was scattered.
    pub tell: bool,
    /// Tokens in the slot.
    pub tokens: Range<u32>,
    /// Layers of them.
    pub layers: Range<u32>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// A check over the rest, so that memory which was never a header is not taken for one.
fn check(bytes: &[u8; HEADER_BYTES as usize]) -> u64 {
    (0..5).fold(0x5374_6167_696e_6721, |sum: u64, word| {
        (sum.rotate_left(23) ^ u64_at(bytes, word * 8)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

impl Header {
    /// As written.
    pub(crate) fn to_bytes(&self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(&self.key.room.0.to_le_bytes());
        let part = u32::from(self.part) | u32::from(self.generation) << 16 | u32::from(self.tell) << 24;
        let words = [
            self.key.attempt,
            MAGIC,
            part,
            self.sequence,
            self.tokens.start,
            self.tokens.end,
            self.layers.start,
            self.layers.end,
        ];
        for (at, word) in bytes[8..40].chunks_exact_mut(4).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        let check = check(&bytes);
        bytes[40..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// The header in these bytes, if there is one. Its fields are what somebody else says.
    pub(crate) fn from_bytes(bytes: &[u8; HEADER_BYTES as usize]) -> Option<Self> {
        let right = u32_at(bytes, 12) == MAGIC && u64_at(bytes, 40) == check(bytes);
        let part = u32_at(bytes, 16);
        right.then(|| Self {
            key: RoomKey { room: Room(u64_at(bytes, 0)), attempt: u32_at(bytes, 8) },
            part: part as u16,
            generation: (part >> 16) as u8,
            tell: part >> 24 & 1 == 1,
            sequence: u32_at(bytes, 20),
            tokens: u32_at(bytes, 24)..u32_at(bytes, 28),
            layers: u32_at(bytes, 32)..u32_at(bytes, 36),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_bit_of_a_header_can_change_unseen() {
        let header = Header {
            key: RoomKey { room: Room(0x0123_4567_89ab_cdef), attempt: 2 },
            generation: 7,
            part: 5,
            sequence: 3,
            tell: true,
            tokens: 64..129,
            layers: 0..61,
        };
        for bit in 0..8 * HEADER_BYTES as usize {
            let mut bytes = header.to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::from_bytes(&bytes), None, "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn headers_come_back_and_nothing_else_is_one(
            room: u64, attempt: u32, n: [u32; 5], part: u16, generation: u8, tell: bool, flip in 0usize..384,
        ) {
            let header = Header {
                key: RoomKey { room: Room(room), attempt },
                generation,
                part,
                sequence: n[0],
                tell,
                tokens: n[1]..n[2],
                layers: n[3]..n[4],
            };
            let mut bytes = header.to_bytes();
            prop_assert_eq!(Header::from_bytes(&bytes), Some(header));
            bytes[flip / 8] ^= 1 << (flip % 8);
            prop_assert_eq!(Header::from_bytes(&bytes), None);
            prop_assert_eq!(Header::from_bytes(&[0; HEADER_BYTES as usize]), None);
        }
    }
}
