//! Clusters of real processes: the registry, the nodes and the measuring process of an experiment, each to be killed, stopped and
//! started again.
//!
//! ```no_run
//! use kvrail_tests::cluster::{Cluster, Devices};
//! use std::time::Duration;
//!
//! let Some(devices) = Devices::find() else { return };
//! let mut cluster = Cluster::start(&devices, "quickstart", &["workload.limit=20"]);
//! cluster.wait_for_requests(5, Duration::from_secs(60));
//! cluster.signal("prefill-0", "KILL");
//! let outcome = cluster.finish(Duration::from_secs(120));
//! assert!(outcome.rows.iter().any(|row| row.succeeded()));
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::driver;
use engine::time::{Span, Time};
use serde_json::Value;

/// Tests that use the devices take turns: what one does to the wire is not for the others.
static TURN: Mutex<()> = Mutex::new(());

/// The `kvrail` command with verbs, and one device for each side, for one test at a time.
pub struct Devices {
    /// The command: `KVRAIL_BIN`.
    pub kvrail: PathBuf,
    /// Prefill's device.
    pub prefill: String,
    /// Decode's device.
    pub decode: String,
    _turn: MutexGuard<'static, ()>,
}

impl Devices {
    /// Finds them: `rxeA` and `rxeB`, or the two names in `KVRAIL_DEVICES`. Where there are none, says so and gives none, unless
    /// `KVRAIL_VERBS` is `required`.
    ///
    /// # Panics
    /// Where they are required and missing.
    #[must_use]
    pub fn find() -> Option<Self> {
        let names = std::env::var("KVRAIL_DEVICES").unwrap_or_else(|_| "rxeA,rxeB".to_owned());
        let (prefill, decode) = names.split_once(',').unwrap_or((&names, &names));
        let missing = match std::env::var_os("KVRAIL_BIN") {
            None => Some("KVRAIL_BIN does not name a kvrail command with verbs".to_owned()),
            Some(kvrail) => {
                let there = |name: &str| Path::new("/sys/class/infiniband").join(name).exists();
                match [prefill, decode].into_iter().find(|name| !there(name)) {
                    Some(name) => Some(format!("there is no RDMA device {name}")),
                    None => {
                        let (prefill, decode) = (prefill.to_owned(), decode.to_owned());
                        // A test that failed has given its turn back all the same.
                        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
                        return Some(Self { kvrail: kvrail.into(), prefill, decode, _turn: turn });
                    }
                }
            }
        };
        let missing = missing.unwrap_or_default();
        let required = std::env::var("KVRAIL_VERBS").is_ok_and(|value| value == "required");
        assert!(!required, "{missing}, but KVRAIL_VERBS is `required`");
        eprintln!("SKIPPED: {missing}; tests/soft-roce/run runs this test in a virtual machine");
        None
    }

    /// `--set` options that choose the devices, and for Soft-RoCE the profile of the simulation beside them.
    #[must_use]
    pub fn sets(&self) -> Vec<String> {
        let mut sets = vec![
            format!("verbs.prefill.devices=[{}]", self.prefill),
            format!("verbs.decode.devices=[{}]", self.decode),
        ];
        if self.prefill.starts_with("rxe") {
            sets.push("verbs.simulate_as=soft-roce".to_owned());
        }
        sets
    }
}

/// A folder that goes with its owner.
pub struct Folder(PathBuf);

