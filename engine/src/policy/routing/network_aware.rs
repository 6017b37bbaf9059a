//! The pair of instances with the least predicted time to the first token.

use super::{Ask, Candidate, Choice, Delivery, Routing};
use crate::id::InstanceId;
use crate::time::{Span, Time};
use std::collections::BTreeMap;

/// Predicts, for each pair of a prefill and a decode instance, how long queue, compute and transfer would take, and chooses the least:
///
/// ```text
/// predicted(p, d) = pace(p)    * (tokens undelivered at p + prompt)
///                 + pace(p, d) * (tokens undelivered at d + prompt)
/// ```
///
/// Paces are times for a token, exponentially weighted means of what deliveries say: `(queued + compute) / (tokens that were undelivered at p
/// when the request was sent, its own included)`, and the same for `handoff` and d. Configured port speeds were the alternative. They know
/// nothing of a degraded link, of an oversubscribed spine or of a profile that is slower than its data sheet; what was measured
/// contains them all, and the queue that comes on top is known when a request is sent. Measured and predicted values are ratios
/// of the same kind, so that it does not matter that part of what is undelivered is still being computed, and not on the wire.
///
/// A pair that was never tried is taken for as good as the best one, so it is tried. What is known against a pair fades: after
/// `forget` its distance from the best is halved, after twice that a third is left, so that a link which was repaired is found again.
/// Among decode instances those with memory for the request come first.
///
/// Promises that, by its own prediction, no pair is chosen while another one is better (of the [`NetworkAware::MOST`] least loaded of each
/// side). It watches the time to the first token alone: decode batches may become unequal.
#[derive(Debug)]
pub struct NetworkAware {
    gain: f64,
    forget: Span,
    compute: BTreeMap<InstanceId, Pace>,
    transfer: BTreeMap<(InstanceId, InstanceId), Pace>,
    best: (Best, Best),
    prefill: Vec<usize>,
    decode: Vec<usize>,
}

/// A measured time for a token, in picoseconds.
#[derive(Clone, Copy, Debug)]
struct Pace {
    ps: f64,
    at: Time,
}

/// The least of all paces of a kind, or none.
type Best = Option<f64>;

impl NetworkAware {
    /// Instances of each side that are compared, the least loaded ones: the work for a request does not grow with the square of the cluster.
    pub const MOST: usize = 32;

    /// See [`super::RoutingPolicy::NetworkAware`].
    pub fn new(gain: f64, forget: Span) -> Self {
        Self {
            gain,
            forget,
            compute: BTreeMap::new(),
            transfer: BTreeMap::new(),
            best: (None, None),
            prefill: Vec::new(),
            decode: Vec::new(),
        }
    }

    /// A pace as it counts now: what is known against it fades.
    fn now(&self, pace: Option<&Pace>, best: Best, now: Time) -> f64 {
        // Before anything was measured a token is a token.
        let Some(best) = best else { return 1.0 };
        let Some(pace) = pace else { return best };
        let age = now.since(pace.at).0 as f64 / self.forget.0.max(1) as f64;
        best + (pace.ps - best) / (1.0 + age)
    }

    /// Predicted time of a request on a pair: picoseconds once something was measured, else tokens.
    pub fn predict(&self, now: Time, prompt: u32, prefill: &Candidate, decode: &Candidate) -> f64 {
        let compute = self.now(self.compute.get(&prefill.instance), self.best.0, now);
        let transfer = self.now(self.transfer.get(&(prefill.instance, decode.instance)), self.best.1, now);
        let tokens = |c: &Candidate| c.undelivered as f64 + f64::from(prompt);
        compute * tokens(prefill) + transfer * tokens(decode)
    }

    /// The candidates that are compared.
    fn shortlist(side: &[Candidate], fits: impl Fn(&Candidate) -> bool, list: &mut Vec<usize>) {
        list.clear();
        list.extend((0..side.len()).filter(|i| fits(&side[*i])));
        if list.is_empty() {
            list.extend(0..side.len());
        }
        if list.len() > Self::MOST {
            list.sort_unstable_by_key(|i| (side[*i].undelivered, side[*i].requests, *i));
            list.truncate(Self::MOST);
            list.sort_unstable();
        }
    }
}

/// Mixes a measurement in.
fn learn(pace: Option<Pace>, ps: f64, at: Time, gain: f64) -> Pace {
    let ps = pace.map_or(ps, |before| before.ps + (ps - before.ps) * gain);
    Pace { ps, at }
}

fn least<'a>(paces: impl Iterator<Item = &'a Pace>) -> Best {
    paces.map(|pace| pace.ps).fold(None, |best, ps| Some(best.map_or(ps, |best: f64| best.min(ps))))
}

impl Routing for NetworkAware {
    fn choose(&mut self, ask: &Ask<'_>) -> Choice {
        let (mut prefill, mut decode) = (std::mem::take(&mut self.prefill), std::mem::take(&mut self.decode));
        let need = u64::from(ask.request.prompt) + u64::from(ask.request.output);
        Self::shortlist(ask.prefill, |_| true, &mut prefill);
        Self::shortlist(ask.decode, |c| c.tokens + need <= c.capacity, &mut decode);
        let mut choice = Choice { prefill: 0, decode: 0 };
        let mut least = f64::INFINITY;
        for p in &prefill {
            for d in &decode {
                let time = self.predict(ask.now, ask.request.prompt, &ask.prefill[*p], &ask.decode[*d]);
                if time < least {
                    least = time;
                    choice = Choice { prefill: *p, decode: *d };
                }
            }
        }
        (self.prefill, self.decode) = (prefill, decode);
        choice
    }

