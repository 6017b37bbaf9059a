//! The faults of a case: a row for each kind.

use models::Picos;
use serde_json::{Value, json};
use sim::fault::FaultKind;

use super::super::Dice;
use super::us;
use crate::spec::{Direction, FaultSpec, Spec};

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
    ("crash", crash),
    ("crash", crash),
    ("pause", |dice, at| json!({"node": at.or_registry(dice), "for": span(dice)})),
    ("leave", leave),
    ("leave", leave),
    ("control", |dice, at| channel(dice, at, "loss")),
    ("control", |dice, at| channel(dice, at, "duplicate")),
    ("control", |dice, at| channel(dice, at, "reorder")),
    ("control", |dice, at| channel(dice, at, "delay")),
    ("control", |dice, at| channel(dice, at, "truncate")),
    ("control", |dice, at| channel(dice, at, "garble")),
    ("clock", |dice, at| {
        let drift = dice.within(0, 40_000) as i64 - 20_000;
        let node = at.or_registry(dice);
        // Leases count on the registry's clock: it may be fast or slow, but not leap.
        let ahead = if node == "registry" { 0 } else { dice.pick(&[0, 100, 5000, 100_000]) };
        json!({"node": node, "ahead": text(us(ahead)), "drift_ppm": drift, "for": span(dice)})
    }),
    ("slow", |dice, at| {
        let (cpu, compute) = (dice.pick(&[1, 10, 100]), dice.pick(&[1, 3, 20]));
        json!({"node": at.or_registry(dice), "cpu": cpu, "compute": compute, "call": text(us(dice.pick(&[0, 5, 50]))), "for": span(dice)})
    }),
];

fn crash(dice: &mut Dice, at: &Site) -> Value {
    let node = at.or_registry(dice);
    if dice.percent(20) && node != "registry" {
        return json!({"node": node});
    }
    json!({"node": node, "for": span(dice)})
}

fn leave(dice: &mut Dice, at: &Site) -> Value {
    if dice.percent(20) { json!({"node": at.node}) } else { json!({"node": at.node, "for": span(dice)}) }
}

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

/// An instance of one side.
fn site_of(dice: &mut Dice, spec: &Spec, decode: bool) -> Site {
    let (name, side) =
        if decode { ("decode", &spec.cluster.decode) } else { ("prefill", &spec.cluster.prefill) };
    let node = format!("{name}-{}", dice.below(u64::from(side.instances.max(1))));
    Site { node, port: dice.below(u64::from(spec.ports(side).max(1))) }
}

fn site(dice: &mut Dice, spec: &Spec) -> Site {
    let decode = dice.percent(50);
    site_of(dice, spec, decode)
}

/// States that faults can wait for; those that rooms pass through fast, and few rooms at all, come more often.
const STATES: &[&str] = &[
    "bootstrapping",
    "waiting-for-input",
    "waiting-for-input",
    "transferring",
    "transferring",
    "transferring",
    "success",
    "success",
    "success",
    "success",
    "failed",
    "failed",
    "failed",
    "failed",
    "failed",
    "failed",
    "failed",
];

/// A state to wait for, and an instance whose rooms stay in it for a while.
fn moment(dice: &mut Dice, spec: &Spec) -> (&'static str, Site) {
    let push = spec.policy.direction == Direction::Push;
    match dice.pick(STATES) {
        // Only the target of a push keeps a room that has succeeded, until all is known to have come.
        "success" if push => ("success", site_of(dice, spec, true)),
        "success" => ("failed", site_of(dice, spec, true)),
        // Initiators are done with a room that failed as soon as their requests are flushed.
        "failed" => {
            let initiator = dice.percent(45);
            ("failed", site_of(dice, spec, push != initiator))
        }
        state => (state, site(dice, spec)),
    }
}

/// Where and when some faults strike together.
struct Volley {
    site: Site,
    at: u64,
    /// The room that they wait for.
    when: Option<Value>,
}

