//! What must hold when everything has come to rest, in a run without faults beyond that, and after all nodes have left.

use super::law::{Broken, Law};
use super::{Ending, Watcher};
use crate::world::{AnyNode, World};
use engine::id::NodeId;
use engine::node::{Held, Node as _, Step};
use engine::policy::{Direction, ReplicaChoice};
use engine::transfer::{AUX_BYTES, HEADER_BYTES, SEAL_BYTES};
use models::{Feed, Layout, Relation};
use std::collections::BTreeSet;

/// The fewest payload bytes of a prompt of so many tokens: what the relation of the layouts names, and beside it aux rows and, in push,
/// seals.
#[must_use]
pub fn least_bytes(
    src: &Layout,
    dst: &Layout,
    direction: Direction,
    replica: ReplicaChoice,
    tokens: u32,
) -> Option<(u64, u64)> {
    let relation = Relation::new(src, dst).ok()?;
    let layers = |feed: &Feed| {
        let pools = dst.ranks()[feed.dst_rank as usize].pools();
        let lanes = feed.groups.iter().flat_map(|g| g.lanes.iter().map(|lane| (g.pool_dst, lane.1 as usize)));
        lanes.map(|(pool, lane)| pools[pool].buffers[lane].layer).collect::<BTreeSet<u32>>().len()
    };
    // Copies that share the work seal each for itself, and none has less than a layer.
    let seals = |feed: &Feed| if replica.splits() { feed.sources.len().min(layers(feed)) as u64 } else { 1 };
    let seals: u64 = (0..relation.dst_ranks()).flat_map(|rank| relation.feeds(rank)).map(seals).sum();
    let seals = if direction == Direction::Pull { 0 } else { seals };
    let beside = u64::from(relation.dst_ranks()) * AUX_BYTES + seals * SEAL_BYTES;
    Some((relation.total_bytes(tokens) as u64, beside))
}

fn layout(world: &World, node: Option<&NodeId>) -> Option<Layout> {
    match world.node(*node?) {
        AnyNode::Prefill(node) => node.memory().map(|memory| memory.layout().clone()),
        AnyNode::Decode(node) => node.memory().map(|memory| memory.layout().clone()),
        AnyNode::Registry(_) | AnyNode::Router(_) | AnyNode::Dead(_) => None,
    }
}

impl Watcher {
    /// Whether no node holds anything for a request, and nothing moves.
    #[must_use]
    pub fn is_quiet(&self, world: &World) -> bool {
        let quiet = |held: Held| {
            held.rooms == 0 && held.pages == 0 && held.slots == 0 && held.timers == 0 && held.receives == 0
        };
        (0..world.nodes()).all(|node| quiet(world.node(NodeId(node as u32)).held()))
            && world.fabrics().quiescent()
    }

