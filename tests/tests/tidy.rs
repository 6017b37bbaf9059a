//! Style as a test: what review would otherwise have to say again and again.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Files below a folder of the repository with one of these endings, as (path from the root, text).
fn files(folder: &str, endings: &[&str]) -> Vec<(String, String)> {
    let (root, mut found, mut folders) = (root(), Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let from_root = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                found.push((from_root, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no {endings:?} below {folder}");
    found
}

/// Where real time and real devices are: these do what the rest must not.
const EDGES: [&str; 2] = ["engine/src/driver/", "engine/src/fabric/verbs/"];

/// Lines with one of these words in files whose paths do not begin like one of the excepted.
fn lines_with(files: &[(String, String)], words: &[String], except: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| !except.iter().any(|start| path.starts_with(start))) {
        for (line, text) in (1..).zip(text.lines()) {
            if let Some(word) = words.iter().find(|word| text.contains(word.as_str())) {
                wrong.push(format!("{path}:{line}: `{word}`"));
            }
        }
    }
    wrong
}

/// Words in two halves, so that this file does not have them.
fn words(halves: &[(&str, &str)]) -> Vec<String> {
    halves.iter().map(|(a, b)| format!("{a}{b}")).collect()
}

#[track_caller]
fn none(wrong: Vec<String>, why: &str) {
    assert!(wrong.is_empty(), "{why}:\n{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_for_later() {
    let files = files(".", &[".rs", ".toml", ".md", ".yaml", ".yml"]);
    let words = words(&[
        ("todo", "!"),
        ("TO", "DO"),
        ("FIX", "ME"),
        ("XX", "X:"),
        ("unimplemented", "!("),
        ("dbg", "!("),
        ("#[ig", "nore"),
    ]);
    none(lines_with(&files, &words, &[]), "finish it, or leave it out");
}

#[test]
fn decisions_read_no_clock_and_hash_nothing_at_random() {
    let words = words(&[
        ("std::collections::Hash", "Map"),
        ("std::collections::Hash", "Set"),
        ("std::time::", "Instant"),
        ("System", "Time"),
        ("thread::", "spawn"),
        ("Std", "Rng"),
        ("thread_", "rng"),
        ("rand::", "rng("),
    ]);
    // Looked up only, with a hasher that is the same everywhere.
    let except = [&["sim/src/net/fluid.rs"], &EDGES[..]].concat();
    for folder in ["models/src", "engine/src", "sim/src"] {
        none(lines_with(&files(folder, &[".rs"]), &words, &except), "the same seed must give the same bits");
    }
}

#[test]
fn only_the_edges_do_input_and_output() {
    let words = words(&[
        ("std::", "fs"),
        ("std::", "net"),
        ("std::", "env"),
        ("File::", "open"),
        ("print", "ln!("),
        ("eprint", "ln!("),
        ("process::", "exit"),
    ]);
    for folder in ["models/src", "engine/src", "sim/src"] {
        none(lines_with(&files(folder, &[".rs"]), &words, &EDGES), "state machines do no I/O");
    }
}

#[test]
fn floats_in_results_are_the_same_on_every_machine() {
    let words = words(&[
        (".ln", "()"),
        (".ex", "p()"),
        (".pow", "f("),
        (".si", "n()"),
        (".co", "s()"),
        (".log", "10()"),
        (".log", "2()"),
    ]);
    for folder in ["models/src", "engine/src", "sim/src"] {
        none(lines_with(&files(folder, &[".rs"]), &words, &[]), "take them from libm");
    }
}

#[test]
fn files_have_one_reason_to_exist() {
    // Longer than the bound, and why.
    let long = [
        // The fabric's heart: one event loop over hosts, and what a host does with a call.
        "sim/src/fabric/mod.rs",
        "sim/src/fabric/host.rs",
    ];
    let mut wrong = Vec::new();
    for folder in ["models/src", "engine/src", "sim/src", "experiments/src"] {
        for (path, text) in files(folder, &[".rs"]) {
            let lines = text.lines().count();
            if lines > 700 && !long.contains(&path.as_str()) {
                wrong.push(format!("{path} has {lines} lines"));
            }
            if !text.starts_with("//!") && !path.contains("/tests/") {
                wrong.push(format!("{path} does not say what it is for"));
            }
        }
    }
    none(wrong, "cut it where its reasons part");
}

#[test]
fn no_path_of_a_machine() {
    let files = files(".", &[".rs", ".toml", ".md", ".yaml", ".yml", ".json"]);
    let words = words(&[
        ("/ho", "me/"),
        ("/ro", "ot/"),
        ("/tm", "p/"),
        ("/wo", "rk/"),
        ("/Us", "ers/"),
        ("/mn", "t/"),
    ]);
    none(lines_with(&files, &words, &[]), "this is one machine's");
}

#[test]
fn every_yaml_can_be_read() {
    let mut wrong = Vec::new();
    for (path, text) in files(".", &[".yaml", ".yml"]) {
        if let Err(error) = serde_yaml::from_str::<serde_yaml::Value>(&text) {
            wrong.push(format!("{path}: {error}"));
        }
        // What lies beside the crate's folders is an experiment.
        let name = Path::new(&path);
        if name.parent() == Some(Path::new("experiments"))
            && let Err(error) = experiments::spec::Spec::load(&root().join(name), &[])
        {
            wrong.push(format!("{path}: {error}"));
        }
    }
    none(wrong, "broken YAML");
}
