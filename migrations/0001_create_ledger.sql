-- The ledger: what became of every lead that was taken from the queue.
--
-- Times are the database's own. A lead's body is kept byte for byte; text that comes from strangers (reasons, ids of the API)
-- is cleaned of what Postgres cannot store before it gets here.

create table leads (
    id               uuid        primary key,
    destination      text        not null,
    state            text        not null,
    body             bytea       not null,

    queue            text        not null,
    message_id       text,
    accepted_at      timestamptz not null default now(),
    changed_at       timestamptz not null default now(),
    finished_at      timestamptz,
    received         integer     not null default 1,
    conflict_of      uuid,

    next_attempt_at  timestamptz,
    leased_by        text,
    lease            uuid,
    attempts         integer     not null default 0,
    charged          integer     not null default 0,
    suspected        integer     not null default 0,
    budget_from      timestamptz not null default now(),
    replays          integer     not null default 0,

    code             text,
    reason           text,
    violations       jsonb,
    remote_id        text,
    remote_state     text,
    remote_sub_state text,
    next_schedule_time text,
    warning          text,

    constraint leads_state_is_known check (state in
        ('pending', 'delivered', 'duplicate', 'invalid', 'rejected', 'exhausted', 'uncertain', 'cancelled')),
    constraint leads_pending_is_due check ((state = 'pending') = (next_attempt_at is not null)),
    constraint leads_ended_has_time check ((state = 'pending') = (finished_at is null)),
    constraint leads_lease_is_whole check ((leased_by is null) = (lease is null)),
    constraint leads_only_pending_is_leased check (lease is null or state = 'pending'),
    constraint leads_invalid_has_violations check ((state = 'invalid') = (violations is not null)),
    constraint leads_bad_end_has_reason check (state in ('pending', 'delivered') or reason is not null),
    constraint leads_receipt_is_a_success check (remote_id is null or state = 'delivered' or replays > 0),
    constraint leads_counts check (attempts >= 0 and charged >= 0 and charged <= attempts and suspected >= 0
        and received >= 1 and replays >= 0)
)
-- Room on each page for the new version of a row that is settled soon after it was accepted.
with (fillfactor = 85);

comment on table leads is 'One row for each lead that was taken from the queue, for good.';
comment on column leads.id is 'The message id if that is a UUID, else derived from queue and message id or body. Primary key, dedupe key and Idempotency-Key in one.';
comment on column leads.destination is 'The name of the lead API that this lead goes to (destination.name).';
comment on column leads.state is 'pending: accepted, due at next_attempt_at. delivered: the API took it. duplicate: the API has it already. invalid: not a valid lead, never posted. rejected: the API refuses it for good. exhausted: attempts or age used up. uncertain: may have been posted, held for a person. cancelled: a person stopped it.';
comment on column leads.body is 'The message body, byte for byte. What is posted is made from it anew at each attempt.';
comment on column leads.queue is 'The queue that it came from.';
comment on column leads.message_id is 'The AMQP message_id as its producer wrote it; null if there was none.';
comment on column leads.accepted_at is 'When it was committed here for the first time.';
comment on column leads.changed_at is 'When the row changed last.';
comment on column leads.finished_at is 'When it came to its present end; null while pending.';
comment on column leads.received is 'How many times a message with this lead arrived.';
comment on column leads.conflict_of is 'The id under which it came, when another body had come under that id before.';
comment on column leads.next_attempt_at is 'When it is due; while leased, when the lease ends.';
comment on column leads.leased_by is 'The worker that is posting it.';
comment on column leads.lease is 'The fencing token of that lease: a settlement with another one changes nothing.';
comment on column leads.attempts is 'How many rows of attempts it has.';
comment on column leads.charged is 'How many of them count towards retry.max_attempts since budget_from.';
comment on column leads.suspected is 'How many times it met an answer that speaks of the set-up while other leads passed; at three it is rejected.';
comment on column leads.budget_from is 'From when its age counts: when it was accepted, last replayed, or is due first after a paced requeue.';
comment on column leads.replays is 'How many times it was replayed, by message or by requeue.';
comment on column leads.code is 'Why it is in its state, as a stable code such as http_422.';
comment on column leads.reason is 'Why it is in its state, as a sentence.';
comment on column leads.violations is 'What is wrong with an invalid lead: an array of {field, code, message}.';
comment on column leads.remote_id is 'The API''s own id of a delivered lead.';
comment on column leads.remote_state is 'The API''s state of it at delivery.';
comment on column leads.remote_sub_state is 'The API''s sub-state of it at delivery.';
comment on column leads.next_schedule_time is 'When the API meant to act on it, as it wrote that.';
comment on column leads.warning is 'Why a delivered lead may not be worked by the API.';

-- Serves the claim of due leads, the search for expired leases and the age of the oldest.
create index leads_pending on leads (destination, next_attempt_at) where state = 'pending';

