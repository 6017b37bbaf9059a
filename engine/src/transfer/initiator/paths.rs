//! Paths between ports: what is known of each, which rail a piece goes on, and what is done when a port or path fails.
//!
//! A queue pair whose port is down, or that lately failed for want of an answer, is left out of the next connection where its ranks have
//! another one; the parts that were meant for it go over the others, as the same parts. When its time is over the link is connected anew, in a
//! moment when no part is begun, so that nothing is posted twice for it.

use super::super::memory::port_of;
use super::super::pairing::Pairing;
use super::super::usable::Usable;
use super::Initiator;
use super::link::{Link, Slice};
use super::room::{Part, PartState, Room};
use crate::fabric::{Fabric, Port};
use crate::id::{InstanceId, PortId, Rank};
use crate::node::Cx;
use crate::policy::{Bandwidth, Health, Piece, Rail, RailPolicy, Rails};
use crate::time::Time;

/// A pair of ports that some queue pairs of a link join.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    pub src: PortId,
    pub dst: PortId,
    /// Bytes of parts that go there and have not completed. Counted only for a rail policy that looks at it, like the next.
    pub backlog: u64,
    pub bandwidth: Bandwidth,
    /// Of the way between the two: of this side's port its own is kept.
    pub health: Health,
}

/// The paths of a link, and which of them each queue pair takes.
pub(super) fn paths(pairing: &Pairing) -> (Vec<Path>, Vec<u16>) {
    let mut paths: Vec<Path> = Vec::new();
    let mut path_of = Vec::with_capacity(pairing.wires.len());
    for wire in &pairing.wires {
        let (src, dst) = (wire.src_port, wire.dst_port);
        let found = paths.iter().position(|path| (path.src, path.dst) == (src, dst));
        path_of.push(found.unwrap_or(paths.len()) as u16);
        if found.is_none() {
            let (bandwidth, health) = (Bandwidth::default(), Health::default());
            paths.push(Path { src, dst, backlog: 0, bandwidth, health });
        }
    }
    (paths, path_of)
}

impl Link {
    fn path_mut(&mut self, wire: usize) -> Option<&mut Path> {
        self.path_of.get(wire).and_then(|path| self.paths.get_mut(usize::from(*path)))
    }

    /// Counts bytes of a part to the path on which they go.
    pub(super) fn add_backlog(&mut self, wire: u32, bytes: u64) {
        if let Some(path) = self.path_mut(wire as usize) {
            path.backlog = path.backlog.saturating_add(bytes);
        }
    }

    /// What is left of an ended room goes nowhere.
    pub(super) fn drop_backlog(&mut self, room: &Room) {
        for part in room.parts.iter().filter(|part| part.state != PartState::Done) {
            if let Some(path) = self.path_mut(part.wire as usize) {
                path.backlog = path.backlog.saturating_sub(part.left());
            }
        }
    }
}

impl Part {
    fn left(&self) -> u64 {
        self.bytes.saturating_sub(self.acked)
    }
}

/// Where a piece could go: the rails of a feed, the first of which is queue pair `base`.
pub(super) struct Ways<'a> {
    pub link: &'a Link,
    pub base: usize,
    /// Ranks of the initiator's instance.
    pub ranks: usize,
    pub ports: &'a [Port],
}

