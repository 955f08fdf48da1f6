-- Serves retention: the oldest leads that were delivered; leads_ended serves it for those that ended otherwise.
--
-- Every delivery pays for it. Measured in plain SQL, in batches of 256 leads: 85 bytes of WAL of 1,770, 41 bytes of disk, and 2 us of CPU of 50
-- in Postgres (medians of six runs each on 500,000 leads and more, which differ by 8 us among themselves). What else was looked at:
--
-- - BRIN on finished_at costs a lead nothing, and works until space is used again. Then each range of pages holds old and new leads, or
--   once did: to find the one old lead among 0.7 million it read 19,862 pages, and this index 4.
-- - The day instead of the time is 7 bytes of disk, and 74 of WAL. Not worth what it would take to explain.
-- - Without the destination, one that keeps its leads would be in the way of all others.
create index leads_delivered on leads (destination, finished_at) where state = 'delivered';

-- Whether another lead came under the id of one that is old.
create index leads_conflicts on leads (conflict_of) where conflict_of is not null;

comment on table leads is 'One row for each lead that was taken from the queue, until retention removes it.';
comment on column tallies.accepted is 'How many leads were ever accepted, less those removed.';
