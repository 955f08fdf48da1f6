//! Postgres: what was found, in words.

use super::report::{CONFIG, Check, IDS};
use super::{LIMIT, clock, fix_of_tls};
use crate::config::{Settings, need_postgres_url};
use crate::ledger::{Inspection, Ledger, Refusal, Server, Tables};

const REACH: &str = "postgres.reach";
const LOGIN: &str = "postgres.login";
const VERSION: &str = "postgres.version";
const WRITABLE: &str = "postgres.writable";
const TABLES: &str = "postgres.tables";
const RIGHTS: &str = "postgres.rights";
const REHEARSAL: &str = "postgres.rehearsal";
const DURABILITY: &str = "postgres.durability";
const CONNECTIONS: &str = "postgres.connections";
const CLOCK: &str = "postgres.clock";

/// Behind the log-in.
const INSIDE: [&str; 8] = [VERSION, WRITABLE, TABLES, RIGHTS, REHEARSAL, DURABILITY, CONNECTIONS, CLOCK];

/// What the tables are made for.
const OLDEST: i32 = 150_000;

pub(super) async fn look(settings: &Settings) -> Vec<Check> {
    if need_postgres_url(settings).is_err() {
        return IDS.iter().filter(|id| id.starts_with("postgres.")).map(|id| Check::skipped(id, CONFIG)).collect();
    }
    match Ledger::new(settings, "check") {
        Ok(ledger) => {
            let retention = !settings.retention.is_off();
            checks(settings, ledger.inspect(retention, LIMIT).await)
        }
        Err(error) => {
            let fix = "set DATABASE_URL to postgres://user:password@host:5432/database";
            after(Check::failed(REACH, error.to_string(), fix), &[&[LOGIN], &INSIDE[..]].concat())
        }
    }
}

