//! Why something is as it is, in words that may be shown.

use std::borrow::Cow;
use std::error::Error;

/// A reason is shown in a line and kept for each attempt; what is longer is in the stored answer.
const MAX_REASON_CHARS: usize = 500;

/// Why something is as it is: a code for scripts and metrics, a sentence for people, and what the other side said.
///
/// Code and sentence are ours and hold nothing of the lead. What the other side said may repeat the lead: it goes to the ledger,
/// to the record of this very lead, and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Such as `http_422` or `timeout`.
    pub code: Cow<'static, str>,
    /// One line of our own.
    pub text: String,
    /// One line of theirs; may be empty.
    said: String,
}

impl Reason {
    /// A reason of our own.
    pub fn new(code: &'static str, text: impl Into<String>) -> Self {
        Self { code: Cow::Borrowed(code), text: one_line(&text.into()), said: String::new() }
    }

    /// A reason whose code is the status, with what the other side said.
    pub fn of_status(status: u16, said: &str) -> Self {
        let text = format!("the API answered {status}");
        Self { code: Cow::Owned(format!("http_{status}")), text, said: one_line(said) }
    }

    /// A reason of our own, with what the other side said.
    pub fn quoting(code: &'static str, text: impl Into<String>, said: &str) -> Self {
        Self { said: one_line(said), ..Self::new(code, text) }
    }

    /// The same, with a sentence of our own in front.
    #[must_use]
    pub fn preceded_by(&self, words: &str) -> Self {
        Self { text: format!("{words}: {}", self.text), ..self.clone() }
    }

    /// What the other side said.
    pub fn said(&self) -> &str {
        &self.said
    }

    /// Everything, for the record of the lead.
    pub fn for_the_record(&self) -> String {
        if self.said.is_empty() { self.text.clone() } else { format!("{}: {}", self.text, self.said) }
    }
}

/// Text from a stranger as one short line without control characters, which Postgres and terminals can take.
pub fn one_line(text: &str) -> String {
    // Mostly it is one already.
    let mut line = String::with_capacity(text.len().min(MAX_REASON_CHARS));
    let mut count = 0;
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if count > 0 {
            line.push(' ');
        }
        for c in word.chars() {
            if count == MAX_REASON_CHARS {
                line.push('…');
                return line;
            }
            line.push(c);
            count += 1;
        }
    }
    line
}

/// An error and its causes on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries repeat the cause in their own text.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// What to do about a failure of TLS, if this is one. `section` is where the connection's settings are.
pub fn tls_hint(error: &(dyn Error + 'static), section: &str) -> Option<String> {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error as E};
    Some(match tls_error(error)? {
        E::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => format!(
            "nobody who is trusted here has signed the server's certificate: set {section}.tls.ca_file to the certificate of its CA"
        ),
        E::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            "the server's certificate is for another name than the URL has: write one of its names there, or have a certificate made for this one"
                .to_owned()
        }
        E::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "the server's certificate has expired: renew it there, or set this machine's clock right".to_owned()
        }
        // The last is what servers say for want of a certificate in TLS 1.2.
        E::AlertReceived(alert) if is_about_our_certificate(*alert) || *alert == Alert::HandshakeFailure => format!(
            "the server wants a client certificate that it trusts: set {section}.tls.cert_file and {section}.tls.key_file, signed by the CA that \
             the server asks for"
        ),
        E::InvalidMessage(_) => "is this the port for TLS?".to_owned(),
        _ => return None,
    })
}

/// Whether the server would not talk to us for want of a client certificate that it trusts. In TLS 1.3 a client learns so only after it has sent
/// its first request; a server has read none of it then.
pub fn is_refused_in_handshake(error: &(dyn Error + 'static)) -> bool {
    matches!(tls_error(error), Some(rustls::Error::AlertReceived(alert)) if is_about_our_certificate(*alert))
}

fn is_about_our_certificate(alert: rustls::AlertDescription) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            // What a signature is called that nobody trusts, such as by a former key of the CA.
            | Alert::DecryptError
    )
}

/// The error of TLS behind this one. Errors of I/O hide what is within them from those who ask for causes.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(error);
        }
        let within = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(found) = within.and_then(|within| tls_error(within)) {
            return Some(found);
        }
        cause = error.source();
    }
    None
}
