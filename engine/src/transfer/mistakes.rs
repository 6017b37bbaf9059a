//! What a pairing becomes under [`Rules`] that are about layouts, when one of them is off.

use super::pairing::Pairing;
use super::rules::Rules;
use crate::id::Rank;
use crate::registry::Facts;
use models::{Attention, Model};

impl Pairing {
    /// The pairing of a side that keeps these rules: itself, if it keeps all. Before [`Pairing::reversed`], as `src` is prefill.
    #[must_use]
    pub fn under(mut self, rules: &Rules, model: &Model, src: &Facts) -> Self {
        if !rules.every_component {
            for feed in &mut self.feeds {
                feed.shares.retain(|share| share.group.pool_dst == 0);
            }
        }
        if let Attention::Gqa { kv_heads, .. } = &model.attention
            && !rules.heads_by_replica
        {
            let (tp, attn) = (u32::from(src.tp), u32::from(src.tp / src.dp.max(1)).max(1));
            let replicas = (attn / kv_heads).max(1);
            // The head of a rank is looked for on the rank whose remainder it is.
            let wrong = |rank: u32| rank / replicas + kv_heads * (rank % replicas);
            let in_group = |rank: Rank| {
                let rank = u32::from(rank.0);
                Rank((rank / attn * attn + wrong(rank % attn)) as u16)
            };
            if attn > *kv_heads {
                self.feeds.iter_mut().for_each(|feed| feed.src = in_group(feed.src));
                for wire in &mut self.wires {
                    let rank = u32::from(wire.src.0);
                    let (stage, group) = (rank / tp, rank % tp / attn);
                    wire.src = Rank((stage * tp + group * attn + wrong(rank % attn)) as u16);
                }
            }
        }
        self
    }
}
