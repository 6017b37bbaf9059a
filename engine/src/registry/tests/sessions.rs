use super::net::{Faults, Wire};
use crate::id::NodeId;
use crate::node::Outbox;
use crate::registry::{Frame, Header, Session, SessionConfig};
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
