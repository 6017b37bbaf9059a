//! The planner against an oracle that knows layouts byte by byte and nothing of runs: a plan must move every wanted byte once,
//! nothing else, in as few requests as any cut of the target's contiguous ranges allows.

use engine::fabric::Plan;
use engine::id::Page;
use engine::policy::ReplicaChoice;
use engine::registry::{Facts, PageRun, RankFacts};
use engine::transfer::{
    PageTable, PairFeed, Pairing, PlanLimits, PlanningError, Reach, Share, layout_of, plan,
};
use models::{Attention, DType, IndexK, Layout, Model, PageOrder, Parallel, PoolLayout, presets};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

const PAGES: u32 = 300;

fn model(attention: Attention, index: bool) -> Model {
    Model {
        name: "test".to_owned(),
        layers: 3,
        q_heads: 48,
        attention,
        context_len: 4096,
        index_k: index.then_some(IndexK { head_dim: 128 }),
    }
}

fn facts(model: &Model, parallel: Parallel, page_size: u32, order: PageOrder) -> Facts {
    let mut facts = Facts {
        tp: parallel.tp as u16,
        pp: parallel.pp as u16,
        dp: parallel.dp as u16,
        page_size,
        head_major: order == PageOrder::HeadMajor,
        pages: PAGES,
        ..Facts::default()
    };
    let layout = layout_of(model, DType::Bf16, &facts).unwrap();
    for rank in 0..parallel.world() {
        let pools = layout.world_rank(rank).unwrap().pools();
        facts.ranks.push(RankFacts {
            pools: pools.iter().map(|_| Default::default()).collect(),
            // Longer than the pages need, so that pitches and pages cannot be confused.
            pitches: pools.iter().map(|pool| pool.page_bytes * u64::from(PAGES) + 64).collect(),
            aux: Default::default(),
            stage: Default::default(),
        });
    }
    facts
}

fn limits(max_sge: u16) -> PlanLimits {
    PlanLimits { max_sge, max_message: 1 << 31 }
}

fn table(runs: &[(u32, u32)]) -> PageTable {
    PageTable::new(runs.iter().map(|&(first, count)| PageRun { first: Page(first), count }).collect())
}

/// Where a pool keeps each byte of a token's canonical row.
fn bytes_of(pool: &PoolLayout, table: &PageTable, token: u32) -> BTreeMap<u64, u64> {
    let pages: Vec<u32> = table.runs().iter().flat_map(|r| r.first.0..r.first.0 + r.count).collect();
    let page = u64::from(pages[(token / pool.page_tokens) as usize]) * pool.page_bytes;
    let mut bytes = BTreeMap::new();
    for section in pool.sections.iter() {
        let row = page + section.base + u64::from(token % pool.page_tokens) * section.stride;
        bytes.extend((0..section.len).map(|i| (section.content + i, row + i)));
    }
    bytes
}

/// For every target byte of a buffer, the byte that goes there.
fn wanted(
    from: (&PoolLayout, &PageTable),
    to: (&PoolLayout, &PageTable),
    tokens: Range<u32>,
) -> BTreeMap<u64, u64> {
    let mut map = BTreeMap::new();
    for token in tokens {
        let local = bytes_of(from.0, from.1, token);
        for (content, remote) in bytes_of(to.0, to.1, token) {
            if let Some(local) = local.get(&content) {
                assert!(map.insert(remote, *local).is_none());
            }
        }
    }
    map
}

/// Fewest requests, over all ways to cut each contiguous range at the target.
fn fewest(map: &BTreeMap<u64, u64>, limits: PlanLimits) -> u64 {
    let bytes: Vec<(u64, u64)> = map.iter().map(|(r, l)| (*r, *l)).collect();
    let mut best = vec![0u64; bytes.len() + 1];
    for end in 1..=bytes.len() {
        let (mut pieces, mut start) = (1, end - 1);
        let mut least = best[start];
        while start > 0
            && bytes[start - 1].0 + 1 == bytes[start].0
            && end - start < limits.max_message as usize
        {
            pieces += u16::from(bytes[start - 1].1 + 1 != bytes[start].1);
            if pieces > limits.max_sge {
                break;
            }
            start -= 1;
            least = least.min(best[start]);
        }
        best[end] = least + 1;
    }
    best[bytes.len()]
}

