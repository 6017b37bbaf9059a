//! A session: messages in order, each once, over datagrams that get lost, doubled, late and out of order.
//!
//! Both ends use the same one. What leaves is numbered by segment, kept as encoded bytes in one ring until a cumulative
//! acknowledgement covers it, and sent again when none came for a while. Acknowledgements ride on whatever goes the
//! other way, and go alone only after a delay. Three reports of a gap bring the missing segment back at once, as
//! in TCP's fast retransmit (RFC 5681, 3.2).
//!
//! Nothing is sent before [`Session::flush`]: what one call of a node has to say to a peer shares frames.

use super::frame::{Frame, FrameFlags, HEADER, Header, MAX_FRAME, MAX_MESSAGE, MAX_SEGMENT, segment_prefix};
use crate::id::NodeId;
use crate::node::Outbox;
use crate::time::{Span, Time};
use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

/// So many messages that are in no hurry wait no longer for a frame: they are one. Its cost is then a small part of theirs, and the other end
/// gets them in small portions. With [`SessionConfig::ack_delay`] alone, clients that begin together report together: at 150,000 requests a
/// second 7,500 reports every 50 ms, and whatever arrives meanwhile waits for milliseconds.
const TOGETHER: usize = 32;

/// Spans and bounds of a session; both ends should have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// How long an acknowledgement waits for a frame to ride on. Well below `retransmit`.
    pub ack_delay: Span,
    /// Silence after which a segment is sent again; doubles with each time in a row.
    pub retransmit: Span,
    /// Longest such silence.
    pub retransmit_max: Span,
    /// Segments on the way at most; more wait in the queue.
    pub window: u32,
    /// Bytes of frames on the way at most.
    pub window_bytes: usize,
    /// Segments kept that arrived before one that is missing; the rest is dropped and comes again.
    pub reorder: u32,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            ack_delay: Span::ms(50),
            retransmit: Span::ms(250),
            retransmit_max: Span::s(2),
            window: 1024,
            window_bytes: 1 << 20,
            reorder: 1024,
        }
    }
}

/// What a session has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionStats {
    /// Messages taken for sending.
    pub queued: u64,
    /// Messages handed out, each once.
    pub delivered: u64,
    /// Frames sent, of any kind.
    pub frames: u64,
    /// Frames sent that carry nothing but an acknowledgement.
    pub pure_acks: u64,
    /// Segments sent again.
    pub retransmitted: u64,
    /// Segments that had arrived before.
    pub duplicates: u64,
    /// Segments dropped because too much was waiting for a missing one.
    pub overflow: u64,
    /// Messages over [`MAX_MESSAGE`], not sent.
    pub too_long: u64,
}

impl std::ops::AddAssign for SessionStats {
    fn add_assign(&mut self, other: Self) {
        self.queued += other.queued;
        self.delivered += other.delivered;
        self.frames += other.frames;
        self.pure_acks += other.pure_acks;
        self.retransmitted += other.retransmitted;
        self.duplicates += other.duplicates;
        self.overflow += other.overflow;
        self.too_long += other.too_long;
    }
}

/// A segment that waits for its acknowledgement.
#[derive(Clone, Copy, Debug)]
struct Unacked {
    /// Bytes in the ring, prefix included.
    len: u32,
    /// When it was sent last.
    sent: Time,
}

/// One end of a session.
#[derive(Clone, Debug)]
pub struct Session {
    config: SessionConfig,
    /// Segments in the form they have in a frame; those before `head` are acknowledged.
    ring: Vec<u8>,
    head: usize,
    unacked: VecDeque<Unacked>,
    /// Sequence number of the first of `unacked`.
    base: u64,
    /// How many of `unacked` were sent, and their bytes.
    sent: usize,
    sent_bytes: usize,
    /// Until when what was queued and not sent may wait for a frame that leaves anyway: [`Time::ZERO`] if it may not,
    /// [`Time::NEVER`] before the clock was asked.
    patience: Time,
    timeout: Span,
    retransmit_at: Time,
    /// Frames in a row that reported a gap at `base`.
    gaps: u8,
    /// The `base` that was repeated because of gaps.
    repeated: u64,
    repeat_now: bool,
    /// Sequence number that must come next.
    next: u64,
    early: BTreeMap<u64, (bool, Box<[u8]>)>,
    /// Segments of a message whose end has not come.
    partial: Vec<u8>,
    ack_at: Time,
    stats: SessionStats,
}

