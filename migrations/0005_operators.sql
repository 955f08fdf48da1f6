-- For operators: leads are found by email address and assistant, people's interventions are on record, personal data can be erased.
--
-- Both indexes are for ended leads only. So a lead is entered once, when it ends, and not a second time when it is accepted; pending leads are
-- few and have an index of their own, through which they are looked at one by one.
-- Measured in plain SQL, in batches of 256 leads, at half a million to a million of them: either index costs a lead some 130 bytes of WAL of
-- 2,300, and less of Postgres' CPU than runs differ by among themselves (6 us of 53).
-- Numbers rather than texts, so that no address stands anywhere but in the body.

-- In the order in which workers take them.
lock table leads, attempts in access exclusive mode;

alter table leads
    add column email_key bigint,
    add column assistant_key bigint,
    add column erased_at timestamptz;

comment on column leads.email_key is 'A number made of the person''s email address, to find the lead by; null where none can be read from the body.';
comment on column leads.assistant_key is 'A number made of the assistant that the message names (assistantId or assistantEmail), or of the default one.';
comment on column leads.erased_at is 'When what is personal of it was erased: body, what the API answered, and what was made of either.';

create index leads_email on leads (email_key) where state <> 'pending' and email_key is not null;
create index leads_assistant on leads (assistant_key, finished_at) where state <> 'pending' and assistant_key is not null;

-- Serves the search of erase for what has no key: messages from which no address can be read, and leads from before this migration.
create index leads_without_key on leads (id) where email_key is null and erased_at is null;

-- Serves the redaction of old answers; successes keep none.
create index attempts_answers on attempts (started_at) where answer is not null;

create table interventions (
    id         bigint      generated always as identity primary key,
    lead_id    uuid        not null references leads (id) on delete cascade,
    done_at    timestamptz not null default now(),
    kind       text        not null,
    from_state text        not null,
    done_by    text        not null,
    reason     text,
    body       bytea,
    body_before bytea,
    email_key  bigint,

    constraint interventions_kind_is_known check (kind in ('cancel', 'release', 'edit', 'erase')),
    constraint interventions_edit_keeps_the_body check (body is null or kind = 'edit')
);

create index interventions_of_lead on interventions (lead_id);
create index interventions_email on interventions (email_key) where email_key is not null;

comment on table interventions is 'What people did to a lead, besides sending it on its way again (replays).';
comment on column interventions.id is 'In the order in which they were written.';
comment on column interventions.lead_id is 'The lead.';
comment on column interventions.done_at is 'When.';
comment on column interventions.kind is 'cancel: stopped while it waited. release: an uncertain one, settled as delivered. edit: its body was corrected. erase: what is personal of it was erased.';
comment on column interventions.from_state is 'The state that it was in.';
comment on column interventions.done_by is 'The person.';
comment on column interventions.reason is 'Why, in the person''s words.';
comment on column interventions.body is 'Of an edit: the body as it was before.';
comment on column interventions.body_before is 'SHA-256 of the body that was replaced or erased: a redelivery of that message is known by it.';

comment on column interventions.email_key is 'Of an edit: the key of the body as it was before.';

create table disclosures (
    id          bigint      generated always as identity primary key,
    destination text,
    shown_at    timestamptz not null default now(),
    shown_to    text        not null,
    command     text        not null,
    leads       bigint      not null,
    lead_ids    uuid[]      not null,
    reason      text
);

comment on table disclosures is 'One row for each time that a person was shown personal data of leads: with --reveal, or by an export.';
comment on column disclosures.id is 'In the order in which they were written.';
comment on column disclosures.destination is 'Whose leads; null: of every destination.';
comment on column disclosures.shown_at is 'When.';
comment on column disclosures.shown_to is 'The person.';
comment on column disclosures.command is 'By which command of leadpost.';
comment on column disclosures.leads is 'Of how many leads.';
comment on column disclosures.lead_ids is 'Of which ones; of an export of many, the first thousand.';
comment on column disclosures.reason is 'Why, in the person''s words.';
