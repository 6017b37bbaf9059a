//! Staging: unlike layouts moved with few requests.
//!
//! Where pages are not contiguous on both sides, token-major ones with unequal head shards above all, direct slicing takes one request for
//! each token, layer and buffer. A *staged part* takes two: the source gathers it into a slot of its own ([`Fabric::copy`]), writes the slot to
//! one of the target's with one WRITE_WITH_IMM, and the target scatters it to its pages. Before the bulk, on the same queue pair, goes an
//! inline WRITE of a [`Header`] to the cell of that slot in the target's host memory: slots may be GPU memory, which a CPU does not read. The
//! header says which tokens and layers the slot holds, so that the target works the scatter out by itself; both halves come from the one
//! planner, as source pages to packed and as packed to destination pages ([`packed`]).
//!
//! # Slots, and why nothing waits for ever
//!
//! A rank has so many slots of one size. A piece that is larger than a slot is cut into several staged parts, down to a token of a layer; what
//! does not fit even so goes directly. So a chunk of any size goes through any number of slots.
//!
//! *Target's slots* are given to a room with its pages, the same number for each sender of a rank, and published with the page list. The
//! `k`-th staged part of a sender goes to the sender's slot `k` modulo their number, and may be posted once part `k` minus that number was
//! scattered. Until then no word of the target is needed; after that it says how many were scattered, in order
//! ([`crate::registry::Message::Scattered`]), once for half of the slots and only when the header asked for it. A room that holds slots
//! waits for its own sender and its own copies, never for another room; a room that has none has no pages either.
//!
//! *Source's slots* are shared by the rooms of a rank. One is taken when a part is gathered, which only happens when the target's slot is
//! free for it and the link is up, and given back when the WRITE has a completion of any status, or the link broke before it was posted. So
//! whoever holds one waits only for the NIC, and whoever waits for one waits for holders.
//!
//! Both therefore form no cycle: a copy ends by itself, a WRITE ends by itself or with its queue pair, a slot of the target is emptied by a
//! copy.
//!
//! # Ownership
//!
//! The rules of [`super`] hold with a copy counted like a request. The initiator's pages are its own again when every gather and every WRITE of
//! the room is over. The target's pages are its own again when the initiator reported or a fence was made, *and* every scatter of the room is
//! over. Its slots are freed by the same word or fence, but do not wait for the end of generation: what can be written to them no more is
//! free once it was scattered.
//!
//! A part is seen when its immediate came: from then on it is listed as seen and not posted again, for its slot is safe until it was
//! scattered. It counts for Success when the scatter is over, because only then its KV is in the pages. A part that was seen is never
//! scattered again: decode appends to its last page. Since parts stay parts, credits, seals, reports and reconnects need no rule of their own.
//! Receives: as many as a room has slots are posted beside those for parts that go directly, and are posted anew before a slot is given back.
//!
//! # Limits
//!
//! Push only: in pull decode would have to ask prefill to gather, part by part, with a message each way for each slot. An experiment that asks
//! for it is refused. A staged part is posted whole, so that up to a slot may be posted above the window.

mod header;
mod packed;

pub use header::HEADER_BYTES;
pub(super) use header::{CELL_BYTES, Header};
pub(super) use packed::{Cut, cut, gather, per_token, scatter};

#[cfg(doc)]
use crate::fabric::Fabric;
