//! What the engine writes beside KV: the immediate of a part, the seal of a source rank, the aux row.

use crate::id::{RequestId, Room};
use crate::registry::RoomKey;

/// The immediate of a part's last request: slot (12 bits), generation of the slot (8), part number (12). The receiver of
/// parts issues slot and generation in its page list; widths are here and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Immediate {
    /// Aux slot, below [`Immediate::SLOTS`].
    pub slot: u16,
    /// Generation of the slot when it was given out.
    pub generation: u8,
    /// Part number within its (room, source rank, destination rank), below [`Immediate::PARTS`].
    pub part: u16,
}

impl Immediate {
    /// Slots that can be told apart.
    pub const SLOTS: u32 = 1 << 12;
    /// Parts that can be told apart.
    pub const PARTS: u32 = 1 << 12;

    /// As sent.
    pub fn to_u32(self) -> u32 {
        u32::from(self.slot & 0xfff) << 20 | u32::from(self.generation) << 12 | u32::from(self.part & 0xfff)
    }
    /// As received.
    pub fn from_u32(imm: u32) -> Self {
        Self { slot: (imm >> 20) as u16, generation: (imm >> 12) as u8, part: (imm & 0xfff) as u16 }
    }
}

/// A source rank's word on how many parts it sends for a room to one destination rank. Written into that source rank's cell of the
/// aux slot, on the queue pair of its last immediate and before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The room.
    pub key: RoomKey,
    /// Parts in all.
    pub parts: u16,
    /// Checksum of what they move, 48 bits; 0 where there are none.
    pub sum: u64,
}

/// Bytes of a seal cell.
pub const SEAL_BYTES: u64 = 32;
/// Bytes of an aux row, padded to a cache line as in SGLang's aux buffers.
pub const AUX_BYTES: u64 = 64;
/// Source ranks (of one DP group) that a slot has cells for.
pub const MAX_SOURCES: u64 = 64;
/// Bytes of an aux slot: the aux row, then a seal cell for each source rank.
pub const SLOT_BYTES: u64 = AUX_BYTES + SEAL_BYTES * MAX_SOURCES;

const SEAL_MAGIC: u32 = 0x4b56_5345;

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

impl Seal {
    /// As written. The last word is a check over the others, so that memory which was never a seal is not taken for one.
    pub fn to_bytes(self) -> [u8; SEAL_BYTES as usize] {
        let mut bytes = [0; SEAL_BYTES as usize];
        bytes[..8].copy_from_slice(&self.key.room.0.to_le_bytes());
        let word = u64::from(self.key.attempt) | u64::from(SEAL_MAGIC) << 32;
        bytes[8..16].copy_from_slice(&word.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.last().to_le_bytes());
        let check = self.check(word);
        bytes[24..32].copy_from_slice(&check.to_le_bytes());
        bytes
    }
    fn last(self) -> u64 {
        u64::from(self.parts) | self.sum << 16
    }
    fn check(self, word: u64) -> u64 {
        (self.key.room.0 ^ word.rotate_left(17) ^ self.last().rotate_left(3))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    /// Whose seal these bytes are, if they are one.
    pub(super) fn key_in(bytes: &[u8; SEAL_BYTES as usize]) -> RoomKey {
        RoomKey { room: Room(u64_at(bytes, 0)), attempt: u64_at(bytes, 8) as u32 }
    }
    /// The seal of `key` in these bytes, if there is one.
    pub fn from_bytes(bytes: &[u8; SEAL_BYTES as usize], key: RoomKey) -> Option<Self> {
        let word = u64_at(bytes, 8);
        let last = u64_at(bytes, 16);
        let seal = Self { key, parts: last as u16, sum: last >> 16 };
        let right = u64_at(bytes, 0) == key.room.0
            && word == u64::from(key.attempt) | u64::from(SEAL_MAGIC) << 32
            && u64_at(bytes, 24) == seal.check(word);
        right.then_some(seal)
    }
}

/// What decode needs beside KV to go on: the first token and the state of sampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuxRow {
    /// The room.
    pub key: RoomKey,
    /// The request.
    pub request: RequestId,
    /// First token, sampled by prefill.
    pub token: u32,
    /// Prompt tokens that came from prefill's prefix cache.
    pub cached: u32,
}

impl AuxRow {
    /// As written; the rest of the row is zero.
    pub fn to_bytes(self) -> [u8; AUX_BYTES as usize] {
        let mut bytes = [0; AUX_BYTES as usize];
        bytes[..8].copy_from_slice(&self.key.room.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.key.attempt.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.token.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.request.0.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.cached.to_le_bytes());
        bytes
    }
    /// As read.
    pub fn from_bytes(bytes: &[u8; AUX_BYTES as usize]) -> Self {
        let low = u64_at(bytes, 8);
        Self {
            key: RoomKey { room: Room(u64_at(bytes, 0)), attempt: low as u32 },
            request: RequestId(u64_at(bytes, 16)),
            token: (low >> 32) as u32,
            cached: u64_at(bytes, 24) as u32,
        }
    }
    /// The first token of a request: there is no model, so it is named like all content.
    pub fn first_token(request: RequestId) -> u32 {
        crate::fabric::Content::word(request.0, 0) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn immediates_and_cells_come_back(slot in 0u16..4096, generation: u8, part in 0u16..4096, room: u64, attempt: u32, sum in 0u64..1 << 48, flip in 0usize..256) {
            let imm = Immediate { slot, generation, part };
            prop_assert_eq!(Immediate::from_u32(imm.to_u32()), imm);
            let key = RoomKey { room: Room(room), attempt };
            let seal = Seal { key, parts: part, sum };
            let mut bytes = seal.to_bytes();
            prop_assert_eq!(Seal::from_bytes(&bytes, key), Some(seal));
            prop_assert_eq!(Seal::key_in(&bytes), key);
            prop_assert_eq!(Seal::from_bytes(&bytes, RoomKey { attempt: attempt ^ 1, ..key }), None);
            bytes[flip / 8] ^= 1 << (flip % 8);
            prop_assert_eq!(Seal::from_bytes(&bytes, key), None);
            let aux = AuxRow { key, request: RequestId(room ^ 5), token: attempt ^ 3, cached: 7 };
            prop_assert_eq!(AuxRow::from_bytes(&aux.to_bytes()), aux);
        }
    }

    #[test]
    fn no_bit_of_a_seal_can_change_unseen() {
        let key = RoomKey { room: Room(0x0123_4567_89ab_cdef), attempt: 2 };
        let seal = Seal { key, parts: 3, sum: 0x1234_5678_9abc };
        for bit in 0..8 * SEAL_BYTES as usize {
            let mut bytes = seal.to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Seal::from_bytes(&bytes, key), None, "bit {bit}");
        }
    }

    #[test]
    fn first_tokens_tell_requests_apart() {
        let tokens: std::collections::BTreeSet<u32> =
            (0..1000).map(|id| AuxRow::first_token(RequestId(id))).collect();
        assert_eq!(tokens.len(), 1000);
    }
}
