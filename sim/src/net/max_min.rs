//! Weighted max-min fair levels with caps, kept up to date as the load changes.
//!
//! A *class* is a set of flows with one path, one weight and one cap. Its *level* is its rate per
//! unit of weight. Levels are max-min fair exactly when no link carries more than its capacity and
//! every class either is at its limit (cap over weight) or crosses a full link on which no class
//! has a higher level: its *bottleneck*. That condition is local, so after a change only the
//! changed classes and those whose bottleneck is one of their links are filled again, against
//! what all other classes leave over; then the condition is checked for the others on the links
//! that were touched, those who break it join, and so on until none does.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::topology::{LinkId, MAX_HOPS};

/// Relative difference below which two levels, or a load and a capacity, count as equal: far above
/// the rounding of sums over thousands of classes, far below anything a result shows.
const SAME: f64 = 1e-11;
/// Times a link's load is changed by differences before it is summed up afresh.
const RESUM: u32 = 256;
/// Above this many links the fullest is found with a heap instead of a scan.
const SCAN: usize = 48;

/// Bottleneck of a class that has none yet.
const NONE: u32 = u32::MAX;
/// Bottleneck of a class which its own limit holds back.
const LIMIT: u32 = u32::MAX - 1;

/// What the scans over a link's classes read; the rest is in [`Route`].
#[derive(Clone, Debug)]
struct Class {
    /// Rate per unit of weight, bytes per picosecond.
    level: f64,
    /// Weight of all its flows together; 0 in a free place.
    weight: f64,
    /// Highest level; infinite without cap.
    limit: f64,
    /// Link (or [`LIMIT`]) that holds it back.
    bottleneck: u32,
    /// Round in which it was last filled again.
    round: u32,
    /// Has its level in the pass under way.
    fixed: bool,
}

#[derive(Clone, Debug)]
struct Route {
    links: [u32; MAX_HOPS],
    /// Place of the class in the list of each of those links.
    places: [u32; MAX_HOPS],
    len: u8,
}

#[derive(Clone, Debug, Default)]
struct Link {
    /// Bytes per picosecond.
    capacity: f64,
    /// Sum of weight times level of its classes.
    used: f64,
    classes: Vec<u32>,
    /// How many of them it holds back, those being filled apart.
    held: u32,
    /// Changes of `used` since it was last summed up.
    drift: u32,
    /// In the list of links whose load or capacity changed.
    dirty: bool,
    /// Round in which it was last touched.
    round: u32,
    /// Place in the list of touched links.
    slot: u32,
    /// Left over by the classes that keep their level; weight and number of the others.
    spare: f64,
    spare_weight: f64,
    spare_open: u32,
    /// The same during a pass, less those that got their level.
    rest: f64,
    open_weight: f64,
    open: u32,
    /// Level at which it filled up in the last pass, infinite if it did not.
    full_at: f64,
}

impl Link {
    fn share(&self) -> f64 {
        if self.open == 0 {
            f64::INFINITY
        } else if self.rest > 0.0 && self.open_weight > 0.0 {
            self.rest / self.open_weight
        } else {
            0.0
        }
    }
}

/// A link's share when it was put into the heap; the least comes out first, then the lowest slot.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Share {
    share: f64,
    slot: u32,
}

impl Eq for Share {}
impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Share {
    fn cmp(&self, other: &Self) -> Ordering {
        other.share.total_cmp(&self.share).then(other.slot.cmp(&self.slot))
    }
}

/// The solver. Capacities and levels are in bytes per picosecond.
#[derive(Clone, Debug, Default)]
pub(super) struct MaxMin {
    links: Vec<Link>,
    classes: Vec<Class>,
    routes: Vec<Route>,
    free: Vec<u32>,
    dirty_links: Vec<u32>,
    dirty_classes: Vec<u32>,
    round: u32,
    /// Classes being filled, with the level they had.
    active: Vec<(u32, f64)>,
    /// Links of the active classes and dirty links.
    touched: Vec<u32>,
    /// Share of each touched link, by slot.
    shares: Vec<f64>,
    heap: BinaryHeap<Share>,
    /// Active classes with a limit, lowest first.
    limited: Vec<(f64, u32)>,
    broken: Vec<u32>,
    changed: Vec<u32>,
}

