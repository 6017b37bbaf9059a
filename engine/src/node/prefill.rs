//! A prefill instance: takes rooms, computes their prompts in chunked steps, hands KV to the transfer engine.

mod show;

use super::cache::PrefixCache;
use super::compute::{Chunk, Compute};
use super::instance::{BoxedCompute, InstanceConfig, Peers, StartError, pair, unpaired};
use super::{BLOCK_TOKENS, Counters, Cx, Held, Input, Node, Outbox, Reason, Request, Step};
use crate::fabric::Access;
use crate::id::{InstanceId, RequestId};
use crate::map::Map;
use crate::policy::{Direction, Granularity};
use crate::registry::{Client, ClientEvent, LinkBody, Message, Role, RoomKey, SHORT, Timing};
use crate::time::{Span, Time};
use crate::transfer::{InitiatorRoom, InstanceMemory, News, PagePool, PageTable, RoomState, Source};
use std::collections::VecDeque;
use std::sync::Arc;

/// A room's prompt.
struct Job {
    request: Request,
    group: u16,
    table: PageTable,
    /// Whether it has pages.
    placed: bool,
    /// Blocks taken from the cache, or given to it: this job is one of their users.
    shared: usize,
    /// Tokens whose KV is there.
    done: u32,
    cached: u32,
    /// When it came, when its first step began, and when its last one ended.
    came: Time,
    began: Time,
    ended: Time,
    /// Part of the step under way.
    computing: bool,
    /// The transfer is over (or failed): pages go back once nothing computes into them.
    released: bool,
}

/// Tokens of one room in the step under way.
struct StepPart {
    key: RoomKey,
    from: u32,
    to: u32,
}

/// A step under way.
struct Running {
    started: Time,
    span: Span,
    parts: Vec<StepPart>,
    /// Layers already handed over, and when the next group is done.
    layers: u32,
    next: Time,
}

/// The node.
pub struct PrefillNode {
    config: InstanceConfig,
    compute: Box<dyn Compute>,
    client: Client,
    events: VecDeque<ClientEvent>,
    source: Option<Source>,
    peers: Peers,
    pools: Vec<PagePool>,
    caches: Vec<PrefixCache>,
    jobs: Map<RoomKey, Job>,
    waiting: VecDeque<RoomKey>,
    step: Option<Running>,
    chunks: Vec<Chunk>,
    /// Recycled between steps.
    spare_parts: Vec<StepPart>,
    leaving: bool,
    /// Before that nothing more is said of pages that are short.
    short: Time,
    counters: Counters,
    /// Why it could not start.
    failed: Option<StartError>,
}

