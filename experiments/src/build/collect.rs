//! From the records of nodes to one row for each request.

use engine::id::NodeId;
use engine::map::Map;
use engine::node::{Reason, Request, Step};
use engine::time::Time;
use sim::world::Stamped;

use crate::report::{Outcome, RequestRecord};

/// Requests that a message names.
const NAMED: usize = 3;

/// Rows in the making.
pub(crate) struct Collector {
    rows: Vec<RequestRecord>,
    ends: Vec<u8>,
    /// By row: whether its end is that the router gave it up without word of it.
    lost: Vec<bool>,
    /// By row: whether the router has sent it to instances.
    routed: Vec<bool>,
    index: Map<u64, usize>,
    nodes: (Vec<NodeId>, Vec<NodeId>),
    /// When the warm-up ended.
    zero: Time,
    ended: u64,
    corrupt: u64,
    twice: u64,
}

impl Collector {
    pub(crate) fn new(nodes: (Vec<NodeId>, Vec<NodeId>), zero: Time) -> Self {
        Self {
            rows: Vec::new(),
            ends: Vec::new(),
            lost: Vec::new(),
            routed: Vec::new(),
            index: Map::default(),
            nodes,
            zero,
            ended: 0,
            corrupt: 0,
            twice: 0,
        }
    }

    /// A request reached the router.
    pub(crate) fn arrived(&mut self, at: Time, request: &Request) {
        self.index.insert(request.id.0, self.rows.len());
        self.ends.push(0);
        self.lost.push(false);
        self.routed.push(false);
        self.rows.push(RequestRecord {
            id: request.id.0,
            tenant: request.tenant,
            arrival: at.since(self.zero).0,
            prompt: request.prompt,
            output: request.output,
            ..RequestRecord::default()
        });
    }

    /// Takes records in. When the last of the requests that became final did so.
    pub(crate) fn take(&mut self, records: impl Iterator<Item = Stamped>) -> Option<Time> {
        let mut last = None;
        for stamped in records {
            let before = self.ended;
            let at = stamped.at.since(self.zero).0;
            let Some(index) = self.index.get(&stamped.record.request.0).copied() else { continue };
            let row = &mut self.rows[index];
            match stamped.record.step {
                Step::Routed { .. } => {
                    // A request that was sent back begins anew; what was seen of the first try stays. (The first time nothing was
                    // there to forget, or word of it overtook this.)
                    if std::mem::replace(&mut self.routed[index], true) {
                        row.transfer_start = None;
                        row.success = None;
                    }
                }
                Step::PrefillStart { cached } => {
                    row.prefill_start = Some(at);
                    row.cached_tokens = cached;
                    row.prefill_instance = place(&self.nodes.0, stamped.node);
                }
                Step::PrefillEnd => row.prefill_end = Some(at),
                Step::TransferStart => row.transfer_start = row.transfer_start.or(Some(at)),
                Step::Delivered { work_requests, bytes } => {
                    row.work_requests += work_requests;
                    row.bytes += bytes;
                }
                Step::Success => {
                    row.success = Some(at);
                    row.decode_instance = place(&self.nodes.1, stamped.node);
                }
                Step::FirstToken => row.first_token = row.first_token.or(Some(at)),
                Step::Preempted { .. } => {}
                Step::Retried(_) => row.retries += 1,
                Step::Finished => {
                    row.last_token = Some(at);
                    self.end(index, Some(at), Outcome::Succeeded);
                }
                Step::Failed(reason) => self.end(index, Some(at), Outcome::Failed(name(reason))),
                Step::Lost(reason) => self.lost(index, at, reason),
                Step::Rejected(reason) => self.end(index, Some(at), Outcome::Rejected(name(reason))),
                Step::Corrupt => self.corrupt += 1,
            }
            if self.ended > before {
                last = Some(stamped.at);
            }
        }
        last
    }

