//! `leadpost completions`: for the shells.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Exit, print_bytes};

/// Print a script with which a shell completes commands and options
///
/// Made from the command line as it is. Bash reads it from ~/.local/share/bash-completion/completions/leadpost, zsh from _leadpost in a folder
/// of its fpath, fish from ~/.config/fish/completions/leadpost.fish.
///
/// Example: leadpost completions bash > ~/.local/share/bash-completion/completions/leadpost
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// Shell to print it for
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "leadpost", &mut script);
    print_bytes(&script)?;
    Ok(Exit::Done)
}
