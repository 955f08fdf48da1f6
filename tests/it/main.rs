//! The worker on real RabbitMQ and Postgres, with the sandbox at the other end.
//!
//! Each test has a database, a queue and a sandbox of its own, so that all of them run in parallel. `DATABASE_URL` and `AMQP_URL`
//! say where; `scripts/test` sets them.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up should panic")]

mod admin;
mod architecture;
mod binary;
mod bodies;
mod chaos;
mod check;
mod commits;
mod cost;
mod crash;
mod decisions;
mod dependencies;
mod deploy;
mod echoes;
mod endpoints;
mod find;
mod flow;
mod hold;
mod identity;
mod lease;
mod logins;
mod names;
mod observability;
mod outage;
mod outcomes;
mod plans;
mod poison;
mod poison_headers;
mod postgres;
mod presets;
mod privacy;
mod provenance;
mod proxied;
mod proxy;
mod rabbitmq;
mod readme;
mod reconcile;
mod refresh;
mod requeue;
mod retention;
mod sabotage;
mod secured;
mod security;
mod sessions;
mod silence;
mod status;
mod subject;
mod support;
mod tls;
mod token_answers;
mod tokens;
mod traces;
mod turns;
mod upgrade;
mod urls;
mod way;
mod workers;
