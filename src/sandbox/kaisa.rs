//! Kaisa, formerly Freespee: a token for five minutes, and customers as forms.
//!
//! Sources: the vendor's pages name the parameters of a token request (as JSON or as a form, never HTTP Basic), its
//! lifetime, the fields of a customer with their lengths, and that parameters are sent url-encoded; the vendor's own
//! clients show the envelope of an answer, `{"errors": [..]}` and the ping, and that a client looks for `errors`
//! whatever the status. Made up: the answer to a token request (that of RFC 6749), that a token goes as Bearer, that errors come with status 200,
//! the page with status 415 for a body of another type, that unknown parameters are ignored, and the wording.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::{Map, Value, json};
use url::form_urlencoded;
use uuid::Uuid;

use super::api::Desk;
use super::entry::{ContentType, Effect, Endpoint};
use super::head::content_type;
use super::leads::Filed;
use super::reply::Reply;
use super::tokens;

/// Where tokens are given. At Kaisa itself, that is another host.
pub(super) const TOKEN_PATH: &str = "/oauth2/token";

/// Where customers are created, in a version for those who need one; any other is as good.
pub(super) const CUSTOMERS_PATH: &str = "/2.4.9/customers";

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// The fields of a customer with a name of their own, and the most characters of each.
const FIELDS: [(&str, usize); 4] = [("name", 60), ("custnr", 45), ("email", 150), ("corporateid", 40)];

/// How many fields `custom_1`, `custom_2` and so on there are, and the most characters of each.
const CUSTOM_FIELDS: (usize, usize) = (20, 255);

/// What a request is addressed to.
pub(super) fn endpoint(method: &Method, path: &str) -> Option<Endpoint> {
    if method == Method::POST && path == TOKEN_PATH {
        return Some(Endpoint::Token);
    }
    let (version, resource) = path.strip_prefix('/')?.split_once('/')?;
    match (method, resource) {
        _ if version.is_empty() => None,
        (&Method::POST, "customers") => Some(Endpoint::Leads),
        (&Method::GET, "miscellaneous/ping") => Some(Endpoint::Query),
        _ => None,
    }
}

/// Answers a request for a token. The names of the errors are those of RFC 6749, 5.2.
pub(super) fn give_token(desk: &Desk<'_>) -> (Reply, Effect) {
    let tuning = desk.tuning;
    let refused = |status, error: &str| (Reply::json(status, json!({ "error": error }).to_string()), Effect::Nothing);
    let Some(parameters) = parameters(&desk.head.headers, desk.body) else {
        return refused(StatusCode::BAD_REQUEST, "invalid_request");
    };
    let is = |name: &str, value: &str| parameters.get(name).is_some_and(|found| found == value);
    if !is("client_id", &tuning.client_id) || !is("client_secret", &tuning.client_secret) {
        return refused(StatusCode::UNAUTHORIZED, "invalid_client");
    }
    if !is("grant_type", "client_credentials") {
        return refused(StatusCode::BAD_REQUEST, "unsupported_grant_type");
    }
    let token = tokens::make("", tuning.token_length);
    desk.memory.tokens.issue(&token, tuning.token_lifetime);
    let expires_in = tuning.announced_lifetime_s();
    let body = json!({ "access_token": token, "token_type": "Bearer", "expires_in": expires_in });
    (Reply::json(StatusCode::OK, body.to_string()), Effect::Issued)
}

/// The parameters of a token request, `None` if the body is neither a form nor a JSON object of texts.
fn parameters(headers: &HeaderMap, body: &[u8]) -> Option<HashMap<String, String>> {
    match content_type(headers)? {
        ContentType::Form => Some(form_urlencoded::parse(body).into_owned().collect()),
        ContentType::Json => serde_json::from_slice(body).ok(),
        ContentType::Other => None,
    }
}

