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

use super::path::LinkId;

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

/// What the scans over a link's classes read; its path is in `hops`.
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
    round: u64,
    /// Links of its path.
    len: u32,
}

/// A link of a class's path.
#[derive(Clone, Copy, Debug)]
struct Hop {
    link: u32,
    /// Place of the class in the link's list.
    place: u32,
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
    /// Round in which it was last touched.
    round: u64,
    /// Place in the list of touched links.
    slot: u32,
    /// In the list of links whose load or capacity changed.
    dirty: bool,
}

/// A link touched in this round. Together with [`Active`] and [`Crossing`] it keeps what the passes
/// work on close together in memory.
#[derive(Clone, Debug)]
struct Touched {
    link: u32,
    /// Last of its crossings.
    crossing: u32,
    /// All its classes, active or not.
    classes: u32,
    capacity: f64,
    /// Capacity that the classes which keep their level leave over.
    spare: f64,
    /// Weight and number of the active classes.
    spare_weight: f64,
    spare_open: u32,
    /// Number, weight and capacity of those without a level in this pass.
    open: u32,
    open_weight: f64,
    rest: f64,
    /// Level at which it filled up in the last pass, infinite if it did not.
    full_at: f64,
}

impl Touched {
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

/// A class being filled.
#[derive(Clone, Debug)]
struct Active {
    class: u32,
    /// Its crossings are `first..first + len`.
    first: u32,
    len: u32,
    /// Slot of the link that holds it back, or [`LIMIT`]; [`NONE`] before it has a level.
    bottleneck: u32,
    weight: f64,
    level: f64,
}

/// An active class on a touched link.
#[derive(Clone, Copy, Debug)]
struct Crossing {
    slot: u32,
    active: u32,
    /// Another crossing of the same link, or [`NONE`].
    next: u32,
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
    /// Paths, each in `stride` places.
    hops: Vec<Hop>,
    stride: usize,
    free: Vec<u32>,
    dirty_links: Vec<u32>,
    dirty_classes: Vec<u32>,
    round: u64,
    active: Vec<Active>,
    /// Links of the active classes and dirty links; `slot` is a place here.
    touched: Vec<Touched>,
    crossings: Vec<Crossing>,
    /// Share of each touched link, by slot.
    shares: Vec<f64>,
    heap: BinaryHeap<Share>,
    /// Limits of active classes that have one, lowest first, with the place in `active`.
    limited: Vec<(f64, u32)>,
    /// Classes that the last pass left without a bottleneck.
    broken: Vec<u32>,
    changed: Vec<u32>,
}

impl MaxMin {
    /// A solver over links of these capacities, without classes; no path crosses more than
    /// `longest` links.
    pub(super) fn new(capacities: impl Iterator<Item = f64>, longest: usize) -> Self {
        let links = capacities.map(|capacity| Link { capacity, ..Link::default() }).collect();
        MaxMin { links, stride: longest, ..MaxMin::default() }
    }

    /// Adds a class of weight 0 and returns its place; places of removed classes are used again.
    pub(super) fn add(&mut self, path: &[LinkId], limit: f64) -> u32 {
        let class =
            Class { level: 0.0, weight: 0.0, limit, bottleneck: NONE, round: 0, len: path.len() as u32 };
        let at = match self.free.pop() {
            Some(at) => {
                self.classes[at as usize] = class;
                at
            }
            None => {
                self.classes.push(class);
                let end = self.classes.len() * self.stride;
                self.hops.resize(end, Hop { link: 0, place: 0 });
                self.classes.len() as u32 - 1
            }
        };
        let first = at as usize * self.stride;
        for (hop, link) in self.hops[first..].iter_mut().zip(path) {
            let classes = &mut self.links[link.0 as usize].classes;
            *hop = Hop { link: link.0, place: classes.len() as u32 };
            classes.push(at);
        }
        at
    }

    /// Links of a class.
    pub(super) fn path(&self, at: u32) -> impl Iterator<Item = LinkId> {
        self.hops[self.hops(at)].iter().map(|hop| LinkId(hop.link))
    }

