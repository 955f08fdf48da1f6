//! Who may read more of the admin port than whether the worker is well.
//!
//! | `admin.listen` | `admin.token` | `/livez`, `/readyz`: the status | why, and `/metrics` |
//! |---|---|---|---|
//! | loopback | – | everybody | everybody |
//! | anything | set | everybody | with the token |
//! | beyond loopback | – | everybody | nobody, unless `admin.open` |
//!
//! Statuses are for everybody, as probes of orchestrators carry no secrets, and say nothing but yes or no. It counts where the port listens,
//! and not from where somebody asks: what comes by a proxy or a forwarded port comes from loopback, too.

use std::net::SocketAddr;

use http::{HeaderMap, StatusCode, header};
use subtle::ConstantTimeEq as _;

use crate::config::{Admin, Secret};

/// What a request must bring to read all.
#[derive(Debug, Clone)]
pub enum Access {
    /// Nothing.
    Everybody,
    /// This token (RFC 6750).
    Token(Secret),
    /// Nothing helps.
    Nobody,
}

impl Access {
    /// For a port at this address.
    pub fn of(settings: &Admin, listen: SocketAddr) -> Self {
        if settings.token.is_set() {
            Self::Token(settings.token.clone())
        } else if settings.open || listen.ip().is_loopback() {
            Self::Everybody
        } else {
            Self::Nobody
        }
    }

    /// Whether this request may read all.
    ///
    /// # Errors
    /// What to answer if not.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
        match self {
            Self::Everybody => Ok(()),
            Self::Token(token) if carries(headers, token) => Ok(()),
            Self::Token(_) => {
                Err((StatusCode::UNAUTHORIZED, "this needs the header Authorization: Bearer, with admin.token\n"))
            }
            Self::Nobody => Err((
                StatusCode::FORBIDDEN,
                "closed: this port listens beyond loopback without a token; set admin.token, or admin.open = true where only friends can reach it\n",
            )),
        }
    }
}

/// Compares in a time that says nothing of the token but its length.
fn carries(headers: &HeaderMap, token: &Secret) -> bool {
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    let (scheme, given) = given.split_at_checked(b"bearer ".len()).unwrap_or_default();
    scheme.eq_ignore_ascii_case(b"bearer ") && token.is_set() && bool::from(given.ct_eq(token.expose().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(listen: &str, token: Option<&str>, open: bool) -> Access {
        let token = token.map(Secret::new).unwrap_or_default();
        let settings = Admin { listen: listen.to_owned(), token, token_file: None, open };
        Access::of(&settings, listen.parse().expect("an address"))
    }

    fn status(access: &Access, authorization: Option<&str>) -> u16 {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.parse().expect("a value"));
        }
        access.check(&headers).map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn loopback_is_open_anything_beyond_is_closed_until_somebody_says_otherwise() {
        for loopback in ["127.0.0.1:9090", "127.0.0.9:9090", "[::1]:9090"] {
            assert_eq!(status(&access(loopback, None, false), None), 200, "{loopback}");
        }
        for beyond in ["0.0.0.0:9090", "[::]:9090", "10.0.0.7:9090", "[2001:db8::1]:9090"] {
            assert_eq!(status(&access(beyond, None, false), None), 403, "{beyond}");
            assert_eq!(status(&access(beyond, None, false), Some("Bearer x")), 403, "{beyond}");
            assert_eq!(status(&access(beyond, None, true), None), 200, "{beyond}");
        }
    }

    #[test]
    fn a_token_counts_wherever_the_port_listens_and_only_the_whole_of_it() {
        let token = "0123456789abcdef";
        for listen in ["127.0.0.1:9090", "0.0.0.0:9090"] {
            // Even where somebody has opened it.
            assert_eq!(status(&access(listen, Some(token), true), None), 401);
            let access = access(listen, Some(token), false);
            for good in ["Bearer 0123456789abcdef", "bearer 0123456789abcdef"] {
                assert_eq!(status(&access, Some(good)), 200, "{good}");
            }
            let bad = [
                "Bearer 0123456789abcdeF",
                "Bearer 0123456789abcde",
                "Bearer 0123456789abcdef0",
                "Bearer  0123456789abcdef",
                "Bearer ",
                "Bearer",
                "",
                "0123456789abcdef",
                "Basic 0123456789abcdef",
            ];
            for bad in bad {
                assert_eq!(status(&access, Some(bad)), 401, "{bad:?}");
            }
            assert_eq!(status(&access, None), 401);
            assert!(!format!("{access:?}").contains(token));
        }
    }
}
