//! Which leads: one filter for every command, and the way in which leads that match are found.
//!
//! ```text
//!   Filter ──> one branch per state, each in the order of an index ──┐
//!              (pending: leased and others are two)                  ├── merged by time ──> a page ──> the next one after its last lead
//!              by id or email: those few leads ──────────────────────┘
//!              (leased ones have no index by email or assistant, and are looked at one by one: they are few)
//! ```
//!
//! # Rules
//! - The time of a lead, by which it is in its place: when it ended; while it is pending, when it is due.
//! - Pages are found by the place of the last lead before them, so the last page costs as much as the first.
//! - The text of a statement is made of words that stand here. What a person types goes in as a parameter.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::model::LeadState;
use super::story::LAST_STATUS;
use crate::lead::{Key, LeadId};

/// The reason without what differs from lead to lead: addresses, ids, numbers, and what stands in quotes.
pub(super) const NORMALIZED_REASON: &str = concat!(
    "regexp_replace(regexp_replace(regexp_replace(regexp_replace(coalesce(l.reason, ''), ",
    r#"'[^[:space:]"''<>@]+@[^[:space:]"''<>@]+', '<email>', 'g'), "#,
    "'[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}', '<id>', 'g'), ",
    r#"'"[^"]*"', '"…"', 'g'), '[0-9]+', '#', 'g')"#
);

/// What a transaction that looks for the first leads in an order begins with. Where the planner believes that there are few, it would read all
/// and sort them; merging the branches, it still sorts.
pub(super) const IN_ORDER: &str = "set local enable_sort = off; set local enable_bitmapscan = off";

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// So many seconds ago, by the database's clock.
    Ago(f64),
    /// Then.
    At(OffsetDateTime),
}

/// Which leads. Everything that is given has to fit; of several values of one kind, one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Ids.
    pub ids: Vec<LeadId>,
    /// States; `None`: all.
    pub states: Option<Vec<LeadState>>,
    /// Ended from then on; of pending leads: accepted from then on.
    pub since: Option<When>,
    /// Ended before then; of pending leads: accepted before then.
    pub until: Option<When>,
    /// Accepted from then on.
    pub accepted_since: Option<When>,
    /// Accepted before then.
    pub accepted_until: Option<When>,
    /// Addresses of the person.
    pub emails: Vec<Key>,
    /// Assistants.
    pub assistants: Vec<Key>,
    /// Why it is in its state, as codes.
    pub codes: Vec<String>,
    /// Statuses of the last answer, from and to, both included; 0: none came.
    pub statuses: Vec<(i16, i16)>,
    /// How many attempts were made, from and to, both included.
    pub attempts: Option<(i32, i32)>,
    /// Queues that it came from.
    pub queues: Vec<String>,
    /// What its reason says, as `failures` shows it.
    pub because: Option<String>,
    /// Only deliveries that the API may not be working.
    pub warned: bool,
    /// Only pending ones that are due.
    pub due: bool,
    /// Without those whose personal data was erased.
    pub not_erased: bool,
}

impl Filter {
    /// These leads.
    pub fn of_ids(ids: &[LeadId]) -> Self {
        Self { ids: ids.to_vec(), ..Self::default() }
    }

    /// All leads in these states.
    pub fn of_states(states: &[LeadState]) -> Self {
        Self { states: Some(states.to_vec()), ..Self::default() }
    }

    /// Whether it lets every lead through.
    pub fn is_empty(&self) -> bool {
        *self == Self { not_erased: self.not_erased, ..Self::default() }
    }

    /// With points in time in place of how long ago they are, so that it means the same however long its use takes.
    #[must_use]
    pub fn as_of(mut self, now: OffsetDateTime) -> Self {
        let times = [&mut self.since, &mut self.until, &mut self.accepted_since, &mut self.accepted_until];
        for when in times.into_iter().flatten() {
            if let When::Ago(seconds) = *when {
                *when = When::At(now - time::Duration::seconds_f64(seconds));
            }
        }
        self
    }

