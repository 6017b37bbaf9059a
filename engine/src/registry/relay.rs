//! Rooms: who may say what about them, and who is told.

use super::lease::{Instance, Standing};
use super::room::RoomState;
use super::server::{Parked, Registry};
use super::wire;
use super::{Message, Outcome, Report, Role, RoomKey, SHORT};
use crate::id::InstanceId;
use crate::node::{Reason, Request};
use crate::time::Time;

/// What a sender is to a room.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Router,
    Prefill,
    Decode,
}

impl Registry {
    /// Passes on what a registered client says about a room or a link. `bytes` is `message` as it came.
    pub(super) fn relay(&mut self, now: Time, from: InstanceId, message: Message, bytes: &[u8]) {
        match message {
            Message::Create { key, prefill, decode, request } => {
                self.create(now, from, key, prefill, decode, &request);
            }
            Message::Publish(list) => self.said(now, from, list.key, Said::Publish, bytes),
            Message::Scattered { key, .. } => self.said(now, from, key, Said::Scattered, bytes),
            Message::Produced { key, .. } => self.said(now, from, key, Said::Produced, bytes),
            Message::Abort { key, .. } => self.said(now, from, key, Said::Abort, bytes),
            Message::Cancel { key, reason } => self.said(now, from, key, Said::Cancel(reason), bytes),
            Message::Report { key, report } => self.said(now, from, key, Said::Report(report), bytes),
            Message::Done { key, outcome } => self.said(now, from, key, Said::Done(outcome), bytes),
            Message::Delivered { key, .. } => self.said(now, from, key, Said::Delivered, bytes),
            Message::Link { peer, body } => {
                if !self.tell(peer, |out| wire::encode(&Message::Link { peer: from, body }, out)) {
                    self.tell(from, |out| wire::encode(&Message::Gone { instance: peer }, out));
                }
            }
            _ => self.stats.not_participant += 1,
        }
    }

    fn create(
        &mut self,
        now: Time,
        from: InstanceId,
        key: RoomKey,
        prefill: InstanceId,
        decode: InstanceId,
        request: &Request,
    ) {
        if self.members.get(from).is_none_or(|instance| instance.role != Role::Router) {
            self.stats.not_participant += 1;
            return;
        }
        if let Some(latest) = self.rooms.latest(key.room) {
            let same = latest.key == key
                && (latest.router, latest.prefill, latest.decode) == (from, prefill, decode);
            if same && latest.is_live() {
                return; // The same create again.
            }
            let answer = match latest.outcome {
                Some(outcome) if latest.key == key => Some(outcome),
                // Nobody of this room is left who could have said how it ended.
                None if latest.key == key && !latest.is_live() => Some(Outcome::Failed(Reason::PeerGone)),
                // Decode is done with the attempt before, so the router knows its end, though prefill may not.
                _ if latest.key.attempt < key.attempt && latest.decode_done => None,
                _ => Some(Outcome::Failed(Reason::Refused)),
            };
            if let Some(outcome) = answer {
                return self.answer(from, key, outcome);
            }
        }
        let mut room = RoomState::new(key, from, prefill, decode);
        let mut failed = None;
        // Decode was there before this registry: it may have the room, and be past needing prefill. Then the end is decode's to say.
        let knows = decode.0 >> 32 < u64::from(self.epoch);
        for (instance, role) in [(prefill, Role::Prefill), (decode, Role::Decode)] {
            match self.members.standing(instance) {
                Standing::Gone if role == Role::Prefill && knows => room.prefill_done = true,
                Standing::Gone => failed = Some(Reason::PeerGone),
                Standing::Awaited => self.members.wait_for(instance, None),
                Standing::Here(slot) => {
                    let other = self.members.get(instance).is_none_or(|known| known.role != role);
                    let busy = self.peer_backlog(slot) > self.config.limits.backlog / 2;
                    if other || busy && !knows {
                        failed = failed.or(Some(Reason::Refused));
                    }
                }
            }
        }
        if self.rooms.live() >= self.config.limits.rooms && !knows {
            failed = Some(Reason::Refused);
        }
        if let Some(reason) = failed {
            self.stats.creates_refused += 1;
            if reason == Reason::PeerGone {
                (room.prefill_done, room.decode_done) = (true, true);
                room.outcome = Some(Outcome::Failed(reason));
                let slot = self.rooms.insert(room);
                self.rooms.settle(now, slot);
            }
            return self.answer(from, key, Outcome::Failed(reason));
        }
        room.assigned = true;
        let gone = room.prefill_done;
        self.rooms.insert(room);
        if !gone {
            self.tell(prefill, |out| wire::put_assign(out, &key, decode, request));
        }
        self.tell(decode, |out| wire::put_assign(out, &key, prefill, request));
        if gone {
            // So that it does not wait for that side if it has not begun to generate.
            self.tell(decode, |out| wire::encode(&Message::Gone { instance: prefill }, out));
        }
        if self.parked_count > 0
            && let Some(parked) = self.parked.remove(&key.room)
        {
            self.parked_count -= parked.len();
            for Parked { from, bytes } in parked {
                if let Ok(message) = wire::decode(&bytes) {
                    self.relay(now, from, message, &bytes);
                }
            }
        }
    }

