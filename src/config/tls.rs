//! TLS with CAs of one's own and with client certificates: which files, and what is wrong with them.
//!
//! # Rules
//! - All files are PEM. What they must hold is looked at before anything connects, and again by whoever connects.
//! - A CA of one's own replaces those of the system (for Postgres it is added to them: see `ledger::pool`).
//! - TLS libraries take no notice of a CA's dates once it is trusted; we do.
//! - A private key is in no text and no `Debug`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::time::{Time, Validity};

use super::Secret;

/// TLS of one connection. Nothing set: the CAs of the system, and no client certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The certificates of the CAs that may sign the server's certificate.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate, and those between it and its CA.
    pub cert_file: Option<PathBuf>,
    /// The private key of the client's certificate.
    pub key_file: Option<PathBuf>,
}

/// What the files of a [`Tls`] hold.
#[derive(Debug, Default)]
pub struct TlsFiles {
    /// The CAs that are trusted. Empty: those of the system.
    pub roots: Vec<CertificateDer<'static>>,
    /// Who we are.
    pub identity: Option<ClientIdentity>,
}

/// A client certificate with its key.
pub struct ClientIdentity {
    /// The certificate, and those between it and its CA.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientIdentity")
    }
}

impl ClientIdentity {
    /// Certificate and key as one text in PEM, with nothing else in it.
    pub fn pem(&self) -> Secret {
        let label = match &self.key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        let certificates = self.chain.iter().map(|certificate| pem("CERTIFICATE", certificate));
        Secret::new(certificates.chain([pem(label, self.key.secret_der())]).collect::<String>())
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

impl Tls {
    /// The file with the CAs, if one is named.
    pub fn ca(&self) -> Option<&Path> {
        named(self.ca_file.as_ref())
    }

    /// The files with the client's certificate and its key, if both are named.
    pub fn client(&self) -> Option<(&Path, &Path)> {
        Some((named(self.cert_file.as_ref())?, named(self.key_file.as_ref())?))
    }

    /// Whether anything is set.
    pub fn is_set(&self) -> bool {
        [&self.ca_file, &self.cert_file, &self.key_file].into_iter().any(|file| named(file.as_ref()).is_some())
    }

    /// Reads the files of the connection whose settings are under `section`.
    ///
    /// # Errors
    /// All that is wrong with them, each with what to do.
    pub fn read(&self, section: &str) -> Result<TlsFiles, Vec<String>> {
        let mut problems = Vec::new();
        let key = |name: &str| format!("{section}.tls.{name}");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut files = TlsFiles::default();
        if let Some(path) = self.ca() {
            // While a CA is replaced, the file may hold the former one as well: one that is valid is enough.
            let read = certificates(&key("ca_file"), path).and_then(|roots| {
                one_is_valid(&key("ca_file"), path, &roots, now)?;
                Ok(roots)
            });
            read.map_or_else(|problem| problems.push(problem), |roots| files.roots = roots);
        }
        match (named(self.cert_file.as_ref()), named(self.key_file.as_ref())) {
            (None, None) => {}
            (Some(cert), Some(private)) => {
                match identity((&key("cert_file"), cert), (&key("key_file"), private), now) {
                    Ok(identity) => files.identity = Some(identity),
                    Err(wrong) => problems.extend(wrong),
                }
            }
            (cert, _) => {
                let (set, missing) = if cert.is_some() { ("cert_file", "key_file") } else { ("key_file", "cert_file") };
                problems.push(format!(
                    "{} is set and {} is not: a client certificate needs both; set the other one too, or take this one out",
                    key(set),
                    key(missing)
                ));
            }
        }
        if problems.is_empty() { Ok(files) } else { Err(problems) }
    }
}

/// Reads a client certificate and its key, each named by its setting.
fn identity(cert: (&str, &Path), private: (&str, &Path), now: u64) -> Result<ClientIdentity, Vec<String>> {
    let (chain, key) = match (certificates(cert.0, cert.1), private_key(private.0, private.1)) {
        (Ok(chain), Ok(key)) => (chain, key),
        (chain, key) => return Err([chain.err(), key.err()].into_iter().flatten().collect()),
    };
    one_is_valid(cert.0, cert.1, chain.get(..1).unwrap_or_default(), now).map_err(|problem| vec![problem])?;
    let provider = rustls::crypto::ring::default_provider();
    // Only a look: who connects does it once more.
    match rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider) {
        Ok(_) => Ok(ClientIdentity { chain, key }),
        Err(rustls::Error::InconsistentKeys(_)) => Err(vec![format!(
            "{} names {}, whose key is not that of the first certificate in {}: name two files that were made together, and let the \
             client's own certificate come first in its file",
            private.0,
            private.1.display(),
            cert.0
        )]),
        Err(error) => {
            let file = private.1.display();
            Err(vec![format!("{} names {file}, whose key cannot be used: {error}", private.0)])
        }
    }
}

/// An empty name, as a file may say it, is none.
fn named(path: Option<&PathBuf>) -> Option<&Path> {
    path.map(PathBuf::as_path).filter(|path| !path.as_os_str().is_empty())
}

/// What a PEM file holds, with what is wrong with it as a text for people.
fn content(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    let file = path.display();
    match std::fs::read(path) {
        Ok(content) if content.is_empty() => Err(format!("{key} names {file}, which is empty")),
        Ok(content) => Ok(content),
        Err(error) => Err(format!("{key} names {file}, which cannot be read: {error}")),
    }
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let (content, file) = (content(key, path)?, path.display());
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&content)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{key} names {file}, which is damaged PEM: {error}"))?;
    if certificates.is_empty() {
        let hint = if content.starts_with(b"0") {
            format!("it is DER, perhaps; openssl x509 -inform der -in {file} makes PEM of it")
        } else {
            "name a PEM file with -----BEGIN CERTIFICATE----- in it".to_owned()
        };
        return Err(format!("{key} names {file}, in which there is no certificate: {hint}"));
    }
    match certificates.iter().find_map(|certificate| Certificate::from_der(certificate).err()) {
        Some(_) => Err(format!("{key} names {file}, in which a certificate is damaged: have it written anew")),
        None => Ok(certificates),
    }
}

