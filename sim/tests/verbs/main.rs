//! The contract of verbs, rule by rule: states, errors, queues, ordering. Sources: InfiniBand Architecture Specification volume 1,
//! chapters 9 to 11; Linux drivers/infiniband (core/verbs.c, sw/rxe); libibverbs manual pages.

#[path = "../common/mod.rs"]
mod common;
mod data;
mod objects;
mod queues;
mod refusals;
mod retries;
mod states;

use common::Rig;
use engine::fabric::{Batch, Event, Fabric as _, Lane, Op, Plan, QpState, Run, Status};
use engine::id::WrId;
use std::sync::Arc;

const FLUSH: Option<Status> = Some(Status::WrFlush);

fn state(rig: &Rig, side: usize) -> QpState {
    let end = rig.pair.ends[side];
    rig.pair.fabrics.host_ref(end.host).qp_state(end.qp).unwrap()
}

fn events(rig: &mut Rig, side: usize) -> Vec<Event> {
    rig.pair.call(side, |f| std::iter::from_fn(|| f.next_event()).collect())
}

/// 256 bytes from offset 0, in requests of 64.
fn plan(requests: u32) -> Arc<Plan> {
    let run = Run { count: requests, local_step: 64, remote_step: 64, ..Run::piece(0, 0, 64) };
    Arc::new(Plan::new(Arc::new([Lane { local: 0, remote: 0 }]), vec![run]).unwrap())
}

fn batch<'a>(rig: &Rig, plan: &'a Arc<Plan>) -> Batch<'a> {
    Batch {
        plan,
        first: WrId(100),
        op: Op::Write,
        local: (rig.mrs[0].addr, rig.mrs[0].lkey),
        remote: (rig.mrs[1].addr, rig.mrs[1].rkey),
        window: 0..plan.requests(),
        signal_every: 0,
        signal_last: true,
        last: None,
    }
}
