//! Which side moves the bytes.

/// Who is the initiator of the requests that move KV.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Prefill WRITEs into decode's pages as soon as KV is there. Nothing is said over the control channel between the end of prefill and
    /// the start of decode.
    #[default]
    Push,
    /// Decode READs prefill's pages when it has room and is told that KV is there: one control message more for each piece, and prefill
    /// holds its pages for as long as decode has none.
    Pull,
}
