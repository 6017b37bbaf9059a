//! Both halves in one process, over two hosts that one [`Duo`] holds.

use super::end::{Card, End};
use super::figures::Figures;
use super::spec::{Side, Test};
use super::{Half, TestError, Turn, half};
use engine::fabric::{Duo, Fabric};
use engine::time::{Span, Time};

/// Whose time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// A simulation's: it jumps from event to event, and memory may be without bytes.
    Virtual,
    /// The operating system's: both sides are polled without pause.
    Real,
}

/// Turns between two looks at progress and, where nothing moves, at the clock.
pub(super) const LOOK: u64 = 1 << 12;

/// Idle turns in a row after which a poller lets others have the CPU. A NIC answers small messages long before; a software device may need
/// the very CPU that polls.
const SPINS: u32 = 256;

/// Counts idle turns in a row.
#[derive(Default)]
pub(super) struct Spin(u32);

impl Spin {
    pub(super) fn turn(&mut self, idle: bool) {
        self.0 = if idle { self.0 + 1 } else { 0 };
        if self.0 == SPINS {
            self.0 = 0;
            std::thread::yield_now();
        }
    }
}

/// With nothing moving for so long a test has failed: twice what a queue pair of timeout 14 and 7 retries may take.
pub(super) const PATIENCE: Span = Span::s(10);

/// Told about requests done and in all; says whether to go on.
pub type Watch<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

fn on<R>(
    duo: &mut dyn Duo,
    side: usize,
    mut calls: impl FnMut(&mut dyn Fabric) -> Result<R, TestError>,
) -> Result<R, TestError> {
    let mut result = None;
    duo.call(side, &mut |fabric| result = Some(calls(fabric)));
    result.unwrap_or_else(|| Err(TestError::Peer("a host that makes no calls".to_owned())))
}

/// Runs one test: side 0 is the initiator.
pub fn run(duo: &mut dyn Duo, test: &Test, clock: Clock, watch: Watch<'_>) -> Result<Figures, TestError> {
    let phantom = clock == Clock::Virtual;
    let mut ends = [None, None];
    for (side, end) in ends.iter_mut().enumerate() {
        *end = Some(on(duo, side, |fabric| End::make(fabric, test, phantom))?);
    }
    let [Some(mut first), Some(mut second)] = ends else {
        return Err(TestError::Peer("a side without an end".to_owned()));
    };
    let cards: [Card; 2] = [on(duo, 0, |f| first.card(f))?, on(duo, 1, |f| second.card(f))?];
    on(duo, 1, |fabric| second.connect(fabric, &cards[0]))?;
    on(duo, 0, |fabric| first.connect(fabric, &cards[1]))?;
    let halves = [half(&first, test, Side::Initiator), half(&second, test, Side::Target)];
    let figures = drive(duo, test, clock, halves, watch);
    // A failed test leaves them to the end of the process: its queue pairs may still be at work.
    let figures = figures?;
    let (mut first, mut second) = (Some(first), Some(second));
    on(duo, 0, |fabric| first.take().map_or(Ok(()), |end| end.destroy(fabric)))?;
    on(duo, 1, |fabric| second.take().map_or(Ok(()), |end| end.destroy(fabric)))?;
    Ok(figures)
}

fn drive(
    duo: &mut dyn Duo,
    test: &Test,
    clock: Clock,
    mut halves: [Option<Box<dyn Half + '_>>; 2],
    watch: Watch<'_>,
) -> Result<Figures, TestError> {
    let mut figures = None;
    let mut since = duo.now();
    let (mut turns, mut moved, mut spin) = (0u64, true, Spin::default());
    while halves.iter().any(Option::is_some) {
        let mut idle = true;
        for (side, slot) in halves.iter_mut().enumerate() {
            let Some(half) = slot else { continue };
            match on(duo, side, |fabric| half.turn(fabric))? {
                Turn::Busy => idle = false,
                Turn::Clock => {
                    half.clock(duo.now());
                    idle = false;
                }
                Turn::Idle => {}
                Turn::Done => {
                    figures = half.figures().or(figures);
                    *slot = None;
                    idle = false;
                }
            }
        }
        turns += 1;
        moved |= !idle;
        if clock == Clock::Real {
            spin.turn(idle);
        }
        if turns.is_multiple_of(LOOK) {
            let (done, all) = halves.iter().flatten().next().map_or((0, 0), |half| half.progress());
            if !watch(done, all) {
                return Err(TestError::Interrupted);
            }
        }
        let stuck = match clock {
            Clock::Virtual => idle && !duo.pass(Time::NEVER),
            Clock::Real if turns.is_multiple_of(LOOK) => {
                let now = duo.now();
                if std::mem::take(&mut moved) {
                    since = now;
                }
                now.since(since) > PATIENCE
            }
            Clock::Real => false,
        };
        if stuck {
            return Err(stuck_at(test, halves.iter().flatten().next().map(|half| half.progress())));
        }
    }
    figures.ok_or_else(|| TestError::Peer("the clock stood still: no time passed during the test".to_owned()))
}

pub(super) fn stuck_at(test: &Test, progress: Option<(u64, u64)>) -> TestError {
    let (done, all) = progress.unwrap_or((0, 0));
    TestError::Stuck { seconds: PATIENCE.0 / Span::s(1).0, size: test.size, done, all }
}
