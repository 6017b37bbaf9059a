//! From `policy.routing`, `policy.limits` and `policy.retry` to the engine's.

use engine::policy::{Limits, Retry, RoutingPolicy};

use super::nodes::span;
use crate::own;
use crate::spec::{LimitsSpec, RetrySpec, Routing};

/// The routing policy; the error says that nobody registered it.
pub(super) fn policy(routing: &Routing) -> Result<RoutingPolicy, String> {
    Ok(match routing {
        Routing::RoundRobin => RoutingPolicy::RoundRobin,
        Routing::LeastLoaded => RoutingPolicy::LeastLoaded,
        Routing::PowerOfTwo => RoutingPolicy::PowerOfTwo,
        Routing::PrefixAware(p) => RoutingPolicy::PrefixAware { weight: p.weight, blocks: p.blocks },
        Routing::NetworkAware(n) => RoutingPolicy::NetworkAware { gain: n.gain, forget: span(n.forget) },
        Routing::Own(name) => own::find_routing(name)?,
    })
}

pub(super) fn limits(limits: &LimitsSpec) -> Limits {
    let tenant = limits.tenant.unwrap_or_default();
    Limits {
        requests: limits.requests,
        tenant_requests: tenant.requests,
        tenant_tokens: tenant.tokens.map(u64::from),
        waiting: limits.waiting,
    }
}

pub(super) fn retry(retry: &RetrySpec) -> Retry {
    Retry { attempts: retry.attempts, cooldown: span(retry.cooldown), longest: span(retry.longest) }
}