impl Ways<'_> {
    /// The rail that the policy chooses for a piece.
    pub(super) fn choose(&self, now: Time, rails: &mut dyn Rails, policy: &RailPolicy, piece: &Piece) -> u16 {
        let live: Vec<u16> = (0..self.link.pairing.rails)
            .filter(|r| self.link.usable.has(self.base + usize::from(*r)))
            .collect();
        let own = self.numa(port_of(piece.rank, self.ranks, 0, self.ports.len()));
        let view: Vec<Rail> = live.iter().map(|rail| self.rail(now, *rail, own, policy)).collect();
        let chosen = if view.is_empty() { 0 } else { rails.choose(now, piece, &view) };
        // A policy's word is not trusted.
        live.get(chosen).or(live.first()).copied().unwrap_or(0)
    }

    fn numa(&self, port: PortId) -> Option<u8> {
        self.ports.get(port.index()).and_then(|port| port.numa)
    }

    fn rail(&self, now: Time, rail: u16, own: Option<u8>, policy: &RailPolicy) -> Rail {
        let wire = self.base + usize::from(rail);
        let path = self.link.path_of.get(wire).and_then(|path| self.link.paths.get(usize::from(*path)));
        let (Some(path), RailPolicy::LeastInflight(policy)) = (path, policy) else {
            return Rail { backlog: 0, rate: 0, far: false };
        };
        let line = self.ports.get(path.src.index()).map_or(1, |port| port.bits_per_s / 8);
        let theirs = self.numa(path.src);
        Rail {
            backlog: path.backlog,
            rate: path.bandwidth.rate(now, line, policy),
            far: own.is_some() && theirs.is_some() && own != theirs,
        }
    }
}

impl Initiator {
    /// A slice has completed with success: what that says of its path.
    pub(super) fn measure(&mut self, now: Time, peer: InstanceId, wire: usize, slice: &Slice) {
        let RailPolicy::LeastInflight(policy) = &self.config.rail_policy else { return };
        let Some(path) = self.links.get_mut(&peer).and_then(|link| link.path_mut(wire)) else { return };
        path.backlog = path.backlog.saturating_sub(slice.bytes);
        path.bandwidth.completed(now, slice.posted, slice.bytes, policy);
    }

