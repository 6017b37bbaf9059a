//! Requests from a trace file, in the order of the file and in bounded memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use super::error::{MAX_ARRIVAL_PS, Problem, WorkloadError, excerpt};
use super::format::{Format, Parser, Record};
use super::lines::Lines;
use super::random::{Purpose, Random};
use super::synthetic::Arrivals;
use super::{Request, Workload};
use crate::spec::workload::{Spread, WorkloadSpec};

/// The widest tick that arrivals are spread over: the conversation trace of Mooncake (FAST'25) has 2,997
/// to 3,003 ms between its time stamps.
const TICK_PS: u64 = 3_000_000_000_000;

/// The most requests of one tick that are held in memory to be spread.
const MAX_CROWD: usize = 1 << 16;

/// The stream.
pub(crate) struct Trace {
    lines: Lines,
    parser: Parser,
    size: u64,
    /// The line read while the format was recognised, if it holds a request.
    pending: Option<Record>,
    last_raw: Option<(i128, String)>,
    skip: u64,
    left: u64,
    next_id: u64,
    rate_scale: f64,
    base: Option<i128>,
    spread: Spread,
    random: Random,
    /// Arrivals of a file of lengths.
    arrivals: Arrivals,
    /// Requests of the present tick, spread, with arrivals in the file's time.
    ready: VecDeque<(u64, Record)>,
    /// The first request after the present tick.
    held: Option<(u64, Record)>,
    last_gap: u64,
}

impl Trace {
    pub(crate) fn open(path: &Path, spec: &WorkloadSpec, seed: u64) -> Result<Self, WorkloadError> {
        let failed = |source| WorkloadError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if meta.is_dir() {
            return Err(failed(std::io::Error::other("it is a folder")));
        }
        Self::new(Box::new(BufReader::with_capacity(1 << 16, file)), path, meta.len(), spec, seed)
    }

    pub(crate) fn new(
        reader: Box<dyn BufRead + Send>,
        path: &Path,
        size: u64,
        spec: &WorkloadSpec,
        seed: u64,
    ) -> Result<Self, WorkloadError> {
        let mut lines = Lines::new(reader, path);
        let Some(first) = lines.next()? else {
            return Err(WorkloadError::Empty { path: path.to_owned() });
        };
        let (text, whole) = (first.text.to_owned(), first.whole);
        let Some((parser, header)) = Parser::recognise(&text) else {
            return Err(WorkloadError::Unrecognised {
                path: path.to_owned(),
                line: lines.number(),
                found: excerpt(&text),
            });
        };
        let pending = if header {
            None
        } else {
            Some(parser.parse(&text).map_err(|p| lines.error(cut(p, &text, whole)))?)
        };
        let skip = spec.skip;
        // Azure stamps are calendar time; the others count from the trace's own start.
        let base = (parser.format != Format::Azure && skip == 0).then_some(0);
        Ok(Trace {
            arrivals: Arrivals::new(spec.arrival, spec.rate_scale, seed),
            lines,
            parser,
            size,
            pending,
            last_raw: None,
            skip,
            left: spec.limit.unwrap_or(u64::MAX),
            next_id: 0,
            rate_scale: spec.rate_scale,
            base,
            spread: spec.spread,
            random: Random::new(seed, Purpose::Spread),
            ready: VecDeque::new(),
            held: None,
            last_gap: TICK_PS,
        })
    }

    /// The next record of the file, checked.
    fn record(&mut self) -> Result<Option<Record>, WorkloadError> {
        let record = match self.pending.take() {
            Some(record) => record,
            None => {
                let Some(line) = self.lines.next()? else { return Ok(None) };
                match self.parser.parse(line.text) {
                    Ok(record) => record,
                    Err(problem) => {
                        let problem = cut(problem, line.text, line.whole);
                        return Err(self.lines.error(problem));
                    }
                }
            }
        };
        if let Some(raw) = record.arrival {
            if let Some((last, previous)) = &self.last_raw
                && raw < *last
            {
                return Err(self.lines.error(Problem::BackInTime {
                    field: self.parser.time_field(),
                    found: record.written.clone(),
                    previous: previous.clone(),
                }));
            }
            self.last_raw = Some((raw, record.written.clone()));
        }
        Ok(Some(record))
    }