    /// Every law that is broken, once everything has come to rest.
    #[must_use]
    pub fn at_rest(&self, world: &World) -> Vec<Broken> {
        let mut wrong = self.broken.clone();
        for life in &self.lives {
            let id = life.request().id.0;
            let steps = || life.steps().iter().map(|s| (s.node.0, s.record.step)).collect::<Vec<_>>();
            if life.ends() != 1 {
                wrong.push(Broken::new(
                    Law::OneEnd,
                    format!("request {id} reached {} final states, must be 1: {:?}", life.ends(), steps()),
                ));
            }
            let mut success = false;
            for stamped in life.steps() {
                let broken = match stamped.record.step {
                    Step::Success if success => "had Success twice",
                    Step::Finished if !success => "finished without Success",
                    Step::Retried(_) if success => "was sent again after Success",
                    _ => "",
                };
                if !broken.is_empty() {
                    wrong.push(Broken::new(Law::Success, format!("request {id} {broken}: {:?}", steps())));
                }
                match stamped.record.step {
                    Step::Routed { .. } => success = false,
                    Step::Success => success = true,
                    _ => {}
                }
            }
        }
        if self.corrupt > 0 {
            wrong.push(Broken::new(
                Law::Content,
                format!("{} checks found wrong content on decode", self.corrupt),
            ));
        }
        for node in 0..world.nodes() {
            let held = world.node(NodeId(node as u32)).held();
            let objects = world.fabrics().host_ref(node).objects();
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
                    wrong.push(Broken::new(
                        Law::Leak,
                        format!("node {node} holds {count} {what} at quiescence, must be {right}"),
                    ));
                }
            }
        }
        self.zones.check(world, &mut wrong);
        wrong
    }

    /// Every law of a fault-free run that is broken beside those of [`Watcher::at_rest`].
    #[must_use]
    pub fn fault_free(&self, world: &World) -> Vec<Broken> {
        let mut wrong = Vec::new();
        let (fabric, nodes) = (world.fabrics().counters(), world.counters());
        for (law, what, count) in [
            (Law::NoRnrNak, "RNR NAKs", fabric.rnr_naks),
            (Law::NoRepair, "fences", nodes.fences),
            (Law::NoRepair, "stale immediates", nodes.stale_immediates),
            (Law::NoRepair, "repeated parts", nodes.repeated_parts),
        ] {
            if count != 0 {
                wrong.push(Broken::new(law, format!("{count} {what}, must be none without faults")));
            }
        }
        let layouts = (layout(world, self.what.prefill.first()), layout(world, self.what.decode.first()));
        let (Some(src), Some(dst)) = layouts else { return wrong };
        let (mut least, mut tries) = (0, 0);
        for life in &self.lives {
            let request = life.request();
            let id = request.id.0;
            if !matches!(life.ending(), Some(Ending::Finished | Ending::Rejected(_))) {
                wrong.push(Broken::new(
                    Law::Served,
                    format!("request {id} ended as {:?} without faults", life.ending()),
                ));
            }
            // The n-th delivery is of the n-th try; a preempted request's tokens are part of its next prompt. Decode may send a request back
            // before prefill has its last completion.
            let (mut prompt, mut tries_of) = (request.prompt, Vec::new());
            let mut delivered = Vec::new();
            for stamped in life.steps() {
                match stamped.record.step {
                    Step::Routed { .. } => tries_of.push(prompt),
                    Step::Preempted { tokens } => prompt += tokens,
                    // Decode was too busy to take it: nothing was sent.
                    Step::Retried(_) => drop(tries_of.pop()),
                    Step::Delivered { bytes, .. } => delivered.push(bytes),
                    _ => {}
                }
            }
            for (prompt, bytes) in tries_of.into_iter().zip(delivered) {
                let Some((kv, beside)) =
                    least_bytes(&src, &dst, self.what.direction, self.what.replica, prompt)
                else {
                    return wrong;
                };
                if bytes != kv {
                    wrong.push(Broken::new(
                        Law::LeastBytes,
                        format!("request {id} moved {bytes} bytes of KV, the layouts need {kv}"),
                    ));
                }
                least += kv + beside;
                tries += 1;
            }
        }
        // Staging declares that it adds a header for each part.
        least += nodes.staged_parts * HEADER_BYTES;
        if nodes.staged_parts != nodes.scattered_parts || nodes.copied_bytes != fabric.copied_bytes {
            wrong.push(Broken::new(
                Law::LeastBytes,
                format!(
                    "{} staged parts posted, {} scattered; {} bytes copied, {} told",
                    nodes.staged_parts, nodes.scattered_parts, fabric.copied_bytes, nodes.copied_bytes
                ),
            ));
        }
        if fabric.bytes != least {
            wrong.push(Broken::new(
                Law::LeastBytes,
                format!("{} bytes moved for {tries} transfers, the layouts need {least}", fabric.bytes),
            ));
        }
        wrong
    }

    /// What is left after all nodes have left.
    #[must_use]
    pub fn after_leaving(world: &World) -> Vec<Broken> {
        let mut wrong = Vec::new();
        for node in 0..world.nodes() {
            let o = world.fabrics().host_ref(node).objects();
            let left =
                o.buffers + o.memory_regions + o.queue_pairs + o.completion_queues + o.shared_receive_queues;
            let held = world.node(NodeId(node as u32)).held();
            if left > 0 || held != Held::default() {
                wrong.push(Broken::new(
                    Law::Remains,
                    format!("node {node} left {o:?} behind after shutdown, and holds {held:?}"),
                ));
            }
        }
        wrong
    }
}
