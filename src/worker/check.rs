//! Checking a message, also one that our own checks fail at.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::fault::{self, Panic};
use crate::lead::{Code, LeadId, LeadRules, Read, Violation};

/// Checks a message. A check that panics makes it invalid (`worker_panic`) instead of failing its batch; its bytes are kept, so it can be
/// requeued once the bug is mended.
pub(super) fn check(rules: &LeadRules, id: LeadId, body: &[u8]) -> Read {
    let checked = catch_unwind(AssertUnwindSafe(|| {
        fault::panic_on(Panic::OnRead, body);
        rules.read(id, body)
    }));
    checked.unwrap_or_else(|_| {
        tracing::error!(lead.id = %id, "the check of a message has panicked; this is a bug");
        let text = "leadpost failed while it checked the message: a bug in leadpost, not in the message; requeue it after an upgrade";
        vec![Violation::of_message(Code::WorkerPanic, text)].into()
    })
}
