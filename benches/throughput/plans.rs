//! The plans that Postgres makes for leadpost's own statements, with the parameters that they really have: auto_explain writes them into the
//! server's log, from where they are read.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::Value;

use crate::scene::execute;
use crate::servers::Servers;

/// Those that grow with every lead.
const LARGE: [&str; 2] = ["leads", "other_attempts"];

/// While this is in force, sessions of a database explain what they do.
pub struct Explained<'a> {
    servers: &'a Servers,
    database: &'a str,
    log: PathBuf,
    from: u64,
}

/// How a statement reads the large tables.
#[derive(Debug, Default)]
pub struct Plan {
    /// The indexes by which it finds rows.
    pub indexes: Vec<String>,
    /// The tables and indexes that it reads from one end to the other.
    pub whole: Vec<String>,
}

impl<'a> Explained<'a> {
    /// Begins; `None`, with a word why, where the server's log cannot be read or it has no auto_explain.
    pub async fn begin(servers: &'a Servers, database: &'a str) -> anyhow::Result<Option<Self>> {
        let Some(log) = servers.postgres_log() else {
            eprintln!("throughput: plans are not looked at, as the server's log is not here");
            return Ok(None);
        };
        let mut connection = servers.connect(Some(database)).await?;
        if let Err(error) = execute(&mut connection, "load 'auto_explain'").await {
            eprintln!("throughput: plans are not looked at: {error:#}");
            return Ok(None);
        }
        execute(
            &mut connection,
            &format!(
                "alter database {database} set session_preload_libraries = 'auto_explain'; \
                 alter database {database} set auto_explain.log_min_duration = 0; \
                 alter database {database} set auto_explain.log_format = 'json'"
            ),
        )
        .await?;
        let from = std::fs::metadata(&log)?.len();
        Ok(Some(Self { servers, database, log, from }))
    }

    /// Ends, and gives the plans of all statements that read or write the large tables.
    pub async fn end(self) -> anyhow::Result<BTreeMap<String, Plan>> {
        let mut connection = self.servers.connect(Some(self.database)).await?;
        execute(&mut connection, &format!("alter database {} reset all", self.database)).await?;
        let mut log = std::fs::File::open(&self.log)?;
        log.seek(SeekFrom::Start(self.from))?;
        let mut text = Vec::new();
        log.read_to_end(&mut text)?;
        plans(&String::from_utf8_lossy(&text))
    }
}

/// By the words of the statements.
fn plans(log: &str) -> anyhow::Result<BTreeMap<String, Plan>> {
    let mut plans: BTreeMap<String, Plan> = BTreeMap::new();
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.ends_with(" plan:") {
            continue;
        }
        let mut json = String::new();
        while let Some(line) = lines.next_if(|line| line.starts_with('\t')) {
            json.push_str(line);
        }
        let explained: Value = serde_json::from_str(&json).with_context(|| format!("no plan: {json}"))?;
        let mut plan = Plan::default();
        look(&explained["Plan"], &mut plan);
        if !plan.indexes.is_empty() || !plan.whole.is_empty() {
            let words = explained["Query Text"].as_str().unwrap_or_default();
            let known = plans.entry(words.split_whitespace().collect::<Vec<_>>().join(" ")).or_default();
            for (all, new) in [(&mut known.indexes, plan.indexes), (&mut known.whole, plan.whole)] {
                all.extend(new);
                all.sort();
                all.dedup();
            }
        }
    }
    Ok(plans)
}

fn look(node: &Value, plan: &mut Plan) {
    let name = |key: &str| node[key].as_str().unwrap_or_default();
    let relation = name("Relation Name");
    if name("Node Type") == "Seq Scan" && LARGE.contains(&relation) {
        plan.whole.push(relation.to_owned());
    }
    let index = name("Index Name");
    if ["leads_", "attempts_"].iter().any(|table| index.starts_with(table)) {
        // Where reading a table is made dear, as leadpost's sessions have it, a bad plan reads an index without asking it for anything.
        let all = if node["Index Cond"].is_null() { &mut plan.whole } else { &mut plan.indexes };
        all.push(index.to_owned());
    }
    node["Plans"].as_array().into_iter().flatten().for_each(|inner| look(inner, plan));
}
