//! The 7targets API: `POST /leads`.
//!
//! Source: the vendor's published API pages and their history; they show the request and the answer of a success. They
//! say nothing about errors: the statuses 401 and 403 and their bodies are those of Amazon API Gateway, on which the
//! API began, the three shapes of an error are those that the vendor's own clients have read, and the wording is made
//! up here. That the email makes a lead unique is documented, the status of a duplicate is not.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::api::Desk;
use super::cognito;
use super::entry::{ContentType, Effect, Endpoint};
use super::head::content_type;
use super::leads::Filed;
use super::reply::Reply;
use super::settings::{Duplicates, ErrorShape, Profile, Tuning};

/// Its path under the API's host.
pub(super) const PATH: &str = "/leads";

/// The header that says for whom a lead is, mandatory since 2023.
const USER_HEADER: &str = "7ts-user-identifier";

/// What a request is addressed to.
pub(super) fn endpoint(method: &Method, path: &str) -> Option<Endpoint> {
    match (method, path) {
        (&Method::POST, PATH) => Some(Endpoint::Leads),
        (&Method::POST, cognito::PATH) => Some(Endpoint::Token),
        _ => None,
    }
}

/// A body that has been read, well or not.
#[derive(Debug)]
pub(super) struct Draft {
    /// The email as the lead's identity: trimmed and in lower case. Known even of some leads that are refused.
    pub(super) email: Option<Arc<str>>,
    wanted: Result<Wanted, String>,
}

/// The members of a request that matter here. Unknown ones are ignored, as the vendor's clients rely on.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wanted {
    name: Option<String>,
    last_name: Option<String>,
    email: Option<String>,
    phone: Option<String>,
    assistant_id: Option<Value>,
    assistant_email: Option<String>,
    schedule_id: Option<Value>,
    schedule_name: Option<String>,
    custom_fields: Option<Box<RawValue>>,
}

/// The answer of a success, with the members in the documented order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Created<'a> {
    id: u64,
    name: Option<&'a str>,
    last_name: Option<&'a str>,
    r#type: &'static str,
    email: Option<&'a str>,
    phone: Option<&'a str>,
    schedule_id: Value,
    schedule_name: &'a str,
    assistant_id: Value,
    next_schedule_time: Option<String>,
    state: &'a str,
    sub_state: Option<&'a str>,
    followup: u8,
    custom_fields: Option<&'a RawValue>,
}

impl Draft {
    /// Reads a body and finds what is wrong with it.
    pub(super) fn read(profile: Profile, headers: &HeaderMap, body: &[u8]) -> Self {
        let parsed = parse(body);
        let email = parsed.as_ref().ok().and_then(|wanted| wanted.email.as_deref());
        let email = email.map(|email| Arc::from(email.trim().to_lowercase()));
        let wanted = parsed.and_then(|wanted| {
            if content_type(headers) != Some(ContentType::Json) {
                return Err("Content-Type must be application/json".to_owned());
            }
            check(profile, &wanted).map(|()| wanted)
        });
        Self { email, wanted }
    }

    /// Answers the request: everything from the token to the lead that exists afterwards.
    pub(super) fn answer(&self, desk: &Desk<'_>) -> (Reply, Effect) {
        let (tuning, leads) = (desk.tuning, &desk.memory.leads);
        if !desk.token_ok {
            return (Reply::message(StatusCode::UNAUTHORIZED, "Unauthorized"), Effect::Nothing);
        }
        if tuning.profile == Profile::SevenTargets2024 && !desk.head.headers.contains_key(USER_HEADER) {
            return (Reply::message(StatusCode::FORBIDDEN, "Forbidden"), Effect::Nothing);
        }
        let dedupe_key = desk.key.filter(|_| tuning.dedupe_by_key);
        if let Some(answer) = dedupe_key.and_then(|key| leads.answered(key)) {
            return (Reply::json(StatusCode::CREATED, answer), Effect::Repeated);
        }
        let (wanted, email) = match (&self.wanted, &self.email) {
            (Ok(wanted), Some(email)) => (wanted, email),
            (Err(reason), _) => return (refusal(tuning.errors, StatusCode::BAD_REQUEST, reason), Effect::Nothing),
            (Ok(_), None) => {
                return (refusal(tuning.errors, StatusCode::BAD_REQUEST, "email is mandatory"), Effect::Nothing);
            }
        };
        let (id, effect) = match leads.file(email) {
            Filed::New(id) => (id, Effect::Created),
            Filed::Known(id) => (id, Effect::Duplicate),
        };
        match (effect, tuning.duplicates) {
            (Effect::Duplicate, Duplicates::Conflict) => return (duplicate(tuning, StatusCode::CONFLICT), effect),
            (Effect::Duplicate, Duplicates::BadRequest) => return (duplicate(tuning, StatusCode::BAD_REQUEST), effect),
            _ => {}
        }
        let body = Bytes::from(created(tuning, wanted, id, email));
        if let Some(key) = dedupe_key {
            leads.remember(key.clone(), body.clone());
        }
        (Reply::json(StatusCode::CREATED, body), effect)
    }
}

