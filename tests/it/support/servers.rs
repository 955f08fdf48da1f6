//! Servers that a test may stop, kill and freeze: not those that all other tests use.
//!
//! They are started by `scripts/services` when a test first asks for them, in a folder of their own, and serve one test at a time.
//! A test that is done with them, or has failed, leaves them up and well; the end of this process, in whatever way, ends them.

use std::io::{PipeWriter, Write as _};
use std::ops::Deref;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};

static RABBITMQ: Mutex<Vec<Server>> = Mutex::const_new(Vec::new());
static POSTGRES: Mutex<Vec<Server>> = Mutex::const_new(Vec::new());
static CLUSTER: Mutex<Vec<Server>> = Mutex::const_new(Vec::new());
static SECURED: Mutex<Vec<Server>> = Mutex::const_new(Vec::new());

/// So many nodes has the cluster: the least of which one can be missed.
const NODES: usize = 3;

/// Waits until nobody can write to its stdin any more, then ends the server in `$2` and removes its folder.
const WATCHDOG: &str = r#"cat >/dev/null
"$1" kill "$2"; "$1" down --purge; rm -rf "$LEADPOST_SERVICES_STATE""#;

/// One or several servers, for one test; the first of them is what it points to.
pub struct Servers(MappedMutexGuard<'static, [Server]>);

/// A server of one's own.
pub struct Server {
    name: &'static str,
    /// Where `scripts/services` keeps what it knows of it.
    state: PathBuf,
    url: String,
    ctl: PathBuf,
    node: String,
    is_down: AtomicBool,
    is_frozen: AtomicBool,
    is_alarmed: AtomicBool,
    /// What sets back what was tuned.
    untune: std::sync::Mutex<Vec<String>>,
    /// Its end is ours: it closes when this process ends.
    _watchdog: PipeWriter,
}

impl Servers {
    /// A RabbitMQ.
    pub async fn rabbitmq() -> Self {
        Self::of(&RABBITMQ, async || vec![blocking(|| Server::up("rabbitmq", &Place::Alone)).await]).await
    }

    /// A Postgres.
    pub async fn postgres() -> Self {
        Self::of(&POSTGRES, async || vec![blocking(|| Server::up("postgres", &Place::Alone)).await]).await
    }

    /// A RabbitMQ and a Postgres. Who needs both asks here: of two tests that have one each and wait for the other, none would go on.
    pub async fn both() -> (Self, Self) {
        static BOTH: Mutex<()> = Mutex::const_new(());
        let _one_at_a_time = BOTH.lock().await;
        tokio::join!(Self::rabbitmq(), Self::postgres())
    }

    /// A cluster of three nodes of RabbitMQ.
    pub async fn cluster() -> Self {
        let start = async || {
            let first = blocking(|| Server::up("rabbitmq", &Place::First)).await;
            let joins = (1..NODES).map(|_| {
                let beside = Place::Beside(first.state.clone());
                tokio::spawn(blocking(move || Server::up("rabbitmq", &beside)))
            });
            let mut nodes = vec![];
            for join in joins.collect::<Vec<_>>() {
                nodes.push(join.await.unwrap());
            }
            nodes.insert(0, first);
            nodes
        };
        Self::of(&CLUSTER, start).await
    }

    /// A RabbitMQ that `prepare` has given further settings in a file, and a Postgres.
    pub async fn secured(prepare: impl FnOnce(&Path) + Send + 'static) -> Self {
        let start = async || {
            let rabbitmq = tokio::spawn(blocking(move || Server::prepared("rabbitmq", &Place::First, prepare)));
            let postgres = blocking(|| Server::up("postgres", &Place::First)).await;
            vec![rabbitmq.await.unwrap(), postgres]
        };
        Self::of(&SECURED, start).await
    }

    async fn of(servers: &'static Mutex<Vec<Server>>, start: impl AsyncFnOnce() -> Vec<Server>) -> Self {
        let mut guard = servers.lock().await;
        if guard.is_empty() {
            *guard = start().await;
        }
        Self(MutexGuard::map(guard, Vec::as_mut_slice))
    }

    /// All of them.
    pub fn all(&self) -> &[Server] {
        &self.0
    }
}

impl Deref for Servers {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0[0]
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // The next test would have to pay for what this one has left behind.
        self.0.iter().for_each(Server::heal);
    }
}

/// Which server of a cluster.
enum Place {
    Alone,
    /// Never in a container.
    First,
    /// Joins the one whose state is there.
    Beside(PathBuf),
}

impl Server {
    fn up(name: &'static str, place: &Place) -> Self {
        Self::prepared(name, place, |_| ())
    }

