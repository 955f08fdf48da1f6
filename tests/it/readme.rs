//! The README's commands, run as they stand there.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use leadpost::config::preset::PRESETS;
use uuid::Uuid;

use crate::support::{DEADLINE, World, run};

const README: &str = include_str!("../../README.md");

/// Put before a block: what it waits for is waited for, not guessed; and curl, where there is none.
const BEFORE: &str = r#"
sleep() { for _ in {1..100}; do leadpost status 2>&1 | grep -Eq 'delivered +1$' && return; command sleep 0.1; done; }
command -v curl >/dev/null || curl() { leadpost healthcheck --url "${@: -1}"; }
"#;

/// Put behind it: a process that it leaves behind holds this up.
const AFTER: &str = "
wait
leadpost verify
";

/// The fenced blocks of the README: their languages and their contents, in order.
fn blocks() -> Vec<(&'static str, &'static str)> {
    let fenced = README.split("\n```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').unwrap()).collect()
}

/// A page's commands, and what it says that they print.
struct Page {
    commands: String,
    prints: String,
}

/// The pages that go from nothing to a delivered lead.
fn pages() -> Vec<Page> {
    let blocks = blocks();
    let of = |pair: &[(&str, &str)]| match pair {
        [("sh", commands), ("text", prints)] if commands.contains("leadpost sandbox ") => {
            Some(Page { commands: (*commands).to_owned(), prints: (*prints).to_owned() })
        }
        _ => None,
    };
    blocks.windows(2).filter_map(of).collect()
}

/// The first word behind `before`.
fn word<'a>(text: &'a str, before: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split([' ', '\n', '/', '\'']).next()
}

/// Whether a line is as the page says, where `…` stands for anything.
fn is_as_said(line: &str, said: &str) -> bool {
    match said.split_once('…') {
        None => line == said,
        Some((before, behind)) => line
            .strip_prefix(before)
            .is_some_and(|rest| (0..=rest.len()).filter_map(|at| rest.get(at..)).any(|rest| is_as_said(rest, behind))),
    }
}

/// Runs a script in a process group of its own, which does not outlive this, and returns its exit code and all that was printed.
fn play(script: &str, environment: &[(&str, String)], folder: &Path) -> (Option<i32>, String) {
    let transcript = folder.join("transcript");
    let output = File::create(&transcript).unwrap();
    let mut bash = Command::new("bash")
        .args(["-c", script])
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (*name, value.as_str())))
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .process_group(0)
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let code = loop {
        match bash.try_wait().unwrap() {
            Some(status) => break status.code(),
            None if begun.elapsed() > DEADLINE => {
                Command::new("kill").args(["-KILL", "--", &format!("-{}", bash.id())]).status().unwrap();
                bash.wait().unwrap();
                break None;
            }
            None => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    };
    (code, std::fs::read_to_string(&transcript).unwrap())
}

