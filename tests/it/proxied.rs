//! Each neighbour behind each fault of the proxy, while leads flow: none is lost, none is doubled without its doubt on record, and
//! the worker says what is wrong and comes back by itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use leadpost::lead::LeadId;
use leadpost::worker::{HealthReport, Stopped};
use uuid::Uuid;

use crate::support::proxy::Direction::{Down, Up};
use crate::support::proxy::{Direction, Fault, Proxy, Reach};
use crate::support::{Running, World};

/// Between two leads that are published.
const PACE: Duration = Duration::from_millis(60);

/// How long a fault lasts after it was noticed.
const LASTS: Duration = Duration::from_millis(300);

const THROUGH: &str = "select count(*) from leads where state in ('delivered', 'duplicate')";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Neighbour {
    RabbitMq,
    Postgres,
    Api,
    Token,
}

impl Neighbour {
    /// Within which time after the fault every lead is through, and the worker is ready.
    fn bound(self) -> Duration {
        Duration::from_secs(match self {
            // A handshake that is given up after 1 s, a pause of 2 s at most after that few failures, another handshake.
            Self::RabbitMq => 10,
            // A statement that is given up after 1.5 s, a pause of 7.5 s at most, and 5 s until a look for lost leases.
            Self::Postgres => 15,
            // A request that is given up after 0.5 s, a probe every 0.4 s, retries after 0.6 s at most; the rest is for a busy machine.
            Self::Api | Self::Token => 12,
        })
    }

    /// How many connections a second it may be tried with while it is away, and so many at once besides.
    fn tries(self) -> (u64, u64) {
        match self {
            // Pauses from 0.25 s on.
            Self::RabbitMq => (4, 4),
            // Three loops with pauses from 50 ms on, and a pool that tries for as long as it is waited for.
            Self::Postgres => (30, 10),
            // A probe every 50 to 400 ms; what was under way comes in first.
            Self::Api | Self::Token => (20, 20),
        }
    }

    async fn proxy(self, world: &mut World, seed: u64) -> Proxy {
        match self {
            Self::RabbitMq => world.proxy_rabbitmq(seed).await,
            Self::Postgres => world.proxy_postgres(seed).await,
            Self::Api => world.proxy_api(seed).await,
            Self::Token => world.proxy_token(seed).await,
        }
    }

    /// What the worker says if this one does not work, and it blames no other for it.
    fn complaint(self, report: &HealthReport) -> Option<String> {
        let own = match self {
            Self::RabbitMq => &report.rabbitmq,
            Self::Postgres => &report.postgres,
            Self::Api => &report.api,
            Self::Token => &report.token,
        };
        // Without a token posts are paused, which is the API's line.
        let others = [
            (Self::RabbitMq, report.rabbitmq.ok),
            (Self::Postgres, report.postgres.ok),
            (Self::Token, report.token.ok),
        ];
        let alone = others.iter().all(|(other, ok)| *ok || *other == self);
        (!own.ok && !report.ready && alone).then(|| own.detail.clone())
    }

    /// How many workers share the faults of this one: those that are slow to notice go side by side.
    fn lanes(self) -> usize {
        match self {
            Self::RabbitMq => 10,
            Self::Postgres => 6,
            Self::Api | Self::Token => 5,
        }
    }
}

/// A fault, and how it is done.
struct Case {
    name: String,
    strike: Box<dyn Fn(&Proxy) + Send + Sync>,
    /// Whether anything goes wrong for the worker, rather than slowly.
    breaks: bool,
}

impl Case {
    fn of(direction: Direction, fault: Fault, breaks: bool) -> Self {
        let name = format!("{direction:?} {fault:?}");
        Self { name, strike: Box::new(move |proxy| proxy.set(direction, fault.clone())), breaks }
    }

    fn all_of(neighbour: Neighbour, direction: Direction) -> Vec<Self> {
        let (by, jitter) = (Duration::from_millis(20), Duration::from_millis(40));
        // Anywhere from the handshake to the middle of a batch; or from the head of a request or an answer to its body.
        let within = match neighbour {
            Neighbour::RabbitMq | Neighbour::Postgres => 0..5_000,
            Neighbour::Api | Neighbour::Token => 0..400,
        };
        vec![
            Self::of(direction, Fault::Delay { by, jitter }, false),
            Self::of(direction, Fault::Bandwidth(30_000), false),
            Self::of(direction, Fault::CutAfter(100), true),
            Self::of(direction, Fault::CutWithin(within), true),
            Self::of(direction, Fault::HalfClose, true),
            Self::of(direction, Fault::Reset, true),
            Self::of(direction, Fault::BlackHole, true),
            Self::of(direction, Fault::Stall, true),
        ]
    }

