//! Programs with races: several queue pairs write, read and count at the same place. Many outcomes are right; all others are wrong.

use super::outcome::Seen;
use super::script::{ALL, Conn, DATA, Key, Link, One, Place, Post, Region, Round, Script, seed};
use engine::fabric::{Content, Flags, Op};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Contested bytes of side 1's first arena, and the contested word after them.
const CONTESTED: u64 = 192;
const WORD: u64 = 512;

/// A request at a contested place.
#[derive(Clone, Copy, Debug)]
pub enum Pick {
    /// A WRITE of so many bytes, from there on.
    Write(u8, u8),
    /// A READ.
    Read(u8, u8),
    /// Adds.
    Add(u16),
    /// Swaps if the word still holds what it held at the start, or this more.
    Swap(u8),
}

/// Requests of each queue pair.
#[derive(Clone, Debug)]
pub struct Race {
    /// One list a queue pair, all of them on side 0.
    pub lists: Vec<Vec<Pick>>,
    /// Path MTU.
    pub mtu: u8,
}

/// Programs with races.
pub fn races() -> impl Strategy<Value = Race> {
    let range = || (0u8..150, 1u8..80);
    let pick = prop_oneof![
        3 => range().prop_map(|(at, len)| Pick::Write(at, len)),
        2 => range().prop_map(|(at, len)| Pick::Read(at, len)),
        1 => (0u16..3).prop_map(Pick::Add),
        1 => (0u8..3).prop_map(Pick::Swap),
    ];
    (vec(vec(pick, 1..5), 2..4), 0u8..3).prop_map(|(lists, mtu)| Race { lists, mtu })
}

/// The script of a race: one round.
pub fn script(race: &Race) -> Script {
    let conn = Conn {
        shared_cq: false,
        srq: [false; 2],
        depth: 31,
        mtu: [256, 1024, 4096][usize::from(race.mtu % 3)],
        fragile: false,
        reads: 4,
        access: ALL,
    };
    let mut round = Round::default();
    let mut id = 0;
    let old = word(WORD);
    for (c, list) in race.lists.iter().enumerate() {
        let mut at = 0;
        let mut chain = Vec::new();
        for (i, pick) in list.iter().enumerate() {
            id += 1;
            let (op, to, len) = match *pick {
                Pick::Write(to, len) => (Op::Write, u64::from(to), u32::from(len)),
                Pick::Read(to, len) => (Op::Read, u64::from(to), u32::from(len)),
                Pick::Add(n) => (Op::FetchAdd(u64::from(n) + 1), WORD, 8),
                Pick::Swap(n) => {
                    (Op::CompareSwap { expect: old.wrapping_add(n.into()), swap: old ^ (id << 32) }, WORD, 8)
                }
            };
            let len = len.min((CONTESTED.max(to + 8) - to) as u32);
            let place = |arena, at| Place { arena, region: Region::Whole, at, len, key: Key::Good };
            let flags = Flags { signaled: i + 1 == list.len() || i % 2 == 0, ..Flags::default() };
            chain.push(Link::One(One {
                id,
                op,
                flags,
                local: vec![place(c, 1024 + at)],
                remote: place(0, to),
            }));
            at += u64::from(len).next_multiple_of(8);
        }
        debug_assert!(1024 + at < DATA);
        round.posts.push(Post { end: (c, 0), chain });
    }
    Script { conns: vec![conn; race.lists.len()], rounds: vec![round] }
}

fn word(at: u64) -> u64 {
    let mut bytes = [0; 8];
    Content::fill(seed(0, 1, 0), at, &mut bytes);
    u64::from_le_bytes(bytes)
}

fn stamped(side: usize, arena: usize, at: u64) -> u8 {
    Content::byte(seed(0, side, arena), at)
}

/// A request as the check sees it.
struct Done {
    op: Op,
    local: u64,
    to: u64,
    len: u64,
}

