//! Faults of every kind at random times on a small cluster: requests end once, nothing is lost, corrupted or left.
//!
//! `KVRAIL_SEEDS=FROM..TO` runs other seeds than the default.

use engine::id::{NodeId, PortId};
use engine::registry::REGISTRY;
use engine::time::Span;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sim::fault::{ControlFault, Disturbance, Fault, Ppm};
use sim::kit::Kit;
use std::ops::Range;

fn pick<T: Copy>(rng: &mut ChaCha8Rng, of: &[T]) -> T {
    of[rng.random_range(0..of.len())]
}

fn fault(rng: &mut ChaCha8Rng) -> Fault {
    let node = NodeId(rng.random_range(2..6));
    let (host, port) = (node.index(), PortId(0));
    match rng.random_range(0..22) {
        0 => Fault::QueuePairError { host, index: rng.random_range(0..8) },
        1 => Fault::LinkDown { host, port },
        2 => Fault::Degrade { host, port, to: Ppm::of(0.1) },
        3 | 4 => Fault::Loss { host, port, probability: Ppm::of(pick(rng, &[0.01, 0.1, 1.0])) },
        5 => Fault::NicReset { host, port },
        6 => Fault::PostFailure { host, request: rng.random_range(0..4), times: rng.random_range(1..4) },
        7 => Fault::CompletionDelay { host, by: Span::ms(rng.random_range(1..800)) },
        8 => Fault::Unacknowledged { host, times: rng.random_range(1..3) },
        9 => Fault::ReceivesDry { host },
        10 | 11 => Fault::Crash { node },
        12 => Fault::Pause { node: NodeId(rng.random_range(0..6)) },
        13 => Fault::Leave { node },
        14 => Fault::Crash { node: REGISTRY },
        15 => Fault::Clock {
            node: NodeId(rng.random_range(0..6)),
            ahead: Span::ms(rng.random_range(0..3000)),
            drift_ppm: rng.random_range(-30_000..=30_000),
        },
        16 => Fault::Slow { node, cpu: 5000, call: Span::us(100), compute: 4000 },
        17 => Fault::LinkDrain { host, port },
        _ => {
            let by = Span::ms(rng.random_range(0..60));
            let how = [
                Disturbance::Lose,
                Disturbance::Duplicate(by),
                Disturbance::Reorder(by),
                Disturbance::Delay(by),
                Disturbance::Truncate,
                Disturbance::Garble,
            ];
            let who = [None, Some(REGISTRY), Some(node)];
            Fault::Control(ControlFault {
                from: pick(rng, &who),
                to: pick(rng, &who),
                probability: Ppm::of(pick(rng, &[0.05, 0.3, 1.0])),
                how: pick(rng, &how),
            })
        }
    }
}

/// What is wrong after a seed, and what it did.
fn play(seed: u64) -> (Vec<String>, String) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let tp = pick(&mut rng, &[(1, 1), (1, 2), (2, 1), (2, 4)]);
    let mut build = Kit::cluster(2, 2)
        .network(pick(&mut rng, &[0.02, 0.2]), Span::us(1))
        .seed(seed)
        .prefill(|i| i.batch(64).tp(tp.0))
        .decode(|i| i.tp(tp.1))
        .transfer(|t| t.rails = 1 + (seed % 2) as u16);
    if rng.random_bool(0.4) {
        build = build.pull();
    }
    let mut t = build.build();
    let mut story = Vec::new();
    for _ in 0..rng.random_range(1..6) {
        let (at, fault) = (Span::ms(rng.random_range(0..300)), fault(&mut rng));
        let lasts = Span::ms(pick(&mut rng, &[1, 5, 30, 200, 1500, 8000]));
        let from = t.now() + at;
        t.world_mut().fault_for(from, fault, lasts);
        story.push((at, fault, lasts));
    }
    for _ in 0..rng.random_range(3..9) {
        t.run_for(Span::ms(rng.random_range(0..60)));
        t.request(rng.random_range(1..200), rng.random_range(1..30));
    }
    let ended = t.run();
    let mut wrong = t.violations();
    if !ended {
        wrong.push("it did not come to rest".to_owned());
    }
    if wrong.is_empty() {
        wrong = t.shut_down();
    }
    (wrong, format!("{tp:?} {story:?}"))
}

fn seeds() -> Range<u64> {
    let given = std::env::var("KVRAIL_SEEDS").ok();
    let range = given.as_deref().and_then(|text| text.split_once(".."));
    range.and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?)).unwrap_or(0..400)
}

#[test]
fn whatever_fails_the_laws_hold() {
    let mut found = Vec::new();
    for seed in seeds() {
        let (wrong, story) = play(seed);
        if !wrong.is_empty() {
            found.push(format!("seed {seed}: {story}\n  {}", wrong.join("\n  ")));
        }
    }
    assert!(found.is_empty(), "{} seeds:\n{}", found.len(), found[..found.len().min(5)].join("\n"));
}
