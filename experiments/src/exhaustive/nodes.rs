//! Calls of the two nodes: what they are handed, and what they leave behind.

use engine::fabric::{Completion, Fabric as _};
use engine::id::RequestId;
use engine::node::{Cx, Input, Node as _, Step as Recorded};
use engine::registry::{Message, Outcome, REGISTRY};
use engine::time::Time;

use super::base::fill_page;
use super::cell::{Cell, IDS, QUEUE, ROOMS, key, room_of};
use super::check::{APPENDED, mark};
use super::step::Side;

/// Calls that a node may ask for in one step; more than it has rooms to compute.
const WAKES: usize = 4;

impl Cell<'_> {
    /// Hands a node one input, and then whatever it asks to be woken for now.
    pub(super) fn call(&mut self, side: Side, input: Input<'_>) {
        self.call_at(side, self.clock(side), input);
        for _ in 0..WAKES {
            let clock = self.clock(side);
            if self.node(side).deadline().is_none_or(|at| at > clock) {
                return;
            }
            self.call_at(side, clock, Input::Wake);
        }
        self.breaks("a node wants to be woken for ever", format!("{side} at its own now"));
    }

    pub(super) fn call_at(&mut self, side: Side, clock: Time, input: Input<'_>) {
        let host = side as usize;
        self.fabrics.begin_call(host, self.now);
        let mut cx = Cx { now: clock, fabric: self.fabrics.host(host), out: &mut self.out };
        match side {
            Side::Prefill => {
                self.prefill.handle(&mut cx, input);
                self.prefill.flush(clock, &mut self.out);
            }
            Side::Decode => {
                self.decode.handle(&mut cx, input);
                self.decode.flush(clock, &mut self.out);
            }
        }
        self.fabrics.after_call(host, self.now, &mut self.pending, &mut self.ready);
        // What inline requests were made in: nobody reads it again.
        if side == Side::Prefill
            && let Some(aux) =
                self.prefill.memory().and_then(|memory| memory.ranks.first()).map(|rank| rank.aux.buf)
        {
            let _ = self.fabrics.host(host).write(aux, 0, &[0; 128]);
        }
        self.heard(side);
    }

    pub(super) fn poll(&mut self, side: Side) {
        let mut batch = [Completion::default()];
        self.fabrics.begin_call(side as usize, self.now);
        if self.fabrics.host(side as usize).poll(QUEUE, &mut batch) == 0 {
            return;
        }
        if let Some(said) = &mut self.said {
            *said = format!("{:?}", batch[0].result);
        }
        self.call(side, Input::Completions { cq: QUEUE, batch: &batch });
    }

    pub(super) fn deliver(&mut self, side: Side, message: Message) {
        if let Some(said) = &mut self.said {
            *said = format!("{message:?}");
        }
        if let Message::Assign { key, .. } = &message
            && let Some(room) = room_of(key)
        {
            self.at(side).assigned[room] = true;
        }
        let channel = &mut self.at(side).channel;
        let bytes = match &message {
            Message::Gone { instance } if *instance == IDS[side as usize] => channel.reset(),
            _ => channel.frame(&message),
        };
        self.call(side, Input::Frame { from: REGISTRY, bytes: &bytes });
    }

    /// What the registry knows of an instance.
    pub(super) fn facts_of(&self, side: Side) -> Message {
        let around = &self.around[side as usize];
        let facts = around.facts.clone().filter(|_| !around.dead);
        Message::FactsOf { instance: IDS[side as usize], facts }
    }

    /// What a node left behind.
    fn heard(&mut self, side: Side) {
        for at in 0..self.out.records.len() {
            let record = self.out.records[at];
            let RequestId(number) = record.request;
            let Some(room) = (number as usize).checked_sub(1).filter(|room| *room < ROOMS) else { continue };
            match record.step {
                Recorded::Success | Recorded::Delivered { .. } => self.succeeded(side, room),
                Recorded::Corrupt => {
                    self.breaks("Success without the aux row", "every sealed part was seen".to_owned());
                }
                _ => {}
            }
        }
        let messages = self.around[side as usize].channel.receive(&self.out);
        self.out.clear();
        for message in messages {
            self.relay(side, message);
        }
        self.look_at_pages(side);
    }

    /// The registry hands on what a node says, but nothing of one that it declared dead.
    fn relay(&mut self, side: Side, message: Message) {
        if self.around[side as usize].dead {
            return;
        }
        match message {
            Message::Register { facts, .. } => self.at(side).facts = facts,
            Message::Query { .. } => {
                let facts = self.facts_of(side.other());
                self.at(side).inbox.push_back(facts);
            }
            Message::Link { body, .. } => {
                let message = Message::Link { peer: IDS[side as usize], body };
                self.at(side.other()).inbox.push_back(message);
            }
            Message::Report { key, report } => {
                if let Some(room) = room_of(&key) {
                    self.reported(side, room, report.delivered);
                }
                self.at(side.other()).inbox.push_back(Message::Report { key, report });
            }
            Message::Publish(_) | Message::Abort { .. } => self.at(side.other()).inbox.push_back(message),
            Message::Done { key, outcome } => {
                if let Some(room) = room_of(&key) {
                    self.done(room, outcome);
                }
            }
            // For the registry or the router alone.
            _ => {}
        }
    }

    /// Prefill tells how a room ended; it may do so again.
    fn reported(&mut self, side: Side, room: usize, delivered: bool) {
        let before = self.at(side).ended[room].replace(delivered);
        if before.is_some_and(|before| before != delivered) {
            self.breaks("a room ends twice", format!("room {} on {side}", room + 1));
        }
    }

    /// Decode tells how a room ended, once.
    fn done(&mut self, room: usize, outcome: Outcome) {
        let decode = self.at(Side::Decode);
        let before = decode.ended[room];
        decode.ended[room] = before.or(Some(false));
        let again = std::mem::replace(&mut decode.done[room], true);
        if again || before.is_none() && outcome == Outcome::Finished {
            self.breaks("a room ends twice", format!("room {} on decode: {outcome:?}", room + 1));
        }
    }

    fn succeeded(&mut self, side: Side, room: usize) {
        if self.at(side).ended[room].is_some() {
            self.breaks("a room ends twice", format!("room {} on {side}", room + 1));
        }
        if self.at(side).dead {
            let what = format!("room {} on {side}", room + 1);
            self.breaks("Success after the lease was declared dead", what);
        }
        self.check_success(side, room);
        self.at(side).ended[room] = Some(true);
        if side == Side::Decode
            && let Some(page) = self.around[1].pages[room]
        {
            // Decode writes on: its last page is its own now.
            self.fill(side, page, APPENDED);
        }
    }

    /// Pages that the node has given to rooms and taken back in its last call.
    fn look_at_pages(&mut self, side: Side) {
        let before = self.around[side as usize].pages;
        for room in 0..ROOMS {
            let key = key(room);
            let first = match side {
                Side::Prefill => {
                    self.prefill.pages(&key).and_then(|(_, table)| table.runs().first().copied())
                }
                Side::Decode => {
                    self.decode.prompt_pages(&key).and_then(|(_, table)| table.runs().first().copied())
                }
            };
            self.around[side as usize].pages[room] = first.map(|run| run.first.0);
        }
        let after = self.around[side as usize].pages;
        for (before, after) in before.into_iter().zip(after) {
            if let Some(page) = before.filter(|page| after != Some(*page)) {
                self.mark_page(side, page);
                if side == Side::Decode {
                    self.mark_slot();
                }
            }
        }
        let (held, owned) = (self.node(side).held().pages, after.iter().flatten().count() as u64);
        if held != owned {
            let what = format!("{side}: {held} pages are out, rooms have {owned}");
            self.breaks("pages are freed twice, lost or given to two", what);
        }
    }

    pub(super) fn mark_page(&mut self, side: Side, page: u32) {
        self.fill(side, page, mark(side));
    }

    fn fill(&mut self, side: Side, page: u32, byte: u8) {
        let memory = match side {
            Side::Prefill => self.prefill.memory(),
            Side::Decode => self.decode.memory(),
        };
        fill_page(self.fabrics.host(side as usize), memory, page, byte);
    }

    pub(super) fn mark_slot(&mut self) {
        let rank = self.decode.memory().and_then(|memory| memory.ranks.first());
        let Some(buf) = rank.map(|rank| rank.aux.buf) else { return };
        let _ = self.fabrics.host(1).write(buf, 0, &[mark(Side::Decode); 96]);
    }
}
