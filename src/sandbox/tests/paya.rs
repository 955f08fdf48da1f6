//! Paya Connect: sessions that live on while used, contacts that can be asked for.

use super::*;

const JSON: &str = "developer-id: sandbox-developer\r\ncontent-type: application/json\r\n";
const KEY: &str = "user-id: sandbox-user-id-0000000000\r\nuser-api-key: sandbox-user-api-key\r\n";

async fn send(sandbox: &Sandbox, method: &str, path: &str, headers: &str, body: &str) -> Seen {
    let mut client = Client::of(sandbox).await;
    client.send(method, path, &format!("{JSON}{headers}"), body).await;
    client.receive().await
}

/// Logs in and returns the header of the session.
async fn session(sandbox: &Sandbox) -> String {
    let body = json!({ "username": "sandbox-user", "password": "sandbox-password", "domain": "sandbox.example" });
    let seen = send(sandbox, "POST", "/v2/token", "", &body.to_string()).await;
    assert_eq!(seen.status, 201, "{seen:?}");
    format!("access-token: {}\r\n", seen.json()["token"]["token"].as_str().unwrap())
}

fn contact(contact_api_id: &str) -> String {
    let contact = json!({
        "location_id": "sandbox-location-0000000001", "last_name": "Lee", "contact_api_id": contact_api_id,
    });
    json!({ "contact": contact }).to_string()
}

async fn post(sandbox: &Sandbox, who: &str, contact_api_id: &str) -> Seen {
    send(sandbox, "POST", "/v2/contacts", who, &contact(contact_api_id)).await
}

#[tokio::test]
async fn a_session_lives_on_with_every_success_and_with_nothing_else() {
    let sandbox = playing(Profile::Paya);
    let life = Duration::from_millis(900);
    sandbox.set_token_lifetime(life);
    let (used, refused) = (session(&sandbox).await, session(&sandbox).await);
    let mut failing = Vec::new();
    for n in 0..6 {
        tokio::time::sleep(life / 3).await;
        let path = if n % 2 == 0 { "/v2/contacts" } else { "/v2/contacts?contact_api_id=0" };
        let method = if n % 2 == 0 { "POST" } else { "GET" };
        let seen = send(&sandbox, method, path, &used, &contact(&n.to_string())).await;
        assert!((200..300).contains(&seen.status), "{n}: {seen:?}");
        failing.push(send(&sandbox, "POST", "/v2/contacts", &refused, "{}").await.status);
    }
    // The first failure came in time; it prolonged nothing.
    assert_eq!((failing[0], failing[5]), (422, 401));
}

#[tokio::test]
async fn a_success_that_the_client_never_learns_of_prolongs_its_session_too() {
    let sandbox = playing(Profile::Paya);
    let life = Duration::from_millis(1200);
    sandbox.set_token_lifetime(life);
    let mine = session(&sandbox).await;
    tokio::time::sleep(life * 2 / 3).await;
    sandbox.faults().script([Fault::status(502).after()]);
    assert_eq!(post(&sandbox, &mine, "1").await.status, 502);
    tokio::time::sleep(life * 2 / 3).await;
    assert_eq!(post(&sandbox, &mine, "2").await.status, 201);
}

#[tokio::test]
async fn a_log_out_ends_the_session_without_a_word() {
    let sandbox = playing(Profile::Paya);
    let mine = session(&sandbox).await;
    let path = format!("/v2/token/{}", mine.trim().strip_prefix("access-token: ").unwrap());
    let seen = send(&sandbox, "DELETE", &path, &mine, "").await;
    assert_eq!((seen.status, seen.header("content-type"), seen.body.len()), (204, None, 0));
    assert_eq!(send(&sandbox, "DELETE", &path, &mine, "").await.status, 404);
    assert_eq!(post(&sandbox, &mine, "1").await.status, 401);
    let counts = sandbox.journal().counts();
    assert_eq!((counts.logouts, counts.tokens_issued), (2, 1));
}

#[tokio::test]
async fn all_sessions_can_be_ended_while_keys_go_on() {
    let sandbox = playing(Profile::Paya);
    let mine = session(&sandbox).await;
    sandbox.revoke_all();
    let seen = post(&sandbox, &mine, "1").await;
    assert_eq!((seen.status, seen.header("content-type")), (401, Some("application/json")));
    assert_eq!(post(&sandbox, KEY, "1").await.status, 201);
    sandbox.tune(|tuning| tuning.user_api_key = "another".to_owned());
    assert_eq!(post(&sandbox, KEY, "2").await.status, 401);
}

#[tokio::test]
async fn a_known_contact_is_refused_and_can_be_asked_for() {
    let sandbox = playing(Profile::Paya);
    sandbox.faults().script([Fault::reset().after()]);
    let mut lost = Client::of(&sandbox).await;
    lost.send("POST", "/v2/contacts", &format!("{JSON}{KEY}"), &contact("A-1")).await;
    assert_eq!(lost.rest().await.1, Err(ErrorKind::ConnectionReset));

    let seen = send(&sandbox, "GET", "/v2/contacts?contact_api_id=A-1", KEY, "").await;
    assert_eq!((seen.status, &seen.json()["contacts"][0]["contact_api_id"]), (200, &json!("A-1")));
    let again = post(&sandbox, KEY, "A-1").await;
    assert_eq!((again.status, again.json()["errors"]["contact_api_id"].is_array()), (422, true));
    let none = send(&sandbox, "GET", "/v2/contacts?contact_api_id=A-2", KEY, "").await;
    assert_eq!((none.status, &none.json()["contacts"]), (200, &json!([])));

    let counts = sandbox.journal().counts();
    assert_eq!((counts.posts, counts.queries, counts.created, counts.duplicates), (2, 2, 1, 1));
    let asked = sandbox.journal().entries().into_iter().find(|entry| entry.endpoint == Endpoint::Query).unwrap();
    assert_eq!((asked.email.as_deref(), asked.token_ok), (Some("a-1"), true));
}

#[tokio::test]
async fn everything_that_is_wrong_with_a_contact_is_told_by_field() {
    let sandbox = playing(Profile::Paya);
    let body = json!({ "contact": { "location_id": "11e8000000000000000000ff", "cell_phone": "+1 234", "fax": "1" } });
    let seen = send(&sandbox, "POST", "/v2/contacts", KEY, &body.to_string()).await;
    let errors = seen.json()["errors"].clone();
    assert_eq!((seen.status, &errors["location_id"]), (422, &json!(["location_id provided is not valid"])));
    assert_eq!(
        errors.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["cell_phone", "fax", "last_name", "location_id"]
    );
    assert_eq!(send(&sandbox, "POST", "/v2/contacts", KEY, "{").await.status, 400);
}