/// Carries a plan out on the map, taking every byte from it once.
fn carry_out(
    plan: &Plan,
    map: &BTreeMap<u64, u64>,
    lanes: &[(u64, u64)],
    limits: PlanLimits,
) -> Result<(), TestCaseError> {
    let mut left: Vec<BTreeMap<u64, u64>> = vec![map.clone(); lanes.len()];
    let per_lane = plan.requests_per_lane();
    let mut error = None;
    plan.for_each(&(0..plan.requests()), |index, pieces, remote| {
        let lane = (index / per_lane) as usize;
        let mut at = remote;
        for &(local, len) in pieces {
            for i in 0..u64::from(len) {
                let want = left[lane].remove(&(at + i - lanes[lane].1)).map(|local| local + lanes[lane].0);
                if want != Some(local + i) {
                    error.get_or_insert(format!(
                        "request {index}: {want:?}, not {}, goes to {}",
                        local + i,
                        at + i
                    ));
                }
            }
            at += u64::from(len);
        }
        if pieces.len() > usize::from(limits.max_sge) || at - remote > u64::from(limits.max_message) {
            error.get_or_insert(format!("request {index}: {} pieces, {} bytes", pieces.len(), at - remote));
        }
    });
    prop_assert_eq!(error, None);
    prop_assert!(left.iter().all(BTreeMap::is_empty), "bytes are missing");
    prop_assert_eq!(plan.bytes(), (map.len() * lanes.len()) as u64);
    Ok(())
}

struct Case {
    model: Model,
    src: Facts,
    dst: Facts,
}

impl Case {
    fn new(model: Model, src: (Parallel, u32, PageOrder), dst: (Parallel, u32, PageOrder)) -> Self {
        let src = facts(&model, src.0, src.1, src.2);
        let dst = facts(&model, dst.0, dst.1, dst.2);
        Self { model, src, dst }
    }
    fn pairing(&self) -> Pairing {
        Pairing::new(
            &self.model,
            DType::Bf16,
            &self.src,
            &self.dst,
            ReplicaChoice::ByDestination,
            1,
            &Reach::Any,
        )
        .unwrap()
    }
    /// Checks the plan of every share, for the WRITEs of push and for the READs of pull.
    fn check(
        &self,
        src: &PageTable,
        dst: &PageTable,
        tokens: Range<u32>,
        limits: PlanLimits,
    ) -> Result<(), TestCaseError> {
        let from = layout_of(&self.model, DType::Bf16, &self.src).unwrap();
        let to = layout_of(&self.model, DType::Bf16, &self.dst).unwrap();
        Self::plans(&self.pairing(), (&from, src), (&to, dst), tokens.clone(), limits)?;
        Self::plans(&self.pairing().reversed(), (&to, dst), (&from, src), tokens, limits)
    }
    /// Every byte once, in the fewest requests, from the initiator's view.
    fn plans(
        pairing: &Pairing,
        (from, src): (&Layout, &PageTable),
        (to, dst): (&Layout, &PageTable),
        tokens: Range<u32>,
        limits: PlanLimits,
    ) -> Result<(), TestCaseError> {
        for feed in &pairing.feeds {
            for share in &feed.shares {
                let (a, b) = (&from.ranks()[feed.src.index()], &to.ranks()[feed.dst.index()]);
                let (a, b) = (&a.pools()[share.group.pool_src], &b.pools()[share.group.pool_dst]);
                let map = wanted((a, src), (b, dst), tokens.clone());
                let pitch = |pool: &PoolLayout| pool.page_bytes * u64::from(PAGES) + 64;
                let mut lanes = Vec::new();
                for (d, buffer) in (0u64..).zip(b.buffers.iter()) {
                    if let Some(s) = a.buffers.iter().position(|x| x == buffer) {
                        lanes.push((s as u64 * pitch(a), d * pitch(b)));
                    }
                }
                let plan = plan(share, share.lanes.clone(), src, dst, tokens.clone(), limits).unwrap();
                carry_out(&plan, &map, &lanes, limits)?;
                prop_assert_eq!(plan.requests_per_lane(), fewest(&map, limits), "{:?}", plan.runs());
            }
        }
        Ok(())
    }
}

