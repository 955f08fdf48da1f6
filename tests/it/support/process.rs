//! The real binary, as people and supervisors run it.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::{DEADLINE, World};

/// How a command ended.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    /// What it printed for scripts.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// What a process has used of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Processor time so far.
    pub cpu: Duration,
    /// Threads that it has now.
    pub threads: usize,
    /// Files and sockets that it has open now.
    pub descriptors: usize,
}

/// A process of the binary; ended with the test at the latest.
pub struct Process {
    child: Child,
    folder: TempDir,
}

impl World {
    /// The environment in which the binary finds this world, and nothing else.
    pub fn environment(&self) -> Vec<(String, String)> {
        let (amqp, flow) = (&self.settings.amqp, &self.settings.flow);
        let pairs = [
            ("AMQP_URL", amqp.url.expose().to_owned()),
            ("DATABASE_URL", self.settings.postgres.url.expose().to_owned()),
            ("LEADPOST__AMQP__QUEUE", amqp.queue.clone()),
            ("LEADPOST__FLOW__POLL_MS", flow.poll_ms.to_string()),
            ("LEADPOST__FLOW__PROBE_INITIAL_MS", flow.probe_initial_ms.to_string()),
            ("LEADPOST__FLOW__PROBE_MAX_MS", flow.probe_max_ms.to_string()),
            ("LEADPOST__ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
        ];
        let own = pairs.into_iter().map(|(name, value)| (name.to_owned(), value));
        self.destination.iter().cloned().chain(own).collect()
    }

    /// Runs a command of the binary to its end.
    pub async fn leadpost(&self, arguments: &[&str]) -> Done {
        self.leadpost_with(arguments, &[], b"").await
    }

    /// Runs a command of the binary to its end, with further environment, and with this on stdin.
    pub async fn leadpost_with(&self, arguments: &[&str], environment: &[(&str, &str)], stdin: &[u8]) -> Done {
        let mut environment: Vec<_> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        environment.splice(0..0, self.environment());
        run(arguments, environment, stdin).await
    }

    /// Starts `leadpost run`, and waits until it says that it does.
    pub async fn worker(&self, arguments: &[&str]) -> Process {
        self.worker_with(arguments, &[]).await
    }

    /// The same, with further environment.
    pub async fn worker_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Process {
        let further = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let environment = self.environment().into_iter().chain(further).collect();
        let process = Process::start(&[&["run"], arguments].concat(), environment);
        process.until_said("starting").await;
        process
    }
}

/// Runs the binary to its end, in an empty folder and with this environment only.
pub async fn run(arguments: &[&str], environment: Vec<(String, String)>, stdin: &[u8]) -> Done {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let stdin = stdin.to_vec();
    let running = tokio::task::spawn_blocking(move || {
        let folder = tempfile::tempdir().unwrap();
        let mut child = command(&arguments, environment, folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        // A program that does not read its stdin closes it.
        let writer = std::thread::spawn(move || drop(input.write_all(&stdin)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        Done {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    });
    tokio::time::timeout(DEADLINE, running).await.expect("a command must end").unwrap()
}

fn command(arguments: &[String], environment: Vec<(String, String)>, folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leadpost"));
    command.args(arguments).env_clear().envs(environment).current_dir(folder);
    command
}

impl Process {
    /// Starts the binary, in an empty folder and with this environment only.
    pub fn start(arguments: &[&str], environment: Vec<(String, String)>) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let folder = tempfile::tempdir().unwrap();
        let output = |name: &str| Stdio::from(File::create(folder.path().join(name)).unwrap());
        let child = command(&arguments, environment, folder.path())
            .stdin(Stdio::null())
            .stdout(output("stdout"))
            .stderr(output("stderr"))
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// All that it has printed so far, on stdout and on stderr.
    pub fn said(&self) -> String {
        ["stdout", "stderr"].map(|name| std::fs::read_to_string(self.path(name)).unwrap()).concat()
    }

    /// Waits until it has printed this, and returns the first line with it.
    pub async fn until_said(&self, text: &str) -> String {
        let saying = async {
            loop {
                let said = self.said();
                // A line is whole when its end is there.
                if let Some(line) = said.split_inclusive('\n').find(|line| line.contains(text) && line.ends_with('\n'))
                {
                    return line.to_owned();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let said = tokio::time::timeout(DEADLINE, saying).await;
        said.unwrap_or_else(|_| panic!("waited in vain for {text:?} in:\n{}", self.said()))
    }

    /// Asks its admin port, and returns the status, the content type and the body.
    pub async fn ask(&self, path: &str) -> (u16, String, String) {
        get(&self.url(path).await).await
    }

    /// The URL of a path on its admin port.
    pub async fn url(&self, path: &str) -> String {
        let line = self.until_said("admin port").await;
        let address: String = line
            .split("127.0.0.1:")
            .nth(1)
            .map(|rest| rest.chars().take_while(char::is_ascii_digit).collect())
            .unwrap_or_default();
        format!("http://127.0.0.1:{address}{path}")
    }

    /// The most memory that it has held at a time so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
    }

    /// What it uses of the machine.
    pub fn usage(&self) -> Usage {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let count = |folder: &str| std::fs::read_dir(proc.join(folder)).unwrap().count();
        let stat = std::fs::read_to_string(proc.join("stat")).unwrap();
        // After the name, which is in parentheses: utime and stime are the 12th and the 13th, in hundredths of a second.
        let numbers = stat.rsplit(')').next().unwrap().split_whitespace();
        let ticks: u64 = numbers.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Usage { cpu: Duration::from_millis(10 * ticks), threads: count("task"), descriptors: count("fd") }
    }

    /// Sends it a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let kill = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(kill.success(), "the process is gone:\n{}", self.said());
    }

    /// Whether it is there still.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it has ended, and returns its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let child = &mut self.child;
        let ending = async {
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    return status.code();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let ended = tokio::time::timeout(DEADLINE, ending).await;
        ended.unwrap_or_else(|_| panic!("it does not end:\n{}", self.said()))
    }

    /// Asks it to stop, waits until it has, and checks that it went cleanly.
    pub async fn stop(mut self) -> String {
        self.signal("TERM");
        let code = self.ended().await;
        let said = self.said();
        assert_eq!(code, Some(0), "{said}");
        said
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already, mostly.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Status, content type and body of what this URL gives.
pub async fn get(url: &str) -> (u16, String, String) {
    get_as(url, "*/*").await
}

/// The same, for one who accepts this.
pub async fn get_as(url: &str, accept: &str) -> (u16, String, String) {
    let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().unwrap();
    let response = client.get(url).header("accept", accept).send().await.unwrap();
    let kind = response.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
    (response.status().as_u16(), kind.unwrap_or_default(), response.text().await.unwrap())
}
