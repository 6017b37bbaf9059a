//! The `kvrail` command.

use std::process::ExitCode;

/// A request makes some forty small objects on its way through the nodes; the system's allocator took a tenth of a run.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    experiments::cli::main()
}