    /// Counts the backlog of a link's paths anew: parts have moved.
    pub(super) fn count_backlog(&mut self, peer: InstanceId) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.paths.iter_mut().for_each(|path| path.backlog = 0);
        for index in link.rooms.clone() {
            let Some(room) = self.rooms.get(index as usize).and_then(Option::as_ref) else { continue };
            for part in room.parts.iter().filter(|part| part.state != PartState::Done) {
                link.add_backlog(part.wire, part.left());
            }
        }
    }

    /// Decides which of the queue pairs that the target offers are connected.
    pub(super) fn choose_paths(&mut self, now: Time, fabric: &dyn Fabric, peer: InstanceId) {
        let usable = self.links.get(&peer).map(|link| self.wanted(now, fabric.ports(), link));
        if let (Some(link), Some(usable)) = (self.links.get_mut(&peer), usable) {
            link.usable = usable;
        }
    }

    /// Those of the target's offer that are not to be avoided now.
    fn wanted(&self, now: Time, ports: &[Port], link: &Link) -> Usable {
        if self.config.failover.is_none() || (self.doubts == 0 && ports.iter().all(|port| port.up)) {
            return link.offered.clone();
        }
        Usable::without(&link.pairing, &link.offered, |wire, ends| {
            !ports.get(ends.src_port.index()).is_some_and(|port| port.up) || self.avoided(link, wire) > now
        })
    }

    /// Until when a queue pair is avoided, its port being up.
    fn avoided(&self, link: &Link, wire: usize) -> Time {
        let path = link.path_of.get(wire).and_then(|path| link.paths.get(usize::from(*path)));
        let Some(path) = path else { return Time::ZERO };
        let port = self.ports.get(path.src.index()).map_or(Time::ZERO, |port| port.health.until());
        port.max(path.health.until())
    }

    /// Sees to it that a link which lacks queue pairs for this side's sake is looked at when the next of them may be back.
    pub(super) fn plan_recheck(&mut self, cx: &Cx<'_>, peer: InstanceId) {
        let Some(link) = self.links.get(&peer).filter(|link| link.usable != link.offered) else { return };
        let lacks = |wire: &usize| link.offered.has(*wire) && !link.usable.has(*wire);
        let up = |wire: &usize| {
            let port = link.pairing.wires[*wire].src_port.index();
            cx.fabric.ports().get(port).is_some_and(|port| port.up)
        };
        let back =
            (0..link.pairing.wires.len()).filter(lacks).filter(up).map(|wire| self.avoided(link, wire));
        // That of a port which is down is looked at when it comes up.
        self.recheck = self.recheck.min(back.min().unwrap_or(Time::NEVER));
    }

    /// Connects links anew that could have more queue pairs by now.
    pub(super) fn check_paths(&mut self, cx: &mut Cx<'_>) {
        if self.recheck > cx.now {
            return;
        }
        self.recheck = Time::NEVER;
        let lacking: Vec<InstanceId> = self
            .links
            .iter()
            .filter(|(_, link)| !link.is_down() && link.usable != link.offered)
            .map(|(peer, _)| *peer)
            .collect();
        for peer in lacking {
            let link = &self.links[&peer];
            if self.wanted(cx.now, cx.fabric.ports(), link) == link.usable {
                self.plan_recheck(cx, peer);
            } else if let Some(link) = self.links.get_mut(&peer) {
                (link.yielding, link.renewing) = (true, true);
                self.make_way(cx, peer);
            }
        }
        self.feed(cx);
    }

    /// A queue pair got no answer after all retries: the way is avoided for a time.
    pub(super) fn path_failed(&mut self, now: Time, peer: InstanceId, wire: usize) {
        let Some(cooldown) = self.config.failover else { return };
        if let Some(path) = self.links.get_mut(&peer).and_then(|link| link.path_mut(wire)) {
            path.health.failed(now, cooldown);
        }
        self.count_doubts();
    }

    /// A part went through.
    pub(super) fn path_worked(&mut self, now: Time, peer: InstanceId, wire: usize) {
        let Some(path) = self.links.get_mut(&peer).and_then(|link| link.path_mut(wire)) else { return };
        path.health.worked(now);
        if let Some(port) = self.ports.get_mut(path.src.index()) {
            port.health.worked(now);
        }
        self.count_doubts();
    }

    fn count_doubts(&mut self) {
        let ports = self.ports.iter().filter(|port| port.health.is_doubtful()).count();
        let paths = self.links.values().flat_map(|link| &link.paths);
        self.doubts = ports + paths.filter(|path| path.health.is_doubtful()).count();
    }

    /// A port of this side lost its link. Links that have another way between all ranks that use it take that way at once; the others wait for
    /// the port, which may be back before their queue pairs give up.
    pub(super) fn port_down(&mut self, cx: &mut Cx<'_>, port: PortId) {
        let Some(cooldown) = self.config.failover else { return };
        if let Some(port) = self.ports.get_mut(port.index()) {
            port.health.worked(cx.now);
            port.health.failed(cx.now, cooldown);
        }
        self.count_doubts();
        let ports = cx.fabric.ports();
        let hit = |link: &Link| {
            let uses = |(wire, ends): (usize, &super::super::pairing::Wire)| {
                ends.src_port == port && link.usable.has(wire)
            };
            let wanted = self.wanted(cx.now, ports, link);
            let still = link.pairing.wires.iter().enumerate().filter(|(wire, _)| wanted.has(*wire)).any(uses);
            !link.is_down() && !still && link.pairing.wires.iter().enumerate().any(uses)
        };
        let peers: Vec<InstanceId> =
            self.links.iter().filter(|(_, link)| hit(link)).map(|(peer, _)| *peer).collect();
        for peer in peers {
            self.broken(cx, peer, true);
        }
    }

    /// A port of this side has its link back.
    pub(super) fn port_up(&mut self, now: Time, port: PortId) {
        if let Some(port) = self.ports.get_mut(port.index())
            && self.config.failover.is_some()
        {
            port.health.returned(now);
            self.recheck = self.recheck.min(port.health.until().max(now));
        }
    }

    /// What the rail policy hears of a piece.
    pub(super) fn piece(room: &Room, rank: Rank, nth: u16, bytes: u64) -> Piece {
        Piece { room: room.spec.key.room.0, rank, nth, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::pairing::tests::{facts, pairing};
    use super::*;
    use crate::fabric::LinkLayer;
    use crate::policy::LeastInflight;
    use models::{Parallel, presets};
    use std::sync::Arc;

    /// Three rails between two ports on either side: the first and the third share a path.
    fn link() -> Link {
        let model = presets::lookup("tiny-gqa").unwrap();
        let mut side = facts(&model, Parallel::tp(1), 16, false);
        side.ranks[0].aux.rkeys = vec![1; 2];
        let pairing = pairing(&model, &side, &side, 3);
        Link::new(Arc::new(side), Arc::new(pairing))
    }

    fn port(id: u32, bits_per_s: u64, numa: Option<u8>) -> Port {
        Port {
            id: PortId(id),
            name: String::new(),
            link_layer: LinkLayer::Ethernet,
            bits_per_s,
            mtu: 4096,
            numa,
            pcie: String::new(),
            gids: Vec::new(),
            lid: 0,
            up: true,
        }
    }

    /// Chooses always the same, and keeps what it was shown.
    struct Fixed(usize, Vec<(u64, u64, bool)>);

    impl Rails for Fixed {
        fn choose(&mut self, _now: Time, _piece: &Piece, rails: &[Rail]) -> usize {
            self.1 = rails.iter().map(|rail| (rail.backlog, rail.rate, rail.far)).collect();
            self.0
        }
    }

    #[test]
    fn a_policy_sees_the_rails_that_are_there() {
        let mut link = link();
        assert_eq!(link.path_of, [0, 1, 0]);
        let idle = format!("{link:?}");
        // There is no queue pair 9.
        for (wire, bytes) in [(0, 5), (1, 7), (2, 10), (9, 1)] {
            link.add_backlog(wire, bytes);
        }
        assert_ne!(format!("{link:?}"), idle);
        let least = RailPolicy::LeastInflight(LeastInflight::default());
        let choose = |link: &Link, numa: [Option<u8>; 2], rank: u16, policy: &RailPolicy, nth: usize| {
            let ports = [port(0, 800, numa[0]), port(1, 8000, numa[1])];
            let mut rails = Fixed(nth, Vec::new());
            let piece = Piece { room: 1, rank: Rank(rank), nth: 0, bytes: 100 };
            let ways = Ways { link, base: 0, ranks: 2, ports: &ports };
            (ways.choose(Time::ZERO, &mut rails, policy, &piece), rails.1)
        };
        let apart = [Some(0), Some(1)];
        let seen = |far: [bool; 2]| vec![(15, 100, far[0]), (7, 1000, far[1]), (15, 100, far[0])];
        // The first rank's own port is the first one, the second's the second.
        assert_eq!(choose(&link, apart, 0, &least, 1), (1, seen([false, true])));
        assert_eq!(choose(&link, apart, 1, &least, 2), (2, seen([true, false])));
        // What is not known is not far.
        assert_eq!(choose(&link, [Some(0), None], 0, &least, 0), (0, seen([false, false])));
        assert_eq!(choose(&link, [None, Some(1)], 0, &least, 0), (0, seen([false, false])));
        assert_eq!(choose(&link, [Some(1), Some(1)], 0, &least, 0), (0, seen([false, false])));
        // For who does not measure nothing is counted.
        assert_eq!(choose(&link, apart, 0, &RailPolicy::Hash, 1), (1, vec![(0, 0, false); 3]));
        // One is left out; a choice that is not there is the first.
        link.usable = Usable::without(&link.pairing, &Usable::default(), |wire, _| wire == 0);
        assert_eq!(choose(&link, apart, 0, &least, 1), (2, seen([false, true])[1..].to_vec()));
        assert_eq!(choose(&link, apart, 0, &least, 2).0, 1);
    }
}
