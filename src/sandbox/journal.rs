//! Every request, in the order of arrival: the other side of the story that the worker's ledger tells.
//!
//! ```text
//!   head read        body read, lead looked at        answer handed over
//!   Journal::open ──> Visit::publish (if it waits) ──> Visit::close
//!                                                └───> dropped: it ended without an answer
//! ```
//!
//! # Rules
//! - A request is in the journal before anything else happens to it, so a reset or a hang leaves its trace too.
//! - All is counted when it happens: counts are right even when the entries behind them have been dropped.
//! - Every operation of a request costs the same on its first entry and on its millionth, under one lock that is held
//!   for well under a microsecond. Entries lie in blocks because a growing vector would stop the API to copy itself.
//! - Overlap is seen from here: a request of a client that gave up is in work until its connection is seen to be gone.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use super::entry::{Effect, Endpoint, Entry, Key};
use super::pages::{Counts, Notes, Pages};

/// The requests that a sandbox has received.
#[derive(Debug)]
pub struct Journal {
    started: Instant,
    keep_bodies: bool,
    pages: Mutex<Pages>,
    changed: Notify,
}

/// What was waited for has not happened in time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the sandbox has not seen it within {waited:?}, only {counts:?}")]
pub struct NotSeen {
    /// How long it was waited for.
    pub waited: Duration,
    /// What had happened by then.
    pub counts: Counts,
}

/// A request in work. Dropping it notes that it ended without an answer.
#[derive(Debug)]
pub(super) struct Visit {
    journal: Arc<Journal>,
    seq: u64,
    endpoint: Endpoint,
    key: Option<Key>,
    /// Requests in work at the same endpoint, this one included.
    pub(super) in_flight: u32,
    pub(super) notes: Notes,
    /// What of the notes has been counted.
    counted: (Effect, bool),
    ended: bool,
}