impl Folder {
    /// A new one.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kvrail-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder for a test");
        Folder(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A row of `requests.csv`, by column.
#[derive(Clone, Debug)]
pub struct Row(BTreeMap<String, String>);

impl Row {
    /// A column as text.
    ///
    /// # Panics
    /// If there is no such column.
    #[must_use]
    pub fn get(&self, column: &str) -> &str {
        self.0.get(column).unwrap_or_else(|| panic!("no column {column}"))
    }
    /// A column as a number; none if it is empty.
    #[must_use]
    pub fn number(&self, column: &str) -> Option<u64> {
        self.get(column).parse().ok()
    }
    /// A time, from the start of the workload; none if the request did not come to it.
    #[must_use]
    pub fn time(&self, column: &str) -> Option<Span> {
        self.number(column).map(Span)
    }
    /// Whether the request finished.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.get("state") == "succeeded"
    }
}

/// What a run left behind.
pub struct Outcome {
    /// Of `kvrail run`.
    pub status: ExitStatus,
    /// What it printed, both streams.
    pub text: String,
    /// `summary.json`; null if there is none.
    pub summary: Value,
    /// `requests.csv`.
    pub rows: Vec<Row>,
}

impl Outcome {
    /// Reads an output folder.
    #[must_use]
    pub fn read(folder: &Path, status: ExitStatus, text: String) -> Self {
        let summary = fs::read_to_string(folder.join("summary.json")).unwrap_or_default();
        let mut rows = Vec::new();
        if let Ok(mut reader) = csv::Reader::from_path(folder.join("requests.csv")) {
            rows.extend(reader.deserialize().filter_map(Result::ok).map(Row));
        }
        Outcome { status, text, summary: serde_json::from_str(&summary).unwrap_or(Value::Null), rows }
    }

    /// A number of `summary.json`, by its path, such as `/requests/failed`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn number(&self, pointer: &str) -> f64 {
        let value = self.summary.pointer(pointer).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("no {pointer} in summary.json"))
    }

    /// Fails unless every request succeeded, every page was verified and nothing leaked.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.status.success(), "{}", self.status);
        assert!(self.number("/requests/total") > 0.0);
        assert_eq!(self.number("/requests/succeeded"), self.number("/requests/total"));
        self.assert_nothing_left();
    }

    /// Fails if anything leaked or arrived wrong.
    ///
    /// # Panics
    /// If so.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.number("/violations"), 0.0);
        assert!(!self.text.contains("invariants do not hold"));
        let leaks = self.summary["leaks"].as_object().expect("leaks");
        assert!(leaks.values().all(|count| count == 0), "{leaks:?}");
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.text);
        }
    }
}

/// Processes of an experiment, with names as in the experiment, and `registry` and `run`.
pub struct Cluster {
    kvrail: PathBuf,
    folder: Folder,
    experiment: PathBuf,
    sets: Vec<String>,
    registry: String,
    collect: String,
    processes: BTreeMap<String, Child>,
    logs: u32,
}

impl Cluster {
    /// Starts the registry, all nodes and the measuring process of `experiments/NAME.yaml` with these `--set` options. The experiment is
    /// taken to have two prefill and two decode instances.
    ///
    /// # Panics
    /// If a process cannot be started.
    #[must_use]
    pub fn start(devices: &Devices, experiment: &str, sets: &[&str]) -> Self {
        let experiments = Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments");
        let mut cluster = Cluster {
            kvrail: devices.kvrail.clone(),
            folder: Folder::new(),
            experiment: experiments.join(format!("{experiment}.yaml")),
            sets: devices.sets().into_iter().chain(sets.iter().map(|set| (*set).to_owned())).collect(),
            registry: free_address(),
            collect: free_address(),
            processes: BTreeMap::new(),
            logs: 0,
        };
        for name in ["run", "registry", "router", "prefill-0", "prefill-1", "decode-0", "decode-1"] {
            cluster.spawn(name);
        }
        cluster
    }

    /// Starts a process, for the first time or again.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(&mut self, name: &str) {
        let mut command = Command::new(&self.kvrail);
        match name {
            "run" => command.args(["run", "--fabric", "verbs", "--external", "--patience", "120", "--out"]),
            "registry" => command.args(["registry", "--bind", &self.registry]),
            node => command.args(["node", "--name", node, "--registry", &self.registry]),
        };
        if name == "run" {
            command.arg(self.out());
        }
        command.arg(&self.experiment).args(["--collect", &self.collect]);
        for set in &self.sets {
            command.args(["--set", set]);
        }
        self.logs += 1;
        let log = self.folder.path().join(format!("{:03}-{name}.log", self.logs));
        let log = File::create(log).expect("a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.kvrail.display()));
        self.processes.insert(name.to_owned(), child);
    }

    /// Sends a signal (`KILL`, `STOP`, `CONT`, `TERM`) to a process; after `KILL` it is waited for.
    ///
    /// # Panics
    /// If there is no such process.
    pub fn signal(&mut self, name: &str, signal: &str) {
        let child = self.processes.get_mut(name).unwrap_or_else(|| panic!("no process {name}"));
        send(child.id(), signal);
        if signal == "KILL" {
            let _ = child.wait();
            self.processes.remove(name);
        }
    }

