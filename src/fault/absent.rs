//! What is left of faults in a build without the feature: nothing.

use std::time::Duration;

use super::{Panic, Point, Rule};

#[inline]
pub(super) fn at(_: Point) {}

#[inline]
pub(super) fn soon_at(_: Point) {}

#[inline]
pub(super) fn breaks(_: Rule) -> bool {
    false
}

#[inline]
pub(super) fn acks_badly() -> bool {
    false
}

#[inline]
pub(super) fn hold(usual: Duration) -> Duration {
    usual
}

#[inline]
pub(super) fn keep(usual: Duration) -> Duration {
    usual
}

#[inline]
pub(super) fn panic_on(_: Panic, _: &[u8]) {}

#[inline]
pub(super) fn without(_: Rule, sql: &'static str, _: &str) -> &'static str {
    sql
}
