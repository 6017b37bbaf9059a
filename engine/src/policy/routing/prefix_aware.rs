//! Where a prompt's prefix is likely to be cached, weighed against the queue there.

use super::{Ask, Candidate, Choice, Routing, least};
use crate::id::InstanceId;
use crate::map::Map;
use crate::node::BLOCK_TOKENS;
use std::collections::BTreeMap;

/// Sends a request to the prefill instance where the least work stands between it and its last prompt token:
/// `undelivered tokens there - weight * tokens of its prefix that are cached there`. Decode is the least loaded one.
///
/// Promises that with equal queues the instance with the longest hit is chosen, and that a longer queue is taken only for a hit that is worth
/// it: `weight` 1 counts a token found as a token less to compute, 0 is least-loaded by undelivered tokens, and much more than 1 follows a
/// popular prefix to one instance, whatever waits there.
///
/// What is cached where, nobody tells the router. It remembers which blocks it sent to which instance, and forgets those used longest ago
/// when the instance's memory cannot hold more of them. So the index is bounded by the blocks that the cluster can hold, and wrong only about
/// blocks that prefill gave up for memory in the meantime: then a prompt is computed where others would have been as good, nothing worse.
/// Queues are counted until KV is delivered, which prefill tells: a request that is generating is no work for prefill.
#[derive(Debug)]
pub struct PrefixAware {
    weight: f64,
    blocks: u32,
    index: BTreeMap<InstanceId, Sent>,
}

/// Blocks sent to an instance, least recently used first out.
#[derive(Debug, Default)]
struct Sent {
    stamps: Map<u64, u64>,
    order: BTreeMap<u64, u64>,
    clock: u64,
}

impl Sent {
    /// How many of these, from the first on, are remembered.
    fn hits(&self, blocks: &[u64]) -> usize {
        blocks.iter().take_while(|block| self.stamps.contains(block)).count()
    }
    fn touch(&mut self, block: u64, most: usize) {
        self.clock += 1;
        if let Some(before) = self.stamps.insert(block, self.clock) {
            self.order.remove(&before);
        }
        self.order.insert(self.clock, block);
        while self.order.len() > most {
            if let Some((_, oldest)) = self.order.pop_first() {
                self.stamps.remove(&oldest);
            }
        }
    }
}

/// Blocks that prefill may find: the last token of a prompt is always computed.
fn findable(prompt: u32, blocks: &[u64]) -> &[u64] {
    let whole = (prompt.saturating_sub(1) / BLOCK_TOKENS) as usize;
    &blocks[..whole.min(blocks.len())]
}

impl PrefixAware {
    /// See [`super::RoutingPolicy::PrefixAware`].
    pub fn new(weight: f64, blocks: u32) -> Self {
        Self { weight, blocks, index: BTreeMap::new() }
    }

    /// Tokens of a prompt that an instance is taken to have.
    fn hit(&self, instance: InstanceId, blocks: &[u64]) -> u64 {
        let hits = self.index.get(&instance).map_or(0, |sent| sent.hits(blocks));
        hits as u64 * u64::from(BLOCK_TOKENS)
    }

    /// What stands before the request there, in tokens; may be less than nothing.
    fn cost(&self, candidate: &Candidate, blocks: &[u64]) -> i64 {
        let worth = self.weight * self.hit(candidate.instance, blocks) as f64;
        // Both are far below 2^53; the cast saturates.
        (candidate.undelivered as f64 - worth) as i64
    }
}

impl Routing for PrefixAware {
    fn choose(&mut self, ask: &Ask<'_>) -> Choice {
        let blocks = findable(ask.request.prompt, &ask.request.blocks);
        let prefill = least(ask.prefill, |c| (self.cost(c, blocks), c.requests));
        let decode = least(ask.decode, |c| (c.tokens, c.requests));
        if let Some(chosen) = ask.prefill.get(prefill) {
            let most = (chosen.capacity / u64::from(BLOCK_TOKENS)).min(self.blocks.into()) as usize;
            let sent = self.index.entry(chosen.instance).or_default();
            let whole = (ask.request.prompt / BLOCK_TOKENS) as usize;
            for block in ask.request.blocks.iter().take(whole) {
                sent.touch(*block, most);
            }
        }
        Choice { prefill, decode }
    }