impl MaxMin {
    /// A solver over links of these capacities, without classes.
    pub(super) fn new(capacities: impl Iterator<Item = f64>) -> Self {
        let links = capacities.map(|capacity| Link { capacity, ..Link::default() }).collect();
        MaxMin { links, ..MaxMin::default() }
    }

    /// Adds a class of weight 0 and returns its place; places of removed classes are used again.
    pub(super) fn add(&mut self, path: &[LinkId], limit: f64) -> u32 {
        let class = Class { level: 0.0, weight: 0.0, limit, bottleneck: NONE, round: 0, fixed: false };
        let mut route = Route { links: [0; MAX_HOPS], places: [0; MAX_HOPS], len: path.len() as u8 };
        let at = match self.free.pop() {
            Some(at) => at,
            None => self.classes.len() as u32,
        };
        for (hop, link) in path.iter().enumerate() {
            let classes = &mut self.links[link.0 as usize].classes;
            route.links[hop] = link.0;
            route.places[hop] = classes.len() as u32;
            classes.push(at);
        }
        if at as usize == self.classes.len() {
            self.classes.push(class);
            self.routes.push(route);
        } else {
            self.classes[at as usize] = class;
            self.routes[at as usize] = route;
        }
        at
    }

    /// Sets the weight of all flows of a class together, above 0.
    pub(super) fn set_weight(&mut self, at: u32, weight: f64) {
        let class = &mut self.classes[at as usize];
        if class.weight == weight {
            return;
        }
        let more = (weight - class.weight) * class.level;
        class.weight = weight;
        self.dirty_classes.push(at);
        self.load_changed(at, more);
    }

    /// Takes a class away.
    pub(super) fn remove(&mut self, at: u32) {
        let class = &mut self.classes[at as usize];
        let less = class.weight * class.level;
        let bottleneck = std::mem::replace(&mut class.bottleneck, NONE);
        class.weight = 0.0;
        class.level = 0.0;
        if bottleneck < LIMIT {
            self.links[bottleneck as usize].held -= 1;
        }
        self.load_changed(at, -less);
        for hop in 0..usize::from(self.routes[at as usize].len) {
            let route = &self.routes[at as usize];
            let (link, place) = (route.links[hop], route.places[hop]);
            let state = &mut self.links[link as usize];
            state.classes.swap_remove(place as usize);
            if let Some(&moved) = state.classes.get(place as usize) {
                let route = &mut self.routes[moved as usize];
                for other in 0..usize::from(route.len) {
                    if route.links[other] == link {
                        route.places[other] = place;
                    }
                }
            } else if state.classes.is_empty() {
                state.used = 0.0;
            }
        }
        self.free.push(at);
    }

    /// Sets the capacity of a link.
    pub(super) fn set_capacity(&mut self, link: LinkId, capacity: f64) {
        let state = &mut self.links[link.0 as usize];
        if state.capacity != capacity {
            state.capacity = capacity;
            self.mark(link.0);
        }
    }

    /// Level of a class after the last [`solve`](Self::solve).
    pub(super) fn level(&self, at: u32) -> f64 {
        self.classes[at as usize].level
    }

    fn load_changed(&mut self, at: u32, more: f64) {
        for hop in 0..usize::from(self.routes[at as usize].len) {
            let link = self.routes[at as usize].links[hop];
            self.links[link as usize].used += more;
            self.mark(link);
        }
    }

    fn mark(&mut self, link: u32) {
        let state = &mut self.links[link as usize];
        if !state.dirty {
            state.dirty = true;
            self.dirty_links.push(link);
        }
    }

    /// The classes whose level the last [`solve`](Self::solve) changed.
    pub(super) fn changed(&self) -> &[u32] {
        &self.changed
    }

