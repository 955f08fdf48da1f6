//! Access tokens: how they are got, and one cache that all leads share.
//!
//! # Rules
//! - A token is opaque (RFC 6749, section 1.4): it is never decoded, logged or stored.
//! - "Refused" and "unavailable" are told apart: wrong credentials are the operator's to mend and pause the flow; a token
//!   endpoint that is away is waited for. Neither is charged to a lead.

mod cache;
mod client_credentials;

use std::fmt;
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

pub use cache::Tokens;
pub use client_credentials::ClientCredentials;

use crate::reason::Reason;

/// A token, ready to be sent.
#[derive(Clone)]
pub struct Token {
    authorization: HeaderValue,
    /// Counts the tokens of this process, so that one can be told from the next without looking at them.
    serial: u64,
    /// Not to be used from then on.
    expires_at: Instant,
    /// To be renewed in the background from then on.
    renew_at: Instant,
}

impl Token {
    /// The value of the `Authorization` header.
    pub fn authorization(&self) -> HeaderValue {
        self.authorization.clone()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("serial", &self.serial).finish_non_exhaustive()
    }
}

/// What a token endpoint grants.
pub struct Grant {
    authorization: HeaderValue,
    /// How long it lives, counted from when it was asked for.
    lifetime: Duration,
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
