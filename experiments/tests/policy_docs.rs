//! docs/policies.md and the YAML schema know the same policies, and each has an experiment in which it wins and one in which it loses.

use std::path::{Path, PathBuf};

use experiments::spec::Spec;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The keys under `policy`, and the names that each can have; none where it has parameters only.
fn schema() -> Vec<(String, Vec<String>)> {
    let resolved = Spec::default().resolved().expect("defaults can be written");
    let tree: serde_json::Value = experiments::spec::yaml::parse_as(&resolved).expect("and read");
    let keys = tree["policy"].as_object().expect("policy is a map").keys();
    keys.map(|key| {
        let set = format!("policy.{key}=no-such-name");
        let error =
            Spec::parse("", Path::new("x.yaml"), &[set]).expect_err("no policy has this name").to_string();
        let names =
            error.split_once("(expected one of ").map_or("", |(_, names)| names.trim_end_matches(')'));
        (key.clone(), names.split(", ").filter(|name| !name.is_empty()).map(str::to_owned).collect())
    })
    .collect()
}

/// The section of a key, by its heading.
fn section<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split("\n## ")
        .find(|section| section.lines().next().is_some_and(|title| title.contains(&format!("`{key}`"))))
}

/// The paths of the experiments that a cell links to.
fn experiments_in(cell: &str) -> Vec<PathBuf> {
    let links = cell.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    links
        .filter(|(link, _)| link.ends_with(".yaml"))
        .map(|(link, _)| root().join("docs").join(link))
        .collect()
}

#[test]
fn each_policy_has_a_row_with_an_experiment_that_it_wins_and_one_that_it_loses() {
    let text = std::fs::read_to_string(root().join("docs/policies.md")).expect("docs/policies.md is there");
    let schema = schema();
    assert!(schema.iter().map(|(_, names)| names.len()).sum::<usize>() > 25, "{schema:?}");
    let mut wrong = Vec::new();
    for (key, names) in schema {
        // Window stands where order does: they decide together.
        let at = if key == "window" { "order" } else { &key };
        let Some(section) = section(&text, at) else {
            wrong.push(format!("no heading has `{key}`"));
            continue;
        };
        let rows: Vec<Vec<&str>> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
            .map(|line| line.split(" | ").collect())
            .collect();
        let names = if names.is_empty() { vec![key.clone()] } else { names };
        for name in names.iter().filter(|name| *name != "own") {
            // `name`, `{name: ..}`, `key: name`, `key: {name: ..}`, `key.part`.
            let named = |cell: &str| {
                cell.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').any(|word| word == name)
            };
            let of_it = rows.iter().filter(|row| row.first().is_some_and(|cell| named(cell)));
            let last_two = |row: &Vec<&str>| {
                row.iter().rev().take(2).map(|cell| experiments_in(cell)).collect::<Vec<_>>()
            };
            let linked: Vec<Vec<PathBuf>> = of_it.flat_map(last_two).collect();
            if !linked.chunks(2).any(|cells| cells.len() == 2 && cells.iter().all(|cell| !cell.is_empty())) {
                wrong.push(format!("policy.{key}: {name}: no row links to an experiment that it wins and to one that it loses"));
            }
            for path in linked.iter().flatten() {
                if let Err(error) = Spec::load(path, &[]) {
                    wrong.push(format!("policy.{key}: {name}: {error}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "docs/policies.md:\n{}", wrong.join("\n"));
}
