//! A ledger that a former version has made, and workers of it that still run: what is there is kept, whoever migrates.

use std::path::Path;

use leadpost::ledger::LeadState;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::support::World;

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_by_somebody_else_leaves_all_to_the_owner_of_the_tables_and_readable_to_those_who_could_read_it() {
    let world = World::new().await;
    let pool = &world.database.pool;
    let [owner, reader] = ["owner", "reader"].map(|who| format!("leadpost_{who}_{}", Uuid::new_v4().simple()));
    // The tables before attempts became a view.
    sqlx::raw_sql("drop schema public cascade; create schema public").execute(pool).await.unwrap();
    let migrations = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations"));
    let mut former = sqlx::migrate::Migrator::new(migrations).await.unwrap();
    former.migrations.to_mut().retain(|migration| migration.version < 10);
    former.run(pool).await.unwrap();
    for sql in [
        "insert into leads (id, destination, queue, body, state, finished_at, attempts) \
             values ('00000000-0000-0000-0000-000000000001', 'd', 'q', '{}', 'delivered', now(), 1)",
        "insert into attempts (lead_id, number, lease, worker, started_at, duration_ms, outcome, charged, http_status) \
             select id, 1, id, 'w', now(), 5, 'delivered', true, 201 from leads",
        &format!("create role {owner} login"),
        &format!("create role {reader}"),
        &format!("grant usage, create on schema public to {owner}; grant usage on schema public to {reader}"),
        &format!("grant select on attempts to {reader}"),
        &format!(
            "do $$ declare its record; begin \
                 for its in select tablename from pg_tables where schemaname = 'public' loop \
                     execute format('alter table %I owner to {owner}', its.tablename); \
                 end loop; end $$"
        ),
    ] {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
    }

    assert_eq!(world.leadpost(&["migrate"]).await.code, Some(0));
    let owners: Vec<String> = sqlx::query_scalar(
        "select relowner::regrole::text from pg_class where relname in ('attempts', 'other_attempts') union all \
         select proowner::regrole::text from pg_proc where proname = 'attempts_inserted'",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert_eq!(owners, [&*owner, &*owner, &*owner]);
    let mut connection = pool.acquire().await.unwrap();
    for who in [&reader, &owner] {
        sqlx::query(AssertSqlSafe(format!("set role {who}"))).execute(&mut *connection).await.unwrap();
        let seen: i64 = sqlx::query_scalar("select count(*) from attempts").fetch_one(&mut *connection).await.unwrap();
        assert_eq!(seen, 1, "{who}");
    }
    sqlx::raw_sql("reset role").execute(&mut *connection).await.unwrap();
    drop(connection);
    for who in [owner, reader] {
        world.execute(&format!("drop owned by {who} cascade")).await;
        world.execute(&format!("drop role {who}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_of_a_former_version_adds_to_the_attempts_of_a_lead_is_kept() {
    let world = World::new().await;
    let id = world.put("ann", LeadState::Pending).await;
    let before = world.show(id).await.attempts;
    // With the columns of the first version, and of the second one, which had queries.
    for (more, value) in [("", ""), (", request", ", 'post'")] {
        world
            .execute(&format!(
                "with settled as (update leads set attempts = attempts + 1, charged = charged + 1, code = 'http_503' where id = '{id}' \
                     returning id, attempts) \
                 insert into attempts (lead_id, number, lease, worker, started_at, duration_ms, outcome, charged, http_status, code{more}) \
                 select id, attempts, id, 'former', now(), 5, 'retry', true, 503, 'http_503'{value} from settled"
            ))
            .await;
    }
    let lead = world.show(id).await;
    let added: Vec<_> =
        lead.history[before as usize..].iter().map(|attempt| (&*attempt.worker, attempt.number)).collect();
    assert_eq!(added, [("former", before + 1), ("former", before + 2)]);
    assert_eq!(world.story(id).await.last().map(String::as_str), Some("retry 503"));
    world.check_books().await;
}
