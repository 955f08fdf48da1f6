//! Lead APIs by their presets, and a port that takes any request at all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use leadpost::config::Source;
use leadpost::lead::LeadId;
use leadpost::ledger::LeadState;
use leadpost::sandbox::{Endpoint, Entry, Fault, StatusAnswer};
use tokio::task::JoinHandle;

use super::{Running, World};

/// This status with this body as JSON.
pub fn answer(status: u16, body: &str) -> Fault {
    Fault::answer(StatusAnswer { body: Some(body.to_owned()), ..StatusAnswer::new(status) })
}

/// The members of a body that is a form.
pub fn form(body: &[u8]) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(body).into_owned().collect()
}

impl World {
    /// A world whose API is played as it really behaves, but for its limits of rate.
    pub async fn unlimited(preset: &str) -> Self {
        let mut world = Self::of_preset(preset).await;
        world.sandbox.tune(|tuning| tuning.rate_limit_per_min = None);
        world.settings.flow.rate_per_s = 0.0;
        world.destination.push(("LEADPOST__FLOW__RATE_PER_S".to_owned(), "0".to_owned()));
        world
    }

    /// Changes settings of the destination, such as `AUTH__KIND`: those of workers in this process and those of the binary.
    pub fn set(&mut self, pairs: &[(&str, &str)]) {
        let named = |(name, value): &(&str, &str)| (format!("LEADPOST__DESTINATION__{name}"), (*value).to_owned());
        self.destination.extend(pairs.iter().map(named));
        let env = self.destination.iter().cloned().collect();
        let source = Source { file: Some("/dev/null".into()), env, ..Source::default() };
        self.settings.destination = source.read().unwrap().destination;
    }

    /// A world whose leads, named by `name` alone, go to this port instead, with these settings of the destination besides.
    pub async fn towards(port: &Port, pairs: &[(&str, &str)]) -> Self {
        Self::at(&port.url("/leads"), pairs).await
    }

    /// The same for this URL.
    pub async fn at(url: &str, pairs: &[(&str, &str)]) -> Self {
        let mut world = Self::new().await;
        world.destination.clear();
        world.set(&[&[("PRESET", "7targets"), ("MANDATORY", "name"), ("REQUEST__URL", url)], pairs].concat());
        world
    }

    /// A lead that every preset takes, as JSON.
    pub fn any_lead(name: &str) -> String {
        format!(
            r#"{{"name":"{name}","lastName":"Lee","email":"{name}@example.com","phone":"+15550100199","assistantId":61,"assistantEmail":"bot@example.com"}}"#
        )
    }

    /// Publishes such a lead under a random id.
    pub async fn publish_any(&self, name: &str) -> LeadId {
        self.publish_body(&Self::any_lead(name)).await
    }

    /// Publishes so many of them.
    pub async fn publish_any_many(&self, name: &str, n: usize) -> Vec<LeadId> {
        let mut ids = Vec::with_capacity(n);
        for at in 0..n {
            ids.push(self.publish_any(&format!("{name}{at}")).await);
        }
        ids
    }

    /// Publishes such a lead, and waits until it is delivered.
    pub async fn one_more(&self, name: &str) -> LeadId {
        let id = self.publish_any(name).await;
        self.until_state(id, LeadState::Delivered).await;
        id
    }

    /// The requests to an endpoint, in order.
    pub fn requests(&self, endpoint: Endpoint) -> Vec<Entry> {
        self.sandbox.journal().entries().into_iter().filter(|entry| entry.endpoint == endpoint).collect()
    }

    /// The forms that the token endpoint received, in order.
    pub fn token_forms(&self) -> Vec<BTreeMap<String, String>> {
        self.requests(Endpoint::Token).iter().map(|entry| form(entry.body.as_deref().unwrap_or_default())).collect()
    }

    /// By which grants tokens were asked for, in order.
    pub fn grants(&self) -> Vec<String> {
        self.token_forms().into_iter().map(|mut form| form.remove("grant_type").unwrap_or_default()).collect()
    }

    /// Waits until the worker says this of its token.
    pub async fn until_token(&self, running: &Running, says: &str) {
        self.until(&format!("the token's state says {says:?}"), async || {
            running.health.report().token.detail.contains(says)
        })
        .await;
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Heard {
    pub method: String,
    /// Path and query, byte for byte.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Heard {
    /// The header of this name; `""` without one.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// All of it, as careless servers repeat it.
    pub fn whole(&self) -> String {
        let headers: Vec<String> = self.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        format!("{} {} {} {}", self.method, self.target, headers.join(" "), self.text())
    }
}

/// A port that takes any request, keeps it as it came, and answers what it is told to.
pub struct Port {
    url: String,
    heard: Arc<Mutex<Vec<Heard>>>,
    serving: JoinHandle<()>,
}

impl Port {
    /// Answers with a status and a body that is JSON.
    pub async fn open(answer: impl Fn(&Heard) -> (u16, String) + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (kept, answer) = (Arc::clone(&heard), Arc::new(answer));
        let app = Router::new().fallback(move |request: Request| {
            let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
            async move {
                let request = hear(request).await;
                let (status, body) = answer(&request);
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(request);
                let status = StatusCode::from_u16(status).unwrap();
                (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
            }
        });
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, heard, serving }
    }

    /// The URL of a path on it.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// The requests so far whose path begins so, in order.
    pub fn heard(&self, path: &str) -> Vec<Heard> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.iter().filter(|request| request.path().starts_with(path)).cloned().collect()
    }

    /// The only request whose path begins so.
    pub fn only(&self, path: &str) -> Heard {
        let heard = self.heard(path);
        let [only] = &heard[..] else { panic!("not one request to {path}: {heard:#?}") };
        only.clone()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn hear(request: Request) -> Heard {
    let (head, body) = request.into_parts();
    let text = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Heard {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body: to_bytes(body, usize::MAX).await.unwrap_or_default().to_vec(),
    }
}

/// A token that lives for an hour, as an OAuth 2.0 endpoint gives it.
pub fn token(token: &str) -> (u16, String) {
    (200, serde_json::json!({ "access_token": token, "token_type": "Bearer", "expires_in": 3600 }).to_string())
}

/// Long enough for a worker to do what it must not do.
pub const A_WHILE: Duration = Duration::from_millis(300);
