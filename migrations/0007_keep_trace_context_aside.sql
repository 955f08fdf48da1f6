-- As 0006, in a transaction of its own: workers lock these two tables in either order.

alter table aside add column trace text;

comment on column aside.trace is 'As in leads.';
