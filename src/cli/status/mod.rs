//! `leadpost status`: where leads are, and what they wait for; once, or again and again.

mod screen;
mod snapshot;
mod words;

use std::io::IsTerminal as _;
use std::time::Duration;

use tokio::time::Instant;

use super::{Exit, Output, exit_of, print, print_json};
use crate::config::{Settings, Source};
use crate::lifecycle::Shutdown;
use screen::Screen;
use snapshot::View;

/// While somebody watches, a neighbour that is away holds up the picture for so long.
const PATIENCE_MS: u64 = 3_000;

/// Show where leads are: counts by state, what waits and why, who works and how fast, when the rest is through
///
/// Without RabbitMQ it says so in the queue's place, and shows the ledger all the same, with exit code 0. With --watch it does so without
/// Postgres, too, until that is back; on a terminal the picture is drawn in place, elsewhere one is printed after the other, in JSON one a
/// line. Ctrl-C ends it with exit code 0. It reads a part of the ledger that does not grow with it.
///
/// Example: DATABASE_URL=postgres://… leadpost status --watch 5
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Go on, and look again every so many seconds; 2 if none are given
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = seconds)]
    watch: Option<Duration>,

    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("write a number of seconds, 0.1 at least".to_owned()),
    }
}

pub(super) async fn run(args: StatusArgs, source: &Source) -> anyhow::Result<Exit> {
    let settings = source.read()?;
    match args.watch {
        Some(interval) => watch(settings, interval, args.output).await,
        None => {
            let (snapshot, problem) = View::of(&settings)?.look().await;
            if let Some(problem) = problem {
                return Err(problem.into());
            }
            match args.output {
                Output::Json => print_json(&snapshot)?,
                Output::Text => print(&words::block(&snapshot).join("\n"))?,
            }
            Ok(Exit::Done)
        }
    }
}

/// Until somebody has seen enough.
async fn watch(mut settings: Settings, interval: Duration, output: Output) -> anyhow::Result<Exit> {
    let postgres = &mut settings.postgres;
    for limit in [&mut postgres.connect_timeout_ms, &mut postgres.statement_timeout_ms, &mut postgres.lock_timeout_ms] {
        *limit = PATIENCE_MS.min(*limit);
    }
    settings.amqp.timeout_ms = PATIENCE_MS.min(settings.amqp.timeout_ms);
    let mut view = View::of(&settings)?;
    let shutdown = Shutdown::on_signals()?;
    let mut screen = None;
    if output == Output::Text && std::io::stdout().is_terminal() {
        screen = Some(Screen::open(std::io::stdout(), terminal_size)?);
    }
    let mut is_first = true;
    loop {
        let next_at = Instant::now() + interval;
        let (snapshot, problem) = tokio::select! {
            () = shutdown.drain.cancelled() => break,
            looked = view.look() => looked,
        };
        // Waiting mends what is away, and not what is wrong.
        if let Some(problem) = problem.map(anyhow::Error::from).filter(|problem| exit_of(problem) != Exit::Unreachable)
        {
            return Err(problem);
        }
        match (&mut screen, output) {
            (Some(screen), _) => screen.show(words::block_at(&snapshot))?,
            (None, Output::Json) => print(&serde_json::to_string(&snapshot)?)?,
            (None, Output::Text) => {
                let gap = if is_first { "" } else { "\n" };
                print(&format!("{gap}{}", words::block_at(&snapshot).join("\n")))?;
            }
        }
        is_first = false;
        tokio::select! {
            () = shutdown.drain.cancelled() => break,
            () = tokio::time::sleep_until(next_at) => {}
        }
    }
    Ok(Exit::Done)
}

/// Columns and lines.
fn terminal_size() -> Option<(usize, usize)> {
    terminal_size::terminal_size().map(|(width, height)| (usize::from(width.0), usize::from(height.0)))
}
