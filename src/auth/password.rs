//! OAuth 2.0 resource owner password credentials (RFC 6749, section 4.3), with refresh tokens (section 6): SquadRun.
//!
//! ```text
//!   password grant ──> access + refresh ──> refresh grant ──> access + refresh (the former are dead at once) ──> ...
//!         ^                                      │ refused: used already, expired, revoked
//!         └──────────────────────────────────────┘
//! ```
//!
//! RFC 9700, section 2.4 forbids this grant to new systems; it is here for those that have nothing else.

use super::endpoint::Endpoint;
use super::oauth2::{Hints, OAuth2};
use super::{AuthError, Grant};
use crate::config::{Destination, Secret};

/// What to do about refusals of this grant.
const HINTS: Hints = Hints {
    credentials: "check destination.auth.client_id, client_secret and client_auth",
    invalid_grant: "check destination.auth.username and password",
    unauthorized_client: "this client may not use the password grant; ask the API's operator",
};

/// Tokens for an account.
#[derive(Debug)]
pub(super) struct Password {
    oauth2: OAuth2,
    username: String,
    password: Secret,
}

impl Password {
    /// Of this destination.
    pub(super) fn of(destination: &Destination, endpoint: Endpoint) -> Self {
        let auth = &destination.auth;
        Self {
            oauth2: OAuth2::of(destination, endpoint),
            username: auth.username.clone(),
            password: auth.password.clone(),
        }
    }

    /// Asks for a token: with the refresh token, if there is one that is still good, else with the password.
    pub(super) async fn fetch(&self, refresh: Option<&Secret>) -> Result<Grant, AuthError> {
        if let Some(refresh) = refresh {
            match self.refresh(refresh).await {
                // `invalid_grant` says that the refresh token is not good any more; not every server says it so. A client that is not
                // known will not be known with the password either.
                Err(AuthError::Refused(reason)) if reason.code != "invalid_client" => {
                    tracing::info!(code = %reason.code, "the refresh token is not accepted (any longer); logging in again");
                }
                granted => return granted,
            }
        }
        let parameters =
            [("grant_type", "password"), ("username", self.username.as_str()), ("password", self.password.expose())];
        self.oauth2.grant(&parameters, true, &HINTS).await
    }

    async fn refresh(&self, refresh: &Secret) -> Result<Grant, AuthError> {
        let parameters = [("grant_type", "refresh_token"), ("refresh_token", refresh.expose())];
        // Without scope: as granted before (section 6).
        let grant = self.oauth2.grant(&parameters, false, &HINTS).await?;
        // A server that does not rotate says nothing, and the old one stays good.
        Ok(Grant { refresh: grant.refresh.or_else(|| Some(refresh.clone())), ..grant })
    }

    /// Revokes what was granted. The refresh token first: "the authorization server SHOULD also invalidate all access tokens
    /// based on the same authorization grant" (RFC 7009, section 2.1).
    pub(super) async fn end(&self, token: Option<&Secret>, refresh: Option<&Secret>) -> Result<(), AuthError> {
        let mut ended = Ok(());
        for (secret, hint) in [(refresh, "refresh_token"), (token, "access_token")] {
            if let Some(secret) = secret {
                ended = self.oauth2.revoke(secret, hint).await.and(ended);
            }
        }
        ended
    }
}