/// Runs in any order, some of them touching.
fn tables() -> impl Strategy<Value = PageTable> {
    let sorted = prop_oneof![Just(true), Just(false)];
    (prop::collection::vec((1u32..5, 0u32..2, any::<u16>()), 50), sorted).prop_map(|(specs, sorted)| {
        let (mut first, mut runs) = (1, Vec::new());
        for (count, gap, key) in specs {
            runs.push((key, first, count));
            first += count + gap;
        }
        if !sorted {
            runs.sort_unstable();
        }
        table(&runs.iter().map(|&(_, first, count)| (first, count)).collect::<Vec<_>>())
    })
}

fn attention() -> impl Strategy<Value = (Attention, bool)> {
    prop_oneof![
        4 => (1u32..3).prop_map(|head_dim| (Attention::Gqa { kv_heads: 8, head_dim }, false)),
        1 => any::<bool>().prop_map(|index| (Attention::Mla { kv_lora_rank: 3, qk_rope_head_dim: 1 }, index)),
    ]
}

fn side() -> impl Strategy<Value = (Parallel, u32, PageOrder)> {
    let tp = prop::sample::select(vec![1u32, 2, 4, 8, 16]);
    let page = prop::sample::select(vec![1u32, 2, 3, 4, 8]);
    let order = prop::sample::select(vec![PageOrder::TokenMajor, PageOrder::HeadMajor]);
    (tp, 1u32..3, page, order).prop_map(|(tp, pp, page, order)| (Parallel { tp, pp, dp: 1 }, page, order))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn every_byte_once_in_the_fewest_requests(
        (attention, index) in attention(),
        src in side(),
        dst in side(),
        tables in (tables(), tables()),
        start in 0u32..30,
        count in 0u32..20,
        max_sge in prop::sample::select(vec![1u16, 2, 3, 5, 8, 30, 32]),
        max_message in prop::sample::select(vec![1u32, 3, 4, 7, 8, 12, 16, 33, 64, 1000, 1 << 31]),
    ) {
        let case = Case::new(model(attention, index), src, dst);
        case.check(&tables.0, &tables.1, start..start + count, PlanLimits { max_sge, max_message })?;
    }
}

/// The first share of the first feed between two presets' layouts.
fn share(name: &str, src: (u32, u32, PageOrder), dst: (u32, u32, PageOrder)) -> Share {
    let side = |s: (u32, u32, PageOrder)| (Parallel::tp(s.0), s.1, s.2);
    let case = Case::new(presets::lookup(name).unwrap(), side(src), side(dst));
    let feed: PairFeed = case.pairing().feeds.remove(0);
    feed.shares.into_iter().next().unwrap()
}

/// (runs, requests in a lane)
fn size(share: &Share, src: &PageTable, dst: &PageTable, tokens: u32, max_sge: u16) -> (usize, u64) {
    let plan = plan(share, share.lanes.clone(), src, dst, 0..tokens, limits(max_sge)).unwrap();
    (plan.runs().len(), plan.requests_per_lane())
}

const TOKENS: PageOrder = PageOrder::TokenMajor;
const HEADS: PageOrder = PageOrder::HeadMajor;

#[test]
fn consecutive_pages_are_one_run() {
    let whole = (table(&[(1, 64)]), table(&[(9, 64)]));
    for order in [TOKENS, HEADS] {
        let equal = share("llama-3.1-70b", (4, 64, order), (4, 64, order));
        assert_eq!(equal.lanes.len(), 160);
        assert_eq!(size(&equal, &whole.0, &whole.1, 4096, 1), (1, 1));
    }
    let latent = share("deepseek-v3", (4, 64, TOKENS), (8, 64, TOKENS));
    assert_eq!(size(&latent, &whole.0, &whole.1, 4096, 1), (1, 1));
    assert_eq!(size(&latent, &whole.0, &whole.1, 4095, 1), (1, 1));
    // Token by token, or half a page by half a page.
    let rows = share("llama-3.1-70b", (4, 64, TOKENS), (8, 64, TOKENS));
    assert_eq!(size(&rows, &whole.0, &whole.1, 4096, 1), (1, 4096));
    assert_eq!(size(&rows, &whole.0, &whole.1, 4096, 30), (1, 137));
    let slices = share("llama-3.1-70b", (4, 64, HEADS), (8, 64, HEADS));
    assert_eq!(size(&slices, &whole.0, &whole.1, 4096, 1), (1, 64));
    assert_eq!(size(&slices, &whole.0, &whole.1, 4096, 30), (1, 3));
    let narrow = share("llama-3.1-70b", (8, 64, TOKENS), (4, 64, TOKENS));
    assert_eq!(size(&narrow, &whole.0, &whole.1, 4096, 30), (1, 4096));
    let small = share("llama-3.1-70b", (4, 16, TOKENS), (4, 64, TOKENS));
    assert_eq!(size(&small, &table(&[(5, 256)]), &whole.1, 4096, 30), (1, 1));
}

