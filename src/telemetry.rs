//! Log lines, on stderr.
//!
//! # Rules
//! - Nothing personal and nothing secret: ids, codes, numbers and our own sentences. What an API or a message said goes to the
//!   ledger.
//! - One line for each lead that is settled; its id is `lead.id` everywhere.
//! - `warn`: we recover by ourselves. `error`: somebody must act.

use std::io::Write as _;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Libraries that talk about what they carry, or repeat what our supervisor says.
const QUIET: [&str; 5] = ["hyper=warn", "reqwest=warn", "sqlx=warn", "lapin=off", "rustls=warn"];

/// Starts logging for this process.
///
/// # Errors
/// What is wrong with the filter.
pub fn init(log: &Log) -> Result<(), String> {
    let mut filter = EnvFilter::try_new(&log.filter).map_err(|error| format!("log.filter is not a filter: {error}"))?;
    for directive in QUIET {
        let target = directive.split('=').next().unwrap_or_default();
        // Whoever names a library gets what it says.
        if !log.filter.contains(target) {
            filter = filter.add_directive(directive.parse().map_err(|error| format!("{directive}: {error}"))?);
        }
    }
    // It would tell stderr that stderr cannot be written to, and panic at that.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let started = match log.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
    };
    started.map_err(|error| error.to_string())
}

/// Lets no panic say what it should not.
pub fn hush_panics() {
    std::panic::set_hook(Box::new(say_panic));
}

/// A panic's own words may quote what it stumbled over, such as a name that was cut in the middle of a character. Only those that stand
/// in the source are shown. `RUST_BACKTRACE` has no effect.
fn say_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    let words = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or("(left out, as it may quote a lead)");
    if tracing::dispatcher::has_been_set() {
        tracing::error!(panic.location = at, panic.message = words, "panicked; this is a bug");
    } else {
        drop(writeln!(std::io::stderr(), "error: panicked at {at}; this is a bug: {words}"));
    }
}
