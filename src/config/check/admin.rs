//! Rules of the admin port: who may read what.

use std::net::SocketAddr;

use super::super::Admin;

/// A shorter one is found by trying.
const MIN_TOKEN_BYTES: usize = 16;

/// Everything that is wrong with the admin port.
pub(super) fn check_admin(admin: &Admin) -> Vec<String> {
    let mut problems = Vec::new();
    if !admin.listen.is_empty() && admin.listen.parse::<SocketAddr>().is_err() {
        problems.push(format!(
            "admin.listen is {:?}; write an address and port such as 127.0.0.1:9090, or nothing",
            admin.listen
        ));
    }
    if admin.token.is_set() {
        let token = admin.token.expose();
        if token.len() < MIN_TOKEN_BYTES {
            problems.push(format!(
                "admin.token has fewer than {MIN_TOKEN_BYTES} bytes and could be found by trying: take a longer one, such as openssl rand -hex 32 \
                 gives"
            ));
        }
        // RFC 6750, section 2.1, less strictly.
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            problems.push(
                "admin.token has characters that cannot stand in a header: use letters, digits and signs of ASCII, without spaces"
                    .to_owned(),
            );
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::super::super::Secret;
    use super::*;

    fn problems(listen: &str, token: Option<&str>, open: bool) -> String {
        let token = token.map(Secret::new).unwrap_or_default();
        let text = check_admin(&Admin { listen: listen.to_owned(), token, token_file: None, open }).join("\n");
        assert!(!text.contains("hunter2"), "{text}");
        text
    }

    #[test]
    fn a_token_that_could_be_guessed_or_cannot_be_sent_is_refused() {
        let good = "0123456789abcdef";
        for (token, expected) in [
            ("hunter2", "admin.token has fewer than 16 bytes"),
            ("hunter2 hunter2 hunter2", "admin.token has characters that cannot stand in a header"),
            ("hunter2\u{e9}0123456789abcdef", "cannot stand in a header"),
        ] {
            let text = problems("0.0.0.0:9090", Some(token), false);
            assert!(text.contains(expected), "{text}");
        }
        assert_eq!(problems("0.0.0.0:9090", Some(good), false), "");
        assert_eq!(problems("0.0.0.0:9090", None, true), "");
        assert_eq!(problems("", None, false), "");
        assert!(problems("9090", None, false).contains("admin.listen is \"9090\""));
    }
}
