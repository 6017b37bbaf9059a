//! What tests of single rules and of peers' mistakes have in common: scenarios with names, and the comparison of a run that keeps a rule with
//! one that does not.

use engine::id::RequestId;
use engine::node::Step;
use engine::policy::{Coalescing, Staging};
use engine::time::Span;
use engine::transfer::{Rules, TransferConfig};
use sim::kit::{Build, Kit};

/// Slow enough that a story can be told while data moves: 100 tokens take 41 ms.
#[must_use]
pub fn slow() -> Build {
    Kit::pair().network(0.01, Span::us(1))
}

/// A pair with the tiny model of grouped heads.
#[must_use]
pub fn gqa() -> Build {
    Kit::pair().model("tiny-gqa")
}

/// Staging memory, for [`Build::transfer`].
pub fn staged(slot: u64, slots: u32, window: u32) -> impl Fn(&mut TransferConfig) {
    move |t| t.coalescing = Coalescing::Staging(Staging { slot, slots, window })
}

/// With the rule everything is clean; without it `loss` must be in what the laws say.
///
/// # Panics
/// If that is not so.
#[track_caller]
pub fn shows(story: impl Fn(Build) -> Kit, base: Build, off: impl Fn(&mut Rules), loss: &str) {
    let wrong = story(base.clone()).violations();
    assert!(wrong.is_empty(), "with the rule: {wrong:#?}");
    let wrong = story(base.rules(off)).violations();
    assert!(wrong.iter().any(|w| w.contains(loss)), "without the rule, expected `{loss}`: {wrong:#?}");
}

/// The same for a rule by its name, and for the laws of runs without faults.
///
/// # Panics
/// If that is not so.
#[track_caller]
pub fn shows_fault_free(story: impl Fn(Build) -> Kit, base: Build, name: &str, loss: &str) {
    let wrong = story(base.clone()).fault_free_violations();
    assert!(wrong.is_empty(), "with {name}: {wrong:#?}");
    let wrong = story(without(base, name)).fault_free_violations();
    assert!(wrong.iter().any(|w| w.contains(loss)), "without {name}, expected `{loss}`: {wrong:#?}");
}

/// A scenario without one rule.
///
/// # Panics
/// If there is no such rule.
#[must_use]
#[track_caller]
pub fn without(base: Build, name: &str) -> Build {
    let rules = Rules::by_name(name).unwrap_or_else(|| panic!("no rule {name}"));
    base.rules(|r| *r = rules)
}

/// One request of 100 tokens, from its arrival to rest.
///
/// # Panics
/// If it does not come to rest.
#[must_use]
pub fn one_request(build: Build) -> Kit {
    let mut t = build.build();
    t.request(100, 5);
    assert!(t.run(), "not quiet within the bound");
    t
}

/// One request of 100 tokens; the run may hang.
#[must_use]
pub fn tries_one_request(build: Build) -> Kit {
    let mut t = build.build();
    t.request(100, 5);
    t.run();
    t
}

/// A port that loses its link in the middle of a transfer, and gets it back.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// Of the prefill instance's, or else of the decode instance's host.
    pub prefill: bool,
    /// Which of its ports.
    pub port: u32,
    /// From the transfer's start until the link goes.
    pub after: Span,
    /// From then until it is back.
    pub down: Span,
}

/// One request of 100 tokens that has begun to move.
///
/// # Panics
/// If it does not begin.
#[must_use]
pub fn in_transfer(build: Build) -> (Kit, RequestId) {
    let mut t = build.build();
    let request = t.request(100, 5);
    assert!(t.run_until(|t| t.saw(request, |step| *step == Step::TransferStart)));
    (t, request)
}

/// One request of 100 tokens whose transfer meets an outage, until long after it; the run may hang.
///
/// # Panics
/// If the transfer does not begin.
#[must_use]
pub fn meets(outage: Outage, build: Build) -> (Kit, RequestId) {
    let (mut t, request) = in_transfer(build);
    t.run_for(outage.after);
    let node = if outage.prefill { t.prefill(0) } else { t.decode(0) };
    t.link_down(node, outage.port);
    t.run_for(outage.down);
    t.link_up(node, outage.port);
    t.run();
    (t, request)
}

/// A room fails on decode in the middle of its transfer, and prefill's report does not come in time: decode's pages must not be free before a
/// fence.
#[must_use]
pub fn no_report_in_time() -> Build {
    slow().decode(|i| {
        i.transfer(|t| {
            t.room_deadline = Span::ms(10);
            t.drain_deadline = Span::ms(1);
        })
    })
}

/// Decode aborts a room while prefill's requests are outstanding.
#[must_use]
pub fn decode_aborts() -> Build {
    slow().decode(|i| i.transfer(|t| t.room_deadline = Span::ms(10)))
}
