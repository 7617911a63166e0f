//! For tests: a certificate that vouches for itself, as `openssl` makes it.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::HttpTls;

/// Makes a certificate for `localhost` and 127.0.0.1, and its key: `FOLDER/NAME-cert.pem` and `FOLDER/NAME-key.pem`.
pub(crate) fn certificate(folder: &Path, name: &str) -> HttpTls {
    let path = |kind: &str| folder.join(format!("{name}-{kind}.pem"));
    let tls = HttpTls { certificate: path("cert"), key: path("key") };
    let mut command = std::process::Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    command.args(["-days", "2", "-subj", "/CN=kvmetry"]);
    command.args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
    command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    command.arg("-keyout").arg(&tls.key).arg("-out").arg(&tls.certificate);
    let made =
        command.output().unwrap_or_else(|error| panic!("openssl: {error}; scripts/install-deps.sh test"));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    tls
}

/// A server's side of TLS that shows it.
pub(crate) fn acceptor(tls: &HttpTls) -> tokio_rustls::TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(&tls.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&tls.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    tokio_rustls::TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate], key).unwrap()))
}
