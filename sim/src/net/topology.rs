//! Links, ports and the path between two ports.

use std::collections::BTreeMap;

use super::path::{Link, LinkId, MAX_HOPS, Path, TopologyError};

/// Largest capacity a link may have, bytes per second; keeps every rate finite.
pub(super) const MAX_CAPACITY: f64 = 1e18;

/// Numbers that describe a two-level leaf-spine network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeafSpine {
    /// Leaf switches.
    pub leaves: u32,
    /// Spine switches; each leaf has one link up to and one down from each.
    pub spines: u32,
    /// Speed of a port, gigabits per second.
    pub port_gbps: f64,
    /// Speed of all ports of a leaf over the speed of all its uplinks: 1 does not block.
    pub oversubscription: f64,
    /// Latency of every link, picoseconds.
    pub latency: u64,
}

/// How the NIC ports hang together.
#[derive(Clone, Debug)]
enum Core {
    /// One switch that never blocks.
    Switch,
    /// A cable from each even port to the next odd one.
    Cables,
    /// `up[leaf * spines + spine]` and `down[..]` join `leaf_of[port]` to the spines.
    LeafSpine { leaf_of: Vec<u32>, spines: u32, up: Vec<LinkId>, down: Vec<LinkId> },
}

#[derive(Clone, Debug, Default)]
struct Port {
    host: u32,
    /// Links between host memory and the NIC, for what leaves; shared by ports if they say so.
    egress: Vec<LinkId>,
    /// The same for what arrives.
    ingress: Vec<LinkId>,
    /// Links of a message to the port itself, between `egress` and `ingress`.
    loopback: Vec<LinkId>,
    up: Option<LinkId>,
    /// `None` at the end of a cable, which is the other end's `up`.
    down: Option<LinkId>,
}

/// Links, ports and routes. A path is: host side of the sender, its port up, the switches, the
/// receiver's port down, host side of the receiver. A message from a port to itself takes the two
/// host sides and the port's loopback links and never touches the wire; one to another port of the
/// same host goes through the switches, as real NICs do, unless no cable leads there.
#[derive(Clone, Debug)]
pub struct Topology {
    links: Vec<Link>,
    ports: Vec<Port>,
    core: Core,
    routes: BTreeMap<(u32, u32), Path>,
    /// Most egress, ingress and loopback links of any port.
    longest: [usize; 3],
}

fn bytes_per_s(what: &'static str, gbps: f64) -> Result<f64, TopologyError> {
    let rate = gbps * 1e9 / 8.0;
    if (0.0..=MAX_CAPACITY).contains(&rate) {
        Ok(rate)
    } else {
        Err(TopologyError::Speed { what, value: gbps })
    }
}

fn some(what: &'static str, count: u32) -> Result<u32, TopologyError> {
    if count == 0 { Err(TopologyError::Zero { what }) } else { Ok(count) }
}

impl Topology {
    fn empty(ports: u32, core: Core) -> Self {
        let ports = (0..ports).map(|host| Port { host, ..Port::default() }).collect();
        Topology { links: Vec::new(), ports, core, routes: BTreeMap::new(), longest: [0; 3] }
    }

    /// One switch; each port (a host of its own until [`set_host`](Self::set_host)) has a link up
    /// and a link down of `gbps` gigabits per second and `latency` picoseconds.
    pub fn star(ports: u32, gbps: f64, latency: u64) -> Result<Self, TopologyError> {
        let capacity = bytes_per_s("port speed (Gb/s)", gbps)?;
        let mut net = Self::empty(some("number of ports", ports)?, Core::Switch);
        net.attach_ports(capacity, latency)?;
        Ok(net)
    }

    /// `cables` cables; the n-th joins ports 2n and 2n+1 with one link in each direction.
    pub fn direct(cables: u32, gbps: f64, latency: u64) -> Result<Self, TopologyError> {
        let capacity = bytes_per_s("cable speed (Gb/s)", gbps)?;
        let cables = some("number of cables", cables)?;
        let ports = cables.checked_mul(2).ok_or(TopologyError::TooMany(u64::from(cables) * 2))?;
        let mut net = Self::empty(ports, Core::Cables);
        for port in 0..net.ports.len() {
            let link = net.add_link(capacity, latency)?;
            net.ports[port].up = Some(link);
        }
        Ok(net)
    }