    /// The next record after those to skip, with its arrival in picoseconds from the start.
    fn timed(&mut self) -> Result<Option<(u64, Record)>, WorkloadError> {
        for _ in 0..std::mem::take(&mut self.skip) {
            if self.record()?.is_none() {
                return Ok(None);
            }
        }
        let Some(record) = self.record()? else { return Ok(None) };
        let Some(raw) = record.arrival else {
            let arrival = self.arrivals.next().ok_or(WorkloadError::TooLate { id: self.next_id })?;
            return Ok(Some((arrival, record)));
        };
        let base = *self.base.get_or_insert(raw);
        match u64::try_from(raw - base) {
            Ok(arrival) if arrival <= MAX_ARRIVAL_PS => Ok(Some((arrival, record))),
            _ => Err(self.lines.error(Problem::Field {
                field: self.parser.time_field(),
                found: record.written,
                expected: "a time at most 53 days after the first request",
            })),
        }
    }

    /// Fills `ready` with the next request, or with all requests of the next tick, spread.
    fn fill(&mut self) -> Result<(), WorkloadError> {
        let next = match self.held.take() {
            Some(held) => Some(held),
            None => self.timed()?,
        };
        let Some(first) = next else { return Ok(()) };
        let start = first.0;
        self.ready.push_back(first);
        if self.parser.format != Format::Mooncake || self.spread == Spread::None {
            return Ok(());
        }
        loop {
            match self.timed()? {
                Some(next) if next.0 == start => {
                    if self.ready.len() == MAX_CROWD {
                        let found = next.1.written;
                        return Err(self.lines.error(Problem::Crowd { found, most: MAX_CROWD }));
                    }
                    self.ready.push_back(next);
                }
                next => {
                    self.held = next;
                    break;
                }
            }
        }
        // The last tick of a file has no next one: it is taken to be as wide as the one before.
        if let Some(held) = &self.held {
            self.last_gap = (held.0 - start).min(TICK_PS);
        }
        let (count, gap) = (self.ready.len() as u64, self.last_gap);
        let mut offsets: Vec<u64> = match self.spread {
            _ if count == 1 => vec![0],
            Spread::Random => (0..count).map(|_| self.random.below(gap)).collect(),
            Spread::Even | Spread::None => {
                (0..count).map(|i| gap / count * i + gap % count * i / count).collect()
            }
        };
        offsets.sort_unstable();
        for ((arrival, _), offset) in self.ready.iter_mut().zip(offsets) {
            *arrival = start + offset;
        }
        Ok(())
    }

    fn finish(&mut self, arrival: u64, record: Record) -> Result<Request, WorkloadError> {
        let id = self.next_id;
        // A file of lengths has its arrivals scaled at the source.
        let arrival_ps = if record.arrival.is_none() || self.rate_scale == 1.0 {
            arrival
        } else {
            let scaled = libm::round(arrival as f64 / self.rate_scale);
            if scaled > MAX_ARRIVAL_PS as f64 {
                return Err(WorkloadError::TooLate { id });
            }
            scaled as u64
        };
        self.next_id += 1;
        self.left -= 1;
        Ok(Request {
            id,
            arrival_ps,
            prompt: record.prompt,
            output: record.output,
            blocks: record.blocks,
            tenant: 0,
        })
    }
}

/// A problem in a last line without a line end is most likely that the file was cut off there.
fn cut(problem: Problem, text: &str, whole: bool) -> Problem {
    match problem {
        Problem::NotJson { why, .. } if !whole => Problem::Truncated { found: excerpt(text), why },
        Problem::Columns { .. } | Problem::Missing { .. } | Problem::Field { .. } if !whole => {
            Problem::Truncated { found: excerpt(text), why: problem.to_string() }
        }
        problem => problem,
    }
}

impl Iterator for Trace {
    type Item = Result<Request, WorkloadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        if self.ready.is_empty()
            && let Err(error) = self.fill()
        {
            self.left = 0;
            return Some(Err(error));
        }
        let Some((arrival, record)) = self.ready.pop_front() else {
            self.left = 0;
            return None;
        };
        let request = self.finish(arrival, record);
        if request.is_err() {
            self.left = 0;
        }
        Some(request)
    }
}

impl Workload for Trace {
    fn fraction(&self) -> f64 {
        if self.left == 0 {
            return 1.0;
        }
        let total = self.next_id.saturating_add(self.left);
        let by_limit = self.next_id as f64 / total as f64;
        let by_size = self.lines.consumed() as f64 / self.size.max(1) as f64;
        by_limit.max(by_size).min(1.0)
    }
}
