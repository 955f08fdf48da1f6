//! Is a ledger of many leads as quick as an empty one? And what are a million leads to `publish`, `requeue`, and those who wait behind them?

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use leadpost::lead::Key;
use sqlx::PgConnection;

use crate::plans::Explained;
use crate::report::Row;
use crate::scene::{Load, Scene, Stage, Who, execute, latency_of, publish, sandbox, until_ended, worker};
use crate::servers::Servers;
use crate::{Args, measure};

/// Leads of a throughput run on either ledger: so many that what the first ones pay for (pages that go into the WAL whole, as nothing has touched
/// them since the last checkpoint) is shared by as many as it is in a day's work, where a checkpoint comes each five minutes or 4 GB.
const LEADS: u64 = 600_000;

/// Leads of the run before these.
const WARM_UP: u64 = 60_000;

/// Rows that are made in one statement.
const CHUNK: u64 = 500_000;

/// One lead in so many is exhausted, to be sent again together.
const EXHAUSTED: u64 = 10;

/// The lead whose person is looked for.
const KNOWN: u64 = 4_711;

/// How often a command is run; its median counts.
const RUNS: usize = 7;

/// Fresh leads that come while others are due.
const FRESH_PER_S: u64 = 50;
const FRESH_S: u64 = 20;

/// What is between commands and servers.
struct Setting<'a> {
    leadpost: &'a Path,
    servers: &'a Servers,
    stage: &'a Stage,
}

/// A command that looks at leads.
struct Question {
    shown: String,
    words: String,
}

impl Question {
    fn arguments(&self) -> Vec<&str> {
        self.words.split(' ').collect()
    }
}

/// Prints a line for each thing that is measured.
pub async fn compare(leadpost: &Path, servers: &Servers, args: &Args, leads: u64) -> anyhow::Result<()> {
    let scene = Scene {
        leadpost,
        servers,
        args,
        who: Who::Leadpost(1),
        delay: Duration::ZERO,
        load: Load::Filled(LEADS),
        set: &[],
    };
    println!("| ledger of {leads} leads | |\n|---|---:|");
    // The first run of all is slower, whichever it is.
    Scene { load: Load::Filled(WARM_UP), ..scene }.play().await?;
    let empty = scene.play().await?;
    let stage = Stage::set(servers).await?;
    let setting = Setting { leadpost, servers, stage: &stage };
    let measured = async {
        setting.command(&["migrate"])?;
        let mut ledger = servers.connect(Some(&stage.name)).await?;
        let began = Instant::now();
        let bytes = fill(&mut ledger, leads).await?;
        eprintln!("throughput: filled in {:.0} s", began.elapsed().as_secs_f64());
        println!("| its size | {:.1} GiB |", bytes as f64 / 1024.0 / 1024.0 / 1024.0);
        let full = scene.play_on(&stage).await?;
        println!(
            "| leads/s into it, against an empty one | {:.0} / {:.0} = {:.2} |",
            full.leads_per_s,
            empty.leads_per_s,
            full.leads_per_s / empty.leads_per_s
        );
        println!("| the same by tenths of {LEADS} leads | {} |", ratios(&full, &empty));
        let both =
            |of: fn(&Row) -> Option<f64>| format!("{:.0} / {:.0}", of(&full).unwrap_or(0.0), of(&empty).unwrap_or(0.0));
        println!("| Postgres CPU for each of them | {} us |", both(|row| row.postgres_us));
        println!("| WAL for each of them | {} bytes |", both(|row| row.wal_bytes_per_lead));
        setting.looks(&mut ledger).await?;
        setting.counts()?;
        setting.removal(&scene, &mut ledger).await?;
        setting.plans(&mut ledger, &args.log).await?;
        setting.backlog(&mut ledger, leads / EXHAUSTED, &args.log).await?;
        // The disk is RabbitMQ's now.
        execute(&mut ledger, "checkpoint").await?;
        setting.publish(leads / EXHAUSTED)
    };
    let measured = measured.await;
    stage.strike().await?;
    measured
}

/// The rates of one by those of the other, tenth by tenth.
fn ratios(one: &Row, other: &Row) -> String {
    let tenths = one.tenths.iter().zip(&other.tenths);
    tenths.map(|(one, other)| format!("{:.2}", one.leads_per_s / other.leads_per_s)).collect::<Vec<_>>().join(" ")
}

