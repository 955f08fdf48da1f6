//! `leadpost presets`: the lead APIs that are known.

use serde::Serialize;

use super::{Exit, Output, print, print_bytes, print_json};
use crate::config::preset::{self, CUSTOM, PRESETS, Preset};
use crate::config::{self, ConfigError, Source};

/// List the lead APIs that are known, or show what is known of one
///
/// A preset is selected with destination.preset; every key of it can be overridden.
///
/// Example: leadpost presets --output json
#[derive(Debug, clap::Args)]
pub(super) struct PresetsArgs {
    #[command(subcommand)]
    command: Option<PresetsCommand>,

    /// How to print the list
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, clap::Subcommand)]
enum PresetsCommand {
    /// Print a preset as configuration to start from, each fact with its source
    ///
    /// Example: leadpost presets show kaisa > leadpost.toml
    Show {
        /// Name of the preset
        name: String,
    },
}

/// A preset in the list.
#[derive(Debug, Serialize)]
struct Listed {
    name: &'static str,
    summary: &'static str,
    /// The way of logging in; `None`: not preset.
    auth: Option<&'static str>,
    /// What has to be set.
    needs: Vec<Need>,
}

/// A setting that only the user of a preset knows.
#[derive(Debug, Serialize)]
struct Need {
    key: String,
    /// The environment variable that sets it.
    variable: String,
    /// Whether the variable with `_FILE` at its end, which names a file, does as well.
    or_file: bool,
}

pub(super) fn run(args: &PresetsArgs) -> anyhow::Result<Exit> {
    match &args.command {
        Some(PresetsCommand::Show { name }) => {
            let preset = preset::find(name).ok_or_else(|| preset::unknown("there is no preset", name))?;
            print_bytes(preset.toml.as_bytes())?;
        }
        None => {
            let listed = PRESETS.iter().map(listed).collect::<Result<Vec<_>, _>>()?;
            match args.output {
                Output::Json => print_json(&listed)?,
                Output::Text => {
                    for (at, preset) in listed.iter().enumerate() {
                        if at > 0 {
                            print("")?;
                        }
                        print(&format!("{}\n  {}", preset.name, preset.summary))?;
                        if let Some(auth) = preset.auth {
                            print(&format!("  log-in {auth}; needs"))?;
                        }
                        for need in &preset.needs {
                            let or_file = if need.or_file { " (or …_FILE)" } else { "" };
                            print(&format!("    {}{or_file}", need.variable))?;
                        }
                    }
                }
            }
        }
    }
    Ok(Exit::Done)
}

/// What a preset needs, from the preset alone.
fn listed(preset: &Preset) -> Result<Listed, ConfigError> {
    if preset.name == CUSTOM {
        return Ok(Listed { name: preset.name, summary: preset.summary, auth: None, needs: Vec::new() });
    }
    let source =
        Source { flags: vec![("destination.preset".to_owned(), preset.name.to_owned())], ..Source::of_nothing() };
    let destination = source.read()?.destination;
    Ok(Listed {
        name: preset.name,
        summary: preset.summary,
        auth: Some(destination.auth.kind.as_str()),
        needs: config::missing(&destination).into_iter().map(need).collect(),
    })
}

fn need(missing: config::Missing) -> Need {
    Need { variable: missing.variable(), or_file: missing.may_be_a_file(), key: missing.key }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_says_what_it_needs() {
        let needs = |name: &str| listed(preset::find(name).expect("a preset")).expect("readable").needs;
        let variables = |name: &str| needs(name).into_iter().map(|need| need.variable).collect::<Vec<_>>();
        assert_eq!(
            variables("paya-session"),
            [
                "AUTH__USERNAME",
                "AUTH__PASSWORD",
                "VARIABLES__DEVELOPER_ID",
                "VARIABLES__DOMAIN",
                "VARIABLES__LOCATION_ID"
            ]
            .map(|name| format!("LEADPOST__DESTINATION__{name}"))
        );
        let files = needs("kaisa").into_iter().map(|need| need.or_file).collect::<Vec<_>>();
        assert_eq!(files, [false, true], "an id is no secret");
        assert!(PRESETS.iter().all(|preset| needs(preset.name).is_empty() == (preset.name == CUSTOM)));
    }
}
