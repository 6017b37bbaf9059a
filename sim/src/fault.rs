//! Faults: what can go wrong in a simulated cluster, one line for each kind.
//!
//! [`World::fault`](crate::world::World::fault) begins one, [`World::fault_over`](crate::world::World::fault_over) ends those that last, and
//! [`World::fault_for`](crate::world::World::fault_for) does both. Faults of a kind that strike the same place at once do not undo each
//! other: a link is up again when the last of those that took it down is over, and of two rates the lower one counts.

use engine::id::{NodeId, PortId};
use engine::node::{Chunk, Compute, Estimate};
use engine::time::{Span, Time};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Parts of a million: a probability, or a share of a rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ppm(pub u32);

impl Ppm {
    /// All of it.
    pub const ONE: Self = Self(1_000_000);

    /// The nearest to a number from 0 to 1.
    #[must_use]
    pub fn of(share: f64) -> Self {
        Self((share.clamp(0.0, 1.0) * 1e6 + 0.5) as u32)
    }
    /// As a number from 0 to 1.
    #[must_use]
    pub fn share(self) -> f64 {
        f64::from(self.0.min(1_000_000)) / 1e6
    }
}

/// A fault. Those marked *lasts* go on until they are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The n-th queue pair (modulo their number) of a host fails by itself.
    QueuePairError {
        /// Host.
        host: usize,
        /// Which of its queue pairs.
        index: usize,
    },
    /// *Lasts.* A port loses its link: packets and acknowledgements on the way are lost.
    LinkDown {
        /// Host.
        host: usize,
        /// Port.
        port: PortId,
    },
    /// Ends a [`Fault::LinkDown`] of the port.
    LinkUp {
        /// Host.
        host: usize,
        /// Port.
        port: PortId,
    },
    /// *Lasts.* A port is taken out of service in good order: its host is told that it is down, while packets still pass. Whoever removes a
    /// link for real lets [`Fault::LinkDown`] follow.
    LinkDrain {
        /// Host.
        host: usize,
        /// Port.
        port: PortId,
    },
    /// *Lasts.* A port's link runs at a part of its rate, both ways.
    Degrade {
        /// Host.
        host: usize,
        /// Port.
        port: PortId,
        /// Of the rate.
        to: Ppm,
    },
    /// *Lasts.* Each packet that crosses a port's link is lost with this probability, both ways.
    Loss {
        /// Host.
        host: usize,
        /// Port.
        port: PortId,
        /// Of a packet.
        probability: Ppm,
    },
    /// *Lasts.* A NIC resets: every queue pair of the port fails with an event, its link goes down, and until it is over no queue pair of it
    /// can be made or moved to another state but ERR and RESET. Registrations survive.
    NicReset {
        /// Host.
        host: usize,
        /// Port.
        port: PortId,
    },
    /// The provider refuses the request with this number (from 0) of a chain that is posted, as when it has no memory (ENOMEM); what comes
    /// before it is posted. Strikes the next `times` chains that are long enough.
    PostFailure {
        /// Host.
        host: usize,
        /// Number of the request in its chain.
        request: u32,
        /// Chains.
        times: u32,
    },
    /// *Lasts.* Completions of a host come so much later.
    CompletionDelay {
        /// Host.
        host: usize,
        /// Later by.
        by: Span,
    },
    /// Of the next `times` rows of WRITEs or SENDs that a host's requests reach their target with, no acknowledgement ever comes back: the
    /// target's memory has changed, and the requester sees RETRY_EXC.
    Unacknowledged {
        /// Host of the requester.
        host: usize,
        /// Rows of requests.
        times: u32,
    },
    /// *Lasts.* No receive of a host can be used: what needs one gets an RNR NAK.
    ReceivesDry {
        /// Host.
        host: usize,
    },
    /// *Lasts*, or for ever. A node's process dies; the system takes its queue pairs, registrations and memory back. When it is over the node
    /// is started anew, knowing nothing.
    Crash {
        /// Which.
        node: NodeId,
    },
    /// *Lasts.* A node's process stops; its NIC goes on. When it is over it goes on as if nothing had been: a zombie, if its lease ran out.
    Pause {
        /// Which.
        node: NodeId,
    },
    /// Ends a [`Fault::Pause`] of the node.
    Resume {
        /// Which.
        node: NodeId,
    },
    /// *Lasts*, or for ever. Not a fault: a node winds down in good order. When it is over it is started anew.
    Leave {
        /// Which.
        node: NodeId,
    },
    /// *Lasts.* Frames of the control channel between some nodes are disturbed.
    Control(ControlFault),
    /// *Lasts.* A node's clock leaps ahead, and from then on runs faster or slower. When it is over it runs at its right rate again.
    Clock {
        /// Which.
        node: NodeId,
        /// The leap.
        ahead: Span,
        /// Faster by so many parts of a million; negative for slower.
        drift_ppm: i32,
    },
    /// *Lasts.* A node is slow.
    Slow {
        /// Which.
        node: NodeId,
        /// Its calls take so many thousandths of their CPU time; 1000 is as before.
        cpu: u32,
        /// And each of them takes this much more.
        call: Span,
        /// Its model computes in so many thousandths of the time; 1000 is as before.
        compute: u32,
    },
}

