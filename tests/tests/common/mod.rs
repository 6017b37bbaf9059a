//! Random scenarios.

use engine::id::{NodeId, PortId};
use engine::node::Request;
use engine::policy::{
    Coalescing, Granularity, LeastInflight, Limits, OrderPolicy, Priorities, RailPolicy, ReplicaChoice,
    Retry, RoutingPolicy, Shares, Slo, Staging, StagingCosts, Window,
};
use engine::time::Span;
use models::{Attention, DType, IndexK, Model};
use proptest::prelude::*;
use sim::kit::{Build, Kit, Side};
use sim::world::Fault;

/// Default number of cases; `PROPTEST_CASES` overrides it.
pub(crate) fn cases(n: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(n);
    ProptestConfig { cases, max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() }
}

/// One side.
#[derive(Clone, Debug)]
pub(crate) struct SideCase {
    pub instances: u32,
    pub tp: u32,
    pub pp: u32,
    pub dp: u32,
    pub page: u32,
    pub head_major: bool,
    pub scatter: bool,
    pub ports: u32,
    /// Tokens that its pools hold beyond the largest request.
    pub spare: u32,
    pub batch: u32,
}

/// A fault, at so many microseconds after the first request, `at` taken modulo what there is.
#[derive(Clone, Debug)]
pub(crate) enum FaultCase {
    QueuePair { us: u64, node: usize, index: usize },
    Link { us: u64, node: usize, port: u32, ms: u64 },
    Pause { us: u64, node: usize, ms: u64 },
}

/// A request after so many microseconds.
#[derive(Clone, Debug)]
pub(crate) struct RequestCase {
    pub after_us: u64,
    pub prompt: u32,
    pub output: u32,
    /// Prefix blocks: which conversation, if any.
    pub shares: Option<u64>,
}

/// What the router decides by.
#[derive(Clone, Debug)]
pub(crate) struct RouterCase {
    pub routing: u32,
    pub attempts: u32,
    pub cooldown_ms: u64,
    /// Requests in flight, of all and of a tenant.
    pub flying: Option<(u32, u32)>,
    /// Requests that may wait at decode.
    pub refuse: Option<u32>,
}

impl RouterCase {
    fn routing(&self) -> RoutingPolicy {
        match self.routing {
            0 => RoutingPolicy::RoundRobin,
            1 => RoutingPolicy::LeastLoaded,
            2 => RoutingPolicy::PowerOfTwo,
            3 => RoutingPolicy::PrefixAware { weight: 1.0, blocks: 3 },
            _ => RoutingPolicy::NetworkAware { gain: 0.5, forget: Span::ms(1) },
        }
    }
}

/// A scenario as numbers, so that it shrinks and prints.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub seed: u64,
    pub model: u32,
    pub fp8: bool,
    pub bytes: bool,
    pub pull: bool,
    pub prefill: SideCase,
    pub decode: SideCase,
    pub on_demand: bool,
    pub prefix_cache: bool,
    pub rails: u16,
    pub rail_policy: u32,
    pub replica: u32,
    pub granularity: u32,
    pub order: u32,
    pub router: RouterCase,
    pub window: (u64, u64, u32),
    pub send_depth: u32,
    pub max_sge: u16,
    pub slots: u32,
    pub parts_per_rail: u16,
    /// Staging: bytes of a slot, slots, window, and whether the planner chooses.
    pub staging: Option<(u64, u32, u32, bool)>,
    pub mbps: u64,
    /// Loss, duplication, reordering in thousandths; jitter in microseconds.
    pub control: (u32, u32, u32, u64),
    pub requests: Vec<RequestCase>,
    pub faults: Vec<FaultCase>,
}

fn model(kind: u32) -> Model {
    let mla = Attention::Mla { kv_lora_rank: 6, qk_rope_head_dim: 2 };
    let (layers, attention, index_k) = match kind {
        0 => (4, Attention::Gqa { kv_heads: 8, head_dim: 4 }, None),
        1 => (3, Attention::Gqa { kv_heads: 2, head_dim: 2 }, None),
        2 => (3, mla, None),
        _ => (4, mla, Some(IndexK { head_dim: 128 })),
    };
    Model { name: "random".to_owned(), layers, q_heads: 48, attention, context_len: 1 << 20, index_k }
}

