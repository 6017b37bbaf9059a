//! The requests of a case.

use models::Picos;

use super::super::Dice;
use super::us;
use crate::spec::RequestSpec;
use crate::workload::BLOCK_TOKENS;

/// Requests in bursts and trickles, most of them short; some share prefixes.
pub(super) fn requests(dice: &mut Dice) -> Vec<RequestSpec> {
    let count = dice.within(20, 90);
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
