//! Two hosts and the time between them: what measurements and the conformance suite run on, over either fabric.

use super::Fabric;
use crate::time::Time;

/// Two hosts whose first ports reach each other.
pub trait Duo {
    /// Makes calls on one side's fabric: 0 or 1.
    fn call(&mut self, side: usize, calls: &mut dyn FnMut(&mut dyn Fabric));
    /// The present: virtual, or the operating system's.
    fn now(&self) -> Time;
    /// Lets time pass until something may have happened, at most until `until`. False if, before that, nothing can happen any
    /// more (only a simulation can know).
    fn pass(&mut self, until: Time) -> bool;
}