    /// Only those of these states.
    #[must_use]
    pub fn within(mut self, states: &[LeadState]) -> Self {
        let wanted = self.states();
        self.states = Some(states.iter().copied().filter(|state| wanted.contains(state)).collect());
        self
    }

    /// Whether only the states count, so that the tallies know how many there are.
    pub(super) fn only_states(&self) -> bool {
        *self == Self { states: self.states.clone(), ..Self::default() }
    }

    pub(super) fn states(&self) -> Vec<LeadState> {
        let mut states = self.states.clone().unwrap_or_else(|| LeadState::ALL.to_vec());
        // Said here and not as a condition, with which the index of all that are pending would be one to use.
        states.retain(|state| !self.due || *state == LeadState::Pending);
        states
    }

    /// Everything but ids, states and the place.
    fn push_conditions(&self, query: &mut QueryBuilder<Postgres>) {
        let times = [
            (self.since, "coalesce(l.finished_at, l.accepted_at) >= "),
            (self.until, "coalesce(l.finished_at, l.accepted_at) < "),
            (self.accepted_since, "l.accepted_at >= "),
            (self.accepted_until, "l.accepted_at < "),
        ];
        for (when, condition) in times {
            if let Some(when) = when {
                query.push(" and ").push(condition);
                push_when(query, when);
            }
        }
        let texts = [(&self.codes, "l.code"), (&self.queues, "l.queue")];
        for (texts, column) in texts {
            if !texts.is_empty() {
                query.push(" and ").push(column).push(" = any(").push_bind(texts.clone()).push(")");
            }
        }
        if !self.statuses.is_empty() {
            let last = format!("coalesce({LAST_STATUS}, 0)");
            query.push(" and (false");
            for (from, to) in &self.statuses {
                query.push(format_args!(" or {last} between ")).push_bind(*from).push(" and ").push_bind(*to);
            }
            query.push(")");
        }
        if let Some((from, to)) = self.attempts {
            query.push(" and l.attempts between ").push_bind(from).push(" and ").push_bind(to);
        }
        if let Some(because) = &self.because {
            query.push(" and ").push(NORMALIZED_REASON).push(" = ").push_bind(because.clone());
        }
        if self.warned {
            query.push(" and l.warning is not null");
        }
        if self.due {
            query.push(" and l.lease is null and l.next_attempt_at <= now()");
        }
        if self.not_erased {
            query.push(" and l.erased_at is null");
        }
    }
}

fn push_when(query: &mut QueryBuilder<Postgres>, when: When) {
    match when {
        When::Ago(seconds) => query.push("now() - interval '1 second' * ").push_bind(seconds),
        When::At(at) => query.push_bind(at),
    };
}

/// The place of a lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The time of the lead.
    pub at: OffsetDateTime,
    /// The lead: many have the same time.
    pub id: LeadId,
}

impl Place {
    pub(super) fn of(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self { at: row.try_get("at")?, id: LeadId(row.try_get("id")?) })
    }
}

/// Which end comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The newest.
    NewestFirst,
    /// The oldest.
    OldestFirst,
}

/// A search.
#[derive(Debug, Clone)]
pub(super) struct Search<'a> {
    pub(super) destination: &'a str,
    pub(super) filter: &'a Filter,
    pub(super) order: Order,
    pub(super) after: Option<Place>,
    /// Only those that ended by then; of pending leads: that were accepted by then.
    pub(super) by: Option<OffsetDateTime>,
    pub(super) limit: i64,
}

/// What is looked through in the order of one index.
enum Branch {
    /// Pending leads: those with a lease, or the others.
    Pending { leased: bool },
    /// Leads that ended so.
    Ended(LeadState),
    /// Ended leads of this assistant.
    Of(Key),
    /// Leads of this assistant that are pending and not leased.
    Waiting(Key),
}

impl Branch {
    /// The time of its leads, as the index has it.
    fn at(&self) -> &'static str {
        match self {
            Branch::Pending { .. } | Branch::Waiting(_) => "l.next_attempt_at",
            Branch::Ended(_) | Branch::Of(_) => "l.finished_at",
        }
    }
}

