//! `leadpost leads edit`: a lead's body, corrected.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::super::{Exit, Output, print_json, quoted, say, who};
use crate::config::Source;
use crate::lead::{LeadId, LeadRules};
use crate::ledger::{Edit, Edited, LeadState, Ledger};

/// Why there is no editor.
const NO_FILE: &str =
    "cannot write the body to a file for an editor; --from FILE takes the new body from a file, --from - from stdin";

/// Correct a lead's body in $EDITOR, and send it on its way again
///
/// The new body has to be a valid lead; the former one is kept, and both are on record. A redelivery of the original message changes
/// nothing any more. To see the body is put on record as well. If the lead was changed or is being posted by the time that you have written it,
/// what you wrote is kept in a file that only you can read, for --from.
///
/// Example: leadpost leads edit 3f8a1c1e-5b3f-4a36-9d53-0b7c6f0f2a10 --reason 'no @ in the address'
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct EditArgs {
    /// The lead's id
    #[arg(value_name = "ID")]
    id: LeadId,

    /// Take the new body from this file, or from stdin with -, instead of opening an editor
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,

    /// Also when the API took it, has it, or may have it (uncertain): it will be posted once more
    #[arg(long)]
    include_delivered: bool,

    /// Why; kept with your name and the time
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// How to print the result
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

pub(super) async fn run(args: EditArgs, source: &Source, ledger: &Ledger) -> anyhow::Result<Exit> {
    let rules = LeadRules::of(&source.read()?).map_err(anyhow::Error::msg)?;
    let (Some(lead), Some(before)) = (ledger.show(args.id).await?, ledger.body(args.id).await?) else {
        say(&format!("there is no lead {} in the ledger; is its message still in the queue?", args.id));
        return Ok(Exit::No);
    };
    if lead.erased_at.is_some() {
        bail!("what was personal of this lead was erased: there is no body to correct");
    }
    if lead.destination != ledger.destination() {
        bail!(
            "this lead goes to {}, and the configuration is of {}; is --config the right one?",
            lead.destination,
            ledger.destination()
        );
    }
    if lead.leased_by.is_some() {
        bail!("it is being posted just now; wait until that has ended, and look at it again");
    }
    if matches!(lead.state, LeadState::Delivered | LeadState::Duplicate | LeadState::Uncertain)
        && !args.include_delivered
    {
        bail!(
            "the API has this lead, or may have it ({}); with --include-delivered it is posted once more",
            lead.state
        );
    }
    let mut stops = Stops::new()?;
    let is_typed = args.from.is_none();
    let mut after = match &args.from {
        Some(path) => read(path)?,
        None => {
            if !std::io::stdin().is_terminal() {
                bail!(
                    "there is no terminal for an editor; --from FILE takes the new body from a file, --from - from stdin"
                );
            }
            let file = Draft::of(args.id, &before).context(NO_FILE)?;
            ledger.disclose("leads edit", &who(), Some(&lead.destination), &[args.id], args.reason.as_deref()).await?;
            file.edited(&before, &mut stops).await?
        }
    };
    let keys = loop {
        if after == before {
            say("the body is as it was; nothing was changed. leadpost requeue sends it as it is");
            return Ok(Exit::No);
        }
        let read = rules.read(args.id, &after);
        let Err(violations) = read.lead else { break read.keys };
        say("this is no valid lead; nothing was changed:");
        for violation in violations {
            say(&format!("  - {} [{}] {}", violation.field, violation.code, violation.message));
        }
        if !is_typed || !is_to_go_on(&mut stops).await? {
            return Ok(Exit::No);
        }
        after = Draft::of(args.id, &after).context(NO_FILE)?.edited(&after, &mut stops).await?;
    };
    let edit = Edit {
        id: args.id,
        before,
        after: after.clone(),
        keys,
        include_delivered: args.include_delivered,
        by: who(),
        reason: args.reason,
    };
    let edited = ledger.edit(edit).await;
    let is_erased = match &edited {
        // Of what cannot be asked, nothing is thrown away.
        Ok(Edited::Changed) => matches!(ledger.show(args.id).await, Ok(Some(lead)) if lead.erased_at.is_some()),
        _ => false,
    };
    if is_erased {
        bail!(
            "what was personal of this lead was erased meanwhile; nothing was changed, and what you wrote is not kept"
        );
    }
    if is_typed && !matches!(edited, Ok(Edited::Done)) {
        let is_taken = matches!(edited, Ok(Edited::Taken(_)));
        say(&kept(args.id, &after, args.include_delivered || is_taken));
    }
    let edited = edited?;
    let text = match edited {
        Edited::Done => "the body is corrected, and the lead is sent on its way again".to_owned(),
        Edited::Unknown => "the ledger of this destination has no such lead; is --config the right one?".to_owned(),
        Edited::Changed => {
            format!(
                "somebody else has changed the body meanwhile; nothing was changed. Look at it again: leadpost leads show {} --body",
                args.id
            )
        }
        Edited::Posting => {
            "it is being posted just now; nothing was changed. Wait until that has ended, and look at it again"
                .to_owned()
        }
        Edited::Taken(state) => {
            format!("it is {state} by now; nothing was changed. --include-delivered posts it once more")
        }
    };
    if args.output == Output::Json {
        print_json(&serde_json::json!({ "id": args.id, "edited": edited == Edited::Done, "text": text }))?;
    } else {
        say(&text);
    }
    Ok(if edited == Edited::Done { Exit::Done } else { Exit::No })
}

/// Keeps what somebody has typed and the ledger did not take, and says where it is.
fn kept(id: LeadId, body: &[u8], include_delivered: bool) -> String {
    match Draft::of(id, body).and_then(|draft| Ok(draft.0.keep()?)) {
        Ok((_, path)) => {
            let path = quoted(&path.display().to_string());
            let taken = if include_delivered { " --include-delivered" } else { "" };
            format!(
                "what you wrote is kept in {path}, which only you can read. To use it: \
                 leadpost leads edit {id} --from {path}{taken}\nRemove the file then: it is about a person."
            )
        }
        Err(error) => format!("what you wrote could not be kept: {error}"),
    }
}

/// Asks whether what was written is to be mended.
async fn is_to_go_on(stops: &mut Stops) -> anyhow::Result<bool> {
    say("Edit it again? [Y/n]");
    // Those before were the editor's.
    stops.interrupt = signal(SignalKind::interrupt())?;
    let answered = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).map(|_| answer)
    });
    tokio::select! {
        () = stops.any() => bail!("interrupted; nothing was changed"),
        answer = answered => Ok(!["n", "no"].contains(&answer??.trim().to_lowercase().as_str())),
    }
}

