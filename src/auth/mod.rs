//! Logging in: one file for each way of it, and one cache in front of them that all leads share.
//!
//! ```text
//!   oauth2_client_credentials ─┐
//!   oauth2_password ───────────┤ fetch ──> Grant ──> cache ──> Token ──> headers, query of each request
//!   session_token ─────────────┘ end  <── at shutdown
//!   api_key, bearer, none ─────── nothing to fetch: a Token that never changes
//! ```
//!
//! # Rules
//! - A token is opaque (RFC 6749, section 1.4): it is never decoded, logged or stored.
//! - "Refused" and "unavailable" are told apart: wrong credentials are the operator's to mend and pause the flow; a token
//!   endpoint that is away is waited for. Neither is charged to a lead.
//! - Each process logs in for itself, keeps what it was given in memory, and ends only that. So workers that share an account
//!   cannot kill each other's tokens: a refresh replaces one grant's tokens, and a grant is one process's.
//! - What others say is cleaned of our secrets before it is an error.

mod api_key;
mod bearer;
mod cache;
mod client_credentials;
mod credential;
mod endpoint;
mod oauth2;
mod password;
mod session_token;

use std::fmt;
use std::time::Duration;

pub use cache::{TokenStatus, Tokens};
pub use credential::Credential;

use crate::config::{AuthKind, Destination, Secret};
use crate::http::ClientError;
use crate::reason::Reason;
use client_credentials::ClientCredentials;
use endpoint::Endpoint;
use password::Password;
use session_token::SessionToken;

/// What goes along with a request, and which of this process's tokens that is.
#[derive(Clone)]
pub struct Token {
    credential: std::sync::Arc<Credential>,
    /// Counts the tokens of this process, so that one can be told from the next without looking at them.
    serial: u64,
}

impl Token {
    /// What goes along with a request.
    pub fn credential(&self) -> &Credential {
        &self.credential
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("serial", &self.serial).finish_non_exhaustive()
    }
}

/// What a log-in gives.
struct Grant {
    /// The token, as it is sent.
    token: Secret,
    /// What gets the next token without the account's password.
    refresh: Option<Secret>,
    /// How long the token lives, counted from when it was asked for.
    lifetime: Duration,
}

impl Grant {
    /// Where there is nothing to fetch.
    fn nothing() -> Self {
        Self { token: Secret::default(), refresh: None, lifetime: Duration::MAX }
    }
}

/// Why there is no token.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthError {
    /// The credentials, the scope or the URL are wrong: a person has to mend the configuration.
    #[error("the token endpoint refuses us: {}", .0.text)]
    Refused(Reason),
    /// The endpoint is away, overloaded or talks nonsense: later.
    #[error("no token can be had now: {}", .0.text)]
    Unavailable(Reason, Option<Duration>),
}

impl AuthError {
    /// Why.
    pub fn reason(&self) -> &Reason {
        match self {
            AuthError::Refused(reason) | AuthError::Unavailable(reason, _) => reason,
        }
    }
}

/// A way of logging in, set up.
#[derive(Debug)]
pub struct Login {
    way: Way,
    /// What goes along with every request, token or not.
    fixed: Credential,
}

#[derive(Debug)]
enum Way {
    ClientCredentials(ClientCredentials),
    Password(Password),
    Session(Box<SessionToken>),
    /// There is nothing to fetch; what to check when it is refused.
    Fixed(&'static str),
}

impl Login {
    /// The log-in of this destination, which [`crate::config::check`] has found sound.
    ///
    /// # Errors
    /// When no HTTP client can be had.
    ///
    /// # Panics
    /// On settings that [`crate::config::check`] refuses.
    pub fn of(destination: &Destination) -> Result<Self, ClientError> {
        let fixed = Credential::fixed(destination);
        let endpoint = || Endpoint::of(destination, fixed.clone());
        Ok(match destination.auth.kind {
            AuthKind::Oauth2ClientCredentials => {
                Self { way: Way::ClientCredentials(ClientCredentials::of(destination, endpoint()?)), fixed }
            }
            AuthKind::Oauth2Password => Self { way: Way::Password(Password::of(destination, endpoint()?)), fixed },
            AuthKind::SessionToken => {
                Self { way: Way::Session(Box::new(SessionToken::of(destination, endpoint()?))), fixed }
            }
            AuthKind::ApiKey => {
                let hint = "check destination.auth.api_key_id, api_key and headers";
                Self { way: Way::Fixed(hint), fixed: api_key::credential(destination, fixed) }
            }
            AuthKind::Bearer => {
                let hint = "check destination.auth.bearer_token";
                Self { way: Way::Fixed(hint), fixed: bearer::credential(destination, fixed) }
            }
            AuthKind::None => Self { way: Way::Fixed("the API wants a log-in: check destination.auth.kind"), fixed },
        })
    }

    /// Whether there is nothing to fetch: what is refused once is refused always.
    fn is_fixed(&self) -> bool {
        matches!(self.way, Way::Fixed(_))
    }

    /// What to check when the API refuses what does not change.
    fn hint(&self) -> &'static str {
        match self.way {
            Way::Fixed(hint) => hint,
            Way::ClientCredentials(_) | Way::Password(_) | Way::Session(_) => "",
        }
    }

    /// Whether each success begins a token's lifetime anew.
    fn is_sliding(&self) -> bool {
        matches!(&self.way, Way::Session(session) if session.is_sliding())
    }

    /// Logs in.
    ///
    /// # Errors
    /// [`AuthError::Refused`] where asking again would get the same answer, [`AuthError::Unavailable`] otherwise.
    async fn fetch(&self, refresh: Option<&Secret>) -> Result<Grant, AuthError> {
        match &self.way {
            Way::ClientCredentials(way) => way.fetch().await,
            Way::Password(way) => way.fetch(refresh).await,
            Way::Session(way) => way.fetch().await,
            Way::Fixed(_) => Ok(Grant::nothing()),
        }
    }

    /// What goes along with a request under this grant.
    fn credential(&self, grant: &Grant) -> Credential {
        let secrets = || [Some(&grant.token), grant.refresh.as_ref()].into_iter().flatten();
        match &self.way {
            Way::ClientCredentials(_) | Way::Password(_) => {
                self.fixed.clone().with_bearer(&grant.token).knowing(secrets())
            }
            Way::Session(way) => way.carry(self.fixed.clone(), &grant.token).knowing(secrets()),
            Way::Fixed(_) => self.fixed.clone(),
        }
    }

    /// Logs out, where the API has that.
    ///
    /// # Errors
    /// Why that did not work; what was granted ends by itself then.
    async fn end(&self, token: Option<&Secret>, refresh: Option<&Secret>) -> Result<(), AuthError> {
        match (&self.way, token) {
            (Way::Password(way), token) => way.end(token, refresh).await,
            (Way::ClientCredentials(way), Some(token)) => way.end(token).await,
            (Way::Session(way), Some(token)) => way.end(token).await,
            (Way::ClientCredentials(_) | Way::Session(_), None) | (Way::Fixed(_), _) => Ok(()),
        }
    }
}
