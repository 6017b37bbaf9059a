//! The walk: breadth first, each state made again from the steps that lead to it.

use std::sync::atomic::{AtomicUsize, Ordering};

use engine::map::Map;
use engine::transfer::Rules;

use super::base::Base;
use super::cell::Cell;
use super::scope::Scope;
use super::step::Step;

/// Bounds of a walk.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// States to visit at most.
    pub states: usize,
    /// Threads that work at a time. The outcome does not depend on it.
    pub threads: usize,
}

/// A state in which something does not hold.
#[derive(Clone, Debug)]
pub struct Found {
    /// What must hold.
    pub law: &'static str,
    /// What is there instead.
    pub what: String,
    /// The steps that lead there: no other path to a violation is shorter.
    pub path: Vec<Step>,
    /// The same, for people.
    pub trace: Vec<String>,
}

/// What a walk saw.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// States that were visited.
    pub states: usize,
    /// Steps that were taken out of them.
    pub edges: usize,
    /// The longest of the shortest paths to a state.
    pub depth: usize,
    /// States in which nothing but a fault could happen.
    pub ends: usize,
    /// Whether there is no other state: neither a bound nor a violation ended the walk.
    pub complete: bool,
    /// The first violation.
    pub found: Option<Found>,
}

/// No state before this one.
const FIRST: u32 = u32::MAX;
/// States that are worked on before the next look at the bound: keeps memory and waiting bounded.
const SLICE: usize = 4096;

/// What a step out of a state led to.
struct Edge {
    from: u32,
    step: Step,
    fingerprint: u128,
    broken: bool,
}

/// What a state turned out to be.
struct Looked {
    edges: Vec<Edge>,
    end: bool,
    /// It is an end in which something is held.
    broken: bool,
}

/// States found so far, each by the one before it and the step between.
struct Tree {
    back: Vec<(u32, Option<Step>)>,
}

impl Tree {
    fn path(&self, mut state: u32) -> Vec<Step> {
        let mut path = Vec::new();
        while let Some((before, Some(step))) = self.back.get(state as usize).copied() {
            path.push(step);
            state = before;
        }
        path.reverse();
        path
    }
}

fn replay<'a>(base: &'a Base, path: &[Step]) -> Result<Cell<'a>, String> {
    let mut cell = Cell::new(base)?;
    path.iter().for_each(|step| cell.apply(*step));
    Ok(cell)
}

/// Faults may strike or not: a state in which nothing else can happen is an end.
fn is_fault(step: &Step) -> bool {
    matches!(
        step,
        Step::Overtaken(_) | Step::ExecuteUnheard(_) | Step::Die(..) | Step::Pause | Step::LeaseEnds(_)
    )
}

fn look(base: &Base, tree: &Tree, state: u32, buffer: &mut Vec<u8>) -> Result<Looked, String> {
    let path = tree.path(state);
    let mut own = Some(replay(base, &path)?);
    let steps = own.as_ref().map(Cell::steps).unwrap_or_default();
    let end = steps.iter().all(is_fault);
    let mut looked = Looked { edges: Vec::with_capacity(steps.len()), end, broken: false };
    if end && let Some(cell) = &mut own {
        cell.check_end();
        looked.broken = cell.broken.is_some();
    }
    for step in steps.into_iter().rev() {
        let mut cell = match own.take() {
            Some(cell) => cell,
            None => replay(base, &path)?,
        };
        cell.apply(step);
        let (fingerprint, broken) = (cell.fingerprint(buffer), cell.broken.is_some());
        looked.edges.push(Edge { from: state, step, fingerprint, broken });
    }
    looked.edges.reverse();
    Ok(looked)
}

/// Looks at states, on several threads; what comes back is in their order.
fn look_at(
    base: &Base,
    tree: &Tree,
    states: std::ops::Range<u32>,
    threads: usize,
) -> Result<Vec<Looked>, String> {
    let next = AtomicUsize::new(states.start as usize);
    let worker = || {
        let (mut buffer, mut done) = (Vec::new(), Vec::new());
        loop {
            let from = next.fetch_add(16, Ordering::Relaxed);
            if from >= states.end as usize {
                return Ok(done);
            }
            for state in from as u32..states.end.min(from as u32 + 16) {
                done.push((state, look(base, tree, state, &mut buffer)?));
            }
        }
    };
    let mut all = Vec::with_capacity(states.len());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
        let mut take = |done: Result<Vec<(u32, Looked)>, String>| done.map(|done| all.extend(done));
        take(worker())?;
        for worker in workers {
            match worker.join() {
                Ok(done) => take(done)?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok::<(), String>(())
    })?;
    all.sort_by_key(|(state, _)| *state);
    Ok(all.into_iter().map(|(_, looked)| looked).collect())
}

/// Walks a scope under some rules, until a violation, the bound or the end. `progress` is told states and depth, and says whether to go on.
///
/// # Errors
/// Only if the scope contradicts itself.
pub fn walk(
    scope: &Scope,
    rules: Rules,
    limits: Limits,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Outcome, String> {
    let base = Base::new(*scope, rules)?;
    let mut known: Map<u128, ()> = Map::default();
    let mut tree = Tree { back: vec![(FIRST, None)] };
    known.insert(Cell::new(&base)?.fingerprint(&mut Vec::new()), ());
    let mut outcome = Outcome { states: 1, edges: 0, depth: 0, ends: 0, complete: false, found: None };
    // Where the states of the next depth begin.
    let (mut at, mut level) = (0u32, 1u32);
    loop {
        if at as usize == tree.back.len() {
            outcome.complete = true;
            return Ok(outcome);
        }
        if at == level {
            outcome.depth += 1;
            level = tree.back.len() as u32;
        }
        if tree.back.len() >= limits.states || !progress(tree.back.len(), outcome.depth) {
            return Ok(outcome);
        }
        let until = level.min(at + SLICE as u32);
        for (state, looked) in (at..).zip(look_at(&base, &tree, at..until, limits.threads.max(1))?) {
            outcome.ends += usize::from(looked.end);
            if looked.broken {
                outcome.found = Some(found(&base, tree.path(state))?);
                return Ok(outcome);
            }
            for edge in looked.edges {
                outcome.edges += 1;
                if edge.broken {
                    let mut path = tree.path(edge.from);
                    path.push(edge.step);
                    outcome.found = Some(found(&base, path)?);
                    return Ok(outcome);
                }
                if known.insert(edge.fingerprint, ()).is_none() {
                    tree.back.push((edge.from, Some(edge.step)));
                    outcome.states += 1;
                }
            }
        }
        at = until;
    }
}

/// Takes a path once more, and tells what happens on it.
fn found(base: &Base, path: Vec<Step>) -> Result<Found, String> {
    let mut cell = Cell::new(base)?;
    let mut trace = Vec::with_capacity(path.len());
    for step in &path {
        cell.said = Some(String::new());
        cell.apply(*step);
        let said = cell.said.take().unwrap_or_default();
        trace.push(format!("{step} {said}").trim_end().to_owned());
    }
    if cell.broken.is_none() {
        cell.check_end();
    }
    let (law, what) = match cell.broken {
        Some(broken) => (broken.law, broken.what),
        None => return Err("a path that led to a violation does so no more".to_owned()),
    };
    Ok(Found { law, what, path, trace })
}
