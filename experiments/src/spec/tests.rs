//! Reading, errors with their places, overrides, round trips.

use proptest::prelude::*;

use super::*;

fn parse(text: &str, sets: &[&str]) -> Result<Spec, SpecError> {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    Spec::parse(text, Path::new("x.yaml"), &sets)
}

fn problem(text: &str, sets: &[&str]) -> String {
    parse(text, sets).expect_err("must be refused").to_string()
}

const WHOLE: &str = "\
name: whole
seeds: [1, 2]
model: deepseek-v3
dtype: fp8
cluster:
  prefill: {instances: 2, tp: 8, page_size: 64, memory: {pages: 10}}
  decode:
    instances: 1
    tp: 16
    dp: 2
    page_order: head-major
    memory: 100MiB
  link: 200Gb/s
  topology:
    leaf-spine: {leaves: 2, oversubscription: 2.0, latency: 500ns}
  memory: bytes
policy:
  granularity: {layer-wise: {layers: 4}}
  order: shortest-remaining
workload:
  arrival: {gamma: {rate: 8, cv: 2}}
  synthetic:
    prompt: {lognormal: {median: 900, sigma: 1.0}}
    output: {empirical: [1, 2, 3]}
    prefix: {groups: 4, tokens: 1024, share: 0.5}
slo: {ttft: 2s}
faults:
- at: 3s
  link-down: {host: 1, port: 0, for: 10ms}
- at: 4s
  queue-pair-error: {prefill: 0}
expect:
  failed: 0
  ttft_ms.p99: {max: 500}
";

#[test]
fn an_empty_file_is_the_defaults() {
    for text in ["", "# nothing\n", "{}"] {
        let mut defaults = Spec::default();
        defaults.compute.profile = "h100-tp1-llama-8b".to_owned();
        assert_eq!(parse(text, &[]).unwrap(), defaults);
    }
}

#[test]
fn resolved_reads_back_to_the_same() {
    for text in ["", WHOLE] {
        let spec = parse(text, &[]).unwrap();
        let resolved = spec.resolved().unwrap();
        assert_eq!(parse(&resolved, &[]).unwrap(), spec, "{resolved}");
    }
    let spec = parse(WHOLE, &[]).unwrap();
    assert_eq!(spec.seeds(), [1, 2]);
    assert_eq!(spec.clone().with_seed(7).seeds(), [7]);
    assert_eq!(spec.hosts(), 2 + 2);
    assert!(!spec.resolved().unwrap().contains('!'), "no YAML tags");
}

