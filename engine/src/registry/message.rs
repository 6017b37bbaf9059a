//! What is said over the control channel. Every message has the registry at one end.
//!
//! A room in a fault-free run costs nine: Create, two Assign, Publish twice (in and out), Report twice, Done twice. None of them lies
//! between the end of prefill and decode's Success. In pull page lists go from prefill to decode, and reports back; [`Produced`] comes on top,
//! twice for each time that prefill says so (at most [`crate::transfer::TransferConfig::parts_per_rail`] times), the last of them between the
//! end of prefill and decode's Success. A routing policy that wants to know of deliveries adds two, [`Delivered`] in and out.
//!
//! With staging [`Scattered`] comes on top, in and out, for each time that a room uses half of the slots that it has for a sender again; none
//! where they are enough. These too may lie between the end of prefill and decode's Success.
//!
//! [`Delivered`]: Message::Delivered
//! [`Produced`]: Message::Produced
//! [`Scattered`]: Message::Scattered

use crate::fabric::Endpoint;
use crate::id::{InstanceId, NodeId, Page, Rank, Room};
use crate::node::{Reason, Request};
use crate::time::Span;
use std::ops::Range;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Sends requests to instances.
    Router,
    /// Computes prompts and sends their KV.
    Prefill,
    /// Receives KV and generates.
    Decode,
}

/// A room and which try it is. The same create again is accepted; another attempt at a live room is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoomKey {
    /// The room.
    pub room: Room,
    /// The attempt.
    pub attempt: u32,
}

/// Address and key of a registration, as peers name it; one for each port of its rank's host, in port order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Address of its first byte.
    pub addr: u64,
    /// Remote key by port.
    pub rkeys: Vec<u32>,
}

/// Memory of one rank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RankFacts {
    /// KV pools, in the layout's order of components.
    pub pools: Vec<Region>,
    /// Bytes between buffers, by pool.
    pub pitches: Vec<u64>,
    /// Aux slots, and behind them a cell for the header of each staging slot.
    pub aux: Region,
    /// Staging slots, if there are any.
    pub stage: Region,
}

/// What peers must know of an instance to plan for it; cached by instance id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Geometry of model and dtype; must be equal on all sides.
    pub fingerprint: u64,
    /// Tensor-parallel ranks.
    pub tp: u16,
    /// Pipeline stages.
    pub pp: u16,
    /// Data-parallel attention groups.
    pub dp: u16,
    /// Tokens of a page.
    pub page_size: u32,
    /// Whether pages are head-major.
    pub head_major: bool,
    /// Pages in each pool, the padding page 0 included.
    pub pages: u32,
    /// Aux slots of each rank.
    pub slots: u32,
    /// Staging slots of each rank; 0 without staging.
    pub stage_slots: u32,
    /// Bytes of one.
    pub stage_bytes: u64,
    /// Its ranks.
    pub ranks: Vec<RankFacts>,
}

/// `count` pages from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// The first.
    pub first: Page,
    /// How many.
    pub count: u32,
}

/// The pages of a room at the target: where decode wants its KV or, in pull, where prefill has it. Several of these if the pages do not
/// fit into one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageList {
    /// The room.
    pub key: RoomKey,
    /// Fence epoch of the two instances at the time of publishing.
    pub fence_epoch: u32,
    /// Aux slot, the same in all ranks.
    pub slot: u16,
    /// Generation of the slot.
    pub generation: u8,
    /// Data-parallel group which holds the request's KV.
    pub group: u16,
    /// Immediates that each source rank may send to each destination rank; 0 in pull, which has none.
    pub credits: u16,
    /// Tokens whose KV is wanted, from the prompt's start.
    pub tokens: u32,
    /// Index in the room's page table of the first page listed here.
    pub offset: u32,
    /// Pages of the whole table.
    pub total: u32,
    /// The pages.
    pub pages: Vec<PageRun>,
    /// Staging slots that the room has, the same on every rank: an equal share for each feed of a rank, in their order. With the first
    /// list only; none without staging.
    pub stage: Vec<PageRun>,
}

