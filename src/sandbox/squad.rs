//! The leads of SquadRun's API v1 and SquadIQ's v4: `POST /api/v1/leads/create/{campaign_id}/`.
//!
//! Sources: the vendor's pages name the paths, the mandatory members, that a body is one lead or an array of them, that
//! `lead_id` is unique within its campaign, and the statuses 201, 400, 403 and 429. They show no answer: every body here
//! is made up, and so is that a second lead with a `lead_id` is answered 400, and that of several leads either all are
//! taken or none. That a dead token is answered 403 is documented, and was measured at a Django server like theirs; such
//! a server answers with a page.

use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value, json};

use super::api::Desk;
use super::entry::{ContentType, Effect, Endpoint};
use super::head::content_type;
use super::oauth_toolkit;
use super::reply::{HTML, Reply};
use super::settings::Profile;

/// A campaign for those who need one; any other is as good.
pub(super) const V1_PATH: &str = "/api/v1/leads/create/7/";
pub(super) const V4_PATH: &str = "/api/v4/leads/create/7/";

/// What a request is addressed to.
pub(super) fn endpoint(profile: Profile, method: &Method, path: &str) -> Option<Endpoint> {
    match (profile, path) {
        _ if method != Method::POST => None,
        (Profile::SquadRun, oauth_toolkit::TOKEN_PATH) => Some(Endpoint::Token),
        (Profile::SquadRun, oauth_toolkit::REVOKE_PATH) => Some(Endpoint::Logout),
        _ => campaign(profile, path).map(|_| Endpoint::Leads),
    }
}

fn campaign(profile: Profile, path: &str) -> Option<&str> {
    let version = if profile == Profile::SquadIq { "/api/v4" } else { "/api/v1" };
    let campaign = path.strip_prefix(version)?.strip_prefix("/leads/create/")?.strip_suffix('/')?;
    (!campaign.is_empty() && !campaign.contains('/')).then_some(campaign)
}