    /// Makes all levels max-min fair again.
    pub(super) fn solve(&mut self) {
        self.changed.clear();
        if self.dirty_links.is_empty() && self.dirty_classes.is_empty() {
            return;
        }
        self.round += 1;
        self.active.clear();
        self.touched.clear();
        self.shares.clear();
        self.limited.clear();
        while let Some(at) = self.dirty_classes.pop() {
            if self.classes[at as usize].weight > 0.0 {
                self.activate(at);
            }
        }
        while let Some(link) = self.dirty_links.pop() {
            self.links[link as usize].dirty = false;
            self.touch(link);
            self.activate_held(link);
        }
        loop {
            self.fill();
            self.check();
            if self.broken.is_empty() {
                break;
            }
            while let Some(at) = self.broken.pop() {
                self.activate(at);
            }
        }
        self.commit();
    }

    #[inline]
    fn touch(&mut self, link: u32) {
        let state = &mut self.links[link as usize];
        if state.round != self.round {
            state.round = self.round;
            state.slot = self.touched.len() as u32;
            state.spare = state.capacity - state.used;
            state.spare_weight = 0.0;
            state.spare_open = 0;
            self.touched.push(link);
            self.shares.push(f64::INFINITY);
        }
    }

    fn activate_held(&mut self, link: u32) {
        let held = self.links[link as usize].held;
        if held == 0 {
            return;
        }
        let mut left = held;
        for place in 0..self.links[link as usize].classes.len() {
            let at = self.links[link as usize].classes[place];
            if self.classes[at as usize].bottleneck == link {
                self.activate(at);
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
    }

    fn activate(&mut self, at: u32) {
        let class = &mut self.classes[at as usize];
        if class.round == self.round {
            return;
        }
        class.round = self.round;
        let bottleneck = std::mem::replace(&mut class.bottleneck, NONE);
        let (level, weight, limit) = (class.level, class.weight, class.limit);
        self.active.push((at, level));
        if limit < f64::INFINITY {
            self.limited.push((limit, at));
        }
        if bottleneck < LIMIT {
            self.links[bottleneck as usize].held -= 1;
        }
        let load = weight * level;
        for hop in 0..usize::from(self.routes[at as usize].len) {
            let link = self.routes[at as usize].links[hop];
            self.touch(link);
            let state = &mut self.links[link as usize];
            state.spare += load;
            state.spare_weight += weight;
            state.spare_open += 1;
        }
    }

    /// Progressive filling of the active classes.
    fn fill(&mut self) {
        for (slot, &link) in self.touched.iter().enumerate() {
            let state = &mut self.links[link as usize];
            state.rest = state.spare;
            state.open_weight = state.spare_weight;
            state.open = state.spare_open;
            state.full_at = f64::INFINITY;
            self.shares[slot] = state.share();
        }
        for &(at, _) in &self.active {
            self.classes[at as usize].fixed = false;
        }
        self.limited.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        self.heap.clear();
        let by_heap = self.touched.len() > SCAN;
        if by_heap {
            for (slot, &share) in self.shares.iter().enumerate() {
                if share < f64::INFINITY {
                    self.heap.push(Share { share, slot: slot as u32 });
                }
            }
        }
        let mut left = self.active.len();
        let mut next_limited = 0;
        while left > 0 {
            let least = if by_heap { self.least_by_heap() } else { self.least_by_scan() };
            // Shares only grow while classes below them get their level, so every limit up to the
            // least share can be granted at once.
            let before = left;
            while let Some(&(limit, at)) = self.limited.get(next_limited)
                && limit <= least.share
            {
                next_limited += 1;
                if !self.classes[at as usize].fixed {
                    self.fix(at, limit, LIMIT);
                    left -= 1;
                }
            }
            if left == before {
                if least.share == f64::INFINITY {
                    break;
                }
                left -= self.fill_link(least);
            }
        }
    }

    fn least_by_scan(&self) -> Share {
        let mut least = Share { share: f64::INFINITY, slot: 0 };
        for (slot, &share) in self.shares.iter().enumerate() {
            if share < least.share {
                least = Share { share, slot: slot as u32 };
            }
        }
        least
    }

    fn least_by_heap(&mut self) -> Share {
        while let Some(&top) = self.heap.peek() {
            let share = self.shares[top.slot as usize];
            if share == top.share {
                return top;
            }
            self.heap.pop();
            if share < f64::INFINITY {
                self.heap.push(Share { share, ..top });
            }
        }
        Share { share: f64::INFINITY, slot: 0 }
    }

    /// Gives all open classes of the fullest link its share; returns how many.
    fn fill_link(&mut self, least: Share) -> usize {
        let link = self.touched[least.slot as usize];
        let classes = std::mem::take(&mut self.links[link as usize].classes);
        let open = self.links[link as usize].open as usize;
        let mut left = open;
        for &at in &classes {
            let class = &self.classes[at as usize];
            if class.round == self.round && !class.fixed {
                self.fix(at, least.share, link);
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        let state = &mut self.links[link as usize];
        state.classes = classes;
        state.rest = state.rest.min(0.0);
        state.open = 0;
        state.full_at = least.share;
        self.shares[least.slot as usize] = f64::INFINITY;
        open
    }

    #[inline]
    fn fix(&mut self, at: u32, level: f64, bottleneck: u32) {
        let class = &mut self.classes[at as usize];
        class.level = level;
        class.bottleneck = bottleneck;
        class.fixed = true;
        let (weight, load) = (class.weight, class.weight * level);
        let route = &self.routes[at as usize];
        for &link in &route.links[..usize::from(route.len)] {
            if link != bottleneck {
                let state = &mut self.links[link as usize];
                state.rest -= load;
                state.open_weight -= weight;
                state.open -= 1;
                self.shares[state.slot as usize] = state.share();
            }
        }
    }

    /// Collects the classes outside the active set which the last pass left without a bottleneck
    /// or above the level of a full link.
    fn check(&mut self) {
        for &link in &self.touched {
            let state = &self.links[link as usize];
            if state.spare_open as usize == state.classes.len() {
                continue;
            }
            let slack = SAME * state.capacity;
            let level = state.full_at;
            if level < f64::INFINITY {
                let (low, high) = (level * (1.0 - SAME), level * (1.0 + SAME));
                for &at in &state.classes {
                    let class = &self.classes[at as usize];
                    let off = class.level > high || class.bottleneck == link && class.level < low;
                    if off && class.round != self.round {
                        self.broken.push(at);
                    }
                }
            } else if state.rest < -slack {
                // Nobody active could give way: the capacity fell below what the others carry.
                let others = state.classes.iter().copied();
                self.broken.extend(others.filter(|&at| self.classes[at as usize].round != self.round));
            } else if state.held > 0 {
                let least = if state.rest > slack {
                    f64::INFINITY
                } else {
                    let levels = state.classes.iter().map(|&at| self.classes[at as usize].level);
                    levels.fold(0.0, f64::max) * (1.0 - SAME)
                };
                for &at in &state.classes {
                    let class = &self.classes[at as usize];
                    if class.bottleneck == link && class.level < least && class.round != self.round {
                        self.broken.push(at);
                    }
                }
            }
        }
    }

    fn commit(&mut self) {
        for &(at, old) in &self.active {
            let class = &self.classes[at as usize];
            if class.bottleneck < LIMIT {
                self.links[class.bottleneck as usize].held += 1;
            }
            if class.level != old {
                self.changed.push(at);
            }
        }
        for &link in &self.touched {
            let state = &mut self.links[link as usize];
            state.drift += 1;
            state.used = if state.drift < RESUM {
                state.capacity - state.rest
            } else {
                state.drift = 0;
                let classes = state.classes.iter().map(|&at| &self.classes[at as usize]);
                classes.map(|class| class.weight * class.level).sum()
            };
        }
    }
}
