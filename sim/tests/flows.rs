//! Bare flows: known answers, agreement with other simulators, and errors that help.

use std::fmt::Write;
use std::path::PathBuf;

use proptest::prelude::*;
use sim::net::flows::{FlowsError, run};

/// Folder with data files that are too large for the repository: `KVRAIL_SHARED`, or `shared`
/// beside the repository.
fn shared() -> PathBuf {
    match std::env::var_os("KVRAIL_SHARED") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
    }
}

fn read(name: &str) -> Option<String> {
    let path = shared().join("data/flows").join(name);
    let text = std::fs::read_to_string(&path).ok();
    if text.is_none() {
        eprintln!("skipped: {} is absent; set KVRAIL_SHARED to the folder of data", path.display());
    }
    text
}

/// Every flow within 5 ns and 1e-6 of what two other simulators say.
fn agrees(name: &str) {
    let (Some(flows), Some(times)) = (read(&format!("{name}.flows")), read(&format!("{name}.fct"))) else {
        return;
    };
    let got = run(flows.as_bytes(), 64, 400.0, 1.0).expect("valid flows");
    let want: Vec<f64> = times.lines().map(|line| line.parse().expect("seconds")).collect();
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!((got - want).abs() <= 5e-9 + 1e-6 * want, "flow {i}: {got} s, but {want} s elsewhere");
    }
}

#[test]
fn prefill_to_decode_load_agrees_with_other_simulators() {
    agrees("pd64-10k");
}

#[test]
fn burst_agrees_with_other_simulators() {
    agrees("burst64-10k");
}

fn star(text: &str) -> Vec<f64> {
    run(text.as_bytes(), 4, 400.0, 1.0).expect("valid flows")
}

#[test]
fn a_lone_flow_takes_its_bytes_over_the_speed_and_both_latencies() {
    assert_eq!(star("0 0 1 50000000\n"), [0.001_002]);
    assert_eq!(star("0.5 3 2 1\n"), [2.00002e-6]);
    assert_eq!(star("0 3 2 0\n"), [2e-6]);
    assert_eq!(star("# nothing\n\n"), [0.0; 0]);
}

#[test]
fn two_flows_into_one_host_share_its_link() {
    assert_eq!(star("0 0 1 50000000\n0 2 1 50000000"), [0.002_002; 2]);
    // The second joins half way: 1 ms for 25 MB of each, then the second goes on alone.
    assert_eq!(star("0 0 1 50000000\n0.0005 2 1 50000000"), [0.001_502, 0.001_502]);
}

#[test]
fn sixteen_handoffs_into_one_instance_take_sixteen_times_as_long() {
    let text: String = (1..17).map(|src| format!("0 {src} 0 1342177280\n")).collect();
    let got = run(text.as_bytes(), 17, 200.0, 0.0).expect("valid flows");
    assert!(got.iter().all(|s| (s - 0.858_993_459_2).abs() < 1e-9), "{got:?}");
}

#[test]
fn errors_name_line_value_and_what_would_be_right() {
    let cases = [
        ("0 0 1 5\n0 4 1 5", "line 2: src is \"4\": use a host from 0 to 3"),
        ("0 0 -1 5", "line 1: dst is \"-1\": use a host from 0 to 3"),
        ("0 0 1.5 5", "line 1: dst is \"1.5\": use a host from 0 to 3"),
        ("0 2 2 5", "line 1: dst is \"2\": use another host than src"),
        ("0 0 1", "line 1: 3 words in \"0 0 1\": write `start_s src dst bytes`"),
        ("0 0 1 5 6", "line 1: 5 words in \"0 0 1 5 6\": write `start_s src dst bytes`"),
        (
            "# bytes\n0 0 1 -5",
            "line 2: bytes is \"-5\": use a number of bytes that is finite and not negative",
        ),
        ("0 0 1 NaN", "line 1: bytes is \"NaN\": use a number of bytes that is finite and not negative"),
        ("-1 0 1 5", "line 1: start is \"-1\": use seconds, from 0 to 4611686"),
        ("soon 0 1 5", "line 1: start is \"soon\": use seconds, from 0 to 4611686"),
        ("1e300 0 1 5", "line 1: start is \"1e300\": use seconds, from 0 to 4611686"),
        (
            "0.2 0 1 5\n0.1 0 1 5",
            "line 2: start is \"0.1\": use 0.2 s or later: lines are ordered by start, and the line \
             before starts then",
        ),
    ];
    for (text, want) in cases {
        let got = run(text.as_bytes(), 4, 400.0, 1.0).expect_err(text);
        assert_eq!(got.to_string(), want, "of {text:?}");
    }
}

#[test]
fn impossible_networks_are_refused() {
    let error = |hosts, gbps, latency| run("0 0 1 5".as_bytes(), hosts, gbps, latency).expect_err("refused");
    assert!(matches!(error(0, 400.0, 1.0), FlowsError::Topology(_)));
    assert!(matches!(error(4, f64::NAN, 1.0), FlowsError::Topology(_)));
    assert!(matches!(error(4, -1.0, 1.0), FlowsError::Topology(_)));
    assert!(matches!(error(4, 400.0, -1.0), FlowsError::Latency(_)));
    assert!(matches!(error(4, 0.0, 1.0), FlowsError::Stuck { .. }));
}

proptest! {
    #[test]
    fn any_text_gives_an_answer_or_an_error(text in "[0-9 .e#a\n-]{0,80}") {
        let _ = run(text.as_bytes(), 4, 400.0, 1.0);
    }

    #[test]
    fn no_flow_beats_its_bytes_over_the_speed(
        flows in prop::collection::vec((0u32..3000, 0u32..8, 1u32..8, 1u32..20_000_000), 1..80),
    ) {
        let (mut text, mut start) = (String::new(), 0);
        for &(gap, src, hop, bytes) in &flows {
            start += gap;
            writeln!(text, "{start}e-6 {src} {} {bytes}", (src + hop) % 8).expect("to a string");
        }
        let got = run(text.as_bytes(), 8, 400.0, 1.0).expect("valid flows");
        prop_assert_eq!(got.len(), flows.len());
        for (seconds, &(.., bytes)) in got.iter().zip(&flows) {
            prop_assert!(*seconds >= 2e-6 + f64::from(bytes) / 50e9 - 1e-14);
        }
    }
}
