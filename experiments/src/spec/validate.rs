//! What one key alone cannot tell: parts of an experiment that must fit each other.

use std::path::Path;

use ::engine::transfer::Rules;
use models::{ByteSize, Layout, Model, Picos, Relation, config, presets};

use super::engine::AUTO;
use super::locate::Segment;
use super::workload::Length;
use super::{
    Direction, Granularity, MemorySpec, PortReach, Rails, Replica, SideSpec, Spec, TopologySpec, is_path,
    nearest,
};
use crate::compute::{self, Profile};
use crate::workload::{BLOCK_TOKENS, MAX_ARRIVAL_PS};
use crate::{nic, report};

/// The most real memory that a simulated cluster may have.
const MAX_REAL_MEMORY: ByteSize = ByteSize(16 << 30);

/// The key that is wrong, and what is wrong with it.
type Problem = (Vec<Segment>, String);

fn at(path: &str) -> Vec<Segment> {
    path.split('.').map(|s| s.parse().map_or_else(|_| Segment::Key(s.to_owned()), Segment::Index)).collect()
}

fn wrong<T>(path: &str, problem: impl std::fmt::Display) -> Result<T, Problem> {
    Err((at(path), problem.to_string()))
}

/// A model by preset name or by the path of its `config.json`.
pub(super) fn model(name: &str) -> Result<Model, String> {
    if is_path(name) && presets::lookup(name).is_err() {
        let text = std::fs::read_to_string(Path::new(name))
            .map_err(|error| format!("{name}: cannot read the model's config.json: {error}"))?;
        return config::from_json(name, &text).map_err(|error| error.to_string());
    }
    presets::lookup(name).map_err(|_| {
        let meant = nearest(name, presets::names()).map(|near| format!("; did you mean `{near}`?"));
        let names: Vec<&str> = presets::names().collect();
        format!(
            "unknown model `{name}`{} (expected one of {} or the path of a config.json)",
            meant.unwrap_or_default(),
            names.join(", ")
        )
    })
}

impl Spec {
    /// What real devices would pass over in silence: the key, and what to do. `cluster` and the times of `control` say what the simulation
    /// beside a measured run is like.
    pub(super) fn simulated_only(&self) -> Option<Problem> {
        if let count @ 1.. = self.faults.len() {
            let faults = if count == 1 { "1 fault" } else { &format!("{count} faults") };
            return Some((
                at("faults"),
                format!(
                    "{faults}, which only the simulator makes; for real devices remove them (--set faults=[]), or run with --fabric sim"
                ),
            ));
        }
        if self.invariants != super::Invariants::None {
            return Some((
                at("invariants"),
                "only a simulated run can be looked at after every event; for real devices remove the key (--set invariants=none), or \
                 run with --fabric sim"
                    .to_owned(),
            ));
        }
        let c = &self.control;
        let disturbed = [("loss", c.loss), ("duplicate", c.duplicate), ("reorder", c.reorder)]
            .into_iter()
            .find(|(_, p)| *p > 0.0);
        disturbed.map(|(key, p)| {
            let path = format!("control.{key}");
            let problem = format!(
                "{p}, but only the simulator disturbs messages; for real devices remove the key (--set {path}=0), or run with --fabric sim"
            );
            (at(&path), problem)
        })
    }

    /// Checks what crosses keys.
    pub(super) fn validate(&self) -> Result<(), Problem> {
        if self.seed.is_some() && self.seeds.is_some() {
            return wrong("seeds", "both `seed` and `seeds` are given; keep one of them");
        }
        if self.seeds.as_ref().is_some_and(Vec::is_empty) {
            return wrong("seeds", "the list is empty; expected at least one whole number");
        }
        let model = self.model().or_else(|problem| wrong("model", problem))?;
        self.layouts(&model)?;
        self.topology()?;
        self.nic()?;
        self.timers()?;
        if self.compute.profile == AUTO {
            let names: Vec<_> = compute::names().collect();
            let names = names.join(", ");
            return wrong(
                "compute.profile",
                format!(
                    "auto has no profile for model `{}`; expected one of {names} or the path of a YAML file",
                    self.model
                ),
            );
        }
        Profile::load(&self.compute.profile).or_else(|error| wrong("compute.profile", error))?;
        self.lengths()?;
        self.requests()?;
        self.rules()?;
        if let Some((path, problem)) = self.fault_problem() {
            return wrong(&path, problem);
        }
        if let Some((key, problem)) = super::routing::problem(self) {
            return wrong(&format!("policy.{key}"), problem);
        }
        if let Some((key, problem)) = self.verbs.problem() {
            return wrong(&format!("verbs.{key}"), problem);
        }
        if let Some(name) = &self.verbs.simulate_as {
            nic::load(name).or_else(|error| wrong("verbs.simulate_as", error))?;
        }
        for path in self.expect.keys() {
            if let Err(problem) = report::value_path(path) {
                return Err((vec![Segment::Key("expect".to_owned()), Segment::Key(path.clone())], problem));
            }
        }
        Ok(())
    }

