//! What holds in every run, whatever happened in it, and what holds in a run without faults.

use super::{Ending, Kit};
use engine::id::{NodeId, RequestId};
use engine::node::{Node as _, Reason, Step};
use engine::policy::Direction;
use engine::transfer::{AUX_BYTES, SEAL_BYTES};
use models::{Layout, Relation};
use std::collections::BTreeSet;

/// What a run moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Payload bytes, aux rows and seals included.
    pub bytes: u64,
    /// Work requests, aux rows and seals included.
    pub work_requests: u64,
    /// RNR NAKs.
    pub rnr_naks: u64,
    /// Fences that decode, in pull prefill, made.
    pub fences: u64,
    /// Immediates that were dropped.
    pub stale: u64,
    /// Parts that came twice.
    pub repeated: u64,
}

impl Kit {
    /// What was counted so far.
    #[must_use]
    pub fn counted(&self) -> Counted {
        let (fabric, nodes) = (self.world.fabrics().counters(), self.world.counters());
        Counted {
            bytes: fabric.bytes,
            work_requests: fabric.work_requests,
            rnr_naks: fabric.rnr_naks,
            fences: nodes.fences,
            stale: nodes.stale_immediates,
            repeated: nodes.repeated_parts,
        }
    }

    /// The layouts of the two sides.
    ///
    /// # Panics
    /// Never: the instances started with them.
    #[must_use]
    pub fn layouts(&self) -> (Layout, Layout) {
        let of = |side: &super::Side| {
            let c = &side.config;
            Layout::new(&c.model, c.dtype, c.parallel, c.page_size, c.order)
                .unwrap_or_else(|error| panic!("{error}"))
        };
        (of(&self.build.prefill), of(&self.build.decode))
    }

    /// The fewest payload bytes that a prompt of so many tokens can take: what the relation of the layouts names, and beside it aux rows
    /// and, in push, seals.
    ///
    /// # Panics
    /// Never: the instances were paired.
    #[must_use]
    pub fn least_bytes(&self, tokens: u32) -> (u64, u64) {
        let (src, dst) = self.layouts();
        let relation = Relation::new(&src, &dst).unwrap_or_else(|error| panic!("{error}"));
        let splits = self.build.decode.config.transfer.replica.splits();
        let layers = |feed: &models::Feed| {
            let kinds = dst.ranks()[feed.dst_rank as usize].pools();
            let lanes = feed.groups.iter().flat_map(|g| g.lanes.iter().map(|l| (g.pool_dst, l.1 as usize)));
            let all: BTreeSet<u32> = lanes.map(|(pool, lane)| kinds[pool].buffers[lane].layer).collect();
            all.len()
        };
        let of = |feed: &models::Feed| if splits { feed.sources.len().min(layers(feed)) as u64 } else { 1 };
        let seals: u64 = (0..relation.dst_ranks()).flat_map(|rank| relation.feeds(rank)).map(of).sum();
        let seals = if self.build.direction() == Direction::Pull { 0 } else { seals };
        let beside = u64::from(relation.dst_ranks()) * AUX_BYTES + seals * SEAL_BYTES;
        (relation.total_bytes(tokens) as u64, beside)
    }

    /// Whether a request had Success in time and its last token left decode, and the router knows only that decode's lease is over. The two
    /// sides' outcomes are their own: a stopped decode that goes on ends the step under way before it hears that it is gone.
    fn lost_after_success(&self, request: RequestId) -> bool {
        let (mut success, mut finished, mut failed) = (false, 0, 0);
        for stamped in self.steps(request) {
            match stamped.record.step {
                Step::Success => success = true,
                Step::Finished if success => finished += 1,
                Step::Failed(Reason::PeerGone) if success => failed += 1,
                Step::Failed(_) | Step::Rejected(_) | Step::Finished => return false,
                _ => {}
            }
        }
        (finished, failed) == (1, 1)
    }

