//! Plain TCP: every address of the host in turn.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use super::{Channel, Peer, Stream, label};
use crate::error::Error;
use crate::uri::Uri;

/// libvirt's port for plain TCP (`LIBVIRTD_TCP_PORT`).
pub(super) const PORT: u16 = 16509;

pub(super) async fn dial(uri: &Uri, timeout: Duration) -> Result<Stream, Error> {
    let host = uri.host().unwrap_or("localhost");
    let stream = connect(uri, host, uri.port().unwrap_or(PORT), "libvirtd-tcp.socket", timeout).await?;
    let (reader, writer) = stream.into_split();
    let peer = Peer {
        label: label(uri),
        process: None,
        channel: Channel::Tcp,
        host_for_auth: host.to_owned(),
        ssh: None,
    };
    Ok(Stream { reader: Box::new(reader), writer: Box::new(writer), peer })
}

/// Tries the host's addresses one after another, each with its share of the time that is left, so that a dead
/// IPv6 route does not eat up the time of a good IPv4 address.
pub(super) async fn connect(
    uri: &Uri,
    host: &str,
    port: u16,
    unit: &str,
    timeout: Duration,
) -> Result<TcpStream, Error> {
    let end = Instant::now() + timeout;
    let fail = |what: String, retryable, e| Error::connection(label(uri), what, retryable, e);
    let addresses: Vec<SocketAddr> = match lookup_host((host, port)).await {
        Ok(addresses) => addresses.collect(),
        Err(e) => {
            let what = format!(
                "cannot find the address of host {host:?}: is its name right, and does DNS or /etc/hosts know it?"
            );
            return Err(fail(what, true, Some(e)));
        }
    };
    let mut last = None;
    for (i, address) in addresses.iter().enumerate() {
        let now = Instant::now();
        let share = end.saturating_duration_since(now) / (addresses.len() - i) as u32;
        match timeout_at(now + share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Small calls wait for their replies: never for Nagle's timer. Failing here costs only time.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(e)) => last = Some((address, e)),
            Err(_) => last = Some((address, io::Error::new(ErrorKind::TimedOut, "no answer"))),
        }
    }
    let Some((address, e)) = last else {
        return Err(fail(format!("host {host:?} has no address"), true, None));
    };
    let what = match e.kind() {
        ErrorKind::ConnectionRefused => format!(
            "nobody listens on {address}: libvirtd does so only when told, by \"systemctl enable --now {unit}\" \
             or the option --listen"
        ),
        ErrorKind::TimedOut => {
            format!("no answer from {address}: is the host up, and does a firewall let us through?")
        }
        _ => format!("cannot connect to {address}: {e}"),
    };
    Err(fail(what, true, None))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::transport::{Access, dial};

    #[tokio::test]
    async fn bytes_go_both_ways() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let uri: Uri = format!("qemu+tcp://127.0.0.1:{port}/system").parse().expect("a good URI");
        let server = async {
            let (mut socket, _) = listener.accept().await.expect("a client");
            let mut ping = [0; 4];
            socket.read_exact(&mut ping).await.expect("four bytes");
            socket.write_all(&ping).await.expect("the client reads");
        };
        let client = async {
            let mut stream = dial(&uri, Access::ReadOnly, Duration::from_secs(5)).await.expect("a server");
            assert_eq!(stream.peer.label, format!("tcp:127.0.0.1:{port}"));
            stream.writer.write_all(b"ping").await.expect("the server reads");
            let mut pong = [0; 4];
            stream.reader.read_exact(&mut pong).await.expect("four bytes");
            assert_eq!(&pong, b"ping");
            // The server's end is gone: that is what an end of file means.
            assert_eq!(stream.reader.read(&mut pong).await.expect("an end of file"), 0);
            assert!(stream.peer.lost(None).await.is_retryable());
        };
        tokio::join!(server, client);
    }

    #[tokio::test]
    async fn failures_say_what_to_do() {
        let check = async |host: &str, expect: &str| {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let port = listener.local_addr().expect("bound").port();
            drop(listener);
            let uri: Uri = format!("qemu+tcp://{host}:{port}/system").parse().expect("a good URI");
            let error =
                dial(&uri, Access::ReadOnly, Duration::from_secs(5)).await.err().expect("nobody there");
            assert!(error.is_retryable());
            let text = error.to_string().replace(&port.to_string(), "PORT");
            assert_eq!(text, expect);
        };
        let advice = "libvirtd does so only when told, by \"systemctl enable --now libvirtd-tcp.socket\" or the \
                      option --listen";
        check("127.0.0.1", &format!("tcp:127.0.0.1:PORT: nobody listens on 127.0.0.1:PORT: {advice}")).await;
        // Longer than a label may be (63 bytes): refused without asking any name server.
        let long = "h".repeat(64);
        let advice = "is its name right, and does DNS or /etc/hosts know it?";
        let expect = format!("tcp:{long}:PORT: cannot find the address of host {long:?}: {advice}");
        check(&long, &expect).await;
    }

    /// A server that takes the connection and says nothing: with TLS, dialing itself has to end.
    #[tokio::test(start_paused = true)]
    async fn silence_ends_by_the_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let text = format!("qemu+tls://127.0.0.1:{port}/system?no_verify=1");
        let uri: Uri = text.parse().expect("a good URI");
        let error = dial(&uri, Access::ReadOnly, Duration::from_secs(5)).await.err().expect("no handshake");
        assert!(error.is_retryable());
        assert!(error.to_string().contains(": no answer within 5s: "), "{error}");
    }
}
