//! Whether the entries of `faults:` can be: places that there are, times that make sense, one kind each.

use models::Picos;

use super::super::Spec;
use super::{FaultSpec, NodeName, PortPlace, What};

/// Strikes that one entry may have.
const MOST: u64 = 100_000;

/// Where a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// A port of a host; hosts count as nodes do.
    Port(u32, u32),
    /// A node: registry, router, prefill instances, decode instances.
    Node(u32),
    /// The control channel.
    Channel,
}

/// Which nodes a kind can strike.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Instances,
    InstancesAndRegistry,
    Anybody,
}

impl Spec {
    /// The numbers of nodes with a name.
    pub(crate) fn nodes_named(&self, name: NodeName) -> Result<Vec<u32>, String> {
        let (prefill, decode) = (self.cluster.prefill.instances, self.cluster.decode.instances);
        let one = |n: u32, count: u32, first: u32| {
            if n < count {
                Ok(vec![first + n])
            } else {
                Err(format!("{name} is not there, expected 0 to {} for its number", count - 1))
            }
        };
        match name {
            NodeName::Registry => Ok(vec![0]),
            NodeName::Router => Ok(vec![1]),
            NodeName::Prefill(n) => one(n, prefill, 2),
            NodeName::Decode(n) => one(n, decode, 2 + prefill),
            NodeName::EachPrefill => Ok((2..2 + prefill).collect()),
            NodeName::EachDecode => Ok((2 + prefill..2 + prefill + decode).collect()),
            NodeName::All => Ok((2..2 + prefill + decode).collect()),
        }
    }

    fn ports_of(&self, node: u32) -> u32 {
        let side = if node < 2 + self.cluster.prefill.instances {
            &self.cluster.prefill
        } else {
            &self.cluster.decode
        };
        self.ports(side)
    }

    /// The first entry that cannot be: its key, and what is wrong.
    pub(crate) fn fault_problem(&self) -> Option<(String, String)> {
        self.faults.iter().enumerate().find_map(|(i, entry)| {
            let (key, problem) = self.entry_problem(entry).err()?;
            let dot = if key.is_empty() { "" } else { "." };
            Some((format!("faults.{i}{dot}{key}"), problem))
        })
    }

    fn entry_problem(&self, entry: &FaultSpec) -> Result<(), (String, String)> {
        let kinds = entry.kinds();
        let [(name, what)] = kinds[..] else {
            let given: Vec<_> = kinds.iter().map(|(name, _)| *name).collect();
            let given = if given.is_empty() { "none".to_owned() } else { given.join(" and ") };
            let all = super::KINDS.join(", ");
            return Err((String::new(), format!("{given} given, expected one of {all}")));
        };
        sites(self, entry, &what).map_err(|(key, problem)| {
            (if key.is_empty() { name.to_owned() } else { format!("{name}.{key}") }, problem)
        })?;
        within(name, &what)?;
        super::when::problem(self, entry)?;
        repeats(entry, &what)
    }
}