/// A bound in bytes that rows do not divide costs requests, but only where rows are joined.
#[test]
fn what_repeats_stays_one_run_under_any_bound() {
    let whole = (table(&[(1, 64)]), table(&[(9, 64)]));
    let size = |share: &Share, max_sge: u16, max_message: u32| {
        let limits = PlanLimits { max_sge, max_message };
        let plan = plan(share, share.lanes.clone(), &whole.0, &whole.1, 0..4096, limits).unwrap();
        (plan.runs().len(), plan.requests_per_lane())
    };
    // Rows of 256 bytes that touch at the target, and rows that do not touch there.
    let joined = share("llama-3.1-70b", (4, 64, TOKENS), (8, 64, TOKENS));
    let apart = share("llama-3.1-70b", (8, 64, TOKENS), (4, 64, TOKENS));
    assert_eq!((joined.group.sections[0].len, apart.group.sections[0].len), (256, 256));
    assert_eq!(size(&joined, 1, 1000), (1, 4096));
    assert_eq!(size(&joined, 30, 30 * 256), (1, 137));
    assert_eq!(size(&joined, 30, 30 * 256 + 1), (1, 137));
    assert_eq!(size(&joined, 30, 20 * 256), (1, 205));
    assert_eq!(size(&apart, 30, 1000), (1, 4096));
    assert!(size(&joined, 30, 1000).0 > 1);
}

#[test]
fn pages_that_go_back_in_a_table_are_found() {
    let equal = share("llama-3.1-70b", (4, 64, TOKENS), (4, 64, TOKENS));
    let down: Vec<(u32, u32)> = (1..65).rev().map(|page| (page, 1)).collect();
    assert_eq!(size(&equal, &table(&down), &table(&down), 4096, 1), (1, 1));
    let rows = share("llama-3.1-70b", (4, 64, TOKENS), (8, 64, TOKENS));
    assert_eq!(size(&rows, &table(&down), &table(&down), 4096, 30), (1, 137));
    // Contiguous at the target only: gathered.
    assert_eq!(size(&equal, &table(&[(1, 64)]), &table(&down), 4096, 1), (64, 64));
    assert_eq!(size(&equal, &table(&[(1, 64)]), &table(&down), 4096, 30), (64, 3));
    // Contiguous at the source only: nothing to gain.
    let apart: Vec<(u32, u32)> = (0..64).map(|page| (2 * page + 1, 1)).collect();
    assert_eq!(size(&equal, &table(&[(1, 64)]), &table(&apart), 4096, 30), (64, 64));
}

#[test]
fn what_cannot_be_planned_is_named() {
    let share = share("llama-3.1-70b", (4, 16, TOKENS), (4, 64, TOKENS));
    let make = |src: &[(u32, u32)], dst: &[(u32, u32)], tokens: Range<u32>, max_sge, max_message| {
        let limits = PlanLimits { max_sge, max_message };
        plan(&share, share.lanes.clone(), &table(src), &table(dst), tokens, limits)
    };
    let short = make(&[(1, 4)], &[(1, 2)], 0..65, 1, 1).unwrap_err();
    assert_eq!(short.to_string(), "the initiator's page table has 4 pages of 16 tokens, token 64 needs 5");
    let short = make(&[(1, 8)], &[(1, 1)], 64..65, 1, 1).unwrap_err().to_string();
    assert!(short.starts_with("the target's page table has 1 pages of 64 tokens"), "{short}");
    let twice = make(&[(1, 12)], &[(7, 1), (3, 1), (7, 1)], 0..192, 1, 1).unwrap_err();
    assert_eq!(twice, PlanningError::Twice { page: 7 });
    assert_eq!(make(&[(1, 4)], &[(1, 1)], 0..1, 0, 1).unwrap_err(), PlanningError::Zero { what: "max_sge" });
    assert_eq!(
        make(&[(1, 4)], &[(1, 1)], 0..1, 1, 0).unwrap_err(),
        PlanningError::Zero { what: "max_message" }
    );
    assert_eq!(make(&[], &[], 5..5, 1, 1).unwrap().requests(), 0);
}
