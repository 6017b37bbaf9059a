//! From a seed to an experiment: every choice that a case has, a line or a table row each.

mod faults;
mod load;

use models::{Bandwidth, ByteSize, DType, PageOrder, Picos};

use sim::fabric::CopyCosts;

use super::Dice;
use crate::spec::{
    Admission, AutoSpec, BatchSpec, Capacity, ClusterSpec, Coalescing, ComputeSpec, ControlSpec, Deadline,
    Direction, Failover, Granularity, Invariants, LeastInflight, LimitsSpec, MemorySpec, Order, Pages,
    PolicySpec, PortReach, Priorities, Rails, Replica, RetrySpec, Routing, Shares, SideSpec, Spec,
    StagingSpec, TenantSpec, TopologySpec, TransferSpec, WindowSpec,
};
pub use faults::KINDS;

/// Draws until an experiment is possible; most are.
const TRIES: u32 = 1000;

/// The case of a seed.
#[must_use]
pub fn case(seed: u64) -> Spec {
    let mut dice = Dice::new(seed);
    let mut last = Spec::default();
    for _ in 0..TRIES {
        last = drawn(&mut dice, seed);
        if last.problem().is_none() {
            break;
        }
    }
    last
}

const fn us(us: u64) -> Picos {
    Picos(us * 1_000_000)
}

const fn ms(ms: u64) -> Picos {
    us(ms * 1000)
}

/// What goes wrong in a case.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weather {
    /// Nothing: the laws of runs without faults hold.
    Calm,
    /// Timers are short for the load; nothing else.
    Short,
    /// Faults.
    Rough,
    /// Many short faults.
    Storm,
}

fn drawn(dice: &mut Dice, seed: u64) -> Spec {
    let weather = dice.pick(&[
        Weather::Calm,
        Weather::Short,
        Weather::Rough,
        Weather::Rough,
        Weather::Rough,
        Weather::Storm,
        Weather::Storm,
        Weather::Storm,
        Weather::Storm,
        Weather::Storm,
    ]);
    let model = dice.pick(&["tiny-gqa", "tiny-gqa-2", "tiny-mla", "tiny-mla-index"]);
    let rough = weather == Weather::Rough || weather == Weather::Storm;
    let mut spec = Spec {
        name: format!("seed-{seed}"),
        seed: Some(seed),
        model: model.to_owned(),
        dtype: dice.pick(&[DType::Bf16, DType::Bf16, DType::Fp16, DType::Fp8]),
        control: control(dice, rough),
        transfer: transfer(dice, weather),
        policy: policy(dice),
        compute: ComputeSpec { profile: "tiny".to_owned(), scale: dice.pick(&[0.02, 0.1, 0.3]) },
        batch: BatchSpec {
            prefill_tokens: dice.pick(&[32, 64, 256, 1024]),
            decode_requests: dice.pick(&[2, 8, 32]),
            prefix_cache: dice.percent(40),
        },
        invariants: if weather == Weather::Calm { Invariants::FaultFree } else { Invariants::Always },
        ..Spec::default()
    };
    spec.workload.requests = load::requests(dice);
    spec.cluster = cluster(dice, model, &spec);
    if weather == Weather::Storm {
        stormy(dice, &mut spec);
    }
    load::lighten(&mut spec);
    if rough {
        spec.faults = faults::faults(dice, &spec, weather == Weather::Storm);
    }
    spec
}

/// What a storm meets: transfers that take long and are given up in their middle, or long generations.
fn stormy(dice: &mut Dice, spec: &mut Spec) {
    if dice.percent(60) {
        let slow = [30_000_000, 100_000_000];
        spec.cluster.link = Some(Bandwidth::from_bits_per_sec(dice.pick(&slow)));
        spec.policy.window = WindowSpec { bytes: ByteSize(64 << 20), requests: 8192 };
        spec.transfer.room_timeout = dice.pick(&[ms(20), ms(100)]);
        spec.transfer.transfer_timeout = dice.pick(&[ms(3), ms(10)]);
        spec.transfer.drain_timeout = dice.pick(&[ms(10), ms(50)]);
        spec.transfer.ack_timeout = dice.pick(&[10, 12]);
    } else {
        spec.compute.scale = 1.0;
        spec.transfer.room_timeout = dice.pick(&[ms(400), ms(2000)]);
        spec.workload.requests.iter_mut().for_each(|request| request.output = request.output.max(10));
    }
}