    /// Requests wait for pages or slots at an instance: all of the other side are told, and what waits here for it goes.
    pub(super) fn short(&mut self, now: Time, from: InstanceId) {
        let Some(instance) = self.members.get_mut(from) else { return };
        instance.short = now + SHORT;
        let (slot, role) = (instance.slot, instance.role);
        if role == Role::Router {
            self.stats.not_participant += 1;
            return;
        }
        let other = |member: &Instance| member.role != role && member.role != Role::Router;
        let all = self.members.iter().filter(|(_, member)| other(member));
        let slots: Vec<u32> = all.map(|(_, member)| member.slot).collect();
        for slot in slots {
            self.say(slot, false, |out| wire::encode(&Message::Short, out));
        }
        self.hurry(slot);
    }

    fn answer(&mut self, router: InstanceId, key: RoomKey, outcome: Outcome) {
        self.tell(router, |out| wire::encode(&Message::Done { key, outcome }, out));
    }

    fn said(&mut self, now: Time, from: InstanceId, key: RoomKey, said: Said, bytes: &[u8]) {
        let Some(slot) = self.rooms.find(&key) else {
            return self.unknown(now, from, key, said, bytes);
        };
        let Some(room) = self.rooms.at(slot) else { return };
        let part = match from {
            _ if from == room.prefill => Part::Prefill,
            _ if from == room.decode => Part::Decode,
            _ if from == room.router => Part::Router,
            _ => {
                self.stats.not_participant += 1;
                return;
            }
        };
        let (router, prefill, decode) = (room.router, room.prefill, room.decode);
        if !room.is_live() {
            return self.late(slot, part, said);
        }
        match (said, part) {
            (Said::Publish, Part::Decode) => {
                room.pushed = true;
                // After prefill's end decode has its Report, or is told that prefill is gone.
                if !room.prefill_done {
                    self.tell(prefill, |out| out.extend_from_slice(bytes));
                }
            }
            (Said::Scattered, Part::Decode) if room.pushed => {
                if !room.prefill_done {
                    self.tell(prefill, |out| out.extend_from_slice(bytes));
                }
            }
            // Pull: the page list is prefill's, and so is the word that more can be read.
            (Said::Publish | Said::Produced, Part::Prefill) if !room.pushed => {
                if !room.decode_done {
                    self.tell(decode, |out| out.extend_from_slice(bytes));
                }
            }
            // Pull: read, or never to be read any more. That ends prefill's side, which frees for it or fences first.
            (Said::Report(_), Part::Decode) if !room.pushed => {
                room.prefill_done = true;
                self.tell(prefill, |out| out.extend_from_slice(bytes));
                self.rooms.settle(now, slot);
            }
            (Said::Report(report), Part::Prefill) => {
                room.report = Some(report);
                room.prefill_done = true;
                // Decode may be done and still wait for this, to free its pages.
                let short = self.members.get(decode).is_some_and(|member| now < member.short);
                let patient = report.delivered && report.clean && !short;
                self.tell_when(decode, patient, |out| out.extend_from_slice(bytes));
                self.rooms.settle(now, slot);
            }
            // It says so before its side ends; a router that has the end already needs it no more.
            (Said::Delivered, Part::Prefill) => {
                if !room.decode_done {
                    self.tell(router, |out| out.extend_from_slice(bytes));
                }
            }
            (Said::Done(outcome), Part::Decode) => {
                room.outcome = Some(outcome);
                room.decode_done = true;
                let abort = match outcome {
                    Outcome::Failed(reason) if !room.prefill_done && !room.aborted => Some(reason),
                    _ => None,
                };
                room.aborted |= abort.is_some();
                self.tell(router, |out| out.extend_from_slice(bytes));
                if let Some(reason) = abort {
                    self.tell(prefill, |out| wire::encode(&Message::Abort { key, reason }, out));
                }
                self.rooms.settle(now, slot);
            }
            (Said::Abort, Part::Prefill | Part::Decode) | (Said::Cancel(_), Part::Router) => {
                let to_prefill = part != Part::Prefill && !room.prefill_done;
                let to_decode = part != Part::Decode && !room.decode_done;
                room.aborted |= to_prefill;
                if to_prefill {
                    self.tell(prefill, |out| out.extend_from_slice(bytes));
                }
                if to_decode {
                    self.tell(decode, |out| out.extend_from_slice(bytes));
                }
            }
            _ => self.stats.not_participant += 1,
        }
    }