/// The number nearest to `near` whose low 32 bits are `wire`.
fn widen(wire: u32, near: u64) -> u64 {
    let ahead = i64::from(wire.wrapping_sub(near as u32) as i32);
    near.saturating_add_signed(ahead)
}

impl Session {
    /// A new session; both ends begin at sequence number 1.
    pub fn new(config: SessionConfig) -> Self {
        Self {
            config,
            ring: Vec::new(),
            head: 0,
            unacked: VecDeque::new(),
            base: 1,
            sent: 0,
            sent_bytes: 0,
            patience: Time::ZERO,
            timeout: config.retransmit,
            retransmit_at: Time::NEVER,
            gaps: 0,
            repeated: 0,
            repeat_now: false,
            next: 1,
            early: BTreeMap::new(),
            partial: Vec::new(),
            ack_at: Time::NEVER,
            stats: SessionStats::default(),
        }
    }

    /// A new session with everything that this one has queued, if the other end has acknowledged none of it.
    pub fn renew(&self) -> Option<Self> {
        (self.base == 1 && self.head == 0).then(|| Self {
            ring: self.ring.clone(),
            unacked: self.unacked.clone(),
            ..Self::new(self.config)
        })
    }

    /// Queues one message, which `encode` appends.
    pub fn queue(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        self.patience = Time::ZERO;
        self.append(encode);
    }

    /// Queues one message that is in no hurry: it rides on the next frame, or leaves once there are enough like it for a frame of their
    /// own, or after as long as an acknowledgement waits.
    pub fn queue_patiently(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        if self.sent == self.unacked.len() {
            self.patience = Time::NEVER;
        }
        self.append(encode);
        if self.unacked.len() - self.sent >= TOGETHER {
            self.patience = Time::ZERO;
        }
    }

    /// What waits patiently waits no longer.
    pub fn hurry(&mut self) {
        self.patience = Time::ZERO;
    }

    /// Starts the clock of what waits patiently.
    pub fn note(&mut self, now: Time) {
        if self.patience == Time::NEVER {
            self.patience = now + self.config.ack_delay;
        }
    }

    fn append(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let start = self.ring.len();
        self.ring.extend_from_slice(&[0; 2]);
        encode(&mut self.ring);
        let len = self.ring.len() - start - 2;
        if len > MAX_SEGMENT {
            self.cut(start);
            return;
        }
        self.ring[start..start + 2].copy_from_slice(&segment_prefix(len, false));
        self.unacked.push_back(Unacked { len: len as u32 + 2, sent: Time::ZERO });
        self.stats.queued += 1;
    }

    /// Cuts the message at the end of the ring into segments.
    #[cold]
    fn cut(&mut self, start: usize) {
        let message = self.ring.split_off(start + 2);
        self.ring.truncate(start);
        if message.len() > MAX_MESSAGE {
            debug_assert!(false, "message of {} bytes, at most {MAX_MESSAGE} can be sent", message.len());
            self.stats.too_long += 1;
            return;
        }
        let mut pieces = message.chunks(MAX_SEGMENT).peekable();
        while let Some(piece) = pieces.next() {
            self.ring.extend_from_slice(&segment_prefix(piece.len(), pieces.peek().is_some()));
            self.ring.extend_from_slice(piece);
            self.unacked.push_back(Unacked { len: piece.len() as u32 + 2, sent: Time::ZERO });
        }
        self.stats.queued += 1;
    }

    /// Takes what a frame's header says about this end's own segments.
    pub fn acknowledge(&mut self, header: &Header) {
        let acked = widen(header.ack, self.base - 1);
        if acked >= self.base + self.sent as u64 {
            return; // Never sent: not from the other end of this session.
        }
        if acked < self.base {
            if header.flags.has(FrameFlags::GAP) && acked + 1 == self.base && self.sent > 0 {
                self.gaps = self.gaps.saturating_add(1);
                if self.gaps >= 3 && self.repeated != self.base {
                    self.repeated = self.base;
                    self.repeat_now = true;
                }
            }
            return;
        }
        let count = (acked + 1 - self.base) as usize;
        let mut bytes = 0;
        for _ in 0..count {
            bytes += self.unacked.pop_front().map_or(0, |segment| segment.len as usize);
        }
        self.base = acked + 1;
        self.head += bytes;
        self.sent -= count;
        self.sent_bytes -= bytes;
        self.gaps = 0;
        self.repeat_now = false;
        self.timeout = self.config.retransmit;
        if self.head == self.ring.len() {
            self.ring.clear();
            self.head = 0;
        } else if self.head >= MAX_FRAME.max(self.backlog_bytes()) {
            // What is moved is no more than what was acknowledged since the last time.
            self.ring.drain(..self.head);
            self.head = 0;
        }
        self.retransmit_at = match self.unacked.front() {
            Some(first) if self.sent > 0 => first.sent + self.timeout,
            _ => Time::NEVER,
        };
    }

