//! The clock of a host, and waking up by it.

use super::DriverError;
use crate::time::Time;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

const NS_PER_S: u64 = 1_000_000_000;
const PS_PER_NS: u64 = 1_000;
/// What the clock shows when the process first looks at it.
const START_NS: u64 = NS_PER_S;

fn clock_ns(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let s = u64::try_from(now.tv_sec).unwrap_or(0);
    s.saturating_mul(NS_PER_S).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// CLOCK_MONOTONIC when this process's clock was zero. A host that is up for 213 days has more picoseconds behind it than a `Time`
/// holds, a process has not.
#[inline]
fn zero() -> u64 {
    static ZERO: OnceLock<u64> = OnceLock::new();
    *ZERO.get_or_init(|| clock_ns(ClockId::Monotonic).saturating_sub(START_NS))
}

/// The present on this process's clock, which runs with CLOCK_MONOTONIC.
#[inline]
pub fn now() -> Time {
    let zero = zero();
    Time(clock_ns(ClockId::Monotonic).saturating_sub(zero).saturating_mul(PS_PER_NS))
}

/// A reading of this process's clock as nanoseconds of CLOCK_MONOTONIC, which all processes of a host share.
pub fn host_ns(time: Time) -> u64 {
    zero().saturating_add(time.0 / PS_PER_NS)
}

/// Nanoseconds of CLOCK_MONOTONIC as a reading of this process's clock; [`Time::ZERO`] for what was before it.
pub fn from_host_ns(ns: u64) -> Time {
    Time(ns.saturating_sub(zero()).saturating_mul(PS_PER_NS))
}

/// A number that rises with every start of a process, for the `life` of a client and the `epoch` of a registry: tenths of a second of
/// the wall clock since 2025, which last until 2038. A process that starts again within a tenth, or on a host whose wall clock
/// was set back, is taken for the one before until that one's lease has run out.
pub fn life() -> u32 {
    /// 2025-01-01 00:00:00 UTC.
    const SINCE_S: u64 = 1_735_689_600;
    let tenths = clock_ns(ClockId::Realtime) / (NS_PER_S / 10);
    u32::try_from(tenths.saturating_sub(SINCE_S * 10)).unwrap_or(u32::MAX).max(2)
}

/// A descriptor that becomes readable at a time: ZeroMQ's own waiting counts in milliseconds.
#[derive(Debug)]
pub(super) struct Alarm {
    timer: OwnedFd,
    set: Time,
}

impl Alarm {
    pub(super) fn new() -> Result<Self, DriverError> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|why| DriverError::System { what: "timerfd_create", why: why.to_string() })?;
        Ok(Self { timer, set: Time::NEVER })
    }

    /// Readable from `at` on, and no longer for what it was set to before.
    pub(super) fn set(&mut self, at: Time) -> Result<(), DriverError> {
        if self.set == at && at > now() {
            return Ok(());
        }
        // Zero would disarm it; what is past fires at once.
        let ns = if at == Time::NEVER { 0 } else { host_ns(at).max(1) };
        let it_value = Timespec { tv_sec: (ns / NS_PER_S) as _, tv_nsec: (ns % NS_PER_S) as _ };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &Itimerspec { it_interval, it_value })
            .map_err(|why| DriverError::System { what: "timerfd_settime", why: why.to_string() })?;
        self.set = at;
        Ok(())
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Span;

    #[test]
    fn the_clock_goes_on_and_converts_both_ways() {
        let first = now();
        assert!(first >= Time(START_NS * PS_PER_NS));
        assert!(now() >= first);
        assert_eq!(from_host_ns(host_ns(first)), first);
        assert_eq!(from_host_ns(0), Time::ZERO);
    }

    #[test]
    fn an_alarm_wakes_in_time_and_can_be_put_off() {
        let mut alarm = Alarm::new().expect("timer");
        let wait = |alarm: &Alarm, ms| {
            let mut items = [zmq::PollItem::from_fd(alarm.descriptor(), zmq::POLLIN)];
            zmq::poll(&mut items, ms).expect("poll")
        };
        let at = now() + Span::ms(20);
        alarm.set(at).expect("set");
        assert_eq!(wait(&alarm, 10_000), 1);
        assert!(now() >= at);
        // What it fired for is over once it is set anew.
        alarm.set(now() + Span::s(1000)).expect("set");
        assert_eq!(wait(&alarm, 0), 0);
        alarm.set(Time::NEVER).expect("set");
        assert_eq!(wait(&alarm, 0), 0);
        alarm.set(Time::ZERO).expect("set");
        assert_eq!(wait(&alarm, 10_000), 1);
    }
}
