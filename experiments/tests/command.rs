//! The `kvrail` command as scripts see it: exit status, streams, files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn kvrail(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvrail"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("the command starts")
}

/// Exit status 2, nothing on standard output, and these on standard error.
fn refused(args: &[&str], parts: &[&str]) {
    let output = kvrail(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    assert!(output.stdout.is_empty(), "{args:?}");
    for part in parts {
        assert!(error.contains(part), "{args:?}: {error}\nlacks {part}");
    }
}

/// A folder of its own under the build's, empty.
fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a scratch folder");
    folder
}

#[test]
fn help_and_version_are_no_errors() {
    for args in [&["--help"][..], &["--version"], &["run", "--help"], &["flows", "--help"]] {
        let output = kvrail(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty());
    }
    assert!(String::from_utf8_lossy(&kvrail(&["run", "--help"]).stdout).contains("Examples:"));
}

#[test]
fn wrong_arguments_are_bad_input() {
    refused(&[], &["Usage"]);
    refused(&["fly"], &["fly"]);
    refused(&["run"], &["FILE.yaml"]);
    refused(&["run", "quickstart.yaml", "--threads", "0"], &["0"]);
    refused(&["run", "quickstart.yaml", "--seed", "x"], &["x"]);
    refused(&["models", "--dtype", "bf15"], &["bf15", "did you mean `bf16`?"]);
    refused(&["models", "--tp", "0"], &["--tp 0"]);
}

#[test]
fn wrong_experiments_are_bad_input() {
    refused(&["run", "nowhere.yaml"], &["nowhere.yaml"]);
    refused(&["check", "quickstart.yaml", "--set", "cluster.prefill.tp=3"], &["cluster.prefill", "tp 3"]);
    refused(
        &["check", "quickstart.yaml", "--set", "cluster.prefill.page_size=0"],
        &["page_size", "0", "1 to"],
    );
    refused(&["check", "quickstart.yaml", "--set", "polcy.order=fifo"], &["polcy", "did you mean `policy`?"]);
    refused(&["check", "quickstart.yaml", "--set", "cluster.link=400"], &["cluster.link", "no unit", "Gb/s"]);
    refused(&["run", "quickstart.yaml", "--set", "model=Cargo.toml/"], &["model"]);
    refused(&["check", "quickstart.yaml", "--set", "workload.path=nowhere.jsonl"], &["nowhere.jsonl"]);
    refused(
        &["check", "quickstart.yaml", "--set", "workload.path=Cargo.toml"],
        &["Cargo.toml:1", "not recognised"],
    );
    refused(&["check", "quickstart.yaml", "--set", "a.b"], &["a.b", "PATH=VALUE"]);
    refused(&["check", "quickstart.yaml", "--set", "model=lama-3.1-8b"], &["did you mean `llama-3.1-8b`?"]);
}

/// What would only be seen in a run, as requests that never start or as one that never ends.
#[test]
fn what_could_never_work_is_refused_before_the_run() {
    for (set, parts) in [
        ("cluster.nic=cx7", &["cluster.nic", "cx7", "connectx-7-400g"][..]),
        ("compute.profile=h200", &["compute.profile", "h200", "h100-tp8-llama-70b"]),
        ("cluster.decode.dp=3", &["cluster.decode", "dp 3", "1, 2, 4"]),
        ("cluster.decode.pp=5", &["cluster.decode", "pp 5", "1 to 4"]),
        ("cluster.link=0Gb/s", &["cluster.link", "400Gb/s"]),
        (
            "cluster.decode.memory={pages: 1}",
            &["cluster.decode.memory", "16 tokens", "not one of the 100 requests"],
        ),
        ("policy.rails=striped", &["policy.rails", "transfer.queue_pairs"]),
        ("policy.window.bytes=0B", &["policy.window.bytes", "64MiB"]),
        ("policy.granularity=layer-wise", &["policy.granularity", "give {layer-wise: ..}"]),
        ("transfer.queue_pairs=1000", &["transfer.queue_pairs", "1000", "256"]),
        ("transfer.send_depth=1000000", &["transfer.send_depth", "1000000", "32768"]),
        ("transfer.send_depth=1", &["transfer.send_depth", "at least 2"]),
        ("transfer.receive_depth=8", &["transfer.receive_depth", "8 receives", "16"]),
        ("transfer.max_sge=31", &["transfer.max_sge", "31", "30"]),
        ("transfer.lease=0s", &["transfer.lease", "at least 10ms"]),
        ("transfer.retransmit=0s", &["transfer.retransmit", "at least 100us"]),
        ("transfer.room_timeout=0s", &["transfer.room_timeout", "at least 1ms"]),
        ("control.loss=1", &["control.loss", "0.9"]),
    ] {
        refused(&["check", "quickstart.yaml", "--set", set], parts);
    }
    refused(
        &["flows", "quickstart.yaml", "--hosts", "4294967295", "--gbps", "1", "--latency-us", "1"],
        &["--hosts"],
    );
}

