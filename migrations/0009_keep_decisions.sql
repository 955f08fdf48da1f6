-- What people decided about a destination as a whole. What they did to single leads is in replays and interventions.
create table decisions (
    id          bigint      generated always as identity primary key,
    destination text        not null,
    done_at     timestamptz not null default now(),
    kind        text        not null,
    done_by     text        not null,
    reason      text,
    until       timestamptz,
    affected    bigint      not null default 0,

    constraint decisions_kind_is_known check (kind in ('lift', 'redact'))
);

comment on table decisions is 'One row for each time that a person decided something about a destination as a whole.';
comment on column decisions.id is 'In the order in which they were written.';
comment on column decisions.destination is 'Whose.';
comment on column decisions.done_at is 'When.';
comment on column decisions.kind is 'lift: a hold was ended before its time. redact: old answers of the API were redacted.';
comment on column decisions.done_by is 'The person.';
comment on column decisions.reason is 'Why, in the person''s words.';
comment on column decisions.until is 'lift: when the hold would have ended; null: there was none, leads waited for it all the same. redact: attempts that began before then.';
comment on column decisions.affected is 'lift: leads that waited for its end, and became due. redact: attempts whose answers went. So far: it grows with each transaction.';
