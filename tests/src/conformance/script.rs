//! A program with every name resolved: what the [runner](super::run) posts and the [model](super::model) predicts.

use engine::fabric::{Access, Flags, Op, Plan};
use std::ops::Range;
use std::sync::Arc;

/// Bytes where requests read and write.
pub const DATA: u64 = 16_384;
/// Its end, where ranges that run over are: nothing else is put there.
pub const EDGE: u64 = 4_096;
/// Bytes after it that no registration of `Short` covers.
pub const GUARD: u64 = 256;
/// Bytes of a receive.
pub const SLOT: u64 = 256;
/// Receives that a queue holds.
pub const SLOTS: u64 = 48;
/// Bytes of an arena: data, guard, slots of receives.
pub const ARENA: u64 = DATA + GUARD + SLOTS * SLOT;
/// Inline bytes asked for.
pub const INLINE: u32 = 64;
/// SGEs asked for.
pub const SGES: u32 = 4;
/// Ids of receives are from here on.
pub const RECEIVES: u64 = 1 << 32;

/// A registration of an arena. Each arena has all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Region {
    /// All of it, all rights.
    Whole,
    /// All of it, remote read only.
    ReadOnly,
    /// All of it, no remote rights.
    Local,
    /// Up to the guard, all rights.
    Short,
    /// All of it, all rights, until it is deregistered.
    Mortal,
}

/// All of them.
pub const REGIONS: [Region; 5] =
    [Region::Whole, Region::ReadOnly, Region::Local, Region::Short, Region::Mortal];

impl Region {
    /// Its rights.
    pub fn access(self) -> Access {
        match self {
            Region::ReadOnly => Access::REMOTE_READ,
            Region::Local => Access::LOCAL,
            _ => ALL,
        }
    }
    /// Its bytes.
    pub fn span(self) -> Range<u64> {
        0..if self == Region::Short { DATA } else { ARENA }
    }
}

/// All rights.
pub const ALL: Access =
    Access { local_write: true, remote_write: true, remote_read: true, remote_atomic: true };

/// Whether a key is that of its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// It is.
    Good,
    /// It is nobody's.
    Bad,
}

/// A range of a side's arena as a request names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which arena of the side: its connection's, or the shared receive queue's.
    pub arena: usize,
    /// By which registration.
    pub region: Region,
    /// Where.
    pub at: u64,
    /// Bytes.
    pub len: u32,
    /// With what key.
    pub key: Key,
}

/// One request.
#[derive(Clone, Debug)]
pub struct One {
    /// Its id.
    pub id: u64,
    /// What it does.
    pub op: Op,
    /// How.
    pub flags: Flags,
    /// Local ranges.
    pub local: Vec<Place>,
    /// Remote range.
    pub remote: Place,
}

/// A window of a plan.
#[derive(Clone, Debug)]
pub struct Many {
    /// Id of its request 0.
    pub first: u64,
    /// WRITE or READ.
    pub op: Op,
    /// The plan.
    pub plan: Arc<Plan>,
    /// The window.
    pub window: Range<u64>,
    /// Where local offset 0 is; its length means nothing.
    pub local: Place,
    /// Where remote offset 0 is.
    pub remote: Place,
    /// Every how many requests there is a signal.
    pub signal_every: u32,
    /// Whether the last one is signalled.
    pub signal_last: bool,
    /// Op of the last one.
    pub last: Option<Op>,
}

/// A link of a chain.
#[derive(Clone, Debug)]
pub enum Link {
    /// One request.
    One(One),
    /// A window.
    Many(Many),
}

impl Link {
    /// Requests in it.
    pub fn requests(&self) -> u64 {
        match self {
            Link::One(_) => 1,
            Link::Many(many) => many.window.end - many.window.start,
        }
    }

    /// Its requests one by one.
    pub fn expand(&self, mut each: impl FnMut(One)) {
        match self {
            Link::One(one) => each(one.clone()),
            Link::Many(many) => many.plan.for_each(&many.window, |index, pieces, remote| {
                let last = index + 1 == many.window.end;
                let every = many.signal_every > 0 && (index + 1).is_multiple_of(many.signal_every.into());
                let local: Vec<Place> = pieces
                    .iter()
                    .map(|&(at, len)| Place { at: many.local.at + at, len, ..many.local })
                    .collect();
                let len = local.iter().map(|p| p.len).sum();
                each(One {
                    id: many.first + index,
                    op: if last { many.last.unwrap_or(many.op) } else { many.op },
                    flags: Flags { signaled: every || last && many.signal_last, ..Flags::default() },
                    local,
                    remote: Place { at: many.remote.at + remote, len, ..many.remote },
                });
            }),
        }
    }
}

/// Which queue pair: connection and side.
pub type End = (usize, usize);

/// A connection.
#[derive(Clone, Copy, Debug)]
pub struct Conn {
    /// One completion queue a side for all connections of this kind.
    pub shared_cq: bool,
    /// Receives from the side's shared queue.
    pub srq: [bool; 2],
    /// Requests of a send queue.
    pub depth: u32,
    /// Path MTU in bytes.
    pub mtu: u16,
    /// Few retries.
    pub fragile: bool,
    /// Outstanding READs and atomics.
    pub reads: u8,
    /// Rights of both queue pairs.
    pub access: Access,
}

/// A receive.
#[derive(Clone, Debug)]
pub struct Receive {
    /// Queue pair whose message it is for; goes to its queue, or to the side's shared one.
    pub end: End,
    /// Its id.
    pub id: u64,
    /// Its ranges.
    pub sges: Vec<Place>,
}

/// A change of a queue pair or registration while nothing is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// To ERR.
    Err(End),
    /// To RESET.
    Reset(End),
    /// Gone.
    Destroy(End),
    /// The arena's `Mortal` registration ends.
    Deregister(End),
}

/// A chain that is posted.
#[derive(Clone, Debug)]
pub struct Post {
    /// Where.
    pub end: End,
    /// What.
    pub chain: Vec<Link>,
}

/// Everything between two quiescent points.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// First, these are posted.
    pub receives: Vec<Receive>,
    /// Then this happens.
    pub changes: Vec<Change>,
    /// Then chains are posted, in this order. Sources of inline requests are overwritten at once.
    pub posts: Vec<Post>,
    /// These receives come late.
    pub late: Vec<Receive>,
    /// Connections that are reset and connected anew at the end.
    pub repair: Vec<usize>,
}

/// A program to run.
#[derive(Clone, Debug)]
pub struct Script {
    /// The connections.
    pub conns: Vec<Conn>,
    /// The rounds.
    pub rounds: Vec<Round>,
}

/// Byte that inline sources are overwritten with.
pub const SCRIBBLE: u8 = 0xee;

/// What an arena holds at the start of a round: a stream of [`engine::fabric::Content`].
pub fn seed(round: usize, side: usize, arena: usize) -> u64 {
    (round * 64 + side * 32 + arena + 1) as u64
}