#[test]
fn every_experiment_of_the_repository_is_right() {
    let folder = std::fs::read_dir(env!("CARGO_MANIFEST_DIR")).expect("this folder");
    let mut seen = 0;
    for entry in folder {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|end| end == "yaml") {
            let output = kvrail(&["check", &path.display().to_string()]);
            assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen}");
}

#[test]
fn an_expectation_that_does_not_hold_is_status_1_and_says_why() {
    let out = scratch("expected").display().to_string();
    let run = ["run", "quickstart.yaml", "--quiet", "--out", &out];
    // Four pages hold hardly any request.
    let output = kvrail(&[&run[..], &["--set", "cluster.decode.memory={pages: 4}"]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    for part in ["requests.rejected", "<-", "rejected: does not fit into an instance's memory"] {
        assert!(error.contains(part), "{error}\nlacks {part}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn what_a_run_writes_can_be_run_again_and_gives_the_same_digest() {
    let (first, again) = (scratch("first"), scratch("again"));
    let run = |file: &str, out: &Path, more: &[&str]| {
        let out = out.display().to_string();
        let output = kvrail(&[&["run", file, "--quiet", "--out", &out], more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.is_empty() && output.stderr.is_empty());
    };
    run("quickstart.yaml", &first, &["--set", "seeds=[7,8,9]", "--threads", "2"]);
    run(&first.join("experiment.yaml").display().to_string(), &again, &[]);
    let summary = |folder: &Path| -> serde_json::Value {
        let text = std::fs::read_to_string(folder.join("summary.json")).expect("summary.json");
        serde_json::from_str(&text).expect("JSON")
    };
    let (first, again) = (summary(&first), summary(&again));
    assert_eq!(first["digest"].as_array().map(Vec::len), Some(3));
    assert_eq!(first["digest"], again["digest"]);
    for key in ["ttft_ms", "tpot_ms", "transfer_ms", "exposed_transfer_ms", "bytes_moved", "events", "leaks"]
    {
        assert!(!first[key].is_null() && first[key] == again[key], "{key}");
    }
}

/// Real bytes, written by prefill or read by decode: the same KV moves, and is checked where it arrives.
#[test]
fn either_side_can_move_the_bytes() {
    let moved = |direction: &str| {
        let folder = scratch(direction);
        let (set, out) = (format!("policy.direction={direction}"), folder.display().to_string());
        let output = kvrail(&["run", "quickstart.yaml", "--quiet", "--set", &set, "--out", &out]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let rows = rows(&folder);
        assert!(rows.iter().all(|row| row["state"] == "succeeded"));
        rows.iter().map(|row| picos(row, "bytes")).sum::<u64>()
    };
    assert_eq!(moved("push"), moved("pull"));
}

/// Pools of 40 GiB take the NIC longer to register than many a run takes: that is no request's waiting time.
#[test]
fn requests_arrive_when_every_instance_is_there() {
    let folder = scratch("warm-up");
    let args = [
        "run",
        "mooncake.yaml",
        "--quiet",
        "--set",
        "workload.limit=1",
        "--out",
        &folder.display().to_string(),
    ];
    let output = kvrail(&args);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let row = &rows(&folder)[0];
    let waited = picos(row, "prefill_start_ps") - picos(row, "arrival_ps");
    assert!(waited < 1_000_000_000, "{waited} ps");
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_is_status_130() {
    let folder = scratch("interrupted");
    let out = folder.display().to_string();
    let args =
        ["run", "speed.yaml", "--quiet", "--set", "workload.synthetic.requests=10000000", "--out", &out];
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvrail"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .spawn()
        .expect("the command starts");
    // Into the run, where Ctrl-C is caught; before, the signal itself would end the process.
    let tick = std::time::Duration::from_millis(100);
    for _ in 0..600 {
        if folder.join("experiment.yaml").exists() {
            break;
        }
        std::thread::sleep(tick);
    }
    std::thread::sleep(tick * 10);
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(sent.success());
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
}

#[test]
fn a_model_config_without_its_fields_is_bad_input() {
    let path = scratch("config").join("config.json");
    std::fs::write(&path, "{\"model_type\": \"llama\"}").expect("written");
    let set = format!("model={}", path.display());
    refused(&["check", "quickstart.yaml", "--set", &set], &["config.json"]);
}

#[test]
fn wrong_traces_are_bad_input() {
    let folder = scratch("traces");
    let good = "{\"timestamp\": 5, \"input_length\": 7, \"output_length\": 3, \"hash_ids\": [1]}\n";
    for (name, text, parts) in [
        ("json", format!("{good}oops\n"), &[":2", "oops"][..]),
        ("back", format!("{good}{}", good.replace('5', "4")), &[":2", "back in time"]),
        ("cut", format!("{good}{}", &good[..40]), &[":2", "truncated"]),
        ("zero", good.replace("7,", "0,"), &[":1", "input_length", "0"]),
        ("none", "TIMESTAMP,ContextTokens,GeneratedTokens\n".to_owned(), &["none", "no requests"]),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("written");
        let set = format!("workload.path={}", path.display());
        refused(&["check", "quickstart.yaml", "--set", &set], parts);
        let out = folder.join("out").display().to_string();
        refused(&["run", "quickstart.yaml", "--quiet", "--set", &set, "--out", &out], parts);
    }
}

#[test]
fn check_describes_the_experiment() {
    let set = "workload.path=traces/chat-tiny.jsonl";
    let output = kvrail(&["check", "quickstart.yaml", "--set", set]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("153 requests") && text.contains("tiny-gqa"), "{text}");
    assert!(!text.contains("rejected"), "the trace fits the tiny models: {text}");

    // What it resolves to is an experiment, and the same one.
    let resolved = kvrail(&["check", "quickstart.yaml", "--resolved"]);
    let path = scratch("resolved").join("experiment.yaml");
    std::fs::write(&path, &resolved.stdout).expect("written");
    let again = kvrail(&["check", &path.display().to_string(), "--resolved"]);
    assert_eq!(again.stdout, resolved.stdout);
}

#[test]
fn models_are_listed() {
    let output = kvrail(&["models"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    assert!(text.contains("llama-3.1-70b") && text.contains("327680"), "{text}");
}

#[test]
fn an_output_folder_that_cannot_be_made_is_the_environment() {
    let file = scratch("blocked").join("file");
    std::fs::write(&file, "").expect("written");
    let output = kvrail(&["run", "quickstart.yaml", "--out", &file.join("under").display().to_string()]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("cannot write") && error.contains("--out"), "{error}");
}

/// The rows of a run's `requests.csv`, each by the names of the columns.
fn rows(folder: &Path) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_path(folder.join("requests.csv")).expect("requests.csv");
    reader.deserialize().map(|row| row.expect("a row")).collect()
}

fn picos(row: &BTreeMap<String, String>, column: &str) -> u64 {
    row[column].parse().unwrap_or_else(|_| panic!("{column} is `{}`", row[column]))
}

/// 16 handoffs of 1,342,177,280 bytes into one decode instance share its link: payload alone takes 859.0 ms at 25 GB/s, and with the
/// headers of RoCEv2 at MTU 4096 on ConnectX-7 at 200 Gb/s 4178/4096 of that, 876.2 ms.
#[test]
fn sixteen_handoffs_into_one_instance_take_what_its_link_takes() {
    let folder = scratch("incast");
    let out = folder.display().to_string();
    for (sets, expected_ms, tolerance) in [
        (&[][..], 859.0, 1e-3),
        (&["--set", "cluster.nic=connectx-7-400g", "--set", "cluster.link=200Gb/s"], 876.0, 1e-2),
    ] {
        let output = kvrail(&[&["run", "incast.yaml", "--quiet", "--out", &out], sets].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let rows = rows(&folder);
        assert_eq!(rows.len(), 16);
        assert!(rows.iter().all(|row| picos(row, "bytes") >= 1_342_177_280));
        let start = rows.iter().map(|row| picos(row, "transfer_start_ps")).min().unwrap_or(0);
        let end = rows.iter().map(|row| picos(row, "success_ps")).max().unwrap_or(0);
        let longest = rows
            .iter()
            .map(|row| picos(row, "success_ps") - picos(row, "transfer_start_ps"))
            .max()
            .unwrap_or(0);
        for (what, ps) in [("first to last", end - start), ("longest", longest)] {
            let ms = ps as f64 / 1e9;
            assert!(
                (ms / expected_ms - 1.0).abs() <= tolerance,
                "{sets:?}: {what} {ms} ms, not {expected_ms}"
            );
        }
    }
}

/// What is explored follows from the seeds alone, and a rule that is switched off is missed; the case that shows it replays.
#[test]
fn exploration_finds_a_mistake_and_the_case_replays() {
    let folder = scratch("explore");
    let out = folder.to_string_lossy().into_owned();
    let digest = |threads: &str| {
        let output = kvrail(&[
            "explore",
            "--seeds",
            "12",
            "--threads",
            threads,
            "--out",
            &out,
            "--csv",
            &format!("{out}/c.csv"),
        ]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().find(|line| line.starts_with("digest")).map(ToOwned::to_owned)
    };
    assert!(digest("1").is_some());
    assert_eq!(digest("1"), digest("3"));
    let csv = std::fs::read_to_string(folder.join("c.csv")).expect("the coverage");
    assert!(
        csv.starts_with("what,who,from,to,count,cannot\n") && csv.contains("fault,router,crash,Routed,"),
        "{csv}"
    );

    let output = kvrail(&["explore", "--seeds", "50", "--mistake", "aux_in_part", "--out", &out]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    let file =
        error.lines().find_map(|line| line.trim().strip_prefix("replay: kvrail run ")).expect("a replay");
    let law = error.split("breaks ").nth(1).and_then(|rest| rest.split(':').next()).expect("a law");
    let replay = kvrail(&["run", file, "--out", &format!("{out}/replay")]);
    let said = String::from_utf8_lossy(&replay.stderr).into_owned();
    assert_eq!(replay.status.code(), Some(1), "{said}");
    assert!(said.contains(law), "{law}: {said}");
    let again = kvrail(&["run", file, "--set", "transfer.without=[]", "--out", &format!("{out}/replay")]);
    assert_eq!(again.status.code(), Some(0), "{}", String::from_utf8_lossy(&again.stderr));
}

#[test]
fn explorations_that_cannot_be_are_refused() {
    refused(&["explore", "--seeds", "0"], &["0"]);
    refused(&["explore", "--mistake", "seal"], &["seal", "did you mean `seals`?"]);
    refused(&["explore", "--time", "5"], &["5"]);
    refused(&["explore", "--mistakes", "--show"], &["--show"]);
}

#[test]
fn a_walk_of_every_order_says_what_it_saw() {
    let output = kvrail(&["explore", "--exhaustive", "--scope", "fault-free"]);
    let table = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(table.contains("complete, nothing breaks"), "{table}");

    let bounded = kvrail(&["explore", "--exhaustive", "--scope", "deadlines", "--states", "500"]);
    assert!(String::from_utf8_lossy(&bounded.stdout).contains("not complete"));

    let output =
        kvrail(&["explore", "--exhaustive", "--scope", "deadlines", "--without", "fence_before_free"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    for part in [
        "data lands in pages",
        "7 steps lead there",
        "  1 the router creates a room",
        "a deadline of room 1 passes",
    ] {
        assert!(error.contains(part), "{error} lacks {part}");
    }

    let walk = ["explore", "--exhaustive"];
    refused(&[&walk[..], &["--scope", "deadline"]].concat(), &["deadline", "did you mean `deadlines`?"]);
    refused(&[&walk[..], &["--without", "seal"]].concat(), &["seal", "did you mean `seals`?"]);
    refused(&[&walk[..], &["--states", "0"]].concat(), &["0"]);
    refused(&["explore", "--scope", "deadlines"], &["--exhaustive"]);
}
