//! The frame: what one datagram of the control channel looks like.
//!
//! ```text
//! magic u16 | version u8 | flags u8 | checksum u32
//! epoch u32 | beat u32 | nonce u64 | instance u64 | seq u32 | ack u32 | count u16
//! count times: more (1 bit), length (15 bits), a segment of that length
//! ```
//!
//! Numbers are little-endian. A segment is a message, or a piece of one if the `more` bit is set: the message goes on in
//! the next segment. Segment `i` has sequence number `seq + i`. A frame without segments is a pure acknowledgement.

/// Longest frame, header included.
pub const MAX_FRAME: usize = 64 * 1024;
/// Longest message; longer than a frame, as a message may be cut into segments.
pub const MAX_MESSAGE: usize = 4 << 20;
/// Bytes of a frame before its first segment.
pub const HEADER: usize = 42;
/// Longest segment.
pub(super) const MAX_SEGMENT: usize = 0x7fff;
/// Set in a segment's length when its message goes on in the next one.
const MORE: u16 = 0x8000;
const MAGIC: u16 = 0x6b76;
/// Version of frame and messages. Both ends of a session must speak the same.
pub const VERSION: u8 = 1;

/// Why bytes are not a frame, or not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It ends too early.
    #[error("{field}: needs {need} bytes, {left} are left")]
    Truncated {
        /// What was being read.
        field: &'static str,
        /// Bytes it takes.
        need: usize,
        /// Bytes there are.
        left: usize,
    },
    /// It goes on after its end.
    #[error("{left} bytes follow the end")]
    Trailing {
        /// Bytes after the end.
        left: usize,
    },
    /// Not this protocol.
    #[error("magic number {0:#06x}, expected 0x6b76")]
    Magic(u16),
    /// Another version of it.
    #[error("version {0}, this end speaks 1")]
    Version(u8),
    /// Damaged on the way.
    #[error("checksum {found:#010x}, the bytes have {right:#010x}")]
    Checksum {
        /// In the frame.
        found: u32,
        /// Of its bytes.
        right: u32,
    },
    /// A count or length above its bound.
    #[error("{field}: {value}, at most {max} allowed")]
    TooLong {
        /// What was counted.
        field: &'static str,
        /// How many.
        value: u64,
        /// The bound.
        max: u64,
    },
    /// No message has this number.
    #[error("message kind {0} is not known")]
    Kind(u8),
    /// A value outside of its range.
    #[error("{field}: {value} is not valid, {right}")]
    Value {
        /// Which.
        field: &'static str,
        /// What it is.
        value: u64,
        /// What would be right.
        right: &'static str,
    },
}

/// Flags of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameFlags(pub u8);

impl FrameFlags {
    /// Client: this session is new, nothing has come back in it yet.
    pub const SYN: Self = Self(1);
    /// Registry: there is no such session.
    pub const RESET: Self = Self(2);
    /// Something is missing before what arrived.
    pub const GAP: Self = Self(4);
    /// Whether any of `flags` is set.
    pub fn has(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }
    /// With `flags` set if `on`.
    pub fn with(self, flags: Self, on: bool) -> Self {
        if on { Self(self.0 | flags.0) } else { self }
    }
}

/// What every frame says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Flags.
    pub flags: FrameFlags,
    /// Segments.
    pub count: u16,
    /// Epoch of the registry, as the sender knows it; 0 if it does not.
    pub epoch: u32,
    /// The session, chosen by the client: its life and how many sessions it has had.
    pub nonce: u64,
    /// The client's instance, 0 if it has none yet.
    pub instance: u64,
    /// Low 32 bits of the sequence number of the first segment.
    pub seq: u32,
    /// Low 32 bits of the last sequence number that arrived in order.
    pub ack: u32,
    /// The client's heartbeat number; from the registry: the greatest that it has seen.
    pub beat: u32,
}

/// A checked frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Its header.
    pub header: Header,
    body: &'a [u8],
}

