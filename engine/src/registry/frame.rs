//! The frame: what one datagram of the control channel looks like.
//!
//! ```text
//! magic u16 | version u8 | flags u8 | checksum u32 | epoch u32 | count u16
//! nonce u64 | instance u64 | seq u32 | ack u32 | beat u32
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

/// Every step is a bijection of the state, so that no single changed bit goes unseen before the last fold.
fn checksum(bytes: &[u8]) -> u32 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = K ^ bytes.len() as u64;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        state = (state.rotate_left(23) ^ u64::from_le_bytes(*word)).wrapping_mul(K);
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    state = (state.rotate_left(23) ^ u64::from_le_bytes(last)).wrapping_mul(K);
    (state >> 32) as u32 ^ state as u32
}

/// Writes the prefix of a segment.
pub(super) fn segment_prefix(len: usize, more: bool) -> [u8; 2] {
    debug_assert!(len <= MAX_SEGMENT);
    (len as u16 | if more { MORE } else { 0 }).to_le_bytes()
}

impl Header {
    /// Appends a frame: this header, then `body`, which holds `count` segments with their prefixes.
    pub fn write(&self, body: &[u8], out: &mut Vec<u8>) {
        let mut head = [0; HEADER];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            head[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC.to_le_bytes());
        put(&[VERSION, self.flags.0, 0, 0, 0, 0]);
        put(&self.epoch.to_le_bytes());
        put(&self.count.to_le_bytes());
        put(&self.nonce.to_le_bytes());
        put(&self.instance.to_le_bytes());
        put(&self.seq.to_le_bytes());
        put(&self.ack.to_le_bytes());
        put(&self.beat.to_le_bytes());
        let start = out.len();
        out.reserve(HEADER + body.len());
        out.extend_from_slice(&head);
        out.extend_from_slice(body);
        let sum = checksum(&out[start + 8..]) ^ u32::from(self.flags.0);
        out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
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
        fn get<const N: usize>(head: &[u8; HEADER], at: usize) -> [u8; N] {
            std::array::from_fn(|i| head[at + i])
        }
        let magic = u16::from_le_bytes(get(head, 0));
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        if head[2] != VERSION {
            return Err(FrameError::Version(head[2]));
        }
        let found = u32::from_le_bytes(get(head, 4));
        let right = checksum(&bytes[8..]) ^ u32::from(head[3]);
        if found != right {
            return Err(FrameError::Checksum { found, right });
        }
        if head[3] > 7 {
            return Err(FrameError::Value { field: "flags", value: head[3].into(), right: "0 to 7" });
        }
        let header = Header {
            flags: FrameFlags(head[3]),
            epoch: u32::from_le_bytes(get(head, 8)),
            count: u16::from_le_bytes(get(head, 12)),
            nonce: u64::from_le_bytes(get(head, 14)),
            instance: u64::from_le_bytes(get(head, 22)),
            seq: u32::from_le_bytes(get(head, 30)),
            ack: u32::from_le_bytes(get(head, 34)),
            beat: u32::from_le_bytes(get(head, 38)),
        };
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
