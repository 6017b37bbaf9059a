//! What comes out of a run: `summary.json`, `requests.csv` and a short table.

mod expect;
mod result;
mod rows;
mod stats;
mod summary;
pub(crate) mod table;

pub use expect::{Checked, check, value_path, value_paths};
pub use result::{Counters, Effects, Leaks, Outcome, RequestRecord, RunResult};
pub use rows::write_requests;
pub use stats::Stats;
pub use summary::{Digest, RequestCounts, SloShare, Summary};
pub use table::{beside, table};
