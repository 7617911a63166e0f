//! TLS, with certificates that `openssl` makes.

use std::path::Path;

use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use tokio_rustls::TlsConnector;

use super::*;
use crate::config::HttpTls;
use crate::http::selfsigned::certificate;

/// A connection whose other side must have this certificate, with the protocol that was agreed on.
async fn connect(
    port: &Port,
    certificate: &Path,
    protocols: &[&str],
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    timeout(SOON, connector.connect(name, port.connect().await)).await.unwrap()
}

const ASK: &[u8] = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

async fn health(mut stream: tokio_rustls::client::TlsStream<TcpStream>) -> Got {
    stream.write_all(ASK).await.unwrap();
    let mut bytes = Vec::new();
    timeout(SOON, stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
    Got::raw(&bytes)
}

#[tokio::test]
async fn both_versions_over_tls_and_nothing_in_the_clear() {
    let folder = tempfile::tempdir().unwrap();
    let tls = certificate(folder.path(), "a");
    let port = Port::with(|setup| {
        setup.config.tls = Some(tls.clone());
        setup.limits.first_request_within = Duration::from_secs(2);
    })
    .await;
    let stream = connect(&port, &tls.certificate, &[]).await.unwrap();
    health(stream).await.is_text(200, "OK");
    let stream = connect(&port, &tls.certificate, &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut sender = h2_client(stream).await;
    let response = sender.send_request(request("GET", "https://localhost/health", &[], "")).await.unwrap();
    assert_eq!(response.status(), 200);
    // The names are checked here, too.
    let refused = sender.send_request(request("GET", "https://evil.example/health", &[], "")).await.unwrap();
    assert_eq!(refused.status(), 421);

    let mut clear = port.connect().await;
    clear.write_all(ASK).await.unwrap();
    let got = read_to_end(&mut clear).await;
    assert!(!got.starts_with(b"HTTP"), "{got:?}");
    // A handshake that does not come is not waited for.
    read_to_end(&mut port.connect().await).await;
}

#[tokio::test]
async fn a_renewed_certificate_needs_no_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (tls, renewed) = (certificate(folder.path(), "a"), certificate(folder.path(), "b"));
    let old = folder.path().join("old.pem");
    std::fs::copy(&tls.certificate, &old).unwrap();
    let port = Port::with(|setup| setup.config.tls = Some(tls.clone())).await;
    health(connect(&port, &old, &[]).await.unwrap()).await.is_text(200, "OK");

    // Half renewed, and rubbish: what works stays.
    std::fs::rename(&renewed.certificate, &tls.certificate).unwrap();
    health(connect(&port, &old, &[]).await.unwrap()).await.is_text(200, "OK");
    std::fs::rename(&renewed.key, &tls.key).unwrap();
    assert!(connect(&port, &old, &[]).await.is_err(), "the old one is shown still");
    health(connect(&port, &tls.certificate, &[]).await.unwrap()).await.is_text(200, "OK");
    std::fs::remove_file(&tls.key).unwrap();
    health(connect(&port, &tls.certificate, &[]).await.unwrap()).await.is_text(200, "OK");
}

#[tokio::test]
async fn certificates_that_cannot_be_used() {
    async fn check(change: impl FnOnce(&HttpTls), expect: &str) {
        let folder = tempfile::tempdir().unwrap();
        let tls = certificate(folder.path(), "a");
        change(&tls);
        let Err(error) = Port::try_with(|setup| setup.config.tls = Some(tls)).await else {
            panic!("{expect}")
        };
        assert!(error.to_string().contains(expect), "{error}");
    }
    check(|tls| std::fs::remove_file(&tls.certificate).unwrap(), "a-cert.pem: No such file").await;
    check(|tls| std::fs::write(&tls.certificate, "").unwrap(), "there is no CERTIFICATE in it").await;
    check(|tls| std::fs::write(&tls.key, "").unwrap(), "the key (tls_key) of the port cannot be used").await;
    let foreign = |tls: &HttpTls| {
        let other = certificate(tls.key.parent().unwrap(), "b");
        std::fs::rename(other.key, &tls.key).unwrap();
    };
    check(foreign, "a-key.pem: keys may not be consistent: KeyMismatch").await;
    let large = |tls: &HttpTls| std::fs::write(&tls.certificate, vec![b'x'; 2 << 20]).unwrap();
    check(large, "larger than 1 MiB").await;
}
