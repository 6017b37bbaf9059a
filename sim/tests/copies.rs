//! Copies within a host's memory: what moves, when, and what is refused.

use engine::fabric::{
    Content, Error, Event, Extent, Fabric, Grid, Lane, LinkLayer, LocalCopy, Memory, Plan, Run,
};
use engine::id::CopyId;
use engine::time::{Span, Time};
use proptest::prelude::*;
use sim::fabric::{CopyCosts, FabricEvent, Fabrics, HostSpec, PortSpec};
use sim::net::Topology;
use sim::nic::{Bandwidth, Duration, NicProfile};
use sim::queue::EventQueue;
use std::sync::Arc;

struct Event1(FabricEvent);
impl From<FabricEvent> for Event1 {
    fn from(event: FabricEvent) -> Self {
        Self(event)
    }
}

/// One host, a GPU that takes 10 us for each copy and a nanosecond for a byte.
fn host() -> Fabrics {
    let port = PortSpec {
        name: "a/1".into(),
        link_layer: LinkLayer::Ethernet,
        bits_per_s: 1_000_000_000,
        mtu: 4096,
        numa: None,
    };
    let nic = Arc::new(NicProfile::ideal());
    let mut fabrics =
        Fabrics::new(vec![HostSpec { ports: vec![port], nic }], Topology::star(1, 1.0, 1).unwrap(), 1)
            .unwrap();
    fabrics.set_copy_costs(CopyCosts {
        submit: Duration::default(),
        launch: Duration(Span::us(10)),
        rate: Bandwidth(1_000_000_000),
    });
    fabrics
}

/// Lets everything happen; what was told, and when.
fn run(fabrics: &mut Fabrics, q: &mut EventQueue<Event1>) -> Vec<(Time, CopyId)> {
    let (mut ready, mut told) = (Vec::new(), Vec::new());
    fabrics.after_call(0, Time::ZERO, q, &mut ready);
    while let Some((at, event)) = q.pop() {
        fabrics.handle(at, event.0, q, &mut ready);
        while let Some(event) = fabrics.host(0).next_event() {
            let Event::Copied(id) = event else { panic!("{event:?}") };
            told.push((at, id));
        }
    }
    assert!(fabrics.quiescent());
    told
}

#[test]
fn a_gpu_copies_in_order_and_two_at_the_same_time() {
    let mut fabrics = host();
    let mut q: EventQueue<Event1> = EventQueue::default();
    fabrics.begin_call(0, Time::ZERO);
    let own = fabrics.host(0);
    let a = own.alloc(Memory::Host, Grid::bytes(5000)).unwrap();
    let b = own.alloc(Memory::Host, Grid::bytes(5000)).unwrap();
    own.write(a, 0, &[7; 5000]).unwrap();
    let plan = |len| {
        Arc::new(Plan::new([Lane { local: 0, remote: 0 }].into(), vec![Run::piece(0, 0, len)]).unwrap())
    };
    let (short, long) = (plan(1000), plan(5000));
    let copy = |plan, at| [LocalCopy { plan, from: (a, 0), to: (b, at) }];
    own.copy(0, CopyId(1), &copy(&long, 0)).unwrap();
    own.copy(0, CopyId(2), &copy(&short, 0)).unwrap();
    own.copy(1, CopyId(3), &copy(&short, 4000)).unwrap();
    assert!(matches!(own.copy(0, CopyId(4), &copy(&long, 1)), Err(Error::Invalid { .. })));
    assert_eq!(own.free(b), Err(Error::Busy("buffer")));
    // Nothing moves before its time.
    let mut bytes = [1; 1];
    own.read(b, 0, &mut bytes).unwrap();
    assert_eq!(bytes, [0]);
    let us = |us| Time(Span::us(us).0);
    assert_eq!(run(&mut fabrics, &mut q), [(us(11), CopyId(3)), (us(15), CopyId(1)), (us(26), CopyId(2))]);
    fabrics.host(0).read(b, 4999, &mut bytes).unwrap();
    assert_eq!(bytes, [7]);
    assert_eq!(fabrics.host(0).free(b), Ok(()));
    assert_eq!((fabrics.counters().copies, fabrics.counters().copied_bytes), (3, 7000));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Real bytes and phantom memory agree on where everything is after a gather and a scatter.
    #[test]
    fn what_is_gathered_and_scattered_is_where_it_belongs(
        lanes in 1u64..5, len in 1u32..40, count in 1u32..20, gap in 0u64..30, at in 0u64..50, slot in 1u64..100, phantom: bool,
    ) {
        let kind = if phantom { Memory::Phantom } else { Memory::Host };
        let mut fabrics = host();
        let mut q: EventQueue<Event1> = EventQueue::default();
        let step = u64::from(len) + gap;
        let grid = Grid { buffers: lanes as u32, pitch: 4096, pages: 16, page: 256 };
        let packed = Grid { buffers: 1, pitch: 16384, pages: 256, page: 64 };
        fabrics.begin_call(0, Time::ZERO);
        let own = fabrics.host(0);
        let [pool, other] = [grid; 2].map(|grid| own.alloc(kind, grid).unwrap());
        let stage = own.alloc(kind, packed).unwrap();
        let what = Content { seed: 5, at: 9, per_buffer: 1 << 20, per_piece: 300 };
        let place = Extent { buffers: 0..lanes as u32, at, len: len.into(), count, step };
        own.stamp(pool, &place, what).unwrap();
        let dense = u64::from(len) * u64::from(count);
        let plan = |gather: bool| {
            let lane = |i: u64| {
                let (page, packed) = (i * 4096, i * dense);
                if gather { Lane { local: page, remote: packed } } else { Lane { local: packed, remote: page } }
            };
            let run = Run { local: 0, remote: 0, len, count, local_step: u64::from(len), remote_step: u64::from(len), gather: 1, joins: false };
            let run = if gather { Run { local: at, local_step: step, ..run } } else { Run { remote: at + 3, remote_step: step, ..run } };
            Arc::new(Plan::new((0..lanes).map(lane).collect(), vec![run]).unwrap())
        };
        let (gather, scatter) = (plan(true), plan(false));
        own.copy(0, CopyId(1), &[LocalCopy { plan: &gather, from: (pool, 0), to: (stage, slot) }]).unwrap();
        own.copy(0, CopyId(2), &[LocalCopy { plan: &scatter, from: (stage, slot), to: (other, 0) }]).unwrap();
        prop_assert_eq!(run(&mut fabrics, &mut q).len(), 2);
        let moved = Extent { at: at + 3, ..place.clone() };
        let own = fabrics.host(0);
        prop_assert_eq!(own.holds(other, &moved, what), Ok(true));
        prop_assert_eq!(own.holds(other, &moved, Content { at: 10, ..what }), Ok(false));
    }
}
