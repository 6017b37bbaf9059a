//! Formats, options, errors; the published traces when they are at hand.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::spec::workload::{Arrival, Length, Prefix, Spread, SyntheticSpec, Tenants};

fn stream(bytes: impl Into<Vec<u8>>, spec: &WorkloadSpec) -> Result<Vec<Request>, WorkloadError> {
    let bytes = bytes.into();
    let size = bytes.len() as u64;
    read(Box::new(Cursor::new(bytes)), Path::new("t.trace"), size, spec, 1)?.collect()
}

fn verbatim() -> WorkloadSpec {
    WorkloadSpec { spread: Spread::None, ..WorkloadSpec::default() }
}

fn problem(bytes: &str) -> String {
    stream(bytes, &verbatim()).expect_err("must be refused").to_string()
}

const MOONCAKE: &str = r#"{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
{"timestamp": 3000, "input_length": 512, "output_length": 6, "hash_ids": [1]}
{"timestamp": 3000, "input_length": 1, "output_length": 7, "hash_ids": [9]}
{"timestamp": 6000, "input_length": 2, "output_length": 8}
"#;

#[test]
fn mooncake() {
    let all = stream(MOONCAKE, &verbatim()).unwrap();
    assert_eq!(all.len(), 4);
    assert_eq!(
        all[1],
        Request { id: 1, arrival_ps: 3_000_000_000_000, prompt: 512, output: 6, blocks: vec![1], tenant: 0 }
    );
    assert!(all[3].blocks.is_empty());
}

#[test]
fn requests_of_one_tick_are_spread_within_it() {
    for spread in [Spread::Random, Spread::Even] {
        let all = stream(MOONCAKE, &WorkloadSpec { spread, ..WorkloadSpec::default() }).unwrap();
        let at: Vec<u64> = all.iter().map(|r| r.arrival_ps).collect();
        assert_eq!((at[0], at[3]), (0, 6_000_000_000_000));
        assert!(3_000_000_000_000 <= at[1] && at[1] < at[2] && at[2] < at[3], "{at:?}");
        if spread == Spread::Even {
            assert_eq!((at[1], at[2]), (3_000_000_000_000, 4_500_000_000_000));
        }
    }
}

#[test]
fn serving_sim_azure_and_vidur() {
    let all =
        stream("{\"input_toks\": 7, \"output_toks\": 5, \"arrival_time_ns\": 101}\n", &verbatim()).unwrap();
    assert_eq!((all[0].arrival_ps, all[0].prompt, all[0].output), (101_000, 7, 5));

    let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 23:59:59.9799600,4808,10\r\n\
                 2023-11-17 00:00:00.0319600,3180,8";
    let all = stream(azure, &verbatim()).unwrap();
    assert_eq!((all[0].arrival_ps, all[1].arrival_ps), (0, 52_000_000_000));
    let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00+00:00,1,1\n2024-05-10 00:00:00.009930+00:00,2,1\n";
    assert_eq!(stream(azure, &verbatim()).unwrap()[1].arrival_ps, 9_930_000_000);

    let vidur = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n30,5,35,6.0\n31,6,37,5.2\n";
    let spec = WorkloadSpec { arrival: Arrival::Fixed { rate: 4.0 }, ..WorkloadSpec::default() };
    let all = stream(vidur, &spec).unwrap();
    assert_eq!((all[0].arrival_ps, all[1].arrival_ps, all[1].prompt), (0, 250_000_000_000, 31));
}

#[test]
fn skip_limit_and_rate() {
    let spec = WorkloadSpec { skip: 1, limit: Some(2), rate_scale: 2.0, ..verbatim() };
    let all = stream(MOONCAKE, &spec).unwrap();
    assert_eq!(
        all.iter().map(|r| (r.id, r.arrival_ps, r.output)).collect::<Vec<_>>(),
        [(0, 0, 6), (1, 0, 7)]
    );
    let spec = WorkloadSpec { rate_scale: 2.0, ..verbatim() };
    assert_eq!(stream(MOONCAKE, &spec).unwrap()[3].arrival_ps, 3_000_000_000_000);
    assert!(stream(MOONCAKE, &WorkloadSpec { skip: 9, ..verbatim() }).unwrap().is_empty());
    assert!(stream(MOONCAKE, &WorkloadSpec { limit: Some(0), ..verbatim() }).unwrap().is_empty());
}