#[test]
fn errors_name_line_key_value_and_what_is_right() {
    let changed = |from: &str, to: &str| {
        assert!(WHOLE.contains(from), "{from}");
        problem(&WHOLE.replacen(from, to, 1), &[])
    };
    for (message, parts) in [
        (
            changed("dtype: fp8", "dtpye: fp8"),
            &["x.yaml:4: dtpye: unknown key `dtpye`", "did you mean `dtype`?"][..],
        ),
        (changed("dtype: fp8", "dtype: fp7"), &["x.yaml:4: dtype: unknown value `fp7`", "bf16"]),
        (
            changed("model: deepseek-v3", "model: deepseek-v4"),
            &["x.yaml:3: model:", "deepseek-v4", "deepseek-v3"],
        ),
        (
            changed("page_order: head-major", "page_order: head"),
            &["x.yaml:11: cluster.decode.page_order", "head-major"],
        ),
        (changed("page_size: 64", "page_size: 0"), &["x.yaml:6: cluster.prefill.page_size", "0", "1 to"]),
        (changed("    tp: 16", "    tp: 12"), &["x.yaml:7: cluster.decode", "tp 12"]),
        (changed("    tp: 16", "    tp: -1"), &["x.yaml:9: cluster.decode.tp", "-1"]),
        (
            changed("    tp: 16", "    tp: two"),
            &["x.yaml:9: cluster.decode.tp", "two", "expected a whole number"],
        ),
        (changed("    dp: 2", "    dp: 3"), &["x.yaml:7: cluster.decode", "dp 3 does not divide tp 16"]),
        (changed("100MiB", "40"), &["x.yaml:12: cluster.decode.memory", "40GiB", "{pages: 40}"]),
        (changed("100MiB", "40Gib"), &["x.yaml:12: cluster.decode.memory", "Gib", "GiB"]),
        (changed("100MiB", "1kB"), &["x.yaml:12: cluster.decode.memory", "no page fits"]),
        (changed("200Gb/s", "200"), &["x.yaml:13: cluster.link", "no unit", "Gb/s"]),
        (
            changed("leaf-spine:", "leaf-spin:"),
            &["x.yaml:15: cluster.topology", "leaf-spin", "did you mean `leaf-spine`?"],
        ),
        (changed("oversubscription: 2.0, ", ""), &["x.yaml:15", "one of `spines` and `oversubscription`"]),
        (changed("cv: 2", "cv: 0"), &["x.yaml:21: workload.arrival.gamma.cv", "0.01 to 100"]),
        (changed("rate: 8", "rate: -8"), &["x.yaml:21: workload.arrival.gamma.rate", "-8", "above 0"]),
        (
            changed("share: 0.5", "share: 1.5"),
            &["x.yaml:25: workload.synthetic.prefix.share", "1.5", "0 to 1"],
        ),
        (changed("[1, 2, 3]", "[]"), &["x.yaml:24: workload.synthetic.output.empirical", "at least one"]),
        (changed("host: 1", "host: 9"), &["x.yaml:29: faults.0.link-down.host", "9", "0 to 2"]),
        (changed("port: 0", "port: 8"), &["x.yaml:29: faults.0.link-down.port", "8", "0 to 7"]),
        (
            changed("prefill: 0}", "prefill: 2}"),
            &["x.yaml:31: faults.1.queue-pair-error.prefill", "2", "0 to 1"],
        ),
        (changed("  link-down: {host: 1, port: 0, for: 10ms}\n", ""), &["x.yaml:28: faults.0", "one of"]),
        (
            changed("ttft_ms.p99", "ttft.p99"),
            &["x.yaml:34: expect.\"ttft.p99\"", "did you mean `ttft_ms.p99`?"],
        ),
        (changed("{max: 500}", "{most: 500}"), &["x.yaml:34", "most", "max"]),
        (changed("seeds: [1, 2]", "seeds: []"), &["x.yaml:2: seeds", "at least one"]),
        (changed("seeds: [1, 2]", "seeds: [1]\nseed: 2"), &["both `seed` and `seeds`"]),
        (changed("name: whole", "name: [whole"), &["x.yaml:", "not YAML"]),
        (changed("name: whole", "name: whole\nname: twice"), &["not YAML", "name"]),
        (changed("name: whole", "- name"), &["not YAML"]),
    ] {
        for part in parts {
            assert!(message.contains(part), "{message}\nlacks {part}");
        }
    }
    let bytes = problem("cluster: {memory: bytes}", &[]);
    assert!(bytes.contains("x.yaml:1: cluster.memory") && bytes.contains("phantom"), "{bytes}");
    assert!(problem("[1]", &[]).contains("x.yaml"));
    let compute = problem("compute: {profile: h100}", &[]);
    assert!(
        compute.contains("x.yaml:1: compute.profile") && compute.contains("h100-tp8-llama-70b"),
        "{compute}"
    );
}

#[test]
fn overrides() {
    let spec = parse(WHOLE, &["cluster.prefill.tp=16", "seeds=[5]", "faults.0.at=1ms", "name=a b"]).unwrap();
    assert_eq!((spec.cluster.prefill.tp, spec.seeds(), spec.name.as_str()), (16, vec![5], "a b"));
    assert_eq!(spec.faults[0].at, models::Picos(1_000_000_000));

    let spec = parse(WHOLE, &["workload.path=trace.jsonl"]).unwrap();
    assert_eq!(spec.workload.path.as_deref(), Some(Path::new("trace.jsonl")));

    let message = problem(WHOLE, &["cluster.prefil.tp=16"]);
    assert!(
        message.contains("--set cluster.prefil.tp=16") && message.contains("did you mean `prefill`?"),
        "{message}"
    );
    let message = problem(WHOLE, &["cluster.prefill.tp=3"]);
    assert!(message.contains("--set cluster.prefill.tp=3") && message.contains("tp 3"), "{message}");
    let spec =
        parse(WHOLE, &["workload.arrival.poisson.rate=3", "cluster.topology.star.latency=2us"]).unwrap();
    assert_eq!(spec.workload.arrival, workload::Arrival::Poisson { rate: 3.0 });
    assert_eq!(spec.cluster.topology, TopologySpec::Star { latency: models::Picos(2_000_000) });
    assert_eq!(parse("seed: 1", &["seeds=[2, 3]"]).unwrap().seeds(), [2, 3]);
    assert_eq!(parse(WHOLE, &["seed=4"]).unwrap().seeds(), [4]);
    let message = problem(WHOLE, &["workload.arrival.gamma.cv=x"]);
    assert!(
        message.contains("--set workload.arrival.gamma.cv=x") && message.contains("expected a number"),
        "{message}"
    );
    assert!(problem(WHOLE, &["faults.9.at=3s"]).contains("list of 2 entries"));
    assert!(problem(WHOLE, &["name"]).contains("PATH=VALUE"));
}

