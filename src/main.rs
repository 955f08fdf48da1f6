//! The `leadpost` program: parse the command line, run, exit with a code that says how it went.

use std::process::ExitCode;

fn main() -> ExitCode {
    leadpost::cli::main()
}