/// Which frames of the control channel are disturbed, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ControlFault {
    /// Sent by this node; none is any.
    pub from: Option<NodeId>,
    /// Sent to this node; none is any.
    pub to: Option<NodeId>,
    /// Each of them with this probability.
    pub probability: Ppm,
    /// How.
    pub how: Disturbance,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Disturbance {
    /// It is lost.
    Lose,
    /// It comes a second time, up to so much later.
    Duplicate(Span),
    /// It is held back for up to so long, so that later ones overtake it.
    Reorder(Span),
    /// It comes so much later.
    Delay(Span),
    /// Only a part of it comes, from none of its bytes to all but one.
    Truncate,
    /// One to eight of its bytes come changed.
    Garble,
}

/// The kinds of faults, to count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// [`Fault::QueuePairError`].
    QueuePairError,
    /// [`Fault::LinkDown`].
    LinkDown,
    /// [`Fault::LinkDrain`].
    LinkDrain,
    /// [`Fault::Degrade`].
    Degrade,
    /// [`Fault::Loss`].
    Loss,
    /// [`Fault::NicReset`].
    NicReset,
    /// [`Fault::PostFailure`].
    PostFailure,
    /// [`Fault::CompletionDelay`].
    CompletionDelay,
    /// [`Fault::Unacknowledged`].
    Unacknowledged,
    /// [`Fault::ReceivesDry`].
    ReceivesDry,
    /// [`Fault::Crash`].
    Crash,
    /// [`Fault::Pause`].
    Pause,
    /// [`Fault::Leave`].
    Leave,
    /// [`Disturbance::Lose`].
    ControlLoss,
    /// [`Disturbance::Duplicate`].
    ControlDuplicate,
    /// [`Disturbance::Reorder`].
    ControlReorder,
    /// [`Disturbance::Delay`].
    ControlDelay,
    /// [`Disturbance::Truncate`].
    ControlTruncate,
    /// [`Disturbance::Garble`].
    ControlGarble,
    /// [`Fault::Clock`].
    Clock,
    /// [`Fault::Slow`].
    Slow,
}

impl FaultKind {
    /// All of them, in order.
    pub const ALL: [Self; 21] = [
        Self::QueuePairError,
        Self::LinkDown,
        Self::LinkDrain,
        Self::Degrade,
        Self::Loss,
        Self::NicReset,
        Self::PostFailure,
        Self::CompletionDelay,
        Self::Unacknowledged,
        Self::ReceivesDry,
        Self::Crash,
        Self::Pause,
        Self::Leave,
        Self::ControlLoss,
        Self::ControlDuplicate,
        Self::ControlReorder,
        Self::ControlDelay,
        Self::ControlTruncate,
        Self::ControlGarble,
        Self::Clock,
        Self::Slow,
    ];

