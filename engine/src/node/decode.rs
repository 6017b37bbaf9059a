//! A decode instance: lets rooms in, has their KV transferred, and generates in continuous batches.

mod batch;
mod show;

use super::compute::Compute;
use super::instance::{BoxedCompute, InstanceConfig, Peers, StartError, pair, unpaired};
use super::job::{Job, Phase};
use super::{Counters, Cx, Held, Input, Node, Outbox, Reason, Request, Step};
use crate::fabric::Access;
use crate::id::{InstanceId, RequestId};
use crate::map::Map;
use crate::registry::{Client, ClientEvent, Message, Outcome, Role, RoomKey, SHORT};
use crate::time::{Span, Time};
use crate::transfer::{
    InitiatorRoom, InstanceMemory, News, Opening, PagePool, PageTable, RoomState, Sink, TargetRoom,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

/// The node.
pub struct DecodeNode {
    config: InstanceConfig,
    compute: Box<dyn Compute>,
    client: Client,
    events: VecDeque<ClientEvent>,
    sink: Option<Sink>,
    peers: Peers,
    pools: Vec<PagePool>,
    jobs: Map<RoomKey, Job>,
    waiting: VecDeque<RoomKey>,
    /// Rooms in transfer and in the batch.
    admitted: u32,
    orders: u64,
    /// Batch steps ended.
    steps: u64,
    step_ends: Option<Time>,
    /// End of the step after which something happens: a request ends, joins or needs a page. Steps in between are counted when
    /// the node is next called; they need no call of their own.
    wakes: Time,
    /// Requests that join with the next step.
    joining: Vec<RoomKey>,
    /// By the step that ends them. May name requests that were sent back meanwhile.
    finishing: BinaryHeap<Reverse<(u64, RoomKey)>>,
    /// On-demand: by the step that needs another page; the same.
    growing: BinaryHeap<Reverse<(u64, RoomKey)>>,
    /// Rooms that are over and whose pages are not free yet.
    draining: u32,
    /// On-demand: in order of admission.
    running: BTreeMap<u64, RoomKey>,
    batch: u32,
    context: u64,
    /// How rooms ended that the registry may ask about again.
    ended: VecDeque<(RoomKey, Outcome)>,
    leaving: bool,
    /// Before that nothing more is said of pages and slots that are short.
    short: Time,
    counters: Counters,
    failed: Option<StartError>,
}

/// Ended rooms whose outcome can be told again.
const ENDED: usize = 4096;

impl DecodeNode {
    /// A node to be started.
    pub fn new(config: InstanceConfig, compute: BoxedCompute) -> Self {
        Self {
            client: Client::new(Role::Decode, None, config.session, config.life),
            compute,
            events: VecDeque::new(),
            sink: None,
            peers: Peers::default(),
            pools: Vec::new(),
            jobs: Map::default(),
            waiting: VecDeque::new(),
            admitted: 0,
            orders: 0,
            steps: 0,
            step_ends: None,
            wakes: Time::NEVER,
            joining: Vec::new(),
            finishing: BinaryHeap::new(),
            growing: BinaryHeap::new(),
            draining: 0,
            running: BTreeMap::new(),
            batch: 0,
            context: 0,
            ended: VecDeque::new(),
            leaving: false,
            short: Time::ZERO,
            counters: Counters::default(),
            failed: None,
            config,
        }
    }

    /// Why it could not start, if so.
    pub fn error(&self) -> Option<&StartError> {
        self.failed.as_ref()
    }

    /// Its KV pools, between start and shutdown.
    pub fn memory(&self) -> Option<&InstanceMemory> {
        self.sink.as_ref().map(|sink| sink.end().memory())
    }

    /// Whether it holds anything for a room.
    pub fn has_room(&self, key: &RoomKey) -> bool {
        self.jobs.contains(key)
    }

    /// The pages of a room's prompt and their DP group, once it has pages.
    pub fn prompt_pages(&self, key: &RoomKey) -> Option<(u16, PageTable)> {
        let job = self.jobs.get(key)?;
        Some((job.group, job.prompt_table(self.config.page_size)))
    }

    /// Every room that waits for pages, then every other one that its transfer engine has.
    pub fn rooms(&self, see: &mut dyn FnMut(RoomKey, RequestId, RoomState)) {
        let Some(sink) = &self.sink else { return };
        if matches!(sink, Sink::Push(_)) {
            for key in &self.waiting {
                if let Some(job) = self.jobs.get(key).filter(|job| job.phase == Phase::Waiting) {
                    see(*key, job.request.id, RoomState::Bootstrapping);
                }
            }
        }
        sink.end().rooms(see);
    }

    /// How a room ended that its transfer engine has released.
    pub fn room_ended(&self, key: &RoomKey) -> Option<RoomState> {
        self.sink.as_ref().and_then(|sink| sink.end().ended(key))
    }

    /// Whether a deadline of a room is to come.
    pub fn is_timed(&self, key: &RoomKey) -> bool {
        self.sink.as_ref().is_some_and(|sink| sink.end().is_timed(key))
    }

    fn start(&mut self, cx: &mut Cx<'_>) -> Result<(), StartError> {
        let memory = self.config.memory(cx.fabric, Access::REMOTE_WRITE)?;
        let facts = self.config.facts(&memory);
        let groups = self.config.parallel.dp.max(1);
        self.pools = (0..groups).map(|_| PagePool::new(self.config.pages, self.config.scatter)).collect();
        let sink = Sink::new(self.config.transfer.clone(), memory, cx.fabric, self.config.queue_pairs())
            .map_err(|why| StartError::Fabric { what: "shared receive queues", why })?;
        self.sink = Some(sink);
        self.client = Client::new(Role::Decode, Some(facts), self.config.session, self.config.life);
        self.client.start(cx.now);
        Ok(())
    }

    fn on_client(&mut self, cx: &mut Cx<'_>) {
        while let Some(event) = self.events.pop_front() {
            let Some(sink) = &mut self.sink else { continue };
            match event {
                ClientEvent::Registered(_) => {}
                ClientEvent::NewEpoch => {
                    self.peers.clear();
                    sink.end_mut().say_again(cx);
                }
                ClientEvent::Evicted { reason, .. } => {
                    sink.end_mut().abandon(cx, reason);
                    self.give_up(cx, reason);
                    self.peers.clear();
                    if !self.leaving {
                        self.client.rejoin(cx.now);
                    }
                }
                ClientEvent::Message(message) => self.on_message(cx, message),
            }
        }
    }

    fn on_message(&mut self, cx: &mut Cx<'_>, message: Message) {
        if let Message::Cancel { key, reason } = message
            && self.is_running(&key)
        {
            return self.stop(cx, key, reason);
        }
        let Some(sink) = &mut self.sink else { return };
        match message {
            Message::Assign { key, peer, request } => self.assign(cx, key, peer, request),
            Message::Report { key, report } => sink.report(cx, key, report),
            Message::Publish(list) => sink.publish(cx, &list),
            Message::Produced { key, before, pieces, last } => {
                sink.produced(cx, &key, before, &pieces, last.as_deref());
            }
            Message::Abort { key, reason } | Message::Cancel { key, reason } => {
                let waiting = self.jobs.get(&key).is_some_and(|job| job.phase == Phase::Waiting);
                sink.abort(cx, key, reason);
                if waiting {
                    self.jobs.remove(&key);
                    self.done(key, Outcome::Failed(reason));
                }
            }
            Message::Link { peer, body } => {
                if !sink.end().knows(peer) {
                    self.peers.ask(&mut self.client, peer);
                }
                sink.end_mut().link(cx, peer, body);
            }
            Message::FactsOf { instance, facts: Some(facts) } => {
                let own = sink.end().memory().facts();
                let facts = self.peers.facts(&self.config, instance, *facts);
                match pair(&self.config, &facts, &own) {
                    Ok(pairing) => sink.meet(cx, instance, &Arc::new(facts), pairing),
                    Err(error) => {
                        // Asked again for the next room, which fails as fast.
                        self.peers.forget(instance);
                        self.drop_waiting(cx, instance, unpaired(&error));
                    }
                }
            }
            Message::FactsOf { instance, facts: None } | Message::Gone { instance } => {
                self.peers.forget(instance);
                sink.end_mut().peer_gone(cx, instance);
                self.drop_waiting(cx, instance, Reason::PeerGone);
            }
            Message::Short => self.client.hurry(cx.now + SHORT),
            Message::Joined(_) | Message::Welcome { .. } | Message::Refused { .. } => {}
            // Said by clients, never to one.
            Message::Register { .. }
            | Message::Heartbeat
            | Message::Leave
            | Message::Query { .. }
            | Message::Create { .. }
            | Message::Scattered { .. }
            | Message::Done { .. }
            | Message::Delivered { .. } => {}
        }
    }

    fn assign(&mut self, cx: &mut Cx<'_>, key: RoomKey, peer: InstanceId, request: Request) {
        let Some(sink) = &mut self.sink else { return };
        if self.leaving {
            return;
        }
        let again = self.config.transfer.rules.assigns_once;
        match self.jobs.get(&key).filter(|_| again) {
            // Again: the registry lost the room, and its page list with it.
            Some(job) if job.phase == Phase::Transfer => {
                sink.tell_again(&key, Some(&job.prompt_table(self.config.page_size)));
                return;
            }
            Some(job) if job.phase != Phase::Over => {
                sink.tell_again(&key, None);
                return;
            }
            // Over, but its pages are not free yet: the registry lost the outcome.
            Some(_) | None => {}
        }
        if again && (self.jobs.contains(&key) || sink.knows_room(&key)) {
            let outcome =
                self.ended.iter().rev().find(|(ended, _)| *ended == key).map(|(_, outcome)| *outcome);
            let outcome = outcome.unwrap_or(Outcome::Failed(Reason::Refused));
            self.client.send(&Message::Done { key, outcome });
            sink.tell_again(&key, None);
            return;
        }
        if !sink.end().knows(peer) {
            self.peers.ask(&mut self.client, peer);
        }
        // The group with most room; ties to the lowest.
        let group = (0..self.pools.len()).rev().max_by_key(|g| self.pools[*g].free()).unwrap_or(0);
        if request.prompt == 0 || self.config.most_pages(&request) > self.pools[group].capacity() {
            self.client.send(&Message::Abort { key, reason: Reason::NoMemory });
            sink.abort(cx, key, Reason::NoMemory);
            self.done(key, Outcome::Failed(Reason::NoMemory));
            return;
        }
        // Counted without those that the queue still names and that have ended.
        let let_in = u64::from(self.admitted) + u64::from(self.draining);
        let waiting = (self.jobs.len() as u64).saturating_sub(let_in);
        if self.config.most_waiting.is_some_and(|most| waiting >= u64::from(most)) {
            self.client.send(&Message::Abort { key, reason: Reason::Busy });
            sink.abort(cx, key, Reason::Busy);
            self.done(key, Outcome::Failed(Reason::Busy));
            return;
        }
        let (tenant, tokens, group) = (request.tenant, request.prompt, group as u16);
        sink.expect(cx, InitiatorRoom { key, request: request.id, peer, tenant, group, tokens });
        let job = Job {
            request,
            peer,
            group,
            table: PageTable::default(),
            phase: Phase::Waiting,
            joined: 0,
            order: 0,
        };
        self.jobs.insert(key, job);
        self.waiting.push_back(key);
    }

    /// Lets requests in, first come first served, for as long as there is room.
    fn admit(&mut self, cx: &mut Cx<'_>) {
        while let Some(key) = self.waiting.front().copied() {
            let Some(sink) = &mut self.sink else { return };
            let Some(job) = self.jobs.get(&key).filter(|job| job.phase == Phase::Waiting) else {
                self.waiting.pop_front();
                continue;
            };
            if !sink.could_open(job.peer, job.group) {
                self.waiting.pop_front();
                self.jobs.remove(&key);
                sink.abort(cx, key, Reason::NoMemory);
                self.client.send(&Message::Abort { key, reason: Reason::NoMemory });
                self.done(key, Outcome::Failed(Reason::NoMemory));
                continue;
            }
            let need = self.config.pages_needed(&job.request);
            let Some(job) = self.jobs.get_mut(&key) else { return };
            let pool = &mut self.pools[usize::from(job.group)];
            let opening = sink.opening(job.peer, job.group);
            let short = need > pool.free() && self.draining > 0 || opening == Opening::Full;
            if short && self.admitted < self.config.batch {
                self.say_short(cx.now);
                return;
            }
            if self.admitted >= self.config.batch.max(1)
                || need > pool.free()
                || opening != Opening::Now
                || !pool.take(need, &mut job.table)
            {
                return;
            }
            self.waiting.pop_front();
            let table = job.prompt_table(self.config.page_size);
            let (request, peer, group, tokens) = (job.request.id, job.peer, job.group, job.request.prompt);
            job.phase = Phase::Transfer;
            self.orders += 1;
            job.order = self.orders;
            self.admitted += 1;
            if !sink.open(cx, TargetRoom { key, request, peer, group, tokens }, &table) {
                // The device took fewer receives than it said it would. Nothing was published, so nothing can be written to the pages.
                if let Some(mut job) = self.jobs.remove(&key) {
                    self.pools[usize::from(job.group)].give_all(&mut job.table);
                }
                self.admitted -= 1;
                self.done(key, Outcome::Failed(Reason::Refused));
            }
        }
    }

    /// Requests wait for pages or slots that only a word of the other side gives back.
    fn say_short(&mut self, now: Time) {
        if self.short <= now {
            self.short = now + Span(SHORT.0 / 2);
            self.client.send(&Message::Short);
        }
    }

    fn drop_waiting(&mut self, cx: &mut Cx<'_>, peer: InstanceId, reason: Reason) {
        let keys: Vec<RoomKey> = self
            .waiting
            .iter()
            .copied()
            .filter(|key| {
                self.jobs.get(key).is_some_and(|job| job.peer == peer && job.phase == Phase::Waiting)
            })
            .collect();
        for key in keys {
            self.jobs.remove(&key);
            if let Some(sink) = &mut self.sink {
                sink.abort(cx, key, reason);
            }
            self.client.send(&Message::Abort { key, reason });
            self.done(key, Outcome::Failed(reason));
        }
    }

    /// This instance's life is over: nothing it has goes on.
    fn give_up(&mut self, cx: &mut Cx<'_>, reason: Reason) {
        for key in std::mem::take(&mut self.waiting) {
            if self.jobs.get(&key).is_some_and(|job| job.phase == Phase::Waiting) {
                self.jobs.remove(&key);
                self.done(key, Outcome::Failed(reason));
            }
        }
        let mut rooms: Vec<RoomKey> = self.joining.drain(..).collect();
        rooms.extend(
            std::mem::take(&mut self.finishing).into_sorted_vec().into_iter().map(|Reverse((_, key))| key),
        );
        self.growing.clear();
        self.running.clear();
        (self.batch, self.context, self.step_ends, self.wakes) = (0, 0, None, Time::NEVER);
        for key in rooms {
            // Tokens of these are out: whoever hears of it must not begin anew.
            self.over(cx, key, Outcome::Failed(Reason::Interrupted));
        }
    }

    /// Tells the outcome of a room, once.
    fn done(&mut self, key: RoomKey, outcome: Outcome) {
        if self.ended.len() == ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back((key, outcome));
        self.client.send(&Message::Done { key, outcome });
    }

    /// Ends a running request and lets go of its pages.
    fn over(&mut self, cx: &mut Cx<'_>, key: RoomKey, outcome: Outcome) {
        let Some(job) = self.jobs.get_mut(&key).filter(|job| job.phase == Phase::Running) else { return };
        job.phase = Phase::Over;
        self.admitted -= 1;
        self.draining += 1;
        self.verify(cx, &key);
        self.done(key, outcome);
        if let Some(sink) = &mut self.sink {
            sink.finish(cx, key);
        }
    }

    /// Checks that the prompt's KV is where it belongs, equal to the source.
    fn verify(&mut self, cx: &mut Cx<'_>, key: &RoomKey) {
        if !self.config.transfer.verify {
            return;
        }
        let (Some(job), Some(sink)) = (self.jobs.get(key), &self.sink) else { return };
        let tokens = 0..job.request.prompt;
        if sink.end().memory().holds(cx.fabric, job.group, &job.request, &job.table, tokens) != Ok(true) {
            cx.out.record(job.request.id, Step::Corrupt);
        }
    }

    fn on_news(&mut self, cx: &mut Cx<'_>) {
        while let Some(news) = self.sink.as_mut().and_then(|sink| sink.end_mut().next_news()) {
            match news {
                News::Tell(message) => self.client.send(&message),
                News::Started(_) => {}
                News::Success(key) => self.arrived(cx, key),
                News::Failed(key, reason) => {
                    match self.jobs.get_mut(&key).map(|job| (job.phase, job)) {
                        Some((Phase::Transfer, job)) => {
                            job.phase = Phase::Over;
                            self.admitted -= 1;
                            self.draining += 1;
                            self.done(key, Outcome::Failed(reason));
                        }
                        // Pull: a room can end before there is room for it here.
                        Some((Phase::Waiting, _)) => {
                            self.jobs.remove(&key);
                            self.done(key, Outcome::Failed(reason));
                        }
                        Some((Phase::Running | Phase::Over, _)) | None => {}
                    }
                }
                News::Released(key) => {
                    if let Some(mut job) = self.jobs.remove(&key) {
                        self.draining -= u32::from(job.phase == Phase::Over);
                        let wrong = self.pools[usize::from(job.group)].give_all(&mut job.table);
                        debug_assert_eq!(wrong, 0, "pages freed twice");
                    }
                }
            }
        }
    }

    /// A room's KV and first token are in place.
    fn arrived(&mut self, cx: &mut Cx<'_>, key: RoomKey) {
        self.verify(cx, &key);
        let Some(job) = self.jobs.get_mut(&key) else { return };
        job.phase = Phase::Running;
        let (request, output) = (job.request.id, job.request.output);
        cx.out.record(request, Step::Success);
        cx.out.record(request, Step::FirstToken);
        if output <= 1 {
            cx.out.record(request, Step::Finished);
            self.over(cx, key, Outcome::Finished);
        } else {
            self.joining.push(key);
        }
    }

    fn shut_down(&mut self, cx: &mut Cx<'_>) {
        if !self.leaving {
            self.leaving = true;
            self.give_up(cx, Reason::Aborted);
            if let Some(sink) = &mut self.sink {
                sink.end_mut().abandon(cx, Reason::Aborted);
            }
            self.on_news(cx);
            self.client.leave(cx.now);
        }
    }

    /// Gives the fabric's objects back once nothing is left.
    fn close(&mut self, cx: &mut Cx<'_>) {
        if self.leaving
            && self.sink.as_ref().is_some_and(|sink| sink.end().held().rooms == 0)
            && let Some(mut sink) = self.sink.take()
        {
            // Everything was given back in order; what a broken device refuses is gone with the process.
            let _ = sink.end_mut().close(cx.fabric);
        }
    }
}

impl Node for DecodeNode {
    fn handle(&mut self, cx: &mut Cx<'_>, input: Input<'_>) {
        if let Some(sink) = &mut self.sink {
            sink.end_mut().set_lease(self.client.lease_until().unwrap_or(Time::ZERO));
        }
        self.catch_up(cx);
        match input {
            Input::Start => {
                if let Err(error) = self.start(cx) {
                    self.failed = Some(error);
                }
            }
            Input::Wake => {
                if let Some(sink) = &mut self.sink {
                    sink.end_mut().wake(cx);
                }
            }
            Input::Frame { bytes, .. } => {
                self.client.receive(cx.now, bytes, &mut self.events);
                self.on_client(cx);
            }
            Input::Completions { batch, .. } => {
                if let Some(sink) = &mut self.sink {
                    sink.end_mut().completions(cx, batch);
                }
            }
            Input::Fabric(event) => {
                if let Some(sink) = &mut self.sink {
                    sink.end_mut().event(cx, event);
                }
            }
            Input::Expire(key) => {
                if let Some(sink) = &mut self.sink {
                    sink.end_mut().expire(cx, key);
                }
            }
            Input::Arrival(_) => {}
            Input::Shutdown => self.shut_down(cx),
        }
        self.on_news(cx);
        self.admit(cx);
        self.on_news(cx);
        match self.step_ends {
            None => self.next_step(cx, cx.now),
            // Whoever joins does so when the step under way ends.
            Some(end) if !self.joining.is_empty() => self.wakes = end,
            // Steps took longer than when it looked ahead.
            Some(end) if self.wakes <= cx.now => self.wakes = self.horizon(end),
            Some(_) => {}
        }
        self.close(cx);
    }

    fn flush(&mut self, now: Time, out: &mut Outbox) {
        self.client.flush(now, out);
    }

    fn deadline(&self) -> Option<Time> {
        let sink = self.sink.as_ref().and_then(|sink| sink.end().deadline()).unwrap_or(Time::NEVER);
        Time::earliest([self.client.deadline(), sink, self.wakes])
    }

    fn held(&self) -> Held {
        let Some(sink) = &self.sink else { return Held::default() };
        let held = sink.end().held();
        let regions = sink.end().memory().memory_regions();
        Held {
            rooms: held.rooms.max(self.jobs.len() as u64),
            pages: self.pools.iter().map(|pool| u64::from(pool.used())).sum(),
            cached_pages: 0,
            slots: held.slots,
            memory_regions: regions,
            pool_memory_regions: regions,
            queue_pairs: held.queue_pairs,
            pool_queue_pairs: held.queue_pairs,
            timers: held.timers,
            receives: held.receives,
        }
    }

    fn counters(&self) -> Counters {
        let stats = self.sink.as_ref().map(|sink| sink.end().stats()).unwrap_or_default();
        Counters {
            fences: stats.fences,
            stale_immediates: stats.stale_immediates,
            repeated_parts: stats.repeated_parts,
            scattered_parts: stats.staged_parts,
            copied_bytes: stats.staged_bytes,
            checksum_mismatches: stats.checksum_mismatches,
            malformed_frames: self.client.stats().malformed,
            ..self.counters
        }
    }
}
