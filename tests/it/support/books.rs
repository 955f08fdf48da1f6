//! The checker: what the publisher had confirmed, what the API received and what the ledger says, held against each other.
//!
//! The three records are independent: the first is kept by the tests' own publisher, the second by the sandbox, which shares no code with
//! the worker, and the third is read as plain SQL.

mod forged;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use leadpost::lead::LeadId;
use leadpost::sandbox::{Entry, Key};
use leadpost::worker::Stopped;
use sqlx::{PgPool, Row as _};
use uuid::Uuid;

use super::{Running, World};

/// Answers after which a lead is not posted again, unless somebody replays it.
const FINAL: [&str; 3] = ["delivered", "duplicate", "rejected"];

/// The byte order mark of UTF-8, which is not posted.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// A message that RabbitMQ confirmed.
#[derive(Clone, Debug)]
pub struct Confirmed {
    pub id: LeadId,
    pub body: Vec<u8>,
}

/// What was found, each finding with the lead it is about.
#[derive(Debug, Default)]
pub struct Audit {
    /// Confirmed messages.
    pub published: usize,
    /// Leads by their state.
    pub states: BTreeMap<String, u64>,
    /// Messages that came again.
    pub repeated: u64,
    /// Posts that the API received.
    pub posts: usize,
    /// Posts of leads that had been posted before, with every right.
    pub again: usize,
    /// Attempts that are on record as uncertain.
    pub uncertain: usize,
    /// Confirmed messages that are not in the ledger, or in no state at all that ends.
    pub lost: Vec<String>,
    /// Leads that the API processed more often than the ledger can explain, or twice at a time.
    pub doubles: Vec<String>,
    /// Everything else that does not agree.
    pub wrong: Vec<String>,
    /// Whether leads are posted byte for byte.
    as_it_came: bool,
}

impl Audit {
    pub fn holds(&self) -> bool {
        self.lost.is_empty() && self.doubles.is_empty() && self.wrong.is_empty()
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |state: &str| self.states.get(state).copied().unwrap_or(0);
        let rows = [
            ("published and confirmed", self.published as u64),
            ("delivered", of("delivered")),
            ("duplicate", of("duplicate")),
            ("invalid", of("invalid")),
            ("rejected", of("rejected")),
            ("exhausted", of("exhausted")),
            ("uncertain", of("uncertain")),
            ("cancelled", of("cancelled")),
            ("pending", of("pending")),
            ("messages that came again", self.repeated),
            ("posts that the API received", self.posts as u64),
            ("posts of a lead after its first", self.again as u64),
            ("attempts on record as uncertain", self.uncertain as u64),
            ("lost", self.lost.len() as u64),
            ("unexplained double posts", self.doubles.len() as u64),
            ("other disagreements", self.wrong.len() as u64),
        ];
        rows.iter().try_for_each(|(name, n)| writeln!(f, "| {name} | {n} |"))
    }
}

#[derive(Clone)]
struct Row {
    id: Uuid,
    state: String,
    body: Vec<u8>,
    conflict_of: Option<Uuid>,
    received: i32,
    /// How often it was sent on its way again by a message, and by a person.
    replayed: i64,
    requeued: i64,
    leased: bool,
}

impl Row {
    fn replays(&self) -> usize {
        usize::try_from(self.replayed + self.requeued).unwrap()
    }
}

/// A post as the ledger has it.
#[derive(Clone, Debug)]
struct Attempt {
    outcome: String,
    http_status: Option<u16>,
    /// Recorded by somebody else, as its worker never settled it: it may stand for no post at all.
    expired: bool,
}

impl World {
    /// Holds the three records against each other. What is still on its way is not an error; see [`World::check_all`].
    pub async fn audit(&self) -> Audit {
        let confirmed = self.broker.confirmed();
        let rows = leads(&self.database.pool).await;
        let attempts = attempts(&self.database.pool).await;
        let posts = self.sandbox.journal().posts();
        let mut audit = Audit {
            published: confirmed.len(),
            posts: posts.len(),
            as_it_came: self.posts_as_it_came(),
            ..Audit::default()
        };
        audit.uncertain = attempts.values().flatten().filter(|attempt| attempt.outcome == "uncertain").count();
        for row in &rows {
            *audit.states.entry(row.state.clone()).or_default() += 1;
            audit.repeated += u64::from(row.received.unsigned_abs()) - 1;
        }
        audit.check_messages(&confirmed, &rows);
        audit.check_posts(&rows, &attempts, posts);
        for check in self.ledger.verify().await.unwrap().checks {
            if check.broken > 0 {
                audit.wrong.push(format!("{check:?}"));
            }
        }
        audit
    }

    fn posts_as_it_came(&self) -> bool {
        self.destination.iter().any(|(name, value)| name.ends_with("__PRESET") && value == "7targets")
    }