/// Leads that came over three months, most of them delivered, and one and a half attempts for each. Says how many bytes that takes.
async fn fill(ledger: &mut PgConnection, leads: u64) -> anyhow::Result<i64> {
    // Rows first, then their indexes: that is how long it takes, and nothing else.
    execute(
        ledger,
        "alter table leads disable trigger user; set maintenance_work_mem = '1GB'; set synchronous_commit = off; \
         create temp table index_ as select indexdef from pg_indexes where tablename in ('leads', 'other_attempts') and indexname not like '%_pkey'; \
         alter table replays drop constraint replays_lead_id_fkey; \
         alter table interventions drop constraint interventions_lead_id_fkey; \
         alter table leads drop constraint leads_pkey; alter table other_attempts drop constraint attempts_pkey; \
         do $$ declare name text; begin \
             for name in select indexname from pg_indexes where tablename in ('leads', 'other_attempts') loop execute 'drop index ' || name; end loop; \
         end $$",
    )
    .await?;
    let known = Key::of_email(&format!("ann.{KNOWN}@example.com")).0;
    let assistants =
        (0..50).map(|n: u32| Key::of_assistant(&n.to_string()).0.to_string()).collect::<Vec<_>>().join(", ");
    for from in (0..leads).step_by(usize::try_from(CHUNK)?) {
        let to = (from + CHUNK).min(leads) - 1;
        execute(
            ledger,
            &format!(
                "with made as materialized ( \
                     select n, gen_random_uuid() as id, now() - (1 - n / {leads}.0) * interval '90 days' as at, \
                         case when n % {EXHAUSTED} = 0 then 'exhausted' when n % 100 = 1 then 'rejected' when n % 100 = 2 then 'duplicate' \
                             when n % 100 = 3 then 'uncertain' else 'delivered' end as state \
                     from generate_series({from}::bigint, {to}) as n \
                 ), written as ( \
                     insert into leads (id, destination, state, body, queue, message_id, accepted_at, changed_at, finished_at, attempts, charged, \
                         budget_from, code, reason, remote_id, email_key, assistant_key, posted_at, posted_ms, posted_by, posted_lease, \
                         posted_status) \
                     select id, '7targets', state, convert_to('{{\"name\":\"Ann\",\"lastName\":\"Number ' || n || '\",\"email\":\"ann.' || n || \
                             '@example.com\",\"phone\":\"+15550100\",\"source\":\"Website\",\"context\":\"Asked for a quote on the pricing page.\",\
                             \"assistantId\":' || n % 50 || '}}', 'UTF8'), \
                         'leads', id::text, at, at, at, 1 + n % 2, 1 + n % 2, at, \
                         case when state <> 'delivered' then 'http_503' end, case when state <> 'delivered' then 'the API was busy' end, \
                         case when state = 'delivered' then n::text end, \
                         case n when {KNOWN} then {known} else hashtextextended(n::text, 0) end, (array[{assistants}]::bigint[])[n % 50 + 1], \
                         case when at_once then at end, case when at_once then 20 end, case when at_once then 'worker-1' end, \
                         case when at_once then id end, case when at_once then 201 end \
                     from made, lateral (select state = 'delivered' and n % 2 = 0 as at_once) as one \
                 ) \
                 insert into other_attempts (lead_id, number, lease, worker, started_at, duration_ms, outcome, charged, http_status, code) \
                 select id, number, id, 'worker-1', at, 20, \
                     case when number > n % 2 then case state when 'exhausted' then 'retry' else state end else 'retry' end, true, \
                     case when number > n % 2 and state = 'delivered' then 201 else 503 end, \
                     case when number > n % 2 and state = 'delivered' then null else 'http_503' end \
                 from made, generate_series(1, 1 + n % 2) as number \
                 where state <> 'delivered' or n % 2 = 1"
            ),
        )
        .await?;
        eprint!("\rthroughput: {} of {leads} leads", to + 1);
        std::io::stderr().flush()?;
    }
    eprintln!();
    execute(
        ledger,
        "alter table leads add primary key (id); alter table other_attempts add constraint attempts_pkey primary key (lead_id, number); \
         alter table replays add constraint replays_lead_id_fkey foreign key (lead_id) references leads (id) on delete cascade; \
         alter table interventions add constraint interventions_lead_id_fkey foreign key (lead_id) references leads (id) on delete cascade; \
         do $$ declare def text; begin for def in select indexdef from index_ loop execute def; end loop; end $$; \
         alter table leads enable trigger user; \
         insert into tallies (destination, shard, accepted, delivered, duplicate, rejected, exhausted, uncertain) \
         select '7targets', 99, count(*), count(*) filter (where state = 'delivered'), count(*) filter (where state = 'duplicate'), \
             count(*) filter (where state = 'rejected'), count(*) filter (where state = 'exhausted'), count(*) filter (where state = 'uncertain') \
         from leads",
    )
    .await?;
    execute(ledger, "vacuum (analyze, freeze) leads").await?;
    execute(ledger, "vacuum (analyze, freeze) other_attempts").await?;
    execute(ledger, "checkpoint").await?;
    let sql = "select pg_database_size(current_database())";
    Ok(sqlx::query_scalar(sql).fetch_one(ledger).await?)
}