#[test]
fn errors_name_file_line_value_and_what_is_right() {
    let line = |text: &str| format!("{}\n{text}\n", MOONCAKE.lines().next().unwrap());
    for (text, parts) in [
        ("not json", &["t.trace:2", "not json", "not a JSON object", "input_length"][..]),
        ("[1]", &["t.trace:2", "[1]", "does not start with `{`"]),
        (
            r#"{"timestamp": 1, "output_length": 5}"#,
            &["t.trace:2", "`input_length` is missing", "1 to 268435456"],
        ),
        (r#"{"timestamp": 1, "input_length": -7, "output_length": 5}"#, &["`input_length` is -7", "from 1"]),
        (r#"{"timestamp": 1, "input_length": 0, "output_length": 5}"#, &["`input_length` is 0", "from 1"]),
        (r#"{"timestamp": 1, "input_length": 7.5, "output_length": 5}"#, &["`input_length` is 7.5", "whole"]),
        (r#"{"timestamp": 1, "input_length": "7", "output_length": 5}"#, &["`input_length` is \"7\""]),
        (
            r#"{"timestamp": 1, "input_length": 7, "output_length": 4294967297}"#,
            &["`output_length` is 4294967297"],
        ),
        (
            r#"{"timestamp": 99999999999999, "input_length": 7, "output_length": 4}"#,
            &["`timestamp` is 99999999999999"],
        ),
        (
            r#"{"timestamp": 1, "input_length": 7, "output_length": 4, "hash_ids": [1, 2]}"#,
            &["2 ids", "expected 1"],
        ),
        (r#"{"timestamp": 1, "input_length": 7, "output_length": 4, "hash_ids": [-1]}"#, &["-1 at index 0"]),
        (r#"{"timestamp": 1, "input_length": 7, "output_length": 4, "hash_ids": 3}"#, &["`hash_ids` is 3"]),
    ] {
        let message = problem(&line(text));
        for part in parts {
            assert!(message.contains(part), "{message}\nlacks {part}");
        }
    }
    let back = problem(
        "{\"timestamp\": 5, \"input_length\": 7, \"output_length\": 4}\n{\"timestamp\": 4, \"input_length\": 7, \"output_length\": 4}\n",
    );
    assert!(back.contains("t.trace:2") && back.contains("`timestamp` is 4 after 5"), "{back}");
    let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
    let back = problem(&format!("{azure}2023-11-16 18:17:03.5,1,1\n2023-11-16 18:17:03.4,1,1\n"));
    assert!(back.contains("t.trace:3") && back.contains("back in time"), "{back}");
    assert!(problem(&format!("{azure}yesterday,1,1\n")).contains("`TIMESTAMP` is `yesterday`"));
    assert!(problem(&format!("{azure}2023-11-16 18:17:03.5,1\n")).contains("2 columns, the header has 3"));
    assert!(problem(&format!("{azure}2023-11-16 18:17:03.5,1,\n")).contains("`GeneratedTokens` is missing"));
    assert!(problem("").contains("empty"));
    assert!(problem("a,b,c\n1,2,3\n").contains("not recognised from `a,b,c`"));
}

#[test]
fn a_cut_off_file_is_named_as_such() {
    let whole = MOONCAKE.trim_end();
    assert_eq!(stream(whole, &verbatim()).unwrap().len(), 4, "a missing last line end is no error");
    let message = problem(&whole[..whole.len() - 20]);
    assert!(message.contains("t.trace:4") && message.contains("truncated"), "{message}");
    let message = problem("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17");
    assert!(message.contains("t.trace:2") && message.contains("truncated"), "{message}");
}

#[test]
fn a_missing_file_is_named() {
    let spec = WorkloadSpec { path: Some(PathBuf::from("/nowhere/x.jsonl")), ..WorkloadSpec::default() };
    let message = open(&spec, 1).err().expect("must be refused").to_string();
    assert!(message.contains("/nowhere/x.jsonl") && message.contains("workload.path"), "{message}");
    let spec = WorkloadSpec { path: Some(PathBuf::from("/")), ..WorkloadSpec::default() };
    assert!(open(&spec, 1).is_err());
}

fn synthetic(arrival: Arrival, synthetic: SyntheticSpec) -> WorkloadSpec {
    WorkloadSpec { arrival, synthetic: Some(synthetic), ..WorkloadSpec::default() }
}

#[test]
fn synthetic_rates_and_prefixes() {
    for arrival in
        [Arrival::Poisson { rate: 8.0 }, Arrival::Gamma { rate: 8.0, cv: 2.0 }, Arrival::Fixed { rate: 8.0 }]
    {
        let spec = synthetic(arrival, SyntheticSpec { requests: 4000, ..SyntheticSpec::default() });
        let all: Vec<Request> = open(&spec, 3).unwrap().collect::<Result<_, _>>().unwrap();
        let rate = 4000.0 / (all[3999].arrival_ps as f64 / 1e12);
        assert!((rate / 8.0 - 1.0).abs() < 0.1, "{arrival:?}: {rate}");
    }
    let prefix = Prefix { groups: 2, tokens: 1100, share: 0.5 };
    let spec = synthetic(
        Arrival::AtOnce,
        SyntheticSpec { requests: 400, prefix: Some(prefix), tenants: 3, ..SyntheticSpec::default() },
    );
    let all: Vec<Request> = open(&spec, 3).unwrap().collect::<Result<_, _>>().unwrap();
    let shared = all.iter().filter(|r| r.blocks[0] < 1 << 63).count();
    assert!((150..250).contains(&shared), "{shared}");
    assert!(all.iter().all(|r| r.arrival_ps == 0 && r.tenant < 3));
    assert!(all.iter().all(|r| r.blocks.len() == r.prompt.div_ceil(BLOCK_TOKENS) as usize));
}

#[test]
fn one_distribution_does_not_move_another() {
    let lengths = |prompt: Length| {
        let spec = synthetic(
            Arrival::Poisson { rate: 1.0 },
            SyntheticSpec { requests: 50, prompt, ..SyntheticSpec::default() },
        );
        open(&spec, 5)
            .unwrap()
            .map(|r| r.map(|r| (r.arrival_ps, r.output)))
            .collect::<Result<Vec<_>, _>>()
            .unwrap()
    };
    let lognormal = Length::Lognormal { median: 900.0, sigma: 1.0, min: 1, max: 4000 };
    assert_eq!(lengths(Length::Fixed(9)), lengths(lognormal));
}

/// The folder with the published traces, which are not part of the repository.
fn shared(file: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("KVRAIL_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let path = folder.join("data/traces").join(file);
    if path.exists() {
        Some(path)
    } else {
        eprintln!("skipped: {} is not there (set KVRAIL_SHARED)", path.display());
        None
    }
}

fn load(file: &str, seed: u64) -> Option<Vec<Request>> {
    let spec = WorkloadSpec { path: Some(shared(file)?), ..WorkloadSpec::default() };
    Some(open(&spec, seed).unwrap().collect::<Result<_, _>>().unwrap())
}

fn mean(all: &[Request], of: impl Fn(&Request) -> u32) -> f64 {
    all.iter().map(|r| f64::from(of(r))).sum::<f64>() / all.len() as f64
}

#[test]
fn published_traces_have_their_published_counts() {
    for (file, count, span_s) in [
        ("conversation_trace.jsonl", 12_031, Some(3_537)),
        ("synthetic_trace.jsonl", 3_993, Some(1_022)),
        ("AzureLLMInferenceTrace_code.csv", 8_819, Some(3_435)),
        ("AzureLLMInferenceTrace_conv.csv", 19_366, Some(3_501)),
        ("arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv", 28_257, None),
        ("workload_me2_01_mixed.jsonl", 608, Some(61)),
    ] {
        let Some(all) = load(file, 1) else { continue };
        assert_eq!(all.len(), count, "{file}");
        assert!(all.is_sorted_by_key(|r| r.arrival_ps), "{file}");
        assert!(all.iter().zip(0..).all(|(r, id)| r.id == id), "{file}");
        if let Some(span) = span_s {
            let last = all[count - 1].arrival_ps as f64 / 1e12;
            assert!((last - f64::from(span)).abs() < 4.0, "{file}: {last}");
        }
    }
}

#[test]
fn conversation_trace_has_its_published_statistics() {
    let Some(all) = load("conversation_trace.jsonl", 1) else { return };
    assert_eq!(mean(&all, |r| r.prompt).round(), 12_035.0);
    assert_eq!(mean(&all, |r| r.output).round(), 343.0);
    let mut seen = std::collections::BTreeSet::new();
    let (mut hits, mut blocks) = (0, 0);
    for id in all.iter().flat_map(|r| &r.blocks) {
        blocks += 1;
        hits += u32::from(!seen.insert(*id));
    }
    assert_eq!((f64::from(hits) / f64::from(blocks) * 1000.0).round(), 366.0);
    // Spread: no two requests of a tick stay together, and each stays in its tick.
    let distinct: std::collections::BTreeSet<u64> = all.iter().map(|r| r.arrival_ps).collect();
    assert!(distinct.len() > 12_000, "{}", distinct.len());
    let other = load("conversation_trace.jsonl", 2).unwrap();
    assert!(all.iter().zip(&other).all(|(a, b)| a.arrival_ps.abs_diff(b.arrival_ps) < 3_003_000_000_000));
    assert_ne!(all, other);
}

fn any_spec() -> impl Strategy<Value = WorkloadSpec> {
    (0_u64..3, prop::option::of(0_u64..5), prop_oneof![Just(1.0), 0.001..1000.0], 0_usize..3).prop_map(
        |(skip, limit, rate_scale, spread)| WorkloadSpec {
            skip,
            limit,
            rate_scale,
            spread: [Spread::Random, Spread::Even, Spread::None][spread],
            ..WorkloadSpec::default()
        },
    )
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), spec in any_spec()) {
        let _ = stream(bytes, &spec);
    }

    /// Near misses find more than noise: a right file with a few bytes changed.
    #[test]
    fn no_damaged_file_panics(
        which in 0_usize..4,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        spec in any_spec(),
    ) {
        let mut bytes = [
            MOONCAKE,
            "{\"input_toks\": 7, \"output_toks\": 5, \"arrival_time_ns\": 101}\n{\"input_toks\": 7, \"output_toks\": 5, \"arrival_time_ns\": 102}\n",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2024-05-10 00:00:00.009930+00:00,1,1\n",
            "num_prefill_tokens,num_decode_tokens\n30,5\n31,6\n",
        ][which].as_bytes().to_vec();
        for (index, byte) in edits {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(all) = stream(bytes, &spec) {
            prop_assert!(all.is_sorted_by_key(|r| r.arrival_ps));
            prop_assert!(all.iter().all(|r| r.prompt > 0 && r.output > 0));
        }
    }

    #[test]
    fn written_requests_are_read_back(rows in prop::collection::vec((0_u64..5000, 1_u32..4000, 1_u32..4000), 1..20)) {
        let mut at = 0;
        let mut text = String::new();
        let mut expected = Vec::new();
        for (gap, prompt, output) in rows {
            at += gap;
            let ids: Vec<u64> = (0..u64::from(prompt.div_ceil(BLOCK_TOKENS))).collect();
            text += &format!("{{\"timestamp\": {at}, \"input_length\": {prompt}, \"output_length\": {output}, \"hash_ids\": {ids:?}}}\n");
            expected.push((at * 1_000_000_000, prompt, output, ids));
        }
        let read = stream(text.clone(), &verbatim()).unwrap();
        let read: Vec<_> = read.into_iter().map(|r| (r.arrival_ps, r.prompt, r.output, r.blocks)).collect();
        prop_assert_eq!(&read, &expected);
        // Spreading keeps the order, the file's ticks and the lengths.
        let spread = stream(text, &WorkloadSpec::default()).unwrap();
        prop_assert!(spread.is_sorted_by_key(|r| r.arrival_ps));
        for (one, (at, prompt, ..)) in spread.iter().zip(&expected) {
            prop_assert_eq!(one.prompt, *prompt);
            prop_assert!(one.arrival_ps >= *at && one.arrival_ps - at < 3_000_000_000_000);
        }
    }
}

/// Tenants come from a stream of their own: they change nothing else, have their weights, and do not move when requests are left out.
#[test]
fn tenants_of_a_trace() {
    let lengths = SyntheticSpec { requests: 4000, ..SyntheticSpec::default() };
    let bare = synthetic(Arrival::Poisson { rate: 5.0 }, lengths);
    let draw = |tenants: Tenants, skip| {
        let spec = WorkloadSpec { tenants: Some(tenants), skip, ..bare.clone() };
        super::open(&spec, 3).unwrap().map(Result::unwrap).collect::<Vec<Request>>()
    };
    let weighted = draw(Tenants::Weights(vec![6, 0, 3, 1]), 0);
    let count = |tenant| weighted.iter().filter(|request| request.tenant == tenant).count();
    for (tenant, right) in [(0, 2400), (1, 0), (2, 1200), (3, 400usize)] {
        assert!(count(tenant).abs_diff(right) < 120, "tenant {tenant}: {}", count(tenant));
    }
    let without: Vec<Request> = super::open(&bare, 3).unwrap().map(Result::unwrap).collect();
    let stripped = weighted.iter().map(|request| Request { tenant: 0, ..request.clone() });
    assert!(stripped.eq(without), "only the tenant differs");
    let tenants = |requests: &[Request]| requests.iter().map(|request| request.tenant).collect::<Vec<_>>();
    assert_eq!(tenants(&draw(Tenants::Count(7), 100)), tenants(&draw(Tenants::Count(7), 0))[100..]);
    let traced =
        stream(MOONCAKE, &WorkloadSpec { tenants: Some(Tenants::Count(1000)), ..verbatim() }).unwrap();
    assert!(traced.iter().any(|request| request.tenant > 0));
}
