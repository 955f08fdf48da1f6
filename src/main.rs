//! The `leadpost` program: parse the command line, run, exit with a code that says how it went.

use std::process::ExitCode;

/// Half of what a lead costs the worker are small allocations that one thread makes and another gives back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    leadpost::cli::main()
}
