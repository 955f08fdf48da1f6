//! The contacts of Paya Connect: `POST /v2/contacts`, and `GET /v2/contacts?contact_api_id=..` to ask what became of it.
//!
//! Sources: the vendor's page on contacts has the wrapped request, the members of an answer, the envelope of a list, and
//! that `contact_api_id` is unique at its location: a second one is answered 422 unless `update_if_exists` is 1. Status
//! 400 for what is no JSON is documented too. Made up: status 200 for an update, the message for a known
//! `contact_api_id`, that a body of another type is answered 400, and that no list is given without `contact_api_id`.

use std::sync::Arc;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value, json};

use super::api::Desk;
use super::entry::{ContentType, Effect, Endpoint};
use super::head::{content_type, query};
use super::paya_contacts::Put;
use super::paya_fields::{Errors, check};
use super::paya_login::{self, unauthorized};
use super::reply::Reply;

/// Where contacts are.
pub(super) const PATH: &str = "/v2/contacts";

/// What a request is addressed to.
pub(super) fn endpoint(method: &Method, path: &str) -> Option<Endpoint> {
    match (method, path) {
        (&Method::POST, PATH) => Some(Endpoint::Leads),
        (&Method::GET, PATH) => Some(Endpoint::Query),
        (&Method::POST, paya_login::PATH) => Some(Endpoint::Token),
        (&Method::DELETE, path) => paya_login::token_in(path).map(|_| Endpoint::Logout),
        _ => None,
    }
}

/// A contact as it is shown, with a link to itself.
fn shown(head: &Parts, mut contact: Map<String, Value>) -> Value {
    let id = contact.get("id").and_then(Value::as_str).unwrap_or_default();
    let href = format!("{}{PATH}/{id}", origin(head));
    contact.insert("_links".to_owned(), json!({ "self": { "href": href } }));
    contact.into()
}

fn origin(head: &Parts) -> String {
    let host = head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    format!("http://{host}")
}

/// A body that has been read, well or not.
#[derive(Debug)]
pub(super) struct Draft {
    /// The contact's email, or else its `contact_api_id`; in lower case.
    pub(super) email: Option<Arc<str>>,
    /// The contact; `None` when the body is no JSON.
    wanted: Option<Result<Map<String, Value>, Errors>>,
}

impl Draft {
    /// Reads a body.
    pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> Self {
        let is_json = content_type(headers) == Some(ContentType::Json);
        let body: Option<Value> = is_json.then(|| serde_json::from_slice(body).ok()).flatten();
        let wanted = body.map(unwrapped);
        let text =
            |name| Some(wanted.as_ref()?.as_ref().ok()?.get(name)?.as_str()?.trim()).filter(|text| !text.is_empty());
        let email = text("email").or_else(|| text("contact_api_id")).map(|email| Arc::from(email.to_lowercase()));
        Self { email, wanted }
    }

    /// Answers the request: everything from the proof of who asks to the contact that exists afterwards.
    pub(super) fn answer(&self, desk: &Desk<'_>) -> (Reply, Effect) {
        if !desk.token_ok {
            return (unauthorized(), Effect::Nothing);
        }
        let wanted = match &self.wanted {
            Some(Ok(wanted)) => wanted,
            Some(Err(errors)) => return (errors.reply(), Effect::Nothing),
            None => {
                return (Reply::message(StatusCode::BAD_REQUEST, "The body is not valid JSON"), Effect::Nothing);
            }
        };
        let mut errors = check(wanted, &desk.tuning.location_id);
        if !errors.is_empty() {
            return (errors.reply(), Effect::Nothing);
        }
        let (status, contact, effect) = match desk.memory.contacts.put(wanted) {
            Put::Created(contact) => (StatusCode::CREATED, contact, Effect::Created),
            Put::Updated(contact) => (StatusCode::OK, contact, Effect::Duplicate),
            Put::Taken => {
                errors.add("contact_api_id", "Contact Api Id has already been taken.");
                return (errors.reply(), Effect::Duplicate);
            }
        };
        (Reply::json(status, json!({ "contact": shown(desk.head, contact) }).to_string()), effect)
    }
}

/// The object in the member `contact`, and nothing beside it.
fn unwrapped(body: Value) -> Result<Map<String, Value>, Errors> {
    let mut errors = Errors::default();
    let Value::Object(mut members) = body else {
        errors.blank("contact");
        return Err(errors);
    };
    let contact = members.remove("contact");
    for name in members.keys() {
        errors.add(name, "is not a known field.");
    }
    match contact {
        Some(Value::Object(contact)) if errors.is_empty() => Ok(contact),
        Some(Value::Object(_)) => Err(errors),
        _ => {
            errors.blank("contact");
            Err(errors)
        }
    }
}

/// What a question asks for.
pub(super) fn asked_for(head: &Parts) -> Option<Arc<str>> {
    query(&head.uri, "contact_api_id").map(|id| Arc::from(id.to_lowercase()))
}