fn private_key(key: &str, path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let (content, file) = (content(key, path)?, path.display());
    // What is wrong with it is not repeated: it could be a part of the key.
    PrivateKeyDer::from_pem_slice(&content).map_err(|_| {
        let has = |text: &[u8]| memchr::memmem::find(&content, text).is_some();
        let hint = if has(b"ENCRYPTED") {
            format!("it is encrypted, and nobody could be asked for its pass phrase; openssl pkey -in {file} takes that away")
        } else if has(b"BEGIN CERTIFICATE") {
            "it holds a certificate; are the two files swapped?".to_owned()
        } else if content.starts_with(b"0") {
            format!("it is DER, perhaps; openssl pkey -inform der -in {file} makes PEM of it")
        } else {
            "name a PEM file with -----BEGIN PRIVATE KEY----- in it".to_owned()
        };
        format!("{key} names {file}, in which there is no private key that can be read: {hint}")
    })
}

/// That one of these is valid now, or how the last of them is not.
fn one_is_valid(key: &str, path: &Path, certificates: &[CertificateDer<'_>], now: u64) -> Result<(), String> {
    let read = |der: &CertificateDer<'_>| Some(Certificate::from_der(der).ok()?.tbs_certificate.validity);
    let mut last: Option<Validity> = None;
    for validity in certificates.iter().filter_map(read) {
        if (seconds(validity.not_before)..=seconds(validity.not_after)).contains(&now) {
            return Ok(());
        }
        last = last.filter(|last| seconds(last.not_after) > seconds(validity.not_after)).or(Some(validity));
    }
    let how = match last {
        Some(validity) if seconds(validity.not_after) < now => {
            format!("has expired on {}: put a new one there", validity.not_after)
        }
        Some(validity) => format!("is valid only from {}: is this machine's clock right?", validity.not_before),
        None => "cannot be read".to_owned(),
    };
    Err(format!("{key} names {}, whose certificate {how}", path.display()))
}

fn seconds(time: Time) -> u64 {
    time.to_unix_duration().as_secs()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use tempfile::TempDir;

    use super::*;

    /// A folder with files to read.
    struct Files(TempDir);

    impl Files {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a folder"))
        }

        fn put(&self, name: &str, content: impl AsRef<[u8]>) -> Option<PathBuf> {
            let path = self.0.path().join(name);
            std::fs::write(&path, content).expect("written");
            Some(path)
        }
    }

    /// A certificate that lives from the one year to the other, and its key.
    fn made(from: i32, to: i32) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["h".to_owned()]).expect("a name");
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        (params.self_signed(&key).expect("signed"), key)
    }

    fn problem(tls: &Tls) -> String {
        let problems = tls.read("amqp").expect_err("must be refused");
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.concat()
    }

    #[test]
    fn files_that_can_be_used_come_back_whole_and_show_no_key() {
        let (files, (cert, key)) = (Files::new(), made(2000, 2200));
        let both = format!("what openssl writes before\n{}{}", cert.pem(), made(2000, 2200).0.pem());
        let tls = Tls {
            ca_file: files.put("ca.pem", &both),
            cert_file: files.put("cert.pem", &both),
            key_file: files.put("key.pem", key.serialize_pem()),
        };
        let read = tls.read("amqp").expect("readable");
        let identity = read.identity.as_ref().expect("an identity");
        assert_eq!((read.roots.len(), identity.chain.len()), (2, 2));
        let pem = identity.pem();
        let again = PrivateKeyDer::from_pem_slice(pem.expose().as_bytes()).expect("a key");
        assert_eq!(again.secret_der(), key.serialize_der());
        assert_eq!(CertificateDer::pem_slice_iter(pem.expose().as_bytes()).count(), 2);
        let shown = format!("{tls:?} {read:?} {identity:?} {pem:?}");
        let secret = key.serialize_pem().lines().nth(1).expect("a line").to_owned();
        assert!(!shown.contains(&secret) && !shown.contains("PRIVATE"), "{shown}");
        assert!(Tls::default().read("amqp").expect("nothing to read").roots.is_empty());
        let empty = Tls { ca_file: Some(PathBuf::new()), ..Tls::default() };
        assert!(!empty.is_set() && empty.read("amqp").is_ok());
    }

    #[test]
    fn a_file_of_cas_that_cannot_be_used_says_what_to_do() {
        let files = Files::new();
        let of = |content: &[u8]| problem(&Tls { ca_file: files.put("ca.pem", content), ..Tls::default() });
        let (good, key) = made(2000, 2200);
        let damaged = good.pem().replacen('\n', "\n!", 2);
        let expired = of(made(2000, 2001).0.pem().as_bytes());
        assert!(
            expired.contains("amqp.tls.ca_file names") && expired.contains("has expired on 2001-01-01"),
            "{expired}"
        );
        for (content, expected) in [
            (b"".to_vec(), "which is empty"),
            (b"hello".to_vec(), "in which there is no certificate: name a PEM file"),
            (good.der().to_vec(), "openssl x509 -inform der"),
            (key.serialize_pem().into_bytes(), "in which there is no certificate"),
            (damaged.into_bytes(), "damaged"),
            (pem("CERTIFICATE", b"0hello").into_bytes(), "a certificate is damaged"),
            (
                made(2100, 2200).0.pem().into_bytes(),
                "is valid only from 2100-01-01T00:00:00Z: is this machine's clock right?",
            ),
        ] {
            let text = of(&content);
            assert!(text.contains(expected), "{expected} in {text}");
        }
        let replaced = format!("{}{}", made(2000, 2001).0.pem(), good.pem());
        let tls = Tls { ca_file: files.put("ca.pem", replaced), ..Tls::default() };
        tls.read("amqp").expect("one of them is valid");
    }

    #[test]
    fn a_client_certificate_that_cannot_be_used_says_what_to_do_and_shows_nothing_of_its_key() {
        let (files, (cert, key)) = (Files::new(), made(2000, 2200));
        let (cert, key) = (cert.pem(), key.serialize_pem());
        let of = |cert: Option<&str>, key: Option<&str>| {
            problem(&Tls {
                ca_file: None,
                cert_file: cert.and_then(|cert| files.put("cert.pem", cert)),
                key_file: key.and_then(|key| files.put("key.pem", key)),
            })
        };
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAg=\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let (old, old_key) = made(2000, 2001);
        let key_body = key.lines().nth(1).expect("a line").to_owned();
        for (cert, key, expected) in [
            (Some(&*cert), None, "amqp.tls.cert_file is set and amqp.tls.key_file is not"),
            (None, Some(&*key), "amqp.tls.key_file is set and amqp.tls.cert_file is not"),
            (
                Some(&*cert),
                Some(&*made(2000, 2200).1.serialize_pem()),
                "whose key is not that of the first certificate in amqp.tls.cert_file",
            ),
            (Some(&*cert), Some(encrypted), "it is encrypted"),
            (Some(&*cert), Some(&*cert), "are the two files swapped?"),
            (Some(&*cert), Some("hello"), "name a PEM file with -----BEGIN PRIVATE KEY-----"),
            (Some(&*cert), Some(&*key.replace("KEY-----\n", "KEY-----\n!")), "no private key that can be read"),
            (Some(&*old.pem()), Some(&*old_key.serialize_pem()), "amqp.tls.cert_file names"),
        ] {
            let text = of(cert, key);
            assert!(text.contains(expected) && !text.contains(&key_body), "{expected} in {text}");
        }
    }
}
