//! Profiles: files, checks, interpolation.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;

use crate::spec::{is_path, nearest, yaml};

const BUILT_IN: &[(&str, &str)] = &[
    ("a100-tp8-llama-70b", include_str!("../../compute/a100-tp8-llama-70b.yaml")),
    ("h100-tp8-llama-70b", include_str!("../../compute/h100-tp8-llama-70b.yaml")),
    ("h100-pcap-tp8-llama-70b", include_str!("../../compute/h100-pcap-tp8-llama-70b.yaml")),
    ("h100-tp1-llama-8b", include_str!("../../compute/h100-tp1-llama-8b.yaml")),
    ("h800-deepseek-v3", include_str!("../../compute/h800-deepseek-v3.yaml")),
    ("tiny", include_str!("../../compute/tiny.yaml")),
    ("instant", include_str!("../../compute/instant.yaml")),
];

/// Built-in profiles that were asked for: many short runs ask again and again.
static LOADED: [OnceLock<Option<Profile>>; BUILT_IN.len()] = [const { OnceLock::new() }; BUILT_IN.len()];

/// The names of the built-in profiles.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

/// The built-in profile for a model preset: its own, or that of a model with about as many parameters per
/// token and the same kind of attention.
#[must_use]
pub fn for_model(model: &str) -> Option<&'static str> {
    Some(match model {
        "llama-3.1-8b" | "qwen2.5-7b" | "qwen3-8b" => "h100-tp1-llama-8b",
        "llama-3.1-70b" | "qwen2.5-72b" => "h100-tp8-llama-70b",
        "deepseek-v3" | "deepseek-r1" | "deepseek-v3.2" | "kimi-k2" => "h800-deepseek-v3",
        "tiny-gqa" | "tiny-mla" | "tiny-gqa-2" | "tiny-mla-index" => "tiny",
        _ => return None,
    })
}

/// Why there is no such profile.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// Neither a built-in name nor a path.
    #[error("unknown compute profile `{name}`{}; expected one of {} or the path of a YAML file", meant.map(|m| format!("; did you mean `{m}`?")).unwrap_or_default(), names().collect::<Vec<_>>().join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
        /// The nearest built-in name.
        meant: Option<&'static str>,
    },
    /// The file cannot be read.
    #[error("{}: cannot read the compute profile: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file says something wrong.
    #[error("compute profile {name}: {problem}")]
    Wrong {
        /// Name or path.
        name: String,
        /// What is wrong, with the value and what would be right.
        problem: String,
    },
}

/// A profile file: tables, or another profile with factors.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    source: String,
    #[serde(default)]
    prefill: Option<Prefill>,
    #[serde(default)]
    decode: Option<Decode>,
    #[serde(default)]
    base: Option<String>,
    #[serde(default = "one")]
    time_factor: f64,
    #[serde(default = "one")]
    context_factor: f64,
}

