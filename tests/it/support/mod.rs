//! A world for each test: services, settings, and ways to look at both sides of every effect.

pub mod api;
pub mod authority;
pub mod books;
mod broker;
pub mod collector;
mod database;
pub mod exposition;
pub mod flowing;
mod process;
pub mod proxy;
mod raw;
pub mod scene;
pub mod secured;
pub mod servers;
mod terminal;
pub mod tls;
pub mod wire;
pub mod yaml;

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum as _;
use leadpost::config::{Secret, Settings, Source};
use leadpost::lead::LeadId;
use leadpost::ledger::{LeadRecord, LeadState, Ledger};
use leadpost::lifecycle::Shutdown;
use leadpost::metrics::Metrics;
use leadpost::sandbox::{Profile, Sandbox, SandboxSettings, Tuning};
use leadpost::traces::Traces;
use leadpost::worker::{Health, Stopped, Worker};
use tokio::task::JoinHandle;
use uuid::Uuid;

use broker::Broker;
pub use broker::{Message, amqp_url};
use database::Database;
pub use database::database_url;
pub use process::{Process, Usage, get, get_as, run};
pub use terminal::Terminal;

/// Nothing in these tests takes longer unless it is broken.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// RabbitMQ, Postgres and a lead API for one test.
pub struct World {
    pub sandbox: Sandbox,
    /// What workers of this world are started with; change it before [`World::start`].
    pub settings: Settings,
    pub database: Database,
    pub broker: Broker,
    /// A handle on the ledger that is no worker's.
    pub ledger: Ledger,
    /// The destination, as the environment of a process says it.
    pub destination: Vec<(String, String)>,
}

impl World {
    /// A world with an empty queue, an empty ledger and a healthy API.
    pub async fn new() -> Self {
        Self::with_sandbox(SandboxSettings::default()).await
    }

    /// A world whose API is played as it really behaves, with the preset of this name and right credentials.
    pub async fn of_preset(preset: &str) -> Self {
        let profile = Profile::from_str(preset, false).unwrap();
        let sandbox = SandboxSettings { tuning: Tuning::of(profile), ..SandboxSettings::default() };
        Self::with(preset, sandbox).await
    }

    pub async fn with_sandbox(sandbox: SandboxSettings) -> Self {
        Self::with("7targets", sandbox).await
    }

    /// A world with this sandbox, and the preset that fits it.
    pub async fn with(preset: &str, sandbox: SandboxSettings) -> Self {
        // Only the first call of the process can succeed, and one is enough.
        drop(rustls::crypto::ring::default_provider().install_default());
        Self::made_of(preset, sandbox, Broker::create().await, Database::create().await)
    }

