//! `leadpost config`: what the settings come to.

use std::collections::BTreeMap;

use super::{Exit, Output, print, print_json};
use crate::config::{Explained, Source};

/// Show the settings as they come out of file, environment and flags, or check them
#[derive(Debug, clap::Subcommand)]
pub(super) enum ConfigCommand {
    /// Print all settings, each with where it comes from, secrets hidden
    ///
    /// Sources are the defaults, the preset, a line of the file, an environment variable, a file that holds a secret, and --set. Of a secret
    /// it says only whether it is set. Settings that have no effect with the way of logging in are left out.
    ///
    /// Example: leadpost config show --set destination.preset=kaisa
    Show {
        /// How to print them: text is TOML with comments, json an object with value and source for each key
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Say whether a worker could start with them; exit code 78 if not
    ///
    /// Reads the configuration and nothing else; leadpost check tries it out.
    ///
    /// Example: leadpost config check
    Check,
}

pub(super) fn run(command: &ConfigCommand, source: &Source) -> anyhow::Result<Exit> {
    match command {
        ConfigCommand::Show { output } => {
            let explained = source.explain()?;
            match output {
                Output::Json => {
                    let by_key: BTreeMap<String, &Explained> = explained.iter().map(|one| (one.key(), one)).collect();
                    print_json(&by_key)?;
                }
                Output::Text => print(as_toml(&explained)?.trim_end())?,
            }
        }
        ConfigCommand::Check => {
            source.load()?;
            print("the configuration is sound")?;
        }
    }
    Ok(Exit::Done)
}

/// TOML, with a comment behind each value. What is not set, and secrets, are comments as a whole.
fn as_toml(explained: &[Explained]) -> anyhow::Result<String> {
    let mut sections: BTreeMap<String, Vec<&Explained>> = BTreeMap::new();
    for one in explained {
        let section = one.path.split_last().map(|(_, section)| section.join(".")).unwrap_or_default();
        sections.entry(section).or_default().push(one);
    }
    let mut text = String::new();
    for (section, settings) in sections {
        text.push_str(&format!("[{section}]\n"));
        for one in settings {
            let name = one.path.last().map_or("", String::as_str);
            let is_bare = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
            let name = if is_bare { name.to_owned() } else { toml::Value::from(name).to_string() };
            let origin = &one.origin;
            let line = match (&one.value, one.secret) {
                (value, _) if value.is_null() => format!("# {name} is not set\n"),
                (_, true) => format!("# {name} is set, and secret: {origin}\n"),
                (value, false) => {
                    let value = toml::Value::try_from(value)?.to_string();
                    if value.contains('\n') {
                        format!("# {origin}:\n{name} = {value}\n")
                    } else {
                        format!("{name} = {value} # {origin}\n")
                    }
                }
            };
            text.push_str(&line);
        }
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_read_again_and_comes_to_the_same() {
        for preset in crate::config::preset::PRESETS {
            let flags = vec![("destination.preset".to_owned(), preset.name.to_owned())];
            let explained = Source { flags, ..Source::of_nothing() }.explain().expect("readable");
            let text = as_toml(&explained).expect("TOML");
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("leadpost.toml");
            std::fs::write(&path, &text).expect("a file");
            let again = Source { file: Some(path), ..Source::default() }.explain().expect("readable");
            let values = |all: &[Explained]| all.iter().map(|one| (one.key(), one.value.clone())).collect::<Vec<_>>();
            assert_eq!(values(&again), values(&explained), "{}: {text}", preset.name);
        }
    }

    #[test]
    fn each_line_says_where_its_value_comes_from() {
        let mut source = Source::of_nothing();
        source.env.insert("AMQP_URL".to_owned(), "amqp://me:hunter2@host".to_owned());
        source.flags.push(("flow.concurrency".to_owned(), "7".to_owned()));
        let text = as_toml(&source.explain().expect("readable")).expect("TOML");
        for line in [
            "concurrency = 7 # --set",
            "queue = \"leads\" # default",
            "scope = \"leads/post\" # preset 7targets",
            "# url is set, and secret: environment AMQP_URL",
            "# client_secret is not set",
            "# default_assistant_id is not set",
        ] {
            assert!(text.lines().any(|said| said == line), "{line:?} is not in {text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }
}
