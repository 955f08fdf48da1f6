-- Removing old leads: paced batches of one table, or partitions by time that are dropped? What either costs when leads are removed, and what
-- partitions cost each lead before that. In plain SQL, on tables of the ledger's shape and nothing else; each lead has a row of attempts here,
-- as those have that need more than one post:
--
--     psql "$DATABASE_URL" -f benches/partitions.sql
--
-- It makes a schema `partitions_bench`, and drops it. Times are of statements, in microseconds per lead; take it as a ratio. What no time shows:
-- the primary key of a table with partitions has to contain the time, so that the same message could be accepted twice.

\set ON_ERROR_STOP on
\set QUIET on
set client_min_messages = warning;
drop schema if exists partitions_bench cascade;
create schema partitions_bench;
set search_path = partitions_bench;
set enable_seqscan = off;
set enable_hashjoin = off;
set enable_mergejoin = off;

create table one (id uuid primary key, at timestamptz not null, state text not null, body bytea not null, lease uuid) with (fillfactor = 85);
create index on one (at) where state = 'delivered';
create table one_attempts (lead_id uuid, number int, at timestamptz not null, outcome text, primary key (lead_id, number));

create table parts (id uuid, at timestamptz not null, state text not null, body bytea not null, lease uuid, primary key (id, at)) partition by range (at);
create table parts_attempts (lead_id uuid, number int, at timestamptz not null, outcome text, primary key (lead_id, number, at)) partition by range (at);
do $$
begin
    for day in 0..13 loop
        execute format('create table parts_%s partition of parts for values from (%L) to (%L) with (fillfactor = 85)',
            day, current_date - 13 + day, current_date - 12 + day);
        execute format('create table parts_attempts_%s partition of parts_attempts for values from (%L) to (%L)',
            day, current_date - 13 + day, current_date - 12 + day);
    end loop;
end $$;
create index on parts (at) where state = 'delivered';

-- Batches of 200 leads are accepted and settled: those of former days to be there, those of today to be measured. A settlement knows a lead's id.
create procedure carry(leads text, day int, batches int, inout us numeric) language plpgsql as $p$
declare
    ids uuid[];
    bodies bytea[];
    began timestamptz;
    took interval := '0';
begin
    for batch in 1..batches loop
        select array_agg(gen_random_uuid()), array_agg(convert_to(repeat('x', 250) || n, 'UTF8')) into ids, bodies from generate_series(1, 200) as n;
        began := clock_timestamp();
        execute format('insert into %I (id, at, state, body, lease) select id, current_date - 13 + $2, ''pending'', body, $1[1] from unnest($1, $3) as t (id, body)', leads)
            using ids, day, bodies;
        execute format('with settled as (update %I l set state = ''delivered'', lease = null from unnest($1) as s (id) where l.id = s.id and l.lease = $1[1] returning l.id, l.at) '
            'insert into %I select id, 1, at, ''delivered'' from settled', leads, leads || '_attempts') using ids;
        took := took + (clock_timestamp() - began);
        commit;
    end loop;
    us := round(extract(epoch from took) * 1e6 / (batches * 200), 1);
end $p$;

-- As retention does.
create procedure remove_batches(day int, inout us numeric) language plpgsql as $p$
declare
    began timestamptz := clock_timestamp();
    removed bigint := 0;
    n bigint;
begin
    loop
        with old as (
            delete from one where id = any(array(select id from one where state = 'delivered' and at < current_date - 12 + day order by at limit 500 for update skip locked))
            returning id
        ), gone as (
            delete from one_attempts a using old where a.lead_id = old.id
        )
        select count(*) into n from old;
        commit;
        exit when n = 0;
        removed := removed + n;
    end loop;
    us := round(extract(epoch from clock_timestamp() - began) * 1e6 / removed, 1);
end $p$;

create procedure fill(leads text) language plpgsql as $p$
declare
    us numeric;
begin
    for day in 0..12 loop
        call carry(leads, day, 150, us);
    end loop;
end $p$;

call fill('one');
call fill('parts');
analyze;
\pset footer off
\echo 'accepted and settled, one table:'
call carry('one', 13, 250, null);
\echo 'accepted and settled, 14 partitions:'
call carry('parts', 13, 250, null);
\echo 'accepted and settled, one table, again:'
call carry('one', 13, 250, null);
\echo 'removed in batches of 500, one table:'
call remove_batches(0, null);
\echo 'removed by dropping a partition of 30,000 leads, in all:'
\timing on
drop table parts_0, parts_attempts_0;
\timing off
drop schema partitions_bench cascade;