    /// A world on other servers than the usual ones, each named by its URL.
    pub async fn on(amqp_url: &str, database_url: &str) -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let (broker, database) = (Broker::create_at(amqp_url).await, Database::create_at(database_url).await);
        Self::made_of("7targets", SandboxSettings::default(), broker, database)
    }

    fn made_of(preset: &str, sandbox: SandboxSettings, broker: Broker, database: Database) -> Self {
        let sandbox = Sandbox::start(sandbox).unwrap();
        let destination = destination(preset, &sandbox);
        let env = destination.iter().cloned().collect();
        let mut settings = Source { file: Some("/dev/null".into()), env, ..Source::default() }.read().unwrap();
        settings.amqp.url = Secret::new(broker.url.clone());
        settings.amqp.queue = broker.queue.clone();
        settings.postgres.url = Secret::new(database.url.clone());
        settings.flow.poll_ms = 20;
        settings.flow.probe_initial_ms = 50;
        settings.flow.probe_max_ms = 400;
        settings.admin.listen = String::new();
        let ledger = Ledger::new(&settings, "test").unwrap();
        Self { sandbox, settings, database, broker, ledger, destination }
    }

    /// Starts a worker in this process.
    pub async fn start(&self) -> Running {
        self.start_named("worker").await
    }

    pub async fn start_named(&self, name: &str) -> Running {
        leadpost::config::check(&self.settings).unwrap();
        let worker = Worker::new(self.settings.clone(), name, Traces::default()).unwrap();
        let shutdown = Shutdown::default();
        assert!(worker.prepare(true, &shutdown).await.unwrap());
        let (health, metrics) = (worker.health(), worker.metrics());
        let task = tokio::spawn(worker.run(shutdown.clone()));
        Running { shutdown, health, metrics, task }
    }

    /// A valid lead of this name, as JSON.
    pub fn lead(name: &str) -> String {
        format!(r#"{{"name":"{name}","email":"{name}@example.com","assistantId":61}}"#)
    }

    /// Publishes a lead of this name under a random id.
    pub async fn publish(&self, name: &str) -> LeadId {
        self.publish_body(&Self::lead(name)).await
    }

    /// Publishes this body under a random id.
    pub async fn publish_body(&self, body: &str) -> LeadId {
        let id = LeadId(Uuid::new_v4());
        self.broker.publish(Message::new(id, body)).await;
        id
    }

    /// The lead as the ledger has it; it must be there.
    pub async fn show(&self, id: LeadId) -> LeadRecord {
        self.ledger.show(id).await.unwrap().unwrap_or_else(|| panic!("lead {id} is not in the ledger"))
    }

    pub async fn state(&self, id: LeadId) -> Option<LeadState> {
        self.ledger.show(id).await.unwrap().map(|lead| lead.state)
    }

    /// Waits until the lead is in this state.
    pub async fn until_state(&self, id: LeadId, state: LeadState) -> LeadRecord {
        self.until(&format!("lead {id} is {state}"), async || self.state(id).await == Some(state)).await;
        self.show(id).await
    }

    /// Waits until the lead has made so many attempts and is not being posted.
    pub async fn until_attempts(&self, id: LeadId, attempts: i32) -> LeadRecord {
        self.until(&format!("lead {id} has {attempts} attempts"), async || {
            let lead = self.ledger.show(id).await.unwrap();
            lead.is_some_and(|lead| lead.attempts >= attempts && lead.leased_by.is_none())
        })
        .await;
        self.show(id).await
    }

    /// Waits until so many leads are in this state.
    pub async fn until_count(&self, state: LeadState, n: i64) {
        self.until(&format!("{n} leads are {state}"), async || self.ledger.status().await.unwrap().states[&state] == n)
            .await;
    }

    /// Waits until something holds, looking again and again, up to [`DEADLINE`].
    pub async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let holding = async {
            while !holds().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(DEADLINE, holding).await.is_ok(), "waited in vain until {what}");
    }

    /// Moves the ledger's time: everything that is due in `by` or less is due now, every lead is so much older, and so much of a hold is over (workers that run
    /// learn that by their next heartbeat).
    pub async fn pass(&self, by: Duration) {
        let sql = "update leads set next_attempt_at = next_attempt_at - $1 * interval '1 second', \
                   budget_from = budget_from - $1 * interval '1 second'";
        sqlx::query(sql).bind(by.as_secs_f64()).execute(&self.database.pool).await.unwrap();
        let sql = "update destinations set held_until = held_until - $1 * interval '1 second'";
        sqlx::query(sql).bind(by.as_secs_f64()).execute(&self.database.pool).await.unwrap();
    }

    /// Lets no lead wait for its time. Leases are left alone.
    pub async fn hurry(&self) {
        let sql = "update leads set next_attempt_at = now() \
                   where state = 'pending' and lease is null and next_attempt_at > now()";
        self.execute(sql).await;
    }

    /// Lets all leases run out.
    pub async fn expire_leases(&self) {
        self.execute("update leads set next_attempt_at = now() where lease is not null").await;
    }

    /// In how long the lead is due.
    pub async fn due_in(&self, id: LeadId) -> Duration {
        let seconds: f64 =
            sqlx::query_scalar("select extract(epoch from next_attempt_at - now())::float8 from leads where id = $1")
                .bind(id.0)
                .fetch_one(&self.database.pool)
                .await
                .unwrap();
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO)
    }

    /// How many posts the API received for this lead.
    pub fn posts(&self, id: LeadId) -> usize {
        self.sandbox.journal().posts_for(id.0).len()
    }

    /// The attempts of a lead in one line each, such as `retry 503`.
    pub async fn story(&self, id: LeadId) -> Vec<String> {
        let lead = self.show(id).await;
        let line = |attempt: &leadpost::ledger::AttemptRecord| match attempt.http_status {
            Some(status) => format!("{} {status}", attempt.outcome),
            None => attempt.outcome.clone(),
        };
        lead.history.iter().map(line).collect()
    }

    /// All invariants of the ledger hold; the queue is empty; no message is unacknowledged; each post that the API received has
    /// its attempt, and no lead was under way twice at a time.
    pub async fn check_books(&self) {
        let verification = self.ledger.verify().await.unwrap();
        let broken: Vec<_> = verification.checks.iter().filter(|check| check.broken > 0).collect();
        assert!(broken.is_empty(), "{broken:#?}");
        let posts = self.sandbox.journal().posts().len();
        let attempts: i64 = sqlx::query_scalar("select count(*) from attempts where outcome <> 'not_sent'")
            .fetch_one(&self.database.pool)
            .await
            .unwrap();
        assert!(i64::try_from(posts).unwrap() <= attempts, "{posts} posts, but {attempts} attempts on record");
        let overlaps = self.sandbox.journal().posts().iter().filter(|post| post.overlapped).count();
        assert_eq!(overlaps, 0, "a lead was posted twice at a time");
    }

    /// Stops the worker, checks the books, and that nothing is left in the queue.
    pub async fn finish(self, running: Running) {
        assert_eq!(running.stop().await, Stopped::Cleanly);
        assert_eq!(self.broker.depth().await, 0, "messages are left in the queue");
        self.check_books().await;
    }
}

