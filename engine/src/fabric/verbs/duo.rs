//! Two verbs fabrics in one process.

use super::{OpenError, VerbsFabric};
use crate::fabric::{Device, DeviceConfig, Duo, Fabric};
use crate::time::{Span, Time};
#[expect(clippy::disallowed_types, reason = "this is where real time comes from")]
use std::time::Instant;

/// How often asynchronous events are looked for: reading them costs a system call for each device.
const EVENTS: Span = Span::us(100);
/// How many times [`Duo::pass`] returns at once before it lets others have the CPU. A NIC needs none to make progress; a software
/// device does, where there are no more CPUs than pollers.
const TURNS: u32 = 32;

/// Two fabrics on the devices of this host, or on one and the same.
#[expect(clippy::disallowed_types, reason = "this is where real time comes from")]
pub struct VerbsDuo {
    sides: [VerbsFabric; 2],
    start: Instant,
    looked: Time,
    turns: u32,
}

impl VerbsDuo {
    /// Opens both sides.
    pub fn open(sides: [&DeviceConfig; 2]) -> Result<Self, OpenError> {
        let sides = [VerbsFabric::open(sides[0])?, VerbsFabric::open(sides[1])?];
        #[expect(clippy::disallowed_types, reason = "this is where real time comes from")]
        let start = Instant::now();
        Ok(Self { sides, start, looked: Time::ZERO, turns: 0 })
    }

    /// One side: 0 or 1.
    pub fn side(&mut self, side: usize) -> &mut VerbsFabric {
        &mut self.sides[side]
    }
}

impl Duo for VerbsDuo {
    fn call(&mut self, side: usize, calls: &mut dyn FnMut(&mut dyn Fabric)) {
        calls(&mut self.sides[side]);
    }
    fn now(&self) -> Time {
        // 2^64 ps are 213 days.
        Time(u64::try_from(self.start.elapsed().as_nanos().saturating_mul(1000)).unwrap_or(u64::MAX))
    }
    fn pass(&mut self, _until: Time) -> bool {
        self.turns += 1;
        if self.turns < TURNS {
            std::hint::spin_loop();
            return true;
        }
        self.turns = 0;
        std::thread::yield_now();
        let now = self.now();
        if now.since(self.looked) > EVENTS {
            self.looked = now;
            self.sides.iter_mut().for_each(VerbsFabric::wake);
        }
        true
    }
}
