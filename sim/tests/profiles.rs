//! The profiles that come with the experiments: they can be read, and they predict what was measured.

mod common;

use common::{ALL, Rig, signaled};
use engine::fabric::{
    Batch, Fabric, Flags, Grid, Item, Lane, LinkLayer, Memory, Op, Plan, Recv, RnrTimer, Rtr, Rts, Run, Step,
};
use engine::id::{PortId, WrId};
use engine::time::{Span, Time};
use sim::fabric::pair::PairSpec;
use sim::fabric::{FabricEvent, Fabrics, HostSpec, PortSpec};
use sim::net::Topology;
use sim::nic::NicProfile;
use sim::queue::EventQueue;
use std::sync::Arc;

fn profile(name: &str) -> NicProfile {
    let path = format!("{}/../experiments/nic/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    let nic: NicProfile = serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    nic.check().unwrap();
    assert_eq!(nic.name, name);
    nic
}

#[test]
fn ideal_is_what_the_code_says() {
    assert_eq!(profile("ideal"), NicProfile::ideal());
}

#[test]
fn what_is_written_is_read_back_and_unknown_keys_are_refused() {
    let nic = profile("connectx-6-200g");
    let text = serde_yaml::to_string(&nic).unwrap();
    assert_eq!(serde_yaml::from_str::<NicProfile>(&text).unwrap(), nic);
    let error = serde_yaml::from_str::<NicProfile>(&format!("{text}\nspeed: 3")).unwrap_err().to_string();
    assert!(error.contains("speed"), "{error}");
    let error = serde_yaml::from_str::<NicProfile>(&text.replace("85ns", "85")).unwrap_err().to_string();
    assert!(error.contains("85"), "{error}");
    assert!(NicProfile { mtu: 1500, ..nic }.check().unwrap_err().to_string().contains("1500"));
}

fn within(got: f64, want: f64, percent: f64) {
    assert!((got / want - 1.0).abs() * 100.0 <= percent, "{got}, measured {want}");
}

/// From the post to the data being in the peer's memory, in microseconds: half of perftest's ping-pong.
fn write_latency(name: &str, gbps: f64, link: Span, len: u32) -> f64 {
    let nic = profile(name);
    let flags = Flags { inline: len <= nic.max_inline, ..signaled() };
    let mut rig = Rig::new(PairSpec { nic, gbps, link, ..PairSpec::default() });
    rig.fill(0, 0, 1, len as usize);
    let start = rig.pair.now;
    rig.send(0, 1, Op::Write, 0, len, flags);
    while rig.bytes(1, u64::from(len) - 1, 1) == [0] {
        assert!(rig.pair.step());
    }
    rig.pair.now.since(start).0 as f64 / 1e6
}

/// perftest, shadeform hosts (ConnectX-6) and DGX Spark (ConnectX-7).
#[test]
fn write_latency_is_as_measured() {
    for (len, want, percent) in [(2, 1.87, 3.0), (128, 1.96, 5.0), (256, 2.87, 5.0), (1024, 3.05, 10.0)] {
        within(write_latency("connectx-6-200g", 200.0, Span::ns(130), len), want, percent);
    }
    within(write_latency("connectx-7-400g", 400.0, Span::ns(25), 2), 1.47, 3.0);
}

/// One request, one doorbell: what the CPU can post.
#[test]
fn message_rate_of_single_posts_is_as_measured() {
    for (name, low, high) in [("connectx-6-200g", 2.5, 3.0), ("connectx-7-400g", 3.0, 3.6)] {
        let mut rig = Rig::new(PairSpec { nic: profile(name), ..PairSpec::default() });
        let qp = rig.pair.ends[0].qp;
        let plan = Arc::new(
            Plan::new(Arc::new([Lane { local: 0, remote: 0 }]), vec![Run::piece(0, 0, 64)]).unwrap(),
        );
        let one = Batch {
            plan: &plan,
            first: WrId(0),
            op: Op::Write,
            local: (rig.mrs[0].addr, rig.mrs[0].lkey),
            remote: (rig.mrs[1].addr, rig.mrs[1].rkey),
            window: 0..1,
            signal_every: 0,
            signal_last: true,
            last: None,
        };
        let (result, cpu) = rig.pair.timed(0, |f| f.post_send(qp, &[Item::Many(one)]));
        result.unwrap();
        let rate = 1e6 / cpu.0 as f64;
        assert!((low..high).contains(&rate), "{name}: {rate} M/s");
    }
}

/// `n` senders with a port each send `bytes` to one receiver with one port; when the last is through, in milliseconds.
fn incast(nic: NicProfile, gbps: f64, link_layer: LinkLayer, n: usize, bytes: u64) -> f64 {
    let port = |i: usize| PortSpec {
        name: format!("mlx5_{i}/1"),
        link_layer,
        bits_per_s: (gbps * 1e9) as u64,
        mtu: 4096,
        numa: None,
    };
    let nic = Arc::new(nic);
    let hosts = (0..=n).map(|i| HostSpec { ports: vec![port(i)], nic: nic.clone() }).collect();
    let mut fabrics = Fabrics::new(hosts, Topology::star(n as u32 + 1, gbps, 500_000).unwrap(), 1).unwrap();
    let mut queue: EventQueue<FabricEvent> = EventQueue::new();
    let mut ready = Vec::new();
    let port = PortId(0);
    let grid = Grid { buffers: 160, pitch: bytes / 160, pages: 1, page: bytes / 160 };
    let mut side = |h: usize| {
        let f = fabrics.host(h);
        let buf = f.alloc(Memory::Phantom, grid).unwrap();
        let mr = f.register(port, buf, 0..grid.len(), ALL).unwrap();
        let cq = f.create_cq(port, 64).unwrap();
        (mr, cq)
    };
    let sides: Vec<_> = (0..=n).map(&mut side).collect();
    let lanes = (0..160).map(|i| Lane { local: i * grid.pitch, remote: i * grid.pitch }).collect();
    let plan = Arc::new(Plan::new(lanes, vec![Run::piece(0, 0, grid.pitch as u32)]).unwrap());
    let mut qps = Vec::new();
    for h in 1..=n {
        let mut end = |h: usize| {
            let cq = sides[h].1;
            let spec = engine::fabric::QpSpec {
                send_cq: cq,
                recv_cq: cq,
                srq: None,
                max_send: 256,
                max_recv: 16,
                max_sge: 1,
                max_inline: 0,
            };
            let f = fabrics.host(h);
            let qp = f.create_qp(port, spec).unwrap();
            f.modify_qp(qp, Step::Init(ALL)).unwrap();
            (qp, f.endpoint(qp).unwrap())
        };
        let ends = [end(h), end(0)];
        for (i, host) in [(0, h), (1, 0)] {
            let rtr = Rtr { peer: ends[1 - i].1, max_dest_rd_atomic: 1, min_rnr_timer: RnrTimer(12) };
            let rts = Rts { timeout: 14, retry_cnt: 7, rnr_retry: 7, max_rd_atomic: 1 };
            fabrics.host(host).modify_qp(ends[i].0, Step::Rtr(rtr)).unwrap();
            fabrics.host(host).modify_qp(ends[i].0, Step::Rts(rts)).unwrap();
        }
        let recv = Recv { first: WrId(h as u64), count: 1, sges: &[] };
        fabrics.host(0).post_recv(ends[1].0, recv).unwrap();
        qps.push(ends[0].0);
    }
    for h in 1..=n {
        let writes = Batch {
            plan: &plan,
            first: WrId(0),
            op: Op::Write,
            local: (sides[h].0.addr, sides[h].0.lkey),
            remote: (sides[0].0.addr, sides[0].0.rkey),
            window: 0..plan.requests(),
            signal_every: 0,
            signal_last: true,
            last: Some(Op::WriteImm(h as u32)),
        };
        fabrics.begin_call(h, Time::ZERO);
        fabrics.host(h).post_send(qps[h - 1], &[Item::Many(writes)]).unwrap();
        fabrics.after_call(h, Time::ZERO, &mut queue, &mut ready);
    }
    let mut end = Time::ZERO;
    while let Some((now, event)) = queue.pop() {
        fabrics.handle(now, event, &mut queue, &mut ready);
        if ready.drain(..).any(|r| r.host == 0) {
            end = now;
        }
    }
    assert_eq!(fabrics.counters().bytes, bytes * n as u64);
    assert_eq!(fabrics.counters().rnr_naks, 0);
    end.0 as f64 / 1e9
}

#[test]
fn sixteen_handoffs_share_one_port() {
    const BYTES: u64 = 1_342_177_280;
    within(incast(profile("ideal"), 200.0, LinkLayer::Ethernet, 16, BYTES), 859.0, 0.1);
    within(incast(profile("connectx-7-400g"), 200.0, LinkLayer::Ethernet, 16, BYTES), 876.0, 1.0);
}

/// Large WRITEs of one queue pair: NVIDIA/nccl issue 2409 (ConnectX-7), perftest on HDR hosts (ConnectX-6).
#[test]
fn goodput_is_as_measured() {
    let gbps = |ms: f64, bytes: f64| bytes * 8.0 / ms / 1e6;
    let bytes = 160 * (6 << 20);
    let time = incast(profile("connectx-7-400g"), 400.0, LinkLayer::Ethernet, 1, bytes);
    within(gbps(time, bytes as f64), 392.1, 0.5);
    let time = incast(profile("connectx-6-200g"), 200.0, LinkLayer::InfiniBand, 1, bytes);
    within(gbps(time, bytes as f64), 195.6, 0.5);
}
