//! Copies within a host's memory: what they cost, and what they do when they are over.

use super::host::{SimFabric, Todo};
use super::memory::{Block, Memory};
use super::{FabricEvent, Fabrics, Inner, LaneCache, Schedule};
use crate::nic::{Bandwidth, Duration};
use engine::fabric::{Error, Event, LocalCopy, Plan, Result};
use engine::id::{BufId, CopyId};
use engine::time::{Span, Time};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a copy within a host's memory costs. Copies of one GPU are done one after the other, those of several at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CopyCosts {
    /// CPU time to start one.
    pub submit: Duration,
    /// From its turn on the GPU until it moves bytes, and from its end until the CPU knows.
    pub launch: Duration,
    /// Bytes copied per second, whatever the size of the pieces; 0 for no limit.
    pub rate: Bandwidth,
}

impl Default for CopyCosts {
    /// An H100 SXM. Memory of 3.35 TB/s (NVIDIA's data sheet) is read and written: 1.67 TB/s of payload, of which large copies reach
    /// about 80 %. Rows of 128 bytes and more are whole cache lines. A kernel launch takes about 5 us from the call to its effect, 2 us of
    /// them on the CPU (NVIDIA's developer blog, "Getting Started with CUDA Graphs").
    ///
    /// Measured beside that, on an H100 80GB HBM3 in a virtual machine (CUDA 13, a kernel that gathers rows of 128 to 4,096 bytes): 1.29 to
    /// 1.33 TB/s of payload at 64 MiB, up to 1.41 at 1 GiB; 4 MiB take 5.8 to 6.1 us back to back, where this says 6.1. A call takes 4 us and
    /// the CPU knows of its end after 9.6 us, where this says 2 and 5: there `{submit: 4us, launch: 5600ns}` is nearer.
    fn default() -> Self {
        Self {
            submit: Duration(Span::us(2)),
            launch: Duration(Span::us(3)),
            rate: Bandwidth(1_340_000_000_000),
        }
    }
}

impl CopyCosts {
    /// Nothing costs anything.
    pub fn free() -> Self {
        Self { submit: Duration::default(), launch: Duration::default(), rate: Bandwidth(0) }
    }

    /// Time that a GPU is busy with so many bytes.
    pub fn span(&self, bytes: u64) -> Span {
        let moving = (u128::from(bytes) * 1_000_000_000_000).checked_div(self.rate.0.into()).unwrap_or(0);
        self.launch.0 + Span(u64::try_from(moving).unwrap_or(u64::MAX))
    }
}

/// A buffer and an offset in it.
type Place = (BufId, u64);

/// A copy under way.
#[derive(Debug)]
pub(super) struct Copying {
    /// None if its process died: nobody waits for it, and its memory is gone.
    id: Option<CopyId>,
    parts: Vec<(Arc<Plan>, Place, Place)>,
}

impl Copying {
    /// Whether a buffer is part of it.
    pub(super) fn names(&self, buf: BufId) -> bool {
        self.parts.iter().any(|(_, from, to)| from.0 == buf || to.0 == buf)
    }
}

impl SimFabric {
    pub(super) fn start_copy(&mut self, engine: u32, id: CopyId, parts: &[LocalCopy<'_>]) -> Result<()> {
        let mut bytes = 0;
        for part in parts {
            part.check(self.memory.len(part.from.0)?, self.memory.len(part.to.0)?)?;
            bytes += part.bytes();
        }
        let Some(engine) = self.copy_engine(engine) else {
            let right = "the number of a GPU, below 65536";
            return Err(Error::Invalid { what: "copy engine", value: engine.into(), right });
        };
        self.cpu = self.cpu + self.copy_costs.submit.0;
        let start = (self.now + self.cpu).max(self.copy_engines[engine]);
        let over = start + self.copy_costs.span(bytes);
        self.copy_engines[engine] = over;
        let parts = parts.iter().map(|part| (part.plan.clone(), part.from, part.to)).collect();
        let slot = match self.copying.iter().position(Option::is_none) {
            Some(slot) => slot,
            None => {
                self.copying.push(None);
                self.copying.len() - 1
            }
        };
        self.copying[slot] = Some(Copying { id: Some(id), parts });
        self.counters.copies += 1;
        self.counters.copied_bytes += bytes;
        self.todo.push(Todo::Copy { slot: slot as u32, over });
        Ok(())
    }

    /// The process died, and its copies with it.
    pub(super) fn abandon_copies(&mut self) {
        for copying in self.copying.iter_mut().flatten() {
            // What is due at their end finds them, and no copy of the next process.
            (copying.id, copying.parts) = (None, Vec::new());
        }
    }

    fn copy_engine(&mut self, engine: u32) -> Option<usize> {
        let at = usize::from(u16::try_from(engine).ok()?);
        if self.copy_engines.len() <= at {
            self.copy_engines.resize(at + 1, Time::ZERO);
        }
        Some(at)
    }
}

impl Fabrics {
    /// What copies cost on all hosts from now on.
    pub fn set_copy_costs(&mut self, costs: CopyCosts) {
        for host in &mut self.hosts {
            host.copy_costs = costs;
        }
    }

    pub(super) fn schedule_copy(&self, host: u32, slot: u32, over: Time, q: &mut impl Schedule) {
        q.at(over, FabricEvent(Inner::Copied { host, slot }));
    }

    /// A copy is over: the bytes move now.
    pub(super) fn copied(&mut self, host: u32, slot: u32, now: Time) {
        self.touch(host, now);
        let own = &mut self.hosts[host as usize];
        let Some(copying) = own.copying.get_mut(slot as usize).and_then(Option::take) else { return };
        for (plan, from, to) in &copying.parts {
            move_plan(&mut own.memory, plan, (from.0.0, from.1), (to.0.0, to.1), &mut self.lanes);
        }
        if let Some(id) = copying.id {
            own.push_event(Event::Copied(id));
        }
    }
}

/// Moves the pieces of a plan, whose ranges were checked, run by run over all lanes at once.
fn move_plan(memory: &mut Memory, plan: &Arc<Plan>, from: (u32, u64), to: (u32, u64), cache: &mut LaneCache) {
    for row in cache.rows_of(plan.lanes()) {
        for run in plan.runs() {
            let source =
                Block { at: from.1 + row.local + run.local, lane: row.local_step, step: run.local_step };
            let target =
                Block { at: to.1 + row.remote + run.remote, lane: row.remote_step, step: run.remote_step };
            memory.copy_within((from.0, source), (to.0, target), row.count, run.len.into(), run.count.into());
        }
    }
}
