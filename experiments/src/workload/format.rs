//! The trace formats, recognised from the first line.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::{MAX_ARRIVAL_PS, MAX_TOKENS, Problem, excerpt};
use super::timestamp;

/// A format of trace files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Mooncake (FAST'25), JSON lines: `timestamp` in ms, `input_length`, `output_length`, `hash_ids`.
    Mooncake,
    /// LLMServingSim, JSON lines: `input_toks`, `output_toks`, `arrival_time_ns`.
    ServingSim,
    /// Azure LLM inference trace, 2023 and 2024, CSV: `TIMESTAMP`, `ContextTokens`, `GeneratedTokens`.
    Azure,
    /// Vidur, CSV of lengths only: `num_prefill_tokens`, `num_decode_tokens`.
    Vidur,
}

pub use engine::node::BLOCK_TOKENS;

const TOKENS: &str = "a whole number of tokens from 1 to 268435456";
const _: () = assert!(MAX_TOKENS == 268_435_456);

/// One request as its line says it.
pub(crate) struct Record {
    /// Picoseconds since the format's own zero; none for a file of lengths.
    pub(crate) arrival: Option<i128>,
    pub(crate) prompt: u32,
    pub(crate) output: u32,
    pub(crate) blocks: Vec<u64>,
    /// The arrival as the file has it, for messages.
    pub(crate) written: String,
}

/// A recognised format with what its header says.
pub(crate) struct Parser {
    pub(crate) format: Format,
    /// CSV: how many columns, and where arrival, prompt and output are.
    columns: usize,
    at: [usize; 3],
}

impl Parser {
    /// Recognises the format from the first line. The flag says whether that line is a header.
    pub(crate) fn recognise(first: &str) -> Option<(Self, bool)> {
        if first.starts_with('{') {
            let value: serde_json::Value = serde_json::from_str(first).ok()?;
            let has = |key: &str| value.get(key).is_some();
            let format = if has("input_toks") || has("output_toks") || has("arrival_time_ns") {
                Format::ServingSim
            } else if has("timestamp") || has("input_length") || has("output_length") {
                Format::Mooncake
            } else {
                return None;
            };
            return Some((Parser { format, columns: 0, at: [0; 3] }, false));
        }
        let names: Vec<&str> = first.split(',').map(|name| name.trim().trim_matches('"')).collect();
        let find = |name: &str| names.iter().position(|n| *n == name);
        let (format, at) = if let (Some(time), Some(prompt), Some(output)) =
            (find("TIMESTAMP"), find("ContextTokens"), find("GeneratedTokens"))
        {
            (Format::Azure, [time, prompt, output])
        } else if let (Some(prompt), Some(output)) = (find("num_prefill_tokens"), find("num_decode_tokens")) {
            (Format::Vidur, [0, prompt, output])
        } else {
            return None;
        };
        Some((Parser { format, columns: names.len(), at }, true))
    }

    /// The field that arrivals come from.
    pub(crate) fn time_field(&self) -> &'static str {
        match self.format {
            Format::Mooncake => "timestamp",
            Format::ServingSim => "arrival_time_ns",
            Format::Azure => "TIMESTAMP",
            Format::Vidur => "",
        }
    }

    /// Reads one line.
    pub(crate) fn parse(&self, line: &str) -> Result<Record, Problem> {
        match self.format {
            Format::Mooncake => mooncake(line),
            Format::ServingSim => serving_sim(line),
            Format::Azure => {
                let fields = self.split(line)?;
                let text = fields[self.at[0]].trim();
                let arrival = timestamp::parse(text).ok_or_else(|| Problem::Field {
                    field: "TIMESTAMP",
                    found: format!("`{}`", excerpt(text)),
                    expected: timestamp::EXPECTED,
                })?;
                Ok(Record {
                    arrival: Some(arrival),
                    prompt: tokens("ContextTokens", fields[self.at[1]])?,
                    output: tokens("GeneratedTokens", fields[self.at[2]])?,
                    blocks: Vec::new(),
                    written: text.to_owned(),
                })
            }
            Format::Vidur => {
                let fields = self.split(line)?;
                Ok(Record {
                    arrival: None,
                    prompt: tokens("num_prefill_tokens", fields[self.at[1]])?,
                    output: tokens("num_decode_tokens", fields[self.at[2]])?,
                    blocks: Vec::new(),
                    written: String::new(),
                })
            }
        }
    }

    fn split<'a>(&self, line: &'a str) -> Result<Vec<&'a str>, Problem> {
        // None of these formats quotes a field or has a comma in one.
        let fields: Vec<&str> = line.split(',').collect();
        if fields.len() == self.columns {
            Ok(fields)
        } else {
            Err(Problem::Columns { found: fields.len(), expected: self.columns })
        }
    }
}

