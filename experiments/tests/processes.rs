//! `kvrail registry`, `kvrail node` and `kvrail run --fabric verbs` as far as they go without a device.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use engine::driver;
use engine::time::Span;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

fn kvrail(args: &[&str]) -> Output {
    command(args).output().expect("the command starts")
}

/// This exit status, and these words on standard error.
#[track_caller]
fn fails(status: i32, args: &[&str], parts: &[&str]) {
    let output = kvrail(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {error}");
    for part in parts {
        assert!(error.contains(part), "{args:?}: {error}\nlacks {part}");
    }
}

/// A process that is killed with its test.
struct Process(Child);

impl Process {
    fn start(args: &[&str]) -> Self {
        let child = command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Process(child.expect("the command starts"))
    }

    /// The registry, and its address.
    fn registry(more: &[&str]) -> (Self, String) {
        let args = [&["registry", "--bind", "tcp://127.0.0.1:*"], more].concat();
        let mut process = Self::start(&args);
        let mut line = String::new();
        let out = process.0.stdout.as_mut().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("a line");
        assert!(line.starts_with("tcp://127.0.0.1:"), "{line}");
        (process, line.trim().to_owned())
    }

    /// Its exit status, once it ends by itself.
    #[track_caller]
    fn ends(&mut self) -> Option<i32> {
        let end = driver::now() + Span::s(30);
        loop {
            if let Some(status) = self.0.try_wait().expect("waits") {
                return status.code();
            }
            assert!(driver::now() < end, "it does not end");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        let _ = self.0.stderr.take().expect("piped").read_to_string(&mut text);
        text
    }

    fn signal(&self, name: &str) {
        let line = format!("kill -{name} {}", self.0.id());
        assert!(Command::new("sh").args(["-c", &line]).status().expect("sh").success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn wrong_arguments_are_bad_input() {
    let registry = ["--registry", "tcp://127.0.0.1:5555"];
    let node = |more: &[&'static str]| [&["node", "quickstart.yaml"], &registry[..], more].concat();
    fails(2, &["node", "quickstart.yaml"], &["--registry"]);
    fails(
        2,
        &node(&["--name", "prefill-2"]),
        &["prefill-2", "router, prefill-0, prefill-1, decode-0, decode-1"],
    );
    fails(2, &node(&["--name", "registry"]), &["registry", "expected one of router"]);
    fails(2, &node(&["--name", "router", "--set", "seeds=[1,2]"]), &["several seeds", "--seed"]);
    fails(2, &["registry"], &["--bind"]);
    fails(2, &["registry", "--bind", "tcp://127.0.0.1:0", "--lease", "1ms"], &["--lease", "1ms", "10ms"]);
    fails(2, &["registry", "--bind", "tcp://*:5555", "--set", "transfer.lease=1s"], &["FILE.yaml"]);
    fails(2, &["run", "quickstart.yaml", "--fabric", "roce"], &["roce", "sim, verbs"]);
    fails(2, &["run", "quickstart.yaml", "--external"], &["--external", "--fabric verbs"]);
    fails(2, &["run", "quickstart.yaml", "--collect", "tcp://*:1"], &["--collect", "--fabric verbs"]);
    fails(2, &["run", "quickstart.yaml", "--fabric", "verbs", "--external"], &["--collect"]);
    // What only the simulator can do is not passed over.
    let faults = "faults=[{at: 1s, crash: {node: decode-0}}]";
    for (set, parts) in [
        (faults, &["faults", "1 fault", "only the simulator", "--set faults=[]", "--fabric sim"][..]),
        ("invariants=always", &["invariants", "--set invariants=none"]),
        ("control.loss=0.1", &["control.loss", "0.1", "--set control.loss=0"]),
    ] {
        fails(2, &["run", "quickstart.yaml", "--fabric", "verbs", "--set", set], parts);
        fails(2, &node(&["--name", "router", "--set", set]), parts);
        fails(2, &["registry", "quickstart.yaml", "--bind", "tcp://127.0.0.1:*", "--set", set], parts);
    }
    fails(2, &["run", "outage.yaml", "--fabric", "verbs"], &["outage.yaml:", "faults", "faults=[]"]);
    fails(2, &["run", "quickstart.yaml", "--fabric", "verbs", "--check"], &["--check", "--fabric sim"]);
    for (set, parts) in [
        ("verbs.prefill.devices=[mlx5_0/0]", &["verbs.prefill.devices", "mlx5_0/0", "mlx5_0/1"][..]),
        ("verbs.prefill.devices=[a, a]", &["verbs.prefill.devices", "twice"]),
        ("verbs.prefil.devices=[a]", &["prefil", "did you mean `prefill`?"]),
        ("verbs.traffic_class=256", &["verbs.traffic_class", "256", "0 to 255"]),
        ("verbs.dscp=64", &["verbs.dscp", "64", "0 to 63"]),
        ("verbs={dscp: 26, traffic_class: 4}", &["verbs.dscp", "both"]),
        ("verbs.service_level=16", &["verbs.service_level", "0 to 15"]),
        ("verbs.hop_limit=0", &["verbs.hop_limit", "1 to 255"]),
        ("verbs.spin=20", &["verbs.spin", "no unit"]),
        ("verbs.memory=gpu", &["verbs.memory", "huge-pages"]),
        ("verbs.simulate_as=cx9", &["verbs.simulate_as", "cx9", "connectx-7-400g"]),
        (
            "verbs.reach=[{local: mlx5_0, remote: 10.0.0.0/33}]",
            &["verbs.reach", "10.0.0.0/33", "10.0.1.0/24"],
        ),
        ("transfer.min_rnr_timer=32", &["transfer.min_rnr_timer", "0 to 31"]),
        ("transfer.max_rd_atomic=17", &["transfer.max_rd_atomic", "17", "16"]),
    ] {
        fails(2, &["check", "quickstart.yaml", "--set", set], parts);
    }
}

#[test]
fn what_the_host_lacks_has_its_own_status() {
    for wrong in ["tcp://127.0.0.1", "tcp://127.0.0.1:70000", "somewhere"] {
        fails(3, &["registry", "--bind", wrong], &[wrong, "expected tcp://HOST:PORT"]);
    }
    // An address of nobody here (RFC 5737).
    fails(3, &["registry", "--bind", "tcp://192.0.2.1:5555"], &["192.0.2.1", "an address of this host"]);
    let (_registry, address) = Process::registry(&[]);
    fails(3, &["registry", "--bind", &address], &[&address, "another process has it"]);
}

#[cfg(not(feature = "verbs"))]
#[test]
fn without_verbs_it_says_how_to_get_them() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-verbs");
    let out = out.to_string_lossy();
    fails(3, &["run", "quickstart.yaml", "--fabric", "verbs", "--out", &out], &["--features verbs"]);
    let registry = ["--registry", "tcp://127.0.0.1:5555"];
    let node = [&["node", "quickstart.yaml", "--name", "prefill-0"], &registry[..]].concat();
    fails(3, &node, &["--features verbs"]);
}

#[test]
fn the_router_joins_and_leaves_when_told() {
    let (mut registry, address) = Process::registry(&["quickstart.yaml"]);
    let node = ["node", "quickstart.yaml", "--name", "router", "--registry", &address];
    let mut router = Process::start(&node);
    std::thread::sleep(std::time::Duration::from_millis(500));
    router.signal("TERM");
    assert_eq!(router.ends(), Some(0));
    let said = router.errors();
    assert!(said.contains("router: started") && said.contains("frames"), "{said}");
    assert!(!said.contains("router: 0 frames"), "the registry answered: {said}");
    registry.signal("INT");
    assert_eq!(registry.ends(), Some(0));
    let said = registry.errors();
    assert!(said.contains("0 malformed, 0 refused"), "{said}");
}

#[test]
fn a_tied_process_ends_with_its_parent() {
    let (mut registry, address) = Process::registry(&["--tied"]);
    let node = ["node", "quickstart.yaml", "--name", "router", "--tied", "--registry", &address];
    let mut router = Process::start(&node);
    drop(router.0.stdin.take());
    assert_eq!(router.ends(), Some(0));
    drop(registry.0.stdin.take());
    assert_eq!(registry.ends(), Some(0));
}

#[test]
fn nodes_that_do_not_come_are_named() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nobody");
    let out = out.to_string_lossy();
    let (_registry, address) = Process::registry(&[]);
    let mut run = Process::start(&[
        "run",
        "quickstart.yaml",
        "--fabric",
        "verbs",
        "--external",
        "--collect",
        "tcp://127.0.0.1:*",
        "--patience",
        "3",
        "--out",
        &out,
    ]);
    let mut said = String::new();
    let mut errors = BufReader::new(run.0.stderr.take().expect("piped"));
    errors.read_line(&mut said).expect("a line");
    let collect = said.trim().rsplit(' ').next().expect("an address").to_owned();
    assert!(collect.starts_with("tcp://"), "{said}");
    // The router comes; of an experiment with another name.
    let node = ["node", "quickstart.yaml", "--name", "router", "--registry", &address, "--collect", &collect];
    let _router = Process::start(&[&node[..], &["--set", "name=other"]].concat());
    errors.read_to_string(&mut said).expect("text");
    assert_eq!(run.ends(), Some(3), "{said}");
    for part in
        ["within 3 s", "nothing was heard of prefill-0, prefill-1, decode-0, decode-1", "another experiment"]
    {
        assert!(said.contains(part), "{said}");
    }
    assert!(!said.contains("router, prefill-0"), "{said}");
}
