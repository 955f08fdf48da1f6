//! What a lead is at its API: request line, headers and body, as the vendor documents them; and what never gets there.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;
use leadpost::sandbox::{Effect, Endpoint};
use serde_json::{Value, json};

use super::tap::{Message, Tap};
use super::{Preset, finish, is_discreet};
use crate::support::World;

const BASIC_TOKEN: &str = "POST /oauth2/token HTTP/1.1";

/// A lead, and what becomes of it; `$lead_id` stands for its id in the ledger.
type Example = (&'static str, &'static str);

/// How the leads of a preset arrive.
struct Arrival {
    line: &'static str,
    /// Where the answer tells the lead's id.
    remote_id: Option<&'static str>,
    examples: Vec<Example>,
}

fn arrival(preset: &str) -> Arrival {
    match preset {
        "7targets" => {
            let least = r#"{"name":"Ann","email":"ann@example.com","assistantId":61}"#;
            let full = r#"{"name":"Ann", "lastName":"Lee", "email":"ann.lee@example.com", "assistantId":"61", "source":"Event", "context":"wants \u0061 demo", "additionalInformationLine":"met in Pune", "phone":"+15550100", "scheduleId":127, "company":"Acme"}"#;
            let examples = vec![(least, least), (full, full)];
            Arrival { line: "POST /leads HTTP/1.1", remote_id: Some("/id"), examples }
        }
        "7targets-2024" => {
            let least = r#"{"name":"Ann","email":"ann@example.com","assistantEmail":"bot@example.com"}"#;
            let full = r#"{"name":"Ann","lastName":"Lee","email":"ann.lee@example.com","assistantEmail":"bot@example.com","assistantId":61,"source":"Event","context":"wants a demo","additionalInformationLine":"met in Pune","phone":"+15550100","scheduleId":127,"scheduleName":"Spring","customFields":[{"name":"size","value":"L"}]}"#;
            let examples = vec![(least, least), (full, full)];
            Arrival { line: "POST /leads HTTP/1.1", remote_id: Some("/id"), examples }
        }
        "squadrun" | "squadiq" => Arrival {
            line: if preset == "squadrun" {
                "POST /api/v1/leads/create/7/ HTTP/1.1"
            } else {
                "POST /api/v4/leads/create/7/ HTTP/1.1"
            },
            remote_id: None,
            examples: vec![
                (r#"{"phone":"+15550100"}"#, r#"[{"lead_id":"$lead_id","phone_number":"+15550100"}]"#),
                (
                    r#"{"phone_number":15550101,"name":"Ann Lee","email":"ann@example.com"}"#,
                    r#"[{"lead_id":"$lead_id","phone_number":"15550101","contact_name":"Ann Lee","email":"ann@example.com"}]"#,
                ),
                (
                    r#"{"lead_id":"","phone_number":" ","phone":"+15550104","contact_name":"","name":"Ann","plan":""}"#,
                    r#"[{"lead_id":"$lead_id","phone_number":"+15550104","contact_name":"Ann","plan":""}]"#,
                ),
                (
                    r#"{"lead_id":4711,"phone_number":"+15550102","phone":"+15550103","contact_name":"Ann Lee","name":"Ann","state_code":"NY","ebr_datetime":"2026-01-01 10:00","affiliate_id":7,"email":"ann@example.com","plan":{"size":1.10}}"#,
                    r#"[{"lead_id":"4711","phone_number":"+15550102","contact_name":"Ann Lee","state_code":"NY","ebr_datetime":"2026-01-01 10:00","affiliate_id":7,"email":"ann@example.com","plan":{"size":1.10}}]"#,
                ),
            ],
        },
        "kaisa" => Arrival {
            line: "POST /2.4.9/customers HTTP/1.1",
            remote_id: Some("/customers/0/customer_id"),
            examples: vec![
                (r#"{"name":"Zoë & Söhne = 100 %"}"#, r#"{"name":"Zoë & Söhne = 100 %","custnr":"$lead_id"}"#),
                (r#"{"name":"Bob","custnr":" ","email":""}"#, r#"{"name":"Bob","custnr":"$lead_id"}"#),
                (
                    r#"{"name":"Ann","custnr":4711,"email":"ann@example.com","corporateid":"C-1","receive_monthly_report":1,"freespee_caller_id":0,"whisper":1,"custom_1":"one","custom_9":"nine","custom_10":"ten","custom_20":"twenty","custom_2":null,"custom_0":"no","custom_21":"no","custom_":"no","phone":"+15550100","assistantId":61}"#,
                    r#"{"name":"Ann","custnr":"4711","email":"ann@example.com","corporateid":"C-1","receive_monthly_report":"1","freespee_caller_id":"0","whisper":"1","custom_1":"one","custom_9":"nine","custom_10":"ten","custom_20":"twenty"}"#,
                ),
            ],
        },
        "paya" | "paya-session" => Arrival {
            line: "POST /v2/contacts HTTP/1.1",
            remote_id: Some("/contact/id"),
            examples: vec![
                (
                    r#"{"name":"Lee"}"#,
                    r#"{"contact":{"location_id":"sandbox-location-0000000001","last_name":"Lee","contact_api_id":"$lead_id"}}"#,
                ),
                (
                    r#"{"name":"Ann","lastName":"Lee","phone":"+1 (555) 010-0199","company":"Acme"}"#,
                    r#"{"contact":{"location_id":"sandbox-location-0000000001","last_name":"Lee","first_name":"Ann","contact_api_id":"$lead_id","cell_phone":"5550100199","company_name":"Acme"}}"#,
                ),
                (
                    r#"{"last_name":"","lastName":" ","name":"Ng","email":"","phone":"","cell_phone":" ","zip":"","contact_api_id":""}"#,
                    r#"{"contact":{"location_id":"sandbox-location-0000000001","last_name":"Ng","contact_api_id":"$lead_id"}}"#,
                ),
                (
                    r#"{"name":"Lee","contact_api_id":4711}"#,
                    r#"{"contact":{"location_id":"sandbox-location-0000000001","last_name":"Lee","contact_api_id":"4711"}}"#,
                ),
                (
                    r#"{"first_name":"Ann","last_name":"Lee","name":"other","lastName":"other","email":"ann@example.com","cell_phone":"555-010-0199","phone":"555-010-0100","home_phone":"555.010.0198","office_phone":5550100197,"address":"1 Main St","city":"Ann Arbor","state":"MI","zip":"48104","company_name":"Acme","company":"other","account_number":"A-1","contact_api_id":"crm-17","contact_c1":"one","contact_c2":"two","contact_c3":"three","date_of_birth":"1990-12-31","email_trx_receipt":1,"header_message":"hello","plan":"gold","location_id":"elsewhere","update_if_exists":1}"#,
                    r#"{"contact":{"location_id":"sandbox-location-0000000001","first_name":"Ann","last_name":"Lee","email":"ann@example.com","cell_phone":"5550100199","home_phone":"5550100198","office_phone":"5550100197","address":"1 Main St","city":"Ann Arbor","state":"MI","zip":"48104","company_name":"Acme","account_number":"A-1","contact_api_id":"crm-17","contact_c1":"one","contact_c2":"two","contact_c3":"three","date_of_birth":"1990-12-31","email_trx_receipt":1,"header_message":"hello"}}"#,
                ),
            ],
        },
        other => panic!("{other}"),
    }
}

/// The headers that log a post in, given the answer to the log-in, if there was one.
fn credential(preset: &str, granted: &Value) -> Vec<(&'static str, String)> {
    let bearer = |token: &Value| ("authorization", format!("Bearer {}", token.as_str().unwrap()));
    let text = |text: &str| text.to_owned();
    match preset {
        "7targets" | "squadrun" | "kaisa" => vec![bearer(&granted["access_token"])],
        "7targets-2024" => vec![bearer(&granted["access_token"]), ("7ts-user-identifier", text("user-1"))],
        "squadiq" => vec![("authorization", text("Bearer sandbox-bearer-token"))],
        "paya" => vec![
            ("user-id", text("sandbox-user-id-0000000000")),
            ("user-api-key", text("sandbox-user-api-key")),
            ("developer-id", text("sandbox-developer")),
        ],
        "paya-session" => vec![
            ("access-token", text(granted["token"]["token"].as_str().unwrap())),
            ("developer-id", text("sandbox-developer")),
        ],
        other => panic!("{other}"),
    }
}

/// The headers that say something: who connects to what, and how long the body is, is no news.
fn telling(message: &Message) -> BTreeMap<&str, &str> {
    let plain = ["host", "content-length", "user-agent"];
    let headers = message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    headers.filter(|(name, _)| !plain.contains(name)).collect()
}

/// Publishes these as a person would, and waits until they are delivered; their ids.
async fn publish(world: &World, examples: &[Example]) -> Vec<LeadId> {
    let lines: String = examples.iter().map(|(lead, _)| format!("{lead}\n")).collect();
    let done = world.leadpost_with(&["publish", "-"], &[], lines.as_bytes()).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let ids: Vec<LeadId> = examples.iter().map(|(lead, _)| LeadId::of_content(lead.as_bytes())).collect();
    world.until_delivered(&ids).await;
    ids
}

pub async fn leads_and_log_ins_arrive_as_the_api_documents_them(preset: &Preset) {
    let mut world = preset.world().await;
    let tap = Tap::before(&mut world).await;
    let Arrival { line, remote_id, examples } = arrival(preset.name);
    let worker = world.worker(&[]).await;
    let ids = publish(&world, &examples).await;

    let posts = tap.seen(line);
    assert_eq!(posts.len(), examples.len(), "{:?}", tap.lines());
    let granted = tap.lines().iter().any(|line| line.contains("token")).then(|| tap.seen("POST ")[0].1.json());
    for (id, (_, expected)) in ids.iter().zip(&examples) {
        let key = id.to_string();
        let (request, answer) = posts.iter().find(|(request, _)| request.headers["idempotency-key"] == key).unwrap();
        let expected = expected.replace("$lead_id", &key);
        let kind = match preset.name {
            "7targets" | "7targets-2024" => {
                assert_eq!(String::from_utf8_lossy(&request.body), expected, "byte for byte");
                "application/json"
            }
            "kaisa" => {
                let expected: BTreeMap<String, String> = serde_json::from_str(&expected).unwrap();
                assert_eq!(request.form(), expected);
                "application/x-www-form-urlencoded"
            }
            _ => {
                assert_eq!(request.json(), serde_json::from_str::<Value>(&expected).unwrap());
                "application/json"
            }
        };
        let credential = credential(preset.name, granted.as_ref().unwrap_or(&Value::Null));
        let mut headers: BTreeMap<&str, &str> =
            credential.iter().map(|(name, value)| (*name, value.as_str())).collect();
        headers.extend([("accept", "application/json"), ("content-type", kind), ("idempotency-key", &key)]);
        assert_eq!(telling(request), headers);

        let lead = world.show(*id).await;
        let told = remote_id.map(|pointer| match answer.json().pointer(pointer).unwrap() {
            Value::String(id) => id.clone(),
            id => id.to_string(),
        });
        assert_eq!(lead.remote_id, told, "{answer:?}");
        let state = preset.name.starts_with("7targets").then_some("Cold");
        assert_eq!((lead.remote_state.as_deref(), lead.warning), (state, None));
        assert_eq!(world.story(*id).await, [preset.delivered()]);
        assert_eq!((lead.destination.as_str(), lead.charged), (preset.name, 1));
    }
    super::each_was_created_once(&world, examples.len(), 0).await;
    is_discreet(&world, &worker.stop().await);
    match granted {
        Some(granted) => logged_in_and_out(preset, &world, &tap, &granted),
        None => assert_eq!(tap.lines().len(), posts.len(), "{:?}", tap.lines()),
    }
    world.check_books().await;
}

/// The requests around the posts: one log-in, and one log-out where the API has that.
fn logged_in_and_out(preset: &Preset, world: &World, tap: &Tap, granted: &Value) {
    let logins = tap.seen(login_line(preset.name));
    let [(login, _)] = &logins[..] else { panic!("one log-in is enough: {:?}", tap.lines()) };
    let form = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let client = [("client_id", "sandbox-client"), ("client_secret", "sandbox-secret")];
    let mut headers = vec![("accept", "application/json"), ("content-type", "application/x-www-form-urlencoded")];
    let basic = format!("Basic {}", STANDARD.encode("sandbox-client:sandbox-secret"));
    match preset.name {
        "7targets" | "7targets-2024" => {
            headers.push(("authorization", &basic));
            assert_eq!(login.form(), form(&[("grant_type", "client_credentials"), ("scope", "leads/post")]));
        }
        "kaisa" => {
            assert_eq!(login.form(), form(&[&[("grant_type", "client_credentials")], &client[..]].concat()));
        }
        "squadrun" => {
            let user = [("grant_type", "password"), ("username", "sandbox-user"), ("password", "sandbox-password")];
            assert_eq!(login.form(), form(&[&user[..], &client].concat()));
        }
        _ => {
            headers = vec![
                ("accept", "application/json"),
                ("content-type", "application/json"),
                ("developer-id", "sandbox-developer"),
            ];
            let user = json!({"username": "sandbox-user", "password": "sandbox-password", "domain": "sandbox.example"});
            assert_eq!(login.json(), user);
        }
    }
    assert_eq!(telling(login), headers.into_iter().collect());

    let entries = world.sandbox.journal().entries();
    let ends: Vec<Effect> =
        entries.iter().filter(|entry| entry.endpoint == Endpoint::Logout).map(|entry| entry.effect).collect();
    match preset.name {
        "squadrun" => {
            let outs = tap.seen("POST /oauth/revoke_token/ HTTP/1.1");
            let revoked: Vec<_> = outs.iter().map(|(request, _)| request.form()).collect();
            let token = |name: &str| granted[name].as_str().unwrap();
            let revocation =
                |name: &str| form(&[&[("token", token(name)), ("token_type_hint", name)], &client[..]].concat());
            assert_eq!(revoked, [revocation("refresh_token"), revocation("access_token")]);
            assert_eq!(ends[0], Effect::Ended);
        }
        "paya-session" => {
            let token = granted["token"]["token"].as_str().unwrap();
            let outs = tap.seen(&format!("DELETE /v2/token/{token} HTTP/1.1"));
            let [(request, answer)] = &outs[..] else { panic!("{:?}", tap.lines()) };
            let headers =
                [("accept", "application/json"), ("access-token", token), ("developer-id", "sandbox-developer")];
            assert_eq!(telling(request), BTreeMap::from(headers));
            assert!(answer.line.contains("204"), "{answer:?}");
            assert_eq!(ends, [Effect::Ended]);
        }
        _ => assert_eq!(ends, []),
    }
    let posts = world.sandbox.journal().posts().len();
    assert_eq!(tap.lines().len(), 1 + posts + ends.len(), "{:?}", tap.lines());
}

fn login_line(preset: &str) -> &'static str {
    match preset {
        "squadrun" => "POST /oauth/token/ HTTP/1.1",
        "paya-session" => "POST /v2/token HTTP/1.1",
        _ => BASIC_TOKEN,
    }
}

pub async fn a_lead_without_a_mandatory_field_is_invalid_and_never_posted(preset: &Preset) {
    // A message, and the fields that are wrong with it.
    let cases: &[(&str, &[&str])] = match preset.name {
        "7targets" => &[
            (r#"{"email":"ann@example.com","assistantId":61}"#, &["name"]),
            (r#"{"name":"Ann","assistantId":61}"#, &["email"]),
            (r#"{"name":"Ann","email":"ann@example.com"}"#, &["assistantId"]),
            (r#"{"name":" ","email":null,"assistantId":""}"#, &["name", "email", "assistantId"]),
            (r#"{"name":"Ann","email":"ann","assistantEmail":"bot@example.com"}"#, &["email", "assistantId"]),
        ],
        "7targets-2024" => &[
            (r#"{"email":"ann@example.com","assistantEmail":"bot@example.com"}"#, &["name"]),
            (r#"{"name":"Ann","assistantEmail":"bot@example.com"}"#, &["email"]),
            (r#"{"name":"Ann","email":"ann@example.com","assistantId":61}"#, &["assistantEmail"]),
            (r#"{"name":"Ann","email":"ann@example.com","assistantEmail":"bot"}"#, &["assistantEmail"]),
        ],
        "squadrun" | "squadiq" => &[
            (r#"{"name":"Ann","email":"ann@example.com","lead_id":"A-1"}"#, &["phone_number"]),
            (r#"{"phone":" ","phone_number":null}"#, &["phone_number"]),
            (r#"{"phone":["+15550100"]}"#, &["phone"]),
        ],
        "kaisa" => &[
            (r#"{"custnr":"A-1","email":"ann@example.com"}"#, &["name"]),
            (r#"{"name":""}"#, &["name"]),
            (r#"{"name":"Ann","whisper":{"on":true}}"#, &["whisper"]),
        ],
        _ => &[
            (r#"{"first_name":"Ann","email":"ann@example.com"}"#, &["last_name"]),
            (r#"{"name":"","lastName":" ","last_name":null}"#, &["last_name"]),
            (r#"{"last_name":"Lee","address":["1 Main St"]}"#, &["address"]),
            (r#"{"last_name":"Lee","contact_api_id":"0123456789012345678901234567890123456"}"#, &[""]),
        ],
    };
    let world = preset.world().await;
    let worker = world.worker(&[]).await;
    for (body, fields) in cases {
        let id = world.publish_body(body).await;
        let lead = world.until_state(id, LeadState::Invalid).await;
        let mut wrong: Vec<&str> = lead.violations.iter().map(|violation| violation.field.as_str()).collect();
        let mut fields = fields.to_vec();
        wrong.sort_unstable();
        fields.sort_unstable();
        assert_eq!(wrong, fields, "{body}");
        assert_eq!((lead.attempts, lead.history.len(), world.posts(id)), (0, 0, 0), "{body}");
    }
    let good = world.publish_body(&preset.lead("ann")).await;
    world.until_state(good, LeadState::Delivered).await;
    assert_eq!(world.sandbox.journal().counts().posts, 1, "nothing invalid was posted");
    finish(world, worker).await;
}
