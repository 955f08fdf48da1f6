//! One token for all leads: fetched by one caller, renewed before it expires, dropped when the API refuses it.
//!
//! ```text
//!   0 %                          75 %                 95 %      100 %
//!   |── used ────────────────────|── used, renewed ───|── not used: callers wait for a new one
//!                                   in the background
//! ```
//!
//! # Rules
//! - Lifetimes are measured on the monotonic clock from when the request left, never from the token or a wall clock.
//! - Single flight: while one caller fetches, the others wait for its result, be it a token or an error.
//! - Invalidation names the token that was refused: a late 401 for an old token does not throw the new one away.
//! - A slow token endpoint never stops callers that still have a valid token.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{AuthError, ClientCredentials, Token};

/// After a renewal in the background has failed, the next one waits this long, or a tenth of the lifetime if that is less.
const RENEWAL_PAUSE: Duration = Duration::from_secs(10);

/// The cache; clones share it.
#[derive(Debug, Clone)]
pub struct Tokens {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    source: ClientCredentials,
    state: Mutex<State>,
    /// Held by whoever fetches.
    flight: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    token: Option<Token>,
    /// How many tokens there have been.
    serial: u64,
    /// The last failure, and when it was.
    failure: Option<(Instant, AuthError)>,
    /// No renewal in the background before then.
    renewal_pause: Option<Instant>,
    renewing: bool,
}

/// What is known of the tokens, for health and metrics.
#[derive(Debug, Clone)]
pub struct TokenStatus {
    /// How long the token in hand can still be used; `None` without one.
    pub valid_for: Option<Duration>,
    /// How many tokens were fetched by this process.
    pub fetched: u64,
    /// Why there is no token, if the last fetch failed.
    pub failure: Option<String>,
}

impl Tokens {
    /// A cache in front of this source.
    pub fn new(source: ClientCredentials) -> Self {
        Self { inner: Arc::new(Inner { source, state: Mutex::default(), flight: tokio::sync::Mutex::default() }) }
    }

    /// A token that is valid now.
    ///
    /// # Errors
    /// Why none can be had. All callers that waited for the same fetch get the same error.
    pub async fn get(&self) -> Result<Token, AuthError> {
        let asked_at = Instant::now();
        if let Some(token) = self.valid(asked_at) {
            self.renew_if_due(&token, asked_at);
            return Ok(token);
        }
        let _flight = self.inner.flight.lock().await;
        if let Some(token) = self.valid(Instant::now()) {
            return Ok(token);
        }
        // Somebody's fetch failed while we waited for it: it was ours too.
        let failure = self.lock().failure.clone();
        if let Some((_, error)) = failure.filter(|(failed_at, _)| *failed_at >= asked_at) {
            return Err(error);
        }
        self.fetch().await
    }

    /// Whether a token is in hand that can be used now.
    pub fn has_valid(&self) -> bool {
        self.valid(Instant::now()).is_some()
    }

    /// Forgets a token that the API did not accept, unless it has been replaced already.
    pub fn invalidate(&self, refused: &Token) {
        let mut state = self.lock();
        if state.token.as_ref().is_some_and(|token| token.serial == refused.serial) {
            state.token = None;
        }
    }

    /// What is known of the tokens.
    pub fn status(&self) -> TokenStatus {
        let now = Instant::now();
        let state = self.lock();
        TokenStatus {
            valid_for: state.token.as_ref().map(|token| token.expires_at.saturating_duration_since(now)),
            fetched: state.serial,
            failure: state.failure.as_ref().map(|(_, error)| error.to_string()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic half-way through a change.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn valid(&self, now: Instant) -> Option<Token> {
        self.lock().token.clone().filter(|token| now < token.expires_at)
    }

    /// Fetches a token; the caller holds the flight.
    async fn fetch(&self) -> Result<Token, AuthError> {
        let left_at = Instant::now();
        let result = self.inner.source.fetch().await;
        let mut state = self.lock();
        match result {
            Ok(grant) => {
                state.serial += 1;
                let token = Token {
                    authorization: grant.authorization,
                    serial: state.serial,
                    expires_at: left_at + grant.lifetime.mul_f64(0.95),
                    renew_at: left_at + grant.lifetime.mul_f64(0.75),
                };
                state.token = Some(token.clone());
                state.failure = None;
                tracing::info!(token.lifetime_s = grant.lifetime.as_secs(), "got an access token");
                Ok(token)
            }
            Err(error) => {
                state.failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn renew_if_due(&self, token: &Token, now: Instant) {
        if now < token.renew_at {
            return;
        }
        let mut state = self.lock();
        if state.renewing || state.renewal_pause.is_some_and(|until| now < until) {
            return;
        }
        state.renewing = true;
        drop(state);
        let tokens = self.clone();
        let pause = RENEWAL_PAUSE.min((token.expires_at - token.renew_at) / 2);
        tokio::spawn(async move {
            let _flight = tokens.inner.flight.lock().await;
            let result = tokens.fetch().await;
            let mut state = tokens.lock();
            state.renewing = false;
            if let Err(error) = result {
                state.renewal_pause = Some(Instant::now() + pause);
                tracing::warn!(error = %error, "could not renew the access token early; the old one is still in use");
            }
        });
    }
}
