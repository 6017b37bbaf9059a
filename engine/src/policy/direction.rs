//! Which side moves the bytes.
//!
//! Beside who waits for whom, it decides how many requests unlike layouts take: a request is one contiguous range at the target, whose
//! pages are decode's in push and prefill's in pull. With token-major pages and a smaller TP on prefill, a decode rank's share of a row is
//! contiguous on decode and a strip of the row on prefill: WRITEs gather many rows, READs fetch each by itself. With a larger TP on prefill
//! it is the other way round.

/// Who is the initiator of the requests that move KV.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Prefill WRITEs into decode's pages as soon as KV is there. Nothing is said over the control channel between the end of prefill and
    /// the start of decode.
    #[default]
    Push,
    /// Decode READs prefill's pages when it has room and is told that KV is there: one control message more for each piece, and prefill
    /// holds its pages for as long as decode has none.
    Pull,
}
