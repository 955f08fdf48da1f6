-- Pending leads are found by email address and assistant as well: `leads list --email` looks at all states, and had to look at each pending lead,
-- which took half a second where a million waited, all of them in memory; now a millisecond.
--
-- Leads that are leased are not in these indexes: a lead is leased when it is accepted and until it ends, if it goes well, and so pays nothing for
-- them. One that has to wait (for a retry, after a requeue, parked) is entered while it waits. Leased ones are as many as are being posted, and are
-- looked at one by one. Measured in plain SQL, on 100,000 leads that were given back for a retry: both together cost such a lead 154 bytes of WAL
-- of 1,168, and 4 to 8 us of 30 of Postgres' time; a million that wait take 74 MB.

-- In the order in which workers take them.
lock table leads in access exclusive mode;

create index leads_waiting_email on leads (email_key) where state = 'pending' and lease is null and email_key is not null;
create index leads_waiting_assistant on leads (assistant_key, next_attempt_at)
    where state = 'pending' and lease is null and assistant_key is not null;
