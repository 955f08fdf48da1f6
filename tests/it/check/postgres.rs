//! Postgres: who gets in, tables, rights, and what may be lost.

use uuid::Uuid;

use leadpost::config::Secret;
use leadpost::ledger::LeadState;
use leadpost::worker::Stopped;

use super::{Report, changed, nowhere, recommended};
use crate::support::World;
use crate::support::servers::Servers;

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_does_not_let_us_in_is_told_apart_by_why() {
    let world = recommended().await;
    let url = world.database.url.clone();
    let nobody = format!("nobody_{}", Uuid::new_v4().simple());
    let user = changed(&url, |url| {
        url.set_username(&nobody).unwrap();
        url.set_password(Some("hunter2")).unwrap();
    });
    let report = Report::of(&world, &[("DATABASE_URL", &user)]).await;
    report.only("postgres.login", "failed", &nobody, "in postgres.url");
    report.skipped("postgres.tables", "postgres.login");
    assert_eq!((report.code, report.status("postgres.reach")), (Some(1), "ok"));
    assert!(!report.said.contains("hunter2"), "{}", report.said);

    let database = changed(&url, |url| url.set_path("no_such_database"));
    let report = Report::of(&world, &[("DATABASE_URL", &database)]).await;
    report.only("postgres.login", "failed", "no_such_database", "createdb no_such_database");

    let away = format!("postgres://x@{}/x", nowhere().await);
    let report = Report::of(&world, &[("DATABASE_URL", &away)]).await;
    report.only("postgres.reach", "failed", "refused", "start Postgres");
    assert_eq!(report.code, Some(69), "{}", report.said);
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_behind_ahead_or_others_are_told_apart() {
    let world = recommended().await;
    let newest = "(select max(version) from _sqlx_migrations)";
    world.execute(&format!("update _sqlx_migrations set checksum = 'x' where version = {newest}")).await;
    let report = Report::of(&world, &[]).await;
    report.only("postgres.tables", "failed", "other ones than those of this version", "a database of its own");
    world.execute(&format!("delete from _sqlx_migrations where version = {newest}")).await;
    let report = Report::of(&world, &[]).await;
    report.only("postgres.tables", "failed", "1 migrations are missing", "run leadpost migrate");
    report.skipped("postgres.rehearsal", "postgres.tables");
    assert_eq!(report.code, Some(1));
    world
        .execute("insert into _sqlx_migrations (version, description, success, checksum, execution_time) values (9999, 'x', true, 'x', 0)")
        .await;
    let report = Report::of(&world, &[]).await;
    report.only("postgres.tables", "failed", "a newer leadpost", "upgrade this leadpost");
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_missing_is_named_with_the_grant_that_gives_it() {
    let world = recommended().await;
    let role = format!("leadpost_check_{}", Uuid::new_v4().simple());
    for sql in [
        format!("create role {role} login password 'few' connection limit 3"),
        format!("grant select, insert, update on all tables in schema public to {role}"),
        format!("grant delete on aside, workers to {role}"),
        format!("revoke insert on workers from {role}"),
        format!("revoke update on destinations from {role}"),
    ] {
        world.execute(&sql).await;
    }
    let url = changed(&world.database.url, |url| {
        url.set_username(&role).unwrap();
        url.set_password(Some("few")).unwrap();
    });
    let as_role = [("DATABASE_URL", url.as_str())];
    let report = Report::of(&world, &as_role).await;
    assert_eq!(report.troubles(), ["postgres.rights", "postgres.connections"], "{}", report.said);
    let grant = format!("grant insert on workers to \"{role}\"; grant update on destinations to \"{role}\";");
    report.says("postgres.rights", "failed", "lacks insert on workers, update on destinations", &grant);
    report.says("postgres.connections", "warning", "limited to 3", "connection limit");
    report.skipped("postgres.rehearsal", "postgres.rights");
    assert_eq!(report.code, Some(1));

    // The fix works as it is printed.
    sqlx::raw_sql(sqlx::AssertSqlSafe(grant)).execute(&world.database.pool).await.unwrap();
    let report = Report::of(&world, &as_role).await;
    assert_eq!(report.troubles(), ["postgres.connections"], "{}", report.said);
    assert_eq!((report.code, report.status("postgres.rehearsal")), (Some(0), "ok"));

    // With retention a worker deletes.
    let report = Report::with(&world, &["--set", "retention.delivered_days=30"], &as_role).await;
    report.says(
        "postgres.rights",
        "failed",
        "lacks delete on leads, delete on other_attempts",
        "grant delete on leads",
    );
    world.execute(&format!("drop owned by {role}")).await;
    world.execute(&format!("drop role {role}")).await;
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_with_no_more_rights_than_are_asked_for_carries_redacts_and_removes_leads() {
    let mut world = World::new().await;
    let role = format!("leadpost_check_{}", Uuid::new_v4().simple());
    world.execute(&format!("create role {role} login password 'few'")).await;
    world.execute(&format!("grant select on _sqlx_migrations to {role}")).await;
    let url = changed(&world.database.url, |url| {
        url.set_username(&role).unwrap();
        url.set_password(Some("few")).unwrap();
    });
    let keeps = ["--set", "retention.delivered_days=30", "--set", "retention.answers_days=30"];
    let report = Report::with(&world, &keeps, &[("DATABASE_URL", &url)]).await;
    let (_, grants) = report.get("postgres.rights")["fix"].as_str().unwrap().split_once(": ").unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(grants.to_owned())).execute(&world.database.pool).await.unwrap();
    let report = Report::with(&world, &keeps, &[("DATABASE_URL", &url)]).await;
    assert_eq!(report.status("postgres.rights"), "ok", "{}", report.said);

    let refused = world.put("refused", LeadState::Rejected).await;
    let delivered = world.put("delivered", LeadState::Delivered).await;
    world.execute("update other_attempts set answer = 'x', started_at = now() - interval '40 days'").await;
    let aged = "update leads set accepted_at = accepted_at - interval '40 days', finished_at = finished_at - interval '40 days', \
         posted_at = posted_at - interval '40 days' where state = 'delivered'";
    world.execute(aged).await;
    world.settings.postgres.url = Secret::new(url);
    world.settings.retention.delivered_days = 30;
    world.settings.retention.answers_days = 30;
    let running = world.start().await;
    let id = world.publish("ann").await;
    world.until_all_delivered(&[id]).await;
    let answers = async || world.number("select count(answer) from other_attempts").await;
    world.until("the old answer is redacted", async || answers().await == 0).await;
    world.until("the old lead is removed", async || world.state(delivered).await.is_none()).await;
    assert_eq!(world.state(refused).await, Some(LeadState::Rejected));
    assert_eq!(world.posts(id), 1);
    assert_eq!(running.stop().await, Stopped::Cleanly);
    world.check_books().await;
    world.execute(&format!("drop owned by {role}")).await;
    world.execute(&format!("drop role {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_written_and_one_that_refuses_a_row_are_found() {
    let world = recommended().await;
    let name = world.database.url.rsplit('/').next().unwrap().to_owned();
    world.execute(&format!("alter database {name} set default_transaction_read_only = on")).await;
    let report = Report::of(&world, &[]).await;
    report.only("postgres.writable", "failed", "read-only", "default_transaction_read_only");
    report.skipped("postgres.rehearsal", "postgres.writable");
    assert_eq!(report.code, Some(1));
    let own = sqlx::PgPool::connect(&world.database.url).await.unwrap();
    for sql in [
        "set default_transaction_read_only = off".to_owned(),
        format!("alter database {name} set default_transaction_read_only = off"),
        "create function no() returns trigger language plpgsql as $$ begin raise 'not on my watch'; end $$".to_owned(),
        "create trigger no before insert on leads for each row execute function no()".to_owned(),
    ] {
        let mut session = own.acquire().await.unwrap();
        sqlx::raw_sql("set default_transaction_read_only = off").execute(&mut *session).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *session).await.unwrap();
    }
    own.close().await;
    let report = Report::of(&world, &[]).await;
    report.only("postgres.rehearsal", "failed", "not on my watch", "a trigger");
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_tables_is_told_from_one_that_is_behind() {
    let world = recommended().await;
    sqlx::raw_sql("drop schema public cascade; create schema public").execute(&world.database.pool).await.unwrap();
    let report = Report::of(&world, &[]).await;
    report.only("postgres.tables", "failed", "there are no tables yet", "run leadpost migrate");
    report.skipped("postgres.rights", "postgres.tables");
    let tables = world.number("select count(*) from pg_tables where schemaname = 'public'").await;
    assert_eq!(tables, 0, "the check has made some");
    let done = world.leadpost(&["migrate"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let report = Report::of(&world, &[]).await;
    assert_eq!(report.troubles(), Vec::<&str>::new(), "{}", report.said);
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_may_forget_what_was_committed_is_a_warning() {
    let server = Servers::postgres().await;
    let world = World::on(&crate::support::amqp_url(), server.url()).await;
    for sql in ["alter system set fsync = off", "alter system set full_page_writes = off", "select pg_reload_conf()"] {
        world.execute(sql).await;
    }
    world
        .until("it is off", async || {
            world.number("select count(*) from pg_settings where name = 'fsync' and setting = 'off'").await == 1
        })
        .await;
    let report = Report::of(&world, &[]).await;
    for sql in ["alter system reset fsync", "alter system reset full_page_writes", "select pg_reload_conf()"] {
        world.execute(sql).await;
    }
    report.says("postgres.durability", "warning", "fsync = off", "alter system set fsync = on");
    report.says("postgres.durability", "warning", "full_page_writes = off", "");
}
