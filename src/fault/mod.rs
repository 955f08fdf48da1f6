//! Fault injection, for tests: crash points, rules that are broken on purpose, messages at which it panics.
//!
//! All of it is there only with the cargo feature `faults`, which only builds of tests and benches have: without it these functions are empty. With it,
//! the environment variable `LEADPOST_FAULTS` lists what is to happen, separated by commas:
//!
//! | fault | what happens |
//! |---|---|
//! | `crash_at=POINT`, `crash_at=POINT:N` | the process aborts when it comes by this [`Point`], for the Nth time |
//! | `break=RULE` | it does without this [`Rule`], so that a test can see its checks fail |
//! | `bad_ack` | it acknowledges what was never delivered, once, for which RabbitMQ closes the channel |
//! | `hold_ms=N` | a batch that cannot be accepted is given back after so many milliseconds |
//! | `keep_ms=N` | messages are kept unacknowledged for so many milliseconds at most |
//! | `panic_on_read=TEXT` | it panics while it reads a message with this text |
//! | `panic_on_post=TEXT` | it panics before it posts a lead with this text |

use std::time::Duration;

#[cfg(not(feature = "faults"))]
#[path = "absent.rs"]
mod build;
#[cfg(feature = "faults")]
#[path = "armed.rs"]
mod build;

/// A place on a lead's way, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Point {
    /// A message has been delivered.
    Received,
    /// Its lead is written, and not committed.
    Accepting,
    /// It is committed, and not acknowledged.
    Accepted,
    /// It is acknowledged.
    Acknowledged,
    /// A message for a locked lead is written aside, and not committed.
    SettingAside,
    /// It is set aside, and not acknowledged.
    SetAside,
    /// What was set aside is accepted, and not committed.
    Absorbing,
    /// Due leads are leased, and not committed.
    Claiming,
    /// They are leased.
    Claimed,
    /// There is a token.
    Authorized,
    /// The post is about to be written.
    Posting,
    /// The post has been under way for a moment. A test sees to it that the API takes longer.
    Posted,
    /// The answer is there.
    Answered,
    /// The API was asked whether an earlier post had arrived, and has answered.
    Queried,
    /// The outcome is not committed yet: written, or where that commits at once, about to be.
    Settling,
    /// It is committed.
    Settled,
    /// Leases that ran out are settled, and not committed.
    Expiring,
    /// They are settled.
    Expired,
    /// Leads are requeued, and not committed.
    Requeueing,
    /// They are requeued.
    Requeued,
    /// The tables are about to be brought up to date.
    Migrating,
    /// They are up to date.
    Migrated,
    /// The worker was told to stop.
    Stopping,
    /// What it had in hand is parked.
    Parked,
    /// All is settled, and nobody has said farewell.
    Drained,
}

/// A rule without which leads are lost or doubled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Rule {
    /// A message is acknowledged only after its lead is committed.
    CommitBeforeAck,
    /// A lead that is leased is not claimed.
    Lease,
    /// Only the holder of a lease settles.
    Fence,
}

/// Where a panic can be caused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Panic {
    /// While a message is read.
    OnRead,
    /// Before a lead is posted.
    OnPost,
}

/// Dies here, if this is where it is to die.
#[inline]
pub fn at(point: Point) {
    build::at(point);
}

/// Dies in a moment, if this is where it is to die: for places at which the process waits for somebody else.
#[inline]
pub fn soon_at(point: Point) {
    build::soon_at(point);
}

/// Whether this rule is to be broken.
#[inline]
pub fn breaks(rule: Rule) -> bool {
    build::breaks(rule)
}

/// This statement; without the condition that keeps the rule, if that is to be broken.
#[inline]
pub fn without(rule: Rule, sql: &'static str, condition: &str) -> &'static str {
    build::without(rule, sql, condition)
}

/// Whether RabbitMQ is to be sent an acknowledgement of nothing, now.
#[inline]
pub fn acks_badly() -> bool {
    build::acks_badly()
}

/// How long to hold a batch that cannot be accepted: this long, unless told otherwise.
#[inline]
pub fn hold(usual: Duration) -> Duration {
    build::hold(usual)
}

/// How long messages are kept unacknowledged at most: this long, unless told otherwise.
#[inline]
pub fn keep(usual: Duration) -> Duration {
    build::keep(usual)
}

/// Panics here, if this is a message for that.
#[inline]
pub fn panic_on(panic: Panic, body: &[u8]) {
    build::panic_on(panic, body);
}
