//! What can be wrong with a trace: each error names the file, the line, the value and what would be right.

use std::io;
use std::path::PathBuf;

/// The most bytes a line of a trace may have; a prompt of a million tokens needs about 20 kB.
pub const MAX_LINE: usize = 4 << 20;

/// The most tokens a prompt or an output may have; no public model comes near.
pub const MAX_TOKENS: u32 = 1 << 28;

/// The last arrival allowed, in picoseconds (53 days), so that virtual time never wraps.
pub const MAX_ARRIVAL_PS: u64 = 1 << 62;

/// Why a workload cannot be read or go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The trace file cannot be opened.
    #[error("{}: cannot open the trace: {source}; workload.path must name a readable file", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The trace file cannot be read on.
    #[error("{}:{line}: cannot read the trace: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The line about to be read, from 1.
        line: u64,
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing in the file.
    #[error("{}: the trace is empty; {RECOGNISED}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The first line fits no format.
    #[error("{}:{line}: the trace's format is not recognised from `{found}`; {RECOGNISED}", path.display())]
    Unrecognised {
        /// The file.
        path: PathBuf,
        /// The first line that is not blank, from 1.
        line: u64,
        /// How that line starts.
        found: String,
    },
    /// One line is wrong.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A generated arrival is beyond the end of virtual time.
    #[error("request {id}: its arrival is more than {} s after the start; raise workload.arrival's rate or lower the number of requests", MAX_ARRIVAL_PS / 1_000_000_000_000)]
    TooLate {
        /// The request.
        id: u64,
    },
}

const RECOGNISED: &str = "expected JSON lines with `timestamp`, `input_length`, `output_length` (Mooncake) or \
`input_toks`, `output_toks`, `arrival_time_ns` (LLMServingSim), or CSV with the columns \
`TIMESTAMP,ContextTokens,GeneratedTokens` (Azure) or `num_prefill_tokens,num_decode_tokens` (Vidur)";

/// What is wrong with one line of a trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not UTF-8.
    #[error("the line is not UTF-8 text (byte {offset})")]
    NotText {
        /// Offset of the first bad byte.
        offset: usize,
    },
    /// Longer than [`MAX_LINE`].
    #[error("the line has more than {MAX_LINE} bytes; a request takes a few kilobytes at most")]
    TooLong,
    /// The file ends within the line.
    #[error(
        "the file is truncated: its last line `{found}` has no line end and is not a whole request ({why})"
    )]
    Truncated {
        /// How the line starts.
        found: String,
        /// What is wrong with the line.
        why: String,
    },
    /// Not a JSON object.
    #[error("`{found}` is not a JSON object: {why}; expected one request such as {example}")]
    NotJson {
        /// How the line starts.
        found: String,
        /// What the JSON reader said.
        why: String,
        /// A right line.
        example: &'static str,
    },
    /// Not as many columns as the header.
    #[error("the line has {found} columns, the header has {expected}")]
    Columns {
        /// Columns of this line.
        found: usize,
        /// Columns of the header.
        expected: usize,
    },
    /// A field is not there.
    #[error("`{field}` is missing; expected {expected}")]
    Missing {
        /// The field.
        field: &'static str,
        /// What would be right.
        expected: &'static str,
    },
    /// A field has a value that it cannot have.
    #[error("`{field}` is {found}; expected {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// The value found.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// An arrival before the one of the line above.
    #[error(
        "the arrival goes back in time: `{field}` is {found} after {previous} on the request before; arrivals must not decrease (sort the trace by `{field}`)"
    )]
    BackInTime {
        /// The field.
        field: &'static str,
        /// The value found.
        found: String,
        /// The value of the request before.
        previous: String,
    },
    /// Not one hash per block of 512 tokens.
    #[error(
        "`hash_ids` has {found} ids for `input_length` {prompt}; expected {expected}, one per block of 512 tokens"
    )]
    HashCount {
        /// Ids found.
        found: usize,
        /// Tokens of the prompt.
        prompt: u32,
        /// Ids that would be right.
        expected: u32,
    },
    /// More requests at one tick than can be spread.
    #[error(
        "more than {most} requests have `timestamp` {found}, too many to spread within the tick; set workload.spread to none"
    )]
    Crowd {
        /// The time stamp.
        found: String,
        /// The most that are spread.
        most: usize,
    },
}

/// The start of a text, for an error message.
pub(crate) fn excerpt(text: &str) -> String {
    const MOST: usize = 80;
    let mut out: String =
        text.chars().take(MOST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}
