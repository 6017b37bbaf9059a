//! `kvrail node`.

use std::io::Write;
use std::time::Duration;

use super::{Failure, NodeArgs, interrupt};
use crate::build::nodes::{Place, places};
use crate::processes::{Service, serve};
use crate::spec::Spec;

/// Where launchers put a process's rank: Slurm's srun, Open MPI, PMI (MPICH, Intel MPI), PMIx.
const RANKS: [&str; 4] = ["SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"];
/// How long a node has to end after its parent did.
const ORPHAN: Duration = Duration::from_secs(20);

pub(super) fn node(args: &NodeArgs) -> Result<(), Failure> {
    let mut spec = Spec::load_real(&args.file, &args.sets).map_err(Failure::input)?;
    if let Some(seed) = args.seed {
        spec = spec.with_seed(seed);
    }
    let [seed] = spec.seeds()[..] else {
        return Err(Failure::input("the experiment has several seeds; choose one with --seed"));
    };
    let variable = |name: &str| std::env::var(name).ok();
    let place = place(&places(&spec), args.name.as_deref(), &variable).map_err(Failure::input)?;
    interrupt::catch();
    tie(args.tied);
    let counted = serve(&Service {
        spec: &spec,
        seed,
        place,
        registry: &args.registry,
        collect: args.collect.as_deref(),
        queue: args.queue,
        started: &|_| {
            if !args.quiet {
                let _ = writeln!(std::io::stderr(), "{place}: started, registry {}", args.registry);
            }
        },
        stop: &interrupt::requested,
    })?;
    if !args.quiet {
        let _ = writeln!(std::io::stderr(), "{place}: {counted}");
    }
    Ok(())
}

/// Ends this process when its parent ends.
pub(super) fn tie(tied: bool) {
    if tied {
        interrupt::tie(ORPHAN);
    }
}

/// Which node this is: by its name, or by the rank that a launcher gave it, where rank 0 is the router.
fn place(
    places: &[Place],
    name: Option<&str>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Place, String> {
    let nodes: Vec<Place> = places.iter().copied().filter(|place| *place != Place::Registry).collect();
    let names = || nodes.iter().map(Place::to_string).collect::<Vec<_>>().join(", ");
    if let Some(name) = name {
        return nodes.iter().copied().find(|place| place.to_string() == name).ok_or_else(|| {
            format!("--name {name}: the experiment has no such node, expected one of {}", names())
        });
    }
    let Some((key, value)) = RANKS.iter().find_map(|key| Some((key, variable(key)?))) else {
        return Err(format!(
            "which node is this? give --name (one of {}), or start it with srun or mpirun, which set {}",
            names(),
            RANKS.join(", ")
        ));
    };
    let rank = value.parse::<usize>().ok();
    rank.and_then(|rank| nodes.get(rank)).copied().ok_or_else(|| {
        format!(
            "{key} is {value}, but the experiment has {} nodes: expected rank 0 to {} ({})",
            nodes.len(),
            nodes.len() - 1,
            names()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_found_by_name_or_rank() {
        let places = places(&Spec::default());
        let none = |_: &str| None;
        assert_eq!(place(&places, Some("decode-0"), &none), Ok(Place::Decode(0)));
        for wrong in ["decode-1", "registry", ""] {
            let error = place(&places, Some(wrong), &none).expect_err("no such node");
            assert!(error.contains("router, prefill-0, decode-0"), "{error}");
        }
        let error = place(&places, None, &none).expect_err("no rank");
        assert!(error.contains("SLURM_PROCID"), "{error}");
        for (rank, expected) in [("0", Place::Router), ("1", Place::Prefill(0)), ("2", Place::Decode(0))] {
            for key in RANKS {
                let rank = |name: &str| (name == key).then(|| rank.to_owned());
                assert_eq!(place(&places, None, &rank), Ok(expected));
            }
        }
        for wrong in ["3", "-1", "x"] {
            let error = place(&places, None, &|_| Some(wrong.to_owned())).expect_err("no such rank");
            assert!(error.contains("SLURM_PROCID") && error.contains("rank 0 to 2"), "{error}");
        }
    }
}
