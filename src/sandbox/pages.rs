//! What the journal holds: entries in blocks, keys, and counts, all updated at the same cost however many there are.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::entry::{ContentType, Effect, Endpoint, Entry, Key};
use super::spread::Spread;

/// Entries per block of memory.
pub(super) const BLOCK: usize = 4096;

/// What has been written, while it does not change: the argument of [`wait_for`](super::Journal::wait_for).
#[derive(Debug)]
pub struct Pages {
    started_unix_ms: u64,
    limit: usize,
    blocks: VecDeque<Vec<Record>>,
    /// The sequence number of the first record that is still here.
    first: u64,
    /// The sequence number of the next request.
    next: u64,
    /// What came before this one was forgotten on request, with its keys and counts.
    counted_from: u64,
    keys: Spread<Key, KeyState>,
    counts: Counts,
    in_flight: [u32; Endpoint::COUNT],
    statuses: [BTreeMap<u16, u64>; Endpoint::COUNT],
    faults: BTreeMap<&'static str, u64>,
    last_ended: Duration,
    first_received: Option<Duration>,
}

/// What has been counted since the start, or since the journal was cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests to any endpoint of the API.
    pub requests: u64,
    /// Requests to the endpoint that takes leads.
    pub posts: u64,
    /// Requests to the endpoint that gives tokens.
    pub token_requests: u64,
    /// Requests that asked something.
    pub queries: u64,
    /// Requests that end a token.
    pub logouts: u64,
    /// Requests to any other path: a wrong URL, or a redirect that was followed.
    pub other_requests: u64,
    /// Tokens issued.
    pub tokens_issued: u64,
    /// Requests that created a lead, or several at once.
    pub created: u64,
    /// Requests with a lead whose email, or whatever else makes it unique, was known.
    pub duplicates: u64,
    /// Leads whose key was known, if keys are deduplicated.
    pub repeated: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that ended without a status.
    pub unanswered: u64,
    /// Requests that met a fault.
    pub faults: u64,
    /// Posts in work now.
    pub in_flight: u32,
    /// Most posts in work at once.
    pub max_in_flight: u32,
    /// Posts that came while another of the same key was in work.
    pub overlaps: u64,
    /// Different keys.
    pub distinct_keys: u64,
    /// Keys that came more than once.
    pub repeated_keys: u64,
    /// Posts without a key.
    pub posts_without_key: u64,
}

#[derive(Debug, Default)]
struct KeyState {
    last_seq: u64,
    posts: u32,
    in_flight: u16,
    overlaps: u16,
}

/// An entry in the least of memory.
#[derive(Debug)]
struct Record {
    received_us: u64,
    /// Microseconds until it ended, plus one; 0 while in work. Enough for more than an hour.
    took_us: u32,
    key: Option<Key>,
    /// The previous request of that key, 0 if none.
    previous: u64,
    attempt: u32,
    in_flight: u32,
    status: u16,
    endpoint: Endpoint,
    overlapped: bool,
    notes: Notes,
}

/// What becomes known of a request while it is in work.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    pub(super) email: Option<Arc<str>>,
    pub(super) body: Option<Arc<[u8]>>,
    pub(super) body_hash: Option<NonZeroU64>,
    pub(super) fault: Option<&'static str>,
    pub(super) effect: Effect,
    pub(super) content_type: Option<ContentType>,
    pub(super) token_ok: bool,
}

impl Pages {
    pub(super) fn new(started_unix_ms: u64, limit: usize) -> Self {
        Self {
            started_unix_ms,
            limit,
            blocks: VecDeque::new(),
            first: 1,
            next: 1,
            counted_from: 1,
            keys: Spread::default(),
            counts: Counts::default(),
            in_flight: [0; Endpoint::COUNT],
            statuses: Default::default(),
            faults: BTreeMap::new(),
            last_ended: Duration::ZERO,
            first_received: None,
        }
    }

    /// Everything counted.
    pub fn counts(&self) -> Counts {
        Counts { distinct_keys: self.keys.len() as u64, ..self.counts }
    }

    /// The entries after the one with this sequence number, in order.
    pub fn since(&self, seq: u64) -> impl Iterator<Item = Entry> {
        let from = seq.saturating_add(1).max(self.first);
        (from..self.next).filter_map(|seq| self.entry(seq))
    }

