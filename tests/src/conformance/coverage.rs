//! What programs had in them: a suite that never met a case has not tested it.

use super::model::Expected;
use super::script::{Change, Key, Link, Region, Script};
use engine::fabric::{Op, Status};
use std::collections::{BTreeMap, BTreeSet};

/// Every case that a run of enough programs must meet.
pub const CASES: &[&str] = &[
    "several queue pairs",
    "shared completion queue",
    "shared receive queue",
    "multi-packet message",
    "WRITE",
    "WRITE with immediate",
    "SEND",
    "SEND with immediate",
    "READ",
    "fetch and add",
    "compare and swap",
    "zero length",
    "SGE list",
    "inline",
    "fence",
    "unsignalled run",
    "batch of WRITEs",
    "batch of READs",
    "both directions at once",
    "receive posted late",
    "send queue full",
    "bad remote key",
    "past the end of a registration",
    "no right at the registration",
    "no right at the queue pair",
    "stale remote key",
    "misaligned atomic",
    "bad local key",
    "past the end of a local registration",
    "no local write",
    "receive too small",
    "receive with a bad key",
    "no receive",
    "peer in ERR",
    "peer in RESET",
    "peer destroyed",
    "posting in ERR",
    "posting in RESET",
    "flushed sends",
    "flushed receives",
    "reset and reused",
];

/// How many programs had each case.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// Programs.
    pub programs: u64,
    /// By case.
    pub cases: BTreeMap<&'static str, u64>,
}

impl Coverage {
    /// One more program.
    pub fn add(&mut self, script: &Script, expected: &[Expected]) {
        self.programs += 1;
        for case in cases(script, expected) {
            *self.cases.entry(case).or_default() += 1;
        }
    }

    /// Cases that no program had.
    pub fn missing(&self) -> Vec<&'static str> {
        CASES.iter().copied().filter(|case| !self.cases.contains_key(case)).collect()
    }
}

impl std::fmt::Display for Coverage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} programs, of them with", self.programs)?;
        CASES.iter().try_for_each(|case| {
            writeln!(f, "  {:>6}  {case}", self.cases.get(case).copied().unwrap_or_default())
        })
    }
}

fn cases(script: &Script, expected: &[Expected]) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    let mut has = |yes: bool, case: &'static str| {
        if yes {
            found.insert(case);
        }
    };
    has(script.conns.len() > 1, "several queue pairs");
    has(script.conns.iter().filter(|c| c.shared_cq).count() > 1, "shared completion queue");
    for (round, expected) in script.rounds.iter().zip(expected) {
        let mut sides = BTreeSet::new();
        for change in &round.changes {
            let posts = |end| round.posts.iter().any(|p| p.end == end);
            match *change {
                Change::Err(end) => has(true, if posts(end) { "posting in ERR" } else { "peer in ERR" }),
                Change::Reset(end) => {
                    has(true, if posts(end) { "posting in RESET" } else { "peer in RESET" })
                }
                Change::Destroy(_) => has(true, "peer destroyed"),
                Change::Deregister(_) => {}
            }
        }
        has(!round.late.is_empty(), "receive posted late");
        has(
            expected.seen.posts.iter().any(|p| matches!(p, Err((_, super::outcome::Why::Full)))),
            "send queue full",
        );
        let flushed = |all: &BTreeMap<_, Vec<super::outcome::Entry>>| {
            all.values().flatten().any(|e| e.result == Err(Status::WrFlush))
        };
        has(flushed(&expected.seen.sends), "flushed sends");
        has(flushed(&expected.seen.receives), "flushed receives");
        let failed = |all: &BTreeMap<_, Vec<super::outcome::Entry>>, status| {
            all.values().flatten().any(|e| e.result == Err(status))
        };
        has(failed(&expected.seen.receives, Status::LocLen), "receive too small");
        has(failed(&expected.seen.receives, Status::LocProt), "receive with a bad key");
        has(failed(&expected.seen.sends, Status::RnrRetryExc), "no receive");
        let culprit = |id| {
            let all = expected.seen.sends.values().flatten();
            all.filter(|e| e.id == id).find_map(|e| e.result.err().filter(|s| *s != Status::WrFlush))
        };
        for post in &round.posts {
            let conn = &script.conns[post.end.0];
            sides.insert(post.end);
            for link in &post.chain {
                if let Link::Many(many) = link {
                    has(many.op == Op::Write, "batch of WRITEs");
                    has(many.op == Op::Read, "batch of READs");
                }
                let mut silent = 0;
                link.expand(|one| {
                    let bytes: u32 = one.local.iter().map(|p| p.len).sum();
                    let consumes = matches!(one.op, Op::WriteImm(_) | Op::Send | Op::SendImm(_));
                    has(consumes && conn.srq[1 - post.end.1], "shared receive queue");
                    has(bytes > u32::from(conn.mtu), "multi-packet message");
                    has(bytes == 0, "zero length");
                    has(one.local.len() > 1, "SGE list");
                    has(one.flags.inline && bytes > 0, "inline");
                    has(one.flags.fence, "fence");
                    silent = if one.flags.signaled { 0 } else { silent + 1 };
                    has(silent > 1, "unsignalled run");
                    let atomic = match one.op {
                        Op::Write => (has(true, "WRITE"), false).1,
                        Op::WriteImm(_) => (has(true, "WRITE with immediate"), false).1,
                        Op::Send => (has(true, "SEND"), false).1,
                        Op::SendImm(_) => (has(true, "SEND with immediate"), false).1,
                        Op::Read => (has(true, "READ"), false).1,
                        Op::FetchAdd(_) => (has(true, "fetch and add"), true).1,
                        Op::CompareSwap { .. } => (has(true, "compare and swap"), true).1,
                    };
                    let access = one.remote.region;
                    match culprit(one.id) {
                        Some(Status::RemAccess) if one.remote.key == Key::Bad => has(true, "bad remote key"),
                        Some(Status::RemAccess) => match access {
                            Region::Mortal => has(true, "stale remote key"),
                            Region::Short => has(true, "past the end of a registration"),
                            _ => has(true, "no right at the registration"),
                        },
                        Some(Status::RemInvReq) if atomic && one.remote.at % 8 != 0 => {
                            has(true, "misaligned atomic");
                        }
                        Some(Status::RemInvReq) if !matches!(one.op, Op::Send | Op::SendImm(_)) => {
                            has(true, "no right at the queue pair");
                        }
                        Some(Status::LocProt) => {
                            let bad = one.local.iter().any(|p| p.key == Key::Bad);
                            has(bad, "bad local key");
                            let short = one.local.iter().any(|p| p.region == Region::Short);
                            has(short, "past the end of a local registration");
                            has(!bad && !short, "no local write");
                        }
                        _ => {}
                    }
                });
            }
        }
        has(sides.iter().any(|&(c, s)| s == 0 && sides.contains(&(c, 1))), "both directions at once");
    }
    let reused = script.rounds.iter().enumerate().any(|(n, round)| {
        round
            .repair
            .iter()
            .any(|c| script.rounds[n + 1..].iter().any(|r| r.posts.iter().any(|p| p.end.0 == *c)))
    });
    has(reused, "reset and reused");
    found
}