/// Answers whether the API is there.
pub(super) fn ping(desk: &Desk<'_>) -> (Reply, Effect) {
    let reply = if desk.token_ok { Reply::json(StatusCode::OK, r#"{"ping":"ok"}"#) } else { unauthorized() };
    (reply, Effect::Nothing)
}

/// A body that has been read, well or not.
#[derive(Debug)]
pub(super) struct Draft {
    /// The customer's email, or else its `custnr`; in lower case.
    pub(super) email: Option<Arc<str>>,
    /// `None` when it is no form.
    fields: Option<HashMap<String, String>>,
}

impl Draft {
    /// Reads a body.
    pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> Self {
        let is_form = content_type(headers) == Some(ContentType::Form);
        let fields: Option<HashMap<_, _>> = is_form.then(|| form_urlencoded::parse(body).into_owned().collect());
        let given = |name| fields.as_ref()?.get(name).map(|value| value.trim()).filter(|value| !value.is_empty());
        let email = given("email").or_else(|| given("custnr")).map(|email| Arc::from(email.to_lowercase()));
        Self { email, fields }
    }

    /// Answers the request: everything from the token to the customer that exists afterwards.
    pub(super) fn answer(&self, desk: &Desk<'_>) -> (Reply, Effect) {
        if !desk.token_ok {
            return (unauthorized(), Effect::Nothing);
        }
        let Some(fields) = &self.fields else {
            let page = "Unsupported Media Type: send parameters as application/x-www-form-urlencoded\n";
            return (Reply::json(StatusCode::UNSUPPORTED_MEDIA_TYPE, page).of_type(TEXT), Effect::Nothing);
        };
        let errors = faults_of(fields);
        let custnr = match fields.get("custnr") {
            Some(custnr) if errors.is_empty() => custnr,
            _ => return (refusal(StatusCode::OK, &errors), Effect::Nothing),
        };
        match desk.memory.leads.file(&Arc::from(custnr.as_str())) {
            Filed::Known(_) => {
                (refusal(StatusCode::OK, &[format!("custnr {custnr} already exists")]), Effect::Duplicate)
            }
            Filed::New(id) => (Reply::json(StatusCode::OK, created(fields, id).to_string()), Effect::Created),
        }
    }
}

/// All that is wrong with a customer.
fn faults_of(fields: &HashMap<String, String>) -> Vec<String> {
    let mut errors = Vec::new();
    for name in ["name", "custnr"] {
        if fields.get(name).is_none_or(|value| value.trim().is_empty()) {
            errors.push(format!("{name} is mandatory"));
        }
    }
    for (name, most) in known_fields() {
        if fields.get(&name).is_some_and(|value| value.chars().count() > most) {
            errors.push(format!("{name} is longer than {most} characters"));
        }
    }
    errors
}

/// The name of every field that is kept, and the most characters of each.
fn known_fields() -> impl Iterator<Item = (String, usize)> {
    let (count, most) = CUSTOM_FIELDS;
    let custom = (1..=count).map(move |n| (format!("custom_{n}"), most));
    FIELDS.into_iter().map(|(name, most)| (name.to_owned(), most)).chain(custom)
}

fn created(fields: &HashMap<String, String>, id: u64) -> Value {
    let mut customer = Map::new();
    customer.insert("customer_id".to_owned(), id.into());
    for (name, _) in known_fields() {
        // The four are always there, those with a number only if they were sent.
        match fields.get(&name) {
            Some(value) => drop(customer.insert(name, value.as_str().into())),
            None if name.starts_with("custom_") => {}
            None => drop(customer.insert(name, Value::Null)),
        }
    }
    customer.insert("uuid".to_owned(), Uuid::new_v4().to_string().into());
    json!({ "customers": [customer], "total": 1, "page": 1, "pagesize": 50, "numpages": 1 })
}

fn refusal(status: StatusCode, errors: &[String]) -> Reply {
    Reply::json(status, json!({ "errors": errors }).to_string())
}

fn unauthorized() -> Reply {
    refusal(StatusCode::UNAUTHORIZED, &["the access token is missing, unknown or expired".to_owned()])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;

    use super::super::api::Memory;
    use super::super::api::trial::{Told, ask};
    use super::super::settings::{Profile, Tuning};
    use super::*;

    const FORM: &str = "application/x-www-form-urlencoded";

    fn posted(memory: &Memory, path: &str, content_type: &str, body: &str) -> Told {
        memory.tokens.issue("token", Duration::from_secs(60));
        let request = Request::post(path).header("authorization", "Bearer token").header("content-type", content_type);
        ask(&Tuning::of(Profile::Kaisa), memory, request.body(body).unwrap())
    }

    #[test]
    fn a_customer_comes_back_in_an_envelope_with_what_was_sent() {
        let body = "name=Ann+Lee&custnr=C-1&custom_20=%C3%A4&custom_21=lost";
        let told = posted(&Memory::default(), CUSTOMERS_PATH, FORM, body);
        assert_eq!((told.status, told.effect, told.email.as_deref()), (200, Effect::Created, Some("c-1")));
        let answer = told.json();
        let customer = &answer["customers"][0];
        assert!(customer["customer_id"].is_u64() && customer["uuid"].is_string());
        assert_eq!((&customer["name"], &customer["custom_20"]), (&json!("Ann Lee"), &json!("\u{e4}")));
        assert_eq!((&customer["email"], customer.get("custom_21")), (&Value::Null, None));
        assert_eq!((&answer["total"], &answer["page"], &answer["numpages"]), (&json!(1), &json!(1), &json!(1)));
    }

    #[test]
    fn what_is_wrong_is_told_with_status_200() {
        let memory = Memory::default();
        let long = "x".repeat(256);
        for (body, reasons) in [
            ("email=a%40b.io", &["name is mandatory", "custnr is mandatory"][..]),
            ("name=Ann&custnr=+", &["custnr is mandatory"]),
            (&format!("name={long}&custnr=1&custom_3={long}"), &["name is longer", "custom_3 is longer"]),
        ] {
            let told = posted(&memory, CUSTOMERS_PATH, FORM, body);
            assert_eq!((told.status, told.effect), (200, Effect::Nothing));
            let errors = told.json()["errors"].as_array().unwrap().clone();
            assert_eq!(errors.len(), reasons.len(), "{errors:?}");
            assert!(errors.iter().zip(reasons).all(|(error, reason)| error.as_str().unwrap().contains(reason)));
        }
        assert_eq!(posted(&memory, CUSTOMERS_PATH, FORM, "name=Ann&custnr=1").effect, Effect::Created);
        let again = posted(&memory, "/3.0/customers", FORM, "name=Bob&custnr=1");
        assert_eq!((again.status, again.effect), (200, Effect::Duplicate));
        assert!(again.json()["errors"][0].as_str().unwrap().contains("already exists"));
    }

    #[test]
    fn a_customer_as_json_is_told_off_in_plain_text() {
        let told = posted(&Memory::default(), CUSTOMERS_PATH, "application/json", r#"{"name":"Ann","custnr":"1"}"#);
        assert_eq!((told.status, told.reply.content_type.as_ref()), (415, Some(&TEXT)));
    }

    #[test]
    fn a_token_is_given_for_a_form_and_for_json_alike() {
        let ask = |content_type: &str, body: &str| {
            let told = posted(&Memory::default(), TOKEN_PATH, content_type, body);
            (told.status, told.json()["error"].as_str().map(str::to_owned), told.json()["expires_in"].as_u64())
        };
        let form = "grant_type=client_credentials&client_id=sandbox-client&client_secret=sandbox-secret";
        let json =
            r#"{"grant_type":"client_credentials","client_id":"sandbox-client","client_secret":"sandbox-secret"}"#;
        assert_eq!(ask(FORM, form), (200, None, Some(300)));
        assert_eq!(ask("application/json", json), (200, None, Some(300)));
        let refused = |status, error: &str| (status, Some(error.to_owned()), None);
        assert_eq!(ask(FORM, "grant_type=client_credentials"), refused(401, "invalid_client"));
        assert_eq!(ask(FORM, &form.replace("client_credentials", "password")), refused(400, "unsupported_grant_type"));
        assert_eq!(ask("application/json", form), refused(400, "invalid_request"));
        assert_eq!(ask("text/plain", form), refused(400, "invalid_request"));
    }

    #[test]
    fn any_version_is_played() {
        assert_eq!(endpoint(&Method::POST, "/2.4.9/customers"), Some(Endpoint::Leads));
        assert_eq!(endpoint(&Method::GET, "/3/miscellaneous/ping"), Some(Endpoint::Query));
        for path in ["/customers", "//customers", "/2.4.9/customers/7", "/2.4.9/orders"] {
            assert_eq!(endpoint(&Method::POST, path), None, "{path}");
        }
    }
}