    /// The KV layouts of both sides exist, fit each other, and memory holds at least one page.
    fn layouts(&self, model: &Model) -> Result<(), Problem> {
        model.validate(self.dtype).or_else(|error| wrong("dtype", error))?;
        let mut layouts = Vec::new();
        for (name, side) in [("prefill", &self.cluster.prefill), ("decode", &self.cluster.decode)] {
            let layout =
                side.layout(model, self.dtype).or_else(|error| wrong(&format!("cluster.{name}"), error))?;
            if side.pages(&layout) == 0 {
                let page = layout.ranks().iter().map(models::RankLayout::bytes_per_page).max().unwrap_or(0);
                return wrong(
                    &format!("cluster.{name}.memory"),
                    format!("no page fits: a page of {} tokens has {page} bytes on a GPU", side.page_size),
                );
            }
            layouts.push(layout);
        }
        let (Some(decode), Some(prefill)) = (layouts.pop(), layouts.pop()) else {
            return wrong("cluster", "expected prefill and decode");
        };
        let relation = Relation::new(&prefill, &decode).or_else(|error| wrong("cluster", error))?;
        self.credits(&relation)?;
        self.staging(&relation, model)?;
        self.links(&relation)?;
        self.real_memory(&[(&self.cluster.prefill, &prefill), (&self.cluster.decode, &decode)])
    }

    /// Memory of real bytes is this machine's: a cluster of it must fit.
    fn real_memory(&self, sides: &[(&SideSpec, &Layout)]) -> Result<(), Problem> {
        let size = |(side, layout): &(&SideSpec, &Layout)| {
            let group: u128 = layout.ranks().iter().map(|rank| u128::from(rank.bytes_per_page())).sum();
            let staging = self.policy.coalescing.staging().map_or(0, |staging| {
                let ranks = u128::from(side.parallel().group_size());
                u128::from(staging.slot.0) * u128::from(staging.slots) * ranks
            });
            let pages = group * u128::from(side.pages(layout)) + staging;
            pages * u128::from(side.dp) * u128::from(side.instances)
        };
        let bytes: u128 = sides.iter().map(size).sum();
        if self.cluster.memory == MemorySpec::Bytes && bytes > u128::from(MAX_REAL_MEMORY.0) {
            return wrong(
                "cluster.memory",
                format!(
                    "bytes would take {bytes} bytes of this machine's memory, at most {MAX_REAL_MEMORY} are allowed; \
                     use phantom, or less `memory` per GPU"
                ),
            );
        }
        Ok(())
    }

    /// Staging slots hold at least a token of a layer, and there is one for each sender of a decode rank.
    fn staging(&self, relation: &Relation, model: &Model) -> Result<(), Problem> {
        let ranks = 0..relation.dst_ranks();
        let senders = ranks.clone().map(|rank| self.senders(relation, rank)).max().unwrap_or(1);
        let feeds = ranks.flat_map(|rank| relation.feeds(rank));
        let token = feeds
            .map(|feed| {
                let layers = feed.groups.first().map_or(1, |group| match model.attention {
                    models::Attention::Gqa { .. } => group.lanes.len() / 2,
                    models::Attention::Mla { .. } => group.lanes.len(),
                });
                feed.bytes_per_token() / layers.max(1) as u64
            })
            .max();
        let pull = self.policy.direction == Direction::Pull;
        match self.policy.coalescing.problem(pull, senders as u64, token.unwrap_or(0)) {
            Some((key, problem)) => wrong(&format!("policy.coalescing{key}"), problem),
            None => Ok(()),
        }
    }

    /// In push decode posts as many receives as the parts that a request may have, before it publishes pages: more than a receive queue holds
    /// would never be posted, and no request would ever start.
    fn credits(&self, relation: &Relation) -> Result<(), Problem> {
        if self.policy.direction == Direction::Pull {
            return Ok(());
        }
        let ranks = 0..relation.dst_ranks();
        let feeds = ranks.clone().map(|rank| self.senders(relation, rank)).max().unwrap_or(1);
        let feeds = match self.policy.rails {
            Rails::Pinned | Rails::Striped => feeds,
            // Every port may get the parts of all ranks.
            Rails::RoundRobin | Rails::Hash | Rails::LeastInflight(_) => {
                ranks.map(|rank| self.senders(relation, rank)).sum()
            }
        };
        let parts = match self.policy.granularity {
            Granularity::Request => 1,
            Granularity::Chunk | Granularity::LayerWise { .. } => self.transfer.parts,
        };
        let needed = feeds as u64 * u64::from(parts);
        if needed > u64::from(self.transfer.receive_depth) {
            return wrong(
                "transfer.receive_depth",
                format!(
                    "{} receives are too few: a request may need {needed} on a decode rank ({feeds} senders, transfer.parts {parts})",
                    self.transfer.receive_depth
                ),
            );
        }
        Ok(())
    }