    fn wants_deliveries(&self) -> bool {
        true
    }

    fn delivered(&mut self, delivery: &Delivery<'_>) {
        let Delivery { now, prefill, decode, ahead, queued, compute, handoff, .. } = *delivery;
        let pace = |span: Span, tokens: u64| span.0 as f64 / tokens.max(1) as f64;
        let known = self.compute.get(&prefill).copied();
        self.compute.insert(prefill, learn(known, pace(queued + compute, ahead.0), now, self.gain));
        let known = self.transfer.get(&(prefill, decode)).copied();
        self.transfer.insert((prefill, decode), learn(known, pace(handoff, ahead.1), now, self.gain));
        self.best = (least(self.compute.values()), least(self.transfer.values()));
    }

    fn gone(&mut self, instance: InstanceId) {
        self.compute.remove(&instance);
        self.transfer.retain(|(p, d), _| *p != instance && *d != instance);
        self.best = (least(self.compute.values()), least(self.transfer.values()));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, candidates, loads};
    use super::*;
    use crate::node::Request;
    use proptest::prelude::*;

    fn delivery(
        request: &Request,
        pair: (u64, u64),
        ahead: u64,
        compute: u64,
        handoff: u64,
        now: Time,
    ) -> Delivery<'_> {
        Delivery {
            now,
            request,
            prefill: InstanceId(10 + pair.0),
            decode: InstanceId(10 + pair.1),
            ahead: (ahead, ahead),
            cached: 0,
            queued: Span(0),
            compute: Span(compute),
            handoff: Span(handoff),
        }
    }

    proptest! {
        #[test]
        fn no_pair_is_predicted_to_be_better(
            prefill in loads(),
            decode in loads(),
            seen in proptest::collection::vec(((0u64..8, 0u64..8), 1u64..5000, 1u64..1_000_000, 1u64..1_000_000), 0..40),
            prompt in 1u32..5000,
            later in 0u64..100,
        ) {
            let mut policy = NetworkAware::new(0.3, Span::s(10));
            let request = Request { prompt, ..Request::default() };
            for (pair, ahead, compute, handoff) in seen {
                policy.delivered(&delivery(&request, pair, ahead, compute, handoff, Time::ZERO));
            }
            let (prefill, decode, now) = (candidates(&prefill), candidates(&decode), Time::ZERO + Span::s(later));
            let choice = policy.choose(&Ask { now, ..ask(&request, &prefill, &decode) });
            let time = |p: usize, d: usize| policy.predict(now, prompt, &prefill[p], &decode[d]);
            let chosen = time(choice.prefill, choice.decode);
            for p in 0..prefill.len() {
                for d in 0..decode.len() {
                    prop_assert!(time(p, d) >= chosen);
                }
            }
        }

        #[test]
        fn with_equal_queues_the_faster_pair_wins_until_it_is_forgotten(load in 0u64..5000, fast in 1u64..1000, times in 2u64..50, first in any::<bool>()) {
            let mut policy = NetworkAware::new(0.5, Span::s(1));
            let request = Request { prompt: 100, ..Request::default() };
            let (slow_at, fast_at) = if first { (0, 1) } else { (1, 0) };
            policy.delivered(&delivery(&request, (0, slow_at), 100, 1000, fast * times * 100, Time::ZERO));
            policy.delivered(&delivery(&request, (0, fast_at), 100, 1000, fast * 100, Time::ZERO));
            let (one, two) = (candidates(&[0]), candidates(&[load, load]));
            prop_assert_eq!(policy.choose(&ask(&request, &one, &two)).decode as u64, fast_at);
            // A queue at the fast one that is a little longer is not worth the slow one now; long after it is.
            let mut queues = two.clone();
            queues[fast_at as usize].undelivered += (load + 100) / 2;
            let decode = |policy: &mut NetworkAware, now| policy.choose(&Ask { now, ..ask(&request, &one, &queues) }).decode as u64;
            prop_assert_eq!(decode(&mut policy, Time::ZERO), fast_at);
            prop_assert_eq!(decode(&mut policy, Time::ZERO + Span::s(1000)), slow_at);
        }
    }

    #[test]
    fn a_pair_that_was_never_tried_is_tried() {
        let mut policy = NetworkAware::new(0.5, Span::s(1));
        let request = Request { prompt: 100, ..Request::default() };
        policy.delivered(&delivery(&request, (0, 0), 100, 1000, 1000, Time::ZERO));
        let (one, two) = (candidates(&[0]), candidates(&[1, 0]));
        assert_eq!(policy.choose(&ask(&request, &one, &two)).decode, 1);
    }

    #[test]
    fn who_has_memory_comes_first() {
        let mut policy = NetworkAware::new(0.5, Span::s(1));
        let request = Request { prompt: 100, output: 10, ..Request::default() };
        let (one, mut two) = (candidates(&[0]), candidates(&[0, 500]));
        two[0].capacity = 109;
        assert_eq!(policy.choose(&ask(&request, &one, &two)).decode, 1);
        two[1].capacity = 100;
        assert_eq!(policy.choose(&ask(&request, &one, &two)).decode, 0, "nobody has: then as if all had");
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut policy = NetworkAware::new(0.5, Span::s(1));
        let request = Request::default();
        policy.delivered(&delivery(&request, (0, 1), 100, 1000, 1000, Time::ZERO));
        policy.gone(InstanceId(11));
        assert!(policy.transfer.is_empty() && policy.compute.len() == 1);
        policy.gone(InstanceId(10));
        assert_eq!(policy.best, (None, None));
    }
}
