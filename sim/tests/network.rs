//! Laws of the fluid network, against a solver that knows nothing of how it works: at every event it
//! fills all flows from nothing, one by one, and it adds up bytes from those rates alone.

use proptest::prelude::*;
use sim::net::{Done, FlowId, FlowSpec, Fluid, LeafSpine, LinkId, Network, Topology};

const PS: f64 = 1e12;

/// One thing that a caller may do.
#[derive(Clone, Debug)]
enum Op {
    Start { src: u32, dst: u32, bytes: f64, weight: f64, cap: f64, label: u32 },
    StartLater { after: u64, src: u32, dst: u32, bytes: f64 },
    Cancel(usize),
    Reshape { flow: usize, weight: f64, cap: f64 },
    Capacity { link: usize, share: f64 },
    Wait(u64),
    Next,
}

/// Progressive filling: raise all flows together, stop those whose link is full or whose cap is
/// reached, go on with the rest.
fn fill(links: &[f64], flows: &[(Vec<usize>, f64, f64)]) -> Vec<f64> {
    let mut rate: Vec<Option<f64>> = vec![None; flows.len()];
    while rate.iter().any(Option::is_none) {
        let mut level = f64::INFINITY;
        let mut by_link = vec![f64::INFINITY; links.len()];
        for (l, &capacity) in links.iter().enumerate() {
            let (mut used, mut weight) = (0.0, 0.0);
            for ((path, w, _), rate) in flows.iter().zip(&rate) {
                if path.contains(&l) {
                    match rate {
                        Some(rate) => used += rate,
                        None => weight += w,
                    }
                }
            }
            if weight > 0.0 {
                by_link[l] = f64::max(capacity - used, 0.0) / weight;
                level = level.min(by_link[l]);
            }
        }
        for ((_, w, cap), rate) in flows.iter().zip(&rate) {
            if rate.is_none() {
                level = level.min(cap / w);
            }
        }
        let stop = level * (1.0 + 1e-13);
        for ((path, w, cap), rate) in flows.iter().zip(&mut rate) {
            if rate.is_none() && (cap / w <= stop || path.iter().any(|&l| by_link[l] <= stop)) {
                *rate = Some(level * w);
            }
        }
    }
    rate.into_iter().flatten().collect()
}

struct Live {
    id: FlowId,
    tag: u32,
    spec: FlowSpec,
    /// When it takes part, picoseconds.
    from: u64,
    path: Vec<usize>,
    carried: f64,
    rate: f64,
}

/// The network and the naive account of it.
struct Pair {
    net: Fluid,
    now: u64,
    links: Vec<f64>,
    live: Vec<Live>,
    ended: Vec<Done>,
}

impl Pair {
    fn new(topology: Topology) -> Self {
        let links = topology.links().iter().map(|link| link.capacity).collect();
        Pair { net: Fluid::new(topology), now: 0, links, live: Vec::new(), ended: Vec::new() }
    }

    fn start(&mut self, from: u64, spec: FlowSpec) {
        let tag = self.net.flows() as u32 + self.ended.len() as u32 * 1000;
        let spec = spec.tag(tag);
        let id = self.net.start_at(self.now, from, &spec).expect("a valid flow");
        let path = self.net.topology().path(spec.src, spec.dst, spec.label).expect("a path");
        let path = path.links().iter().map(|link| link.0 as usize).collect();
        self.live.push(Live { id, tag, spec, from, path, carried: 0.0, rate: 0.0 });
    }