    /// Ranks that send to a decode rank.
    fn senders(&self, relation: &Relation, rank: u32) -> usize {
        let copies = |feed: &models::Feed| match self.policy.replica {
            Replica::Striped => feed.sources.len(),
            Replica::ByDestination | Replica::Fixed { .. } => 1,
        };
        relation.feeds(rank).iter().map(copies).sum()
    }

    /// Two instances can have all queue pairs that they need of each other, and some ports to have them on.
    fn links(&self, relation: &Relation) -> Result<(), Problem> {
        let feeds: usize = (0..relation.dst_ranks()).map(|rank| self.senders(relation, rank)).sum();
        let groups = u64::from(self.cluster.prefill.dp) * u64::from(self.cluster.decode.dp);
        let needed = feeds as u64 * groups * u64::from(self.transfer.queue_pairs);
        if needed > u64::from(self.transfer.max_queue_pairs) {
            return wrong(
                "transfer.max_queue_pairs",
                format!(
                    "{} are too few: a prefill and a decode instance need {needed} between them",
                    self.transfer.max_queue_pairs
                ),
            );
        }
        if let PortReach::Pairs(pairs) = &self.transfer.reach {
            let (prefill, decode) = (self.ports(&self.cluster.prefill), self.ports(&self.cluster.decode));
            let there = |(a, b): &(u32, u32)| *a < prefill && *b < decode;
            if !pairs.iter().any(there) {
                return wrong(
                    "transfer.reach.pairs",
                    format!(
                        "none of these joins two ports that there are: a prefill host has ports 0 to {}, a decode host 0 to {}",
                        prefill.saturating_sub(1),
                        decode.saturating_sub(1)
                    ),
                );
            }
        }
        Ok(())
    }

    /// The NIC is known, and can do what the queue pairs are to do.
    fn nic(&self) -> Result<(), Problem> {
        let nic = nic::load(&self.cluster.nic).or_else(|error| wrong("cluster.nic", error))?;
        for (key, value, most) in [
            ("transfer.send_depth", self.transfer.send_depth, nic.max_qp_wr),
            ("transfer.max_sge", self.transfer.max_sge, nic.max_sge),
            ("transfer.max_rd_atomic", self.transfer.max_rd_atomic.into(), nic.max_rd_atomic.into()),
        ] {
            if value > most {
                return wrong(key, format!("{value} is more than the {most} of {}", nic.name));
            }
        }
        if self.transfer.send_depth < 2 {
            return wrong(
                "transfer.send_depth",
                "1 is too few: expected at least 2, a seal and the immediate after it",
            );
        }
        if self.cluster.link.is_some_and(|link| link.bits_per_sec() == 0) {
            return wrong("cluster.link", "0 moves nothing; expected a rate such as 400Gb/s");
        }
        if self.policy.window.bytes.0 == 0 {
            return wrong(
                "policy.window.bytes",
                "0 lets nothing be posted; expected at least 1B, for example 64MiB",
            );
        }
        let rails = &self.policy.rails;
        if *rails != Rails::Pinned && self.transfer.queue_pairs < 2 {
            return wrong(
                "policy.rails",
                format!(
                    "{} over transfer.queue_pairs 1 is the same as pinned; set transfer.queue_pairs to 2 or more, or rails to pinned",
                    rails.name()
                ),
            );
        }
        if let Some((key, problem)) = self.policy.order.problem(self.slo.ttft) {
            return wrong(&format!("policy.order.{key}"), problem);
        }
        if let Some(problem) = self.policy.failover.problem() {
            return wrong("policy.failover", problem);
        }
        Ok(())
    }

    /// Timers that would fire at once, for ever or before a message can come back.
    fn timers(&self) -> Result<(), Problem> {
        const MS: u64 = 1_000_000_000;
        let t = &self.transfer;
        for (key, value, least) in [
            ("transfer.lease", t.lease, 10 * MS),
            ("transfer.retransmit", t.retransmit, MS / 10),
            ("transfer.room_timeout", t.room_timeout, MS),
            ("transfer.transfer_timeout", t.transfer_timeout, MS / 1000),
        ] {
            if value.0 < least {
                return wrong(key, format!("{value} is too short; expected at least {}", Picos(least)));
            }
        }
        Ok(())
    }