fn one() -> f64 {
    1.0
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Prefill {
    /// (tokens of one prompt, ms), ascending in both.
    table: Vec<(f64, f64)>,
    /// ms per token beyond the table.
    linear_ms: f64,
    /// ms per pair of tokens that attend to each other.
    quadratic_ms: f64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decode {
    /// (requests, ms of a step), ascending in both.
    table: Vec<(f64, f64)>,
    /// Tokens of context each request of the table had.
    context: u32,
    /// Tokens of context per request up to which the source measured.
    measured_context: u32,
    /// ms per request beyond the table.
    request_ms: f64,
    /// ns per token of context beyond the table's.
    context_ns: f64,
}

impl Decode {
    /// ms of a step of so many requests with the table's context each.
    fn step(&self, requests: f64) -> f64 {
        let (last, _) = self.table[self.table.len() - 1];
        interpolate(&self.table, requests) + self.request_ms * (requests - last).max(0.0)
    }
}

/// Requests up to which decode steps are worked out when a profile is loaded.
const STEPS: u32 = 1024;

/// Times of one model on one instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    name: String,
    source: String,
    prefill: Prefill,
    decode: Decode,
    /// ms of a decode step with the table's context, by requests: it is asked for at every step.
    steps: Vec<f64>,
    /// Picoseconds per ms of the tables, with the scale.
    unit: f64,
}

const PS_PER_MS: f64 = 1e9;
const MS_PER_NS: f64 = 1e-6;

impl Profile {
    /// The built-in profile of that name, or the file at that path.
    pub fn load(name: &str) -> Result<Self, ComputeError> {
        if let Some(at) = BUILT_IN.iter().position(|(built_in, _)| *built_in == name) {
            return LOADED[at].get_or_init(|| Self::parse(BUILT_IN[at].1, name).ok()).clone().map_or_else(
                // What is wrong with it.
                || Self::parse(BUILT_IN[at].1, name),
                Ok,
            );
        }
        if is_path(name) {
            let path = Path::new(name);
            let text = std::fs::read_to_string(path)
                .map_err(|source| ComputeError::Read { path: path.to_owned(), source })?;
            return Self::parse(&text, name);
        }
        Err(ComputeError::Unknown { name: name.to_owned(), meant: nearest(name, names()) })
    }

    /// Reads a profile file; `name` stands for it in errors. `base` must be a built-in profile with tables.
    pub fn parse(text: &str, name: &str) -> Result<Self, ComputeError> {
        let wrong = |problem: String| ComputeError::Wrong { name: name.to_owned(), problem };
        let tree = yaml::parse(text).map_err(|error| wrong(error.to_string()))?;
        let file: File = serde_path_to_error::deserialize(&tree)
            .map_err(|error| wrong(format!("{}: {}", error.path(), error.inner())))?;
        for (key, factor) in [("time_factor", file.time_factor), ("context_factor", file.context_factor)] {
            if !(1e-6..=1e6).contains(&factor) {
                return Err(wrong(format!("{key} is {factor}, expected 0.000001 to 1000000")));
            }
        }
        let (mut prefill, mut decode) = match (file.base, file.prefill, file.decode) {
            (None, Some(prefill), Some(decode)) => (prefill, decode),
            (Some(base), None, None) => {
                let text =
                    BUILT_IN.iter().find(|(built_in, text)| *built_in == base && !text.contains("\nbase:"));
                let Some((base, text)) = text else {
                    return Err(wrong(format!(
                        "base is `{base}`, expected a built-in profile which has tables"
                    )));
                };
                let base = Self::parse(text, base)?;
                (base.prefill, base.decode)
            }
            _ => return Err(wrong("expected `prefill` and `decode`, or `base` alone".to_owned())),
        };
        for (_, ms) in prefill.table.iter_mut().chain(&mut decode.table) {
            *ms *= file.time_factor;
        }
        prefill.linear_ms *= file.time_factor;
        decode.request_ms *= file.time_factor;
        prefill.quadratic_ms *= file.context_factor;
        decode.context_ns *= file.context_factor;
        for (key, table) in [("prefill.table", &prefill.table), ("decode.table", &decode.table)] {
            check_table(table).map_err(|problem| wrong(format!("{key}: {problem}")))?;
        }
        for (key, value) in [
            ("prefill.linear_ms", prefill.linear_ms),
            ("prefill.quadratic_ms", prefill.quadratic_ms),
            ("decode.request_ms", decode.request_ms),
            ("decode.context_ns", decode.context_ns),
        ] {
            if !(0.0..=1e6).contains(&value) {
                return Err(wrong(format!("{key} is {value}, expected 0 to 1000000")));
            }
        }
        let steps = (0..STEPS).map(|batch| decode.step(f64::from(batch))).collect();
        Ok(Profile { name: file.name, source: file.source, prefill, decode, steps, unit: PS_PER_MS })
    }

    /// The same with every time multiplied by `scale`.
    #[must_use]
    pub fn scaled(self, scale: f64) -> Self {
        Profile { unit: self.unit * scale, ..self }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its numbers come from.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The time to compute `new` prompt tokens of one request which attend to `before` tokens computed
    /// earlier, and whether that is beyond what was measured. Picoseconds; 0 for no tokens.
    #[must_use]
    pub fn prefill(&self, new: u32, before: u32) -> (u64, bool) {
        self.prefill_step(std::iter::once((new, before)))
    }

    /// The time of one prefill step over chunks (new tokens, tokens before) of several requests.
    ///
    /// The table gives the time of all new tokens as if they were one prompt; attention then differs by the
    /// pairs of tokens: `new^2 + 2 new before` for each chunk, instead of `(sum of new)^2`.
    #[must_use]
    pub fn prefill_step(&self, chunks: impl Iterator<Item = (u32, u32)> + Clone) -> (u64, bool) {
        let total: u64 = chunks.clone().map(|(new, _)| u64::from(new)).sum();
        if total == 0 {
            return (0, false);
        }
        let (last, _) = self.prefill.table[self.prefill.table.len() - 1];
        let longest =
            chunks.clone().map(|(new, before)| u64::from(new) + u64::from(before)).max().unwrap_or(0);
        let whole = total as f64;
        let mut pairs = -whole * whole;
        for (new, before) in chunks {
            let (new, before) = (f64::from(new), f64::from(before));
            pairs += new * new + 2.0 * new * before;
        }
        let quadratic = self.prefill.quadratic_ms;
        let mut ms = interpolate(&self.prefill.table, whole) + quadratic * pairs;
        if whole > last {
            ms += self.prefill.linear_ms * (whole - last) + quadratic * (whole * whole - last * last);
        }
        (self.picos(ms.max(self.prefill.table[0].1)), longest.max(total) as f64 > last)
    }

    /// The time of one decode step of `batch` requests with `context` tokens of KV together, and whether that
    /// is beyond what was measured. Picoseconds; 0 for no requests.
    #[must_use]
    pub fn decode(&self, batch: u32, context: u64) -> (u64, bool) {
        if batch == 0 {
            return (0, false);
        }
        let (last, _) = self.decode.table[self.decode.table.len() - 1];
        let requests = f64::from(batch);
        let mut ms = match self.steps.get(batch as usize) {
            Some(ms) => *ms,
            None => self.decode.step(requests),
        };
        let per_token = self.decode.context_ns * MS_PER_NS;
        let table_context = f64::from(self.decode.context);
        ms += (context as f64 - table_context * requests) * per_token;
        // Never below a step of one request without context.
        let floor = self.decode.table[0].1 - table_context * per_token;
        let ms = ms.max(floor).max(0.0);
        let measured = u64::from(self.decode.measured_context) * u64::from(batch);
        (self.picos(ms), requests > last || context > measured)
    }

    fn picos(&self, ms: f64) -> u64 {
        // To the nearest; the cast saturates.
        (ms * self.unit + 0.5) as u64
    }
}

fn check_table(table: &[(f64, f64)]) -> Result<(), String> {
    if table.len() < 2 {
        return Err(format!("{} points, expected at least 2 pairs [count, ms]", table.len()));
    }
    let mut last = (0.0, 0.0);
    for &(count, ms) in table {
        // Written so that NaN fails too.
        if !(count > last.0 && count <= 1e9 && ms >= last.1 && ms > 0.0 && ms <= 1e9) {
            return Err(format!(
                "the point [{count}, {ms}] after [{}, {}]: counts must ascend and ms must not descend",
                last.0, last.1
            ));
        }
        last = (count, ms);
    }
    Ok(())
}

/// Piecewise linear; constant before the first point and after the last.
fn interpolate(table: &[(f64, f64)], at: f64) -> f64 {
    let after = table.partition_point(|(count, _)| *count < at);
    match (after.checked_sub(1).and_then(|i| table.get(i)), table.get(after)) {
        (Some((x0, y0)), Some((x1, y1))) => y0 + (y1 - y0) * ((at - x0) / (x1 - x0)),
        (None, Some((_, ms))) | (Some((_, ms)), None) => *ms,
        (None, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(name: &str) -> Profile {
        Profile::load(name).unwrap_or_else(|error| panic!("{error}"))
    }

    fn ms(time: (u64, bool)) -> (f64, bool) {
        ((time.0 as f64 / 1e9 * 1000.0).round() / 1000.0, time.1)
    }

    #[test]
    fn measured_points_come_back() {
        let h100 = load("h100-tp8-llama-70b");
        for (tokens, wanted) in
            [(512, 53.386), (1024, 77.913), (2048, 136.797), (4096, 390.291), (8192, 844.885)]
        {
            assert_eq!(ms(h100.prefill(tokens, 0)), (wanted, false));
        }
        for (batch, wanted) in [(1, 29.762), (16, 34.166), (32, 38.619), (64, 50.161)] {
            assert_eq!(ms(h100.decode(batch, u64::from(batch) * 576)), (wanted, false));
        }
        // Batches of prompts are measured too: 16 of 512 took 811.9 ms, 2 of 512 76.9 ms.
        let (sixteen, _) = ms(h100.prefill_step([(512, 0); 16].into_iter()));
        assert!((sixteen / 811.928 - 1.0).abs() < 0.06, "{sixteen}");
        let (two, _) = ms(h100.prefill_step([(512, 0); 2].into_iter()));
        assert!((two / 76.887 - 1.0).abs() < 0.02, "{two}");
        let (many, extrapolated) = ms(h100.prefill_step([(512, 0); 64].into_iter()));
        assert!((many / 2936.33 - 1.0).abs() < 0.06 && extrapolated, "{many}");
    }

    #[test]
    fn beyond_the_table_is_said_to_be_so() {
        let h100 = load("h100-tp8-llama-70b");
        assert!(h100.prefill(8193, 0).1 && h100.prefill(1, 8192).1 && !h100.prefill(100, 8000).1);
        assert!(h100.decode(65, 65).1 && h100.decode(1, 8321).1 && !h100.decode(64, 64 * 8320).1);
        assert!(h100.prefill(8193, 0).0 >= h100.prefill(8192, 0).0);
    }

    #[test]
    fn deepseek_gives_its_published_throughput() {
        let h800 = load("h800-deepseek-v3");
        let (ps, _) = h800.decode(705, 705 * 4989);
        let rate = 705.0 / (ps as f64 / 1e12);
        assert!((rate / 14_800.0 - 1.0).abs() < 0.01, "{rate}");
        let (ps, _) = h800.prefill(8192, 0);
        let rate = 8192.0 / (ps as f64 / 1e12);
        assert!((rate / 32_200.0 - 1.0).abs() < 0.08, "{rate}");
    }

    #[test]
    fn every_built_in_profile_loads_under_its_own_name() {
        for name in names() {
            let profile = load(name);
            assert_eq!(profile.name(), name);
            assert!(!profile.source().is_empty());
        }
        let error = Profile::load("h100-tp8-lama-70b").unwrap_err().to_string();
        assert!(error.contains("did you mean `h100-tp8-llama-70b`?"), "{error}");
        assert!(Profile::load("./nowhere.yaml").unwrap_err().to_string().contains("cannot read"));
        for text in
            ["a: 1", "name: x\nsource: y\nbase: z", "name: x\nsource: y\nbase: h100-tp1-llama-8b", "[]", ""]
        {
            assert!(Profile::parse(text, "x").is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn more_work_never_takes_less_time(
            which in 0..BUILT_IN.len(),
            new in 0_u32..300_000, before in 0_u32..300_000, more in 0_u32..5_000,
            batch in 0_u32..2_000, context in 0_u64..100_000_000,
        ) {
            let profile = load(BUILT_IN[which].0);
            prop_assert!(profile.prefill(new + more, before).0 >= profile.prefill(new, before).0);
            prop_assert!(profile.prefill(new, before + more).0 >= profile.prefill(new, before).0);
            prop_assert!(profile.decode(batch, context + u64::from(more)).0 >= profile.decode(batch, context).0);
        }

        /// Chunks of a prompt take at least what the whole takes, less the floor that each step has.
        #[test]
        fn chunks_add_up(chunks in 1_u32..8) {
            let profile = load("h100-tp8-llama-70b");
            let chunked: u64 = (0..chunks).map(|i| profile.prefill(8192, i * 8192).0).sum();
            let whole = profile.prefill(chunks * 8192, 0).0;
            let ratio = chunked as f64 / whole as f64;
            prop_assert!((0.9..1.3).contains(&ratio), "{ratio}");
        }

        #[test]
        fn no_text_panics(text in "([a-z:\\[\\], \n0-9]){0,60}") {
            let _ = Profile::parse(&text, "x");
        }
    }
}