    /// Everything has come to an end, and all records agree.
    pub async fn check_all(&self) -> Audit {
        let mut audit = self.audit().await;
        for row in leads(&self.database.pool).await {
            if row.state == "pending" || row.leased {
                audit.lost.push(format!("lead {} is still on its way", row.id));
            }
        }
        let aside = self.number("select count(*) from aside").await;
        if aside != 0 {
            audit.lost.push(format!("{aside} messages are set aside"));
        }
        let depth = self.broker.depth().await;
        if depth != 0 {
            audit.lost.push(format!("{depth} messages are in the queue"));
        }
        audit
    }
}

impl World {
    /// As [`World::finish`], and all records agree. For worlds to which leads came as messages, and in no other way.
    pub async fn finish_in_full(self, running: Running) {
        assert_eq!(running.stop().await, Stopped::Cleanly);
        self.check_in_full().await;
    }

    /// The same, with all workers ended.
    pub async fn check_in_full(&self) {
        let audit = self.check_all().await;
        assert!(audit.holds(), "{audit:#?}");
        self.check_books().await;
    }
}

impl Audit {
    /// Every confirmed message is one lead: under its id, or under another one that says which it came under.
    fn check_messages(&mut self, confirmed: &[Confirmed], rows: &[Row]) {
        let mut by_id: HashMap<Uuid, Vec<&Row>> = HashMap::new();
        for row in rows {
            by_id.entry(row.conflict_of.unwrap_or(row.id)).or_default().push(row);
        }
        let mut messages: HashMap<Uuid, i32> = HashMap::new();
        let mut bodies: HashMap<Uuid, HashSet<&[u8]>> = HashMap::new();
        for message in confirmed {
            *messages.entry(message.id.0).or_default() += 1;
            bodies.entry(message.id.0).or_default().insert(&message.body);
        }
        for message in confirmed {
            let named = by_id.get(&message.id.0).map_or(&[][..], Vec::as_slice);
            // A message replays a lead with its own body.
            let has_it = |row: &&&Row| {
                row.body == message.body || row.replayed > 0 && bodies[&message.id.0].contains(&row.body[..])
            };
            match named.iter().filter(has_it).count() {
                0 => self.lost.push(format!("message {} is not in the ledger", message.id)),
                1 => {}
                n => self.wrong.push(format!("message {} is {n} leads", message.id)),
            }
        }
        for row in rows.iter().filter(|row| !messages.contains_key(&row.conflict_of.unwrap_or(row.id))) {
            self.wrong.push(format!("lead {} comes from no message", row.id));
        }
        for row in rows.iter().filter(|row| row.replayed > 0) {
            let more = messages.get(&row.conflict_of.unwrap_or(row.id)).map_or(0, |n| n - 1);
            if row.replayed > i64::from(more) {
                self.doubles
                    .push(format!("lead {} was replayed by {} of {more} further messages", row.id, row.replayed));
            }
        }
        for (id, n) in messages {
            let received: i32 = by_id.get(&id).map_or(0, |rows| rows.iter().map(|row| row.received).sum());
            if received < n {
                self.lost.push(format!("{n} messages were confirmed for {id}, and {received} received"));
            }
        }
    }

    /// Every post has its attempt; a lead was posted again only after an attempt that allows it; never two posts at a time.
    fn check_posts(&mut self, rows: &[Row], attempts: &HashMap<Uuid, Vec<Attempt>>, posts: Vec<Entry>) {
        let mut by_lead: HashMap<Uuid, Vec<Entry>> = HashMap::new();
        for post in posts {
            match post.key {
                Some(Key::Uuid(id)) => by_lead.entry(id).or_default().push(post),
                ref other => self.wrong.push(format!("a post with the key {other:?}")),
            }
        }
        let known: HashMap<Uuid, &Row> = rows.iter().map(|row| (row.id, row)).collect();
        for (id, posts) in &by_lead {
            self.again += posts.len() - 1;
            let attempts = attempts.get(id).map_or(&[][..], Vec::as_slice);
            match known.get(id) {
                None => self.wrong.push(format!("lead {id} was posted, and is not in the ledger")),
                // One that is under way has its attempt later.
                Some(row) if attempts.is_empty() && !row.leased => {
                    self.wrong
                        .push(format!("lead {id} was posted, and the ledger says that it never was: {}", row.state));
                }
                Some(row) => self.check_lead(*id, row, attempts, posts),
            }
        }
        for row in rows.iter().filter(|row| row.state == "delivered") {
            let is_taken = by_lead.get(&row.id).is_some_and(|posts| posts.iter().any(|post| post.effect.processed()));
            if !is_taken {
                self.lost.push(format!("lead {} is delivered, and the API never took it", row.id));
            }
        }
        for (id, attempts) in attempts {
            let posts = by_lead.get(id).map_or(0, Vec::len);
            // An attempt that broke off may never have reached the API.
            let certain = attempts.iter().filter(|attempt| attempt.http_status.is_some()).count();
            if certain > posts {
                self.wrong.push(format!("lead {id}: {certain} answers on record, {posts} posts received"));
            }
        }
    }

