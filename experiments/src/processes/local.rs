//! The nodes of an experiment as processes of this host.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use engine::driver;
use engine::time::Span;

use super::measure::Host;
use crate::build::RunError;
use crate::build::nodes::{Place, places};
use crate::spec::Spec;

/// How often the registry is started again in one run.
const RESTARTS: u32 = 3;
/// How long processes have to end after their standard input was closed, before they are killed: first the others, then the registry.
const GRACE: Span = Span::s(5);
/// The same when the user is waiting for the prompt.
const SHORT_GRACE: Span = Span::ms(700);

/// Child processes, one for each node. They end when their standard input does, that is, with this process at the latest.
pub(crate) struct Local {
    program: PathBuf,
    file: PathBuf,
    seed: u64,
    collect: String,
    /// Where the registry is.
    registry: String,
    restarts: u32,
    grace: Span,
    children: Vec<(Place, Child)>,
}

impl Local {
    /// Starts the registry, then all others. `file` is the resolved experiment, `collect` the measuring process's address.
    pub(crate) fn start(spec: &Spec, seed: u64, file: &Path, collect: &str) -> Result<Self, RunError> {
        super::open::available().map_err(RunError::Environment)?;
        let program = std::env::current_exe()
            .map_err(|error| RunError::Environment(format!("kvrail cannot find its own program: {error}")))?;
        let mut local = Self {
            program,
            file: file.to_owned(),
            seed,
            collect: collect.to_owned(),
            registry: "tcp://127.0.0.1:*".to_owned(),
            restarts: 0,
            grace: GRACE,
            children: Vec::new(),
        };
        for place in places(spec) {
            local.spawn(place)?;
        }
        Ok(local)
    }

    fn spawn(&mut self, place: Place) -> Result<(), RunError> {
        let failed = |what: String| RunError::Environment(format!("{place}: {what}"));
        let mut command = Command::new(&self.program);
        match place {
            Place::Registry => command.arg("registry").arg(&self.file).args(["--bind", &self.registry]),
            _ => command
                .arg("node")
                .arg(&self.file)
                .args(["--name", &place.to_string(), "--registry", &self.registry])
                .args(["--seed", &self.seed.to_string()]),
        };
        command.args(["--collect", &self.collect, "--quiet", "--tied"]);
        let out = if place == Place::Registry { Stdio::piped() } else { Stdio::null() };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(out)
            .spawn()
            .map_err(|error| failed(format!("cannot start {}: {error}", self.program.display())))?;
        if let Some(out) = child.stdout.take() {
            // The registry's first line says where it is; without one it has ended, and said why.
            let mut line = String::new();
            let read = BufReader::new(out).read_line(&mut line);
            if read.is_err() || !line.starts_with("tcp://") {
                let _ = child.kill();
                let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                return Err(failed(format!("it did not start ({status})")));
            }
            self.registry = line.trim().to_owned();
        }
        self.children.push((place, child));
        Ok(())
    }

    /// Processes that run, for tests and messages.
    fn ended(&mut self) -> Vec<(Place, ExitStatus)> {
        let mut ended = Vec::new();
        self.children.retain_mut(|(place, child)| match child.try_wait() {
            Ok(Some(status)) => {
                ended.push((*place, status));
                false
            }
            _ => true,
        });
        ended
    }
}

impl Host for Local {
    fn lost(&mut self) -> Result<Vec<(Place, String)>, RunError> {
        let mut lost = Vec::new();
        for (place, status) in self.ended() {
            if place == Place::Registry && self.restarts < RESTARTS {
                // As whoever runs a cluster would: its clients bring back what it knew.
                self.restarts += 1;
                self.spawn(Place::Registry)?;
            }
            lost.push((place, format!("its process ended ({status})")));
        }
        Ok(lost)
    }

    fn hurry(&mut self) {
        self.grace = SHORT_GRACE;
    }

    fn finish(&mut self) {
        // The registry goes last: the others tell it that they leave, and wait until it knows.
        for registry in [false, true] {
            let goes = |place: &Place| registry || *place != Place::Registry;
            for (_, child) in self.children.iter_mut().filter(|(place, _)| goes(place)) {
                drop(child.stdin.take());
            }
            let end = driver::now() + self.grace;
            while self.children.iter().any(|(place, _)| goes(place)) && driver::now() < end {
                self.ended();
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        for (_, child) in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.children.clear();
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processes that do not listen, as under load: whoever pressed Ctrl-C has the prompt back within 2 s, and they are gone.
    #[test]
    fn an_interrupted_run_does_not_wait_for_long() {
        let sleeps = |place| {
            let mut sleep = Command::new("sleep");
            (place, sleep.arg("60").stdin(Stdio::piped()).spawn().expect("sleep"))
        };
        let mut local = Local {
            program: PathBuf::new(),
            file: PathBuf::new(),
            seed: 1,
            collect: String::new(),
            registry: String::new(),
            restarts: 0,
            grace: GRACE,
            children: vec![sleeps(Place::Registry), sleeps(Place::Router), sleeps(Place::Prefill(0))],
        };
        let ids: Vec<u32> = local.children.iter().map(|(_, child)| child.id()).collect();
        let began = driver::now();
        local.hurry();
        local.finish();
        let took = driver::now().since(began);
        assert!(took < Span::s(2), "{took:?}");
        assert!(local.children.is_empty());
        for id in ids {
            assert!(!Path::new(&format!("/proc/{id}")).exists(), "process {id} is still there");
        }
    }
}
