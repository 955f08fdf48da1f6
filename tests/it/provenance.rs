//! `leadpost config show`: where each value comes from; the shells' completions and the manual pages.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::run;

const SECRET: &str = "hunter2";

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_setting_says_where_it_comes_from_and_no_secret_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let (file, secret) = (folder.path().join("mine.toml"), folder.path().join("secret"));
    fs::write(
        &file,
        "[flow]\nbatch = 8\n\n[destination]\npreset = 'squadrun'\n[destination.variables]\ncampaign_id = '7'\n",
    )
    .unwrap();
    fs::write(&secret, format!("{SECRET}-in-a-file\n")).unwrap();
    let (file, secret) = (file.to_str().unwrap(), secret.to_str().unwrap());
    let environment = pairs(&[
        ("DATABASE_URL", &format!("postgres://me:{SECRET}@host/db")),
        ("LEADPOST__DESTINATION__AUTH__CLIENT_SECRET_FILE", secret),
        ("LEADPOST__DESTINATION__AUTH__PASSWORD", &format!("{SECRET}-by-environment")),
        ("LEADPOST__DESTINATION__REQUEST__HEADERS__X_KEY", &format!("{SECRET}-in-a-header")),
        ("LEADPOST__DESTINATION__REQUEST__URL", &format!("https://h/leads?key={SECRET}")),
        ("LEADPOST__FLOW__CONCURRENCY", "9"),
    ]);
    let arguments = ["config", "show", "--config", file, "--set", "flow.poll_ms=70"];
    let json = run(&[&arguments[..], &["--output", "json"]].concat(), environment.clone(), b"").await;
    assert_eq!(json.code, Some(0), "{json:?}");
    let settings = json.json();
    let at = |key: &str| settings.get(key).unwrap_or_else(|| panic!("{key} is not in {settings}")).clone();
    for (key, value, source, further) in [
        ("flow.batch", Value::from(8), "file", ("line", Value::from(2))),
        ("destination.preset", "squadrun".into(), "file", ("path", file.into())),
        ("destination.variables.campaign_id", "7".into(), "file", ("line", 7.into())),
        ("flow.concurrency", 9.into(), "environment", ("variable", "LEADPOST__FLOW__CONCURRENCY".into())),
        ("flow.poll_ms", 70.into(), "flag", ("secret", false.into())),
        ("flow.rate_per_s", 1.5.into(), "preset", ("name", "squadrun".into())),
        ("retry.max_attempts", 20.into(), "default", ("secret", false.into())),
        ("postgres.url", "(set)".into(), "environment", ("variable", "DATABASE_URL".into())),
        ("amqp.url", Value::Null, "default", ("secret", true.into())),
        ("destination.auth.client_secret", "(set)".into(), "secret_file", ("path", secret.into())),
        ("destination.auth.password", "(set)".into(), "environment", ("secret", true.into())),
        ("destination.request.headers.x_key", "(set)".into(), "environment", ("secret", false.into())),
    ] {
        let setting = at(key);
        assert_eq!((&setting["value"], &setting["source"]), (&value, &source.into()), "{key}: {setting}");
        assert_eq!(setting[further.0], further.1, "{key}: {setting}");
    }
    let named_by = &at("destination.auth.client_secret")["named_by"];
    assert_eq!(named_by["variable"], "LEADPOST__DESTINATION__AUTH__CLIENT_SECRET_FILE");

    let text = run(&arguments, environment, b"").await;
    assert_eq!(text.code, Some(0), "{text:?}");
    for line in [
        format!("batch = 8 # {file} line 2"),
        "concurrency = 9 # environment LEADPOST__FLOW__CONCURRENCY".to_owned(),
        "poll_ms = 70 # --set".to_owned(),
        "rate_per_s = 1.5 # preset squadrun".to_owned(),
        "max_attempts = 20 # default".to_owned(),
        "# url is set, and secret: environment DATABASE_URL".to_owned(),
        format!(
            "# client_secret is set, and secret: file {secret}, named by environment LEADPOST__DESTINATION__AUTH__CLIENT_SECRET_FILE"
        ),
        "# url is not set".to_owned(),
    ] {
        assert!(text.stdout.lines().any(|said| said == line), "{line:?} is not in {}", text.stdout);
    }
    for said in [&json, &text] {
        assert!(!format!("{said:?}").contains(SECRET), "{said:?}");
    }
    toml::from_str::<toml::Table>(&text.stdout).expect("it is TOML");
}

#[tokio::test(flavor = "multi_thread")]
async fn bash_completes_commands_options_and_values_with_the_script_that_is_printed() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = run(&["completions", shell], Vec::new(), b"").await;
        assert!(done.code == Some(0) && done.stdout.contains("topology"), "{shell}: {done:?}");
    }
    let script = run(&["completions", "bash"], Vec::new(), b"").await.stdout;
    let complete = |words: &str| {
        let last = words.split(' ').count() - 1;
        let array = words.split(' ').map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        let asked = format!(
            "{script}\nCOMP_WORDS=({array}); COMP_CWORD={last}; _leadpost leadpost \"${{COMP_WORDS[{last}]}}\" \"${{COMP_WORDS[{}]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            last - 1
        );
        let output = Command::new("bash").args(["-c", &asked]).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete("leadpost statu"), ["status"]);
    assert_eq!(complete("leadpost topology decl"), ["declare"]);
    assert_eq!(complete("leadpost status --wat"), ["--watch"]);
    assert_eq!(complete("leadpost check --output "), ["text", "json"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_a_manual_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("man1");
    let done = run(&["man", "--dir", dir.to_str().unwrap()], Vec::new(), b"").await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let mut pages: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    pages.sort();
    for page in ["leadpost.1", "leadpost-status.1", "leadpost-leads-show.1", "leadpost-config-show.1", "leadpost-man.1"]
    {
        assert!(pages.iter().any(|known| known == page), "{page} is not in {pages:?}");
    }
    for page in &pages {
        let text = fs::read_to_string(dir.join(page)).unwrap();
        assert!(text.starts_with(".ie") && text.contains(".TH ") && text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    let one = run(&["man", "leads", "show"], Vec::new(), b"").await;
    assert_eq!((one.code, &one.stdout), (Some(0), &fs::read_to_string(dir.join("leadpost-leads-show.1")).unwrap()));
    assert!(one.stdout.contains("Example: "), "{}", one.stdout);
    let none = run(&["man", "nonsense"], Vec::new(), b"").await;
    assert!(none.code == Some(1) && none.stderr.contains("there is no command \"nonsense\""), "{none:?}");
}
