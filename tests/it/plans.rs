//! What a question to the ledger has to read does not grow with the ledger: rows that are looked at are counted, not seconds.

use std::sync::Arc;
use std::time::Duration;

use leadpost::lead::{Key, LeadId};
use leadpost::ledger::{Doubts, Filter, LeadState, Ledger, Next, OnLock, Order, Place};
use uuid::Uuid;

use crate::support::World;
use crate::support::scene::{accept, arrival, leased, settlement};

const DUE: i64 = 15_000;
const LATER: i64 = 15_000;
const DELIVERED: i64 = 30_000;

/// A few that are read besides: the entry at which a range ends, one that is dead, and so on.
const A_FEW: i64 = 10;

/// A ledger of many leads of which nothing was ever counted: Postgres believes that it is small.
async fn many() -> World {
    let world = World::new().await;
    let insert = |columns: &str, values: &str, n: i64| {
        format!(
            "insert into leads (id, destination, queue, body, state, {columns}) \
             select gen_random_uuid(), '{}', 'q', '{{}}', {values} from generate_series(1, {n}) as n",
            world.settings.destination.name()
        )
    };
    let pending = "next_attempt_at, attempts";
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "alter table leads set (autovacuum_enabled = off); {}; {}; {}",
        insert(pending, "'pending', now() - interval '1 hour' + n * interval '1 millisecond', 0", DUE),
        insert(pending, "'pending', now() + interval '1 hour' + n * interval '1 millisecond', 0", LATER),
        insert("finished_at, attempts", "'delivered', now(), 0", DELIVERED),
    )))
    .execute(&world.database.pool)
    .await
    .unwrap();
    world
}

/// Changes leads, and has that counted at once: else it could be a second later, among what a question reads.
async fn changed(world: &World, sql: &str) {
    let sql = format!("{sql}; select pg_stat_force_next_flush()");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&world.database.pool).await.unwrap();
}

/// What a row says; that it was looked for is counted at once, too.
async fn told<T>(world: &World, sql: &'static str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    let mut connection = world.database.pool.acquire().await.unwrap();
    let said = sqlx::query_scalar(sql).fetch_one(&mut *connection).await.unwrap();
    sqlx::query("select pg_stat_force_next_flush()").execute(&mut *connection).await.unwrap();
    said
}

/// What one question read: entries of the index of pending leads, leads by their ids, and rows of whole tables.
#[derive(Debug)]
struct Read {
    pending: i64,
    by_id: i64,
    whole: i64,
}