    fn end(&mut self, index: usize, at: Option<u64>, outcome: Outcome) {
        // What decode says of a lost request goes before what the router could not know.
        let lost = std::mem::take(&mut self.lost[index]);
        if lost && outcome == Outcome::Succeeded {
            self.ends[index] -= 1;
            self.ended -= 1;
        }
        self.ends[index] = self.ends[index].saturating_add(1);
        if self.ends[index] > 1 {
            self.twice += 1;
            return;
        }
        self.rows[index].outcome = outcome;
        self.rows[index].end = at;
        self.ended += 1;
    }

    /// The router gave a request up without word of its end.
    fn lost(&mut self, index: usize, at: u64, reason: Reason) {
        if self.ends[index] == 1 && self.rows[index].outcome == Outcome::Succeeded {
            return;
        }
        self.end(index, Some(at), Outcome::Failed(name(reason)));
        self.lost[index] = true;
    }

    /// Ends what is not final: nobody is left who could.
    pub(crate) fn give_up(&mut self, why: &str) {
        for index in 0..self.rows.len() {
            if self.ends[index] == 0 {
                self.end(index, None, Outcome::Failed(why.to_owned()));
            }
        }
    }

    /// A request that is not final, and how far it came.
    fn state(&self, index: usize) -> String {
        let row = &self.rows[index];
        let (at, state) = if let Some(at) = row.first_token {
            (at, "has been generating")
        } else if let Some(at) = row.success {
            (at, "has had its KV at decode")
        } else if let Some(at) = row.prefill_end {
            (at, "has been computed and not delivered")
        } else if let Some(at) = row.prefill_start {
            (at, "has been at prefill, its prompt not computed")
        } else if self.routed[index] {
            (row.arrival, "was sent to instances that did not begin; it has been there")
        } else {
            (row.arrival, "has been waiting at the router")
        };
        format!("request {} {state} since {} s", row.id, at as f64 / 1e12)
    }

    /// Requests that are final.
    pub(crate) fn ended(&self) -> u64 {
        self.ended
    }

    /// The part of the requests that arrived which is final, 0 to 1.
    pub(crate) fn share(&self) -> f64 {
        if self.rows.is_empty() { 0.0 } else { self.ended as f64 / self.rows.len() as f64 }
    }

    /// Whether all that arrived are.
    pub(crate) fn all_final(&self) -> bool {
        self.ended == self.rows.len() as u64
    }

    /// What the records say that must not be.
    pub(crate) fn finish(&self, violations: &mut Vec<String>) {
        let open = self.rows.len() as u64 - self.ended;
        if open > 0 {
            let open_rows = (0..self.rows.len()).filter(|index| self.ends[*index] == 0);
            let named: Vec<String> = open_rows.take(NAMED).map(|index| self.state(index)).collect();
            let more = if open > NAMED as u64 { ", ..." } else { "" };
            violations
                .push(format!("{open} requests did not reach a final state: {}{more}", named.join(", ")));
        }
        for (count, what) in [
            (self.twice, "requests reached a second final state"),
            (self.corrupt, "checks found content on decode that is not what prefill computed"),
        ] {
            if count > 0 {
                violations.push(format!("{count} {what}"));
            }
        }
    }

    pub(crate) fn into_requests(self) -> Vec<RequestRecord> {
        self.rows
    }
}

fn place(nodes: &[NodeId], node: NodeId) -> Option<u32> {
    nodes.iter().position(|other| *other == node).map(|at| at as u32)
}

fn name(reason: engine::node::Reason) -> String {
    use engine::node::Reason::*;
    match reason {
        Aborted => "aborted",
        Deadline => "a deadline passed",
        Transfer => "a work request of it failed",
        Retries => "disturbed more often than the retry bound",
        PeerGone => "its instance is gone",
        LeaseLost => "its instance's lease ran out",
        TooLong => "longer than the model's context",
        NoMemory => "does not fit into an instance's memory",
        Layout => "the layouts of its instances do not fit",
        Refused => "the other side refused it",
        NoInstance => "no instance to serve it",
        Checksum => "its KV arrived with another checksum",
        Interrupted => "its decode instance left while it was generating",
        Busy => "the queue was full",
        Connection => "its instances could not be connected",
    }
    .to_owned()
}