fn parse(body: &[u8]) -> Result<Wanted, String> {
    let body = body.trim_ascii();
    let Some(inside) = body.strip_prefix(b"{") else {
        return Err(
            if body.is_empty() { "The body can't be empty" } else { "The body must be a JSON object" }.to_owned()
        );
    };
    if inside.trim_ascii() == b"}" {
        return Err("The body can't be empty".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| format!("The body can't be read: {error}"))
}

fn check(profile: Profile, wanted: &Wanted) -> Result<(), String> {
    let mandatory = |name: &str, value: &Option<String>| match value.as_deref().map(str::trim) {
        None | Some("") => Err(format!("{name} is mandatory")),
        Some(_) => Ok(()),
    };
    mandatory("name", &wanted.name)?;
    mandatory("email", &wanted.email)?;
    if !wanted.email.as_deref().is_some_and(plausible_email) {
        return Err("email is not valid".to_owned());
    }
    if profile == Profile::SevenTargets2024 {
        mandatory("assistantEmail", &wanted.assistant_email)?;
        return if wanted.assistant_email.as_deref().is_some_and(plausible_email) {
            Ok(())
        } else {
            Err("assistantEmail is not valid".to_owned())
        };
    }
    match &wanted.assistant_id {
        None | Some(Value::Null) => Err("assistantId is mandatory".to_owned()),
        Some(id) if is_id(id) => Ok(()),
        Some(_) => Err("assistantId must be a number".to_owned()),
    }
}

/// A whole number, or a text of one: the API is written in Java, whose usual JSON library takes both.
fn is_id(value: &Value) -> bool {
    value.is_u64() || value.as_str().is_some_and(|text| text.trim().parse::<u64>().is_ok())
}

/// No more than what a mail server would need: the API's own rule is not known.
fn plausible_email(email: &str) -> bool {
    let email = email.trim();
    let Some((local, domain)) = email.rsplit_once('@') else { return false };
    let inner_dot = domain.split_once('.').is_some_and(|(first, rest)| !first.is_empty() && !rest.is_empty());
    let clean = !email.contains(|c: char| c.is_whitespace() || c.is_control() || c == ',' || c == ';');
    !local.is_empty() && !local.contains('@') && inner_dot && !domain.ends_with('.') && clean && email.len() <= 254
}

/// An error of the API itself, in one of the shapes that it has had.
fn refusal(shape: ErrorShape, status: StatusCode, reason: &str) -> Reply {
    let body = match shape {
        ErrorShape::Text => Value::from(reason),
        ErrorShape::Message => serde_json::json!({ "message": reason }),
        ErrorShape::Body => serde_json::json!({ "body": reason }),
    };
    Reply::json(status, body.to_string())
}

fn duplicate(tuning: &Tuning, status: StatusCode) -> Reply {
    refusal(tuning.errors, status, "Lead already exists")
}

fn created(tuning: &Tuning, wanted: &Wanted, id: u64, email: &str) -> Vec<u8> {
    let (state, sub_state) = state(tuning, email);
    let created = Created {
        id,
        name: wanted.name.as_deref(),
        last_name: wanted.last_name.as_deref(),
        r#type: "SALES",
        email: wanted.email.as_deref().map(str::trim),
        phone: wanted.phone.as_deref(),
        schedule_id: wanted.schedule_id.clone().unwrap_or(Value::from(127)),
        schedule_name: wanted.schedule_name.as_deref().unwrap_or("Default"),
        assistant_id: wanted.assistant_id.clone().unwrap_or(Value::from(61)),
        next_schedule_time: is_worked(state).then(tomorrow).flatten(),
        state,
        sub_state,
        followup: u8::from(is_worked(state)),
        custom_fields: wanted.custom_fields.as_deref(),
    };
    // Nothing in it can fail to serialize; an empty body would show in the first test.
    serde_json::to_vec(&created).unwrap_or_default()
}

/// State and substate of a new lead: by a tag in the email's local part, else as set.
fn state<'a>(tuning: &'a Tuning, email: &str) -> (&'a str, Option<&'a str>) {
    const BY_TAG: [(&str, &str, Option<&str>); 3] =
        [("+new", "New", None), ("+pending", "Pending", None), ("+deactivated", "DeActivated", Some("InvalidEmail"))];
    let local = email.rsplit_once('@').map_or(email, |(local, _)| local);
    let tagged = BY_TAG.iter().find(|(tag, ..)| local.contains(tag));
    tagged.map_or((&tuning.state, tuning.sub_state.as_deref()), |(_, state, sub_state)| (state, *sub_state))
}