#[test]
fn a_missing_file_is_named() {
    let message = Spec::load(Path::new("/nowhere/x.yaml"), &[]).unwrap_err().to_string();
    assert!(message.contains("/nowhere/x.yaml"), "{message}");
}

/// The experiments of this repository are right, and read back to the same when resolved.
#[test]
fn experiments_of_this_repository() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let spec = Spec::load(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(parse(&spec.resolved().unwrap(), &[]).unwrap(), spec);
            count += 1;
        }
    }
    assert!(count >= 2, "{count}");
    let mooncake = folder.join("mooncake.yaml");
    let sets = ["model=llama-3.1-70b".to_owned(), "workload.path=x".to_owned()];
    Spec::load(&mooncake, &sets).unwrap_or_else(|error| panic!("{error}"));
}

proptest! {
    #[test]
    fn no_text_panics(text in "([ \\-a-z:\n\\[\\]{},\"0-9]|\\PC){0,120}") {
        let _ = parse(&text, &[]);
    }

    #[test]
    fn no_damaged_experiment_panics(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)) {
        let mut bytes = WHOLE.as_bytes().to_vec();
        for (index, byte) in edits {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(spec) = parse(&String::from_utf8_lossy(&bytes), &[]) {
            let resolved = spec.resolved().unwrap();
            prop_assert_eq!(parse(&resolved, &[]).unwrap(), spec);
        }
    }
}

#[test]
fn links_that_cannot_be_are_refused() {
    let text = "model: tiny-gqa\ncluster: {prefill: {tp: 2}, decode: {tp: 4}, nics_per_host: 2}\n";
    let few = problem(text, &["transfer.max_queue_pairs=3"]);
    assert!(few.contains("transfer.max_queue_pairs") && few.contains("need 4 between them"), "{few}");
    let apart = problem(text, &["transfer.reach={pairs: [[7, 7]]}"]);
    assert!(apart.contains("transfer.reach") && apart.contains("ports 0 to 0"), "{apart}");
}

