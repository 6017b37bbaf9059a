//! Two instances and everything between them, one step at a time.

use std::collections::VecDeque;

use engine::fabric::Event;
use engine::id::{CqId, InstanceId, Room};
use engine::node::{DecodeNode, Input, Node, Outbox, PrefillNode};
use engine::registry::{Facts, Message, RoomKey};
use engine::time::{Span, Time};
use engine::transfer::InstanceMemory;
use sim::fabric::{FabricEvent, Fabrics, Ready, Schedule};

use super::base::{Base, request};
use super::channel::Channel;
use super::check::Broken;
use super::step::{Side, Step};

/// Rooms of a walk.
pub(super) const ROOMS: usize = 2;
/// What nodes' clocks say: it is always the same instant, but for a node whose lease ran out.
const NOW: Time = Time(1_000_000_000_000);
/// A lease: shorter than any deadline, so that none has come when it runs out.
pub(super) const LEASE: Span = Span(100_000_000);
/// Steps of compute that are under way end before that; nothing else does.
const COMPUTES: Span = Span(1_000);

pub(super) const IDS: [InstanceId; 2] = [InstanceId(1), InstanceId(2)];

/// Either instance's only completion queue.
pub(super) const QUEUE: CqId = CqId(0);

pub(super) fn key(room: usize) -> RoomKey {
    RoomKey { room: Room(room as u64 + 1), attempt: 1 }
}

pub(super) fn room_of(key: &RoomKey) -> Option<usize> {
    (key.room.0 as usize).checked_sub(1).filter(|room| *room < ROOMS)
}

/// Pending events, in the order of their times.
#[derive(Default)]
pub(super) struct Pending(pub(super) Vec<(Time, FabricEvent)>);

impl Schedule for Pending {
    fn at(&mut self, when: Time, event: FabricEvent) {
        let at = self.0.partition_point(|(at, _)| *at <= when);
        self.0.insert(at, (when, event));
    }
}

/// What is around a node.
pub(super) struct Around {
    /// Its session, at the registry's end.
    pub(super) channel: Channel,
    /// What it registered with.
    pub(super) facts: Option<Box<Facts>>,
    /// Rooms that it was assigned.
    pub(super) assigned: [bool; ROOMS],
    /// How each room ended: whether with Success.
    pub(super) ended: [Option<bool>; ROOMS],
    /// Decode: rooms that it told the end of.
    pub(super) done: [bool; ROOMS],
    /// The page of each room that has one, as of the node's last call.
    pub(super) pages: [Option<u32>; ROOMS],
    /// Messages on their way to it.
    pub(super) inbox: VecDeque<Message>,
    pub(super) late: Vec<Message>,
    pub(super) events: VecDeque<Event>,
    pub(super) lease_over: bool,
    pub(super) dead: bool,
}

impl Around {
    fn new() -> Self {
        Self {
            channel: Channel::default(),
            facts: None,
            assigned: [false; ROOMS],
            ended: [None; ROOMS],
            done: [false; ROOMS],
            pages: [None; ROOMS],
            inbox: VecDeque::new(),
            late: Vec::new(),
            events: VecDeque::new(),
            lease_over: false,
            dead: false,
        }
    }
}

/// A state.
pub(super) struct Cell<'a> {
    pub(super) base: &'a Base,
    pub(super) fabrics: Fabrics,
    pub(super) pending: Pending,
    pub(super) ready: Vec<Ready>,
    pub(super) now: Time,
    pub(super) prefill: PrefillNode,
    pub(super) decode: DecodeNode,
    pub(super) around: [Around; 2],
    pub(super) out: Outbox,
    pub(super) created: usize,
    pub(super) paused: bool,
    /// What is left of the scope's faults: deaths, late messages, pauses, leases.
    pub(super) left: [u8; 4],
    /// No deadline has passed, and no fault has struck.
    pub(super) undisturbed: bool,
    pub(super) broken: Option<Broken>,
    /// What the last step was about, if anybody reads it.
    pub(super) said: Option<String>,
}

impl<'a> Cell<'a> {
    /// The first state: registered and connected, no room.
    pub(super) fn new(base: &'a Base) -> Result<Self, String> {
        let scope = &base.scope;
        let mut cell = Self {
            base,
            fabrics: base.fabrics()?,
            pending: Pending::default(),
            ready: Vec::new(),
            now: Time::ZERO,
            prefill: PrefillNode::new(base.config.clone(), base.compute()),
            decode: DecodeNode::new(base.config.clone(), base.compute()),
            around: [Around::new(), Around::new()],
            out: Outbox::default(),
            created: 0,
            paused: false,
            left: [scope.deaths, scope.late, scope.pauses, scope.leases],
            undisturbed: true,
            broken: None,
            said: None,
        };
        Side::BOTH.into_iter().for_each(|side| cell.call(side, Input::Start));
        if let Some(error) = cell.prefill.error().or(cell.decode.error()) {
            return Err(format!("a node: {error}"));
        }
        Side::BOTH.into_iter().for_each(|side| cell.mark_page(side, 1));
        cell.mark_slot();
        for side in Side::BOTH {
            cell.deliver(side, Message::Welcome { instance: IDS[side as usize], lease: LEASE });
        }
        for side in [Side::Decode, Side::Prefill] {
            let facts = cell.facts_of(side.other());
            cell.deliver(side, facts);
        }
        while let Some(side) = Side::BOTH.into_iter().find(|side| !cell.at(*side).inbox.is_empty()) {
            cell.apply(Step::Deliver(side));
        }
        Ok(cell)
    }

    pub(super) fn at(&mut self, side: Side) -> &mut Around {
        &mut self.around[side as usize]
    }

    pub(super) fn node(&self, side: Side) -> &dyn Node {
        match side {
            Side::Prefill => &self.prefill,
            Side::Decode => &self.decode,
        }
    }

    pub(super) fn memory(&self, side: Side) -> Option<&InstanceMemory> {
        match side {
            Side::Prefill => self.prefill.memory(),
            Side::Decode => self.decode.memory(),
        }
    }

    /// What the clock of a node says.
    pub(super) fn clock(&self, side: Side) -> Time {
        if self.around[side as usize].lease_over { NOW + LEASE } else { NOW }
    }

    /// When a node computes, the instant at which that ends.
    pub(super) fn computed(&self, side: Side) -> Option<Time> {
        self.node(side).deadline().filter(|at| *at <= self.clock(side) + COMPUTES)
    }

    pub(super) fn assign(&self, room: usize, peer: InstanceId) -> Message {
        Message::Assign { key: key(room), peer, request: request(room, self.base.output()) }
    }

    pub(super) fn awake(&self, side: Side) -> bool {
        side == Side::Decode || !self.paused
    }
}