-- Serves requeue --state --since and the lists of what ended badly; delivered leads are not in it.
create index leads_ended on leads (destination, state, finished_at)
    where state in ('duplicate', 'invalid', 'rejected', 'exhausted', 'uncertain', 'cancelled');

-- Serves the count of deliveries that the API may not be working.
create index leads_warned on leads (destination) where warning is not null;


create table attempts (
    lead_id        uuid        not null references leads (id) on delete cascade,
    number         integer     not null,
    lease          uuid        not null,
    worker         text        not null,
    started_at     timestamptz not null,
    duration_ms    integer     not null,
    outcome        text        not null,
    charged        boolean     not null,
    http_status    smallint,
    code           text,
    reason         text,
    answer         bytea,
    retry_after_ms bigint,

    primary key (lead_id, number),
    constraint attempts_number_begins_at_one check (number >= 1),
    constraint attempts_outcome_is_known check (outcome in
        ('delivered', 'duplicate', 'rejected', 'unauthorized', 'systemic', 'retry', 'uncertain', 'not_sent')),
    constraint attempts_unsent_has_no_answer check (outcome <> 'not_sent' or http_status is null),
    constraint attempts_answered_has_status check
        (outcome in ('uncertain', 'not_sent', 'systemic') or http_status is not null),
    constraint attempts_failure_has_code check (outcome = 'delivered' or code is not null)
);

comment on table attempts is 'One row for each request that was, or may have been, sent for a lead.';
comment on column attempts.lead_id is 'The lead.';
comment on column attempts.code is 'Why, as a stable code such as http_503; null for a delivery.';
comment on column attempts.reason is 'Why, as a sentence, with what the API said.';
comment on column attempts.number is 'Counts the requests of a lead from 1, through all replays.';
comment on column attempts.lease is 'The lease under which it was made; two requests of one lease are a post and its repetition with a new token.';
comment on column attempts.worker is 'Who made it.';
comment on column attempts.started_at is 'When it began, by the database''s clock.';
comment on column attempts.duration_ms is 'From before the request to after the answer.';
comment on column attempts.outcome is 'delivered, duplicate, rejected, unauthorized (token refused), systemic (the set-up is suspected), retry (not processed), uncertain (may have been processed), not_sent.';
comment on column attempts.charged is 'Whether it counts towards retry.max_attempts.';
comment on column attempts.http_status is 'The status of the answer; null if none came.';
comment on column attempts.answer is 'The start of the answer''s body, for all but successes.';
comment on column attempts.retry_after_ms is 'How long the API asked to be left alone.';


create table replays (
    id          bigint      generated always as identity primary key,
    lead_id     uuid        not null references leads (id) on delete cascade,
    replayed_at timestamptz not null default now(),
    from_state  text        not null,
    kind        text        not null,
    replayed_by text        not null,
    reason      text,
    body_before bytea,

    constraint replays_kind_is_known check (kind in ('message', 'requeue'))
);

create index replays_of_lead on replays (lead_id);

comment on table replays is 'One row for each time that a lead which had ended was sent on its way again.';
comment on column replays.kind is 'message: its producer published it again. requeue: a person did it with leadpost requeue.';
comment on column replays.id is 'In the order in which they were written.';
comment on column replays.lead_id is 'The lead.';
comment on column replays.replayed_at is 'When.';
comment on column replays.from_state is 'The end that it had come to.';
comment on column replays.replayed_by is 'The queue, or the person.';
comment on column replays.reason is 'Why, in the person''s words.';
comment on column replays.body_before is 'SHA-256 of the body that a message replaced: a redelivery of that earlier message is known by it.';


create table aside (
    seq         bigint      generated always as identity primary key,
    destination text        not null,
    queue       text        not null,
    lead_id     uuid        not null,
    message_id  text,
    body        bytea       not null,
    redelivered boolean     not null,
    replay      boolean     not null,
    arrived_at  timestamptz not null default now()
);

comment on table aside is 'Messages whose lead somebody had locked when they arrived. They are acknowledged, and accepted as soon as the lock is gone.';
comment on column aside.seq is 'In the order of their arrival.';
comment on column aside.destination is 'As in leads.';
comment on column aside.queue is 'As in leads.';
comment on column aside.lead_id is 'The lead that the message is about.';
comment on column aside.message_id is 'As in leads.';
comment on column aside.body is 'As in leads.';
comment on column aside.redelivered is 'Whether the broker said that it had delivered it before.';
comment on column aside.replay is 'Whether its producer asked for a replay by header.';
comment on column aside.arrived_at is 'When it was set aside.';


create table workers (
    id          text        primary key,
    destination text        not null,
    queue       text        not null,
    version     text        not null,
    started_at  timestamptz not null default now(),
    seen_at     timestamptz not null default now(),
    status      jsonb       not null
);

