//! TLS as libvirt does it: both sides show certificates, then the server says with one byte that it takes
//! ours.
//!
//! ```text
//! client                      server
//!   │ ◀──── TLS handshake ────▶ │   each side verifies the other's chain against the same CA
//!   │ ◀──────── 0x01 ────────── │   first byte inside TLS: "your certificate is accepted"
//!   │ ◀──── RPC messages ─────▶ │   (closing without it means refused, or that the server goes down)
//! ```
//!
//! Files are where libvirt has them (`virNetTLSContextLocateCredentials` in `virnettlscontext.c`), read again
//! for every connection, so that renewed certificates need no restart:
//!
//! | file | `pkipath=DIR` | not root, where it exists | else |
//! |---|---|---|---|
//! | CA | `DIR/cacert.pem` | `~/.pki/libvirt/cacert.pem` | `/etc/pki/CA/cacert.pem` |
//! | CRL, optional | `DIR/cacrl.pem` | `~/.pki/libvirt/cacrl.pem` | `/etc/pki/CA/cacrl.pem` |
//! | certificate, optional | `DIR/clientcert.pem` | `~/.pki/libvirt/clientcert.pem` | `/etc/pki/libvirt/clientcert.pem` |
//! | its key | `DIR/clientkey.pem` | `~/.pki/libvirt/clientkey.pem` | `/etc/pki/libvirt/private/clientkey.pem` |

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Channel, Env, Peer, Stream, label, read_limited, tcp};
use crate::error::Error;
use crate::printable::printable;
use crate::uri::Uri;

/// libvirt's port for TLS (`LIBVIRTD_TLS_PORT`).
pub(super) const PORT: u16 = 16514;

/// Longest PEM file in bytes: a bundle of every public CA is about 250 kB, a big private CRL a few MB.
const MAX_PEM_LEN: u64 = 8 << 20;

/// What the server sends once it has verified our certificate (`virNetClientSetTLSSession`).
const ACCEPTED: u8 = 1;

pub(super) async fn dial(env: &Env, uri: &Uri, timeout: Duration) -> Result<Stream, Error> {
    let host = uri.host().unwrap_or("localhost");
    // A zone (%eth0) belongs to the route, not to the name.
    let bare = host.split('%').next().unwrap_or(host);
    let name = ServerName::try_from(bare.to_owned())
        .map_err(|_| fail(uri, format!("host {host:?} can stand in no certificate"), false))?;
    let files = Files::locate(env, uri);
    let config = config(uri, &files).map_err(|what| fail(uri, what, false))?;
    let has_certificate = config.client_auth_cert_resolver.has_certs();

    let tcp = tcp::connect(uri, host, uri.port().unwrap_or(PORT), "libvirtd-tls.socket", timeout).await?;
    let connector = TlsConnector::from(Arc::new(config));
    let because = |during, e| fail_because(uri, during, &files, has_certificate, e);
    let mut tls = connector.connect(name, tcp).await.map_err(|e| because(During::Handshake, e))?;
    accepted(&mut tls).await.map_err(|e| because(During::Acceptance, e))?;

    let (reader, writer) = tokio::io::split(tls);
    let peer = Peer {
        label: label(uri),
        process: None,
        channel: Channel::Tls,
        host_for_auth: host.to_owned(),
        ssh: None,
    };
    Ok(Stream { reader: Box::new(reader), writer: Box::new(writer), peer })
}

/// What was going on when it failed: libvirt's server looks at our certificate only after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum During {
    Handshake,
    Acceptance,
}

async fn accepted(tls: &mut TlsStream<TcpStream>) -> io::Result<()> {
    match tls.read_u8().await? {
        ACCEPTED => Ok(()),
        other => {
            Err(io::Error::new(ErrorKind::InvalidData, format!("first byte {other:#04x}, expected 0x01")))
        }
    }
}