impl Case {
    fn longest(&self) -> u32 {
        self.requests.iter().map(|r| r.prompt + r.output).max().unwrap_or(1)
    }

    fn side(&self, case: &SideCase, side: Side) -> Side {
        let tokens = self.longest() + case.spare;
        let mut side = side
            .instances(case.instances)
            .tp(case.tp)
            .pp(case.pp)
            .dp(case.dp)
            .page(case.page)
            .pages(tokens.div_ceil(case.page) + 1)
            .ports(case.ports)
            .batch(case.batch);
        if case.head_major {
            side = side.head_major();
        }
        if case.scatter {
            side = side.scatter();
        }
        side
    }

    pub(crate) fn build(&self) -> Build {
        let mut build = Kit::pair()
            .seed(self.seed)
            .model_of(model(self.model))
            .dtype(if self.fp8 { DType::Fp8 } else { DType::Bf16 })
            .network(self.mbps as f64 / 1e3, Span::us(1))
            .prefill(|side| self.side(&self.prefill, side))
            .decode(|side| self.side(&self.decode, side))
            .router(|r| {
                let RouterCase { attempts, cooldown_ms, flying, .. } = self.router;
                r.routing = self.router.routing();
                r.retry = Retry { attempts, cooldown: Span::ms(cooldown_ms), longest: Span::s(1) };
                let (requests, tenant_requests) = flying.unzip();
                r.limits = Limits { requests, tenant_requests, ..Limits::default() };
            })
            .control(|c| {
                let (loss, duplicate, reorder, jitter) = self.control;
                c.loss = f64::from(loss) / 1e3;
                c.duplicate = f64::from(duplicate) / 1e3;
                c.reorder = f64::from(reorder) / 1e3;
                c.jitter = Span::us(jitter);
            })
            .transfer(|t| {
                t.rails = self.rails;
                t.rail_policy = match self.rail_policy {
                    0 => RailPolicy::Pinned,
                    1 => RailPolicy::Striped,
                    2 => RailPolicy::RoundRobin,
                    3 => RailPolicy::Hash,
                    _ => RailPolicy::LeastInflight(LeastInflight::default()),
                };
                t.replica = match self.replica {
                    0 => ReplicaChoice::ByDestination,
                    1 => ReplicaChoice::Striped,
                    n => ReplicaChoice::Fixed(n as u16),
                };
                t.granularity = match self.granularity {
                    0 => Granularity::Request,
                    1 => Granularity::Chunk,
                    n => Granularity::LayerWise { layers: n - 1 },
                };
                t.order = match self.order {
                    0 => OrderPolicy::Fifo,
                    1 => OrderPolicy::ShortestRemaining,
                    2 => OrderPolicy::EarliestDeadline(Slo {
                        ttft: Span::ms(2),
                        per_token: Span::us(3),
                        tenants: [(1, Span::us(100))].into(),
                    }),
                    3 => OrderPolicy::DeficitRoundRobin(Shares { quantum: 5000, weights: [(2, 3)].into() }),
                    _ => OrderPolicy::StrictPriority(Priorities { tenants: [(1, 2), (2, 1)].into() }),
                };
                let (bytes, requests, signal_every) = self.window;
                t.window = Window { bytes, requests, signal_every };
                t.send_depth = self.send_depth;
                t.max_sge = self.max_sge;
                t.slots = self.slots;
                t.parts_per_rail = self.parts_per_rail;
                if let Some((slot, slots, window, auto)) = self.staging.filter(|_| !self.pull) {
                    let staging = Staging { slot, slots, window };
                    // Copies that cost about as much as requests, so that both are chosen.
                    let costs = StagingCosts {
                        submit: Span::ns(100),
                        copy: Span::ns(400),
                        ..StagingCosts::default()
                    };
                    t.coalescing =
                        if auto { Coalescing::Auto(staging, costs) } else { Coalescing::Staging(staging) };
                }
            });
        if let Some(waiting) = self.router.refuse {
            build = build.decode(|side| side.refuse_above(waiting));
        }
        if self.on_demand {
            build = build.decode(Side::on_demand);
        }
        if self.prefix_cache {
            build = build.prefill(Side::prefix_cache);
        }
        if self.pull {
            build = build.pull();
        }
        if self.bytes { build.bytes() } else { build.phantom() }
    }