    fn at_the_door() -> Vec<Self> {
        let case =
            |name: &str, strike: fn(&Proxy)| Self { name: name.to_owned(), strike: Box::new(strike), breaks: true };
        vec![
            case("refused", |proxy| {
                proxy.refuse();
                proxy.cut();
            }),
            case("silent", |proxy| {
                proxy.silence();
                proxy.cut();
            }),
            case("silent both ways", |proxy| {
                proxy.set(Up, Fault::BlackHole);
                proxy.set(Down, Fault::BlackHole);
            }),
        ]
    }
}

/// Gives up soon, and tries again soon.
fn hurry(world: &mut World, neighbour: Neighbour) {
    let settings = &mut world.settings;
    settings.amqp.timeout_ms = 1_000;
    settings.amqp.heartbeat_s = 2;
    if neighbour == Neighbour::Postgres {
        settings.postgres.connect_timeout_ms = 500;
        settings.postgres.statement_timeout_ms = 500;
        settings.postgres.lock_timeout_ms = 300;
    }
    settings.destination.auth.timeout_ms = 500;
    settings.destination.request.timeout_ms = 500;
    settings.destination.request.connect_timeout_ms = 300;
    settings.retry.initial_ms = 100;
    settings.retry.max_ms = 500;
    settings.retry.max_attempts = 1_000;
    settings.flow.open_after = 2;
    // Many workers share the server.
    settings.postgres.connections = 6;
}

/// Every lead has ended well, and none was taken more often by the API than its attempts have doubts, and once.
pub async fn account_for(world: &World, ids: &[LeadId]) {
    let uuids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let sql = "select id, state, (select count(*) from attempts a where a.lead_id = l.id and a.outcome = 'uncertain') \
               from leads l where id = any($1)";
    let rows: Vec<(Uuid, String, i64)> =
        sqlx::query_as(sql).bind(&uuids).fetch_all(&world.database.pool).await.unwrap();
    assert_eq!(rows.len(), ids.len(), "leads are missing from the ledger");
    for (id, state, doubts) in rows {
        assert!(["delivered", "duplicate"].contains(&&*state), "lead {id} is {state}");
        let taken = world.sandbox.journal().posts_for(id).iter().filter(|post| post.effect.processed()).count();
        assert!(taken >= 1, "lead {id} is {state}, and the API never had it");
        assert!(taken as i64 <= 1 + doubts, "lead {id} was taken {taken} times, with {doubts} doubts on record");
    }
}

/// Waits until all of these have ended well.
async fn until_through(world: &World, ids: &[LeadId]) {
    let uuids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    world
        .until("all leads are through", async || {
            let sql = "select count(*) from leads where id = any($1) and state in ('delivered', 'duplicate')";
            let through: i64 = sqlx::query_scalar(sql).bind(&uuids).fetch_one(&world.database.pool).await.unwrap();
            usize::try_from(through).unwrap() == uuids.len()
        })
        .await;
}

/// Takes a worker through a fault.
async fn go_through(world: &World, proxy: &Proxy, neighbour: Neighbour, case: &Case) {
    let what = format!("{neighbour:?}: {}", case.name);
    let running = world.start().await;
    let mut ids = vec![world.publish("before").await];
    until_through(world, &ids).await;
    let (before, through_before) = (proxy.notes(), u64::try_from(world.number(THROUGH).await).unwrap());
    (case.strike)(proxy);
    if neighbour == Neighbour::Token {
        // Else nobody would ask for one.
        world.sandbox.revoke_all();
    }
    let (since, over) = (Instant::now(), AtomicBool::new(false));
    let publishing = async {
        while !over.load(Ordering::SeqCst) {
            ids.push(world.publish(&format!("p{}", Uuid::new_v4().simple())).await);
            tokio::time::sleep(PACE).await;
        }
    };
    let ((), healed) = tokio::join!(publishing, async {
        let healed = suffer(world, proxy, neighbour, case, &running, &what).await;
        let (lasted, tries) = (since.elapsed(), proxy.notes().connections - before.connections);
        // What gets through in spite of the fault is no try in vain.
        let through = u64::try_from(world.number(THROUGH).await).unwrap() - through_before;
        let (a_second, at_once) = neighbour.tries();
        let most = at_once + through + (lasted.as_secs_f64() * a_second as f64) as u64;
        assert!(tries <= most, "{what}: {tries} tries in {lasted:?}, {through} leads through");
        over.store(true, Ordering::SeqCst);
        healed
    });
    let (after, bound) = (proxy.notes(), neighbour.bound());
    assert!(after.struck + after.cut > before.struck + before.cut, "{what} did not strike: {after:?}");
    until_through(world, &ids).await;
    world.until(&format!("{what}: the worker is ready"), async || running.health.report().ready).await;
    let took = healed.elapsed();
    assert!(took < bound, "{what}: it took {took:?} to recover");
    assert_eq!(running.stop().await, Stopped::Cleanly, "{what}");
    account_for(world, &ids).await;
}