    /// A leaf-spine network with `ports_per_leaf` ports on each leaf, numbered leaf by leaf.
    pub fn leaf_spine(spec: &LeafSpine, ports_per_leaf: u32) -> Result<Self, TopologyError> {
        let per_leaf = some("ports per leaf", ports_per_leaf)?;
        let count = u64::from(spec.leaves) * u64::from(per_leaf);
        if count > 1 << 31 {
            return Err(TopologyError::TooMany(count));
        }
        let leaf_of: Vec<u32> = (0..spec.leaves).flat_map(|leaf| (0..per_leaf).map(move |_| leaf)).collect();
        Self::leaf_spine_of(spec, &leaf_of)
    }

    /// A leaf-spine network in which port `p` hangs on leaf `leaf_of[p]`. Rail-optimised clusters
    /// put port `r` of every host on leaf `r`. The uplinks of every leaf have the speed that the
    /// fullest leaf needs.
    pub fn leaf_spine_of(spec: &LeafSpine, leaf_of: &[u32]) -> Result<Self, TopologyError> {
        let capacity = bytes_per_s("port speed (Gb/s)", spec.port_gbps)?;
        some("number of leaves", spec.leaves)?;
        some("number of spines", spec.spines)?;
        if leaf_of.is_empty() {
            return Err(TopologyError::Zero { what: "number of ports" });
        }
        if leaf_of.len() as u64 > 1 << 31 {
            return Err(TopologyError::TooMany(leaf_of.len() as u64));
        }
        if !(spec.oversubscription > 0.0 && spec.oversubscription.is_finite()) {
            return Err(TopologyError::Oversubscription(spec.oversubscription));
        }
        let mut on_leaf = vec![0u32; spec.leaves as usize];
        for (port, &leaf) in leaf_of.iter().enumerate() {
            match on_leaf.get_mut(leaf as usize) {
                Some(count) => *count += 1,
                None => return Err(TopologyError::NoLeaf { port, leaf, leaves: spec.leaves }),
            }
        }
        let fullest = f64::from(on_leaf.iter().copied().max().unwrap_or(0));
        let uplink = capacity * fullest / (f64::from(spec.spines) * spec.oversubscription);
        let uplink = uplink.min(MAX_CAPACITY);
        let mut net = Self::empty(leaf_of.len() as u32, Core::Switch);
        net.attach_ports(capacity, spec.latency)?;
        let pairs = spec.leaves as usize * spec.spines as usize;
        let (mut up, mut down) = (Vec::with_capacity(pairs), Vec::with_capacity(pairs));
        for _ in 0..pairs {
            up.push(net.add_link(uplink, spec.latency)?);
            down.push(net.add_link(uplink, spec.latency)?);
        }
        net.core = Core::LeafSpine { leaf_of: leaf_of.to_vec(), spines: spec.spines, up, down };
        Ok(net)
    }

    fn attach_ports(&mut self, capacity: f64, latency: u64) -> Result<(), TopologyError> {
        for port in 0..self.ports.len() {
            let up = self.add_link(capacity, latency)?;
            let down = self.add_link(capacity, latency)?;
            self.ports[port].up = Some(up);
            self.ports[port].down = Some(down);
        }
        Ok(())
    }

    /// Adds a link (bytes per second, picoseconds) that lies on no path yet.
    pub fn add_link(&mut self, capacity: f64, latency: u64) -> Result<LinkId, TopologyError> {
        if !(0.0..=MAX_CAPACITY).contains(&capacity) {
            return Err(TopologyError::Speed { what: "link capacity (bytes/s)", value: capacity });
        }
        let id =
            u32::try_from(self.links.len()).map_err(|_| TopologyError::TooMany(self.links.len() as u64))?;
        self.links.push(Link { capacity, latency });
        Ok(LinkId(id))
    }