    /// Compares all rates, and checks the three laws that say what max-min fair means.
    fn compare(&mut self) {
        let now = self.now;
        let taking: Vec<usize> = (0..self.live.len()).filter(|&i| self.live[i].from <= now).collect();
        let shape = |&i: &usize| {
            let live = &self.live[i];
            (live.path.clone(), live.spec.weight, live.spec.cap)
        };
        let flows: Vec<_> = taking.iter().map(shape).collect();
        let want = fill(&self.links, &flows);
        let mut load = vec![0.0; self.links.len()];
        let mut highest = vec![0.0f64; self.links.len()];
        for (&i, want) in taking.iter().zip(want) {
            let live = &mut self.live[i];
            live.rate = self.net.rate(now, live.id).expect("under way");
            assert!(
                (live.rate - want).abs() <= 1e-9 * want.max(1.0),
                "rate of {:?} at {now}: {} but progressive filling gives {want}",
                live.spec,
                live.rate
            );
            for &l in &live.path {
                load[l] += live.rate;
                highest[l] = highest[l].max(live.rate / live.spec.weight);
            }
        }
        for (l, &capacity) in self.links.iter().enumerate() {
            assert!(load[l] <= capacity * (1.0 + 1e-9) + 1e-6, "link {l}: {} over {capacity}", load[l]);
        }
        for &i in &taking {
            let live = &self.live[i];
            let level = live.rate / live.spec.weight * (1.0 + 1e-9) + 1e-9;
            let full = |&l: &usize| load[l] >= self.links[l] * (1.0 - 1e-9) && level >= highest[l];
            let capped = live.rate >= live.spec.cap * (1.0 - 1e-9);
            assert!(capped || live.path.iter().any(full), "{:?} has no bottleneck", live.spec);
        }
    }

    /// Moves both to `to`, event by event.
    fn advance(&mut self, to: u64) {
        loop {
            self.compare();
            let next = self.net.next().filter(|&next| next <= to);
            let step = next.unwrap_or(to);
            for live in self.live.iter_mut().filter(|live| live.from <= self.now) {
                live.carried += live.rate * ((step - self.now) as f64 / PS);
            }
            self.now = step;
            let mut done = Vec::new();
            self.net.advance(step, &mut done);
            for end in &done {
                let at = self.live.iter().position(|live| live.id == end.flow).expect("known");
                let live = self.live.remove(at);
                assert_eq!((end.at, end.tag), (step, live.tag));
                let over = live.carried - live.spec.bytes;
                let slack = 1e-9 * live.spec.bytes + 1e-3;
                assert!(over >= -slack, "{:?} ended {over} bytes early", live.spec);
                assert!(over <= slack + live.rate / PS * 1.01, "{:?} ended {over} bytes late", live.spec);
            }
            self.ended.extend(done);
            for live in &mut self.live {
                let over = live.carried - live.spec.bytes;
                assert!(over <= 1e-9 * live.spec.bytes + 1e-3, "{:?} did not end: {over}", live.spec);
                let served = self.net.served(step, live.id).expect("under way");
                assert!((served - live.carried).abs() <= 1e-9 * live.spec.bytes + 1e-2);
            }
            if next.is_none() {
                break;
            }
        }
        self.compare();
    }

    fn apply(&mut self, op: &Op) {
        let ports = self.net.topology().ports();
        match *op {
            Op::Start { src, dst, bytes, weight, cap, label } => {
                let spec = FlowSpec { weight, cap, label, ..FlowSpec::new(src % ports, dst % ports, bytes) };
                self.start(self.now, spec);
                self.drain();
            }
            Op::StartLater { after, src, dst, bytes } => {
                self.start(self.now + after, FlowSpec::new(src % ports, dst % ports, bytes));
            }
            Op::Cancel(flow) if !self.live.is_empty() => {
                let live = self.live.remove(flow % self.live.len());
                let served = self.net.cancel(self.now, live.id).expect("under way");
                assert!((served - live.carried).abs() <= 1e-9 * live.spec.bytes + 1e-2);
                assert!(self.net.served(self.now, live.id).is_err());
            }
            Op::Reshape { flow, weight, cap } if !self.live.is_empty() => {
                let at = flow % self.live.len();
                let live = &mut self.live[at];
                live.spec.weight = weight;
                live.spec.cap = cap;
                self.net.reshape(self.now, live.id, weight, cap).expect("valid");
            }
            Op::Capacity { link, share } => {
                let link = link % self.links.len();
                let full = self.net.topology().links()[link].capacity;
                self.links[link] = full * share;
                self.net.set_capacity(self.now, LinkId(link as u32), full * share).expect("valid");
            }
            Op::Wait(ps) => self.advance(self.now + ps),
            Op::Next => {
                if let Some(next) = self.net.next() {
                    self.advance(next);
                }
            }
            Op::Cancel(_) | Op::Reshape { .. } => {}
        }
    }

