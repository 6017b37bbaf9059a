//! `requests.csv`: one row per request and seed, times in picoseconds of virtual time.

use std::io::Write;

use super::result::RunResult;

const HEADER: [&str; 22] = [
    "seed",
    "id",
    "tenant",
    "arrival_ps",
    "prompt_tokens",
    "output_tokens",
    "cached_tokens",
    "state",
    "reason",
    "prefill_instance",
    "decode_instance",
    "prefill_start_ps",
    "prefill_end_ps",
    "transfer_start_ps",
    "success_ps",
    "first_token_ps",
    "last_token_ps",
    "end_ps",
    "bytes",
    "work_requests",
    "ttft_ms",
    "retries",
];

/// Writes the rows of all runs. A time or instance that a request did not come to is an empty field.
pub fn write_requests(out: impl Write, runs: &[RunResult]) -> Result<(), csv::Error> {
    fn text<T: ToString>(value: Option<T>) -> String {
        value.map_or_else(String::new, |value| value.to_string())
    }
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(HEADER)?;
    for run in runs {
        for r in &run.requests {
            writer.write_record([
                run.seed.to_string(),
                r.id.to_string(),
                r.tenant.to_string(),
                r.arrival.to_string(),
                r.prompt.to_string(),
                r.output.to_string(),
                r.cached_tokens.to_string(),
                r.outcome.name().to_owned(),
                r.outcome.reason().to_owned(),
                text(r.prefill_instance),
                text(r.decode_instance),
                text(r.prefill_start),
                text(r.prefill_end),
                text(r.transfer_start),
                text(r.success),
                text(r.first_token),
                text(r.last_token),
                text(r.end),
                r.bytes.to_string(),
                r.work_requests.to_string(),
                text(r.ttft().map(|ps| ps as f64 / 1e9)),
                r.retries.to_string(),
            ])?;
        }
    }
    writer.flush().map_err(csv::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Outcome, RequestRecord};

    #[test]
    fn rows() {
        let record = RequestRecord {
            id: 4,
            arrival: 1_000_000_000,
            first_token: Some(3_500_000_000),
            outcome: Outcome::Failed("a, b".to_owned()),
            ..RequestRecord::default()
        };
        let run = RunResult { seed: 9, requests: vec![record], ..RunResult::default() };
        let mut out = Vec::new();
        write_requests(&mut out, &[run]).unwrap();
        let text = String::from_utf8(out).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next().unwrap().split(',').count(), HEADER.len());
        assert_eq!(lines.next(), Some("9,4,0,1000000000,0,0,0,failed,\"a, b\",,,,,,,3500000000,,,0,0,2.5,0"));
    }
}
