//! Each way to fail, by name: one short program with a good request before and two after, and the connection used again.

use crate::check::{compare, simulated};
use engine::fabric::Status;
use kvrail_tests::conformance::outcome::Why;
use kvrail_tests::conformance::program::{Before, ConnPick, Flaw, Program, Request, Turn, What};
use kvrail_tests::conformance::quirks::Used;
use kvrail_tests::conformance::resolve;
use kvrail_tests::conformance::run::Pace;
use sim::fabric::Mistakes;

/// What a row is about.
struct Row {
    what: What,
    flaw: Flaw,
    before: Before,
    /// Few retries.
    fragile: bool,
    /// Which right the queue pairs lack.
    rights: u8,
    bytes: u16,
    /// Requests after it.
    after: usize,
}

const ROW: Row = Row {
    what: What::Write,
    flaw: Flaw::None,
    before: Before::Nothing,
    fragile: false,
    rights: 0,
    bytes: 600,
    after: 2,
};

fn program(row: &Row) -> Program {
    let request = |what, bytes, flaw| Request {
        what,
        pieces: vec![bytes],
        signaled: false,
        fence: false,
        inline: false,
        again: false,
        flaw,
        salt: 2,
    };
    let good = |what| request(what, 64, Flaw::None);
    let first = if row.rights == 1 { What::Send } else { What::Write };
    let mut requests = vec![good(first), request(row.what, row.bytes, row.flaw)];
    if row.flaw.is_local() {
        // See `quirks::AVOIDED`.
        requests.remove(0);
    }
    requests.extend((0..row.after).map(|_| good(What::SendImm)));
    let turn = |before, requests| Turn { conn: 0, side: false, before, chain: 60, spare: 2, requests };
    let conn = ConnPick {
        shared_cq: false,
        srq: [false; 2],
        log_depth: 3,
        mtu: 0,
        fragile: row.fragile,
        reads: 0,
        rights: row.rights,
    };
    let again = vec![good(What::Send), good(What::SendImm)];
    let rounds = vec![vec![turn(row.before, requests)], vec![turn(Before::Nothing, again)]];
    Program { conns: vec![conn], rounds }
}

/// Runs a row on the simulated fabric, and beside it on devices where there are some.
fn check(row: &Row, status: Option<Status>) {
    let (script, expected) = resolve(&program(row));
    assert_eq!(expected[0].culprits.first().copied(), status, "the row must fail as its name says");
    let seen = simulated(&script, &expected, Pace::VIRTUAL, Mistakes::default());
    let want = || expected.iter().map(|e| &e.seen);
    assert_eq!(compare(want(), &seen, &expected, false, &mut Used::new()), [""; 0], "simulated");
    // Refused by rxe at posting: see `quirks::AVOIDED`.
    #[cfg(feature = "verbs")]
    if row.flaw != Flaw::Misaligned {
        crate::real::row(&script, &expected);
    }
}

macro_rules! rows {
    ($($name:ident: $status:expr, $row:expr;)*) => {$(
        #[test]
        fn $name() {
            check(&$row, $status);
        }
    )*};
}

rows! {
    a_bad_remote_key: Some(Status::RemAccess), Row { flaw: Flaw::BadRkey, ..ROW };
    one_byte_past_the_end: Some(Status::RemAccess), Row { flaw: Flaw::PastEnd(1), ..ROW };
    a_read_past_the_end: Some(Status::RemAccess), Row { what: What::Read, flaw: Flaw::PastEnd(1), ..ROW };
    a_batch_past_the_end: Some(Status::RemAccess), Row { what: What::Writes(true), flaw: Flaw::PastEnd(1), ..ROW };
    no_remote_write: Some(Status::RemAccess), Row { flaw: Flaw::NoRight, ..ROW };
    no_remote_read: Some(Status::RemAccess), Row { what: What::Read, flaw: Flaw::NoRight, ..ROW };
    no_remote_atomic: Some(Status::RemAccess), Row { what: What::FetchAdd, flaw: Flaw::NoRight, ..ROW };
    a_stale_remote_key: Some(Status::RemAccess), Row { flaw: Flaw::Stale, ..ROW };
    a_write_with_immediate_that_is_refused: Some(Status::RemAccess), Row { what: What::WriteImm, flaw: Flaw::BadRkey, ..ROW };
    a_queue_pair_without_remote_write: Some(Status::RemInvReq), Row { rights: 1, ..ROW };
    a_queue_pair_without_remote_read: Some(Status::RemInvReq), Row { what: What::Read, rights: 2, ..ROW };
    a_queue_pair_without_remote_atomic: Some(Status::RemInvReq), Row { what: What::FetchAdd, rights: 3, ..ROW };
    a_misaligned_atomic: Some(Status::RemInvReq), Row { what: What::FetchAdd, flaw: Flaw::Misaligned, ..ROW };
    no_receive_for_a_send: Some(Status::RnrRetryExc), Row { what: What::Send, flaw: Flaw::NoReceive, fragile: true, ..ROW };
    no_receive_for_an_immediate: Some(Status::RnrRetryExc), Row { what: What::WriteImm, flaw: Flaw::NoReceive, fragile: true, ..ROW };
    a_receive_that_comes_late: None, Row { what: What::WriteImm, flaw: Flaw::LateReceive, ..ROW };
    a_receive_for_a_send_that_comes_late: None, Row { what: What::Send, flaw: Flaw::LateReceive, ..ROW };
    a_receive_that_is_too_small: Some(Status::RemInvReq), Row { what: What::Send, flaw: Flaw::TooSmall, ..ROW };
    a_receive_with_a_bad_key: Some(Status::RemOp), Row { what: What::Send, flaw: Flaw::BadReceiveKey, ..ROW };
    a_peer_that_is_destroyed: Some(Status::RetryExc), Row { before: Before::PeerDestroyed, fragile: true, ..ROW };
    a_peer_in_err: Some(Status::RetryExc), Row { before: Before::PeerErr, fragile: true, ..ROW };
    a_peer_in_reset: Some(Status::RetryExc), Row { before: Before::PeerReset, fragile: true, ..ROW };
    a_bad_local_key: Some(Status::LocProt), Row { flaw: Flaw::BadLkey, ..ROW };
    a_local_range_past_the_end: Some(Status::LocProt), Row { flaw: Flaw::LocalPastEnd, ..ROW };
    a_read_without_local_write: Some(Status::LocProt), Row { what: What::Read, flaw: Flaw::NoLocalWrite, ..ROW };
    zero_length_checks_no_key: None, Row { bytes: 0, ..ROW };
    posting_in_err_is_flushed: None, Row { before: Before::OwnErr, ..ROW };
}

#[test]
fn a_full_send_queue_takes_what_fits() {
    let row = Row { after: 9, ..ROW };
    let (_, expected) = resolve(&program(&row));
    assert_eq!(expected[0].seen.posts.last(), Some(&Err((7, Why::Full))));
    check(&row, None);
}

#[test]
fn posting_in_reset_is_refused() {
    let row = Row { before: Before::OwnReset, ..ROW };
    let (_, expected) = resolve(&program(&row));
    assert_eq!(expected[0].seen.posts.last(), Some(&Err((0, Why::State))));
    check(&row, None);
}