    fn node(&self, t: &Kit, node: usize) -> (NodeId, u32) {
        let (p, d) = (self.prefill.instances as usize, self.decode.instances as usize);
        let node = node % (p + d);
        if node < p { (t.prefill(node), self.prefill.ports) } else { (t.decode(node - p), self.decode.ports) }
    }

    /// Makes the world and lets everything happen that the case names, up to the last arrival.
    pub(crate) fn play(&self) -> Kit {
        if std::env::var_os("KVRAIL_SHOW").is_some() {
            eprintln!("{self:?}");
        }
        let mut t = self.build().build();
        for fault in &self.faults {
            match *fault {
                FaultCase::QueuePair { us, node, index } => {
                    let (node, _) = self.node(&t, node);
                    t.fault_in(Span::us(us), Fault::QueuePairError { host: node.index(), index });
                }
                FaultCase::Link { us, node, port, ms } => {
                    let (node, ports) = self.node(&t, node);
                    let (host, port) = (node.index(), PortId(port % ports));
                    t.fault_in(Span::us(us), Fault::LinkDown { host, port });
                    t.fault_in(Span::us(us) + Span::ms(ms), Fault::LinkUp { host, port });
                }
                FaultCase::Pause { us, node, ms } => {
                    let (node, _) = self.node(&t, node);
                    t.fault_in(Span::us(us), Fault::Pause { node });
                    t.fault_in(Span::us(us) + Span::ms(ms), Fault::Resume { node });
                }
            }
        }
        for (index, request) in (0u32..).zip(&self.requests) {
            t.run_for(Span::us(request.after_us));
            let blocks = match request.shares {
                Some(who) => (0..request.prompt / 512).map(|i| who * 100 + u64::from(i)).collect(),
                None => Vec::new(),
            };
            let (prompt, output) = (request.prompt, request.output);
            t.request_with(Request { prompt, output, blocks, tenant: index % 3, ..Request::default() });
        }
        t
    }

    /// Plays it to its end and looks for what breaks these laws, and for what is left after shutdown.
    pub(crate) fn keeps(&self, laws: fn(&mut Kit) -> Vec<String>) -> Result<(), TestCaseError> {
        let mut t = self.play();
        prop_assert!(t.run(), "not quiet within the bound: {}", self.state(&t));
        for wrong in [laws(&mut t), t.shut_down()] {
            prop_assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        }
        Ok(())
    }

    /// For people, when a case hangs.
    pub(crate) fn state(&self, t: &Kit) -> String {
        let nodes = (0..t.world().nodes()).map(|n| format!("\nnode {n}: {:?}", t.held(NodeId(n as u32))));
        let open =
            (0..t.watcher().lives().len() as u64).filter(|r| t.ending(engine::id::RequestId(*r)).is_none());
        let open = open.map(|r| {
            let steps: Vec<_> = t.steps(engine::id::RequestId(r)).map(|s| (s.at, s.record.step)).collect();
            format!("\nrequest {r}: {steps:?}")
        });
        nodes.chain(open).collect()
    }
}

prop_compose! {
    fn side(model: u32)(
        instances in 1u32..3,
        tp in prop::sample::select(if model == 0 { vec![1u32, 2, 4, 8, 16] } else { vec![1u32, 2, 3, 4, 8] }),
        pp in 1u32..4,
        dp in prop::sample::select(vec![1u32, 1, 1, 2, 4]),
        page in prop::sample::select(vec![1u32, 3, 8, 16, 32, 64]),
        head_major: bool,
        scatter: bool,
        ports in 1u32..4,
        spare in prop::sample::select(vec![0u32, 40, 2000]),
        batch in prop::sample::select(vec![4u32, 64, 1000]),
    ) -> SideCase {
        // GQA: attention TP and KV heads divide one another.
        let tp = if model < 2 && tp == 3 { 2 } else { tp };
        let dp = if tp % dp == 0 { dp } else { 1 };
        // Ranks make a case slow and nothing else.
        let pp = if tp * pp > 16 { 1 } else { pp };
        SideCase { instances, tp, pp, dp, page, head_major, scatter, ports, spare, batch }
    }
}

prop_compose! {
    fn request()(
        after_us in prop_oneof![Just(0u64), 0u64..200, 0u64..5000],
        prompt in prop_oneof![4 => 1u32..200, 1 => 200u32..1300],
        output in prop_oneof![Just(1u32), 1u32..6, 1u32..60],
        shares in prop::option::of(0u64..3),
    ) -> RequestCase {
        RequestCase { after_us, prompt, output, shares }
    }
}

