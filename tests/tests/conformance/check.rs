//! Programs, one after the other, until one diverges; that one is shrunk.

use kvrail_tests::conformance::coverage::Coverage;
use kvrail_tests::conformance::model::Expected;
use kvrail_tests::conformance::model::Model;
use kvrail_tests::conformance::outcome::{Seen, differences};
use kvrail_tests::conformance::program::{Program, programs};
use kvrail_tests::conformance::quirks::Used;
use kvrail_tests::conformance::race::{self, Race, races};
use kvrail_tests::conformance::resolve;
use kvrail_tests::conformance::run::{Pace, run};
use kvrail_tests::conformance::script::Script;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sim::fabric::Mistakes;
use sim::fabric::duo::{DuoSpec, SimDuo};

/// How many random programs to run.
pub(crate) fn count() -> u64 {
    match std::env::var("KVRAIL_CONFORMANCE") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("KVRAIL_CONFORMANCE={text:?} is not a number")),
        Err(_) => 500,
    }
}

/// How many where there is nothing but the simulated fabric; in a run that is about devices, not more than needed.
pub(crate) fn simulated_count() -> u64 {
    if std::env::var("KVRAIL_VERBS").is_ok() { 500 } else { count().max(500) }
}

/// A source of programs which is the same everywhere; each stream has others.
pub(crate) fn source(stream: u8) -> TestRunner {
    let rng = match stream {
        0 => TestRng::deterministic_rng(RngAlgorithm::ChaCha),
        other => TestRng::from_seed(RngAlgorithm::ChaCha, &[other; 32]),
    };
    TestRunner::new_with_rng(Config::default(), rng)
}

/// What the simulated fabric makes of a script.
pub(crate) fn simulated(script: &Script, expected: &[Expected], pace: Pace, mistakes: Mistakes) -> Vec<Seen> {
    let mut duo = SimDuo::new(DuoSpec { mistakes, ..DuoSpec::default() }).expect("two hosts and a switch");
    run(&mut duo, script, expected, pace).expect("objects of a program")
}

/// In what the outcome of a script differs from another one's.
pub(crate) fn compare<'a>(
    want: impl Iterator<Item = &'a Seen>,
    seen: &[Seen],
    expected: &[Expected],
    rxe: bool,
    used: &mut Used,
) -> Vec<String> {
    let mut all = Vec::new();
    for (n, ((want, seen), expected)) in want.zip(seen).zip(expected).enumerate() {
        let mut of_round = Vec::new();
        differences(want, seen, &expected.either, rxe, used, &mut of_round);
        all.extend(of_round.into_iter().map(|what| format!("round {n}: {what}")));
    }
    all
}

/// A program that diverges, and in what.
pub(crate) struct Divergence {
    /// How many programs it took.
    pub(crate) after: u64,
    /// The smallest one found.
    pub(crate) program: Program,
    /// In what it diverges.
    pub(crate) what: Vec<String>,
}

impl Divergence {
    /// Requests of the program.
    pub(crate) fn requests(&self) -> usize {
        self.program.rounds.iter().flatten().map(|turn| turn.requests.len()).sum()
    }
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (script, _) = resolve(&self.program);
        writeln!(f, "program {} diverges; shrunk to {:#?}", self.after, self.program)?;
        writeln!(f, "which is {script:#?}")?;
        self.what.iter().try_for_each(|what| writeln!(f, "{what}"))
    }
}

/// Runs up to `count` programs of a stream, after `prepare`, through `check`, which says in what one diverges; the first that does is shrunk in at most `tries` runs.
pub(crate) fn search(
    stream: u8,
    count: u64,
    tries: u32,
    prepare: fn(Program) -> Program,
    coverage: &mut Coverage,
    mut check: impl FnMut(&Script, &[Expected]) -> Vec<String>,
) -> Option<Divergence> {
    let (mut source, strategy) = (source(stream), programs());
    for after in 1..=count {
        let mut tree = strategy.new_tree(&mut source).expect("no program is rejected");
        let program = prepare(tree.current());
        let (script, expected) = resolve(&program);
        coverage.add(&script, &expected);
        let what = check(&script, &expected);
        if what.is_empty() {
            continue;
        }
        let mut smallest = Divergence { after, program, what };
        let mut more = tree.simplify();
        for _ in 0..tries {
            if !more {
                break;
            }
            let program = prepare(tree.current());
            let (script, expected) = resolve(&program);
            let what = check(&script, &expected);
            more = if what.is_empty() {
                tree.complicate()
            } else {
                smallest = Divergence { after, program, what };
                tree.simplify()
            };
        }
        return Some(smallest);
    }
    None
}

/// Runs `count` programs with races; the first whose outcome is forbidden is shrunk in at most `tries` runs. Returns it with what is wrong.
pub(crate) fn search_races(
    count: u64,
    tries: u32,
    mut run: impl FnMut(&Script, &[Expected]) -> Result<Vec<Seen>, String>,
) -> Option<(u64, Race, Vec<String>)> {
    let mut check = |race: &Race| {
        let script = race::script(race);
        let expected = [Model::new(&script.conns).round(&script.rounds[0])];
        match run(&script, &expected) {
            Err(error) => vec![error],
            Ok(seen) => {
                let mut wrong = race::forbidden(&script, &seen[0]);
                let (want, seen) = (race::determined(&expected[0].seen), race::determined(&seen[0]));
                differences(&want, &seen, &[], false, &mut Used::new(), &mut wrong);
                wrong
            }
        }
    };
    let (mut source, strategy) = (source(0), races());
    for after in 1..=count {
        let mut tree = strategy.new_tree(&mut source).expect("no race is rejected");
        let wrong = check(&tree.current());
        if wrong.is_empty() {
            continue;
        }
        let mut smallest = (after, tree.current(), wrong);
        let mut more = tree.simplify();
        for _ in 0..tries {
            if !more {
                break;
            }
            let wrong = check(&tree.current());
            more = if wrong.is_empty() {
                tree.complicate()
            } else {
                smallest = (after, tree.current(), wrong);
                tree.simplify()
            };
        }
        return Some(smallest);
    }
    None
}