/// A lead over the plan's capacity stays `New` and is not worked; nor is one whose mail cannot be delivered.
fn is_worked(state: &str) -> bool {
    !matches!(state, "New" | "DeActivated" | "UnSubscribed")
}

/// The format is not documented; this one is what everybody expects.
fn tomorrow() -> Option<String> {
    let tomorrow = SystemTime::now() + Duration::from_secs(24 * 3600);
    let whole_seconds = OffsetDateTime::from(tomorrow).replace_nanosecond(0).ok()?;
    whole_seconds.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::super::api::Memory;
    use super::super::api::trial::ask;
    use super::*;

    const GOOD: &str =
        r#"{"name":"Ann","email":" Ann@Example.org ","assistantId":61,"customFields":[{"name":"a","value":"b"}]}"#;

    fn answer(tuning: &Tuning, body: &str) -> (u16, Value, Effect) {
        answer_from(&Memory::default(), tuning, None, body)
    }

    fn answer_from(memory: &Memory, tuning: &Tuning, key: Option<&str>, body: &str) -> (u16, Value, Effect) {
        memory.tokens.issue("token", Duration::from_secs(60));
        let request = Request::post(PATH)
            .header("authorization", "Bearer token")
            .header("content-type", "application/json; charset=utf-8");
        let request = key.into_iter().fold(request, |request, key| request.header("idempotency-key", key));
        let told = ask(tuning, memory, request.body(body).unwrap());
        (told.status, told.json(), told.effect)
    }

    #[test]
    fn a_created_lead_is_answered_with_every_documented_member() {
        let (status, lead, effect) = answer(&Tuning::default(), GOOD);
        assert_eq!((status, effect), (201, Effect::Created));
        assert_eq!(lead["email"], "Ann@Example.org");
        assert_eq!(lead["state"], "Cold");
        assert_eq!(lead["assistantId"], 61);
        assert_eq!(lead["customFields"][0]["value"], "b");
        for member in [
            "id",
            "name",
            "lastName",
            "type",
            "email",
            "phone",
            "scheduleId",
            "scheduleName",
            "assistantId",
            "nextScheduleTime",
            "state",
            "subState",
            "followup",
            "customFields",
        ] {
            assert!(lead.get(member).is_some(), "{member}");
        }
    }

    #[test]
    fn a_body_that_lacks_something_is_refused_by_name() {
        for (body, reason) in [
            ("", "empty"),
            ("{ }", "empty"),
            ("[]", "object"),
            (r#"{"name":"#, "read"),
            (r#"{"email":"a@b.io","assistantId":1}"#, "name is mandatory"),
            (r#"{"name":" ","email":"a@b.io","assistantId":1}"#, "name is mandatory"),
            (r#"{"name":"A","assistantId":1}"#, "email is mandatory"),
            (r#"{"name":"A","email":"nobody","assistantId":1}"#, "email is not valid"),
            (r#"{"name":"A","email":"a@b.io"}"#, "assistantId is mandatory"),
            (r#"{"name":"A","email":"a@b.io","assistantId":"x"}"#, "assistantId must be a number"),
        ] {
            let (status, answer, effect) = answer(&Tuning::default(), body);
            assert_eq!((status, effect), (400, Effect::Nothing), "{body}");
            assert!(answer["message"].as_str().unwrap().contains(reason), "{body}: {answer}");
        }
    }

    #[test]
    fn an_error_comes_in_the_shape_that_is_set() {
        let shaped = |errors| answer(&Tuning { errors, ..Tuning::default() }, "{}").1;
        assert_eq!(shaped(ErrorShape::Text), "The body can't be empty");
        assert_eq!(shaped(ErrorShape::Message)["message"], "The body can't be empty");
        assert_eq!(shaped(ErrorShape::Body)["body"], "The body can't be empty");
    }

    #[test]
    fn a_second_lead_with_the_same_email_is_a_duplicate_however_it_is_spelled() {
        let again = GOOD.replace(" Ann@Example.org ", "ANN@example.ORG");
        for (duplicates, expected) in
            [(Duplicates::Conflict, 409), (Duplicates::BadRequest, 400), (Duplicates::Existing, 201)]
        {
            let (memory, tuning) = (Memory::default(), Tuning { duplicates, ..Tuning::default() });
            let (_, first, _) = answer_from(&memory, &tuning, None, GOOD);
            let (status, second, effect) = answer_from(&memory, &tuning, None, &again);
            assert_eq!((status, effect), (expected, Effect::Duplicate));
            if expected == 201 {
                assert_eq!(first["id"], second["id"]);
            } else {
                assert_eq!(second["message"], "Lead already exists");
            }
        }
    }

    #[test]
    fn a_repeated_key_is_a_duplicate_unless_keys_are_deduplicated() {
        for (dedupe_by_key, expected) in [(false, (409, Effect::Duplicate)), (true, (201, Effect::Repeated))] {
            let (memory, tuning) = (Memory::default(), Tuning { dedupe_by_key, ..Tuning::default() });
            answer_from(&memory, &tuning, Some("k"), GOOD);
            let (status, _, effect) = answer_from(&memory, &tuning, Some("k"), GOOD);
            assert_eq!((status, effect), expected);
        }
    }

    #[test]
    fn a_tag_in_the_email_decides_the_state() {
        let of = |email: &str| {
            let lead = answer(&Tuning::default(), &GOOD.replace("Ann@Example.org", email)).1;
            (lead["state"].as_str().unwrap().to_owned(), lead["subState"].clone(), lead["nextScheduleTime"].is_null())
        };
        assert_eq!(of("a+new7@x.io"), ("New".to_owned(), Value::Null, true));
        assert_eq!(of("a+pending@x.io"), ("Pending".to_owned(), Value::Null, false));
        assert_eq!(of("a+deactivated@x.io"), ("DeActivated".to_owned(), "InvalidEmail".into(), true));
        assert_eq!(of("a@new.io"), ("Cold".to_owned(), "Followup_1".into(), false));
    }

    #[test]
    fn the_2024_profile_wants_an_assistant_by_email_and_a_user() {
        let tuning = Tuning { profile: Profile::SevenTargets2024, ..Tuning::default() };
        let body = r#"{"name":"A","email":"a@b.io","assistantEmail":"eva@b.io"}"#;
        assert_eq!(answer(&tuning, body).0, 403);
        let memory = Memory::default();
        memory.tokens.issue("token", Duration::from_secs(60));
        let status = |body: &str| {
            let request = Request::post(PATH)
                .header("authorization", "Bearer token")
                .header("content-type", "application/json")
                .header(USER_HEADER, "user-1");
            ask(&tuning, &memory, request.body(body).unwrap()).status
        };
        assert_eq!(status(body), 201);
        assert_eq!(status(GOOD), 400);
    }

    #[test]
    fn emails_are_judged_by_their_form_only() {
        for good in ["a@b.io", " a.b+c@d-e.co.uk ", "\u{e4}@b.io"] {
            assert!(plausible_email(good), "{good}");
        }
        for bad in ["", "a", "@b.io", "a@", "a@b", "a@.io", "a@b.", "a b@c.io", "a@b@c.io", "a@b.io,c@d.io"] {
            assert!(!plausible_email(bad), "{bad}");
        }
    }
}
