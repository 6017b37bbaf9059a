//! Programs as they are generated and shrunk: small vectors of picks. [`resolve`](super::resolve) gives them meaning.
//!
//! Every pick has a meaning in every program, so that removing a request or a round never invalidates what is left, and shrinking needs no
//! dependent generators.

use proptest::collection::vec;
use proptest::prelude::*;

/// Queue pairs, and what is done with them round by round.
#[derive(Clone, Debug)]
pub struct Program {
    /// Connections, 1 to 4, each with a queue pair on both sides.
    pub conns: Vec<ConnPick>,
    /// Rounds: everything of one is posted, then everybody waits until it is done.
    pub rounds: Vec<Vec<Turn>>,
}

/// A connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnPick {
    /// Its four queues complete into the one queue that connections of this kind share on each side.
    pub shared_cq: bool,
    /// Its receives come from the shared receive queue, on each side.
    pub srq: [bool; 2],
    /// Send queues have room for 2^n - 1 requests: the sizes that devices give exactly.
    pub log_depth: u8,
    /// Path MTU: 256, 1024 or 4096.
    pub mtu: u8,
    /// Gives up soon: few retries. Only such a connection loses its peer, or sends without a receive.
    pub fragile: bool,
    /// Outstanding READs and atomics, less one.
    pub reads: u8,
    /// Rights of both queue pairs: 0 all, else without one of them.
    pub rights: u8,
}

/// What one side does with one connection in a round.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Which connection.
    pub conn: u8,
    /// Which side posts.
    pub side: bool,
    /// What happened to the queue pairs before.
    pub before: Before,
    /// Requests in a chain.
    pub chain: u8,
    /// Receives beyond those needed.
    pub spare: u8,
    /// The requests.
    pub requests: Vec<Request>,
}

/// What happens to the queue pairs of a connection before a turn's requests are posted, while nothing is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// The peer goes to ERR.
    PeerErr,
    /// The peer goes to RESET.
    PeerReset,
    /// The peer is destroyed.
    PeerDestroyed,
    /// The poster goes to ERR.
    OwnErr,
    /// The poster goes to RESET: posting is refused.
    OwnReset,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// WRITE.
    Write,
    /// WRITE with immediate.
    WriteImm,
    /// SEND.
    Send,
    /// SEND with immediate.
    SendImm,
    /// READ.
    Read,
    /// Fetch and add.
    FetchAdd,
    /// Compare and swap; the value matches or not.
    CompareSwap(bool),
    /// A window of a plan of WRITEs; with an immediate at its end or not.
    Writes(bool),
    /// A window of a plan of READs.
    Reads,
}

/// What is wrong with a request, if it can be wrong with its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    None,
    /// A remote key that nobody has.
    BadRkey,
    /// The remote range ends this much past its registration.
    PastEnd(u8),
    /// The remote registration lacks the right.
    NoRight,
    /// The remote registration has ended.
    Stale,
    /// An atomic beside an 8-byte boundary.
    Misaligned,
    /// A local key that nobody has.
    BadLkey,
    /// The local range ends past its registration.
    LocalPastEnd,
    /// A READ or atomic into a registration without local write.
    NoLocalWrite,
    /// The receive is too small.
    TooSmall,
    /// The receive has a key that nobody has.
    BadReceiveKey,
    /// There is no receive and none comes.
    NoReceive,
    /// The receive is posted only later.
    LateReceive,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it does.
    pub what: What,
    /// Bytes of its pieces; runs of a plan.
    pub pieces: Vec<u16>,
    /// Whether it is signalled (the last one of a turn always is).
    pub signaled: bool,
    /// Fence.
    pub fence: bool,
    /// Inline, where its kind and length allow it.
    pub inline: bool,
    /// On the same remote range as the WRITE or atomic before; a fenced one sends what the READ before brought.
    pub again: bool,
    /// What is wrong.
    pub flaw: Flaw,
    /// Odd offsets, values, windows.
    pub salt: u16,
}