impl PageList {
    /// Cuts it into lists of at most `runs` runs each, with their offsets; an empty list stays one list.
    pub fn split(mut self, runs: usize) -> impl Iterator<Item = PageList> {
        let pages = std::mem::take(&mut self.pages);
        let mut at = 0;
        std::iter::from_fn(move || {
            if at >= pages.len() && at > 0 {
                return None;
            }
            let piece = &pages[at..pages.len().min(at + runs.max(1))];
            let list = PageList { pages: piece.to_vec(), ..self.clone() };
            self.offset += piece.iter().map(|run| run.count).sum::<u32>();
            at += piece.len().max(1);
            Some(list)
        })
    }
}

/// More of a room's KV is in prefill's pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// These tokens.
    pub tokens: Range<u32>,
    /// Of these layers.
    pub layers: Range<u32>,
}

/// How the initiator's side of a room ended; sent once everything it posted has completed. The target of a pull says the same word when it
/// ended a room on which the initiator had not reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Every part completed with success; else the room failed there.
    pub delivered: bool,
    /// Every posted request completed with success, or none was posted: the target may free without a fence.
    pub clean: bool,
}

/// How long a delivered room took at prefill, by its clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Tokens of the prompt that came from the prefix cache.
    pub cached: u32,
    /// From its assignment to its first step.
    pub queued: Span,
    /// From its first step to the end of its last.
    pub compute: Span,
    /// From there until all was delivered.
    pub handoff: Span,
}

/// How decode's side of a room ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Generation finished.
    Finished,
    /// Decode ran out of memory after so many tokens; the request may be made again.
    Preempted {
        /// Tokens generated.
        tokens: u32,
    },
    /// It failed.
    Failed(Reason),
}

/// Ends of the queue pairs of a link, in the link's order of (source rank, destination rank, rail).
pub type Endpoints = Vec<Endpoint>;

/// A room that is live at the target of a link, and which parts of it have been seen there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveRoom {
    /// The room.
    pub key: RoomKey,
    /// Seen parts by queue-pair pair: (source rank, destination rank, part).
    pub seen: Vec<(Rank, Rank, u16)>,
}

/// What the two ends of a link tell each other: connection and reconnection are one handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkBody {
    /// Initiator to target: my end is down, make an offer.
    Ask {
        /// The offer on which the broken connection stood; 0 for none.
        broken: u32,
    },
    /// Target to initiator: my end is fenced and drained; this is what is live.
    Offer {
        /// Number of the offer; rises with each.
        offer: u32,
        /// Fence epoch of the two instances.
        fence_epoch: u32,
        /// Queue pairs for each pair of ranks.
        rails: u16,
        /// READs that each of the target's ends answers at a time; 0 in push, where none come.
        reads: u8,
        /// Target's ends, new PSNs.
        endpoints: Endpoints,
        /// Rooms not ended; all others are ended.
        live: Vec<LiveRoom>,
    },
    /// Initiator to target: all my completions are polled and my end is reset.
    Answer {
        /// The offer.
        offer: u32,
        /// Its epoch.
        fence_epoch: u32,
        /// Initiator's ends.
        endpoints: Endpoints,
    },
    /// Target to initiator: my end can receive; post.
    Ready {
        /// The offer.
        offer: u32,
    },
    /// Target to initiator: others wait for queue pairs; close this link between two parts, once it has moved something.
    Yield {
        /// The offer on which the link stands.
        offer: u32,
    },
    /// Either way: my end is gone, because others need its queue pairs and nothing used them. Whoever still needs the link asks anew.
    Close {
        /// The newest offer that the sender knows of.
        offer: u32,
    },
    /// Either way: this pair of instances cannot be linked.
    Refuse {
        /// Why.
        reason: Reason,
    },
}

/// An instance, as the router sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub instance: InstanceId,
    /// Prefill or decode.
    pub role: Role,
    /// Its node.
    pub node: NodeId,
    /// Pages in each of its pools.
    pub pages: u32,
    /// Tokens of a page.
    pub page_size: u32,
    /// Data-parallel groups, each with pools of its own.
    pub groups: u16,
}

/// How long a [`Message::Short`] holds.
pub const SHORT: Span = Span::s(1);