/// Runs a page, and returns the destination that it delivered to.
async fn follow(page: Page) -> String {
    let world = World::new().await;
    let queue = format!("leadpost-readme-{}", Uuid::new_v4().simple());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let sandbox = word(&page.commands, "--listen ").expect("it says where the sandbox listens").to_owned();
    let declared = word(&page.commands, "LEADPOST__AMQP__QUEUE=");
    let admin = word(&page.commands, "LEADPOST__ADMIN__LISTEN=");
    let own = |text: &str| {
        let mut text = text.replace(&sandbox, &format!("127.0.0.1:{port}"));
        if let (Some(declared), Some(admin)) = (declared, admin) {
            text = text.replace(&format!("QUEUE={declared}"), &format!("QUEUE={queue}")).replace(admin, "127.0.0.1:0");
        }
        text.replace(&format!(" {}", declared.unwrap_or("leads")), &format!(" {queue}"))
    };
    let prepared = |line: &&str| !line.starts_with("scripts/services") && !line.starts_with("cargo build");
    let commands: Vec<&str> = page.commands.lines().filter(prepared).collect();
    assert_eq!(commands.len() + 2, page.commands.lines().count(), "a page begins with services and build");

    let bin = Path::new(env!("CARGO_BIN_EXE_leadpost")).parent().unwrap().display();
    let environment = [
        ("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap())),
        ("AMQP_URL", world.broker.url.clone()),
        ("DATABASE_URL", world.database.url.clone()),
        // For the one that keeps to the defaults.
        ("LEADPOST__AMQP__QUEUE", queue.clone()),
        ("LEADPOST__ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
    ];
    let script = format!("{BEFORE}{}{AFTER}", own(&commands.join("\n")));
    let playing = tokio::task::spawn_blocking(move || {
        let folder = tempfile::tempdir().unwrap();
        play(&script, &environment, folder.path())
    });
    let (code, transcript) = playing.await.unwrap();

    assert_eq!(code, Some(0), "{transcript}");
    let said = own(&page.prints);
    for said in said.lines().filter(|line| !["…", "  …"].contains(line)) {
        assert!(transcript.lines().any(|line| is_as_said(line, said)), "{said:?} is not in:\n{transcript}");
    }
    assert_eq!(transcript.matches(r#""effect":"created""#).count(), 1, "the API made one lead of it:\n{transcript}");
    assert!(transcript.contains("leadpost::cli::run: stopped"), "the worker has stopped by itself:\n{transcript}");
    let sql = "select destination, state, charged from leads";
    let leads: Vec<(String, String, i32)> = sqlx::query_as(sql).fetch_all(&world.database.pool).await.unwrap();
    let [(destination, state, attempts)] = &leads[..] else { panic!("not one lead, but {leads:?}") };
    assert_eq!((state.as_str(), *attempts), ("delivered", 1), "{transcript}");

    let channel = &world.broker.channel;
    for queue in [queue.clone(), format!("{queue}.dead-letter")] {
        let left = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        assert_eq!(left, 0, "messages are left in {queue}");
    }
    let exchange = format!("{queue}.dead-letter");
    channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
    destination.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_page_of_the_readme_delivers_a_lead_prints_what_it_says_and_leaves_nothing_running() {
    let following: Vec<_> = pages().into_iter().map(|page| tokio::spawn(follow(page))).collect();
    let mut destinations = Vec::new();
    for page in following {
        destinations.push(page.await.unwrap());
    }
    assert_eq!(destinations, ["7targets", "squadrun", "squadiq", "kaisa", "paya", "paya-session"]);
}

#[tokio::test]
async fn the_readme_names_every_preset_and_every_variable_that_it_needs() {
    let listed = run(&["presets", "--output", "json"], Vec::new(), b"").await.json();
    assert_eq!(listed.as_array().unwrap().len(), PRESETS.len());
    for preset in listed.as_array().unwrap() {
        let name = preset["name"].as_str().unwrap();
        assert!(README.contains(&format!("\n| `{name}` |")), "{name} is not in the table of lead APIs");
        for need in preset["needs"].as_array().unwrap() {
            let short = need["variable"].as_str().unwrap().replace("LEADPOST__DESTINATION__", "…");
            assert!(README.contains(&format!("`{short}`")), "{name}: {short}");
        }
    }
}

#[tokio::test]
async fn the_readmes_example_of_another_lead_api_lacks_nothing_but_its_key() {
    let (_, example) = blocks().into_iter().find(|(language, _)| *language == "toml").expect("an example");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("leadpost.toml");
    std::fs::write(&file, example).unwrap();
    let file = file.to_str().unwrap();
    let mut environment: Vec<_> = [("AMQP_URL", "amqp://localhost"), ("DATABASE_URL", "postgres://localhost/leads")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();

    let done = run(&["--config", file, "config", "check"], environment.clone(), b"").await;
    assert_eq!((done.code, done.stderr.matches("\n  - ").count()), (Some(78), 1), "{done:?}");
    assert!(done.stderr.contains("set LEADPOST__DESTINATION__AUTH__API_KEY or"), "{done:?}");
    environment.push(("LEADPOST__DESTINATION__AUTH__API_KEY".to_owned(), "made-up".to_owned()));
    let done = run(&["--config", file, "config", "check"], environment.clone(), b"").await;
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "the configuration is sound\n"), "{done:?}");

    for (lead, code) in [(r#"{"name":"Ann","phone":"5550100"}"#, 0), (r#"{"name":"Ann"}"#, 1)] {
        let arguments = ["--config", file, "publish", "-", "--dry-run"];
        let done = run(&arguments, environment.clone(), lead.as_bytes()).await;
        assert_eq!(done.code, Some(code), "{lead}: {done:?}");
    }
}
