//! `leadpost man`: manual pages.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::CommandFactory as _;

use super::{Cli, Exit, print_bytes, say};

/// Print the manual page of leadpost or of a command, or write all of them into a folder
///
/// Made from the command line as it is. man reads a page from a file: leadpost man status | man -l -
///
/// Example: leadpost man --dir /usr/local/share/man/man1
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Command whose page is printed, such as leads show; without one that of leadpost
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    command: Vec<String>,

    /// Folder into which all pages are written, each by the name of its command
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &ManArgs) -> anyhow::Result<Exit> {
    match &args.dir {
        Some(dir) => {
            let pages = write_all(dir)?;
            say(&format!("wrote {pages} pages into {}", dir.display()));
        }
        None => print_bytes(&page(&args.command)?)?,
    }
    Ok(Exit::Done)
}

/// The page of one command.
fn page(words: &[String]) -> anyhow::Result<Vec<u8>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut found = &command;
    for word in words {
        let Some(sub) = found.find_subcommand(word) else {
            bail!("there is no command {:?}; leadpost --help lists them", words.join(" "));
        };
        found = sub;
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(found.clone()).render(&mut page)?;
    Ok(page)
}

/// Writes all pages, and says how many.
fn write_all(dir: &Path) -> anyhow::Result<usize> {
    fn write(command: &clap::Command, dir: &Path) -> anyhow::Result<usize> {
        let path = dir.join(format!("{}.1", command.get_display_name().unwrap_or_else(|| command.get_name())));
        let mut page = Vec::new();
        clap_mangen::Man::new(command.clone()).render(&mut page)?;
        std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
        let subs = command.get_subcommands().map(|sub| write(sub, dir)).sum::<anyhow::Result<usize>>()?;
        Ok(subs + 1)
    }
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    write(&command, dir)
}