/// Every place that an entry allows.
pub(crate) fn sites(
    spec: &Spec,
    entry: &FaultSpec,
    what: &What,
) -> Result<Vec<Site>, (&'static str, String)> {
    let nodes = |key: &'static str, name: NodeName, who: Who| {
        let fits = match name {
            NodeName::Router => who == Who::Anybody,
            NodeName::Registry => who != Who::Instances,
            _ => true,
        };
        if !fits {
            let registry = if who == Who::Instances { "" } else { ", or registry" };
            let right = format!("expected an instance, such as prefill-0{registry}");
            return Err((key, format!("this cannot happen to the {name}, {right}")));
        }
        spec.nodes_named(name).map_err(|problem| (key, problem))
    };
    let node = |name: NodeName, who: Who| {
        Ok(nodes("node", name, who)?.into_iter().map(Site::Node).collect::<Vec<_>>())
    };
    let ports = |place: PortPlace| port_sites(spec, entry, place, &nodes, matches!(what, What::NicReset(_)));
    match what {
        What::QueuePairError(fault) => match (fault.node, fault.prefill) {
            (Some(_), Some(_)) => {
                Err(("prefill", "both `node` and `prefill` are given; keep one".to_owned()))
            }
            (Some(name), None) => node(name, Who::Instances),
            (None, None) if entry.random.is_some() => node(NodeName::All, Who::Instances),
            (None, n) => {
                let (n, count) = (n.unwrap_or(0), spec.cluster.prefill.instances);
                if n >= count {
                    return Err(("prefill", format!("{n} is not there, expected 0 to {}", count - 1)));
                }
                Ok(vec![Site::Node(2 + n)])
            }
        },
        What::LinkDown(fault) => ports(fault.place()),
        What::Flap(fault) => ports(fault.place()),
        What::Degrade(fault) => ports(fault.place()),
        What::Loss(fault) => ports(fault.place()),
        What::NicReset(fault) => ports(fault.place()),
        What::LinkRemove(fault) => ports(fault.place()),
        What::PostFailure(fault) => node(fault.node, Who::Instances),
        What::CompletionDelay(fault) => node(fault.node, Who::Instances),
        What::Unacknowledged(fault) => node(fault.node, Who::Instances),
        What::ReceivesDry(fault) => node(fault.node, Who::Instances),
        What::Crash(fault) => node(fault.node, Who::InstancesAndRegistry),
        What::Pause(fault) => node(fault.node, Who::Anybody),
        What::Leave(fault) => node(fault.node, Who::Instances),
        What::Clock(fault) => node(fault.node, Who::Anybody),
        What::Slow(fault) => node(fault.node, Who::Anybody),
        What::Control(fault) => {
            for (key, name) in [("from", fault.from), ("to", fault.to), ("node", fault.node)] {
                if let Some(name) = name {
                    nodes(key, name, Who::Anybody)?;
                }
            }
            if fault.node.is_some() && (fault.from.is_some() || fault.to.is_some()) {
                return Err(("node", "stands for both ways; give it, or `from` and `to`".to_owned()));
            }
            Ok(vec![Site::Channel])
        }
    }
}

type Named<'a> = &'a dyn Fn(&'static str, NodeName, Who) -> Result<Vec<u32>, (&'static str, String)>;

fn port_sites(
    spec: &Spec,
    entry: &FaultSpec,
    place: PortPlace,
    nodes: Named<'_>,
    whole_host: bool,
) -> Result<Vec<Site>, (&'static str, String)> {
    let count = spec.cluster.prefill.instances.saturating_add(spec.cluster.decode.instances);
    let hosts = match (place.node, place.host) {
        (Some(_), Some(_)) => return Err(("host", "both `node` and `host` are given; keep one".to_owned())),
        (Some(name), None) => nodes("node", name, Who::Instances)?,
        (None, Some(host)) if host >= count => {
            return Err(("host", format!("{host} is not there, expected 0 to {}", count - 1)));
        }
        (None, Some(host)) => vec![2 + host],
        (None, None) if entry.random.is_some() => nodes("node", NodeName::All, Who::Instances)?,
        (None, None) => {
            return Err(("", "where is missing; expected `node`, such as `node: prefill-0`".to_owned()));
        }
    };
    let mut sites = Vec::new();
    for host in hosts {
        let ports = spec.ports_of(host);
        match place.port {
            Some(port) if port >= ports => {
                return Err(("port", format!("{port} is not there, expected 0 to {}", ports - 1)));
            }
            Some(port) => sites.push(Site::Port(host, port)),
            None if whole_host => sites.push(Site::Node(host)),
            None if entry.random.is_some() => sites.extend((0..ports).map(|port| Site::Port(host, port))),
            None => sites.push(Site::Port(host, 0)),
        }
    }
    Ok(sites)
}

