//! Each preset end to end: the real binary, configured by nothing but its environment, against its API as the sandbox plays it.
//!
//! A scenario is a function of a preset; the modules at the end name those that each preset goes through, so that a failure says
//! which preset it was, and in what.

mod answers;
mod arrival;
mod credentials;
mod keys;
mod pace;
mod tap;
mod tokens;

use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;

use crate::support::{Process, World};

/// What the scenarios have to know of a preset.
pub struct Preset {
    name: &'static str,
    /// What a lead of [`Preset::lead`] has besides name and email.
    also: &'static str,
    /// How the API answers who is not logged in.
    refusal: u16,
    /// How the API answers a lead that it takes.
    success: u16,
    /// Whether a session lives on while it is used.
    slides: bool,
}

const SEVEN_TARGETS: Preset =
    Preset { name: "7targets", also: r#","assistantId":61"#, refusal: 401, success: 201, slides: false };
const SEVEN_TARGETS_2024: Preset =
    Preset { name: "7targets-2024", also: r#","assistantEmail":"bot@example.com""#, ..SEVEN_TARGETS };
const SQUADRUN: Preset = Preset { name: "squadrun", also: r#","phone":"+15550100""#, refusal: 403, ..SEVEN_TARGETS };
const SQUADIQ: Preset = Preset { name: "squadiq", ..SQUADRUN };
const KAISA: Preset = Preset { name: "kaisa", also: "", success: 200, ..SEVEN_TARGETS };
const PAYA: Preset = Preset { name: "paya", also: "", ..SEVEN_TARGETS };
const PAYA_SESSION: Preset = Preset { name: "paya-session", slides: true, ..PAYA };

impl Preset {
    /// A world for this preset, without a limit on its pace, which has tests of its own, and with probes that come quickly.
    async fn world(&self) -> World {
        let mut world = World::of_preset(self.name).await;
        set(&mut world, "FLOW__RATE_PER_S", "0");
        world.settings.flow.probe_max_ms = 100;
        world
    }

    /// A lead of this name that the preset finds valid.
    fn lead(&self, name: &str) -> String {
        format!(r#"{{"name":"{name}","email":"{name}@example.com"{}}}"#, self.also)
    }

    /// Publishes so many leads with names that begin like this.
    async fn publish_many(&self, world: &World, name: &str, n: usize) -> Vec<LeadId> {
        let mut ids = Vec::with_capacity(n);
        for at in 0..n {
            ids.push(world.publish_body(&self.lead(&format!("{name}{at}"))).await);
        }
        ids
    }

    fn delivered(&self) -> String {
        format!("delivered {}", self.success)
    }
}

/// Sets this key in the environment of this world's processes.
fn set(world: &mut World, key: &str, value: &str) {
    world.destination.push((format!("LEADPOST__{key}"), value.to_owned()));
}

/// How many attempts had this outcome.
async fn attempts(world: &World, outcome: &str) -> i64 {
    let sql = "select count(*) from attempts where outcome = $1";
    sqlx::query_scalar(sql).bind(outcome).fetch_one(&world.database.pool).await.unwrap()
}

/// How many attempts were charged to the leads.
async fn charged(world: &World) -> i64 {
    world.number("select coalesce(sum(charged), 0)::bigint from leads").await
}

/// How many leads are in no state but waiting.
async fn ended(world: &World) -> i64 {
    world.number("select count(*) from leads where state <> 'pending'").await
}

/// What `/readyz` says: its status, and its report.
async fn readiness(worker: &Process) -> (u16, serde_json::Value) {
    let (status, _, body) = worker.ask("/readyz").await;
    (status, serde_json::from_str(&body).unwrap())
}

/// Waits until the worker says that posts are paused, and why: what `/readyz` says of the API and of the token.
async fn until_paused(world: &World, worker: &Process) -> (String, String) {
    let mut why = (String::new(), String::new());
    world
        .until("posts are paused", async || {
            let (status, report) = readiness(worker).await;
            let detail = |what: &str| report[what]["detail"].as_str().unwrap().to_owned();
            why = (detail("api"), detail("token"));
            status == 503 && why.0.starts_with("posts are paused")
        })
        .await;
    why
}

/// Each of so many leads was created once and is delivered, every post of it is on record, and none but its last was charged, or
/// as many as `retries` besides.
async fn each_was_created_once(world: &World, leads: usize, retries: i64) {
    let leads = i64::try_from(leads).unwrap();
    world.until_count(LeadState::Delivered, leads).await;
    let counts = world.sandbox.journal().counts();
    assert_eq!((i64::try_from(counts.created).unwrap(), counts.duplicates, counts.overlaps), (leads, 0, 0));
    let on_record = world.number("select count(*) from attempts where request = 'post'").await;
    assert_eq!(i64::try_from(counts.posts).unwrap(), on_record, "each post has its attempt");
    assert_eq!(charged(world).await, leads + retries);
}

/// Nothing that logs the worker in stands in this text.
fn is_discreet(world: &World, text: &str) {
    const SECRET: [&str; 4] = ["AUTH__CLIENT_SECRET", "AUTH__PASSWORD", "AUTH__BEARER_TOKEN", "AUTH__API_KEY"];
    let secrets: Vec<_> =
        world.destination.iter().filter(|(name, _)| SECRET.iter().any(|secret| name.ends_with(secret))).collect();
    assert!(!secrets.is_empty());
    for (name, value) in secrets {
        assert!(!text.contains(value), "{name} stands in: {text}");
    }
}

/// Stops the worker; it goes cleanly, has said nothing secret, and leaves no message behind and the books in order.
async fn finish(world: World, worker: Process) -> String {
    let said = worker.stop().await;
    is_discreet(&world, &said);
    assert_eq!(world.broker.depth().await, 0, "messages are left in the queue");
    world.check_books().await;
    said
}

/// A module of tests for each preset: the scenarios of all, and these of its own.
macro_rules! scenarios {
    ($($module:ident: $preset:ident { $($file:ident::$scenario:ident)* })+) => {$(
        mod $module {
            scenarios! { in $preset:
                arrival::leads_and_log_ins_arrive_as_the_api_documents_them
                arrival::a_lead_without_a_mandatory_field_is_invalid_and_never_posted
                credentials::a_wrong_credential_costs_no_lead_and_the_worker_says_what_to_check
                pace::leads_that_meet_the_rate_limit_wait_for_their_time_and_go_out_once
                answers::a_lead_that_the_api_has_already_is_a_duplicate
                answers::a_refusal_ends_the_lead_with_the_reason_that_the_api_gives
                answers::an_answer_that_decides_nothing_is_followed_by_another_post
                answers::an_answer_that_speaks_of_the_set_up_pauses_posts_and_is_charged_to_no_lead
                answers::a_post_of_which_nobody_knows_whether_it_arrived_makes_no_second_lead
                $($file::$scenario)*
            }
        }
    )+};
    (in $preset:ident: $($file:ident::$scenario:ident)+) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $scenario() {
            super::$file::$scenario(&super::$preset).await;
        }
    )+};
}

scenarios! {
    seven_targets: SEVEN_TARGETS {
        tokens::leads_outlive_tokens_that_die_before_their_announced_end
        tokens::a_token_is_renewed_before_its_announced_end_and_no_post_meets_a_dead_one
        tokens::a_revocation_in_the_middle_of_the_flow_costs_a_log_in_and_no_lead
        answers::what_the_api_itself_finds_wrong_with_a_lead_is_its_reason
    }
    seven_targets_2024: SEVEN_TARGETS_2024 {
        tokens::leads_outlive_tokens_that_die_before_their_announced_end
        tokens::a_revocation_in_the_middle_of_the_flow_costs_a_log_in_and_no_lead
    }
    squadrun: SQUADRUN {
        tokens::leads_outlive_tokens_that_die_before_their_announced_end
        tokens::a_token_is_renewed_before_its_announced_end_and_no_post_meets_a_dead_one
        tokens::a_revocation_in_the_middle_of_the_flow_costs_a_log_in_and_no_lead
        pace::by_itself_it_keeps_below_the_documented_hundred_a_minute
    }
    squadiq: SQUADIQ {
        keys::leads_wait_at_no_cost_while_their_key_is_withdrawn
        keys::leads_that_wait_for_a_key_that_has_expired_go_out_with_its_successor
        pace::by_itself_it_keeps_below_the_documented_hundred_a_minute
    }
    kaisa: KAISA {
        tokens::leads_outlive_tokens_that_die_before_their_announced_end
        tokens::a_token_is_renewed_before_its_announced_end_and_no_post_meets_a_dead_one
        tokens::a_revocation_in_the_middle_of_the_flow_costs_a_log_in_and_no_lead
        answers::what_the_api_itself_finds_wrong_with_a_lead_is_its_reason
    }
    paya: PAYA {
        keys::leads_wait_at_no_cost_while_their_key_is_withdrawn
        keys::leads_that_wait_for_a_key_that_has_expired_go_out_with_its_successor
        answers::what_the_api_itself_finds_wrong_with_a_lead_is_its_reason
    }
    paya_session: PAYA_SESSION {
        tokens::leads_outlive_tokens_that_die_before_their_announced_end
        tokens::a_session_lives_on_while_it_is_used_and_one_that_was_idle_is_not_used
        tokens::a_revocation_in_the_middle_of_the_flow_costs_a_log_in_and_no_lead
        answers::what_the_api_itself_finds_wrong_with_a_lead_is_its_reason
    }
}