fn conn() -> impl Strategy<Value = ConnPick> {
    let rare = |n: u8| (0..n).prop_map(move |k| k == n - 1);
    (
        any::<bool>(),
        [rare(3), rare(3)],
        prop_oneof![1 => 3u8..=3, 3 => 4u8..=6],
        0u8..3,
        any::<bool>(),
        0u8..4,
        prop_oneof![8 => 0u8..=0, 1 => 1u8..=3],
    )
        .prop_map(|(shared_cq, srq, log_depth, mtu, fragile, reads, rights)| ConnPick {
            shared_cq,
            srq,
            log_depth,
            mtu,
            fragile,
            reads,
            rights,
        })
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        5 => Just(What::Write),
        4 => Just(What::WriteImm),
        3 => Just(What::Send),
        2 => Just(What::SendImm),
        3 => Just(What::Read),
        1 => Just(What::FetchAdd),
        1 => any::<bool>().prop_map(What::CompareSwap),
        2 => any::<bool>().prop_map(What::Writes),
        1 => Just(What::Reads),
    ]
}

fn flaw() -> impl Strategy<Value = Flaw> {
    prop_oneof![
        80 => Just(Flaw::None),
        1 => Just(Flaw::BadRkey),
        2 => prop_oneof![2 => Just(1u8), 1 => 1u8..60].prop_map(Flaw::PastEnd),
        1 => Just(Flaw::NoRight),
        1 => Just(Flaw::Stale),
        6 => Just(Flaw::Misaligned),
        1 => Just(Flaw::BadLkey),
        1 => Just(Flaw::LocalPastEnd),
        1 => Just(Flaw::NoLocalWrite),
        5 => Just(Flaw::TooSmall),
        5 => Just(Flaw::BadReceiveKey),
        2 => Just(Flaw::NoReceive),
        2 => Just(Flaw::LateReceive),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let piece = prop_oneof![1 => Just(0u16), 6 => 1u16..80, 2 => 80u16..600];
    let flags = (
        prop_oneof![3 => Just(false), 2 => Just(true)],
        prop_oneof![3 => Just(false), 1 => Just(true)],
        prop_oneof![3 => Just(false), 1 => Just(true)],
        prop_oneof![3 => Just(false), 1 => Just(true)],
    );
    (what(), vec(piece, 0..4), flags, flaw(), any::<u16>()).prop_map(
        |(what, pieces, (signaled, fence, inline, again), flaw, salt)| Request {
            what,
            pieces,
            signaled,
            fence,
            inline,
            again,
            flaw,
            salt,
        },
    )
}

fn before() -> impl Strategy<Value = Before> {
    prop_oneof![
        40 => Just(Before::Nothing),
        1 => Just(Before::PeerErr),
        1 => Just(Before::PeerReset),
        1 => Just(Before::PeerDestroyed),
        1 => Just(Before::OwnErr),
        1 => Just(Before::OwnReset),
    ]
}

fn turn() -> impl Strategy<Value = Turn> {
    (0u8..4, any::<bool>(), before(), 1u8..6, 0u8..3, vec(request(), 1..9)).prop_map(
        |(conn, side, before, chain, spare, requests)| Turn { conn, side, before, chain, spare, requests },
    )
}

impl Program {
    /// Without what rxe refuses at posting, and local errors only where nothing is outstanding: see `quirks::AVOIDED`.
    pub fn for_devices(mut self) -> Self {
        for turn in self.rounds.iter_mut().flatten() {
            for (i, request) in turn.requests.iter_mut().enumerate() {
                if request.flaw == Flaw::Misaligned || i > 0 && request.flaw.is_local() {
                    request.flaw = Flaw::None;
                }
            }
        }
        self
    }
}

impl Flaw {
    /// Whether it is the requester's own doing.
    pub fn is_local(self) -> bool {
        matches!(self, Self::BadLkey | Self::LocalPastEnd | Self::NoLocalWrite)
    }
}

/// Programs without races.
pub fn programs() -> impl Strategy<Value = Program> {
    (vec(conn(), 1..4), vec(vec(turn(), 1..4), 1..4)).prop_map(|(conns, rounds)| Program { conns, rounds })
}
