//! What the real registry handles, against a bare ROUTER that echoes the same frames.
//!
//! 64 clients (4 routers, 30 prefill, 30 decode) talk to a registry in virtual time ([`script`]): for each request Create, two Assign,
//! Publish, Report, Done, with the queries, heartbeats and acknowledgements of real clients. Each message leaves at once, in a frame of its
//! own. What the clients said is then played by 64 DEALERs of this process in two threads over TCP on this host, open loop ([`play`]): to the
//! registry on its production driver, and to a ROUTER that sends each frame back. The clients' work is the same in both.
//!
//! - Capacity: the most requests per second over rising rates, from the first one's time until the end of all, in runs which lose nothing.
//! - Latency at half the registry's capacity: from when a message should leave its client until it is at its addressee; of the echo,
//!   until the frame is back.
//! - Work: processor time of the server's own thread for a request.
//!
//! Each run does all of these, one after the other. Printed are medians over the runs, with the least and the greatest. In the environment: RUNS (7), MS of a run (1000), and
//! RATE, the first that is tried (20000 a second).

mod play;
mod script;

use engine::time::Span;
use play::{Run, Server, play};
use script::Script;

/// Requests at this rate for so long.
fn write(rate: f64, span: Span) -> Script {
    let rooms = (rate * span.0 as f64 / 1e12).ceil() as u64;
    Script::write(Span((1e12 / rate) as u64), rooms)
}

/// The most requests per second that a server handles: rates rise until less than 0.8 of one is handled. A run that lost something does not
/// count.
fn capacity(server: Server, first: f64, span: Span) -> (f64, Option<Run>) {
    let (mut rate, mut best, mut best_run) = (first, 0.0_f64, None);
    loop {
        let script = write(rate, span);
        let run = play(&script, server, false);
        let all = run.requests == script.rooms.len() as u64;
        let handled = run.requests as f64 * 1e12 / (span + run.late).0 as f64;
        let name = if server == Server::Echo { "echo" } else { "registry" };
        let missing = if all { "" } else { ", not all" };
        eprintln!(
            "{name}: {rate:.0} requests/s offered, {handled:.0} handled{missing}; {:.2} us of the server's thread for one, {:.2} of all",
            run.work_us(),
            run.all_us()
        );
        if all && handled > best {
            (best, best_run) = (handled, Some(run));
        }
        if handled < 0.8 * rate {
            return (best, best_run);
        }
        rate *= 1.15;
    }
}

/// Median, least and greatest.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1])
}

fn show(what: &str, values: &[f64]) {
    let (median, least, greatest) = spread(values);
    println!("{what:<58}{median:>12.2}   [{least:.2}, {greatest:.2}]");
}

fn main() {
    let number = |name: &str, default: f64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (runs, span) = (number("RUNS", 7.0) as usize, Span::ms(number("MS", 1000.0) as u64));
    let first = number("RATE", 20_000.0);
    let sample = write(first, span);
    let frames: Vec<usize> = sample.load.iter().flatten().map(|said| said.frame.len()).collect();
    println!(
        "a request is {:.1} frames of clients, {:.0} bytes each",
        frames.len() as f64 / sample.rooms.len() as f64,
        frames.iter().sum::<usize>() as f64 / frames.len() as f64
    );
    let [mut real, mut bare, mut ratios, mut halves, mut p99] = [const { Vec::new() }; 5];
    let [mut registry, mut echo, mut registry_at_half, mut echo_at_half] = [const { Vec::new() }; 4];
    for _ in 0..runs {
        let (most, run) = capacity(Server::Registry, first, span);
        registry.extend(run);
        let (bare_most, run) = capacity(Server::Echo, first, span);
        echo.extend(run);
        real.push(most);
        bare.push(bare_most);
        ratios.push(most / bare_most);
        // At once: on a machine that others share, half of what was handled a minute ago may be all.
        let half = most / 2.0;
        let script = write(half, span);
        let timed = [Server::Registry, Server::Echo].map(|server| play(&script, server, true));
        p99.push(timed[0].quantile(99) / timed[1].quantile(99));
        let [registry, echo] = timed;
        registry_at_half.push(registry);
        echo_at_half.push(echo);
        halves.push(half);
    }
    let all = |runs: &[Run], figure: fn(&Run) -> f64| -> Vec<f64> { runs.iter().map(figure).collect() };
    show("registry, processor time of its thread for a request, us", &all(&registry, Run::work_us));
    show("echo, the same", &all(&echo, Run::work_us));
    show("registry, processor time of the whole process, us", &all(&registry, Run::all_us));
    show("echo, the same", &all(&echo, Run::all_us));
    show("registry, requests/s", &real);
    show("echo of the same frames, requests/s", &bare);
    show("ratio (wanted: 0.6 or more)", &ratios);
    show("at half of the registry's, requests/s", &halves);
    show("registry, p50, us", &all(&registry_at_half, |run| run.quantile(50)));
    show("echo, p50, us", &all(&echo_at_half, |run| run.quantile(50)));
    show("registry, p99, us", &all(&registry_at_half, |run| run.quantile(99)));
    show("echo, p99, us", &all(&echo_at_half, |run| run.quantile(99)));
    show("ratio of p99 (wanted: 2 or less)", &p99);
}
