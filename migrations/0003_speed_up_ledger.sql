-- The same books for less. Measured with `cargo bench --bench throughput`, also with `-- --ledger 10000000`:
--
-- - A function in SQL is parsed and planned each time that it is called, which is once per batch: half a millisecond. A trigger in PL/pgSQL
--   keeps its plans.
-- - A foreign key asks for the lead of each attempt by itself, and locks it, though attempts are only ever written together with their
--   lead's settlement. What it was for is kept: see leads_deleted, and leadpost verify.
-- - Where a million leads were due, the search for leases that ran out went through all of them. Leased leads and others are two ranges of
--   the same index now.

-- In the order in which workers take them.
lock table leads, attempts in access exclusive mode;

create or replace function leads_inserted() returns trigger language plpgsql as $$
begin
    insert into tallies as t (destination, shard, accepted, pending, delivered, duplicate, invalid, rejected, exhausted, uncertain, cancelled)
    select destination, pg_backend_pid() % 32, count(*),
        count(*) filter (where state = 'pending'), count(*) filter (where state = 'delivered'),
        count(*) filter (where state = 'duplicate'), count(*) filter (where state = 'invalid'),
        count(*) filter (where state = 'rejected'), count(*) filter (where state = 'exhausted'),
        count(*) filter (where state = 'uncertain'), count(*) filter (where state = 'cancelled')
    from new_rows group by destination order by destination
    on conflict (destination, shard) do update set
        accepted = t.accepted + excluded.accepted, pending = t.pending + excluded.pending,
        delivered = t.delivered + excluded.delivered, duplicate = t.duplicate + excluded.duplicate,
        invalid = t.invalid + excluded.invalid, rejected = t.rejected + excluded.rejected,
        exhausted = t.exhausted + excluded.exhausted, uncertain = t.uncertain + excluded.uncertain,
        cancelled = t.cancelled + excluded.cancelled;
    return null;
end $$;

create or replace function leads_updated() returns trigger language plpgsql as $$
begin
    insert into tallies as t (destination, shard, accepted, pending, delivered, duplicate, invalid, rejected, exhausted, uncertain, cancelled)
    select destination, pg_backend_pid() % 32, 0, pending, delivered, duplicate, invalid, rejected, exhausted, uncertain, cancelled
    from (
        select destination,
            coalesce(sum(n) filter (where state = 'pending'), 0) as pending,
            coalesce(sum(n) filter (where state = 'delivered'), 0) as delivered,
            coalesce(sum(n) filter (where state = 'duplicate'), 0) as duplicate,
            coalesce(sum(n) filter (where state = 'invalid'), 0) as invalid,
            coalesce(sum(n) filter (where state = 'rejected'), 0) as rejected,
            coalesce(sum(n) filter (where state = 'exhausted'), 0) as exhausted,
            coalesce(sum(n) filter (where state = 'uncertain'), 0) as uncertain,
            coalesce(sum(n) filter (where state = 'cancelled'), 0) as cancelled
        from (
            select destination, state, 1 as n from new_rows
            union all
            select destination, state, -1 from old_rows
        ) as both_sides
        group by destination
    ) as changed
    -- A lease that is given or taken changes no count.
    where (pending, delivered, duplicate, invalid, rejected, exhausted, uncertain, cancelled) <> (0, 0, 0, 0, 0, 0, 0, 0)
    order by destination
    on conflict (destination, shard) do update set
        pending = t.pending + excluded.pending,
        delivered = t.delivered + excluded.delivered, duplicate = t.duplicate + excluded.duplicate,
        invalid = t.invalid + excluded.invalid, rejected = t.rejected + excluded.rejected,
        exhausted = t.exhausted + excluded.exhausted, uncertain = t.uncertain + excluded.uncertain,
        cancelled = t.cancelled + excluded.cancelled;
    return null;
end $$;

-- The attempts of a lead go with it.
create or replace function leads_deleted() returns trigger language plpgsql as $$
begin
    insert into tallies as t (destination, shard, accepted, pending, delivered, duplicate, invalid, rejected, exhausted, uncertain, cancelled)
    select destination, pg_backend_pid() % 32, -count(*),
        -count(*) filter (where state = 'pending'), -count(*) filter (where state = 'delivered'),
        -count(*) filter (where state = 'duplicate'), -count(*) filter (where state = 'invalid'),
        -count(*) filter (where state = 'rejected'), -count(*) filter (where state = 'exhausted'),
        -count(*) filter (where state = 'uncertain'), -count(*) filter (where state = 'cancelled')
    from old_rows group by destination order by destination
    on conflict (destination, shard) do update set
        accepted = t.accepted + excluded.accepted, pending = t.pending + excluded.pending,
        delivered = t.delivered + excluded.delivered, duplicate = t.duplicate + excluded.duplicate,
        invalid = t.invalid + excluded.invalid, rejected = t.rejected + excluded.rejected,
        exhausted = t.exhausted + excluded.exhausted, uncertain = t.uncertain + excluded.uncertain,
        cancelled = t.cancelled + excluded.cancelled;
    delete from attempts a using old_rows o where a.lead_id = o.id;
    return null;
end $$;

drop function leads_tally(text, text, text, bigint, bigint);

alter table attempts drop constraint attempts_lead_id_fkey;

drop index leads_pending;

-- Serves the claim of due leads, the search for expired leases and the age of the oldest.
create index leads_pending on leads (destination, ((lease is null)::int), next_attempt_at) where state = 'pending';
