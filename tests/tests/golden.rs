//! Digests of small fixed scenarios. A change here means that something a node sees or says has changed, or when. Beside each digest stand the
//! laws that say why the run is right: a digest alone could freeze a mistake.

use engine::policy::{Granularity, RailPolicy};
use engine::time::Span;
use sim::kit::{Build, Kit};

fn play(build: Build) -> (u64, u64) {
    let mut t = build.build();
    let requests = [(300, 20), (64, 1), (1, 40), (129, 7)].map(|(prompt, output)| {
        t.run_for(Span::us(150));
        t.request(prompt, output)
    });
    assert!(t.run());
    for request in requests {
        t.assert_finished(request);
    }
    assert_eq!(t.fault_free_violations(), Vec::<String>::new());
    (t.digest(), t.counted().bytes)
}

#[test]
fn tp2_to_tp4() {
    let build = || Kit::pair().model("tiny-gqa").prefill(|i| i.tp(2).page(16)).decode(|i| i.tp(4).page(64));
    let (digest, bytes) = play(build());
    // 494 tokens of 4 layers, K and V, 8 heads of 16 at two bytes; for each room an aux row and a seal on four ranks.
    assert_eq!(bytes, 494 * 4 * 2 * 8 * 16 * 2 + 4 * 4 * (64 + 32));
    assert_eq!(play(build()).0, digest);
    assert_eq!(format!("{digest:016x}"), "f410ccb6bf48981d");
}

#[test]
fn mla_layer_wise_on_two_rails() {
    let build = || {
        Kit::pair().model("tiny-mla").prefill(|i| i.tp(2).pp(2).batch(64)).decode(|i| i.tp(4).dp(2)).transfer(
            |t| {
                t.rails = 2;
                t.rail_policy = RailPolicy::Striped;
                t.granularity = Granularity::LayerWise { layers: 1 };
            },
        )
    };
    let (digest, bytes) = play(build());
    // Attention TP is 2 on decode: two copies of 494 tokens of 4 layers of 144 at two bytes; seals of both stages.
    assert_eq!(bytes, 2 * (494 * 4 * 144 * 2 + 4 * (64 + 2 * 32)));
    assert_eq!(play(build()).0, digest);
    assert_eq!(format!("{digest:016x}"), "f4b4d1ff546a70c2");
}

#[test]
fn pull_tp4_to_tp2_in_chunks() {
    let build = || {
        Kit::pair()
            .model("tiny-gqa")
            .pull()
            .prefill(|i| i.tp(4).page(16).batch(64))
            .decode(|i| i.tp(2).page(64))
    };
    let (digest, bytes) = play(build());
    // The same KV, and an aux row for each of two ranks; nobody seals.
    assert_eq!(bytes, 494 * 4 * 2 * 8 * 16 * 2 + 4 * 2 * 64);
    assert_eq!(play(build()).0, digest);
    assert_eq!(format!("{digest:016x}"), "b584c74821e2c760");
}