    fn topology(&self) -> Result<(), Problem> {
        let here = "cluster.topology.leaf-spine";
        if let TopologySpec::LeafSpine { spines, oversubscription, .. } = self.cluster.topology {
            match (spines, oversubscription) {
                (Some(0), _) => return wrong(here, "spines is 0, expected at least 1"),
                (None, Some(ratio)) if !(0.01..=1000.0).contains(&ratio) => {
                    return wrong(here, format!("oversubscription is {ratio}, expected 0.01 to 1000"));
                }
                (Some(_), None) | (None, Some(_)) => {}
                _ => return wrong(here, "expected one of `spines` and `oversubscription`"),
            }
        }
        Ok(())
    }

    /// Requests of the list come in their order, and their blocks are blocks of them.
    fn requests(&self) -> Result<(), Problem> {
        let mut before = Picos(0);
        for (i, request) in self.workload.requests.iter().enumerate() {
            let here = |key: &str| format!("workload.requests.{i}.{key}");
            if request.at < before || request.at.0 > MAX_ARRIVAL_PS {
                let most = Picos(MAX_ARRIVAL_PS);
                return wrong(
                    &here("at"),
                    format!("{} is out of order, expected {before} to {most}", request.at),
                );
            }
            before = request.at;
            let blocks = request.prompt.div_ceil(BLOCK_TOKENS) as usize;
            if request.blocks.len() > blocks {
                return wrong(
                    &here("blocks"),
                    format!(
                        "{} of them, expected at most {blocks}: one for each started {BLOCK_TOKENS} tokens of the prompt",
                        request.blocks.len()
                    ),
                );
            }
        }
        Ok(())
    }

    /// Rules that are switched off are rules.
    fn rules(&self) -> Result<(), Problem> {
        for (i, name) in self.transfer.without.iter().enumerate() {
            if Rules::by_name(name).is_none() {
                let meant = nearest(name, Rules::NAMES.iter().copied());
                let meant = meant.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
                return wrong(
                    &format!("transfer.without.{i}"),
                    format!("there is no rule `{name}`{meant} (there are {})", Rules::NAMES.join(", ")),
                );
            }
        }
        Ok(())
    }

    fn lengths(&self) -> Result<(), Problem> {
        if self.workload.tenants.is_some()
            && self.workload.path.is_none()
            && !self.workload.requests.is_empty()
        {
            return wrong(
                "workload.tenants",
                "workload.requests says whose each request is; keep one of them",
            );
        }
        let Some(synthetic) = &self.workload.synthetic else { return Ok(()) };
        if self.workload.tenants.is_some() && synthetic.tenants > 1 && self.workload.path.is_none() {
            return wrong(
                "workload.tenants",
                format!(
                    "workload.synthetic.tenants {} says who sends the requests too; keep one of them",
                    synthetic.tenants
                ),
            );
        }
        for (name, length) in [("prompt", &synthetic.prompt), ("output", &synthetic.output)] {
            if let Length::Uniform { min, max } | Length::Lognormal { min, max, .. } = length
                && min > max
            {
                return wrong(
                    &format!("workload.synthetic.{name}"),
                    format!("min {min} is above max {max}; exchange them"),
                );
            }
        }
        Ok(())
    }

    /// NIC ports of an instance: its share of a host's, or all of them where rails use the neighbours'.
    #[must_use]
    pub fn ports(&self, side: &SideSpec) -> u32 {
        let ranks = side.parallel().world();
        let (gpus, nics) = (self.cluster.gpus_per_host, self.cluster.nics_per_host);
        match self.policy.rails {
            Rails::Striped | Rails::RoundRobin | Rails::Hash | Rails::LeastInflight(_) => {
                ranks.div_ceil(gpus).max(1).saturating_mul(nics)
            }
            Rails::Pinned => {
                let share = (u64::from(ranks) * u64::from(nics)).div_ceil(u64::from(gpus).max(1));
                u32::try_from(share).unwrap_or(u32::MAX).max(1)
            }
        }
    }

    /// Hosts of the cluster: each instance has its own.
    #[must_use]
    pub fn hosts(&self) -> u32 {
        [&self.cluster.prefill, &self.cluster.decode]
            .iter()
            .map(|side| {
                side.instances.saturating_mul(side.parallel().world().div_ceil(self.cluster.gpus_per_host))
            })
            .fold(0, u32::saturating_add)
    }
}
