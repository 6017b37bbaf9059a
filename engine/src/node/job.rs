//! A request at decode, from its assignment until its pages are free.

use super::Request;
use crate::id::InstanceId;
use crate::transfer::PageTable;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not let in yet.
    Waiting,
    /// Its KV is on the way.
    Transfer,
    /// In the batch, or about to be.
    Running,
    /// Over; its pages are not free yet.
    Over,
}

/// What decode has of a request.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) peer: InstanceId,
    pub(super) group: u16,
    pub(super) table: PageTable,
    pub(super) phase: Phase,
    /// Batch step after which its first token of this batch is there, minus one.
    pub(super) joined: u64,
    /// Order of admission.
    pub(super) order: u64,
}

impl Job {
    /// Pages of the prompt.
    pub(super) fn prompt_table(&self, page_size: u32) -> PageTable {
        PageTable::new(self.table.slice(0, self.request.prompt.div_ceil(page_size)).collect())
    }
}

/// What changes. When it joined or was let in follows from the batch and the order of those in it.
impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { request, peer, group, table, phase, joined: _, order: _ } = self;
        (request.id, peer, group, table.runs(), phase).fmt(f)
    }
}