/// Certificate files, whether or not they exist.
#[derive(Debug)]
struct Files {
    ca: PathBuf,
    crl: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn locate(env: &Env, uri: &Uri) -> Self {
        let in_dir = |dir: &Path| Self {
            ca: dir.join("cacert.pem"),
            crl: dir.join("cacrl.pem"),
            certificate: dir.join("clientcert.pem"),
            key: dir.join("clientkey.pem"),
        };
        if let Some(dir) = &uri.params.pkipath {
            return in_dir(Path::new(dir));
        }
        let pki = env.etc.join("pki");
        let mut files = Self {
            ca: pki.join("CA/cacert.pem"),
            crl: pki.join("CA/cacrl.pem"),
            certificate: pki.join("libvirt/clientcert.pem"),
            key: pki.join("libvirt/private/clientkey.pem"),
        };
        if let Some(dir) = env.user_pki.as_deref().filter(|_| !env.is_root()) {
            let users = in_dir(dir);
            if users.ca.exists() {
                files.ca = users.ca;
            }
            if users.crl.exists() {
                files.crl = users.crl;
            }
            // These two belong together.
            if users.certificate.exists() && users.key.exists() {
                files.certificate = users.certificate;
                files.key = users.key;
            }
        }
        files
    }
}

/// Reads the files into a configuration; the error is a line for a person.
fn config(uri: &Uri, files: &Files) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = if uri.params.no_verify {
        warn_unverified(uri);
        Arc::new(Unverified(provider.clone())) as Arc<dyn ServerCertVerifier>
    } else {
        verifier(files, provider.clone())?
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    match client_certificate(files)? {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|e| {
            let (cert, key) = (files.certificate.display(), files.key.display());
            format!("the key {key} does not go with the certificate {cert}: {e}")
        }),
    }
}

fn verifier(files: &Files, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let ca = &files.ca;
    let bytes = read_limited(ca, MAX_PEM_LEN).map_err(|e| match e.kind() {
        ErrorKind::NotFound => format!(
            "no CA certificate {}: copy cacert.pem of the server there, or name its directory by pkipath=",
            ca.display()
        ),
        _ => cannot_read("CA certificate", ca, &e),
    })?;
    let certificates = parse_all::<CertificateDer<'_>>("CA certificate", ca, &bytes)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|e| format!("CA certificate {} is not usable: {e}", ca.display()))?;
    }
    let mut builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
    match read_limited(&files.crl, MAX_PEM_LEN) {
        // GnuTLS, too, looks only for what is on the list and lets a chain pass that the list says nothing
        // of.
        Ok(bytes) => {
            let crls = parse_all::<CertificateRevocationListDer<'_>>("revocation list", &files.crl, &bytes)?;
            builder = builder.with_crls(crls).allow_unknown_revocation_status();
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(cannot_read("revocation list", &files.crl, &e)),
    }
    let verifier = builder.build().map_err(|e| format!("CA files {} cannot be used: {e}", ca.display()))?;
    Ok(verifier)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// None where there is none to show: whether one is needed is the server's decision.
fn client_certificate(files: &Files) -> Result<Option<Identity>, String> {
    let (cert_path, key_path) = (&files.certificate, &files.key);
    let certificate = match read_limited(cert_path, MAX_PEM_LEN) {
        Ok(bytes) => Some(bytes),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(cannot_read("client certificate", cert_path, &e)),
    };
    let key = match read_limited(key_path, MAX_PEM_LEN) {
        Ok(bytes) => Some(bytes),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        // The directory of keys may be closed to this user, and empty.
        Err(e) if e.kind() == ErrorKind::PermissionDenied && certificate.is_none() => None,
        Err(e) => return Err(cannot_read("client key", key_path, &e)),
    };
    let without = |there: &str, path: &Path, absent: &str, missing: &Path| {
        format!(
            "there is a client {there} {} but no client {absent} {}: they go together, add the one or take the other \
             away",
            path.display(),
            missing.display()
        )
    };
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(without("certificate", cert_path, "key", key_path)),
        (None, Some(_)) => Err(without("key", key_path, "certificate", cert_path)),
        (Some(certificate), Some(key)) => {
            let chain = parse_all::<CertificateDer<'_>>("client certificate", cert_path, &certificate)?;
            let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| not_pem("client key", key_path, &e))?;
            Ok(Some((chain, key)))
        }
    }
}

fn parse_all<T: PemObject>(what: &str, path: &Path, bytes: &[u8]) -> Result<Vec<T>, String> {
    let items: Result<Vec<T>, _> = T::pem_slice_iter(bytes).collect();
    match items {
        Ok(items) if !items.is_empty() => Ok(items),
        Ok(_) => Err(not_pem(what, path, &pem::Error::NoItemsFound)),
        Err(e) => Err(not_pem(what, path, &e)),
    }
}

