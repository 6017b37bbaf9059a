//! `faults:` of an experiment: what is refused and why, that every kind strikes, and that the documentation is right.

use std::path::Path;

use experiments::build::{Silent, faults::strikes, simulate};
use experiments::spec::Spec;
use sim::fault::{Fault, FaultKind};

fn parse(text: &str) -> Result<Spec, String> {
    Spec::parse(text, Path::new("x.yaml"), &[]).map_err(|error| error.to_string())
}

#[track_caller]
fn refused(fault: &str, parts: &[&str]) {
    let text = format!(
        "model: tiny-gqa\ncluster: {{prefill: {{instances: 2}}, decode: {{instances: 3}}}}\nfaults:\n- {fault}\n"
    );
    let problem = parse(&text).expect_err("must be refused");
    for part in ["x.yaml:4", "faults.0"].iter().chain(parts) {
        assert!(problem.contains(part), "{problem}\nlacks {part}");
    }
}

#[test]
fn errors_say_where_and_what_would_be_right() {
    refused("{at: 1s}", &["none given", "link-down", "crash"]);
    refused("{at: 1s, crash: {node: decode-0}, leave: {node: decode-0}}", &["crash and leave given"]);
    refused("{at: 1s, crash: {node: decode-3}}", &["crash.node", "decode-3 is not there", "0 to 2"]);
    refused("{at: 1s, crash: {node: decod-0}}", &["decod-0", "prefill-0"]);
    refused("{at: 1s, crash: {node: router}}", &["crash.node", "router", "or registry"]);
    refused("{at: 1s, leave: {node: registry}}", &["leave.node", "this cannot happen to the registry"]);
    refused("{at: 1s, link-down: {for: 1s}}", &["link-down", "node: prefill-0"]);
    refused(
        "{at: 1s, link-down: {node: prefill-0, port: 9, for: 1s}}",
        &["link-down.port", "9 is not there"],
    );
    refused("{at: 1s, link-down: {node: prefill-0, host: 1, for: 1s}}", &["keep one"]);
    refused("{at: 1s, link-down: {node: prefill-0, for: 0s}}", &["link-down.for", "no time"]);
    refused("{at: 1s, degrade: {node: prefill-0, to: 1.5, for: 1s}}", &["degrade.to", "0 to 1"]);
    refused("{at: 1s, loss: {node: prefill-0, for: 1s}}", &["probability"]);
    refused("{at: 1s, flap: {node: prefill-0, every: 1s, for: 2s, times: 3}}", &["flap.for", "2s", "1s"]);
    refused("{at: 1s, flap: {node: prefill-0, every: 1s, for: 10ms}}", &["`times` and `until`"]);
    refused(
        "{at: 2s, flap: {node: prefill-0, every: 1s, duty: 0.5, until: 1s}}",
        &["flap.until", "not after"],
    );
    refused("{at: 1s, every: 1ns, until: 60s, pause: {node: all, for: 1s}}", &["at most 100000"]);
    refused("{at: 1s, every: 1s, pause: {node: all, for: 1s}}", &["every", "`times` or `until`"]);
    refused("{at: 1s, random: {share: 0.1, rate: 1}, pause: {node: all, for: 1s}}", &["random", "one of"]);
    refused("{at: 1s, random: {rate: 1}, pause: {node: all, for: 1s}}", &["random", "until"]);
    refused("{at: 1s, control: {for: 1s}}", &["does nothing", "garble"]);
    refused("{at: 1s, control: {loss: 2, for: 1s}}", &["control.loss", "0 to 1"]);
    refused("{at: 1s, clock: {node: router, drift_ppm: 40000}}", &["clock.drift_ppm", "-30000 to 30000"]);
    refused("{at: 1s, slow: {node: router, cpu: 0.5, for: 1s}}", &["slow.cpu", "1 to 1000"]);
    refused("{at: 1s, link-remove: {node: prefill-0, grace: 2s, for: 1s}}", &["link-remove.for", "grace"]);
    let when = |rest: &str| format!("{{at: 1s, when: {{node: decode-0, room: failed}}, {rest}}}");
    refused(
        "{at: 1s, when: {node: router, room: failed}, pause: {node: all, for: 1s}}",
        &["when.node", "has no rooms"],
    );
    refused(
        "{at: 1s, when: {node: decode-3, room: failed}, pause: {node: all, for: 1s}}",
        &["when.node", "0 to 2"],
    );
    refused(
        "{at: 1s, when: {node: decode-0, room: done}, pause: {node: all, for: 1s}}",
        &["done", "transferring"],
    );
    refused(&when("random: {share: 0.5}, pause: {node: all, for: 1s}"), &["random", "keep `when` or"]);
    refused(&when("every: 1s, until: 9s, pause: {node: all, for: 1s}"), &["until", "expected `times`"]);
    refused("{at: 1s, crush: {node: decode-0}}", &["crush", "did you mean `crash`?"]);
}

