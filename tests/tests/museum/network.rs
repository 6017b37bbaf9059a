//! What a simulator says of bandwidth: cases 25 and 26.

use engine::time::Span;
use experiments::spec::Spec;
use kvrail_tests::stories::one_request;
use models::units::Bandwidth;
use sim::kit::Kit;
use sim::net::{Done, FlowSpec, Fluid, Network, Topology};

const FLOWS: u32 = 8;
/// Bytes of each, and of the link in a second: alone one takes a second.
const BYTES: f64 = 1.25e9;

fn star() -> Topology {
    Topology::star(FLOWS + 1, 10.0, 0).unwrap()
}

/// Ends of eight equal transfers to one port, in seconds, by the production law.
fn shared() -> Vec<f64> {
    let mut network = Fluid::new(star());
    for src in 0..FLOWS {
        network.start(0, &FlowSpec::new(src, FLOWS, BYTES)).unwrap();
    }
    let mut done: Vec<Done> = Vec::new();
    while let Some(at) = network.next() {
        network.advance(at, &mut done);
    }
    done.iter().map(|done| done.at as f64 / 1e12).collect()
}

/// The peer's law: a transfer gets the link's rate divided by the number of transfers there are when it starts, and keeps that.
fn divided_at_start() -> Vec<f64> {
    (1..=FLOWS).map(|there| f64::from(there) * BYTES / 1.25e9).collect()
}

/// The bytes that a link carries by each end, in link-seconds: at most the time.
fn overcommitted(ends: &[f64]) -> bool {
    let carried = |until: f64| ends.iter().map(|end| (until / end).min(1.0) * BYTES / 1.25e9).sum::<f64>();
    ends.iter().any(|end| carried(*end) > end * 1.000_001)
}

fn mean(ends: &[f64]) -> f64 {
    ends.iter().sum::<f64>() / ends.len() as f64
}

/// A simulator divided a link's bandwidth by the number of transfers when one started, and never again. Eight equal ones looked as if they
/// took 4.5 times as long as one alone in the mean, where it is 8: 44 % too short, and any policy that starts many at once looks good. Law: a link
/// carries no more than its bandwidth, and all of it while there is something to carry.
#[test]
fn case_25_bandwidth_is_divided_at_the_start_only() {
    let peer = divided_at_start();
    assert!(overcommitted(&peer), "the law finds the mistake");
    assert!((mean(&peer) / 8.0 - 0.5625).abs() < 1e-9, "44 % too short");
    let ours = shared();
    assert!(!overcommitted(&ours), "{ours:?}");
    assert!((mean(&ours) - 8.0).abs() < 1e-6, "{ours:?}");
    // The same through the whole simulator: four prefill instances to one decode take four times as long as one.
    let takes = |prefills: u32| {
        let build = Kit::cluster(prefills, 1).network(0.1, Span::us(1)).compute(Span::ns(1), Span::us(100));
        let mut t = build.build();
        let all: Vec<_> = (0..prefills).map(|_| t.request(400, 2)).collect();
        assert!(t.run());
        let end = |id| t.steps(id).find(|s| s.record.step == engine::node::Step::Success).unwrap().at;
        let last = all.iter().map(|id| end(*id)).max().unwrap();
        let from = t.steps(all[0]).next().unwrap().at;
        last.since(from).0 as f64
    };
    let ratio = takes(4) / takes(1);
    assert!((3.9..4.1).contains(&ratio), "{ratio}");
}

/// A parameter was written in Gbit/s and read in Gbyte/s: transfers took an eighth of their time, and a link looked idle that was not. Laws: a
/// number without a unit is refused; a unit means what it says; no transfer is faster than its bytes over its link.
#[test]
fn case_26_a_bandwidth_in_the_wrong_unit() {
    let speed = |gbps: f64| {
        let t = one_request(Kit::pair().network(gbps, Span::us(1)).compute(Span::ns(1), Span::us(100)));
        let id = engine::id::RequestId(0);
        let at = |step| t.steps(id).find(|s| s.record.step == step).unwrap().at;
        let span = at(engine::node::Step::Success).since(at(engine::node::Step::TransferStart));
        t.counted().bytes as f64 * 8.0 / (span.0 as f64 / 1e12)
    };
    // The law, at the speed that was meant; and at eight times as much, which the mistake makes of it.
    let meant = 0.1;
    let faster_than_link = |gbps: f64| speed(gbps) > meant * 1e9;
    assert!(!faster_than_link(meant));
    assert!(faster_than_link(meant * 8.0));

    let read = |text: &str| text.parse::<Bandwidth>();
    assert!(read("100").unwrap_err().to_string().contains("no unit"));
    assert_eq!(read("100Gb/s").unwrap(), read("12.5GB/s").unwrap());
    assert_ne!(read("100Gb/s").unwrap(), read("100GB/s").unwrap());
    // In an experiment: refused with the key, and bits are not bytes.
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments/granularity.yaml");
    let link = |speed: &str| Spec::load(&path, &[format!("cluster.link={speed}")]);
    let error = link("200").unwrap_err().to_string();
    assert!(error.contains("cluster.link") && error.contains("no unit") && error.contains("Gb/s"), "{error}");
    assert_eq!(link("200Gb/s").unwrap().cluster.link, link("25GB/s").unwrap().cluster.link);
}