    fn check_lead(&mut self, id: Uuid, row: &Row, attempts: &[Attempt], posts: &[Entry]) {
        let record = || {
            let of = |attempt: &Attempt| format!("{} {:?}", attempt.outcome, attempt.http_status);
            let answers: Vec<_> = posts.iter().map(|post| post.status).collect();
            format!("answered {answers:?}, on record {:?}", attempts.iter().map(of).collect::<Vec<_>>())
        };
        // The last one may be under way, or its worker dead.
        let settled = if row.leased { &posts[..posts.len() - 1] } else { posts };
        // A post that the worker gave up may still be in work when the next one comes; no other.
        let ends = |(earlier, later): (&Entry, &Entry)| earlier.ended.is_some_and(|ended| ended <= later.received);
        let given_up: Vec<bool> = posts.iter().zip(posts.iter().skip(1)).map(|pair| !ends(pair)).collect();
        let explains = |given_up: &[bool]| [posts, settled].iter().any(|posts| explains(attempts, posts, given_up));
        if !explains(&[]) {
            self.wrong.push(format!("lead {id}: the attempts do not explain the posts: {}", record()));
        }
        if given_up.contains(&true) && !explains(&given_up) {
            self.doubles.push(format!("lead {id}: posted twice at a time: {}", record()));
        }
        let doubts = attempts.iter().filter(|attempt| attempt.outcome == "uncertain").count();
        // Every body that was kept is the lead's own, in an API to which it goes as it came.
        let own = row.body.strip_prefix(MARK).unwrap_or(&row.body);
        let other = |post: &&Entry| post.body.as_deref().is_some_and(|body| body != own);
        if self.as_it_came && row.replays() == 0 && posts.iter().find(other).is_some() {
            self.wrong.push(format!("lead {id}: another body was posted under its key"));
        }
        let taken = posts.iter().filter(|post| post.effect.processed()).count();
        if taken > 1 + doubts + row.replays() {
            self.doubles.push(format!("lead {id}: processed {taken} times: {}", record()));
        }
        let ends = attempts.iter().filter(|attempt| FINAL.contains(&attempt.outcome.as_str())).count();
        if ends > 1 + row.replays() {
            self.doubles.push(format!("lead {id}: posted again after its end: {}", record()));
        }
        let last_end = attempts.iter().rposition(|attempt| FINAL.contains(&attempt.outcome.as_str()));
        if row.replays() == 0 && last_end.is_some_and(|at| at + 1 < attempts.len()) {
            self.doubles.push(format!("lead {id}: attempts after its end: {}", record()));
        }
    }
}

/// Whether these attempts, in this order, can be what was seen of these posts: each answer on record was given, each doubt stands for one
/// post at most, and what a worker died over may have been several more that the API did not process. Those of which that is said,
/// in the order of the posts, stand for a post that a worker gave up without an answer.
fn explains(attempts: &[Attempt], posts: &[Entry], given_up: &[bool]) -> bool {
    let Some((attempt, rest)) = attempts.split_first() else { return posts.is_empty() };
    if matches!(attempt.outcome.as_str(), "not_sent" | "uncertain") && explains(rest, posts, given_up) {
        return true;
    }
    let after = |n: usize| given_up.get(n..).unwrap_or_default();
    if attempt.outcome == "not_sent" {
        return false;
    }
    if attempt.expired {
        let unprocessed = posts.iter().take_while(|post| !post.effect.processed()).count();
        return (1..=(unprocessed + 1).min(posts.len())).any(|n| {
            // It is gone, and so are its posts.
            !given_up.iter().take(n).any(|given_up| *given_up) && explains(rest, &posts[n..], after(n))
        });
    }
    let Some((post, later)) = posts.split_first() else { return false };
    let is_given_up = attempt.outcome == "uncertain" && attempt.http_status.is_none();
    (is_given_up || given_up.first() != Some(&true))
        && attempt.http_status.is_none_or(|status| post.status == Some(status))
        && explains(rest, later, after(1))
}

async fn leads(pool: &PgPool) -> Vec<Row> {
    let sql = "select id, state, body, conflict_of, received, \
                   (select count(*) from replays r where r.lead_id = l.id and r.kind = 'message'), \
                   (select count(*) from replays r where r.lead_id = l.id and r.kind = 'requeue'), lease is not null from leads l";
    let of = |row: sqlx::postgres::PgRow| Row {
        id: row.get(0),
        state: row.get(1),
        body: row.get(2),
        conflict_of: row.get(3),
        received: row.get(4),
        replayed: row.get(5),
        requeued: row.get(6),
        leased: row.get(7),
    };
    sqlx::query(sql).fetch_all(pool).await.unwrap().into_iter().map(of).collect()
}

async fn attempts(pool: &PgPool) -> HashMap<Uuid, Vec<Attempt>> {
    let sql =
        "select lead_id, outcome, http_status, code from attempts where request = 'post' order by lead_id, number";
    let mut attempts: HashMap<Uuid, Vec<Attempt>> = HashMap::new();
    for row in sqlx::query(sql).fetch_all(pool).await.unwrap() {
        attempts.entry(row.get(0)).or_default().push(Attempt {
            outcome: row.get(1),
            http_status: row.get::<Option<i16>, _>(2).map(i16::unsigned_abs),
            expired: row.get::<Option<String>, _>(3).as_deref() == Some("lease_expired"),
        });
    }
    attempts
}
