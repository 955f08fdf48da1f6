//! What goes along with a request: headers, query parameters, and the knowledge of what in them is secret.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::config::{Destination, Redactor, Secret, fill_in, values};

/// What goes along with a request.
#[derive(Clone, Default)]
pub struct Credential {
    headers: Vec<(HeaderName, HeaderValue)>,
    query: Vec<(String, Secret)>,
    redactor: Redactor,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

impl Credential {
    /// The headers and query parameters of every request to this destination.
    ///
    /// # Panics
    /// On settings that [`crate::config::check`] refuses.
    pub(super) fn fixed(destination: &Destination) -> Self {
        let auth = &destination.auth;
        let values = values(destination);
        let filled = |template: &str| fill_in(template, &values).expect("checked: all values are set");
        let mut credential = Self { headers: Vec::new(), query: Vec::new(), redactor: Redactor::of(destination) };
        // A header or parameter of a preset is left out by making it empty.
        for (name, template) in auth.headers.iter().filter(|(_, template)| !template.is_empty()) {
            let name = HeaderName::try_from(name.as_str()).expect("checked: a header's name");
            credential = credential.with_header(name, &filled(template));
        }
        for (name, template) in auth.query.iter().filter(|(_, template)| !template.is_empty()) {
            credential = credential.with_query(name, Secret::new(filled(template)));
        }
        credential
    }

    /// With this header.
    ///
    /// # Panics
    /// When the value cannot stand in a header.
    #[must_use]
    pub(super) fn with_header(mut self, name: HeaderName, value: &str) -> Self {
        let mut value = HeaderValue::try_from(value).expect("checked: it can stand in a header");
        value.set_sensitive(true);
        self.headers.push((name, value));
        self
    }

    /// With this query parameter.
    #[must_use]
    pub(super) fn with_query(mut self, name: &str, value: Secret) -> Self {
        self.query.push((name.to_owned(), value));
        self
    }

    /// With a bearer token (RFC 6750, section 2.1).
    #[must_use]
    pub(super) fn with_bearer(self, token: &Secret) -> Self {
        self.with_header(header::AUTHORIZATION, &format!("Bearer {}", token.expose()))
    }

    /// With the knowledge that these are secret too.
    #[must_use]
    pub(super) fn knowing<'a>(mut self, secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        self.redactor = self.redactor.and(secrets.into_iter().map(Secret::expose));
        self
    }

    /// Puts the headers to a request's.
    pub fn add_headers(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
    }

    /// Puts the query parameters to a request's; `None` if there are none.
    pub fn add_query(&self, url: &reqwest::Url) -> Option<reqwest::Url> {
        if self.query.is_empty() {
            return None;
        }
        let mut url = url.clone();
        for (name, value) in &self.query {
            url.query_pairs_mut().append_pair(name, value.expose());
        }
        Some(url)
    }

    /// Takes all that is secret about it out of what others say.
    pub fn redactor(&self) -> &Redactor {
        &self.redactor
    }
}

/// Whether a token that was granted can go along with requests.
pub(super) fn can_stand_in_a_header(token: &str) -> bool {
    HeaderValue::try_from(token).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_query_carry_the_key_and_an_empty_one_is_left_out() {
        let mut destination = Destination::default();
        destination.auth.api_key_id = "user-1".to_owned();
        destination.auth.api_key = Secret::new("k/e y");
        destination.variables.insert("developer_id".to_owned(), "dev".to_owned());
        for (name, template) in [("user-id", "{api_key_id}"), ("developer-id", "{developer_id}"), ("user-api-key", "")]
        {
            destination.auth.headers.insert(name.to_owned(), template.to_owned());
        }
        destination.auth.query.insert("user-api-key".to_owned(), "{api_key}".to_owned());
        let credential = Credential::fixed(&destination);
        let mut headers = HeaderMap::new();
        credential.add_headers(&mut headers);
        assert_eq!(
            (headers.len(), &headers["user-id"], &headers["developer-id"]),
            (2, &HeaderValue::from_static("user-1"), &HeaderValue::from_static("dev"))
        );
        assert!(headers.values().all(HeaderValue::is_sensitive));
        let url = credential.add_query(&"https://h/x?a=b".parse().expect("a URL")).expect("a query");
        assert_eq!(url.as_str(), "https://h/x?a=b&user-api-key=k%2Fe+y");
        assert_eq!(credential.redactor().clean(url.as_str()), "https://h/x?a=b&user-api-key=***");
        assert!(!format!("{credential:?}").contains("k/e"));
    }
}
