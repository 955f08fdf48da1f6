//! Deeper stacks for the threads of this process.
//!
//! The AMQP library reads the headers of a message, and lets go of them, by recursion without a limit, and arrays within arrays nest tens
//! of thousands deep in one frame: with the usual 2 MiB a single message would end every worker of its queue by a stack overflow, again
//! and again. The standard library takes the size for its threads, tokio's among them, from `RUST_MIN_STACK` when the first is made, and
//! that can only be set before the process starts: so `leadpost run` re-executes itself once, with it. Only stack that is used
//! costs memory.

use std::ffi::OsString;

/// What the standard library reads.
const VARIABLE: &str = "RUST_MIN_STACK";

/// Enough for what fits into a frame of 128 KiB, with five bytes a level. A debug build takes some ten times as much.
const BYTES: usize = if cfg!(debug_assertions) { 1 << 30 } else { 64 << 20 };

/// Re-executes this process with deeper stacks, unless somebody has set them already. Comes back if that cannot be done.
pub(super) fn deepen() {
    if std::env::var_os(VARIABLE).is_none() {
        re_execute();
    }
}

/// Whether the stacks are deep enough.
pub(super) fn is_deep() -> bool {
    let bytes = std::env::var(VARIABLE).ok().and_then(|bytes| bytes.parse::<usize>().ok());
    bytes.is_some_and(|bytes| bytes >= BYTES)
}

#[cfg(unix)]
fn re_execute() {
    use std::os::unix::process::CommandExt as _;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("leadpost"));
    if let Ok(program) = std::env::current_exe() {
        // It returns only when it fails; then we go on as we are, and say so where it matters.
        drop(std::process::Command::new(program).arg0(name).args(arguments).env(VARIABLE, BYTES.to_string()).exec());
    }
}

#[cfg(not(unix))]
fn re_execute() {}
