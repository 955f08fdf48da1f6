//! A token that does not change (RFC 6750).

use super::Credential;
use crate::config::Destination;

/// The credential of this destination's token.
pub(super) fn credential(destination: &Destination, fixed: Credential) -> Credential {
    fixed.with_bearer(&destination.auth.bearer_token)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, header};

    use super::*;
    use crate::config::Secret;

    #[test]
    fn the_token_goes_as_it_is() {
        let mut destination = Destination::default();
        destination.auth.bearer_token = Secret::new("token-1");
        let mut headers = HeaderMap::new();
        credential(&destination, Credential::fixed(&destination)).add_headers(&mut headers);
        assert_eq!(headers[header::AUTHORIZATION], "Bearer token-1");
    }
}
