//! Bytes and phantom memory agree: random stamps, moves and checks give the same answers on both.

use engine::fabric::{
    Access, Batch, Content, Extent, Fabric, Flags, Grid, Item, Lane, Lanes, Memory, Op, Plan, Run, Sge,
    WorkRequest,
};
use engine::id::{BufId, WrId};
use proptest::prelude::*;
use sim::fabric::pair::{Pair, PairSpec};
use std::collections::BTreeMap;
use std::sync::Arc;

/// All lengths are multiples of this, so that different content never looks alike.
const UNIT: u64 = 8;
const BUFFERS: u32 = 3;
const PAGES: u32 = 4;

#[derive(Clone, Debug)]
struct Place {
    side: usize,
    buffers: (u32, u32),
    at: u64,
    len: u64,
    count: u32,
    gap: u64,
}

#[derive(Clone, Debug)]
enum Act {
    Stamp(Place, Content),
    /// A WRITE or READ of lanes x pieces: offsets on both sides.
    Move {
        from: u64,
        to: u64,
        len: u64,
        count: u64,
        gaps: (u64, u64),
        lanes: (u32, u32, u32),
        read: bool,
    },
    One {
        from: u64,
        to: u64,
        len: u64,
        buffers: (u32, u32),
    },
}

/// Mostly short, so that steps agree often.
fn lengths() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1u64..4, 1 => 4u64..30]
}

fn content() -> impl Strategy<Value = Content> {
    (0u64..3, 0u64..4, 0u64..3, 0u64..4).prop_map(|(seed, at, b, p)| Content {
        seed,
        at: at * UNIT,
        per_buffer: b * 1024,
        per_piece: p * UNIT,
    })
}

fn place(pages: [u64; 2]) -> impl Strategy<Value = Place> {
    let units = pages.map(|p| p / UNIT * u64::from(PAGES));
    (0usize..2, 0..BUFFERS, 0..=BUFFERS, 0u64..64, lengths(), 1u32..8, 0u64..4).prop_map(
        move |(side, a, b, at, len, count, gap)| {
            let at = at % units[side];
            let len = len.min(units[side] - at);
            let gap = gap * UNIT;
            let most = ((units[side] - at - len) * UNIT / (len * UNIT + gap) + 1) as u32;
            let (a, b) = (a.min(b), (a.max(b)).max(a.min(b) + 1).min(BUFFERS));
            Place {
                side,
                buffers: (a.min(b - 1), b),
                at: at * UNIT,
                len: len * UNIT,
                count: count.min(most),
                gap,
            }
        },
    )
}

/// Units from the first of a page on, at least one page, in a pool of this page size.
fn row_units(page: u64) -> impl Strategy<Value = (u64, u64)> {
    let (per, all) = (page / UNIT, page / UNIT * u64::from(PAGES));
    (0..u64::from(PAGES), per..=all).prop_map(move |(first, len)| (first * per, len.min(all - first * per)))
}

/// A row of whole pages of all buffers, and often a part of the next page: what prefill writes.
fn row(pages: [u64; 2]) -> impl Strategy<Value = Place> {
    (0usize..2, row_units(pages[0]), row_units(pages[1])).prop_map(|(side, a, b)| {
        let (at, len) = [a, b][side];
        Place { side, buffers: (0, BUFFERS), at: at * UNIT, len: len * UNIT, count: 1, gap: 0 }
    })
}

/// Such a row goes to the other side.
fn row_moves(pages: [u64; 2]) -> impl Strategy<Value = Act> {
    (row_units(pages[0]), row_units(pages[1]), any::<bool>()).prop_map(|(a, b, read)| Act::Move {
        from: a.0 * UNIT,
        to: b.0 * UNIT,
        len: a.1.min(b.1) * UNIT,
        count: 1,
        gaps: (0, 0),
        lanes: (0, 0, BUFFERS),
        read,
    })
}

