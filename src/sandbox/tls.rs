//! The TLS of the port.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::settings::TlsFiles;

/// To speak TLS with those who come, whoever they are.
///
/// # Errors
/// When a file cannot be read, or the two do not belong together.
pub(super) fn config(files: &TlsFiles) -> io::Result<Arc<ServerConfig>> {
    let of = |path: &std::path::Path, error: pem::Error| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {error}", path.display()))
    };
    let certificates = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| of(&files.cert, error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| of(&files.key, error))?;
    let settings = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(certificates, key))
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {error}", files.cert.display())))?;
    Ok(Arc::new(settings))
}
