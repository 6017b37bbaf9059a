//! Requests that wait at the router, and how much each tenant has in flight.

use crate::node::Request;
use crate::policy::Limits;
use crate::time::Time;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A tenant's share.
#[derive(Debug, Default)]
struct Tenant {
    requests: u32,
    tokens: u64,
    /// Its requests that wait, in the order of their arrival.
    queue: VecDeque<u64>,
}

/// The queue. Every request in it has a number that rises with its arrival.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    limits: Limits,
    next: u64,
    requests: BTreeMap<u64, (Time, Request)>,
    tenants: BTreeMap<u32, Tenant>,
    /// First requests of tenants that are below their limits.
    ready: BTreeSet<u64>,
    flying: u32,
}

fn tokens(request: &Request) -> u64 {
    u64::from(request.prompt) + u64::from(request.output)
}

impl Waiting {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Without limits of tenants all of them are one.
    fn tenant(&self, request: &Request) -> u32 {
        let apart = self.limits.tenant_requests.is_some() || self.limits.tenant_tokens.is_some();
        if apart { request.tenant } else { 0 }
    }

    /// Requests that wait.
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// A request waits, until `deadline` at most; deadlines never fall. Says its number.
    pub(super) fn push(&mut self, deadline: Time, request: Request) -> u64 {
        let (number, tenant) = (self.next, self.tenant(&request));
        self.next += 1;
        self.requests.insert(number, (deadline, request));
        self.tenants.entry(tenant).or_default().queue.push_back(number);
        self.look(tenant);
        number
    }

    /// Whether a tenant's first request may go.
    fn look(&mut self, tenant: u32) {
        let Some(share) = self.tenants.get(&tenant) else { return };
        let Some(first) = share.queue.front() else {
            if share.requests == 0 {
                self.tenants.remove(&tenant);
            }
            return;
        };
        let Some((_, request)) = self.requests.get(first) else { return };
        let below = self.limits.tenant_requests.is_none_or(|most| share.requests < most);
        let fits = self.limits.tenant_tokens.is_none_or(|most| share.tokens + tokens(request) <= most);
        if share.requests == 0 || below && fits {
            self.ready.insert(*first);
        } else {
            self.ready.remove(first);
        }
    }

    /// The request that came first of those that may go. From now on it is in flight.
    pub(super) fn pop(&mut self) -> Option<Request> {
        if self.limits.requests.is_some_and(|most| self.flying >= most) {
            return None;
        }
        let number = self.ready.pop_first()?;
        let (_, request) = self.requests.remove(&number)?;
        let tenant = self.tenant(&request);
        let share = self.tenants.entry(tenant).or_default();
        share.queue.pop_front();
        share.requests += 1;
        share.tokens += tokens(&request);
        self.flying += 1;
        self.look(tenant);
        Some(request)
    }

    /// A request in flight is final. Its tokens are what they were when it went: preemption moves them from output to prompt.
    pub(super) fn landed(&mut self, tenant: u32, tokens: u64) {
        let apart = self.limits.tenant_requests.is_some() || self.limits.tenant_tokens.is_some();
        let tenant = if apart { tenant } else { 0 };
        self.flying = self.flying.saturating_sub(1);
        if let Some(share) = self.tenants.get_mut(&tenant) {
            share.requests = share.requests.saturating_sub(1);
            share.tokens = share.tokens.saturating_sub(tokens);
        }
        self.look(tenant);
    }

    /// Takes a request out that need not wait any more.
    fn take(&mut self, number: u64) -> Option<Request> {
        let (_, request) = self.requests.remove(&number)?;
        let tenant = self.tenant(&request);
        self.ready.remove(&number);
        if let Some(share) = self.tenants.get_mut(&tenant) {
            share.queue.retain(|other| *other != number);
        }
        self.look(tenant);
        Some(request)
    }

    /// The request of this number, if it waits and more than may wait do.
    pub(super) fn refuse(&mut self, number: u64) -> Option<Request> {
        let most = self.limits.waiting?;
        (self.requests.len() > most as usize).then(|| self.take(number)).flatten()
    }

    /// A request that has waited for too long.
    pub(super) fn expired(&mut self, now: Time) -> Option<Request> {
        let (number, _) = self.requests.first_key_value().filter(|(_, (at, _))| *at <= now)?;
        self.take(*number)
    }