fn cannot_read(what: &str, path: &Path, e: &io::Error) -> String {
    match e.kind() {
        ErrorKind::PermissionDenied => {
            format!("permission refused to read the {what} {}: make it readable to this user", path.display())
        }
        _ => format!("cannot read the {what} {}: {e}", path.display()),
    }
}

fn not_pem(what: &str, path: &Path, e: &pem::Error) -> String {
    let path = path.display();
    match e {
        pem::Error::NoItemsFound => format!("the {what} {path} holds none in PEM (a -----BEGIN line)"),
        e => format!("the {what} {path} is no good PEM: {e:?}"),
    }
}

fn fail(uri: &Uri, what: String, retryable: bool) -> Error {
    Error::connection(label(uri), what, retryable, None)
}

/// What a failed handshake, or a connection closed instead of accepted, means to a person.
fn fail_because(uri: &Uri, during: During, files: &Files, has_certificate: bool, e: io::Error) -> Error {
    let tls = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let what = match tls {
        Some(rustls::Error::InvalidCertificate(why)) => server_certificate(uri, files, why),
        Some(rustls::Error::AlertReceived(alert)) => match alert {
            AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
                format!(
                    "the server shares no TLS version or cipher with us ({alert:?}): TLS 1.2 or 1.3 is needed"
                )
            }
            alert => client_refused(files, has_certificate, &format!(" ({alert:?})")),
        },
        Some(rustls::Error::InvalidMessage(_)) => {
            "the server does not speak TLS: a plain libvirt port (16509) is reached by +tcp".to_owned()
        }
        Some(other) => format!("TLS failed: {other}"),
        None => match e.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => match during {
                During::Handshake => {
                    let what = "the server closed the connection during the TLS handshake: is this its TLS port (16514; \
                                the plain one, 16509, is reached by +tcp)?";
                    return fail(uri, what.to_owned(), true);
                }
                // libvirt's server says no by closing. One that is going down, or full, closes too.
                During::Acceptance => {
                    let what = client_refused(files, has_certificate, "");
                    return fail(
                        uri,
                        format!("{what}; or it was restarted, or is at its limit max_clients"),
                        true,
                    );
                }
            },
            _ => return fail(uri, format!("TLS failed: {e}"), true),
        },
    };
    fail(uri, what, false)
}

fn server_certificate(uri: &Uri, files: &Files, why: &CertificateError) -> String {
    let host = uri.host().unwrap_or("localhost");
    let ca = files.ca.display();
    match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "the server's certificate is not signed by the CA in {ca}: put the CA that signed it there"
        ),
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => format!(
            "the server's certificate names no host in subjectAltName (a common name alone does not count): \
             issue it again with dns_name = or ip_address = {host}"
        ),
        CertificateError::NotValidForNameContext { presented, .. } => {
            /// Names shown of a certificate that may hold hundreds.
            const SHOWN: usize = 4;
            let names: Vec<_> = presented.iter().take(SHOWN).map(|name| bare_name(name)).collect();
            let names = printable(&names.join(", "));
            format!(
                "the server's certificate is for {names}, not for {host}: connect by such a name, or issue it again"
            )
        }
        CertificateError::NotValidForName => {
            format!(
                "the server's certificate is not for {host}: connect by the name in it, or issue it again"
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired: renew /etc/pki/libvirt/servercert.pem there".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet: compare the clocks of both machines".to_owned()
        }
        CertificateError::Revoked => {
            format!("the server's certificate is revoked by {}: it needs a new one", files.crl.display())
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the server's certificate is not meant for servers: issue it again with tls_www_server".to_owned()
        }
        other => {
            let why = printable(&other.to_string());
            format!("the server's certificate is not accepted: {why} (CA: {ca})")
        }
    }
}

/// The name alone, of webpki's `DnsName("hv1")` or `IpAddress(10.0.0.1)`.
fn bare_name(presented: &str) -> &str {
    let inner = presented.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(presented).trim_matches('"')
}

fn client_refused(files: &Files, has_certificate: bool, alert: &str) -> String {
    let (cert, key) = (files.certificate.display(), files.key.display());
    if has_certificate {
        format!(
            "the server refused our certificate {cert}{alert}: it must be signed by the server's CA, be valid, and \
             stand in its tls_allowed_dn_list if there is one (libvirtd's log tells)"
        )
    } else {
        format!(
            "the server wants a client certificate{alert} and we have none: put it at {cert} and its key at {key}"
        )
    }
}

