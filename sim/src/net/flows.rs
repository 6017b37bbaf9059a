//! Bare flows from a text: how long does each take on a star?
//!
//! One flow a line, `start_s src dst bytes`, ordered by start; empty lines and lines that begin
//! with `#` are skipped. A flow waits for the latencies of its two links without taking bandwidth,
//! then shares the links max-min fairly until its last byte is carried.

use std::io::BufRead;

use thiserror::Error;

use super::{Done, FlowSpec, Fluid, NetError, Network, Topology, TopologyError};

/// Why flows could not be run.
#[derive(Debug, Error)]
pub enum FlowsError {
    /// The text could not be read.
    #[error("line {line}: cannot be read: {source}")]
    Read {
        /// Line, from 1.
        line: usize,
        /// What the reader said.
        source: std::io::Error,
    },
    /// A line with more or fewer than four words.
    #[error("line {line}: {words} words in {text:?}: write `start_s src dst bytes`")]
    Words {
        /// Line, from 1.
        line: usize,
        /// How many words it has.
        words: usize,
        /// The line, shortened.
        text: String,
    },
    /// A word that does not say what it should.
    #[error("line {line}: {field} is {value:?}: {expected}")]
    Value {
        /// Line, from 1.
        line: usize,
        /// Which word.
        field: &'static str,
        /// The word as it stands there.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// The star itself is impossible.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The network refused a flow.
    #[error("line {line}: {source}")]
    Network {
        /// Line, from 1.
        line: usize,
        /// What the network said.
        source: NetError,
    },
    /// The latency is not one.
    #[error("latency {0} us: use a number from 0 to 1e9")]
    Latency(f64),
    /// Flows that never end.
    #[error("{flows} flows never end at {gbps} Gb/s: use a higher speed")]
    Stuck {
        /// How many.
        flows: usize,
        /// Speed of each link.
        gbps: f64,
    },
}

/// Runs the flows of a text on a star of `hosts` hosts, each with one link up and one link down of
/// `gbps` gigabits per second and `latency_us` microseconds, and returns how long each took,
/// in seconds from its start, in the order of the lines. Both latencies are part of it.
pub fn run(mut reader: impl BufRead, hosts: u32, gbps: f64, latency_us: f64) -> Result<Vec<f64>, FlowsError> {
    if !(0.0..=1e9).contains(&latency_us) {
        return Err(FlowsError::Latency(latency_us));
    }
    let latency = (latency_us * 1e6 + 0.5) as u64;
    let mut net = Fluid::new(Topology::star(hosts, gbps, latency)?);
    let mut starts: Vec<u64> = Vec::new();
    let mut seconds: Vec<f64> = Vec::new();
    let mut done = Vec::new();
    let mut text = Vec::new();
    let record = |done: &mut Vec<Done>, starts: &[u64], seconds: &mut Vec<f64>| {
        for end in done.drain(..) {
            let flow = end.tag as usize;
            seconds[flow] = (end.at - starts[flow]) as f64 / 1e12;
        }
    };
    let mut now = 0;
    for line in 1.. {
        text.clear();
        let read = reader.read_until(b'\n', &mut text);
        if read.map_err(|source| FlowsError::Read { line, source })? == 0 {
            break;
        }
        let Some(flow) = parse(line, &text, hosts, starts.last().copied())? else { continue };
        let join = flow.start + 2 * latency;
        if join > now {
            now = join;
            net.advance(now, &mut done);
            record(&mut done, &starts, &mut seconds);
        }
        let tag = starts.len() as u32;
        let spec = FlowSpec::new(flow.src, flow.dst, flow.bytes).tag(tag);
        starts.push(flow.start);
        seconds.push(f64::NAN);
        net.start(now, &spec).map_err(|source| FlowsError::Network { line, source })?;
    }
    while let Some(next) = net.next() {
        net.advance(next, &mut done);
        record(&mut done, &starts, &mut seconds);
    }
    if net.flows() > 0 {
        return Err(FlowsError::Stuck { flows: net.flows(), gbps });
    }
    Ok(seconds)
}

struct Line {
    /// Picoseconds.
    start: u64,
    src: u32,
    dst: u32,
    bytes: f64,
}

/// Picoseconds.
const SECOND: u64 = 1_000_000_000_000;
/// Picoseconds of the last digit after so many decimal places.
const SCALE: [u64; 13] = {
    let mut scale = [SECOND; 13];
    let mut places = 1;
    while places < scale.len() {
        scale[places] = scale[places - 1] / 10;
        places += 1;
    }
    scale
};
/// Latest start: half of what picoseconds in a u64 can hold, so that ends have room.
const LATEST: u64 = u64::MAX / 4;

fn parse(line: usize, text: &[u8], hosts: u32, last: Option<u64>) -> Result<Option<Line>, FlowsError> {
    let (words, count) = split(text);
    let [first, src, dst, bytes] = words;
    if count == 0 || first[0] == b'#' {
        return Ok(None);
    }
    if count != words.len() {
        return Err(FlowsError::Words { line, words: count, text: shown(text) });
    }
    let wrong = |field: &'static str, word: &[u8], expected: String| FlowsError::Value {
        line,
        field,
        value: shown(word),
        expected,
    };
    let Some(start) = picoseconds(first).filter(|&t| t <= LATEST) else {
        let expected = format!("use seconds, from 0 to {}", LATEST / SECOND);
        return Err(wrong("start", first, expected));
    };
    if let Some(last) = last
        && start < last
    {
        let expected = format!(
            "use {} s or later: lines are ordered by start, and the line before starts then",
            last as f64 / 1e12
        );
        return Err(wrong("start", first, expected));
    }
    let host = |field, word| match decimal(word) {
        Some(host) if host < u64::from(hosts) => Ok(host as u32),
        _ => {
            let expected = format!("use a host from 0 to {}", hosts.saturating_sub(1));
            Err(wrong(field, word, expected))
        }
    };
    let (from, to) = (host("src", src)?, host("dst", dst)?);
    if from == to {
        return Err(wrong("dst", dst, "use another host than src".to_owned()));
    }
    let Some(amount) = number(bytes) else {
        let expected = "use a number of bytes that is finite and not negative".to_owned();
        return Err(wrong("bytes", bytes, expected));
    };
    Ok(Some(Line { start, src: from, dst: to, bytes: amount }))
}

fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.trim().chars().take(60).collect()
}

/// The first four words of a line, and how many there are.
fn split(text: &[u8]) -> ([&[u8]; 4], usize) {
    let (mut words, mut count) = ([&text[..0]; 4], 0);
    let mut rest = text;
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return (words, count);
        }
        let end = rest.iter().position(|&b| b <= b' ').unwrap_or(rest.len()).max(1);
        if let Some(word) = words.get_mut(count) {
            *word = &rest[..end];
        }
        count += 1;
        rest = &rest[end..];
    }
}

fn decimal(word: &[u8]) -> Option<u64> {
    if word.is_empty() || word.len() > 15 {
        return None;
    }
    let mut n = 0;
    for &byte in word {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        n = n * 10 + u64::from(digit);
    }
    Some(n)
}

fn number(word: &[u8]) -> Option<f64> {
    if let Some(n) = decimal(word) {
        return Some(n as f64);
    }
    let n: f64 = std::str::from_utf8(word).ok()?.parse().ok()?;
    (n >= 0.0 && n.is_finite()).then_some(n)
}

/// Seconds as whole picoseconds; exact when the word is a plain decimal with up to 12 places.
fn picoseconds(word: &[u8]) -> Option<u64> {
    let point = word.iter().position(|&b| b == b'.').unwrap_or(word.len());
    let (whole, places) = (&word[..point], word.get(point + 1..).unwrap_or(&[]));
    if places.len() <= 12
        && whole.len() <= 8
        && let Some(s) = decimal(whole)
    {
        if places.is_empty() {
            return Some(s * SECOND);
        }
        if let Some(part) = decimal(places) {
            return Some(s * SECOND + part * SCALE[places.len()]);
        }
    }
    let ps = number(word)? * 1e12;
    (ps <= LATEST as f64).then_some((ps + 0.5) as u64)
}
