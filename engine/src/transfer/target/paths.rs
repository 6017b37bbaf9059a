//! The target's ports: queue pairs of one that is down are left out of an offer where their ranks have others.
//!
//! When the port is back and has been for a time, the initiator is asked to close the link between two parts; the next offer has them all.

use super::super::news::News;
use super::super::usable::Usable;
use super::Target;
use super::link::Link;
use crate::fabric::{Fabric, Port};
use crate::id::{InstanceId, PortId};
use crate::node::Cx;
use crate::registry::{LinkBody, Message};
use crate::time::Time;

impl Target {
    /// Decides which queue pairs are offered.
    pub(super) fn choose_paths(&mut self, now: Time, fabric: &dyn Fabric, peer: InstanceId) {
        let offered = self.links.get(&peer).map(|link| self.wanted(now, fabric.ports(), link));
        if let (Some(link), Some(offered)) = (self.links.get_mut(&peer), offered) {
            link.offered = offered;
        }
    }

    fn wanted(&self, now: Time, ports: &[Port], link: &Link) -> Usable {
        let well = |port: &Port| port.up && self.back_at(port.id) <= now;
        if self.config.failover.is_none() || ports.iter().all(well) {
            return Usable::default();
        }
        let avoid = |port: PortId| !ports.get(port.index()).is_some_and(well);
        Usable::without(&link.pairing, &Usable::default(), |_, ends| avoid(ends.dst_port))
    }

    /// Until when a port is avoided, its link being up.
    fn back_at(&self, port: PortId) -> Time {
        self.ports.get(port.index()).map_or(Time::ZERO, |port| port.health.until())
    }

    /// Sees to it that a link which lacks queue pairs for this side's sake is looked at when they may be back.
    pub(super) fn plan_recheck(&mut self, fabric: &dyn Fabric, peer: InstanceId) {
        let Some(link) = self.links.get(&peer).filter(|link| !link.offered.is_whole()) else { return };
        let lacks = link.pairing.wires.iter().enumerate().filter(|(wire, _)| !link.offered.has(*wire));
        let up = |port: &PortId| fabric.ports().get(port.index()).is_some_and(|port| port.up);
        let back = lacks.map(|(_, ends)| ends.dst_port).filter(up).map(|port| self.back_at(port)).min();
        // That of a port which is down is looked at when it comes up.
        self.recheck = self.recheck.min(back.unwrap_or(Time::NEVER));
    }

    /// Asks for links to be connected anew that could have more queue pairs by now.
    pub(super) fn check_paths(&mut self, cx: &mut Cx<'_>) {
        if self.recheck > cx.now {
            return;
        }
        self.recheck = Time::NEVER;
        let lacking = self.links.iter().filter(|(_, link)| link.may_be_used() && !link.offered.is_whole());
        let lacking: Vec<InstanceId> = lacking.map(|(peer, _)| *peer).collect();
        for peer in lacking {
            let link = &self.links[&peer];
            if self.wanted(cx.now, cx.fabric.ports(), link) == link.offered {
                self.plan_recheck(cx.fabric, peer);
            } else if !link.is_up() {
                // Not answered yet: nothing is lost by another one.
                self.offer(cx, peer);
            } else if !link.urged {
                let body = LinkBody::Yield { offer: link.number() };
                self.news.push_back(News::Tell(Message::Link { peer, body }));
                if let Some(link) = self.links.get_mut(&peer) {
                    link.urged = true;
                }
            }
        }
    }

    /// A port of this side lost its link. Links whose ranks all have another way are offered without it; the others wait for the port, which
    /// may be back before their queue pairs give up.
    pub(super) fn port_down(&mut self, cx: &mut Cx<'_>, port: PortId) {
        let Some(cooldown) = self.config.failover else { return };
        let Some(receives) = self.ports.get_mut(port.index()) else { return };
        receives.health.worked(cx.now);
        receives.health.failed(cx.now, cooldown);
        let hit = |link: &Link| {
            let wanted = self.wanted(cx.now, cx.fabric.ports(), link);
            let uses = |usable: &Usable| {
                let wires = link.pairing.wires.iter().enumerate();
                wires.filter(|(wire, _)| usable.has(*wire)).any(|(_, ends)| ends.dst_port == port)
            };
            link.may_be_used() && uses(&link.offered) && !uses(&wanted)
        };
        let peers: Vec<InstanceId> =
            self.links.iter().filter(|(_, link)| hit(link)).map(|(peer, _)| *peer).collect();
        for peer in peers {
            self.offer(cx, peer);
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
}