/// The answer to one request too many, as the vendor words it. There is no `Retry-After`.
pub(super) fn too_many() -> Reply {
    Reply::json(StatusCode::TOO_MANY_REQUESTS, r#"{"detail":"You hit a rate limit!"}"#)
}

/// A body that has been read, well or not.
#[derive(Debug)]
pub(super) struct Draft {
    /// The email of the first lead, or else its `lead_id`; in lower case.
    pub(super) email: Option<Arc<str>>,
    campaign: Box<str>,
    /// The `lead_id` of each lead.
    leads: Result<Vec<String>, Refusal>,
}

/// The member that is wrong, and why.
#[derive(Debug)]
struct Refusal {
    member: &'static str,
    reason: &'static str,
}

impl Draft {
    /// Reads a body and finds what is wrong with it.
    pub(super) fn read(profile: Profile, path: &str, headers: &HeaderMap, body: &[u8]) -> Self {
        let campaign = campaign(profile, path).unwrap_or_default().into();
        let leads = parse(headers, body);
        let first = leads.as_ref().ok().and_then(|leads| leads.first());
        let email = first.and_then(|lead| text(lead, "email").or_else(|| text(lead, "lead_id")));
        let email = email.map(|email| Arc::from(email.trim().to_lowercase()));
        let leads = leads.and_then(|leads| leads.iter().map(lead_id).collect());
        Self { email, campaign, leads }
    }

    /// Answers the request: everything from the token to the leads that exist afterwards.
    pub(super) fn answer(&self, desk: &Desk<'_>) -> (Reply, Effect) {
        if !desk.token_ok {
            let page = "<!doctype html>\n<title>403 Forbidden</title>\n<h1>403 Forbidden</h1>\n";
            return (Reply::json(StatusCode::FORBIDDEN, page).of_type(HTML), Effect::Nothing);
        }
        let lead_ids = match &self.leads {
            Ok(lead_ids) => lead_ids,
            Err(refusal) => return (refusal.reply(), Effect::Nothing),
        };
        // No campaign has a slash in it.
        let identity = |lead_id: &String| Arc::from(format!("{}/{lead_id}", self.campaign));
        let identities: Vec<Arc<str>> = lead_ids.iter().map(identity).collect();
        let Ok(ids) = desk.memory.leads.file_all(&identities) else {
            let known = Refusal { member: "lead_id", reason: "Lead with this lead_id already exists." };
            return (known.reply(), Effect::Duplicate);
        };
        let leads = lead_ids.iter().zip(ids).map(|(lead_id, id)| json!({ "lead_id": lead_id, "id": id }));
        let body = json!({ "leads": leads.collect::<Vec<_>>() });
        (Reply::json(StatusCode::CREATED, body.to_string()), Effect::Created)
    }
}

impl Refusal {
    fn reply(&self) -> Reply {
        Reply::json(StatusCode::BAD_REQUEST, json!({ self.member: [self.reason] }).to_string())
    }
}

fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Vec<Map<String, Value>>, Refusal> {
    let whole = |reason| Err(Refusal { member: "non_field_errors", reason });
    if content_type(headers) != Some(ContentType::Json) {
        return whole("The body must be JSON.");
    }
    let leads = match serde_json::from_slice(body) {
        Ok(Value::Array(leads)) => leads,
        Ok(lead) => vec![lead],
        Err(_) => return whole("The body is not JSON."),
    };
    if leads.is_empty() {
        return whole("There is no lead in it.");
    }
    let object = |lead| match lead {
        Value::Object(lead) => Ok(lead),
        _ => Err(Refusal { member: "non_field_errors", reason: "A lead must be an object." }),
    };
    leads.into_iter().map(object).collect()
}

/// The `lead_id` of a lead that has all that is mandatory.
fn lead_id(lead: &Map<String, Value>) -> Result<String, Refusal> {
    let needed = |member| text(lead, member).ok_or(Refusal { member, reason: "This field is required." });
    needed("phone_number")?;
    needed("lead_id")
}

/// A member that is a text, or a number in place of one, and not blank.
fn text(lead: &Map<String, Value>, member: &str) -> Option<String> {
    let text = match lead.get(member)? {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::super::api::Memory;
    use super::super::api::trial::{Told, ask};
    use super::super::settings::Tuning;
    use super::*;

    const ANN: &str = r#"{"lead_id":"A-1","phone_number":"+911234567890","contact_name":"Ann"}"#;

    fn posted(memory: &Memory, path: &str, body: &str) -> Told {
        let request = Request::post(path)
            .header("authorization", "Bearer sandbox-bearer-token")
            .header("content-type", "application/json");
        ask(&Tuning::of(Profile::SquadIq), memory, request.body(body).unwrap())
    }

    #[test]
    fn one_lead_and_an_array_of_leads_are_taken_alike() {
        let memory = Memory::default();
        let one = posted(&memory, V4_PATH, ANN);
        assert_eq!((one.status, one.effect, one.email.as_deref()), (201, Effect::Created, Some("a-1")));
        let several = r#"[{"lead_id":2,"phone_number":"1","email":"Bob@X.io"},{"lead_id":"c","phone_number":"2"}]"#;
        let several = posted(&memory, V4_PATH, several);
        assert_eq!((several.status, several.email.as_deref()), (201, Some("bob@x.io")));
        assert_eq!(several.json()["leads"][1]["lead_id"], "c");
    }

    #[test]
    fn a_lead_id_is_unique_within_its_campaign_only() {
        let memory = Memory::default();
        assert_eq!(posted(&memory, "/api/v4/leads/create/7/", ANN).status, 201);
        let again = posted(&memory, "/api/v4/leads/create/7/", &format!("[{ANN}]"));
        assert_eq!((again.status, again.effect), (400, Effect::Duplicate));
        assert!(again.json()["lead_id"][0].as_str().unwrap().contains("already exists"));
        assert_eq!(posted(&memory, "/api/v4/leads/create/spring/", ANN).status, 201);
    }

    #[test]
    fn a_refusal_names_the_member_that_is_wrong() {
        for (body, member) in [
            (r#"{"phone_number":"1"}"#, "lead_id"),
            (r#"{"lead_id":" ","phone_number":"1"}"#, "lead_id"),
            (r#"{"lead_id":"a"}"#, "phone_number"),
            (r#"[{"lead_id":"a","phone_number":"1"},{"lead_id":"b","phone_number":null}]"#, "phone_number"),
            ("[]", "non_field_errors"),
            ("[1]", "non_field_errors"),
            ("{", "non_field_errors"),
        ] {
            let told = posted(&Memory::default(), V4_PATH, body);
            assert_eq!((told.status, told.effect), (400, Effect::Nothing), "{body}");
            assert!(told.json()[member][0].is_string(), "{body}");
        }
    }

    #[test]
    fn a_campaign_is_any_one_segment() {
        assert_eq!(campaign(Profile::SquadRun, "/api/v1/leads/create/a-7/"), Some("a-7"));
        for path in ["/api/v1/leads/create//", "/api/v1/leads/create/7", "/api/v1/leads/create/7/8/", V4_PATH] {
            assert_eq!(campaign(Profile::SquadRun, path), None, "{path}");
        }
    }
}
