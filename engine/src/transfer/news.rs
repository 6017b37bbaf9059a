//! What the transfer engine tells its node.

use crate::node::Reason;
use crate::registry::{Message, RoomKey};

/// One thing to know. `Released` comes apart from the end of a room: a request may be over while its pages still drain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// To be said to the registry.
    Tell(Message),
    /// The first work request was posted.
    Started(RoomKey),
    /// Prefill: delivered. Decode: all KV and the aux row are in place.
    Success(RoomKey),
    /// It failed on this side.
    Failed(RoomKey, Reason),
    /// Nothing of the fabric can touch its pages on this side any more: they may be reused.
    Released(RoomKey),
}
