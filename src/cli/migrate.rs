//! `leadpost migrate`: the ledger's tables.

use super::{Exit, ledger, say};
use crate::config::Source;

/// Bring the ledger's tables up to date, or say that they are
///
/// Several at once do no harm: one migrates, the others wait for it, a minute at most.
///
/// Example: DATABASE_URL=postgres://… leadpost migrate
#[derive(Debug, clap::Args)]
pub(super) struct MigrateArgs {
    /// Only say whether they are up to date; exit code 78 if not
    #[arg(long)]
    check: bool,
}

pub(super) async fn run(args: MigrateArgs, source: &Source) -> anyhow::Result<Exit> {
    let ledger = ledger(&source.read()?, "migrate")?;
    if !args.check {
        match ledger.migrate().await? {
            0 => {}
            n => say(&format!("applied {n} migration{}", if n == 1 { "" } else { "s" })),
        }
    }
    ledger.check_schema().await?;
    say("the ledger's tables are up to date");
    Ok(Exit::Done)
}