    fn wants_deliveries(&self) -> bool {
        true
    }

    fn gone(&mut self, instance: InstanceId) {
        self.index.remove(&instance);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, candidates, loads};
    use super::*;
    use crate::node::Request;
    use proptest::prelude::*;

    fn request(blocks: std::ops::Range<u64>) -> Request {
        Request {
            prompt: (blocks.end - blocks.start) as u32 * BLOCK_TOKENS + 1,
            blocks: blocks.collect(),
            ..Request::default()
        }
    }

    /// Sends a request while only one instance is there, so that it goes to that.
    fn send_to(policy: &mut PrefixAware, to: usize, of: usize, request: &Request) {
        let all = candidates(&vec![0; of]);
        policy.choose(&ask(request, &all[to..=to], &all));
    }

    proptest! {
        #[test]
        fn with_equal_queues_the_longest_hit_wins(sent in proptest::collection::vec(0u64..9, 1..8), load in 0u64..5000, wanted in 1u64..9) {
            let mut policy = PrefixAware::new(1.0, 1 << 16);
            for (i, blocks) in sent.iter().enumerate() {
                if *blocks > 0 {
                    send_to(&mut policy, i, sent.len(), &request(0..*blocks));
                }
            }
            let queues = candidates(&vec![load; sent.len()]);
            let chosen = policy.choose(&ask(&request(0..wanted), &queues, &queues)).prefill;
            let hit = |i: usize| sent[i].min(wanted);
            prop_assert!((0..sent.len()).all(|i| hit(i) <= hit(chosen)), "{sent:?} {wanted}: {chosen}");
        }

        #[test]
        fn a_longer_queue_is_taken_for_a_hit_that_is_worth_it(loads in loads(), at in any::<prop::sample::Index>(), blocks in 1u64..4, weight in 0.0f64..3.0) {
            let mut policy = PrefixAware::new(weight, 1 << 16);
            let at = at.index(loads.len());
            send_to(&mut policy, at, loads.len(), &request(0..blocks));
            let queues = candidates(&loads);
            let chosen = policy.choose(&ask(&request(0..blocks), &queues, &queues)).prefill;
            let cost = |i: usize| loads[i] as f64 - if i == at { weight * (blocks * 512) as f64 } else { 0.0 };
            // Costs are whole tokens.
            prop_assert!((0..loads.len()).all(|i| cost(i) >= cost(chosen) - 1.0), "{loads:?}: {chosen}, hit at {at}");
        }

        #[test]
        fn the_index_is_bounded_and_forgets_the_oldest(ids in proptest::collection::vec(0u64..40, 1..200), most in 1u32..20) {
            let mut policy = PrefixAware::new(1.0, most);
            for id in &ids {
                send_to(&mut policy, 0, 1, &request(*id..*id + 1));
            }
            let mut newest: Vec<u64> = Vec::new();
            for id in ids.iter().rev() {
                if newest.len() < most as usize && !newest.contains(id) {
                    newest.push(*id);
                }
            }
            let known: Vec<u64> = (0..41).filter(|id| policy.hit(InstanceId(10), &[*id]) > 0).collect();
            newest.sort_unstable();
            prop_assert_eq!(known, newest);
        }
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut policy = PrefixAware::new(1.0, 100);
        send_to(&mut policy, 1, 2, &request(0..4));
        let queues = candidates(&[0, 100]);
        assert_eq!(policy.choose(&ask(&request(0..4), &queues, &queues)).prefill, 1);
        policy.gone(InstanceId(11));
        assert_eq!(policy.choose(&ask(&request(0..4), &queues, &queues)).prefill, 0);
    }
}
