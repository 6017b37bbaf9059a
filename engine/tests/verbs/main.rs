//! The contract of [`engine::fabric::Fabric`] on real devices: Soft-RoCE's rxe0 (which loops back), and rxeA with rxeB. Without them
//! the tests are skipped, unless `KVRAIL_VERBS=required` is set. Statuses are those of Soft-RoCE in Linux 6.1 where it departs from the
//! specification, whose word stands beside them.

mod data;
mod devices;
mod errors;
mod fences;
mod objects;
mod queues;
mod rig;
mod states;

use engine::fabric::{Batch, Lane, Op, Plan, Run, Status};
use engine::id::WrId;
use std::sync::Arc;

const FLUSH: Option<Status> = Some(Status::WrFlush);

fn batch_of<'a>(plan: &'a Arc<Plan>, local: &engine::fabric::Mr, remote: &engine::fabric::Mr) -> Batch<'a> {
    Batch {
        plan,
        first: WrId(100),
        op: Op::Write,
        local: (local.addr, local.lkey),
        remote: (remote.addr, remote.rkey),
        window: 0..plan.requests(),
        signal_every: 0,
        signal_last: true,
        last: None,
    }
}

/// 64 bytes each, one after the other.
fn plan(requests: u32) -> Arc<Plan> {
    let run = Run { count: requests, local_step: 64, remote_step: 64, ..Run::piece(0, 0, 64) };
    Arc::new(Plan::new(Arc::new([Lane { local: 0, remote: 0 }]), vec![run]).unwrap())
}