    /// Flows of zero bytes end where they start.
    fn drain(&mut self) {
        let mut done = Vec::new();
        self.net.advance(self.now, &mut done);
        for end in &done {
            self.live.retain(|live| live.id != end.flow);
        }
        self.ended.extend(done);
    }
}

fn topology() -> impl Strategy<Value = Topology> {
    let star = (2u32..9).prop_map(|ports| Topology::star(ports, 400.0, 1_000_000).expect("star"));
    let direct = (1u32..3).prop_map(|cables| Topology::direct(cables, 200.0, 500_000).expect("direct"));
    let leaf_spine = (1u32..4, 1u32..4, 1u32..4, 1.0f64..4.0).prop_map(|(leaves, spines, per, over)| {
        let spec = LeafSpine { leaves, spines, port_gbps: 100.0, oversubscription: over, latency: 600_000 };
        Topology::leaf_spine(&spec, per).expect("leaf-spine")
    });
    let host_side = (2u32..7, 1.0f64..3.0).prop_map(|(ports, gen5)| {
        // Two ports share the PCIe of a host; what a port sends to itself has a link of its own.
        let mut net = Topology::star(ports, 400.0, 1_000_000).expect("star");
        for port in 0..ports {
            if port % 2 == 0 {
                let read = net.add_link(25e9 * gen5, 300_000).expect("link");
                let write = net.add_link(24e9 * gen5, 300_000).expect("link");
                for port in port..(port + 2).min(ports) {
                    net.set_host(port, port / 2).expect("port");
                    net.add_egress(port, read).expect("port");
                    net.add_ingress(port, write).expect("port");
                }
            }
            let own = net.add_link(60e9, 0).expect("link");
            net.add_loopback(port, own).expect("port");
        }
        net
    });
    prop_oneof![star, direct, leaf_spine, host_side]
}

fn weight() -> impl Strategy<Value = f64> {
    prop_oneof![4 => Just(1.0), 1 => Just(2.0), 2 => 0.1f64..8.0]
}

fn cap() -> impl Strategy<Value = f64> {
    prop_oneof![4 => Just(f64::INFINITY), 2 => Just(12e9), 2 => 1e8f64..60e9, 1 => Just(0.0)]
}

fn bytes() -> impl Strategy<Value = f64> {
    prop_oneof![1 => Just(0.0), 3 => Just(1e6), 3 => Just(64e6), 3 => 1.0f64..1e8]
}

fn op() -> impl Strategy<Value = Op> {
    let start = (0u32..64, 0u32..64, bytes(), weight(), cap(), 0u32..4);
    let later = (0u64..3_000_000_000, 0u32..64, 0u32..64, bytes());
    prop_oneof![
        10 => start.prop_map(|(src, dst, bytes, weight, cap, label)| Op::Start { src, dst, bytes, weight, cap, label }),
        2 => later.prop_map(|(after, src, dst, bytes)| Op::StartLater { after, src, dst, bytes }),
        2 => any::<usize>().prop_map(Op::Cancel),
        2 => (any::<usize>(), weight(), cap()).prop_map(|(flow, weight, cap)| Op::Reshape { flow, weight, cap }),
        2 => (any::<usize>(), prop_oneof![Just(0.0), Just(1.0), 0.01f64..1.0])
            .prop_map(|(link, share)| Op::Capacity { link, share }),
        4 => prop_oneof![Just(0), 1u64..5_000_000_000].prop_map(Op::Wait),
        3 => Just(Op::Next),
    ]
}

