//! leadpost takes lead messages from RabbitMQ, checks them, logs in, posts each lead to a lead API, and writes down in
//! Postgres what happened, so that no lead is lost, none is posted twice without the ledger saying so, and any of them can be
//! replayed.
//!
//! ```text
//!  RabbitMQ ──> intake ──────────────> ledger ──────────────> dispatch ────────────> lead API
//!               decode, validate       accept (commit)        authorize, post        7targets, ...
//!               ack after the commit                              │
//!                                      settle (commit) <──────────┘ outcome
//!                                        │ pending again at T: claimed when due
//! ```
//!
//! # What it promises
//!
//! 1. **Accept, then act.** A message is acknowledged only after its lead is committed in the ledger. From then on Postgres is the
//!    only truth, and RabbitMQ is only the door.
//! 2. **One claim, one post, one settle.** A lead is leased in one short transaction, posted with no transaction open, and settled in
//!    one short transaction that is fenced by the lease.
//! 3. **At least once, said aloud.** A post whose outcome is unknown is recorded as uncertain; `destination.on_uncertain` decides
//!    what follows.
//! 4. **Every lead is accounted for.** `leadpost verify` checks it, and every state says why in words.
//! 5. **A fault of the system is never charged to a lead.** It pauses the flow and leaves the leads waiting.
//! 6. **Nothing personal in the logs.**
//!
//! # The house
//!
//! Data flows down this list; a module may use those above it, never those below (a test in `tests/it/architecture.rs` holds it
//! to that). [`cli`] comes last and sees everything.
//!
//! | module | what it does |
//! |---|---|
//! | [`fault`] | fault injection, for tests; no-ops unless built with the cargo feature `faults` |
//! | [`jq`] | jq expressions: from a lead to a body, tests on answers. The only module that names `jaq` |
//! | [`config`] | file, environment and flags to settings that were checked as a whole; presets of lead APIs |
//! | [`telemetry`], [`lifecycle`] | log lines; signals to a drain |
//! | [`reason`] | why something is as it is, in words that may be shown |
//! | [`http`], [`schedule`] | the one place where HTTP clients are built; delays between attempts |
//! | [`traces`] | W3C trace contexts, and spans by OTLP. The only module that names `opentelemetry` |
//! | [`lead`] | pure: bytes to a lead and the body that is posted, or to all that is wrong with them; which lead a message is about |
//! | [`broker`] | RabbitMQ: supervise, consume, acknowledge, publish. The only module that names `lapin` |
//! | [`ledger`] | Postgres: accept, claim, settle, find, act, verify. The only module that names `sqlx` |
//! | [`auth`] | logging in: one file per way of it, one cache for all |
//! | [`destination`] | the post, the question whether one arrived, and pure: what an answer means |
//! | [`flow`] | when may a lead be sent: slots, rate, hold, circuit |
//! | [`metrics`] | what is counted |
//! | [`worker`] | the loops: intake, dispatch, settle, upkeep |
//! | [`admin`] | health and metrics over HTTP |
//! | [`sandbox`] | stand-in lead APIs with faults, for trials and tests; uses none of the others |
//! | [`cli`] | one file per command |
//!
//! # Where to start reading
//!
//! `worker::intake` is where a message becomes a lead, `worker::dispatch` is its way to the API, `ledger::accept` and
//! `ledger::settle` are the two transactions around it, and `migrations/` is what is remembered.

pub mod admin;
pub mod auth;
pub mod broker;
pub mod cli;
pub mod config;
pub mod destination;
pub mod fault;
pub mod flow;
pub mod http;
pub mod jq;
pub mod lead;
pub mod ledger;
pub mod lifecycle;
pub mod metrics;
pub mod reason;
pub mod sandbox;
pub mod schedule;
pub mod telemetry;
pub mod traces;
pub mod worker;
