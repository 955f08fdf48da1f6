//! Rules of TLS: files that can be used, and connections that make use of them.

use url::Url;

use super::super::{Destination, Postgres, Settings, Tls, Values, fill_in_url};

/// What `sslmode` may be where certificates are to be checked.
const VERIFYING: [&str; 2] = ["verify-full", "verify-ca"];

/// Everything that is wrong with the TLS of the worker's connections. `values` fill in the templates of the destination.
pub(super) fn check_tls(settings: &Settings, values: &Values) -> Vec<String> {
    let Settings { amqp, postgres, destination, .. } = settings;
    let mut problems = Vec::new();
    for (section, tls) in [
        ("amqp", &amqp.tls),
        ("postgres", &postgres.tls),
        ("destination.request", &destination.request.tls),
        ("destination.auth", &destination.auth.tls),
    ] {
        problems.extend(tls.read(section).err().into_iter().flatten());
    }
    if amqp.tls.is_set() && Url::parse(amqp.url.expose()).is_ok_and(|url| url.scheme() == "amqp") {
        problems.push(
            "amqp.tls is set, but amqp.url begins with amqp://, which is not encrypted: write amqps://, and the port that RabbitMQ has for \
             it (5671 unless another is said)"
                .to_owned(),
        );
    }
    problems.extend(check_postgres(postgres));
    problems.extend(check_urls(destination, values));
    problems
}

fn check_postgres(postgres: &Postgres) -> Vec<String> {
    let mut problems = Vec::new();
    let Some(url) = Url::parse(postgres.url.expose()).ok().filter(|_| postgres.tls.is_set()) else { return problems };
    for (name, value) in url.query_pairs() {
        let key = match &*name {
            "sslmode" | "ssl-mode" => {
                if !VERIFYING.contains(&&*value) {
                    problems.push(format!(
                        "postgres.tls is set, but postgres.url has {name}={value}, which does not check whom it talks to: write \
                         sslmode=verify-full, or leave it out"
                    ));
                }
                continue;
            }
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => "ca_file",
            "sslcert" | "ssl-cert" => "cert_file",
            "sslkey" | "ssl-key" => "key_file",
            _ => continue,
        };
        problems.push(format!(
            "postgres.url has {name}, and postgres.tls is set as well: say it once, as postgres.tls.{key} or in the URL"
        ));
    }
    problems
}

fn check_urls(destination: &Destination, values: &Values) -> Vec<String> {
    let (request, auth) = (&destination.request, &destination.auth);
    let mut values = values.clone();
    for name in ["token", "key"] {
        values.insert(name.to_owned(), "x".to_owned());
    }
    let urls: [(&str, &Tls, &str, &str); 5] = [
        ("destination.request.tls", &request.tls, "destination.request.url", &request.url),
        ("destination.request.tls", &request.tls, "destination.reconcile.url", &destination.reconcile.url),
        ("destination.auth.tls", &auth.tls, "destination.auth.token_url", &auth.token_url),
        ("destination.auth.tls", &auth.tls, "destination.auth.revoke_url", &auth.revoke_url),
        ("destination.auth.tls", &auth.tls, "destination.auth.logout_url", &auth.logout_url),
    ];
    let is_plain = |template: &str| {
        fill_in_url(template, &values)
            .ok()
            .and_then(|url| Url::parse(&url).ok())
            .is_some_and(|url| url.scheme() == "http")
    };
    urls.into_iter()
        .filter(|(_, tls, _, template)| tls.is_set() && is_plain(template))
        .map(|(section, _, key, _)| {
            format!("{section} is set, but {key} begins with http://, which is not encrypted: write https://")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::super::{Secret, Source};
    use super::super::check;
    use super::*;

    fn problems(change: impl FnOnce(&mut Settings)) -> String {
        let mut settings = Source::of_nothing().read().expect("the defaults");
        settings.amqp.url = Secret::new("amqps://me:hunter2@h");
        settings.postgres.url = Secret::new("postgres://me:hunter2@h/d");
        settings.destination.auth.client_id = "id".to_owned();
        settings.destination.auth.client_secret = Secret::new("secret");
        change(&mut settings);
        let text = check(&settings).err().unwrap_or_default().join("\n");
        assert!(!text.contains("hunter2"), "{text}");
        text
    }

    /// A CA that can be used.
    fn ca() -> (tempfile::NamedTempFile, Tls) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), params.self_signed(&key).expect("signed").pem()).expect("written");
        let tls = Tls { ca_file: Some(file.path().to_owned()), ..Tls::default() };
        (file, tls)
    }

    #[test]
    fn each_connection_names_its_own_file_that_is_not_there() {
        let missing = || Tls { ca_file: Some(PathBuf::from("/nowhere/ca.pem")), ..Tls::default() };
        let text = problems(|settings| {
            settings.amqp.tls = missing();
            settings.postgres.tls = missing();
            settings.destination.request.tls = missing();
            settings.destination.auth.tls = missing();
        });
        for section in ["amqp", "postgres", "destination.request", "destination.auth"] {
            let expected = format!("{section}.tls.ca_file names /nowhere/ca.pem, which cannot be read");
            assert!(text.contains(&expected), "{expected} in {text}");
        }
    }

    #[test]
    fn files_for_a_connection_that_is_not_encrypted_or_checks_nothing_are_refused() {
        let (_file, tls) = ca();
        type Change = fn(&mut Settings, Tls);
        let cases: [(Change, &str); 6] = [
            (
                |s, tls| (s.amqp.tls, s.amqp.url) = (tls, Secret::new("amqp://me:hunter2@h")),
                "amqp.url begins with amqp://, which is not encrypted: write amqps://",
            ),
            (
                |s, tls| (s.postgres.tls, s.postgres.url) = (tls, Secret::new("postgres://h/d?sslmode=require")),
                "postgres.url has sslmode=require, which does not check whom it talks to",
            ),
            (
                |s, tls| (s.postgres.tls, s.postgres.url) = (tls, Secret::new("postgres://h/d?sslmode=disable")),
                "postgres.url has sslmode=disable",
            ),
            (
                |s, tls| (s.postgres.tls, s.postgres.url) = (tls, Secret::new("postgres://h/d?sslrootcert=/x")),
                "postgres.url has sslrootcert, and postgres.tls is set as well: say it once, as postgres.tls.ca_file",
            ),
            (
                |s, tls| (s.destination.request.tls, s.destination.request.url) = (tls, "http://h/leads".to_owned()),
                "destination.request.url begins with http://",
            ),
            (
                |s, tls| (s.destination.auth.tls, s.destination.auth.token_url) = (tls, "http://h/t".to_owned()),
                "destination.auth.token_url begins with http://",
            ),
        ];
        for (change, expected) in cases {
            let text = problems(|settings| change(settings, tls.clone()));
            assert!(text.contains(expected), "{expected} in {text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
        let sound = problems(|settings| {
            settings.amqp.tls = tls.clone();
            settings.postgres.tls = tls.clone();
            settings.postgres.url = Secret::new("postgres://h/d?sslmode=verify-ca&application_name=x");
            settings.destination.request.tls = tls.clone();
            settings.destination.auth.tls = tls;
        });
        assert_eq!(sound, "");
    }
}
