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
//! - A session that slides is not renewed ahead of time: each success begins its lifetime anew, and only one that was idle for too
//!   long ends.
//! - Refresh tokens stay here: whoever fetches uses the one that came last, and a token that is dropped leaves it behind.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{AuthError, Grant, Login, Token};
use crate::config::Secret;
use crate::reason::Reason;

/// After a renewal in the background has failed, the next one waits this long, or a tenth of the lifetime if that is less.
const RENEWAL_PAUSE: Duration = Duration::from_secs(10);

/// A token is taken to live at least so long.
const MIN_LIFETIME: Duration = Duration::from_secs(1);

/// The share of its lifetime after which a token is renewed; AWS recommends it for Cognito.
const RENEW_AFTER: f64 = 0.75;

/// The share of its lifetime after which a token is not used any more: a request takes time to arrive.
const EXPIRES_AFTER: f64 = 0.95;

/// After so many failures in a row the refresh token is given up, and the next fetch logs in anew.
const MAX_REFRESH_FAILURES: u32 = 3;

/// The cache; clones share it.
#[derive(Debug, Clone)]
pub struct Tokens {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    login: Login,
    state: Mutex<State>,
    /// Held by whoever fetches.
    flight: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Current>,
    /// What gets the next token without logging in anew.
    refresh: Option<Secret>,
    /// How many tokens there have been.
    serial: u64,
    /// How many fetches came to nothing.
    failures: u64,
    /// The last failure, and when it was.
    failure: Option<(Instant, AuthError)>,
    /// No renewal in the background before then.
    renewal_pause: Option<Instant>,
    renewing: bool,
    /// How many fetches with the refresh token came to nothing, one after the other.
    refresh_failures: u32,
    /// Nothing is fetched any more.
    logged_out: bool,
}

/// The token in hand.
#[derive(Debug)]
struct Current {
    token: Token,
    /// As it was granted, for the log-out.
    granted: Secret,
    /// When it was asked for.
    since: Instant,
    lifetime: Duration,
    times: Times,
}

/// When a token is no longer used, and when it is renewed.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// Not to be used from then on; `None`: it does not end.
    expires_at: Option<Instant>,
    /// To be renewed in the background from then on.
    renew_at: Option<Instant>,
}

/// What is known of the tokens, for health and metrics.
#[derive(Debug, Clone)]
pub struct TokenStatus {
    /// Whether the credentials do not change, so that there is nothing to fetch.
    pub is_fixed: bool,
    /// How long ago the token in hand was asked for; `None` without one.
    pub age: Option<Duration>,
    /// How long the token in hand can still be used; `None` without one.
    pub valid_for: Option<Duration>,
    /// How many tokens were fetched by this process.
    pub fetched: u64,
    /// How many tries to fetch one came to nothing.
    pub failures: u64,
    /// Why there is no token, if the last fetch failed.
    pub failure: Option<String>,
}

impl Times {
    fn of(lifetime: Duration, since: Instant, is_sliding: bool) -> Self {
        // Whatever a server says, a log-in serves more than one lead.
        let lifetime = lifetime.max(MIN_LIFETIME);
        let after = |share: f64| Duration::try_from_secs_f64(lifetime.as_secs_f64() * share).ok();
        let at = |share: f64| after(share).and_then(|after| since.checked_add(after));
        Self { expires_at: at(EXPIRES_AFTER), renew_at: if is_sliding { None } else { at(RENEW_AFTER) } }
    }

    fn is_over(at: Option<Instant>, now: Instant) -> bool {
        at.is_some_and(|at| at <= now)
    }
}

impl Tokens {
    /// A cache in front of this log-in.
    pub fn new(login: Login) -> Self {
        let tokens =
            Self { inner: Arc::new(Inner { login, state: Mutex::default(), flight: tokio::sync::Mutex::default() }) };
        if tokens.is_fixed() {
            tokens.keep(Grant::nothing(), Instant::now());
        }
        tokens
    }

