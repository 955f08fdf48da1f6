//! Records that were forged, each so that one rule is broken: the checker says which, and nothing of an honest one.

use std::collections::HashMap;
use std::time::Duration;

use leadpost::lead::LeadId;
use leadpost::sandbox::{Effect, Endpoint, Entry, Key};
use uuid::Uuid;

use super::{Attempt, Audit, Confirmed, Row};

const BODY: &[u8] = b"{}";

/// The three records of one lead, which was posted twice: first without an answer, which came too late.
#[derive(Clone)]
struct Records {
    confirmed: Vec<Confirmed>,
    rows: Vec<Row>,
    attempts: Vec<Attempt>,
    posts: Vec<Entry>,
}

fn attempt(outcome: &str, http_status: Option<u16>) -> Attempt {
    Attempt { outcome: outcome.to_owned(), http_status, expired: false }
}

/// A post that was in work from then to then, in seconds.
fn post(id: Uuid, from: u64, to: u64, status: u16, effect: Effect) -> Entry {
    Entry {
        seq: 1,
        endpoint: Endpoint::Leads,
        received: Duration::from_secs(from),
        received_unix_ms: 0,
        ended: Some(Duration::from_secs(to)),
        status: Some(status),
        key: Some(Key::Uuid(id)),
        attempt: 1,
        email: None,
        body_hash: None,
        body: Some(BODY.into()),
        content_type: None,
        token_ok: true,
        fault: None,
        effect,
        in_flight: 1,
        overlapped: false,
    }
}

impl Records {
    fn honest() -> Self {
        let id = Uuid::from_u128(7);
        let row = Row {
            id,
            state: "duplicate".to_owned(),
            body: BODY.to_vec(),
            conflict_of: None,
            received: 1,
            replayed: 0,
            requeued: 0,
            leased: false,
        };
        Self {
            confirmed: vec![Confirmed { id: LeadId(id), body: BODY.to_vec() }],
            rows: vec![row],
            attempts: vec![attempt("uncertain", None), attempt("duplicate", Some(409))],
            posts: vec![post(id, 0, 4, 201, Effect::Created), post(id, 2, 3, 409, Effect::Duplicate)],
        }
    }

    fn id(&self) -> Uuid {
        self.rows[0].id
    }

    fn audit(self) -> Audit {
        let mut audit = Audit { as_it_came: true, ..Audit::default() };
        let attempts = HashMap::from([(self.id(), self.attempts)]);
        audit.check_messages(&self.confirmed, &self.rows);
        audit.check_posts(&self.rows, &attempts, self.posts);
        audit
    }
}

/// With this change to honest records, the checker finds this, and says nothing else.
fn finds(words: &[&str], forge: impl FnOnce(&mut Records)) {
    let mut records = Records::honest();
    forge(&mut records);
    let audit = records.audit();
    let found: Vec<&String> = [&audit.lost, &audit.doubles, &audit.wrong].into_iter().flatten().collect();
    let is_said = |said: &&String| words.iter().any(|words| said.contains(words));
    assert!(found.iter().all(is_said), "{words:?}: {audit:#?}");
    for words in words {
        assert!(found.iter().any(|said| said.contains(words)), "{words:?}: {audit:#?}");
    }
}

#[test]
fn the_checker_finds_nothing_in_honest_records() {
    finds(&[], |_| {});
}

#[test]
fn the_checker_finds_messages_and_leads_that_do_not_belong_together() {
    finds(&["is not in the ledger"], |records| records.confirmed[0].body = b"other".to_vec());
    finds(&["is 2 leads"], |records| {
        let copy = Row { id: Uuid::from_u128(8), conflict_of: Some(records.id()), ..records.rows[0].clone() };
        records.rows.push(Row { state: "invalid".to_owned(), ..copy });
    });
    finds(&["comes from no message"], |records| {
        let stranger = Row { id: Uuid::from_u128(8), state: "invalid".to_owned(), ..records.rows[0].clone() };
        records.rows.push(stranger);
    });
    finds(&["were confirmed for"], |records| records.confirmed.push(records.confirmed[0].clone()));
    finds(&["further messages"], |records| records.rows[0].replayed = 1);
}

#[test]
fn the_checker_finds_posts_and_attempts_that_do_not_belong_together() {
    finds(&["the ledger says that it never was: invalid"], |records| {
        records.rows[0].state = "invalid".to_owned();
        records.attempts.clear();
    });
    finds(&["was posted, and is not in the ledger"], |records| {
        records.posts.push(post(Uuid::from_u128(8), 5, 6, 201, Effect::Created));
    });
    finds(&["another body"], |records| records.posts[0].body = Some(b"other".as_slice().into()));
    finds(&["a post with the key"], |records| {
        let strange = Entry { key: None, ..records.posts[0].clone() };
        records.posts.push(strange);
    });
    finds(&["do not explain the posts", "answers on record"], |records| {
        records.posts.truncate(1);
        records.attempts = vec![attempt("retry", Some(503)), attempt("retry", Some(503))];
    });
    finds(&["the API never took it"], |records| {
        records.rows[0].state = "delivered".to_owned();
        records.posts.iter_mut().for_each(|post| post.effect = Effect::Nothing);
    });
}

#[test]
fn the_checker_finds_a_lead_that_was_posted_again_without_a_doubt() {
    finds(&["processed 3 times", "do not explain the posts"], |records| {
        records.posts[0].ended = Some(Duration::from_secs(1));
        records.posts.push(post(records.id(), 5, 6, 409, Effect::Duplicate));
    });
    for (words, outcome, status) in [("posted again after", "duplicate", 409), ("attempts after its end", "retry", 503)]
    {
        finds(&[words], |records| {
            records.attempts.push(attempt(outcome, Some(status)));
            records.posts.push(post(records.id(), 5, 6, status, Effect::Nothing));
        });
    }
}

#[test]
fn the_checker_finds_two_posts_at_a_time_unless_the_worker_had_given_up_the_earlier_of_just_these() {
    finds(&["posted twice at a time"], |records| {
        records.attempts[0] = attempt("uncertain", Some(500));
        records.posts[0].status = Some(500);
    });
    finds(&["posted twice at a time"], |records| records.attempts[0].expired = true);
    // The doubt is about another post.
    finds(&["posted twice at a time"], |records| {
        records.attempts.insert(1, attempt("retry", Some(503)));
        records.posts.insert(1, post(records.id(), 5, 9, 503, Effect::Nothing));
        records.posts[0].ended = Some(Duration::from_secs(1));
        records.posts[2].received = Duration::from_secs(7);
        records.posts[2].ended = Some(Duration::from_secs(8));
    });
}
