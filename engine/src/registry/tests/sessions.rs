use super::net::{Faults, Wire};
use crate::id::NodeId;
use crate::node::Outbox;
use crate::registry::{Frame, FrameFlags, Header, Session, SessionConfig, SessionStats};
use crate::time::{Span, Time};
use proptest::prelude::*;

/// Two ends and what each has been handed, on a bad network.
struct Pair {
    ends: [Session; 2],
    got: [Vec<u32>; 2],
    next: [u32; 2],
    wire: Wire,
    now: Time,
}

fn text(number: u32, len: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(4 + len, number as u8);
    bytes
}

impl Pair {
    fn new(config: SessionConfig, faults: Faults, seed: u64) -> Self {
        Self {
            ends: [Session::new(config), Session::new(config)],
            got: Default::default(),
            next: [0; 2],
            wire: Wire::new(faults, seed),
            now: Time::ZERO,
        }
    }
    fn say(&mut self, end: usize, len: usize) {
        let bytes = text(self.next[end], len);
        self.next[end] += 1;
        self.ends[end].queue(|out| out.extend_from_slice(&bytes));
    }
    fn flush(&mut self) {
        for end in 0..2 {
            let mut out = Outbox::default();
            self.ends[end].flush(self.now, NodeId(1 - end as u32), Header::default(), false, &mut out);
            self.wire.take(self.now, NodeId(end as u32), &out);
        }
    }
    /// Runs until nothing is left to do, or `until`.
    fn run(&mut self, until: Time) {
        self.flush();
        loop {
            let deadline = self.ends[0].deadline().min(self.ends[1].deadline()).max(self.now);
            let at = deadline.min(self.wire.next().unwrap_or(Time::NEVER));
            if at > until || at == Time::NEVER {
                break;
            }
            self.now = at;
            while let Some((_, to, bytes)) = self.wire.arrive(self.now) {
                self.receive(to.index(), &bytes);
            }
            self.flush();
        }
    }
    fn receive(&mut self, end: usize, bytes: &[u8]) {
        let Ok(frame) = Frame::parse(bytes) else { return };
        let session = &mut self.ends[end];
        session.acknowledge(&frame.header);
        let first = session.first_of(&frame);
        let mut take = |bytes: &[u8]| {
            let number = u32::from_le_bytes(bytes[..4].try_into().unwrap());
            assert_eq!(bytes, text(number, bytes.len() - 4), "a message came in pieces of others");
            self.got[end].push(number);
        };
        for (seq, (more, segment)) in (first..).zip(frame.segments()) {
            if let Some(bytes) = session.admit(self.now, seq, more, segment) {
                take(&bytes);
            }
        }
        while let Some(bytes) = session.early() {
            take(&bytes);
        }
    }
    fn at_rest(&self) {
        for end in 0..2 {
            assert_eq!(self.got[1 - end], (0..self.next[end]).collect::<Vec<_>>());
            assert_eq!((self.ends[end].backlog(), self.ends[end].waiting()), (0, 0));
            assert_eq!(self.ends[end].backlog_bytes(), 0);
            assert_eq!(self.ends[end].deadline(), Time::NEVER);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn each_message_arrives_once_and_in_order(
        faults in Faults::any(),
        seed: u64,
        window in 1u32..40,
        reorder in 0u32..40,
        says in prop::collection::vec((0usize..2, prop_oneof![9 => 0usize..200, 1 => 30_000usize..150_000], 0u64..80), 1..80),
    ) {
        let config = SessionConfig { window, reorder, ..SessionConfig::default() };
        let mut pair = Pair::new(config, faults, seed);
        for (end, len, ms) in says {
            pair.say(end, len);
            let until = pair.now + Span::ms(ms);
            pair.run(until);
            pair.now = until;
        }
        pair.run(Time::NEVER);
        pair.at_rest();
    }
}

#[test]
fn a_quiet_network_carries_nothing_twice() {
    let mut pair = Pair::new(SessionConfig::default(), Faults::NONE, 1);
    for i in 0..1000 {
        pair.say(i % 2, 40);
        let until = pair.now + Span::us(300);
        pair.run(until);
        pair.now = until;
    }
    pair.run(Time::NEVER);
    pair.at_rest();
    let stats = pair.ends.each_ref().map(|end| end.stats());
    assert_eq!((stats[0].retransmitted, stats[1].retransmitted), (0, 0));
    // Acknowledgements ride: 300 ms of talk cost a few frames of their own.
    assert!(stats[0].pure_acks + stats[1].pure_acks <= 8, "{stats:?}");
    assert_eq!(stats[0].frames, 500 + stats[0].pure_acks);
}

#[test]
fn messages_of_one_call_share_a_frame() {
    let mut pair = Pair::new(SessionConfig::default(), Faults::NONE, 1);
    (0..100).for_each(|_| pair.say(0, 100));
    pair.run(Time::NEVER);
    pair.at_rest();
    assert_eq!(pair.ends[0].stats().frames, 1);
}

#[test]
fn the_window_holds_back_what_would_be_too_much() {
    let config = SessionConfig { window: 4, ..SessionConfig::default() };
    let mut pair = Pair::new(config, Faults::NONE, 1);
    (0..10).for_each(|_| pair.say(0, 10));
    let mut out = Outbox::default();
    pair.ends[0].flush(Time::ZERO, NodeId(1), Header::default(), false, &mut out);
    let sent: u16 = out.frames().map(|(_, bytes)| Frame::parse(bytes).unwrap().header.count).sum();
    assert_eq!(sent, 4);
    pair.wire.take(Time::ZERO, NodeId(0), &out);
    pair.run(Time::NEVER);
    pair.at_rest();
}

#[test]
fn a_gap_is_closed_before_the_timer() {
    let mut pair = Pair::new(SessionConfig::default(), Faults::NONE, 1);
    pair.say(0, 10);
    let mut lost = Outbox::default();
    pair.ends[0].flush(pair.now, NodeId(1), Header::default(), false, &mut lost);
    for _ in 0..4 {
        pair.now += Span::us(100);
        pair.say(0, 10);
        pair.run(pair.now);
    }
    pair.run(Time::ZERO + Span::ms(100));
    assert_eq!(pair.got[1].len(), 5);
    pair.run(Time::NEVER);
    pair.at_rest();
}

#[test]
fn a_dead_peer_is_asked_ever_less_often() {
    let mut session = Session::new(SessionConfig::default());
    session.queue(|out| out.push(1));
    let (mut now, mut times) = (Time::ZERO, Vec::new());
    for _ in 0..7 {
        let mut out = Outbox::default();
        assert!(session.flush(now, NodeId(1), Header::default(), false, &mut out));
        times.push(now.0 / Span::ms(1).0);
        now = session.deadline();
    }
    assert_eq!(times, [0, 250, 750, 1750, 3750, 5750, 7750]);
    assert_eq!((session.stats().frames, session.stats().retransmitted), (7, 6));
}

#[test]
fn what_is_in_no_hurry_rides_or_leaves_after_the_delay() {
    let config = SessionConfig::default();
    let mut session = Session::new(config);
    let flush = |session: &mut Session, now| {
        let mut out = Outbox::default();
        let sent = session.flush(now, NodeId(1), Header::default(), false, &mut out);
        assert_eq!(sent, out.frames().count() > 0);
        out.frames().map(|(_, bytes)| Frame::parse(bytes).unwrap().header.count).collect::<Vec<_>>()
    };
    let start = Time::ZERO + Span::s(1);
    session.queue_patiently(|out| out.push(1));
    assert!(flush(&mut session, start).is_empty());
    assert_eq!(session.deadline(), start + config.ack_delay);
    assert_eq!(flush(&mut session, start + config.ack_delay), [1]);
    session.queue_patiently(|out| out.push(2));
    assert!(flush(&mut session, start + config.ack_delay).is_empty());
    session.queue(|out| out.push(3));
    assert_eq!(flush(&mut session, start + config.ack_delay), [2]);
    // Enough of it for a frame waits for nothing.
    for i in 0..31 {
        session.queue_patiently(|out| out.push(i));
        assert!(flush(&mut session, start + config.ack_delay).is_empty());
    }
    session.queue_patiently(|out| out.push(31));
    assert_eq!(session.deadline(), Time::ZERO);
    assert_eq!(flush(&mut session, start + config.ack_delay), [32]);
}

#[test]
fn what_was_acknowledged_is_gone_and_the_rest_is_kept() {
    let config = SessionConfig { window: 1, ..SessionConfig::default() };
    let mut pair = Pair::new(config, Faults::NONE, 1);
    pair.say(0, 10);
    pair.say(0, 20);
    assert_eq!((pair.ends[0].backlog(), pair.ends[0].backlog_bytes()), (2, 16 + 26));
    let again = pair.ends[0].renew().expect("nothing was acknowledged");
    assert_eq!((again.backlog(), again.backlog_bytes()), (2, 16 + 26));
    let turn = |pair: &mut Pair, from: usize| {
        let mut out = Outbox::default();
        pair.ends[from].flush(pair.now, NodeId(0), Header::default(), from == 1, &mut out);
        out.frames().for_each(|(_, bytes)| pair.receive(1 - from, bytes));
    };
    turn(&mut pair, 0);
    turn(&mut pair, 1);
    assert_eq!((pair.ends[0].backlog(), pair.ends[0].backlog_bytes()), (1, 26));
    pair.run(Time::NEVER);
    pair.at_rest();
    assert!(pair.ends[0].renew().is_none(), "the other end knows some of it");
}

/// What one flush sends: of each frame the first sequence number and how many segments it has.
fn sent(session: &mut Session, now: Time) -> Vec<(u32, u16)> {
    let mut out = Outbox::default();
    let any = session.flush(now, NodeId(1), Header::default(), false, &mut out);
    let of = |bytes| Frame::parse(bytes).map(|frame| (frame.header.seq, frame.header.count)).unwrap();
    let frames: Vec<_> = out.frames().map(|(_, bytes)| of(bytes)).collect();
    assert_eq!(any, !frames.is_empty());
    frames
}

fn queue(session: &mut Session, messages: usize, len: usize) {
    (0..messages).for_each(|_| session.queue(|out| out.resize(out.len() + len, 7)));
}

fn at(ms: u64) -> Time {
    Time::ZERO + Span::ms(ms)
}

fn ack(ack: u32, gap: bool) -> Header {
    Header { ack, flags: FrameFlags::default().with(FrameFlags::GAP, gap), ..Header::default() }
}

#[test]
fn three_reports_of_a_gap_bring_the_missing_segment_back_once() {
    let mut session = Session::new(SessionConfig::default());
    // Nothing was sent: nothing can be missing.
    (0..3).for_each(|_| session.acknowledge(&ack(0, true)));
    queue(&mut session, 3, 10);
    assert_eq!(sent(&mut session, at(0)), [(1, 3)]);
    (0..9).for_each(|_| session.acknowledge(&ack(0, false)));
    (0..2).for_each(|_| session.acknowledge(&ack(0, true)));
    assert_eq!((sent(&mut session, at(1)), session.deadline()), (vec![], at(250)));
    session.acknowledge(&ack(0, true));
    assert_eq!(session.deadline(), Time::ZERO);
    assert_eq!(sent(&mut session, at(2)), [(1, 1)]);
    assert_eq!((session.deadline(), session.stats().retransmitted), (at(252), 1));
    (0..9).for_each(|_| session.acknowledge(&ack(0, true)));
    assert_eq!((sent(&mut session, at(3)), session.deadline()), (vec![], at(252)));
    // The next one that is missing comes back as soon. What an earlier frame says late counts for nothing.
    session.acknowledge(&ack(1, true));
    (0..9).for_each(|_| session.acknowledge(&ack(0, true)));
    assert_eq!(sent(&mut session, at(4)), []);
    (0..3).for_each(|_| session.acknowledge(&ack(1, true)));
    assert_eq!(sent(&mut session, at(5)), [(2, 1)]);
    // Never sent.
    session.acknowledge(&ack(4, false));
    assert_eq!(session.backlog(), 2);
    session.acknowledge(&ack(3, false));
    assert_eq!((session.backlog(), session.deadline()), (0, Time::NEVER));
}

#[test]
fn only_what_has_waited_long_enough_is_sent_again() {
    let mut session = Session::new(SessionConfig::default());
    queue(&mut session, 2, 10);
    assert_eq!(sent(&mut session, at(0)), [(1, 2)]);
    queue(&mut session, 1, 10);
    assert_eq!(sent(&mut session, at(100)), [(3, 1)]);
    assert_eq!((sent(&mut session, at(249)), session.deadline()), (vec![], at(250)));
    assert_eq!(sent(&mut session, at(250)), [(1, 2)]);
    // Twice as long, and all have waited.
    assert_eq!(session.deadline(), at(750));
    assert_eq!(sent(&mut session, at(750)), [(1, 3)]);
    assert_eq!((session.deadline(), session.stats().retransmitted), (at(1750), 5));
    // An answer begins anew, counted from when the first of the rest was sent.
    session.acknowledge(&ack(2, false));
    assert_eq!(session.deadline(), at(1000));
    assert_eq!(sent(&mut session, at(1000)), [(3, 1)]);
    assert_eq!(session.deadline(), at(1500));
    // What waits for its turn is not sent again with the rest.
    let config = SessionConfig { window: 1, ..SessionConfig::default() };
    let mut session = Session::new(config);
    queue(&mut session, 2, 10);
    assert_eq!((sent(&mut session, at(0)), sent(&mut session, at(250))), (vec![(1, 1)], vec![(1, 1)]));
    session.acknowledge(&ack(1, false));
    assert_eq!(sent(&mut session, at(260)), [(2, 1)]);
}

#[test]
fn a_message_in_segments_is_put_together_once_the_last_is_there() {
    let mut pair = Pair::new(SessionConfig::default(), Faults::NONE, 1);
    for len in [10, 0x7fff - 4, 0x7fff - 3, 100_000] {
        pair.say(0, len);
    }
    // One segment each while it is no longer than one can be.
    assert_eq!((pair.ends[0].backlog(), pair.ends[0].stats().queued), (1 + 1 + 2 + 4, 4));
    pair.run(Time::NEVER);
    pair.at_rest();
    assert_eq!(pair.ends[1].stats().delivered, 4);
}

#[test]
fn the_window_counts_bytes_of_frames_too() {
    let config = SessionConfig { window_bytes: 100_000, ..SessionConfig::default() };
    let mut session = Session::new(config);
    queue(&mut session, 7, 30_000);
    assert_eq!(session.deadline(), Time::ZERO);
    // Two in a frame; a third frame would begin above the bound.
    assert_eq!(sent(&mut session, at(0)), [(1, 2), (3, 2)]);
    assert_eq!(session.deadline(), at(250));
    session.acknowledge(&ack(2, false));
    assert_eq!(sent(&mut session, at(1)), [(5, 2)]);
}

#[test]
fn a_frame_is_filled_to_its_last_byte() {
    let mut session = Session::new(SessionConfig::default());
    // 42 bytes of header; 32,747 with their prefix twice are the whole frame.
    queue(&mut session, 2, 32_745);
    queue(&mut session, 1, 32_745);
    queue(&mut session, 1, 32_746);
    assert_eq!(sent(&mut session, at(0)), [(1, 2), (3, 1), (4, 1)]);
}

#[test]
fn what_comes_early_waits_and_what_comes_twice_is_counted() {
    let config = SessionConfig { reorder: 2, ..SessionConfig::default() };
    let mut session = Session::new(config);
    let mut admit = |now, seq, text: &'static [u8]| {
        let got = session.admit(now, seq, false, text).map(|bytes| bytes.into_owned());
        let due = session.ack_at();
        (got, due, session.waiting(), session.stats())
    };
    let counted = |delivered, duplicates, overflow| SessionStats {
        delivered,
        duplicates,
        overflow,
        ..SessionStats::default()
    };
    // A gap is told at once.
    assert_eq!(admit(at(5), 3, b"c"), (None, at(5), 1, counted(0, 0, 0)));
    assert_eq!(admit(at(6), 3, b"c"), (None, at(5), 1, counted(0, 1, 0)));
    assert_eq!(admit(at(6), 4, b"d"), (None, at(5), 1, counted(0, 1, 1)));
    assert_eq!(admit(at(7), 1, b"a"), (Some(b"a".to_vec()), at(5), 1, counted(1, 1, 1)));
    assert!(session.early().is_none());
    assert_eq!(session.admit(at(8), 2, false, b"b").as_deref(), Some(&b"b"[..]));
    assert_eq!(session.early().as_deref(), Some(&b"c"[..]));
    assert!(session.early().is_none());
    assert_eq!((session.waiting(), session.stats()), (0, counted(3, 1, 1)));
    // What was overtaken by its own repetition is no message any more.
    assert!(session.admit(at(9), 5, false, b"e").is_none());
    assert!(session.admit(at(9), 4, false, b"d").is_some());
    assert!(session.admit(at(9), 5, false, b"e").is_some());
    assert!(session.early().is_none());
    assert_eq!((session.waiting(), session.stats()), (0, counted(5, 2, 1)));
    // In order, or again: the other end hears of it with the next frame, or after a while.
    let mut session = Session::new(config);
    assert!(session.admit(at(20), 1, false, b"a").is_some());
    assert_eq!(session.ack_at(), at(70));
    assert_eq!(sent(&mut session, at(69)), []);
    assert_eq!(sent(&mut session, at(70)), [(1, 0)]);
    assert!(session.admit(at(80), 1, false, b"a").is_none());
    assert_eq!((session.ack_at(), session.stats().pure_acks), (at(130), 1));
    queue(&mut session, 1, 3);
    assert_eq!(sent(&mut session, at(90)), [(1, 1)]);
    assert_eq!((session.ack_at(), session.stats().pure_acks), (Time::NEVER, 1));
}

#[test]
fn counts_of_sessions_add_up() {
    let one = |n: u64| SessionStats {
        queued: n,
        delivered: n + 1,
        frames: n + 2,
        pure_acks: n + 3,
        retransmitted: n + 4,
        duplicates: n + 5,
        overflow: n + 6,
        too_long: n + 7,
    };
    let mut sum = one(10);
    sum += one(30);
    let twice = SessionStats { queued: 40, delivered: 42, frames: 44, pure_acks: 46, ..one(0) };
    assert_eq!(sum, SessionStats { retransmitted: 48, duplicates: 50, overflow: 52, too_long: 54, ..twice });
}