    /// The requests with this key, in order of arrival. Costs as much as there are of them.
    pub fn posts_for(&self, key: &Key) -> Vec<Entry> {
        let mut seq = self.keys.get(key).map_or(0, |state| state.last_seq);
        let mut entries = Vec::new();
        while let Some(record) = self.find(seq) {
            entries.extend(self.entry(seq));
            seq = record.previous;
        }
        entries.reverse();
        entries
    }

    /// Forgets entries, keys and counts. Requests in work are not counted when they end.
    pub(super) fn clear(&mut self) {
        let in_flight = self.counts.in_flight;
        *self = Self {
            first: self.next,
            next: self.next,
            counted_from: self.next,
            counts: Counts { in_flight, max_in_flight: in_flight, ..Counts::default() },
            in_flight: self.in_flight,
            ..Self::new(self.started_unix_ms, self.limit)
        };
    }

    /// Writes down a request, and returns its number and how many are in work at its endpoint.
    pub(super) fn open(&mut self, endpoint: Endpoint, key: Option<Key>, received: Duration) -> (u64, u32) {
        let seq = self.next;
        self.next += 1;
        self.counts.requests += 1;
        self.first_received.get_or_insert(received);
        let in_flight = &mut self.in_flight[endpoint.index()];
        *in_flight += 1;
        let mut record = Record {
            received_us: micros(received),
            took_us: 0,
            key: None,
            previous: 0,
            attempt: 0,
            in_flight: *in_flight,
            status: 0,
            endpoint,
            overlapped: false,
            notes: Notes::default(),
        };
        match endpoint {
            Endpoint::Leads => {
                self.counts.posts += 1;
                self.counts.in_flight = *in_flight;
                self.counts.max_in_flight = self.counts.max_in_flight.max(*in_flight);
                self.counts.posts_without_key += u64::from(key.is_none());
            }
            Endpoint::Token => self.counts.token_requests += 1,
            Endpoint::Query => self.counts.queries += 1,
            Endpoint::Logout => self.counts.logouts += 1,
        }
        if let Some(key) = key {
            record.key = Some(key.clone());
            let state = self.keys.get_or_insert_with(key, KeyState::default);
            record.previous = std::mem::replace(&mut state.last_seq, seq);
            record.overlapped = state.in_flight > 0;
            state.posts = state.posts.saturating_add(1);
            state.in_flight = state.in_flight.saturating_add(1);
            state.overlaps = state.overlaps.saturating_add(u16::from(record.overlapped));
            record.attempt = state.posts;
            self.counts.overlaps += u64::from(record.overlapped);
            self.counts.repeated_keys += u64::from(state.posts == 2);
        }
        let in_flight = record.in_flight;
        self.push(record);
        (seq, in_flight)
    }

    /// Counts what a request has done and met, each once.
    pub(super) fn count(&mut self, seq: u64, effect: Option<Effect>, fault: Option<&'static str>) {
        if seq < self.counted_from {
            return;
        }
        match effect {
            None | Some(Effect::Nothing | Effect::Ended) => {}
            Some(Effect::Created) => self.counts.created += 1,
            Some(Effect::Duplicate) => self.counts.duplicates += 1,
            Some(Effect::Repeated) => self.counts.repeated += 1,
            Some(Effect::Issued) => self.counts.tokens_issued += 1,
        }
        if let Some(fault) = fault {
            self.counts.faults += 1;
            *self.faults.entry(fault).or_default() += 1;
        }
    }

    /// Counts a request to a path that the API does not have.
    pub(super) fn count_other(&mut self) {
        self.counts.other_requests += 1;
    }

    /// Writes down what is known of a request by now.
    pub(super) fn note(&mut self, seq: u64, notes: Notes) {
        if let Some(record) = self.record(seq) {
            record.notes = notes;
        }
    }

    /// Writes down that a request has ended.
    pub(super) fn close(
        &mut self,
        seq: u64,
        endpoint: Endpoint,
        key: Option<&Key>,
        ended: Duration,
        status: Option<u16>,
    ) {
        let in_flight = &mut self.in_flight[endpoint.index()];
        *in_flight = in_flight.saturating_sub(1);
        if endpoint == Endpoint::Leads {
            self.counts.in_flight = *in_flight;
        }
        if seq < self.counted_from {
            return;
        }
        self.last_ended = ended;
        match status {
            Some(status) => {
                self.counts.answered += 1;
                *self.statuses[endpoint.index()].entry(status).or_default() += 1;
            }
            None => self.counts.unanswered += 1,
        }
        if let Some(state) = key.and_then(|key| self.keys.get_mut(key)) {
            state.in_flight = state.in_flight.saturating_sub(1);
        }
        if let Some(record) = self.record(seq) {
            let took_us = micros(ended).saturating_sub(record.received_us).saturating_add(1);
            record.took_us = u32::try_from(took_us).unwrap_or(u32::MAX);
            record.status = status.unwrap_or(0);
        }
    }

