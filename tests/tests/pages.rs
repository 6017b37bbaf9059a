//! Pages that are short: who holds them lets go at once, and what is said when there are enough can wait.

use engine::registry::Message;
use engine::time::{Span, Time};
use sim::kit::{Build, Kit};
use std::cell::Cell;
use std::rc::Rc;

/// Requests of one token, one after the other through pages for one of them; how long one takes.
fn one_by_one(build: Build) -> Span {
    let mut t = build.compute(Span::us(1), Span::us(100)).build();
    let began = t.now();
    let requests: Vec<_> = (0..40).map(|_| t.request(100, 1)).collect();
    assert!(t.run_until(|t| requests.iter().all(|request| t.ending(*request).is_some())));
    let took = t.now().since(began);
    assert!(t.run());
    for request in requests {
        t.assert_finished(request);
    }
    t.assert_fault_free();
    Span(took.0 / 40)
}

/// Acknowledgements wait 2 ms here, and so does word that nobody waits for. A request takes 0.1 ms of compute and a few messages of 20 us.
#[test]
fn reports_go_at_once_where_requests_wait_for_pages() {
    let push = one_by_one(Kit::pair().decode(|i| i.pages(7)));
    assert!(push < Span::us(500), "{push:?} for each: decode's pages wait for prefill's word");
    let pull = one_by_one(Kit::pair().pull().prefill(|i| i.pages(7)));
    assert!(pull < Span::us(500), "{pull:?} for each: prefill's pages wait for decode's word");
}

#[test]
fn nobody_is_hurried_where_pages_and_slots_are_enough() {
    for pull in [false, true] {
        let build = if pull { Kit::pair().pull() } else { Kit::pair() };
        let build = build.transfer(|t| t.slots = 64);
        let mut t = build.prefill(|i| i.pages(400)).decode(|i| i.pages(400)).build();
        let said = Rc::new(Cell::new(0));
        let count = said.clone();
        t.hold(move |said| {
            count.set(count.get() + u32::from(*said.message == Message::Short));
            false
        });
        let requests: Vec<_> = (0..40).map(|_| t.request(100, 1)).collect();
        assert!(t.run());
        assert!(t.now() > Time::ZERO);
        requests.into_iter().for_each(|request| t.assert_finished(request));
        assert_eq!(said.get(), 0, "pull: {pull}");
        t.assert_fault_free();
    }
}