    /// Id of a process.
    ///
    /// # Panics
    /// If there is no such process.
    #[must_use]
    pub fn pid(&self, name: &str) -> u32 {
        self.processes.get(name).unwrap_or_else(|| panic!("no process {name}")).id()
    }

    /// Whether a process still runs.
    pub fn runs(&mut self, name: &str) -> bool {
        self.processes.get_mut(name).is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits until the measuring process ends, then ends all others.
    ///
    /// # Panics
    /// If that takes longer than `patience`.
    #[track_caller]
    pub fn finish(mut self, patience: Duration) -> Outcome {
        let end = after(patience);
        let status = loop {
            let run = self.processes.get_mut("run").expect("the measuring process");
            if let Some(status) = run.try_wait().expect("waits") {
                break status;
            }
            assert!(driver::now() < end, "no end within {patience:?}");
            std::thread::sleep(Duration::from_millis(20));
        };
        self.processes.remove("run");
        Outcome::read(&self.out(), status, self.text())
    }

    /// Waits until a process has written `text` to one of its streams.
    ///
    /// # Panics
    /// If that takes longer than `patience`.
    #[track_caller]
    pub fn wait_for_text(&self, name: &str, text: &str, patience: Duration) {
        let end = after(patience);
        while !self.log(name).contains(text) {
            assert!(driver::now() < end, "{name} did not say `{text}`");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the workload begins. That moment, a little late.
    ///
    /// # Panics
    /// If that takes longer than `patience`.
    #[track_caller]
    pub fn begin(&self, patience: Duration) -> Time {
        self.wait_for_text("run", "the workload has begun", patience);
        driver::now()
    }

    /// Waits until a process ends by itself. How it ended.
    ///
    /// # Panics
    /// If that takes longer than `patience`.
    #[track_caller]
    pub fn wait_for_end(&mut self, name: &str, patience: Duration) -> ExitStatus {
        let end = after(patience);
        let child = self.processes.get_mut(name).unwrap_or_else(|| panic!("no process {name}"));
        loop {
            if let Some(status) = child.try_wait().expect("waits") {
                self.processes.remove(name);
                return status;
            }
            assert!(driver::now() < end, "{name} did not end within {patience:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until so many requests have ended: the measuring process says so every second.
    ///
    /// # Panics
    /// If that takes longer than `patience`.
    #[track_caller]
    pub fn wait_for_requests(&self, count: u64, patience: Duration) {
        let end = after(patience);
        let ended = |log: &str| {
            let mut counts =
                log.lines().filter_map(|line| line.strip_suffix(" requests ended")?.parse().ok());
            counts.next_back().unwrap_or(0_u64)
        };
        while ended(&self.log("run")) < count {
            assert!(driver::now() < end, "not {count} requests within {patience:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where the output goes.
    #[must_use]
    pub fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// What a process printed, in all its lives.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        self.logs().filter(|(of, _)| of == name).map(|(_, text)| text).collect()
    }

    /// What all processes printed.
    fn text(&self) -> String {
        self.logs().map(|(name, text)| format!("--- {name}\n{text}")).collect()
    }

    fn logs(&self) -> impl Iterator<Item = (String, String)> {
        let entries = fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        let mut logs: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        logs.sort();
        logs.into_iter().filter_map(|path| {
            let name = path.file_stem()?.to_str()?.split_once('-')?.1.to_owned();
            let text = fs::read(&path).ok()?;
            Some((name, String::from_utf8_lossy(&text).into_owned()))
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.text());
        }
        for child in self.processes.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sends a signal to a process.
///
/// # Panics
/// If there is no shell.
pub fn send(pid: u32, signal: &str) {
    let line = format!("kill -{signal} {pid}");
    let status = Command::new("sh").args(["-c", &line]).status().expect("sh");
    assert!(status.success(), "{line}: {status}");
}

fn after(patience: Duration) -> Time {
    driver::now() + Span::ms(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX))
}

/// An address of this host that was free just now.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    format!("tcp://127.0.0.1:{port}")
}
