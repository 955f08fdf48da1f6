//! What a check has come to, and how that is said.

use serde::Serialize;

use super::super::{Output, print, print_json, say};

/// What was looked at, by its id. The ids are an interface: scripts read them.
pub(super) const IDS: [&str; 25] = [
    CONFIG,
    "rabbitmq.reach",
    "rabbitmq.login",
    "rabbitmq.vhost",
    "rabbitmq.queue",
    "rabbitmq.queue_type",
    "rabbitmq.delivery_limit",
    "rabbitmq.dead_letters",
    "rabbitmq.consume",
    "rabbitmq.publish",
    "rabbitmq.alarms",
    "postgres.reach",
    "postgres.login",
    "postgres.version",
    "postgres.writable",
    "postgres.tables",
    "postgres.rights",
    "postgres.rehearsal",
    "postgres.durability",
    "postgres.connections",
    "postgres.clock",
    "token",
    "token.clock",
    "api.reach",
    "api.clock",
];

pub(super) const CONFIG: &str = "config";

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and could be better.
    Warning,
    /// It does not work.
    Failed,
    /// It was not looked at.
    Skipped,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed => "failed",
            Verdict::Skipped => "skipped",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Check {
    pub(super) id: &'static str,
    pub(super) status: Verdict,
    /// What was found; or why it was not looked at.
    pub(super) found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fix: Option<String>,
    /// Which other check has to pass first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) because: Option<&'static str>,
    /// Whether it failed because a neighbour is not there.
    #[serde(skip)]
    pub(super) is_unreachable: bool,
}

impl Check {
    fn new(id: &'static str, status: Verdict, found: impl Into<String>) -> Self {
        debug_assert!(IDS.contains(&id), "{id}");
        Self { id, status, found: found.into(), fix: None, because: None, is_unreachable: false }
    }

    pub(super) fn ok(id: &'static str, found: impl Into<String>) -> Self {
        Self::new(id, Verdict::Ok, found)
    }

    pub(super) fn warning(id: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..Self::new(id, Verdict::Warning, found) }
    }

    pub(super) fn failed(id: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..Self::new(id, Verdict::Failed, found) }
    }

    /// A neighbour is not there.
    pub(super) fn unreachable(id: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { is_unreachable: true, ..Self::failed(id, found, fix) }
    }

    /// It needs something that another check found missing.
    pub(super) fn skipped(id: &'static str, because: &'static str) -> Self {
        let found = format!("not looked at: {because} has to pass first");
        Self { because: Some(because), ..Self::new(id, Verdict::Skipped, found) }
    }

    /// There is nothing to look at, or no way to.
    pub(super) fn left_out(id: &'static str, why: impl Into<String>) -> Self {
        Self::new(id, Verdict::Skipped, why)
    }
}

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Whether nothing failed.
    pub(super) ok: bool,
    pub(super) checks: Vec<Check>,
}

impl Report {
    /// In the order of the [`IDS`].
    pub(super) fn of(mut checks: Vec<Check>) -> Self {
        checks.sort_by_key(|check| IDS.iter().position(|id| *id == check.id));
        Self { ok: checks.iter().all(|check| check.status != Verdict::Failed), checks }
    }

    /// Prints it, and says on stderr what it comes to.
    pub(super) fn print(&self, output: Output) -> anyhow::Result<()> {
        match output {
            Output::Json => print_json(self)?,
            Output::Text => {
                for check in &self.checks {
                    print(&format!("{:<8} {:<24} {}", check.status.as_str(), check.id, indented(&check.found)))?;
                    if let Some(fix) = &check.fix {
                        print(&format!("{:<8} {:<24} fix: {}", "", "", indented(fix)))?;
                    }
                }
            }
        }
        say(&self.sum());
        Ok(())
    }

    fn sum(&self) -> String {
        let count = |verdict: Verdict| self.checks.iter().filter(|check| check.status == verdict).count();
        let counts = [Verdict::Ok, Verdict::Warning, Verdict::Failed, Verdict::Skipped]
            .map(|verdict| format!("{} {}", count(verdict), verdict.as_str()));
        format!("check: {}", counts.join(", "))
    }
}

/// Further lines stand below the first.
fn indented(text: &str) -> String {
    text.replace('\n', &format!("\n{:<8} {:<24} ", "", ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_in_the_order_of_the_ids_and_counts_what_it_holds() {
        let report = Report::of(vec![
            Check::skipped("postgres.login", "postgres.reach"),
            Check::unreachable("postgres.reach", "nobody", "start it"),
            Check::ok(CONFIG, "sound"),
            Check::warning("rabbitmq.queue_type", "classic", "declare another"),
        ]);
        let ids: Vec<_> = report.checks.iter().map(|check| check.id).collect();
        assert_eq!(ids, [CONFIG, "rabbitmq.queue_type", "postgres.reach", "postgres.login"]);
        assert!(!report.ok);
        assert_eq!(report.sum(), "check: 1 ok, 1 warning, 1 failed, 1 skipped");
        let json = serde_json::to_value(&report).expect("JSON");
        let skipped = json.pointer("/checks/3").expect("the last").clone();
        assert_eq!((&skipped["status"], &skipped["because"]), (&"skipped".into(), &"postgres.reach".into()));
        assert!(skipped.get("fix").is_none());
    }
}