#[test]
fn routing_admission_limits_and_retry() {
    let spec = parse("", &["policy.routing=prefix-aware"]).unwrap();
    assert_eq!(spec.policy.routing, Routing::PrefixAware(PrefixAwareSpec::default()));
    let set = "policy.routing={network-aware: {gain: 0.5}}";
    let spec = parse("", &[set, "policy.admission={refuse: {waiting: 4, pages: on-demand}}"]).unwrap();
    assert_eq!(spec.policy.admission, Admission::Refuse { waiting: 4, pages: Pages::OnDemand });
    let forget = NetworkAwareSpec::default().forget;
    assert_eq!(spec.policy.routing, Routing::NetworkAware(NetworkAwareSpec { gain: 0.5, forget }));
    assert_eq!(parse(&spec.resolved().unwrap(), &[]).unwrap(), spec);
    let limits = "policy.limits={tenant: {tokens: 4096}, waiting: 9}";
    let spec = parse("", &[limits, "policy.retry={attempts: 3, cooldown: 1s}"]).unwrap();
    assert_eq!(spec.policy.limits.tenant, Some(TenantSpec { requests: None, tokens: Some(4096) }));
    assert_eq!(parse(&spec.resolved().unwrap(), &[]).unwrap(), spec);

    for (set, parts) in [
        ("policy.routing=fastest", &["policy.routing", "fastest", "least-loaded", "network-aware"][..]),
        ("policy.routing=least-loadd", &["did you mean `least-loaded`?"]),
        ("policy.routing=own", &["policy.routing", "{own: ..}"]),
        ("policy.routing={own: mine}", &["policy.routing", "`mine`", "experiments::own::routing"]),
        ("policy.routing=3", &["policy.routing", "3", "a name, or a map"]),
        ("policy.routing={prefix-aware: {weigth: 1}}", &["weigth", "did you mean `weight`?"]),
        ("policy.routing={prefix-aware: {weight: -1}}", &["policy.routing.prefix-aware.weight", "-1"]),
        ("policy.routing={network-aware: {gain: 0}}", &["policy.routing.network-aware.gain", "at most 1"]),
        ("policy.routing={network-aware: {forget: 3}}", &["forget", "no unit"]),
        ("policy.admission={refuse: {}}", &["policy.admission", "waiting"]),
        ("policy.admission=refuse", &["policy.admission", "{refuse: ..}", "missing field `waiting`"]),
        ("policy.routing={prefix-aware: {}, round-robin: {}}", &["policy.routing", "a second name"]),
        ("policy.admission={refuse: {waiting: 0}}", &["policy.admission.refuse.waiting", "0", "1 to"]),
        ("policy.limits={waiting: 4}", &["policy.limits.waiting", "limits.requests", "refuse"]),
        ("policy.limits={tenant: {}}", &["policy.limits.tenant", "requests"]),
        ("policy.limits={tenant: {tokens: 0}}", &["policy.limits.tenant.tokens", "0"]),
        ("policy.retry={attempts: 0}", &["policy.retry.attempts", "1 to 16"]),
        ("policy.retry={cooldown: 61s}", &["policy.retry.longest", "61s"]),
        ("workload.tenants={count: 0}", &["workload.tenants.count", "0"]),
        ("workload.tenants={weights: [0, 0]}", &["workload.tenants.weights", "at least one above 0"]),
        ("workload.tenants={share: 2}", &["workload.tenants", "share", "count", "weights"]),
    ] {
        let message = problem("", &[set]);
        for part in parts {
            assert!(message.contains(part), "{set}: {message}\nlacks {part}");
        }
    }
    let cacheless = problem("batch: {prefix_cache: false}", &["policy.routing=prefix-aware"]);
    assert!(cacheless.contains("policy.routing") && cacheless.contains("batch.prefix_cache"), "{cacheless}");
    let pages = problem("cluster: {prefill: {page_size: 48}}", &["policy.routing=prefix-aware"]);
    assert!(pages.contains("page_size 48") && pages.contains("512"), "{pages}");
    let twice = problem("workload: {synthetic: {tenants: 3}}", &["workload.tenants={count: 2}"]);
    assert!(twice.contains("workload.tenants") && twice.contains("keep one"), "{twice}");
    let lines = "policy:\n  routing:\n    prefix-aware:\n      weight: -2\n";
    assert!(
        problem(lines, &[]).contains("x.yaml:4: policy.routing.prefix-aware.weight"),
        "{}",
        problem(lines, &[])
    );
}

#[test]
fn posting_policies_have_parameters() {
    for value in [
        "order={earliest-deadline: {ttft: 500ms, per_token: 10us, tenants: {1: 200ms}}}",
        "order={deficit-round-robin: {}}",
        "order={deficit-round-robin: {quantum: 1MiB, weights: {0: 1, 7: 4}}}",
        "order={strict-priority: {tenants: {2: 9}}}",
        "failover=off",
        "failover={cooldown: {first: 1s, most: 60s}}",
        "replica=striped",
        "replica={fixed: {copy: 3}}",
        "rails={least-inflight: {memory: 100ms}}",
        "rails=hash",
        "rails=round-robin",
    ] {
        let sets = [format!("policy.{value}"), "transfer.queue_pairs=2".to_owned()];
        let spec = parse("", &[&sets[0], &sets[1]]).unwrap();
        assert_ne!(spec.policy, PolicySpec::default());
        let again = parse(&spec.resolved().unwrap(), &[]).unwrap();
        assert_eq!(again, spec, "{value}");
    }
    // The objective of the experiment is when requests are due.
    assert!(parse("slo: {ttft: 2s}\npolicy: {order: {earliest-deadline: {}}}", &[]).is_ok());
    for (text, said) in [
        ("policy: {order: {earliest-deadline: {}}}", "give ttft here, or slo.ttft"),
        ("policy: {order: {deficit-round-robin: {quantum: 0B}}}", "expected 1B to 1TiB"),
        ("policy: {order: {deficit-round-robin: {weights: {3: 0}}}}", "the weight of tenant 3 is 0"),
        (
            "policy: {order: {strict-priority: {tenants: {first: 1}}}}",
            "invalid value `first`, expected the number of a tenant",
        ),
        ("policy: {order: {strict: {}}}", "expected one of fifo, shortest-remaining, earliest-deadline"),
        ("policy: {failover: {cooldown: {first: 0s, most: 1s}}}", "tried again at once"),
        ("policy: {failover: {cooldown: {first: 2s, most: 1s}}}", "exchange them"),
        ("policy: {replica: {fixed: {copy: -1}}}", "expected a whole number from 0 to 255"),
        ("policy: {rails: hash}", "hash over transfer.queue_pairs 1 is the same as pinned"),
        ("policy: {rails: {least-inflight: {numa_penalty: 5000}}}", "0 to 1000"),
    ] {
        let problem = problem(text, &[]);
        assert!(problem.contains(said) && problem.contains("x.yaml:1"), "{problem}");
    }
}

