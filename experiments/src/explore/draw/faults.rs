//! The faults of a case: a row for each kind.

use models::Picos;
use serde_json::{Map, Value, json};
use sim::fault::FaultKind;

use super::super::Dice;
use super::us;
use crate::spec::{FaultSpec, Spec};

/// Where a fault of a case can strike.
struct Site {
    /// A prefill or decode instance, by its name.
    node: String,
    /// A port of it.
    port: u64,
}

impl Site {
    /// The instance, or now and then the registry.
    fn or_registry(&self, dice: &mut Dice) -> String {
        if dice.percent(25) { "registry".to_owned() } else { self.node.clone() }
    }
}

/// A fault as its key and what stands under it.
type Row = (&'static str, fn(&mut Dice, &Site) -> Value);

/// The kinds of faults, as coverage counts them.
pub const KINDS: [FaultKind; FaultKind::ALL.len()] = FaultKind::ALL;

/// What is drawn from; a row that stands here twice comes twice as often.
const ROWS: &[Row] = &[
    ("queue-pair-error", |dice, at| json!({"node": at.node, "index": dice.below(64)})),
    ("link-down", |dice, at| json!({"node": at.node, "port": at.port, "for": span(dice)})),
    (
        "flap",
        |dice, at| json!({"node": at.node, "port": at.port, "every": text(us(2000)), "for": text(us(1 + dice.below(1900))), "times": dice.within(2, 5)}),
    ),
    (
        "degrade",
        |dice, at| json!({"node": at.node, "port": at.port, "to": dice.pick(&[0.01, 0.1, 0.5]), "for": span(dice)}),
    ),
    (
        "loss",
        |dice, at| json!({"node": at.node, "port": at.port, "probability": dice.pick(&[0.001, 0.02, 0.3]), "for": span(dice)}),
    ),
    ("nic-reset", |dice, at| json!({"node": at.node, "port": at.port, "for": span(dice)})),
    (
        "link-remove",
        |dice, at| json!({"node": at.node, "port": at.port, "grace": text(us(dice.below(500))), "for": text(us(500 + dice.below(20_000)))}),
    ),
    (
        "post-failure",
        |dice, at| json!({"node": at.node, "request": dice.pick(&[0, 0, 1, 3]), "times": dice.within(1, 3)}),
    ),
    (
        "completion-delay",
        |dice, at| json!({"node": at.node, "by": text(dice.pick(&[us(20), us(300), us(3000)])), "for": span(dice)}),
    ),
    ("unacknowledged", |dice, at| json!({"node": at.node, "times": dice.within(1, 3)})),
    ("receives-dry", |dice, at| json!({"node": at.node, "for": span(dice)})),
    ("crash", |dice, at| {
        let node = at.or_registry(dice);
        if dice.percent(20) && node != "registry" {
            return json!({"node": node});
        }
        json!({"node": node, "for": span(dice)})
    }),
    ("pause", |dice, at| json!({"node": at.or_registry(dice), "for": span(dice)})),
    ("leave", |dice, at| {
        if dice.percent(20) { json!({"node": at.node}) } else { json!({"node": at.node, "for": span(dice)}) }
    }),
    ("control", |dice, at| channel(dice, at, "loss")),
    ("control", |dice, at| channel(dice, at, "duplicate")),
    ("control", |dice, at| channel(dice, at, "reorder")),
    ("control", |dice, at| channel(dice, at, "delay")),
    ("control", |dice, at| channel(dice, at, "truncate")),
    ("control", |dice, at| channel(dice, at, "garble")),
    ("clock", |dice, at| {
        let drift = dice.within(0, 40_000) as i64 - 20_000;
        json!({"node": at.or_registry(dice), "ahead": text(us(dice.pick(&[0, 100, 5000, 100_000]))), "drift_ppm": drift, "for": span(dice)})
    }),
    ("slow", |dice, at| {
        let (cpu, compute) = (dice.pick(&[1, 10, 100]), dice.pick(&[1, 3, 20]));
        json!({"node": at.or_registry(dice), "cpu": cpu, "compute": compute, "call": text(us(dice.pick(&[0, 5, 50]))), "for": span(dice)})
    }),
];

/// Frames of the control channel, of one node or of all.
fn channel(dice: &mut Dice, at: &Site, how: &str) -> Value {
    let mut body = json!({"for": span(dice)});
    body[how] = match how {
        "delay" => json!(text(dice.pick(&[us(50), us(1000), us(10_000)]))),
        _ => json!(dice.pick(&[0.05, 0.3, 1.0])),
    };
    if how == "duplicate" || how == "reorder" {
        body["by"] = json!(text(dice.pick(&[us(50), us(1000), us(10_000)])));
    }
    if dice.percent(60) {
        body["node"] = json!(at.node);
    }
    body
}

/// How long a fault lasts: a moment, as long as a room, or longer than a lease.
fn span(dice: &mut Dice) -> String {
    let most = dice.pick(&[us(100), us(1000), us(4000), us(20_000), us(20_000), us(200_000)]);
    text(Picos(1 + dice.below(most.0)))
}

fn text(span: Picos) -> String {
    span.to_string()
}

fn site(dice: &mut Dice, spec: &Spec) -> Site {
    let (prefill, decode) = (spec.cluster.prefill.instances, spec.cluster.decode.instances);
    let host = dice.below(u64::from(prefill + decode)) as u32;
    let (node, side) = match host.checked_sub(prefill) {
        None => (format!("prefill-{host}"), &spec.cluster.prefill),
        Some(number) => (format!("decode-{number}"), &spec.cluster.decode),
    };
    Site { node, port: dice.below(u64::from(spec.ports(side).max(1))) }
}

/// Some faults: soon after a request came, or soon after another fault, where they meet rooms that are ending, or at any time.
pub(super) fn faults(dice: &mut Dice, spec: &Spec) -> Vec<FaultSpec> {
    let arrivals: Vec<u64> = spec.workload.requests.iter().map(|request| request.at.0).collect();
    let end = arrivals.last().map_or(0, |last| last + last / 2) + us(3000).0;
    let mut at = 0;
    let mut all = Vec::new();
    for _ in 0..dice.within(2, 24) {
        let soon = dice.pick(&[us(200), us(1000), us(5000)]).0;
        at = match dice.below(100) {
            0..50 if !arrivals.is_empty() => dice.pick(&arrivals) + dice.below(soon),
            0..85 => at + dice.below(soon),
            _ => dice.below(end),
        };
        let (key, make) = dice.pick(ROWS);
        let site = site(dice, spec);
        let body = make(dice, &site);
        let mut fault = Map::new();
        fault.insert("at".to_owned(), Value::String(text(Picos(at))));
        fault.insert(key.to_owned(), body);
        if let Ok(fault) = serde_json::from_value(Value::Object(fault)) {
            all.push(fault);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_makes_a_fault_of_its_kind() {
        let spec = super::super::case(1);
        for (key, make) in ROWS {
            for seed in 0..100 {
                let mut dice = Dice::new(seed);
                let site = site(&mut dice, &spec);
                let fault = json!({"at": "1ms", *key: make(&mut dice, &site)});
                let read: Result<FaultSpec, _> = serde_json::from_value(fault.clone());
                let spec = Spec {
                    faults: read.map_or_else(|e| panic!("{fault}: {e}"), |f| vec![f]),
                    ..spec.clone()
                };
                assert_eq!(spec.problem(), None, "{fault}");
            }
        }
    }

    /// Strikes of all cases together are of all kinds.
    #[test]
    fn every_kind_is_drawn() {
        let mut struck = std::collections::BTreeSet::new();
        for seed in 0..400 {
            let spec = super::super::case(seed);
            struck
                .extend(crate::build::faults::strikes(&spec, seed).iter().map(|strike| strike.fault.kind()));
        }
        let missing: Vec<_> = KINDS.into_iter().filter(|kind| !struck.contains(kind)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