/// In what an outcome of a race is none of those that are allowed.
pub fn forbidden(script: &Script, seen: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut lists: Vec<Vec<Done>> = Vec::new();
    for post in &script.rounds[0].posts {
        let mut list = Vec::new();
        for link in &post.chain {
            link.expand(|one| {
                let len = one.remote.len.into();
                list.push(Done { op: one.op, local: one.local[0].at, to: one.remote.at, len });
            });
        }
        lists.push(list);
    }
    // A byte written by request `i` of queue pair `c`, if it writes that byte.
    let value = |c: usize, done: &Done, at: u64| {
        let covers = done.op == Op::Write && (done.to..done.to + done.len).contains(&at);
        covers.then(|| stamped(0, c, done.local + at - done.to))
    };
    let last = |c: usize, list: &[Done], at: u64| list.iter().rev().find_map(|done| value(c, done, at));
    for at in 0..CONTESTED {
        // The last write of some queue pair.
        let mut allowed: Vec<u8> =
            lists.iter().enumerate().filter_map(|(c, list)| last(c, list, at)).collect();
        if allowed.is_empty() {
            allowed.push(stamped(1, 0, at));
        }
        let byte = seen.memory[1][0][at as usize];
        if !allowed.contains(&byte) {
            wrong.push(format!("byte {at} is {byte:#04x}, allowed are {allowed:02x?}"));
        }
    }
    for (c, list) in lists.iter().enumerate() {
        for (i, read) in list.iter().enumerate().filter(|(_, done)| done.op == Op::Read) {
            for at in read.to..read.to + read.len {
                // What this queue pair wrote before, or what was there; what any other one writes, and what this one writes
                // later (InfiniBand spec 10.8.3.3: only a fence keeps a WRITE behind a READ).
                let mut allowed = vec![last(c, &list[..i], at).unwrap_or_else(|| stamped(1, 0, at))];
                allowed.extend(list[i..].iter().filter_map(|done| value(c, done, at)));
                for (other, list) in lists.iter().enumerate().filter(|(other, _)| *other != c) {
                    allowed.extend(list.iter().filter_map(|done| value(other, done, at)));
                }
                let byte = seen.memory[0][c][(read.local + at - read.to) as usize];
                if !allowed.contains(&byte) {
                    wrong.push(format!(
                        "READ {i} of connection {c} brought {byte:#04x} for byte {at}, allowed are {allowed:02x?}"
                    ));
                }
            }
        }
    }
    let at = |side: usize, arena: usize, at: u64| {
        let bytes = &seen.memory[side][arena][at as usize..at as usize + 8];
        u64::from_le_bytes(bytes.try_into().unwrap_or_default())
    };
    let atomics: Vec<Vec<(Op, u64)>> = lists
        .iter()
        .enumerate()
        .map(|(c, list)| {
            let ours = list.iter().filter(|d| matches!(d.op, Op::FetchAdd(_) | Op::CompareSwap { .. }));
            ours.map(|d| (d.op, at(0, c, d.local))).collect()
        })
        .collect();
    if !in_some_order(word(WORD), at(1, 0, WORD), &mut vec![0; atomics.len()], &atomics) {
        wrong.push(format!("no order of the atomics explains their answers: {atomics:x?}"));
    }
    wrong
}

/// Whether the atomics, each queue pair's in its order, can have answered so one after the other.
fn in_some_order(now: u64, end: u64, next: &mut Vec<usize>, all: &[Vec<(Op, u64)>]) -> bool {
    if next.iter().zip(all).all(|(n, list)| *n == list.len()) {
        return now == end;
    }
    for c in 0..all.len() {
        let Some(&(op, answer)) = all[c].get(next[c]) else { continue };
        if answer != now {
            continue;
        }
        let then = match op {
            Op::FetchAdd(add) => now.wrapping_add(add),
            Op::CompareSwap { expect, swap } if expect == now => swap,
            _ => now,
        };
        next[c] += 1;
        if in_some_order(then, end, next, all) {
            return true;
        }
        next[c] -= 1;
    }
    false
}

/// Of an outcome, what does not depend on who was first.
pub fn determined(seen: &Seen) -> Seen {
    Seen {
        posts: seen.posts.clone(),
        sends: seen.sends.clone(),
        receives: BTreeMap::new(),
        shared: Default::default(),
        states: seen.states.clone(),
        memory: Default::default(),
        wrong: seen.wrong.clone(),
    }
}
