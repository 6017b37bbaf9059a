//! The `kvrail` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    experiments::cli::main()
}