impl Volley {
    /// Soon after a request came, or soon after another volley, where it meets rooms that are ending, or at any time; or, from any time on,
    /// when a room is in some state, mostly one of the instance that is struck.
    fn draw(dice: &mut Dice, spec: &Spec, before: u64) -> Self {
        let arrivals: Vec<u64> = spec.workload.requests.iter().map(|request| request.at.0).collect();
        let last = arrivals.last().copied().unwrap_or(0);
        if dice.percent(70) {
            let (state, at) = moment(dice, spec);
            let when = json!({"node": at.node, "room": state});
            let site = if dice.percent(85) { at } else { site(dice, spec) };
            return Volley { site, at: dice.below(last + us(1000).0), when: Some(when) };
        }
        let site = site(dice, spec);
        let soon = dice.pick(&[us(200), us(1000), us(5000)]).0;
        let at = match dice.below(100) {
            0..50 if !arrivals.is_empty() => dice.pick(&arrivals) + dice.below(soon),
            0..85 => before + dice.below(soon),
            _ => dice.below(last + last / 2 + us(3000).0),
        };
        Volley { site, at, when: None }
    }

    fn fault(&self, dice: &mut Dice, rows: &[Row]) -> Value {
        let (key, make) = dice.pick(rows);
        let mut fault = json!({"at": text(Picos(self.at)), key: make(dice, &self.site)});
        if let Some(when) = &self.when {
            fault["when"] = when.clone();
            if dice.percent(30) {
                fault["when"]["after"] = json!(text(Picos(dice.below(us(100).0))));
            }
        } else if dice.percent(50) {
            fault["at"] = json!(text(Picos(self.at + dice.below(us(1000).0))));
        }
        fault
    }
}

/// In a storm: a short one, so that rooms go on to be opened, and fail, for the next one to meet.
fn squall(dice: &mut Dice, fault: &mut Value) {
    let short = text(Picos(1 + dice.below(us(2000).0)));
    for (key, body) in fault.as_object_mut().into_iter().flatten() {
        let ends_itself = ["at", "when", "flap", "link-remove"].contains(&key.as_str());
        if !ends_itself && (body.get("for").is_some() || key == "crash" || key == "leave") {
            body["for"] = json!(short);
        }
    }
}

/// Faults in volleys: what strikes while a room fails is what strikes hardest. In a storm there are many.
pub(super) fn faults(dice: &mut Dice, spec: &Spec, storm: bool) -> Vec<FaultSpec> {
    let (ending, staying): (Vec<Row>, Vec<Row>) =
        ROWS.iter().partition(|(key, _)| ["crash", "leave"].contains(key));
    let (mut at, mut all) = (0, Vec::new());
    let volleys = if storm { dice.within(30, 70) } else { dice.within(1, 10) };
    for _ in 0..volleys {
        let volley = Volley::draw(dice, spec, at);
        at = volley.at;
        let size = if storm { dice.within(8, 18) } else { dice.pick(&[1, 1, 2, 4, 8]) };
        // What takes an instance away comes last in a storm: the others would meet nothing.
        let (last, rows) = (storm && dice.percent(90), if storm { &staying[..] } else { ROWS });
        for number in 0..size {
            let mut fault = volley.fault(dice, if last && number + 1 == size { &ending } else { rows });
            if storm {
                squall(dice, &mut fault);
            }
            if let Ok(fault) = serde_json::from_value(fault) {
                all.push(fault);
            }
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
                valid(&spec, json!({"at": "1ms", *key: make(&mut dice, &site)}));
            }
        }
        for seed in 0..100 {
            let mut dice = Dice::new(seed);
            let volley = Volley::draw(&mut dice, &spec, 0);
            let mut fault = volley.fault(&mut dice, ROWS);
            valid(&spec, fault.clone());
            squall(&mut dice, &mut fault);
            valid(&spec, fault);
        }
    }

    fn valid(spec: &Spec, fault: Value) {
        let read: Result<FaultSpec, _> = serde_json::from_value(fault.clone());
        let faults = read.map_or_else(|e| panic!("{fault}: {e}"), |f| vec![f]);
        assert_eq!(Spec { faults, ..spec.clone() }.problem(), None, "{fault}");
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