prop_compose! {
    fn router()(
        routing in 0u32..5,
        attempts in 1u32..4,
        cooldown_ms in prop::sample::select(vec![0u64, 5, 500]),
        flying in prop::option::weighted(0.3, (1u32..6, 1u32..4)),
        refuse in prop::option::weighted(0.2, 1u32..4),
    ) -> RouterCase {
        RouterCase { routing, attempts, cooldown_ms, flying, refuse }
    }
}

prop_compose! {
    fn policies()(
        rails in 1u16..4,
        rail_policy in 0u32..5,
        replica in 0u32..4,
        granularity in 0u32..5,
        order in 0u32..5,
        router in router(),
        window in (
            prop::sample::select(vec![1u64, 3000, 64 << 20]),
            prop::sample::select(vec![1u64, 7, 8192]),
            prop::sample::select(vec![0u32, 1, 5]),
        ),
        send_depth in prop::sample::select(vec![4u32, 37, 1024]),
        max_sge in prop::sample::select(vec![1u16, 2, 16]),
        slots in prop::sample::select(vec![1u32, 3, 16]),
        parts_per_rail in prop::sample::select(vec![1u16, 2, 5, 16]),
        staging in prop::option::of((
            prop::sample::select(vec![100u64, 700, 5000, 1 << 20]),
            prop::sample::select(vec![1u32, 2, 5, 64]),
            1u32..5,
            prop::bool::weighted(0.3),
        )),
        on_demand: bool,
        prefix_cache: bool,
    ) -> Case {
        let side = SideCase {
            instances: 1, tp: 1, pp: 1, dp: 1, page: 16, head_major: false, scatter: false, ports: 1, spare: 0, batch: 64,
        };
        Case {
            seed: 0, model: 0, fp8: false, bytes: false, pull: false, prefill: side.clone(), decode: side, on_demand, prefix_cache,
            rails, rail_policy, replica, granularity, order, router, window, send_depth, max_sge, slots, parts_per_rail, staging,
            mbps: 100_000, control: (0, 0, 0, 0), requests: Vec::new(), faults: Vec::new(),
        }
    }
}

/// No faults; the control channel may have jitter.
pub(crate) fn fault_free() -> impl Strategy<Value = Case> {
    (0u32..4).prop_flat_map(|model| {
        (
            (Just(model), any::<u64>(), any::<bool>(), prop::bool::weighted(0.3), any::<bool>()),
            (side(model), side(model)),
            policies(),
            prop::collection::vec(request(), 1..8),
            prop::sample::select(vec![50u64, 1000, 100_000]),
            prop::sample::select(vec![0u64, 5, 300]),
        )
            .prop_map(
                |((model, seed, fp8, bytes, pull), (prefill, decode), policies, requests, mbps, jitter)| {
                    let prefill = SideCase { batch: prefill.batch.max(32), ..prefill };
                    Case {
                        model,
                        seed,
                        fp8,
                        bytes,
                        pull,
                        prefill,
                        decode,
                        requests,
                        mbps,
                        control: (0, 0, 0, jitter),
                        ..policies
                    }
                },
            )
    })
}

/// With faults.
pub(crate) fn faulty() -> impl Strategy<Value = Case> {
    let us = || prop_oneof![0u64..3000, 0u64..60_000];
    let fault = prop_oneof![
        4 => (us(), 0usize..4, 0usize..64).prop_map(|(us, node, index)| FaultCase::QueuePair { us, node, index }),
        2 => (us(), 0usize..4, 0u32..4, prop_oneof![0u64..20, 0u64..3000])
            .prop_map(|(us, node, port, ms)| FaultCase::Link { us, node, port, ms }),
        1 => (us(), 0usize..4, prop_oneof![0u64..100, 0u64..12_000])
            .prop_map(|(us, node, ms)| FaultCase::Pause { us, node, ms }),
    ];
    let control = prop_oneof![Just((0u32, 0u32, 0u32)), (0u32..200, 0u32..200, 0u32..200)];
    (fault_free(), prop::collection::vec(fault, 0..6), control).prop_map(|(case, faults, control)| {
        let jitter = case.control.3;
        Case { faults, control: (control.0, control.1, control.2, jitter), ..case }
    })
}
