//! Copies within one host's memory, where staging gathers and scatters.

use super::work::{Lanes, Plan, Run};
use super::{Error, Result};
use crate::id::BufId;
use std::ops::Range;
use std::sync::Arc;

/// One plan's pieces to copy: what would be its local side is read, what would be its remote side is written. How the plan groups pieces
/// into requests means nothing here.
#[derive(Clone, Debug)]
pub struct LocalCopy<'a> {
    /// Which pieces, at offsets from `from` and `to`.
    pub plan: &'a Arc<Plan>,
    /// Buffer and offset that the plan's local side counts from.
    pub from: (BufId, u64),
    /// Buffer and offset that the plan's remote side counts from; another buffer.
    pub to: (BufId, u64),
}

/// The least and the largest offset of some pieces, one side at a time. None if they reach beyond 64 bits.
fn hull(
    lanes: &Lanes,
    runs: &[Run],
    base: u64,
    lane: impl Fn(usize) -> u64,
    run: impl Fn(&Run) -> (u64, u64),
) -> Option<Range<u64>> {
    let (mut start, mut end) = (u64::MAX, 0);
    for one in runs {
        let (first, step) = run(one);
        let last = step.checked_mul(u64::from(one.count - 1))?.checked_add(first)?;
        start = start.min(first);
        end = end.max(last.checked_add(one.len.into())?);
    }
    let least = (0..lanes.len()).map(&lane).min()?;
    let most = (0..lanes.len()).map(&lane).max()?;
    Some(base.checked_add(least)?.checked_add(start)?..base.checked_add(most)?.checked_add(end)?)
}

impl LocalCopy<'_> {
    /// Payload bytes.
    pub fn bytes(&self) -> u64 {
        self.plan.bytes()
    }

    /// Whether all that it names lies in the two buffers, which have so many bytes.
    ///
    /// # Errors
    /// If it does not, or the two are the same buffer.
    pub fn check(&self, from_len: u64, to_len: u64) -> Result<()> {
        if self.from.0 == self.to.0 {
            let right = "another buffer than the one that is read";
            return Err(Error::Invalid { what: "buffer to copy to", value: self.to.0.0.into(), right });
        }
        if self.plan.requests() == 0 {
            return Ok(());
        }
        let (lanes, runs) = (self.plan.lanes(), self.plan.runs());
        let local = |run: &Run| (run.local, run.local_step);
        let remote = |run: &Run| (run.remote, run.remote_step);
        let read = hull(lanes, runs, self.from.1, |i| lanes[i].local, local);
        let written = hull(lanes, runs, self.to.1, |i| lanes[i].remote, remote);
        for (what, hull, len) in [("offset to read", read, from_len), ("offset to write", written, to_len)] {
            let end = hull.map(|hull| hull.end);
            if end.is_none_or(|end| end > len) {
                let value = end.unwrap_or(u64::MAX);
                return Err(Error::Invalid { what, value, right: "every piece lies in the buffer" });
            }
        }
        Ok(())
    }

    /// Calls `each` with every piece: offset in the buffer that is read, offset in the one that is written, bytes.
    pub fn for_each(&self, mut each: impl FnMut(u64, u64, u32)) {
        self.plan.for_each(&(0..self.plan.requests()), |_, pieces, remote| {
            let mut to = self.to.1 + remote;
            for &(local, len) in pieces {
                each(self.from.1 + local, to, len);
                to += u64::from(len);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::Lane;

    #[test]
    fn pieces_must_lie_in_two_buffers() {
        let lanes: Arc<Lanes> =
            [Lane { local: 0, remote: 100 }, Lane { local: 50, remote: 0 }].into_iter().collect();
        let run = Run {
            local: 4,
            remote: 8,
            len: 2,
            count: 3,
            local_step: 10,
            remote_step: 2,
            gather: 3,
            joins: false,
        };
        let plan = Arc::new(Plan::new(lanes, vec![run]).unwrap());
        let copy = |from, to| LocalCopy { plan: &plan, from, to };
        let one = copy((BufId(0), 1000), (BufId(1), 7));
        assert_eq!(one.bytes(), 12);
        // 1000 + 50 + 4 + 2 * 10 + 2 and 7 + 100 + 8 + 6.
        assert_eq!(one.check(1076, 121), Ok(()));
        assert!(one.check(1075, 121).is_err() && one.check(1076, 120).is_err());
        assert!(copy((BufId(0), u64::MAX), (BufId(1), 0)).check(u64::MAX, u64::MAX).is_err());
        assert!(copy((BufId(1), 0), (BufId(1), 500)).check(1000, 1000).is_err());
        let mut all = Vec::new();
        one.for_each(|from, to, len| all.push((from, to, len)));
        let lane = |from, to| (0..3u64).map(move |i| (from + i * 10, to + i * 2, 2));
        assert_eq!(all, lane(1004, 115).chain(lane(1054, 15)).collect::<Vec<_>>());
    }
}
