//! The command line: one file for each command.
//!
//! # Rules
//! - Data goes to stdout, talk to stderr; `--output json` where a script would read it.
//! - An error says what was tried, what came of it, and what to do.
//! - Exit codes: [`Exit`].

mod act;
mod audit;
mod check;
mod completions;
mod config;
mod failures;
mod filter;
mod healthcheck;
mod hold;
mod leads;
mod man;
mod migrate;
mod output;
mod presets;
mod privacy;
mod publish;
mod run;
mod sandbox;
mod stack;
mod status;
mod topology;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::broker::{BrokerError, PublishError};
use crate::config::{ConfigError, Settings, Source, need_postgres_url};
use crate::ledger::{Ledger, LedgerError};
use crate::lifecycle::Shutdown;
use crate::telemetry;
use crate::worker::StartError;
use output::{Output, OutputError, ago, is_confirmed, moment, print, print_bytes, print_json, quoted, say, table, who};

/// Threads for what blocks, each with a stack of its own ([`stack`]). They are used to look names of hosts up: one of each at a time for HTTP
/// ([`crate::http`]), and one for each new connection to Postgres and RabbitMQ, which are few. Besides, one of them reads a file or waits for an
/// editor, or for the last spans to be sent, which may need a name in its turn. While names cannot be looked up, those that nobody waits for any
/// more still take their time: so there are many more than wait otherwise.
const BLOCKING: usize = 128;

/// How a command ended, as its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: done, and the answer is no; or a part could not be done.
    No,
    /// 2: wrong usage.
    Usage,
    /// 3: stopped before everything was settled, or published.
    InAHurry,
    /// 69: RabbitMQ, Postgres or a worker's admin port cannot be reached; with `check`, the token endpoint or the API.
    Unreachable,
    /// 70: a bug.
    Broken,
    /// 78: the configuration cannot be used.
    Config,
}

impl Exit {
    fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::No => 1,
            Exit::Usage => 2,
            Exit::InAHurry => 3,
            Exit::Unreachable => 69,
            Exit::Broken => 70,
            Exit::Config => 78,
        }
    }
}

/// Post leads from RabbitMQ to a lead API, and keep a ledger in Postgres of what became of each
///
/// Exit codes: 0 done; 1 the answer is no, or a part could not be done; 2 wrong usage; 3 stopped before the end; 69 a
/// neighbour cannot be reached; 70 a bug; 78 the configuration cannot be used.
#[derive(Debug, Parser)]
#[command(name = "leadpost", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    config: ConfigArgs,

    #[command(subcommand)]
    command: Command,
}

/// Where the configuration comes from.
#[derive(Debug, clap::Args)]
struct ConfigArgs {
    /// Configuration file; without it leadpost.toml, if there is one
    #[arg(long, short, global = true, value_name = "FILE", env = "LEADPOST_CONFIG")]
    config: Option<PathBuf>,