    fn hops(&self, at: u32) -> std::ops::Range<usize> {
        let first = at as usize * self.stride;
        first..first + self.classes[at as usize].len as usize
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
        for hop in self.hops(at) {
            let Hop { link, place } = self.hops[hop];
            let state = &mut self.links[link as usize];
            state.classes.swap_remove(place as usize);
            if let Some(&moved) = state.classes.get(place as usize) {
                let hops = self.hops(moved);
                for hop in self.hops[hops].iter_mut().filter(|hop| hop.link == link) {
                    hop.place = place;
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
        for hop in self.hops(at) {
            let link = self.hops[hop].link;
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
        self.crossings.clear();
        self.shares.clear();
        self.limited.clear();
        while let Some(at) = self.dirty_classes.pop() {
            if self.classes[at as usize].weight > 0.0 {
                self.activate(at);
            }
        }
        while let Some(link) = self.dirty_links.pop() {
            let state = &mut self.links[link as usize];
            state.dirty = false;
            if state.classes.is_empty() {
                // Nobody is there to be filled or checked.
                state.used = 0.0;
                state.drift = (state.drift + 1) % RESUM;
                continue;
            }
            self.touch(link);
            self.activate_held(link);
        }
        while !(self.touched.is_empty() && self.active.is_empty()) {
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

    /// Slot of a link in this round.
    fn touch(&mut self, link: u32) -> u32 {
        let state = &mut self.links[link as usize];
        if state.round != self.round {
            state.round = self.round;
            state.slot = self.touched.len() as u32;
            self.touched.push(Touched {
                link,
                crossing: NONE,
                classes: state.classes.len() as u32,
                capacity: state.capacity,
                spare: state.capacity - state.used,
                spare_weight: 0.0,
                spare_open: 0,
                open: 0,
                open_weight: 0.0,
                rest: 0.0,
                full_at: f64::INFINITY,
            });
            self.shares.push(f64::INFINITY);
        }
        state.slot
    }

    fn activate_held(&mut self, link: u32) {
        let mut left = self.links[link as usize].held;
        let mut place = 0;
        while left > 0 && place < self.links[link as usize].classes.len() {
            let at = self.links[link as usize].classes[place];
            if self.classes[at as usize].bottleneck == link {
                self.activate(at);
                left -= 1;
            }
            place += 1;
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
        let active = self.active.len() as u32;
        if limit < f64::INFINITY {
            self.limited.push((limit, active));
        }
        if bottleneck < LIMIT {
            self.links[bottleneck as usize].held -= 1;
        }
        let first = self.crossings.len() as u32;
        let load = weight * level;
        let hops = self.hops(at);
        let len = hops.len() as u32;
        for (crossing, hop) in (first..).zip(hops) {
            let slot = self.touch(self.hops[hop].link);
            let state = &mut self.touched[slot as usize];
            state.spare += load;
            state.spare_weight += weight;
            state.spare_open += 1;
            let next = std::mem::replace(&mut state.crossing, crossing);
            self.crossings.push(Crossing { slot, active, next });
        }
        self.active.push(Active { class: at, first, len, bottleneck: NONE, weight, level });
    }

    /// Progressive filling of the active classes.
    fn fill(&mut self) {
        for (state, share) in self.touched.iter_mut().zip(&mut self.shares) {
            // Differences of large numbers leave crumbs, which must not make a rate.
            let all = state.spare_open == state.classes;
            state.rest = if all { state.capacity } else { state.spare.min(state.capacity) };
            state.open_weight = state.spare_weight;
            state.open = state.spare_open;
            state.full_at = f64::INFINITY;
            *share = state.share();
        }
        for active in &mut self.active {
            active.bottleneck = NONE;
        }
        self.limited.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let by_heap = self.touched.len() > SCAN;
        if by_heap {
            self.heap.clear();
            let shares = self.shares.iter().enumerate().filter(|(_, share)| **share < f64::INFINITY);
            self.heap.extend(shares.map(|(slot, &share)| Share { share, slot: slot as u32 }));
        }
        let mut left = self.active.len();
        let mut next_limited = 0;
        while left > 0 {
            let least = if by_heap { self.least_by_heap() } else { self.least_by_scan() };
            // Shares only grow while classes below them get their level, so every limit up to the
            // least share can be granted at once.
            let before = left;
            while let Some(&(limit, active)) = self.limited.get(next_limited)
                && limit <= least.share
            {
                next_limited += 1;
                if self.active[active as usize].bottleneck == NONE {
                    self.fix(active, limit, LIMIT);
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
        let state = &mut self.touched[least.slot as usize];
        let open = state.open as usize;
        let mut crossing = state.crossing;
        state.rest = state.rest.min(0.0);
        state.open = 0;
        state.full_at = least.share;
        self.shares[least.slot as usize] = f64::INFINITY;
        while crossing != NONE {
            let Crossing { active, next, .. } = self.crossings[crossing as usize];
            if self.active[active as usize].bottleneck == NONE {
                self.fix(active, least.share, least.slot);
            }
            crossing = next;
        }
        open
    }

    /// Gives an active class its level; `bottleneck` is a slot, whose own numbers stay.
    fn fix(&mut self, active: u32, level: f64, bottleneck: u32) {
        let active = &mut self.active[active as usize];
        active.level = level;
        active.bottleneck = bottleneck;
        let load = active.weight * level;
        let crossings = active.first as usize..(active.first + active.len) as usize;
        for crossing in &self.crossings[crossings] {
            if crossing.slot != bottleneck {
                let state = &mut self.touched[crossing.slot as usize];
                state.rest -= load;
                state.open_weight -= active.weight;
                state.open -= 1;
                self.shares[crossing.slot as usize] = state.share();
            }
        }
    }

    /// Collects the classes outside the active set which the last pass left without a bottleneck
    /// or above the level of a full link.
    fn check(&mut self) {
        for state in &self.touched {
            if state.spare_open == state.classes {
                continue;
            }
            let link = &self.links[state.link as usize];
            let (mut low, mut high) = (0.0, f64::INFINITY);
            let slack = SAME * state.capacity;
            if state.full_at < f64::INFINITY {
                low = state.full_at * (1.0 - SAME);
                high = state.full_at * (1.0 + SAME);
            } else if state.rest < -slack {
                // Nobody active could give way: the capacity fell below what the others carry.
                high = -1.0;
            } else if link.held > 0 && state.rest > slack {
                low = f64::INFINITY;
            } else if link.held > 0 {
                let mut crossing = state.crossing;
                while crossing != NONE {
                    let Crossing { active, next, .. } = self.crossings[crossing as usize];
                    low = self.active[active as usize].level.max(low);
                    crossing = next;
                }
                low *= 1.0 - SAME;
            } else {
                continue;
            }
            for &at in &link.classes {
                let class = &self.classes[at as usize];
                let off = class.level > high || class.level < low && class.bottleneck == state.link;
                if off && class.round != self.round {
                    self.broken.push(at);
                }
            }
        }
    }

    fn commit(&mut self) {
        for active in &self.active {
            let class = &mut self.classes[active.class as usize];
            class.bottleneck = active.bottleneck;
            if active.bottleneck < LIMIT {
                let link = self.touched[active.bottleneck as usize].link;
                class.bottleneck = link;
                self.links[link as usize].held += 1;
            }
            if class.level != active.level {
                class.level = active.level;
                self.changed.push(active.class);
            }
        }
        for state in &self.touched {
            let link = &mut self.links[state.link as usize];
            link.drift += 1;
            link.used = if link.drift < RESUM {
                state.capacity - state.rest
            } else {
                link.drift = 0;
                let classes = link.classes.iter().map(|&at| &self.classes[at as usize]);
                classes.map(|class| class.weight * class.level).sum()
            };
        }
    }
}
