-- Queries: before a lead is posted again that may have been posted, some APIs can be asked whether they have it
-- (destination.reconcile). A query stands among the attempts, told apart from the posts.

alter table attempts
    add column request text not null default 'post',
    drop constraint attempts_outcome_is_known,
    drop constraint attempts_answered_has_status,
    add constraint attempts_request_is_known check (request in ('post', 'query')),
    add constraint attempts_outcome_is_known check (outcome in
        ('delivered', 'duplicate', 'rejected', 'unauthorized', 'systemic', 'retry', 'uncertain', 'not_sent', 'reconciled', 'absent')),
    add constraint attempts_query_changes_nothing check
        (case request when 'post' then outcome not in ('reconciled', 'absent')
            else outcome not in ('delivered', 'duplicate', 'rejected', 'uncertain') end),
    add constraint attempts_answered_has_status check
        (outcome in ('uncertain', 'not_sent', 'systemic') or http_status is not null or (request = 'query' and outcome = 'retry'));

comment on table attempts is 'One row for each request that was, or may have been, sent for a lead.';
comment on column attempts.request is 'post: of the lead. query: whether an earlier post of it had arrived.';
comment on column attempts.outcome is 'Of a post: delivered, duplicate, rejected, unauthorized (token refused), systemic (the set-up is suspected), retry (not processed), uncertain (may have been processed), not_sent. Of a query: reconciled (the API has the lead), absent (it does not), unauthorized, systemic, retry, not_sent.';
comment on column attempts.lease is 'The lease under which it was made; several requests of one lease are a query, a post, and their repetitions with a new token.';