/// Answers which contact has a `contact_api_id`, at the location named or else at the usual one.
pub(super) fn list(desk: &Desk<'_>) -> (Reply, Effect) {
    if !desk.token_ok {
        return (unauthorized(), Effect::Nothing);
    }
    let Some(contact_api_id) = query(&desk.head.uri, "contact_api_id") else {
        let reason = "the sandbox lists contacts by contact_api_id only";
        return (Reply::message(StatusCode::BAD_REQUEST, reason), Effect::Nothing);
    };
    let location_id = query(&desk.head.uri, "location_id").unwrap_or_else(|| desk.tuning.location_id.clone());
    let found = desk.memory.contacts.find(&location_id, &contact_api_id);
    let total = u8::from(found.is_some());
    let href = format!("{}{PATH}?page=1", origin(desk.head));
    let body = json!({
        "contacts": found.map(|contact| shown(desk.head, contact)).into_iter().collect::<Vec<_>>(),
        "meta": {
            "pagination": {
                "links": { "self": { "href": href } },
                "totalCount": total,
                "pageCount": total,
                "currentPage": 1,
                "perPage": 20,
            },
            "sort": { "attributes": { "created": "desc" } },
        },
    });
    (Reply::json(StatusCode::OK, body.to_string()), Effect::Nothing)
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http::request::Builder;

    use super::super::api::Memory;
    use super::super::api::trial::{Told, ask};
    use super::super::paya_fields::UPDATE;
    use super::super::settings::{Profile, Tuning};
    use super::*;

    fn asked(memory: &Memory, request: Builder, body: &str) -> Told {
        let tuning = Tuning::of(Profile::Paya);
        let request = request
            .header("developer-id", &tuning.developer_id)
            .header("user-id", &tuning.user_id)
            .header("user-api-key", &tuning.user_api_key)
            .header("content-type", "application/json");
        ask(&tuning, memory, request.body(body).unwrap())
    }

    fn posted(memory: &Memory, change: Value) -> Told {
        let mut contact = json!({ "location_id": "sandbox-location-0000000001", "last_name": "Lee" });
        contact.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        asked(memory, Request::post(PATH), &json!({ "contact": contact }).to_string())
    }

    fn found(memory: &Memory, contact_api_id: &str) -> Value {
        let told = asked(memory, Request::get(format!("{PATH}?contact_api_id={contact_api_id}")), "");
        assert_eq!((told.status, told.email.as_deref()), (200, Some(&*contact_api_id.to_lowercase())));
        told.json()
    }

    #[test]
    fn a_created_contact_has_every_documented_member_and_can_be_asked_for() {
        let memory = Memory::default();
        let told = posted(&memory, json!({ "contact_api_id": "A-137", "cell_phone": "1234567890" }));
        assert_eq!((told.status, told.effect, told.email.as_deref()), (201, Effect::Created, Some("a-137")));
        let contact = &told.json()["contact"];
        assert_eq!(contact["id"].as_str().unwrap().len(), 24);
        assert!(contact["created_ts"].is_u64() && contact["email"].is_null());
        assert!(contact["_links"]["self"]["href"].as_str().unwrap().ends_with(contact["id"].as_str().unwrap()));
        let list = found(&memory, "A-137");
        assert_eq!((&list["contacts"][0], &list["meta"]["pagination"]["totalCount"]), (contact, &json!(1)));
        assert_eq!(found(&memory, "unknown")["contacts"], json!([]));
        memory.forget_leads();
        assert_eq!(found(&memory, "A-137")["contacts"], json!([]));
    }

    #[test]
    fn a_known_contact_is_refused_unless_it_is_to_be_updated() {
        let memory = Memory::default();
        let first = posted(&memory, json!({ "contact_api_id": "1", "city": "Ann Arbor" })).json();
        let again = posted(&memory, json!({ "contact_api_id": "1" }));
        assert_eq!((again.status, again.effect), (422, Effect::Duplicate));
        assert!(again.json()["errors"]["contact_api_id"][0].is_string());
        let update = posted(&memory, json!({ "contact_api_id": "1", "state": "MI", "update_if_exists": 1 }));
        assert_eq!((update.status, update.effect), (200, Effect::Duplicate));
        let contact = &update.json()["contact"];
        assert_eq!((&contact["id"], &contact["city"]), (&first["contact"]["id"], &json!("Ann Arbor")));
        assert_eq!((&contact["state"], contact.get(UPDATE)), (&json!("MI"), None));
        assert_eq!(posted(&memory, json!({ "contact_api_id": "2", "update_if_exists": 1 })).status, 201);
    }

    #[test]
    fn contacts_without_an_id_of_the_client_are_never_duplicates() {
        let memory = Memory::default();
        let ids =
            [posted(&memory, json!({})), posted(&memory, json!({}))].map(|told| told.json()["contact"]["id"].clone());
        assert_ne!(ids[0], ids[1]);
    }

    #[test]
    fn what_is_no_contact_is_refused_by_what_it_is() {
        let status = |body: &str| asked(&Memory::default(), Request::post(PATH), body).status;
        assert_eq!(status(r#"{"contact":"#), 400);
        for body in ["[]", "{}", r#"{"last_name":"Lee"}"#, r#"{"contact":[]}"#, r#"{"contact":{},"more":1}"#] {
            assert_eq!(status(body), 422, "{body}");
        }
        assert_eq!(asked(&Memory::default(), Request::get(PATH), "").status, 400);
    }
}
