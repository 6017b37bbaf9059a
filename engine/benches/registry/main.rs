//! What the real registry handles, against a bare ROUTER that echoes the same frames.
//!
//! 64 clients (16 routers, 24 prefill, 24 decode) talk to a registry in virtual time ([`script`]): for each request Create, two Assign,
//! Publish, Report, Done, with the queries, heartbeats and acknowledgements of real clients. Each message leaves at once, in a frame of its
//! own. What the clients said is then played by 64 DEALERs of this process in two threads, open loop ([`play`]): to the registry on its
//! production driver, and to a ROUTER that sends each frame back. The clients' work is the same in both.
//!
//! - Capacity: the most requests per second with which the server keeps up, in runs which lose nothing. (Above it some more are handled, as
//!   frames that wait leave together, but ever later.)
//! - Latency at half the registry's capacity: from when a message should leave its client until it is at its addressee; of the echo,
//!   until the frame is back.
//! - Work: processor time of the server's own thread for a request.
//!
//! Each run does all of these, one after the other. Printed are medians over the runs, with the least and the greatest. In the environment:
//! RUNS (7), MS of a run (1000), RATE, the first that is tried (20000 a second), and ADDRESS, what the servers bind (`tcp://127.0.0.1:*`; or
//! `ipc://*`, which takes less of the processors that all share).
//!
//! On a virtual machine of two processors, which server, clients and ZeroMQ's threads share: 17 runs over TCP, ratio of capacities 0.75, 95 %
//! interval of the median 0.73 to 0.83; ratio of p99 1.84, 1.38 to 2.16. At half of its capacity the registry and what plays to it keep both
//! processors nine tenths busy, so that whatever else runs there shows.

mod play;
mod script;

use engine::time::Span;
use play::{Run, Server, play};
use script::Script;

/// Of a run with latencies, for which they do not count: memory grows and sessions fill.
const WARM_UP: Span = Span::ms(200);
/// How often each server is played to at half load, for the median of its percentiles.
const TURNS: usize = 5;
/// Between rates near the greatest.
const STEP: f64 = 1.1;
/// A server that handles this part of the rate, counted from the first request's time until the end of all, keeps up: with runs of a second, it
/// is done 20 ms after the last.
const KEEPS_UP: f64 = 0.98;

/// Requests at this rate for so long.
fn write(rate: f64, span: Span) -> Script {
    let rooms = (rate * span.0 as f64 / 1e12).ceil() as u64;
    Script::write(Span((1e12 / rate) as u64), rooms)
}

/// The most requests per second with which a server keeps up: rates double until it does not, and rise from the last one with which it did in
/// smaller steps, until twice it does not.
fn capacity(server: Server, address: &str, first: f64, span: Span) -> (f64, Run) {
    let (mut rate, mut step, mut missed) = (first, 2.0, false);
    let mut best = None;
    loop {
        let script = write(rate, span);
        let run = play(&script, server, address, None);
        let all = run.requests == script.rooms.len() as u64;
        let handled = run.requests as f64 * 1e12 / (span + run.late).0 as f64;
        let name = if server == Server::Echo { "echo" } else { "registry" };
        let missing = if all { "" } else { ", not all" };
        eprintln!(
            "{name}: {rate:.0} requests/s offered, {handled:.0} handled{missing}; {:.2} us of the server's thread for one, {:.2} of all",
            run.work_us(),
            run.all_us()
        );
        if all && handled >= KEEPS_UP * rate {
            (best, missed) = (Some((handled, run)), false);
            rate *= step;
        } else if step > STEP && best.is_some() {
            rate *= STEP / step;
            step = STEP;
        } else if !missed {
            missed = true;
        } else {
            return best
                .unwrap_or_else(|| panic!("{name}: does not keep up with RATE={rate}: give a lower one"));
        }
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
    let address = std::env::var("ADDRESS").unwrap_or("tcp://127.0.0.1:*".into());
    let sample = write(first, span);
    let frames: Vec<usize> = sample.load.iter().flatten().map(|said| said.frame.len()).collect();
    println!(
        "a request is {:.1} frames of clients, {:.0} bytes each",
        frames.len() as f64 / sample.rooms.len() as f64,
        frames.iter().sum::<usize>() as f64 / frames.len() as f64
    );
    let [mut real, mut bare, mut ratios, mut halves, mut p99] = [const { Vec::new() }; 5];
    let [mut registry, mut echo] = [const { Vec::new() }; 2];
    // By server: median, 99th percentile.
    let mut latencies = [const { [const { Vec::new() }; 2] }; 2];
    for _ in 0..runs {
        let (most, run) = capacity(Server::Registry, &address, first, span);
        registry.push(run);
        let (bare_most, run) = capacity(Server::Echo, &address, first, span);
        echo.push(run);
        real.push(most);
        bare.push(bare_most);
        ratios.push(most / bare_most);
        // At once: on a machine that others share, half of what was handled a minute ago may be all.
        let half = most / 2.0;
        let script = write(half, span);
        // In turns, as something else on this machine may take a processor from either for a while.
        let mut turns = [const { [const { Vec::new() }; 2] }; 2];
        for _ in 0..TURNS {
            for (server, turns) in [Server::Registry, Server::Echo].into_iter().zip(&mut turns) {
                let run = play(&script, server, &address, Some(WARM_UP.min(Span(span.0 / 2))));
                turns[0].push(run.quantile(50));
                turns[1].push(run.quantile(99));
            }
        }
        let [registry, echo] = turns.map(|turns| turns.map(|values| spread(&values).0));
        eprintln!("at {half:.0}: p99 {:.0} us, echo {:.0}", registry[1], echo[1]);
        p99.push(registry[1] / echo[1]);
        for (all, one) in latencies.iter_mut().zip([registry, echo]) {
            all.iter_mut().zip(one).for_each(|(all, one)| all.push(one));
        }
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
    for (name, [p50, p99]) in ["registry", "echo"].into_iter().zip(&latencies) {
        show(&format!("{name}, p50, us"), p50);
        show(&format!("{name}, p99, us"), p99);
    }
    show("ratio of p99 (wanted: 2 or less)", &p99);
}