impl Search<'_> {
    /// The leads, in order, with these columns of `leads l`, and `id` and `at`.
    pub(super) async fn rows(&self, connection: &mut PgConnection, columns: &str) -> Result<Vec<PgRow>, sqlx::Error> {
        sqlx::raw_sql(IN_ORDER).execute(&mut *connection).await?;
        let mut query = QueryBuilder::new("select * from (");
        if !self.push_branches(&mut query, &format!("l.id, {columns}"), true) {
            return Ok(Vec::new());
        }
        query.push(match self.order {
            Order::NewestFirst => ") as found order by at desc, id desc limit ",
            Order::OldestFirst => ") as found order by at, id limit ",
        });
        query.push_bind(self.limit);
        query.build().fetch_all(connection).await
    }

    /// How many leads there are, from the place on.
    pub(super) async fn count(&self, connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let mut query = QueryBuilder::new("select count(*) from (");
        if !self.push_branches(&mut query, "l.id", false) {
            return Ok(0);
        }
        query.push(") as found");
        query.build_query_scalar().fetch_one(connection).await
    }

    /// All branches as one table; `false`: there are none. `in_order`: each has no more than are wanted, in order.
    pub(super) fn push_branches(&self, query: &mut QueryBuilder<Postgres>, columns: &str, in_order: bool) -> bool {
        let states = self.filter.states();
        let is_few = self.is_few();
        let mut between = "";
        if is_few {
            self.push_few(query, columns, &states, in_order);
            between = " union all ";
        }
        for branch in self.branches(&states) {
            // By id, leased leads are found as others are; by email one by one.
            let is_by_email = self.filter.ids.is_empty() && !self.filter.warned;
            if !is_few || (is_by_email && matches!(branch, Branch::Pending { leased: true })) {
                query.push(between);
                self.push_branch(query, columns, &branch, &states, in_order);
                between = " union all ";
            }
        }
        !between.is_empty()
    }

    /// Whether an index says which leads may fit at all.
    fn is_few(&self) -> bool {
        !self.filter.ids.is_empty() || self.filter.warned || !self.filter.emails.is_empty()
    }

    fn branches(&self, states: &[LeadState]) -> Vec<Branch> {
        let mut branches = Vec::new();
        if states.contains(&LeadState::Pending) {
            branches.push(Branch::Pending { leased: true });
            if self.filter.assistants.is_empty() {
                branches.push(Branch::Pending { leased: false });
            } else {
                branches.extend(self.filter.assistants.iter().copied().map(Branch::Waiting));
            }
        }
        // Of an assistant's leads, most were delivered; those that ended otherwise are few, whoever's they are.
        if !self.filter.assistants.is_empty() && states.contains(&LeadState::Delivered) {
            branches.extend(self.filter.assistants.iter().copied().map(Branch::Of));
        } else {
            let ended = states.iter().copied().filter(|state| *state != LeadState::Pending);
            branches.extend(ended.map(Branch::Ended));
        }
        branches
    }

    /// Leads that are looked up one by one, and put in order.
    fn push_few(&self, query: &mut QueryBuilder<Postgres>, columns: &str, states: &[LeadState], in_order: bool) {
        let at = "coalesce(l.finished_at, l.next_attempt_at)";
        // With nothing put behind them, these two would be conditions of other indexes, through which all leads were looked at for those few.
        query.push(format_args!("(select {columns}, {at} as at from leads l where l.destination || '' = "));
        query.push_bind(self.destination.to_owned()).push(" and l.id = any(");
        if !self.filter.ids.is_empty() {
            query.push_bind(self.filter.ids.iter().map(|id| id.0).collect::<Vec<Uuid>>());
        } else if self.filter.warned {
            query.push("array(select w.id from leads w where w.warning is not null and w.destination = ");
            query.push_bind(self.destination.to_owned()).push(")");
        } else {
            // As the indexes say it, which the planner does not conclude from the other condition; of those that are pending it must not think, or it
            // might go through all of these (0011).
            query.push("array(select e.id from leads e where e.state <> 'pending' and e.email_key is not null and e.email_key = any(");
            query.push_bind(self.emails()).push(") union all select w.id from leads w ");
            query.push(
                "where w.next_attempt_at is not null and w.lease is null and w.email_key is not null and w.email_key = any(",
            );
            query.push_bind(self.emails()).push("))");
        }
        query.push(") and l.state || '' = any(").push_bind(names(states)).push(")");
        if !self.filter.emails.is_empty() {
            query.push(" and l.email_key = any(").push_bind(self.emails()).push(")");
        }
        if !self.filter.assistants.is_empty() {
            query.push(" and l.assistant_key = any(").push_bind(self.assistants()).push(")");
        }
        self.push_tail(query, at, in_order);
    }

    fn push_branch(
        &self,
        query: &mut QueryBuilder<Postgres>,
        columns: &str,
        branch: &Branch,
        states: &[LeadState],
        in_order: bool,
    ) {
        query.push(format_args!("(select {columns}, {} as at from leads l where l.destination = ", branch.at()));
        query.push_bind(self.destination.to_owned());
        // States as text, since the indexes are for states.
        match branch {
            Branch::Pending { leased } => {
                query.push(" and l.state = 'pending' and (l.lease is null)::int = ").push(i32::from(!leased));
            }
            Branch::Ended(state) => {
                query.push(format_args!(" and l.state = '{state}'"));
            }
            Branch::Of(assistant) => {
                query.push(" and l.state <> 'pending' and l.assistant_key = ").push_bind(assistant.0);
                // As above: another index has the same order.
                query.push(" and l.state || '' = any(").push_bind(names(states)).push(")");
            }
            Branch::Waiting(assistant) => {
                query
                    .push(" and l.next_attempt_at is not null and l.lease is null and l.assistant_key = ")
                    .push_bind(assistant.0);
            }
        }
        if !self.filter.assistants.is_empty() && !matches!(branch, Branch::Of(_) | Branch::Waiting(_)) {
            query.push(" and l.assistant_key = any(").push_bind(self.assistants()).push(")");
        }
        if !self.filter.emails.is_empty() {
            query.push(" and l.email_key = any(").push_bind(self.emails()).push(")");
        }
        // Nothing ended before it was accepted; and an index can begin there.
        if !matches!(branch, Branch::Pending { .. } | Branch::Waiting(_)) {
            let bounds =
                [(self.filter.since, " >= "), (self.filter.accepted_since, " >= "), (self.filter.until, " < ")];
            for (when, comparison) in bounds {
                if let Some(when) = when {
                    query.push(" and ").push(branch.at()).push(comparison);
                    push_when(query, when);
                }
            }
        }
        self.push_tail(query, branch.at(), in_order);
    }

    fn push_tail(&self, query: &mut QueryBuilder<Postgres>, at: &str, in_order: bool) {
        self.filter.push_conditions(query);
        let (comparison, direction) = match self.order {
            Order::NewestFirst => ("<", " desc"),
            Order::OldestFirst => (">", ""),
        };
        if let Some(by) = self.by {
            query.push(" and coalesce(l.finished_at, l.accepted_at) <= ").push_bind(by);
        }
        if let Some(after) = self.after {
            query.push(format_args!(" and ({at}, l.id) {comparison} (")).push_bind(after.at).push(", ");
            query.push_bind(after.id.0).push(")");
        }
        if in_order {
            query.push(format_args!(" order by {at}{direction}, l.id{direction} limit ")).push_bind(self.limit);
        }
        query.push(")");
    }

    fn assistants(&self) -> Vec<i64> {
        self.filter.assistants.iter().map(|assistant| assistant.0).collect()
    }

    fn emails(&self) -> Vec<i64> {
        self.filter.emails.iter().map(|email| email.0).collect()
    }
}

/// States as they are stored.
pub(super) fn names(states: &[LeadState]) -> Vec<&'static str> {
    states.iter().map(|state| state.as_str()).collect()
}