comment on table workers is 'One row for each worker that runs, or died without a farewell in the last day.';
comment on column workers.id is 'Host, process and chance.';
comment on column workers.destination is 'Where it posts to.';
comment on column workers.queue is 'Which queue it consumes.';
comment on column workers.version is 'Its version of leadpost.';
comment on column workers.started_at is 'When it wrote this row first.';
comment on column workers.seen_at is 'Renewed every few seconds; a worker that was not seen for half a minute is dead.';
comment on column workers.status is 'What the worker says of itself: circuit, posts under way.';


create table destinations (
    name       text primary key,
    held_until timestamptz
);

comment on table destinations is 'What all workers of a destination have to know.';
comment on column destinations.name is 'destination.name';
comment on column destinations.held_until is 'The API asked to be left alone until then (Retry-After).';


-- How many leads there are in each state, so that nobody has to count them. One row per destination and shard: transactions
-- of different connections seldom meet in one row. leadpost verify compares it with the leads themselves.
create table tallies (
    destination text    not null,
    shard       integer not null,
    accepted    bigint  not null default 0,
    pending     bigint  not null default 0,
    delivered   bigint  not null default 0,
    duplicate   bigint  not null default 0,
    invalid     bigint  not null default 0,
    rejected    bigint  not null default 0,
    exhausted   bigint  not null default 0,
    uncertain   bigint  not null default 0,
    cancelled   bigint  not null default 0,

    primary key (destination, shard)
) with (fillfactor = 20);

comment on table tallies is 'Counts of leads by state. A single shard may be negative; the sum of all shards is the count.';
comment on column tallies.destination is 'Whose leads.';
comment on column tallies.shard is 'Which part of the sum; by the connection that wrote it.';
comment on column tallies.pending is 'Leads in this state.';
comment on column tallies.delivered is 'Leads in this state.';
comment on column tallies.duplicate is 'Leads in this state.';
comment on column tallies.invalid is 'Leads in this state.';
comment on column tallies.rejected is 'Leads in this state.';
comment on column tallies.exhausted is 'Leads in this state.';
comment on column tallies.uncertain is 'Leads in this state.';
comment on column tallies.cancelled is 'Leads in this state.';
comment on column tallies.accepted is 'How many leads were ever accepted, less those erased.';

create function leads_tally(of_destination text, new_state text, old_state text, n bigint, accepted_n bigint)
returns void language sql as $$
    insert into tallies as t (destination, shard, accepted, pending, delivered, duplicate, invalid, rejected, exhausted, uncertain, cancelled)
    select of_destination, pg_backend_pid() % 32, accepted_n,
        n * ((new_state = 'pending')::int - (old_state = 'pending')::int),
        n * ((new_state = 'delivered')::int - (old_state = 'delivered')::int),
        n * ((new_state = 'duplicate')::int - (old_state = 'duplicate')::int),
        n * ((new_state = 'invalid')::int - (old_state = 'invalid')::int),
        n * ((new_state = 'rejected')::int - (old_state = 'rejected')::int),
        n * ((new_state = 'exhausted')::int - (old_state = 'exhausted')::int),
        n * ((new_state = 'uncertain')::int - (old_state = 'uncertain')::int),
        n * ((new_state = 'cancelled')::int - (old_state = 'cancelled')::int)
    on conflict (destination, shard) do update set
        accepted = t.accepted + excluded.accepted, pending = t.pending + excluded.pending,
        delivered = t.delivered + excluded.delivered, duplicate = t.duplicate + excluded.duplicate,
        invalid = t.invalid + excluded.invalid, rejected = t.rejected + excluded.rejected,
        exhausted = t.exhausted + excluded.exhausted, uncertain = t.uncertain + excluded.uncertain,
        cancelled = t.cancelled + excluded.cancelled
$$;

-- Destinations are taken in order, so that transactions over several of them do not wait for each other in a circle.
create function leads_inserted() returns trigger language plpgsql as $$
begin
    perform leads_tally(destination, state, '', n, n)
    from (select destination, state, count(*) as n from new_rows group by 1, 2 order by 1, 2) as changed;
    return null;
end $$;

create function leads_updated() returns trigger language plpgsql as $$
begin
    perform leads_tally(destination, state, '', n, 0)
    from (
        select destination, state, sum(n)::bigint as n
        from (
            select destination, state, 1 as n from new_rows
            union all
            select destination, state, -1 from old_rows
        ) as both_sides
        group by 1, 2 having sum(n) <> 0 order by 1, 2
    ) as changed;
    return null;
end $$;

create function leads_deleted() returns trigger language plpgsql as $$
begin
    perform leads_tally(destination, '', state, n, -n)
    from (select destination, state, count(*) as n from old_rows group by 1, 2 order by 1, 2) as changed;
    return null;
end $$;

create trigger leads_inserted after insert on leads
    referencing new table as new_rows for each statement execute function leads_inserted();
create trigger leads_updated after update on leads
    referencing new table as new_rows old table as old_rows for each statement execute function leads_updated();
create trigger leads_deleted after delete on leads
    referencing old table as old_rows for each statement execute function leads_deleted();
