//! What holds in every run, whatever happened in it, and what holds in a run without faults.

use super::{Ending, Kit};
use crate::watch::{Watcher, least_bytes};
use engine::id::RequestId;
use engine::node::Reason;
use models::Layout;

/// What a run moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Payload bytes, aux rows and seals included.
    pub bytes: u64,
    /// Work requests, aux rows and seals included.
    pub work_requests: u64,
    /// RNR NAKs.
    pub rnr_naks: u64,
    /// Fences that decode, in pull prefill, made.
    pub fences: u64,
    /// Immediates that were dropped.
    pub stale: u64,
    /// Parts that came twice.
    pub repeated: u64,
}

impl Kit {
    /// What was counted so far.
    #[must_use]
    pub fn counted(&self) -> Counted {
        let (fabric, nodes) = (self.world.fabrics().counters(), self.world.counters());
        Counted {
            bytes: fabric.bytes,
            work_requests: fabric.work_requests,
            rnr_naks: fabric.rnr_naks,
            fences: nodes.fences,
            stale: nodes.stale_immediates,
            repeated: nodes.repeated_parts,
        }
    }

    /// The layouts of the two sides.
    ///
    /// # Panics
    /// Never: the instances started with them.
    #[must_use]
    pub fn layouts(&self) -> (Layout, Layout) {
        let of = |side: &super::Side| {
            let c = &side.config;
            Layout::new(&c.model, c.dtype, c.parallel, c.page_size, c.order)
                .unwrap_or_else(|error| panic!("{error}"))
        };
        (of(&self.build.prefill), of(&self.build.decode))
    }

    /// The fewest payload bytes that a prompt of so many tokens can take: what the relation of the layouts names, and beside it aux rows
    /// and, in push, seals.
    ///
    /// # Panics
    /// Never: the instances were paired.
    #[must_use]
    pub fn least_bytes(&self, tokens: u32) -> (u64, u64) {
        let (src, dst) = self.layouts();
        least_bytes(&src, &dst, self.build.direction(), self.build.replica(), tokens)
            .unwrap_or_else(|| panic!("{src:?} and {dst:?}"))
    }

    /// Every law that is broken. After [`Kit::run`].
    #[must_use]
    pub fn violations(&mut self) -> Vec<String> {
        self.watcher.at_rest(&self.world).iter().map(ToString::to_string).collect()
    }

    /// Every law of a fault-free run that is broken.
    #[must_use]
    pub fn fault_free_violations(&mut self) -> Vec<String> {
        let mut wrong = self.violations();
        wrong.extend(self.watcher.fault_free(&self.world).iter().map(ToString::to_string));
        // Nothing that a scenario asks for is too much.
        for life in self.watcher.lives() {
            if let Some(Ending::Rejected(why)) =
                life.ending().filter(|end| *end != Ending::Rejected(Reason::Busy))
            {
                wrong.push(format!("request {} was rejected without faults: {why:?}", life.request().id.0));
            }
        }
        wrong
    }

    /// Every node leaves; what the fabric has left after that.
    #[must_use]
    pub fn shut_down(mut self) -> Vec<String> {
        self.world.shut_down();
        self.run_for(self.build.lease * 4);
        Watcher::after_leaving(&self.world).iter().map(ToString::to_string).collect()
    }

    /// Panics if the request did not finish.
    ///
    /// # Panics
    /// Then.
    #[track_caller]
    pub fn assert_finished(&self, request: RequestId) {
        let steps: Vec<_> = self.steps(request).map(|stamped| stamped.record.step).collect();
        assert_eq!(self.ending(request), Some(Ending::Finished), "{request:?}: {steps:?}");
    }

    /// Panics if a law is broken, also one of shutdown.
    ///
    /// # Panics
    /// Then.
    #[track_caller]
    pub fn assert_clean(mut self) {
        let mut wrong = self.violations();
        let told = format!("{:#?}", self.build);
        if wrong.is_empty() {
            wrong = self.shut_down();
        }
        assert!(wrong.is_empty(), "{}\nin the scenario {told}", wrong.join("\n"));
    }

    /// Panics if a law of fault-free runs is broken.
    ///
    /// # Panics
    /// Then.
    #[track_caller]
    pub fn assert_fault_free(mut self) {
        let wrong = self.fault_free_violations();
        assert!(wrong.is_empty(), "{}\nin the scenario {:#?}", wrong.join("\n"), self.build);
        self.assert_clean();
    }
}
