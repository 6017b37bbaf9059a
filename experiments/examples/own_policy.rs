//! A routing policy of one's own, compared with a built-in one on the quickstart:
//!
//! ```text
//! cargo run --release --example own_policy
//! ```

use std::path::Path;

use engine::policy::{Ask, Candidate, Choice, Routing};
use experiments::build::{Silent, simulate};
use experiments::report::Summary;
use experiments::{own, spec::Spec};

/// Size intervals (Harchol-Balter, Crovella, Murta 1999): short prompts have prefill instances of their own, so that none waits behind a
/// long one. Decode is the instance with the fewest tokens under way.
struct SizeIntervals {
    /// Prompts of fewer tokens are short.
    short: u32,
}

fn fewest(side: &[Candidate], from: usize, to: usize) -> usize {
    (from..to).min_by_key(|i| side[*i].tokens).unwrap_or(0)
}

impl Routing for SizeIntervals {
    fn choose(&mut self, ask: &Ask<'_>) -> Choice {
        let (all, half) = (ask.prefill.len(), ask.prefill.len() / 2);
        let (from, to) = if ask.request.prompt < self.short { (0, half.max(1)) } else { (half, all) };
        Choice { prefill: fewest(ask.prefill, from, to), decode: fewest(ask.decode, 0, ask.decode.len()) }
    }
}

/// The quickstart with a routing policy, by its name in the YAML.
fn run(routing: &str) -> Result<Summary, Box<dyn std::error::Error>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("quickstart.yaml");
    let busy = ["workload.arrival.poisson.rate=600", "transfer.ack_delay=2ms"].map(str::to_owned);
    let sets = [busy.as_slice(), &[format!("policy.routing={routing}")]].concat();
    let spec = Spec::load(&file, &sets)?;
    let run = simulate(&spec, 1, &Silent)?;
    Ok(Summary::of(routing, &spec.slo, &[run]))
}

/// Prints the comparison.
pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    own::routing("size-intervals", |_seed| Box::new(SizeIntervals { short: 272 }));
    println!("{:<24}{:>12}{:>12}{:>12}", "TTFT, ms", "mean", "p50", "p99");
    for routing in ["least-loaded", "{own: size-intervals}"] {
        let Summary { name, requests, ttft_ms: t, .. } = run(routing)?;
        println!("{name:<24}{:>12.3}{:>12.3}{:>12.3}", t.mean, t.p50, t.p99);
        assert_eq!(requests.succeeded, requests.total, "every request is served");
    }
    Ok(())
}