/// The settings with which a preset finds its API in this sandbox, as an environment says them.
fn destination(preset: &str, sandbox: &Sandbox) -> Vec<(String, String)> {
    let tuning = sandbox.tuning();
    let pairs: &[(&str, &str)] = match preset {
        "7targets" | "7targets-2024" => &[
            ("AUTH__TOKEN_URL", &sandbox.token_url()),
            ("REQUEST__URL", &sandbox.leads_url()),
            ("AUTH__CLIENT_ID", &tuning.client_id),
            ("AUTH__CLIENT_SECRET", &tuning.client_secret),
            ("VARIABLES__USER_IDENTIFIER", "user-1"),
        ],
        "squadrun" => &[
            ("AUTH__CLIENT_ID", &tuning.client_id),
            ("AUTH__CLIENT_SECRET", &tuning.client_secret),
            ("AUTH__USERNAME", &tuning.username),
            ("AUTH__PASSWORD", &tuning.password),
            ("VARIABLES__CAMPAIGN_ID", "7"),
        ],
        "squadiq" => &[("AUTH__BEARER_TOKEN", &tuning.bearer_token), ("VARIABLES__CAMPAIGN_ID", "7")],
        "kaisa" => &[
            ("AUTH__CLIENT_ID", &tuning.client_id),
            ("AUTH__CLIENT_SECRET", &tuning.client_secret),
            ("VARIABLES__LOGIN", &sandbox.base_url()),
        ],
        "paya" => &[
            ("AUTH__API_KEY_ID", &tuning.user_id),
            ("AUTH__API_KEY", &tuning.user_api_key),
            ("VARIABLES__DEVELOPER_ID", &tuning.developer_id),
            ("VARIABLES__LOCATION_ID", &tuning.location_id),
        ],
        "paya-session" => &[
            ("AUTH__USERNAME", &tuning.username),
            ("AUTH__PASSWORD", &tuning.password),
            ("VARIABLES__DOMAIN", &tuning.domain),
            ("VARIABLES__DEVELOPER_ID", &tuning.developer_id),
            ("VARIABLES__LOCATION_ID", &tuning.location_id),
        ],
        other => panic!("there is no preset {other}"),
    };
    let base = sandbox.base_url();
    let all = pairs.iter().copied().chain([("PRESET", preset), ("VARIABLES__API", &base)]);
    all.map(|(name, value)| (format!("LEADPOST__DESTINATION__{name}"), value.to_owned())).collect()
}

/// A worker in this process.
pub struct Running {
    pub shutdown: Shutdown,
    pub health: Arc<Health>,
    pub metrics: Arc<Metrics>,
    pub task: JoinHandle<Result<Stopped, leadpost::worker::StartError>>,
}

impl Running {
    /// Asks it to stop, and waits until it has.
    pub async fn stop(self) -> Stopped {
        self.shutdown.drain.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.expect("must stop in time").unwrap().unwrap()
    }
}

/// Many leads, and the ledger's side of the story.
impl World {
    /// Publishes so many leads with names that begin like this, under random ids.
    pub async fn publish_many(&self, name: &str, n: usize) -> Vec<LeadId> {
        let mut ids = Vec::with_capacity(n);
        for at in 0..n {
            ids.push(self.publish(&format!("{name}{at}")).await);
        }
        ids
    }

    /// Publishes other leads, one after the other, and waits until each is through. Whatever was due before has had its turn
    /// several times by then.
    pub async fn others_pass(&self) {
        for _ in 0..4 {
            let id = self.publish(&format!("other-{}", Uuid::new_v4().simple())).await;
            self.until_state(id, LeadState::Delivered).await;
        }
    }

    /// Lets no lead wait for its time until all of these are delivered. Leases are left alone.
    pub async fn until_all_delivered(&self, ids: &[LeadId]) {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        self.until("all leads are delivered", async || {
            self.hurry().await;
            let sql = "select count(*) from leads where id = any($1) and state = 'delivered'";
            let delivered: i64 = sqlx::query_scalar(sql).bind(&ids).fetch_one(&self.database.pool).await.unwrap();
            usize::try_from(delivered).unwrap() == ids.len()
        })
        .await;
    }

    /// Waits until all of these are delivered, without letting time pass.
    pub async fn until_delivered(&self, ids: &[LeadId]) {
        for id in ids {
            self.until_state(*id, LeadState::Delivered).await;
        }
    }

    /// How often the lead was suspected of being at fault itself.
    pub async fn suspicions(&self, id: LeadId) -> i32 {
        let sql = "select suspected from leads where id = $1";
        sqlx::query_scalar(sql).bind(id.0).fetch_one(&self.database.pool).await.unwrap()
    }

    /// A number from the ledger: `sql` has one row with one `bigint`.
    pub async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.database.pool).await.unwrap()
    }

    /// Waits until the worker consumes, or says that it does not.
    pub async fn until_consuming(&self, running: &Running, consuming: bool) {
        self.until("the worker consumes or not, as expected", async || {
            let detail = running.health.report().rabbitmq.detail;
            (detail == "consuming") == consuming && detail != "not connected yet"
        })
        .await;
    }
}
