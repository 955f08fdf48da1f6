-- A lead that has to wait is posted again by whichever worker claims it, and belongs in the trace of its message all the same. Written only
-- for a lead that waits and whose message named a trace: one that is posted at once and ends with that never is.

alter table leads add column trace text;

comment on column leads.trace is 'Where its message belongs in its producer''s trace: traceparent, and after a space tracestate (W3C Trace Context). Only of leads that had to wait.';