    /// Says which host a port belongs to.
    pub fn set_host(&mut self, port: u32, host: u32) -> Result<(), TopologyError> {
        self.port_mut(port)?.host = host;
        Ok(())
    }

    /// Puts a link on everything that leaves through `port`, nearer to the NIC than the links that
    /// were put there before: PCIe reads of the host, then a limit of the NIC.
    pub fn add_egress(&mut self, port: u32, link: LinkId) -> Result<(), TopologyError> {
        self.extra(port, link, 0, |port| &mut port.egress)
    }

    /// Puts a link on everything that arrives through `port`, nearer to host memory than the links
    /// that were put there before.
    pub fn add_ingress(&mut self, port: u32, link: LinkId) -> Result<(), TopologyError> {
        self.extra(port, link, 1, |port| &mut port.ingress)
    }

    /// Puts a link on what `port` sends to itself, between the egress and the ingress links.
    pub fn add_loopback(&mut self, port: u32, link: LinkId) -> Result<(), TopologyError> {
        self.extra(port, link, 2, |port| &mut port.loopback)
    }

    fn extra(
        &mut self,
        port: u32,
        link: LinkId,
        side: usize,
        links: fn(&mut Port) -> &mut Vec<LinkId>,
    ) -> Result<(), TopologyError> {
        self.known(link)?;
        let mut longest = self.longest;
        let links = links(self.port_mut(port)?);
        longest[side] = longest[side].max(links.len() + 1);
        // Through a spine a path has four links between the host sides.
        let hops = longest[0] + longest[1] + longest[2].max(4);
        if hops > MAX_HOPS {
            return Err(TopologyError::TooLong { hops });
        }
        links.push(link);
        self.longest = longest;
        Ok(())
    }

    /// Replaces the path from `src` to `dst` by these links, host sides included.
    pub fn set_route(&mut self, src: u32, dst: u32, links: &[LinkId]) -> Result<(), TopologyError> {
        self.port_mut(src)?;
        self.port_mut(dst)?;
        for &link in links {
            self.known(link)?;
        }
        if links.len() > MAX_HOPS {
            return Err(TopologyError::TooLong { hops: links.len() });
        }
        let mut path = Path::EMPTY;
        self.extend(&mut path, links);
        self.routes.insert((src, dst), path);
        Ok(())
    }

    fn known(&self, link: LinkId) -> Result<(), TopologyError> {
        if (link.0 as usize) < self.links.len() {
            Ok(())
        } else {
            Err(TopologyError::NoLink { link: link.0, links: self.links.len() })
        }
    }

    fn port_mut(&mut self, port: u32) -> Result<&mut Port, TopologyError> {
        let ports = self.ports.len();
        self.ports.get_mut(port as usize).ok_or(TopologyError::NoPort { port, ports })
    }

    /// Most links that any path of this topology crosses.
    pub(super) fn longest_path(&self) -> usize {
        let middle = if matches!(self.core, Core::LeafSpine { .. }) { 4 } else { 2 };
        let longest = self.longest[0] + self.longest[1] + self.longest[2].max(middle);
        let routes = self.routes.values().map(|path| path.links().len()).max();
        longest.max(routes.unwrap_or(0))
    }

    /// Number of ports; they are numbered from 0.
    pub fn ports(&self) -> u32 {
        self.ports.len() as u32
    }

    /// The host a port belongs to.
    pub fn host(&self, port: u32) -> Option<u32> {
        self.ports.get(port as usize).map(|p| p.host)
    }

    /// All links; [`LinkId`] is the place in this slice.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The link from a port into the network.
    pub fn port_up(&self, port: u32) -> Option<LinkId> {
        self.ports.get(port as usize)?.up
    }

    /// The link from the network to a port.
    pub fn port_down(&self, port: u32) -> Option<LinkId> {
        match self.core {
            Core::Cables => self.port_up(port ^ 1),
            _ => self.ports.get(port as usize)?.down,
        }
    }