fn cluster(dice: &mut Dice, model: &str, spec: &Spec) -> ClusterSpec {
    let longest =
        spec.workload.requests.iter().map(|request| request.prompt + request.output).max().unwrap_or(1);
    let (prefill, decode) = (side(dice, model, longest), side(dice, model, longest));
    ClusterSpec {
        prefill,
        decode,
        gpus_per_host: 8,
        nics_per_host: dice.pick(&[1, 2, 4, 8]),
        nic: dice.pick(&["ideal", "ideal", "connectx-7-400g", "connectx-6-200g", "soft-roce"]).to_owned(),
        link: dice.pick(&[
            None,
            // Slow ones, so that faults meet transfers.
            Some(Bandwidth::from_bits_per_sec(30_000_000)),
            Some(Bandwidth::from_bits_per_sec(100_000_000)),
            Some(Bandwidth::from_bits_per_sec(100_000_000)),
            Some(Bandwidth::from_bits_per_sec(300_000_000)),
            Some(Bandwidth::from_bits_per_sec(1_000_000_000)),
        ]),
        topology: dice.pick(&[
            TopologySpec::Star { latency: us(1) },
            TopologySpec::Star { latency: us(30) },
            TopologySpec::Direct,
            TopologySpec::LeafSpine { leaves: 2, spines: Some(1), oversubscription: None, latency: us(1) },
        ]),
        memory: dice.pick(&[MemorySpec::Bytes, MemorySpec::Phantom, MemorySpec::Phantom]),
        gpu_copy: CopyCosts::default(),
    }
}

fn side(dice: &mut Dice, model: &str, longest: u32) -> SideSpec {
    let gqa = model.starts_with("tiny-gqa");
    // GQA: attention TP and KV heads divide one another.
    let mut tp = dice.pick(if gqa { &[1, 1, 2, 2, 4, 8, 16][..] } else { &[1, 1, 2, 3, 4, 8] });
    let mut pp = dice.pick(&[1, 1, 1, 2, 3]);
    let dp = dice.pick(&[1, 1, 1, 2, 4]);
    // Ranks make a case slow and little else.
    if tp * pp > 8 && dice.percent(80) {
        (tp, pp) = (tp.min(4), 1);
    }
    let dp = if u32::is_multiple_of(tp, dp) { dp } else { 1 };
    let page_size = dice.pick(&[1, 3, 8, 16, 16, 32, 64]);
    let spare = dice.pick(&[0, 40, 400, 4000]);
    SideSpec {
        instances: dice.pick(&[1, 1, 2, 3]),
        tp,
        pp,
        dp,
        page_size,
        page_order: dice.pick(&[PageOrder::TokenMajor, PageOrder::HeadMajor]),
        memory: Capacity::Pages((longest + spare).div_ceil(page_size) + 1),
        scatter: dice.percent(50),
    }
}

fn control(dice: &mut Dice, rough: bool) -> ControlSpec {
    let lossy = rough && dice.percent(30);
    let share = |dice: &mut Dice| if lossy { dice.pick(&[0.0, 0.01, 0.05, 0.2]) } else { 0.0 };
    ControlSpec {
        latency: dice.pick(&[us(5), us(20), us(100)]),
        jitter: dice.pick(&[Picos(0), us(5), us(300)]),
        loss: share(dice),
        duplicate: share(dice),
        reorder: share(dice),
        ..ControlSpec::default()
    }
}

fn transfer(dice: &mut Dice, weather: Weather) -> TransferSpec {
    let base = TransferSpec {
        queue_pairs: dice.pick(&[1, 1, 2, 3]),
        reach: dice.pick(&[PortReach::Any, PortReach::Any, PortReach::SameRail]),
        send_depth: dice.pick(&[4, 37, 1024]),
        receive_depth: dice.pick(&[4096, 16_384]),
        max_sge: dice.pick(&[1, 2, 16]),
        signal_every: dice.pick(&[0, 1, 5]),
        max_rd_atomic: dice.pick(&[1, 4, 16]),
        parts: dice.pick(&[1, 2, 5, 16]),
        slots: dice.pick(&[1, 3, 16, 64]),
        checksums: dice.percent(20),
        ..TransferSpec::default()
    };
    if weather == Weather::Calm {
        // Long enough for any of the loads.
        return TransferSpec {
            drain_timeout: ms(2000),
            ack_delay: ms(2),
            retransmit: ms(10),
            lease: ms(2000),
            ..base
        };
    }
    TransferSpec {
        ack_timeout: dice.pick(&[6, 8, 10, 12]),
        retries: dice.pick(&[1, 3, 7]),
        rnr_retries: dice.pick(&[0, 3, 6]),
        min_rnr_timer: dice.pick(&[1, 8, 12]),
        reposts: dice.pick(&[0, 1, 3, 10]),
        room_timeout: dice.pick(&[ms(20), ms(100), ms(400), ms(2000)]),
        transfer_timeout: dice.pick(&[ms(5), ms(30), ms(200), ms(1000)]),
        drain_timeout: dice.pick(&[us(500), ms(3), ms(10), ms(50)]),
        ack_delay: dice.pick(&[us(200), ms(1)]),
        retransmit: dice.pick(&[ms(1), ms(3), ms(10)]),
        lease: dice.pick(&[ms(20), ms(60), ms(200)]),
        ..base
    }
}