impl Setting<'_> {
    fn prepare(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(self.leadpost);
        let variables = std::env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("LEADPOST_"));
        command.env_clear().envs(variables).env("LEADPOST_CONFIG", "/dev/null");
        command
            .env("AMQP_URL", &self.servers.amqp_url)
            .env("DATABASE_URL", self.servers.url_of(Some(&self.stage.name))?);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(command)
    }

    /// Runs a command to its end; says how long that took, and its most memory in MiB.
    fn command(&self, arguments: &[&str]) -> anyhow::Result<(Duration, f64)> {
        let began = Instant::now();
        let mut child = self.prepare(arguments)?.spawn()?;
        let mut peak = 0.0_f64;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            peak = peak.max(measure::peak_mib(child.id()).unwrap_or(0.0));
            std::thread::sleep(Duration::from_millis(1));
        };
        let took = began.elapsed();
        let mut said = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            std::io::Read::read_to_string(&mut stderr, &mut said)?;
        }
        ensure!(status.success(), "leadpost {} ended with {status}: {said}", arguments.join(" "));
        Ok((took, peak))
    }

    fn median(&self, arguments: &[&str]) -> anyhow::Result<Duration> {
        let mut times = (0..RUNS).map(|_| Ok(self.command(arguments)?.0)).collect::<anyhow::Result<Vec<_>>>()?;
        times.sort();
        Ok(times[RUNS / 2])
    }

    /// What a person waits for.
    async fn looks(&self, ledger: &mut PgConnection) -> anyhow::Result<()> {
        println!("| `leadpost --version` | {:.0} ms |", self.median(&["--version"])?.as_secs_f64() * 1e3);
        for question in self.questions(ledger).await? {
            let took = self.median(&question.arguments())?;
            println!("| `leadpost {}` | {:.0} ms |", question.shown, took.as_secs_f64() * 1e3);
        }
        Ok(())
    }

    /// What a person asks.
    async fn questions(&self, ledger: &mut PgConnection) -> anyhow::Result<Vec<Question>> {
        let id: String = sqlx::query_scalar("select id::text from leads limit 1").fetch_one(ledger).await?;
        let email = format!("leads list --email ann.{KNOWN}@example.com");
        let questions = [
            "status",
            "leads show ID",
            "leads list",
            "leads list --state rejected",
            &email,
            "leads list --assistant 7",
            "leads count --state delivered",
        ];
        let of = |shown: &str| Question {
            shown: shown.to_owned(),
            words: format!("{} --set amqp.queue={}", shown.replace("ID", &id), self.stage.name),
        };
        Ok(questions.map(of).into())
    }

    /// Does any of these questions, or what carries leads, read a table from one end to the other? Planned as it is when it is asked.
    async fn plans(&self, ledger: &mut PgConnection, log: &str) -> anyhow::Result<()> {
        let Some(explained) = Explained::begin(self.servers, &self.stage.name).await? else {
            println!("| plans | not looked at |");
            return Ok(());
        };
        for question in self.questions(ledger).await? {
            self.command(&question.arguments())?;
        }
        let (_sandbox, api) = sandbox(self.leadpost, &[])?;
        let mut worker = worker(self.leadpost, self.servers, &self.stage.name, &api, (64, 64), log, &[])?;
        let published = publish(&self.stage.channel, &self.stage.name, 0..FRESH_PER_S, Some(10 * FRESH_PER_S)).await?;
        until_ended(ledger, &published).await?;
        worker.stop().context("the worker")?;
        let plans = explained.end().await?;
        for (statement, plan) in &plans {
            eprintln!(
                "throughput: plan: {} {:?} {statement}",
                if plan.whole.is_empty() { "ok" } else { "WHOLE" },
                plan
            );
        }
        let whole: Vec<&String> =
            plans.iter().filter(|(_, plan)| !plan.whole.is_empty()).map(|(statement, _)| statement).collect();
        println!(
            "| statements of these commands and of a worker that were explained, and that read all of a table or index | {}, {} |",
            plans.len(),
            whole.len()
        );
        ensure!(plans.len() > 10, "hardly anything was explained: {plans:#?}");
        ensure!(whole.is_empty(), "these read all of a table or an index: {whole:#?}");
        Ok(())
    }

    /// What counts, or groups, many leads, and takes the longer the more there are.
    fn counts(&self) -> anyhow::Result<()> {
        for arguments in [&["failures"][..], &["leads", "count", "--assistant", "7"]] {
            println!(
                "| `leadpost {}` | {:.0} ms |",
                arguments.join(" "),
                self.command(arguments)?.0.as_secs_f64() * 1e3
            );
        }
        Ok(())
    }

    /// Do leads that come wait for those that are removed?
    async fn removal(&self, scene: &Scene<'_>, ledger: &mut PgConnection) -> anyhow::Result<()> {
        let load = Load::Stream { per_s: 1_000, seconds: 30 };
        let delay = Duration::from_millis(20);
        let settings: [(&str, &[&str]); 2] =
            [("no lead is removed", &[]), ("leads of over 30 days are removed", &["retention.delivered_days=30"])];
        for (what, set) in settings {
            let leads = "select coalesce(sum(accepted), 0)::bigint from tallies";
            let before: i64 = sqlx::query_scalar(leads).fetch_one(&mut *ledger).await?;
            let row = Scene { delay, load, set, ..*scene }.play_on(self.stage).await?;
            let after: i64 = sqlx::query_scalar(leads).fetch_one(&mut *ledger).await?;
            let latency = row.latency_ms.context("a stream has latencies")?;
            println!(
                "| 1000/s, API 20 ms, while {what} ({}), p50 / p99 / most | {:.0} / {:.0} / {:.0} ms |",
                before + i64::try_from(row.leads)? - after,
                latency.p50,
                latency.p99,
                latency.most
            );
        }
        Ok(())
    }

    /// So many leads are sent again together; what do fresh ones wait for behind them?
    async fn backlog(&self, ledger: &mut PgConnection, due: u64, log: &str) -> anyhow::Result<()> {
        let (took, peak) =
            self.command(&["requeue", "--state", "exhausted", "--yes", "--reason", "the API is back"])?;
        println!("| `leadpost requeue --state exhausted`, {due} leads | {:.0} s, {peak:.0} MiB |", took.as_secs_f64());
        println!("| with those due: | |");
        self.looks(ledger).await?;
        let (_sandbox, api) = sandbox(self.leadpost, &["--latency-ms", "20"])?;
        let mut worker = worker(self.leadpost, self.servers, &self.stage.name, &api, (64, 64), log, &[])?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let retried = "select coalesce(sum(pending), 0)::bigint from tallies";
        let before: i64 = sqlx::query_scalar(retried).fetch_one(&mut *ledger).await?;
        let began = Instant::now();
        let published =
            publish(&self.stage.channel, &self.stage.name, 0..FRESH_PER_S * FRESH_S, Some(FRESH_PER_S)).await?;
        let after: i64 = sqlx::query_scalar(retried).fetch_one(&mut *ledger).await?;
        let per_s = (before - after) as f64 / began.elapsed().as_secs_f64();
        until_ended(ledger, &published).await?;
        let latency = latency_of(ledger, &published).await?;
        worker.stop().context("the worker")?;
        println!(
            "| a fresh lead, with those due ({FRESH_PER_S}/s, API 20 ms), p50 / p99 / most | {:.0} / {:.0} / {:.0} ms |",
            latency.p50, latency.p99, latency.most
        );
        println!("| retries meanwhile | {per_s:.0}/s |");
        Ok(())
    }

    fn publish(&self, leads: u64) -> anyhow::Result<()> {
        let file = std::env::temp_dir().join(format!("{}.jsonl", self.stage.name));
        let mut out = std::io::BufWriter::new(std::fs::File::create(&file)?);
        for n in 0..leads {
            writeln!(
                out,
                r#"{{"name":"Ann","lastName":"Number {n}","email":"ann.{n}@example.com","phone":"+15550100","source":"Website","context":"Asked for a quote on the pricing page.","assistantId":61}}"#
            )?;
        }
        out.flush()?;
        drop(out);
        let published = self.command(&["publish", &file.display().to_string(), "--queue", &self.stage.name]);
        std::fs::remove_file(&file)?;
        let (took, peak) = published?;
        println!("| `leadpost publish`, {leads} leads | {:.0}/s, {peak:.0} MiB |", leads as f64 / took.as_secs_f64());
        Ok(())
    }
}