    /// Every law that is broken. After [`Kit::run`].
    #[must_use]
    pub fn violations(&mut self) -> Vec<String> {
        let mut wrong = self.broken.clone();
        for (index, finals) in self.finals.iter().enumerate() {
            if *finals != 1 && !self.lost_after_success(RequestId(index as u64)) {
                let steps: Vec<_> =
                    self.steps(RequestId(index as u64)).map(|s| (s.node.0, s.record.step)).collect();
                wrong.push(format!("request {index} reached {finals} final states, must be 1: {steps:?}"));
            }
        }
        if self.corrupt() > 0 {
            wrong.push(format!("{} checks found wrong content on decode", self.corrupt()));
        }
        for request in 0..self.requests.len() as u64 {
            let mut success = false;
            for stamped in self.steps(RequestId(request)) {
                match stamped.record.step {
                    Step::Routed { .. } => success = false,
                    Step::Success if success => wrong.push(format!("request {request} had Success twice")),
                    Step::Success => success = true,
                    Step::Finished if !success => {
                        wrong.push(format!("request {request} finished without Success"));
                    }
                    _ => {}
                }
            }
        }
        for node in 0..self.world.nodes() {
            let id = NodeId(node as u32);
            let (held, objects) = (self.held(id), self.world.fabrics().host_ref(node).objects());
            for (what, count, right) in [
                ("rooms", held.rooms, 0),
                ("pages", held.pages, 0),
                ("slots", held.slots, 0),
                ("timers", held.timers, 0),
                ("promised receives", held.receives, 0),
                ("memory regions", objects.memory_regions as u64, held.pool_memory_regions),
                ("queue pairs", objects.queue_pairs as u64, held.pool_queue_pairs),
            ] {
                if count != right {
                    wrong.push(format!("node {node} holds {count} {what} at quiescence, must be {right}"));
                }
            }
        }
        wrong.extend(self.zones.check(&self.world));
        wrong
    }

    /// Every law of a fault-free run that is broken.
    #[must_use]
    pub fn fault_free_violations(&mut self) -> Vec<String> {
        let mut wrong = self.violations();
        let counted = self.counted();
        for (what, count) in [
            ("RNR NAKs", counted.rnr_naks),
            ("fences", counted.fences),
            ("stale immediates", counted.stale),
            ("repeated parts", counted.repeated),
        ] {
            if count != 0 {
                wrong.push(format!("{count} {what}, must be none without faults"));
            }
        }
        let (mut least, mut tries) = (0, 0);
        for request in 0..self.requests.len() {
            let id = RequestId(request as u64);
            if self.ending(id) != Some(Ending::Finished) {
                wrong.push(format!("request {request} ended as {:?} without faults", self.ending(id)));
            }
            // The n-th delivery is of the n-th try; a preempted request's tokens are part of its next prompt. Decode may send a request back
            // before prefill has its last completion.
            let (mut prompt, mut tries_of) = (self.requests[request].prompt, Vec::new());
            let mut delivered = Vec::new();
            for stamped in self.steps(id) {
                match stamped.record.step {
                    Step::Routed { .. } => tries_of.push(prompt),
                    Step::Preempted { tokens } => prompt += tokens,
                    Step::Delivered { bytes, .. } => delivered.push(bytes),
                    _ => {}
                }
            }
            for (prompt, bytes) in tries_of.into_iter().zip(delivered) {
                let (kv, beside) = self.least_bytes(prompt);
                if bytes != kv {
                    wrong.push(format!("request {request} moved {bytes} bytes of KV, the layouts need {kv}"));
                }
                least += kv + beside;
                tries += 1;
            }
        }
        if counted.bytes != least {
            wrong.push(format!(
                "{} bytes moved for {tries} transfers, the layouts need {least}",
                counted.bytes
            ));
        }
        wrong
    }

    /// Every node leaves; what the fabric has left after that.
    #[must_use]
    pub fn shut_down(mut self) -> Vec<String> {
        self.world.shut_down();
        self.run_for(self.build.lease * 4);
        let mut wrong = Vec::new();
        for node in 0..self.world.nodes() {
            let o = self.world.fabrics().host_ref(node).objects();
            let left =
                o.buffers + o.memory_regions + o.queue_pairs + o.completion_queues + o.shared_receive_queues;
            if left > 0 || self.world.node(NodeId(node as u32)).held() != Default::default() {
                wrong.push(format!("node {node} left {o:?} behind after shutdown"));
            }
        }
        wrong
    }

    /// Panics if the request did not finish.
    ///
    /// # Panics
    /// Then.
    #[track_caller]
    pub fn assert_finished(&self, request: RequestId) {
        let steps: Vec<_> = self.steps(request).map(|stamped| stamped.record.step).collect();
        assert_eq!(self.ending(request), Some(Ending::Finished), "{request:?}: {steps:?}");
    }

    /// Panics if a law is broken, also one of shutdown.
    ///
    /// # Panics
    /// Then.
    #[track_caller]
    pub fn assert_clean(mut self) {
        let mut wrong = self.violations();
        let told = format!("{:#?}", self.build);
        if wrong.is_empty() {
            wrong = self.shut_down();
        }
        assert!(wrong.is_empty(), "{}\nin the scenario {told}", wrong.join("\n"));
    }

    /// Panics if a law of fault-free runs is broken.
    ///
    /// # Panics
    /// Then.
    #[track_caller]
    pub fn assert_fault_free(mut self) {
        let wrong = self.fault_free_violations();
        assert!(wrong.is_empty(), "{}\nin the scenario {:#?}", wrong.join("\n"), self.build);
        self.assert_clean();
    }
}