    /// Something about a room that has ended: the sender is told what lets it end.
    fn late(&mut self, slot: u32, part: Part, said: Said) {
        self.stats.late += 1;
        let Some(room) = self.rooms.at(slot) else { return };
        let (key, decode, router) = (room.key, room.decode, room.router);
        let (report, outcome) = (room.report, room.outcome);
        let never = (!room.assigned).then_some(Report { delivered: false, clean: true });
        match (said, part) {
            (Said::Cancel(_), Part::Router) => {
                self.answer(router, key, outcome.unwrap_or(Outcome::Failed(Reason::PeerGone)));
            }
            (Said::Publish | Said::Abort, Part::Decode) => {
                if let Some(report) = report.or(never) {
                    self.tell(decode, |out| wire::encode(&Message::Report { key, report }, out));
                } else {
                    self.tell(decode, |out| {
                        wire::encode(&Message::Abort { key, reason: Reason::PeerGone }, out);
                    });
                }
            }
            _ => {}
        }
    }

    /// Something about a room that is not known: kept while it may be created again, else answered.
    fn unknown(&mut self, now: Time, from: InstanceId, key: RoomKey, said: Said, bytes: &[u8]) {
        if self.members.recovering() {
            if self.parked_count < self.config.limits.parked {
                self.parked_count += 1;
                self.parked.entry(key.room).or_default().push(Parked { from, bytes: bytes.into() });
                return;
            }
            self.stats.parked_dropped += 1;
        }
        self.stats.unknown_room += 1;
        let role = self.members.get(from).map(|instance| instance.role);
        match (said, role) {
            // No Report: it may have been the initiator's before it was forgotten here. The target fences.
            (Said::Publish, Some(Role::Decode | Role::Prefill)) => {
                self.tell(from, |out| {
                    wire::encode(&Message::Abort { key, reason: Reason::PeerGone }, out);
                });
            }
            (Said::Cancel(reason), Some(Role::Router)) => {
                let mut room = RoomState::new(key, from, InstanceId(0), InstanceId(0));
                (room.prefill_done, room.decode_done) = (true, true);
                let outcome = Outcome::Failed(reason);
                room.outcome = Some(outcome);
                if self.rooms.latest(key.room).is_none_or(|latest| latest.key.attempt < key.attempt) {
                    let slot = self.rooms.insert(room);
                    self.rooms.settle(now, slot);
                }
                self.answer(from, key, outcome);
            }
            _ => {}
        }
    }

    /// Recovery is over: rooms that no router created again are gone. Their sides may still find each other.
    pub(super) fn unpark_all(&mut self, now: Time) {
        self.parked_count = 0;
        for parked in std::mem::take(&mut self.parked).into_values() {
            let mut messages: Vec<(InstanceId, Message, Box<[u8]>)> = parked
                .into_iter()
                .filter_map(|parked| Some((parked.from, wire::decode(&parked.bytes).ok()?, parked.bytes)))
                .collect();
            // Page lists come from decode and reports from prefill; in pull it is the other way round.
            let mut lists: Vec<(RoomKey, InstanceId, Option<Role>)> = messages
                .iter()
                .filter_map(|(from, message, _)| match message {
                    Message::Publish(list) => Some((list.key, *from, self.role(*from))),
                    _ => None,
                })
                .collect();
            messages.retain(|(from, message, bytes)| {
                let Message::Report { key, .. } = message else { return true };
                let other = match self.role(*from) {
                    Some(Role::Prefill) => Role::Decode,
                    Some(Role::Decode) => Role::Prefill,
                    Some(Role::Router) | None => return true,
                };
                let matches = |(wanted, _, role): &(RoomKey, InstanceId, Option<Role>)| {
                    wanted == key && *role == Some(other)
                };
                let Some(at) = lists.iter().position(matches) else { return true };
                let (_, publisher, _) = lists.remove(at);
                self.tell(publisher, |out| out.extend_from_slice(bytes));
                lists.retain(|(other, ..)| other != key);
                false
            });
            for (from, message, bytes) in messages {
                let answered = matches!(&message, Message::Publish(list)
                    if !lists.iter().any(|(key, publisher, _)| *key == list.key && *publisher == from));
                if !answered {
                    self.relay(now, from, message, &bytes);
                }
            }
        }
    }

    fn role(&self, instance: InstanceId) -> Option<Role> {
        self.members.get(instance).map(|known| known.role)
    }

    /// An instance is gone: nothing more is expected of it in any room. The other side and the router were told.
    pub(super) fn abandon(&mut self, now: Time, instance: InstanceId) {
        for slot in self.rooms.slots() {
            let Some(room) = self.rooms.at(slot) else { continue };
            if !room.is_live() {
                continue;
            }
            room.prefill_done |= room.prefill == instance;
            room.decode_done |= room.decode == instance;
            if room.router == instance {
                // Nobody is left who wants the result.
                let (key, prefill, decode) = (room.key, room.prefill, room.decode);
                let to = [(prefill, !room.prefill_done), (decode, !room.decode_done)];
                room.aborted = true;
                for (side, live) in to {
                    if live {
                        let cancel = Message::Cancel { key, reason: Reason::PeerGone };
                        self.tell(side, |out| wire::encode(&cancel, out));
                    }
                }
            }
            self.rooms.settle(now, slot);
        }
    }
}

/// What was said about a room.
#[derive(Clone, Copy)]
enum Said {
    Publish,
    Produced,
    Scattered,
    Abort,
    Cancel(Reason),
    Report(Report),
    Done(Outcome),
    Delivered,
}