/// What failed, and what could not be looked at for that.
fn after(failed: Check, rest: &[&'static str]) -> Vec<Check> {
    let because = failed.id;
    std::iter::once(failed).chain(rest.iter().map(|id| Check::skipped(id, because))).collect()
}

fn checks(settings: &Settings, found: Inspection) -> Vec<Check> {
    let (host, database) = place(settings);
    let mut checks = Vec::new();
    match found.connected.unwrap_or_else(silent) {
        Ok(()) => checks.push(Check::ok(REACH, format!("{host} answers"))),
        Err(refusal) => return not_let_in(&host, &database, refusal),
    }
    let server = match found.server.unwrap_or_else(silent) {
        Ok(server) => server,
        Err(refusal) => {
            let fix = "see Postgres' log: it let us in and does not answer";
            let failed = Check { is_unreachable: refusal.is_unreachable, ..Check::failed(LOGIN, refusal.text, fix) };
            checks.extend(after(failed, &INSIDE));
            return checks;
        }
    };
    checks.push(Check::ok(LOGIN, format!("as {}, into the database {database}", server.role)));
    let has_tables = !matches!(found.tables, Some(Ok(Tables::Behind { none: true, .. })));
    checks.extend([
        version(&server),
        writable(&server),
        tables(settings, found.tables.unwrap_or_else(silent)),
        if has_tables {
            rights(&server, found.missing_rights.unwrap_or_else(silent))
        } else {
            Check::skipped(RIGHTS, TABLES)
        },
        durability(&server),
        connections(settings, &server),
        clock(CLOCK, "Postgres' clock", server.ahead_s),
    ]);
    checks.push(rehearsal(&checks, found.writing));
    checks
}

fn silent<T>() -> Result<T, Refusal> {
    Err(Refusal { sqlstate: None, is_unreachable: true, text: format!("no answer within {LIMIT:?}") })
}

/// Host and port, and database.
fn place(settings: &Settings) -> (String, String) {
    let url = url::Url::parse(settings.postgres.url.expose()).ok();
    let host =
        url.as_ref().map(|url| format!("{}:{}", url.host_str().unwrap_or("localhost"), url.port().unwrap_or(5432)));
    let database = url.as_ref().map(|url| url.path().trim_start_matches('/').to_owned());
    (host.unwrap_or_default(), database.unwrap_or_default())
}

fn not_let_in(host: &str, database: &str, refusal: Refusal) -> Vec<Check> {
    let reached = || Check::ok(REACH, format!("{host} answers"));
    let login = |fix: String| {
        let failed = Check::failed(LOGIN, refusal.text.clone(), fix);
        std::iter::once(reached()).chain(after(failed, &INSIDE)).collect()
    };
    match refusal.sqlstate.as_deref() {
        Some("28P01") => login("check user and password in postgres.url (special characters in it are written as %xx)".to_owned()),
        Some(code) if code.starts_with("28") => login(
            "check the user in postgres.url, and whether pg_hba.conf lets it in from this machine, with the sslmode of the URL".to_owned(),
        ),
        Some("3D000") => login(format!("make the database (createdb {database}), or set the right one at the end of postgres.url")),
        Some("53300") => {
            let full = Check::failed(
                CONNECTIONS,
                refusal.text.clone(),
                "all connections are taken: raise max_connections, lower postgres.connections, or stop who has too many (pg_stat_activity)",
            );
            let rest: Vec<&str> = INSIDE.into_iter().filter(|id| *id != CONNECTIONS).collect();
            let skipped = [LOGIN].into_iter().chain(rest).map(|id| Check::skipped(id, CONNECTIONS));
            [reached(), full].into_iter().chain(skipped).collect()
        }
        Some(_) if !refusal.is_unreachable => login("see Postgres' log for why it did not let us in".to_owned()),
        _ => {
            let fix = fix_of_tls(&refusal.text, "postgres.url", "sslrootcert=… in the URL").unwrap_or_else(|| {
                "start Postgres, or check host, port and sslmode of postgres.url and what stands between: name resolution, firewalls, \
                 networks of containers"
                    .to_owned()
            });
            let failed = Check::failed(REACH, format!("{host}: {}", refusal.text), fix);
            after(Check { is_unreachable: refusal.is_unreachable, ..failed }, &[&[LOGIN], &INSIDE[..]].concat())
        }
    }
}

fn version(server: &Server) -> Check {
    let found = format!("Postgres {}", server.version);
    if server.version_num >= OLDEST {
        Check::ok(VERSION, found)
    } else {
        Check::failed(VERSION, found, "upgrade it to 15 or later")
    }
}

fn writable(server: &Server) -> Check {
    if server.is_standby {
        return Check::failed(
            WRITABLE,
            "this server is a standby, which follows another one and cannot be written",
            "let postgres.url lead to the primary; with several hosts, by a name or a proxy that follows it",
        );
    }
    if server.is_read_only {
        return Check::failed(
            WRITABLE,
            "sessions begin read-only (default_transaction_read_only = on)",
            "find out who set that and why (a failover? a full disk?): select source, sourcefile from pg_settings where name = \
             'default_transaction_read_only'; then alter role, alter database or alter system … reset default_transaction_read_only",
        );
    }
    Check::ok(WRITABLE, "a primary, and sessions may write")
}

fn tables(settings: &Settings, tables: Result<Tables, Refusal>) -> Check {
    match tables {
        Ok(Tables::UpToDate(migrations)) => Check::ok(TABLES, format!("up to date, {migrations} migrations")),
        Ok(Tables::Behind { missing, none, may_create }) => {
            let found =
                if none { "there are no tables yet".to_owned() } else { format!("{missing} migrations are missing") };
            match (settings.postgres.migrate, may_create) {
                (true, true) => {
                    Check::failed(TABLES, found, "run leadpost migrate; a worker does it, too, when it starts")
                }
                (false, true) => Check::failed(TABLES, found, "run leadpost migrate"),
                (_, false) => Check::failed(
                    TABLES,
                    format!("{found}, and this role may not make tables"),
                    "run leadpost migrate as a role that may, with its own DATABASE_URL",
                ),
            }
        }
        Ok(Tables::Ahead) => Check::failed(
            TABLES,
            "a newer leadpost has migrated them",
            "upgrade this leadpost to the version of the others",
        ),
        Ok(Tables::Different(versions)) => {
            let versions: Vec<String> = versions.iter().map(i64::to_string).collect();
            Check::failed(
                TABLES,
                format!(
                    "migrations that were applied are other ones than those of this version: {}",
                    versions.join(", ")
                ),
                "this database was made by another build: restore it from a backup of this version's, or give leadpost a database of its own",
            )
        }
        Err(refusal) => Check {
            is_unreachable: refusal.is_unreachable,
            ..Check::failed(
                TABLES,
                refusal.text,
                "this role has to read the table _sqlx_migrations: grant select on _sqlx_migrations to it, as the tables' owner",
            )
        },
    }
}

fn rights(server: &Server, missing: Result<Vec<String>, Refusal>) -> Check {
    match missing {
        Ok(missing) if missing.is_empty() => Check::ok(RIGHTS, format!("{} has all that a worker needs", server.role)),
        Ok(missing) => {
            let grants =
                missing.iter().map(|right| format!("grant {right} to \"{}\";", server.role)).collect::<Vec<_>>();
            let found = format!("{} lacks {}", server.role, missing.join(", "));
            Check::failed(RIGHTS, found, format!("as the owner of the tables: {}", grants.join(" ")))
        }
        Err(refusal) => Check {
            is_unreachable: refusal.is_unreachable,
            ..Check::failed(RIGHTS, refusal.text, "see Postgres' log for why this could not be asked")
        },
    }
}

fn durability(server: &Server) -> Check {
    let weak = [
        (
            !server.fsync,
            "fsync = off: a crash of its machine may take back leads that were acknowledged, and break the ledger",
            "alter system set fsync = on;",
        ),
        (
            !server.full_page_writes,
            "full_page_writes = off: a crash of its machine may break pages of the ledger",
            "alter system set full_page_writes = on;",
        ),
        (
            server.synchronous_commit == "off",
            "synchronous_commit = off in our own sessions, though leadpost asks for on",
            "something between, such as a pooler, changes synchronous_commit: let it leave that alone;",
        ),
    ];
    let weak = weak.into_iter().filter(|(is_weak, ..)| *is_weak);
    let (found, fixes): (Vec<&str>, Vec<&str>) = weak.map(|(_, found, fix)| (found, fix)).unzip();
    if found.is_empty() {
        let commit = &server.synchronous_commit;
        return Check::ok(DURABILITY, format!("fsync and full_page_writes are on, synchronous_commit is {commit}"));
    }
    Check::warning(DURABILITY, found.join("\n"), format!("{} select pg_reload_conf()", fixes.join(" ")))
}

fn connections(settings: &Settings, server: &Server) -> Check {
    let (wanted, most) = (settings.postgres.connections, i64::from(server.max_connections));
    let found = format!("{} of {most} are taken; a worker takes up to {wanted}", server.connections);
    if i64::from(wanted) > most {
        return Check::failed(
            CONNECTIONS,
            found,
            "raise max_connections of Postgres, or lower postgres.connections (6 at least)",
        );
    }
    if let Some(limit) = server.role_limit.filter(|limit| i64::from(*limit) < i64::from(wanted)) {
        return Check::warning(
            CONNECTIONS,
            format!("{found}, but this role or database is limited to {limit}"),
            format!("alter role \"{}\" connection limit -1, or one for all workers and commands", server.role),
        );
    }
    if server.connections + i64::from(wanted) > most {
        return Check::warning(
            CONNECTIONS,
            format!("{found}, which do not fit in any more"),
            "raise max_connections, or stop who has too many (pg_stat_activity)",
        );
    }
    Check::ok(CONNECTIONS, found)
}

fn rehearsal(others: &[Check], writing: Option<Result<(), Refusal>>) -> Check {
    match writing {
        Some(Ok(())) => Check::ok(REHEARSAL, "a lead was accepted, settled and taken back"),
        Some(Err(refusal)) => Check {
            is_unreachable: refusal.is_unreachable,
            ..Check::failed(
                REHEARSAL,
                refusal.text,
                "something refuses what a worker writes: a trigger, a constraint, row-level security or a lock on the tables; the text says \
                 which",
            )
        },
        None => {
            let first = others
                .iter()
                .find(|check| [WRITABLE, TABLES, RIGHTS].contains(&check.id) && check.status == super::Verdict::Failed);
            match first {
                Some(failed) => Check::skipped(REHEARSAL, failed.id),
                None => Check::left_out(REHEARSAL, "there was no time left for it"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;

    fn server() -> Server {
        Server {
            version_num: 150_018,
            version: "15.18".to_owned(),
            role: "leads".to_owned(),
            is_standby: false,
            is_read_only: false,
            fsync: true,
            full_page_writes: true,
            synchronous_commit: "on".to_owned(),
            max_connections: 97,
            connections: 3,
            role_limit: None,
            ahead_s: 0.1,
        }
    }

    /// What is neither right nor left out, with the server as it is changed, and its fix.
    fn troubles(change: impl FnOnce(&mut Server)) -> Vec<(&'static str, Verdict, String)> {
        let mut server = server();
        change(&mut server);
        let found = Inspection {
            connected: Some(Ok(())),
            server: Some(Ok(server)),
            tables: Some(Ok(Tables::UpToDate(4))),
            missing_rights: Some(Ok(Vec::new())),
            writing: Some(Ok(())),
        };
        troubles_of(found)
    }

    fn troubles_of(found: Inspection) -> Vec<(&'static str, Verdict, String)> {
        let checks = checks(&Settings::default(), found);
        let ids = IDS.iter().filter(|id| id.starts_with("postgres.")).count();
        assert_eq!(checks.len(), ids, "each is there once: {checks:?}");
        let is_trouble = |check: &Check| [Verdict::Failed, Verdict::Warning].contains(&check.status);
        checks
            .into_iter()
            .filter(is_trouble)
            .map(|check| (check.id, check.status, check.fix.unwrap_or_default()))
            .collect()
    }

    #[test]
    fn what_a_server_lacks_is_named_by_itself() {
        type Change = fn(&mut Server);
        let cases: [(Change, &str, Verdict, &str); 7] = [
            (|s| s.version_num = 140_009, VERSION, Verdict::Failed, "15 or later"),
            (|s| s.is_standby = true, WRITABLE, Verdict::Failed, "lead to the primary"),
            (|s| s.fsync = false, DURABILITY, Verdict::Warning, "fsync = on"),
            (|s| s.synchronous_commit = "off".to_owned(), DURABILITY, Verdict::Warning, "synchronous_commit"),
            (|s| s.max_connections = 5, CONNECTIONS, Verdict::Failed, "raise max_connections"),
            (|s| s.connections = 95, CONNECTIONS, Verdict::Warning, "pg_stat_activity"),
            (|s| s.ahead_s = -400.0, CLOCK, Verdict::Warning, "NTP"),
        ];
        assert_eq!(troubles(|_| {}), Vec::new());
        for (change, id, verdict, fix) in cases {
            let troubles = troubles(change);
            let [(found, status, said)] = &troubles[..] else { panic!("{id}: {troubles:?}") };
            assert!((*found, *status) == (id, verdict) && said.contains(fix), "{id}: {troubles:?}");
        }
    }

    #[test]
    fn whom_postgres_does_not_let_in_is_told_why_by_its_sqlstate() {
        let refused = |sqlstate: Option<&str>, text: &str| {
            let refusal = Refusal {
                sqlstate: sqlstate.map(str::to_owned),
                is_unreachable: sqlstate.is_none() && !text.contains("certificate"),
                text: text.to_owned(),
            };
            let troubles = troubles_of(Inspection { connected: Some(Err(refusal)), ..Inspection::default() });
            let [(id, Verdict::Failed, fix)] = &troubles[..] else { panic!("{troubles:?}") };
            (*id, fix.clone())
        };
        for (sqlstate, text, id, fix) in [
            (Some("28P01"), "password authentication failed", LOGIN, "check user and password"),
            (Some("28000"), "no pg_hba.conf entry", LOGIN, "pg_hba.conf"),
            (Some("3D000"), "no such database", LOGIN, "createdb"),
            (Some("53300"), "too many clients", CONNECTIONS, "max_connections"),
            (Some("57P03"), "starting up", LOGIN, "see Postgres' log"),
            (None, "Connection refused", REACH, "start Postgres"),
            (None, "invalid peer certificate", REACH, "sslrootcert"),
        ] {
            let (found, said) = refused(sqlstate, text);
            assert!(found == id && said.contains(fix), "{text}: {found} {said}");
        }
        assert_eq!(troubles_of(Inspection::default()).first().map(|trouble| trouble.0), Some(REACH), "nothing in time");
    }
}