    /// The sequence number of a frame's first segment.
    pub fn first_of(&self, frame: &Frame<'_>) -> u64 {
        widen(frame.header.seq, self.next)
    }

    /// Takes one segment. Returns a message if this completes the one that is due; after all of a
    /// frame's segments ask [`Session::early`] for more.
    pub fn admit<'a>(&mut self, now: Time, seq: u64, more: bool, segment: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        if seq != self.next {
            self.admit_other(now, seq, more, segment);
            return None;
        }
        self.next += 1;
        self.ack_by(now + self.config.ack_delay);
        self.assemble(more, Cow::Borrowed(segment))
    }

    #[cold]
    fn admit_other(&mut self, now: Time, seq: u64, more: bool, segment: &[u8]) {
        if seq < self.next {
            self.stats.duplicates += 1;
            self.ack_by(now + self.config.ack_delay);
        } else if seq - self.next > u64::from(self.config.reorder) {
            self.stats.overflow += 1;
            self.ack_by(now);
        } else if let Entry::Vacant(place) = self.early.entry(seq) {
            place.insert((more, segment.into()));
            self.ack_by(now);
        } else {
            self.stats.duplicates += 1;
        }
    }

    /// The next message that had arrived early and whose turn has come.
    pub fn early(&mut self) -> Option<Cow<'static, [u8]>> {
        while let Some(entry) = self.early.first_entry() {
            if *entry.key() > self.next {
                break;
            }
            let (seq, (more, segment)) = entry.remove_entry();
            if seq < self.next {
                self.stats.duplicates += 1;
                continue;
            }
            self.next += 1;
            if let Some(message) = self.assemble(more, Cow::Owned(segment.into_vec())) {
                return Some(message);
            }
        }
        None
    }

    fn assemble<'a>(&mut self, more: bool, segment: Cow<'a, [u8]>) -> Option<Cow<'a, [u8]>> {
        if !more && self.partial.is_empty() {
            self.stats.delivered += 1;
            return Some(segment);
        }
        if self.partial.len() + segment.len() <= MAX_MESSAGE {
            self.partial.extend_from_slice(&segment);
        }
        (!more).then(|| {
            self.stats.delivered += 1;
            Cow::Owned(std::mem::take(&mut self.partial))
        })
    }

    /// Sees to it that an acknowledgement leaves at `at` or before.
    pub fn ack_by(&mut self, at: Time) {
        self.ack_at = self.ack_at.min(at);
    }

    /// Sends what may go: new segments within the window, segments whose time is up, an acknowledgement that is due,
    /// and if there was none of these but `force`, a frame without segments. Says whether anything was sent.
    pub fn flush(&mut self, now: Time, to: NodeId, header: Header, force: bool, out: &mut Outbox) -> bool {
        let before = self.stats.frames;
        if self.repeat_now || self.retransmit_at <= now {
            self.retransmit(now, to, header, out);
        }
        self.note(now);
        let goes = force || self.patience <= now || self.ack_at <= now || self.stats.frames > before;
        while goes && self.sent < self.unacked.len() && self.may_send() {
            let count = self.group(self.sent, |_| true);
            let start = self.head + self.sent_bytes;
            let bytes = self.emit(now, to, header, self.sent, count, start, out);
            self.sent += count;
            self.sent_bytes += bytes;
            if self.retransmit_at == Time::NEVER {
                self.retransmit_at = now + self.timeout;
            }
        }
        if self.stats.frames == before && (force || self.ack_at <= now) {
            self.flush_ack(now, to, header, out);
        }
        self.stats.frames > before
    }

    /// Sends a frame without segments.
    pub fn flush_ack(&mut self, now: Time, to: NodeId, header: Header, out: &mut Outbox) {
        self.stats.pure_acks += 1;
        self.emit(now, to, header, 0, 0, self.head, out);
    }

    /// When an acknowledgement is due.
    pub fn ack_at(&self) -> Time {
        self.ack_at
    }

    fn may_send(&self) -> bool {
        self.sent < self.config.window as usize && self.sent_bytes < self.config.window_bytes
    }

    /// How many segments from `first` on fit into a frame, as long as `wanted`.
    fn group(&self, first: usize, wanted: impl Fn(&Unacked) -> bool) -> usize {
        let room = if first == self.sent { self.config.window as usize - self.sent } else { usize::MAX };
        let mut bytes = HEADER;
        let fits = |segment: &&Unacked| {
            bytes += segment.len as usize;
            bytes <= MAX_FRAME && wanted(segment)
        };
        self.unacked.range(first..).take(room).take_while(fits).count()
    }

    #[cold]
    fn retransmit(&mut self, now: Time, to: NodeId, header: Header, out: &mut Outbox) {
        let due = self.retransmit_at <= now;
        let timeout = self.config.retransmit;
        let count = if due {
            // Everything that has waited as long as the first.
            self.group(0, |segment| segment.sent + timeout <= now).min(self.sent).max(1)
        } else {
            1
        };
        self.repeat_now = false;
        self.emit(now, to, header, 0, count, self.head, out);
        self.stats.retransmitted += count as u64;
        if due {
            self.timeout = Span((self.timeout.0 * 2).min(self.config.retransmit_max.0));
        }
        self.retransmit_at = now + self.timeout;
    }

    /// Writes one frame with `count` segments from index `first` on, whose bytes begin at `start`.
    #[allow(clippy::too_many_arguments)]
    fn emit(
        &mut self,
        now: Time,
        to: NodeId,
        header: Header,
        first: usize,
        count: usize,
        start: usize,
        out: &mut Outbox,
    ) -> usize {
        let mut bytes = 0;
        for segment in self.unacked.range_mut(first..first + count) {
            segment.sent = now;
            bytes += segment.len as usize;
        }
        let header = Header {
            flags: header.flags.with(FrameFlags::GAP, !self.early.is_empty()),
            count: count as u16,
            seq: (self.base + first as u64) as u32,
            ack: (self.next - 1) as u32,
            ..header
        };
        out.send(to, |frame| header.write(&self.ring[start..start + bytes], frame));
        self.ack_at = Time::NEVER;
        self.stats.frames += 1;
        bytes
    }

    /// When [`Session::flush`] has something to do; [`Time::ZERO`] if it has now.
    pub fn deadline(&self) -> Time {
        if self.repeat_now {
            return Time::ZERO;
        }
        let unsent = self.sent < self.unacked.len() && self.may_send();
        let patience = match self.patience {
            _ if !unsent => Time::NEVER,
            Time::NEVER => Time::ZERO,
            until => until,
        };
        self.retransmit_at.min(self.ack_at).min(patience)
    }

    /// Segments not yet acknowledged, queued ones included.
    pub fn backlog(&self) -> usize {
        self.unacked.len()
    }

    /// Bytes not yet acknowledged.
    pub fn backlog_bytes(&self) -> usize {
        self.ring.len() - self.head
    }

    /// Segments that wait for a missing one.
    pub fn waiting(&self) -> usize {
        self.early.len()
    }

    /// What it has counted.
    pub fn stats(&self) -> SessionStats {
        self.stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue that is never empty does not grow for what was acknowledged long ago.
    #[test]
    fn the_ring_holds_little_more_than_what_waits() {
        let mut session = Session::new(SessionConfig::default());
        let (mut out, mut at) = (Outbox::default(), 0);
        for i in 0..3000u32 {
            session.queue(|out| out.resize(out.len() + 1000, i as u8));
            session.flush(Time::ZERO, NodeId(1), Header::default(), false, &mut out);
            if i > 200 {
                at += 1;
                session.acknowledge(&Header { ack: at, ..Header::default() });
            }
            assert!(session.ring.len() <= 2 * session.backlog_bytes() + MAX_FRAME + 1002);
            // Moving it costs something too.
            assert!(session.head == 0 || session.ring.len() > session.backlog_bytes());
            let first = session.unacked.front().map_or(0, |_| session.ring[session.head + 2]);
            assert_eq!(first, session.unacked.front().map_or(0, |_| at as u8));
        }
    }
}
