//! `leadpost config`: what the settings come to.

use super::{Exit, Output, print, print_bytes, print_json};
use crate::config::{self, Source};

/// Show the settings as they come out of file, environment and flags, or check them
#[derive(Debug, clap::Subcommand)]
pub(super) enum ConfigCommand {
    /// Print all settings, secrets hidden
    ///
    /// Example: leadpost config show --set destination.preset=kaisa
    Show {
        /// How to print them: text is TOML
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Say whether a worker could start with them; exit code 78 if not
    ///
    /// Example: leadpost config check
    Check,
}

pub(super) fn run(command: &ConfigCommand, source: &Source) -> anyhow::Result<Exit> {
    match command {
        ConfigCommand::Show { output } => {
            let shown = config::shown(&source.read()?);
            match output {
                Output::Json => print_json(&shown)?,
                Output::Text => print_bytes(toml::to_string(&shown)?.as_bytes())?,
            }
        }
        ConfigCommand::Check => {
            source.load()?;
            print("the configuration is sound")?;
        }
    }
    Ok(Exit::Done)
}