fn policy(dice: &mut Dice) -> PolicySpec {
    // Only pushes stage, and their decode keeps rooms that have succeeded: there is more to meet.
    let direction =
        dice.pick(&[Direction::Push, Direction::Push, Direction::Push, Direction::Pull, Direction::Pull]);
    let coalescing = coalescing(dice);
    PolicySpec {
        routing: dice.pick(&[
            Routing::RoundRobin,
            Routing::LeastLoaded,
            Routing::PowerOfTwo,
            Routing::PrefixAware(Default::default()),
            Routing::NetworkAware(Default::default()),
        ]),
        direction,
        // Staging is for pushes.
        coalescing: if direction == Direction::Push { coalescing } else { Coalescing::Direct },
        order: dice.pick(&[
            Order::Fifo,
            Order::ShortestRemaining,
            Order::EarliestDeadline(Deadline { ttft: Some(ms(3)), ..Deadline::default() }),
            Order::DeficitRoundRobin(Shares { quantum: ByteSize(3000), weights: [(1, 3)].into() }),
            Order::StrictPriority(Priorities { tenants: [(1, 2), (2, 1)].into() }),
        ]),
        granularity: dice.pick(&[
            Granularity::Request,
            Granularity::Chunk,
            Granularity::LayerWise { layers: 1 },
            Granularity::LayerWise { layers: 2 },
        ]),
        rails: dice.pick(&[
            Rails::Pinned,
            Rails::Striped,
            Rails::RoundRobin,
            Rails::Hash,
            Rails::LeastInflight(LeastInflight::default()),
        ]),
        failover: dice.pick(&[
            Failover::Off,
            Failover::default(),
            Failover::Cooldown { first: ms(1), most: ms(20) },
        ]),
        replica: dice.pick(&[Replica::ByDestination, Replica::Fixed { copy: 0 }, Replica::Striped]),
        window: WindowSpec {
            bytes: dice.pick(&[ByteSize(1), ByteSize(3000), ByteSize(64 << 20)]),
            requests: dice.pick(&[1, 7, 8192]),
        },
        admission: dice.pick(&[
            Admission::Reserve,
            Admission::OnDemand,
            Admission::Reserve,
            Admission::OnDemand,
            Admission::Refuse { waiting: 1, pages: Pages::Reserve },
            Admission::Refuse { waiting: 10, pages: Pages::OnDemand },
        ]),
        limits: limits(dice),
        retry: retry(dice),
    }
}

/// Small slots, so that requests need several and use them again: from a few tokens of a layer, where every part is larger than half of the
/// ring, to more than a request.
fn coalescing(dice: &mut Dice) -> Coalescing {
    let slot = ByteSize(dice.pick(&[512, 4 << 10, 16 << 10, 256 << 10]));
    let (slots, window) = (dice.pick(&[1, 2, 5, 16, 64]), dice.pick(&[1, 2, 4]));
    let auto = AutoSpec { slot, slots, window, ..AutoSpec::default() };
    dice.pick(&[
        Coalescing::Direct,
        Coalescing::Direct,
        Coalescing::Staging(StagingSpec { slot, slots, window }),
        Coalescing::Staging(StagingSpec { slot, slots, window }),
        // Where a copy costs about as much as some requests, pieces of one room go both ways.
        Coalescing::Auto(AutoSpec { copy: us(1), request: us(1), ..auto.clone() }),
        Coalescing::Auto(auto),
    ])
}

/// What the router lets fly.
fn limits(dice: &mut Dice) -> LimitsSpec {
    if dice.percent(75) {
        return LimitsSpec::default();
    }
    let tenant = TenantSpec { requests: dice.pick(&[Some(1), Some(5), None]), tokens: Some(200) };
    LimitsSpec {
        requests: dice.pick(&[Some(2), Some(20)]),
        tenant: dice.pick(&[None, Some(tenant)]),
        waiting: dice.pick(&[None, None, Some(3), Some(30)]),
    }
}

/// Whether failed transfers are tried again.
fn retry(dice: &mut Dice) -> RetrySpec {
    if dice.percent(70) {
        return RetrySpec::default();
    }
    RetrySpec {
        attempts: dice.pick(&[1, 2, 4]),
        cooldown: dice.pick(&[Picos(0), us(500), ms(5)]),
        longest: dice.pick(&[ms(5), ms(50)]),
    }
}