    /// As reports name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::QueuePairError => "queue-pair-error",
            Self::LinkDown => "link-down",
            Self::LinkDrain => "link-drain",
            Self::Degrade => "degrade",
            Self::Loss => "loss",
            Self::NicReset => "nic-reset",
            Self::PostFailure => "post-failure",
            Self::CompletionDelay => "completion-delay",
            Self::Unacknowledged => "unacknowledged",
            Self::ReceivesDry => "receives-dry",
            Self::Crash => "crash",
            Self::Pause => "pause",
            Self::Leave => "leave",
            Self::ControlLoss => "control-loss",
            Self::ControlDuplicate => "control-duplicate",
            Self::ControlReorder => "control-reorder",
            Self::ControlDelay => "control-delay",
            Self::ControlTruncate => "control-truncate",
            Self::ControlGarble => "control-garble",
            Self::Clock => "clock",
            Self::Slow => "slow",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Fault {
    /// What kind it is; [`Fault::LinkUp`] and [`Fault::Resume`] are of the kind that they end.
    #[must_use]
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::QueuePairError { .. } => FaultKind::QueuePairError,
            Self::LinkDown { .. } | Self::LinkUp { .. } => FaultKind::LinkDown,
            Self::LinkDrain { .. } => FaultKind::LinkDrain,
            Self::Degrade { .. } => FaultKind::Degrade,
            Self::Loss { .. } => FaultKind::Loss,
            Self::NicReset { .. } => FaultKind::NicReset,
            Self::PostFailure { .. } => FaultKind::PostFailure,
            Self::CompletionDelay { .. } => FaultKind::CompletionDelay,
            Self::Unacknowledged { .. } => FaultKind::Unacknowledged,
            Self::ReceivesDry { .. } => FaultKind::ReceivesDry,
            Self::Crash { .. } => FaultKind::Crash,
            Self::Pause { .. } | Self::Resume { .. } => FaultKind::Pause,
            Self::Leave { .. } => FaultKind::Leave,
            Self::Control(fault) => match fault.how {
                Disturbance::Lose => FaultKind::ControlLoss,
                Disturbance::Duplicate(_) => FaultKind::ControlDuplicate,
                Disturbance::Reorder(_) => FaultKind::ControlReorder,
                Disturbance::Delay(_) => FaultKind::ControlDelay,
                Disturbance::Truncate => FaultKind::ControlTruncate,
                Disturbance::Garble => FaultKind::ControlGarble,
            },
            Self::Clock { .. } => FaultKind::Clock,
            Self::Slow { .. } => FaultKind::Slow,
        }
    }

    /// Whether it goes on until it is over.
    #[must_use]
    pub fn lasts(&self) -> bool {
        !matches!(
            self,
            Self::QueuePairError { .. }
                | Self::LinkUp { .. }
                | Self::Resume { .. }
                | Self::PostFailure { .. }
                | Self::Unacknowledged { .. }
        )
    }
}

/// How many faults of each kind struck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Struck([u64; FaultKind::ALL.len()]);

impl Struck {
    /// One more.
    pub(crate) fn count(&mut self, kind: FaultKind) {
        self.0[kind as usize] += 1;
    }
    /// Of one kind.
    #[must_use]
    pub fn of(&self, kind: FaultKind) -> u64 {
        self.0[kind as usize]
    }
    /// Those that struck at least once.
    pub fn iter(&self) -> impl Iterator<Item = (FaultKind, u64)> {
        FaultKind::ALL.into_iter().zip(self.0).filter(|(_, count)| *count > 0)
    }
}

/// A node's clock: the time that it reads, and when it will read a time.
///
/// Leases stay safe while the clocks of a client and of the registry differ in speed by less than one sixteenth, 62,500 parts of a million,
/// which is what [`Client::lease_until`](engine::registry::Client::lease_until) keeps back. A leap is no risk: it ends a lease too early.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Since when it runs as it does, in true time and by its own reading.
    since: (u64, u64),
    drift_ppm: i32,
}

impl Clock {
    const MILLION: u128 = 1_000_000;

    fn rate(&self) -> u128 {
        (1_000_000 + i64::from(self.drift_ppm)).max(1) as u128
    }