#[derive(Deserialize)]
struct MooncakeLine<'a> {
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow)]
    input_length: Option<&'a RawValue>,
    #[serde(borrow)]
    output_length: Option<&'a RawValue>,
    #[serde(borrow)]
    hash_ids: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ServingSimLine<'a> {
    #[serde(borrow)]
    arrival_time_ns: Option<&'a RawValue>,
    #[serde(borrow)]
    input_toks: Option<&'a RawValue>,
    #[serde(borrow)]
    output_toks: Option<&'a RawValue>,
}

fn mooncake(text: &str) -> Result<Record, Problem> {
    let line: MooncakeLine<'_> =
        json(text, r#"{"timestamp": 0, "input_length": 700, "output_length": 50, "hash_ids": [1, 2]}"#)?;
    const MS: &str = "a whole number of milliseconds from 0 to 4611686018";
    let (arrival, written) = time("timestamp", line.timestamp, 1_000_000_000, MS)?;
    let prompt = tokens("input_length", raw("input_length", line.input_length, TOKENS)?)?;
    let output = tokens("output_length", raw("output_length", line.output_length, TOKENS)?)?;
    let blocks = match line.hash_ids {
        None => Vec::new(),
        Some(ids) => {
            let blocks = hash_ids(ids.get())?;
            let expected = prompt.div_ceil(BLOCK_TOKENS);
            if blocks.len() != expected as usize {
                return Err(Problem::HashCount { found: blocks.len(), prompt, expected });
            }
            blocks
        }
    };
    Ok(Record { arrival: Some(arrival), prompt, output, blocks, written })
}

fn serving_sim(text: &str) -> Result<Record, Problem> {
    let line: ServingSimLine<'_> =
        json(text, r#"{"input_toks": 700, "output_toks": 50, "arrival_time_ns": 0}"#)?;
    const NS: &str = "a whole number of nanoseconds from 0 to 4611686018427387";
    let (arrival, written) = time("arrival_time_ns", line.arrival_time_ns, 1_000, NS)?;
    let prompt = tokens("input_toks", raw("input_toks", line.input_toks, TOKENS)?)?;
    let output = tokens("output_toks", raw("output_toks", line.output_toks, TOKENS)?)?;
    Ok(Record { arrival: Some(arrival), prompt, output, blocks: Vec::new(), written })
}

fn json<'a, T: Deserialize<'a>>(text: &'a str, example: &'static str) -> Result<T, Problem> {
    let error = |why: String| Problem::NotJson { found: excerpt(text), why, example };
    if !text.starts_with('{') {
        return Err(error("it does not start with `{`".to_owned()));
    }
    // The line number in serde_json's message is always 1 here and would mislead.
    serde_json::from_str(text).map_err(|e| {
        let why = e.to_string();
        error(match why.split_once(" at line ") {
            Some((what, _)) => format!("{what} (column {})", e.column()),
            None => why,
        })
    })
}

fn raw<'a>(
    field: &'static str,
    value: Option<&'a RawValue>,
    expected: &'static str,
) -> Result<&'a str, Problem> {
    value.map(RawValue::get).ok_or(Problem::Missing { field, expected })
}

fn time(
    field: &'static str,
    value: Option<&RawValue>,
    unit_ps: u64,
    expected: &'static str,
) -> Result<(i128, String), Problem> {
    let text = raw(field, value, expected)?;
    match text.parse::<u64>() {
        Ok(count) if count <= MAX_ARRIVAL_PS / unit_ps => {
            Ok((i128::from(count) * i128::from(unit_ps), text.to_owned()))
        }
        _ => Err(Problem::Field { field, found: excerpt(text), expected }),
    }
}

fn tokens(field: &'static str, text: &str) -> Result<u32, Problem> {
    let text = text.trim();
    match text.parse::<u32>() {
        Ok(count) if (1..=MAX_TOKENS).contains(&count) && !text.starts_with('+') => Ok(count),
        _ if text.is_empty() => Err(Problem::Missing { field, expected: TOKENS }),
        _ => Err(Problem::Field { field, found: excerpt(text), expected: TOKENS }),
    }
}

fn hash_ids(text: &str) -> Result<Vec<u64>, Problem> {
    serde_json::from_str::<Vec<u64>>(text).map_err(|_| {
        // Name the first id which is wrong rather than the whole list.
        let found = match serde_json::from_str::<Vec<&RawValue>>(text) {
            Ok(ids) => {
                let bad = ids.iter().enumerate().find(|(_, id)| id.get().parse::<u64>().is_err());
                bad.map(|(i, id)| format!("{} at index {i}", excerpt(id.get())))
            }
            Err(_) => None,
        };
        Problem::Field {
            field: "hash_ids",
            found: found.unwrap_or_else(|| excerpt(text)),
            expected: "a list of whole numbers from 0 to 2^64 - 1, one per block of 512 tokens",
        }
    })
}
