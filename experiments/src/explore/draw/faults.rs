//! The faults of a case: a row for each kind.

use models::Picos;
use serde_json::{Map, Value, json};

use super::super::Dice;
use super::us;
use crate::spec::{FaultSpec, Spec};

/// Where a fault of a case can strike.
struct Site<'a> {
    spec: &'a Spec,
    /// A prefill or decode instance: its host, from 0, its number on its side, whether it is prefill.
    host: u32,
    number: u32,
    prefill: bool,
    /// A port of it.
    port: u32,
}

/// What a kind says beside the instant: its key, and the map under it. None where the case has no such place.
type Kind = (&'static str, fn(&mut Dice, &Site<'_>) -> Option<Value>);

/// All kinds. One that stands here twice comes twice as often.
pub const KINDS: &[&str] = &["queue-pair-error", "link-down"];

const ROWS: &[Kind] = &[
    ("queue-pair-error", |dice, site| {
        site.prefill.then(|| json!({"prefill": site.number, "index": dice.below(64)}))
    }),
    ("link-down", |dice, site| Some(json!({"host": site.host, "port": site.port, "for": text(span(dice))}))),
];

/// How long a fault lasts: a moment, as long as a room, or longer than a lease.
fn span(dice: &mut Dice) -> Picos {
    let most = dice.pick(&[us(100), us(2000), us(20_000), us(300_000)]);
    Picos(1 + dice.below(most.0))
}

fn text(span: Picos) -> String {
    span.to_string()
}

fn site<'a>(dice: &mut Dice, spec: &'a Spec) -> Site<'a> {
    let (prefill, decode) = (spec.cluster.prefill.instances, spec.cluster.decode.instances);
    let host = dice.below(u64::from(prefill + decode)) as u32;
    let is_prefill = host < prefill;
    let side = if is_prefill { &spec.cluster.prefill } else { &spec.cluster.decode };
    let number = if is_prefill { host } else { host - prefill };
    let port = dice.below(u64::from(spec.ports(side).max(1))) as u32;
    Site { spec, host, number, prefill: is_prefill, port }
}

/// Some faults, in bursts: what follows another one soon meets rooms that are ending.
pub(super) fn faults(dice: &mut Dice, spec: &Spec) -> Vec<FaultSpec> {
    let last = spec.workload.requests.last().map_or(0, |request| request.at.0);
    let end = last + last / 2 + us(3000).0;
    let mut at = 0;
    let mut all = Vec::new();
    for _ in 0..dice.within(1, 12) {
        at = if at > 0 && dice.percent(50) { at + dice.below(us(3000).0) } else { dice.below(end) };
        let (key, make) = dice.pick(ROWS);
        let site = site(dice, spec);
        let Some(body) = make(dice, &site) else { continue };
        let mut fault = Map::new();
        fault.insert("at".to_owned(), Value::String(text(Picos(at))));
        fault.insert(key.to_owned(), body);
        if let Ok(fault) = serde_json::from_value(Value::Object(fault)) {
            all.push(fault);
        }
    }
    let _ = |site: &Site<'_>| site.spec.seed;
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_makes_a_fault_of_its_kind() {
        let spec = super::super::case(1);
        for (key, make) in ROWS {
            let made = (0..100).find_map(|seed| {
                let mut dice = Dice::new(seed);
                let site = site(&mut dice, &spec);
                make(&mut dice, &site)
            });
            let fault = json!({"at": "1ms", *key: made.unwrap_or_default()});
            let read: Result<FaultSpec, _> = serde_json::from_value(fault);
            assert!(read.is_ok(), "{key}: {read:?}");
        }
    }
}
