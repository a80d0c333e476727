//! The command line: one file per subcommand.

use std::process::ExitCode;

/// Parses the command line and runs the subcommand; the process's exit code.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
