//! The requests of a case.

use models::Picos;

use super::super::Dice;
use super::us;
use crate::spec::{Coalescing, RequestSpec, Spec};
use crate::workload::BLOCK_TOKENS;

/// Requests in bursts and trickles, most of them short; some share prefixes.
pub(super) fn requests(dice: &mut Dice) -> Vec<RequestSpec> {
    let count = dice.within(180, 450);
    let gap = dice.pick(&[us(50), us(400), us(2000)]).0;
    let longest = dice.pick(&[150, 300, 900]);
    let shares = dice.percent(50);
    let mut at = Picos(0);
    let mut all = Vec::new();
    for _ in 0..count {
        // Half of them come in bursts.
        if dice.percent(50) {
            at.0 += dice.below(2 * gap);
        }
        let prompt = if dice.percent(85) { dice.within(1, 150) } else { dice.within(1, longest) } as u32;
        let output = dice.pick(&[1, 2, 5, 20]).min(1 + dice.below(60)) as u32;
        let who = dice.below(3);
        let blocks = if shares { u64::from(prompt.div_ceil(BLOCK_TOKENS)) } else { 0 };
        all.push(RequestSpec {
            at,
            prompt,
            output,
            blocks: (0..blocks).map(|block| who * 100 + block).collect(),
            tenant: dice.below(3) as u32,
        });
    }
    all
}

/// Work requests of a case that completes each of them by itself, about: more would make it slow and teach nothing.
const HEAVY: u64 = 40_000;
/// Work requests that cost as much as one of those where many complete together.
const TOGETHER: u64 = 6;

/// Requests that a case keeps, however dear they are: it is the faults among many that find something.
const LEAST: usize = 140;

/// Work requests of a prompt token, at worst.
fn per_token(spec: &Spec) -> u64 {
    let (prefill, decode) = (&spec.cluster.prefill, &spec.cluster.decode);
    let mla = spec.model.contains("mla");
    let rows: u64 = if mla { 4 } else { 8 };
    // What the sides share stays in one piece over a page.
    let alike =
        (prefill.tp / prefill.dp == decode.tp / decode.dp || mla) && prefill.page_order == decode.page_order;
    let pieces = u64::from((decode.tp / decode.dp).max(prefill.tp / prefill.dp));
    let run = if alike { u64::from(prefill.page_size.min(decode.page_size)) } else { 1 };
    (rows * pieces).div_ceil(run)
}

/// Takes requests away, then tokens, where the policies make each of them dear.
pub(super) fn lighten(spec: &mut Spec) {
    let (t, window) = (&spec.transfer, &spec.policy.window);
    // A slot of a few tokens makes a request of its own, two copies and a message for them.
    let slot = match &spec.policy.coalescing {
        Coalescing::Direct => None,
        Coalescing::Staging(staging) => Some(staging.slot.0),
        Coalescing::Auto(auto) => Some(auto.slot.0),
    };
    let small = slot.is_some_and(|slot| slot < 16 << 10);
    let tight =
        small || window.bytes.0 < 10_000 || window.requests < 100 || t.signal_every == 1 || t.send_depth < 10;
    let most =
        if tight { HEAVY } else { HEAVY * TOGETHER } / per_token(spec).max(1) / if small { 4 } else { 1 };
    let requests = &mut spec.workload.requests;
    let tokens = |requests: &[RequestSpec]| requests.iter().map(|r| u64::from(r.prompt)).sum::<u64>();
    while tokens(requests) > most {
        if requests.len() > LEAST {
            requests.pop();
        } else if requests.iter().any(|request| request.prompt > 1) {
            requests.iter_mut().for_each(|request| request.prompt = request.prompt.div_ceil(2));
        } else {
            return;
        }
    }
    for request in requests {
        request.blocks.truncate(request.prompt.div_ceil(BLOCK_TOKENS) as usize);
    }
}