/// A message. Direction in brackets: C client, R registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// C>R: here I am. `claim` is the instance id from before a registry restart, 0 for a new life.
    Register {
        /// What it is.
        role: Role,
        /// The instance id it had, or 0.
        claim: InstanceId,
        /// Its memory and layout; none for a router.
        facts: Option<Box<Facts>>,
    },
    /// R>C: registered under this id, for as long as it is heard at least every `lease`.
    Welcome {
        /// The id.
        instance: InstanceId,
        /// How long silence may last.
        lease: Span,
    },
    /// R>C: not accepted, and why. Final for this instance id.
    Refused {
        /// Machine-readable.
        reason: Reason,
        /// For people: names both sides' values.
        why: String,
    },
    /// C>R: still here. Clients say so in the headers of their frames instead ([`super::Header::beat`]).
    Heartbeat,
    /// C>R: going, in good order.
    Leave,
    /// C>R: tell me about this instance.
    Query {
        /// Which.
        instance: InstanceId,
    },
    /// R>C: the answer; none if there is no such instance (any more).
    FactsOf {
        /// Which.
        instance: InstanceId,
        /// Its facts.
        facts: Option<Box<Facts>>,
    },
    /// R>C: an instance joined.
    Joined(Member),
    /// R>C: an instance left, or its lease expired. It will not come back under this id. C>R, by the client after a restart
    /// of the registry: so we were told before.
    Gone {
        /// Which.
        instance: InstanceId,
    },
    /// C>R (router): a request goes to these two.
    Create {
        /// Its room.
        key: RoomKey,
        /// Where its prompt is computed.
        prefill: InstanceId,
        /// Where it is decoded.
        decode: InstanceId,
        /// The request.
        request: Request,
    },
    /// R>C: you serve this room.
    Assign {
        /// The room.
        key: RoomKey,
        /// The other side.
        peer: InstanceId,
        /// The request.
        request: Request,
    },
    /// C>R (decode; in pull prefill), then R>C (the other).
    Publish(PageList),
    /// C>R (prefill, in pull), then R>C (decode): KV to be read.
    Produced {
        /// The room.
        key: RoomKey,
        /// Pieces of the room that were told before these.
        before: u32,
        /// What is there.
        pieces: Vec<Piece>,
        /// It is the rest, with the checksum of each feed if there are checksums.
        last: Option<Vec<u64>>,
    },
    /// C>R (decode, with staging), then R>C (prefill): staged parts that are in their pages, so that their slots can be used again.
    Scattered {
        /// The room.
        key: RoomKey,
        /// For each feed, in the order of the pairing: how many, counted without a gap from the first one on.
        done: Vec<u32>,
    },
    /// C>R by either side, then R>C to the other: post nothing more and end it. Decode that has Success goes on.
    Abort {
        /// The room.
        key: RoomKey,
        /// Why.
        reason: Reason,
    },
    /// C>R (router), then R>C to both sides; said by the registry itself when the router is gone: the request is not wanted any more. The
    /// transfer ends as by an Abort, and so does generation; decode's Done says which end came first.
    Cancel {
        /// The room.
        key: RoomKey,
        /// Why.
        reason: Reason,
    },
    /// C>R (prefill; in pull decode), then R>C (the other).
    Report {
        /// The room.
        key: RoomKey,
        /// How it ended there.
        report: Report,
    },
    /// C>R (decode), then R>C (router).
    Done {
        /// The room.
        key: RoomKey,
        /// How it ended there.
        outcome: Outcome,
    },
    /// C>R (prefill), then R>C (router), where the router wants to know: all KV is delivered.
    Delivered {
        /// The room.
        key: RoomKey,
        /// How long it took.
        timing: Timing,
    },
    /// C>R (the side that others' requests write to or read from), then R>C to all of the other side: requests wait for pages here. For the
    /// next [`SHORT`], what gives pages back is said at once instead of with the next frame.
    Short,
    /// C>R, then R>C with the sender as `peer`.
    Link {
        /// The other end.
        peer: InstanceId,
        /// What is said.
        body: LinkBody,
    },
}