    /// A token that is valid now.
    ///
    /// # Errors
    /// Why none can be had. All callers that waited for the same fetch get the same error.
    pub async fn get(&self) -> Result<Token, AuthError> {
        let asked_at = Instant::now();
        if let Some((token, times)) = self.valid(asked_at) {
            self.renew_if_due(&token, times, asked_at);
            return Ok(token);
        }
        let _flight = self.inner.flight.lock().await;
        if let Some((token, _)) = self.valid(Instant::now()) {
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

    /// Whether the credentials do not change: what the API refuses once it refuses always.
    pub fn is_fixed(&self) -> bool {
        self.inner.login.is_fixed()
    }

    /// What to check when the API refuses credentials that do not change; empty for those that do.
    pub fn hint(&self) -> &'static str {
        self.inner.login.hint()
    }

    /// Whether a token is the one in hand: no other one has replaced it.
    pub fn is_current(&self, token: &Token) -> bool {
        self.lock().current.as_ref().is_some_and(|current| current.token.serial == token.serial)
    }

    /// Forgets a token that the API did not accept, unless it has been replaced already.
    pub fn invalidate(&self, refused: &Token) {
        let mut state = self.lock();
        let is_current = state.current.as_ref().is_some_and(|current| current.token.serial == refused.serial);
        if is_current && !self.is_fixed() {
            state.current = None;
        }
    }

    /// Says that the API took a request with this token, which began then. A session that slides lives on from there.
    pub fn succeeded(&self, token: &Token, began_at: Instant) {
        if !self.inner.login.is_sliding() {
            return;
        }
        let mut state = self.lock();
        if let Some(current) = state.current.as_mut().filter(|current| current.token.serial == token.serial) {
            let times = Times::of(current.lifetime, began_at, true);
            current.times.expires_at = current.times.expires_at.max(times.expires_at);
        }
    }

    /// Ends what was granted, where the API can do that. To be called when nothing is sent any more.
    pub async fn log_out(&self) {
        let _flight = self.inner.flight.lock().await;
        let (current, refresh) = {
            let mut state = self.lock();
            state.logged_out = true;
            (state.current.take(), state.refresh.take())
        };
        let granted = current.map(|current| current.granted);
        match self.inner.login.end(granted.as_ref(), refresh.as_ref()).await {
            Ok(()) => tracing::debug!("logged out"),
            Err(error) => {
                tracing::warn!(error = %error.reason().text, "could not log out; what was granted ends by itself")
            }
        }
    }

    /// What is known of the tokens.
    pub fn status(&self) -> TokenStatus {
        let now = Instant::now();
        let state = self.lock();
        let left = |current: &Current| {
            current.times.expires_at.map_or(Duration::MAX, |expires_at| expires_at.saturating_duration_since(now))
        };
        TokenStatus {
            is_fixed: self.is_fixed(),
            age: state.current.as_ref().map(|current| now.saturating_duration_since(current.since)),
            valid_for: state.current.as_ref().map(left),
            fetched: state.serial,
            failures: state.failures,
            failure: state.failure.as_ref().map(|(_, error)| error.to_string()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic half-way through a change.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn valid(&self, now: Instant) -> Option<(Token, Times)> {
        let state = self.lock();
        let current = state.current.as_ref().filter(|current| !Times::is_over(current.times.expires_at, now))?;
        Some((current.token.clone(), current.times))
    }

    /// Fetches a token; the caller holds the flight.
    async fn fetch(&self) -> Result<Token, AuthError> {
        let left_at = Instant::now();
        let refresh = {
            let state = self.lock();
            if state.logged_out {
                return Err(AuthError::Unavailable(Reason::new("logged_out", "the worker has logged out"), None));
            }
            state.refresh.clone()
        };
        match self.inner.login.fetch(refresh.as_ref()).await {
            Ok(grant) => {
                tracing::info!(token.lifetime_s = grant.lifetime.as_secs(), "got an access token");
                Ok(self.keep(grant, left_at))
            }
            Err(error) => {
                let mut state = self.lock();
                state.failure = Some((Instant::now(), error.clone()));
                state.failures += 1;
                state.refresh_failures += u32::from(refresh.is_some());
                // Perhaps it is the refresh token that the server cannot deal with.
                if state.refresh_failures >= MAX_REFRESH_FAILURES {
                    state.refresh = None;
                    state.refresh_failures = 0;
                }
                Err(error)
            }
        }
    }

    fn keep(&self, grant: Grant, left_at: Instant) -> Token {
        let credential = Arc::new(self.inner.login.credential(&grant));
        let times = Times::of(grant.lifetime, left_at, self.inner.login.is_sliding());
        let mut state = self.lock();
        // What cannot be fetched is not counted as fetched.
        state.serial += u64::from(!self.is_fixed());
        let token = Token { credential, serial: state.serial };
        state.refresh = grant.refresh;
        state.refresh_failures = 0;
        state.failure = None;
        state.current = Some(Current {
            token: token.clone(),
            granted: grant.token,
            since: left_at,
            lifetime: grant.lifetime,
            times,
        });
        token
    }

    fn renew_if_due(&self, token: &Token, times: Times, now: Instant) {
        if !Times::is_over(times.renew_at, now) {
            return;
        }
        let mut state = self.lock();
        if state.renewing || state.renewal_pause.is_some_and(|until| now < until) {
            return;
        }
        state.renewing = true;
        drop(state);
        let (tokens, due) = (self.clone(), token.clone());
        let rest = times.expires_at.zip(times.renew_at).map(|(end, renewal)| end.saturating_duration_since(renewal));
        let pause = rest.map_or(RENEWAL_PAUSE, |rest| RENEWAL_PAUSE.min(rest / 2));
        tokio::spawn(async move {
            let _flight = tokens.inner.flight.lock().await;
            // Refused and replaced while we waited, it needs no renewal.
            let result = if tokens.is_current(&due) { tokens.fetch().await.map(drop) } else { Ok(()) };
            let mut state = tokens.lock();
            state.renewing = false;
            if let Err(error) = result {
                state.renewal_pause = Some(Instant::now() + pause);
                tracing::warn!(error = %error, "could not renew the access token early; the old one is still in use");
            }
        });
    }
}
