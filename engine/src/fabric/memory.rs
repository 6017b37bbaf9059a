//! What buffers are made of, where things lie in them, and content by name.

use crate::id::{LKey, MrId, RKey};
use std::ops::Range;

/// What a buffer is made of. A fabric refuses the kinds that it does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Ordinary host memory.
    Host,
    /// Host memory on huge pages, ordinary where there are none.
    HugePages,
    /// Memory that somebody else owns, at this address of the process; must outlive the buffer.
    Adopted {
        /// Its first byte.
        addr: u64,
    },
    /// Device memory exported as a dma-buf.
    DmaBuf {
        /// The file descriptor.
        fd: i32,
        /// Where in it the buffer starts.
        offset: u64,
    },
    /// Memory of a GPU of this host.
    Device {
        /// Which GPU.
        ordinal: u32,
    },
    /// No bytes at all: only where each byte came from. Petabytes fit in an experiment.
    Phantom,
}

/// The geometry of a pool: page `p` of buffer `b` starts at `b * pitch + p * page`.
/// A plain buffer of `n` bytes is [`Grid::bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Buffers in the pool (a layer's K, say), alike in size.
    pub buffers: u32,
    /// Bytes from one buffer's start to the next one's; at least `pages * page`.
    pub pitch: u64,
    /// Pages in each buffer.
    pub pages: u32,
    /// Bytes of a page.
    pub page: u64,
}

impl Grid {
    /// `n` bytes without structure.
    pub const fn bytes(n: u64) -> Self {
        Self { buffers: 1, pitch: n, pages: 1, page: n }
    }
    /// All its bytes.
    pub const fn len(&self) -> u64 {
        self.buffers as u64 * self.pitch
    }
    /// Whether it has none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A place in a pool: in each of `buffers`, `count` pieces of `len` bytes, `step` bytes apart, the first at
/// offset `at` of the buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Which buffers.
    pub buffers: Range<u32>,
    /// Offset of the first piece in each of them.
    pub at: u64,
    /// Bytes of a piece.
    pub len: u64,
    /// Pieces in each buffer.
    pub count: u32,
    /// Bytes from one piece's start to the next one's; at least `len`.
    pub step: u64,
}

impl Extent {
    /// One piece in one buffer.
    pub fn piece(buffer: u32, at: u64, len: u64) -> Self {
        Self { buffers: buffer..buffer + 1, at, len, count: 1, step: len }
    }
}

/// Bytes named, not stored: piece `k` of the `i`-th buffer of an [`Extent`] is the endless stream `seed` from position
/// `at + i * per_buffer + k * per_piece` on. [`Content::byte`] says what a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Which stream: the prefix block's or the request's content id.
    pub seed: u64,
    /// Position of the first piece.
    pub at: u64,
    /// Positions from one buffer to the next.
    pub per_buffer: u64,
    /// Positions from one piece to the next.
    pub per_piece: u64,
}

impl Content {
    /// The byte of stream `seed` at `position`.
    pub fn byte(seed: u64, position: u64) -> u8 {
        (Self::word(seed, position / 8) >> (8 * (position % 8))) as u8
    }
    /// Eight bytes of the stream, little end first: the SplitMix64 finaliser over seed and word number
    /// (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
    pub fn word(seed: u64, word: u64) -> u64 {
        let mut z = seed.wrapping_add(word.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Fills `bytes` with the stream from `position` on.
    pub fn fill(seed: u64, position: u64, bytes: &mut [u8]) {
        let mut at = position;
        let mut rest = bytes;
        while !rest.is_empty() {
            let word = Self::word(seed, at / 8).to_le_bytes();
            let skip = (at % 8) as usize;
            let n = (8 - skip).min(rest.len());
            rest[..n].copy_from_slice(&word[skip..skip + n]);
            at += n as u64;
            rest = &mut rest[n..];
        }
    }
}

/// How a place is cut for [`super::Fabric::checksum`]: into units, each with a name that does not depend on where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    /// Name of the place's first byte; bytes of a piece are named on from there.
    pub name: u64,
    /// Names from one buffer to the next.
    pub per_buffer: u64,
    /// Names from one piece to the next.
    pub per_piece: u64,
    /// Bytes of a unit, at least 1. The last one of a piece may be shorter.
    pub unit: u64,
}

/// Rights of a registration. `remote_write` and `remote_atomic` need `local_write`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The device may write here for local requests (READ, receives).
    pub local_write: bool,
    /// Peers may WRITE.
    pub remote_write: bool,
    /// Peers may READ.
    pub remote_read: bool,
    /// Peers may use atomics.
    pub remote_atomic: bool,
}

impl Access {
    /// What a target of WRITEs needs.
    pub const REMOTE_WRITE: Self =
        Self { local_write: true, remote_write: true, remote_read: false, remote_atomic: false };
    /// What a target of READs needs.
    pub const REMOTE_READ: Self =
        Self { local_write: false, remote_write: false, remote_read: true, remote_atomic: false };
    /// A source only.
    pub const LOCAL: Self =
        Self { local_write: true, remote_write: false, remote_read: false, remote_atomic: false };
}

/// A registration on one port's device. The keys are that device's: another port needs its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mr {
    /// Its name here.
    pub id: MrId,
    /// Address of its first byte, as work requests name it.
    pub addr: u64,
    /// Its bytes.
    pub len: u64,
    /// Key for local use.
    pub lkey: LKey,
    /// Key for peers.
    pub rkey: RKey,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fill_is_byte_by_byte() {
        for (position, len) in [(0, 40), (3, 17), (7, 1), (8, 8), (u64::MAX - 20, 9)] {
            let mut bytes = vec![0; len];
            Content::fill(99, position, &mut bytes);
            for (i, b) in bytes.iter().enumerate() {
                assert_eq!(*b, Content::byte(99, position + i as u64));
            }
        }
    }
}
