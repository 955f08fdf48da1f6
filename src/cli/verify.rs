//! `leadpost verify`: do the books balance?

use super::{Exit, Output, ledger, print, print_json};
use crate::config::Source;

/// Check the ledger's invariants; exit code 1 if one does not hold
///
/// Reads only, in one snapshot, also while workers run. On millions of leads it takes a while.
///
/// Example: DATABASE_URL=postgres://… leadpost verify
#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// How to print the result
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

pub(super) async fn run(args: VerifyArgs, source: &Source) -> anyhow::Result<Exit> {
    let ledger = ledger(&source.read()?, "verify")?;
    ledger.check_schema().await?;
    let verification = ledger.verify().await?;
    match args.output {
        Output::Json => print_json(&verification)?,
        Output::Text => {
            for check in &verification.checks {
                let verdict = if check.broken == 0 { "holds " } else { "BROKEN" };
                print(&format!("{verdict}  {}: {}", check.name, check.holds))?;
                for example in &check.examples {
                    print(&format!("          {example}"))?;
                }
                if check.broken > check.examples.len() {
                    print(&format!("          and {} more", check.broken - check.examples.len()))?;
                }
            }
        }
    }
    Ok(if verification.holds() { Exit::Done } else { Exit::No })
}