/// From when the fault strikes to when it is lifted, and the time of that.
async fn suffer(
    world: &World,
    proxy: &Proxy,
    neighbour: Neighbour,
    case: &Case,
    running: &Running,
    what: &str,
) -> Instant {
    if case.breaks {
        let mut says = None;
        world
            .until(&format!("{what}: it is noticed"), async || {
                says = neighbour.complaint(&running.health.report());
                says.is_some()
            })
            .await;
        let says = says.unwrap_or_default();
        assert!(!says.is_empty() && running.health.is_live(), "{what}: {says:?}");
    } else {
        let id = world.publish("slowly").await;
        until_through(world, &[id]).await;
    }
    tokio::time::sleep(LASTS).await;
    proxy.heal();
    Instant::now()
}

/// Takes workers through these faults, one after the other.
async fn lane(neighbour: Neighbour, seed: u64, cases: Vec<Case>) {
    let mut world = World::new().await;
    hurry(&mut world, neighbour);
    let proxy = neighbour.proxy(&mut world, seed).await;
    for case in &cases {
        go_through(&world, &proxy, neighbour, case).await;
    }
    let audit = world.check_all().await;
    assert!(audit.holds(), "{neighbour:?}: {audit:#?}");
    if neighbour != Neighbour::Api {
        world.check_books().await;
    }
}

/// All faults, side by side where they need not wait for each other.
async fn every_fault(neighbour: Neighbour) {
    let mut lanes: Vec<Vec<Case>> = (0..neighbour.lanes()).map(|_| Vec::new()).collect();
    let cases = [Case::at_the_door(), Case::all_of(neighbour, Up), Case::all_of(neighbour, Down)];
    for (at, case) in cases.into_iter().flatten().enumerate() {
        lanes[at % neighbour.lanes()].push(case);
    }
    join_all(lanes.into_iter().zip(1..).map(|(cases, seed)| lane(neighbour, seed, cases))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_die_without_a_word_are_replaced_and_nobody_has_to_mend_them() {
    let neighbours = [Neighbour::RabbitMq, Neighbour::Postgres, Neighbour::Api, Neighbour::Token];
    join_all(neighbours.map(async |neighbour| {
        let mut world = World::new().await;
        hurry(&mut world, neighbour);
        let proxy = neighbour.proxy(&mut world, 5).await;
        let running = world.start().await;
        let mut ids = world.publish_many("before", 3).await;
        until_through(&world, &ids).await;
        for direction in [Up, Down] {
            proxy.set_on(Reach::Open, direction, Fault::BlackHole);
        }
        if neighbour == Neighbour::Token {
            world.sandbox.revoke_all();
        }
        let since = Instant::now();
        ids.extend(world.publish_many("after", 20).await);
        until_through(&world, &ids).await;
        world.until("the worker is ready", async || running.health.report().ready).await;
        // The time to notice is part of it: twice the heartbeat.
        let bound = neighbour.bound() + 2 * Duration::from_secs(2);
        assert!(since.elapsed() < bound, "{neighbour:?}: {:?}", since.elapsed());
        assert!(proxy.notes().struck > 0, "{neighbour:?}: {:?}", proxy.notes());
        assert_eq!(running.stop().await, Stopped::Cleanly, "{neighbour:?}");
        account_for(&world, &ids).await;
        assert_eq!(world.broker.depth().await, 0, "messages are left in the queue");
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_between_the_worker_and_rabbitmq_loses_or_doubles_a_lead() {
    every_fault(Neighbour::RabbitMq).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_between_the_worker_and_postgres_loses_or_doubles_a_lead() {
    every_fault(Neighbour::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_between_the_worker_and_the_api_loses_a_lead_or_doubles_it_without_a_doubt() {
    every_fault(Neighbour::Api).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_between_the_worker_and_the_token_endpoint_loses_or_doubles_a_lead() {
    every_fault(Neighbour::Token).await;
}