/// Asks with connections of its own: what they have read is known when they have ended.
async fn read_by(world: &World, ask: impl AsyncFnOnce(&Ledger)) -> Read {
    let counts = async || {
        let pending = "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'leads_pending'";
        let by_id = "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'leads_pkey'";
        let whole =
            "select sum(seq_tup_read)::bigint from pg_stat_user_tables where relname in ('leads', 'other_attempts')";
        (world.number(pending).await, world.number(by_id).await, world.number(whole).await)
    };
    let gone = "select count(*) from pg_stat_activity where application_name = 'leadpost asking' and datname = current_database()";
    let before = counts().await;
    let ledger = Ledger::new(&world.settings, "asking").unwrap();
    ask(&ledger).await;
    ledger.close().await;
    world.until("its connections have ended", async || world.number(gone).await == 0).await;
    let after = counts().await;
    Read { pending: after.0 - before.0, by_id: after.1 - before.1, whole: after.2 - before.2 }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_reads_what_it_claims_and_a_search_for_expired_leases_reads_those() {
    const CLAIMED: i64 = 20;
    let world = many().await;
    let read = read_by(&world, async |ledger| {
        // It has run out by the time its connection has ended.
        let lease = (Uuid::new_v4(), Duration::from_millis(1));
        let claimed = ledger.claim(CLAIMED as usize, lease, Vec::new(), Doubts::Included).await.unwrap();
        assert_eq!(claimed.len() as i64, CLAIMED);
    })
    .await;
    assert!(read.whole == 0 && (CLAIMED..=CLAIMED + A_FEW).contains(&read.pending), "{read:?}");

    let read = read_by(&world, async |ledger| {
        let again = |_: &_| Next::Again { after: Duration::from_secs(3600), code: None, reason: None };
        assert_eq!(ledger.expire(again).await.unwrap().len() as i64, CLAIMED);
    })
    .await;
    assert!(read.whole == 0 && (CLAIMED..=CLAIMED + A_FEW).contains(&read.pending), "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn to_accept_and_to_settle_reads_the_leads_of_the_batch_by_their_ids() {
    const BATCH: i64 = 50;
    let world = many().await;
    let arrivals: Vec<_> = (0..BATCH).map(|_| arrival(LeadId(Uuid::new_v4()), &World::lead("ann"))).collect();
    let read = read_by(&world, async |ledger| {
        let leased = leased(&accept(ledger, &arrivals, Uuid::new_v4()).await);
        let settlements: Vec<_> = leased.iter().map(|leased| settlement(leased, LeadState::Delivered)).collect();
        let settled = ledger.settle(settlements.into(), false, OnLock::Wait).await.unwrap();
        assert_eq!((leased.len() as i64, settled.late.len()), (BATCH, 0));
    })
    .await;
    assert!(read.whole == 0 && read.pending <= A_FEW, "{read:?}");
    assert!((BATCH..=2 * BATCH + A_FEW).contains(&read.by_id), "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn to_look_at_the_status_or_at_a_lead_reads_a_part_of_the_ledger_that_does_not_grow() {
    // What is counted of the due ones, of those due later, and of the reasons.
    const LOOKED_AT: i64 = 5_000 + 5_000 + 1_000;
    let world = many().await;
    // While Postgres knows nothing of the tables, and when it does.
    for sql in ["select 1", "analyze leads"] {
        world.execute(sql).await;
        let read = read_by(&world, async |ledger| {
            let status = ledger.status().await.unwrap();
            let waiting = status.waiting;
            assert_eq!((waiting.due, waiting.later, waiting.at_least), (5_000, 5_000, true), "more are not counted");
        })
        .await;
        assert!(read.whole == 0 && read.pending <= LOOKED_AT + A_FEW, "{read:?}");

        let read = read_by(&world, async |ledger| {
            let levels = ledger.levels().await.unwrap();
            let (pending, delivered) = (levels.states[0], levels.states[1]);
            assert_eq!((levels.due, pending, delivered), (10_000, DUE + LATER, DELIVERED));
            assert!(levels.oldest_due > Duration::from_secs(3_500), "{levels:?}");
        })
        .await;
        assert!(read.whole == 0 && read.pending <= 10_000 + A_FEW, "what is measured all the time: {read:?}");
    }

    changed(&world, "update leads set next_attempt_at = now() - interval '1 hour' where state = 'pending' and next_attempt_at > now()").await;
    read_by(&world, async |ledger| {
        let waiting = ledger.status().await.unwrap().waiting;
        assert_eq!(
            (waiting.due, waiting.later, waiting.at_least),
            (DUE + LATER, 0, false),
            "the tallies know the rest"
        );
    })
    .await;

    let id = LeadId(told(&world, "select id from leads where state = 'delivered' limit 1").await);
    let read = read_by(&world, async |ledger| assert!(ledger.show(id).await.unwrap().is_some())).await;
    // Once more for its first post, as one of its attempts.
    assert!(read.whole == 0 && read.by_id == 2 && read.pending == 0, "{read:?}");
}

/// How many entries of any index of leads, and rows of the whole table, these questions read.
async fn entries(world: &World, ask: impl AsyncFnOnce(&Ledger)) -> i64 {
    let read = "select (select sum(idx_tup_read) from pg_stat_user_indexes where relname = 'leads')::bigint \
             + (select seq_tup_read from pg_stat_user_tables where relname = 'leads')";
    let before = world.number(read).await;
    read_by(world, ask).await;
    world.number(read).await - before
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_reads_what_it_shows_and_a_person_is_found_among_many_leads() {
    const PAGE: usize = 50;
    // Each of the nine branches may give a whole page, and ends with an entry too many.
    const BRANCHES: i64 = 9;
    let world = many().await;
    // Later than they were, so that what is dead does not lie in the way.
    changed(&world,
            "update leads l set finished_at = now() + interval '1 hour' - n * interval '1 second', email_key = n, assistant_key = n % 100 \
             from (select id, row_number() over () as n from leads where state = 'delivered') as t where t.id = l.id",
        )
        .await;
    let list = async |ledger: &Ledger, filter: Filter, after: Option<Place>| {
        ledger.list(Arc::new(filter), Order::NewestFirst, after, PAGE).await.unwrap()
    };
    let a_page = BRANCHES * (PAGE as i64 + A_FEW);
    let read = entries(&world, async |ledger| {
        assert_eq!(list(ledger, Filter::default(), None).await.leads.len(), PAGE);
    })
    .await;
    assert!((PAGE as i64..=a_page).contains(&read), "the first page read {read}");

    let delivered = Filter::of_states(&[LeadState::Delivered]);
    let late = Place {
        at: time::OffsetDateTime::now_utc() + Duration::from_secs(3600) - Duration::from_secs(DELIVERED as u64 / 2),
        id: LeadId(Uuid::nil()),
    };
    let read = entries(&world, async |ledger| {
        assert_eq!(list(ledger, delivered.clone(), Some(late)).await.leads.len(), PAGE);
    })
    .await;
    assert!((PAGE as i64..=2 * PAGE as i64 + A_FEW).contains(&read), "a page in the middle read {read}");

    let read = entries(&world, async |ledger| {
        let of_one = Filter { emails: vec![Key(7)], ..delivered.clone() };
        assert_eq!(list(ledger, of_one, None).await.leads.len(), 1);
    })
    .await;
    assert!((1..=A_FEW).contains(&read), "one person's leads read {read}");

    let read = entries(&world, async |ledger| {
        let of_assistant = Filter { assistants: vec![Key(7)], ..delivered.clone() };
        assert_eq!(list(ledger, of_assistant, None).await.leads.len(), PAGE);
    })
    .await;
    assert!((PAGE as i64..=PAGE as i64 + A_FEW).contains(&read), "an assistant's leads read {read}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_and_an_assistant_are_found_among_leads_of_all_states_and_many_that_wait() {
    const PAGE: usize = 50;
    const LEASED: i64 = 20;
    let world = many().await;
    changed(&world,
            "update leads l set email_key = n, assistant_key = n % 100, finished_at = finished_at - n * interval '1 second', \
                 next_attempt_at = next_attempt_at + n * interval '1 millisecond' \
             from (select id, row_number() over (partition by state) as n from leads) as t where t.id = l.id",
        )
        .await;
    // A few are being posted, also one of each.
    changed(
        &world,
        "update leads set lease = id, leased_by = 'w', next_attempt_at = now() + interval '2 minutes' \
             where state = 'pending' and email_key < 20 or email_key = 107 and state = 'pending'",
    )
    .await;
    // Postgres has counted while none waited, and knows of no more.
    changed(&world, "create table waiting as select * from leads where state = 'pending'").await;
    changed(&world, "delete from leads where state = 'pending'").await;
    world.execute("vacuum analyze leads").await;
    changed(&world, "insert into leads select * from waiting").await;
    let count = async |filter: &Filter| {
        let mut counted = 0;
        read_by(&world, async |ledger| counted = ledger.count(Arc::new(filter.clone())).await.unwrap()).await;
        counted
    };
    let list = async |ledger: &Ledger, filter: &Filter| {
        ledger.list(Arc::new(filter.clone()), Order::NewestFirst, None, PAGE).await.unwrap().leads
    };
    for key in [7, 500] {
        let of_one = Filter { emails: vec![Key(key)], ..Filter::default() };
        let read = entries(&world, async |ledger| {
            assert_eq!(list(ledger, &of_one).await.len(), 2, "one that waits or is posted, one that was delivered");
        })
        .await;
        assert!((2..=LEASED + A_FEW).contains(&read), "the leads of person {key} read {read}");
    }
    let due =
        "select email_key from leads where state = 'pending' and lease is null and next_attempt_at < now() limit 1";
    let due_of_one = Filter { emails: vec![Key(told(&world, due).await)], due: true, ..Filter::default() };
    let read = entries(&world, async |ledger| assert_eq!(list(ledger, &due_of_one).await.len(), 1)).await;
    assert!((1..=LEASED + A_FEW).contains(&read), "what is due of a person read {read}");
    let due_of_assistant = Filter { assistants: vec![Key(7)], due: true, ..Filter::default() };
    let due = "select count(*) from leads where state = 'pending' and lease is null and next_attempt_at < now() and assistant_key = 7";
    let due: i64 = told(&world, due).await;
    let read = entries(&world, async |ledger| {
        assert_eq!(ledger.count(Arc::new(due_of_assistant.clone())).await.unwrap() as i64, due);
    })
    .await;
    assert!((due..=due + LEASED + A_FEW).contains(&read), "what is due of an assistant read {read} for {due}");
    let of_assistant = Filter { assistants: vec![Key(7)], ..Filter::default() };
    let read = entries(&world, async |ledger| assert_eq!(list(ledger, &of_assistant).await.len(), PAGE)).await;
    let most = LEASED + 2 * PAGE as i64 + 2 * A_FEW;
    assert!((PAGE as i64..=most).contains(&read), "a page of an assistant's leads read {read}");
    assert_eq!(count(&of_assistant).await as i64, (DUE + LATER + DELIVERED) / 100);
    let waiting = Filter { assistants: vec![Key(7)], ..Filter::of_states(&[LeadState::Pending]) };
    let read = entries(&world, async |ledger| {
        let shown = list(ledger, &waiting).await;
        assert!(shown.is_sorted_by_key(|listed| std::cmp::Reverse(listed.place.at)) && shown.len() == PAGE);
    })
    .await;
    assert!((PAGE as i64..=most).contains(&read), "a page of those that wait read {read}");
    assert_eq!(count(&waiting).await as i64, (DUE + LATER) / 100);
}

/// A session that still sees the ledger as it is now, as `leadpost verify` and `pg_dump` do: what is changed from now on leaves dead rows behind that
/// nobody may clear away.
async fn snapshot(world: &World) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut held = world.database.pool.begin().await.unwrap();
    sqlx::query("set transaction isolation level repeatable read").execute(&mut *held).await.unwrap();
    sqlx::query("select count(*) from leads").execute(&mut *held).await.unwrap();
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn while_somebody_keeps_an_old_snapshot_what_was_settled_since_is_not_read_again_at_every_look() {
    const LOOKS: usize = 60;
    let world = many().await;
    changed(
        &world,
        "update leads set lease = id, leased_by = 'w' where state = 'pending' and next_attempt_at <= now()",
    )
    .await;
    changed(&world, "delete from leads where state = 'pending' and lease is null").await;
    world.execute("vacuum leads").await;
    let held = snapshot(&world).await;
    changed(&world, "update leads set state = 'delivered', finished_at = now(), next_attempt_at = null, lease = null, leased_by = null where lease is not null")
        .await;
    let expire = async |ledger: &Ledger| ledger.expire(|_: &_| unreachable!("none ran out")).await.unwrap();
    let began = std::time::Instant::now();
    let read = read_by(&world, async |ledger| {
        for _ in 0..LOOKS {
            assert!(expire(ledger).await.is_empty());
        }
    })
    .await;
    // A look from the beginning comes a tenth of a second after the last one at the soonest.
    let whole = i64::try_from(began.elapsed().as_millis()).unwrap() / 100 + 2;
    assert!((DUE..=whole * DUE).contains(&read.pending), "{LOOKS} searches for leases that ran out: {read:?}");

    let read = read_by(&world, async |ledger| {
        let waiting = ledger.status().await.unwrap().waiting;
        assert_eq!((waiting.leased, waiting.due, waiting.later), (0, 0, 0));
    })
    .await;
    assert!(read.pending <= A_FEW, "the status: {read:?}");
    held.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_somebody_keeps_an_old_snapshot_a_backlog_is_claimed_without_reading_again_what_was_claimed() {
    const CLAIMS: i64 = 60;
    const EACH: i64 = 100;
    let world = many().await;
    let held = snapshot(&world).await;
    let claim = async |ledger: &Ledger, limit: i64| {
        let lease = (Uuid::new_v4(), Duration::from_secs(3600));
        ledger.claim(limit as usize, lease, Vec::new(), Doubts::Included).await.unwrap()
    };
    let read = read_by(&world, async |ledger| {
        for _ in 0..CLAIMS {
            assert_eq!(claim(ledger, EACH).await.len() as i64, EACH);
        }
    })
    .await;
    // From the beginning each time, it would be half the square of that: 180,000.
    let claimed = CLAIMS * EACH;
    assert!((claimed..=8 * claimed).contains(&read.pending), "{read:?}");

    // What comes to be due before all that was looked through is found when it is looked from the beginning again.
    let ledger = world.handle("late");
    claim(&ledger, EACH).await;
    let late = "update leads set next_attempt_at = now() - interval '1 day' \
                where id = (select id from leads where next_attempt_at > now() and lease is null limit 1) returning id";
    let late: Uuid = sqlx::query_scalar(late).fetch_one(&world.database.pool).await.unwrap();
    world
        .until("what was written late is claimed", async || {
            claim(&ledger, 1).await.iter().any(|claimed| claimed.leased.id.0 == late)
        })
        .await;
    held.rollback().await.unwrap();
}
