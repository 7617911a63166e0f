//! The HTTP port of the process that has a data directory, for commands that ask through it.
//!
//! Where the port is, the directory's lock file tells. Over TLS the port must show the certificate that stands in the
//! file which the lock file names too; neither authority nor name is asked for, since what is wanted is that one
//! process, under whatever address this machine reaches it. Whoever could write another lock file could write the data.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use serde_json::Value;

use crate::datadir;

/// The token for a port that demands one.
pub(crate) const TOKEN_VARIABLE: &str = "KVMETRY_TOKEN";

/// The port.
#[derive(Debug)]
pub(crate) struct Port {
    url: String,
    /// Where its certificate is.
    certificate: Option<PathBuf>,
}

impl Port {
    /// As the lock file of a data directory tells it. The process may have ended.
    pub(crate) fn told(dir: &Path) -> Option<Self> {
        let url = datadir::told(dir, datadir::URL)?;
        Some(Self { url, certificate: datadir::told(dir, datadir::CERTIFICATE).map(PathBuf::from) })
    }

    /// Posts JSON.
    ///
    /// # Errors
    /// What the process says is wrong, or why it could not be asked.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<reqwest::Response> {
        let url = &self.url;
        let mut request =
            self.client()?.post(format!("{url}{path}")).header("content-type", "application/json");
        if let Ok(token) = std::env::var(TOKEN_VARIABLE) {
            request = request.bearer_auth(token);
        }
        let answer = match (request.body(body.to_string()).send().await, &self.certificate) {
            (Ok(answer), _) => answer,
            (Err(error), Some(file)) if is_of_certificate(&error) => bail!(
                "{url} shows another certificate than the one in {}, which it names: was that file renewed with a key \
                 that does not belong to it? kvmetry's log says so",
                file.display()
            ),
            (Err(error), _) => {
                return Err(error).with_context(|| {
                    format!("{url} does not answer, though a kvmetry that has the data said it listens there")
                });
            }
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer.text().await.unwrap_or_default();
        let said: Option<Value> = serde_json::from_str(&text).ok();
        let said = said.as_ref().and_then(|it| it["error"].as_str()).unwrap_or(text.trim());
        match status.as_u16() {
            401 | 403 => bail!("{url} says: {said} (the token is taken from {TOKEN_VARIABLE})"),
            _ => bail!("{said}"),
        }
    }

    fn client(&self) -> anyhow::Result<reqwest::Client> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        // Another part of the program may have chosen it before.
        let _ = provider.as_ref().clone().install_default();
        let mut builder = reqwest::Client::builder().no_proxy();
        if let Some(file) = &self.certificate {
            let certificate = CertificateDer::from_pem_file(file).with_context(|| {
                format!(
                    "{} shows the certificate in {}, which cannot be read here to compare them; make it readable for \
                     this user (a certificate is no secret, its key is)",
                    self.url,
                    file.display()
                )
            })?;
            let tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .context("no TLS")?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Same { certificate, provider }))
                .with_no_client_auth();
            builder = builder.tls_backend_preconfigured(tls);
        }
        builder.build().context("no HTTP client")
    }
}

fn is_of_certificate(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.to_string().contains("certificate") {
            return true;
        }
        source = error.source();
    }
    false
}

/// Accepts one certificate, from whoever proves to have its key.
#[derive(Debug)]
struct Same {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Same {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::post;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::server::conn::auto::Builder;
    use hyper_util::service::TowerToHyperService;
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::HttpTls;
    use crate::http::selfsigned::{acceptor, certificate};

    /// A port that shows this certificate; its URL.
    async fn serve(tls: &HttpTls) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let acceptor = acceptor(tls);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let service = TowerToHyperService::new(Router::new().route("/ask", post(async || "taken")));
                let _ =
                    Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            }
        });
        url
    }

    #[tokio::test]
    async fn the_port_must_show_the_certificate_that_the_lock_file_names() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, other) = (certificate(folder.path(), "a"), certificate(folder.path(), "b"));
        let url = serve(&ours).await;
        let ask = async |file: &Path| {
            let port = Port { url: url.clone(), certificate: Some(file.to_owned()) };
            match port.post("/ask", &json!({})).await {
                Ok(answer) => Ok(answer.text().await.unwrap()),
                Err(error) => Err(format!("{error:#}")),
            }
        };
        assert_eq!(ask(&ours.certificate).await.unwrap(), "taken");
        let error = ask(&other.certificate).await.unwrap_err();
        assert!(error.contains("shows another certificate than the one in"), "{error}");
        let error = ask(&folder.path().join("none.pem")).await.unwrap_err();
        assert!(error.contains("none.pem, which cannot be read here to compare them"), "{error}");
        let gone = Port { url: "https://127.0.0.1:1".to_owned(), certificate: Some(ours.certificate) };
        let error = format!("{:#}", gone.post("/ask", &json!({})).await.unwrap_err());
        assert!(error.starts_with("https://127.0.0.1:1 does not answer"), "{error}");
    }

    #[test]
    fn where_the_port_is_stands_in_the_lock_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Port::told(folder.path()).is_none());
        let mut dir = datadir::DataDir::open(folder.path()).unwrap();
        assert!(Port::told(folder.path()).is_none());
        dir.tell(&[(datadir::URL, "https://a:1"), (datadir::CERTIFICATE, "/etc/a b.pem")]).unwrap();
        let port = Port::told(folder.path()).unwrap();
        assert_eq!((port.url.as_str(), port.certificate), ("https://a:1", Some("/etc/a b.pem".into())));
    }
}
