//! `leadpost leads`: look at leads, one or many, and correct one.

mod edit;
mod list;
mod row;
mod show;

pub(super) use list::Reveal;

use super::{Exit, ledger};
use crate::config::Source;
use crate::ledger::Ledger;

/// Look at leads, one or many, and correct one
#[derive(Debug, clap::Subcommand)]
pub(super) enum LeadsCommand {
    List(list::ListArgs),
    Show(show::ShowArgs),
    Export(list::ExportArgs),
    Count(list::CountArgs),
    Edit(edit::EditArgs),
}

pub(super) async fn run(command: LeadsCommand, source: &Source) -> anyhow::Result<Exit> {
    match command {
        LeadsCommand::List(args) => list::list(args, &opened(source, "leads list").await?).await,
        LeadsCommand::Show(args) => show::run(args, &opened(source, "leads show").await?).await,
        LeadsCommand::Export(args) => list::export(args, &opened(source, "leads export").await?).await,
        LeadsCommand::Count(args) => list::count(args, &opened(source, "leads count").await?).await,
        LeadsCommand::Edit(args) => edit::run(args, source, &opened(source, "leads edit").await?).await,
    }
}

async fn opened(source: &Source, command: &str) -> anyhow::Result<Ledger> {
    let ledger = ledger(&source.read()?, command)?;
    ledger.check_schema().await?;
    Ok(ledger)
}