impl Journal {
    pub(super) fn new(keep_bodies: bool, limit: Option<usize>) -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let started_unix_ms = u64::try_from(since_1970.as_millis()).unwrap_or_default();
        let pages = Pages::new(started_unix_ms, limit.unwrap_or(usize::MAX));
        Self { started: Instant::now(), keep_bodies, pages: Mutex::new(pages), changed: Notify::new() }
    }

    /// All requests that are held, in order of arrival. The API stands still while they are copied.
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().since(0).collect()
    }

    /// The requests with leads, in order of arrival.
    pub fn posts(&self) -> Vec<Entry> {
        self.lock().since(0).filter(|entry| entry.endpoint == Endpoint::Leads).collect()
    }

    /// The requests with this `Idempotency-Key`, in order of arrival.
    pub fn posts_for(&self, key: impl Into<Key>) -> Vec<Entry> {
        self.lock().posts_for(&key.into())
    }

    /// Everything counted.
    pub fn counts(&self) -> Counts {
        self.lock().counts()
    }

    /// Tokens issued.
    pub fn tokens_issued(&self) -> u64 {
        self.counts().tokens_issued
    }

    /// Leads created.
    pub fn created_count(&self) -> u64 {
        self.counts().created
    }

    /// Waits until the journal is such that `met` says yes, for `deadline` at most.
    ///
    /// `met` is asked at once and after each change, while the journal is locked: it should ask for counts or for a key
    /// rather than walk over all entries.
    ///
    /// # Errors
    /// [`NotSeen`] when the time is up.
    pub async fn wait_for(&self, mut met: impl FnMut(&Pages) -> bool, deadline: Duration) -> Result<(), NotSeen> {
        let until = tokio::time::Instant::now() + deadline;
        let mut changed = pin!(self.changed.notified());
        loop {
            // Registered before the look, so that no change slips in between.
            changed.as_mut().enable();
            if met(&self.lock()) {
                return Ok(());
            }
            if tokio::time::timeout_at(until, changed.as_mut()).await.is_err() {
                let pages = self.lock();
                let last_look = met(&pages);
                return if last_look { Ok(()) } else { Err(NotSeen { waited: deadline, counts: pages.counts() }) };
            }
            changed.set(self.changed.notified());
        }
    }

    /// Forgets all entries, keys and counts. Requests in work are not counted when they end.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Up to `limit` entries after `seq`, of one endpoint or of all.
    pub(super) fn page(&self, seq: u64, limit: usize, endpoint: Option<Endpoint>) -> Vec<Entry> {
        let wanted = |entry: &Entry| endpoint.is_none_or(|endpoint| entry.endpoint == endpoint);
        self.lock().since(seq).filter(wanted).take(limit).collect()
    }

    /// The counts, and what is behind them, as JSON.
    pub(super) fn summary(&self) -> serde_json::Value {
        self.lock().summary()
    }

    /// Notes a request of which the head has been read.
    pub(super) fn open(self: &Arc<Self>, endpoint: Endpoint, key: Option<Key>) -> Visit {
        let mut pages = self.lock();
        // Read under the lock, so that times are in the order of the numbers.
        let (seq, in_flight) = pages.open(endpoint, key.clone(), self.started.elapsed());
        drop(pages);
        self.changed.notify_waiters();
        Visit {
            journal: Arc::clone(self),
            seq,
            endpoint,
            key,
            in_flight,
            notes: Notes::default(),
            counted: (Effect::Nothing, false),
            ended: false,
        }
    }

    /// Counts a request that is none of the API's business.
    pub(super) fn count_other(&self) {
        self.lock().count_other();
        self.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Visit {
    /// Its sequence number.
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    /// Notes the body.
    pub(super) fn body(&mut self, body: &[u8]) {
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        self.notes.body_hash = NonZeroU64::new(hasher.finish().max(1));
        self.notes.body = self.journal.keep_bodies.then(|| Arc::from(body));
    }

    /// Shows what is known so far, before the request waits for something.
    pub(super) fn publish(&mut self) {
        let notes = self.notes.clone();
        self.write(notes, None);
    }

    /// The request is being answered, with this status if a whole status line will be sent.
    pub(super) fn close(mut self, status: Option<u16>) {
        self.end(status);
    }

    fn end(&mut self, status: Option<u16>) {
        self.ended = true;
        let notes = std::mem::take(&mut self.notes);
        self.write(notes, Some((self.journal.started.elapsed(), status)));
    }

    fn write(&mut self, notes: Notes, end: Option<(Duration, Option<u16>)>) {
        let mut pages = self.journal.lock();
        let effect = Some(notes.effect).filter(|effect| *effect != std::mem::replace(&mut self.counted.0, *effect));
        let fault = notes.fault.filter(|_| !std::mem::replace(&mut self.counted.1, true));
        pages.count(self.seq, effect, fault);
        if let Some((ended, status)) = end {
            pages.close(self.seq, self.endpoint, self.key.as_ref(), ended, status);
        }
        pages.note(self.seq, notes);
        drop(pages);
        self.journal.changed.notify_waiters();
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if !self.ended {
            self.end(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pages::BLOCK;
    use super::*;

    fn visit(journal: &Arc<Journal>, key: &str) -> Visit {
        journal.open(Endpoint::Leads, Some(Key::from(key)))
    }

    #[test]
    fn overlap_is_two_requests_of_one_key_in_work_at_once() {
        let journal = Arc::new(Journal::new(true, None));
        let first = visit(&journal, "a");
        let second = visit(&journal, "a");
        visit(&journal, "b").close(Some(201));
        first.close(Some(201));
        drop(second);
        visit(&journal, "a").close(Some(409));

        let overlapped: Vec<_> = journal.posts_for("a").iter().map(|entry| entry.overlapped).collect();
        assert_eq!(overlapped, [false, true, false]);
        let attempts: Vec<_> = journal.posts_for("a").iter().map(|entry| (entry.attempt, entry.status)).collect();
        assert_eq!(attempts, [(1, Some(201)), (2, None), (3, Some(409))]);
        let counts = journal.counts();
        assert_eq!((counts.overlaps, counts.repeated_keys, counts.distinct_keys), (1, 1, 2));
        assert_eq!((counts.in_flight, counts.max_in_flight, counts.unanswered), (0, 3, 1));
    }

    #[test]
    fn a_bounded_journal_drops_the_oldest_entries_and_keeps_the_counts() {
        let journal = Arc::new(Journal::new(true, Some(BLOCK)));
        let requests = 5 * BLOCK as u64;
        let early = visit(&journal, "early");
        for _ in 1..requests {
            visit(&journal, "key").close(Some(201));
        }
        early.close(Some(500));
        let entries = journal.entries();
        assert!((BLOCK..=2 * BLOCK).contains(&entries.len()), "{}", entries.len());
        assert_eq!(entries.last().map(|entry| entry.seq), Some(requests));
        assert_eq!(journal.counts().answered, requests);
        assert_eq!(journal.posts_for("early").len(), 0);
        assert_eq!(journal.posts_for("key").len(), entries.len());
    }

    #[test]
    fn effects_and_faults_are_counted_once_however_often_they_are_shown() {
        let journal = Arc::new(Journal::new(true, None));
        let mut request = visit(&journal, "a");
        request.notes.effect = Effect::Created;
        request.notes.fault = Some("hang");
        request.publish();
        assert_eq!(journal.counts().created, 1);
        assert_eq!(journal.posts()[0].fault, Some("hang"));
        assert_eq!(journal.posts()[0].ended, None);
        drop(request);
        assert_eq!((journal.counts().created, journal.counts().faults), (1, 1));
        assert!(journal.posts()[0].ended.is_some());
    }

    #[test]
    fn a_request_in_work_while_the_journal_is_cleared_is_not_counted_after_it() {
        let journal = Arc::new(Journal::new(true, None));
        let old = visit(&journal, "a");
        journal.clear();
        let new = visit(&journal, "a");
        old.close(Some(201));
        assert_eq!((journal.counts().answered, journal.counts().in_flight), (0, 1));
        assert_eq!(journal.posts_for("a").len(), 1);
        new.close(Some(201));
        assert_eq!((journal.counts().answered, journal.counts().in_flight), (1, 0));
    }

    #[tokio::test]
    async fn waiting_ends_with_the_change_or_says_what_was_seen_instead() {
        let journal = Arc::new(Journal::new(true, None));
        let seen = {
            let journal = Arc::clone(&journal);
            tokio::spawn(
                async move { journal.wait_for(|pages| pages.counts().posts == 3, Duration::from_secs(10)).await },
            )
        };
        for _ in 0..3 {
            tokio::task::yield_now().await;
            visit(&journal, "a").close(Some(201));
        }
        seen.await.unwrap().unwrap();
        let error = journal.wait_for(|pages| pages.counts().posts == 4, Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(error.counts.posts, 3);
    }
}
