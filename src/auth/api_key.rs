//! A key that goes along with every request: as headers or query parameters (`destination.auth.headers`, `.query`), or as HTTP
//! Basic of its two halves (RFC 7617).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header;

use super::Credential;
use crate::config::Destination;

/// The credential of this destination's key.
pub(super) fn credential(destination: &Destination, fixed: Credential) -> Credential {
    let auth = &destination.auth;
    if !auth.basic {
        return fixed;
    }
    let basic = STANDARD.encode(format!("{}:{}", auth.api_key_id, auth.api_key.expose()));
    fixed.with_header(header::AUTHORIZATION, &format!("Basic {basic}"))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::config::Secret;

    #[test]
    fn the_two_halves_of_a_key_go_as_http_basic() {
        let mut destination = Destination::default();
        destination.auth.api_key_id = "Aladdin".to_owned();
        destination.auth.api_key = Secret::new("open sesame");
        destination.auth.basic = true;
        let mut headers = HeaderMap::new();
        credential(&destination, Credential::fixed(&destination)).add_headers(&mut headers);
        // RFC 7617, section 2.
        assert_eq!(headers[header::AUTHORIZATION], "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }
}
