//! Posting: order and window decide together what goes out next on a port.

use super::super::checksum::fold;
use super::super::news::News;
use super::super::stage::HEADER_BYTES;
use super::super::wire::{AUX_BYTES, AuxRow, Immediate, SEAL_BYTES, SLOT_BYTES, Seal};
use super::Initiator;
use super::jobs::JobState;
use super::link::Slice;
use super::room::PartState;
use super::stage::{self, Gather, HEADER_SCRATCH};
use crate::fabric::{Batch, Error, Flags, Item, Op, Sge, WorkRequest};
use crate::id::{RKey, WrId};
use crate::node::{Cx, Reason, Step};
use crate::policy::{Direction, JobId};

impl Initiator {
    /// Posts on every port what order and window allow.
    pub(super) fn pump_all(&mut self, cx: &mut Cx<'_>) {
        for port in 0..self.ports.len() {
            let window = self.config.window;
            loop {
                let queue = &mut self.ports[port];
                let most = window.requests.min(queue.most_requests);
                if queue.posted_bytes >= window.bytes || queue.posted_requests >= most {
                    break;
                }
                let room = (window.bytes - queue.posted_bytes, most - queue.posted_requests);
                let Some((job, most)) = queue.order.next(cx.now) else { break };
                // A policy's word is not trusted: a job that is not in this port's queue is none to post from.
                let here = |job: &JobState| job.queued && job.port.index() == port;
                if !self.jobs.get(job as usize).is_some_and(here) {
                    break;
                }
                // Posts, or takes the job out of the queue: either way the next question has another answer.
                self.post(cx, job, most.min(room.0), room.1);
            }
        }
    }