/// Signals that would end us, and leave a person's data in a file behind.
struct Stops {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Stops {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        let Self { interrupt, terminate, hangup } = self;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }

    /// Ctrl-C is the editor's while that runs.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).context("cannot read the new body from stdin")?;
        return Ok(bytes);
    }
    std::fs::read(path).with_context(|| format!("cannot read the new body from {}", path.display()))
}

/// A body in a file for the editor, that only we can read, and that goes when we do.
struct Draft(tempfile::NamedTempFile);

impl Draft {
    fn of(id: LeadId, body: &[u8]) -> std::io::Result<Self> {
        let mut file = tempfile::Builder::new().prefix(&format!("lead-{id}-")).suffix(".json").tempfile()?;
        file.write_all(body)?;
        file.flush()?;
        Ok(Self(file))
    }

    /// The body as it is left in the editor.
    async fn edited(self, before: &[u8], stops: &mut Stops) -> anyhow::Result<Vec<u8>> {
        let editor = ["VISUAL", "EDITOR"].into_iter().find_map(|name| std::env::var(name).ok());
        let editor = editor.filter(|name| !name.is_empty()).unwrap_or_else(|| "vi".to_owned());
        // As git does: it may be a command with options.
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!("{editor} \"$@\""))
            .arg(&editor)
            .arg(self.0.path())
            .spawn()
            .with_context(|| format!("cannot start {editor}; set EDITOR"))?;
        let status = tokio::select! {
            status = child.wait() => status?,
            () = stops.end() => bail!("told to stop; nothing was changed"),
        };
        if !status.success() {
            bail!(
                "{editor} has failed ({status}); nothing was changed. Is it there? EDITOR says which, --from FILE does without"
            );
        }
        // Editors that write a new file in place of the old one are read too.
        let mut after = std::fs::read(self.0.path()).context("cannot read what the editor has written")?;
        // Which editors add, and which nobody meant.
        if after.last() == Some(&b'\n') && before.last() != Some(&b'\n') {
            after.pop();
        }
        Ok(after)
    }
}
