-- Leads that wait are found by email address and assistant by the indexes that are there for it, also when Postgres does not know yet that any wait.
--
-- After many leads were requeued, and until Postgres has counted anew, it holds all of leads_pending for as short as it was: to read that from one end
-- to the other looks as cheap as to ask an index of email addresses, and with a million due `leads list --email` took three seconds. A lead is pending
-- exactly if it has a next_attempt_at (leads_pending_is_due); said so, here and in the query, leads_pending cannot answer it.

-- In the order in which workers take them.
lock table leads in access exclusive mode;

drop index leads_waiting_email, leads_waiting_assistant;

create index leads_waiting_email on leads (email_key) where next_attempt_at is not null and lease is null and email_key is not null;
create index leads_waiting_assistant on leads (assistant_key, next_attempt_at)
    where next_attempt_at is not null and lease is null and assistant_key is not null;