    /// What it reads at a true time.
    #[must_use]
    pub fn reads(&self, now: Time) -> Time {
        let span = u128::from(now.0.saturating_sub(self.since.0));
        let own = if self.drift_ppm == 0 { span } else { span * self.rate() / Self::MILLION };
        Time(self.since.1.saturating_add(u64::try_from(own).unwrap_or(u64::MAX)))
    }

    /// The first true time at which it reads `reading` or later.
    #[must_use]
    pub fn when(&self, reading: Time) -> Time {
        if reading == Time::NEVER {
            return reading;
        }
        let own = u128::from(reading.0.saturating_sub(self.since.1));
        let span = if self.drift_ppm == 0 { own } else { (own * Self::MILLION).div_ceil(self.rate()) };
        Time(self.since.0.saturating_add(u64::try_from(span).unwrap_or(u64::MAX)))
    }

    /// At the true time `now` it leaps ahead, and runs at another speed from then on.
    #[must_use]
    pub fn set(&self, now: Time, ahead: Span, drift_ppm: i32) -> Self {
        Self { since: (now.0, (self.reads(now) + ahead).0), drift_ppm }
    }
}

/// How fast a node's model computes, in thousandths of the time that it takes otherwise. Shared by a node's [`Compute`] and the world.
#[derive(Clone, Debug)]
pub struct Pace(Arc<AtomicU32>);

impl Default for Pace {
    fn default() -> Self {
        Self(Arc::new(AtomicU32::new(1000)))
    }
}

impl Pace {
    pub(crate) fn set(&self, thousandths: u32) {
        self.0.store(thousandths.max(1), Ordering::Relaxed);
    }
    fn stretch(&self, estimate: Estimate) -> Estimate {
        match self.0.load(Ordering::Relaxed) {
            1000 => estimate,
            pace => {
                let ps = u128::from(estimate.span.0) * u128::from(pace) / 1000;
                Estimate { span: Span(u64::try_from(ps).unwrap_or(u64::MAX)), ..estimate }
            }
        }
    }
}

/// Compute times at a pace.
#[derive(Clone, Debug)]
pub struct Paced<C> {
    /// As they are otherwise.
    pub inner: C,
    /// The pace.
    pub pace: Pace,
}

impl<C: Compute> Compute for Paced<C> {
    fn prefill(&self, chunks: &[Chunk]) -> Estimate {
        self.pace.stretch(self.inner.prefill(chunks))
    }
    fn decode(&self, batch: u32, context: u64) -> Estimate {
        self.pace.stretch(self.inner.decode(batch, context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn kinds_stand_in_their_order() {
        for (at, kind) in FaultKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at, "{kind}");
        }
    }

    proptest! {
        /// A clock never reads backwards, and a deadline comes exactly when it is read.
        #[test]
        fn deadlines_come_when_they_are_read(
            sets in proptest::collection::vec((0u64..1 << 50, 0u64..1 << 45, -200_000i32..200_000), 0..4),
            now in 0u64..1 << 55,
            later in 0u64..1 << 50,
        ) {
            let mut clock = Clock::default();
            let (mut at, mut read) = (0, Time::ZERO);
            for (wait, ahead, drift) in sets {
                at += wait;
                prop_assert!(clock.reads(Time(at)) >= read);
                clock = clock.set(Time(at), Span(ahead), drift);
                read = clock.reads(Time(at));
            }
            let now = Time(at + now);
            prop_assert!(clock.reads(now) >= read);
            let deadline = clock.reads(now) + Span(later);
            let when = clock.when(deadline);
            prop_assert!(when >= now || later == 0);
            prop_assert!(clock.reads(when) >= deadline);
            prop_assert!(when.0 == at || clock.reads(Time(when.0 - 1)) < deadline);
        }
    }

    #[test]
    fn a_clock_with_drift() {
        let clock = Clock::default().set(Time::ZERO + Span::s(1), Span::ms(5), 100);
        assert_eq!(
            clock.reads(Time::ZERO + Span::s(2)),
            Time::ZERO + Span::s(2) + Span::ms(5) + Span::us(100)
        );
        assert_eq!(clock.when(Time::NEVER), Time::NEVER);
        assert_eq!(Clock::default().when(Time(7)), Time(7));
    }
}