fn warn_unverified(uri: &Uri) {
    /// One warning a host; a fleet has thousands at most.
    static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let peer = label(uri);
    if WARNED.lock().unwrap_or_else(PoisonError::into_inner).insert(peer.clone()) {
        tracing::warn!(peer, "no_verify=1: the server's certificate is not verified, anybody may pose as it");
    }
}

/// `no_verify=1`: any certificate will do. That the server holds its key is still checked.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustls::ExtendedKeyPurpose;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::transport::{Access, dial_in};

    fn uri(text: &str) -> Uri {
        text.parse().expect("the test's URI is good")
    }

    fn env(euid: u32, dir: &Path) -> Env {
        Env { euid, etc: dir.join("etc"), user_pki: Some(dir.join("home")), ..Env::of_process() }
    }

    #[test]
    fn files_are_found_where_libvirt_has_them() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let home = dir.path().join("home");
        fs::create_dir(&home).expect("a directory");
        let check = |text: &str, euid, expect: [&str; 4]| {
            let files = Files::locate(&env(euid, dir.path()), &uri(text));
            let found = [&files.ca, &files.crl, &files.certificate, &files.key];
            let found = found.map(|path| path.strip_prefix(dir.path()).unwrap_or(path).display().to_string());
            assert_eq!(found, expect, "{text} as {euid}");
        };
        let system = [
            "etc/pki/CA/cacert.pem",
            "etc/pki/CA/cacrl.pem",
            "etc/pki/libvirt/clientcert.pem",
            "etc/pki/libvirt/private/clientkey.pem",
        ];
        let plain = "qemu://h/system";
        check(plain, 1000, system);
        check(
            "qemu://h/system?pkipath=/p",
            1000,
            ["/p/cacert.pem", "/p/cacrl.pem", "/p/clientcert.pem", "/p/clientkey.pem"],
        );
        fs::write(home.join("cacert.pem"), "").expect("a file");
        // A certificate without its key is no pair.
        fs::write(home.join("clientcert.pem"), "").expect("a file");
        check(plain, 1000, ["home/cacert.pem", system[1], system[2], system[3]]);
        fs::write(home.join("clientkey.pem"), "").expect("a file");
        check(plain, 1000, ["home/cacert.pem", system[1], "home/clientcert.pem", "home/clientkey.pem"]);
        check(plain, 0, system);
    }

    #[test]
    fn unusable_files_are_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().display();
        let uri = uri(&format!("qemu://h/system?pkipath={path}"));
        let check = |expect: String| {
            let what = config(&uri, &Files::locate(&Env::of_process(), &uri)).expect_err("unusable files");
            assert_eq!(what, expect);
        };
        let pem =
            |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        check(format!(
            "no CA certificate {path}/cacert.pem: copy cacert.pem of the server there, or name its directory by pkipath="
        ));
        fs::write(dir.path().join("cacert.pem"), "not PEM").expect("a file");
        check(format!("the CA certificate {path}/cacert.pem holds none in PEM (a -----BEGIN line)"));
        fs::write(dir.path().join("cacert.pem"), pem("CERTIFICATE", "AAAA")).expect("a file");
        check(format!(
            "CA certificate {path}/cacert.pem is not usable: invalid peer certificate: BadEncoding"
        ));
        let big = fs::File::create(dir.path().join("cacert.pem")).expect("a file");
        big.set_len(MAX_PEM_LEN + 1).expect("a sparse file");
        check(format!("cannot read the CA certificate {path}/cacert.pem: longer than 8388608 bytes"));
    }

    /// Whether a certificate of ours is needed is the server's decision, but half a pair helps nobody.
    #[test]
    fn a_client_certificate_and_its_key_go_together() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().display();
        let uri = uri(&format!("qemu://h/system?no_verify=1&pkipath={path}"));
        let config = || config(&uri, &Files::locate(&Env::of_process(), &uri));
        let shown = config().expect("none is needed yet");
        assert!(!shown.client_auth_cert_resolver.has_certs());
        for (there, absent) in [("certificate", "key"), ("key", "certificate")] {
            let file = |which: &str| {
                dir.path().join(if which == "key" { "clientkey.pem" } else { "clientcert.pem" })
            };
            fs::write(file(there), "").expect("a file");
            let expect = format!(
                "there is a client {there} {} but no client {absent} {}: they go together, add the one or take the \
                 other away",
                file(there).display(),
                file(absent).display()
            );
            assert_eq!(config().expect_err("half a pair"), expect);
            fs::remove_file(file(there)).expect("removed");
        }
    }

    /// What the other side does in place of a TLS handshake, and what is said about it.
    #[tokio::test]
    async fn a_peer_without_tls_is_told() {
        let check = async |answer: &[u8], expect: &str| {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let port = listener.local_addr().expect("bound").port();
            let uri = uri(&format!("qemu://127.0.0.1:{port}/system?no_verify=1"));
            let server = async {
                let (mut socket, _) = listener.accept().await.expect("a client");
                let mut hello = [0; 1];
                socket.read_exact(&mut hello).await.expect("its hello");
                socket.write_all(answer).await.expect("the client reads");
            };
            let env = env(0, dir.path());
            let (_, result) =
                tokio::join!(server, dial_in(&env, &uri, Access::ReadOnly, Duration::from_secs(5)));
            let text = result.err().expect("no TLS there").to_string();
            assert_eq!(text, format!("tls:127.0.0.1:{port}: {expect}"));
        };
        check(
            b"",
            "the server closed the connection during the TLS handshake: is this its TLS port (16514; the plain one, \
             16509, is reached by +tcp)?",
        )
        .await;
        check(
            b"SSH-2.0-OpenSSH_9.2\r\n",
            "the server does not speak TLS: a plain libvirt port (16509) is reached by +tcp",
        )
        .await;
    }

    #[test]
    fn refusals_say_what_to_do() {
        let uri = uri("qemu://hv1/system?pkipath=/p");
        let files = Files::locate(&Env::of_process(), &uri);
        let check = |during, has_certificate, e: rustls::Error, expect: &str| {
            let e = io::Error::new(ErrorKind::InvalidData, e);
            let error = fail_because(&uri, during, &files, has_certificate, e);
            assert!(!error.is_retryable());
            assert_eq!(error.to_string(), format!("tls:hv1:16514: {expect}"));
        };
        let server = |why: CertificateError, expect: &str| {
            check(During::Handshake, true, rustls::Error::InvalidCertificate(why), expect);
        };
        server(
            CertificateError::UnknownIssuer,
            "the server's certificate is not signed by the CA in /p/cacert.pem: put the CA that signed it there",
        );
        let expected = ServerName::try_from("hv1").expect("a name");
        let presented = vec!["DnsName(\"hv2\")".to_owned(), "IpAddress(10.0.0.2)".to_owned()];
        server(
            CertificateError::NotValidForNameContext { expected: expected.clone(), presented },
            "the server's certificate is for hv2, 10.0.0.2, not for hv1: connect by such a name, or issue it again",
        );
        server(
            CertificateError::NotValidForNameContext { expected, presented: vec![] },
            "the server's certificate names no host in subjectAltName (a common name alone does not count): issue it \
             again with dns_name = or ip_address = hv1",
        );
        server(
            CertificateError::Expired,
            "the server's certificate has expired: renew /etc/pki/libvirt/servercert.pem there",
        );
        server(
            CertificateError::NotValidYet,
            "the server's certificate is not valid yet: compare the clocks of both machines",
        );
        server(
            CertificateError::Revoked,
            "the server's certificate is revoked by /p/cacrl.pem: it needs a new one",
        );
        let required = ExtendedKeyPurpose::ServerAuth;
        server(
            CertificateError::InvalidPurposeContext { required, presented: vec![] },
            "the server's certificate is not meant for servers: issue it again with tls_www_server",
        );
        check(
            During::Acceptance,
            true,
            rustls::Error::AlertReceived(AlertDescription::UnknownCA),
            "the server refused our certificate /p/clientcert.pem (UnknownCA): it must be signed by the server's CA, be \
             valid, and stand in its tls_allowed_dn_list if there is one (libvirtd's log tells)",
        );
        check(
            During::Acceptance,
            false,
            rustls::Error::AlertReceived(AlertDescription::CertificateRequired),
            "the server wants a client certificate (CertificateRequired) and we have none: put it at /p/clientcert.pem \
             and its key at /p/clientkey.pem",
        );
        for kind in [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset] {
            let closed = fail_because(&uri, During::Acceptance, &files, true, kind.into());
            let shown = closed.to_string();
            assert!(shown.contains("the server refused our certificate /p/clientcert.pem: "), "{shown}");
            assert!(shown.ends_with("; or it was restarted, or is at its limit max_clients"), "{shown}");
            assert!(closed.is_retryable(), "{shown}");
        }
    }
}