fn act(pages: [u64; 2]) -> impl Strategy<Value = Act> {
    let units = pages.map(|p| p / UNIT * u64::from(PAGES));
    let moves = (
        0..units[0],
        0..units[1],
        1u64..12,
        1u64..6,
        (0u64..3, 0u64..3),
        (0..BUFFERS, 0..BUFFERS, 1..=BUFFERS),
        any::<bool>(),
    )
        .prop_map(move |(from, to, len, count, gaps, (a, b, n), read)| {
            let len = len.min(units[0] - from).min(units[1] - to);
            let room = |at: u64, units: u64, gap: u64| (units - at - len) / (len + gap) + 1;
            let count = count.min(room(from, units[0], gaps.0)).min(room(to, units[1], gaps.1));
            let n = n.min(BUFFERS - a).min(BUFFERS - b);
            Act::Move {
                from: from * UNIT,
                to: to * UNIT,
                len: len * UNIT,
                count,
                gaps: (gaps.0 * UNIT, gaps.1 * UNIT),
                lanes: (a, b, n),
                read,
            }
        });
    let ones = (0..units[0], 0..units[1], 1u64..40, (0..BUFFERS, 0..BUFFERS)).prop_map(
        move |(from, to, len, buffers)| {
            let len = len.min(units[0] - from).min(units[1] - to);
            Act::One { from: from * UNIT, to: to * UNIT, len: len * UNIT, buffers }
        },
    );
    prop_oneof![
        3 => (place(pages), content()).prop_map(|(p, c)| Act::Stamp(p, c)),
        2 => (row(pages), content()).prop_map(|(p, c)| Act::Stamp(p, c)),
        3 => moves,
        2 => row_moves(pages),
        1 => ones,
    ]
}

struct Rig {
    pair: Pair,
    bufs: [BufId; 2],
    mrs: [engine::fabric::Mr; 2],
    grids: [Grid; 2],
}

impl Rig {
    fn new(kind: Memory, pages: [u64; 2], slack: u64) -> Self {
        let mut pair = Pair::new(PairSpec::default()).unwrap();
        let all = Access { local_write: true, remote_write: true, remote_read: true, remote_atomic: true };
        let grids = pages.map(|page| Grid {
            buffers: BUFFERS,
            pitch: page * u64::from(PAGES) + slack,
            pages: PAGES,
            page,
        });
        let mut make = |i: usize| {
            let port = pair.ends[i].port;
            pair.call(i, |f| {
                let buf = f.alloc(kind, grids[i]).unwrap();
                (buf, f.register(port, buf, 0..grids[i].len(), all).unwrap())
            })
        };
        let ((a, m), (b, n)) = (make(0), make(1));
        Self { pair, bufs: [a, b], mrs: [m, n], grids }
    }

    fn extent(p: &Place) -> Extent {
        Extent {
            buffers: p.buffers.0..p.buffers.1,
            at: p.at,
            len: p.len,
            count: p.count,
            step: p.len + p.gap,
        }
    }

    fn act(&mut self, act: &Act) {
        let (bufs, mrs, grids) = (self.bufs, self.mrs, self.grids);
        let qp = self.pair.ends[0].qp;
        match act {
            Act::Stamp(p, what) => {
                self.pair.call(p.side, |f| f.stamp(bufs[p.side], &Self::extent(p), *what)).unwrap();
            }
            Act::Move { from, to, len, count, gaps, lanes: (a, b, n), read } => {
                let lanes: Arc<Lanes> = (0..u64::from(*n))
                    .map(|i| Lane {
                        local: (u64::from(*a) + i) * grids[0].pitch,
                        remote: (u64::from(*b) + i) * grids[1].pitch,
                    })
                    .collect();
                let run = Run {
                    local: *from,
                    remote: *to,
                    len: *len as u32,
                    count: *count as u32,
                    local_step: len + gaps.0,
                    remote_step: len + gaps.1,
                    gather: 1,
                    joins: false,
                };
                let plan = Arc::new(Plan::new(lanes, vec![run]).unwrap());
                let batch = Batch {
                    plan: &plan,
                    first: WrId(0),
                    op: if *read { Op::Read } else { Op::Write },
                    local: (mrs[0].addr, mrs[0].lkey),
                    remote: (mrs[1].addr, mrs[1].rkey),
                    window: 0..plan.requests(),
                    signal_every: 0,
                    signal_last: true,
                    last: None,
                };
                self.pair.call(0, |f| f.post_send(qp, &[Item::Many(batch)])).unwrap();
            }
            Act::One { from, to, len, buffers } => {
                let sge = Sge {
                    addr: mrs[0].addr + u64::from(buffers.0) * grids[0].pitch + from,
                    len: *len as u32,
                    lkey: mrs[0].lkey,
                };
                let request = WorkRequest {
                    id: WrId(1),
                    op: Op::Write,
                    flags: Flags { signaled: true, ..Flags::default() },
                    local: &[sge],
                    remote: (mrs[1].addr + u64::from(buffers.1) * grids[1].pitch + to, mrs[1].rkey),
                };
                self.pair.call(0, |f| f.post_send(qp, &[Item::One(request)])).unwrap();
            }
        }
        self.pair.run();
        let sends = self.pair.sends(0);
        assert!(sends.iter().all(|c| c.result.is_ok()), "{sends:?}");
    }

