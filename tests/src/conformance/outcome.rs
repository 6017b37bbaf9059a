//! What a round left: predicted by the model, or seen on a fabric. Only what verbs defines is in it.

use super::quirks::{self, Used};
use super::script::End;
use engine::fabric::{Error, Opcode, QpState, Refused, Status};
use std::collections::BTreeMap;
use std::ops::Range;

/// A success as far as it is defined: what was done, bytes (receives, READ, atomics), immediate.
pub type Success = (Opcode, Option<u32>, Option<u32>);

/// A completion of one work queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id; 0 for receives of a shared queue, whose order between queue pairs is nobody's.
    pub id: u64,
    /// How it ended.
    pub result: Result<Success, Status>,
}

/// Why a post was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// ENOMEM.
    Full,
    /// EINVAL for the state.
    State,
    /// Anything else: no program has it.
    Other,
}

/// Answer of a post: where it stopped and why.
pub type Posted = Result<(), (u64, Why)>;

/// A refusal as programs compare it.
pub fn posted(result: Result<(), Refused>) -> Posted {
    result.map_err(|refused| {
        let why = match refused.why {
            Error::QueueFull => Why::Full,
            Error::State { .. } => Why::State,
            _ => Why::Other,
        };
        (refused.at, why)
    })
}

/// What a round left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Answers of the posts, in order; those of receives first.
    pub posts: Vec<Posted>,
    /// Completions of each send queue.
    pub sends: BTreeMap<End, Vec<Entry>>,
    /// Completions of each receive queue, or of a shared one's messages on that queue pair.
    pub receives: BTreeMap<End, Vec<Entry>>,
    /// Ids that each side's shared receive queue completed, sorted.
    pub shared: [Vec<u64>; 2],
    /// States of the queue pairs; `None` for one that is destroyed.
    pub states: BTreeMap<End, Option<QpState>>,
    /// Bytes of every arena, by side.
    pub memory: [Vec<Vec<u8>>; 2],
    /// What was wrong by itself: data that came after its completion, completions of nobody.
    pub wrong: Vec<String>,
}

/// Bytes that may be old or new after a failure: side, arena, where, and what they would be.
#[derive(Clone, Debug)]
pub struct Either {
    /// Side and arena.
    pub arena: (usize, usize),
    /// First byte.
    pub at: u64,
    /// What they were.
    pub old: Vec<u8>,
    /// What they would be.
    pub new: Vec<u8>,
}

impl Either {
    fn range(&self) -> Range<usize> {
        self.at as usize..self.at as usize + self.new.len()
    }
}

/// Everything in which `seen` differs from `want`. Statuses go through the quirk table of the fabric that `seen` is from.
pub fn differences(
    want: &Seen,
    seen: &Seen,
    either: &[Either],
    rxe: bool,
    used: &mut Used,
    all: &mut Vec<String>,
) {
    all.extend(want.wrong.iter().chain(&seen.wrong).cloned());
    if want.posts != seen.posts {
        all.push(format!("posts: expected {:?}, seen {:?}", want.posts, seen.posts));
    }
    for (name, want, seen, queue) in [
        ("sends", &want.sends, &seen.sends, quirks::Queue::Send),
        ("receives", &want.receives, &seen.receives, quirks::Queue::Receive),
    ] {
        let mut ends: Vec<&End> = want.keys().chain(seen.keys()).collect();
        ends.sort_unstable();
        ends.dedup();
        for end in ends {
            let (w, s) = (want.get(end).map_or(&[][..], |v| v), seen.get(end).map_or(&[][..], |v| v));
            let same = w.len() == s.len()
                && w.iter().zip(s).all(|(w, s)| {
                    w == s
                        || w.id == s.id
                            && matches!((&w.result, &s.result), (Err(w), Err(s))
                                if rxe && quirks::accepts(queue, *w, *s, used))
                });
            if !same {
                all.push(format!(
                    "{name} of connection {} side {}: expected {w:?}, seen {s:?}",
                    end.0, end.1
                ));
            }
        }
    }
    if want.shared != seen.shared {
        all.push(format!("shared receives: expected {:?}, seen {:?}", want.shared, seen.shared));
    }
    if want.states != seen.states {
        all.push(format!("states: expected {:?}, seen {:?}", want.states, seen.states));
    }
    for side in 0..2 {
        for (arena, (want, seen)) in want.memory[side].iter().zip(&seen.memory[side]).enumerate() {
            if want == seen {
                continue;
            }
            let allowed = |at: usize| {
                either.iter().any(|e| {
                    e.arena == (side, arena)
                        && e.range().contains(&at)
                        && [&e.old, &e.new].iter().any(|bytes| bytes[at - e.at as usize] == seen[at])
                })
            };
            let wrong: Vec<usize> =
                (0..seen.len()).filter(|&at| want.get(at) != Some(&seen[at]) && !allowed(at)).collect();
            if let (Some(first), Some(last)) = (wrong.first(), wrong.last()) {
                all.push(format!(
                    "memory of side {side}, arena {arena}: {} bytes from {first} to {last}; at {first} expected {:#04x}, seen {:#04x}",
                    wrong.len(),
                    want.get(*first).copied().unwrap_or_default(),
                    seen[*first],
                ));
            }
        }
    }
}