/// The YAML blocks of the documentation can be read, and the resolved experiment says the same.
#[test]
fn the_documentation_is_right() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/faults.md");
    let text = std::fs::read_to_string(file).expect("it is there");
    let blocks: Vec<&str> =
        text.split("```yaml\n").skip(1).filter_map(|block| block.split("```").next()).collect();
    assert_eq!(blocks.len(), 4);
    let mut kinds = Vec::new();
    for block in blocks {
        let cluster = "cluster: {prefill: {instances: 4}, decode: {instances: 4}}";
        let spec = parse(&format!("model: tiny-gqa\n{cluster}\n{block}")).expect("an example");
        let resolved = spec.resolved().expect("YAML");
        assert_eq!(parse(&resolved).expect("the same").faults, spec.faults);
        kinds.extend(spec.faults.iter().flat_map(|entry| entry.kinds()).map(|(name, _)| name));
        assert!(!strikes(&spec, 1).is_empty());
    }
    for kind in experiments::spec::faults::KINDS {
        assert!(kinds.contains(&kind), "no example of {kind}");
        assert!(text.contains(&format!("| `{kind}` |")), "no row for {kind}");
    }
}

#[test]
fn what_is_drawn_follows_from_the_seed() {
    let text = "
cluster: {prefill: {instances: 10}, decode: {instances: 10}, nics_per_host: 8}
faults:
- {at: 1s, random: {share: 0.05}, flap: {every: 1s, for: 10ms, until: 4s}}
- {at: 1s, until: 101s, random: {rate: 2}, pause: {node: all, for: 1s}}
- {at: 1s, every: 10s, times: 3, crash: {node: decode-1, for: 1s}}
";
    let flaps = parse(text).expect("right");
    let all = strikes(&flaps, 1);
    assert_eq!(all, strikes(&flaps, 1));
    assert_ne!(all, strikes(&flaps, 2));
    let ports = |all: &[experiments::build::faults::Strike]| {
        let port = |s: &experiments::build::faults::Strike| match s.fault {
            Fault::LinkDown { host, port } | Fault::LinkDrain { host, port } => Some((host, port)),
            _ => None,
        };
        let mut ports: Vec<_> = all.iter().filter_map(port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    };
    // A port each of 20 hosts, of which one in twenty.
    assert_eq!(ports(&all).len(), 1);
    let of = |kind| all.iter().filter(|s| s.fault.kind() == kind).count();
    assert!((2..=3).contains(&of(FaultKind::LinkDown)));
    assert!((150..250).contains(&of(FaultKind::Pause)), "{}", of(FaultKind::Pause));
    assert_eq!(of(FaultKind::Crash), 3);
    // The same links are removed in good order.
    let orderly = text.replace("flap: {every: 1s, for: 10ms, until: 4s}", "link-remove: {}");
    assert_eq!(ports(&strikes(&parse(&orderly).expect("right"), 1)), ports(&all));
}

/// A fault that waits for a room strikes when there is one in that state, and never if there is none.
#[test]
fn a_fault_waits_for_a_room() {
    let run = |room: &str| {
        let text = format!(
            "
model: tiny-gqa
cluster: {{link: 100Mb/s}}
transfer: {{room_timeout: 1s, drain_timeout: 100ms}}
policy: {{granularity: {{layer-wise: {{layers: 1}}}}}}
invariants: always
workload: {{requests: [{{at: 50ms, prompt: 200, output: 3}}]}}
faults:
- {{at: 0s, when: {{node: decode-0, room: {room}, after: 5us}}, every: 1us, times: 3, unacknowledged: {{node: prefill-0}}}}
"
        );
        simulate(&parse(&text).expect("right"), 1, &Silent).expect("it runs")
    };
    for room in ["waiting-for-input", "transferring", "success"] {
        assert_eq!(run(room).struck.of(FaultKind::Unacknowledged), 3, "{room}");
    }
    let never = run("failed");
    assert_eq!(never.struck.of(FaultKind::Unacknowledged), 0);
    assert!(never.violations.is_empty(), "{:?}", never.violations);
}

/// Every kind at once, in one run: it ends, nothing is corrupt or left, and the summary says what struck.
#[test]
fn a_run_with_every_kind() {
    let text = "
name: faults
model: tiny-gqa
cluster:
  prefill: {instances: 3, tp: 2, memory: 8MiB}
  decode: {instances: 3, tp: 2, memory: 8MiB}
  nic: connectx-6-200g
  memory: bytes
transfer: {lease: 1s, room_timeout: 5s, transfer_timeout: 2s, drain_timeout: 500ms}
workload:
  arrival: {poisson: {rate: 100}}
  synthetic: {requests: 600, prompt: {uniform: {min: 32, max: 512}}, output: {uniform: {min: 2, max: 16}}}
faults:
- {at: 100ms, every: 300ms, times: 8, random: {share: 0.3}, queue-pair-error: {}}
- {at: 200ms, flap: {node: prefill-1, every: 700ms, for: 30ms, times: 5}}
- {at: 300ms, degrade: {node: decode-0, to: 0.1, for: 1s}}
- {at: 400ms, loss: {node: all, probability: 0.01, for: 3s}}
- {at: 1500ms, nic-reset: {node: decode-2, for: 200ms}}
- {at: 500ms, every: 500ms, times: 5, post-failure: {node: prefill, request: 0}}
- {at: 150ms, completion-delay: {node: prefill, by: 5ms, for: 200ms}}
- {at: 800ms, every: 1s, times: 3, unacknowledged: {node: prefill-2}}
- {at: 900ms, receives-dry: {node: decode-1, for: 1ms}}
- {at: 1s, crash: {node: decode-0, for: 2s}}
- {at: 2s, crash: {node: prefill-0, for: 1s}}
- {at: 3s, crash: {node: registry, for: 300ms}}
- {at: 1200ms, pause: {node: prefill-1, for: 3s}}
- {at: 500ms, control: {loss: 0.05, duplicate: 0.1, reorder: 0.1, delay: 100us, truncate: 0.05, garble: 0.05, for: 4s}}
- {at: 600ms, clock: {node: decode-1, ahead: 50ms, drift_ppm: 20000}}
- {at: 700ms, slow: {node: decode-2, cpu: 20, call: 10us, compute: 2, for: 2s}}
- {at: 5s, leave: {node: decode-2}}
- {at: 2500ms, link-remove: {node: prefill-2, grace: 100ms, for: 500ms}}
";
    let spec = parse(text).expect("right");
    let run = simulate(&spec, 1, &Silent).expect("it runs");
    assert_eq!(run.violations, Vec::<String>::new());
    assert_eq!(run.leaks.total(), 0, "{:?}", run.leaks);
    for kind in FaultKind::ALL {
        assert!(run.struck.of(kind) > 0, "{kind} never struck");
    }
    let e = run.effects;
    for (what, count) in [
        ("packets lost", e.packets_lost),
        ("retransmissions", e.retransmissions),
        ("ACK timeouts", e.ack_timeouts),
        ("refused posts", e.refused_posts),
        ("late completions", e.late_completions),
        ("unacknowledged", e.unacknowledged),
        ("frames disturbed", e.frames_disturbed),
        ("malformed frames", e.malformed_frames),
    ] {
        assert!(count > 0, "no {what}: {e:?}");
    }
    let succeeded = run.requests.iter().filter(|r| r.outcome == experiments::report::Outcome::Succeeded);
    // All but two instances die, stop or leave at some time.
    assert!(succeeded.count() > 200);
    assert_eq!(simulate(&spec, 1, &Silent).expect("it runs").digest, run.digest);
}
