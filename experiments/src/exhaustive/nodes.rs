//! The two nodes, as far as they have to do with pages: they hear messages and completions, give pages to rooms and take them back, as prefill
//! and decode nodes do.

use engine::fabric::{Completion, Fabric as _};
use engine::id::{InstanceId, RequestId};
use engine::node::{Cx, Reason, Step as Recorded};
use engine::registry::{Message, RoomKey};
use engine::transfer::{End as _, Initiator, InitiatorRoom, News, PageTable, Target, TargetRoom};

use super::cell::{Cell, IDS, LAYERS, NOW, Phase, QUEUE, key, request, room_of};
use super::step::Side;

impl Cell<'_> {
    pub(super) fn poll(&mut self, side: Side) {
        let mut batch = [Completion::default()];
        self.fabrics.begin_call(side as usize, self.now);
        if self.fabrics.host(side as usize).poll(QUEUE, &mut batch) == 0 {
            return;
        }
        if let Some(said) = &mut self.said {
            *said = format!("{:?}", batch[0].result);
        }
        match side {
            Side::Prefill => self.on_prefill(|end, cx| end.completions(cx, &batch)),
            Side::Decode => self.on_decode(|end, cx| end.completions(cx, &batch)),
        }
    }

    pub(super) fn deliver(&mut self, side: Side, message: Message) {
        if let Some(said) = &mut self.said {
            *said = format!("{message:?}");
        }
        match (side, message) {
            (_, Message::Assign { key, .. }) => self.assigned(side, key),
            (_, Message::Gone { instance }) => self.gone(side, instance),
            (Side::Prefill, Message::Publish(list)) => self.on_prefill(|end, cx| end.publish(cx, &list)),
            (Side::Prefill, Message::Abort { key, reason }) => {
                self.on_prefill(|end, cx| end.abort(cx, key, reason, false));
            }
            (Side::Prefill, Message::Link { peer, body }) => {
                self.on_prefill(|end, cx| end.link(cx, peer, body));
            }
            (Side::Decode, Message::Report { key, report }) => {
                self.on_decode(|end, cx| end.report(cx, key, report));
            }
            (Side::Decode, Message::Abort { key, reason }) => {
                self.drop_waiting(|room| room_of(&key) == Some(room));
                self.on_decode(|end, cx| end.abort(cx, key, reason, false));
            }
            (Side::Decode, Message::Link { peer, body }) => {
                self.on_decode(|end, cx| end.link(cx, peer, body));
            }
            // Nothing else is said between the two.
            (_, _) => {}
        }
    }

    /// Rooms that wait for pages of decode wait no more: they have failed.
    pub(super) fn drop_waiting(&mut self, which: impl Fn(usize) -> bool) {
        let node = &mut self.nodes[1];
        for room in node.waiting.iter().copied().filter(|room| which(*room)) {
            (node.phase[room], node.ended[room]) = (Phase::Released, Some(false));
        }
        node.waiting.retain(|room| !which(*room));
    }

    pub(super) fn assigned(&mut self, side: Side, key: RoomKey) {
        let Some(room) = room_of(&key) else { return };
        let other = self.nodes[side.other() as usize].dead;
        self.node(side).assigned[room] = true;
        let (id, peer) = (RequestId(room as u64 + 1), IDS[side.other() as usize]);
        match side {
            Side::Prefill => {
                let spec = InitiatorRoom { key, request: id, peer, tenant: 0, group: 0, tokens: 1 };
                let mut opened = false;
                self.on_prefill(|end, cx| opened = end.open(cx, spec));
                if opened {
                    self.nodes[0].phase[room] = Phase::Waiting;
                    self.nodes[0].waiting.push_back(room);
                    if other {
                        self.on_prefill(|end, cx| end.peer_gone(cx, peer));
                    }
                    self.place();
                }
            }
            Side::Decode if other => {
                self.nodes[1].ended[room] = Some(false);
                self.on_decode(|end, cx| end.abort(cx, key, Reason::PeerGone, false));
            }
            Side::Decode if !self.decode.knows_room(&key) => {
                self.nodes[1].phase[room] = Phase::Waiting;
                self.nodes[1].waiting.push_back(room);
                self.admit();
            }
            Side::Decode => {}
        }
    }

    /// The registry says that an instance is no more: the other one, or this one itself.
    pub(super) fn gone(&mut self, side: Side, instance: InstanceId) {
        let own = instance == IDS[side as usize];
        if side == Side::Decode {
            let rooms: Vec<usize> = self.nodes[1].waiting.iter().copied().collect();
            self.drop_waiting(|_| true);
            for room in rooms {
                self.on_decode(|end, cx| end.abort(cx, key(room), Reason::PeerGone, false));
            }
        }
        match (side, own) {
            (Side::Prefill, true) => self.on_prefill(|end, cx| end.abandon(cx, Reason::LeaseLost)),
            (Side::Decode, true) => self.on_decode(|end, cx| end.abandon(cx, Reason::LeaseLost)),
            (Side::Prefill, false) => self.on_prefill(|end, cx| end.peer_gone(cx, instance)),
            (Side::Decode, false) => self.on_decode(|end, cx| end.peer_gone(cx, instance)),
        }
    }

    /// Prefill gives pages to the rooms that wait for them, and computes.
    pub(super) fn place(&mut self) {
        while let Some(room) = self.nodes[0].waiting.front().copied() {
            if self.prefill.is_active(&key(room)) {
                let mut table = PageTable::default();
                if !self.nodes[0].pool.take(1, &mut table) {
                    return;
                }
                self.nodes[0].tables[room] = table.clone();
                self.nodes[0].phase[room] = Phase::Live;
                self.nodes[0].waiting.pop_front();
                self.on_prefill(|end, cx| {
                    end.attach(&key(room), &table, 0);
                    // Pages of its own: it cannot be refused.
                    let _ = end.memory().stamp(cx.fabric, 0, &request(room), &table, 0..1, 0..LAYERS);
                    end.produced(cx, &key(room), 0..1, 0..LAYERS, true);
                });
            } else {
                self.nodes[0].waiting.pop_front();
            }
        }
    }

    /// Decode lets in the rooms that wait, first come first served.
    pub(super) fn admit(&mut self) {
        while let Some(room) = self.nodes[1].waiting.front().copied() {
            let mut table = PageTable::default();
            if !self.decode.can_open(IDS[0], 0) || !self.nodes[1].pool.take(1, &mut table) {
                return;
            }
            self.nodes[1].waiting.pop_front();
            self.nodes[1].tables[room] = table.clone();
            self.nodes[1].phase[room] = Phase::Live;
            let request = RequestId(room as u64 + 1);
            let spec = TargetRoom { key: key(room), request, peer: IDS[0], group: 0, tokens: 1 };
            let mut opened = false;
            self.on_decode(|end, cx| opened = end.open(cx, spec, &table));
            if !opened {
                self.nodes[1].ended[room] = Some(false);
                self.released(Side::Decode, room);
            }
        }
    }

    pub(super) fn finish(&mut self, room: usize) {
        self.nodes[1].phase[room] = Phase::Over;
        self.on_decode(|end, cx| end.finish(cx, key(room)));
    }

    pub(super) fn on_prefill(&mut self, call: impl FnOnce(&mut Initiator, &mut Cx<'_>)) {
        self.fabrics.begin_call(0, self.now);
        let mut cx = Cx { now: NOW, fabric: self.fabrics.host(0), out: &mut self.out };
        call(&mut self.prefill, &mut cx);
        self.fabrics.after_call(0, self.now, &mut self.pending, &mut self.ready);
        // What inline requests were made in: nobody reads it again.
        if let Some(aux) = self.prefill.memory().ranks.first().map(|rank| rank.aux.buf) {
            let _ = self.fabrics.host(0).write(aux, 0, &[0; 128]);
        }
        self.news(Side::Prefill);
        self.place();
    }

    pub(super) fn on_decode(&mut self, call: impl FnOnce(&mut Target, &mut Cx<'_>)) {
        self.fabrics.begin_call(1, self.now);
        let mut cx = Cx { now: NOW, fabric: self.fabrics.host(1), out: &mut self.out };
        call(&mut self.decode, &mut cx);
        self.fabrics.after_call(1, self.now, &mut self.pending, &mut self.ready);
        self.news(Side::Decode);
        self.admit();
    }

    pub(super) fn news(&mut self, side: Side) {
        let corrupt = self.out.records.iter().any(|record| record.step == Recorded::Corrupt);
        self.out.clear();
        if corrupt {
            self.breaks("Success without the aux row", "every sealed part was seen".to_owned());
        }
        loop {
            let news = match side {
                Side::Prefill => self.prefill.next_news(),
                Side::Decode => self.decode.next_news(),
            };
            let Some(news) = news else { return };
            match news {
                News::Tell(Message::Link { body, .. }) => {
                    let message = Message::Link { peer: IDS[side as usize], body };
                    self.node(side.other()).inbox.push_back(message);
                }
                News::Tell(message) => self.node(side.other()).inbox.push_back(message),
                News::Started(_) => {}
                News::Success(key) => {
                    if let Some(room) = room_of(&key) {
                        self.succeeded(side, room);
                    }
                }
                News::Failed(key, _) => {
                    if let Some(room) = room_of(&key) {
                        self.ends(side, room, false);
                        if self.node(side).phase[room] == Phase::Live {
                            self.node(side).phase[room] = Phase::Over;
                        }
                    }
                }
                News::Released(key) => {
                    if let Some(room) = room_of(&key) {
                        self.released(side, room);
                    }
                }
            }
        }
    }

    /// A side says how a room ended.
    pub(super) fn ends(&mut self, side: Side, room: usize, success: bool) {
        let before = self.node(side).ended[room].replace(success);
        if before.is_some() {
            self.breaks("a room ends twice", format!("room {} on {side}", room + 1));
        }
    }

    pub(super) fn succeeded(&mut self, side: Side, room: usize) {
        self.ends(side, room, true);
        if self.nodes[side as usize].dead {
            let what = format!("room {} on {side}", room + 1);
            self.breaks("Success after the lease was declared dead", what);
        }
        self.check_success(side, room);
        if side == Side::Decode {
            self.nodes[1].phase[room] = Phase::Success;
            // Decode writes on: its last page is its own now.
            if let Some(page) = self.nodes[1].page(room) {
                self.fill_page(Side::Decode, page, super::check::APPENDED);
            }
            if !self.base.scope.hold {
                self.finish(room);
            }
        }
    }

    pub(super) fn released(&mut self, side: Side, room: usize) {
        let Some(page) = self.node(side).page(room) else { return };
        self.node(side).phase[room] = Phase::Released;
        let node = &mut self.nodes[side as usize];
        if node.pool.give_all(&mut node.tables[room]) > 0 {
            self.breaks("pages are freed twice", format!("page {page} of {side}, room {}", room + 1));
        }
        self.mark_page(side, page);
        if side == Side::Decode {
            self.mark_slot();
        }
    }

    pub(super) fn mark_page(&mut self, side: Side, page: u32) {
        self.fill_page(side, page, super::check::mark(side));
    }

    pub(super) fn fill_page(&mut self, side: Side, page: u32, byte: u8) {
        let memory = match side {
            Side::Prefill => self.prefill.memory(),
            Side::Decode => self.decode.memory(),
        };
        let Some(pool) = memory.ranks.first().and_then(|rank| rank.pools.first()) else { return };
        for layer in 0..u64::from(LAYERS) {
            let at = layer * pool.grid.pitch + u64::from(page) * pool.grid.page;
            let bytes = vec![byte; pool.grid.page as usize];
            // In range: the pool has this page.
            let _ = self.fabrics.host(side as usize).write(pool.buf, at, &bytes);
        }
    }

    pub(super) fn mark_slot(&mut self) {
        let Some(rank) = self.decode.memory().ranks.first() else { return };
        let (buf, bytes) = (rank.aux.buf, [super::check::mark(Side::Decode); 96]);
        let _ = self.fabrics.host(1).write(buf, 0, &bytes);
    }
}