    /// Set one key, such as flow.concurrency=100; beats file and environment. Not for secrets
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Publish(publish::PublishArgs),
    Check(check::CheckArgs),
    Status(status::StatusArgs),
    #[command(subcommand)]
    Leads(leads::LeadsCommand),
    Failures(failures::FailuresArgs),
    Requeue(act::RequeueArgs),
    Cancel(act::CancelArgs),
    Release(act::ReleaseArgs),
    #[command(subcommand)]
    Hold(hold::HoldCommand),
    Erase(privacy::EraseArgs),
    Export(privacy::ExportArgs),
    Redact(privacy::RedactArgs),
    Audit(audit::AuditArgs),
    Verify(verify::VerifyArgs),
    Migrate(migrate::MigrateArgs),
    #[command(subcommand)]
    Topology(topology::TopologyCommand),
    Presets(presets::PresetsArgs),
    #[command(subcommand)]
    Config(config::ConfigCommand),
    Sandbox(Box<sandbox::SandboxArgs>),
    Healthcheck(healthcheck::HealthcheckArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as section.key=value")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

/// Runs the program.
pub fn main() -> ExitCode {
    telemetry::hush_panics();
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    if let Err(problem) = cli.check(&matches) {
        say(&format!("error: {problem}"));
        return ExitCode::from(Exit::Usage.code());
    }
    if matches!(cli.command, Command::Run(_)) {
        stack::deepen();
    }
    // All TLS goes through one provider. Only a second call could fail.
    drop(rustls::crypto::ring::default_provider().install_default());
    // Each post under way has a connection of its own; the usual soft limit, 1,024, is for programs that still use select(2).
    drop(rlimit::increase_nofile_limit(u64::MAX));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(BLOCKING).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("error: cannot start: {error}"));
            return ExitCode::from(Exit::Broken.code());
        }
    };
    let result = runtime.block_on(cli.run());
    // What is still running is nobody's concern any more; do not wait for it.
    runtime.shutdown_background();
    match result {
        Ok(exit) => ExitCode::from(exit.code()),
        // Whoever reads has read enough.
        Err(error) if error.downcast_ref::<OutputError>().is_some_and(OutputError::is_broken_pipe) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {}", crate::reason::chain(error.as_ref())));
            ExitCode::from(exit_of(&error).code())
        }
    }
}

impl Cli {
    /// What the command line as a whole may not say.
    fn check(&self, matches: &ArgMatches) -> Result<(), String> {
        match &self.command {
            Command::Sandbox(_) => {
                // The variable may be there for the worker.
                let has_file = matches.value_source("config") == Some(ValueSource::CommandLine);
                if has_file || !self.config.set.is_empty() {
                    return Err("the sandbox has no configuration but its own options: leave out --config and --set; \
                                leadpost sandbox --help names the options"
                        .to_owned());
                }
                Ok(())
            }
            Command::Requeue(args) => args.check(),
            Command::Cancel(args) => args.check(),
            Command::Release(args) => args.check(),
            _ => Ok(()),
        }
    }

    async fn run(self) -> anyhow::Result<Exit> {
        let source = Source::of_process(self.config.config, self.config.set);
        match self.command {
            Command::Run(args) => run::run(args, &source).await,
            Command::Publish(args) => publish::run(args, &source).await,
            Command::Check(args) => check::run(args, &source).await,
            Command::Status(args) => status::run(args, &source).await,
            Command::Leads(command) => leads::run(command, &source).await,
            Command::Failures(args) => failures::run(args, &source).await,
            Command::Requeue(args) => act::requeue(args, &source).await,
            Command::Cancel(args) => act::cancel(args, &source).await,
            Command::Release(args) => act::release(args, &source).await,
            Command::Hold(command) => hold::run(command, &source).await,
            Command::Erase(args) => privacy::erase(args, &source).await,
            Command::Export(args) => privacy::export(args, &source).await,
            Command::Redact(args) => privacy::redact(args, &source).await,
            Command::Audit(args) => audit::run(&args, &source).await,
            Command::Verify(args) => verify::run(args, &source).await,
            Command::Migrate(args) => migrate::run(args, &source).await,
            Command::Topology(command) => topology::run(command, &source).await,
            Command::Presets(args) => presets::run(&args),
            Command::Config(command) => config::run(&command, &source),
            Command::Sandbox(args) => {
                let shutdown = Shutdown::on_signals()?;
                sandbox::run(*args, shutdown.drain.cancelled_owned()).await?;
                Ok(Exit::Done)
            }
            Command::Healthcheck(args) => healthcheck::run(args, &source).await,
            Command::Completions(args) => completions::run(&args),
            Command::Man(args) => man::run(&args),
        }
    }
}

/// What kind of failure this is.
fn exit_of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(exit_of_cause).unwrap_or(Exit::No)
}