    fn holds(&mut self, p: &Place, what: Content) -> bool {
        let buf = self.bufs[p.side];
        self.pair.call(p.side, |f| f.holds(buf, &Self::extent(p), what)).unwrap()
    }
}

fn page() -> impl Strategy<Value = u64> {
    prop_oneof![Just(3 * UNIT), Just(8 * UNIT), Just(16 * UNIT), Just(24 * UNIT)]
}

/// All words that can have been stamped, by their bytes.
fn names() -> BTreeMap<u64, Content> {
    let word = |(seed, i)| {
        let what = Content { seed, at: i * UNIT, per_buffer: 0, per_piece: 0 };
        (Content::word(seed, i), what)
    };
    (0..3).flat_map(|seed| (0..1024).map(move |i| (seed, i))).map(word).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// The pieces of every stamp, and random places, are asked for after all acts.
    #[test]
    fn bytes_and_phantom_agree(
        (pages, acts, asks) in prop_oneof![(page(), page()), page().prop_map(|p| (p, p))].prop_flat_map(|(a, b)| {
            let pages = [a, b];
            let acts = proptest::collection::vec(act(pages), 1..16);
            let asks = proptest::collection::vec((place(pages), content()), 0..12);
            (Just(pages), acts, asks)
        }),
        slack in prop_oneof![Just(0u64), Just(UNIT), Just(5 * UNIT)],
    ) {
        let mut bytes = Rig::new(Memory::Host, pages, slack);
        let mut phantom = Rig::new(Memory::Phantom, pages, slack);
        for act in &acts {
            bytes.act(act);
            phantom.act(act);
            for other in &acts {
                if let Act::Stamp(place, what) = other {
                    for (side, page) in pages.into_iter().enumerate() {
                        let mut place = place.clone();
                        let end = place.at + place.len * u64::from(place.count) + place.gap * u64::from(place.count - 1);
                        if end > page * u64::from(PAGES) {
                            continue;
                        }
                        place.side = side;
                        prop_assert_eq!(bytes.holds(&place, *what), phantom.holds(&place, *what), "{:?} {:?}", place, what);
                    }
                }
            }
        }
        for (place, what) in &asks {
            prop_assert_eq!(bytes.holds(place, *what), phantom.holds(place, *what), "{:?} {:?}", place, what);
        }
        // Every unit of both sides: its bytes say which piece of which stream it is.
        let names = names();
        for (side, page) in pages.into_iter().enumerate() {
            for buffer in 0..BUFFERS {
                for unit in 0..page * u64::from(PAGES) / UNIT {
                    let at = unit * UNIT;
                    let mut word = [0; UNIT as usize];
                    let (grid, buf) = (bytes.grids[side], bytes.bufs[side]);
                    let host = bytes.pair.fabrics.host_ref(side);
                    host.read(buf, u64::from(buffer) * grid.pitch + at, &mut word).unwrap();
                    let place = Place { side, buffers: (buffer, buffer + 1), at, len: UNIT, count: 1, gap: 0 };
                    match names.get(&u64::from_le_bytes(word)) {
                        Some(what) => prop_assert!(phantom.holds(&place, *what), "{:?} is not {:?}", place, what),
                        None => prop_assert!(!names.values().step_by(61).any(|what| phantom.holds(&place, *what)), "{:?}", place),
                    }
                }
            }
        }
    }
}