impl PrefillNode {
    /// A node to be started.
    pub fn new(config: InstanceConfig, compute: BoxedCompute) -> Self {
        Self {
            client: Client::new(Role::Prefill, None, config.session, config.life),
            compute,
            events: VecDeque::new(),
            source: None,
            peers: Peers::default(),
            pools: Vec::new(),
            caches: Vec::new(),
            jobs: Map::default(),
            waiting: VecDeque::new(),
            step: None,
            chunks: Vec::new(),
            spare_parts: Vec::new(),
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
        self.source.as_ref().map(|source| source.end().memory())
    }

    /// Whether it holds anything for a room.
    pub fn has_room(&self, key: &RoomKey) -> bool {
        self.jobs.contains(key)
    }

    /// The pages of a room and their DP group, once it has pages.
    pub fn pages(&self, key: &RoomKey) -> Option<(u16, &PageTable)> {
        self.jobs.get(key).map(|job| (job.group, &job.table))
    }

    /// Every room that its transfer engine has.
    pub fn rooms(&self, see: &mut dyn FnMut(RoomKey, RequestId, RoomState)) {
        if let Some(source) = &self.source {
            source.end().rooms(see);
        }
    }

    /// How a room ended that its transfer engine has released.
    pub fn room_ended(&self, key: &RoomKey) -> Option<RoomState> {
        self.source.as_ref().and_then(|source| source.end().ended(key))
    }

    /// Whether a deadline of a room is to come.
    pub fn is_timed(&self, key: &RoomKey) -> bool {
        self.source.as_ref().is_some_and(|source| source.end().is_timed(key))
    }

    fn start(&mut self, cx: &mut Cx<'_>) -> Result<(), StartError> {
        let memory = self.config.memory(cx.fabric, Access::REMOTE_READ)?;
        let facts = self.config.facts(&memory);
        let groups = self.config.parallel.dp.max(1);
        self.pools = (0..groups).map(|_| PagePool::new(self.config.pages, self.config.scatter)).collect();
        self.caches = (0..groups).map(|_| PrefixCache::default()).collect();
        let source = Source::new(self.config.transfer.clone(), memory, cx.fabric, self.config.queue_pairs())
            .map_err(|why| StartError::Fabric { what: "completion queues", why })?;
        self.source = Some(source);
        self.client = Client::new(Role::Prefill, Some(facts), self.config.session, self.config.life);
        self.client.start(cx.now);
        Ok(())
    }

    fn on_client(&mut self, cx: &mut Cx<'_>) {
        while let Some(event) = self.events.pop_front() {
            let Some(source) = &mut self.source else { continue };
            match event {
                ClientEvent::Registered(_) => {}
                // Reports of rooms that ended are told again when their Assign comes again.
                ClientEvent::NewEpoch => {
                    self.peers.clear();
                    source.end_mut().say_again(cx);
                }
                ClientEvent::Evicted { reason, .. } => {
                    source.end_mut().abandon(cx, reason);
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
        let Some(source) = &mut self.source else { return };
        match message {
            Message::Assign { key, peer, request } => self.assign(cx, key, peer, request),
            Message::Publish(list) => source.publish(cx, &list),
            Message::Abort { key, reason } | Message::Cancel { key, reason } => {
                source.abort(cx, key, reason, false);
            }
            Message::Scattered { key, done } => source.scattered(cx, key, &done),
            Message::Report { key, report } => source.report(cx, key, report),
            Message::Link { peer, body } => {
                if matches!(body, LinkBody::Ask { .. }) && !source.end().knows(peer) {
                    self.peers.ask(&mut self.client, peer);
                }
                source.end_mut().link(cx, peer, body);
            }
            Message::FactsOf { instance, facts: Some(facts) } => {
                let own = source.end().memory().facts();
                let facts = self.peers.facts(&self.config, instance, *facts);
                match pair(&self.config, &own, &facts) {
                    Ok(pairing) => source.meet(cx, instance, Arc::new(facts), pairing),
                    Err(error) => {
                        // Asked again for the next room, which fails as fast.
                        self.peers.forget(instance);
                        source.end_mut().reject_peer(cx, instance, unpaired(&error), true);
                    }
                }
            }
            Message::FactsOf { instance, facts: None } | Message::Gone { instance } => {
                self.peers.forget(instance);
                source.end_mut().peer_gone(cx, instance);
            }
            Message::Short => self.client.hurry(cx.now + SHORT),
            Message::Joined(_) | Message::Welcome { .. } | Message::Refused { .. } => {}
            // Said by clients, never to one.
            Message::Register { .. }
            | Message::Heartbeat
            | Message::Leave
            | Message::Query { .. }
            | Message::Create { .. }
            | Message::Produced { .. }
            | Message::Done { .. }
            | Message::Delivered { .. } => {}
        }
    }

    fn assign(&mut self, cx: &mut Cx<'_>, key: RoomKey, peer: InstanceId, request: Request) {
        let Some(source) = &mut self.source else { return };
        if self.leaving {
            return;
        }
        // The group with most room; ties to the lowest.
        let free = |g: &usize| u64::from(self.pools[*g].free()) + self.caches[*g].idle_pages();
        let group = (0..self.pools.len()).rev().max_by_key(free).unwrap_or(0);
        let (tenant, tokens) = (request.tenant, request.prompt);
        let spec = InitiatorRoom { key, request: request.id, peer, tenant, group: group as u16, tokens };
        if !source.open(cx, spec) {
            return;
        }
        if !source.end().knows(peer) {
            self.peers.ask(&mut self.client, peer);
        }
        let need = request.prompt.div_ceil(self.config.page_size);
        if request.prompt == 0 || need > self.pools[group].capacity() {
            source.abort(cx, key, Reason::NoMemory, true);
            return;
        }
        let job = Job {
            request,
            group: group as u16,
            table: PageTable::default(),
            placed: false,
            shared: 0,
            done: 0,
            cached: 0,
            came: cx.now,
            began: cx.now,
            ended: cx.now,
            computing: false,
            released: false,
        };
        self.jobs.insert(key, job);
        self.waiting.push_back(key);
    }

    /// Gives a job pages: blocks of its prefix from the cache, new ones for the rest. False if there are not enough, or no aux slot.
    fn place(&mut self, cx: &mut Cx<'_>, key: &RoomKey) -> bool {
        let Some(job) = self.jobs.get_mut(key) else { return true };
        if job.placed {
            return true;
        }
        if !self.source.as_ref().is_some_and(Source::can_attach) {
            return false;
        }
        let (pool, cache) =
            (&mut self.pools[usize::from(job.group)], &mut self.caches[usize::from(job.group)]);
        let pages = job.request.prompt.div_ceil(self.config.page_size);
        let mut hits = 0;
        if self.config.prefix_cache && BLOCK_TOKENS.is_multiple_of(self.config.page_size) {
            // At least the last token is always computed: somebody has to sample from it.
            let whole = ((job.request.prompt - 1) / BLOCK_TOKENS) as usize;
            let ids = &job.request.blocks[..whole.min(job.request.blocks.len())];
            hits = cache.hits(ids);
            for id in &ids[..hits] {
                cache.take(*id, &mut job.table);
            }
        }
        let need = pages - job.table.len();
        cache.make_room(pool, need);
        if !pool.take(need, &mut job.table) {
            for id in &job.request.blocks[..hits] {
                cache.put(*id);
            }
            job.table.clear();
            // In push its own completions give pages back.
            if self.config.transfer.direction == Direction::Pull && self.short <= cx.now {
                self.short = cx.now + Span(SHORT.0 / 2);
                self.client.send(&Message::Short);
            }
            return false;
        }
        job.placed = true;
        job.shared = hits;
        job.cached = hits as u32 * BLOCK_TOKENS;
        job.done = job.cached;
        if let Some(source) = &mut self.source {
            source.attach(cx, key, &job.table, job.cached);
        }
        true
    }

    /// Starts a step if there is something to compute.
    fn schedule(&mut self, cx: &mut Cx<'_>) {
        if self.step.is_some() || self.leaving {
            return;
        }
        let mut budget = self.config.batch.max(1);
        let mut parts = std::mem::take(&mut self.spare_parts);
        self.chunks.clear();
        while budget > 0 {
            let Some(key) = self.waiting.front().copied() else { break };
            let active = self.source.as_ref().is_some_and(|source| source.is_active(&key));
            if !active || !self.jobs.contains(&key) {
                self.waiting.pop_front();
                continue;
            }
            if !self.place(cx, &key) {
                break;
            }
            let Some(job) = self.jobs.get_mut(&key) else { break };
            if job.done == job.cached {
                job.began = cx.now;
                cx.out.record(job.request.id, Step::PrefillStart { cached: job.cached });
            }
            let (from, new) = (job.done, budget.min(job.request.prompt - job.done));
            job.computing = true;
            budget -= new;
            self.chunks.push(Chunk { new, context: from });
            parts.push(StepPart { key, from, to: from + new });
            if from + new == job.request.prompt {
                self.waiting.pop_front();
            } else {
                break;
            }
        }
        if parts.is_empty() {
            self.spare_parts = parts;
            return;
        }
        let estimate = self.compute.prefill(&self.chunks);
        self.counters.extrapolated += u64::from(estimate.extrapolated);
        // KV from the cache can leave before anything is computed.
        if self.config.transfer.granularity != Granularity::Request {
            let layers = 0..self.config.model.layers;
            for part in &parts {
                if let (Some(job), Some(source)) = (self.jobs.get(&part.key), &mut self.source)
                    && part.from == job.cached
                    && job.cached > 0
                {
                    source.produced(cx, &part.key, 0..job.cached, layers.clone(), false);
                }
            }
        }
        let (started, span) = (cx.now, estimate.span);
        let next = self.layers_at(started, span, 0);
        self.step = Some(Running { started, span, parts, layers: 0, next });
    }

    /// Layers that are done together with those handed over so far.
    fn layers_upto(&self, done: u32) -> u32 {
        let total = self.config.model.layers.max(1);
        match self.config.transfer.granularity {
            Granularity::LayerWise { layers } => done.saturating_add(layers.max(1)).min(total),
            Granularity::Request | Granularity::Chunk => total,
        }
    }

    /// When that is, in a step of this span.
    fn layers_at(&self, started: Time, span: Span, done: u32) -> Time {
        let total = self.config.model.layers.max(1);
        let upto = self.layers_upto(done);
        if upto == total {
            return started + span;
        }
        started + Span((u128::from(span.0) * u128::from(upto) / u128::from(total)) as u64)
    }

    /// A group of layers, or the step, is done.
    fn advance(&mut self, cx: &mut Cx<'_>) {
        while let Some(step) = self.step.as_ref().filter(|step| step.next <= cx.now) {
            let (started, span, done) = (step.started, step.span, step.layers);
            let upto = self.layers_upto(done);
            let next = self.layers_at(started, span, upto);
            let (Some(step), Some(source)) = (&mut self.step, &mut self.source) else { return };
            let total = self.config.model.layers;
            let granularity = self.config.transfer.granularity;
            let layers = done..upto;
            (step.layers, step.next) = (upto, next);
            let ended = upto == total;
            for part in &step.parts {
                let Some(job) = self.jobs.get_mut(&part.key) else { continue };
                let tokens = part.from..part.to;
                let last = ended && part.to == job.request.prompt;
                // The write of this instance's own compute into pages that it owns: refused only if the fabric lost them.
                let _ = source.end().memory().stamp(
                    cx.fabric,
                    job.group,
                    &job.request,
                    &job.table,
                    tokens.clone(),
                    layers.clone(),
                );
                if ended {
                    job.done = part.to;
                    job.computing = false;
                }
                if last {
                    job.ended = cx.now;
                    cx.out.record(job.request.id, Step::PrefillEnd);
                }
                match granularity {
                    Granularity::Request if last => {
                        source.produced(cx, &part.key, 0..part.to, 0..total, true);
                    }
                    Granularity::Request => {}
                    Granularity::Chunk | Granularity::LayerWise { .. } => {
                        source.produced(cx, &part.key, tokens, layers.clone(), last);
                    }
                }
            }
            if ended && let Some(mut step) = self.step.take() {
                for part in step.parts.drain(..) {
                    self.cache_blocks(&part.key);
                    self.give_back(&part.key);
                }
                self.spare_parts = step.parts;
            }
        }
    }

    /// Lets later requests use the whole blocks of a computed prompt.
    fn cache_blocks(&mut self, key: &RoomKey) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        if !self.config.prefix_cache
            || job.done < job.request.prompt
            || !BLOCK_TOKENS.is_multiple_of(self.config.page_size)
        {
            return;
        }
        let per_block = BLOCK_TOKENS / self.config.page_size;
        let whole = (job.request.prompt / BLOCK_TOKENS) as usize;
        let cache = &mut self.caches[usize::from(job.group)];
        while job.shared < whole.min(job.request.blocks.len()) {
            let first = job.shared as u32 * per_block;
            let pages = job.table.slice(first, first + per_block);
            let parent = job.shared.checked_sub(1).map(|before| job.request.blocks[before]);
            if !cache.insert(job.request.blocks[job.shared], parent, pages) {
                // Somebody else computed it at the same time; these pages stay this job's own.
                break;
            }
            job.shared += 1;
        }
    }

    /// Gives a released job's pages back, once no step writes to them.
    fn give_back(&mut self, key: &RoomKey) {
        if !self.jobs.get(key).is_some_and(|job| job.released && !job.computing) {
            return;
        }
        let Some(job) = self.jobs.remove(key) else { return };
        let (pool, cache) =
            (&mut self.pools[usize::from(job.group)], &mut self.caches[usize::from(job.group)]);
        for id in &job.request.blocks[..job.shared] {
            cache.put(*id);
        }
        let per_block = BLOCK_TOKENS / self.config.page_size.clamp(1, BLOCK_TOKENS);
        let own = job.shared as u32 * per_block;
        let mut rest = PageTable::new(job.table.slice(own, job.table.len()).collect());
        let wrong = pool.give_all(&mut rest);
        debug_assert_eq!(wrong, 0, "pages freed twice");
    }

    /// Tells the router of a delivery, if it wants to know.
    fn delivered(&mut self, now: Time, key: RoomKey) {
        if !self.config.tell_deliveries {
            return;
        }
        let Some(job) = self.jobs.get(&key) else { return };
        let timing = Timing {
            cached: job.cached,
            queued: job.began.since(job.came),
            compute: job.ended.since(job.began),
            handoff: now.since(job.ended),
        };
        self.client.send(&Message::Delivered { key, timing });
    }

    fn on_news(&mut self, now: Time) {
        while let Some(news) = self.source.as_mut().and_then(|source| source.end_mut().next_news()) {
            match news {
                News::Tell(message) => self.client.send(&message),
                News::Success(key) => self.delivered(now, key),
                News::Started(_) | News::Failed(..) => {}
                News::Released(key) => {
                    if let Some(job) = self.jobs.get_mut(&key) {
                        job.released = true;
                        self.give_back(&key);
                    }
                }
            }
        }
    }

    fn shut_down(&mut self, cx: &mut Cx<'_>) {
        if !self.leaving {
            self.leaving = true;
            // Nobody will want what the step under way computes, and its end must not be waited for when the source is gone.
            for part in self.step.take().into_iter().flat_map(|step| step.parts) {
                if let Some(job) = self.jobs.get_mut(&part.key) {
                    job.computing = false;
                }
            }
            if let Some(source) = &mut self.source {
                source.end_mut().abandon(cx, Reason::Aborted);
            }
            self.on_news(cx.now);
            self.client.leave(cx.now);
        }
    }

    /// Gives the fabric's objects back once nothing is outstanding.
    fn close(&mut self, cx: &mut Cx<'_>) {
        if self.leaving
            && self
                .source
                .as_ref()
                .is_some_and(|source| source.end().held().rooms == 0 && source.end().held().queue_pairs == 0)
            && let Some(mut source) = self.source.take()
        {
            // Everything was given back in order; what a broken device refuses is gone with the process.
            let _ = source.end_mut().close(cx.fabric);
            // Nobody is left to take a step's end: its deadline would be overdue for ever.
            self.step = None;
        }
    }
}

impl Node for PrefillNode {
    fn handle(&mut self, cx: &mut Cx<'_>, input: Input<'_>) {
        if let Some(source) = &mut self.source {
            source.end_mut().set_lease(self.client.lease_until().unwrap_or(Time::ZERO));
        }
        match input {
            Input::Start => {
                if let Err(error) = self.start(cx) {
                    self.failed = Some(error);
                }
            }
            Input::Wake => {
                if let Some(source) = &mut self.source {
                    source.end_mut().wake(cx);
                }
                self.advance(cx);
            }
            Input::Frame { bytes, .. } => {
                self.client.receive(cx.now, bytes, &mut self.events);
                self.on_client(cx);
            }
            Input::Completions { batch, .. } => {
                if let Some(source) = &mut self.source {
                    source.end_mut().completions(cx, batch);
                }
            }
            Input::Fabric(event) => {
                if let Some(source) = &mut self.source {
                    source.end_mut().event(cx, event);
                }
            }
            Input::Expire(key) => {
                if let Some(source) = &mut self.source {
                    source.end_mut().expire(cx, key);
                }
            }
            Input::Arrival(_) => {}
            Input::Shutdown => self.shut_down(cx),
        }
        self.on_news(cx.now);
        self.schedule(cx);
        self.on_news(cx.now);
        self.close(cx);
    }

    fn flush(&mut self, now: Time, out: &mut Outbox) {
        self.client.flush(now, out);
    }

    fn deadline(&self) -> Option<Time> {
        let source = self.source.as_ref().and_then(|source| source.end().deadline()).unwrap_or(Time::NEVER);
        let step = self.step.as_ref().map_or(Time::NEVER, |step| step.next);
        Time::earliest([self.client.deadline(), source, step])
    }

    fn held(&self) -> Held {
        let Some(source) = &self.source else { return Held::default() };
        let held = source.end().held();
        let cached: u64 = self.caches.iter().map(PrefixCache::idle_pages).sum();
        let used: u64 = self.pools.iter().map(|pool| u64::from(pool.used())).sum();
        let regions = source.end().memory().memory_regions();
        Held {
            rooms: held.rooms.max(self.jobs.len() as u64),
            pages: used - cached.min(used),
            cached_pages: cached,
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
        let stats = self.source.as_ref().map(|source| source.end().stats()).unwrap_or_default();
        Counters {
            fences: stats.fences,
            staged_parts: stats.staged_parts,
            copied_bytes: stats.staged_bytes,
            checksum_mismatches: stats.checksum_mismatches,
            malformed_frames: self.client.stats().malformed,
            ..self.counters
        }
    }
}