/// Keys of a kind that must fit each other.
fn within(name: &str, what: &What) -> Result<(), (String, String)> {
    let wrong = |key: &str, problem: String| Err((format!("{name}.{key}"), problem));
    let span = |span: Picos| {
        if span.0 == 0 {
            return wrong("for", format!("{span} is no time; expected more, such as 100ms"));
        }
        Ok(())
    };
    match what {
        What::LinkDown(f) => span(f.duration),
        What::Degrade(f) => span(f.duration),
        What::Loss(f) => span(f.duration),
        What::NicReset(f) => span(f.duration),
        What::CompletionDelay(f) => span(f.duration),
        What::ReceivesDry(f) => span(f.duration),
        What::Pause(f) => span(f.duration),
        What::Slow(f) => span(f.duration),
        What::Control(f) => {
            span(f.duration)?;
            let any = [f.loss, f.duplicate, f.reorder, f.truncate, f.garble].iter().any(|p| *p > 0.0);
            if !any && f.delay.is_none() {
                let right = "expected one of loss, duplicate, reorder, delay, truncate, garble above 0";
                return Err((name.to_owned(), format!("does nothing; {right}")));
            }
            Ok(())
        }
        What::LinkRemove(f) => match f.duration {
            Some(d) if d <= f.grace => wrong(
                "for",
                format!("{d} is not longer than grace {}, in which the link is still there", f.grace),
            ),
            _ => Ok(()),
        },
        What::Crash(f) => f.duration.map_or(Ok(()), span),
        What::Leave(f) => f.duration.map_or(Ok(()), span),
        What::Clock(f) => f.duration.map_or(Ok(()), span),
        What::Flap(f) => {
            match (f.duration, f.duty) {
                (Some(down), None) if down.0 == 0 || down >= f.every => {
                    return wrong("for", format!("{down} is not within 0 and every, {}", f.every));
                }
                (Some(_), None) => {}
                (None, Some(duty)) if duty <= 0.0 || duty >= 1.0 => {
                    return wrong(
                        "duty",
                        format!("{duty} is no part of the time; expected more than 0 and less than 1"),
                    );
                }
                (None, Some(_)) => {}
                _ => return Err((name.to_owned(), "expected one of `for` and `duty`".to_owned())),
            }
            if f.times.is_some() == f.until.is_some() {
                return Err((name.to_owned(), "expected one of `times` and `until`".to_owned()));
            }
            Ok(())
        }
        What::QueuePairError(_) | What::PostFailure(_) | What::Unacknowledged(_) => Ok(()),
    }
}

/// Times of an entry that must fit each other, and how often it strikes.
fn repeats(entry: &FaultSpec, what: &What) -> Result<(), (String, String)> {
    let wrong = |key: &str, problem: &str| Err((key.to_owned(), problem.to_owned()));
    let flap = matches!(what, What::Flap(_));
    if let Some(random) = entry.random {
        match (random.share, random.rate) {
            (Some(_), None) => {}
            (None, Some(_)) if flap => {
                return wrong("random", "a rate of flaps is not there; expected `share`");
            }
            (None, Some(_)) if entry.every.is_some() || entry.times.is_some() => {
                return wrong("random", "with a rate neither `every` nor `times` can be given, but `until`");
            }
            (None, Some(_)) if entry.until.is_none() => {
                return wrong("random", "with a rate `until` is needed, such as `until: 60s`");
            }
            (None, Some(_)) => {}
            _ => return wrong("random", "expected one of `share` and `rate`"),
        }
        if matches!(what, What::Control(_)) && random.share.is_some() {
            return wrong(
                "random",
                "there is one control channel; expected `rate`, or probabilities in `control`",
            );
        }
    }
    let rate = entry.random.and_then(|random| random.rate);
    match (entry.every, entry.times, entry.until) {
        (Some(every), _, _) if every.0 == 0 => {
            return wrong("every", "0 is no time; expected more, such as 1s");
        }
        (Some(_), _, _) if flap => return wrong("every", "a flap has its own `every`"),
        (Some(_), None, None) => return wrong("every", "expected `times` or `until` beside it"),
        (Some(_), Some(_), Some(_)) => return wrong("times", "both `times` and `until` are given; keep one"),
        (None, Some(_), _) => return wrong("times", "expected `every` beside it"),
        (None, None, Some(_)) if rate.is_none() => return wrong("until", "expected `every` beside it"),
        _ => {}
    }
    let until = match what {
        What::Flap(f) => f.until.or(entry.until),
        _ => entry.until,
    };
    if let Some(until) = until
        && until <= entry.at
    {
        let key = if flap { "flap.until" } else { "until" };
        return Err((key.to_owned(), format!("{until} is not after `at`, {}", entry.at)));
    }
    let span = until.map_or(0, |until| until.0 - entry.at.0);
    let strikes = match (what, rate) {
        (What::Flap(f), _) => f.times.map_or(span / f.every.0.max(1), u64::from),
        (_, Some(rate)) => (rate * span as f64 / 1e12) as u64,
        _ => entry.times.map_or(entry.every.map_or(1, |every| span / every.0.max(1)), u64::from),
    };
    if strikes > MOST {
        return Err((String::new(), format!("would strike {strikes} times, at most {MOST} are allowed")));
    }
    Ok(())
}