    /// When the next one will have.
    pub(super) fn deadline(&self) -> Time {
        self.requests.first_key_value().map_or(Time::NEVER, |(_, (at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RequestId;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Arrive { tenant: u32, tokens: u32 },
        Land(prop::sample::Index),
        Expire(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let arrive = (0u32..4, 1u32..100).prop_map(|(tenant, tokens)| Step::Arrive { tenant, tokens });
        let land = any::<prop::sample::Index>().prop_map(Step::Land);
        let expire = any::<prop::sample::Index>().prop_map(Step::Expire);
        proptest::collection::vec(prop_oneof![4 => arrive, 3 => land, 1 => expire], 0..120)
    }

    fn limits() -> impl Strategy<Value = Limits> {
        let some = |most: std::ops::Range<u32>| proptest::option::of(most);
        (some(1..8), some(1..4), proptest::option::of(50u64..200), some(0..6)).prop_map(
            |(requests, tenant_requests, tenant_tokens, waiting)| Limits {
                requests,
                tenant_requests,
                tenant_tokens,
                waiting,
            },
        )
    }

    proptest! {
        /// Against a list that is searched from the front: limits are never exceeded, who may go goes, in the order of arrival.
        #[test]
        fn limits_hold_and_nobody_waits_who_may_go(limits in limits(), steps in steps()) {
            let mut waiting = Waiting::new(limits);
            let (mut model, mut flying): (Vec<Request>, Vec<Request>) = (Vec::new(), Vec::new());
            let may_go = |flying: &[Request], request: &Request| {
                let own = || flying.iter().filter(|other| other.tenant == request.tenant);
                let (count, held) = (own().count() as u32, own().map(tokens).sum::<u64>());
                let below = limits.tenant_requests.is_none_or(|most| count < most);
                let fits = limits.tenant_tokens.is_none_or(|most| held + tokens(request) <= most);
                let apart = limits.tenant_requests.is_some() || limits.tenant_tokens.is_some();
                limits.requests.is_none_or(|most| (flying.len() as u32) < most) && (!apart || count == 0 || below && fits)
            };
            for (n, step) in (0u64..).zip(steps) {
                let mut arrived = None;
                match step {
                    Step::Arrive { tenant, tokens } => {
                        let request = Request { id: RequestId(n), tenant, prompt: tokens, output: 1, ..Request::default() };
                        arrived = Some((waiting.push(Time(n), request.clone()), request.id));
                        model.push(request);
                    }
                    Step::Land(index) if !flying.is_empty() => {
                        let request = flying.remove(index.index(flying.len()));
                        waiting.landed(request.tenant, tokens(&request));
                    }
                    Step::Expire(index) if !model.is_empty() => {
                        let until = model[index.index(model.len())].id;
                        while let Some(request) = waiting.expired(Time(until.0)) {
                            prop_assert_eq!(request.id, model.remove(0).id);
                        }
                        prop_assert!(model.iter().all(|request| request.id > until));
                    }
                    Step::Land(_) | Step::Expire(_) => {}
                }
                // A tenant's requests go in their order: who may not go holds up those behind, of the same tenant alone.
                let next = |model: &[Request], flying: &[Request]| {
                    let apart = limits.tenant_requests.is_some() || limits.tenant_tokens.is_some();
                    let leads = |i: usize| !model[..i].iter().any(|other| !apart || other.tenant == model[i].tenant);
                    (0..model.len()).find(|i| leads(*i) && may_go(flying, &model[*i]))
                };
                while let Some(request) = waiting.pop() {
                    let first = next(&model, &flying).expect("somebody may go");
                    prop_assert_eq!(request.id, model.remove(first).id);
                    flying.push(request);
                }
                prop_assert_eq!(next(&model, &flying), None, "work conserving");
                if let Some((number, id)) = arrived {
                    let full = limits.waiting.is_some_and(|most| model.len() > most as usize);
                    let refused = waiting.refuse(number).map(|request| request.id);
                    let waits = model.last().is_some_and(|last| last.id == id);
                    prop_assert_eq!(refused, (full && waits).then_some(id));
                    if refused.is_some() {
                        model.pop();
                    }
                    prop_assert!(limits.waiting.is_none_or(|most| model.len() <= most as usize));
                }
                prop_assert_eq!(waiting.len(), model.len());
                prop_assert_eq!(waiting.deadline(), model.first().map_or(Time::NEVER, |first| Time(first.id.0)));
            }
            for request in flying.drain(..) {
                waiting.landed(request.tenant, tokens(&request));
                while let Some(next) = waiting.pop() {
                    model.retain(|other| other.id != next.id);
                    waiting.landed(next.tenant, tokens(&next));
                }
            }
            prop_assert!(model.is_empty() && waiting.is_empty() && waiting.tenants.is_empty(), "nothing is left of anybody");
        }
    }
}