fn exit_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if cause.is::<ConfigError>() {
        return Some(Exit::Config);
    }
    let of_ledger = |error: &LedgerError| match error {
        LedgerError::Url(_) | LedgerError::Tls(_) | LedgerError::Schema(_) => Exit::Config,
        LedgerError::Database { .. } | LedgerError::NoAnswer { .. } => Exit::Unreachable,
    };
    let of_broker = |error: &BrokerError| match error {
        BrokerError::Url(_) | BrokerError::Tls(_) => Exit::Config,
        BrokerError::Timeout { .. }
        | BrokerError::Failed { .. }
        | BrokerError::NoQueue(_)
        | BrokerError::Unreadable => Exit::Unreachable,
    };
    // Transparent errors stand for their causes and hide them.
    match cause.downcast_ref::<StartError>() {
        Some(StartError::Ledger(error)) => return Some(of_ledger(error)),
        Some(StartError::Broker(error)) => return Some(of_broker(error)),
        Some(StartError::Http(_) | StartError::Rules(_)) => return Some(Exit::Config),
        None => {}
    }
    if cause.is::<PublishError>() {
        return Some(Exit::Unreachable);
    }
    cause.downcast_ref::<LedgerError>().map(of_ledger).or_else(|| cause.downcast_ref::<BrokerError>().map(of_broker))
}

/// A ledger for a command, under a name that says who asks.
///
/// # Errors
/// That none is configured, or its URL cannot be used.
fn ledger(settings: &Settings, command: &str) -> anyhow::Result<Ledger> {
    need_postgres_url(settings)?;
    Ok(Ledger::new(settings, command)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_option_has_a_help_text() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {} has no help", command.get_name(), argument.get_id());
            }
            for sub in command.get_subcommands() {
                check(sub);
            }
        }
        check(&Cli::command());
    }

    #[test]
    fn the_readme_lists_every_command() {
        let (_, section) = include_str!("../../README.md").split_once("\n## Commands\n").expect("the section");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `leadpost ")?.split('`').next());
        let mut listed: Vec<&str> = rows.collect();
        let cli = Cli::command();
        let mut there: Vec<&str> = cli.get_subcommands().map(clap::Command::get_name).collect();
        listed.sort_unstable();
        there.sort_unstable();
        assert_eq!(listed, there);
    }

    /// The words of a command line, as a shell reads them: quotes, variables in front, and what comes of the output.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quote = None;
        for c in line.chars() {
            match (c, quote) {
                ('\'' | '"', None) => quote = Some(c),
                (c, Some(open)) if c == open => quote = None,
                (' ', None) => words.push(String::new()),
                ('>' | '|', None) => break,
                (c, _) => words.last_mut().expect("there is one").push(c),
            }
        }
        let is_variable = |word: &String| {
            word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        };
        words.into_iter().filter(|word| !word.is_empty()).skip_while(is_variable).collect()
    }

    #[test]
    fn every_command_shows_an_example_that_is_one_of_it() {
        fn check(command: &clap::Command, path: &[&str]) {
            // What can be called without a further word is a leaf as well.
            if !command.is_subcommand_required_set() {
                let help = command.get_long_about().map(ToString::to_string).unwrap_or_default();
                let examples: Vec<&str> = help.lines().filter_map(|line| line.strip_prefix("Example: ")).collect();
                assert!(!examples.is_empty(), "{path:?} has no example");
                for example in examples {
                    let words = words(example);
                    let matches = Cli::command().try_get_matches_from(&words);
                    let matches = matches.unwrap_or_else(|error| panic!("{example}: {error}"));
                    Cli::from_arg_matches(&matches)
                        .unwrap_or_else(|error| panic!("{example}: {error}"))
                        .check(&matches)
                        .expect(example);
                    let mut called = Vec::new();
                    let mut at = &matches;
                    while let Some((name, sub)) = at.subcommand() {
                        called.push(name);
                        at = sub;
                    }
                    assert_eq!(called, path, "{example} is of another command");
                }
            }
            for sub in command.get_subcommands() {
                check(sub, &[path, &[sub.get_name()]].concat());
            }
        }
        for sub in Cli::command().get_subcommands() {
            check(sub, &[sub.get_name()]);
        }
    }
}