    /// Posts the next slice of a job: at least one request, at most so many bytes and requests.
    fn post(&mut self, cx: &mut Cx<'_>, id: JobId, bytes: u64, requests: u64) {
        let job = &mut self.jobs[id as usize];
        let order = &mut self.ports[job.port.index()].order;
        let room = self.rooms.get_mut(job.room as usize).and_then(Option::as_mut);
        let link = room.as_ref().and_then(|room| self.links.get_mut(&room.spec.peer));
        let (Some(room), Some(link), Some(&p)) = (room, link, job.ready.front().or(job.parts.front())) else {
            order.remove(id);
            job.queued = false;
            return;
        };
        let index = job.room;
        let part = &mut room.parts[p as usize];
        let free = match self.config.rules.send_queue_bound {
            true => {
                u64::from(self.config.send_depth) - link.wires.get(part.wire as usize).map_or(0, |w| w.used)
            }
            false => u64::MAX,
        };
        let may = link.is_up() && !(link.yielding && part.cursor == 0);
        // A staged part goes out whole.
        let least = part.extras() + if part.stage.is_some() { stage::REQUESTS } else { 0 };
        let (Some(remote), true, true) = (&room.remote, may, free >= least.max(1)) else {
            order.remove(id);
            job.queued = false;
            if link.is_up() && job.blocked.is_none() {
                job.blocked = Some(part.wire);
                link.wires[part.wire as usize].blocked.push(id);
            }
            return;
        };
        if part.lacks_gather() {
            self.gather(cx, id);
            return;
        }
        let wire = &mut link.wires[part.wire as usize];
        let ends = link.pairing.wires[part.wire as usize];
        let feed = &link.pairing.feeds[usize::from(part.feed)];
        let memory = &self.memory.ranks[ends.src.index()];
        let theirs = &link.facts.ranks[ends.dst.index()];
        let remote_port = if self.config.rules.key_of_port { ends.dst_port.index() } else { 0 };
        let rkey = |keys: &[u32]| RKey(keys.get(remote_port).copied().unwrap_or(0));
        let budget = requests.min(free);

        let op = match self.config.direction {
            Direction::Push => Op::Write,
            Direction::Pull => Op::Read,
        };

        // Requests of the plans.
        let mut chain: Vec<Item<'_>> = Vec::with_capacity(4);
        let (mut taken, mut sent, mut base) = (0u64, 0u64, 0u64);
        let mut at = part.window.start + part.cursor;
        for (plan, share) in &part.plans {
            let len = plan.requests();
            if at >= part.window.end {
                break;
            }
            if at >= base + len {
                base += len;
                continue;
            }
            let from = at - base;
            let most = len.min(part.window.end - base) - from;
            let mut take = most.min(budget - taken);
            let mut size = plan.offset(from + take) - plan.offset(from);
            if sent + size > bytes {
                take = plan.requests_within(from, bytes.saturating_sub(sent)).min(take);
                take = take.max(u64::from(taken == 0));
                size = plan.offset(from + take) - plan.offset(from);
            }
            if take == 0 {
                break;
            }
            let group = &feed.shares[usize::from(*share)].group;
            let Some(local) = memory.pools[group.pool_src].mrs[wire.port.index()] else { break };
            let remote = &theirs.pools[group.pool_dst];
            chain.push(Item::Many(Batch {
                plan,
                first: WrId(wire.next + taken - from),
                op,
                local: (local.addr, local.lkey),
                remote: (remote.addr, rkey(&remote.rkeys)),
                window: from..from + take,
                signal_every: self.config.window.signal_every,
                signal_last: false,
                last: None,
            }));
            (taken, sent, at) = (taken + take, sent + size, at + take);
            if take < most {
                break;
            }
            base += len;
        }

        // A staged part: its header, which is taken at posting, then its slot.
        let scratch =
            memory.aux.mrs[wire.port.index()].map_or((0, Default::default()), |mr| (mr.addr, mr.lkey));
        let mut staged = None;
        if let Some(part_stage) = &part.stage
            && let Gather::Ready(own) = part_stage.gather
            && let (Some(pool), Some(own_stage)) = (&memory.stage, self.memory.staging())
            && let Some(local) = pool.mrs[wire.port.index()]
            && let Some(place) = remote.stage.place(
                stage::nth_of(&link.pairing, part.feed.into()),
                part_stage.sequence,
                &link.facts,
            )
        {
            let header = stage::header_of(part, part_stage, remote, &room.stage, room.sealed, room.spec.key);
            let _ = cx.fabric.write(memory.aux.buf, HEADER_SCRATCH, &header.to_bytes());
            let header = Sge { addr: scratch.0 + HEADER_SCRATCH, len: HEADER_BYTES as u32, lkey: scratch.1 };
            let at = local.addr + u64::from(own) * own_stage.slot;
            let bulk = Sge { addr: at, len: part.bytes as u32, lkey: local.lkey };
            staged = Some(([header], [bulk], place));
            sent = part.bytes;
        }

        // The immediate, and before it aux row and seal; in pull the aux row. They go with the KV whatever the window says: a job that waited
        // for window with nothing outstanding on its own queue pair would never be woken.
        let all_kv = at == part.window.end;
        let end = all_kv && free - taken >= part.extras();
        let slot = theirs.aux.addr + u64::from(remote.slot) * SLOT_BYTES;
        let landing = u64::from(room.landing.unwrap_or_default()) * SLOT_BYTES;
        let aux_sge = [Sge { addr: scratch.0 + landing, len: AUX_BYTES as u32, lkey: scratch.1 }];
        let seal_sge = [Sge { addr: scratch.0 + AUX_BYTES, len: SEAL_BYTES as u32, lkey: scratch.1 }];
        if end && op == Op::Read {
            if part.aux {
                let flags = Flags { signaled: true, ..Flags::default() };
                let remote = (slot, rkey(&theirs.aux.rkeys));
                let id = WrId(wire.next + taken);
                chain.push(Item::One(WorkRequest { id, op, flags, local: &aux_sge, remote }));
                taken += 1;
            } else if let Some(Item::Many(batch)) = chain.last_mut() {
                batch.signal_last = true;
            }
        } else if end {
            let imm =
                Immediate { slot: remote.slot, generation: remote.generation, part: part.number }.to_u32();
            let cell = slot + AUX_BYTES + u64::from(feed.src.0) * SEAL_BYTES;
            let inline = |signaled| Flags { signaled, fence: false, inline: true };
            let mut extras: Vec<WorkRequest<'_>> = Vec::with_capacity(2);
            if let Some(parts) = part.seal {
                let sum = room.sums.get(usize::from(part.feed)).map_or(0, |sum| fold(*sum));
                let seal = Seal { key: room.spec.key, parts, sum }.to_bytes();
                // The scratch is this rank's own memory: writing it cannot fail.
                let _ = cx.fabric.write(memory.aux.buf, AUX_BYTES, &seal);
                let (id, op, local) = (WrId(0), Op::WriteImm(imm), &seal_sge[..]);
                extras.push(WorkRequest {
                    id,
                    op,
                    flags: inline(true),
                    local,
                    remote: (cell, rkey(&theirs.aux.rkeys)),
                });
            }
            if part.aux {
                let request = room.spec.request;
                // One that is not to write it does not know the token.
                let token = if feed.aux { AuxRow::first_token(request) } else { 0 };
                let row = AuxRow { key: room.spec.key, request, token, cached: room.cached }.to_bytes();
                let _ = cx.fabric.write(memory.aux.buf, 0, &row);
                let (id, op, local) = (WrId(0), Op::Write, &aux_sge[..]);
                let aux = WorkRequest {
                    id,
                    op,
                    flags: inline(false),
                    local,
                    remote: (slot, rkey(&theirs.aux.rkeys)),
                };
                if self.config.rules.aux_in_part {
                    extras.insert(0, aux);
                } else {
                    extras.push(WorkRequest { flags: inline(true), ..aux });
                }
            }
            if extras.is_empty()
                && let Some(Item::Many(batch)) = chain.last_mut()
            {
                batch.last = Some(Op::WriteImm(imm));
                batch.signal_last = true;
            }
            if let Some((header, bulk, place)) = &staged {
                let ends = extras.is_empty();
                let bulk_op = if ends { Op::WriteImm(imm) } else { Op::Write };
                let signaled = Flags { signaled: ends, ..Flags::default() };
                let (to_cell, to_slot) = (theirs.aux.addr + place.cell, theirs.stage.addr + place.bulk);
                let requests = [
                    (Op::Write, inline(false), &header[..], (to_cell, rkey(&theirs.aux.rkeys))),
                    (bulk_op, signaled, &bulk[..], (to_slot, rkey(&theirs.stage.rkeys))),
                ];
                for (op, flags, local, remote) in requests {
                    let id = WrId(wire.next + taken);
                    chain.push(Item::One(WorkRequest { id, op, flags, local, remote }));
                    taken += 1;
                }
            }
            for extra in extras {
                chain.push(Item::One(WorkRequest { id: WrId(wire.next + taken), ..extra }));
                taken += 1;
            }
        } else if let Some(Item::Many(batch)) = chain.last_mut() {
            batch.signal_last = true;
        }
        if chain.is_empty() {
            // A rank without a registration on this port: nothing of this part can ever be posted.
            let key = room.spec.key;
            self.fail(cx, key, Reason::Transfer, true);
            return;
        }

        let posted = cx.fabric.post_send(wire.qp, &chain).err();
        let count = posted.as_ref().map_or(taken, |refused| refused.at);
        if count > 0 {
            let last = wire.next + count - 1;
            let whole = posted.is_none();
            let slice = Slice {
                last,
                requests: count,
                bytes: if whole { sent } else { 0 },
                room: index,
                part: p,
                posted: cx.now,
                end: end && whole,
                staged: staged.is_some(),
            };
            wire.next += count;
            wire.used += count;
            wire.slices.push_back(slice);
            link.outstanding += 1;
            room.outstanding += 1;
            let queue = &mut self.ports[job.port.index()];
            queue.posted_bytes += slice.bytes;
            queue.posted_requests += count;
            room.work_requests += count;
            room.bytes += slice.bytes;
            part.cursor += count;
            if !room.started {
                room.started = true;
                cx.out.record(room.spec.request, Step::TransferStart);
                self.news.push_back(News::Started(room.spec.key));
            }
        }
        self.stats.staged_parts += u64::from(count > 0 && staged.is_some());
        if let Some(refused) = posted {
            let (key, peer) = (room.spec.key, room.spec.peer);
            // A request that no fabric can take is this room's fault; a queue pair that failed meanwhile is not.
            if matches!(refused.why, Error::Invalid { .. } | Error::Unsupported(_)) {
                self.fail(cx, key, Reason::Transfer, true);
            }
            // What was posted of the chain may be unsignalled and never complete: only new queue pairs make an end of it.
            self.scrap(cx, peer);
            self.ask(peer);
            return;
        }
        let order = &mut self.ports[job.port.index()].order;
        order.posted(id, sent);
        job.left = job.left.saturating_sub(sent);
        if end {
            part.state = PartState::Posted;
            job.left = job.left.saturating_sub(u64::from(part.bytes == 0));
            if job.ready.pop_front().is_none() {
                job.parts.pop_front();
            }
        }
        if !job.has_work() {
            order.remove(id);
            job.queued = false;
        } else {
            order.update(id, job.left);
        }
    }
}
