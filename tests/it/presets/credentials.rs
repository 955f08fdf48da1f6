//! A wrong credential: nothing is lost by it, the worker says what to check, and goes on when it is right.

use leadpost::sandbox::Tuning;

use super::{Preset, attempts, charged, each_was_created_once, ended, finish, is_discreet, readiness, until_paused};
use crate::support::DEADLINE;

/// What the API knows instead of what the worker has, and what the worker says of that: its code and its words.
type Wrong = (fn(&mut Tuning), &'static str, &'static str);

const SECRET: Wrong = (
    |tuning| tuning.client_secret = "another-secret".to_owned(),
    "invalid_client",
    "check destination.auth.client_id, client_secret and client_auth",
);
const CLIENT: Wrong = (|tuning| tuning.client_id = "another-client".to_owned(), SECRET.1, SECRET.2);
const PASSWORD: Wrong = (
    |tuning| tuning.password = "another-password".to_owned(),
    "invalid_grant",
    "check destination.auth.username and password",
);
const BEARER: Wrong = (
    |tuning| tuning.bearer_token = "another-bearer-token".to_owned(),
    "http_403",
    "the credentials are refused (check destination.auth.bearer_token): the API answered 403",
);
const API_KEY: Wrong = (
    |tuning| tuning.user_api_key = "another-key".to_owned(),
    "http_401",
    "the credentials are refused (check destination.auth.api_key_id, api_key and headers): the API answered 401",
);
const DEVELOPER: Wrong = (|tuning| tuning.developer_id = "another-developer".to_owned(), API_KEY.1, API_KEY.2);
const SESSION: Wrong = (
    PASSWORD.0,
    "token_refused",
    "the log-in answered 401; check destination.auth.username, password, parameters and headers",
);

fn wrongs(preset: &str) -> &'static [Wrong] {
    match preset {
        "7targets" | "7targets-2024" => &[SECRET],
        "squadrun" => &[PASSWORD, SECRET],
        "squadiq" => &[BEARER],
        "kaisa" => &[SECRET, CLIENT],
        "paya" => &[API_KEY, DEVELOPER],
        "paya-session" => &[SESSION, (DEVELOPER.0, SESSION.1, SESSION.2), (DOMAIN, SESSION.1, SESSION.2)],
        other => panic!("{other}"),
    }
}

const DOMAIN: fn(&mut Tuning) = |tuning| tuning.domain = "another.example".to_owned();

pub async fn a_wrong_credential_costs_no_lead_and_the_worker_says_what_to_check(preset: &Preset) {
    let is_fixed = ["squadiq", "paya"].contains(&preset.name);
    let world = preset.world().await;
    let right = world.sandbox.tuning();
    let mut worker = None;
    let mut leads = 0;
    for (change, code, says) in wrongs(preset.name) {
        let delivered = leads;
        world.sandbox.revoke_all();
        world.sandbox.tune(change);
        if worker.is_none() {
            worker = Some(world.worker(&[]).await);
        }
        let worker = worker.as_ref().unwrap();
        let before = world.sandbox.journal().counts();
        let ids = preset.publish_many(&world, &format!("ann{leads}x"), 3).await;
        leads += ids.len();
        let (api, token) = until_paused(&world, worker).await;
        // It asks again, and gets the same answer.
        let asks = |pages: &leadpost::sandbox::Pages| {
            let counts = pages.counts();
            let (now, then) =
                if is_fixed { (counts.posts, before.posts) } else { (counts.token_requests, before.token_requests) };
            now >= then + 3
        };
        world.sandbox.journal().wait_for(asks, DEADLINE).await.unwrap();

        let said = if is_fixed { &api } else { &token };
        assert!(said.contains(says), "{said:?} does not say {says:?}");
        assert!(api.contains(says), "{api:?} does not say {says:?}");
        worker.until_said(&format!("code={code}")).await;
        worker.until_said(says).await;
        let posts = world.sandbox.journal().posts();
        let since = &posts[usize::try_from(before.posts).unwrap()..];
        assert!(since.iter().all(|post| post.status.is_none_or(|status| status == preset.refusal)), "{since:?}");
        assert!(since.iter().all(|post| !post.token_ok), "{since:?}");
        if delivered == 0 && !is_fixed {
            assert_eq!(since.len(), 0, "posted without a token");
        }
        let delivered = i64::try_from(delivered).unwrap();
        assert_eq!((charged(&world).await, ended(&world).await), (delivered, delivered), "they wait, uncharged");
        let pages = [worker.said(), worker.ask("/readyz").await.2, worker.ask("/metrics").await.2];
        let status = world.leadpost(&["status"]).await;
        for text in pages.iter().chain([&status.stdout, &status.stderr]) {
            is_discreet(&world, text);
        }

        world.sandbox.tune(|tuning| *tuning = right.clone());
        world.until_all_delivered(&ids).await;
        world.until("all is well again", async || readiness(worker).await.0 == 200).await;
    }
    assert_eq!(attempts(&world, "systemic").await > 0, is_fixed, "a token that is not given is no attempt");
    each_was_created_once(&world, leads, 0).await;
    finish(world, worker.unwrap()).await;
}
