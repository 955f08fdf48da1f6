//! OAuth 2.0 client credentials (RFC 6749, section 4.4): AWS Cognito, Kaisa.

use super::endpoint::Endpoint;
use super::oauth2::{Hints, OAuth2};
use super::{AuthError, Grant};
use crate::config::{Destination, Secret};

/// What to do about refusals of this grant.
const HINTS: Hints = Hints {
    credentials: "check destination.auth.client_id, client_secret and client_auth",
    invalid_grant: "the client is not set up for client credentials; ask the API's operator",
    unauthorized_client: "this client may not use client credentials; ask the API's operator",
};

/// Tokens for a client.
#[derive(Debug)]
pub(super) struct ClientCredentials(OAuth2);

impl ClientCredentials {
    /// Of this destination.
    pub(super) fn of(destination: &Destination, endpoint: Endpoint) -> Self {
        Self(OAuth2::of(destination, endpoint))
    }

    /// Asks for a token.
    pub(super) async fn fetch(&self) -> Result<Grant, AuthError> {
        // A refresh token should not come with this grant (section 4.4.3); if it does, it is of no use.
        let grant = self.0.grant(&[("grant_type", "client_credentials")], true, &HINTS).await?;
        Ok(Grant { refresh: None, ..grant })
    }

    /// Revokes a token, where the server can do that.
    pub(super) async fn end(&self, token: &Secret) -> Result<(), AuthError> {
        self.0.revoke(token, "access_token").await
    }
}