/// Of the header after the checksum, as words, and of the body.
///
/// Every step is a bijection of the state, so that no single changed bit goes unseen before the last fold. Two states
/// take turns, because one would wait for its own multiplications.
#[inline]
fn checksum(words: [u64; 5], flags: u8, body: &[u8]) -> u32 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    fn step(state: u64, word: u64) -> u64 {
        (state.rotate_left(23) ^ word).wrapping_mul(K)
    }
    let (mut even, mut odd) = (step(K, words[4]), !K ^ body.len() as u64);
    (even, odd) = (step(even, words[0]), step(odd, words[1]));
    (even, odd) = (step(even, words[2]), step(odd, words[3]));
    let (chunks, rest) = body.as_chunks::<8>();
    let (pairs, last) = chunks.as_chunks::<2>();
    for [first, second] in pairs {
        even = step(even, u64::from_le_bytes(*first));
        odd = step(odd, u64::from_le_bytes(*second));
    }
    if let [word] = last {
        even = step(even, u64::from_le_bytes(*word));
    }
    let end = rest.iter().rfold(0, |end, byte| end << 8 | u64::from(*byte));
    let state = step(even, end ^ u64::from(flags) << 56) ^ odd.rotate_left(29);
    (state >> 32) as u32 ^ state as u32
}

/// Writes the prefix of a segment.
pub(super) fn segment_prefix(len: usize, more: bool) -> [u8; 2] {
    debug_assert!(len <= MAX_SEGMENT);
    (len as u16 | if more { MORE } else { 0 }).to_le_bytes()
}

impl Header {
    fn words(&self) -> [u64; 5] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        [
            pair(self.epoch, self.beat),
            self.nonce,
            self.instance,
            pair(self.seq, self.ack),
            u64::from(self.count),
        ]
    }

    /// Appends a frame: this header, then `body`, which holds `count` segments with their prefixes.
    pub fn write(&self, body: &[u8], out: &mut Vec<u8>) {
        let words = self.words();
        let sum = checksum(words, self.flags.0, body);
        let first = u64::from(MAGIC)
            | u64::from(VERSION) << 16
            | u64::from(self.flags.0) << 24
            | u64::from(sum) << 32;
        let mut head = [0; HEADER];
        let (chunks, count) = head.as_chunks_mut::<8>();
        for (chunk, word) in chunks.iter_mut().zip([first, words[0], words[1], words[2], words[3]]) {
            *chunk = word.to_le_bytes();
        }
        count.copy_from_slice(&self.count.to_le_bytes());
        out.reserve(HEADER + body.len());
        out.extend_from_slice(&head);
        out.extend_from_slice(body);
    }
}

impl<'a> Frame<'a> {
    /// Checks everything but the messages themselves.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        if bytes.len() > MAX_FRAME {
            return Err(FrameError::TooLong {
                field: "frame",
                value: bytes.len() as u64,
                max: MAX_FRAME as u64,
            });
        }
        let Some((head, body)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(FrameError::Truncated { field: "header", need: HEADER, left: bytes.len() });
        };
        let (chunks, count) = head.as_chunks::<8>();
        let word = |at: usize| u64::from_le_bytes(chunks[at]);
        let first = word(0);
        let magic = first as u16;
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        if head[2] != VERSION {
            return Err(FrameError::Version(head[2]));
        }
        let header = Header {
            flags: FrameFlags(head[3]),
            count: u16::from_le_bytes([count[0], count[1]]),
            epoch: word(1) as u32,
            beat: (word(1) >> 32) as u32,
            nonce: word(2),
            instance: word(3),
            seq: word(4) as u32,
            ack: (word(4) >> 32) as u32,
        };
        let found = (first >> 32) as u32;
        let right = checksum(header.words(), head[3], body);
        if found != right {
            return Err(FrameError::Checksum { found, right });
        }
        if head[3] > 7 {
            return Err(FrameError::Value { field: "flags", value: head[3].into(), right: "0 to 7" });
        }
        let frame = Self { header, body };
        let mut left = body;
        for _ in 0..header.count {
            let Some((prefix, rest)) = left.split_first_chunk::<2>() else {
                return Err(FrameError::Truncated { field: "segment length", need: 2, left: left.len() });
            };
            let need = usize::from(u16::from_le_bytes(*prefix) & !MORE);
            if need > rest.len() {
                return Err(FrameError::Truncated { field: "segment", need, left: rest.len() });
            }
            left = &rest[need..];
        }
        if !left.is_empty() {
            return Err(FrameError::Trailing { left: left.len() });
        }
        Ok(frame)
    }

    /// Its segments in order: whether the message goes on, and the bytes.
    pub fn segments(&self) -> impl Iterator<Item = (bool, &'a [u8])> + use<'a> {
        let mut left = self.body;
        std::iter::from_fn(move || {
            let (prefix, rest) = left.split_first_chunk::<2>()?;
            let prefix = u16::from_le_bytes(*prefix);
            let (segment, rest) = rest.split_at_checked(usize::from(prefix & !MORE))?;
            left = rest;
            Some((prefix & MORE != 0, segment))
        })
    }
}
