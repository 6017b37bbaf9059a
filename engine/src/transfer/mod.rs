//! From pages to work requests, to "decode may start".
//!
//! Two state machines, one for each end of the requests: the [`Initiator`] posts them, the [`Target`]'s NIC serves them. In push prefill is
//! the initiator and WRITEs; in pull decode is, and READs ([`crate::policy::Direction`]). A node sees the side of the KV: prefill has a
//! [`Source`], decode a [`Sink`]. States of a room and side are Bootstrapping and WaitingForInput (open, page list or KV missing),
//! Transferring (live), Success and Failed; the last two are final. Every path ends in one of them in bounded time, because every wait has
//! a deadline. The rules that keep a cache from being lost or corrupted stand where they are carried out; [`Rules`] names them all. They
//! are about initiator and target, so that pull has them with the sides exchanged:
//!
//! | | push | pull |
//! |---|---|---|
//! | page list, with the fence epoch | decode's | prefill's, as soon as it has pages |
//! | what can be moved | prefill knows | told piece by piece ([`crate::registry::Message::Produced`]) |
//! | decode's Success | seals, parts seen, aux row | all of its READs completed, aux row |
//! | prefill may free its pages | its WRITEs have completions | decode reported, or a fence |
//! | decode may free its pages | prefill reported, or a fence | its READs have completions |
//! | receives, immediates, seals | yes | none |
//!
//! The aux row (first token, state of sampling) is memory of the side that made it, in a slot that is owned like pages, and travels with
//! the last part. In pull prefill writes it to its slot before it says that the rest of the KV is there, and decode READs it as one more
//! request of that part. To send it in the message would save a request, but make the registry carry data whose size is the model's
//! business, and decode would have two places to wait for; this way Success still means that the set of requests is complete.

mod checksum;
mod config;
mod end;
mod initiator;
mod memory;
mod mistakes;
mod news;
mod pages;
mod pairing;
mod plan;
mod reach;
mod rules;
mod sink;
mod source;
mod stage;
mod target;
mod tombstones;
mod usable;
mod wire;

pub use config::TransferConfig;
pub use end::{End, EndHeld, EndStats, RoomState};
pub use initiator::{Initiator, InitiatorRoom};
pub use memory::{InstanceMemory, Pool, RankMemory, port_of};
pub use news::News;
pub use pages::{PagePool, PageTable};
pub use pairing::{PairFeed, Pairing, PairingError, Share, Wire, layout_of};
pub use plan::{PlanLimits, PlanningError, plan};
pub use reach::Reach;
pub use rules::Rules;
pub use sink::Sink;
pub use source::Source;
pub use stage::HEADER_BYTES;
pub use target::{Opening, Target, TargetRoom};
pub use wire::{AUX_BYTES, AuxRow, Immediate, MAX_SOURCES, SEAL_BYTES, SLOT_BYTES, Seal};
