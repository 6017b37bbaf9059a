//! What prefill and decode instances have in common: configuration, memory, and getting to know peers.

use super::compute::Compute;
use super::{Reason, Request};
use crate::fabric::{Access, Error, Fabric, Memory};
use crate::id::InstanceId;
use crate::map::Map;
use crate::policy::{Admission, Direction};
use crate::registry::{Client, Facts, Message, SessionConfig};
use crate::transfer::{InstanceMemory, Pairing, PairingError, TransferConfig};
use models::{DType, Layout, LayoutError, Model, PageOrder, Parallel};
use std::sync::Arc;

/// An instance: one model replica of `parallel.tp * parallel.pp` ranks on one host.
#[derive(Clone, Debug)]
pub struct InstanceConfig {
    /// The model.
    pub model: Model,
    /// How its KV is stored.
    pub dtype: DType,
    /// Its ranks.
    pub parallel: Parallel,
    /// Tokens of a page.
    pub page_size: u32,
    /// Order within a page.
    pub order: PageOrder,
    /// Pages in each rank's pools, the padding page included.
    pub pages: u32,
    /// Whether pages are given out scattered, as after long use.
    pub scatter: bool,
    /// What KV pools are made of.
    pub memory: Memory,
    /// The transfer engine.
    pub transfer: TransferConfig,
    /// The control channel.
    pub session: SessionConfig,
    /// Life of the node, see [`Client::new`].
    pub life: u32,
    /// Prefill: tokens of a step. Decode: requests in transfer and in the batch.
    pub batch: u32,
    /// Prefill: whether blocks are kept for later requests.
    pub prefix_cache: bool,
    /// Decode: when pages for generated tokens are taken.
    pub admission: Admission,
    /// Decode: requests that may wait for pages; one that comes when so many wait is refused.
    pub most_waiting: Option<u32>,
    /// Prefill: whether it tells the router of deliveries.
    pub tell_deliveries: bool,
    /// Peers that it may be linked to at a time: completion queues are made for so many.
    pub peers: u32,
}

/// Why an instance cannot start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// Its layout is impossible.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The fabric refused.
    #[error("{what}: {why}")]
    Fabric {
        /// What was asked.
        what: &'static str,
        /// Its answer.
        why: Error,
    },
    /// A device that cannot send an aux row inline.
    #[error("the device sends {0} bytes inline, at least {min} are needed", min = crate::transfer::AUX_BYTES)]
    Inline(u32),
    /// Staging, which needs a side that writes.
    #[error("staging works with direction push only; use push, or coalescing direct")]
    StagedPull,
}

impl InstanceConfig {
    /// Its memory, registered.
    pub(super) fn memory(
        &self,
        fabric: &mut dyn Fabric,
        access: Access,
    ) -> Result<InstanceMemory, StartError> {
        let inline = fabric.limits().max_inline;
        if self.transfer.direction == Direction::Push && u64::from(inline) < crate::transfer::AUX_BYTES {
            return Err(StartError::Inline(inline));
        }
        let layout = Layout::new(&self.model, self.dtype, self.parallel, self.page_size, self.order)?;
        let t = &self.transfer;
        let staging = t.coalescing.staging();
        if staging.is_some() && t.direction == Direction::Pull {
            return Err(StartError::StagedPull);
        }
        let slots = (t.slots, staging);
        InstanceMemory::new(fabric, layout, self.memory, self.pages, slots, (t.rails, &t.reach), access)
            .map_err(|why| StartError::Fabric { what: "KV pools", why })
    }
    /// What it registers with. An instance of the other direction has another fingerprint, so that the registry refuses it.
    pub(super) fn facts(&self, memory: &InstanceMemory) -> Facts {
        let mut facts = memory.facts();
        facts.fingerprint ^= match self.transfer.direction {
            Direction::Push => 0,
            Direction::Pull => u64::from_le_bytes(*b"pull\0\0\0\0"),
        };
        if self.transfer.checksums {
            facts.fingerprint ^= u64::from_le_bytes(*b"checksum");
        }
        if let ([first, .., last], false) = (&mut facts.ranks[..], self.transfer.rules.ranks_once) {
            last.clone_from(first);
        }
        facts
    }
    /// Decode: pages to let a request in.
    pub(super) fn pages_needed(&self, request: &Request) -> u32 {
        match self.admission {
            Admission::Reserve => self.most_pages(request),
            Admission::OnDemand => request.prompt.div_ceil(self.page_size),
        }
    }
    /// Decode: pages of a request at its end. The last token's KV is never written.
    pub(super) fn most_pages(&self, request: &Request) -> u32 {
        request.prompt.saturating_add(request.output.saturating_sub(1)).div_ceil(self.page_size)
    }
    /// Queue pairs to so many peers as it may have.
    pub(super) fn queue_pairs(&self) -> u32 {
        let ranks = self.parallel.tp * self.parallel.pp;
        self.peers
            .max(1)
            .saturating_mul(ranks)
            .saturating_mul(u32::from(self.transfer.rails))
            .saturating_mul(2)
    }
}

/// Facts of peers: asked for once, kept by instance id.
#[derive(Debug, Default)]
pub(super) struct Peers {
    asked: Map<InstanceId, ()>,
    /// Only where [`crate::transfer::Rules::facts_of_instance`] is off: facts by instance, and those of one that went.
    known: Map<InstanceId, Facts>,
    went: Option<Facts>,
}

impl Peers {
    /// Asks the registry about a peer unless that was done.
    pub(super) fn ask(&mut self, client: &mut Client, peer: InstanceId) {
        if self.asked.insert(peer, ()).is_none() {
            client.send(&Message::Query { instance: peer });
        }
    }
    /// The peer is gone.
    pub(super) fn forget(&mut self, peer: InstanceId) {
        self.asked.remove(&peer);
        if let Some(facts) = self.known.remove(&peer) {
            self.went = Some(facts);
        }
    }
    /// What is taken for the facts of a peer: these, unless the rules let it inherit another one's.
    pub(super) fn facts(&mut self, config: &InstanceConfig, peer: InstanceId, facts: Facts) -> Facts {
        if config.transfer.rules.facts_of_instance {
            return facts;
        }
        let facts = self.went.take().unwrap_or(facts);
        self.known.insert(peer, facts.clone());
        facts
    }
    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.asked.clear();
    }
}

/// The pairing of prefill's and decode's facts.
pub(super) fn pair(config: &InstanceConfig, src: &Facts, dst: &Facts) -> Result<Arc<Pairing>, PairingError> {
    let t = &config.transfer;
    let pairing = Pairing::new(&config.model, config.dtype, src, dst, t.replica, t.rails, &t.reach)?;
    let pairing = pairing.under(&t.rules, &config.model, src);
    Ok(Arc::new(match t.direction {
        Direction::Push => pairing,
        Direction::Pull => pairing.reversed(),
    }))
}

/// Why rooms with a peer fail that cannot be paired with.
pub(super) fn unpaired(error: &PairingError) -> Reason {
    match error {
        PairingError::Unreachable(..) => Reason::Connection,
        _ => Reason::Layout,
    }
}

/// A compute profile, shared by nothing.
pub(super) type BoxedCompute = Box<dyn Compute>;
