//! TLS of the port: certificate and key from two PEM files, which are read again when they have changed, so that a
//! renewed certificate needs no restart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::stamp::Stamp;

/// Longest PEM file, bytes: a chain of certificates is about 10 kB.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// Where certificate and key are, and what they said last.
#[derive(Debug)]
pub(crate) struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    loaded: Mutex<Loaded>,
    /// Held by who looks at the files: a disk that hangs must not take a thread for every connection.
    looking: Mutex<()>,
}

#[derive(Debug)]
struct Loaded {
    stamps: [Option<Stamp>; 2],
    config: Arc<ServerConfig>,
}

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{what} of the port cannot be used: {}: {why}", path.display())]
pub(crate) struct TlsError {
    what: &'static str,
    path: PathBuf,
    why: String,
}

impl Tls {
    /// Reads both files.
    ///
    /// # Errors
    /// A file that cannot be read, or a key that does not belong to the certificate.
    pub(crate) fn new(certificate: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let stamps = stamps(&certificate, &key);
        let config = read(&certificate, &key)?;
        let loaded = Mutex::new(Loaded { stamps, config });
        Ok(Self { certificate, key, loaded, looking: Mutex::default() })
    }

    /// Does the handshake.
    ///
    /// # Errors
    /// What rustls says of the peer.
    pub(crate) async fn accept(self: Arc<Self>, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = tokio::task::spawn_blocking(move || self.config()).await;
        TlsAcceptor::from(config.map_err(io::Error::other)?).accept(stream).await
    }

    /// The configuration of the files as they are now; where they are bad, as they were: a mistake in renewing a
    /// certificate must not take down what works. Waits for the disk, unless another does so already.
    fn config(&self) -> Arc<ServerConfig> {
        if let Ok(_looking) = self.looking.try_lock() {
            let stamps = stamps(&self.certificate, &self.key);
            let has_changed = self.loaded().stamps != stamps;
            if has_changed {
                let config = read(&self.certificate, &self.key);
                let mut loaded = self.loaded();
                loaded.stamps = stamps;
                match config {
                    Ok(config) => {
                        loaded.config = config;
                        tracing::info!(certificate = %self.certificate.display(), "the port's certificate was read again");
                    }
                    Err(error) => tracing::warn!(%error, "the port's certificate stays what it was"),
                }
            }
        }
        Arc::clone(&self.loaded().config)
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamps(certificate: &Path, key: &Path) -> [Option<Stamp>; 2] {
    // One that cannot be read now differs from one that could.
    [certificate, key].map(|path| Stamp::of(path).ok().flatten())
}

fn read(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let error = |what, path: &Path, why: String| TlsError { what, path: path.to_owned(), why };
    let bad_certificate = |why| error("the certificate (tls_cert)", certificate, why);
    let bad_key = |why| error("the key (tls_key)", key, why);

    let pem = read_limited(certificate).map_err(bad_certificate)?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| bad_certificate(error.to_string()))?;
    if chain.is_empty() {
        return Err(bad_certificate("there is no CERTIFICATE in it".to_owned()));
    }
    let pem = read_limited(key).map_err(bad_key)?;
    let key_der = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| bad_key(error.to_string()))?;

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| bad_certificate(error.to_string()))?.with_no_client_auth();
    // What is wrong here is that they do not belong together, or the key's kind.
    let mut config = builder.with_single_cert(chain, key_der).map_err(|error| bad_key(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn read_limited(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_PEM_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_PEM_BYTES {
        return Err(format!("larger than {} MiB: is it the right file?", MAX_PEM_BYTES >> 20));
    }
    Ok(bytes)
}