    /// Every block but the last is full, so a sequence number leads straight to its record.
    fn push(&mut self, record: Record) {
        if self.blocks.back().is_none_or(|block| block.len() == BLOCK) {
            if self.blocks.len().saturating_sub(1).saturating_mul(BLOCK) >= self.limit {
                self.blocks.pop_front();
                self.first += BLOCK as u64;
            }
            self.blocks.push_back(Vec::with_capacity(BLOCK));
        }
        if let Some(block) = self.blocks.back_mut() {
            block.push(record);
        }
    }

    fn place(&self, seq: u64) -> Option<(usize, usize)> {
        let place = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        Some((place / BLOCK, place % BLOCK))
    }

    fn find(&self, seq: u64) -> Option<&Record> {
        let (block, place) = self.place(seq)?;
        self.blocks.get(block)?.get(place)
    }

    fn record(&mut self, seq: u64) -> Option<&mut Record> {
        let (block, place) = self.place(seq)?;
        self.blocks.get_mut(block)?.get_mut(place)
    }

    fn entry(&self, seq: u64) -> Option<Entry> {
        let record = self.find(seq)?;
        Some(Entry {
            seq,
            endpoint: record.endpoint,
            received: Duration::from_micros(record.received_us),
            received_unix_ms: self.started_unix_ms + record.received_us / 1000,
            ended: record
                .took_us
                .checked_sub(1)
                .map(|took| Duration::from_micros(record.received_us + u64::from(took))),
            status: (record.status > 0).then_some(record.status),
            key: record.key.clone(),
            attempt: record.attempt,
            email: record.notes.email.clone(),
            body_hash: record.notes.body_hash.map(NonZeroU64::get),
            body: record.notes.body.clone(),
            content_type: record.notes.content_type,
            token_ok: record.notes.token_ok,
            fault: record.notes.fault,
            effect: record.notes.effect,
            in_flight: record.in_flight,
            overlapped: record.overlapped,
        })
    }

    /// The counts, and what is behind them, as JSON.
    pub(super) fn summary(&self) -> serde_json::Value {
        // Enough to look at, and no answer of a gigabyte when a million keys came twice.
        const KEYS_SHOWN: usize = 1000;
        // Where no key came twice, none is looked for: whoever waits for something asks often.
        let most = if self.counts().repeated_keys > 0 { KEYS_SHOWN } else { 0 };
        let again = self.keys.iter().filter(|(_, state)| state.posts > 1).take(most);
        let mut again: Vec<_> = again.map(|(key, state)| (key.to_string(), state.posts, state.overlaps)).collect();
        again.sort();
        let keys: Vec<_> = again
            .into_iter()
            .map(|(key, posts, overlaps)| serde_json::json!({"key": key, "posts": posts, "overlaps": overlaps}))
            .collect();
        let ms = |time: Duration| time.as_micros() as f64 / 1000.0;
        let mut summary = serde_json::json!(self.counts());
        if let Some(members) = summary.as_object_mut() {
            members.insert("faults_by_kind".to_owned(), serde_json::json!(self.faults));
            members.insert("statuses".to_owned(), self.statuses_by_endpoint());
            members.insert("keys_posted_more_than_once".to_owned(), keys.into());
            members.insert("first_received_ms".to_owned(), self.first_received.map(ms).into());
            members.insert("last_ended_ms".to_owned(), ms(self.last_ended).into());
        }
        summary
    }

    /// Every API takes leads and nearly every one gives tokens; the others are shown when they have been asked.
    fn statuses_by_endpoint(&self) -> serde_json::Value {
        let statuses = Endpoint::ALL.iter().zip(&self.statuses);
        let shown = statuses.filter(|(endpoint, statuses)| {
            matches!(endpoint, Endpoint::Leads | Endpoint::Token) || !statuses.is_empty()
        });
        shown.map(|(endpoint, statuses)| (endpoint.name().to_owned(), serde_json::json!(statuses))).collect()
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