/// Ports of a flow must be joined, or be one port.
fn joined(topology: &Topology, op: &Op) -> bool {
    let ports = topology.ports();
    match *op {
        Op::Start { src, dst, .. } | Op::StartLater { src, dst, .. } => {
            let path = topology.path(src % ports, dst % ports, 0);
            path.is_some_and(|path| !path.links().is_empty())
        }
        _ => true,
    }
}

fn play(topology: &Topology, ops: &[Op]) -> Pair {
    let mut pair = Pair::new(topology.clone());
    for op in ops.iter().filter(|op| joined(topology, op)) {
        pair.apply(op);
    }
    pair
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn rates_and_bytes_are_those_of_progressive_filling(
        topology in topology(),
        ops in prop::collection::vec(op(), 1..70),
    ) {
        let mut pair = play(&topology, &ops);
        // Everything that can end does, once links are up and caps are lifted.
        for link in 0..pair.links.len() {
            pair.apply(&Op::Capacity { link, share: 1.0 });
        }
        for flow in 0..pair.live.len() {
            pair.apply(&Op::Reshape { flow, weight: 1.0, cap: f64::INFINITY });
        }
        while let Some(next) = pair.net.next() {
            pair.advance(next);
        }
        prop_assert!(pair.live.is_empty());
        prop_assert_eq!(pair.net.flows(), 0);
    }

    #[test]
    fn one_history_has_one_result(topology in topology(), ops in prop::collection::vec(op(), 1..60)) {
        let (a, b) = (play(&topology, &ops), play(&topology, &ops));
        prop_assert_eq!(a.ended, b.ended);
    }

    #[test]
    fn order_of_starts_at_one_instant_does_not_matter(
        flows in prop::collection::vec((0u32..6, 1u32..6, 1u32..200, weight(), cap()), 1..40)
            .prop_flat_map(|flows| (Just(flows.clone()), Just(flows).prop_shuffle())),
    ) {
        let run = |flows: &[(u32, u32, u32, f64, f64)]| {
            let mut net = Fluid::new(Topology::star(6, 400.0, 0).expect("star"));
            for &(src, hop, mb, weight, cap) in flows {
                let spec = FlowSpec::new(src, (src + hop) % 6, f64::from(mb) * 1e6);
                // The tag names the flow's kind: flows of one kind are the same.
                let spec = spec.weight(weight).cap(cap).tag(mb << 8 | src << 4 | hop);
                net.start(0, &spec).expect("valid");
            }
            let mut done = Vec::new();
            while let Some(next) = net.next() {
                net.advance(next, &mut done);
            }
            let mut ends: Vec<(u32, u64)> = done.iter().map(|end| (end.tag, end.at)).collect();
            ends.sort_unstable();
            ends
        };
        let (a, b) = (run(&flows.0), run(&flows.1));
        prop_assert_eq!(a.len(), b.len());
        for ((tag, a), (other, b)) in a.into_iter().zip(b) {
            prop_assert_eq!(tag, other);
            prop_assert!(a.abs_diff(b) <= 50, "{} and {}", a, b);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// Enough links at once that the solver keeps them in a heap.
    #[test]
    fn bursts_over_many_links_are_fair(
        flows in prop::collection::vec((0u32..40, 1u32..40, 1u32..9, weight(), cap()), 100..160),
    ) {
        let mut pair = Pair::new(Topology::star(40, 400.0, 1_000_000).expect("star"));
        for (src, hop, mb, weight, cap) in flows {
            let spec = FlowSpec::new(src, (src + hop) % 40, f64::from(mb) * 1e6).weight(weight).cap(cap);
            pair.start(0, spec);
        }
        for _ in 0..40 {
            pair.apply(&Op::Next);
        }
    }
}

#[test]
fn a_flow_that_never_ends_does_not_blur_the_short_ones_beside_it() {
    let mut net = Fluid::new(Topology::star(2, 400.0, 0).expect("star"));
    net.start(0, &FlowSpec::new(0, 1, 1e18)).expect("valid");
    let mut done = Vec::new();
    for minute in 1..200u64 {
        let now = minute * 60_000_000_000_000;
        net.start(now, &FlowSpec::new(0, 1, 1e6)).expect("valid");
        let next = net.next().expect("the short flow ends");
        // Half of 50 GB/s.
        assert_eq!(next - now, 40_000_000);
        net.advance(next, &mut done);
    }
    assert_eq!(done.len(), 199);
}

#[test]
fn cancelled_flows_of_a_class_leave_the_others_alone() {
    let mut net = Fluid::new(Topology::star(2, 400.0, 0).expect("star"));
    let flows: Vec<FlowId> = (0..1000u32)
        .map(|i| net.start(0, &FlowSpec::new(0, 1, f64::from(1000 + i)).tag(i)).expect("valid"))
        .collect();
    let now = 10_000_000;
    for (i, &flow) in flows.iter().enumerate() {
        if i % 10 != 3 {
            // 10 us at 50 MB/s each.
            assert!((net.cancel(now, flow).expect("under way") - 500.0).abs() < 1e-6);
        }
    }
    let mut done = Vec::new();
    while let Some(next) = net.next() {
        net.advance(next, &mut done);
    }
    let tags: Vec<u32> = done.iter().map(|end| end.tag).collect();
    assert_eq!(tags, (0..100).map(|i| 10 * i + 3).collect::<Vec<_>>());
    // The first has 503 bytes left and a hundredth of the link.
    assert_eq!(done[0].at - now, 1_006_000);
}

#[test]
fn refusals_name_the_value_and_what_would_be_right() {
    let mut net = Fluid::new(Topology::direct(2, 400.0, 0).expect("direct"));
    let ok = FlowSpec::new(0, 1, 1.0);
    let mut error = |spec: FlowSpec| net.start(0, &spec).expect_err("refused").to_string();
    assert_eq!(error(FlowSpec { dst: 4, ..ok }), "port 4 does not exist: the topology has ports 0 to 3");
    assert_eq!(
        error(FlowSpec { dst: 2, ..ok }),
        "no path from port 0 to port 2: connect them, or use ports that share a switch"
    );
    assert_eq!(
        error(FlowSpec { bytes: f64::NAN, ..ok }),
        "a flow of NaN bytes: use a finite number that is not negative"
    );
    assert_eq!(error(ok.weight(0.0)), "flow weight 0: use a finite number above zero");
    assert_eq!(
        error(ok.cap(-1.0)),
        "flow cap -1 bytes/s: use a number that is not negative, or infinity for none"
    );
    let link = net.set_capacity(0, LinkId(4), 1.0).expect_err("refused").to_string();
    assert_eq!(link, "link 4 does not exist: the topology has links 0 to 3");
    assert!(net.set_capacity(0, LinkId(0), f64::INFINITY).is_err());
    let id = net.start(0, &ok).expect("valid");
    net.cancel(0, id).expect("under way");
    assert!(net.cancel(0, id).is_err() && net.next().is_none());
}

#[test]
fn what_the_caller_did_not_collect_is_kept() {
    let mut net = Fluid::new(Topology::star(3, 400.0, 0).expect("star"));
    let first = net.start(0, &FlowSpec::new(0, 1, 50e3)).expect("valid");
    net.start_at(0, 500_000, &FlowSpec::new(0, 2, 25e3)).expect("valid");
    // Half a microsecond alone, then both have half the link for the same 25 kB.
    assert_eq!(net.next(), Some(500_000));
    let late = net.start(5_000_000, &FlowSpec::new(1, 0, 50e3)).expect("valid");
    assert_eq!(net.next(), Some(5_000_000));
    assert!(net.served(5_000_000, first).is_err());
    let mut done = Vec::new();
    net.advance(5_000_000, &mut done);
    assert_eq!(done.iter().map(|end| end.at).collect::<Vec<_>>(), [1_500_000, 1_500_000]);
    assert_eq!(net.next(), Some(6_000_000));
    assert_eq!(net.served(5_500_000, late), Ok(25e3));
    assert_eq!(net.rate(5_500_000, late), Ok(50e9));
}