    /// One whose folder for further settings `prepare` has filled.
    fn prepared(name: &'static str, place: &Place, prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::Builder::new().prefix("server-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let state = folder.keep();
        let further = state.join(name).join("conf").join("conf.d");
        if name == "rabbitmq" {
            std::fs::create_dir_all(&further).unwrap();
            prepare(&further);
        }
        let (reader, writer) = std::io::pipe().unwrap();
        // In a group of its own, or a Ctrl-C would end it, too. Nobody waits for it: it outlives us.
        drop(
            Command::new("sh")
                .args(["-c", WATCHDOG, "sh", SCRIPT, name])
                .env("LEADPOST_SERVICES_STATE", &state)
                .stdin(reader)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()
                .unwrap(),
        );
        // Nodes in containers would not find each other.
        let private = ("LEADPOST_SERVICES_DOCKER", Path::new("no"));
        let environment = match place {
            Place::Alone => vec![],
            Place::First => vec![private],
            Place::Beside(first) => vec![private, ("LEADPOST_SERVICES_JOIN", first)],
        };
        services(&state, &["up", name], &environment).unwrap();
        let lines = services(&state, &["env", name], &[]).unwrap();
        let value = |name: &str| {
            let line = lines.lines().find_map(|line| line.strip_prefix(&format!("export {name}='")));
            line.unwrap_or_default().trim_end_matches('\'').to_owned()
        };
        let url = value(if name == "rabbitmq" { "AMQP_URL" } else { "DATABASE_URL" });
        assert!(!url.is_empty(), "no URL in: {lines}");
        Self {
            name,
            state,
            url,
            ctl: value("LEADPOST_SERVICES_RABBITMQCTL").into(),
            node: value("LEADPOST_SERVICES_NODE"),
            is_down: AtomicBool::new(false),
            is_frozen: AtomicBool::new(false),
            is_alarmed: AtomicBool::new(false),
            untune: std::sync::Mutex::default(),
            _watchdog: writer,
        }
    }

    /// Where it is, now and after a restart.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What a node of RabbitMQ calls itself.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Stops it as its operator would.
    pub async fn stop(&self) {
        self.treat("stop", &[(&self.is_down, true), (&self.is_frozen, false)]).await;
    }

    /// Ends all of its processes at once.
    pub async fn kill(&self) {
        self.treat("kill", &[(&self.is_down, true), (&self.is_frozen, false)]).await;
    }

    /// Starts it, and waits until it answers.
    pub async fn start(&self) {
        self.treat("start", &[(&self.is_down, false), (&self.is_frozen, false)]).await;
    }

    /// Freezes it: its connections stay, and nothing answers.
    pub async fn pause(&self) {
        self.treat("pause", &[(&self.is_frozen, true)]).await;
    }

    /// Lets it go on after [`Server::pause`].
    pub async fn resume(&self) {
        self.treat("resume", &[(&self.is_frozen, false)]).await;
    }

    /// Raises the memory alarm, which blocks publishers, or clears it.
    pub async fn alarm(&self, on: bool) {
        self.is_alarmed.store(true, Ordering::Release);
        self.ctl(&["set_vm_memory_high_watermark", "absolute", if on { "1" } else { "1GB" }]).await;
        self.is_alarmed.store(on, Ordering::Release);
    }

    /// Changes a setting of RabbitMQ's, until the test is done: channels that are opened from now on have it.
    pub async fn tune(&self, name: &str, value: u64) {
        let before = self.ctl(&["eval", &format!("{{ok, V}} = application:get_env(rabbit, {name}), V.")]).await;
        let set = |value: &str| format!("application:set_env(rabbit, {name}, {value}).");
        self.untune.lock().unwrap().push(set(before.trim()));
        self.ctl(&["eval", &set(&value.to_string())]).await;
    }

    /// Sets back what was tuned, for channels that are opened from now on.
    pub async fn untune(&self) {
        let expressions = std::mem::take(&mut *self.untune.lock().unwrap());
        for expression in &expressions {
            self.ctl(&["eval", expression]).await;
        }
    }

    /// What `rabbitmqctl` prints for this.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let ctl = self.ctl.clone();
        blocking(move || output(Command::new(ctl).arg("-q").args(arguments))).await.unwrap()
    }

    async fn treat(&self, command: &'static str, becomes: &[(&AtomicBool, bool)]) {
        // Noted before as well: a test that fails meanwhile leaves nobody knows what.
        becomes.iter().filter(|(_, to)| *to).for_each(|(flag, to)| flag.store(*to, Ordering::Release));
        let (state, name) = (self.state.clone(), self.name);
        blocking(move || services(&state, &[command, name], &[])).await.unwrap();
        becomes.iter().for_each(|(flag, to)| flag.store(*to, Ordering::Release));
    }

    /// Sees to it that it is up and well; also while a test panics, so it does not.
    fn heal(&self) {
        let take = |flag: &AtomicBool| flag.swap(false, Ordering::AcqRel);
        let mut healed = Ok(String::new());
        if take(&self.is_frozen) {
            healed = healed.and_then(|_| services(&self.state, &["resume", self.name], &[]));
        }
        if take(&self.is_down) {
            healed = healed.and_then(|_| services(&self.state, &["start", self.name], &[]));
        }
        if take(&self.is_alarmed) {
            let mut command = Command::new(&self.ctl);
            command.args(["-q", "set_vm_memory_high_watermark", "absolute", "1GB"]);
            healed = healed.and_then(|_| output(&mut command));
        }
        for expression in std::mem::take(&mut *self.untune.lock().unwrap_or_else(PoisonError::into_inner)) {
            healed = healed.and_then(|_| output(Command::new(&self.ctl).args(["-q", "eval", &expression])));
        }
        if let Err(error) = healed {
            drop(writeln!(std::io::stderr(), "{} is left in a bad state: {error}", self.name));
        }
    }
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services");

fn services(state: &Path, arguments: &[&str], environment: &[(&str, &Path)]) -> Result<String, String> {
    // Several nodes that start at once on a busy machine take their time.
    let variables = [("LEADPOST_SERVICES_STATE", state), ("LEADPOST_SERVICES_WAIT", Path::new("300"))];
    output(Command::new(SCRIPT).args(arguments).envs(variables).envs(environment.iter().copied()))
}

/// Runs this to its end.
fn output(command: &mut Command) -> Result<String, String> {
    let done = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if done.status.success() {
        Ok(text(done.stdout))
    } else {
        Err(format!("{command:?}: {}\n{}", text(done.stdout), text(done.stderr)))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}