    /// The link from a leaf switch up to a spine switch, and the one back down.
    pub fn spine_links(&self, leaf: u32, spine: u32) -> Option<(LinkId, LinkId)> {
        match &self.core {
            Core::LeafSpine { spines, up, down, .. } if spine < *spines => {
                let at = leaf as usize * *spines as usize + spine as usize;
                Some((*up.get(at)?, *down.get(at)?))
            }
            _ => None,
        }
    }

    /// The path from `src` to `dst`. Where several have the same cost, a hash of the ports and
    /// `label` picks one, always the same. `None` when a port does not exist or no cable leads there.
    pub fn path(&self, src: u32, dst: u32, label: u32) -> Option<Path> {
        let from = self.ports.get(src as usize)?;
        let to = self.ports.get(dst as usize)?;
        if !self.routes.is_empty()
            && let Some(path) = self.routes.get(&(src, dst))
        {
            return Some(*path);
        }
        let mut path = Path::EMPTY;
        self.extend(&mut path, &from.egress);
        if src == dst {
            self.extend(&mut path, &from.loopback);
        } else {
            match &self.core {
                Core::Switch => {
                    self.push(&mut path, from.up?);
                    self.push(&mut path, to.down?);
                }
                Core::Cables if src ^ 1 == dst => self.push(&mut path, from.up?),
                Core::Cables if from.host == to.host => self.extend(&mut path, &from.loopback),
                Core::Cables => return None,
                Core::LeafSpine { leaf_of, spines, up, down } => {
                    let (a, b) = (leaf_of[src as usize], leaf_of[dst as usize]);
                    self.push(&mut path, from.up?);
                    if a != b {
                        let spine = (mix(src, dst, label) % u64::from(*spines)) as usize;
                        let spines = *spines as usize;
                        path.choice = spine as u32;
                        self.push(&mut path, up[a as usize * spines + spine]);
                        self.push(&mut path, down[b as usize * spines + spine]);
                    }
                    self.push(&mut path, to.down?);
                }
            }
        }
        self.extend(&mut path, &to.ingress);
        Some(path)
    }

    fn extend(&self, path: &mut Path, links: &[LinkId]) {
        for &link in links {
            self.push(path, link);
        }
    }

    fn push(&self, path: &mut Path, link: LinkId) {
        path.push(link, &self.links[link.0 as usize]);
    }
}

/// Finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) over what a switch would hash.
fn mix(src: u32, dst: u32, label: u32) -> u64 {
    let mut z =
        (u64::from(src) << 32 | u64::from(dst)) ^ u64::from(label).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..2 {
        z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
    }
    z
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hops(net: &Topology, src: u32, dst: u32, label: u32) -> Option<Vec<u32>> {
        Some(net.path(src, dst, label)?.links().iter().map(|link| link.0).collect())
    }

    #[test]
    fn a_star_path_goes_up_and_down() -> Result<(), TopologyError> {
        let net = Topology::star(3, 400.0, 1_000_000)?;
        assert_eq!(net.links()[0].capacity, 50e9);
        let path = net.path(0, 2, 7).map(|path| (path.links().to_vec(), path.latency()));
        assert_eq!(path, Some((vec![LinkId(0), LinkId(5)], 2_000_000)));
        assert_eq!((net.port_up(2), net.port_down(2)), (Some(LinkId(4)), Some(LinkId(5))));
        assert_eq!(net.path(0, 3, 0), None);
        Ok(())
    }

    #[test]
    fn host_sides_lie_around_the_wire_and_loopback_stays_off_it() -> Result<(), TopologyError> {
        let mut net = Topology::star(2, 400.0, 1_000_000)?;
        let (read, write, own) = (net.add_link(60e9, 5)?, net.add_link(60e9, 7)?, net.add_link(40e9, 1)?);
        for port in 0..2 {
            net.set_host(port, 0)?;
            net.add_egress(port, read)?;
            net.add_ingress(port, write)?;
        }
        net.add_loopback(0, own)?;
        assert_eq!(hops(&net, 0, 1, 0), Some(vec![read.0, 0, 3, write.0]));
        assert_eq!(hops(&net, 0, 0, 0), Some(vec![read.0, own.0, write.0]));
        assert_eq!(net.path(0, 0, 0).map(|path| path.latency()), Some(13));
        assert_eq!(net.host(1), Some(0));
        Ok(())
    }

    #[test]
    fn a_cable_joins_two_ports_and_no_others() -> Result<(), TopologyError> {
        let net = Topology::direct(2, 200.0, 1)?;
        assert_eq!(hops(&net, 0, 1, 0), Some(vec![0]));
        assert_eq!(hops(&net, 1, 0, 0), Some(vec![1]));
        assert_eq!(net.port_down(0), Some(LinkId(1)));
        assert_eq!(net.path(0, 2, 0), None);
        Ok(())
    }

    #[test]
    fn leaves_share_uplinks_and_labels_pick_spines() -> Result<(), TopologyError> {
        let spec = LeafSpine { leaves: 2, spines: 4, port_gbps: 400.0, oversubscription: 2.0, latency: 600 };
        let net = Topology::leaf_spine(&spec, 8)?;
        assert_eq!(hops(&net, 0, 7, 0).map(|path| path.len()), Some(2));
        let mut seen = [0; 4];
        for label in 0..400 {
            let path = net.path(3, 12, label);
            assert_eq!(path, net.path(3, 12, label));
            let Some(path) = path else { continue };
            assert_eq!((path.links().len(), path.latency()), (4, 2400));
            for spine in 0..4 {
                if net.spine_links(0, spine).map(|pair| pair.0) == Some(path.links()[1]) {
                    assert_eq!(net.spine_links(1, spine).map(|pair| pair.1), Some(path.links()[2]));
                    seen[spine as usize] += 1;
                }
            }
        }
        assert!(seen.iter().all(|&n| n > 60), "spines are used evenly: {seen:?}");
        let uplink = net.spine_links(0, 0).map(|pair| net.links()[pair.0.0 as usize].capacity);
        assert_eq!(uplink, Some(8.0 * 50e9 / (4.0 * 2.0)));
        Ok(())
    }

    #[test]
    fn a_rail_is_a_leaf() -> Result<(), TopologyError> {
        let spec = LeafSpine { leaves: 2, spines: 1, port_gbps: 400.0, oversubscription: 1.0, latency: 0 };
        let net = Topology::leaf_spine_of(&spec, &[0, 1, 0, 1])?;
        assert_eq!(hops(&net, 0, 2, 0).map(|path| path.len()), Some(2));
        assert_eq!(hops(&net, 0, 3, 0).map(|path| path.len()), Some(4));
        Ok(())
    }

    #[test]
    fn what_cannot_be_built_is_refused() -> Result<(), TopologyError> {
        assert!(matches!(Topology::star(0, 1.0, 0), Err(TopologyError::Zero { .. })));
        assert!(matches!(Topology::star(1, f64::NAN, 0), Err(TopologyError::Speed { .. })));
        let mut net = Topology::star(2, 1.0, 0)?;
        assert!(matches!(net.add_egress(2, LinkId(0)), Err(TopologyError::NoPort { .. })));
        assert!(matches!(net.add_egress(0, LinkId(9)), Err(TopologyError::NoLink { .. })));
        for _ in 0..MAX_HOPS - 4 {
            let link = net.add_link(1.0, 0)?;
            net.add_egress(0, link)?;
        }
        let link = net.add_link(1.0, 0)?;
        assert!(matches!(net.add_ingress(1, link), Err(TopologyError::TooLong { hops: 13 })));
        Ok(())
    }

    #[test]
    fn a_route_replaces_a_path() -> Result<(), TopologyError> {
        let mut net = Topology::star(2, 1.0, 0)?;
        let link = net.add_link(1.0, 3)?;
        net.set_route(0, 1, &[link, link])?;
        assert_eq!(hops(&net, 0, 1, 0), Some(vec![link.0]));
        assert_eq!(hops(&net, 1, 0, 0), Some(vec![2, 1]));
        Ok(())
    }
}
