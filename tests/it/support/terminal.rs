//! A terminal for a command that wants one, by util-linux' or macOS' script(1).

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::DEADLINE;

/// A command line on a terminal of its own; ended with the test at the latest.
pub struct Terminal {
    child: Child,
    drawn: Arc<Mutex<String>>,
    reading: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Has a shell run this line, with this environment only.
    pub fn start(line: &str, environment: Vec<(String, String)>) -> Self {
        let mut script = Command::new("script");
        if cfg!(target_os = "macos") {
            script.args(["-q", "/dev/null", "sh", "-c", line]);
        } else {
            script.args(["-qec", line, "/dev/null"]);
        }
        let (mut reader, writer) = std::io::pipe().unwrap();
        let child = script
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("SHELL", "/bin/sh")
            .envs(environment)
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(OwnedFd::from(writer))
            .spawn()
            .unwrap();
        // It has the writing end still, and the reader would wait for that.
        drop(script);
        let drawn = Arc::new(Mutex::new(String::new()));
        let into = Arc::clone(&drawn);
        let reading = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut chunk) {
                into.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..n]));
            }
        });
        Self { child, drawn, reading: Some(reading) }
    }

    /// All that has come so far.
    pub fn said(&self) -> String {
        self.drawn.lock().unwrap().clone()
    }

    /// Waits until it has ended, and returns all that has come.
    pub async fn ended(&mut self) -> String {
        let child = &mut self.child;
        let ending = async {
            while child.try_wait().unwrap().is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let ended = tokio::time::timeout(DEADLINE, ending).await;
        ended.unwrap_or_else(|_| panic!("it does not end:\n{}", self.said()));
        if let Some(reading) = self.reading.take() {
            reading.join().unwrap();
        }
        self.said()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Ended already, mostly.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