/// Every policy whose parameters all have defaults may be given by its name alone.
#[test]
fn a_name_alone_has_the_default_parameters() {
    let policy = |key: &str, value: &str| {
        let sets =
            [format!("policy.{key}={value}"), "transfer.queue_pairs=2".to_owned(), "slo.ttft=1s".to_owned()];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        parse("", &sets).unwrap_or_else(|error| panic!("{error}")).policy
    };
    for (key, name) in [
        ("routing", "prefix-aware"),
        ("routing", "network-aware"),
        ("order", "earliest-deadline"),
        ("order", "deficit-round-robin"),
        ("order", "strict-priority"),
        ("rails", "least-inflight"),
        ("failover", "cooldown"),
        ("coalescing", "staging"),
        ("coalescing", "auto"),
    ] {
        let alone = policy(key, name);
        assert_eq!(alone, policy(key, &format!("{{{name}: {{}}}}")), "{key}: {name}");
        assert_eq!(alone == PolicySpec::default(), key == "failover", "{key}: {name}");
    }
    for (set, lacks) in
        [("replica=fixed", "copy"), ("granularity=layer-wise", "layers"), ("admission=refuse", "waiting")]
    {
        let why = problem("", &[&format!("policy.{set}")]);
        assert!(why.contains("alone says too little") && why.contains(&format!("`{lacks}`")), "{why}");
    }
}

#[test]
fn coalescing_is_a_name_or_has_parameters() {
    let of = |text: &str| parse("", &[&format!("policy.coalescing={text}")]).unwrap().policy.coalescing;
    assert_eq!(of("direct"), Coalescing::Direct);
    assert_eq!(of("staging"), Coalescing::Staging(StagingSpec::default()));
    assert_eq!(of("auto"), Coalescing::Auto(AutoSpec::default()));
    let staging = of("{staging: {slot: 1MiB, slots: 3}}");
    let want = StagingSpec { slot: models::ByteSize(1 << 20), slots: 3, ..StagingSpec::default() };
    assert_eq!(staging, Coalescing::Staging(want));
    for coalescing in ["staging", "{auto: {copy: 7us, copy_rate: 800Gb/s}}"] {
        let spec = parse("", &[&format!("policy.coalescing={coalescing}")]).unwrap();
        let resolved = spec.resolved().unwrap();
        assert_eq!(parse(&resolved, &[]).unwrap(), spec, "{resolved}");
    }
    let staged = ["cluster.prefill.tp=8", "cluster.decode.tp=1"];
    for (coalescing, parts) in [
        ("stagin", &["policy.coalescing", "stagin", "staging"][..]),
        ("{staging: {slots: 0}}", &["slots", "0"]),
        ("{staging: {slot: 100B}}", &["policy.coalescing.staging.slot", "100B", "512 bytes"]),
        ("{auto: {slots: 7}}", &["policy.coalescing.auto.slots", "7 is not 8"]),
        ("{staging: {ring: 2}}", &["ring", "slot"]),
    ] {
        let set = format!("policy.coalescing={coalescing}");
        let why = problem("", &[&set, staged[0], staged[1]]);
        assert!(parts.iter().all(|part| why.contains(part)), "{why}");
    }
    let why = problem("", &["policy.coalescing=staging", "policy.direction=pull"]);
    assert!(why.contains("policy.coalescing") && why.contains("push"), "{why}");
}
