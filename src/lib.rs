//! wip
pub mod admin;
pub mod auth;
pub mod broker;
pub mod cli;
pub mod config;
pub mod destination;
pub mod flow;
pub mod http;
pub mod lead;
pub mod ledger;
pub mod lifecycle;
pub mod metrics;
pub mod sandbox;
pub mod schedule;
pub mod telemetry;
pub mod worker;
